"""The same training twice: the same bits."""

from __future__ import annotations

from pathlib import Path

import torch

from stress.rows import Outcome
from stress.trainings import differences, train, validations, write_config

ITERATIONS, INTERVAL = 6, 3
# Threads and processes that load images. In each, a training is repeated.
CASES = ((1, 0), (2, 0), (1, 2))


def run(tries: int, seed: int, folder: Path) -> Outcome:
    """Train, and train again, with validations and checkpoints.

    Args:
        tries (int): Number of repetitions: the cases in turn.
        seed (int): The trainings' seed.
        folder (Path): An empty folder.

    Returns:
        Outcome: Failed is a repetition that differs in its last checkpoint (weights, optimizer, average, history) or
        in a validation.
    """
    from mmsmlp.coins import write_coins

    data = write_coins(folder / "coins")
    failed = 0
    notes: list[str] = []
    first: dict[tuple[int, int], tuple[Path, dict]] = {}
    for number in range(tries):
        case = CASES[number % len(CASES)]
        if case not in first:
            first[case] = once(case, seed, data, folder / f"first{number}")
        one, other = first[case], once(case, seed, data, folder / f"again{number}")
        places = differences(*(torch.load(path, weights_only=False) for path in (one[0], other[0])))
        if places or one[1] != other[1]:
            failed += 1
            notes.append(f"{case[0]} threads, {case[1]} workers: {', '.join(places[:5])}; {one[1]}, {other[1]}")
    return Outcome(tries, failed, notes=tuple(notes))


def once(case: tuple[int, int], seed: int, data: Path, work_dir: Path) -> tuple[Path, dict]:
    """Train once. Returns the last checkpoint and the results of the validations."""
    threads, workers = case
    extra = f"randomness = dict(seed={seed})\n"
    config = write_config(work_dir.with_suffix(".py"), data, ITERATIONS, INTERVAL, workers=workers, extra=extra)
    ended = train(config, work_dir, threads=threads)
    if ended.returncode:
        raise RuntimeError(f"the training failed: {ended.stdout[-600:]}")
    return work_dir / f"iter_{ITERATIONS}.pth", validations(work_dir)
