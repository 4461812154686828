"""One checkpoint of the study at every size with every answer, by the sweep of `tools/sweep.py`."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.runner import Runner

from mmsmlp.data.scenes import write_extent, write_symmetries
from mmsmlp.files import atomic_file
from mmsmlp.resize import METHODS
from mmsmlp.sweep import Point, Sweep
from mmsmlp.tasks import class_name, find_task
from study.limits import boxes_only
from study.plan import ROOT, Network, answers_of
from study.rivals import RIVALS, use_rival
from study.training import fingerprint_of, folder_of

# Flips and rotations of the coins; the classifier's 360 patches are enough as they are.
_SYMMETRIES = {"Mask R-CNN": 8, "UperNet": 8, "classifier": 1}


class StudySweep(Sweep):
    """A sweep that also knows the other answers, and canvases of exactly an image's size (kind ``'grid'``)."""

    def evaluate(self, point: Point) -> dict:
        """The row of a point; its ``interpolation`` may be one of ``study.rivals.RIVALS``, too."""
        self._answer = point.interpolation
        return super().evaluate(point)

    def _config_of(self, point: Point) -> Config:
        kind = "extent" if point.kind == "extent" else "zoom"
        method = point.interpolation if point.interpolation in METHODS else "exact"
        cfg = super()._config_of(Point(kind, point.factor, method, point.scenes, point.predictions))
        if point.kind == "grid":
            _pad_nothing(cfg.model.data_preprocessor)
        return cfg

    def _load(self, runner: Runner) -> None:
        super()._load(runner)
        if self._answer in RIVALS:
            runner.model.backbone = use_rival(runner.model.backbone, self._answer)


def write_scenes(network: Network, sizes: list[tuple[str, float]], out: Path) -> dict:
    """Write the images of every size, once for all checkpoints of a network.

    Args:
        network (Network): Whose test set is shown.
        sizes (list[tuple[str, float]]): Kinds and factors.
        out (Path): Folder of the study.

    Returns:
        dict: (Kind, factor) -> the set of images, as a :class:`mmsmlp.sweep.Point` has it.
    """
    task = find_task(evaluated_config(network, "random scales"))
    folder = scenes_folder(network, out)
    zoomed = write_symmetries(task.source, folder / "zoom", _SYMMETRIES[network.name])
    return {
        (kind, factor): write_extent(task.tile, folder / f"extent_{factor}", factor) if kind == "extent" else zoomed
        for kind, factor in sizes
    }


def evaluate(network: Network, recipe: str, seed: int, scenes: dict, out: Path) -> list[dict]:
    """Rows of every size and answer of a checkpoint: of now, or of before if that is the same checkpoint.

    They are written after each row, so that an interrupted evaluation goes on where it was.

    Args:
        network (Network): What was trained.
        recipe (str): How.
        seed (int): Its seed.
        scenes (dict): Of :func:`write_scenes`.
        out (Path): Folder of the study.

    Returns:
        list[dict]: Rows of :meth:`mmsmlp.sweep.Sweep.evaluate`, with ``network``, ``recipe`` and ``seed``.
    """
    trained = folder_of(network, recipe, seed, out)
    folder = rows_file(network, recipe, seed, out).parent
    rows = known_rows(network, recipe, seed, out)
    missing = missing_points(network, recipe, list(scenes), rows)
    if not missing:
        return rows
    torch.set_num_threads(1)
    sweep = StudySweep(evaluated_config(network, recipe), trained / "final.pth", folder, zooms=[1])
    for kind, factor, answer in missing:
        prefix = predictions_of(network, recipe, seed, out, kind, factor, answer)
        row = sweep.evaluate(Point(kind, factor, answer, scenes[kind, factor], prefix))
        rows.append({"network": network.name, "recipe": recipe, "seed": seed, **row})
        with atomic_file(folder / "rows.json") as new:
            new.write_text(json.dumps({"fingerprint": fingerprint_of(trained), "rows": rows}))
    return rows


def evaluate_job(network: Network, scenes: dict, out: Path, job: tuple[str, int]) -> None:
    """:func:`evaluate` for a recipe and a seed, in a process of its own."""
    logging.getLogger("mmengine").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")  # of the toolboxes, about their own configs
    evaluate(network, *job, scenes, out)


def scenes_folder(network: Network, out: Path) -> Path:
    """Where :func:`write_scenes` writes, a folder for each size."""
    return (out / "scenes" / network.name.lower().replace(" ", "-")).absolute()


def rows_file(network: Network, recipe: str, seed: int, out: Path) -> Path:
    """Where the rows of a checkpoint are written."""
    trained = folder_of(network, recipe, seed, out)
    return out / "evaluations" / trained.relative_to((out / "trainings").absolute()) / "rows.json"


def predictions_of(network: Network, recipe: str, seed: int, out: Path, kind: str, factor: float, answer: str) -> Path:
    """The prefix of what a checkpoint predicts at a size, as a :class:`mmsmlp.sweep.Point` has it."""
    folder = rows_file(network, recipe, seed, out).parent.absolute() / "predictions"
    return folder / f"{kind}_{factor:.4g}_{answer}"


def known_rows(network: Network, recipe: str, seed: int, out: Path) -> list[dict]:
    """Rows written before for the checkpoint that is there now."""
    file = rows_file(network, recipe, seed, out)
    if not file.exists():
        return []
    known = json.loads(file.read_text())
    return known["rows"] if known["fingerprint"] == fingerprint_of(folder_of(network, recipe, seed, out)) else []


def missing_points(network: Network, recipe: str, sizes: list[tuple], rows: list[dict]) -> list[tuple[str, float, str]]:
    """Kind, factor and answer of the points that a checkpoint is to be evaluated at, and is not in ``rows``."""
    done = {(r["kind"], r["factor"], r["interpolation"]) for r in rows}
    wanted = [(k, f, answer) for k, f in sizes for answer in answers_of(network, recipe, k, f)]
    return [point for point in wanted if point not in done]


def evaluated_config(network: Network, recipe: str) -> Config:
    """The config that a recipe's checkpoints are tested with: the demo's, with what the recipe changed in the model.

    Detectors are tested for boxes only: pasting the masks of hundreds of coins takes most of the time of a wide scene.
    """
    cfg = Config.fromfile(network.config)
    dataset = cfg.test_dataloader.dataset
    dataset.data_root = str(ROOT / dataset.data_root) + "/"
    if recipe == "valid areas":
        cfg.model.data_preprocessor.type = f"mmsmlp.{class_name(cfg.model.data_preprocessor.type)}"
    if recipe == "tuned, re-anchored":
        cfg.model.backbone.img_size = network.larger
    return boxes_only(cfg) if "roi_head" in cfg.model else cfg


def _pad_nothing(preprocessor: dict) -> None:
    if "pad_size_divisor" in preprocessor:
        preprocessor.pad_size_divisor = 1
    if "size_divisor" in preprocessor.get("test_cfg", {}):
        preprocessor.test_cfg.size_divisor = 4  # mmseg stretches logits of this stride
