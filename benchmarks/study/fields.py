"""Effective receptive fields: how far a token sees on canvases of several sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.colors import LogNorm
from torch import Tensor, nn

from study.drawing import save

_CELLS = 80  # along an axis of a drawn receptive field


@dataclass(frozen=True)
class ReceptiveField:
    """How much each pixel moves one token.

    Attributes:
        shares (Tensor): (H, W) float64, sums to 1: absolute gradients, averaged over images, summed over channels.
        centre (tuple[float, float]): Row and column of the token's centre, in pixels from the upper left corner.
    """

    shares: Tensor
    centre: tuple[float, float]

    def half_side(self, share: float) -> float:
        """Half a side, in pixels, of the smallest square round the token that holds a share of the field."""
        rows, columns = (
            (torch.arange(size, dtype=torch.float64) + 0.5 - centre).abs()
            for size, centre in zip(self.shares.shape, self.centre)
        )
        distance, order = torch.maximum(rows[:, None], columns[None]).flatten().sort()
        held = self.shares.flatten()[order].cumsum(0)
        last = min(int((held < share - 1e-9).sum()), len(held) - 1)
        return float(distance[last]) + 0.5

    def side(self, share: float) -> float:
        """Side of that square relative to the canvas; an even field has the side ``share ** 0.5``.

        Where the square leaves the canvas only its part inside counts: the root of that part's share of the area.
        """
        half, area = self.half_side(share), 1.0
        for size, centre in zip(self.shares.shape, self.centre):
            area *= (min(centre + half, size) - max(centre - half, 0)) / size
        return area**0.5

    def beyond(self, height: int, width: int) -> float:
        """Share of the field outside of a (height, width) window round the token, moved to lie on the canvas."""
        inside = self.shares
        for dim, size in enumerate((height, width)):
            length = inside.shape[dim]
            start = min(max(round(self.centre[dim] - size / 2), 0), max(length - size, 0))
            inside = inside.narrow(dim, start, min(size, length))
        return 1 - float(inside.sum())


def effective_receptive_field(backbone: nn.Module, images: Tensor, factor: float = 1) -> ReceptiveField:
    """The effective receptive field (arXiv 1701.04128) of the last map's centre token, summed over its channels.

    Args:
        backbone (nn.Module): Returns a map, or maps the last of which counts. It is run in eval mode.
        images (Tensor): (N, C, H, W), as the network takes them.
        factor (float): How many times as high and wide the canvas is; images are continued as their own mirror image.

    Returns:
        ReceptiveField: On a canvas (round(factor * H), round(factor * W)). Of an even number of tokens, the centre
            token is the one right of and below the middle.

    Raises:
        ValueError: If the images are not four-dimensional, the factor is below 1, or the field is zero everywhere.
    """
    if images.ndim != 4 or not len(images):
        raise ValueError(f"images must be (N, C, H, W), got {tuple(images.shape)}")
    if factor < 1:
        raise ValueError(f"a canvas is at least as large as the images (factor 1), got {factor}")
    for dim in (2, 3):
        length = images.shape[dim]
        position = torch.arange(round(factor * length)) % (2 * length)
        images = images.index_select(dim, torch.minimum(position, 2 * length - 1 - position))
    modes = [(module, module.training) for module in backbone.modules()]
    backbone.eval()
    total = torch.zeros(images.shape[2:], dtype=torch.float64)
    try:
        for image in images.split(1):  # one by one, to save memory
            image = image.detach().clone().requires_grad_()
            maps = backbone(image)
            last = maps[-1] if isinstance(maps, Sequence) else maps
            tokens = last.shape[2:]
            token = last[0, :, tokens[0] // 2, tokens[1] // 2].sum()
            total += torch.autograd.grad(token, image)[0].abs().sum((0, 1))
    finally:
        for module, mode in modes:
            module.training = mode
    if not total.sum() > 0:
        raise ValueError("no pixel has a gradient: is the network's output constant?")
    centre = tuple((count // 2 + 0.5) * size / count for count, size in zip(tokens, total.shape))
    return ReceptiveField(total / total.sum(), centre)


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
            field = effective_receptive_field(network, images, factor)
            sides = {"side_50": field.side(0.5), "side_90": field.side(0.9)}
            beyond = field.beyond(*images.shape[2:])
            height, width = field.shares.shape
            numbers[title][f"{factor:g}"] = {"canvas": [height, width], **sides, "beyond": beyond}
            image = _draw_field(axis, field)
            label = f"50 %: {sides['side_50']:.2f}, 90 %: {sides['side_90']:.2f}"
            axis.set_xlabel(label + (f"\nbeyond {images.shape[3]} pixels: {100 * beyond:.0f} %" if factor > 1 else ""))
            if column == 0:
                axis.set_ylabel(f"canvas {factor:g}x: {width} x {height}", fontsize=11)
        axes[0, column].set_title(title, fontsize=11)
    bar = figure.colorbar(image, ax=axes, shrink=0.7, aspect=30, extend="both")
    bar.set_label("gradient, relative to an even spread over the canvas")
    figure.suptitle("Effective receptive field of the centre token; below: sides of the squares that hold it / canvas")
    save(figure, out)
    return numbers


def _draw_field(axis, field: ReceptiveField):
    density = field.shares * field.shares.numel()
    height, width = density.shape
    step = max(height // _CELLS, 1)  # means over as many cells on every canvas, else small canvases look noisier
    density = nn.functional.avg_pool2d(density[None, None], step, ceil_mode=True, count_include_pad=False)[0, 0]
    image = axis.imshow(
        density.clamp(min=1e-9).numpy(), cmap="magma", extent=(0, width, height, 0), norm=LogNorm(0.03, 30)
    )
    y, x = field.centre
    for share, style in ((0.5, "-"), (0.9, "--")):
        half = field.half_side(share)
        corner = (x - half, y - half)
        axis.add_patch(plt.Rectangle(corner, 2 * half, 2 * half, fill=False, color="white", linestyle=style))
    axis.set(xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0))
    return image
