"""The rows of `make stress`: what each tries, how often, and the function that does it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
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


ROWS: tuple[Row, ...] = ()
