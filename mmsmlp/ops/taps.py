"""Products of maps with matrices that have few entries in each row, such as interpolation: "taps" of a filter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from mmsmlp.ops.parts import lines_at_a_time
from mmsmlp.resize import CACHED_MATRICES


@dataclass(frozen=True)
class Taps:
    """A matrix with few entries in each row, as what it is built from; so it is cheap to compare and to look up.

    Attributes:
        build (Callable[[int, int], Tensor]): Makes the matrix (dst, src) in float64 on the CPU, of ``src`` and ``dst``,
            e.g. :func:`mmsmlp.resize.interpolation_matrix`.
        src (int): Number of positions that ``build`` goes from.
        dst (int): Number of positions that ``build`` goes to.
        transposed (bool): Whether the matrix is the transpose of that, (src, dst).
    """

    build: Callable[[int, int], Tensor]
    src: int
    dst: int
    transposed: bool = False

    @property
    def transpose(self) -> Taps:
        """The transposed matrix."""
        return replace(self, transposed=not self.transposed)

    def matrix(self) -> Tensor:
        """The matrix itself, float64, on the CPU."""
        matrix = self.build(self.src, self.dst)
        return matrix.T if self.transposed else matrix


def combine(x: Tensor, dim: int, taps: Taps) -> Tensor:
    """Apply a matrix of few taps along an axis of a map: one MAC a tap and value, without a permuted copy.

    Deterministic, forward and backward, and differentiable any number of times.

    Args:
        x (Tensor): Map (N, H, W, C), with the columns of the matrix along ``dim``; float32 or float64.
        dim (int): 1 (H) or 2 (W).
        taps (Taps): The matrix.

    Returns:
        Tensor: Map (N, H, W, C), contiguous, with the rows of the matrix along ``dim``.
    """
    return _Combine.apply(x, dim, taps)


def add_combined(out: Tensor, x: Tensor, dim: int, taps: Taps) -> None:
    """Add :func:`combine` of a map to another one in place, some lines or rows at a time; without gradients.

    Args:
        out (Tensor): Map (N, H, W, C), contiguous, with the rows of the matrix along ``dim``.
        x (Tensor): Map (N, H, W, C), contiguous, with the columns of the matrix along ``dim``.
        dim (int): 1 (H) or 2 (W).
        taps (Taps): The matrix.
    """
    count = lines_at_a_time(out)
    if dim == 2:  # each of them is a line of its own
        lines = (m.view(1, -1, *m.shape[2:]).split(count, dim=1) for m in (out, x))
        for part, source in zip(*lines):
            part.add_(_combined(source, dim, taps))
        return
    for image, source in zip(out.split(1), x.split(1)):
        for start in range(0, out.shape[1], count):
            rows = slice(start, start + count)
            add_rows(image[:, rows], source, dim, taps, rows)


def add_rows(out: Tensor, x: Tensor, dim: int, taps: Taps, rows: slice) -> None:
    """Add some rows of :func:`combine` of a map to those rows of another one in place; without gradients.

    Args:
        out (Tensor): Rows (N, rows, W, C) of a map.
        x (Tensor): Map (N, H, W, C), contiguous, with the columns of the matrix along ``dim``.
        dim (int): 1 (H) or 2 (W).
        taps (Taps): The matrix.
        rows (slice): Which rows of the result, along H, whatever ``dim`` is.
    """
    out.add_(_combined(x, dim, taps, rows) if dim == 1 else _combined(x[:, rows], dim, taps))


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, dim: int, taps: Taps) -> Tensor:
        return _combined(x, dim, taps)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        _, ctx.dim, ctx.taps = inputs

    @staticmethod
    def backward(ctx, grad: Tensor):
        return combine(grad, ctx.dim, ctx.taps.transpose), None, None


def _combined(x: Tensor, dim: int, taps: Taps, rows: slice = slice(None)) -> Tensor:
    n, h, w, c = x.shape
    lines, behind = (n, w) if dim == 1 else (n * h, 1)
    index, weight = (table[rows] for table in _rows(taps, x.dtype, x.device))  # (rows, K)
    count, per_bag = index.shape

    def numbers(stop: int, step: int = 1) -> Tensor:
        return torch.arange(0, stop, step, dtype=torch.int32, device=x.device)

    # Of all operators of PyTorch those of embedding bags are the fastest here by a factor of two and more, and the
    # gradient is of the same kind: interpolation's own backward adds up atomically on a GPU, in any order.
    # A cell of the map is a table row of C values; the bag of (line, row, position behind the axis) sums the cells
    # (line, index, position).
    cells = numbers(lines * x.shape[dim], x.shape[dim])[:, None, None, None] + index[:, None]
    cells = (cells * behind + numbers(behind)[:, None]).flatten()
    weights = weight[:, None].expand(lines, count, behind, per_bag).flatten()
    bags = numbers(len(cells), per_bag)
    sum_up = torch.ops.aten._embedding_bag_forward_only
    out = sum_up(x.reshape(-1, c), cells, bags, False, 0, False, weights, False, -1)[0]
    return out.view(n, count, w, c) if dim == 1 else out.view(n, h, count, c)


@lru_cache(maxsize=CACHED_MATRICES)
def _rows(taps: Taps, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Columns and values of a matrix's entries, both (rows, K) with the K of the fullest row."""
    with torch.inference_mode(False), torch.no_grad():
        matrix = taps.matrix()
        entries = matrix != 0
        fullest = int(entries.sum(1).max())
        # Columns with entries first, in their order.
        index = (~entries).to(torch.int8).argsort(dim=1, stable=True)[:, :fullest]
        weight = matrix.gather(1, index)
        # Rows with fewer are filled by zeros times a cell that they read anyway: one elsewhere may hold a NaN.
        index = torch.where(weight == 0, index[:, :1], index)
        return index.to(device, torch.int32), weight.to(device, dtype)
