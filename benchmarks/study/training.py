"""The trainings: a demo's config with another recipe, in a process of its own, finished ones are kept."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmengine.registry import TRANSFORMS

from mmsmlp.files import atomic_file
from study.plan import ROOT, STARTS, Network

TUNING_SHARE = 5  # tuning takes a fifth of the steps of the training before it
TUNING_LR = 2e-4  # a fifth of the training's
SMALL = 0.02  # where axis weights start in ± 1 / sqrt(n), 0.16 to 0.45 in these networks
_WARM_UP = 10  # steps of a tuning
_TRAIN = """
import sys
from mmengine.config import Config
from mmengine.runner import Runner
Runner.from_cfg(Config.fromfile(sys.argv[1])).train()
"""


@TRANSFORMS.register_module()
class DrawnPerBatch:
    """A transform whose height and width are drawn anew for every batch, all images of a batch alike.

    It counts calls, so it needs the order of one process: ``num_workers=0``.

    Args:
        transform (dict): Config of the transform.
        attribute (str): Its attribute that is the (height, width) in pixels.
        sizes (tuple[int, int]): The smallest and the largest, in pixels.
        step (int): Sizes drawn are multiples of this.
        batch (int): Images in a batch.
        square (bool): Whether height and width are the same.
    """

    def __init__(
        self, transform: dict, attribute: str, sizes: tuple[int, int], step: int, batch: int, square: bool = False
    ):
        self.transform = TRANSFORMS.build(transform)
        self.attribute, self.sizes, self.step, self.batch, self.square = attribute, sizes, step, batch, square
        self.calls = 0

    def __call__(self, results: dict) -> dict | None:
        """Apply the transform with this batch's size."""
        if self.calls % self.batch == 0:
            low, high = (size // self.step for size in self.sizes)
            height, width = (int(v) * self.step for v in np.random.randint(low, high + 1, size=2))
            setattr(self.transform, self.attribute, (height, height if self.square else width))
        self.calls += 1
        return self.transform(results)


def config(network: Network, recipe: str, seed: int, steps: int) -> Config:
    """A training's config.

    Args:
        network (Network): What is trained.
        recipe (str): One of ``study.plan.RECIPES``.
        seed (int): Of initialisation, crops and order.
        steps (int): Training steps of a full training; the tuned recipes take a fifth of them.

    Returns:
        Config: Without validation; ``load_from`` of a tuned recipe is for :func:`train` to fill in.
    """
    cfg = Config.fromfile(network.config)
    for part in ("val", "test"):
        for key in ("dataloader", "evaluator", "cfg"):
            cfg[f"{part}_{key}"] = None
    dataset = cfg.train_dataloader.dataset
    dataset.data_root = str(ROOT / dataset.data_root) + "/"
    _PIPELINES[cfg.default_scope](network, recipe, cfg)
    cfg.model.backbone.interpolation = "bounded" if recipe == "random sizes, bounded" else "exact"
    if recipe == "small start":
        cfg.model.backbone.init_cfg = {"type": "Uniform", "layer": "AxisLinear", "a": -SMALL, "b": SMALL}
    if recipe == "tuned, re-anchored":
        cfg.model.backbone.img_size = network.larger
    if recipe in STARTS:
        steps = max(steps // TUNING_SHARE, _WARM_UP + 1)
        cfg.optim_wrapper.optimizer.lr = TUNING_LR
        cfg.param_scheduler[0].end = cfg.param_scheduler[1].begin = _WARM_UP
    cfg.param_scheduler[1].end = steps
    cfg.train_cfg = {"type": "IterBasedTrainLoop", "max_iters": steps, "val_interval": steps + 1}
    cfg.default_hooks.checkpoint.update(interval=steps, save_optimizer=False, save_param_scheduler=False)
    # The study's figures were found with mmengine's own random numbers, and its finished trainings by these configs.
    cfg.default_hooks.checkpoint.type = "CheckpointHook"
    cfg.default_hooks.pop("resume")
    cfg.custom_imports = {"imports": ["study.training"]}
    cfg.randomness = {"seed": seed}
    return cfg


def train(network: Network, recipe: str, seed: int, steps: int, out: Path) -> Path:
    """The checkpoint of a training: of this one, or of the finished one with the same config.

    Args:
        network (Network): What is trained.
        recipe (str): One of ``study.plan.RECIPES``; the one that it starts from must be finished.
        seed (int): Of initialisation, crops and order.
        steps (int): Training steps of a full training.
        out (Path): Folder of all trainings.

    Returns:
        Path: ``final.pth``; beside it lie ``config.py`` and ``training.json`` with the fingerprint and the seconds.

    Raises:
        RuntimeError: If the training fails, with the command that repeats it.
    """
    folder = folder_of(network, recipe, seed, out)
    cfg = config(network, recipe, seed, steps)
    wanted = fingerprint(cfg)
    if recipe in STARTS:
        start = folder_of(network, STARTS[recipe], seed, out)
        wanted += fingerprint_of(start) or ""
        cfg.load_from = str(start / "final.pth")
    final = folder / "final.pth"
    if final.exists() and fingerprint_of(folder) == wanted:
        return final
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "training.json").unlink(missing_ok=True)
    cfg.work_dir = str(folder)
    cfg.dump(folder / "config.py")
    command = [sys.executable, "-c", _TRAIN, str(folder / "config.py")]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    began = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        last = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
        raise RuntimeError(f"this training failed:\n{shlex.join(command)}\n{last}")
    os.replace(folder / f"iter_{cfg.train_cfg.max_iters}.pth", final)
    with atomic_file(folder / "training.json") as new:  # last, so that what it vouches for is complete
        new.write_text(json.dumps({"fingerprint": wanted, "seconds": round(time.perf_counter() - began)}))
    return final


def folder_of(network: Network, recipe: str, seed: int, out: Path) -> Path:
    """Where a training lies."""
    name = f"{network.name}/{recipe}/seed{seed}".replace(", ", "_").replace(" ", "-").lower()
    return (out / "trainings" / name).absolute()


def fingerprint(cfg: Config) -> str:
    """A short hash of all that decides a training."""
    text = json.dumps(cfg.to_dict(), sort_keys=True, default=str).replace(str(ROOT), "")
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fingerprint_of(folder: Path) -> str | None:
    """The fingerprint of a finished training, or None."""
    record = folder / "training.json"
    return json.loads(record.read_text())["fingerprint"] if record.exists() else None


def _dense_pipeline(network: Network, recipe: str, cfg: Config) -> None:
    """Scales and crops of a detector's or a segmentor's training."""
    pipeline = cfg.train_dataloader.dataset.pipeline
    index = next(i for i, t in enumerate(pipeline) if t["type"] == "RandomCrop")
    crop, resize = pipeline[index], next(t for t in pipeline if t["type"] == "RandomResize")
    segmentor = cfg.default_scope == "mmseg"
    if recipe == "one size":
        resize["ratio_range"] = (1.0, 1.0)
    elif recipe.startswith("random sizes"):
        # Multiples of 4, the first stride: every grid of tokens can come up.
        pipeline[index] = {
            "type": "DrawnPerBatch",
            "transform": dict(crop),
            "attribute": "crop_size",
            "sizes": network.sizes,
            "step": 4,
            "batch": network.batch,
        }
    elif recipe == "valid areas":
        # mmdet's crop, in segmentors too: mmseg's has one size for all images.
        pipeline[index] = {"type": "mmdet.RandomCrop", "crop_size": network.sizes, "crop_type": "absolute_range"}
        cfg.model.data_preprocessor.type = f"mmsmlp.{cfg.model.data_preprocessor.type}"
    elif recipe in STARTS:
        crop["crop_size"] = (network.larger, network.larger)
    if segmentor and recipe not in ("one size", "random scales", "small start"):
        # The demo pads to its crops; others are padded to the largest image of the batch.
        cfg.model.data_preprocessor.update(size=None, size_divisor=4)
    if not segmentor and recipe.startswith("random sizes"):
        cfg.model.data_preprocessor.pad_size_divisor = 4


def _classifier_pipeline(network: Network, recipe: str, cfg: Config) -> None:
    """Scales and crops of a classifier's training."""
    pipeline = cfg.train_dataloader.dataset.pipeline
    index = next(i for i, t in enumerate(pipeline) if t["type"] == "RandomResizedCrop")
    crop = pipeline[index]
    if recipe == "one size":
        pipeline[index] = {"type": "RandomCrop", "crop_size": crop["scale"]}
    elif recipe.startswith("random sizes"):
        pipeline[index] = {
            "type": "DrawnPerBatch",
            "transform": dict(crop),
            "attribute": "scale",
            "sizes": network.sizes,
            "step": 4,
            "batch": network.batch,
            "square": True,  # a crop is stretched to the size drawn
        }
    elif recipe in STARTS:
        crop["scale"] = network.larger


_PIPELINES = {"mmdet": _dense_pipeline, "mmseg": _dense_pipeline, "mmpretrain": _classifier_pipeline}
