"""What the study runs: networks, recipes, seeds, answers and sizes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mmsmlp.resize import METHODS

ROOT = Path(__file__).parents[2]
SEEDS = (0, 1, 2)
# Answers to "any resolution": weights interpolated, or something else done.
ANSWERS = (*METHODS, "features", "windows")


@dataclass(frozen=True)
class Network:
    """A demo that is trained for the study.

    Attributes:
        name (str): What tables call it.
        config (Path): The demo's config.
        steps (int): Training steps; the demo's own, and half of the classifier's.
        anchor (int): Height and width in pixels that its axis weights are learned on.
        metrics (tuple[str, ...]): Keys of a sweep's row; the first is averaged and decides.
        batch (int): Images a training step takes.
        sizes (tuple[int, int]): Smallest and largest height and width of crops in training with random sizes.
        larger (int): Anchor in pixels of the recipes that are tuned on larger crops.
        extents (tuple[int, ...]): Mirrored copies along each axis of the wider scenes.
        off_anchor (int): Zoomed to so many pixels, the height of a test image is one position off the anchor grid in
            all stages.
        test_height (int): Rows of a test image.
    """

    name: str
    config: Path
    steps: int
    anchor: int
    metrics: tuple[str, ...]
    batch: int
    sizes: tuple[int, int]
    larger: int
    extents: tuple[int, ...]
    off_anchor: int
    test_height: int


NETWORKS = {
    "Mask R-CNN": Network(
        "Mask R-CNN",
        ROOT / "configs/demo/mask-rcnn_smlpnet-mini_coins.py",
        steps=300,
        anchor=160,
        metrics=("bbox_mAP", "bbox_mAP_50"),
        batch=4,
        sizes=(80, 240),
        larger=240,
        extents=(1, 2, 3, 4, 6, 8),
        off_anchor=164,
        test_height=153,
    ),
    "UperNet": Network(
        "UperNet",
        ROOT / "configs/demo/upernet_smlpnet-mini_coins.py",
        steps=200,
        anchor=160,
        metrics=("mIoU",),
        batch=8,
        sizes=(80, 240),
        larger=240,
        extents=(1, 2, 3, 4, 6, 8),
        off_anchor=164,
        test_height=153,
    ),
    "classifier": Network(
        "classifier",
        ROOT / "configs/demo/smlpnet-mini_photos.py",
        steps=600,
        anchor=64,
        metrics=("top1",),
        batch=32,
        sizes=(32, 96),
        larger=96,
        extents=(1, 2, 4, 8),
        off_anchor=68,
        test_height=64,
    ),
}

WIDE = 4  # extents above are for seeing where it ends
ZOOMS = (1 / 3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)

# Recipe -> what it is. The demo's is "random scales".
RECIPES = {
    "one size": "objects at one scale, crops of the anchor's size",
    "random scales": "objects at 0.5 to 2 times that scale, crops of the anchor's size",
    "random sizes": "the same scales, crops of another height and width for every batch",
    "random sizes, bounded": "the same, trained with interpolation='bounded'",
    "valid areas": "the same scales, crops of another height and width for every image; padding-aware",
    "small start": "random scales, axis weights initialised in ±0.02, so that what they hold is what they learned",
    "tuned": "random scales, then a fifth of the steps on larger crops",
    "tuned, re-anchored": "the same, with the axis weights moved to the larger crops' grid before",
}
# Recipes that go on from a checkpoint of another.
STARTS = {"tuned": "random scales", "tuned, re-anchored": "random scales"}


# There, minutes a point; what is asked is where it ends, not which answer is the best.
_WIDE_ANSWERS = {"Mask R-CNN": ("exact", "bounded", "scaled", "windows"), "classifier": ("exact", "bounded")}
# Recipes whose checkpoints are evaluated with every answer and at every size.
FULL = ("one size", "random scales", "random sizes")


def recipes_of(network: Network) -> list[str]:
    """The recipes that make sense for a network: images of a classifier's batch are of one size, never padded."""
    return [r for r in RECIPES if not (network.name == "classifier" and r == "valid areas")]


def points_of(network: Network) -> list[tuple[str, float]]:
    """Kind and factor of every size.

    ``'grid'`` is a zoom that brings the height of a test image exactly to the anchor, and to one position more in all
    stages, on a canvas without padding.
    """
    grids = [("grid", size / network.test_height) for size in (network.anchor, network.off_anchor)]
    return [("zoom", z) for z in ZOOMS] + grids + [("extent", e) for e in network.extents]


def answers_of(network: Network, recipe: str, kind: str, factor: float) -> tuple[str, ...]:
    """The answers that a recipe's checkpoints are evaluated with at a size."""
    if recipe not in FULL:
        # These are for comparing recipes. With valid areas a network has no one grid to resize features to.
        methods = METHODS if network.name == "Mask R-CNN" else ("exact", "bounded")
        return methods if kind != "extent" or factor <= WIDE else ()
    if kind == "extent" and factor > WIDE:
        return _WIDE_ANSWERS.get(network.name, ANSWERS)
    return ANSWERS
