"""Axis weights on their anchor and at other sizes, as heat maps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
from PIL import Image
from torch import Tensor, nn

from mmsmlp.drawing import png
from mmsmlp.layers import AxisLinear
from mmsmlp.resize import resize_axis_weight
from mmsmlp.smlpnet import SMLPNet
from mmsmlp.visualize.inputs import size_name

_PANEL = 2.2  # inches
_QUANTILE = 0.995  # of the absolute values, at which colours saturate: one outlier would leave the others pale


@dataclass(frozen=True)
class AxisWeight:
    """One axis weight on its anchor and at other sizes.

    Attributes:
        stage (int): From 1 up.
        block (int): Within the stage, from 1 up.
        axis (str): 'W' (mixes along rows) or 'H' (along columns).
        anchor (Tensor): (n, n) float64, as learned.
        resized (dict[tuple[int, int], Tensor]): Height and width of an image in pixels -> (m, m) float64, as the
            layer applies it there.
    """

    stage: int
    block: int
    axis: str
    anchor: Tensor
    resized: dict[tuple[int, int], Tensor]

    @property
    def name(self) -> str:
        """Such as 'stage 1, block 1, along W'."""
        return f"stage {self.stage}, block {self.block}, along {self.axis}"


def axis_weights(backbone: nn.Module) -> dict[str, Tensor]:
    """The axis weights of a backbone, (n, n) float64 each, named as 'stage 1, block 1, along W'.

    Raises:
        ValueError: If there are none.
    """
    weights = {weight.name: weight.anchor for weight in weights_at(backbone, ())}
    if not weights:
        raise ValueError("this network has no axis weights: it was built with global_mixing=False")
    return weights


def weights_at(backbone: nn.Module, sizes: Sequence[tuple[int, int]]) -> list[AxisWeight]:
    """The axis weights of a backbone on their anchor and at sizes of the image.

    Args:
        backbone (nn.Module): An SMLPNet; another network has none.
        sizes (Sequence[tuple[int, int]]): Heights and widths in pixels.

    Returns:
        list[AxisWeight]: Stage by stage, block by block, along W first. A size at which neither axis of a stage has
            another number of positions than the anchor is left out.
    """
    weights = []
    for stage, block, axis, layer in _axis_layers(backbone):
        anchor = layer.weight.detach().cpu().double()
        stride, grid = backbone.strides[stage - 1], backbone.grids[stage - 1]
        resized = {}
        for size in sizes:
            positions = tuple(-(-length // stride) for length in size)
            if positions != grid:
                count = positions["HW".index(axis)]
                resized[size] = resize_axis_weight(anchor, count, layer.interpolation)
        weights.append(AxisWeight(stage, block, axis, anchor, resized))
    return weights


def draw_stage(weights: Sequence[AxisWeight]) -> bytes:
    """Draw the axis weights of a stage: a row for each, a column for the anchor and for each size.

    Entries are drawn times m / n, so that a weight that keeps its mass shows the same colours at all sizes. All maps
    have one scale.

    Args:
        weights (Sequence[AxisWeight]): Of one stage, of :func:`weights_at`.

    Returns:
        bytes: A PNG.
    """
    sizes = list(weights[0].resized)
    limit = max(float(weight.anchor.abs().flatten().quantile(_QUANTILE)) for weight in weights) or 1.0
    rows, columns = len(weights), 1 + len(sizes)
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(1.4 + _PANEL * columns, 1.2 + _PANEL * rows),
        squeeze=False,
        layout="constrained",
    )
    for row, weight in zip(axes, weights):
        n = len(weight.anchor)
        for axis, matrix in zip(row, (weight.anchor, *weight.resized.values())):
            m = len(matrix)
            image = axis.imshow((matrix * (m / n)).numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit)
            ticks = sorted({0, m - 1})
            axis.set(xticks=ticks, yticks=ticks)
        row[0].set_ylabel(f"block {weight.block}, along {weight.axis}\noutput position")
    for axis, title in zip(axes[0], ("anchor", *map(size_name, sizes))):
        axis.set_title(title if title == "anchor" else f"at {title}")
    for axis in axes[-1]:
        axis.set_xlabel("input position")
    length = 0.8 * min(rows, 4) / rows  # of the bar, beside the first rows of a long picture
    bar = figure.colorbar(image, ax=axes, shrink=length, anchor=(0, 0.5 if rows <= 4 else 1), aspect=30, extend="both")
    bar.set_label("weight times m / n")
    figure.suptitle(f"Axis weights of stage {weights[0].stage}")
    return png(figure, Image.Quantize.MAXCOVERAGE)


def _axis_layers(backbone: nn.Module) -> Iterator[tuple[int, int, str, AxisLinear]]:
    if not isinstance(backbone, SMLPNet):
        return
    for number, stage in enumerate(backbone.stages, 1):
        for position, block in enumerate(stage, 1):
            for axis in "WH" if block.sparse_mlp is not None else "":
                yield number, position, axis, getattr(block.sparse_mlp, f"mix_{axis.lower()}")
