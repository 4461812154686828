"""`make stress`: some tries of every row, and what the command does with a row that fails, is killed or run again."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from stress import harness, report
from stress.rows import ROWS

ROOT = Path(__file__).parents[1]
# Toolboxes, processes, a large image. The first four with more tries than `--short` makes: all that there are, or all
# kinds of kills.
MORE = {"interrupted_training": 5, "full_disk": 12, "distributed_faults": 3, "determinism": 3}
SLOW = {*MORE, "checkpoints_tools", "extreme_shapes", "bad_data"}
PARAMETERS = [pytest.param(row, id=row.name, marks=[pytest.mark.slow] * (row.name in SLOW)) for row in ROWS]


@pytest.mark.parametrize("row", PARAMETERS)
def test_a_few_tries(row, tmp_path):
    tries = MORE.get(row.name, row.short)
    outcome = row.run(tries, 0, tmp_path)
    assert 0 < outcome.tried <= tries
    assert (outcome.failed, outcome.lost) == (0, 0), "\n".join(outcome.notes)


@pytest.mark.parametrize(
    ("name", "tries", "broken", "replacement"),
    [
        ("checkpoints_flipped", 8, "mmsmlp.checkpoint.check_checkpoint_file", lambda path: None),
        ("checkpoints_pickles", 8, "mmsmlp.checkpoint.check_checkpoint_file", lambda path: None),
        ("checkpoints_unfit", 31, "mmsmlp.checkpoint._refuse_useless_values", lambda *_: None),
        ("input_fuzzing", 10, "mmsmlp.smlpnet.attached_valid_sizes", lambda images: None),
        ("input_errors", 20, "mmsmlp.smlpnet.check_images", lambda *_: None),
    ],
)
def test_a_row_sees_what_it_looks_for(name, tries, broken, replacement, tmp_path, monkeypatch):
    monkeypatch.setattr(broken, replacement)
    outcome = next(row for row in ROWS if row.name == name).run(tries, 0, tmp_path)
    assert outcome.failed > 0
    assert bool(outcome.lost) == name.startswith("checkpoints")


def stress(out, *arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "benchmarks/stress", "--out", out, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_row_that_is_run_again_with_its_seed_gives_the_same_result(tmp_path):
    results = []
    for part in ("first", "second"):
        ended = stress(tmp_path / part, "--only", "checkpoints_flipped", "--seed", "5", "--short")
        assert ended.returncode == 0, ended.stderr
        (result,) = json.loads((tmp_path / part / "results.json").read_text())
        assert result.pop("seconds") > 0
        results.append(result)
    assert results[0] == results[1]
    assert results[0]["command"] == "python benchmarks/stress --only checkpoints_flipped --seed 5 --short"
    assert [p.name for p in (tmp_path / "first").iterdir()] == ["results.json"]


@pytest.fixture
def rows_of_a_test(tmp_path, monkeypatch):
    """A copy of the command whose rows are `well`, `fails` and `dies`."""
    folder = tmp_path / "benchmarks/stress"
    folder.mkdir(parents=True)
    for path in (ROOT / "benchmarks/stress").glob("*.py"):
        (folder / path.name).write_text(path.read_text())
    rows = (folder / "rows.py").read_text()
    made = (
        'def fails(tries, seed, folder): return Outcome(tries, failed=1, lost=1, notes=("one was lost",))\n'
        "def dies(tries, seed, folder): import os; os.abort()\n"
        "def well(tries, seed, folder): return Outcome(tries)\n"
        "def slow(tries, seed, folder): import time; time.sleep(60); return Outcome(tries)\n"
        'ROWS = tuple(Row(f.__name__, "what holds", f, 3, 1) for f in (well, fails, dies, slow))\n'
    )
    (folder / "rows.py").write_text(rows + "\n\n" + made)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return [sys.executable, str(folder), "--out", str(tmp_path / "out")]


def test_a_row_that_fails_or_dies_is_reported_and_the_command_fails(rows_of_a_test, tmp_path):
    ended = subprocess.run([*rows_of_a_test, "--seed", "3", "--only", "dies", "fails"], capture_output=True, text=True)
    assert ended.returncode == 1
    assert "fails: one was lost" in ended.stdout
    fails, dies = read(tmp_path)
    assert (fails["tried"], fails["failed"], fails["lost"], fails["seed"]) == (3, 1, 1, 3)
    assert (dies["tried"], dies["failed"]) == (3, 3)
    assert f"status {-signal.SIGABRT}" in dies["notes"][0]


@pytest.mark.slow
def test_results_are_whole_after_a_kill_and_kept_by_the_next_run(rows_of_a_test, tmp_path):
    process = subprocess.Popen([*rows_of_a_test, "--only", "well", "slow"], stderr=subprocess.DEVNULL)
    while not (tmp_path / "out/slow.log").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert [result["name"] for result in read(tmp_path)] == ["well"]
    subprocess.run([*rows_of_a_test, "--only", "fails"], capture_output=True, check=False)
    assert [result["name"] for result in read(tmp_path)] == ["well", "fails"]


def read(tmp_path) -> list[dict]:
    return json.loads((tmp_path / "out/results.json").read_text())


def test_results_of_others_are_refused(tmp_path):
    (tmp_path / "results.json").write_text('{"rows": 1}')
    with pytest.raises(ValueError, match=r"results\.json is no file of results"):
        harness.kept_results(tmp_path)


def test_the_table_goes_between_its_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- stress -->\nold\n<!-- end -->\nafter\n")
    name = ROWS[0].name
    result = {"name": name, "tried": 2000, "failed": 0, "lost": 0, "seed": 0, "seconds": 3.4, "notes": []}
    harness.write_page(page, report.markdown({name: result}))
    lines = page.read_text().splitlines()
    assert lines[:2] + lines[-2:] == ["before", "<!-- stress -->", "<!-- end -->", "after"]
    assert lines[4].startswith(f"| `{name}` |")
    assert lines[4].endswith("| 2,000 | 0 | 0 | 3 |")
    page.write_text("nothing")
    with pytest.raises(ValueError, match="no lines"):
        harness.write_page(page, "")


def test_every_row_has_its_own_name_and_fewer_tries_in_a_test():
    assert len({row.name for row in ROWS}) == len(ROWS)
    assert all(0 < row.short <= row.tries for row in ROWS)
