"""Pictures of effective receptive fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.image import AxesImage
from matplotlib.patheffects import withStroke
from PIL import Image
from torch import nn

from mmsmlp.drawing import BLUE, GREEN, GREY, ORANGE, PINK, RED, png
from mmsmlp.visualize.inputs import size_name
from mmsmlp.visualize.receptive_field import ReceptiveField

_CELLS = 80  # along an axis of a drawn receptive field
_PANEL = 2.7  # inches, the width of a panel
_SQUARES = ((0.5, "-"), (0.9, "--"))  # shares, and the lines of the squares that hold them
_COLOURS = (BLUE, ORANGE, GREEN, PINK, RED)
_LINES = ("-", "--", "-.", ":")

Fields = Mapping[tuple[int, int], Sequence[ReceptiveField]]


def draw_field(axis: Axes, field: ReceptiveField) -> AxesImage:
    """Draw a field on a logarithmic scale, relative to an even spread, with the squares that hold 50 and 90 %.

    Args:
        axis (Axes): Where.
        field (ReceptiveField): What.

    Returns:
        AxesImage: For a colour bar; all fields have one scale.
    """
    density = field.shares * field.shares.numel()
    height, width = density.shape
    step = max(height // _CELLS, 1)  # means over as many cells on every canvas, else small canvases look noisier
    density = nn.functional.avg_pool2d(density[None, None], step, ceil_mode=True, count_include_pad=False)[0, 0]
    image = axis.imshow(
        density.clamp(min=1e-9).numpy(), cmap="magma", extent=(0, width, height, 0), norm=LogNorm(0.03, 30)
    )
    y, x = field.centre
    for share, style in _SQUARES:
        half = field.half_side(share)
        corner = (x - half, y - half)
        square = plt.Rectangle(corner, 2 * half, 2 * half, fill=False, color="white", linestyle=style, linewidth=1.3)
        square.set_path_effects([withStroke(linewidth=2.6, foreground="black")])  # to be seen on bright parts
        axis.add_patch(square)
    axis.set(xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0))
    return image


def add_scale(figure: plt.Figure, image: AxesImage, axes: np.ndarray) -> None:
    """Add the colour bar of :func:`draw_field`."""
    bar = figure.colorbar(image, ax=axes, shrink=0.7, aspect=30, extend="both")
    bar.set_label("gradient, relative to an even spread over the canvas")


def draw_fields(fields: Fields) -> bytes:
    """Draw fields: a row for each size, a column for each level.

    Args:
        fields (Mapping[tuple[int, int], Sequence[ReceptiveField]]): Height and width -> a field for each level.

    Returns:
        bytes: A PNG.
    """
    levels = len(next(iter(fields.values())))
    heights = [_PANEL * height / width + 0.4 for height, width in fields]
    figure, axes = plt.subplots(
        len(fields),
        levels,
        figsize=(1.5 + _PANEL * levels, 0.6 + sum(heights)),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )
    for row, (size, found) in zip(axes, fields.items()):
        for axis, field in zip(row, found):
            image = draw_field(axis, field)
            axis.set_xlabel(", ".join(f"{share:.0%}: {2 * field.half_side(share):.0f} px" for share, _ in _SQUARES))
        row[0].set_ylabel(size_name(size), fontsize=11)
    for number, axis in enumerate(axes[0], 1):
        axis.set_title(f"level {number}")
    add_scale(figure, image, axes)
    figure.suptitle("Effective receptive field of the middle token; below: sides of the squares")
    return png(figure, Image.Quantize.MAXCOVERAGE)


def draw_reach(fields: Fields) -> bytes:
    """Draw the share of a field within squares round the token: a panel for each size, a curve for each level.

    Args:
        fields (Mapping[tuple[int, int], Sequence[ReceptiveField]]): Height and width -> a field for each level.

    Returns:
        bytes: A PNG.
    """
    columns = min(len(fields), 2)
    rows = -(-len(fields) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(1 + 4.4 * columns, 0.4 + 3.3 * rows), sharey=True, squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(fields) :]:
        axis.set_axis_off()
    for axis, ((height, width), found) in zip(axes.flat, fields.items()):
        for number, field in enumerate(found):
            distance, held = field.reach()
            style = {"color": _COLOURS[number % len(_COLOURS)], "linestyle": _LINES[number % len(_LINES)]}
            axis.plot(distance, held, label=f"level {number + 1}", linewidth=2, **style)
        distance = np.arange(1, max(height, width) / 2 + 1)
        even = np.minimum(2 * distance, height) * np.minimum(2 * distance, width) / (height * width)
        axis.plot(distance, even, color=GREY, linewidth=1, label="even spread")
        axis.set(title=size_name((height, width)), ylim=(0, 1.02), xlim=(0, None))
        axis.set(xlabel="half a side of the square, in pixels")
        axis.grid(alpha=0.3)
    for row in axes:
        row[0].set_ylabel("share of the gradient inside")
    axes[0, 0].legend(loc="lower right")
    return png(figure, Image.Quantize.MAXCOVERAGE)
