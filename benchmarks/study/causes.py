"""Why a detector loses accuracy: limits of proposals and detections, scores, localisation, objects never found.

:func:`split` takes one file of results apart as TIDE (Bolya et al., "TIDE: A General Toolbox for Identifying Object
Detection Errors", ECCV 2020) and COCO's analysis do: an oracle mends one kind of error, and what the AP gains is what
that kind cost. TIDE has one IoU threshold and takes away what stays wrong beside a mended detection; here the AP is
COCO's, over ten thresholds, and such duplicates stay. :func:`limits` evaluates a checkpoint again with other limits:
what was dropped before the results were written no oracle brings back. :func:`within` leaves the border of images out.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn

from mmsmlp.coco import average_precision, load_coco, write_coco
from mmsmlp.files import atomic_directory
from mmsmlp.sweep import Point, Sweep
from mmsmlp.tasks import class_name

# TIDE's thresholds: from an IoU of 0.5 on a detection finds an object, below 0.1 it is background.
FOREGROUND, BACKGROUND = 0.5, 0.1
MIN_SCORE = 0.05  # of the false positives that are counted


@dataclass(frozen=True)
class _Group:
    """The objects of one class in one image, crowds left out, and the detections of that class, best scores first."""

    objects: list[dict]
    found: list[dict]

    @property
    def ious(self) -> np.ndarray:
        """IoUs (detections, objects)."""
        shape = len(self.found), len(self.objects)
        boxes = [[entry["bbox"] for entry in entries] for entries in (self.found, self.objects)]
        return np.asarray(mask_utils.iou(*boxes, [0] * shape[1]) if all(shape) else np.zeros(shape))


def split(annotations: str | Path, detections: str | Path, limit: int) -> dict:
    """Take the box AP of one file of results apart.

    Args:
        annotations (str | Path): The ground truth, in COCO's format.
        detections (str | Path): COCO's result format, as a sweep writes to ``{predictions}.bbox.json``.
        limit (int): Detections of a class per image that count, the best-scored ones.

    Returns:
        dict: ``bbox_mAP`` and ``bbox_mAP_50`` in [0, 1], of :func:`mmsmlp.coco.average_precision`; ``restored``, what
            both gain by each oracle. ``localisation``: of the detections with the same best object, at an IoU of 0.1 or
            more, the best-scored one gets the object's box; the others stay as they are, duplicates. ``scores``: the
            detections are ranked by their IoU with the object that they are assigned to, one per object, so that at
            every threshold the true positives come above the false ones. ``both``: the second after the first; what is
            missing still are objects without a detection.
            ``objects`` and ``detections``, numbers; ``missed``, the share of objects that no detection overlaps by an
            IoU of 0.5, whatever its score. Of the detections with a score above 0.05: ``true_positives``, their number
            at an IoU of 0.5, and ``false_positives``: ``duplicate``, of an object found already, ``localisation``, with
            an IoU of 0.1 to 0.5 with the best object, and ``background``; objects of another class do not count.

    Raises:
        ValueError: If the limit is not positive, or the ground truth holds no objects.
        OSError: If one of the files cannot be read.
    """
    if limit < 1:
        raise ValueError(f"limit must be a positive number of detections, got {limit!r}")
    coco = load_coco(annotations)
    groups = _groups(coco, json.loads(Path(detections).read_text()), limit)
    localised = [_localised(group) for group in groups]
    oracles = {
        "localisation": localised,
        "scores": [_ranked(group) for group in groups],
        "both": [_ranked(group) for group in localised],
    }
    own = _precision(coco, groups, limit)
    restored = {name: _precision(coco, mended, limit) for name, mended in oracles.items()}
    return {
        **own,
        "restored": {name: {key: value[key] - own[key] for key in own} for name, value in restored.items()},
        "objects": sum(len(group.objects) for group in groups),
        "detections": sum(len(group.found) for group in groups),
        **_counts(coco, groups, limit),
    }


def within(
    annotations: str | Path, detections: str | Path, margin: tuple[int, int], out: str | Path
) -> tuple[Path, Path]:
    """Leave out the objects and the detections near an image's border, as a test on a padded image would.

    Args:
        annotations (str | Path): The ground truth, in COCO's format.
        detections (str | Path): COCO's result format.
        margin (tuple[int, int]): Pixels that the centre of a box is away from the sides, and from top and bottom.
        out (str | Path): Folder for the two files; replaced if it exists.

    Returns:
        tuple[Path, Path]: Both files, for :func:`split`.

    Raises:
        OSError: If one of the files cannot be read or written.
    """
    coco = load_coco(annotations)

    def inside(entry: dict) -> bool:
        image, (left, top, width, height) = coco.imgs[entry["image_id"]], entry["bbox"]
        places = (left + width / 2, image["width"]), (top + height / 2, image["height"])
        return all(pixels <= centre < size - pixels for (centre, size), pixels in zip(places, margin))

    found = json.loads(Path(detections).read_text())
    with atomic_directory(out, overwrite=True) as folder:
        objects = [entry for entry in coco.dataset["annotations"] if inside(entry)]
        write_coco(folder / "annotations.json", coco.dataset["images"], objects, coco.dataset["categories"])
        (folder / "detections.json").write_text(json.dumps([entry for entry in found if inside(entry)]))
    return Path(out, "annotations.json"), Path(out, "detections.json")


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
            paths ``annotations`` and ``detections`` that, with ``max_detections``, :func:`split` takes.

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


def _groups(coco: COCO, detections: list[dict], limit: int) -> list[_Group]:
    """Objects and the best ``limit`` detections, by image and class."""
    groups = {(image, category): _Group([], []) for image in sorted(coco.imgs) for category in sorted(coco.cats)}
    for entry in coco.anns.values():
        if not entry.get("iscrowd", 0):
            groups[entry["image_id"], entry["category_id"]].objects.append(entry)
    for entry in sorted(detections, key=lambda entry: -entry["score"]):  # stable, as COCOeval's sorting
        group = groups.get((entry["image_id"], entry["category_id"]))
        if group is None:
            named = f"image {entry['image_id']}, category {entry['category_id']}"
            raise ValueError(f"a detection is of {named}, which the ground truth does not list")
        if len(group.found) < limit:
            group.found.append(entry)
    return list(groups.values())


def _localised(group: _Group) -> _Group:
    """The detections with the boxes of the objects that they are about, once per object."""
    found, taken = list(group.found), set()
    for index, ious in enumerate(group.ious):
        best = int(ious.argmax()) if len(ious) else None
        if best is not None and ious[best] >= BACKGROUND and best not in taken:
            taken.add(best)
            found[index] = {**found[index], "bbox": group.objects[best]["bbox"]}
    return _Group(group.objects, found)


def _ranked(group: _Group) -> _Group:
    """The detections with the best possible scores, sorted by them.

    Assigned are, again and again, the detection and the object with the largest IoU of those that are left. With that
    IoU as score COCO's matching, which goes through the detections by score, makes the same pairs at every threshold.
    """
    ious = group.ious
    scores, taken = np.zeros(len(group.found)), set()
    pairs = np.argwhere(ious > 0)
    for index, target in pairs[np.argsort(-ious[ious > 0], kind="stable")].tolist():
        if not scores[index] and target not in taken:
            taken.add(target)
            scores[index] = ious[index, target]
    order = np.argsort(-scores, kind="stable")
    return _Group(group.objects, [{**group.found[index], "score": float(scores[index])} for index in order])


def _precision(coco: COCO, groups: list[_Group], limit: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder, "results.json")
        results.write_text(json.dumps([entry for group in groups for entry in group.found]))
        precision = average_precision(coco, results, "bbox", limit)
    return dict(zip(("bbox_mAP", "bbox_mAP_50"), precision))


def _counts(coco: COCO, groups: list[_Group], limit: int) -> dict:
    """The counts of :func:`split`."""
    found = [entry for group in groups for entry in group.found]
    ious = [group.ious for group in groups]
    best = np.concatenate([own.max(1, initial=0) for own in ious])  # of each detection
    covered = np.concatenate([own.max(0, initial=0) for own in ious])  # of each object
    matched, ignored = np.zeros((2, len(found)), bool)
    if found:
        # loadRes numbers the detections from 1 on, in their order.
        for image in filter(None, _evaluate(coco, found, limit).evalImgs):
            numbers = np.array(image["dtIds"], int) - 1
            matched[numbers], ignored[numbers] = image["dtMatches"][0] > 0, image["dtIgnore"][0]
    counted = np.array([entry["score"] > MIN_SCORE for entry in found], bool) & ~ignored
    wrong = counted & ~matched
    return {
        "missed": float((covered < FOREGROUND).mean()),
        "true_positives": int((counted & matched).sum()),
        "false_positives": {
            "duplicate": int((wrong & (best >= FOREGROUND)).sum()),
            "localisation": int((wrong & (best >= BACKGROUND) & (best < FOREGROUND)).sum()),
            "background": int((wrong & (best < BACKGROUND)).sum()),
        },
    }


def _recall(coco: COCO, proposals: np.ndarray) -> float:
    """Share of objects, of any class, that proposals (number, 7) in COCO's array format find at an IoU of 0.5."""
    if not len(proposals):
        return 0.0
    evaluation = _evaluate(coco, proposals, len(proposals), classes=False)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.accumulate()
    return float(evaluation.eval["recall"].item())


def _evaluate(coco: COCO, found: list[dict] | np.ndarray, limit: int, classes: bool = True) -> COCOeval:
    """COCO's matching at an IoU of 0.5, objects of all sizes."""
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(coco, coco.loadRes(found), "bbox")
        evaluation.params.useCats = int(classes)
        evaluation.params.iouThrs = np.array([FOREGROUND])
        evaluation.params.areaRng, evaluation.params.areaRngLbl = evaluation.params.areaRng[:1], ["all"]
        evaluation.params.maxDets = [limit]
        evaluation.evaluate()
    return evaluation
