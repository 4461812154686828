"""Why a detector loses accuracy: limits of proposals and detections, scores, localisation, objects never found.

:func:`split` takes one file of results apart as TIDE (Bolya et al., "TIDE: A General Toolbox for Identifying Object
Detection Errors", ECCV 2020) and COCO's analysis do: an oracle mends one kind of error, and what the AP gains is what
that kind cost. TIDE has one IoU threshold and takes away what stays wrong beside a mended detection; here the AP is
COCO's, over ten thresholds, and such duplicates stay. What was dropped before the results were written no oracle brings
back: that is for ``study.limits``. :func:`within` leaves the border of images out.
"""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mmsmlp.data.coco import average_precision, load_coco, write_coco
from mmsmlp.files import atomic_directory

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
        dict: ``bbox_mAP`` and ``bbox_mAP_50`` in [0, 1], of :func:`mmsmlp.data.coco.average_precision`; ``restored``,
            what both gain by each oracle. ``localisation``: of the detections with the same best object, at an IoU of
            0.1 or more, the best-scored one gets the object's box; the others stay as they are, duplicates. ``scores``:
            the detections are ranked by their IoU with the object that they are assigned to, one per object, so that at
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
        for image in filter(None, evaluate_coco(coco, found, limit).evalImgs):
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


def evaluate_coco(coco: COCO, found: list[dict] | np.ndarray, limit: int, classes: bool = True) -> COCOeval:
    """COCO's matching at an IoU of 0.5, objects of all sizes."""
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(coco, coco.loadRes(found), "bbox")
        evaluation.params.useCats = int(classes)
        evaluation.params.iouThrs = np.array([FOREGROUND])
        evaluation.params.areaRng, evaluation.params.areaRngLbl = evaluation.params.areaRng[:1], ["all"]
        evaluation.params.maxDets = [limit]
        evaluation.evaluate()
    return evaluation
