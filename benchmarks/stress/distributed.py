"""Trainings in two processes, one of which is killed or hangs, or sees images of other sizes."""

from __future__ import annotations

import random
import time
from pathlib import Path

import torch

from stress.rows import Outcome
from stress.trainings import differences, resumed_at, train, write_config

ITERATIONS, INTERVAL = 6, 2
TIMEOUT = 20  # seconds, env_cfg.dist_cfg.timeout
# torch.distributed.run gives a process that does not react 30 s before it kills it; the rest is starting.
LIMIT = 120
CASES = ("kill", "sizes", "hang")
WORDS = {"kill": ("SIGKILL", "Signal 9"), "hang": ("timed out", "Timed out", "timeout", "Connection closed")}
EXTRA = f"""
env_cfg = dict(dist_cfg=dict(timeout={TIMEOUT}))
find_unused_parameters = False
"""
SIZES = """
custom_hooks = [dict(type='KillHook'), dict(type='ProcessesAgreeHook')]
train_pipeline.pop(3)
"""


def run(tries: int, seed: int, folder: Path) -> Outcome:
    """Train in two processes.

    Args:
        tries (int): Number of trainings: the kinds in turn.
        seed (int): Decides the moments.
        folder (Path): An empty folder.

    Returns:
        Outcome: Failed is a job that did not end with an error in time, or did not resume. Lost is one whose
        checkpoint at the end differs from that of a job in which nothing happened.
    """
    from mmsmlp.coins import write_coins

    data = write_coins(folder / "coins")
    chance = random.Random(seed)
    config = write_config(folder / "two.py", data, ITERATIONS, INTERVAL, extra=EXTRA)
    ended = train(config, folder / "whole", processes=2)
    if ended.returncode:
        return Outcome(tries, tries, notes=(f"two processes do not train: {ended.stdout[-500:]}",))
    whole = torch.load(folder / "whole" / f"iter_{ITERATIONS}.pth", weights_only=False)
    failed = lost = 0
    notes: list[str] = []
    for number in range(tries):
        kind = CASES[number % len(CASES)]
        work_dir = folder / f"{kind}{number}"
        if kind == "sizes":
            other = write_config(folder / "sizes.py", data, ITERATIONS, INTERVAL, extra=EXTRA + SIZES)
            ended = train(other, work_dir, processes=2)
            wrong = [f"ended with {ended.returncode}: {ended.stdout[-600:]}"] if ended.returncode else []
            missing = []
        else:
            wrong = broken(config, work_dir, kind, chance.randrange(INTERVAL, ITERATIONS))
            end = work_dir / f"iter_{ITERATIONS}.pth"
            missing = ["no checkpoint at the end"]
            if end.is_file():
                missing = differences(torch.load(end, weights_only=False), whole)
        failed, lost = failed + bool(wrong), lost + bool(missing)
        notes += [f"{kind}: {note}" for note in (*wrong, *missing[:3])]
    return Outcome(tries, failed, lost, tuple(notes))


def broken(config: Path, work_dir: Path, kind: str, iteration: int) -> list[str]:
    """Break one of two processes, then resume. Returns what went wrong."""
    start = time.monotonic()
    moment = f"{'iteration' if kind == 'kill' else kind}:{iteration}:0"
    ended = train(config, work_dir, kill=moment, processes=2)
    seconds = time.monotonic() - start
    wrong = []
    if ended.returncode == 0 or not any(word in ended.stdout for word in WORDS[kind]):
        wrong.append(f"at {iteration}: ended with {ended.returncode} and no clear error: {ended.stdout[-600:]}")
    if seconds > LIMIT:
        wrong.append(f"at {iteration}: took {seconds:.0f} s to end")
    resumed = train(config, work_dir, "--resume", processes=2)
    expected = iteration // INTERVAL * INTERVAL
    if resumed.returncode or resumed_at(resumed.stdout) != expected:
        wrong.append(f"did not resume from {expected}: {resumed.stdout[-600:]}")
    return wrong
