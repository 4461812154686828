"""Trainings that are killed and resumed, against one that is not."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import torch

from stress.rows import Outcome
from stress.trainings import differences, resumed_at, train, validations, write_config

INTERVAL = 3
KILLS = 5  # of one training
# Of 20 kills 8 are inside a checkpoint write and 4 inside a validation.
PLANS = (
    ("write", "validation", "renamed", "iteration", "write"),
    ("iteration", "write", "named", "write", "validation"),
    ("best", "validation", "write", "named", "write"),
    ("write", "renamed", "validated", "iteration", "write"),
)
KEEP = (1, 1, 2, -1)  # max_keep_ckpts


def run(tries: int, seed: int, folder: Path) -> Outcome:
    """Kill trainings as often as asked, resume each, and compare with the training that nobody killed.

    Args:
        tries (int): Number of kills.
        seed (int): Decides the moments.
        folder (Path): An empty folder.

    Returns:
        Outcome: Failed is a resume that did not start from the whole checkpoint it should, or ended otherwise. Lost
        is a training whose weights, optimizer, average, best score, history or validations are not the other's.
    """
    from mmsmlp.coins import write_coins

    data = write_coins(folder / "coins")
    chance = random.Random(seed)
    iterations = INTERVAL * (min(tries, KILLS) + 1)
    reference = folder / "reference"
    config = write_config(folder / "reference.py", data, iterations, INTERVAL)
    ended = train(config, reference)
    if ended.returncode:
        return Outcome(tries, tries, tries, (f"the training without a kill failed: {ended.stdout[-500:]}",))
    notes: list[str] = []
    failed = lost = 0
    for number, first in enumerate(range(0, tries, KILLS)):
        plan = PLANS[number % len(PLANS)][: min(KILLS, tries - first)]
        keep = KEEP[number % len(KEEP)]
        config = write_config(folder / f"killed{number}.py", data, iterations, INTERVAL, keep)
        wrong = killed_training(config, folder / f"killed{number}", plan, chance)
        failed += len(wrong)
        missing = losses(folder / f"killed{number}", reference, iterations, keep)
        lost += bool(missing)
        notes += [f"training {number}, max_keep_ckpts={keep}: {note}" for note in (*wrong, *missing)]
        shutil.rmtree(folder / f"killed{number}")
    return Outcome(tries, failed, lost, tuple(notes))


def killed_training(config: Path, work_dir: Path, plan: tuple[str, ...], chance: random.Random) -> list[str]:
    """Train by mim to the end, killed once in each interval between checkpoints.

    Args:
        config (Path): The config.
        work_dir (Path): Where to.
        plan (tuple[str, ...]): The kinds of moments, in this order.
        chance (random.Random): Decides the moments.

    Returns:
        list[str]: What went wrong.
    """
    wrong = []
    whole = 0  # the iteration of the checkpoint from which the next run has to start
    for i, kind in enumerate((*plan, None)):
        checkpoint = INTERVAL * (i + 1)
        moment = chance.randrange(INTERVAL * i, checkpoint) if kind == "iteration" else checkpoint
        kill = kind and f"{kind}:{moment}:{chance.random():.3f}"
        ended = train(config, work_dir, *(["--resume"] if i else []), kill=kill, mim=True)
        if i and resumed_at(ended.stdout) != whole:
            wrong.append(f"before {kill}: resumed from {resumed_at(ended.stdout)}, not {whole}: {ended.stdout[-300:]}")
        died = "SIGKILL" in ended.stdout  # mim says what its training died of
        if died != bool(kill) or bool(ended.returncode) != bool(kill):
            wrong.append(f"{kill}: ended with {ended.returncode}: {ended.stdout[-500:]}")
        # Where this one was not finished, the run before it went past the one before.
        whole = checkpoint if kind in ("named", "validation", "validated", "best") else INTERVAL * i
    return wrong


def losses(work_dir: Path, reference: Path, iterations: int, keep: int) -> list[str]:
    """What a training lacks that another has.

    Args:
        work_dir (Path): Of the training that was killed.
        reference (Path): Of the other.
        iterations (int): Their length.
        keep (int): ``max_keep_ckpts``.

    Returns:
        list[str]: Each loss.
    """
    found = []
    names = [f"iter_{iterations}.pth", *(file.name for file in reference.glob("best_*.pth"))]
    for name in names:
        if not (work_dir / name).is_file():
            found.append(f"{name} is missing")
            continue
        checkpoints = [torch.load(root / name, weights_only=False) for root in (work_dir, reference)]
        for checkpoint in checkpoints:
            for part in ("runtime_info", "resumed_keys"):
                checkpoint["message_hub"][part].pop("keep_ckpt_ids", None)  # max_keep_ckpts differs
        places = differences(*checkpoints)
        if places:
            found.append(f"{name} differs in {len(places)} places: {', '.join(places[:5])}")
    if validations(work_dir) != validations(reference):
        found.append(f"validations {validations(work_dir)} are not {validations(reference)}")
    kept = len(list(work_dir.glob("iter_*.pth")))
    if kept != (keep if keep > 0 else iterations // INTERVAL):
        found.append(f"{kept} checkpoints are kept")
    if list(work_dir.glob(".*.partial")) or len(list(work_dir.glob("best_*"))) != len(names) - 1:
        found.append(f"leftovers: {sorted(file.name for file in work_dir.iterdir())}")
    return found
