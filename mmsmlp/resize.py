"""Positional interpolation: axis weights learned on n positions, applied to m positions.

An axis FC layer mixes the n positions of a row (or column): ``y = W x + b`` with ``W`` (n, n). The functions here turn
``W`` and ``b`` into those of m positions. Every method but the two bicubic ones has the form

    W' = T(n -> m) W T(m -> n),    b' = T(n -> m) b

with a resampling matrix ``T``: read the finer or coarser signal on the anchor's n positions, mix there as learned, and
write the result back. The properties that follow are proven in docs/mathematics.md.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from mmsmlp.symbols import is_fixed

METHODS = ("exact", "bounded", "scaled", "naive")
DEFAULT_METHOD = "bounded"  # what follows from the tables of docs/positional_interpolation.md

# One network at one input size needs 16 matrices at most (4 stages, 2 axes, 2 directions); this holds the sizes of
# many training steps at random scales, and bounds the memory of a long run with ever changing sizes.
CACHED_MATRICES = 512


def interpolation_matrix(src: int, dst: int) -> Tensor:
    """Linear interpolation from ``src`` to ``dst`` positions as a matrix.

    Half-pixel centres, edges clamped, no antialiasing: the matrix form of
    ``F.interpolate(mode='linear', align_corners=False)``.

    Args:
        src (int): Number of positions to read, at least 1.
        dst (int): Number of positions to write, at least 1.

    Returns:
        Tensor: ``(dst, src)``, float64, rows summing to 1.

    Raises:
        ValueError: If a size is not a positive integer.
    """
    _check_size("src", src)
    _check_size("dst", dst)
    centre = ((_positions(dst) + 0.5) * (src / dst) - 0.5).clamp(0, src - 1)
    # The hat function of width 1 around each centre: two taps a row at most, one where a centre falls on a position.
    taps = 1 - (centre[:, None] - _positions(src)).abs()
    return taps.clamp(min=0)


def antialiased_matrix(src: int, dst: int) -> Tensor:
    """Triangle filter from a finer to a coarser grid, widened to their ratio, as a matrix.

    The matrix form of ``F.interpolate(mode='bilinear', antialias=True)`` along one axis: at the borders the filter is
    cut off and renormalised. No entry is negative, so absolute row sums are 1 and nothing is amplified.

    Args:
        src (int): Number of positions of the finer grid.
        dst (int): Number of positions of the coarser grid, at most ``src``.

    Returns:
        Tensor: ``(dst, src)``, float64, rows summing to 1.

    Raises:
        ValueError: If a size is not a positive integer or ``dst`` exceeds ``src``.
    """
    _check_size("src", src)
    _check_size("dst", dst)
    if dst > src:
        raise ValueError(f"an antialiased matrix goes to a coarser grid, but dst={dst} is finer than src={src}")
    ratio = src / dst
    centre = (_positions(dst) + 0.5) * ratio
    position = _positions(src) + 0.5
    taps = (1 - (centre[:, None] - position).abs() / ratio).clamp(min=0)
    return taps / taps.sum(1, keepdim=True)


def resampling_matrix(src: int, dst: int, method: str = DEFAULT_METHOD) -> Tensor:
    """The matrix ``T(src -> dst)`` of a method: linear interpolation upwards, its counterpart downwards.

    Args:
        src (int): Number of positions to read.
        dst (int): Number of positions to write.
        method (str): ``'exact'`` goes down by the pseudo-inverse of the upward matrix (least squares), ``'bounded'``
            by the antialiased triangle filter.

    Returns:
        Tensor: ``(dst, src)``, float64, rows summing to 1.

    Raises:
        ValueError: If a size or the method is invalid.
    """
    if method not in ("exact", "bounded"):
        raise ValueError(f"resampling matrices exist for the methods 'exact' and 'bounded', not {method!r}")
    if dst >= src:
        return interpolation_matrix(src, dst)
    if method == "bounded":
        return antialiased_matrix(src, dst)
    up = interpolation_matrix(dst, src)  # (src, dst), full column rank
    return torch.cholesky_solve(up.T, torch.linalg.cholesky(up.T @ up))  # (UᵀU)⁻¹ Uᵀ


def resize_axis_weight(weight: Tensor, size: int, method: str = DEFAULT_METHOD) -> Tensor:
    """Resize the weight of an axis FC layer from its n anchor positions to ``size`` positions.

    Args:
        weight (Tensor): ``(n, n)``, a floating-point matrix mapping positions to positions.
        size (int): The number of positions m wanted, at least 1.
        method (str): One of ``METHODS``:

            - ``'exact'``: ``T W T`` with the pseudo-inverse; resizing and mixing commute for m >= n, and n -> m -> n
              gives ``weight`` back.
            - ``'bounded'``: ``T W T`` with the antialiased filter; amplifies nothing.
            - ``'scaled'``: the matrix resized bicubically, times n / m, which keeps the row sums about right.
            - ``'naive'``: the matrix resized bicubically alone; row sums grow with m / n. For comparison only.

    Returns:
        Tensor: ``(size, size)``, same dtype and device, differentiable. ``weight`` itself if ``size == n``.
            Computed in float64 for float64 inputs, else in float32, whatever autocast says.

    Raises:
        ValueError: If the method, the size or the shape is invalid.
    """
    n = _check_axis_parameter("weight", weight, 2, size, method)
    if is_fixed(size, n) and size == n:
        return weight
    with no_autocast(weight.device):
        matrix = weight.to(compute_dtype(weight))
        if method in ("scaled", "naive"):
            matrix = F.interpolate(matrix[None, None], size=(size, size), mode="bicubic", align_corners=False)[0, 0]
            matrix = matrix * (n / size) if method == "scaled" else matrix
        else:
            write, read = resampling_pair(n, size, method, like=matrix)
            matrix = write @ (matrix @ read)
    return matrix.to(weight.dtype)


def resize_axis_bias(bias: Tensor, size: int, method: str = DEFAULT_METHOD) -> Tensor:
    """Resize the bias of an axis FC layer from its n anchor positions to ``size`` positions.

    A bias is a signal along the axis, so ``'naive'`` and ``'scaled'`` agree on it: bicubic, with no factor.

    Args:
        bias (Tensor): ``(n,)``, floating point.
        size (int): The number of positions wanted, at least 1.
        method (str): One of ``METHODS``, see :func:`resize_axis_weight`.

    Returns:
        Tensor: ``(size,)``, same dtype and device, differentiable. ``bias`` itself if ``size == n``.

    Raises:
        ValueError: If the method, the size or the shape is invalid.
    """
    n = _check_axis_parameter("bias", bias, 1, size, method)
    if is_fixed(size, n) and size == n:
        return bias
    with no_autocast(bias.device):
        vector = bias.to(compute_dtype(bias))
        if method in ("scaled", "naive"):
            vector = F.interpolate(vector[None, None, None], size=(1, size), mode="bicubic", align_corners=False)
            vector = vector.flatten()
        else:
            vector = resampling_pair(n, size, method, like=vector)[0] @ vector
    return vector.to(bias.dtype)


def resampling_pair(n: int, m: int, method: str, like: Tensor) -> tuple[Tensor, Tensor]:
    """``T(n -> m)`` and ``T(m -> n)`` in the dtype and on the device of a tensor.

    Args:
        n (int): Number of anchor positions.
        m (int): Number of positions wanted; may be a symbol of ``torch.export`` or ``torch.compile``.
        method (str): 'exact' or 'bounded'.
        like (Tensor): Gives dtype and device.

    Returns:
        tuple[Tensor, Tensor]: (m, n) and (n, m), not to be written to.
    """
    if is_fixed(m, n):
        sizes = ((n, m), (m, n))
        return tuple(cached_matrix(resampling_matrix, *pair, method, like=like) for pair in sizes)
    return branchless_pair(n, m, method, like)


def branchless_pair(n: int, m: int, method: str, like: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`resampling_pair` by one formula for m below, at and above n: a graph of it serves every size.

    Both matrices are made of the same hat functions, as wide as the spacing of the coarser grid: with rows normalised,
    those from the coarser to the finer grid interpolate, those back are the triangle filter. The pseudo-inverse of
    'exact' comes from Newton-Schulz steps, matrix products alone, which every exporter knows.
    """
    dtype = torch.float64 if method == "exact" else like.dtype
    i = torch.arange(m, device=like.device)[:, None]
    j = torch.arange(n, device=like.device)
    # Distances of positions i + 1/2 of m and j + 1/2 of n, times 2 n m: whole numbers, so exact at every size.
    distance = ((2 * i + 1) * n - (2 * j + 1) * m).abs().to(dtype)
    taps = (1 - torch.minimum(distance / (2 * n), distance / (2 * m))).clamp(min=0)  # over 2 max(n, m)
    write = taps / taps.sum(1, keepdim=True)
    read = taps.T / taps.T.sum(1, keepdim=True)
    if method == "exact":
        finer = i[-1, 0] >= n - 1  # whether m >= n, as a tensor
        up = torch.where(finer, write, read.T)  # the one that interpolates, or its transpose
        inverse = _pseudo_inverse(up, n)
        write, read = torch.where(finer, write, inverse.T), torch.where(finer, inverse, read)
    return write.to(like.dtype), read.to(like.dtype)


def _pseudo_inverse(up: Tensor, n: int) -> Tensor:
    """The pseudo-inverse (n, m) of an interpolation matrix (m, n) or of the transpose of one, float64."""
    inverse = up.T / (up.sum(0).max() * up.sum(1).max())
    twice = 2 * torch.eye(n, dtype=up.dtype, device=up.device)
    # The worst condition, n / 2 at m = n + 1, costs log2(n) steps; then digits double with every step.
    for _ in range(6 + n.bit_length()):
        inverse = (twice - inverse @ up) @ inverse
    return inverse


def is_axis_parameter(tensor: Tensor, ndim: int) -> bool:
    """Whether a tensor has the shape of an axis weight, (n, n) with ``ndim`` 2, or of an axis bias, (n,) with 1."""
    return tensor.ndim == ndim and len({int(length) for length in tensor.shape}) == 1 and tensor.numel() > 0


def check_method(method: str) -> str:
    """Return ``method`` if it is one of ``METHODS``, else raise ``ValueError`` naming them."""
    if method not in METHODS:
        raise ValueError(f"unknown interpolation {method!r}, choose one of {', '.join(map(repr, METHODS))}")
    return method


def cached_matrix(build: Callable[..., Tensor], *arguments: int | str, like: Tensor) -> Tensor:
    """A matrix in the dtype and on the device of a tensor, built once and kept outside of any module's state.

    Args:
        build (Callable[..., Tensor]): Makes the matrix in float64 on the CPU, e.g. :func:`resampling_matrix`.
        *arguments (int | str): What it takes.
        like (Tensor): Gives dtype and device.

    Returns:
        Tensor: The matrix, shared by all who ask: not to be written to.
    """
    # torch.export runs the network on fake tensors; one of them in the cache would come up in every later call.
    cached = _cached_matrix if is_plain(like) else _cached_matrix.__wrapped__
    return cached(build, arguments, like.dtype, like.device)


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is of PyTorch's own type, not a subclass such as the fake tensors of ``torch.export``."""
    return type(tensor) in (Tensor, torch.nn.Parameter)


def no_autocast(device: torch.device) -> AbstractContextManager:
    """A context without autocast on a device."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype that matrices are computed in: float64 for float64 tensors, else float32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


@lru_cache(maxsize=CACHED_MATRICES)
def _cached_matrix(build: Callable, arguments: tuple, dtype: torch.dtype, device: torch.device) -> Tensor:
    # A tensor first made in inference mode could not take part in a later training step.
    with torch.inference_mode(False), torch.no_grad():
        return build(*arguments).to(device=device, dtype=dtype)


def _positions(count: int) -> Tensor:
    return torch.arange(count, dtype=torch.float64, device="cpu")  # whatever torch.set_default_device says


def _check_size(name: str, size: int) -> None:
    if isinstance(size, torch.SymInt):
        return
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ValueError(f"{name} must be a positive integer, got {size!r}")


def _check_axis_parameter(name: str, tensor: Tensor, ndim: int, size: int, method: str) -> int:
    check_method(method)
    _check_size("size", size)
    if not is_axis_parameter(tensor, ndim) or not tensor.is_floating_point():
        wanted = "(n, n)" if ndim == 2 else "(n,)"
        raise ValueError(f"{name} must be a floating-point tensor {wanted}, got {tensor.dtype} {tuple(tensor.shape)}")
    return int(tensor.shape[0])
