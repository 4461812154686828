"""Damaged images and annotations in short trainings: what each toolbox does, with our backbone and with its own."""

from __future__ import annotations

import copy
import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from PIL import Image

from mmsmlp.coins import write_coins
from stress.loading import silence
from stress.rows import Outcome

ROOT = Path(__file__).parents[2]
_STEPS = 2
_CONFIGS = {
    "mmdet": "mask-rcnn_smlpnet-mini_coins.py",
    "mmseg": "upernet_smlpnet-mini_coins.py",
    "mmpretrain": "smlpnet-mini_photos.py",
}


def bad_data(tries: int, seed: int, folder: Path) -> Outcome:
    """Train with each kind of bad data twice; both have to end as is known, and trained weights to be finite."""
    warnings.filterwarnings("ignore")
    silence()
    notes = []
    cases = list(CASES.items())
    cases = cases[:: max(len(cases) // tries, 1)][:tries]
    for number, (name, (toolbox, damage, end)) in enumerate(cases):
        data = folder / f"data{number}"
        ends = {}
        options = _write(toolbox, data, damage)
        for own in (False, True):
            ends[own] = _train(toolbox, own, data, options, seed, folder / f"{number}_{own}")
        print(f"measured: {toolbox}, {name}: {ends[True]}")
        if {told.partition(":")[0] for told in ends.values()} != {end}:
            notes.append(
                f"{toolbox}, {name}: {ends[True]}; with the toolbox's own backbone: {ends[False]}; known: {end}"
            )
    return Outcome(len(cases), len(notes), notes=tuple(notes))


def _train(toolbox: str, own: bool, data: Path, options: dict, seed: int, work_dir: Path) -> str:
    """How a training of a few steps ends: 'trained', 'not finite', or the error's type and first line."""
    try:
        runner = Runner.from_cfg(_config(toolbox, own, data, options, seed, work_dir))
        logging.disable(logging.CRITICAL)
        runner.train()
    except Exception as error:  # whatever the toolbox raises is what is asked
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
    finally:
        logging.disable(logging.NOTSET)
    finite = all(bool(torch.isfinite(p).all()) for p in runner.model.parameters())
    return "trained" if finite else "not finite"


def _config(toolbox: str, own: bool, data: Path, options: dict, seed: int, work_dir: Path) -> Config:
    cfg = Config.fromfile(ROOT / "configs/demo" / _CONFIGS[toolbox])
    init_default_scope(toolbox)
    if not own:
        cfg.model.backbone = {"type": "ResNet", "depth": 18, "norm_eval": False, "out_indices": (0, 1, 2, 3)}
        channels = [64, 128, 256, 512]
        if toolbox == "mmdet":
            cfg.model.neck.in_channels = channels
        elif toolbox == "mmseg":
            cfg.model.decode_head.in_channels = channels
        else:
            cfg.model.backbone.out_indices = (3,)
            cfg.model.head.in_channels = channels[-1]
    cfg.train_dataloader.batch_size = 2
    cfg.train_dataloader.dataset.data_root = str(data)
    cfg.merge_from_dict(copy.deepcopy(options))
    for part in ("val", "test"):
        for name in (f"{part}_dataloader", f"{part}_evaluator", f"{part}_cfg"):
            cfg[name] = None
    cfg.train_cfg.max_iters = _STEPS
    cfg.train_cfg.val_interval = 10 * _STEPS
    cfg.default_hooks.pop("visualization")
    cfg.work_dir, cfg.experiment_name, cfg.log_level = str(work_dir), work_dir.name, "CRITICAL"
    cfg.randomness = {"seed": seed}
    return cfg


def _write(toolbox: str, data: Path, damage: Callable[[Path], dict | None]) -> dict:
    """Write a small set and damage it; returns changes to the config."""
    if toolbox == "mmpretrain":
        random = np.random.default_rng(0)
        for name in ("a", "b"):
            path = data / f"train/{name}/{name}.png"
            path.parent.mkdir(parents=True)
            Image.fromarray(random.integers(0, 256, (80, 80, 3), np.uint8)).save(path)
    else:
        write_coins(data)
    return damage(data) or {}


def _half_image(data: Path) -> None:
    path = next(iter(sorted(data.rglob("train/**/*.png"), key=lambda p: "labels" in p.parts)))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _no_image(data: Path) -> None:
    next(iter(sorted(data.rglob("train/**/*.png"), key=lambda p: "labels" in p.parts))).write_bytes(b"no image")


def _annotations(data: Path) -> Path:
    return data / "annotations/instances_train.json"


def _changed(change: Callable[[dict], None]) -> Callable[[Path], None]:
    def damage(data: Path) -> None:
        content = json.loads(_annotations(data).read_text())
        change(content)
        _annotations(data).write_text(json.dumps(content))

    return damage


def _outside(content: dict) -> None:
    for annotation in content["annotations"]:
        annotation["bbox"][0] += 10_000


def _labels(value: int) -> Callable[[Path], None]:
    def damage(data: Path) -> None:
        path = data / "labels/train/coins.png"
        labels = np.array(Image.open(path))
        Image.fromarray(np.where(labels > -1, value, labels).astype(np.uint8)).save(path)

    return damage


def _more_classes(data: Path) -> dict:
    def change(content: dict) -> None:
        content["categories"] += [{"id": 2, "name": "note"}, {"id": 3, "name": "cheque"}]
        for annotation in content["annotations"]:
            annotation["category_id"] = 3

    _changed(change)(data)
    return {"train_dataloader.dataset.metainfo": {"classes": ("coin", "note", "cheque")}}


def _listed(text: str) -> Callable[[Path], dict]:
    def damage(data: Path) -> dict:
        (data / "list.txt").write_text(text)
        return {"train_dataloader.dataset.ann_file": "list.txt"}

    return damage


def _without_objects(damage: Callable[[Path], None]) -> Callable[[Path], dict]:
    """Mmdet's RandomCrop skips crops without objects, a thousand times if it has to, unless it is told not to."""

    def damaged(data: Path) -> dict:
        damage(data)
        return {"train_dataloader.dataset.pipeline.3.allow_negative_crop": True}

    return damaged


# Toolbox, damage, and how the training ends: what both sets of packages were seen to do.
CASES: dict[str, tuple[str, Callable[[Path], dict | None], str]] = {
    "nothing bad": ("mmdet", lambda data: None, "trained"),
    "nothing bad, labelled": ("mmseg", lambda data: None, "trained"),
    "nothing bad of a class": ("mmpretrain", lambda data: None, "trained"),
    "half an image": ("mmdet", _half_image, "AssertionError"),
    "no image": ("mmdet", _no_image, "AssertionError"),
    "an empty annotation file": ("mmdet", lambda data: _annotations(data).write_text("") and None, "JSONDecodeError"),
    "annotations of no image": (
        "mmdet",
        _changed(lambda content: content.update(images=[], annotations=[])),
        "ValueError",
    ),
    "boxes outside of the image": ("mmdet", _without_objects(_changed(_outside)), "trained"),
    "no objects in a whole batch": (
        "mmdet",
        _without_objects(_changed(lambda content: content.update(annotations=[]))),
        "trained",
    ),
    "a category that is not listed": (
        "mmdet",
        _without_objects(_changed(lambda content: [a.update(category_id=99) for a in content["annotations"]])),
        "trained",
    ),
    "more classes than the head has": ("mmdet", _more_classes, "IndexError"),
    "half an image, labelled": ("mmseg", _half_image, "AssertionError"),
    "an empty label file": (
        "mmseg",
        lambda data: (data / "labels/train/coins.png").write_bytes(b"") and None,
        "UnidentifiedImageError",
    ),
    "background only": ("mmseg", _labels(0), "trained"),
    "everything ignored": ("mmseg", _labels(255), "trained"),
    "a label out of range": ("mmseg", _labels(7), "IndexError"),
    "half an image of a class": ("mmpretrain", _half_image, "AssertionError"),
    "an empty list": ("mmpretrain", _listed(""), "ValueError"),
    "a class out of range": ("mmpretrain", _listed("a/a.png 0\nb/b.png 99\n"), "AssertionError"),
}
