"""The tool that averages sweeps of several seeds: its figures, by hand, and its refusals."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def sweep(folder: Path, aps: dict[tuple[str, float], float]) -> Path:
    folder.mkdir()
    rows = [{"kind": k, "factor": f, "interpolation": "exact", "bbox_mAP": ap} for (k, f), ap in aps.items()]
    (folder / "results.json").write_text(json.dumps({"rows": rows}))
    return folder


def run(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, "tools/average_sweeps.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_sizes_are_averaged_before_seeds(tmp_path):
    first = sweep(tmp_path / "a", {("zoom", 1): 0.8, ("zoom", 2): 0.6, ("extent", 1): 0.5})
    second = sweep(tmp_path / "b", {("zoom", 1): 0.9, ("zoom", 2): 0.7, ("extent", 1): 0.5})
    printed = run(first, second).stdout
    assert "the zooms   │ 75.0 ± 7.1" in printed  # of 70 and 80
    assert "the extents │ 50.0 ± 0.0" in printed


@pytest.mark.parametrize(
    ("second", "message"),
    [("missing", "cannot average these sweeps: FileNotFoundError"), ("other", "different kinds of sizes")],
)
def test_what_does_not_compare_is_refused_in_one_line(tmp_path, second, message):
    first = sweep(tmp_path / "a", {("zoom", 1): 0.8})
    sweep(tmp_path / "other", {("extent", 1): 0.8})
    result = run(first, tmp_path / second)
    assert result.returncode == 1
    assert result.stderr.startswith("average_sweeps: ")
    assert message in result.stderr
    assert "Traceback" not in result.stderr
