"""The most that matrix products reach on this machine: what a fraction of the peak refers to."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch

SIZES = (1024, 2048, 4096)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

Rates = dict[int, list[float]]


def product_rates(
    dtype: str, device: str, sizes: tuple[int, ...] = SIZES, repeats: int = 3, product: Callable = torch.mm
) -> Rates:
    """Rates of square matrix products in GFLOPS, a multiply-accumulate counted as two.

    Args:
        dtype (str): 'fp32' or 'bf16'.
        device (str): 'cpu' or 'cuda'. Threads are PyTorch's present number of them.
        sizes (tuple[int, ...]): Numbers of rows.
        repeats (int): Products of each size, after one to warm up.
        product (Callable): Multiplies two matrices. Defaults to PyTorch's own product.

    Returns:
        dict[int, list[float]]: The rate of each product, by its number of rows.
    """
    rates: Rates = {}
    with torch.inference_mode():
        for size in sizes:
            a, b = (torch.randn(size, size, device=device).to(DTYPES[dtype]) for _ in range(2))
            product(a, b)
            for _ in range(repeats):
                start = _now(device)
                product(a, b)
                rates.setdefault(size, []).append(2e-9 * size**3 / (_now(device) - start))
    return rates


def peak_rate(sessions: Sequence[Rates]) -> float:
    """The best size's median rate over all sessions: a median, as the times are that it is compared with."""
    return max(statistics.median(rate for rates in sessions for rate in rates[size]) for size in sessions[0])


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
