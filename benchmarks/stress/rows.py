"""The rows of `make stress`: what each tries, how often, and the function that does it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path


@dataclass(frozen=True)
class Outcome:
    """What came of a row's tries.

    Attributes:
        tried (int): How often it was tried.
        failed (int): How many tries ended otherwise than they should: a crash, a wrong result, an unclear error.
        lost (int): How many of them lost something: a checkpoint, a result, a file that was whole before.
        notes (tuple[str, ...]): One line about each failure.
    """

    tried: int
    failed: int = 0
    lost: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """A line of docs/reliability.md.

    Attributes:
        name (str): What ``--only`` takes.
        what (str): What is tried and what must hold, for the table.
        run (Callable[[int, int, Path], Outcome]): Takes the number of tries, a seed and an empty folder to work in.
        tries (int): How often `make stress` tries it.
        short (int): How often `make test` does, at most that many tries fit into some seconds.
    """

    name: str
    what: str
    run: Callable[[int, int, Path], Outcome]
    tries: int
    short: int


def _from(module: str, function: str) -> Callable[[int, int, Path], Outcome]:
    """A function of a module beside this one, imported when it is called: some need a toolbox."""

    def run(tries: int, seed: int, folder: Path) -> Outcome:
        return getattr(import_module(f"stress.{module}"), function)(tries, seed, folder)

    return run


ROWS: tuple[Row, ...] = (
    Row(
        "checkpoints_truncated",
        "checkpoints cut off at a random byte, read in every way: refused in one line",
        _from("checkpoints", "truncated"),
        tries=50,
        short=6,
    ),
    Row(
        "checkpoints_flipped",
        "checkpoints with a random bit flipped, read in every way: refused in one line, or the flip is in no weight",
        _from("checkpoints", "flipped"),
        tries=50,
        short=6,
    ),
    Row(
        "checkpoints_unfit",
        "weights of another arch, anchor or dtype, with NaN, or no tensors, in every way: refused in one line, or "
        "loaded to the last value",
        _from("unfit", "unfit"),
        tries=127,
        short=31,
    ),
    Row(
        "checkpoints_pickles",
        "pickles that try to run code, read in every way: refused in one line, nothing is run",
        _from("pickles", "pickles"),
        tries=168,
        short=24,
    ),
    Row(
        "checkpoints_tools",
        "the tools with such checkpoints, as processes: one line each, no traceback, nothing run, nothing written",
        _from("tools", "tools"),
        tries=30,
        short=2,
    ),
    Row(
        "input_fuzzing",
        "random sizes, batches, dtypes, strides, valid areas and interpolations: right shapes, finite, each image as "
        "if alone, fused as plain",
        _from("inputs", "fuzz"),
        tries=2000,
        short=50,
    ),
    Row(
        "input_errors",
        "wrong ranks, channels, dtypes, types and empty tensors: an error that names what is expected",
        _from("inputs", "refuse"),
        tries=20,
        short=20,
    ),
    Row(
        "extreme_shapes",
        "1 x 1, 1 x 4096, 4096 x 1 and 4096 x 4096 (bf16) through sMLPNet-T, each in its own process: right, and "
        "within the memory stated",
        _from("extremes", "extremes"),
        tries=4,
        short=3,
    ),
    Row(
        "bad_data",
        "damaged images and annotations, in trainings by mmdet, mmseg and mmpretrain: the same end as with the "
        "toolbox's own backbone",
        _from("bad_data", "bad_data"),
        tries=19,
        short=3,
    ),
    Row(
        "gradients",
        "gradients against float64, after freed memory was filled with 1e30: blocks and networks, all layouts",
        _from("gradients", "gradients"),
        tries=96,
        short=24,
    ),
    Row(
        "long_run",
        "training steps of changing sizes: memory, caches, file descriptors and threads stay",
        _from("long_run", "long_run"),
        tries=2000,
        short=20,
    ),
    Row(
        "interrupted_training",
        "`mim train` of the demo killed with SIGKILL, in a checkpoint write, in a validation, elsewhere, and resumed: "
        "from the right whole checkpoint, to the bits of a training that nobody killed",
        _from("interrupted", "run"),
        tries=20,
        short=2,
    ),
    Row(
        "full_disk",
        "checkpoint, data sets, ONNX file, picture and weights written to a full and to a read-only disk: one clear "
        "line, the old file whole",
        _from("full_disk", "run"),
        tries=12,
        short=4,
    ),
    Row(
        "distributed_faults",
        "of two processes one is killed or hangs: an error within the timeout, then resumed to the same bits; images "
        "of unequal sizes: the processes agree",
        _from("distributed", "run"),
        tries=3,
        short=1,
    ),
    Row(
        "determinism",
        "the same training twice, with 1 and 2 threads and with worker processes: the same bits",
        _from("determinism", "run"),
        tries=3,
        short=1,
    ),
)
