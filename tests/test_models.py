"""create_model: classifiers equal to mmpretrain's, feature extractors, and weights from wherever they are."""

import pytest
import torch
from conftest import MINI
from mmengine.registry import MODELS, init_default_scope

import mmsmlp
from mmsmlp import SMLPNet, create_model
from mmsmlp.resize import resize_axis_weight
from mmsmlp.weights.spach import convert_spach

SIZES = [(64, 64), (61, 83), (33, 96)]


def mini(**kwargs):
    return create_model(MINI, **{"img_size": 64, **kwargs})


@pytest.fixture
def converted(golden_group):
    """The golden miniature classifier's weights under our names."""
    return convert_spach(golden_group("state_dict/"))


def below_backbone(state_dict):
    return {key.removeprefix("backbone."): value for key, value in state_dict.items() if key.startswith("backbone.")}


@pytest.fixture(params=["official", "mmengine classifier", "state dict", "detector", "backbone"])
def source(request, converted, golden_group, tmp_path):
    """Where the golden backbone's weights are, in every form that is read."""
    path = tmp_path / "weights.pth"
    content = {
        "official": {"model": golden_group("state_dict/")},
        "mmengine classifier": {"state_dict": converted, "meta": {"epoch": 3}},
        "state dict": converted,
        "detector": {"state_dict": {**converted, "rpn_head.conv.weight": torch.zeros(1)}},
        "backbone": {"state_dict": below_backbone(converted)},
    }[request.param]
    torch.save(content, path)
    return f"spach://{path}" if request.param == "official" else path


@pytest.mark.parametrize(("arch", "count"), [("tiny", 24_123_584), ("small", 48_558_136), ("base", 65_880_408)])
def test_a_named_arch_is_the_classifier_of_the_paper(arch, count):
    with torch.device("meta"):
        model = create_model(arch)
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    assert model.num_classes == 1000


def test_any_size_gives_logits_and_every_gradient():
    model = mini(num_classes=5, drop_rate=0.1)
    for size in SIZES:
        model.zero_grad()
        logits = model(torch.randn(2, 3, *size))
        assert logits.shape == (2, 5)
        logits.square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("size", SIZES)
def test_outputs_equal_those_of_mmpretrains_classifier(converted, size, relative_error):
    init_default_scope("mmpretrain")
    cfg = {
        "type": "mmpretrain.ImageClassifier",
        "backbone": {"type": "mmsmlp.SMLPNet", "arch": MINI, "img_size": 64},
        "neck": {"type": "mmpretrain.GlobalAveragePooling"},
        "head": {"type": "mmpretrain.LinearClsHead", "num_classes": 10, "in_channels": 64},
    }
    theirs = MODELS.build(cfg)
    theirs.load_state_dict(converted)
    ours = mini(num_classes=10)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, *size)
    assert relative_error(ours.eval()(x), theirs.eval()(x)) < 1e-6


def test_official_weights_give_the_official_logits(converted, golden, tmp_path, relative_error):
    torch.save(converted, tmp_path / "x.pth")
    model = create_model(MINI, pretrained=tmp_path / "x.pth").double().eval()
    assert relative_error(model(golden["input"].double()), golden["logits"]) < 1e-6


def test_a_classifier_takes_weights_classes_and_anchor_from_every_source(source, converted, request):
    model = create_model(MINI, pretrained=source)
    assert model.backbone.grids[0] == (16, 16)
    state_dict = model.state_dict()
    assert all(torch.equal(state_dict[key], converted[key]) for key in state_dict if key.startswith("backbone."))
    if "backbone" in request.node.callspec.id:  # no classifier there
        assert model.num_classes == 1000
    else:
        assert torch.equal(state_dict["head.fc.weight"], converted["head.fc.weight"])


def test_features_have_the_weights_of_every_source(source, converted, golden):
    wanted = SMLPNet(MINI, img_size=64)
    wanted.load_state_dict(below_backbone(converted))
    net = create_model(MINI, pretrained=source, features_only=True)
    assert isinstance(net, SMLPNet)
    x = golden["input"].float()
    assert all(torch.equal(a, b) for a, b in zip(net.eval()(x), wanted.eval()(x), strict=True))


@pytest.mark.parametrize("out_indices", [(0, 1), (2,), -1, (3, 1)])
def test_features_of_some_stages_load_too(converted, tmp_path, golden, out_indices):
    torch.save(converted, tmp_path / "x.pth")
    every = create_model(MINI, tmp_path / "x.pth", features_only=True).eval()
    some = create_model(MINI, tmp_path / "x.pth", features_only=True, out_indices=out_indices).eval()
    x = golden["input"].float()
    wanted = [every(x)[i] for i in ([out_indices] if isinstance(out_indices, int) else out_indices)]
    assert all(torch.equal(a, b) for a, b in zip(some(x), wanted, strict=True))


def test_weights_move_to_the_anchor_that_is_asked_for(converted, tmp_path):
    torch.save(converted, tmp_path / "x.pth")
    key = "stages.0.0.sparse_mlp.mix_w.weight"
    model = create_model(MINI, tmp_path / "x.pth", img_size=(64, 96))
    wanted = resize_axis_weight(converted[f"backbone.{key}"], 24)
    assert torch.equal(model.backbone.state_dict()[key], wanted)


@pytest.mark.parametrize(("num_classes", "shape"), [(5, (2, 5)), (10, (2, 10)), (0, (2, 64)), (None, (2, 10))])
def test_the_number_of_classes_is_free(converted, tmp_path, num_classes, shape):
    torch.save(converted, tmp_path / "x.pth")
    model = create_model(MINI, tmp_path / "x.pth", num_classes=num_classes).eval()
    x = torch.randn(2, 3, 64, 64)
    assert model(x).shape == shape
    assert model.forward_head(model.forward_features(x), pre_logits=True).shape == (2, 64)


def test_resetting_the_classifier_keeps_precision_and_leaves_pooled_features():
    model = mini(num_classes=5).double().eval()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    pooled = model.forward_features(x).mean((2, 3))
    model.reset_classifier(0)
    assert torch.equal(model(x), pooled)
    model.reset_classifier(7)
    assert model(x).shape == (2, 7)
    assert model(x).dtype == torch.float64


@pytest.mark.parametrize("arch", ["small", "base"])
def test_true_takes_the_official_weights(official_mirror, arch):
    weights = official_mirror(arch)
    model = create_model(arch, pretrained=True)
    assert torch.equal(model.head["fc"].weight, weights["mlp_head.0.weight"])
    assert torch.equal(model.backbone.downsample_layers[3].weight, weights["to_patch_embedding.3.0.weight"])


def test_options_of_the_backbone_pass_through():
    net = mini(features_only=True, interpolation="exact", in_channels=1, frozen_stages=1, with_cp=True)
    assert net.interpolation == "exact"
    assert not net.downsample_layers[0].weight.requires_grad
    assert net.downsample_layers[0].in_channels == 1


def test_norms_of_the_first_stages_may_be_new(converted, tmp_path):
    torch.save(converted, tmp_path / "x.pth")
    net = create_model(MINI, tmp_path / "x.pth", features_only=True, out_norm=True)
    assert torch.equal(net.norm0.weight, torch.ones(8))
    assert torch.equal(net.norm3.weight, converted["backbone.norm3.weight"])


@pytest.mark.parametrize("arch", ["tiny", MINI], ids=str)
def test_where_there_are_no_official_weights_the_alternatives_are_named(arch):
    with pytest.raises(ValueError, match="no official weights of arch .*only of 'small' and 'base'.*pretrained=False"):
        create_model(arch, pretrained=True)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"features_only": True, "num_classes": 5}, "has no classes: leave out num_classes=5"),
        ({"out_indices": (1, 2)}, r"out_indices=\(1, 2\) are for features_only=True"),
        ({"num_classes": -1}, "num_classes must be an int from 0"),
        ({"num_classes": True}, "num_classes must be an int from 0.*got True"),
        ({"img_size": 0}, "img_size must be a positive int.*got 0"),
        ({"pretrained": ""}, "pretrained must be True, False, or the path or address of weights, got ''"),
        ({"pretrained": {"stem": 1}}, "pretrained must be True, False, or the path.*got a dict"),
        ({"pretrained": "spach://smlp_x"}, "unknown official weights 'spach://smlp_x': spach://smlp_b, "),
        ({"init_cfg": {"type": "Pretrained"}}, "name the weights by pretrained="),
        ({"arch": "huge"}, "unknown arch 'huge'"),
    ],
)
def test_a_wrong_argument_is_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        create_model(**kwargs)


def test_weights_of_another_arch_are_refused(converted, tmp_path):
    torch.save(converted, tmp_path / "x.pth")
    with pytest.raises(RuntimeError, match="do not fit.*embed_dims 8.*this backbone: embed_dims 16"):
        create_model({**MINI, "embed_dims": 16}, tmp_path / "x.pth")


def test_weights_of_fewer_stages_are_refused_with_the_remedy(converted, tmp_path):
    part = {key: value for key, value in converted.items() if ".3." not in key[:22] and "norm3" not in key}
    torch.save(part, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="not complete, .*stages.3.* missing; choose lower out_indices"):
        create_model(MINI, tmp_path / "x.pth")
    assert len(create_model(MINI, tmp_path / "x.pth", features_only=True, out_indices=(0, 1, 2)).stages) == 3


def test_a_file_without_an_smlpnet_is_refused(tmp_path):
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="no sMLPNet in it, .*conv1.weight"):
        create_model(MINI, tmp_path / "x.pth")


def test_an_official_file_without_its_scheme_is_refused_with_the_remedy(golden_group, tmp_path):
    torch.save({"model": golden_group("state_dict/")}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="x.pth: .*official files are read as spach://PATH"):
        create_model(MINI, tmp_path / "x.pth")


@pytest.mark.parametrize("scheme", ["", "spach://"])
def test_a_file_that_is_not_there_is_named(tmp_path, scheme):
    with pytest.raises(FileNotFoundError, match="nowhere.pth"):
        create_model(MINI, f"{scheme}{tmp_path / 'nowhere.pth'}")


def test_it_is_a_public_name():
    assert mmsmlp.create_model is create_model
