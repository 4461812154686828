"""Three ways to mix the positions of an axis at another size than the anchor's; they agree to rounding.

On m > n positions, the methods 'exact' and 'bounded' of :mod:`mmsmlp.resize` have the form ``W' = U W R`` with
interpolation ``U`` (m, n) and reading ``R`` (n, m): the rank is n, and applying W' as it stands is a waste.

- dense: build W' and apply it: m multiply-accumulates (MACs) per value. The only way for the other methods, and for
  m <= n, where W' is small and has nothing to factor.
- low rank: apply ``W R``, then ``U``: 2 n MACs per value. Plain matrix products, so it can be exported and compiled.
- two-tap: ``U`` has two entries a row at most. For 'bounded' ``R`` has as few in all; for 'exact' it is
  ``(UᵀU)⁻¹ Uᵀ``, whose inverse (n, n) is folded into W. This makes 4 + n² / m MACs per value.

:func:`choose_path` picks one by a table of constants. Maps are (N, H, W, C), contiguous: the memory of channels-last.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmsmlp.ops.taps import Taps, combine
from mmsmlp.resize import (
    antialiased_matrix,
    cached_matrix,
    compute_dtype,
    interpolation_matrix,
    is_plain,
    no_autocast,
    resampling_matrix,
    resize_axis_bias,
    resize_axis_weight,
)
from mmsmlp.symbols import is_compiling, is_fixed


@dataclass(frozen=True)
class Rates:
    """What the paths' steps cost on a kind of device, in picoseconds on one thread or one GPU.

    Attributes:
        product (float): One MAC of a matrix product in float32.
        half_product (float): The same in float16 or bfloat16.
        tap (float): One MAC of a product with a matrix of few entries.
        conversion (float): Converting a value of a map to float32 and, of the result, back.
        channel (float): One MAC of a product with a channel weight in float32.
    """

    product: float
    half_product: float
    tap: float
    conversion: float
    channel: float


# Printed by `python benchmarks/axis_paths.py --method bounded`, a part of `make bench`, on the first of the two CPUs of
# docs/performance.md; those of a GPU are an estimate for an H100, not yet measured.
RATES = {
    "cpu": Rates(product=27, half_product=11, tap=240, conversion=240, channel=10),
    "cuda": Rates(product=0.04, half_product=0.005, tap=2, conversion=6, channel=0.04),
}
RATES["meta"] = RATES["cpu"]  # operations counted without computing are those of a CPU


def mix_axis(x: Tensor, weight: Tensor, bias: Tensor, dim: int, method: str) -> Tensor:
    """Apply an axis FC layer to a map with any number of positions, on the path of :func:`choose_path`.

    Args:
        x (Tensor): Map (N, H, W, C).
        weight (Tensor): (n, n), on the anchor's positions.
        bias (Tensor): (n,).
        dim (int): The axis of ``x`` to mix along, 1 (H) or 2 (W).
        method (str): One of ``mmsmlp.resize.METHODS``.

    Returns:
        Tensor: Map (N, H, W, C), contiguous, in the dtype of a matrix product with ``x``: autocast's, or its own.
    """
    half = product_dtype(x).itemsize == 2
    path = choose_path(len(weight), _size(x, dim), method, x.device.type, half=half, traced=is_traced(x))
    return PATHS[path](x, weight, bias, dim, method)


def choose_path(
    n: int, m: int, method: str, device_type: str, half: bool = False, traced: bool = False, channels: int = 0
) -> str:
    """Tell which path costs least by ``RATES``: a function of its arguments alone, never of a measurement at run time.

    The number of lines is not among them, so an image takes the same path alone and in any batch.

    Args:
        n (int): Number of anchor positions.
        m (int): Number of positions of the map.
        method (str): One of ``mmsmlp.resize.METHODS``.
        device_type (str): Type of the map's device; two-tap is for those of ``RATES``, others count as 'cpu'.
        half (bool): Whether products are computed in float16 or bfloat16. The factored paths then compute in float32:
            with their steps rounded one by one they would be less accurate than the dense path.
        traced (bool): Whether the operations are recorded by ``torch.compile``, ``torch.export`` or
            ``torch.jit.trace``: then not two-tap, whose operator few exporters know.
        channels (int): Number of channels that are fused along the way (:mod:`mmsmlp.ops.fused`): on the m positions of
            the dense path, on the n of two-tap; low rank is not for that.

    Returns:
        str: 'dense', 'low_rank' or 'two_tap'; 'dense' where m is a symbol, so that one graph serves any.
    """
    if method not in ("exact", "bounded") or not is_fixed(m, n) or m <= n:
        return "dense"
    rates = RATES.get(device_type, RATES["cpu"])
    conversion = rates.conversion * m if half else 0
    # Of one line and one channel.
    costs = {
        "dense": (rates.half_product if half else rates.product) * m * m + rates.channel * channels * m,
    }
    if not channels:
        costs["low_rank"] = rates.product * 2 * n * m + conversion
    if device_type in RATES and not traced:
        costs["two_tap"] = rates.product * n * n + rates.tap * 4 * m + rates.channel * channels * n + conversion
    return min(costs, key=costs.get)


def mix_dense(x: Tensor, weight: Tensor, bias: Tensor, dim: int, method: str) -> Tensor:
    """Apply the resized layer, see :func:`mix_axis`; for any method and size."""
    size = _size(x, dim)
    return product(resize_axis_weight(weight, size, method), x, dim, resize_axis_bias(bias, size, method))


def mix_low_rank(x: Tensor, weight: Tensor, bias: Tensor, dim: int, method: str) -> Tensor:
    """Apply ``W R``, then ``U``, see :func:`mix_axis`; for m > n positions, 'exact' or 'bounded'.

    Raises:
        ValueError: If there are no such factors.
    """
    n, m = _factored_sizes(x, weight, dim, method)
    result_dtype, dtype = product_dtype(x), compute_dtype(x)
    with no_autocast(x.device):
        x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
        read = cached_matrix(resampling_matrix, m, n, method, like=weight)
        write = cached_matrix(resampling_matrix, n, m, method, like=weight)
        mixed = product(weight @ read, x, dim, bias)
        return product(write, mixed, dim).to(result_dtype)


def mix_two_tap(x: Tensor, weight: Tensor, bias: Tensor, dim: int, method: str) -> Tensor:
    """Read by few taps, mix on the anchor grid, interpolate by two taps, see :func:`mix_axis`; where low rank goes.

    For the backward pass it keeps ``x``, like the dense path, and reads from it again.

    Raises:
        ValueError: If there are no such factors.
    """
    n, m = _factored_sizes(x, weight, dim, method)
    result_dtype, dtype = product_dtype(x), compute_dtype(x)
    with no_autocast(x.device):
        weight, bias = weight.to(dtype), bias.to(dtype)
        weight, read, write = two_tap_factors(weight, m, method)
        mixed = _ReadAndMix.apply(x, weight, bias, dim, read)
        return combine(mixed, dim, write).to(result_dtype)


def two_tap_factors(weight: Tensor, m: int, method: str) -> tuple[Tensor, Taps, Taps]:
    """Factors of a resized weight ``W' = write V read``, ``V`` on the anchor's positions; 'exact' or 'bounded', m > n.

    Args:
        weight (Tensor): (n, n).
        m (int): Number of positions of the map.
        method (str): 'exact' or 'bounded'.

    Returns:
        tuple[Tensor, Taps, Taps]: ``V`` (n, n), ``read`` (n, m) and ``write`` (m, n).
    """
    n = len(weight)
    write = Taps(interpolation_matrix, n, m)
    if method == "bounded":
        return weight, Taps(antialiased_matrix, m, n), write
    return weight @ cached_matrix(_inverse_gram, n, m, like=weight), write.transpose, write


PATHS = {"dense": mix_dense, "low_rank": mix_low_rank, "two_tap": mix_two_tap}


class _ReadAndMix(torch.autograd.Function):
    """``weight @ (taps @ x) + bias`` along ``dim`` of (N, H, W, C), in the dtype of ``weight``.

    What was read is not kept: both axes keep one and the same map, as on the dense path.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, dim: int, taps: Taps) -> Tensor:
        return product(weight, combine(x.to(weight.dtype), dim, taps), dim, bias)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        x, weight, _, ctx.dim, ctx.taps = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        with no_autocast(grad.device):
            if ctx.needs_input_grad[0]:
                grad_read = product(weight.T, grad, ctx.dim)
                grad_x = combine(grad_read, ctx.dim, ctx.taps.transpose).to(x.dtype)
            lines = lines_of(grad, ctx.dim)
            if ctx.needs_input_grad[1]:
                read = combine(x.to(weight.dtype), ctx.dim, ctx.taps)
                grad_weight = torch.bmm(lines, lines_of(read, ctx.dim).transpose(1, 2)).sum(0)
            if ctx.needs_input_grad[2]:
                grad_bias = lines.sum((0, 2))
        return grad_x, grad_weight, grad_bias, None, None


def _inverse_gram(n: int, m: int) -> Tensor:
    """``(UᵀU)⁻¹`` (n, n) of interpolation from n to m > n positions; its condition is about 3, at m = n + 1 n / 2."""
    up = interpolation_matrix(n, m)
    return torch.cholesky_inverse(torch.linalg.cholesky(up.T @ up))


def product(matrix: Tensor, x: Tensor, dim: int, bias: Tensor | None = None) -> Tensor:
    """``matrix @ x + bias`` along ``dim`` of (N, H, W, C), ``matrix`` (rows, positions)."""
    n, h, w, c = x.shape
    rows = matrix.shape[0]  # len() would make a number of a symbol
    lines = lines_of(x, dim)
    # `expand` makes a batch of the shared matrix without copying it.
    matrix = matrix.expand(lines.shape[0], *matrix.shape)
    mixed = torch.bmm(matrix, lines) if bias is None else torch.baddbmm(bias[:, None], matrix, lines)
    if dim == 2:
        return mixed.view(n, h, rows, c)
    # A view wants w to divide w * c, which torch.export does not see; windows of c values are the same view.
    return mixed.unfold(2, c, c) if isinstance(w, torch.SymInt) else mixed.view(n, rows, w, c)


def lines_of(x: Tensor, dim: int) -> Tensor:
    """One matrix per line of (N, H, W, C): (W, C) for each row, or (H, W*C) for each image; a view."""
    n, h, w, c = x.shape
    return x.reshape(n, h, w * c) if dim == 1 else x.reshape(n * h, w, c)


def add_product(out: Tensor, matrix: Tensor, x: Tensor, dim: int) -> Tensor:
    """Add ``matrix @ x`` along ``dim`` of (N, H, W, C) to ``out``, contiguous, in place; returns ``out``."""
    lines = lines_of(x, dim)
    lines_of(out, dim).baddbmm_(matrix.expand(lines.shape[0], *matrix.shape), lines)
    return out


def _size(x: Tensor, dim: int) -> int:
    # Sizes are tensors while torch.jit.trace runs; the toolboxes' get_flops.py trace.
    return int(x.shape[dim]) if torch.jit.is_tracing() else x.shape[dim]


def _factored_sizes(x: Tensor, weight: Tensor, dim: int, method: str) -> tuple[int, int]:
    n, m = len(weight), _size(x, dim)
    if m <= n or method not in ("exact", "bounded"):
        raise ValueError(
            f"a layer of {n} positions has factors on more positions, by 'exact' or 'bounded', not on {m} by "
            f"{method!r}: use mix_dense"
        )
    return n, m


def product_dtype(x: Tensor) -> torch.dtype:
    """What a matrix product with ``x`` gives, with autocast or without; PyTorch has no one question for all devices."""
    probe = x.new_empty(0, 0)
    return torch.mm(probe, probe).dtype


def is_traced(x: Tensor) -> bool:
    """Whether operations on a tensor are recorded by ``torch.compile``, ``torch.export`` or ``torch.jit.trace``."""
    return torch.jit.is_tracing() or is_compiling() or not is_plain(x)
