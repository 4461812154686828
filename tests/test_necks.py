"""ValidAreaNeck: an image's pyramid does not depend on its batch, and the neck is otherwise the one it wraps."""

import copy

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner.checkpoint import load_state_dict
from padded import SIZES, cut, detection_batch, detector, recorded

from mmsmlp.valid_area import attach_valid_sizes, attached_valid_sizes, downsampled

CHANNELS = [4, 6, 8, 10]
FPN = {"type": "FPN", "in_channels": CHANNELS, "out_channels": 8, "num_outs": 5}
NECKS = {
    "FPN": FPN,
    "FPN of RetinaNet": {**FPN, "start_level": 1, "add_extra_convs": "on_input"},
    "FPN with ReLU before extra convolutions": {
        **FPN,
        "start_level": 1,
        "add_extra_convs": "on_output",
        "num_outs": 6,
        "relu_before_extra_convs": True,
    },
    "PAFPN": {**FPN, "type": "PAFPN"},
}


def build(neck: dict) -> torch.nn.Module:
    """A neck in float64 with biases that are not zero."""
    init_default_scope("mmdet")
    torch.manual_seed(0)
    built = MODELS.build(copy.deepcopy(neck)).double()
    built.init_weights()
    for name, parameter in built.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return built


def wrapped(neck: dict) -> dict:
    return {"type": "mmsmlp.ValidAreaNeck", "neck": neck}


def backbone_maps(sizes=SIZES) -> tuple[list[torch.Tensor], list[list[torch.Tensor]]]:
    """Maps of a batch, zero outside of the valid areas and noted, and those of each image alone."""
    height, width = 128, 96
    together, alone = [], [[] for _ in sizes]
    for channels, stride in zip(CHANNELS, (4, 8, 16, 32)):
        own = downsampled(tuple(sizes), stride)
        maps = torch.zeros(len(sizes), channels, height // stride, width // stride, dtype=torch.float64)
        for index, (h, w) in enumerate(own):
            maps[index, :, :h, :w] = torch.randn(channels, h, w)
            alone[index].append(maps[index : index + 1, :, :h, :w].clone())
        together.append(attach_valid_sizes(maps, own))
    return together, alone


def largest_error(neck, relative_error) -> float:
    together, alone = backbone_maps()
    with torch.no_grad():
        pyramid = neck(together)
        pyramids = [neck(maps) for maps in alone]
    levels = [(level, index) for level in range(len(pyramid)) for index in range(len(SIZES))]
    return max(
        relative_error(pyramid[level][index, :, : own.shape[2], : own.shape[3]], own[0])
        for level, index in levels
        for own in [pyramids[index][level]]
    )


@pytest.mark.parametrize("name", NECKS)
def test_a_pyramid_is_the_same_alone_and_in_a_batch(name, relative_error):
    assert largest_error(build(wrapped(NECKS[name])), relative_error) < 1e-9


@pytest.mark.parametrize("name", NECKS)
def test_without_it_a_pyramid_depends_on_the_batch(name, relative_error):
    assert largest_error(build(NECKS[name]), relative_error) > 1e-2


def test_a_pyramid_is_zero_outside_of_the_valid_areas():
    together, _ = backbone_maps()
    with torch.no_grad():
        pyramid = build(wrapped(FPN))(together)
    for maps, stride in zip(pyramid, (4, 8, 16, 32, 64)):
        assert attached_valid_sizes(maps) == downsampled(SIZES, stride)
        for canvas, (height, width) in zip(maps, downsampled(SIZES, stride)):
            assert canvas[:, :height, :width].any()
            canvas[:, :height, :width] = 0
            assert not canvas.any()


@pytest.mark.parametrize("name", NECKS)
def test_without_a_note_the_neck_runs_as_it_is(name):
    plain, neck = build(NECKS[name]), build(wrapped(NECKS[name]))
    neck.neck.load_state_dict(plain.state_dict())
    maps = [m.clone() for m in backbone_maps()[0]]
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(neck(maps), plain(maps)))


def test_parameters_keep_their_names_below_the_wrapped_neck():
    plain, neck = build(FPN), build(wrapped(FPN))
    assert set(neck.state_dict()) == {f"neck.{name}" for name in plain.state_dict()}


@pytest.mark.parametrize("how", ["strict", "by mmengine"])
def test_checkpoints_of_the_bare_neck_load(how):
    """A detector that was trained without it takes it at testing, by its config alone."""
    plain, neck = build(FPN), build(wrapped(FPN))
    for parameter in neck.parameters():
        torch.nn.init.zeros_(parameter)
    bare = {f"neck.{name}": value for name, value in plain.state_dict().items()}
    before = dict(bare)
    model = torch.nn.ModuleDict({"neck": neck})
    if how == "strict":
        model.load_state_dict(bare)
    else:
        load_state_dict(model, bare, strict=True)
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in neck.neck.state_dict().items())
    assert bare == before
    model.load_state_dict(model.state_dict())  # and its own


def test_a_copy_clears_by_its_own_sizes(relative_error):
    """Hooks are bound to a module; those of a copy (an averaged model's, say) must not ask the original."""
    neck = build(wrapped(FPN))
    copied = copy.deepcopy(neck)
    assert largest_error(copied, relative_error) < 1e-9
    neck.neck = None
    assert largest_error(copied, relative_error) < 1e-9


def test_a_map_that_is_no_stride_of_two_is_refused():
    neck = build(wrapped(FPN))
    maps = backbone_maps()[0]
    maps[1] = torch.nn.functional.interpolate(maps[1], size=(20, 12))
    with pytest.raises(ValueError, match=r"a map of \(20, 12\), which is no power-of-two stride of its largest input"):
        neck(maps)
    assert all(torch.isfinite(m).all() for m in neck(backbone_maps()[0]))  # and goes on


def detector_with_neck(base: str) -> torch.nn.Module:
    """A small detector of mmdet whose neck is wrapped in its config."""
    model = detector(base)
    cfg = ConfigDict(in_channels=[16, 32, 64, 128], out_channels=64, num_outs=5, type="FPN")
    if base != "demo":
        cfg.update(in_channels=[32, 64, 128], out_channels=16, add_extra_convs="on_input")
    torch.manual_seed(0)
    model.neck = MODELS.build(wrapped(cfg))
    model.neck.init_weights()
    return model


@pytest.mark.parametrize("base", ["demo", "retinanet_r50_fpn"])
def test_a_detector_trains_with_it(base):
    model = detector_with_neck(base).train()
    before = {name: p.detach().clone() for name, p in model.neck.named_parameters()}
    optimizer = OptimWrapper(torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0))
    losses = model.train_step(detection_batch(), optimizer)
    assert all(np.isfinite(float(value)) for value in losses.values())
    assert not [name for name, p in model.neck.named_parameters() if torch.equal(p, before[name])]


@pytest.mark.parametrize("base", ["demo", "retinanet_r50_fpn"])
def test_what_a_detectors_heads_read_does_not_depend_on_the_batch(base):
    model, batch = detector_with_neck(base).double(), detection_batch()
    with recorded(model.neck) as calls, torch.no_grad():
        for index in (slice(None), 0, 1, 2):
            part = slice(index, index + 1) if isinstance(index, int) else index
            inputs = {key: value[part] for key, value in batch.items()}
            images = model.data_preprocessor(copy.deepcopy(inputs))["inputs"]
            model.extract_feat(attach_valid_sizes(images.double(), [i.shape[1:] for i in inputs["inputs"]]))
    first = 4 if base == "demo" else 8
    for index, size in enumerate(SIZES):
        for level, (maps, own) in enumerate(zip(calls[0], calls[1 + index])):
            wanted = cut(own, 0, size, first * 2**level)
            torch.testing.assert_close(cut(maps, index, size, first * 2**level), wanted, rtol=1e-9, atol=1e-11)
