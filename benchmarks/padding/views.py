"""Test images of many sizes: windows of the coins' val part, zoomed, with the coins in them."""

from typing import NamedTuple

import numpy as np
from PIL import Image

from mmsmlp.coins import split
from mmsmlp.data.coco import coco_annotation

BATCH = 8
_ZOOM = (0.75, 1.5)
_SMALLEST, _WIDEST = (80, 120), 400  # height and width, width in pixels


class View(NamedTuple):
    """``image`` (H, W, 3) uint8, and ``masks`` (K, H, W) bool of the coins that are at least half in it."""

    image: np.ndarray
    masks: np.ndarray


def views(count: int) -> list[View]:
    """The same ``count`` views at each call; 12 coins of one photograph are in all of them."""
    image, masks = split()["val"]
    random = np.random.default_rng(0)
    made = []
    while len(made) < count:
        zoom = random.uniform(*_ZOOM)
        height, width = (round(zoom * side) for side in image.shape)
        zoomed = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
        parts = [Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST) for mask in masks]
        coins = np.stack([np.asarray(part) for part in parts])
        rows, columns = (
            _interval(random, smallest, min(side, largest), side)
            for smallest, largest, side in zip(_SMALLEST, (height, _WIDEST), (height, width))
        )
        inside = coins[:, rows, columns]
        kept = inside[inside.sum((1, 2)) >= 0.5 * coins.sum((1, 2))]
        if len(kept):
            made.append(View(np.repeat(zoomed[rows, columns, None], 3, axis=2), kept))
    return made


def _interval(random: np.random.Generator, smallest: int, largest: int, side: int) -> slice:
    length = random.integers(smallest, largest + 1)
    start = random.integers(0, side - length + 1)
    return slice(start, start + length)


def image_share(shown: list[View], divisor: int = 32) -> float:
    """Share of image in the canvases of batches of ``BATCH`` views."""
    image, canvas = 0, 0
    for start in range(0, len(shown), BATCH):
        sizes = np.array([view.image.shape[:2] for view in shown[start : start + BATCH]])
        image += sizes.prod(1).sum()
        canvas += len(sizes) * (-(-sizes.max(0) // divisor) * divisor).prod()
    return float(image / canvas)


def ground_truth(shown: list[View]) -> tuple[list[dict], list[dict]]:
    """COCO's ``images`` and ``annotations``."""
    images = [{"id": i, "file_name": "", "width": v.image.shape[1], "height": v.image.shape[0]}
              for i, v in enumerate(shown)]  # fmt: skip
    masks = [(mask, i) for i, view in enumerate(shown) for mask in view.masks]
    return images, [coco_annotation(mask, i, number, 1) for number, (mask, i) in enumerate(masks, start=1)]
