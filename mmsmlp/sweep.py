"""One checkpoint evaluated over input sizes and interpolations, by mmengine's Runner.

Two ways for a size to differ from training: *zoom* resizes the test images (larger objects, same scene), *extent*
shows wider scenes at the pixel size of training (same objects, more of them).
"""

from __future__ import annotations

import contextlib
import copy
import io
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmengine.runner import Runner

from mmsmlp.checkpoint import read_checkpoint
from mmsmlp.data.scenes import ClassSet, CocoSet, LabelMapSet, write_extent, write_symmetries
from mmsmlp.resize import DEFAULT_METHOD, check_method
from mmsmlp.running import find_checkpoint
from mmsmlp.tasks import class_name, find_task

KINDS = ("zoom", "extent")
# Transforms that set a size: their name -> the arguments that are sizes in pixels.
_SIZES = {"Resize": ("scale",), "ResizeEdge": ("scale",), "CenterCrop": ("crop_size",), "Pad": ("size",)}


@dataclass(frozen=True)
class Point:
    """One evaluation of a sweep.

    Attributes:
        kind (str): 'zoom' or 'extent'.
        factor (float): Size relative to the config's own test images.
        interpolation (str): Method that the axis weights are resized by.
        scenes (CocoSet | LabelMapSet | ClassSet): The images to evaluate on, with what is to be found in them.
        predictions (Path): What predictions are written to: the prefix of COCO result files, a folder of label maps,
            or a file of class scores, without its suffix.
    """

    kind: str
    factor: float
    interpolation: str
    scenes: CocoSet | LabelMapSet | ClassSet
    predictions: Path


class Sweep:
    """Evaluate one checkpoint at several zooms and extents, with several interpolations.

    Args:
        config (str | Path | Config): A detector's, segmentor's or classifier's config (:mod:`mmsmlp.tasks`).
        checkpoint (str | Path): A checkpoint, or a work directory whose latest one is taken.
        out (str | Path): Folder for the scenes, the predictions and the results.
        zooms (Sequence[float]): Factors that test images are resized by, on top of the config's own resizing.
        extents (Sequence[int]): Copies of a test image (of its middle, where a classifier's pipeline crops that) along
            each axis of a canvas; proposal and detection limits of a detector grow with their number.
        interpolations (Sequence[str]): Methods to compare. Defaults to the config's own.
        symmetries (int): Flips and rotations, 1 to 8, that every test image is zoomed under. Defaults to 1.

    Raises:
        ValueError: If an argument is invalid, the config is none of these, or the checkpoint cannot be read.
        FileNotFoundError: If the checkpoint or the test set does not exist.
    """

    def __init__(
        self,
        config: str | Path | Config,
        checkpoint: str | Path,
        out: str | Path,
        zooms: Sequence[float] = (),
        extents: Sequence[int] = (),
        interpolations: Sequence[str] = (),
        symmetries: int = 1,
    ):
        self.cfg = config if isinstance(config, Config) else Config.fromfile(config)
        self.out = Path(out).absolute()
        self.task = find_task(self.cfg)
        own = self.cfg.model.backbone.get("interpolation", DEFAULT_METHOD)
        self.interpolations = [check_method(method) for method in interpolations or [own]]
        if not zooms and not extents:
            raise ValueError("nothing to evaluate: give zooms, extents or both")
        if any(zoom <= 0 for zoom in zooms):
            raise ValueError(f"zooms must be positive, got {list(zooms)}")
        if any(not isinstance(extent, int) or extent < 1 for extent in extents):
            raise ValueError(f"extents must be positive integers, got {list(extents)}")
        if symmetries not in range(1, 9):
            raise ValueError(f"symmetries must be 1 to 8, got {symmetries!r}")
        self.zooms, self.extents, self.symmetries = list(zooms), list(extents), symmetries
        self.checkpoint = Path(find_checkpoint(checkpoint))
        with _quiet():
            self._content = read_checkpoint(self.checkpoint)
        self._logs = tempfile.TemporaryDirectory()  # the Runner's own logs are of no use here

    def points(self) -> Iterator[Point]:
        """Write the scenes of every size.

        Yields:
            Point: Each size with each interpolation.
        """
        sizes = []
        if self.zooms:
            scenes = write_symmetries(self.task.source, self.out / "scenes" / "zoom", self.symmetries)
            sizes += [("zoom", zoom, scenes) for zoom in self.zooms]
        for extent in self.extents:
            scenes = write_extent(self.task.tile, self.out / "scenes" / f"extent_{extent}", extent)
            sizes.append(("extent", extent, scenes))
        for kind, factor, scenes in sizes:
            for method in self.interpolations:
                prefix = self.out / "predictions" / f"{kind}_{factor:g}_{method}"
                yield Point(kind, factor, method, scenes, prefix)

    def evaluate(self, point: Point) -> dict:
        """Predict on a point's scenes and compute its row of the results.

        Returns:
            dict: ``kind``, ``factor``, ``interpolation``, ``seconds`` (wall time of the predictions), and the counts
                and accuracies of the task.
        """
        point.predictions.parent.mkdir(parents=True, exist_ok=True)
        cfg = self._config_of(point)
        with _quiet():
            runner = Runner.from_cfg(cfg)
            self._load(runner)
            start = time.perf_counter()
            tested = runner.test()
            seconds = time.perf_counter() - start
        row = {"kind": point.kind, "factor": point.factor, "interpolation": point.interpolation}
        return row | {"seconds": round(seconds, 2)} | self.task.row(cfg, point.scenes, point.predictions, tested)

    def summary(self, rows: list[dict]) -> dict:
        """What results.json holds: the rows, and what is needed to make them again."""
        meta = self._content.get("meta", {})
        return {
            "config": self.cfg.filename,
            "checkpoint": str(self.checkpoint),
            "iterations": meta.get("iter"),
            "train_seconds": _train_seconds(self._content),
            "seed": meta.get("seed"),
            "versions": versions(),
            "rows": rows,
        }

    def _load(self, runner: Runner) -> None:
        # Not by `load_from`, which is content with a checkpoint of another model: its accuracy would be a riddle.
        try:
            runner.load_checkpoint(str(self.checkpoint), map_location="cpu", strict=True)
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{self.checkpoint} does not fit {self.cfg.filename}: {reason[:300]}") from error

    def _config_of(self, point: Point) -> Config:
        """The config, changed to test one point."""
        cfg = copy.deepcopy(self.cfg)
        cfg.load_from, cfg.resume, cfg.log_level = None, False, "ERROR"
        cfg.work_dir = self._logs.name
        # A visualizer of the toolbox's name would outlive this sweep, with its folder.
        cfg.visualizer = {"type": "mmengine.Visualizer", "name": f"sweep_{id(self)}"}
        cfg.model.backbone.interpolation = point.interpolation
        images = 1 if point.kind == "zoom" else point.factor**2
        self.task.configure(cfg, point.scenes, point.predictions, images)
        pipeline = cfg.test_dataloader.dataset.pipeline
        (zoom_pipeline if point.kind == "zoom" else widen_pipeline)(pipeline, point.factor)
        return cfg


def zoom_pipeline(pipeline: list[dict], factor: float) -> None:
    """Multiply the sizes that a test pipeline resizes and crops images to, in place; resize if it does not.

    Args:
        pipeline (list[dict]): Transforms, the first of which loads the image.
        factor (float): Zoom relative to the pipeline as it is.
    """
    widen_pipeline(pipeline, factor)
    resizing = [t for t in pipeline if class_name(t["type"]) in ("Resize", "ResizeEdge")]
    for transform in resizing:
        if "scale_factor" in transform:
            given = transform["scale_factor"]
            both = given if isinstance(given, Sequence) else (given, given)
            transform["scale_factor"] = tuple(v * factor for v in both)
    if not resizing:
        pipeline.insert(1, {"type": "Resize", "scale_factor": float(factor), "keep_ratio": True})


def widen_pipeline(pipeline: list[dict], factor: float) -> None:
    """Multiply the sizes in pixels of a test pipeline, in place, so that wider scenes are neither shrunk nor cropped.

    Args:
        pipeline (list[dict]): Transforms.
        factor (float): How many times as wide the scenes are.
    """
    for transform in pipeline:
        for key in _SIZES.get(class_name(transform["type"]), ()):
            given = transform.get(key)
            if isinstance(given, Sequence):
                transform[key] = tuple(round(v * factor) for v in given)
            elif given is not None:
                transform[key] = round(given * factor)


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    import mmcv
    import mmengine
    import torch

    import mmsmlp

    toolboxes = [sys.modules[name] for name in ("mmdet", "mmseg", "mmpretrain") if name in sys.modules]
    return {module.__name__: str(module.__version__) for module in (mmsmlp, torch, np, mmengine, mmcv, *toolboxes)}


def _train_seconds(checkpoint: dict) -> float | None:
    """Seconds from step to step as mmengine's IterTimerHook recorded them, without the validations' predictions."""
    buffer = checkpoint.get("message_hub", {}).get("log_scalars", {}).get("train/time")
    return None if buffer is None else round(float(np.sum(buffer.data[0])), 1)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the toolboxes' banners from the terminal: the sweep shows its own progress."""
    nowhere = io.StringIO()  # never closed: loggers made inside keep it
    with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield
