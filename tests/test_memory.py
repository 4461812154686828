"""The memory benchmark as a user runs it, on the smallest input that says something."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

MEMORY = Path(__file__).parents[1] / "benchmarks/memory.py"


@pytest.mark.slow
def test_the_memory_benchmark_writes_its_rows_and_prints_their_table(tmp_path):
    options = ["--shape", "1", "3", "96", "64", "--repeats", "1", "--json", tmp_path / "rows.json"]
    result = subprocess.run([sys.executable, MEMORY, *options], capture_output=True, text=True, check=True)
    plain, recomputed = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert (plain["with_cp"], recomputed["with_cp"]) == (False, True)
    assert plain["shape"] == recomputed["shape"] == [1, 3, 96, 64]
    assert recomputed["kept"] < 0.25 * plain["kept"]
    assert all(row["peak"] > 0 and row["step"] > 0 for row in (plain, recomputed))
    assert result.stdout.count("1 x 3 x 96 x 64") == 2


@pytest.mark.slow
def test_a_shape_that_cannot_be_is_named():
    options = ["--shape", "1", "3", "0", "64"]
    result = subprocess.run([sys.executable, MEMORY, *options], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "take positive numbers" in result.stderr
