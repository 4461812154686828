"""Positional interpolation: what each method promises, for every pair of grids that inputs of 32 to 2048 produce."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsmlp.resize import (
    METHODS,
    antialiased_matrix,
    branchless_pair,
    interpolation_matrix,
    resampling_matrix,
    resize_axis_bias,
    resize_axis_weight,
)

# The anchor grids of 224 pixels, each with the grids that inputs of 32 to 2048 pixels have at the same stage.
ANCHORS = {56: 4, 28: 8, 14: 16, 7: 32}
GRIDS = {n: range(32 // stride, 2048 // stride + 1) for n, stride in ANCHORS.items()}
# One test an anchor and not one a pair: 949 pairs for each property took longer to collect and report than to compute.
each_anchor = pytest.mark.parametrize("n", ANCHORS)
size = st.integers(1, 96)


def axis_layer(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A random axis weight (n, n) and bias (n,) in float64."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(n, n, dtype=torch.float64, generator=generator) / n**0.5
    return weight, torch.randn(n, dtype=torch.float64, generator=generator)


def mix(weight: torch.Tensor, bias: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return weight @ x + bias[:, None]


def assert_equal(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-10) -> None:
    assert a.shape == b.shape
    assert (a - b).abs().max() <= tolerance * b.abs().max().clamp(min=1), f"of shape {tuple(a.shape)}"


@pytest.mark.parametrize(("src", "dst"), [(7, 7), (7, 8), (7, 21), (14, 5), (56, 57), (56, 13), (1, 9), (9, 1), (3, 2)])
def test_interpolation_matrix_is_linear_interpolation(src, dst):
    x = torch.randn(2, 3, src, dtype=torch.float64)
    wanted = F.interpolate(x, size=dst, mode="linear", align_corners=False)
    assert_equal(x @ interpolation_matrix(src, dst).T, wanted)


@pytest.mark.parametrize(("src", "dst"), [(8, 7), (21, 7), (57, 56), (512, 56), (9, 1), (7, 7)])
def test_antialiased_matrix_is_the_antialiased_filter_of_torch(src, dst):
    x = torch.randn(1, 2, src, 11, dtype=torch.float64)
    wanted = F.interpolate(x, size=(dst, 11), mode="bilinear", align_corners=False, antialias=True)
    assert_equal(antialiased_matrix(src, dst) @ x, wanted)


@each_anchor
@pytest.mark.parametrize("method", ["exact", "bounded"])
def test_resampling_preserves_constants_both_ways(n, method):
    for m in GRIDS[n]:
        for src, dst in ((n, m), (m, n)):
            ones = torch.ones(src, dtype=torch.float64)
            assert_equal(resampling_matrix(src, dst, method) @ ones, torch.ones(dst, dtype=torch.float64))


@each_anchor
def test_exact_goes_down_by_the_pseudo_inverse(n):
    for m in GRIDS[n]:
        coarse, fine = min(n, m), max(n, m)
        wanted = np.linalg.pinv(interpolation_matrix(coarse, fine).numpy())
        assert_equal(resampling_matrix(fine, coarse, "exact"), torch.from_numpy(wanted))


@pytest.mark.parametrize("n", [1, 2, *ANCHORS, 200])
@pytest.mark.parametrize("method", ["exact", "bounded"])
def test_one_formula_without_a_branch_gives_both_matrices(method, n):
    """At, beside, far below and far above the anchor; n + 1 is the worst condition of 'exact'."""
    for m in {1, 2, n // 3 or 1, n - 1 or 1, n, n + 1, 2 * n - 1, 2 * n, 4 * n + 3}:
        for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 1e-6)):
            pair = branchless_pair(n, m, method, like=torch.empty(0, dtype=dtype))
            for matrix, sizes in zip(pair, ((n, m), (m, n))):
                assert matrix.dtype == dtype
                assert_equal(matrix.double(), resampling_matrix(*sizes, method), tolerance)


@each_anchor
def test_exact_upwards_resizing_and_mixing_commute(n):
    weight, bias = axis_layer(n)
    x = torch.randn(n, 3, dtype=torch.float64)
    for m in range(n, GRIDS[n].stop):
        up = interpolation_matrix(n, m)
        resized = resize_axis_weight(weight, m, "exact"), resize_axis_bias(bias, m, "exact")
        assert_equal(mix(*resized, up @ x), up @ mix(weight, bias, x))


@each_anchor
def test_exact_up_and_back_is_the_identity(n):
    weight, bias = axis_layer(n)
    for m in range(n, GRIDS[n].stop):
        assert_equal(resize_axis_weight(resize_axis_weight(weight, m, "exact"), n, "exact"), weight)
        assert_equal(resize_axis_bias(resize_axis_bias(bias, m, "exact"), n, "exact"), bias)


@each_anchor
def test_exact_downwards_is_the_least_squares_best(n):
    weight, bias = axis_layer(n)
    for m in range(GRIDS[n].start, n):
        z = torch.randn(m, 3, dtype=torch.float64)
        up = interpolation_matrix(m, n)
        wanted = torch.linalg.lstsq(up, mix(weight, bias, up @ z)).solution
        resized = resize_axis_weight(weight, m, "exact"), resize_axis_bias(bias, m, "exact")
        assert_equal(mix(*resized, z), wanted)


@each_anchor
def test_bounded_amplifies_nothing(n):
    weight, bias = axis_layer(n)
    largest = weight.abs().sum(1).max()
    for m in GRIDS[n]:
        assert resize_axis_weight(weight, m, "bounded").abs().sum(1).max() <= largest * (1 + 1e-12)
        assert resize_axis_bias(bias, m, "bounded").abs().max() <= bias.abs().max() * (1 + 1e-12)


@each_anchor
def test_scaled_is_naive_times_n_over_m(n):
    weight, _ = axis_layer(n)
    for m in GRIDS[n]:
        assert_equal(resize_axis_weight(weight, m, "scaled"), resize_axis_weight(weight, m, "naive") * (n / m))


@each_anchor
def test_naive_is_bicubic_interpolation_of_the_matrix(n):
    weight, _ = axis_layer(n)
    for m in set(GRIDS[n]) - {n}:
        wanted = F.interpolate(weight[None, None], size=(m, m), mode="bicubic", align_corners=False)[0, 0]
        assert_equal(resize_axis_weight(weight, m, "naive"), wanted)


@pytest.mark.parametrize("factor", [2, 4])
def test_naive_row_sums_grow_with_the_size_and_those_of_the_others_do_not(factor):
    weight = torch.ones(14, 14, dtype=torch.float64) / 14
    sums = {method: resize_axis_weight(weight, 14 * factor, method).sum(1).mean().item() for method in METHODS}
    assert sums == pytest.approx({"exact": 1, "bounded": 1, "scaled": 1, "naive": factor})


@each_anchor
@pytest.mark.parametrize("method", METHODS)
def test_a_constant_bias_stays_the_constant(n, method):
    bias = torch.full((n,), 0.7, dtype=torch.float64)
    for m in GRIDS[n]:
        assert_equal(resize_axis_bias(bias, m, method), torch.full((m,), 0.7, dtype=torch.float64))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n", ANCHORS)
def test_the_own_size_returns_the_parameters_themselves(n, method):
    weight, bias = axis_layer(n)
    assert resize_axis_weight(weight, n, method) is weight
    assert resize_axis_bias(bias, n, method) is bias


@pytest.mark.parametrize("n", ANCHORS)
def test_one_position_more_amplifies_the_highest_frequency_of_exact(n):
    # Not a promise but a documented price: about 1.25 sqrt(n) in absolute row sum.
    amplification = resampling_matrix(n + 1, n, "exact").abs().sum(1).max().item()
    assert amplification == pytest.approx(1.25 * n**0.5, rel=0.25)


def test_composition_is_not_promised():
    weight, _ = axis_layer(14)
    direct = resize_axis_weight(weight, 30, "exact")
    detour = resize_axis_weight(resize_axis_weight(weight, 21, "exact"), 30, "exact")
    assert (direct - detour).abs().max() > 1e-3


@settings(deadline=None, max_examples=200)
@given(n=size, m=size, method=st.sampled_from(METHODS), seed=st.integers(0, 9))
def test_any_pair_of_sizes_gives_finite_weights_of_that_size(n, m, method, seed):
    weight, bias = axis_layer(n, seed)
    resized = resize_axis_weight(weight, m, method)
    assert resized.shape == (m, m)
    assert resized.isfinite().all()
    assert resize_axis_bias(bias, m, method).shape == (m,)


@settings(deadline=None, max_examples=200)
@given(n=size, m=size, seed=st.integers(0, 9))
def test_exact_is_one_formula_for_both_directions(n, m, seed):
    weight, _ = axis_layer(n, seed)
    k = max(n, m)
    a, b = interpolation_matrix(n, k), interpolation_matrix(m, k)
    wanted = torch.linalg.pinv(b) @ a @ weight @ torch.linalg.pinv(a) @ b
    assert_equal(resize_axis_weight(weight, m, "exact"), wanted, 1e-9)


@settings(deadline=None, max_examples=100)
@given(n=size, m=size, method=st.sampled_from(METHODS))
def test_reversing_the_axis_commutes_with_resizing(n, m, method):
    weight, bias = axis_layer(n)
    assert_equal(resize_axis_weight(weight.flip(0, 1), m, method), resize_axis_weight(weight, m, method).flip(0, 1))
    assert_equal(resize_axis_bias(bias.flip(0), m, method), resize_axis_bias(bias, m, method).flip(0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("method", METHODS)
def test_the_dtype_is_kept(method, dtype):
    weight, bias = (p.to(dtype) for p in axis_layer(14))
    assert resize_axis_weight(weight, 30, method).dtype == dtype
    assert resize_axis_bias(bias, 30, method).dtype == dtype


@pytest.mark.parametrize("method", METHODS)
def test_half_precision_is_computed_in_float32(method):
    weight = axis_layer(14)[0].to(torch.bfloat16)
    wanted = resize_axis_weight(weight.float(), 15, method).to(torch.bfloat16)
    assert torch.equal(resize_axis_weight(weight, 15, method), wanted)


@pytest.mark.parametrize("method", METHODS)
def test_autocast_does_not_lower_the_precision(method):
    weight = axis_layer(14)[0].float()
    with torch.autocast("cpu", torch.bfloat16):
        inside = resize_axis_weight(weight, 15, method)
    assert torch.equal(inside, resize_axis_weight(weight, 15, method))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("m", [5, 15, 31])
def test_gradients_are_right(method, m):
    weight, bias = axis_layer(7)

    def resize(w, b):
        return resize_axis_weight(w, m, method), resize_axis_bias(b, m, method)

    assert torch.autograd.gradcheck(resize, (weight.requires_grad_(), bias.requires_grad_()))


def test_a_matrix_first_built_in_inference_mode_serves_training_later():
    weight = torch.randn(11, 11, requires_grad=True)
    with torch.inference_mode():
        resize_axis_weight(weight, 29, "exact")
    resize_axis_weight(weight, 29, "exact").sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize("bad", [0, -3, 2.0, "7", None, True])
def test_a_bad_size_is_named(bad):
    with pytest.raises(ValueError, match="must be a positive integer"):
        resize_axis_weight(torch.eye(7), bad)
    with pytest.raises(ValueError, match="src must be a positive integer"):
        interpolation_matrix(bad, 7)


@pytest.mark.parametrize("resize", [resize_axis_weight, resize_axis_bias])
def test_a_bad_method_is_named_with_the_good_ones(resize):
    with pytest.raises(ValueError, match="'nearest'.*'exact', 'bounded', 'scaled', 'naive'"):
        resize(torch.ones(7), 9, "nearest")


@pytest.mark.parametrize("bad", [torch.ones(3, 4), torch.ones(3), torch.ones(3, 3, dtype=torch.long), torch.ones(0, 0)])
def test_a_bad_weight_is_named_with_its_shape(bad):
    with pytest.raises(ValueError, match=r"weight must be a floating-point tensor \(n, n\)"):
        resize_axis_weight(bad, 5)


def test_an_antialiased_matrix_to_a_finer_grid_is_refused():
    with pytest.raises(ValueError, match="dst=9 is finer than src=7"):
        antialiased_matrix(7, 9)
