"""Feature maps of a photograph: principal components as colours, and the channels that vary most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from mmsmlp.drawing import png
from mmsmlp.visualize.inputs import size_name
from mmsmlp.visualize.network import eval_mode, maps_of, token_size

_PANEL = 2.2  # inches, the width of a panel
_TAIL = 0.02  # of the values at either end that colours saturate at
_SHADE = 0.7  # how opaque a channel lies over the photograph


@dataclass(frozen=True)
class Projection:
    """Three principal components of the tokens of a map, with the range of their values.

    Attributes:
        mean (Tensor): (C,) float64.
        components (Tensor): (3, C) float64, orthonormal, by falling variance; zeros where there are fewer than 3
            channels. Of the two signs of a component, the one with which its largest entry is positive.
        low (Tensor): (3,) float64: values up to here are drawn as 0,
        high (Tensor): (3,) float64: and from here on as 1.
    """

    mean: Tensor
    components: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def fit(cls, features: Tensor) -> Projection:
        """Find the components of a map (C, H, W)."""
        tokens = features.double().flatten(1).T  # (C, H, W) -> (H*W, C)
        mean = tokens.mean(0)
        centred = tokens - mean
        components = torch.linalg.eigh(centred.T @ centred).eigenvectors.flip(1).T[:3]
        largest = components.gather(1, components.abs().argmax(1, keepdim=True))
        components = nn.functional.pad(components * largest.sign(), (0, 0, 0, 3 - len(components)))
        values = centred @ components.T
        low, high = (values.quantile(share, dim=0) for share in (_TAIL, 1 - _TAIL))
        return cls(mean, components, low, high)

    def __call__(self, features: Tensor) -> Tensor:
        """A map (C, H, W) as colours (H, W, 3) in [0, 1], red for the first component."""
        values = (features.double().flatten(1).T - self.mean) @ self.components.T
        span = (self.high - self.low).clamp(min=1e-12)
        return ((values - self.low) / span).clamp(0, 1).reshape(*features.shape[1:], 3)


def strongest_channels(features: Tensor, count: int = 3) -> list[int]:
    """The channels of a map (C, H, W) that vary most over its positions, the first one most."""
    variance = features.double().flatten(1).var(1, unbiased=False)
    return variance.topk(min(count, len(variance))).indices.tolist()


def feature_maps(backbone: nn.Module, image: Tensor) -> list[Tensor]:
    """The maps of an image (1, C, H, W), as the network takes it: (C, H, W) each, in eval mode."""
    with eval_mode(backbone), torch.no_grad():
        return [level[0] for level in maps_of(backbone, image)]


def draw_level(
    number: int, photographs: Mapping[tuple[int, int], np.ndarray], features: Sequence[Tensor], count: int = 3
) -> bytes:
    """Draw the maps of one level: a row for each size; the photograph, its components, and single channels over it.

    Components, channels and the ranges of their colours are those of the first size, so the same colour means the same
    feature at all sizes.

    Args:
        number (int): Of the level, for the title.
        photographs (Mapping[tuple[int, int], np.ndarray]): Height and width -> the photograph (H, W, 3) uint8.
        features (Sequence[Tensor]): The map (C, H, W) at each of these sizes.
        count (int): Number of channels. Defaults to 3.

    Returns:
        bytes: A PNG.
    """
    first = features[0]
    project, channels = Projection.fit(first), strongest_channels(first, count)
    limits = [first[c].double().flatten().quantile(torch.tensor([_TAIL, 1 - _TAIL]).double()) for c in channels]
    heights = [_PANEL * height / width + 0.2 for height, width in photographs]
    columns = 2 + len(channels)
    figure, axes = plt.subplots(
        len(features),
        columns,
        figsize=(0.5 + _PANEL * columns, 0.7 + sum(heights)),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
    )
    for row, (size, photograph), found in zip(axes, photographs.items(), features):
        whole = (0, size[1], size[0], 0)
        counts = found.shape[1:]
        covered = [token_size(pixels, tokens) * tokens for pixels, tokens in zip(size, counts)]
        extent = (0, covered[1], covered[0], 0)
        row[0].imshow(photograph, extent=whole)
        row[0].set_ylabel(size_name(size), fontsize=11)
        row[1].imshow(project(found).numpy(), extent=extent, interpolation="nearest")
        row[1].set_xlabel(f"{counts[0]} x {counts[1]} tokens")
        grey = photograph.mean(-1)
        for axis, channel, (low, high) in zip(row[2:], channels, limits):
            axis.imshow(grey, extent=whole, cmap="gray", vmin=0, vmax=255)
            colours = {"cmap": "viridis", "vmin": float(low), "vmax": float(high), "alpha": _SHADE}
            axis.imshow(found[channel].numpy(), extent=extent, interpolation="nearest", **colours)
        for axis in row:
            axis.set(xticks=[], yticks=[], xlim=(0, size[1]), ylim=(size[0], 0))
    titles = ("photograph", "components", *(f"channel {channel}" for channel in channels))
    for axis, title in zip(axes[0], titles):
        axis.set_title(title)
    figure.suptitle(f"Feature maps of level {number}")
    return png(figure, Image.Quantize.MEDIANCUT)
