"""The statements of docs/mathematics.md that no other file holds; its last section names the test of each one."""

import copy
import re
from math import lgamma, pi
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmsmlp import SMLPNet
from mmsmlp.resize import METHODS, antialiased_matrix, interpolation_matrix, resampling_matrix, resize_axis_bias
from mmsmlp.resize import resize_axis_weight as resize

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/mathematics.md").read_text("utf-8")
PAIRS = [(n, m) for n in range(1, 25) for m in range(n + 1, 3 * n + 2)]
MIXED = [(7, 8), (8, 7), (7, 20), (20, 7), (14, 28), (28, 14), (5, 15), (13, 17)]


def weight(n: int) -> torch.Tensor:
    return torch.randn(n, n, dtype=torch.float64)


def absolute_row_sum(matrix: torch.Tensor) -> float:
    """The operator norm for the largest absolute value."""
    return matrix.abs().sum(1).max().item()


def assert_equal(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-10) -> None:
    assert a.shape == b.shape
    assert (a - b).abs().max() <= tolerance * b.abs().max().clamp(min=1)


def test_every_statement_names_tests_that_exist():
    statements = re.findall(r"^\*\*(\d+)\. ", PAGE, re.M)
    table = re.findall(r"^\| ([\d, ]+) \|(.+)\|$", PAGE, re.M)
    assert [number for numbers, _ in table for number in numbers.split(", ")] == statements
    for _, cells in table:
        assert "`test_" in cells
        for file, names in re.findall(r"`(\w+\.py)`: ([^;]+)", cells):
            source = (ROOT / "tests" / file).read_text("utf-8")
            assert not [name for name in re.findall(r"`(\w+)`", names) if f"def {name}(" not in source]


def test_the_upward_matrix_has_two_adjacent_taps_at_most_and_independent_columns():
    for n, m in PAIRS:
        up = interpolation_matrix(n, m)
        assert (up.count_nonzero(1) <= 2).all()
        assert (up * up.roll(-1, 1)).sum(1)[up.count_nonzero(1) == 2].gt(0).all()
        assert torch.linalg.matrix_rank(up) == n


@pytest.mark.parametrize(("n", "m"), MIXED)
def test_reversal_commutes_with_the_upward_matrix_and_all_that_goes_down(n, m):
    for method in ("exact", "bounded"):
        matrix = resampling_matrix(n, m, method)
        assert_equal(matrix.flip(0, 1), matrix)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("height", "width"), [(64, 64), (32, 96)])
def test_turning_map_weights_and_kernels_by_180_degrees_turns_the_output(height, width, method):
    """The sizes are multiples of the total stride 32: elsewhere the padding of the last patch has a side."""
    net = SMLPNet({"embed_dims": 8, "depths": (1, 1, 2, 1)}, img_size=64, interpolation=method).double().eval()
    turned = copy.deepcopy(net)
    for module in turned.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.flip(2, 3)
        if hasattr(module, "mix_w"):
            for mix in (module.mix_w, module.mix_h):
                mix.weight.data, mix.bias.data = mix.weight.data.flip(0, 1), mix.bias.data.flip(0)
    x = torch.randn(1, 3, height, width, dtype=torch.float64)
    for a, b in zip(turned(x.flip(2, 3)), net(x)):
        torch.testing.assert_close(a, b.flip(2, 3))


@pytest.mark.parametrize("method", ["exact", "bounded"])
@pytest.mark.parametrize(("n", "m"), MIXED)
def test_row_sums_are_resampled_like_a_signal(n, m, method):
    w = weight(n)
    assert_equal(resize(w, m, method).sum(1), resampling_matrix(n, m, method) @ w.sum(1))


@pytest.mark.parametrize(("n", "m"), MIXED)
def test_naive_multiplies_the_row_sums_of_equal_columns_by_m_over_n_and_scaled_undoes_it(n, m):
    rows = torch.randn(n, dtype=torch.float64)
    bicubic = F.interpolate(rows[None, None, None], size=(1, m), mode="bicubic", align_corners=False).flatten()
    w = rows[:, None].expand(n, n) / n
    assert_equal(resize(w, m, "naive").sum(1), bicubic * (m / n))
    assert_equal(resize(w, m, "scaled").sum(1), bicubic)


@pytest.mark.parametrize(("n", "m"), [(7, 8), (7, 20), (14, 28), (13, 17)])
def test_exact_upwards_is_the_smallest_of_all_weights_that_commute(n, m):
    w, up = weight(n), interpolation_matrix(n, m).numpy()
    smallest = np.linalg.lstsq(up.T, (up @ w.numpy()).T, rcond=None)[0].T  # of least norm with X U = U W
    assert_equal(resize(w, m, "exact"), torch.from_numpy(smallest))


@pytest.mark.parametrize(("n", "m"), [(7, 8), (7, 20), (14, 28)])
def test_exact_upwards_keeps_the_eigenvalues_and_adds_zeros(n, m):
    w = weight(n) / n**0.5
    own, resized = (np.poly(matrix.numpy()) for matrix in (w, resize(w, m, "exact")))  # characteristic polynomials
    np.testing.assert_allclose(resized, np.pad(own, (0, m - n)), atol=1e-8)


def test_the_counterexample_to_composition_has_the_pages_numbers():
    bias = torch.tensor([0.0, 1.0], dtype=torch.float64)
    direct, detour = (
        resize_axis_bias(bias, 4, "exact"),
        resize_axis_bias(resize_axis_bias(bias, 3, "exact"), 4, "exact"),
    )
    assert direct.tolist() == [0, 1 / 4, 3 / 4, 1]
    assert detour.tolist() == pytest.approx([0, 5 / 16, 11 / 16, 1])
    w = bias[:, None].expand(2, 2) / 2
    assert resize(w, 4, "exact").sum(1).tolist() == pytest.approx(direct.tolist())
    assert resize(resize(w, 3, "exact"), 4, "exact").sum(1).tolist() == pytest.approx(detour.tolist())


@pytest.mark.parametrize(("n", "m"), PAIRS[::7])
def test_bounded_is_exact_with_the_gram_matrix_lumped(n, m):
    """The triangle filter has the taps of linear interpolation without clamping, each row divided by its sum."""
    centre = (torch.arange(m, dtype=torch.float64) + 0.5) * (n / m) - 0.5
    taps = (1 - (centre[:, None] - torch.arange(n)).abs()).clamp(min=0)
    assert_equal(antialiased_matrix(m, n), taps.T / taps.sum(0)[:, None])
    up = interpolation_matrix(n, m)
    assert_equal((up.T @ up).sum(1), up.sum(0))


def test_bounded_blurs_on_the_way_up_and_down():
    there_and_back = antialiased_matrix(28, 14) @ interpolation_matrix(14, 28)
    assert_equal(there_and_back[6, 5:8], torch.tensor([3 / 16, 5 / 8, 3 / 16], dtype=torch.float64))


@pytest.mark.parametrize("ratio", [2, 3, 4, 5, 8, 9])
@pytest.mark.parametrize("n", [1, 2, 7, 14, 56])
def test_at_whole_ratios_the_gram_matrix_is_dominant_and_the_pseudo_inverse_at_most_4(n, ratio):
    up = interpolation_matrix(n, ratio * n)
    gram = up.T @ up
    dominance = 2 * gram.diagonal() - gram.sum(1)
    factor = 1 - 1 / ratio**2 if ratio % 2 == 0 else 1 + 2 / ratio**2
    if n > 2:
        assert dominance[1:-1].tolist() == pytest.approx([ratio / 3 * factor] * (n - 2))
    assert dominance.min() >= ratio / 4 - 1e-9
    eigenvalues = torch.linalg.eigvalsh(gram)
    assert ratio / 4 - 1e-9 <= eigenvalues[0] <= eigenvalues[-1] <= ratio + 1e-9
    assert absolute_row_sum(resampling_matrix(ratio * n, n, "exact")) <= 4


def test_from_five_quarters_of_the_anchor_on_the_measured_figures_hold():
    worst_sum, worst_condition = 0.0, 0.0
    for n in range(2, 61):
        for m in range(-(-5 * n // 4), 6 * n + 1):
            up = interpolation_matrix(n, m)
            worst_sum = max(worst_sum, absolute_row_sum(resampling_matrix(m, n, "exact")))
            worst_condition = max(worst_condition, torch.linalg.cond(up.T @ up).item())
    assert worst_sum <= 2.7
    assert worst_condition <= 4


def null_vector(n: int) -> torch.Tensor:
    """The vector c with cᵀU = 0 at m = n + 1: binomial coefficients at half-integers, largest 1, alternating."""
    logs = torch.tensor([-lgamma(i + 1.5) - lgamma(n - i + 1.5) for i in range(n + 1)], dtype=torch.float64)
    c = (logs - logs.max()).exp()
    c[[0, -1]] *= (2 * n + 1) / (2 * n + 2)
    c[1::2] *= -1
    return c


@pytest.mark.parametrize("n", [2, 3, 7, 14, 28, 56])
def test_one_position_more_the_pseudo_inverse_has_the_closed_form(n):
    up, c = interpolation_matrix(n, n + 1), null_vector(n)
    assert_equal(c @ up, torch.zeros(n, dtype=torch.float64), 1e-12)
    pseudo_inverse = resampling_matrix(n + 1, n, "exact")
    for j in range(n):
        low, high = c[: j + 1].square().sum(), c[j + 1 :].square().sum()
        row = torch.cat([high * c[: j + 1], -low * c[j + 1 :]]) / ((low + high) * c[j] * up[j, j])
        assert_equal(pseudo_inverse[j], row)


@pytest.mark.parametrize("n", [14, 27, 56, 101, 300])
def test_one_position_more_amplifies_by_the_root_of_half_pi_n(n):
    sums = resampling_matrix(n + 1, n, "exact").abs().sum(1)
    assert sums.max().item() == pytest.approx((pi * n / 2) ** 0.5, rel=0.02)
    assert abs(sums.argmax().item() - (n - 1) / 2) <= 0.5
    smallest = torch.linalg.svdvals(interpolation_matrix(n, n + 1))[-1].item()
    assert smallest == pytest.approx((2 / n) ** 0.5, rel=0.04)


@pytest.mark.parametrize(("n", "m"), [(7, 8), (7, 20), (14, 84), (5, 5)])
def test_the_factored_form_is_equal_and_costs_4_and_n_squared_over_m_per_token(n, m):
    w, x, up = weight(n), torch.randn(m, 3, dtype=torch.float64), interpolation_matrix(n, m)
    factors = {"exact": (w @ torch.linalg.inv(up.T @ up), up.T), "bounded": (w, antialiased_matrix(m, n))}
    for method, (middle, read) in factors.items():
        assert_equal(up @ (middle @ (read @ x)), resize(w, m, method) @ x)
        assert (up.count_nonzero() + middle.numel() + read.count_nonzero()) / m <= 4 + n**2 / m


def kernel(s: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """A smooth kernel, symmetric under nothing, whose derivatives vanish at no border."""
    return torch.exp(-3 * (s[:, None] - 0.8 * t) ** 2) * (1 + s[:, None] + 0.5 * torch.sin(4 * t))


def centres(n: int) -> torch.Tensor:
    return (torch.arange(n, dtype=torch.float64) + 0.5) / n


def signal(t: torch.Tensor) -> torch.Tensor:
    return torch.exp(t) + torch.sin(5 * t)


def errors(n: int, m: int, method: str) -> dict[str, float]:
    """How far the resized layer is from the integral of kernel and signal."""
    fine, s, t = centres(20000), centres(n), centres(m)
    error = (resize(kernel(s, s) / n, m, method) @ signal(t) - kernel(t, fine) @ signal(fine) / 20000).abs()
    inner = (t >= 0.1) & (t <= 0.9) if m < n else (t >= s[0]) & (t <= s[-1])
    return {"inner": error[inner].max().item(), "all": error.max().item(), "mean": error.mean().item()}


@pytest.mark.parametrize(("method", "ratio", "orders"), [
    ("exact", 2, {"inner": 2, "mean": 2, "all": 1}),  # proven
    ("exact", 3, {"inner": 2, "mean": 2, "all": 1}),
    ("bounded", 2, {"inner": 2, "mean": 2, "all": 1}),
    ("bounded", 3, {"inner": 2, "mean": 2, "all": 1}),
    ("exact", 1.5, {"inner": 2, "mean": 2, "all": 1}),  # measured from here on
    ("bounded", 1.5, {"inner": 2, "mean": 2, "all": 1}),
    ("exact", 0.6, {"inner": 2, "mean": 2, "all": 1}),
    ("bounded", 0.6, {"inner": 1, "mean": 1, "all": 1}),
    ("scaled", 2, {"inner": 1, "all": 1}),
    ("scaled", 1.5, {"inner": 1, "all": 1}),
])  # fmt: skip
def test_on_a_smooth_kernel_refining_the_grids_converges_at_the_stated_order(method, ratio, orders):
    coarse, fine = (errors(n, round(n * ratio), method) for n in (120, 240))
    for where, order in orders.items():
        assert np.log2(coarse[where] / fine[where]) == pytest.approx(order, abs=0.12)


def test_more_positions_of_the_same_signal_approach_one_operator():
    n, w = 7, weight(7)
    fine = centres(100000)
    hats = (1 - ((fine * n - 0.5).clamp(0, n - 1)[:, None] - torch.arange(n)).abs()).clamp(min=0)
    coefficients = torch.linalg.solve(hats.T @ hats, hats.T @ signal(fine))  # integrals, as fine sums
    distances = []
    for m in (50, 500):
        limit = interpolation_matrix(n, m) @ (w @ coefficients)
        distances.append((resize(w, m, "exact") @ signal(centres(m)) - limit).abs().max().item())
    assert distances[1] < distances[0] / 20
    assert distances[1] < 1e-4
