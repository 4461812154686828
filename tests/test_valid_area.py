"""Padding-aware batches: an image's maps do not depend on its neighbours, the canvas or the pad value."""

import copy

import pytest
import torch
from conftest import MINI
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.modules.batchnorm import _BatchNorm

from mmsmlp import SMLPNet
from mmsmlp.layers import DropPath
from mmsmlp.valid_area import (
    attach_valid_sizes,
    attached_valid_sizes,
    downsampled,
    on_each_image,
    pack_valid,
    to_canvas,
    unpack,
)

SIZES = [(61, 83), (99, 33), (64, 64), (64, 64), (1, 5)]  # two equal ones, which are computed together


def network(**kwargs) -> SMLPNet:
    """A network whose norms have something to do."""
    torch.manual_seed(0)
    net = SMLPNet(MINI, img_size=64, **{"out_norm": True, **kwargs})
    for module in net.modules():
        if isinstance(module, _BatchNorm):
            for tensor in (module.running_mean, module.bias.data):
                tensor.normal_()
            for tensor in (module.running_var, module.weight.data):
                tensor.uniform_(0.5, 2)
    return net


def batch_of(images: list[torch.Tensor], height: int, width: int, pad_value: float = 0) -> torch.Tensor:
    """Images (C, h, w) at the upper left of canvases of ``pad_value``, with their sizes noted."""
    batch = torch.full((len(images), len(images[0]), height, width), pad_value, dtype=images[0].dtype)
    for canvas, image in zip(batch, images):
        canvas[:, : image.shape[1], : image.shape[2]] = image
    return attach_valid_sizes(batch, [image.shape[1:] for image in images])


def random_images(sizes=SIZES, dtype=torch.float64) -> list[torch.Tensor]:
    return [torch.randn(3, *size, dtype=dtype) for size in sizes]


def inside(maps: torch.Tensor, index: int, alone: torch.Tensor) -> torch.Tensor:
    """The part of a batch's map that an image's own map is compared with."""
    return maps[index : index + 1, :, : alone.shape[2], : alone.shape[3]]


NETS = {dtype: network().to(dtype).eval() for dtype in (torch.float64, torch.float32)}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 90), st.integers(1, 90)), min_size=1, max_size=4),
    more=st.tuples(st.integers(0, 40), st.integers(0, 40)),
    pad_value=st.sampled_from([0.0, -7.0, float("nan")]),
    interpolation=st.sampled_from(["exact", "bounded"]),
)
def test_an_image_has_the_same_maps_alone_and_in_any_batch(
    relative_error, dtype, tolerance, sizes, more, pad_value, interpolation
):
    net = copy.deepcopy(NETS[dtype])
    for module in net.modules():
        if hasattr(module, "interpolation"):
            module.interpolation = interpolation
    images = random_images(sizes, dtype)
    height, width = (max(size[axis] for size in sizes) + more[axis] for axis in (0, 1))
    with torch.no_grad():
        together = net(batch_of(images, height, width, pad_value))
        for index, image in enumerate(images):
            for maps, alone in zip(together, net(image[None])):
                assert relative_error(inside(maps, index, alone), alone) < tolerance


def test_maps_are_zero_outside_of_the_valid_areas():
    images = random_images()
    with torch.no_grad():
        for stride, maps in zip((4, 8, 16, 32), NETS[torch.float64](batch_of(images, 128, 96, 5.0))):
            assert tuple(maps.shape[2:]) == (128 // stride, 96 // stride)
            assert maps.is_contiguous()
            for canvas, (height, width) in zip(maps, downsampled(SIZES, stride)):
                canvas[:, :height, :width] = 0
                assert not canvas.any()


def test_maps_carry_their_own_valid_sizes():
    with torch.no_grad():
        maps = NETS[torch.float64](batch_of(random_images(), 128, 96))
    assert attached_valid_sizes(maps[1]) == ((8, 11), (13, 5), (8, 8), (8, 8), (1, 1))


def test_without_valid_areas_a_batch_is_not_independent(relative_error):
    """What this is for: the same network on the bare canvas."""
    images = random_images()
    with torch.no_grad():
        together = NETS[torch.float64](batch_of(images, 128, 96).clone())
        alone = NETS[torch.float64](images[0][None])
    assert relative_error(inside(together[0], 0, alone[0]), alone[0]) > 0.1


def test_training_statistics_are_those_of_valid_tokens():
    """Of one padded batch: those of the first norm, by hand, over the tokens of all images alone."""
    net = network(norm_cfg={"type": "BN", "momentum": None}).double().train()
    images = random_images()
    stem, norm = net.downsample_layers[0], net.stages[0][0].local.norm
    norm.reset_running_stats()
    net(batch_of(images, 128, 96, 9.0))
    with torch.no_grad():
        tokens = torch.cat([stem(image[None]).flatten(2)[0].T for image in images])
    torch.testing.assert_close(norm.running_mean, tokens.mean(0))
    torch.testing.assert_close(norm.running_var, tokens.var(0))


def test_training_does_not_depend_on_the_canvas():
    nets = [network().double().train() for _ in range(2)]
    images = random_images()
    for net, canvas in zip(nets, ((100, 90), (128, 160))):
        sum(maps.square().sum() for maps in net(batch_of(images, *canvas))).backward()
    for (name, a), (_, b) in zip(nets[0].named_parameters(), nets[1].named_parameters()):
        torch.testing.assert_close(a.grad, b.grad, msg=name)
    for a, b in zip(nets[0].buffers(), nets[1].buffers()):
        torch.testing.assert_close(a, b)


def test_recomputation_sees_the_same_valid_areas():
    plain, checkpointed = network().train(), network(with_cp=True).train()
    images = random_images(dtype=torch.float32)
    batches = [batch_of(images, 128, 96), batch_of(images[:2], 128, 96)]
    for net in (plain, checkpointed):
        # Both forward passes before the backward one: a remembered size would be the second batch's.
        outs = [maps for batch in batches for maps in net(batch)]
        sum(maps.square().sum() for maps in outs).backward()
    for (name, a), (_, b) in zip(plain.named_parameters(), checkpointed.named_parameters()):
        assert torch.equal(a.grad, b.grad), name
    assert all(torch.equal(a, b) for a, b in zip(plain.buffers(), checkpointed.buffers()))


def test_autocast_sees_the_same_valid_areas():
    net, images = NETS[torch.float32], random_images(dtype=torch.float32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        together = net(batch_of(images, 128, 96))[-1]
        alone = net(images[0][None])[-1]
    scale = alone.abs().max()
    assert (inside(together, 0, alone) - alone).abs().max() < 0.05 * scale


def test_a_full_batch_takes_the_plain_path():
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        plain = NETS[torch.float32](x.clone())
        noted = NETS[torch.float32](attach_valid_sizes(x.clone(), [(64, 64)] * 2))
    assert all(torch.equal(a, b) for a, b in zip(plain, noted))


def test_drop_path_drops_whole_images():
    drop = DropPath(0.5).train()
    sizes = tuple((3, 4) for _ in range(64))
    row = torch.ones(1, 2, 1, 64 * 12)
    values = [m.unique() for maps in unpack(drop(row, sizes), sizes) for m in maps]
    assert all(len(value) == 1 for value in values)
    kept = sum(bool(value) for value in values)
    assert {float(value) for value in values} == {0.0, 2.0}
    assert 16 <= kept <= 48


@pytest.mark.parametrize("sizes", [[(3, 4)], [(3, 4), (3, 4), (2, 7)], [(1, 1), (5, 2)]])
def test_packing_and_laying_out_are_inverse(sizes):
    height, width = 6, 8
    batch = torch.zeros(len(sizes), 2, height, width)
    for canvas, (h, w) in zip(batch, sizes):
        canvas[:, :h, :w] = torch.randn(2, h, w)
    assert torch.equal(to_canvas(pack_valid(batch, tuple(sizes)), tuple(sizes), height, width), batch)


def test_an_operation_sees_each_image_alone():
    seen = []
    sizes = ((3, 4), (3, 4), (2, 7))
    batch = torch.randn(3, 2, 5, 7)
    on_each_image(lambda m: seen.append(tuple(m.shape)) or m, pack_valid(batch, sizes), sizes)
    assert seen == [(2, 2, 3, 4), (1, 2, 2, 7)]


@pytest.mark.parametrize("derive", [lambda x: x[:, :, :32, :32], torch.clone, lambda x: x * 2], ids=str)
def test_a_new_tensor_does_not_inherit_valid_sizes(derive):
    batch = batch_of(random_images([(20, 30)]), 64, 64)
    assert attached_valid_sizes(batch) == ((20, 30),)
    assert attached_valid_sizes(derive(batch)) is None


@pytest.mark.parametrize("sizes", [[(20, 30)], [(20, 30), (65, 3)], [(0, 4), (5, 5)]])
def test_sizes_that_do_not_describe_the_batch_are_refused(sizes):
    with pytest.raises(
        ValueError, match=r"one \(height, width\) per image within the canvas: 2 images of 64 x 64, got"
    ):
        attach_valid_sizes(torch.zeros(2, 3, 64, 64), sizes)
