"""One checkpoint of a detector, evaluated over input sizes and interpolations, by mmengine's Runner.

Two ways for a size to differ from training: *zoom* resizes the test images (larger objects, same scene), *extent*
shows wider scenes at the pixel size of training (same objects, more of them).
"""

from __future__ import annotations

import contextlib
import copy
import io
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmengine.runner import CheckpointLoader, Runner, find_latest_checkpoint

from mmsmlp.coco import average_precision, load_coco
from mmsmlp.resize import check_method
from mmsmlp.scenes import CocoSet, write_extent, write_symmetries

KINDS = ("zoom", "extent")


@dataclass(frozen=True)
class Point:
    """One evaluation of a sweep.

    Attributes:
        kind (str): 'zoom' or 'extent'.
        factor (float): Size relative to the config's own test images.
        interpolation (str): Method that the axis weights are resized by.
        scenes (CocoSet): The images and objects to evaluate on.
        predictions (Path): Prefix of the files that predictions are written to, in COCO's result format.
    """

    kind: str
    factor: float
    interpolation: str
    scenes: CocoSet
    predictions: Path


class Sweep:
    """Evaluate one checkpoint at several zooms and extents, with several interpolations.

    Args:
        config (str | Path | Config): A detection config with a COCO-format test set.
        checkpoint (str | Path): A checkpoint, or a work directory whose latest one is taken.
        out (str | Path): Folder for the scenes, the predictions and the results.
        zooms (Sequence[float]): Factors that test images are resized by, on top of the config's own resizing.
        extents (Sequence[int]): Copies of a test image along each axis of a canvas; proposal and detection limits
            grow with their number.
        interpolations (Sequence[str]): Methods to compare. Defaults to the config's own.
        symmetries (int): Flips and rotations, 1 to 8, that every test image is zoomed under. Defaults to 1.

    Raises:
        ValueError: If an argument is invalid, or the config is not a detector's with a COCO-format test set.
        FileNotFoundError: If the checkpoint or the annotations do not exist.
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
        self.source = _test_set(self.cfg)
        own = self.cfg.model.backbone.get("interpolation", "exact")
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
        self.checkpoint = _checkpoint_file(checkpoint)
        self._logs = tempfile.TemporaryDirectory()  # the Runner's own logs are of no use here

    def points(self) -> Iterator[Point]:
        """Write the scenes of every size.

        Yields:
            Point: Each size with each interpolation.
        """
        sizes = []
        if self.zooms:
            scenes = write_symmetries(self.source, self.out / "scenes" / "zoom", self.symmetries)
            sizes += [("zoom", zoom, scenes) for zoom in self.zooms]
        for extent in self.extents:
            scenes = write_extent(self.source, self.out / "scenes" / f"extent_{extent}", extent)
            sizes.append(("extent", extent, scenes))
        for kind, factor, scenes in sizes:
            for method in self.interpolations:
                prefix = self.out / "predictions" / f"{kind}_{factor:g}_{method}"
                yield Point(kind, factor, method, scenes, prefix)

    def evaluate(self, point: Point) -> dict:
        """Predict on a point's scenes and compute its row of the results.

        Returns:
            dict: ``kind``, ``factor``, ``interpolation``, ``images``, ``objects``, ``seconds`` (wall time of the
                predictions), and ``bbox_mAP``, ``bbox_mAP_50`` and, for a model with masks, ``segm_mAP``,
                ``segm_mAP_50``, in [0, 1].
        """
        point.predictions.parent.mkdir(parents=True, exist_ok=True)
        cfg = self._config_of(point)
        with _quiet():
            runner = Runner.from_cfg(cfg)
            self._load(runner)
            start = time.perf_counter()
            runner.test()
            seconds = time.perf_counter() - start
        coco = load_coco(point.scenes.ann_file)
        row = {"kind": point.kind, "factor": point.factor, "interpolation": point.interpolation}
        row |= {"images": len(coco.imgs), "objects": len(coco.anns), "seconds": round(seconds, 2)}
        for metric in cfg.test_evaluator.metric:
            results = Path(f"{point.predictions}.{metric}.json")
            precision = average_precision(coco, results, metric, _detection_limit(cfg))
            row |= {f"{metric}_mAP": precision[0], f"{metric}_mAP_50": precision[1]}
        return row

    def summary(self, rows: list[dict]) -> dict:
        """What results.json holds: the rows, and what is needed to make them again."""
        with _quiet():
            checkpoint = CheckpointLoader.load_checkpoint(str(self.checkpoint), map_location="cpu")
        meta = checkpoint.get("meta", {})
        return {
            "config": self.cfg.filename,
            "checkpoint": str(self.checkpoint),
            "iterations": meta.get("iter"),
            "train_seconds": _train_seconds(checkpoint),
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
        dataset = cfg.test_dataloader.dataset
        dataset.data_root = ""
        dataset.ann_file = str(point.scenes.ann_file)
        dataset.data_prefix = {"img": str(point.scenes.images)}
        cfg.test_evaluator = {
            "type": "mmdet.CocoMetric",
            "ann_file": str(point.scenes.ann_file),
            "metric": _metrics(self.cfg),
            "format_only": True,
            "outfile_prefix": str(point.predictions),
        }
        if point.kind == "zoom":
            zoom_pipeline(dataset.pipeline, point.factor)
        else:
            _raise_limits(cfg.model.test_cfg, point.factor**2)
        return cfg


def zoom_pipeline(pipeline: list[dict], factor: float) -> None:
    """Multiply the sizes that a test pipeline resizes images to, in place; add a resizing if there is none.

    Args:
        pipeline (list[dict]): Transforms, the first of which loads the image.
        factor (float): Zoom relative to the pipeline as it is.
    """
    found = False
    for transform in pipeline:
        if _class_name(transform["type"]) == "Resize":
            found = True
            key = "scale" if "scale" in transform else "scale_factor"
            given = transform[key]
            both = given if isinstance(given, Sequence) else (given, given)
            transform[key] = tuple(round(v * factor) if key == "scale" else v * factor for v in both)
    if not found:
        pipeline.insert(1, {"type": "Resize", "scale_factor": factor, "keep_ratio": True})


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    import mmcv
    import mmdet
    import mmengine
    import torch

    import mmsmlp

    modules = (mmsmlp, torch, np, mmengine, mmcv, mmdet)
    return {module.__name__: str(module.__version__) for module in modules}


def _test_set(cfg: Config) -> CocoSet:
    dataset = cfg.get("test_dataloader", {}).get("dataset", {})
    backbone = cfg.get("model", {}).get("backbone", {}).get("type")
    if not (
        cfg.get("default_scope") == "mmdet"
        and dataset.get("ann_file", "").endswith(".json")
        and _class_name(backbone).lower() == "smlpnet"
    ):
        raise ValueError(
            f"{cfg.filename} is not a detection config with an SMLPNet backbone and a COCO-format test set "
            "(default_scope 'mmdet', test_dataloader.dataset.ann_file a .json file): nothing else can be swept"
        )
    root = dataset.get("data_root") or ""
    ann_file = Path(root, dataset.ann_file).absolute()
    if not ann_file.is_file():
        raise FileNotFoundError(f"the test set's annotations {ann_file} do not exist: make or download the set first")
    return CocoSet(ann_file, Path(root, dataset.data_prefix.img).absolute())


def _class_name(config_type: str | type) -> str:
    """The name of a class that a config names by itself or, with or without a scope, by a string."""
    return getattr(config_type, "__name__", str(config_type)).rpartition(".")[2]


def _checkpoint_file(checkpoint: str | Path) -> Path:
    path = Path(checkpoint)
    if path.is_dir():
        latest = find_latest_checkpoint(str(path))
        if latest is None:
            raise FileNotFoundError(f"the work directory {path} holds no checkpoint: train first")
        path = Path(latest)
    if not path.is_file():
        raise FileNotFoundError(f"the checkpoint {path} does not exist")
    return path.absolute()


def _metrics(cfg: Config) -> list[str]:
    metric = cfg.test_evaluator.get("metric", "bbox")
    return [metric] if isinstance(metric, str) else list(metric)


def _raise_limits(test_cfg: dict, factor: int) -> None:
    """Let a detector keep ``factor`` times as many proposals and detections, in place."""
    for key, value in test_cfg.items():
        if isinstance(value, dict):
            _raise_limits(value, factor)
        elif key in ("max_per_img", "nms_pre"):
            test_cfg[key] = value * factor


def _detection_limit(cfg: Config) -> int:
    test_cfg = cfg.model.test_cfg
    return test_cfg.get("rcnn", test_cfg).max_per_img


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
