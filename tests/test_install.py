"""What pip would do to an environment that already holds OpenMMLab, by its own resolver; nothing is installed."""

import json
import os
import re
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from stack import OTHER_SET, SET

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--no-index", "--no-deps", "--no-build-isolation", "-w", out, ROOT]
    subprocess.run(command, check=True, capture_output=True, cwd=out)
    return next(out.glob("*.whl"))


def dry_run(requirement: str, folder: Path) -> subprocess.CompletedProcess:
    """Resolve without an index: whatever is not in the environment is an error."""
    report = folder / "report.json"
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index", "--report", report, requirement]
    env = {key: value for key, value in os.environ.items() if not key.startswith("PIP_") and key != "PYTHONPATH"}
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=env, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("extras", ["", f"[{SET}]", "[demo]", f"[{SET},demo]"])
def test_an_environment_with_a_set_gets_this_package_and_nothing_else(wheel, tmp_path, extras):
    result = dry_run(f"{wheel}{extras}", tmp_path)
    assert result.returncode == 0, result.stderr
    chosen = json.loads((tmp_path / "report.json").read_text())["install"]
    assert {item["metadata"]["name"] for item in chosen} <= {"mmsmlp"}


@pytest.mark.slow
def test_the_other_set_is_not_slipped_into_that_environment(wheel, tmp_path):
    result = dry_run(f"{wheel}[{OTHER_SET}]", tmp_path)
    assert result.returncode != 0
    assert re.search("No matching distribution found|conflicting dependencies", result.stderr)


def test_both_extras_at_once_are_impossible():
    """Their pins contradict each other, so pip refuses instead of mixing them."""
    import importlib.metadata

    from packaging.requirements import Requirement

    required = [Requirement(line) for line in importlib.metadata.requires("mmsmlp")]
    pins = {r.marker.evaluate({"extra": "onedl"}): r for r in required if r.name == "torch" and r.marker}
    assert len({str(r.specifier) for r in pins.values()}) == 2


@pytest.mark.slow
def test_any_environment_with_torch_suffices(wheel):
    """The whole of what the package itself asks for, so nothing of either set can be replaced."""
    with zipfile.ZipFile(wheel) as file:
        name = next(n for n in file.namelist() if n.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(file.read(name).decode())
    required = metadata.get_all("Requires-Dist")
    assert [line for line in required if "extra ==" not in line] == ["torch"]
