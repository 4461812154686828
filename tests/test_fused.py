"""The fused block is the block of the layers' plain code, forward and backward, wherever it is used."""

import copy

import pytest
import torch
from made import with_random_norms
from memory import kept_for_backward
from torch import nn

from mmsmlp import SMLPNet
from mmsmlp.blocks import SMLPBlock
from mmsmlp.ops.fused import can_fuse
from mmsmlp.valid_area import attach_valid_sizes

ARCH = {"embed_dims": 8, "depths": (1, 1, 2, 1)}
ANCHOR = 64
# At the anchor; one position off it; below; far above it, where the axes are mixed by taps; and both in one map.
SIZES = [(64, 64), (65, 68), (20, 28), (224, 300), (32, 256)]


def network(dtype=torch.float64, **options) -> SMLPNet:
    torch.manual_seed(0)
    return with_random_norms(SMLPNet(ARCH, img_size=ANCHOR, **options)).to(dtype)


def images(size, dtype=torch.float64):
    torch.manual_seed(1)
    return torch.randn(2, 3, *size).to(dtype)


def step(net: nn.Module, x: torch.Tensor, sizes=None):
    """Maps, gradients and statistics after a step from random gradients of the maps."""
    net = copy.deepcopy(net)
    leaf = x.clone().requires_grad_(True)
    torch.manual_seed(2)  # of stochastic depth
    maps = net(leaf if sizes is None else attach_valid_sizes(leaf * 1, sizes))
    torch.manual_seed(3)
    sum((m * torch.randn(m.shape).to(m.dtype)).sum() for m in maps).backward()
    gradients = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    return list(maps), {"images": leaf.grad, **gradients}, dict(net.named_buffers())


def plain(monkeypatch):
    monkeypatch.setattr("mmsmlp.blocks.can_fuse", lambda block, x: False)


def assert_same_steps(net, x, monkeypatch, tolerance=1e-9, sizes=None):
    assert can_fuse(net.stages[0][0], torch.zeros(1, 8, 2, 2, dtype=x.dtype))
    maps, gradients, buffers = step(net, x, sizes)
    plain(monkeypatch)
    expected_maps, expected_gradients, expected_buffers = step(net, x, sizes)
    largest = max(float(g.abs().max()) for g in expected_gradients.values())
    assert gradients.keys() == expected_gradients.keys()
    for a, b in zip(maps, expected_maps):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance * float(b.detach().abs().max()))
    for name, expected in expected_gradients.items():
        # The gradient of a bias before a norm is zero but for rounding.
        scale = max(float(expected.abs().max()), 1e-2 * largest)
        torch.testing.assert_close(gradients[name], expected, rtol=0, atol=tolerance * scale, msg=name)
    for name, expected in expected_buffers.items():
        torch.testing.assert_close(buffers[name], expected, rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("method", ["exact", "bounded", "scaled"])
@pytest.mark.parametrize("size", SIZES)
def test_training_steps_are_the_same(size, method, monkeypatch):
    assert_same_steps(network(interpolation=method).train(), images(size), monkeypatch)


# Not (20, 28): a norm over the two values of its last map amplifies rounding without a bound.
@pytest.mark.parametrize("size", [size for size in SIZES if size != (20, 28)])
def test_training_steps_are_the_same_in_float32(size, monkeypatch):
    assert_same_steps(network(torch.float32).train(), images(size, torch.float32), monkeypatch, tolerance=2e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"norm_eval": True},
        {"drop_path_rate": 0.5},
        {"with_cp": True},
        {"frozen_stages": 2},
        {"norm_cfg": {"type": "BN", "momentum": None}},
        {"norm_cfg": {"type": "BN", "track_running_stats": False}},
        {"norm_cfg": {"type": "BN", "requires_grad": False}},
    ],
    ids=str,
)
def test_training_steps_are_the_same_with(options, monkeypatch):
    torch.manual_seed(0)
    net = SMLPNet(ARCH, img_size=ANCHOR, **options).double().train()
    assert_same_steps(net, images((96, 72)), monkeypatch)


@pytest.mark.parametrize("values", [1, 1000, 20_000])
@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_training_steps_are_the_same_in_parts_of_any_size(rate, values, monkeypatch):
    monkeypatch.setattr("mmsmlp.ops.parts.CHUNK_VALUES", values)
    net = SMLPNet({**ARCH, "drop_path_rate": rate}, img_size=ANCHOR)
    assert_same_steps(with_random_norms(net).double().train(), images((65, 68)), monkeypatch)


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_training_steps_are_the_same_on_valid_areas(rate, monkeypatch):
    net = network(drop_path_rate=rate).train()
    assert_same_steps(net, images((96, 160)), monkeypatch, sizes=[(96, 100), (61, 160)])


@pytest.mark.parametrize("method", ["exact", "bounded", "scaled", "naive"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("training", [False, True])
def test_passes_without_gradients_are_the_same(size, method, training, monkeypatch):
    net, x = network(interpolation=method).train(training), images(size)
    with torch.no_grad():
        fused = copy.deepcopy(net)(x)
        plain(monkeypatch)
        expected = copy.deepcopy(net)(x)
    for a, b in zip(fused, expected):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_gradients_do_not_depend_on_what_was_in_memory():
    net, x = network(torch.float32).train(), images((96, 72), torch.float32)
    first = step(net, x)[1]
    rubbish = [torch.full((2, 24, 24, 18), 1e30) for _ in range(200)]
    del rubbish
    second = step(net, x)[1]
    exact = step(network().train(), images((96, 72), torch.float32).double())[1]
    for name, gradient in second.items():
        assert torch.equal(gradient, first[name]), name
    largest = max(float(g.abs().max()) for g in exact.values())
    for name, gradient in second.items():
        scale = max(float(exact[name].abs().max()), 1e-2 * largest)
        assert float((gradient - exact[name]).abs().max()) < 1e-3 * scale, name


def test_the_input_stays_as_it_is():
    block = SMLPBlock(8, (4, 4)).eval()
    x = torch.randn(2, 8, 6, 5).contiguous(memory_format=torch.channels_last)
    before = x.clone()
    with torch.no_grad():
        block(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize(("size", "share"), [(224, 0.6), (320, 0.5)])
def test_less_is_kept_for_the_backward_pass(size, share, monkeypatch):
    net, x = SMLPNet("tiny").train(), torch.zeros(1, 3, size, size)
    fused = kept_for_backward(net, x)
    plain(monkeypatch)
    assert fused < share * kept_for_backward(net, x)


def test_one_value_per_channel_is_an_error_that_says_what_to_do():
    block = SMLPBlock(8, (4, 4)).train()
    with pytest.raises(ValueError, match="norm_eval=True"):
        block(torch.zeros(1, 8, 1, 1))


class Adapted(nn.Linear):
    """A layer as others put it in place of a linear one."""

    def forward(self, x):
        return super().forward(x) + 1


def replace_fc1(block):
    block.channel_mlp.fc1 = Adapted(8, 24)


def quick_gelu(block):
    block.channel_mlp.act = nn.GELU(approximate="tanh")


def hook(block):
    block.sparse_mlp.mix_w.register_forward_hook(lambda module, inputs, output: None)


def half_norm(block):
    block.local.norm.double()


@pytest.mark.parametrize("change", [replace_fc1, quick_gelu, hook, half_norm])
def test_changed_layers_are_not_passed_over(change):
    block = SMLPBlock(8, (4, 4))
    x = torch.zeros(1, 8, 4, 4)
    assert can_fuse(block, x)
    change(block)
    assert not can_fuse(block, x)


@pytest.mark.parametrize(
    "options",
    [{"fusion": "sum"}, {"identity_branch": False}, {"local_mixing": False}, {"norm_cfg": {"type": "SyncBN"}}],
    ids=str,
)
def test_other_blocks_run_their_plain_code(options):
    assert not can_fuse(SMLPBlock(8, (4, 4), **options), torch.zeros(1, 8, 4, 4))


def test_synchronised_norms_are_fused_when_they_do_not_synchronise():
    assert can_fuse(SMLPBlock(8, (4, 4), norm_cfg={"type": "SyncBN"}).eval(), torch.zeros(1, 8, 4, 4))


def test_half_precision_and_autocast_run_the_plain_code():
    block, x = SMLPBlock(8, (4, 4)), torch.zeros(1, 8, 4, 4)
    assert not can_fuse(block.half(), x.half())
    with torch.autocast("cpu", torch.bfloat16):
        assert not can_fuse(block.float(), x)


def test_hooks_of_layers_are_called():
    block, seen = SMLPBlock(8, (4, 4)), []
    block.channel_mlp.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    block(torch.zeros(1, 8, 4, 4).contiguous(memory_format=torch.channels_last))
    assert seen == [(1, 8, 4, 4)]


def test_hooks_of_a_block_are_no_hindrance():
    block = SMLPBlock(8, (4, 4))
    block.register_forward_hook(lambda module, inputs, output: None)
    assert can_fuse(block, torch.zeros(1, 8, 4, 4))
