"""Trainings, tools and disks that fail in the middle: a short selection of `make stress`, in real processes."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from stress.rows import ROWS

# Row -> tries. `make test` kills one training in a checkpoint write and in the validation after the next.
QUICK = {"full_disk": 4}
LONG = {"interrupted_training": 5, "full_disk": 12, "distributed_faults": 3, "determinism": 3}


def nothing_is_lost(name: str, tries: int, folder: Path) -> None:
    row = next(row for row in ROWS if row.name == name)
    outcome = row.run(tries, 0, folder)
    assert (outcome.failed, outcome.lost) == (0, 0), "\n".join(outcome.notes)
    assert outcome.tried == tries


@pytest.mark.parametrize("name", QUICK)
def test_nothing_is_lost(name, tmp_path):
    nothing_is_lost(name, QUICK[name], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG)
def test_nothing_is_lost_in_long_runs(name, tmp_path):
    nothing_is_lost(name, LONG[name], tmp_path)
