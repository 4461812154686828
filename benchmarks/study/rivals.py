"""Other answers to "any resolution" than interpolated weights: features resized to the anchor grid, and windows.

Both use the axis weights as they were learned, only ever on the anchor grid, and need no training of their own.
"""

from __future__ import annotations

import copy
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from mmsmlp import SMLPNet
from mmsmlp.layers import AxisLinear, SparseMLP
from mmsmlp.valid_area import attached_valid_sizes

RIVALS = ("features", "windows")

# Windows that go through the network at once, for memory; a batch of more images goes one position at a time.
_WINDOWS_AT_ONCE = 16


def use_rival(backbone: SMLPNet, name: str) -> SMLPNet:
    """Make the backbone that answers in another way, from one that is built and loaded.

    Args:
        backbone (SMLPNet): The backbone; stays as it is.
        name (str): ``'features'`` (:class:`FeatureResizing`) or ``'windows'`` (:class:`Windows`).

    Returns:
        SMLPNet: A backbone with the same parameters and buffers, not copies of them, under the same names, and in the
            same mode.

    Raises:
        ValueError: If there is no such rival, or the backbone is none that interpolates weights.
    """
    if name not in RIVALS:
        raise ValueError(f"unknown rival {name!r}, choose one of {', '.join(map(repr, RIVALS))}")
    if type(backbone) is not SMLPNet:
        raise ValueError(f"a rival is made from an SMLPNet, got {type(backbone).__name__}")
    shared = {id(tensor): tensor for tensor in (*backbone.parameters(), *backbone.buffers())}
    rival = copy.deepcopy(backbone, shared)
    # Only how they compute is another: constructors would make weights, and wrappers change the names in state_dict.
    rival.__class__ = FeatureResizing if name == "features" else Windows
    if name == "features":
        for sparse_mlp in [module for module in rival.modules() if isinstance(module, SparseMLP)]:
            grid = (sparse_mlp.mix_h.length, sparse_mlp.mix_w.length)
            for layer in (sparse_mlp.mix_h, sparse_mlp.mix_w):
                layer.__class__, layer.grid = AnchorGridLinear, grid
    return rival


class AnchorGridLinear(AxisLinear):
    """An :class:`AxisLinear` that resizes its map, not its weight: to the anchor grid (H and W), mixed, and back.

    Bicubic with half-pixel centres and without antialiasing in both directions. A map of the anchor's size is not
    touched.

    Attributes:
        grid (tuple[int, int]): Anchor positions (H, W).
    """

    grid: tuple[int, int]

    def forward(self, x: Tensor) -> Tensor:
        """Mix (N, H, W, C) along the axis; any H and W, same shape out."""
        size = tuple(x.shape[1:3])
        if size == self.grid:
            return super().forward(x)
        return _resized(super().forward(_resized(x, self.grid)), size)


class FeatureResizing(SMLPNet):
    """Features resized to the anchor grid and back, around the axis mixing of every block, as RaftMLP does.

    RaftMLP (arXiv 2108.04384, okojoalg/raft-mlp: ``RaftShrink`` and ``RaftExpansion`` in libs/modules.py, around the
    token mixing of each block) resizes with ``F.interpolate(mode='bicubic', align_corners=False)``, down as well as up,
    without antialiasing. So does this. Two things are sMLPNet's own:

    - RaftMLP resizes a block's whole input, with its norms and its residual connection, and detail finer than the
      anchor grid ends there. Here the mixed branches alone are resized. The identity branch, the residual connection
      and the depth-wise convolution need no grid and stay at full resolution, as RaftMLP's channel mixing does.
    - Sizes that a patch does not divide are zero-padded, as ever in :class:`SMLPNet`; RaftMLP stretches them.
    """

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the maps of ``out_indices``, see :class:`SMLPNet`; valid sizes on ``x`` raise ``ValueError``."""
        _refuse_valid_sizes(x)
        return super().forward(x)


class Windows(SMLPNet):
    """The network on overlapping windows of the anchor's size, their maps stitched: the mean where windows overlap.

    As mmseg's sliding inference (``EncoderDecoder.slide_inference``) does with a segmentor's scores, here with the
    backbone's maps, so that detectors and classifiers can have it. A token sees its windows and nothing beyond.

    A window is ``img_size``, rounded up to whole patches. Windows start at multiples of the total stride, so that
    the tokens of all levels coincide. They are half a window apart, rounded down to such a multiple (at least one total
    stride), and the last ends at the border: the image is zero-padded to one window plus a whole number of total
    strides, and the maps are cropped to :class:`SMLPNet`'s sizes. Eval mode only: batch norms would count the pixels of
    overlaps several times.
    """

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the maps of ``out_indices``.

        Args:
            x (Tensor): Images (N, C_in, H, W), any H and W from 1 up.

        Returns:
            tuple[Tensor, ...]: Maps (N, C, ceil(H / stride), ceil(W / stride)), as from :class:`SMLPNet`.

        Raises:
            ValueError: If ``x`` is no such batch or carries valid sizes, or in training mode.
        """
        _refuse_valid_sizes(x)
        if self.training:
            raise ValueError("windows are made for evaluation: call eval() on the model first")
        if x.ndim != 4 or 0 in x.shape:
            raise ValueError(f"windows are cut from images (N, C, H, W) with N, H, W >= 1, got {tuple(x.shape)}")
        images, _, height, width = x.shape
        rows, columns = (positions * self.strides[0] for positions in self.grids[0])
        tops, lefts = window_starts(height, rows, self.strides[-1]), window_starts(width, columns, self.strides[-1])
        x = F.pad(x, (0, lefts[-1] + columns - width, 0, tops[-1] + rows - height))
        corners = list(product(tops, lefts))
        crops = [x[:, :, top : top + rows, left : left + columns] for top, left in corners]
        at_once = max(_WINDOWS_AT_ONCE // images, 1)
        maps = [[] for _ in self.out_indices]  # of each stage the maps (N, C, h, w) of each window
        for first in range(0, len(crops), at_once):
            for level, batch in zip(maps, super().forward(torch.cat(crops[first : first + at_once]))):
                level += batch.split(images)
        strides = [self.strides[i] for i in self.out_indices]
        return tuple(_stitched(level, corners, stride, height, width) for level, stride in zip(maps, strides))


def window_starts(size: int, window: int, total_stride: int) -> list[int]:
    """Pixels at which the windows along an axis start, see :class:`Windows`.

    Args:
        size (int): Pixels of the image.
        window (int): Pixels of a window.
        total_stride (int): Pixels between two tokens of the last stage.

    Returns:
        list[int]: Multiples of ``total_stride``, ascending from 0. The last window reaches the end of the image.
    """
    last = max(-(-(size - window) // total_stride), 0) * total_stride
    step = max(window // 2 // total_stride, 1) * total_stride
    return [*range(0, last, step), last]


def _stitched(maps: list[Tensor], corners: list[tuple[int, int]], stride: int, height: int, width: int) -> Tensor:
    """Lay the maps (N, C, h, w) of windows at ``corners`` (pixels) on the whole image's, means where they overlap."""
    rows, columns = maps[0].shape[2:]
    bottom, right = corners[-1][0] // stride + rows, corners[-1][1] // stride + columns
    total = maps[0].new_zeros(*maps[0].shape[:2], bottom, right)
    count = maps[0].new_zeros(bottom, right)
    for m, (top, left) in zip(maps, corners):
        area = (..., slice(top // stride, top // stride + rows), slice(left // stride, left // stride + columns))
        total[area] += m
        count[area] += 1
    return (total / count)[:, :, : -(-height // stride), : -(-width // stride)].contiguous()


def _resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    x = F.interpolate(x.permute(0, 3, 1, 2), size, mode="bicubic", align_corners=False)
    return x.permute(0, 2, 3, 1)


def _refuse_valid_sizes(x: Tensor) -> None:
    if attached_valid_sizes(x) is not None:
        raise ValueError(
            "the study's rivals do not know valid areas: use the toolbox's own data_preprocessor, not mmsmlp's"
        )
