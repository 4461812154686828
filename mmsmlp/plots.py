"""The pictures of a sweep: accuracy over size, and what the model sees."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.pyplot as plt
import mmengine
import numpy as np
from PIL import Image
from pycocotools import mask as mask_utils

from mmsmlp.drawing import BLUE, GREEN, ORANGE, RED, save
from mmsmlp.tasks import Classification, Detection, Segmentation

# Line styles keep curves on top of each other visible.
_STYLES = {
    "exact": {"color": BLUE, "linestyle": "-", "marker": "o", "linewidth": 3.5, "alpha": 0.6},
    "bounded": {"color": GREEN, "linestyle": "--", "marker": "s"},
    "scaled": {"color": ORANGE, "linestyle": ":", "marker": "^", "linewidth": 2.5},
    "naive": {"color": RED, "linestyle": "-.", "marker": "x"},
}
_MIN_SCORE = 0.5  # of the detections drawn
_MAX_NAMES = 6  # of classes in a title
_LABELS = {
    "zoom": "zoom (1 = the test images at the config's own size)",
    "extent": "extent (k x k mirrored copies of what is tested, at their own size)",
}


def plot_sweep(rows: list[dict], metrics: dict[str, str], out: str | Path) -> Path:
    """Draw accuracy over size: a column for zoom and one for extent, a curve for each interpolation.

    Args:
        rows (list[dict]): Rows of :meth:`mmsmlp.sweep.Sweep.evaluate`.
        metrics (dict[str, str]): Keys of a row and their labels, a row of diagrams for each.
        out (str | Path): The picture to write.

    Returns:
        Path: ``out``.
    """
    kinds = [kind for kind in _LABELS if any(row["kind"] == kind for row in rows)]
    figure, axes = plt.subplots(
        len(metrics),
        len(kinds),
        figsize=(5.5 * len(kinds), 0.8 + 2.9 * len(metrics)),
        sharex="col",
        squeeze=False,
        layout="constrained",
    )
    for column, kind in enumerate(kinds):
        for axis, (metric, label) in zip(axes[:, column], metrics.items()):
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
    return save(figure, out)


def draw_predictions(task: Detection | Segmentation | Classification, panels: list, out: str | Path) -> Path:
    """Draw what a model found.

    Args:
        task (Detection | Segmentation | Classification): The kind of model.
        panels (list[tuple[str, Point]]): A title and an evaluated point each; of a detector's and a segmentor's scenes
            the first is drawn, one below the other; of a classifier's a sample of the first panel's.
        out (str | Path): The picture to write.

    Returns:
        Path: ``out``.
    """
    if isinstance(task, Classification):
        return _draw_classes(task, *panels[0], out)
    draw = _detections if isinstance(task, Detection) else _label_map
    pictures = [draw(task, title, point) for title, point in panels]
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
        for x, y, width, height in boxes:
            axis.add_patch(plt.Rectangle((x - 0.5, y - 0.5), width, height, fill=False, color=ORANGE))
    return save(figure, out)


def _detections(task: Detection, title: str, point) -> tuple[str, np.ndarray, list]:
    """Title, picture with masks, and boxes [x, y, width, height] of a point's first image."""
    entry = min(json.loads(point.scenes.ann_file.read_text())["images"], key=lambda image: image["id"])
    boxes, masks = (_first_image(point.predictions, metric, entry["id"]) for metric in ("bbox", "segm"))
    image = _read(point.scenes.images / entry["file_name"])
    picture = _overlay(image, [mask_utils.decode(mask["segmentation"]) for mask in masks])
    title = f"{title}: {len(boxes)} detections with a score of at least {_MIN_SCORE}"
    return title, picture, [box["bbox"] for box in boxes]


def _label_map(task: Segmentation, title: str, point) -> tuple[str, np.ndarray, list]:
    """Title and picture of a point's first image, each class found, but the set's first, in a colour of its own."""
    image, _ = point.scenes.pairs[0]
    with Image.open(point.predictions / f"{image.stem}.png") as file:
        predicted = np.asarray(file)
    found = [index for index in range(1, len(task.classes)) if (predicted == index + task.first_label).any()]
    names = [task.classes[index] for index in found]
    if len(names) > _MAX_NAMES:
        names[_MAX_NAMES:] = [f"and {len(names) - _MAX_NAMES} more classes"]
    masks = [predicted == index + task.first_label for index in found]
    return f"{title}: {', '.join(names) or task.classes[0]}", _overlay(_read(image), masks), []


def _draw_classes(task: Classification, title: str, point, out: str | Path) -> Path:
    """Draw a sample of the images with their predicted classes, wrong ones in red with the right one."""
    predictions = mmengine.load(f"{point.predictions}.pkl")
    rows, columns = 4, 6
    chosen = np.linspace(0, len(predictions) - 1, rows * columns).astype(int)
    figure, axes = plt.subplots(rows, columns, figsize=(11, 8.4), layout="constrained")
    for axis, index in zip(axes.flat, chosen):
        path, label = point.scenes.samples[index]
        found = int(predictions[index]["pred_label"])
        score = float(predictions[index]["pred_score"].max())
        right = found == label
        axis.imshow(_read(path))
        text = f"{task.classes[found]} {score:.2f}" + ("" if right else f"\n({task.classes[label]})")
        axis.set_title(text, fontsize=9, color="black" if right else RED)
        axis.set_axis_off()
    figure.suptitle(f"{title}: predicted classes with their scores, wrong ones with the right class in brackets")
    return save(figure, out)


def _first_image(predictions: Path, metric: str, image_id: int) -> list[dict]:
    file = Path(f"{predictions}.{metric}.json")
    found = json.loads(file.read_text()) if file.exists() else []
    return [p for p in found if p["image_id"] == image_id and p["score"] >= _MIN_SCORE]


def _read(path: Path) -> np.ndarray:
    """An image (H, W, 3) uint8."""
    with Image.open(path) as file:
        return np.asarray(file.convert("RGB"))


def _overlay(image: np.ndarray, masks: list[np.ndarray]) -> np.ndarray:
    """Tint an image (H, W, 3) uint8 by masks (H, W), each in a colour of its own."""
    picture = image.astype(float)
    colours = plt.get_cmap("tab10").colors
    for index, mask in enumerate(masks):
        picture[mask > 0] = 0.55 * picture[mask > 0] + 0.45 * 255 * np.array(colours[index % len(colours)])
    return picture.astype(np.uint8)
