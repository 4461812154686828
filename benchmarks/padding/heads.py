"""Which head's own padding is left: a Mask R-CNN's heads on a batch's maps, or on each image's part of them."""

from pathlib import Path

import torch
from torch import Tensor, nn

from padding.downstream import changed_detections, load, make_batch
from padding.views import BATCH, View

STRIDES = (4, 8, 16, 32, 64)


def changed_by_heads(checkpoint: Path, shown: list[View]) -> dict[str, int]:
    """Count the detections that change in batches of 8 when backbone and neck know the valid areas.

    Args:
        checkpoint (Path): Of a Mask R-CNN.
        shown (list[View]): The images.

    Returns:
        dict[str, int]: As in :func:`padding.downstream.compare_detections`, for the heads as they are, and for the
            'RPN', the 'RoI heads' or 'both' working on each image's own part of the maps.
    """
    model = load(checkpoint, neck=True)
    alone = _predict(model, shown, 1)
    cases = {"none": (False, False), "RPN": (True, False), "RoI heads": (False, True), "both": (True, True)}
    return {
        name: int(changed_detections(alone, _predict(model, shown, BATCH, *own)).sum()) for name, own in cases.items()
    }


def _predict(model: nn.Module, shown: list[View], size: int, own_rpn: bool = False, own_roi: bool = False) -> list:
    found = []
    for start in range(0, len(shown), size):
        part = shown[start : start + size]
        batch = make_batch(model, part)
        samples = batch["data_samples"]
        with torch.no_grad():
            maps = model.extract_feat(batch["inputs"])
            each = [_own_maps(maps, index, view) for index, view in enumerate(part)]
            if own_rpn:
                proposals = [model.rpn_head.predict(m, [s], rescale=False)[0] for m, s in zip(each, samples)]
            else:
                proposals = model.rpn_head.predict(maps, samples, rescale=False)
            if own_roi:
                found += [model.roi_head.predict(m, [p], [s])[0] for m, p, s in zip(each, proposals, samples)]
            else:
                found += model.roi_head.predict(maps, proposals, samples)
    return found


def _own_maps(maps: tuple[Tensor, ...], index: int, view: View) -> tuple[Tensor, ...]:
    """The part of a batch's maps that is the canvas of an image alone, a multiple of 32 pixels."""
    height, width = (-(-side // 32) * 32 for side in view.image.shape[:2])
    cuts = [m[index : index + 1, :, : -(-height // s), : -(-width // s)] for m, s in zip(maps, STRIDES)]
    # mmcv's RoIAlign reads memory in order, whatever the strides say.
    return tuple(cut.contiguous() for cut in cuts)
