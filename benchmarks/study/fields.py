"""Effective receptive fields: how far a token sees on canvases of several sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

from mmsmlp.drawing import save
from mmsmlp.visualize.fields import add_scale, draw_field
from mmsmlp.visualize.receptive_field import effective_receptive_fields


def widened(images: Tensor, factor: float) -> Tensor:
    """Images on a larger canvas, continued as their own mirror image.

    Args:
        images (Tensor): (N, C, H, W).
        factor (float): How many times as high and wide the canvas is.

    Returns:
        Tensor: (N, C, round(factor * H), round(factor * W)).

    Raises:
        ValueError: If the images are not four-dimensional, or the factor is below 1.
    """
    if images.ndim != 4:
        raise ValueError(f"images must be (N, C, H, W), got {tuple(images.shape)}")
    if factor < 1:
        raise ValueError(f"a canvas is at least as large as the images (factor 1), got {factor}")
    for dim in (2, 3):
        length = images.shape[dim]
        position = torch.arange(round(factor * length)) % (2 * length)
        images = images.index_select(dim, torch.minimum(position, 2 * length - 1 - position))
    return images


def draw_receptive_fields(
    networks: Mapping[str, nn.Module], images: Tensor, out: str | Path, factors: Sequence[float] = (1, 3)
) -> dict:
    """Draw the effective receptive fields of networks on canvases of several sizes.

    Args:
        networks (Mapping[str, nn.Module]): Title -> network, a column each.
        images (Tensor): (N, C, H, W), as the networks take them, of the anchor's size.
        out (str | Path): The picture to write.
        factors (Sequence[float]): Sizes of the canvas relative to the images, a row each.

    Returns:
        dict: Title -> factor as a string -> ``canvas`` (height, width in pixels), ``side_50`` and ``side_90``
            (:meth:`ReceptiveField.side`), and ``beyond``, the share outside of a window of the images' size.

    Raises:
        ValueError: If there is no network or no factor, or an argument is invalid.
    """
    if not networks or not factors:
        raise ValueError("nothing to draw: give at least one network and one factor")
    size = (len(factors), len(networks))
    figure, axes = plt.subplots(
        *size, figsize=(1.3 + 2.6 * size[1], 0.9 + 2.7 * size[0]), squeeze=False, layout="constrained"
    )
    numbers: dict = {}
    for column, (title, network) in enumerate(networks.items()):
        numbers[title] = {}
        for axis, factor in zip(axes[:, column], factors):
            field = effective_receptive_fields(network, widened(images, factor), [-1])[0]
            sides = {"side_50": field.side(0.5), "side_90": field.side(0.9)}
            beyond = field.beyond(*images.shape[2:])
            height, width = field.shares.shape
            numbers[title][f"{factor:g}"] = {"canvas": [height, width], **sides, "beyond": beyond}
            image = draw_field(axis, field)
            label = f"50 %: {sides['side_50']:.2f}, 90 %: {sides['side_90']:.2f}"
            axis.set_xlabel(label + (f"\nbeyond {images.shape[3]} pixels: {100 * beyond:.0f} %" if factor > 1 else ""))
            if column == 0:
                axis.set_ylabel(f"canvas {factor:g}x: {width} x {height}", fontsize=11)
        axes[0, column].set_title(title, fontsize=11)
    add_scale(figure, image, axes)
    figure.suptitle("Effective receptive field of the centre token; below: sides of the squares that hold it / canvas")
    save(figure, out)
    return numbers
