"""The mark `needs_torch`: what it does, and that docs/testing.md holds the list of what carries it."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
OTHERS = [path for path in sorted(ROOT.glob("tests/**/*.py")) if path != Path(__file__)]
MOST = 10  # so that "the whole suite passes with the upstream set" stays true


def calls(*names: str) -> list[tuple[str, ast.Call]]:
    """File and call of each of these marks, wherever it stands: over a function, in a parameter, in a variable."""
    nodes = ((path.name, node) for path in OTHERS for node in ast.walk(ast.parse(path.read_text("utf-8"))))
    found = [(file, node) for file, node in nodes if isinstance(node, ast.Call)]
    return [(file, call) for file, call in found if ast.unparse(call.func).endswith(tuple(f"mark.{n}" for n in names))]


def test_the_page_lists_what_needs_a_newer_torch():
    page = (ROOT / "docs/testing.md").read_text("utf-8")
    listed = re.findall(r"^\| `(\w+\.py)` \| ([\d.]+) \| (.+) \|$", page, re.M)
    assert set(listed) == {
        (file, ast.literal_eval(call.args[0]), ast.literal_eval(call.keywords[0].value))
        for file, call in calls("needs_torch")
    }
    assert 0 < len(listed) == len(set(listed)) <= MOST


def test_no_other_condition_on_a_version_skips_a_test():
    conditions = [(file, ast.unparse(call)) for file, call in calls("skipif", "xfail")]
    assert not [c for c in conditions if re.search(r"version|TORCH|STACK|OPENMIM|hasattr\(torch", c[1])]


def test_tests_are_skipped_with_an_older_torch_only_and_named_once_at_the_end(tmp_path):
    shutil.copy(ROOT / "tests/conftest.py", tmp_path)
    (tmp_path / "test_x.py").write_text(
        "import pytest\n"
        'future = pytest.mark.needs_torch("999.1", reason="of the future")\n'
        "@future\n"
        '@pytest.mark.parametrize("a", [1, 2])\n'
        "def test_new(a): assert 0\n"
        '@pytest.mark.parametrize("a", [1, pytest.param(2, marks=future)])\n'
        "def test_half(a): assert a == 1\n"
        '@pytest.mark.needs_torch("1.0", reason="of the past")\n'
        "def test_old(): pass\n"
    )
    command = [sys.executable, "-m", "pytest", "-c", ROOT / "pyproject.toml", "--rootdir", tmp_path, tmp_path]
    output = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False).stdout
    assert "2 passed, 3 skipped" in output
    assert output.count("test_x.py needs torch 999.1: of the future (test_half, test_new)") == 1
    assert "of the past" not in output
