"""The documents: every relative link leads somewhere, and both READMEs say the same."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_relative_links_lead_somewhere(document):
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", document.read_text("utf-8"))
    assert not [link for link in links if not (document.parent / link).exists()]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.name)
def test_no_placeholder_is_left(document):
    assert "@@" not in document.read_text("utf-8")


def test_the_chinese_readme_has_the_same_commands_links_and_figures():
    texts = [(ROOT / name).read_text("utf-8") for name in ("README.md", "README.zh-CN.md")]
    for pattern in (r"\]\((?!README)([^)]+)\)", r"\b\d+\.\d+\b", r"^(?:make|mim|python) [\w/.-]+"):
        first, second = (sorted(re.findall(pattern, text, re.M)) for text in texts)
        assert first == second
