"""The study of positional interpolation: what its recipes change, its arithmetic, its tables, a quick run of it all."""

import itertools
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from study import report
from study.estimates import averages, differences, estimate, value_at
from study.evaluation import evaluated_config, known_rows, missing_points, predictions_of, rows_file
from study.plan import ANSWERS, FULL, NETWORKS, WIDE, answers_of, points_of, recipes_of
from study.rivals import RIVALS
from study.training import DrawnPerBatch, config, fingerprint, folder_of

from mmsmlp.resize import DEFAULT_METHOD, METHODS

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/positional_interpolation.md"
OTHER = next(method for method in METHODS if method != DEFAULT_METHOD)
JOBS = [(network, recipe) for network in NETWORKS.values() for recipe in recipes_of(network)]


def steps_of(cfg: Config) -> dict[str, dict]:
    """The transforms of a training by name."""
    return {step["type"]: step for step in cfg.train_dataloader.dataset.pipeline}


def row(seed=0, kind="zoom", factor=1, answer="exact", value=0.5, network="UperNet", recipe="random scales", **more):
    metrics = dict.fromkeys(NETWORKS[network].metrics, value)
    common = {"network": network, "recipe": recipe, "seed": seed, "seconds": 1.0}
    return {**common, "kind": kind, "factor": factor, "interpolation": answer, **metrics, **more}


# ---- the plan


def test_every_answer_of_the_package_and_every_rival_is_in_the_study():
    assert (*METHODS, *RIVALS) == ANSWERS


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_the_grids_are_the_anchor_and_one_position_more_in_all_stages(network):
    sizes = [round(f * network.test_height) for kind, f in points_of(network) if kind == "grid"]
    anchor, off = (tuple(-(-size // stride) for stride in (4, 8, 16, 32)) for size in sizes)
    assert sizes[0] == network.anchor
    assert off == tuple(n + 1 for n in anchor)


def test_wide_scenes_are_for_the_recipes_with_all_answers():
    network = NETWORKS["Mask R-CNN"]
    assert "windows" in answers_of(network, FULL[0], "extent", WIDE + 2)
    assert answers_of(network, "tuned", "extent", WIDE + 2) == ()


# ---- the recipes


@cache
def recipe_fingerprint(network: str, recipe: str) -> str:
    return fingerprint(config(NETWORKS[network], recipe, 0, 60))


@pytest.mark.parametrize(("network", "recipe"), JOBS, ids=lambda v: getattr(v, "name", v))
def test_no_two_recipes_are_the_same_training(network, recipe):
    others = [recipe_fingerprint(network.name, r) for r in recipes_of(network) if r != recipe]
    assert recipe_fingerprint(network.name, recipe) not in others


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_random_scales_is_the_demo_trained_with_exact(network):
    demo = Config.fromfile(network.config)
    demo.model.backbone.interpolation = "exact"
    cfg = config(network, "random scales", 0, network.steps)
    assert cfg.model == demo.model
    assert cfg.train_dataloader.dataset.pipeline == demo.train_dataloader.dataset.pipeline


@pytest.mark.parametrize("name", ["Mask R-CNN", "UperNet"])
def test_one_size_shows_objects_at_one_scale(name):
    assert steps_of(config(NETWORKS[name], "one size", 0, 60))["RandomResize"]["ratio_range"] == (1.0, 1.0)


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_tuning_takes_larger_crops_and_a_fifth_of_the_steps(network):
    cfg = config(network, "tuned", 0, 100)
    crop = next(s for s in cfg.train_dataloader.dataset.pipeline if "Crop" in s["type"])
    assert crop.get("crop_size", crop.get("scale")) in (network.larger, (network.larger, network.larger))
    assert (cfg.train_cfg.max_iters, cfg.param_scheduler[1].end) == (20, 20)
    assert cfg.model.backbone.img_size == network.anchor


@pytest.mark.parametrize("make", [lambda n, r: config(n, r, 0, 60), evaluated_config], ids=["training", "test"])
@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_re_anchoring_moves_the_anchor_in_training_and_test(network, make):
    assert make(network, "tuned, re-anchored").model.backbone.img_size == network.larger


@pytest.mark.parametrize("make", [lambda n, r: config(n, r, 0, 60), evaluated_config], ids=["training", "test"])
@pytest.mark.parametrize("name", ["Mask R-CNN", "UperNet"])
def test_valid_areas_are_known_in_training_and_test(name, make):
    assert make(NETWORKS[name], "valid areas").model.data_preprocessor.type.startswith("mmsmlp.")
    assert not make(NETWORKS[name], "random sizes").model.data_preprocessor.type.startswith("mmsmlp.")


class Recorder:
    """Notes the size that each image is cropped to."""

    crop_size = None

    def __init__(self):
        self.sizes = []

    def __call__(self, results):
        self.sizes.append(self.crop_size)
        return results


def draw(square: bool, calls: int = 600) -> list[tuple[int, int]]:
    np.random.seed(0)
    transform = DrawnPerBatch(recorder_config(), "crop_size", (8, 20), 4, 3, square)
    for _ in range(calls):
        transform({})
    return transform.transform.sizes


def recorder_config() -> dict:
    from mmengine.registry import TRANSFORMS

    if "Recorder" not in TRANSFORMS:
        TRANSFORMS.register_module(module=Recorder)
    return {"type": "Recorder"}


def test_a_batch_has_one_size_and_the_next_another():
    drawn = draw(False)
    batches = [set(drawn[start : start + 3]) for start in range(0, len(drawn), 3)]
    assert all(len(batch) == 1 for batch in batches)
    assert len(set.union(*batches)) == 16  # 4 heights x 4 widths


def test_sizes_are_multiples_within_their_bounds():
    assert {side for size in draw(False) for side in size} == {8, 12, 16, 20}


def test_square_sizes_are_square():
    assert all(height == width for height, width in draw(True))


def test_a_change_of_the_recipe_changes_its_fingerprint_and_the_folder_does_not():
    network = NETWORKS["UperNet"]
    assert fingerprint(config(network, "tuned", 0, 100)) != fingerprint(config(network, "tuned", 0, 200))
    assert fingerprint(config(network, "tuned", 0, 100)) == fingerprint(config(network, "tuned", 0, 100))


# ---- rows of an interrupted evaluation


@pytest.fixture
def evaluated(tmp_path) -> Path:
    network = NETWORKS["UperNet"]
    trained = folder_of(network, "random scales", 0, tmp_path)
    trained.mkdir(parents=True)
    (trained / "training.json").write_text(json.dumps({"fingerprint": "now"}))
    file = rows_file(network, "random scales", 0, tmp_path)
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"fingerprint": "now", "rows": [row(kind="zoom", factor=1)]}))
    return tmp_path


def test_rows_that_are_there_are_not_evaluated_again(evaluated):
    rows = known_rows(NETWORKS["UperNet"], "random scales", 0, evaluated)
    missing = missing_points(NETWORKS["UperNet"], "random scales", [("zoom", 1), ("zoom", 2)], rows)
    wanted = [("zoom", 1, a) for a in ANSWERS if a != "exact"] + [("zoom", 2, a) for a in ANSWERS]
    assert missing == wanted


def test_rows_of_an_older_checkpoint_do_not_count(evaluated):
    record = folder_of(NETWORKS["UperNet"], "random scales", 0, evaluated) / "training.json"
    record.write_text(json.dumps({"fingerprint": "trained again"}))
    assert known_rows(NETWORKS["UperNet"], "random scales", 0, evaluated) == []


def test_every_point_has_predictions_of_its_own(tmp_path):
    for network, recipe in JOBS:
        points = [(k, f, a) for k, f in points_of(network) for a in answers_of(network, recipe, k, f)]
        prefixes = {predictions_of(network, recipe, 0, tmp_path, *point) for point in points}
        assert len(prefixes) == len(points)


# ---- estimates


def test_an_estimate_is_the_mean_and_its_standard_error_in_points():
    found = estimate([0.5, 0.6, 0.7])
    assert (round(found.mean, 6), round(found.error, 6)) == (60, round(10 / 3**0.5, 6))


def test_one_seed_has_no_error():
    assert (estimate([0.5]).error, str(estimate([0.5]))) == (None, "50.0")


def test_a_size_that_was_not_evaluated_is_shown_as_nothing():
    found = value_at([row(factor=1)], ("zoom", 2), "mIoU", recipe="random scales")
    assert (found.count, str(found), found.signed) == (0, "", "")


def test_bars_are_of_the_sizes_that_were_evaluated():
    rows = [r for r in complete_rows() if (r["kind"], r["factor"]) in (("zoom", 1), ("extent", 1), ("extent", 2))]
    assert [measured for _, measured, _ in report.bars(rows)][1:] == ["0.0 at extent 2", "0.0 at extent 2"]


def test_averages_are_by_seed_and_leave_wide_scenes_out():
    rows = [row(s, "extent", f, value=v) for s, f, v in [(0, 1, 0.2), (0, 4, 0.4), (0, 8, 0.0), (1, 1, 0.6)]]
    assert averages(rows, "UperNet", "random scales", "exact", "extents") == pytest.approx({0: 0.3, 1: 0.6})


def test_differences_are_paired_on_the_seed():
    values = {"exact": [0.1, 0.5], "bounded": [0.2, 0.7]}
    rows = [row(seed, answer=a, value=v) for a, found in values.items() for seed, v in enumerate(found)]
    found = differences(rows[::-1], "UperNet", "random scales", "bounded", "exact", "zooms")
    assert sorted(found) == pytest.approx([0.1, 0.2])


def test_a_value_is_found_at_its_size():
    rows = [row(seed, factor=f, value=v) for seed in (0, 1) for f, v in ((1, 0.5), (1 / 3, 0.25))]
    assert value_at(rows, ("zoom", 1 / 3), "mIoU", recipe="random scales").mean == 25


# ---- tables and bars


def complete_rows(change=lambda row: row) -> list[dict]:
    """Rows of every point of the plan, all with the same values but for what ``change`` does."""
    rows = []
    for network, recipe in JOBS:
        for seed, (kind, factor) in itertools.product((0, 1, 2), points_of(network)):
            for answer in answers_of(network, recipe, kind, factor):
                rows.append(change(row(seed, kind, factor, answer, 0.8, network.name, recipe)))
    return rows


def test_bars_hold_where_all_is_equal():
    assert [holds for *_, holds in report.bars(complete_rows())] == [True] * 5


@pytest.mark.parametrize(
    ("broken", "change"),
    [
        (0, lambda r: r["interpolation"] == OTHER and 0.92),
        (1, lambda r: (r["recipe"], r["kind"], r["factor"]) == ("random scales", "zoom", 2) and 0.7),
        (2, lambda r: (r["recipe"], r["kind"], r["factor"]) == ("random scales", "extent", 4) and 0.65),
        (3, lambda r: (r["recipe"], r["kind"], r["factor"]) == ("random sizes", "zoom", 0.75) and 0.7),
        (4, lambda r: (r["recipe"], r["kind"], r["factor"]) == ("random sizes", "extent", 3) and 0.65),
    ],
)
def test_a_bar_that_is_missed_is_said_to_be(broken, change):
    def changed(r):
        return r | dict.fromkeys(NETWORKS[r["network"]].metrics, change(r) or 0.8)

    holds = [holds for *_, holds in report.bars(complete_rows(changed))]
    assert [not h for h in holds] == [index == broken for index in range(5)]


@pytest.mark.parametrize("name", report.TABLES)
def test_every_table_has_rows_of_the_header_s_length(name):
    lines = report.TABLES[name](complete_rows()).splitlines()
    assert len(lines) > 2
    assert len({line.count(" | ") for line in lines}) == 1


def test_the_best_mean_is_bold():
    rows = complete_rows(lambda r: r | ({"mIoU": 0.9} if r["interpolation"] == "windows" else {}))
    line = next(line for line in report.answers_table(rows).splitlines() if line.startswith("| UperNet"))
    assert re.findall(r"\*\*(.*?)\*\*", line) == ["90.0 ± 0.0"]


@pytest.mark.slow
def test_pictures_of_an_incomplete_study_are_refused(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks/study"), "--part", "figures", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "study: Mask R-CNN, one size, seed 0 is not evaluated: run the other parts first" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_tables_are_replaced_in_their_place(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- study: bars -->\nold\nolder\n<!-- end -->\nafter\n")
    report.write_into(page, {"bars": "new \\1"})
    assert page.read_text() == "before\n<!-- study: bars -->\nnew \\1\n<!-- end -->\nafter\n"


def test_a_page_without_the_table_s_place_is_left_as_it_is(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- study: bars -->\nold\n<!-- end -->\n")
    with pytest.raises(ValueError, match=r"<!-- study: sizes -->"):
        report.write_into(page, {"bars": "new", "sizes": "new"})
    assert "old" in page.read_text()


@pytest.mark.parametrize("name", [*report.TABLES, *report.OTHER_TABLES])
def test_the_docs_have_every_table_filled(name):
    filled = re.search(rf"<!-- study: {name} -->\n(.*?)<!-- end -->", PAGE.read_text(), re.S)
    assert filled
    assert filled[1].count("\n|") >= 2


# ---- all of it


@pytest.mark.slow
def test_a_quick_study_runs_from_training_to_pictures_and_is_not_repeated(tmp_path):
    for data in ("coins", "photos"):  # as `make study` does; nothing to do where they are
        run_study([sys.executable, f"tools/make_{data}.py", f"data/{data}"])
    out = tmp_path / "study"
    command = [sys.executable, str(ROOT / "benchmarks/study"), "--quick", "--seeds", "0", "--out", str(out)]
    run_study(command)
    rows = json.loads((out / "rows.json").read_text())
    assert {(r["network"], r["recipe"]) for r in rows} == {(network.name, recipe) for network, recipe in JOBS}
    assert {r["interpolation"] for r in rows} == set(ANSWERS)
    tables = (out / "tables.md").read_text()
    assert all(f"## {name}\n" in tables for name in (*report.TABLES, *report.OTHER_TABLES))
    assert {p.name for p in out.glob("*.png")} >= {"summary.png", "weights.png", "fields.png", "curves-upernet.png"}
    written = {path: path.stat().st_mtime_ns for name in ("final.pth", "rows.json") for path in out.rglob(name)}
    run_study([*command, "--part", "train", "evaluate"])
    assert {path: path.stat().st_mtime_ns for path in written} == written


def run_study(command: list[str]) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
