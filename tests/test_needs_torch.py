"""The mark `needs_torch`: what it does, and that docs/testing.md holds the list of the tests that carry it."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
MOST = 10  # so that "the whole suite passes with the upstream set" stays true


def marked() -> set[tuple[str, str, str]]:
    """File::function, version and reason of every marked test function."""
    found = set()
    for path in sorted(ROOT.glob("tests/**/*.py")):
        if path == Path(__file__):
            continue
        text = path.read_text("utf-8")
        functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
        of_file = [
            (f"{path.name}::{function.name}", mark.args[0].value, mark.keywords[0].value.value)
            for function in functions
            for mark in function.decorator_list
            if ast.unparse(mark).startswith("pytest.mark.needs_torch(")
        ]
        # a mark in a variable, a class or a parameter would escape the list
        assert len(of_file) == len(re.findall(r"^[^\"#]*mark\.needs_torch", text, re.M)), path
        found.update(of_file)
    return found


def test_the_page_lists_the_tests_that_need_a_newer_torch():
    page = (ROOT / "docs/testing.md").read_text("utf-8")
    listed = re.findall(r"^\| `(\w+\.py::\w+)` \| ([\d.]+) \| (.+) \|$", page, re.M)
    assert set(listed) == marked()
    assert 0 < len(listed) == len(set(listed)) <= MOST


def test_no_other_condition_on_a_version_skips_a_test():
    for path in ROOT.glob("tests/test_*.py"):
        conditions = re.findall(r"(?:skipif|xfail)\(([^)]*)", path.read_text("utf-8")) if path != Path(__file__) else []
        assert not [c for c in conditions if "version" in c.lower() or "TORCH" in c], path


def test_a_test_is_skipped_with_an_older_torch_only_and_named_once_at_the_end(tmp_path):
    shutil.copy(ROOT / "tests/conftest.py", tmp_path)
    (tmp_path / "test_x.py").write_text(
        "import pytest\n"
        '@pytest.mark.needs_torch("999.1", reason="of the future")\n'
        '@pytest.mark.parametrize("a", [1, 2])\n'
        "def test_new(a): assert 0\n"
        '@pytest.mark.needs_torch("1.0", reason="of the past")\n'
        "def test_old(): pass\n"
    )
    command = [sys.executable, "-m", "pytest", "-c", ROOT / "pyproject.toml", "--rootdir", tmp_path, tmp_path]
    output = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False).stdout
    assert "1 passed, 2 skipped" in output
    assert re.search(r"^=+ 1 test function\(s\) need", output, re.M)
    assert output.count("test_x.py::test_new needs torch 999.1: of the future") == 1
    assert "of the past" not in output
