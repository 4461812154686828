"""What valid areas cost: time of sMLPNet-T with them against the plain path, on the same batches."""

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from mmsmlp import SMLPNet
from mmsmlp.valid_area import attach_valid_sizes
from padding import INTERPOLATION

# Heights and widths in pixels. On the same canvas, 320 x 320.
BATCHES = {
    "upright and lying": [(213, 320), (320, 213), (240, 320), (320, 320)],
    "nearly full": [(320, 320), (320, 315), (311, 320), (317, 318)],
}


def measure(repeats: int, track: Callable) -> list[dict]:
    """Medians of interleaved runs, in seconds.

    Args:
        repeats (int): Runs of each kind, after one to warm up.
        track (Callable): Shows progress.

    Returns:
        list[dict]: For each batch and ``kind`` of run: ``share`` of the canvas that is image, seconds ``plain`` and
            ``noted`` (with valid areas), and ``ratio``, the median over runs of one over the other.
    """
    torch.manual_seed(0)
    network = SMLPNet("tiny", interpolation=INTERPOLATION)
    rows = []
    for (name, sizes), kind in track([(b, k) for b in BATCHES.items() for k in ("forward", "training step")], "Cost"):
        batch = torch.zeros(len(sizes), 3, 320, 320)
        for canvas, (height, width) in zip(batch, sizes):
            canvas[:, :height, :width].normal_()
        batches = {"plain": batch, "noted": attach_valid_sizes(batch.clone(), sizes)}
        run = _forward if kind == "forward" else _step
        seconds: dict[str, list[float]] = {path: [] for path in batches}
        for repeat in range(repeats + 1):
            for path in sorted(batches, reverse=repeat % 2):
                start = time.perf_counter()
                run(network, batches[path])
                seconds[path].append(time.perf_counter() - start)
        ratios = [noted / plain for plain, noted in zip(seconds["plain"][1:], seconds["noted"][1:])]
        rows.append(
            {
                "batch": name,
                "kind": kind,
                "share": sum(height * width for height, width in sizes) / (len(sizes) * 320 * 320),
                "repeats": repeats,
                **{path: statistics.median(times[1:]) for path, times in seconds.items()},
                "ratio": statistics.median(ratios),
            }
        )
    return rows


def _forward(network: SMLPNet, batch: Tensor) -> None:
    network.eval()
    with torch.no_grad():
        network(batch)


def _step(network: SMLPNet, batch: Tensor) -> None:
    network.train().zero_grad()
    sum(maps.square().mean() for maps in network(batch)).backward()
