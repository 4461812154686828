"""`make audit`: what is asked, and what is said of the answers; pip-audit itself and the network are left out."""

import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))

from setup_env import audit, constraints, process  # noqa: E402  (tools/ is no package)
from setup_env.stacks import STACKS  # noqa: E402


def test_every_release_of_both_sets_is_asked_about_once():
    files = [constraints.pins(stack) for stack in STACKS.values()]
    releases = audit.read_pins(files)
    wanted = set()
    for path in files:
        wanted |= {Requirement(line.split(";")[0]) for line in path.read_text().splitlines() if line[0] != "#"}
    assert set(map(str, wanted)) == set(releases)
    asked = [release for layer in audit.layers(list(releases)) for release in layer]
    assert sorted(asked) == sorted(releases)
    for layer in audit.layers(list(releases)):
        names = [release.split("==")[0] for release in layer]
        assert len(names) == len(set(names))


def test_a_release_is_listed_with_the_sets_that_hold_it(tmp_path):
    (tmp_path / "one.txt").write_text('# head\na==1\nb==1 ; python_version == "3.10"\n')
    (tmp_path / "two.txt").write_text("a==1\nb==2\n")
    releases = audit.read_pins([tmp_path / "one.txt", tmp_path / "two.txt"])
    assert releases == {"a==1": ["one", "two"], "b==1": ["one"], "b==2": ["two"]}


BAD = {"name": "a", "version": "1", "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["1.1", "2"]}]}
GOOD = {"name": "b", "version": "1", "vulns": []}
UNKNOWN = {"name": "c", "skip_reason": "not found"}


def test_vulnerabilities_are_reported_with_what_fixes_them():
    lines, clean = audit.report({"a==1": ["one", "two"], "b==1": ["one"]}, {"a==1": BAD, "b==1": GOOD})
    assert lines == ["a==1 (one, two): PYSEC-1, CVE-1; fixed in 1.1, 2"]
    assert not clean


def test_no_vulnerability_is_said_only_where_all_was_looked_at():
    assert audit.report({"b==1": ["one"]}, {"b==1": GOOD}) == (["no known vulnerabilities"], True)
    lines, clean = audit.report({"b==1": ["one"], "c==1": ["one"], "d==1": ["one"]}, {"b==1": GOOD, "c==1": UNKNOWN})
    assert lines == ["not looked at, since the service does not know them: c==1, d==1"]
    assert not clean


@pytest.mark.parametrize("answer", [None, '{"dependencies": [{"name": "jinja2", "skip_reason": "not found"}]}'])
def test_a_service_that_does_not_know_a_bad_release_is_none(tmp_path, answer):
    """A mirror of packages answers 404 to everything, so that pip-audit finds nothing wrong."""
    python = tmp_path / "python"
    write = f"import sys; open(sys.argv[sys.argv.index('-o') + 1], 'w').write({answer!r})" if answer else "pass"
    python.write_text(f"#!{sys.executable}\n{write}\n")
    python.chmod(0o755)
    with pytest.raises(process.SetupError, match="nothing was audited: neither PyPI's JSON interface nor osv.dev"):
        audit.choose_service(str(python), tmp_path)
