"""The official names and shapes: recognised, checked, converted, and exported back."""

import json

import pytest
import torch
from conftest import DATA, MINI

from mmsmlp import SMLPNet
from mmsmlp.checkpoint import reanchor
from mmsmlp.weights.arch import ARCHS, Arch, recognise
from mmsmlp.weights.spach import check_spach, convert_spach, export_spach, official_shapes

OFFICIAL = json.loads((DATA / "official_keys.json").read_text())


@pytest.fixture
def official(golden_group):
    """The golden miniature model's official weights."""
    return golden_group("state_dict/")


def shaped(shapes) -> dict[str, torch.Tensor]:
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


@pytest.mark.parametrize("name", ARCHS)
def test_shapes_are_those_of_the_official_code_in_its_order(name):
    shapes = official_shapes(Arch(*ARCHS[name]))
    assert list(shapes.items()) == [(key, tuple(shape)) for key, shape in OFFICIAL[name]["keys"].items()]


def test_the_named_archs_are_the_backbones():
    settings = SMLPNet.arch_settings
    assert {name: (s["embed_dims"], tuple(s["depths"])) for name, s in settings.items()} == ARCHS


@pytest.mark.parametrize("name", ARCHS)
def test_an_arch_is_recognised_from_official_shapes(name):
    assert check_spach(shaped(OFFICIAL[name]["keys"])) == Arch(*ARCHS[name])
    assert check_spach(shaped(OFFICIAL[name]["keys"])).name == name


@pytest.mark.parametrize(
    "arch",
    [
        Arch(80, (2, 8, 14, 2), img_size=(384, 384), num_classes=21841),
        Arch(8, (1, 2), mlp_ratio=2, in_channels=1, img_size=(64, 64), num_classes=2),
        Arch(16, (3,), patch_size=16, img_size=(32, 32)),
    ],
    ids=str,
)
def test_any_arch_of_the_official_code_is_recognised(arch):
    assert check_spach(shaped(official_shapes(arch))) == arch


def test_an_arch_of_ours_is_recognised_with_its_anchor():
    with torch.device("meta"):
        weights = SMLPNet("small", img_size=(200, 333)).state_dict()
    assert recognise(weights) == Arch(96, (2, 10, 24, 2), img_size=(200, 336))


def test_the_first_stages_of_an_arch_are_called_like_the_whole():
    with torch.device("meta"):
        weights = SMLPNet("base", out_indices=(0, 1)).state_dict()
    assert str(recognise(weights)) == "base (embed_dims 112, depths (2, 10))"


def test_conversion_keeps_every_value(official):
    converted = convert_spach(official)
    assert len(converted) == len(official)
    assert torch.equal(converted["backbone.stages.2.1.sparse_mlp.mix_w.bias"], official["token_mix.3.1.proj_h.bias"])
    weight = converted["backbone.stages.2.1.sparse_mlp.mix_h.weight"]
    assert torch.equal(weight, official["token_mix.3.1.proh_w.weight"][:, :, 0, 0])


@pytest.mark.parametrize("key", ["token_mix.0.1.proj_x.weight", "fc.weight"])
def test_converting_a_key_that_is_not_official_names_it(official, key):
    with pytest.raises(ValueError, match=f"not an official sMLPNet key: '{key}'"):
        convert_spach({**official, key: torch.zeros(1)})


def test_the_official_files_wrapping_is_hinted_at(official):
    with pytest.raises(ValueError, match=r"pass checkpoint\['model'\]"):
        convert_spach({"model": official})


def test_a_state_dict_of_another_model_is_refused():
    with pytest.raises(ValueError, match="not an official sMLPNet state dict: no key 'to_patch_embedding"):
        convert_spach({"conv1.weight": torch.zeros(1)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token_mix.3.1.BN.weight": None}, "1 missing (token_mix.3.1.BN.weight)"),
        ({"mlp_head.0.weight": None, "mlp_head.0.bias": None}, "2 missing (mlp_head.0.bias, mlp_head.0.weight)"),
        ({"to_patch_embedding.2.0.weight": None}, "1 missing (to_patch_embedding.2.0.weight)"),
        ({"ema.decay": (1,)}, "1 unexpected (ema.decay)"),
        ({"token_mix.3.1.proj_x.weight": (4, 4, 1, 1)}, "1 unexpected (token_mix.3.1.proj_x.weight)"),
        (
            {"channel_mix.4.2.net.3.bias": (63,)},
            "1 of another shape (channel_mix.4.2.net.3.bias (63,) instead of (64,))",
        ),
        (
            {"token_mix.4.1.proj_h.weight": (3, 3, 1, 1)},
            "1 of another shape (token_mix.4.1.proj_h.weight (3, 3, 1, 1) instead of (2, 2, 1, 1))",
        ),
        (
            {"token_mix.3.1.BN.weight": None, "batch_norm.mean": (64,)},
            "1 missing (token_mix.3.1.BN.weight); 1 unexpected (batch_norm.mean)",
        ),
    ],
    ids=lambda value: "" if isinstance(value, str) else " ".join(value),
)
def test_every_deviation_from_the_official_keys_is_named_in_one_line(official, change, message):
    state = {**official, **{key: torch.zeros(shape) for key, shape in change.items() if shape}}
    state = {key: value for key, value in state.items() if change.get(key, value) is not None}
    with pytest.raises(ValueError, match="^x.pth: not the keys of an official sMLPNet embed_dims 8, depths") as error:
        check_spach(state, "x.pth")
    assert str(error.value).endswith(f": {message}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        (lambda key: not key.startswith("token_mix.2."), "block 2 lacks token_mix.2.1.BN.weight and "),
        (lambda key: "_mix." not in key, "no blocks in it"),
        (lambda key: key != "to_patch_embedding.0.0.weight", "no key 'to_patch_embedding.0.0.weight'"),
    ],
)
def test_weights_whose_arch_cannot_be_told_are_refused(official, kept, message):
    with pytest.raises(ValueError, match=message):
        check_spach({key: value for key, value in official.items() if kept(key)})


def test_weights_for_images_that_are_not_square_are_refused(official):
    official["token_mix.0.1.proh_w.weight"] = torch.zeros(24, 24, 1, 1)
    with pytest.raises(ValueError, match="takes square images of a multiple of 32 pixels, .* for 96 x 64"):
        check_spach(official)


def test_exporting_gives_the_official_weights_back_in_their_order(official):
    exported = export_spach(convert_spach(official))
    assert list(exported) == list(official)
    assert all(torch.equal(exported[key], official[key]) for key in official)
    assert all(exported[key].dtype == official[key].dtype for key in official)


def test_reanchored_weights_export_too(official):
    exported = export_spach(reanchor(convert_spach(official), 96))
    assert check_spach(exported).img_size == (96, 96)


def classifier_weights(img_size=64, **kwargs) -> dict[str, torch.Tensor]:
    net = SMLPNet(MINI, img_size=img_size, **kwargs)
    return {
        **{f"backbone.{key}": value for key, value in net.state_dict().items()},
        "head.fc.weight": torch.zeros(10, 64),
        "head.fc.bias": torch.zeros(10),
    }


def test_weights_of_ours_export():
    assert check_spach(export_spach(classifier_weights())).num_classes == 10


def without(state: dict, *keys: str) -> dict:
    return {key: value for key, value in state.items() if key not in keys}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (lambda: classifier_weights((64, 96)), "square images of a multiple of 32 pixels, .* for 64 x 96"),
        (lambda: classifier_weights(72), "square images of a multiple of 32 pixels, .* for 72 x 72"),
        (lambda: classifier_weights(out_norm=True), r"no place for .*norm0\.bias.*without out_norm"),
        (
            lambda: without(classifier_weights(), "head.fc.bias", "head.fc.weight"),
            r"head.fc.bias, head.fc.weight mis",
        ),
        (lambda: {**classifier_weights(), "neck.fc.weight": torch.zeros(1)}, "no place for neck.fc.weight"),
        (lambda: classifier_weights(identity_branch=False), r"fuse.weight \(8, 16, 1, 1\) instead of \(8, 24, 1, 1\)"),
        (lambda: classifier_weights(local_mixing=False), r"local.conv.weight.* missing"),
        (lambda: SMLPNet(MINI).state_dict(), r"backbone\.… and head\.fc\.… wanted, downsample_layers"),
        (lambda: {"conv1.weight": torch.zeros(1)}, "no classifier with an SMLPNet"),
    ],
)
def test_what_the_official_model_cannot_hold_is_not_exported(state, message):
    with pytest.raises(ValueError, match=message):
        export_spach(state())
