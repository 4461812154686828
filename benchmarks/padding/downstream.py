"""Predictions for images of many sizes, in batches of 8 against batches of one."""

import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mmsmlp.coins import CATEGORIES
from mmsmlp.data.coco import average_precision, load_coco, mask_utils, write_coco
from padding.views import BATCH, View, ground_truth

_MIN_SCORE = 0.3  # of the detections that are looked up in the other run


def load(checkpoint: Path, neck: bool = False) -> nn.Module:
    """The trained model beside whose checkpoint lies its config.

    Args:
        checkpoint (Path): Of :func:`padding.training.train`.
        neck (bool): Whether to wrap its neck in ValidAreaNeck, if it is not yet.

    Returns:
        nn.Module: The model in eval mode, with our preprocessor.
    """
    cfg = Config.fromfile(checkpoint.with_name("config.py"))
    init_default_scope(cfg.default_scope)
    state = torch.load(checkpoint, map_location="cpu", weights_only=False)["state_dict"]
    if neck and cfg.model.neck.type == "FPN":
        cfg.model.neck = {"type": "mmsmlp.ValidAreaNeck", "neck": cfg.model.neck}
    cfg.model.data_preprocessor.type = f"mmsmlp.{cfg.model.data_preprocessor.type.removeprefix('mmsmlp.')}"
    model = MODELS.build(cfg.model)
    model.load_state_dict(state)
    model.eval()
    return model


def make_batch(model: nn.Module, shown: list[View]) -> dict:
    """Views as the model's preprocessor gives them to it, with a note of valid sizes."""
    if hasattr(model, "decode_head"):
        from mmseg.structures import SegDataSample as Sample
    else:
        from mmdet.structures import DetDataSample as Sample
    metas = [{"img_shape": v.image.shape[:2], "ori_shape": v.image.shape[:2], "scale_factor": (1, 1)} for v in shown]
    batch = {
        "inputs": [torch.from_numpy(view.image).permute(2, 0, 1) for view in shown],
        "data_samples": [Sample(metainfo=meta) for meta in metas],
    }
    return model.data_preprocessor(batch)


def predict(model: nn.Module, shown: list[View], size: int, noted: bool) -> list:
    """Data samples with the predictions, for batches of ``size`` images, with or without the note of valid sizes."""
    found = []
    for start in range(0, len(shown), size):
        batch = make_batch(model, shown[start : start + size])
        inputs = batch["inputs"] if noted else batch["inputs"].clone()  # a copy has no note
        with torch.no_grad():
            found += model.predict(inputs, batch["data_samples"])
    return found


def compare_detections(checkpoint: Path, shown: list[View], noted: bool, neck: bool = False) -> dict:
    """Detect in batches of one and of 8.

    Args:
        checkpoint (Path): Of a Mask R-CNN.
        shown (list[View]): The images.
        noted (bool): Whether the backbone knows the valid areas.
        neck (bool): Whether the neck does, too.

    Returns:
        dict: ``bbox_alone``, ``segm_alone``, ``bbox_batch``, ``segm_batch``, AP of both runs; of the detections alone
            with a score from 0.3 up: ``detections``, their number, ``iou``, the mean IoU with the best box of the same
            image in the batch, ``score``, the mean absolute difference of the two scores, ``largest_score``, the
            largest, ``changed``, the number of those with an IoU below 0.99 or a score more than 0.01 away, and
            ``changed_at_border``, the number of these within 8 pixels of the image's right or bottom border.
    """
    model = load(checkpoint, neck)
    runs = {"alone": predict(model, shown, 1, noted), "batch": predict(model, shown, BATCH, noted)}
    runs = {name: [sample.pred_instances for sample in found] for name, found in runs.items()}
    row = {}
    for name, found in runs.items():
        for metric, value in _precision(found, shown).items():
            row[f"{metric}_{name}"] = value
    own, iou, score = looked_up(*runs.values())
    changed = changed_detections(*runs.values())
    sides = torch.cat([torch.tensor([v.image.shape[1::-1]]).expand(len(o), 2) for v, o in zip(shown, own)])
    at_border = (torch.cat([o.bboxes for o in own])[:, 2:] > sides - 8).any(1)
    return row | {
        "detections": len(iou),
        "iou": float(iou.mean()),
        "score": float(score.mean()),
        "largest_score": float(score.max()),
        "changed": int(changed.sum()),
        "changed_at_border": int((changed & at_border).sum()),
    }


def looked_up(alone: list[InstanceData], batch: list[InstanceData]) -> tuple[list[InstanceData], Tensor, Tensor]:
    """Look detections up in another run.

    Returns:
        tuple[list[InstanceData], Tensor, Tensor]: Those alone with a score from 0.3 up, by image; and of all of them
            the IoU with the best box of the same image in the batch, and how far that one's score is away.
    """
    kept = [own[own.scores >= _MIN_SCORE] for own in alone]
    ious, scores = [], []
    for own, other in zip(kept, batch):
        best, index = _overlaps(own.bboxes, other.bboxes).max(1) if len(other) else (own.scores * 0, None)
        ious.append(best)
        scores.append(own.scores - other.scores[index] if len(other) else own.scores)
    return kept, torch.cat(ious), torch.cat(scores).abs()


def changed_detections(alone: list[InstanceData], batch: list[InstanceData]) -> Tensor:
    """Which of these detections have an IoU below 0.99, or a score more than 0.01 away."""
    _, iou, score = looked_up(alone, batch)
    return (iou < 0.99) | (score > 0.01)


def compare_segmentations(checkpoint: Path, shown: list[View], noted: bool) -> dict:
    """Segment in batches of one and of 8.

    Args:
        checkpoint (Path): Of a UperNet.
        shown (list[View]): The images.
        noted (bool): Whether the backbone knows the valid areas.

    Returns:
        dict: ``mIoU_alone`` and ``mIoU_batch`` over the pixels of all images, and ``changed``, the share of pixels that
            get another class in a batch.
    """
    model = load(checkpoint)
    runs = [
        np.concatenate([f.pred_sem_seg.data.flatten().numpy() for f in predict(model, shown, size, noted)])
        for size in (1, BATCH)
    ]
    truth = np.concatenate([view.masks.any(0).flatten() for view in shown]).astype(int)
    alone, batch = (
        float(np.mean([((found == k) & (truth == k)).sum() / ((found == k) | (truth == k)).sum() for k in (0, 1)]))
        for found in runs
    )
    return {"mIoU_alone": alone, "mIoU_batch": batch, "changed": float((runs[0] != runs[1]).mean())}


def _overlaps(a: Tensor, b: Tensor) -> Tensor:
    from mmdet.structures.bbox import bbox_overlaps

    return bbox_overlaps(a, b)


def _precision(found: list[InstanceData], shown: list[View]) -> dict[str, float]:
    """COCO's box and mask AP."""
    boxes, masks = [], []
    for index, instances in enumerate(found):
        for box, score, mask in zip(instances.bboxes.tolist(), instances.scores.tolist(), instances.masks.numpy()):
            common = {"image_id": index, "category_id": 1, "score": score}
            boxes.append({**common, "bbox": [*box[:2], box[2] - box[0], box[3] - box[1]]})
            code = mask_utils.encode(np.asfortranarray(mask.astype(np.uint8)))
            masks.append({**common, "segmentation": {**code, "counts": code["counts"].decode()}})
    with tempfile.TemporaryDirectory() as folder:
        images, annotations = ground_truth(shown)
        coco = load_coco(write_coco(Path(folder, "truth.json"), images, annotations, CATEGORIES))
        results = {}
        for metric, predictions in (("bbox", boxes), ("segm", masks)):
            file = Path(folder, f"{metric}.json")
            file.write_text(json.dumps(predictions))
            results[metric] = average_precision(coco, file, metric, 100)[0]
    return results
