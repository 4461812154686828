"""The pictures of a sweep: accuracy over size, and what the detector sees."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # files only: works without a display

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from pycocotools import mask as mask_utils

from mmsmlp.files import atomic_file
from mmsmlp.scenes import CocoSet

# Colours of Okabe and Ito, told apart by colour-blind readers; line styles keep curves on top of each other visible.
_STYLES = {
    "exact": {"color": "#0072B2", "linestyle": "-", "marker": "o", "linewidth": 3.5, "alpha": 0.6},
    "bounded": {"color": "#009E73", "linestyle": "--", "marker": "s"},
    "scaled": {"color": "#E69F00", "linestyle": ":", "marker": "^", "linewidth": 2.5},
    "naive": {"color": "#D55E00", "linestyle": "-.", "marker": "x"},
}
_LABELS = {
    "zoom": "zoom (1 = the test images at the config's own size)",
    "extent": "extent (k x k test images at their own size)",
}
_METRICS = {"bbox_mAP": "box AP", "bbox_mAP_50": "box AP50"}


def plot_sweep(rows: list[dict], out: str | Path) -> Path:
    """Draw accuracy over size: a column for zoom and one for extent, a curve for each interpolation.

    Args:
        rows (list[dict]): Rows of :meth:`mmsmlp.sweep.Sweep.evaluate`.
        out (str | Path): The picture to write.

    Returns:
        Path: ``out``.
    """
    kinds = [kind for kind in _LABELS if any(row["kind"] == kind for row in rows)]
    figure, axes = plt.subplots(
        len(_METRICS), len(kinds), figsize=(5.5 * len(kinds), 6.5), sharex="col", squeeze=False, layout="constrained"
    )
    for column, kind in enumerate(kinds):
        for axis, (metric, label) in zip(axes[:, column], _METRICS.items()):
            for method, style in _STYLES.items():
                curve = sorted(
                    (r["factor"], r[metric]) for r in rows if r["kind"] == kind and r["interpolation"] == method
                )
                if curve:
                    axis.plot(*zip(*curve), label=method, **style)
            axis.set(ylabel=label, ylim=(-0.03, 1.03), xticks=sorted({r["factor"] for r in rows if r["kind"] == kind}))
            axis.grid(alpha=0.3)
        axes[-1, column].set_xlabel(_LABELS[kind])
    axes[0, 0].legend(title="interpolation", loc="lower left")
    figure.suptitle("One checkpoint at sizes it was not trained on")
    return _save(figure, out)


def draw_detections(panels: list[tuple[str, CocoSet, Path]], out: str | Path, min_score: float = 0.5) -> Path:
    """Draw predicted boxes and masks over images, one panel below the other.

    Args:
        panels (list[tuple[str, CocoSet, Path]]): Title, data set (its first image is drawn) and prefix of the
            prediction files of each panel.
        out (str | Path): The picture to write.
        min_score (float): Lowest score drawn. Defaults to 0.5.

    Returns:
        Path: ``out``.
    """
    pictures = []
    for title, scenes, predictions in panels:
        entry = min(json.loads(scenes.ann_file.read_text())["images"], key=lambda image: image["id"])
        boxes, masks = (_first_image(predictions, metric, entry["id"], min_score) for metric in ("bbox", "segm"))
        with Image.open(scenes.images / entry["file_name"]) as file:
            picture = _overlay(np.asarray(file.convert("RGB")), [mask_utils.decode(m["segmentation"]) for m in masks])
        pictures.append((f"{title}: {len(boxes)} detections with a score of at least {min_score}", picture, boxes))
    heights = [picture.shape[0] / picture.shape[1] for _, picture, _ in pictures]
    figure, axes = plt.subplots(
        len(pictures),
        figsize=(10, 10 * sum(heights) + 0.4 * len(heights)),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )
    for axis, (title, picture, boxes) in zip(axes[:, 0], pictures):
        axis.imshow(picture)
        axis.set_title(title)
        axis.set_axis_off()
        for box in boxes:
            x, y, width, height = box["bbox"]
            axis.add_patch(plt.Rectangle((x - 0.5, y - 0.5), width, height, fill=False, color="#E69F00"))
    return _save(figure, out)


def _first_image(predictions: Path, metric: str, image_id: int, min_score: float) -> list[dict]:
    file = Path(f"{predictions}.{metric}.json")
    found = json.loads(file.read_text()) if file.exists() else []
    return [p for p in found if p["image_id"] == image_id and p["score"] >= min_score]


def _overlay(image: np.ndarray, masks: list[np.ndarray]) -> np.ndarray:
    """Tint an image (H, W, 3) uint8 by masks (H, W), each in a colour of its own."""
    picture = image.astype(float)
    colours = plt.get_cmap("tab10").colors
    for index, mask in enumerate(masks):
        picture[mask > 0] = 0.55 * picture[mask > 0] + 0.45 * 255 * np.array(colours[index % len(colours)])
    return picture.astype(np.uint8)


def _save(figure: plt.Figure, out: str | Path) -> Path:
    with atomic_file(out) as new:
        figure.savefig(new, dpi=110)
    plt.close(figure)
    return Path(out)
