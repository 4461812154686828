"""Dry runs of the zoo's configs: the whole model, official weights, small images in the target's own format."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import zoo
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner, load_checkpoint

from mmsmlp import SMLPNet
from mmsmlp.photos import write_ade20k_format, write_cityscapes_format, write_coco_format
from mmsmlp.weights.spach import export_spach

ROOT = Path(__file__).parents[1]
CLASSIFIERS = [ROOT / c for c in zoo.configs() if "/classification/" in c]
DENSE = [ROOT / c for c in zoo.configs() if "/classification/" not in c]
# Each base once, and each size of the backbone; the others run in `make test-all` only.
LARGER = ("mask-rcnn_smlpnet-small_fpn_ms-crop-3x_coco", "upernet_smlpnet-base_8xb2-160k_ade20k-640x640")
LATER = ("mask-rcnn_smlpnet-tiny", "upernet_smlpnet-tiny_8xb2-160k")
QUICK = [p for p in DENSE if p.stem in LARGER or ("tiny" in p.stem and not p.stem.startswith(LATER))]
DATA = {"data/coco": write_coco_format, "data/ade/": write_ade20k_format, "data/cityscapes": write_cityscapes_format}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A function: the folder that stands for a config's data set, of small real images in the same format."""
    written = {}

    def folder(cfg: Config) -> tuple[str, Path]:
        root = cfg.train_dataloader.dataset.data_root
        key = next(key for key in DATA if root.startswith(key))
        if key not in written:
            size = (128, 256) if "cityscapes" in key else (120, 160)
            written[key] = DATA[key](tmp_path_factory.mktemp("data") / "set", size)
        return root, written[key]

    return folder


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """A function: weights of an arch, and a file of them with the official structure."""
    files = {}

    def of(arch: str) -> tuple[dict[str, torch.Tensor], Path]:
        if arch not in files:
            torch.manual_seed(0)
            weights = SMLPNet(arch).state_dict()
            head = torch.nn.Linear(weights["norm3.weight"].numel(), 1000).state_dict()
            classifier = {f"backbone.{k}": v for k, v in weights.items()} | {f"head.fc.{k}": v for k, v in head.items()}
            path = tmp_path_factory.mktemp("official") / f"{arch}.pth"
            torch.save({"model": export_spach(classifier)}, path)
            files[arch] = weights, path
        return files[arch]

    return of


SIZES = ("scale", "scales", "crop_size", "size", "stride", "max_size")


def shrink(cfg, divisor: int = 8):
    """Divide every size in a part of a config, in place."""

    def smaller(value):
        return [smaller(v) for v in value] if isinstance(value, (list, tuple)) else value // divisor

    for item in cfg if isinstance(cfg, list) else [cfg]:
        for key, value in item.items() if isinstance(item, dict) else ():
            if key in SIZES and value is not None:
                shrunk = smaller(value)
                item[key] = tuple(shrunk) if isinstance(value, tuple) else shrunk
                if key == "scales" and isinstance(value[0], (list, tuple)):
                    item[key] = [tuple(scale) for scale in shrunk]
            elif isinstance(value, (dict, list)):
                for inner in value if isinstance(value, list) else [value]:
                    shrink(inner, divisor)
        if isinstance(item, list):
            shrink(item, divisor)


def moved(cfg, old: str, new: str):
    """A part of a config, paths below ``old`` replaced."""
    if isinstance(cfg, dict):
        return {key: moved(value, old, new) for key, value in cfg.items()}
    if isinstance(cfg, (list, tuple)):
        return type(cfg)(moved(value, old, new) for value in cfg)
    return f"{new}/{cfg[len(old) :].lstrip('/')}" if isinstance(cfg, str) and cfg.startswith(old) else cfg


FEW = {"score_thr": 0.0, "nms_pre": 50, "max_per_img": 20, "num": 32, "num_points": 500}


def few(cfg) -> None:
    """Limit proposals, samples and detections, in place, and keep detections of any score: untrained ones have none."""
    for key, value in cfg.items():
        if isinstance(value, dict):
            few(value)
        elif isinstance(value, (int, float)) and key in FEW:
            cfg[key] = min(value, FEW[key])
        elif key == "rcnn" and isinstance(value, list):  # of a cascade
            for stage in value:
                few(stage)


def small_run(path: Path, data, checkpoint: str, work_dir: Path) -> Runner:
    """The config's own runner: its whole model, on small images, two at a time, for two steps."""
    cfg = Config.fromfile(path)
    cfg.model.backbone.init_cfg.checkpoint = checkpoint
    old, new = data(cfg)
    for loader in (cfg.train_dataloader, cfg.test_dataloader):
        loader.dataset = moved(loader.dataset, old, str(new))
        shrink(loader.dataset.pipeline)
        loader.update(num_workers=0, persistent_workers=False)
    cfg.train_dataloader.batch_size = 2
    cfg.test_evaluator = moved(cfg.test_evaluator, old, str(new))
    shrink(cfg.model.data_preprocessor)
    shrink(cfg.model.test_cfg)
    few(cfg.model)
    cfg.train_cfg.pop("dynamic_intervals", None)
    cfg.train_cfg.update({"max_epochs": 1} if "max_epochs" in cfg.train_cfg else {"max_iters": 2})
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    cfg.default_hooks.checkpoint = None
    del cfg.default_hooks.visualization
    cfg.visualizer = None
    cfg.log_level = "ERROR"
    cfg.work_dir, cfg.experiment_name = str(work_dir), work_dir.name
    cfg.randomness = dict(seed=0)
    return Runner.from_cfg(cfg)


class Seen(Hook):
    """What a training began with, and its losses."""

    def __init__(self):
        self.losses = []

    def before_train(self, runner):
        self.start = copy.deepcopy(runner.model.backbone.state_dict())

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses.append(outputs["loss"].item())


def slow_unless(quick: list[Path], every: list[Path]):
    """A test of every config, which in `make test` runs for the quick ones only."""
    paths = [p if p in quick else pytest.param(p, marks=pytest.mark.slow) for p in every]
    return pytest.mark.parametrize("path", paths, ids=lambda p: p.stem)


@slow_unless([p for p in CLASSIFIERS if "tiny" in p.stem], CLASSIFIERS)
def test_a_classifier_takes_official_weights(path, official):
    """Two steps and a test of the classifiers are in tests/test_classification.py."""
    cfg = Config.fromfile(path)
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    weights, file = official(cfg.model.backbone.arch)
    load_checkpoint(model, f"spach://{file}", strict=True)
    loaded = model.backbone.state_dict()
    resized = [key for key, value in weights.items() if loaded[key].shape != value.shape]
    assert all(".mix_" in key for key in resized)
    assert bool(resized) == ("384px" in path.stem)
    assert all(torch.equal(loaded[key], value) for key, value in weights.items() if key not in resized)


@slow_unless(QUICK, DENSE)
def test_two_steps_and_a_test_from_official_weights(path, data, official, tmp_path):
    weights, file = official(Config.fromfile(path).model.backbone.arch)
    runner, seen = small_run(path, data, f"spach://{file}", tmp_path), Seen()
    runner.register_hook(seen)
    runner.train()
    assert all(torch.equal(seen.start[key], value) for key, value in weights.items())
    assert len(seen.losses) == 2
    assert np.isfinite(seen.losses).all()
    end = runner.model.backbone.state_dict()
    statistics = [key for key in end if key.endswith("running_mean")]
    changed = [not torch.equal(end[key], seen.start[key]) for key in statistics]
    assert not any(changed) if runner.model.backbone.norm_eval else all(changed)
    metrics = runner.test()
    wanted = {"detection": "coco/bbox_mAP", "segmentation": "mIoU"}[path.parent.name]
    assert np.isfinite(metrics[wanted])


def test_tiny_starts_from_a_classifiers_checkpoint(data, official, tmp_path):
    """As training with our ImageNet config leaves it; a missing one is an error, not a start from random weights."""
    weights, _ = official("tiny")
    path = ROOT / "configs/detection/mask-rcnn_smlpnet-tiny_fpn_1x_coco.py"
    state = {f"backbone.{key}": value for key, value in weights.items()} | {"head.fc.bias": torch.zeros(1000)}
    torch.save({"state_dict": state}, tmp_path / "epoch_300.pth")
    model = small_run(path, data, str(tmp_path / "epoch_300.pth"), tmp_path / "run").model
    model.init_weights()
    assert all(torch.equal(model.backbone.state_dict()[key], value) for key, value in weights.items())
    missing = small_run(path, data, str(tmp_path / "missing.pth"), tmp_path / "another").model
    with pytest.raises(FileNotFoundError, match="missing.pth"):
        missing.init_weights()
