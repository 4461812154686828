"""Accuracy over size as curves: means over seeds, with a band of one standard error."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from mmsmlp.drawing import BLUE, GREEN, ORANGE, PINK, RED, save
from study.estimates import estimate, select
from study.plan import ANSWERS, FULL, NETWORKS

LABELS = {"bbox_mAP": "box AP", "bbox_mAP_50": "box AP50", "mIoU": "mIoU", "top1": "top-1 accuracy"}
# Colours of Okabe and Ito; styles and markers tell curves on top of each other apart.
_STYLES = {
    "exact": {"color": BLUE, "linestyle": "-", "marker": "o", "linewidth": 3.5, "alpha": 0.6},
    "bounded": {"color": GREEN, "linestyle": "--", "marker": "s"},
    "scaled": {"color": ORANGE, "linestyle": ":", "marker": "^", "linewidth": 2.5},
    "naive": {"color": RED, "linestyle": "-.", "marker": "x"},
    "features": {"color": PINK, "linestyle": "-", "marker": "v"},
    "windows": {"color": "#000000", "linestyle": "--", "marker": "d", "linewidth": 1},
}
_TITLES = {"features": "feature resizing", "windows": "sliding windows"}


def draw_network(rows: list[dict], network: str, out: Path) -> Path:
    """Draw a network: a row for each recipe that has every answer, columns for zoom and extent, a curve per answer."""
    metric = NETWORKS[network].metrics[0]
    size = (len(FULL), 2)
    figure, axes = plt.subplots(*size, figsize=(11, 3 * size[0]), sharex="col", squeeze=False, layout="constrained")
    for recipe, line in zip(FULL, axes):
        for kind, axis in zip(("zoom", "extent"), line):
            _curves(axis, rows, network, recipe, kind, metric)
            axis.set_title(f"trained with {recipe}", fontsize=10)
    axes[0, 0].legend(loc="lower center", ncols=2, fontsize=8)
    figure.suptitle(f"{network}: {LABELS[metric]}, mean of {_seeds(rows)} seeds, band: one standard error")
    return save(figure, out)


def draw_summary(rows: list[dict], out: Path, recipe: str = "random scales") -> Path:
    """Draw all networks, trained with one recipe: a row for zoom and one for extent, a column for each network."""
    figure, axes = plt.subplots(2, len(NETWORKS), figsize=(4.2 * len(NETWORKS), 6), squeeze=False, layout="constrained")
    for network, column in zip(NETWORKS, axes.T):
        for kind, axis in zip(("zoom", "extent"), column):
            _curves(axis, rows, network, recipe, kind, NETWORKS[network].metrics[0])
        column[0].set_title(network)
    axes[0, 0].legend(loc="lower center", ncols=2, fontsize=8)
    figure.suptitle(f"One checkpoint at sizes it was not trained on (mean of {_seeds(rows)} seeds, one standard error)")
    return save(figure, out)


def _curves(axis: plt.Axes, rows: list[dict], network: str, recipe: str, kind: str, metric: str) -> None:
    for answer in ANSWERS:
        chosen = select(rows, network=network, recipe=recipe, interpolation=answer, kind=kind)
        factors = sorted({row["factor"] for row in chosen})
        if factors:
            found = [estimate([row[metric] for row in select(chosen, factor=factor)]) for factor in factors]
            mean = np.array([f.mean for f in found])
            error = np.array([f.error or 0 for f in found])
            axis.plot(factors, mean, label=_TITLES.get(answer, answer), **_STYLES[answer])
            axis.fill_between(factors, mean - error, mean + error, color=_STYLES[answer]["color"], alpha=0.15, lw=0)
    axis.set_xscale("log", base=2)
    ticks = sorted({row["factor"] for row in select(rows, network=network, recipe=recipe, kind=kind)})
    axis.set_xticks(ticks, [f"{tick:.2g}" for tick in ticks])
    axis.minorticks_off()
    axis.set(xlabel=kind, ylabel=LABELS[metric], ylim=(-3, 103))
    axis.grid(alpha=0.3)


def _seeds(rows: list[dict]) -> int:
    return len({row["seed"] for row in rows})
