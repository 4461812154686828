"""Trainings, tools and disks that fail in the middle: more tries of rows of `make stress`, in real processes."""

import pytest
from stress.rows import ROWS

TRIES = {"interrupted_training": 5, "full_disk": 12, "distributed_faults": 3, "determinism": 3}


@pytest.mark.slow
@pytest.mark.parametrize("name", TRIES)
def test_nothing_is_lost(name, tmp_path):
    row = next(row for row in ROWS if row.name == name)
    outcome = row.run(TRIES[name], 0, tmp_path)
    assert (outcome.failed, outcome.lost) == (0, 0), "\n".join(outcome.notes)
    assert outcome.tried == TRIES[name]
