"""Annotations in COCO's detection format (https://cocodataset.org/#format-data): reading, writing, evaluating."""

import contextlib
import io
import json
from pathlib import Path

import numpy as np

try:
    from pycocotools import mask as mask_utils
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval
except ModuleNotFoundError as error:
    raise ImportError(f"mmsmlp.data.coco needs pycocotools ({error}): pip install -e '.[demo]' in its clone") from error


def coco_annotation(mask: np.ndarray, image_id: int, annotation_id: int, category_id: int) -> dict:
    """Describes one object by its mask.

    The mask is stored as compressed run-length encoding (RLE): pycocotools and mmdet's
    ``LoadAnnotations(with_mask=True, poly2mask=True)`` give exactly the same mask back, whatever its shape. Polygons
    would not do for masks with holes.

    Args:
        mask: (H, W) bool, true on the object's visible pixels.
        image_id: the ``id`` of the image in the same file.
        annotation_id: unique in the file, from 1 on: COCOeval takes a match with annotation 0 for no match.
        category_id: the ``id`` of the category in the same file.

    Returns:
        An entry of COCO's ``annotations``, plain JSON types only: ``bbox`` is [x, y, width, height] in pixels and
        encloses the mask tightly, ``area`` is the number of the mask's pixels, ``iscrowd`` is 0.

    Raises:
        ValueError: the mask is not 2-D, not bool or empty, or the annotation id is below 1.
    """
    mask = np.asarray(mask)
    if mask.ndim != 2 or mask.dtype != np.bool_:
        raise ValueError(f"mask must be (H, W) bool, got shape {mask.shape}, dtype {mask.dtype}")
    if not mask.any():
        raise ValueError(f"the mask of annotation {annotation_id} is empty: leave the object out")
    if annotation_id < 1:
        raise ValueError(f"annotation_id must be 1 or more, got {annotation_id}")
    rle = mask_utils.encode(np.asfortranarray(mask, dtype=np.uint8))
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    x, y = int(columns[0]), int(rows[0])
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y],
        "area": int(mask.sum()),
        "iscrowd": 0,
        "segmentation": {"size": list(mask.shape), "counts": rle["counts"].decode("ascii")},
    }


def write_coco(
    path: str | Path,
    images: list[dict],
    annotations: list[dict],
    categories: list[dict],
    info: dict | None = None,
    licenses: list[dict] | None = None,
) -> Path:
    """Writes a COCO annotation file; equal arguments give equal bytes.

    Args:
        path: the JSON file; its folder must exist.
        images: entries with ``id``, ``file_name``, ``width`` and ``height``.
        annotations: entries as :func:`coco_annotation` returns them.
        categories: entries with ``id`` and ``name``.
        info: COCO's free-form description of the set.
        licenses: entries with ``id``, ``name`` and ``url`` for the ``license`` of the images; left out if None.

    Returns:
        The path written.

    Raises:
        ValueError: an id is used twice, or an annotation names an unknown image or category: pycocotools would drop or
            mix up such entries without a word.
        OSError: the file cannot be written.
    """
    ids = {}
    for kind, entries in (("image", images), ("annotation", annotations), ("category", categories)):
        ids[kind] = {entry["id"] for entry in entries}
        if len(ids[kind]) < len(entries):
            raise ValueError(f"{kind} ids must be unique, got {sorted(entry['id'] for entry in entries)}")
    for annotation in annotations:
        for kind in ("image", "category"):
            named = annotation[f"{kind}_id"]
            if named not in ids[kind]:
                raise ValueError(f"annotation {annotation['id']} names {kind} {named}, known are {sorted(ids[kind])}")
    content = {"info": info or {}, "images": images, "annotations": annotations, "categories": categories}
    if licenses is not None:
        content["licenses"] = licenses
    path = Path(path)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path


def load_coco(path: str | Path) -> COCO:
    """Loads a COCO annotation file without pycocotools' lines on the terminal."""
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


def average_precision(coco: COCO, results: Path, metric: str, max_detections: int) -> tuple[float, float]:
    """AP of a COCO result file, from the evaluator's precision array.

    pycocotools' own summary, and with it mmdet's ``bbox_mAP``, is -1 when 100 is not among the detection limits and
    capped at 100 detections when it is: of no use on a canvas with hundreds of objects.

    Args:
        coco (COCO): The ground truth.
        results (Path): Predictions in COCO's result format.
        metric (str): 'bbox' or 'segm'.
        max_detections (int): Detections per image that count.

    Returns:
        tuple[float, float]: AP averaged over the IoU thresholds 0.50:0.05:0.95, and AP at 0.50.

    Raises:
        ValueError: If the ground truth holds no objects.
    """
    if not coco.anns:
        raise ValueError("the data set holds no objects, so no AP can be computed")
    predictions = json.loads(results.read_text())
    if not predictions:
        return 0.0, 0.0
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(coco, coco.loadRes(predictions), metric)
        evaluation.params.maxDets = [max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
    # (IoU thresholds, recalls, classes, area ranges, limits) -> all areas; -1 marks classes without objects.
    precision = evaluation.eval["precision"][..., 0, -1]
    with_objects = precision[:, 0] > -1
    return float(precision[:, :, with_objects[0]].mean()), float(precision[0][:, with_objects[0]].mean())
