"""Positional interpolation: axis weights learned on n positions, applied to m positions.

An axis FC layer mixes the n positions of a row (or column): ``y = W x + b`` with ``W`` (n, n). The functions here turn
``W`` and ``b`` into those of m positions. Every method but the two bicubic ones has the form

    W' = T(n -> m) W T(m -> n),    b' = T(n -> m) b

with a resampling matrix ``T``: read the finer or coarser signal on the anchor's n positions, mix there as learned, and
write the result back. The properties that follow are proven in docs/mathematics.md.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

METHODS = ("exact", "bounded", "scaled", "naive")
DEFAULT_METHOD = "bounded"  # what follows from the tables of docs/positional_interpolation.md

# One network at one input size needs 16 matrices at most (4 stages, 2 axes, 2 directions); this holds the sizes of
# many training steps at random scales, and bounds the memory of a long run with ever changing sizes.
_CACHED_MATRICES = 512


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
    if size == n:
        return weight
    with _no_autocast(weight.device):
        matrix = weight.to(_compute_dtype(weight))
        if method in ("scaled", "naive"):
            matrix = F.interpolate(matrix[None, None], size=(size, size), mode="bicubic", align_corners=False)[0, 0]
            matrix = matrix * (n / size) if method == "scaled" else matrix
        else:
            matrix = _resampling_matrix_like(n, size, method, matrix) @ (
                matrix @ _resampling_matrix_like(size, n, method, matrix)
            )
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
    if size == n:
        return bias
    with _no_autocast(bias.device):
        vector = bias.to(_compute_dtype(bias))
        if method in ("scaled", "naive"):
            vector = F.interpolate(vector[None, None, None], size=(1, size), mode="bicubic", align_corners=False)
            vector = vector.flatten()
        else:
            vector = _resampling_matrix_like(n, size, method, vector) @ vector
    return vector.to(bias.dtype)


def is_axis_parameter(tensor: Tensor, ndim: int) -> bool:
    """Whether a tensor has the shape of an axis weight, (n, n) with ``ndim`` 2, or of an axis bias, (n,) with 1."""
    return tensor.ndim == ndim and len({int(length) for length in tensor.shape}) == 1 and tensor.numel() > 0


def check_method(method: str) -> str:
    """Return ``method`` if it is one of ``METHODS``, else raise ``ValueError`` naming them."""
    if method not in METHODS:
        raise ValueError(f"unknown interpolation {method!r}, choose one of {', '.join(map(repr, METHODS))}")
    return method


@lru_cache(maxsize=_CACHED_MATRICES)
def _cached_resampling_matrix(src: int, dst: int, method: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    # A tensor first made in inference mode could not take part in a later training step.
    with torch.inference_mode(False), torch.no_grad():
        return resampling_matrix(src, dst, method).to(device=device, dtype=dtype)


def _resampling_matrix_like(src: int, dst: int, method: str, like: Tensor) -> Tensor:
    # torch.export runs the network on fake tensors; one of them in the cache would come up in every later call.
    real = type(like) in (Tensor, torch.nn.Parameter)
    matrix = _cached_resampling_matrix if real else _cached_resampling_matrix.__wrapped__
    return matrix(src, dst, method, like.dtype, like.device)


def _no_autocast(device: torch.device) -> AbstractContextManager:
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


def _positions(count: int) -> Tensor:
    return torch.arange(count, dtype=torch.float64, device="cpu")  # whatever torch.set_default_device says


def _compute_dtype(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _check_size(name: str, size: int) -> None:
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ValueError(f"{name} must be a positive integer, got {size!r}")


def _check_axis_parameter(name: str, tensor: Tensor, ndim: int, size: int, method: str) -> int:
    check_method(method)
    _check_size("size", size)
    if not is_axis_parameter(tensor, ndim) or not tensor.is_floating_point():
        wanted = "(n, n)" if ndim == 2 else "(n,)"
        raise ValueError(f"{name} must be a floating-point tensor {wanted}, got {tensor.dtype} {tuple(tensor.shape)}")
    return int(tensor.shape[0])
