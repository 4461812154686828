"""The comparison with other networks: the counter agrees with what others quote, and the page with the counter."""

import json
import re
import subprocess
import sys
from pathlib import Path

import costs
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmsmlp.flops import count_macs

ROOT = Path(__file__).parents[1]

NETWORKS = {network.name: network for table in costs.TABLES.values() for network in table}
QUICK = ("ResNet-50", "Swin-T", "DeiT-S", "sMLPNet-T")
TOOLBOXES = ("mmpretrain", "mmdet", "mmseg")


def page() -> dict[str, dict[str, str]]:
    """The rows of docs/comparison.md whose figures are measured, by network; a row's cells by heading."""
    rows, headings = {}, None
    for line in (ROOT / "docs/comparison.md").read_text("utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else None
        if cells is None:
            headings = None
        elif headings is None:
            headings = cells
        elif "measured GMAC" in headings and dict(zip(headings, cells))["measured GMAC"] not in ("", "---"):
            assert len(cells) == len(headings), line
            assert cells[0] not in rows, f"two rows of {cells[0]}"
            rows[cells[0]] = dict(zip(headings, cells))
    return rows


def of_authors(name: str) -> str:
    """The first cell of a row that quotes the network's authors, '' if it is empty."""
    return next(value for heading, value in PAGE[name].items() if heading.startswith("authors"))


PAGE = page()


def marked(name: str):
    return name if name in QUICK else pytest.param(name, marks=pytest.mark.slow)


def test_the_page_has_exactly_the_networks_that_are_counted():
    assert PAGE.keys() == NETWORKS.keys()


@pytest.mark.parametrize("name", [marked(name) for name in NETWORKS])
def test_the_pages_measured_cells_are_what_is_counted(name):
    row = costs.measure(NETWORKS[name])
    cells = PAGE[name]
    assert cells["measured M"] == f"{row['parameters'] / 1e6:.1f}"
    assert cells["measured GMAC"] == f"{row['macs'] / 1e9:.2f}"


@pytest.mark.parametrize("name", [name for name in PAGE if of_authors(name)])
def test_measured_and_quoted_cells_agree(name):
    """Authors round to a million and to 0.1 or 1 GMAC; UperNet they count at 512 x 2048, four times our pixels."""
    cells = PAGE[name]
    millions, gmacs = (part.strip() for part in of_authors(name).split("/")[:2])
    if millions:
        assert float(cells["measured M"]) == pytest.approx(float(millions), rel=0.03)
    if gmacs:
        times = 4 if name.startswith("UperNet") else 1
        assert times * float(cells["measured GMAC"]) == pytest.approx(float(gmacs), rel=0.01)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_pages_toolbox_cells_are_the_metafiles(name):
    quoted = costs.quoted(NETWORKS[name])
    cell = next(value for heading, value in PAGE[name].items() if heading.startswith(TOOLBOXES))
    if not quoted:
        assert cell == ""
    elif "FLOPs" in quoted:
        sizes = f"{quoted['Parameters'] / 1e6:.1f} / {quoted['FLOPs'] / 1e9:.2f}"
        assert cell == f"{sizes} / {quoted['Top 1 Accuracy']:g}"
    else:  # box and mask AP, or mIoU at one and at several scales; other schedules may follow
        first = re.findall(r"\d+\.\d+", cell)[: len(quoted)]
        assert [float(value) for value in first] == list(quoted.values())


@pytest.mark.parametrize(("name", "parameters", "gmacs"), [("Swin-T", 28.3, 4.5), ("sMLPNet-T", 24.1, 5.0)])
def test_counts_reproduce_published_ones(name, parameters, gmacs):
    row = costs.measure(NETWORKS[name])
    assert round(row["parameters"] / 1e6, 1) == parameters
    assert row["macs"] / 1e9 == pytest.approx(gmacs, rel=0.005)


def test_fused_attention_counts_like_its_two_products():
    class Attention(nn.Module):
        def __init__(self, fused: bool):
            super().__init__()
            self.fused = fused

        def forward(self, q, k, v):
            if self.fused:
                return F.scaled_dot_product_attention(q, k, v)
            return (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(-1) @ v

    q, k, v = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8), torch.randn(2, 3, 7, 8)
    counts = []
    for fused in (True, False):
        model = Attention(fused)
        counts.append(sum(count_macs(model, lambda model=model: model(q, k, v)).values()))
    assert counts == [2 * 2 * 3 * 5 * 7 * 8] * 2


def run_tool(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, "benchmarks/costs.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_tool_prints_a_table_and_writes_its_rows(tmp_path):
    out = tmp_path / "new" / "costs.json"
    result = run_tool("--only", "ResNet-50", "sMLPNet-T", "--out", out)
    assert result.returncode == 0, result.stderr
    lines = [[cell.strip() for cell in line.split("│")][1:6] for line in result.stdout.splitlines()]
    assert ["ResNet-50", "25.6", "4.09", "25.6", "4.12"] in lines
    assert ["sMLPNet-T", "24.1", "4.99", "", ""] in lines
    rows = json.loads(out.read_text())
    assert [(row["network"], row["parameters"]) for row in rows] == [("ResNet-50", 25557032), ("sMLPNet-T", 24123584)]
    assert rows[0]["quoted"]["Top 1 Accuracy"] == 76.55
    assert rows[1]["shape"] == [224, 224]


@pytest.mark.slow
def test_an_unknown_network_is_refused_in_one_line():
    result = run_tool("--only", "Swin-X")
    assert result.returncode == 2
    assert "unknown network 'Swin-X', choose from: ResNet-50; " in result.stderr.splitlines()[-1]
