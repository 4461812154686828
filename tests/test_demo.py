"""`make demo` as a user runs it: trained by mim, swept, drawn, and as accurate as the README says."""

import json
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    subprocess.run(["make", "demo", f"DEMO_DIR={folder}"], cwd=ROOT, check=True)
    return folder


@pytest.fixture(scope="module")
def results(demo) -> dict:
    return json.loads((demo / "results.json").read_text())


def row(results: dict, kind: str, factor: float, interpolation: str = "exact") -> dict:
    return next(
        r for r in results["rows"] if (r["kind"], r["factor"], r["interpolation"]) == (kind, factor, interpolation)
    )


@pytest.mark.slow
def test_the_demo_reaches_its_bars_at_the_photographs_size(results):
    found = row(results, "zoom", 1)
    assert found["objects"] == 96
    assert found["bbox_mAP"] >= 0.78
    assert found["segm_mAP"] >= 0.83
    assert found["bbox_mAP_50"] >= 0.90


@pytest.mark.slow
def test_the_demo_reaches_its_bar_on_the_widest_scene(results):
    assert row(results, "extent", 4)["bbox_mAP_50"] >= 0.80


@pytest.mark.slow
def test_the_demo_has_a_row_for_every_size_and_interpolation(results):
    sizes = [("zoom", z) for z in (0.5, 0.75, 1, 1.5, 2)] + [("extent", k) for k in (1, 2, 3, 4)]
    methods = ("exact", "bounded", "scaled", "naive")
    assert {(r["kind"], r["factor"], r["interpolation"]) for r in results["rows"]} == {
        (*size, method) for size in sizes for method in methods
    }
    assert all(0 <= r[key] <= 1 for r in results["rows"] for key in ("bbox_mAP", "bbox_mAP_50", "segm_mAP"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["results.json", "detections.png", "sweep.png"])
def test_the_demo_leaves_what_the_readme_names(demo, name):
    assert (demo / name).stat().st_size > 1000
