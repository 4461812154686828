"""sMLPNet in timm, tested as timm tests its models; torch.jit.script and torch.fx are not supported."""

import copy
import re
import shlex
import subprocess
import sys
from itertools import combinations
from pathlib import Path

import pytest
import timm
import torch
from conftest import MINI
from mmengine.registry import MODELS, init_default_scope
from timm.data import resolve_data_config
from timm.models import load_checkpoint, save_for_hf
from timm.models._manipulate import group_parameters
from timm.optim import create_optimizer_v2, param_groups_layer_decay

import mmsmlp.timm
from mmsmlp import SMLPNet
from mmsmlp.resize import resize_axis_weight
from mmsmlp.weights.spach import convert_spach

ROOT = Path(__file__).parents[1]
NAMES = ("smlpnet_tiny", "smlpnet_small", "smlpnet_base")
SIZES = [(64, 64), (61, 83), (33, 96)]
EVERY_CHOICE = [choice for count in range(1, 5) for choice in combinations(range(4), count)]


def mini(**kwargs):
    """A small model, through timm's factory."""
    return timm.create_model("smlpnet_tiny", **{"arch": MINI, "img_size": 64, **kwargs})


@pytest.fixture
def mini_file(golden_group, tmp_path):
    """The golden miniature model as an official file."""
    torch.save({"model": golden_group("state_dict/")}, tmp_path / "mini.pth")
    return str(tmp_path / "mini.pth")


def from_file(path: str, **kwargs):
    """The way of timm to name a weight file."""
    overlay = {"file": path, "num_classes": 10}
    return mini(pretrained=True, pretrained_cfg_overlay=overlay, **kwargs)


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def to_rounding(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Blocks are computed in another order without gradients, with hooks and where traced (mmsmlp.ops.fused)."""
    return first.shape == second.shape and torch.allclose(first, second, rtol=1e-4, atol=1e-5)


def test_the_pages_snippets_run(official_mirror):
    official_mirror("small")
    page = (ROOT / "docs" / "models.md").read_text("utf-8")
    first, second = re.findall(r"```python\n(.+?)```", page, re.S)
    names = {}
    exec(first, names)
    assert names["logits"].shape == (2, 10)
    assert [m.shape[1:] for m in names["maps"]] == [(192, 25, 42), (384, 13, 21), (768, 7, 11)]
    exec(second, names)
    assert [m.shape[1:] for m in names["maps"]] == [(160, 25, 42), (320, 13, 21)]


def test_a_script_started_by_the_pages_command_knows_the_models(tmp_path):
    (command,) = re.findall(r"```bash\n(python .+)", (ROOT / "docs" / "models.md").read_text("utf-8"))
    script = tmp_path / "train.py"
    script.write_text("import sys, timm; print(sys.argv, timm.is_model(sys.argv[-1]), __name__)")
    arguments = [sys.executable, *shlex.split(command)[1:]]
    result = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "['train.py', 'DATA', '--model', 'smlpnet_tiny'] True __main__"


def test_without_timm_the_import_names_the_remedy():
    code = "import sys, mmsmlp; sys.modules['timm'] = None; import mmsmlp.timm"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert re.search(r"ImportError: mmsmlp.timm needs timm .*pip install timm", result.stderr.splitlines()[-1])


# Registration and default cfgs.


def test_the_names_are_registered_and_those_with_weights_are_known():
    assert timm.list_models("smlpnet*") == sorted(NAMES)
    assert timm.list_models("smlpnet*", pretrained=True) == ["smlpnet_base.ms_in1k", "smlpnet_small.ms_in1k"]


@pytest.mark.parametrize(("name", "count"), list(zip(NAMES, (24_123_584, 48_558_136, 65_880_408))))
def test_the_default_cfg_fits_the_model(name, count):
    model = timm.create_model(name, device="meta")
    cfg = model.default_cfg
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    for layer in ("classifier", "first_conv"):
        assert f"{cfg[layer]}.weight" in model.state_dict()
    assert (model.num_classes, model.in_chans) == (cfg["num_classes"], cfg["input_size"][0])
    assert not cfg["fixed_input_size"]


def test_the_default_cfg_fits_the_forward_pass():
    model = timm.create_model("smlpnet_tiny").eval()
    x = torch.randn(1, *model.default_cfg["input_size"])
    with torch.no_grad():
        assert model.forward_features(x).shape[2:] == model.default_cfg["pool_size"]
        assert model(x).shape == (1, 1000)
        model.reset_classifier(0)
        assert model(x).shape == (1, model.num_features)
        model.reset_classifier(0, "")
        assert model(x).shape == (1, model.num_features, *model.default_cfg["pool_size"])


def test_the_data_config_is_that_of_the_official_evaluation():
    config = resolve_data_config(model=mini())
    assert config["crop_pct"] == 224 / 256
    assert config["interpolation"] == "bicubic"
    assert config["mean"] == (0.485, 0.456, 0.406)


# Forward and backward.


@pytest.mark.parametrize("size", SIZES)
def test_any_size_gives_logits_and_every_gradient(size):
    model = mini(num_classes=42, drop_rate=0.1, drop_path_rate=0.1)
    logits = model(torch.randn(2, 3, *size))
    assert logits.shape == (2, 42)
    logits.mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("size", SIZES)
def test_outputs_equal_those_of_mmpretrains_classifier(golden_group, size, relative_error):
    init_default_scope("mmpretrain")
    cfg = {
        "type": "mmpretrain.ImageClassifier",
        "backbone": {"type": "mmsmlp.SMLPNet", "arch": MINI, "img_size": 64},
        "neck": {"type": "mmpretrain.GlobalAveragePooling"},
        "head": {"type": "mmpretrain.LinearClsHead", "num_classes": 10, "in_channels": 64},
    }
    theirs = MODELS.build(cfg)
    theirs.load_state_dict(convert_spach(golden_group("state_dict/")))
    ours = mini(num_classes=10)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, *size)
    assert relative_error(ours.eval()(x), theirs.eval()(x)) < 1e-6


def test_without_classifier_and_pooling_the_output_is_the_map():
    assert mini(num_classes=0, global_pool="").eval()(torch.randn(1, 3, 61, 83)).shape == (1, 64, 2, 3)


def test_channels_last_changes_no_output(relative_error):
    model, x = mini().eval(), torch.randn(2, 3, 61, 83)
    wanted = model(x)
    model.to(memory_format=torch.channels_last)
    assert relative_error(model(x.to(memory_format=torch.channels_last)), wanted) < 1e-6


@pytest.mark.parametrize("size", SIZES)
def test_tracing_at_a_size_changes_no_output(size):
    model, x = mini().eval(), torch.randn(2, 3, *size)
    wanted = model(x)  # makes the matrices of the size, which tracing would find made in its first run only
    assert to_rounding(torch.jit.trace(model, x)(x), wanted)


@pytest.mark.needs_torch("2.11", reason="a whole graph of torch.compile holds no hasattr of a tensor in 2.1")
@pytest.mark.parametrize("size", SIZES)
def test_torch_compile_traces_the_whole_model_at_a_size(size):
    torch._dynamo.reset()
    model, x = mini().eval(), torch.randn(2, 3, *size)
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend="eager")
    assert to_rounding(compiled(x), model(x))


def test_precision_and_options_of_the_backbone_pass_through():
    model = mini(dtype=torch.float64, interpolation="exact", in_chans=1)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}
    assert model.backbone.interpolation == "exact"
    assert model(torch.randn(2, 1, 64, 64, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("size", SIZES)
def test_grad_checkpointing_changes_no_output_gradient_or_statistic(size):
    plain = mini(num_classes=5)
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing()
    assert all(block.with_cp for stage in saving.backbone.stages for block in stage)
    x = torch.randn(2, 3, *size)
    for model in (plain, saving):
        model(x).square().sum().backward()
    for first, second in zip(plain.parameters(), saving.parameters()):
        torch.testing.assert_close(first.grad, second.grad)
    assert same(plain.state_dict(), saving.state_dict())
    saving.set_grad_checkpointing(False)
    assert not any(block.with_cp for stage in saving.backbone.stages for block in stage)


# The head.


@pytest.mark.parametrize(("pool", "factor"), [("avg", 1), ("max", 1), ("avgmax", 1), ("catavgmax", 2)])
def test_the_pooling_can_be_any_of_timm(pool, factor):
    model = mini(num_classes=5, global_pool=pool).eval()
    x = torch.randn(2, 3, 61, 83)
    assert model(x).shape == (2, 5)
    pooled = model.forward_head(model.forward_features(x), pre_logits=True)
    assert pooled.shape == (2, model.head_hidden_size) == (2, 64 * factor)


def test_resetting_the_classifier_keeps_precision_and_what_is_not_asked_for():
    model = mini(num_classes=5, dtype=torch.float64).eval()
    x = torch.randn(2, 3, 61, 83, dtype=torch.float64)
    features = model.forward_features(x)
    model.reset_classifier(7, "max")
    assert (model.num_classes, model.get_classifier().out_features) == (7, 7)
    assert model(x).dtype == torch.float64
    model.reset_classifier(0)
    assert torch.equal(model(x), features.amax((2, 3)))
    model.reset_classifier(0, "")
    assert torch.equal(model(x), features)
    model.reset_classifier(3, "avg")
    assert model(x).dtype == torch.float64


# Features.


@pytest.fixture(scope="module")
def full():
    """A small model, its input, and its maps with and without the last norm."""
    torch.manual_seed(1)
    model = mini().eval()
    torch.nn.init.uniform_(model.backbone.norm3.weight)
    x = torch.randn(2, 3, 61, 83)
    with torch.no_grad():
        raw, normed = (model.forward_intermediates(x, norm=norm, intermediates_only=True) for norm in (False, True))
    return model, x, raw, normed


def features_like(model, **kwargs):
    """A feature extractor with the weights of a model."""
    weights = {"state_dict": copy.deepcopy(model.state_dict())}
    return mini(features_only=True, pretrained=True, pretrained_cfg_overlay=weights, **kwargs).eval()


def test_intermediates_are_the_maps_of_the_backbone(full):
    model, x, raw, normed = full
    backbone = SMLPNet(MINI, img_size=64).eval()
    backbone.load_state_dict(model.backbone.state_dict())
    assert all(to_rounding(a, b) for a, b in zip(backbone(x), normed, strict=True))
    assert all(to_rounding(a, b) for a, b in zip(raw[:3], normed))
    assert not torch.equal(raw[3], normed[3])


@pytest.mark.parametrize("indices", [None, 1, 3, *EVERY_CHOICE, (-1,), (-4, 2)], ids=str)
@pytest.mark.parametrize("norm", [False, True])
def test_intermediates_are_chosen_by_indices(full, indices, norm):
    model, x, raw, normed = full
    wanted = normed if norm else raw
    chosen = range(4)[-indices:] if isinstance(indices, int) else indices or range(4)
    output, maps = model.forward_intermediates(x, indices, norm=norm)
    assert to_rounding(output, model.forward_features(x))
    assert all(to_rounding(m, wanted[i]) for m, i in zip(maps, sorted(i % 4 for i in chosen), strict=True))
    stopped, early = model.forward_intermediates(x, indices, norm=norm, stop_early=True)
    assert all(to_rounding(a, b) for a, b in zip(maps, early, strict=True))
    assert stopped.shape == raw[max(i % 4 for i in chosen)].shape


@pytest.mark.parametrize("norm", [False, True])
def test_intermediates_update_running_statistics_once(full, norm):
    models = [copy.deepcopy(full[0]).train() for _ in range(2)]
    models[0](full[1])
    models[1].forward_intermediates(full[1], norm=norm)
    assert same(models[0].state_dict(), models[1].state_dict())


def test_another_output_format_is_refused(full):
    with pytest.raises(ValueError, match="output_fmt must be 'NCHW', got 'NHWC'"):
        full[0].forward_intermediates(full[1], output_fmt="NHWC")


@pytest.mark.parametrize("out_indices", [2, *EVERY_CHOICE, (-1,), (-3, -1)], ids=str)
def test_features_only_gives_the_chosen_maps_with_their_info(full, out_indices):
    model, x, raw, _ = full
    net = features_like(model, out_indices=out_indices)
    chosen = [2, 3] if out_indices == 2 else [i % 4 for i in out_indices]
    maps = net(x)
    assert all(to_rounding(m, raw[i]) for m, i in zip(maps, chosen, strict=True))
    assert all(m.is_contiguous() for m in maps)
    assert net.feature_info.channels() == [m.shape[1] for m in maps] == [8 * 2**i for i in chosen]
    assert net.feature_info.reduction() == [4 * 2**i for i in chosen]
    assert [tuple(m.shape[2:]) for m in maps] == [(-(-61 // r), -(-83 // r)) for r in net.feature_info.reduction()]


def test_features_only_defaults_to_all_stages(full):
    assert all(to_rounding(a, b) for a, b in zip(features_like(full[0])(full[1]), full[2], strict=True))


def test_features_by_hooks_are_the_same(full):
    net = features_like(full[0], feature_cls="hook", out_indices=(1, 3))
    assert all(to_rounding(m, full[2][i]) for m, i in zip(net(full[1]), (1, 3), strict=True))


def test_features_only_keeps_no_layer_without_a_gradient():
    net = mini(features_only=True, out_indices=(0, 2))
    assert len(net.model.backbone.stages) == len(net.model.backbone.downsample_layers) == 3
    sum(m.square().mean() for m in net(torch.randn(2, 3, 61, 83))).backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_a_pruned_model_still_runs(full):
    model = copy.deepcopy(full[0])
    assert model.prune_intermediate_layers([-3, 2]) == [1, 2]
    assert to_rounding(model(full[1]), full[2][2])
    assert model.num_features == model.head_hidden_size == 32


# Layers and weight decay.


@pytest.mark.parametrize("fusion", ["concat", "weighted"])
def test_layer_decay_has_the_layers_of_the_backbone(fusion):
    model = mini(fusion=fusion)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = param_groups_layer_decay(model, layer_decay=0.5, no_weight_decay_list=model.no_weight_decay())
    scales = {names[id(p)]: group["lr_scale"] for group in groups for p in group["params"]}
    assert scales.keys() == set(names.values())
    for name, scale in scales.items():
        depth, count = model.backbone.get_layer_depth(name, "backbone.")
        assert scale == 0.5 ** (count - 1 - depth), name


def test_coarse_groups_are_stem_stages_and_head():
    model = mini()
    layers = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    assert layers["backbone.downsample_layers.0.weight"] == 0
    assert {layers[name] for name in layers if ".stages.2." in name or "layers.2" in name} == {3}
    assert layers["head.fc.weight"] == layers["backbone.norm3.weight"] == max(layers.values()) == 5


def test_scales_and_vectors_get_no_weight_decay():
    model = mini(fusion="weighted")
    assert len(model.no_weight_decay()) == 5
    optimizer = create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.05)
    decayed = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    for name, parameter in model.named_parameters():
        vector = parameter.ndim == 1 or name.endswith("branch_weights")
        assert (id(parameter) in decayed) == (not vector), name


# Weights.


def test_official_weights_give_the_official_logits(mini_file, golden, relative_error):
    model = from_file(mini_file, num_classes=10).double().eval()
    assert relative_error(model(golden["input"].double()), golden["logits"]) < 1e-6


def test_official_weights_move_to_another_anchor(mini_file, golden_group):
    model = from_file(mini_file, num_classes=10, img_size=(64, 96))
    weight = convert_spach(golden_group("state_dict/"))["backbone.stages.0.0.sparse_mlp.mix_w.weight"]
    assert torch.equal(model.backbone.stages[0][0].sparse_mlp.mix_w.weight, resize_axis_weight(weight, 24))


def test_official_weights_adapt_to_other_channels_and_classes(mini_file, golden_group):
    model = from_file(mini_file, num_classes=5, in_chans=1)
    stem = golden_group("state_dict/")["to_patch_embedding.0.0.weight"]
    torch.testing.assert_close(model.backbone.downsample_layers[0].weight.data, stem.sum(1, keepdim=True).float())
    assert model.get_classifier().out_features == 5


def test_an_unknown_number_of_classes_starts_the_classifier_anew(mini_file, golden_group):
    """What the option --pretrained-path of timm's scripts asks for."""
    model = mini(pretrained=True, num_classes=10, pretrained_cfg_overlay={"file": mini_file, "num_classes": -1})
    weights = convert_spach(golden_group("state_dict/"))
    assert torch.equal(model.backbone.norm3.weight, weights["backbone.norm3.weight"])
    assert not torch.equal(model.head.fc.weight, weights["head.fc.weight"])


def test_official_weights_load_into_a_feature_extractor(mini_file, golden, relative_error):
    net = from_file(mini_file, features_only=True).double().eval()
    for stage, m in enumerate(net(golden["input"].double())):
        assert relative_error(m, golden[f"stage{stage}"]) < 1e-6


def test_official_weights_with_a_key_too_few_are_refused(golden_group, tmp_path):
    weights = golden_group("state_dict/")
    del weights["token_mix.3.1.BN.weight"]
    torch.save({"model": weights}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"1 missing \(token_mix.3.1.BN.weight\)"):
        from_file(str(tmp_path / "x.pth"))


def test_weights_of_a_backbone_alone_load():
    backbone = SMLPNet(MINI, img_size=64)
    overlay = {"state_dict": dict(backbone.state_dict())}
    net = mini(pretrained=True, pretrained_cfg_overlay=overlay, num_classes=5)
    assert same(net.backbone.state_dict(), backbone.state_dict())


@pytest.mark.parametrize("name", ["smlpnet_small", "smlpnet_base.ms_in1k"])
def test_pretrained_takes_the_released_file(official_mirror, tmp_path, name):
    weights = official_mirror(name.removeprefix("smlpnet_").split(".")[0])
    model = timm.create_model(name, pretrained=True, cache_dir=tmp_path / "cache", in_chans=1, num_classes=5)
    assert torch.equal(model.backbone.norm3.weight, weights["batch_norm.weight"])
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [Path(model.pretrained_cfg["url"]).name]
    (tmp_path / "cache" / Path(model.pretrained_cfg["url"]).name).unlink()


def test_tiny_has_no_official_weights():
    with pytest.raises(RuntimeError, match="No pretrained weights exist for smlpnet_tiny"):
        timm.create_model("smlpnet_tiny", pretrained=True)


def test_a_checkpoint_makes_the_round_trip(tmp_path):
    given, model = mini(num_classes=5), mini(num_classes=5)
    torch.save({"state_dict": given.state_dict(), "epoch": 3}, tmp_path / "checkpoint.pth.tar")
    load_checkpoint(model, str(tmp_path / "checkpoint.pth.tar"))
    assert same(model.state_dict(), given.state_dict())
    other = mmsmlp.create_model(MINI, pretrained=tmp_path / "checkpoint.pth.tar")
    assert same(other.state_dict(), given.state_dict())


def test_a_saved_folder_makes_the_same_model_again(tmp_path):
    """What timm pushes to the Hugging Face hub."""
    given = mini(num_classes=5, img_size=(64, 96))
    save_for_hf(given, str(tmp_path / "model"))
    again = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True)
    assert again.backbone.grids[0] == (16, 24)
    assert same(again.state_dict(), given.state_dict())
