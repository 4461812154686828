"""Checkpoints moved to another anchor grid: the function, the comparison, and the tool."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from conftest import MINI
from mmengine.logging import MMLogger
from mmengine.runner import load_checkpoint
from test_checkpoint import train
from torch import nn

from mmsmlp import SMLPNet, SparseMLP
from mmsmlp.checkpoint import reanchor, write_checkpoint
from mmsmlp.resize import METHODS
from mmsmlp.weights.anchors import compare_anchors, find_backbone, reanchor_checkpoint

ROOT = Path(__file__).parents[1]
SIZES = [96, (96, 64), (64, 160), (32, 32), (70, 33)]


def mini(img_size=64, **kwargs) -> SMLPNet:
    return SMLPNet(MINI, img_size=img_size, **kwargs).double().eval()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_reanchoring_is_what_loading_does(size, method):
    given, net = mini(), mini(size, interpolation=method)
    net.load_state_dict(given.state_dict())
    moved = reanchor(given.state_dict(), size, method)
    assert list(moved) == list(net.state_dict())
    assert all(torch.equal(moved[key], value) for key, value in net.state_dict().items())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [(96, 64), (33, 70)], ids=str)
def test_outputs_are_equal_at_the_new_grid(size, method, relative_error):
    given, net = mini(interpolation=method), mini(size, interpolation=method)
    net.load_state_dict(reanchor(given.state_dict(), size, method))
    x = torch.randn(1, 3, *size, dtype=torch.float64)
    assert max(relative_error(a, b) for a, b in zip(net(x), given(x))) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("size", [68, 96, (128, 72), 200], ids=str)
def test_up_and_back_down_is_the_identity_with_exact(size, dtype, relative_error):
    state = mini().to(dtype).state_dict()
    back = reanchor(reanchor(state, size, "exact"), 64, "exact")
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    assert max(relative_error(back[key], state[key]) for key in state if "mix_" in key) < tolerance


@pytest.mark.parametrize("prefix", ["", "backbone.", "module.backbone.", "teacher.model."])
def test_any_prefix_is_found(prefix):
    state = {f"{prefix}{key}": value for key, value in mini().state_dict().items()}
    moved = reanchor(state, 96)
    assert moved[f"{prefix}stages.1.0.sparse_mlp.mix_h.bias"].shape == (12,)
    assert all(moved[key] is state[key] for key in state if "mix_" not in key)
    assert state[f"{prefix}stages.1.0.sparse_mlp.mix_h.bias"].shape == (8,)


def test_the_stride_is_the_stems():
    net = SMLPNet({**MINI, "patch_size": 2}, img_size=32)
    moved = reanchor(net.state_dict(), 48)
    SMLPNet({**MINI, "patch_size": 2}, img_size=48).load_state_dict(moved)
    assert moved["stages.0.0.sparse_mlp.mix_w.weight"].shape == (24, 24)


def test_a_sparse_mlp_outside_of_a_backbone_stays():
    model = nn.ModuleDict({"backbone": mini(), "neck": SparseMLP(8, 5)})
    state = model.state_dict()
    moved = reanchor(state, 96)
    assert moved["neck.mix_h.weight"] is state["neck.mix_h.weight"]


@pytest.mark.parametrize(
    ("state", "size", "message"),
    [
        ({"conv1.weight": torch.zeros(1)}, 96, "no axis weights of an SMLPNet among conv1.weight"),
        ({}, 96, "no axis weights of an SMLPNet among no keys"),
        (None, 0, "img_size must be a positive int or .height, width., got 0"),
        (None, (96, 96, 96), "img_size must be"),
        (None, (96.0, 96.0), "img_size must be"),
    ],
)
def test_what_cannot_be_moved_is_named(state, size, message):
    with pytest.raises(ValueError, match=message):
        reanchor(mini().state_dict() if state is None else state, size)


def test_writing_does_not_overwrite_unless_told_to(tmp_path):
    path = tmp_path / "x.pth"
    write_checkpoint({"state_dict": {}}, path)
    with pytest.raises(FileExistsError, match="x.pth exists: choose another name"):
        write_checkpoint({"state_dict": {"a": 1}}, path)
    assert torch.load(path, weights_only=True) == {"state_dict": {}}
    write_checkpoint({"state_dict": {"a": 1}}, path, overwrite=True)
    assert torch.load(path, weights_only=True) == {"state_dict": {"a": 1}}
    assert [p.name for p in tmp_path.iterdir()] == ["x.pth"]


def test_equal_checkpoints_are_equal_files(tmp_path):
    for name in ("a.pth", "b.pth"):
        write_checkpoint({"state_dict": {"w": torch.ones(3)}}, tmp_path / name)
    assert (tmp_path / "a.pth").read_bytes() == (tmp_path / "b.pth").read_bytes()


def test_with_exact_the_comparison_shows_equality_at_both_anchors_and_none_elsewhere():
    state = {f"backbone.{key}": value for key, value in mini().float().state_dict().items()}
    rows, back = compare_anchors(state, reanchor(state, (96, 80), "exact"), "exact")
    assert [(label, size) for label, size, _ in rows] == [
        ("new anchor", (96, 80)),
        ("old anchor", (64, 64)),
        ("between", (80, 72)),
        ("smaller", (48, 48)),
    ]
    new, old, between, smaller = (error for *_, error in rows)
    assert new < 1e-5
    assert old < 1e-5
    assert between > 1e-3
    assert smaller > 1e-3
    assert back < 1e-5


def test_with_bounded_the_comparison_shows_equality_at_the_new_anchor_only():
    state = mini().float().state_dict()
    rows, back = compare_anchors(state, reanchor(state, 96, "bounded"), "bounded")
    assert [size for _, size, error in rows if error < 1e-5] == [(96, 96)]
    assert back > 1e-2


def test_going_down_loses_what_the_coarser_grid_cannot_hold():
    state = mini().float().state_dict()
    rows, back = compare_anchors(state, reanchor(state, 32))
    assert [size for _, size, error in rows if error > 1e-3] == [(64, 64), (48, 48), (24, 24)]
    assert back > 1e-2


def without(key: str) -> dict:
    state = mini().state_dict()
    del state[key]
    return state


@pytest.mark.parametrize(
    "kwargs",
    [
        {"local_mixing": False},
        {"global_mixing": (False, True, True, True)},
        {"fusion": "sum"},
        {"fusion": "weighted", "identity_branch": False},
        {"identity_branch": False},
        {"arch": {**MINI, "mlp_ratio": 2.7}},  # 21, 43, 86 and 172 hidden channels, rounded down
    ],
    ids=str,
)
def test_ablated_backbones_can_be_compared(kwargs):
    net = SMLPNet(**{"arch": MINI, "img_size": 64, **kwargs})
    rows, back = compare_anchors(net.state_dict(), reanchor(net.state_dict(), 96, "exact"), "exact")
    assert rows[0][2] < 1e-5
    assert back < 1e-5


def test_an_unchanged_anchor_is_called_the_new_one():
    state = mini().float().state_dict()
    assert [label for label, *_ in compare_anchors(state, reanchor(state, 64))[0]] == ["new anchor", "smaller"]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (lambda: without("stages.1.0.channel_mlp.fc2.weight"), r"\(embed_dims 8, .*\) is not complete"),
        (lambda: nn.ModuleDict({"student": mini(), "teacher": mini()}).state_dict(), "2 SMLPNets in the weights, not"),
    ],
    ids=["a missing key", "two"],
)
def test_what_cannot_be_compared_is_named(weights, message):
    state = {key: value.float() for key, value in weights().items()}
    with pytest.raises(ValueError, match=message):
        compare_anchors(state, reanchor(state, 96))


@pytest.mark.parametrize("kwargs", [{"out_indices": (0, 2)}, {"out_norm": True}], ids=str)
def test_backbones_of_dense_models_can_be_compared(kwargs):
    state = mini(**kwargs).float().state_dict()
    assert len(compare_anchors(state, reanchor(state, 96))[0]) == 4
    assert find_backbone(state)[1].img_size == (64, 64)


@pytest.fixture
def reanchor_tool(monkeypatch, capsys):
    """Returns a function that runs the tool's file in this process and returns what it prints."""
    level = MMLogger.get_current_instance().level

    def run(*args) -> str:
        monkeypatch.setattr(sys, "argv", ["reanchor.py", *map(str, args)])
        runpy.run_path(str(ROOT / "tools/reanchor.py"), run_name="__main__")
        return capsys.readouterr().out

    yield run
    MMLogger.get_current_instance().setLevel(level)


def test_the_tool_moves_a_checkpoint_of_a_real_training(tmp_path, reanchor_tool):
    train(tmp_path / "run", 64, 2)  # with AdamW, a message hub and an EMA hook
    source, out = tmp_path / "run" / "iter_2.pth", tmp_path / "out.pth"
    given = torch.load(source, weights_only=False)
    printed = reanchor_tool(source, out, "--img-size", 96, 80)
    assert "left out: message_hub, optimizer" in printed
    moved = torch.load(out, weights_only=False)
    assert moved.keys() == {"state_dict", "ema_state_dict", "meta"}
    assert moved["meta"]["anchor"] == (96, 80)
    assert moved["meta"]["iter"] == given["meta"]["iter"]
    for name, prefix in (("state_dict", ""), ("ema_state_dict", "module.")):
        key = f"{prefix}backbone.stages.0.0.sparse_mlp.mix_w.bias"
        assert torch.equal(moved[name][key], reanchor(given[name], (96, 80))[key])
    model = nn.ModuleDict({"backbone": SMLPNet(MINI, img_size=(96, 80))})
    load_checkpoint(model, str(out), strict=True)


def saved(net: nn.Module, path) -> Path:
    torch.save({"state_dict": net.float().state_dict(), "meta": {"epoch": 3}}, path)
    return path


def test_the_tool_prints_the_differences(tmp_path, reanchor_tool):
    options = ["--img-size", 96, 96, "--interpolation", "exact"]
    printed = reanchor_tool(saved(mini(), tmp_path / "a.pth"), tmp_path / "b.pth", *options)
    rows = {
        label: (int(height), int(width), float(error))
        for label, height, width, error in re.findall(r"│ (\w[\w ]+?) +│ +(\d+) x (\d+) │ +(\S+) │", printed)
    }
    assert {label: row[:2] for label, row in rows.items()} == {
        "new anchor": (96, 96),
        "old anchor": (64, 64),
        "between": (80, 80),
        "smaller": (48, 48),
    }
    assert rows["new anchor"][2] < 1e-5 < 1e-3 < rows["between"][2]
    assert float(re.search(r"moved back to the old anchor: relative error (\S+)", printed)[1]) < 1e-5


def test_the_tool_moves_an_official_file(golden_group, tmp_path, reanchor_tool):
    torch.save({"model": golden_group("state_dict/")}, tmp_path / "official.pth")
    reanchor_tool(f"spach://{tmp_path}/official.pth", tmp_path / "b.pth", "--img-size", 96, 96)
    meta = torch.load(tmp_path / "b.pth", weights_only=True)["meta"]
    assert meta["anchor"] == (96, 96)
    assert meta["source"] == f"spach://{tmp_path}/official.pth"


def test_the_tool_leaves_the_table_out_where_there_is_no_one_backbone(tmp_path, reanchor_tool):
    source = saved(nn.ModuleDict({"student": mini(), "teacher": mini()}), tmp_path / "a.pth")
    printed = reanchor_tool(source, tmp_path / "b.pth", "--img-size", 96, 96)
    assert "no comparison of outputs: 2 SMLPNets in the weights" in printed
    assert (tmp_path / "b.pth").exists()


def test_the_tool_can_replace_its_own_input(tmp_path, reanchor_tool):
    path = saved(mini(), tmp_path / "a.pth")
    with pytest.raises(SystemExit, match=r"^reanchor: .*a\.pth exists: choose another name, or add --overwrite$"):
        reanchor_tool(path, path, "--img-size", 96, 96)
    assert "anchor" not in torch.load(path, weights_only=True)["meta"]
    reanchor_tool(path, path, "--img-size", 96, 96, "--overwrite")
    assert torch.load(path, weights_only=True)["meta"] == {"epoch": 3, "anchor": (96, 96)}


@pytest.mark.parametrize(
    ("content", "size", "message"),
    [
        ({"model": {}}, 96, r"a\.pth: no checkpoint of mmengine, no state_dict but model .*spach://PATH"),
        ({"state_dict": {"w": torch.zeros(1)}}, 96, "no axis weights of an SMLPNet among w"),
        ({"state_dict": mini().state_dict()}, 0, "img_size must be a positive int"),
        (b"PK", 96, r"a\.pth: damaged or cut off"),
        (None, 96, r"a\.pth can not be found"),
    ],
    ids=["official", "another model", "size", "damaged", "missing"],
)
def test_the_tool_says_in_one_line_what_is_wrong_and_writes_nothing(tmp_path, reanchor_tool, content, size, message):
    if isinstance(content, bytes):
        (tmp_path / "a.pth").write_bytes(content)
    elif content:
        torch.save(content, tmp_path / "a.pth")
    with pytest.raises(SystemExit, match=rf"^reanchor: .*{message}") as error:
        reanchor_tool(tmp_path / "a.pth", tmp_path / "b.pth", "--img-size", size, size)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "b.pth").exists()


def test_a_checkpoint_keeps_nothing_of_the_optimiser():
    state = mini().state_dict()
    moved, left_out = reanchor_checkpoint({"state_dict": state, "optimizer": {}, "param_schedulers": []}, (96, 96))
    assert moved.keys() == {"state_dict", "meta"}
    assert left_out == ["optimizer", "param_schedulers"]
