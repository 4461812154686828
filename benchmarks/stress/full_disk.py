"""Writing to a disk that is full, or read-only: one clear line, and the old file still whole."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

from mmsmlp.checkpoint_hook import is_whole
from stress.disks import MEGABYTE, Disk, can_fail, disk
from stress.rows import Outcome
from stress.trainings import ROOT, train, write_config

PYTHON, TOOLS = sys.executable, ROOT / "tools"
REASONS = ("No space left on device", "Read-only file system", "File too large", "Permission denied")
# What is written -> the command, and the bytes that are left on a full disk: enough to begin with, not to end.
WRITERS = {
    "data set": (["make_coins.py", "{out}/coins", "--overwrite"], 60_000),
    "other data set": (["make_photos.py", "{out}/photos", "--format", "ade20k", "--overwrite"], 60_000),
    "picture": (["make_coins.py", "{data}", "--draw", "{out}/coins.png"], 10_000),
    "weights": (["reanchor.py", "{weights}", "{out}/moved.pth", "--img-size", "96", "96", "--overwrite"], 60_000),
}
if (TOOLS / "export_onnx.py").exists():
    WRITERS["ONNX file"] = (["export_onnx.py", "{config}", "--out", "{out}/model.onnx", "--part", "backbone"], 60_000)
FAULTS = ("full", "read-only")
# All that is tried, the quick ones first.
CASES = [
    *((name, fault) for name in ("data set", "picture") for fault in FAULTS),
    *((name, fault) for name in WRITERS if name not in ("data set", "picture") for fault in FAULTS),
    *(("checkpoint", fault) for fault in FAULTS),
]


def run(tries: int, seed: int, folder: Path) -> Outcome:
    """Write each thing to a whole disk, then over it to a disk with a fault.

    Args:
        tries (int): Number of cases, of ``CASES``.
        seed (int): Decides how much room a full disk has.
        folder (Path): An empty folder.

    Returns:
        Outcome: Failed is a command that did not fail, or otherwise than in one clear line. Lost is an old file that
        is not whole, or something left behind.
    """
    from mmsmlp.coins import write_coins

    data = write_coins(folder / "data")
    chance = random.Random(seed)
    failed = lost = tried = 0
    notes: list[str] = []
    for name, fault in CASES[:tries]:
        with disk(folder / "disk") as place:
            if not can_fail(fault, place):
                notes.append(f"{name}, {fault}: not tried, this user may write anywhere and mount nothing")
                continue
            tried += 1
            case = checkpoint if name == "checkpoint" else file
            wrong, missing = case(name, fault, place, data, folder, chance)
        failed, lost = failed + bool(wrong), lost + bool(missing)
        notes += [f"{name}, {fault}: {note}" for note in (*wrong, *missing)]
    return Outcome(tried, failed, lost, tuple(notes))


def file(name: str, fault: str, place: Disk, data: Path, folder: Path, chance: random.Random) -> tuple[list, list]:
    """A tool that writes a file or a folder, twice. Returns what was wrong, and what was lost."""
    words, room = WRITERS[name]
    weights = folder / "weights.pth"
    if name == "weights" and not weights.exists():
        write_weights(weights)
    config = ROOT / "configs/demo/smlpnet-mini_photos.py"
    fields = {"out": place.folder / "out", "data": data, "weights": weights, "config": config}
    (place.folder / "out").mkdir()
    command = [PYTHON, str(TOOLS / words[0]), *(word.format(**fields) for word in words[1:])]
    first = call(command, place)
    if first.returncode:
        return [f"failed on a whole disk: {first.stderr[-300:]}"], []
    before = contents(place.folder / "out")
    break_disk(place, fault, chance.randrange(room))
    second = call(command, place)
    wrong = unclear(second.returncode, second.stderr, words[0].removesuffix(".py"))
    place.mend()
    after = contents(place.folder / "out")
    return wrong, [] if after == before else [f"files differ: {sorted(before.keys() ^ after.keys()) or 'contents'}"]


def checkpoint(
    name: str, fault: str, place: Disk, data: Path, folder: Path, chance: random.Random
) -> tuple[list, list]:
    """A training that has a checkpoint and cannot write the next. Returns what was wrong, and what was lost."""
    config = write_config(folder / "short.py", data, iterations=4, interval=2)
    work_dir = place.folder / "out"
    killed = train(config, work_dir, kill="iteration:2:0")
    first = work_dir / "iter_2.pth"
    if not is_whole(first):
        return [f"no checkpoint on a whole disk: {killed.stdout[-300:]}"], []
    before = first.read_bytes()
    break_disk(place, fault, max(MEGABYTE, int(len(before) * chance.uniform(0.2, 0.9))))
    second = train(config, work_dir, "--resume", preparation=place.preparation())
    wrong = unclear(second.returncode, second.stdout, "train")
    place.mend()
    missing = []
    if not first.exists() or first.read_bytes() != before:
        missing.append("the old checkpoint is not whole")
    if list(work_dir.glob(".*.partial")):
        missing.append("half a checkpoint is left")
    third = train(config, work_dir, "--resume")
    if third.returncode or "resumed epoch: 0, iter: 2" not in third.stdout or not is_whole(work_dir / "iter_4.pth"):
        missing.append(f"the training does not go on: {third.stdout[-300:]}")
    return wrong, missing


def break_disk(place: Disk, fault: str, room: int) -> None:
    """Give a disk its fault."""
    if fault == "full":
        place.fill(room)
    else:
        place.make_read_only()


def call(command: list[str], place: Disk) -> subprocess.CompletedProcess:
    """Run a tool on a disk."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, env=variables, capture_output=True, text=True, check=False, preexec_fn=place.preparation()
    )


def unclear(status: int, output: str, tool: str) -> list[str]:
    """What is wrong with how a command failed: it has to end with one line that says who, where and why."""
    if status == 0:
        return ["it did not fail"]
    last = (output.strip().splitlines() or [""])[-1]
    if "Traceback" in output or not last.startswith(f"{tool}: ") or not any(reason in last for reason in REASONS):
        return [f"ended with {status}: {output[-400:]}"]
    return []


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write_weights(path: Path) -> None:
    """A small checkpoint to move to another grid."""
    import torch

    from mmsmlp import SMLPNet

    net = SMLPNet({"embed_dims": 8, "depths": (1, 1, 1, 1)}, img_size=64)
    torch.save({"state_dict": {f"backbone.{key}": value for key, value in net.state_dict().items()}}, path)
