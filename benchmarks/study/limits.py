"""A detector evaluated with other limits of proposals and detections, for its boxes alone."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from pycocotools.coco import COCO
from torch import nn

from mmsmlp.data.coco import load_coco
from mmsmlp.sweep import Point, Sweep
from mmsmlp.tasks import class_name
from study.causes import evaluate_coco


def limits(
    config: str | Path | Config,
    checkpoint: str | Path,
    extent: int,
    factors: Sequence[int],
    out: str | Path,
    interpolation: str | None = None,
) -> list[dict]:
    """Evaluate a two-stage detector's boxes at one extent with several limits of proposals and detections.

    Args:
        config (str | Path | Config): The detector's config; a mask head is left out.
        checkpoint (str | Path): A checkpoint, or a work directory whose latest one is taken.
        extent (int): Copies of a test image along each axis.
        factors (Sequence[int]): Multiples of the config's own ``nms_pre`` and ``max_per_img``, of the region proposal
            network and of the R-CNN; ``mmsmlp.sweep`` takes ``extent**2``.
        out (str | Path): Folder for the scenes and the predictions.
        interpolation (str, optional): Of the axis weights. Defaults to the config's own.

    Returns:
        list[dict]: For each factor the row of :meth:`mmsmlp.sweep.Sweep.evaluate` with ``limit_factor``, the limits
            ``nms_pre``, ``max_proposals`` and ``max_detections``, the number of ``proposals`` per image,
            ``proposal_recall``, the share of objects that they find at an IoU of 0.5 (COCO's AR at that IoU), and the
            paths ``annotations`` and ``detections`` that, with ``max_detections``, :func:`study.causes.split` takes.

    Raises:
        ValueError: If an argument is invalid, the model has no region proposal network, or the checkpoint does not fit.
        FileNotFoundError: If the checkpoint or the test set does not exist.
    """
    if not factors or any(not isinstance(factor, int) or factor < 1 for factor in factors):
        raise ValueError(f"factors must be positive integers, got {list(factors)}")
    methods = [interpolation] if interpolation else []
    sweep = _LimitSweep(boxes_only(config), checkpoint, out, extents=[extent], interpolations=methods)
    point = next(sweep.points())
    return [sweep.evaluate_limited(point, factor) for factor in factors]


def boxes_only(config: str | Path | Config) -> Config:
    """A detector's config for evaluating boxes alone: no mask head, no masks of the ground truth, no mask AP.

    Its checkpoints load strictly but for the mask head, by a hook. The boxes are those of the whole detector.

    Args:
        config (str | Path | Config): A two-stage detector's config.

    Returns:
        Config: A changed copy.

    Raises:
        ValueError: If the model has no region proposal network.
    """
    cfg = copy.deepcopy(config) if isinstance(config, Config) else Config.fromfile(config)
    if "rpn_head" not in cfg.model:
        raise ValueError(f"{cfg.filename} is no two-stage detector: its model has no rpn_head")
    cfg.model.roi_head.update(mask_head=None, mask_roi_extractor=None)
    for evaluator in cfg.test_evaluator if isinstance(cfg.test_evaluator, list) else [cfg.test_evaluator]:
        if "metric" in evaluator:
            evaluator.metric = "bbox"
    for transform in cfg.test_dataloader.dataset.pipeline:
        if class_name(transform.type) == "LoadAnnotations":
            transform.with_mask = False  # a wide scene's masks take gigabytes
    hook = {"type": "mmengine.DropMaskHead"}
    cfg.custom_hooks = [entry for entry in cfg.get("custom_hooks") or [] if entry != hook] + [hook]
    return cfg


@HOOKS.register_module()
class DropMaskHead(Hook):
    """Leave the mask head's weights out of a checkpoint that is loaded."""

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Remove them in place."""
        state = checkpoint.get("state_dict", checkpoint)
        for key in [key for key in state if key.startswith("roi_head.mask_head.")]:
            del state[key]


class _LimitSweep(Sweep):
    """A sweep that multiplies a detector's limits as it is told to, and looks at the proposals."""

    def evaluate_limited(self, point: Point, limit_factor: int) -> dict:
        """The row of :func:`limits` for one factor."""
        self._limit_factor = limit_factor
        prefix = point.predictions.with_name(f"{point.predictions.name}_limits_{limit_factor}")
        point = replace(point, predictions=prefix)
        test_cfg = self._config_of(point).model.test_cfg
        row = self.evaluate(point)
        return row | {
            "limit_factor": limit_factor,
            "nms_pre": test_cfg.rpn.nms_pre,
            "max_proposals": test_cfg.rpn.max_per_img,
            "max_detections": test_cfg.rcnn.max_per_img,
            "proposals": len(self._proposals) / row["images"],
            "proposal_recall": _recall(load_coco(point.scenes.ann_file), np.array(self._proposals)),
            "annotations": str(point.scenes.ann_file),
            "detections": f"{prefix}.bbox.json",
        }

    def _config_of(self, point: Point) -> Config:
        cfg = super()._config_of(point)
        cfg.model.test_cfg = copy.deepcopy(self.cfg.model.test_cfg)
        self.task.configure(cfg, point.scenes, point.predictions, self._limit_factor)
        return cfg

    def _load(self, runner: Runner) -> None:
        super()._load(runner)
        self._proposals = _record_proposals(runner.model)


def _record_proposals(model: nn.Module) -> list[list[float]]:
    """Let a detector append its proposals to a list: image, x, y, width, height in the image's pixels, score, class."""
    recorded, predict = [], model.rpn_head.predict

    # A forward hook would see the head's maps of scores, not the proposals that it makes of them.
    def predict_and_record(features, samples, rescale=False):
        predicted = predict(features, samples, rescale=rescale)
        for sample, proposals in zip(samples, predicted):
            scale = (1, 1) if rescale else sample.scale_factor
            boxes = (proposals.bboxes / proposals.bboxes.new_tensor([*scale, *scale])).tolist()
            for (left, top, right, bottom), score in zip(boxes, proposals.scores.tolist()):
                recorded.append([sample.img_id, left, top, right - left, bottom - top, score, 1])
        return predicted

    model.rpn_head.predict = predict_and_record
    return recorded


def _recall(coco: COCO, proposals: np.ndarray) -> float:
    """Share of objects, of any class, that proposals (number, 7) in COCO's array format find at an IoU of 0.5."""
    if not len(proposals):
        return 0.0
    evaluation = evaluate_coco(coco, proposals, len(proposals), classes=False)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.accumulate()
    return float(evaluation.eval["recall"].item())
