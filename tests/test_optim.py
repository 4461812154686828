"""Layer-wise learning-rate decay, on real classifiers, detectors and segmentors."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import MINI
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmsmlp import SMLPNet

DEMO = Path(__file__).parents[1] / "configs/demo/mask-rcnn_smlpnet-mini_coins.py"
LR, DECAY, RATE = 1e-3, 0.05, 0.5


@pytest.fixture
def log_lines(monkeypatch):
    """What is logged, in order."""
    lines = []
    monkeypatch.setattr(MMLogger.get_current_instance(), "callHandlers", lambda record: lines.append(record.msg))
    return lines


def build(model: nn.Module, constructor: str = "mmsmlp.LayerDecayOptimWrapperConstructor", **paramwise) -> OptimWrapper:
    """The optimizer wrapper that mmengine's Runner would build."""
    cfg = {
        "optimizer": {"type": "AdamW", "lr": LR, "weight_decay": DECAY},
        "constructor": constructor,
        "paramwise_cfg": {"layer_decay_rate": RATE, **paramwise},
    }
    return build_optim_wrapper(model, cfg)


def settings(model: nn.Module, wrapper: OptimWrapper, key: str) -> dict[str, float]:
    """One setting of every parameter in the optimizer, by the parameter's name."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: group[key] for group in wrapper.optimizer.param_groups for p in group["params"]}


def classifier(backbone: dict, channels: int) -> nn.Module:
    init_default_scope("mmpretrain")
    head = {"type": "LinearClsHead", "num_classes": 4, "in_channels": channels}
    cfg = {"type": "ImageClassifier", "backbone": backbone, "neck": {"type": "GlobalAveragePooling"}, "head": head}
    return MODELS.build(cfg)


def mini_classifier() -> nn.Module:
    return classifier({"type": "mmsmlp.SMLPNet", "arch": MINI, "img_size": 64, "out_indices": (3,)}, 64)


def mini_detector() -> nn.Module:
    init_default_scope("mmdet")
    cfg = Config.fromfile(DEMO).model
    cfg.backbone.arch, cfg.neck.in_channels = MINI, [8, 16, 32, 64]
    return MODELS.build(cfg)


def mini_segmentor() -> nn.Module:
    init_default_scope("mmseg")
    head = {"type": "FCNHead", "in_channels": 64, "channels": 8, "num_classes": 4, "in_index": 3}
    backbone = {"type": "mmsmlp.SMLPNet", "arch": MINI, "img_size": 64}
    return MODELS.build({"type": "EncoderDecoder", "backbone": backbone, "decode_head": head})


# The stem is depth 0, the five blocks of MINI are 1 to 5, what follows the backbone is 6.
LAYERS_ABOVE = {
    "downsample_layers.0.weight": 6,
    "stages.0.0.local.conv.weight": 5,
    "downsample_layers.1.weight": 4,
    "stages.1.0.sparse_mlp.mix_w.weight": 4,
    "downsample_layers.2.weight": 3,
    "stages.2.0.sparse_mlp.norm.bias": 3,
    "stages.2.1.channel_mlp.fc1.weight": 2,
    "stages.3.0.channel_mlp.norm.weight": 1,
    "norm3.weight": 0,
}


@pytest.mark.parametrize("make", [mini_classifier, mini_detector, mini_segmentor])
def test_rates_fall_by_the_layers_above_in_every_toolbox(make):
    model = make()
    rates = settings(model, build(model), "lr")
    for name, above in LAYERS_ABOVE.items():
        assert rates[f"backbone.{name}"] == pytest.approx(LR * RATE**above), name
    outside = {rate for name, rate in rates.items() if not name.startswith("backbone.")}
    assert outside == {LR}


@pytest.mark.parametrize("wrap", [nn.Sequential, nn.DataParallel], ids=["inside another", "behind `module`"])
def test_the_backbone_is_found_wherever_it_is(wrap):
    backbone = SMLPNet(MINI, img_size=64)
    rates = settings(backbone, build(wrap(backbone)), "lr")
    for name, above in LAYERS_ABOVE.items():
        assert rates[name] == pytest.approx(LR * RATE**above), name


def test_a_backbone_alone_is_taken():
    backbone = SMLPNet(MINI, img_size=64)
    assert settings(backbone, build(backbone), "lr")["stages.1.0.local.conv.weight"] == pytest.approx(LR * RATE**4)


def test_each_of_two_backbones_has_its_own_depths():
    deeper = {**MINI, "depths": (1, 2, 3, 1)}
    model = nn.ModuleDict({"a": SMLPNet(MINI), "ab": SMLPNet(deeper), "head": nn.Linear(2, 2)})
    rates = settings(model, build(model), "lr")
    assert rates["a.stages.0.0.local.conv.weight"] == pytest.approx(LR * RATE**5)
    assert rates["ab.stages.0.0.local.conv.weight"] == pytest.approx(LR * RATE**7)
    assert rates["head.weight"] == LR


BACKBONES = {
    "SMLPNet": ({"type": "mmsmlp.SMLPNet", "arch": MINI, "img_size": 64, "out_indices": (3,)}, 64),
    "ConvNeXt": ({"type": "ConvNeXt", "arch": "atto"}, 320),
}


@pytest.mark.parametrize("key", ["lr", "weight_decay"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_classifier_gets_what_mmpretrains_own_constructor_gives(backbone, key):
    model = classifier(*BACKBONES[backbone])
    theirs = build(model, "LearningRateDecayOptimWrapperConstructor", norm_decay_mult=0.0, bias_decay_mult=0.0)
    assert settings(model, build(model), key) == pytest.approx(settings(model, theirs, key))


def test_a_backbone_of_mmpretrain_is_taken_in_a_detector():
    init_default_scope("mmdet")
    cfg = Config.fromfile(DEMO).model
    cfg.backbone = {"type": "mmpretrain.ConvNeXt", "arch": "atto", "out_indices": (0, 1, 2, 3)}
    cfg.neck.in_channels = [40, 80, 160, 320]
    model = MODELS.build(cfg)
    rates = settings(model, build(model), "lr")
    assert rates["backbone.downsample_layers.0.0.weight"] == pytest.approx(LR * RATE**7)  # ConvNeXt counts threes
    assert rates["neck.lateral_convs.0.conv.weight"] == LR


def test_a_config_needs_no_custom_imports_in_any_scope():
    code = (
        "import sys\n"
        "from mmengine.registry import MODELS, DefaultScope\n"
        "from mmengine.optim import build_optim_wrapper\n"
        "net = MODELS.build(dict(type='mmsmlp.SMLPNet'))\n"
        "assert 'mmsmlp.optim' not in sys.modules\n"
        "cfg = dict(optimizer=dict(type='SGD', lr=1.0, weight_decay=0.0), paramwise_cfg=dict(layer_decay_rate=0.5),\n"
        "           constructor='mmsmlp.LayerDecayOptimWrapperConstructor')\n"
        "for scope in ('mmdet', 'mmseg', 'mmpretrain'):\n"
        "    with DefaultScope.overwrite_default_scope(scope):\n"
        "        print('first rate', build_optim_wrapper(net, cfg).param_groups[0]['lr'])\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    found = [line for line in result.stdout.splitlines() if line.startswith("first rate")]
    assert found == [f"first rate {0.5**27}"] * 3, result.stderr


def norms_and_biases(model: nn.Module) -> set[str]:
    norms = (nn.BatchNorm2d, nn.LayerNorm)
    names = {f"{name}.{key}" for name, m in model.named_modules() if isinstance(m, norms) for key in ("weight", "bias")}
    return names | {name for name, _ in model.named_parameters() if name.endswith(".bias")}


def test_norms_and_biases_do_not_decay_and_all_others_do():
    model = mini_detector()
    decays = settings(model, build(model), "weight_decay")
    assert {name for name, decay in decays.items() if decay == 0} == norms_and_biases(model)
    assert set(decays.values()) == {0, DECAY}


@pytest.mark.parametrize(
    ("option", "name"),
    [
        ("norm_decay_mult", "backbone.stages.0.0.local.norm.weight"),
        ("bias_decay_mult", "backbone.stages.0.0.sparse_mlp.mix_w.bias"),
        ("dwconv_decay_mult", "backbone.stages.0.0.local.conv.weight"),
    ],
)
def test_an_option_of_mmengine_wins_over_the_defaults(option, name):
    model = mini_classifier()
    assert settings(model, build(model, **{option: 0.3}), "weight_decay")[name] == pytest.approx(0.3 * DECAY)


def test_the_axis_weights_group_is_overridable():
    model = mini_classifier()
    usual = build(model)
    changed = build(model, custom_keys={"mix_": {"lr_mult": 0.1, "decay_mult": 0.5}})
    rates, usual_rates = (settings(model, wrapper, "lr") for wrapper in (changed, usual))
    decays, usual_decays = (settings(model, wrapper, "weight_decay") for wrapper in (changed, usual))
    axis = {name for name in rates if "mix_" in name}
    assert len(axis) == 20  # two layers a block, weight and bias
    for name in rates:
        assert rates[name] == pytest.approx(usual_rates[name] * (0.1 if name in axis else 1)), name
        assert decays[name] == (0.5 * DECAY if name in axis else usual_decays[name]), name


def test_the_longest_matching_custom_key_decides():
    """mmengine's rule; a matched parameter follows its key alone, so a bias decays unless the key says otherwise."""
    model = mini_classifier()
    keys = {"mix_": {"lr_mult": 0.1}, "mix_w.bias": {"lr_mult": 0.2, "decay_mult": 0.0}}
    wrapper = build(model, custom_keys=keys)
    rates, decays = settings(model, wrapper, "lr"), settings(model, wrapper, "weight_decay")
    block = "backbone.stages.3.0.sparse_mlp"
    assert rates[f"{block}.mix_w.bias"] == pytest.approx(0.2 * LR * RATE)
    assert rates[f"{block}.mix_h.bias"] == pytest.approx(0.1 * LR * RATE)
    assert (decays[f"{block}.mix_w.bias"], decays[f"{block}.mix_h.bias"]) == (0, DECAY)


def test_every_parameter_is_in_one_group_and_no_two_groups_are_equal():
    model = mini_detector()
    groups = build(model).optimizer.param_groups
    given = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(given) == sorted(map(id, model.parameters()))
    kinds = [(group["lr"], group["weight_decay"]) for group in groups]
    assert len(set(kinds)) == len(kinds) == 13  # with decay and without in each of seven depths; the stem has no norm


def test_frozen_parameters_are_left_out():
    backbone = SMLPNet(MINI, img_size=64, frozen_stages=2)
    names = settings(backbone, build(backbone), "lr").keys()
    assert names == {name for name, parameter in backbone.named_parameters() if parameter.requires_grad}
    assert names


def test_a_layer_used_twice_enters_once():
    head = nn.Linear(4, 4)
    model = nn.ModuleDict({"backbone": SMLPNet(MINI), "first": head, "second": head})
    given = [id(parameter) for group in build(model).optimizer.param_groups for parameter in group["params"]]
    assert len(given) == len(set(given)) == len(list(model.parameters()))


def test_a_rate_of_1_decays_nothing():
    model = mini_classifier()
    assert set(settings(model, build(model, layer_decay_rate=1), "lr").values()) == {LR}


def test_a_step_moves_early_layers_less():
    """AdamW's first step has the length of the learning rate, whatever the gradient."""
    net = SMLPNet(MINI, img_size=64)
    wrapper = build(net)
    names = ["downsample_layers.0.weight", "stages.3.0.channel_mlp.fc1.weight"]
    before = [net.get_parameter(name).detach().clone() for name in names]
    wrapper.update_params(sum((m * torch.randn_like(m)).sum() for m in net(torch.randn(2, 3, 64, 64))))
    moved = [(net.get_parameter(name) - old).abs().median().item() for name, old in zip(names, before)]
    assert moved[0] / moved[1] == pytest.approx(RATE**5, rel=0.1)


def test_a_table_of_the_groups_is_logged_instead_of_mmengines_line_a_parameter(log_lines):
    build(SMLPNet(MINI, img_size=64))
    assert not any("paramwise_options" in line for line in log_lines)
    (table,) = (line for line in log_lines if line.startswith("layer-wise learning rates:\n"))
    heading, _, *rows = table.splitlines()[1:]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in (heading, *rows)]
    assert cells[0] == ["depth", "lr scale", "lr", "weight decay", "tensors", "parameters", "first names"]
    assert cells[1] == ["0", "0.0156", "1.56e-05", "0.05", "1", "384", "downsample_layers.0.weight"]
    assert cells[-1] == ["6", "1", "0.001", "0", "2", "128", "norm3.weight, norm3.bias"]
    assert [int(row[0]) for row in cells[1:]] == sorted(int(row[0]) for row in cells[1:])
    total = sum(p.numel() for p in SMLPNet(MINI, img_size=64).parameters())
    assert sum(int(row[5].replace(",", "")) for row in cells[1:]) == total


def test_mmengines_lines_come_back_afterwards(log_lines):
    build(SMLPNet(MINI))
    build(SMLPNet(MINI), constructor="DefaultOptimWrapperConstructor", norm_decay_mult=0.0)
    assert any(line.startswith("paramwise_options") for line in log_lines)


@pytest.mark.parametrize("rate", [0, -0.5, 1.1, None, "0.9"])
def test_a_bad_rate_is_named(rate):
    with pytest.raises(ValueError, match=re.escape(f"needs layer_decay_rate in (0, 1], got {rate!r}")):
        build(SMLPNet(MINI), layer_decay_rate=rate)


@pytest.mark.parametrize("paramwise_cfg", [None, {}, {"decay_rate": 0.9}], ids=["none", "empty", "mmdet's name"])
def test_a_missing_rate_is_named(paramwise_cfg):
    cfg = {"optimizer": {"type": "AdamW", "lr": LR, "weight_decay": DECAY}, "paramwise_cfg": paramwise_cfg}
    with pytest.raises(ValueError, match="needs layer_decay_rate"):
        build_optim_wrapper(SMLPNet(MINI), {**cfg, "constructor": "mmsmlp.LayerDecayOptimWrapperConstructor"})


@pytest.mark.parametrize("missing", ["lr", "weight_decay"])
def test_a_setting_that_the_optimizer_leaves_out_is_named(missing):
    optimizer = {"type": "AdamW", "lr": LR, "weight_decay": DECAY}
    del optimizer[missing]
    cfg = {"optimizer": optimizer, "paramwise_cfg": {"layer_decay_rate": 0.9}}
    with pytest.raises(ValueError, match=f"the optimizer's {missing}: state it"):
        build_optim_wrapper(SMLPNet(MINI), {**cfg, "constructor": "mmsmlp.LayerDecayOptimWrapperConstructor"})


@pytest.mark.parametrize("in_a_classifier", [False, True])
def test_a_model_without_depths_is_named(in_a_classifier):
    model = classifier({"type": "MobileNetV2"}, 1280) if in_a_classifier else nn.Conv2d(3, 8, 1)
    name = "MobileNetV2" if in_a_classifier else "Conv2d"
    with pytest.raises(ValueError, match=f"needs a backbone with get_layer_depth.*{name} has none"):
        build(model)


def test_a_backbone_that_does_not_know_its_depths_is_named():
    with pytest.raises(ValueError, match="not for this ResNet: its get_layer_depth is not implemented"):
        build(classifier({"type": "ResNet", "depth": 18}, 512))
