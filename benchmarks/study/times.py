"""Time of the backbone with every answer, on one thread: heads and pasting, which no answer changes, left out."""

from __future__ import annotations

import time
from statistics import median

import torch

from mmsmlp.resize import METHODS
from study.backbones import with_interpolation
from study.plan import ANSWERS
from study.rivals import use_rival

# Heights and widths in pixels: the coins' test image, and scenes of 2 x 2 and 4 x 4 of it, padded to multiples of 32.
SIZES = ((160, 384), (320, 768), (640, 1536))
_REPEATS = 7


def measure(backbone: torch.nn.Module) -> list[dict]:
    """Time a backbone's forward pass with every answer, interleaved, so that a drift of the machine hits all alike.

    Args:
        backbone (nn.Module): A trained SMLPNet.

    Returns:
        list[dict]: For each of ``SIZES`` its ``size``, and for every answer the median ``milliseconds``.
    """
    networks = {a: with_interpolation(backbone, a) if a in METHODS else use_rival(backbone, a) for a in ANSWERS}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows = []
    try:
        for size in SIZES:
            image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
            seconds: dict[str, list[float]] = {answer: [] for answer in ANSWERS}
            with torch.inference_mode():
                for repeat in range(_REPEATS + 1):
                    for answer, network in networks.items():
                        start = time.perf_counter()
                        network(image)
                        if repeat:  # the first pass is a warm-up
                            seconds[answer].append(time.perf_counter() - start)
            milliseconds = {answer: 1000 * median(values) for answer, values in seconds.items()}
            rows.append({"size": list(size), "milliseconds": milliseconds})
    finally:
        torch.set_num_threads(threads)
    return rows
