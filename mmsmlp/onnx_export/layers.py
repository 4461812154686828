"""The network's layers in operators whose sizes may stay open: one graph for every input size.

The layers themselves choose by the sizes they meet: which matrix is cached, which path is shorter, whether a map has to
be padded. A graph with open sizes can hold none of these choices, so :func:`make_exportable` replaces them by formulas
that are right for all sizes, those of docs/deploy.md. What comes out is equal to rounding.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmsmlp.blocks import PatchConv
from mmsmlp.layers import AxisLinear
from mmsmlp.resize import branchless_pair


def make_exportable(model: nn.Module) -> nn.Module:
    """Replace, in place, the layers of a model whose code depends on the input's size; the weights stay.

    Axis layers, the patches before stages, adaptive average pooling, and mmseg's ``Upsample``.

    Args:
        model (nn.Module): A copy of the model that nobody else needs.

    Returns:
        nn.Module: ``model``.

    Raises:
        ValueError: If there is a layer that has no such form.
    """
    for name, layer in model.named_modules():
        form = _form(name, layer)
        if form is not None:
            layer.__class__ = form
        elif isinstance(layer, (nn.AdaptiveMaxPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool3d)):
            raise ValueError(f"{name} is a {type(layer).__name__}, which has no form for open sizes")
    return model


def bicubic_matrix(n: int, m: int) -> Tensor:
    """Bicubic resizing from n to m positions as a matrix: that of ``F.interpolate(mode='bicubic')`` along one axis.

    Keys' kernel with a = -3/4, not widened on the way down; taps beyond an edge fall on the edge.

    Args:
        n (int): Number of positions to read; a number.
        m (int): Number of positions to write; may be symbolic.

    Returns:
        Tensor: (m, n), float32, rows summing to 1.
    """
    rows, columns = 2 * torch.arange(m) + 1, 2 * torch.arange(-2, n + 2) + 1
    distance = (rows[:, None] * n - columns * m).abs().float() / (2 * m)
    near = (1.25 * distance - 2.25) * distance * distance + 1
    far = ((-0.75 * distance + 3.75) * distance - 6) * distance + 3
    taps = torch.where(distance <= 1, near, torch.where(distance < 2, far, 0.0))
    clamped = torch.arange(-2, n + 2).clamp(0, n - 1)
    return taps @ (clamped[:, None] == torch.arange(n)).float()


def scaled_matrices(n: int, m: int) -> tuple[Tensor, Tensor]:
    """Matrices (m, n) and (n, m) of the method 'scaled'."""
    write = bicubic_matrix(n, m)
    return write, write.T * n / m


def naive_matrices(n: int, m: int) -> tuple[Tensor, Tensor]:
    """Matrices (m, n) and (n, m) of the method 'naive'."""
    write = bicubic_matrix(n, m)
    return write, write.T


def _of_resize(method: str) -> Callable[[int, int], tuple[Tensor, Tensor]]:
    return lambda n, m: branchless_pair(n, m, method, like=torch.empty(0))


MATRICES = {
    "bounded": _of_resize("bounded"),
    "exact": _of_resize("exact"),
    "scaled": scaled_matrices,
    "naive": naive_matrices,
}


def averaging_matrix(src: int, dst: int) -> Tensor:
    """Adaptive average pooling along an axis as a matrix.

    Cell i is the mean of the positions from ``floor(i src / dst)`` up to, not including, ``ceil((i + 1) src / dst)``.

    Args:
        src (int): Number of positions; may be symbolic.
        dst (int): Number of cells.

    Returns:
        Tensor: (dst, src), float32, rows summing to 1.
    """
    cell, position = torch.arange(dst)[:, None], torch.arange(src)
    # start <= position < stop, in whole numbers.
    inside = ((position + 1) * dst > cell * src) & (position * dst < (cell + 1) * src)
    inside = inside.float()
    return inside / inside.sum(1, keepdim=True)


class _AxisLinear(AxisLinear):
    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        size = x.shape[self.dim]
        write, read = MATRICES[self.interpolation](self.length, size)
        weight = (write @ (self.weight.float() @ read)).to(x.dtype)
        # Not as a product: onnxruntime's quantisation would take the bias for a layer's weight.
        bias = (write * self.bias.float()).sum(1, keepdim=True).to(x.dtype)
        if self.dim == 2:
            return weight @ x + bias
        return (weight @ x.reshape(batch, height, width * channels) + bias).reshape(x.shape)


class _PatchConv(PatchConv):
    def _embed(self, x: Tensor) -> Tensor:
        bottom, right = -x.shape[2] % self.patch_size, -x.shape[3] % self.patch_size
        return F.conv2d(F.pad(x, (0, right, 0, bottom)), self.weight, stride=self.stride)


class _AdaptiveAvgPool2d(nn.AdaptiveAvgPool2d):
    def forward(self, x: Tensor) -> Tensor:
        size = self.output_size if isinstance(self.output_size, (tuple, list)) else (self.output_size,) * 2
        for dim, cells in zip((2, 3), size):
            if cells == 1:
                x = x.mean(dim, keepdim=True)
            elif cells is not None:  # None leaves an axis as it is
                matrix = averaging_matrix(x.shape[dim], cells).to(x)
                x = matrix @ x if dim == 2 else x @ matrix.T
        return x


def _upsampled(self: nn.Module, x: Tensor) -> Tensor:
    size = self.size or [length * int(self.scale_factor) for length in x.shape[2:]]
    return F.interpolate(x, size, None, self.mode, self.align_corners)


def _form(name: str, layer: nn.Module) -> type | None:
    """The class that computes what a layer does at any size."""
    if isinstance(layer, AxisLinear):
        return _AxisLinear
    if isinstance(layer, PatchConv):
        return _PatchConv
    if isinstance(layer, nn.AdaptiveAvgPool2d):
        return _AdaptiveAvgPool2d
    # mmseg's, known by what it has: mmseg is not imported for models that do not need it.
    if type(layer).__name__ == "Upsample" and type(layer).__module__.startswith("mmseg."):
        if layer.scale_factor and layer.scale_factor != int(layer.scale_factor):
            raise ValueError(f"{name} upsamples by {layer.scale_factor}, which has no form for open sizes")
        return type("_Upsample", (type(layer),), {"forward": _upsampled})
    return None
