"""The paths of axis mixing: they agree to rounding, forward and backward, and cost grows with the number of pixels."""

import json
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from conftest import MINI
from memory import kept_for_backward
from torch import Tensor

from mmsmlp import SMLPNet
from mmsmlp.flops import count_macs
from mmsmlp.layers import AxisLinear
from mmsmlp.ops.axis_mixing import PATHS, choose_path, mix_axis, mix_dense, mix_low_rank, mix_two_tap
from mmsmlp.ops.taps import Taps, add_combined, combine
from mmsmlp.resize import METHODS, antialiased_matrix, interpolation_matrix
from mmsmlp.valid_area import attach_valid_sizes

BENCHMARK = Path(__file__).parents[1] / "benchmarks/axis_paths.py"

SIZES = [(n, m) for n in (1, 2, 7, 14, 56) for m in sorted({n + 1, n + (n + 1) // 2, 2 * n, 6 * n}) if m > n]
FACTORED = {"low_rank": mix_low_rank, "two_tap": mix_two_tap}
METHODS_WITH_FACTORS = ("exact", "bounded")
NEEDS_HALF = pytest.mark.needs_torch("2.11", reason="autocast of 2.1 knows no float16 on a CPU")


def layer(n: int, m: int, dim: int, dtype=torch.float64, other: int = 3, channels: int = 5) -> list[Tensor]:
    """A map of two images with m positions along an axis, and the weight and bias of n positions."""
    shape = (2, m, other, channels) if dim == 1 else (2, other, m, channels)
    tensors = (torch.randn(shape), torch.randn(n, n) / n**0.5, torch.randn(n))
    return [tensor.to(dtype).requires_grad_() for tensor in tensors]


def results(path, tensors: list[Tensor], *arguments, dtype=torch.float64) -> list[Tensor]:
    """A path's output in ``dtype`` and its gradients with respect to map, weight and bias."""
    leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in tensors]
    out = path(*leaves, *arguments)
    return [out, *torch.autograd.grad(out, leaves, gradient_of(out))]


def gradient_of(out: Tensor) -> Tensor:
    """A gradient in the dtype of ``out``, the same values in any."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(-9, 10, out.shape, generator=generator).to(out.dtype)


@pytest.mark.parametrize(("n", "m"), SIZES)
@pytest.mark.parametrize("method", METHODS_WITH_FACTORS)
@pytest.mark.parametrize("name", FACTORED)
def test_paths_agree_forward_and_backward(name, method, n, m, relative_error):
    for dim, (dtype, tolerance) in product((1, 2), ((torch.float64, 1e-12), (torch.float32, 1e-5))):
        tensors = layer(n, m, dim)
        wanted = results(mix_dense, tensors, dim, method)
        for a, b in zip(results(FACTORED[name], tensors, dim, method, dtype=dtype), wanted):
            assert a.dtype == dtype
            assert relative_error(a, b) < tolerance


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("method", METHODS_WITH_FACTORS)
@pytest.mark.parametrize("name", FACTORED)
def test_gradients_are_right(name, method, dim):
    tensors = layer(3, 7, dim, other=2, channels=2)
    assert torch.autograd.gradcheck(lambda *t: FACTORED[name](*t, dim, method), tensors)
    assert torch.autograd.gradgradcheck(lambda *t: FACTORED[name](*t, dim, method), tensors)


@pytest.mark.parametrize("frozen", [(0,), (1, 2), (1,), (0, 2)], ids=str)
def test_what_needs_no_gradient_gets_none(frozen):
    tensors = layer(7, 20, 2)
    wanted = results(mix_two_tap, tensors, 2, "exact")[1:]
    leaves = [t.detach().requires_grad_(i not in frozen) for i, t in enumerate(tensors)]
    out = mix_two_tap(*leaves, 2, "exact")
    out.backward(gradient_of(out))
    for i, (leaf, gradient) in enumerate(zip(leaves, wanted)):
        assert leaf.grad is None if i in frozen else torch.equal(leaf.grad, gradient)


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("name", FACTORED)
def test_any_strides_give_the_same_contiguous_map(name, dim):
    x, weight, bias = layer(7, 12, dim)
    wanted = FACTORED[name](x, weight, bias, dim, "exact")
    assert wanted.is_contiguous()
    for order in ((0, 3, 1, 2), (2, 1, 3, 0), (3, 2, 1, 0)):
        strided = x.permute(order).contiguous().permute([order.index(axis) for axis in range(4)])
        out = FACTORED[name](strided, weight, bias, dim, "exact")
        assert out.is_contiguous()
        assert torch.equal(out, wanted)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=NEEDS_HALF)], ids=str)
@pytest.mark.parametrize("method", METHODS_WITH_FACTORS)
@pytest.mark.parametrize("name", FACTORED)
def test_half_precision_is_not_less_accurate_than_the_dense_path(name, method, dtype, autocast):
    """Errors are against float64 on the same rounded inputs, root mean squares, outputs and gradients."""
    tensors = [t.to(dtype) for t in layer(14, 40, 2, other=40, channels=16)]
    # Under autocast the parameters are float32, which products then round.
    tensors = [tensors[0], *((t.float() for t in tensors[1:]) if autocast else tensors[1:])]
    wanted = [t.double() for t in results(mix_dense, tensors, 2, method)]

    def results_in_half(path) -> list[Tensor]:
        leaves = [t.detach().requires_grad_() for t in tensors]
        with torch.autocast("cpu", dtype, enabled=autocast):
            out = path(*leaves, 2, method)
        assert out.dtype == dtype
        gradients = torch.autograd.grad(out, leaves, gradient_of(out))
        assert [t.dtype for t in gradients] == [t.dtype for t in leaves]
        return [out, *gradients]

    for ours, dense, exact in zip(results_in_half(FACTORED[name]), results_in_half(mix_dense), wanted):
        # Nothing beats the exact result rounded; the dense path may by luck, where there are few values.
        error, of_dense, of_rounding = (
            ((t.double() - exact).square().mean() / exact.square().mean()).sqrt()
            for t in (ours, dense, exact.to(ours.dtype))
        )
        # Gradients of float32 parameters are sums in float32, whose own rounding is a few 1e-7.
        of_sums = 4e-7 if ours.dtype == torch.float32 else 0.0
        assert error <= 1.02 * max(of_dense, of_rounding, of_sums)


def test_float32_maps_under_autocast_come_out_in_its_dtype():
    tensors = layer(7, 20, 1, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert {path(*tensors, 1, "exact").dtype for path in PATHS.values()} == {torch.bfloat16}


@pytest.mark.parametrize("method", METHODS)
def test_at_the_anchor_nothing_but_the_weight_itself_is_applied(method):
    for dim in (1, 2):
        x, weight, bias = layer(9, 9, dim, torch.float32)
        n, h, w, c = x.shape
        lines = x.reshape(n, h, w * c) if dim == 1 else x.reshape(n * h, w, c)
        wanted = torch.baddbmm(bias[:, None], weight.expand(len(lines), 9, 9), lines).view(x.shape)
        assert torch.equal(mix_axis(x, weight, bias, dim, method), wanted)


@pytest.mark.parametrize(
    ("n", "m", "method"), [(7, 7, "exact"), (7, 5, "bounded"), (7, 1, "exact"), (7, 20, "scaled"), (7, 20, "naive")]
)
def test_what_has_no_factors_goes_the_dense_path(n, m, method):
    for device, half, traced in product(("cpu", "cuda", "meta", "mps"), (False, True), (False, True)):
        assert choose_path(n, m, method, device, half, traced) == "dense"
    for path in FACTORED.values():
        with pytest.raises(ValueError, match=f"a layer of {n} positions has factors on more .*, not on {m} by"):
            path(*layer(n, m, 1), 1, method)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("device", ["cpu", "cuda", "meta"])
@pytest.mark.parametrize("n", [7, 14, 28, 56])
def test_from_some_size_on_every_larger_one_is_factored(n, device, half):
    """Else cost could not be linear; and the rule takes sizes and kinds only, so it cannot measure."""
    paths = [choose_path(n, m, "exact", device, half) for m in range(n + 1, 600 * n)]
    first = paths.index(next(path for path in paths if path != "dense"))
    assert "dense" not in paths[first:]


@pytest.mark.parametrize(("device", "traced"), [("cpu", True), ("cuda", True), ("mps", False)])
def test_what_is_traced_or_on_another_device_is_left_to_matrix_products(device, traced):
    chosen = {choose_path(56, m, "exact", device, half, traced) for m in range(57, 9000, 50) for half in (False, True)}
    assert chosen == {"dense", "low_rank"}


@pytest.mark.parametrize(("n", "m", "path"), [(7, 6, "dense"), (7, 42, "low_rank"), (56, 168, "two_tap")])
def test_a_layer_takes_the_path_that_is_chosen(n, m, path):
    assert choose_path(n, m, "exact", "cpu") == path
    x, weight, bias = layer(n, m, 2, torch.float32)
    module = AxisLinear(n, 2, "exact")
    module.load_state_dict({"weight": weight.detach(), "bias": bias.detach()})
    assert torch.equal(module(x), PATHS[path](x, weight, bias, 2, "exact"))


def anchored_at(net: SMLPNet, size: tuple[int, int]) -> SMLPNet:
    """The same network on the anchor of an input size, where its layers are dense: loading resizes their weights."""
    other = SMLPNet(MINI, img_size=size, interpolation=net.interpolation).to(next(net.parameters()).dtype)
    other.load_state_dict(net.state_dict())
    return other.eval()


@pytest.mark.parametrize("method", METHODS_WITH_FACTORS)
def test_a_network_equals_the_one_anchored_at_the_images_size_plain_and_padding_aware(method, relative_error):
    net = SMLPNet(MINI, img_size=128, interpolation=method).double().eval()  # all three paths occur
    sizes = [(300, 440), (201, 110)]
    batch = attach_valid_sizes(torch.randn(2, 3, 300, 440, dtype=torch.float64), sizes)
    together = net(batch)
    for i, (height, width) in enumerate(sizes):
        image = batch[i : i + 1, :, :height, :width].clone()
        found = []
        for module in (net, anchored_at(net, (height, width))):
            leaf = image.clone().requires_grad_()
            maps = module(leaf)
            found.append([*maps, *torch.autograd.grad(sum(m.square().sum() for m in maps), leaf)])
        for ours, wanted in zip(*found):
            assert relative_error(ours, wanted) < 1e-9
        for ours, wanted in zip(together, found[1]):
            assert relative_error(ours[i : i + 1, :, : wanted.shape[2], : wanted.shape[3]], wanted) < 1e-9


@pytest.mark.parametrize("size", [(192, 192), (600, 200)])
def test_no_more_is_kept_for_the_backward_pass_than_on_the_dense_path(size):
    net = SMLPNet(MINI, img_size=128)
    x = torch.randn(2, 3, *size)
    assert kept_for_backward(net, x) <= 1.02 * kept_for_backward(anchored_at(net, size).train(), x)


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize(
    "taps",
    [
        Taps(interpolation_matrix, 7, 9),
        Taps(interpolation_matrix, 7, 30, transposed=True),
        Taps(antialiased_matrix, 9, 4),
    ],
    ids=["up", "transposed", "antialiased"],
)
def test_taps_are_the_product_with_their_matrix(taps, dim):
    matrix = taps.matrix()
    assert torch.equal(taps.transpose.matrix(), matrix.T)
    shape = (2, matrix.shape[1], 3, 5) if dim == 1 else (2, 3, matrix.shape[1], 5)
    x = torch.randn(shape, dtype=torch.float64)
    wanted = (matrix @ x.movedim(dim, -2)).movedim(-2, dim)
    torch.testing.assert_close(combine(x, dim, taps), wanted, rtol=1e-14, atol=1e-14)


def test_a_nan_reaches_no_position_without_a_tap_on_it():
    taps = Taps(interpolation_matrix, 7, 30, transposed=True)
    x = torch.randn(1, 30, 2, 3)
    x[:, 4] = torch.nan
    touched = combine(x, 1, taps).isnan().any(-1).any(-1)[0]
    assert torch.equal(touched, taps.matrix()[:, 4] != 0)


def test_a_batch_without_images_gives_none():
    for path in PATHS.values():
        assert path(torch.zeros(0, 20, 3, 5), torch.eye(7), torch.zeros(7), 1, "exact").shape == (0, 20, 3, 5)


def test_the_first_use_may_be_in_inference_mode():
    tensors = layer(7, 31, 1)
    with torch.inference_mode():
        mix_two_tap(*tensors, 1, "bounded")
    mix_two_tap(*tensors, 1, "bounded").sum().backward()
    assert all(t.grad.isfinite().all() for t in tensors)


def test_a_training_step_is_repeated_to_the_bit():
    tensors = layer(14, 61, 2, torch.float32, other=33, channels=16)
    first, second = (results(mix_two_tap, tensors, 2, "bounded", dtype=torch.float32) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second))


@pytest.mark.needs_torch("2.11", reason="a whole graph of torch.compile holds no hasattr of a tensor in 2.1")
def test_compiled_layers_are_linear_too():
    """Tracing leaves the choice between the dense path and the factors in matrix products."""
    torch._dynamo.reset()
    module, x = AxisLinear(7, 2, "exact").double(), torch.randn(1, 3, 42, 5, dtype=torch.float64)
    compiled = torch.compile(module, fullgraph=True, dynamic=False, backend="eager")
    x_ = x.clone().requires_grad_()
    assert torch.equal(compiled(x), mix_low_rank(x, module.weight, module.bias, 2, "exact"))
    torch.testing.assert_close(compiled(x_), module(x))


@pytest.mark.parametrize("method", METHODS_WITH_FACTORS)
def test_macs_per_pixel_do_not_grow_with_the_size(method):
    """The bar is 1.03; with dense layers it is 1.48."""
    with torch.device("meta"):
        net = SMLPNet("tiny", interpolation=method).eval()
        small, large = (
            sum(count_macs(net, lambda size=size: net(torch.zeros(1, 3, size, size))).values()) / size**2
            for size in (224, 4096)
        )
    assert large <= 1.03 * small


@pytest.mark.parametrize("size", [(96, 64), (300, 220)])
def test_counts_on_the_meta_device_are_those_of_the_cpu(size):
    net = SMLPNet(MINI, img_size=128).eval()
    counts = []
    for device in ("cpu", "meta"):
        net.to(device)
        counts.append(count_macs(net, lambda device=device: net(torch.zeros(1, 3, *size, device=device))))
    assert counts[0] == counts[1]


def run_benchmark(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, BENCHMARK, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_benchmark_prints_its_table_and_constants(tmp_path):
    result = run_benchmark("--positions", 7, 42, "--repeats", 1, "--json", tmp_path / "rows.json")
    assert result.returncode == 0, result.stderr
    assert '"cpu": Rates(product=' in result.stdout
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [(row["dtype"], row["dim"]) for row in rows] == list(product(("float32", "bfloat16"), (1, 2)))
    assert all(row["forward"].keys() == row["training"].keys() == PATHS.keys() for row in rows)


def test_sizes_without_factors_are_refused_by_the_benchmark():
    result = run_benchmark("--positions", 42, 7)
    assert result.returncode == 2
    assert "numbers 0 < N < M" in result.stderr


@pytest.mark.parametrize("values", [1, 700, 10**9])
@pytest.mark.parametrize("dim", [1, 2])
def test_combining_in_parts_adds_the_same(dim, values, monkeypatch):
    monkeypatch.setattr("mmsmlp.ops.parts.CHUNK_VALUES", values)
    taps = Taps(interpolation_matrix, 5, 13)
    shape = {1: (2, 5, 6, 7), 2: (2, 6, 5, 7)}[dim]
    x = torch.randn(shape, dtype=torch.float64)
    combined = combine(x, dim, taps)
    out = torch.randn_like(combined)
    wanted = out + combined
    add_combined(out, x, dim, taps)
    assert torch.equal(out, wanted)
