"""The building blocks: what reaches what, at which sizes, and what recomputation must not change."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmsmlp import SparseMLP
from mmsmlp.blocks import PatchConv, SMLPBlock
from mmsmlp.layers import AxisLinear, ChannelMLP, DropPath, build_norm
from mmsmlp.resize import METHODS, interpolation_matrix, resize_axis_bias, resize_axis_weight


def reached(module: nn.Module, shape: tuple, row: int, col: int) -> torch.Tensor:
    """Positions (H, W) of the input that the output token (row, col) depends on, by its gradient."""
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    module.double().eval()(x)[:, :, row, col].sum().backward()
    return (x.grad.abs().amax((0, 1)) > 0).cpu()


@pytest.mark.parametrize(("height", "width"), [(6, 6), (9, 5), (4, 11)])
def test_one_sparse_mlp_reaches_exactly_the_row_and_the_column(height, width):
    wanted = torch.zeros(height, width, dtype=torch.bool)
    wanted[2] = True
    wanted[:, 3] = True
    assert torch.equal(reached(SparseMLP(4, 6), (1, 4, height, width), 2, 3), wanted)


@pytest.mark.parametrize(("height", "width"), [(6, 6), (9, 5), (4, 11)])
def test_two_sparse_mlps_reach_every_position(height, width):
    module = nn.Sequential(SparseMLP(4, 6), SparseMLP(4, 6))
    assert reached(module, (1, 4, height, width), 2, 3).all()


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("size", [1, 5, 7, 8, 20])
@pytest.mark.parametrize("method", METHODS)
def test_axis_linear_applies_the_resized_layer_to_every_line(dim, size, method):
    layer = AxisLinear(7, dim, method).double()
    x = torch.randn(2, *((size, 3) if dim == 1 else (3, size)), 4, dtype=torch.float64)
    weight, bias = resize_axis_weight(layer.weight, size, method), resize_axis_bias(layer.bias, size, method)
    wanted = nn.functional.linear(x.movedim(dim, -1), weight, bias).movedim(-1, dim)
    torch.testing.assert_close(layer(x), wanted)


@pytest.mark.parametrize("shape", [(12, 12), (9, 15), (7, 8)])
def test_resizing_a_map_and_sparse_mixing_commute(shape):
    """A pointwise norm and activation commute with nothing, so this takes the mixing without them."""
    module = SparseMLP(4, 6, "exact").double()
    module.norm, module.act = nn.Identity(), nn.Identity()
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)

    def up(t):
        return interpolation_matrix(6, shape[0]) @ t @ interpolation_matrix(6, shape[1]).T

    torch.testing.assert_close(module(up(x)), up(module(x)))


def test_a_sparse_mlp_takes_a_rectangular_anchor():
    module = SparseMLP(4, (5, 9))
    assert module.mix_h.weight.shape == (5, 5)
    assert module.mix_w.weight.shape == (9, 9)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("shape", [(1, 8, 1, 1), (2, 8, 1, 9), (2, 8, 9, 1), (3, 8, 13, 5), (2, 1, 6, 6)])
def test_a_block_does_not_depend_on_the_memory_format(shape, memory_format):
    block = SMLPBlock(shape[1], (6, 6)).double().eval()
    x = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(block(x.contiguous(memory_format=memory_format)), block(x.contiguous()))


def _poison_freed_memory() -> None:
    """Fill memory of many sizes with a large value and free it, so that reading uninitialised memory shows."""
    blocks = [torch.full((2**k + 17 * i,), 1e30) for k in range(6, 21) for i in range(4)]
    del blocks


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_gradients_equal_those_in_float64_after_freed_memory_was_filled(memory_format, relative_error):
    """The trap of torch 2.1.2 on a CPU: uninitialised memory as gradients, with the forward pass intact."""
    block = SMLPBlock(16, (14, 14))
    x = torch.randn(2, 16, 14, 14).contiguous(memory_format=memory_format)
    out_grad = torch.randn(2, 14, 14, 16).permute(0, 3, 1, 2)

    def gradients(dtype):
        module, x_ = block.to(dtype), x.to(dtype).detach().requires_grad_()
        module.zero_grad()
        _poison_freed_memory()
        module(x_).backward(out_grad.to(dtype))
        return [x_.grad] + [p.grad.clone() for p in module.parameters()]

    wanted = gradients(torch.float64)
    for a, b in zip(gradients(torch.float32), wanted):
        assert relative_error(a, b) < 1e-4


def test_recomputation_changes_neither_outputs_nor_gradients_nor_statistics():
    """`with_cp` runs the forward pass twice; batch norms must count it once, and drop path must repeat itself."""
    plain = SMLPBlock(8, (6, 6), drop_path_rate=0.5)
    recomputed = SMLPBlock(8, (6, 6), drop_path_rate=0.5, with_cp=True)
    recomputed.load_state_dict(plain.state_dict())
    x = torch.randn(8, 8, 10, 7)
    results = []
    for block in (plain, recomputed):
        torch.manual_seed(1)
        x_ = x.clone().requires_grad_()
        y = block(x_)
        y.square().sum().backward()
        results.append([y, x_.grad, *(p.grad for p in block.parameters()), *block.buffers()])
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("mode", ["eval", "rate 0"])
def test_drop_path_is_the_identity_in_eval_mode_and_at_rate_0(mode):
    module = DropPath(0.5).eval() if mode == "eval" else DropPath(0.0)
    x = torch.randn(4, 3)
    assert module(x) is x


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    y = DropPath(0.25)(torch.ones(4000, 2, 3))
    assert (y == y[:, :1, :1]).all()
    assert y.unique().tolist() == pytest.approx([0, 4 / 3])
    assert y.mean().item() == pytest.approx(1, abs=0.05)


def test_one_drop_path_serves_both_branches_of_a_block():
    """As in the official code: one module a block, a draw of its own for each branch."""
    block = SMLPBlock(8, (6, 6), drop_path_rate=0.5)
    (module,) = (m for m in block.modules() if isinstance(m, DropPath))
    drawn = []
    module.register_forward_hook(lambda m, args, y: drawn.append((y != 0).flatten(1).any(1)))
    block(torch.randn(64, 8, 6, 6))
    assert len(drawn) == 2
    assert not torch.equal(*drawn)


@pytest.mark.parametrize("rate", [-0.1, 1.0, 2])
def test_a_bad_drop_path_rate_is_named(rate):
    with pytest.raises(ValueError, match=f"drop path rate must be in .0, 1., got {rate}"):
        DropPath(rate)


@pytest.mark.parametrize("patch_size", [2, 4])
@pytest.mark.parametrize("shape", [(1, 1), (4, 4), (5, 8), (7, 9)])
def test_patches_are_padded_with_zeros_to_whole_ones(patch_size, shape):
    conv = PatchConv(3, 5, patch_size)
    x = torch.randn(2, 3, *shape)
    height, width = (-(-s // patch_size) for s in shape)
    padded = torch.zeros(2, 3, height * patch_size, width * patch_size)
    padded[:, :, : shape[0], : shape[1]] = x
    assert conv(x).shape == (2, 5, height, width)
    torch.testing.assert_close(conv(x), conv(padded))


def test_channels_first_images_give_the_convolutions_map_and_gradient_in_channels_last_memory():
    conv, x = PatchConv(3, 5, 4), torch.randn(2, 3, 8, 12)
    out, expected = conv(x), F.conv2d(x, conv.weight, stride=4)
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out, expected)
    grad = torch.randn_like(out)
    torch.testing.assert_close(*(torch.autograd.grad(y, conv.weight, grad) for y in (out, expected)))


def test_the_channel_mlp_mixes_no_positions():
    assert reached(ChannelMLP(4), (1, 4, 5, 6), 2, 3).nonzero().tolist() == [[2, 3]]


@pytest.mark.parametrize(("norm_type", "wanted"), [("BN", nn.BatchNorm2d), ("SyncBN", nn.SyncBatchNorm)])
def test_norm_cfg_builds_the_named_layer_with_its_arguments(norm_type, wanted):
    norm = build_norm({"type": norm_type, "momentum": 0.03, "requires_grad": False}, 6)
    assert type(norm) is wanted
    assert (norm.num_features, norm.momentum, norm.weight.requires_grad) == (6, 0.03, False)


@pytest.mark.parametrize("norm_cfg", [{"type": "GN"}, {"momentum": 0.1}, {"type": "LN"}])
def test_a_bad_norm_type_is_named_with_the_good_ones(norm_cfg):
    with pytest.raises(ValueError, match="must be one of 'BN', 'SyncBN', got"):
        build_norm(norm_cfg, 6)


@pytest.mark.parametrize("dim", [0, 3, -1])
def test_a_bad_axis_is_named(dim):
    with pytest.raises(ValueError, match="dim must be 1"):
        AxisLinear(7, dim)


@pytest.mark.parametrize("length", [0, -3, 7.0, None])
def test_a_bad_anchor_is_named(length):
    with pytest.raises(ValueError, match=f"positive number of anchor positions, got {length}"):
        SparseMLP(4, length)


def test_a_grid_of_three_axes_is_named():
    with pytest.raises(ValueError, match=r"\(height, width\), got \(1, 2, 3\)"):
        SparseMLP(4, (1, 2, 3))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("length", [5, 14])
def test_loading_resizes_from_another_anchor(length, method):
    given = AxisLinear(length, 1)
    layer = AxisLinear(9, 1, method)
    layer.load_state_dict(given.state_dict())
    torch.testing.assert_close(layer.weight.data, resize_axis_weight(given.weight.data, 9, method))
    torch.testing.assert_close(layer.bias.data, resize_axis_bias(given.bias.data, 9, method))


def test_loading_leaves_the_state_dict_as_it_is():
    state = AxisLinear(14, 1).state_dict()
    before = {key: (id(value), value.clone()) for key, value in state.items()}
    AxisLinear(9, 1).load_state_dict(state)
    assert {key: id(value) for key, value in state.items()} == {key: i for key, (i, _) in before.items()}
    assert all(torch.equal(value, before[key][1]) for key, value in state.items())


@pytest.mark.parametrize("shape", [(9, 8), (81,), (9, 9, 1, 1)])
def test_loading_a_weight_that_is_no_square_matrix_is_an_error(shape):
    state = {"weight": torch.zeros(shape), "bias": torch.zeros(9)}
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        AxisLinear(9, 1).load_state_dict(state)
