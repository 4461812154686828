"""Axis weights on their anchor and resized, as heat maps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib.pyplot as plt
from torch import Tensor

from mmsmlp.drawing import save
from mmsmlp.resize import METHODS, is_axis_parameter, resize_axis_weight


def draw_weights(weights: Mapping[str, Tensor], out: str | Path) -> dict:
    """Draw axis weights on their anchor and resized to n/2, n + 1, 2n and 3n positions by all methods.

    Entries are drawn times m / n, so that a method that keeps the mass shows the same colours at all sizes.

    Args:
        weights (Mapping[str, Tensor]): Title -> weight (n, n), side by side, each with a colour scale of its own.
        out (str | Path): The picture to write.

    Returns:
        dict: Title -> method -> size as a string -> largest absolute row sum.

    Raises:
        ValueError: If there is no weight, or one is not (n, n).
    """
    if not weights:
        raise ValueError("no weights to draw")
    for title, weight in weights.items():
        if not is_axis_parameter(weight, 2):
            raise ValueError(f"an axis weight is (n, n), {title!r} is {tuple(weight.shape)}")
    figure = plt.figure(figsize=(7.4 * len(weights), 6.2), layout="constrained")
    parts = figure.subfigures(1, len(weights), squeeze=False)[0]
    sums = {title: _draw_weight(part, title, weight) for part, (title, weight) in zip(parts, weights.items())}
    save(figure, out)
    return sums


def _draw_weight(figure, title: str, weight: Tensor) -> dict:
    """One weight: a column for each size, a row for each method."""
    weight = weight.detach().double()
    n = len(weight)
    sizes = {"n": n, "n / 2": max(n // 2, 1), "n + 1": n + 1, "2 n": 2 * n, "3 n": 3 * n}
    limit = float(weight.abs().flatten().quantile(0.995)) or 1.0
    axes = figure.subplots(len(METHODS), len(sizes))
    sums: dict = {}
    for row, method in zip(axes, METHODS):
        sums[method] = {}
        for axis, (name, size) in zip(row, sizes.items()):
            resized = resize_axis_weight(weight, size, method)
            total = float(resized.abs().sum(1).max())
            sums[method][str(size)] = total
            image = axis.imshow((resized * (size / n)).numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit)
            axis.set(xticks=[], yticks=[], xlabel=f"{total:.2f}")
            if method == METHODS[0]:
                axis.set_title(f"m = {size}" if name == "n" else f"m = {size} ({name})", fontsize=10)
        row[0].set_ylabel(method, fontsize=11)
    figure.suptitle(f"{title} (n = {n})")
    figure.supxlabel("below each map: its largest absolute row sum", fontsize=10)
    bar = figure.colorbar(image, ax=axes, shrink=0.6, aspect=30, extend="both")
    bar.set_label("entry times m / n")
    return sums
