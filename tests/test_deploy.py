"""Folded norms: the same outputs, weights that go where they belong only, and the tool that writes them."""

import copy
import re
import runpy
import subprocess
import sys
from pathlib import Path

import fusion
import pytest
import torch
from conftest import MINI
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import load_checkpoint
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmsmlp import SMLPNet, create_model, fuse_norms
from mmsmlp.blocks import SMLPBlock
from mmsmlp.checkpoint import reanchor
from mmsmlp.deploy import fuse_checkpoint
from mmsmlp.layers import ChannelAffine
from mmsmlp.ops.fused import can_fuse
from mmsmlp.valid_area import attach_valid_sizes
from mmsmlp.weights.anchors import compare_anchors

ROOT = Path(__file__).parents[1]
DEMOS = {
    "mmdet": "configs/demo/mask-rcnn_smlpnet-mini_coins.py",
    "mmseg": "configs/demo/upernet_smlpnet-mini_coins.py",
    "mmpretrain": "configs/demo/smlpnet-mini_photos.py",
}
SIZES = [(64, 64), (33, 48), (65, 63), (224, 100)]


def trained(net: nn.Module) -> nn.Module:
    """A model with norms as training leaves them; their means are as large as what they normalise."""
    torch.manual_seed(1)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, (_BatchNorm, nn.LayerNorm)):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_()
            if isinstance(module, _BatchNorm):
                module.running_mean.normal_()
                module.running_var.uniform_(0.2, 2)
    net.eval()
    return net


def mini(**options) -> SMLPNet:
    return trained(SMLPNet(MINI, img_size=64, **options))


def assert_same(results, wanted, relative_error, tolerance=1e-5):
    results, wanted = ((r,) if torch.is_tensor(r) else r for r in (results, wanted))
    assert max(relative_error(a, b) for a, b in zip(results, wanted)) < tolerance


@pytest.mark.parametrize("plain", [False, True], ids=["fused blocks", "layers"])
@pytest.mark.parametrize("out_norm", [False, True])
def test_maps_are_the_same(out_norm, plain, monkeypatch, relative_error):
    net = mini(out_norm=out_norm)
    fused = fuse_norms(net)
    if plain:
        monkeypatch.setattr("mmsmlp.blocks.can_fuse", lambda block, x: False)
    with torch.no_grad():
        for size in SIZES:
            x = torch.randn(2, 3, *size)
            assert_same(fused(x), net(x), relative_error)


@pytest.mark.parametrize(
    "options",
    [
        {"local_mixing": False},
        {"global_mixing": (True, False, True, False)},
        {"fusion": "sum"},
        {"identity_branch": False},
        {"norm_cfg": {"type": "SyncBN"}},
        {"norm_cfg": {"type": "BN", "eps": 1e-2}},
        {"norm_cfg": {"type": "BN", "affine": False}},
        {"interpolation": "exact", "out_indices": (1, 2), "out_norm": True},
    ],
    ids=str,
)
def test_maps_are_the_same_with(options, relative_error):
    net = SMLPNet(MINI, img_size=64, **options).eval()
    if "affine" not in options.get("norm_cfg", {}):
        trained(net)
    fused, x = fuse_norms(net.double()), torch.randn(2, 3, 90, 61).double()
    assert_same(fused(x), net(x), relative_error, 1e-12)
    assert not any(isinstance(module, _BatchNorm) for module in fused.modules())


def test_maps_are_the_same_on_valid_areas(relative_error):
    net, x = mini(out_norm=True), torch.randn(2, 3, 96, 128)
    with torch.no_grad():
        maps = [n(attach_valid_sizes(x.clone(), [(96, 100), (61, 128)])) for n in (fuse_norms(net), net)]
    assert_same(*maps, relative_error)
    assert torch.equal(maps[0][0] == 0, maps[1][0] == 0)  # padding stays zero


def test_gradients_of_the_image_are_the_same(relative_error):
    net = mini().double()
    gradients = []
    for n in (fuse_norms(net), net):
        x = torch.ones(1, 3, 60, 70, dtype=torch.float64).requires_grad_()
        n(x)[-1].square().sum().backward()
        gradients.append(x.grad)
    assert_same(*gradients, relative_error, 1e-10)


def test_half_precision_is_not_less_accurate(relative_error):
    net, x = mini(), torch.randn(2, 3, 90, 61)
    fused = fuse_norms(net)
    with torch.no_grad():
        wanted = net(x)
        with torch.autocast("cpu", torch.bfloat16):
            maps = [n(x) for n in (fused, net)]
    for ours, unfused, exact in zip(*maps, wanted):
        assert ours.dtype == unfused.dtype
        errors = [float((m.float() - exact).square().mean()) for m in (ours, unfused)]
        assert errors[0] < 1.5 * errors[1]


@pytest.mark.parametrize("toolbox", DEMOS)
def test_whole_models_keep_their_features(toolbox, relative_error):
    config = Config.fromfile(ROOT / DEMOS[toolbox])
    init_default_scope(toolbox)
    model = trained(revert_sync_batchnorm(MODELS.build(config.model)))
    fused, x = fuse_norms(model), torch.randn(1, 3, 150, 96)
    with torch.no_grad():
        assert_same(fused.extract_feat(x), model.extract_feat(x), relative_error)
    assert fused.backbone.fused_norms
    assert not model.backbone.fused_norms
    assert sum(isinstance(m, _BatchNorm) for m in fused.backbone.modules()) == 0


def test_mmcv_folds_the_heads_afterwards(relative_error):
    from mmcv.cnn.utils import fuse_conv_bn

    config = Config.fromfile(ROOT / DEMOS["mmseg"])
    init_default_scope("mmseg")
    model = trained(revert_sync_batchnorm(MODELS.build(config.model)))
    fused, x = fuse_conv_bn(fuse_norms(model)), torch.randn(1, 3, 150, 96)
    with torch.no_grad():
        assert_same(fused(x), model(x), relative_error)
    assert not any(isinstance(module, _BatchNorm) for module in fused.modules())


def test_only_a_copy_is_changed_unless_asked_for():
    net = mini().train()
    before = copy.deepcopy(net.state_dict())
    fused = fuse_norms(net)
    assert fused is not net
    assert net.training
    assert net.state_dict().keys() == before.keys()
    assert fuse_norms(net, inplace=True) is net
    assert net.state_dict().keys() == fused.state_dict().keys()
    assert not net.training


def test_folding_twice_changes_nothing():
    fused = fuse_norms(mini())
    again = fuse_norms(fused)
    assert all(torch.equal(a, b) for a, b in zip(fused.state_dict().values(), again.state_dict().values()))


def test_it_cannot_be_trained():
    fused = fuse_norms(create_model(MINI, img_size=64))
    with pytest.raises(RuntimeError, match="cannot be trained: train it without fused_norms"):
        fused.train()
    assert not any(p.requires_grad for p in fused.backbone.parameters())
    assert not SMLPNet(MINI, img_size=64, fused_norms=True).training


def test_weights_load_into_a_network_built_for_them(tmp_path, relative_error):
    fused = fuse_norms(mini(out_norm=True))
    torch.save(fused.state_dict(), tmp_path / "fused.pth")
    weights = torch.load(tmp_path / "fused.pth")
    assert weights._metadata[""]["fused_norms"] is True
    net = SMLPNet(MINI, img_size=64, out_norm=True, fused_norms=True)
    net.load_state_dict(weights)
    x = torch.randn(1, 3, 90, 61)
    assert all(torch.equal(a, b) for a, b in zip(net(x), fused(x)))
    other = SMLPNet(MINI, img_size=96, out_norm=True, fused_norms=True)  # its axis weights are resized
    other.load_state_dict(weights)
    assert other.stages[0][0].sparse_mlp.mix_w.length == 24


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("options", [{}, {"local_mixing": False}], ids=str)
def test_weights_load_nowhere_else(options, strict):
    net = mini(**options)
    fused = fuse_norms(net)
    with pytest.raises(RuntimeError, match="have folded norms.* set fused_norms=True"):
        mini(**options).load_state_dict(dict(fused.state_dict()), strict=strict)
    with pytest.raises(RuntimeError, match="given weights have norms.*tools/fuse.py"):
        fused.load_state_dict(net.state_dict(), strict=strict)


def test_mmengine_refuses_them_as_well(tmp_path):
    torch.save({"state_dict": fuse_norms(mini()).state_dict(), "meta": {}}, tmp_path / "fused.pth")
    with pytest.raises(RuntimeError, match="set fused_norms=True"):
        load_checkpoint(mini(), str(tmp_path / "fused.pth"))


def test_create_model_takes_them(tmp_path, relative_error):
    model = trained(create_model(MINI, img_size=64, num_classes=5))
    torch.save(fuse_norms(model).state_dict(), tmp_path / "fused.pth")
    again = create_model(MINI, pretrained=tmp_path / "fused.pth", fused_norms=True).eval()
    x = torch.randn(1, 3, 90, 61)
    with torch.no_grad():
        assert_same(again(x), model(x), relative_error)
    with pytest.raises(RuntimeError, match="set fused_norms=True"):
        create_model(MINI, pretrained=tmp_path / "fused.pth")


def test_they_move_to_another_anchor():
    weights = fuse_norms(mini(out_indices=(3,))).state_dict()
    rows, back = compare_anchors(weights, reanchor(weights, (96, 96)))
    assert len(rows) == 4
    assert back < 1


def test_a_model_without_the_backbone_is_refused():
    with pytest.raises(ValueError, match="no SMLPNet in this Linear"):
        fuse_norms(nn.Linear(2, 2))


def test_norms_of_batches_are_refused():
    net = SMLPNet(MINI, img_size=64, norm_cfg={"type": "BN", "track_running_stats": False})
    with pytest.raises(ValueError, match="track_running_stats=False"):
        fuse_norms(net)


class Adapted(nn.Linear):
    """A layer as others put it in place of a linear one."""


def test_replaced_layers_are_refused():
    net = mini()
    net.stages[1][0].channel_mlp.fc1 = Adapted(16, 48)
    with pytest.raises(ValueError, match="own Linear, but there is a Adapted"):
        fuse_norms(net)


def test_fused_blocks_serve_folded_norms_too():
    net = fuse_norms(mini())
    block, x = net.stages[0][0], torch.zeros(1, 8, 4, 4)
    assert isinstance(block, SMLPBlock)
    assert isinstance(block.local.norm, ChannelAffine)
    assert can_fuse(block, x)
    assert not can_fuse(block, x.requires_grad_())


def test_the_tool_writes_a_checkpoint_that_init_detector_loads(tmp_path, relative_error):
    from mmdet.apis import init_detector

    config = ROOT / DEMOS["mmdet"]
    init_default_scope("mmdet")
    model = trained(revert_sync_batchnorm(MODELS.build(Config.fromfile(config).model)))
    torch.save({"state_dict": model.state_dict(), "meta": {"epoch": 3}, "optimizer": {}}, tmp_path / "net.pth")
    command = [sys.executable, ROOT / "tools/fuse.py", config, "net.pth", "fused.pth"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "--cfg-options model.backbone.fused_norms=True" in result.stdout
    written = torch.load(tmp_path / "fused.pth", weights_only=False)
    assert written.keys() == {"meta", "state_dict"}
    assert written["meta"] == {"epoch": 3, "fused_norms": True}
    options = {"model.backbone.fused_norms": True}
    fused = init_detector(str(config), str(tmp_path / "fused.pth"), device="cpu", cfg_options=options)
    x = torch.randn(1, 3, 150, 96)
    with torch.no_grad():
        assert_same(fused.extract_feat(x), model.extract_feat(x), relative_error)
    with pytest.raises(RuntimeError, match="--cfg-options model.backbone.fused_norms=True"):
        init_detector(str(config), str(tmp_path / "fused.pth"), device="cpu")
    with pytest.raises(ValueError, match="folded already"):
        fuse_checkpoint(config, tmp_path / "fused.pth")


def test_the_tool_overwrites_nothing(tmp_path, monkeypatch):
    (tmp_path / "out.pth").write_text("mine")
    arguments = ["fuse.py", ROOT / DEMOS["mmdet"], "none.pth", tmp_path / "out.pth"]
    monkeypatch.setattr(sys, "argv", [str(argument) for argument in arguments])
    monkeypatch.setattr(MMLogger, "setLevel", lambda *_: None)  # which would outlast this test
    with pytest.raises(SystemExit, match=r"^fuse: .*out.pth exists"):
        runpy.run_path(str(ROOT / "tools/fuse.py"), run_name="__main__")
    assert (tmp_path / "out.pth").read_text() == "mine"


def test_the_benchmark_writes_its_table_between_the_marks(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{fusion.BEGIN}\nstale\n{fusion.END}\nafter\n")
    options = ["--seconds", "0", "--shape", "1", "3", "40", "40", "--write", str(page)]
    monkeypatch.setattr(sys, "argv", ["fusion.py", *options, "--only", "float32, layers", "float32, fused blocks"])
    fusion.main()
    text = page.read_text()
    assert re.fullmatch(rf"before\n{fusion.BEGIN}\nsMLPNet-tiny, CPU.+\n{fusion.END}\nafter\n", text, re.S)
    assert "stale" not in text
    for row in re.findall(r"^\| 1 x 3 x 40 x 40 \|.+$", text, re.M):
        count, fewer = (int(cell.replace(",", "")) for cell in row.split(" | ")[2:4])
        assert 0 < fewer < count


def test_the_page_has_the_marks():
    page = (ROOT / "docs/deploy.md").read_text("utf-8")
    assert (page.count(fusion.BEGIN), page.count(fusion.END)) == (1, 1)
