"""Time and memory of a group of rows: interleaved runs, each row in fresh processes of its own."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from speed.matrix_peak import SIZES, Rates, peak_rate, product_rates
from speed.plan import ONNX, Group
from speed.worker import Row, Sample, Worker


@dataclass(frozen=True)
class Settings:
    """How a run measures.

    Attributes:
        device (str): 'cpu' or 'cuda'.
        threads (int): Threads of PyTorch's operators.
        sessions (int): Fresh processes of each row, one after the other; each gives one figure of memory.
        repeats (int): Timed runs of each row in all, where they are quick.
        limit (float): Seconds of rounds in a session, after the first passes.
        peak_sizes (tuple[int, ...]): Rows of the matrix products that give the peak.
        onnx (Path | None): The file that onnxruntime runs, where there are such rows.
    """

    device: str
    threads: int
    sessions: int = 3
    repeats: int = 15
    limit: float = 15.0
    peak_sizes: tuple[int, ...] = SIZES
    onnx: Path | None = None


def measure(group: Group, settings: Settings, report: Callable[[Row], None] = lambda row: None) -> list[dict]:
    """Measure the rows of a group.

    A session times matrix products for the peak, since what slows the machine for a while slows that, too, and makes
    a process for each row. Every process makes a first pass, and what memory it took then counts. Then come rounds, in
    each of which every process runs once, in changing order: these are timed, see :func:`plan_rounds`.

    Args:
        group (tuple[Row, ...]): The rows.
        settings (Settings): How to measure.
        report (Callable[[Row], None]): Told of each run before it begins.

    Returns:
        list[dict]: A result for each row: its own fields, ``median_ms``, ``spread`` (interquartile range over the
            median), ``samples``, ``peak_mb`` (median over the sessions, in MiB), ``gmacs`` of the forward pass of the
            whole batch, ``peak_gflops`` of matrix products in the group's type, ``peak_fraction`` of it, a training
            step counted as three forward passes, and ``parts_ms`` where the time is split.

    Raises:
        RuntimeError: If a row's process fails.
    """
    samples: dict[Row, list[Sample]] = {row: [] for row in group}
    memory: dict[Row, list[float]] = {row: [] for row in group}
    macs: dict[Row, int] = {}
    rates: list[Rates] = []
    for session in range(settings.sessions):
        rates.append(product_rates(group[0].dtype, settings.device, settings.peak_sizes))
        workers: dict[Row, Worker] = {}
        try:
            for row in group:
                onnx = settings.onnx if row.run == ONNX else None
                workers[row] = Worker(row, settings.device, settings.threads, onnx)
            first = {}
            for row in _order(group, session):
                report(row)
                first[row] = workers[row].run()
                memory[row].append(first[row].peak_mib)
            seconds = sum(sample.seconds for sample in first.values())
            warm_ups, rounds = plan_rounds(settings, seconds)
            if not rounds:
                for row, sample in first.items():
                    samples[row].append(sample)
            for number in range(warm_ups + rounds):
                for row in _order(group, session + number + 1):
                    report(row)
                    sample = workers[row].run()
                    if number >= warm_ups:
                        samples[row].append(sample)
            if session == 0:
                macs = {row: worker.macs() for row, worker in workers.items()}
        finally:
            for worker in workers.values():
                worker.close()
    gflops = peak_rate(rates)
    return [_result(row, samples[row], memory[row], macs[row], gflops) for row in group]


def plan_rounds(settings: Settings, seconds: float) -> tuple[int, int]:
    """How many rounds of a session warm up, and how many are timed.

    A first pass does much that is done once, and the memory of a process grows in its second one, too: a training step
    has page faults then, and hardly any from the third on. So a round warms up where the limit affords another one.
    Where it affords none, the first passes have to be the timed ones; what they do once is little beside such a time.

    Args:
        settings (Settings): How to measure.
        seconds (float): What a round takes.

    Returns:
        tuple[int, int]: The two numbers.
    """
    affordable = math.floor(min(math.ceil(settings.repeats / settings.sessions) + 1, settings.limit / seconds))
    warm_ups = int(affordable > 1)
    return warm_ups, affordable - warm_ups


def _order(group: Group, number: int) -> list[Row]:
    """The rows in the order of a round: another begins each time, every second one goes backwards."""
    start = number % len(group)
    rows = [*group[start:], *group[:start]]
    return rows[::-1] if number % 2 else rows


def _result(row: Row, samples: list[Sample], memory: list[float], macs: int, gflops: float) -> dict:
    times = [1e3 * sample.seconds for sample in samples]
    median = statistics.median(times)
    quarters = statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else [median] * 3
    parts = {part: statistics.median(1e3 * s.parts.get(part, 0.0) for s in samples) for part in samples[0].parts}
    passes = 3 if row.mode == "train" else 1
    return {
        **asdict(row),
        "shape": list(row.shape),
        "median_ms": median,
        "spread": (quarters[2] - quarters[0]) / median,
        "samples": len(times),
        "peak_mb": statistics.median(memory),
        "gmacs": macs / 1e9,
        "peak_gflops": gflops,
        "peak_fraction": 2e-9 * passes * macs / (median / 1e3) / gflops,
        **({"parts_ms": parts} if parts else {}),
    }
