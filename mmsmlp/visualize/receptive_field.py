"""Effective receptive fields (arXiv 1701.04128): how much each pixel moves the token in the middle of a map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mmsmlp.visualize.network import eval_mode, maps_of, token_size

_CANCELS = 1e-4  # a sum this small beside the sum of absolute values is rounding


@dataclass(frozen=True)
class ReceptiveField:
    """How much each pixel moves one token.

    Attributes:
        shares (Tensor): (H, W) float64, sums to 1: absolute gradients, averaged over images, summed over channels.
        centre (tuple[float, float]): Row and column of the token's centre, in pixels from the upper left corner.
        token (tuple[float, float]): Height and width of a token in pixels.
    """

    shares: Tensor
    centre: tuple[float, float]
    token: tuple[float, float] = (1, 1)

    def reach(self) -> tuple[Tensor, Tensor]:
        """How the field spreads with the distance from the token.

        Returns:
            tuple[Tensor, Tensor]: Half sides of squares round the token's centre in pixels, ascending, and the shares
                that lie within, (K,) float64 both. The last share is 1.
        """
        rows, columns = self._distances()
        distance, order = torch.maximum(rows[:, None], columns[None]).flatten().sort()
        held = self.shares.flatten()[order].cumsum(0)
        last = torch.cat([distance[1:] > distance[:-1], torch.ones(1, dtype=torch.bool)])  # of equal distances
        return distance[last] + 0.5, held[last]

    def half_side(self, share: float) -> float:
        """Half a side, in pixels, of the smallest square round the token that holds a share of the field."""
        distance, held = self.reach()
        return float(distance[min(int((held < share - 1e-9).sum()), len(held) - 1)])

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

    def own_lines(self) -> tuple[float, float]:
        """How much lies on the token's own row and column of tokens, which form a cross.

        Returns:
            tuple[float, float]: Share of the field, and for comparison share of the canvas, that the cross holds.
        """
        rows, columns = (line < token / 2 for line, token in zip(self._distances(), self.token))
        cross = rows[:, None] | columns[None]
        return float(self.shares[cross].sum()), float(cross.double().mean())

    def _distances(self) -> tuple[Tensor, Tensor]:
        """Of the pixels' centres from the token's, along rows (H,) and along columns (W,)."""
        return tuple(
            (torch.arange(size, dtype=torch.float64) + 0.5 - centre).abs()
            for size, centre in zip(self.shares.shape, self.centre)
        )


def effective_receptive_fields(
    backbone: nn.Module, images: Tensor, levels: Sequence[int] | None = None
) -> list[ReceptiveField]:
    """The effective receptive fields of the tokens that lie in the middle of the maps.

    What is differentiated is the sum of a token's channels. A LayerNorm at the end makes that sum a constant; then it
    is the sum of the positive ones.

    Args:
        backbone (nn.Module): Returns a map, or several. It is run in eval mode, one image at a time.
        images (Tensor): (N, C, H, W), as the network takes them: gradients are averaged over them.
        levels (Sequence[int], optional): Which maps, negative numbers count from the last. Defaults to all.

    Returns:
        list[ReceptiveField]: One for each level. Of an even number of tokens, the token in the middle is the one right
            of and below it.

    Raises:
        ValueError: If the images are not four-dimensional, or a field is zero everywhere.
    """
    if images.ndim != 4 or not len(images):
        raise ValueError(f"images must be (N, C, H, W), got {tuple(images.shape)}")
    canvas = tuple(images.shape[2:])
    totals: dict[int, Tensor] = {}
    with eval_mode(backbone), torch.enable_grad():
        for image in images.split(1):  # one by one, to save memory
            image = image.detach().clone().requires_grad_()
            maps = maps_of(backbone, image)
            wanted = range(len(maps)) if levels is None else levels
            for position, level in enumerate(wanted, 1):
                row, column = (int(centre / token) for centre, token in zip(*_middle(canvas, maps[level])))
                value = _feature_sum(maps[level][0])[row, column]
                gradient = torch.autograd.grad(value, image, retain_graph=position < len(wanted))[0]
                totals[level] = totals.get(level, 0) + gradient.abs().sum((0, 1)).double()
    fields = []
    for level, total in totals.items():
        if not total.sum() > 0:
            raise ValueError("no pixel has a gradient: is the network's output constant?")
        fields.append(ReceptiveField(total / total.sum(), *_middle(canvas, maps[level])))
    return fields


def _middle(canvas: tuple[int, int], level: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Centre of the token in the middle, row and column in pixels; height and width of a token."""
    tokens = tuple(token_size(pixels, count) for pixels, count in zip(canvas, level.shape[2:]))
    return tuple((int(pixels / 2 / token) + 0.5) * token for pixels, token in zip(canvas, tokens)), tokens


def _feature_sum(features: Tensor) -> Tensor:
    """Sum over the channels of (C, H, W), of the positive ones where positive and negative ones cancel."""
    total, size = features.sum(0), features.abs().sum(0)
    return features.clamp(min=0).sum(0) if total.abs().max() <= _CANCELS * size.max() else total
