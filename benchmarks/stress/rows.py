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
        short=0,
    ),
    Row(
        "determinism",
        "the same training twice, with 1 and 2 threads and with worker processes: the same bits",
        _from("determinism", "run"),
        tries=3,
        short=1,
    ),
)
