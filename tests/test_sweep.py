"""The sweep: zooming pipelines, limits, errors, and the whole tool on a real detector, segmentor and classifier."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmcv.transforms import Resize
from mmengine.config import Config
from mmengine.runner import Runner
from PIL import Image

from mmsmlp.coins import write_coins
from mmsmlp.photos import write_patches
from mmsmlp.sweep import Sweep, widen_pipeline, zoom_pipeline

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs/demo/mask-rcnn_smlpnet-mini_coins.py"


@pytest.fixture(scope="module")
def coins_root(tmp_path_factory) -> Path:
    return write_coins(tmp_path_factory.mktemp("data") / "coins")


@pytest.fixture(scope="module")
def config(coins_root) -> Config:
    """The demo's config, with the coins set in a folder of the test's own."""
    cfg = Config.fromfile(CONFIG)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.data_root = f"{coins_root}/"
    cfg.val_evaluator.ann_file = cfg.test_evaluator.ann_file = f"{coins_root}/annotations/instances_val.json"
    return cfg


@pytest.fixture(scope="module")
def checkpoint(config, tmp_path_factory) -> Path:
    """A checkpoint after 3 real training steps."""
    cfg = copy.deepcopy(config)
    cfg.work_dir = str(tmp_path_factory.mktemp("run"))
    cfg.train_cfg = {"type": "IterBasedTrainLoop", "max_iters": 3, "val_interval": 10}
    cfg.default_hooks.checkpoint.interval = 3
    cfg.experiment_name = "sweep_checkpoint"
    Runner.from_cfg(cfg).train()
    return Path(cfg.work_dir, "iter_3.pth")


@pytest.mark.parametrize(
    ("transform", "wanted"),
    [
        ({"type": "Resize", "scale": (1333, 800), "keep_ratio": True}, {"scale": (2000, 1200)}),
        ({"type": "mmdet.Resize", "scale": 512}, {"scale": 768}),
        ({"type": "Resize", "scale_factor": 2.0}, {"scale_factor": (3.0, 3.0)}),
        ({"type": Resize, "scale_factor": (1.0, 2.0)}, {"scale_factor": (1.5, 3.0)}),
        ({"type": "ResizeEdge", "scale": 256, "edge": "short"}, {"scale": 384}),
    ],
)
def test_a_zoom_multiplies_the_size_that_a_pipeline_resizes_to(transform, wanted):
    pipeline = [{"type": "LoadImageFromFile"}, dict(transform), {"type": "PackDetInputs"}]
    zoom_pipeline(pipeline, 1.5)
    assert pipeline[1] == {**transform, **wanted}
    assert len(pipeline) == 3


def test_a_zoom_adds_a_resizing_to_a_pipeline_without_one():
    pipeline = [{"type": "LoadImageFromFile"}, {"type": "PackDetInputs"}]
    zoom_pipeline(pipeline, 1.5)
    assert pipeline[1] == {"type": "Resize", "scale_factor": 1.5, "keep_ratio": True}


def test_a_zoom_multiplies_the_size_of_a_crop():
    pipeline = [{"type": "LoadImageFromFile"}, {"type": "CenterCrop", "crop_size": 64}, {"type": "PackInputs"}]
    zoom_pipeline(pipeline, 1.5)
    assert [t["type"] for t in pipeline] == ["LoadImageFromFile", "Resize", "CenterCrop", "PackInputs"]
    assert pipeline[2]["crop_size"] == 96


def test_a_wider_scene_is_neither_shrunk_nor_cropped():
    pipeline = [
        {"type": "Resize", "scale": (1333, 800), "keep_ratio": True},
        {"type": "Resize", "scale_factor": 1.0, "keep_ratio": True},
        {"type": "CenterCrop", "crop_size": (64, 32)},
    ]
    widen_pipeline(pipeline, 2)
    assert (pipeline[0]["scale"], pipeline[1]["scale_factor"]) == ((2666, 1600), 1.0)
    assert pipeline[2]["crop_size"] == (128, 64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "nothing to evaluate"),
        ({"zooms": [1, 0]}, r"zooms must be positive, got \[1, 0\]"),
        ({"extents": [0]}, r"extents must be positive integers, got \[0\]"),
        ({"extents": [1.5]}, r"extents must be positive integers, got \[1.5\]"),
        ({"zooms": [1], "symmetries": 9}, "symmetries must be 1 to 8, got 9"),
        ({"zooms": [1], "interpolations": ["nearest"]}, "unknown interpolation 'nearest'"),
    ],
)
def test_a_bad_argument_is_named(config, checkpoint, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        Sweep(config, checkpoint, tmp_path, **arguments)


def test_a_config_of_another_kind_is_refused(config, checkpoint, tmp_path):
    cfg = copy.deepcopy(config)
    cfg.default_scope = "mmpose"
    for other in (cfg, Config({"default_scope": "mmseg", "model": {}})):
        with pytest.raises(ValueError, match="cannot be swept: that takes an SMLPNet backbone, and a test_dataloader"):
            Sweep(other, checkpoint, tmp_path, zooms=[1])


def test_a_checkpoint_of_another_model_is_refused(config, checkpoint, tmp_path):
    """`load_from` would warn and go on: an AP near 0 that looks as if the interpolation had broken the network."""
    cfg = copy.deepcopy(config)
    cfg.model.backbone.arch.embed_dims = 16
    cfg.model.neck.in_channels = [16, 32, 64, 128]
    sweep = Sweep(cfg, checkpoint, tmp_path, zooms=[1])
    with pytest.raises(ValueError, match=r"iter_3.pth does not fit .*coins.py: .*(of another shape|do not match)"):
        sweep.evaluate(next(sweep.points()))


def test_two_sweeps_in_one_process(config, checkpoint, tmp_path):
    for name in ("first", "second"):
        sweep = Sweep(config, checkpoint, tmp_path / name, extents=[1])
        assert [sweep.evaluate(point)["objects"] for point in sweep.points()] == [12]


@pytest.mark.parametrize(("given", "message"), [("none.pth", "does not exist"), (".", "holds no checkpoint")])
def test_a_missing_checkpoint_is_named(config, tmp_path, given, message):
    with pytest.raises(FileNotFoundError, match=message):
        Sweep(config, tmp_path / given, tmp_path, zooms=[1])


def test_a_damaged_checkpoint_is_named_before_anything_is_written(config, tmp_path):
    (tmp_path / "bad.pth").write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"bad.pth: damaged or cut off"):
        Sweep(config, tmp_path / "bad.pth", tmp_path / "out", zooms=[1])
    assert not (tmp_path / "out").exists()


def test_several_evaluators_are_understood(config, checkpoint, tmp_path):
    cfg = copy.deepcopy(config)
    cfg.test_evaluator = [{"type": "DumpResults", "out_file_path": "x.pkl"}, cfg.test_evaluator]
    assert Sweep(cfg, checkpoint, tmp_path, zooms=[1]).task.metrics == ["bbox", "segm"]


def test_a_missing_data_set_is_named(config, checkpoint, tmp_path):
    cfg = copy.deepcopy(config)
    cfg.test_dataloader.dataset.data_root = str(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="nowhere/annotations/instances_val.json do not exist"):
        Sweep(cfg, checkpoint, tmp_path, zooms=[1])


def test_limits_grow_with_the_canvas(config, checkpoint, tmp_path):
    sweep = Sweep(config, checkpoint, tmp_path, extents=[2])
    own, raised = config.model.test_cfg, sweep._config_of(next(sweep.points())).model.test_cfg
    for part, key in (("rpn", "nms_pre"), ("rpn", "max_per_img"), ("rcnn", "max_per_img")):
        assert raised[part][key] == 4 * own[part][key]


@pytest.fixture(scope="module")
def swept(config, checkpoint, tmp_path_factory) -> Path:
    """The folder that tools/sweep.py wrote, run as a user runs it."""
    folder = tmp_path_factory.mktemp("sweep")
    config.dump(folder / "config.py")
    command = [sys.executable, "tools/sweep.py", folder / "config.py", checkpoint.parent, "--out", folder / "out"]
    options = ["--zoom", "0.5", "1", "--symmetries", "2", "--extent", "1", "3", "--interpolation", "exact", "naive"]
    result = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "box AP / box AP50 / mask AP" in result.stdout
    return folder / "out"


def test_the_tool_writes_a_row_for_every_point(swept):
    rows = json.loads((swept / "results.json").read_text())["rows"]
    wanted = [("zoom", 0.5), ("zoom", 1), ("extent", 1), ("extent", 3)]
    assert [(r["kind"], r["factor"], r["interpolation"]) for r in rows] == [
        (kind, factor, method) for kind, factor in wanted for method in ("exact", "naive")
    ]
    assert [r["objects"] for r in rows[::2]] == [24, 24, 12, 108]


def test_every_ap_of_the_tool_is_within_0_and_1(swept):
    rows = json.loads((swept / "results.json").read_text())["rows"]
    assert all(0 <= row[key] <= 1 for row in rows for key in ("bbox_mAP", "bbox_mAP_50", "segm_mAP", "segm_mAP_50"))


def test_the_tool_records_what_made_the_results(swept):
    results = json.loads((swept / "results.json").read_text())
    assert results["versions"]["torch"] == str(torch.__version__)
    assert results["seed"] == 0
    assert results["iterations"] == 3
    assert 0 < results["train_seconds"] < 600


@pytest.mark.parametrize("name", ["sweep.png", "predictions.png"])
def test_the_tool_draws_pictures(swept, name):
    with Image.open(swept / name) as picture:
        assert min(picture.size) > 400
        assert len(set(picture.convert("L").getdata())) > 50


OTHERS = {"upernet_smlpnet-mini_coins": ("mIoU", "aAcc"), "smlpnet-mini_photos": ("top1",)}


# The classifier's set has 360 images for each of the sweep's points.
SEGMENTOR, CLASSIFIER = OTHERS


@pytest.fixture(scope="module", params=[SEGMENTOR, pytest.param(CLASSIFIER, marks=pytest.mark.slow)])
def other(request, coins_root, tmp_path_factory) -> tuple[str, Path]:
    """The segmentor's and the classifier's demo: trained for 2 steps, then swept by the tool; its folder."""
    name = request.param
    folder = tmp_path_factory.mktemp(name)
    cfg = Config.fromfile(ROOT / f"configs/demo/{name}.py")
    root = coins_root if "coins" in name else write_patches(folder / "photos")
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.data_root = str(root)
    cfg.work_dir = str(folder / "run")
    cfg.train_cfg = {"type": "IterBasedTrainLoop", "max_iters": 2, "val_interval": 10}
    cfg.default_hooks.checkpoint.interval = 2
    cfg.experiment_name = name
    cfg.visualizer.name = name  # a visualizer of the toolbox's name is another test's
    Runner.from_cfg(cfg).train()
    cfg.dump(folder / "config.py")
    command = [sys.executable, "tools/sweep.py", folder / "config.py", folder / "run", "--out", folder / "out"]
    options = ["--zoom", "1", "2", "--extent", "3", "--interpolation", "exact", "bounded"]
    result = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return name, folder / "out"


def test_segmentors_and_classifiers_get_their_rows(other):
    name, out = other
    rows = json.loads((out / "results.json").read_text())["rows"]
    assert [(r["kind"], r["factor"], r["interpolation"]) for r in rows] == [
        (kind, factor, method)
        for kind, factor in (("zoom", 1), ("zoom", 2), ("extent", 3))
        for method in ("exact", "bounded")
    ]
    assert all(0 <= row[key] <= 1 for row in rows for key in OTHERS[name])
    assert {row["images"] for row in rows} == {1 if name.startswith("upernet") else 360}


def test_a_classifiers_wider_scene_is_made_of_what_it_sees(other):
    """The demo's test pipeline crops the middle 64 x 64 of a patch."""
    name, out = other
    if name == "smlpnet-mini_photos":
        scene = np.asarray(Image.open(out / "scenes/extent_3/images/000001.png"))
        patch = np.asarray(Image.open(out.parent / "photos/val/astronaut/000.png"))
        assert scene.shape == (192, 192)
        assert np.array_equal(scene[:64, :64], patch[16:80, 16:80])


def test_segmentors_and_classifiers_get_their_pictures(other):
    _, out = other
    for name in ("sweep.png", "predictions.png"):
        with Image.open(out / name) as picture:
            assert min(picture.size) > 300
            assert len(set(picture.convert("L").getdata())) > 50


def test_a_bad_call_of_the_tool_is_one_clear_line(coins_root, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "coins").symlink_to(coins_root)
    command = [sys.executable, ROOT / "tools/sweep.py", CONFIG, "none.pth", "--zoom", "1"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == "sweep: the checkpoint none.pth does not exist"
    assert "Traceback" not in result.stderr
