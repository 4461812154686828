"""The benchmark of speed measures, draws and judges what it says; test_speed_backbones.py is about what it compares."""

import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import speed_steps
import torch
from speed import __main__ as command
from speed import backbones, bars, plan, report, wholes
from speed.backbones import OURS, PAPER
from speed.clock import Clock
from speed.matrix_peak import peak_rate, product_rates
from speed.memory_peak import MemoryPeak
from speed.timing import Settings, _order, plan_rounds
from speed.worker import Row, Worker

from mmsmlp.onnx_export.write import OLDEST_TORCH

ROOT = Path(__file__).parents[1]


def test_every_matrix_product_has_a_rate():
    rates = product_rates("fp32", "cpu", (64, 128), 2)
    assert {size: len(found) for size, found in rates.items()} == {64: 2, 128: 2}
    assert min(rate for found in rates.values() for rate in found) > 0


def test_the_peak_is_the_median_of_the_best_size_over_all_sessions():
    assert peak_rate([{64: [1.0, 9.0], 128: [4.0, 3.0]}, {64: [2.0, 2.5], 128: [5.0, 6.0]}]) == 4.5


def test_a_peak_does_not_count_the_process_that_started_this_one():
    held = b"1" * 2**30
    code = "from speed.memory_peak import status; print(status('VmHWM'))"
    child = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "benchmarks", capture_output=True, text=True, check=True
    )
    assert int(child.stdout) < len(held)


def test_the_memory_peak_is_what_was_allocated_for_a_while():
    peak = MemoryPeak("cpu")
    assert peak.mib() < 20
    block = torch.ones(100, 2**18)
    del block
    assert 95 < peak.mib() < 130


def test_time_goes_to_the_innermost_part(monkeypatch):
    ticks = iter([0, 1, 3, 6, 10, 15, 21])
    monkeypatch.setattr(Clock, "_now", lambda self: float(next(ticks)))
    clock = Clock("cpu")
    with clock.part("outer"):  # at 1
        with clock.part("inner"):  # at 3, until 6
            pass
        clock.switch("other")  # at 10, until 15
    assert clock.stop() == {"rest": 1.0 + 6.0, "outer": 2.0 + 4.0, "inner": 3.0, "other": 5.0}


def test_rows_take_turns_in_being_first():
    group = [Row("backbones", name, "eval", "fp32", (1, 8, 8)) for name in "abc"]
    orders = ["".join(row.model for row in _order(group, number)) for number in range(6)]
    assert orders == ["abc", "acb", "cab", "cba", "bca", "bac"]
    assert {order[0] for order in orders} == set("abc")


def test_the_plan_is_the_issues():
    groups = list(plan.groups("cpu"))
    rows = [row for group in groups for row in group]
    assert len(set(rows)) == len(rows)
    for shape in plan.SHAPES:
        for mode in plan.MODES:
            for dtype in plan.DTYPES:
                wanted = {OURS, "Swin-T", "ConvNeXt-T", "ResNet-50"}
                wanted |= {PAPER, "MLP-Mixer-S/16"} if shape[1:] == (224, 224) else set()
                wanted |= {"CycleMLP-B2"} if mode == "eval" or shape[1:] == (224, 224) else set()
                found = [
                    {r.model for r in g} for g in groups if (g[0].shape, g[0].mode, g[0].dtype) == (shape, mode, dtype)
                ]
                assert wanted in found
    assert {row.model for row in rows if row.part == "models"} == {
        f"{task}, {backbone}" for task in ("Mask R-CNN", "UperNet") for backbone in ("ResNet-50", "Swin-T", "sMLPNet-T")
    }
    assert {(row.mode, row.dtype, row.shape) for row in rows} >= bars.JUDGED
    by_onnxruntime = {(row.model, row.mode, row.dtype, row.shape) for row in rows if row.run == plan.ONNX}
    assert by_onnxruntime == {(OURS, "eval", "fp32", shape) for shape in plan.SHAPES}


def test_where_nothing_can_be_exported_the_rows_of_onnxruntime_are_left_out():
    groups = list(plan.groups("cpu", ["backbones"], only=[OURS]))
    kept = plan.without_onnx(groups)
    assert len(kept) == len(groups)
    assert {row.run for group in kept for row in group} == {"eager"}


def test_a_gpu_runs_backbones_compiled_and_as_graphs_too():
    (group,) = plan.groups("cuda", ["backbones"], [(8, 224, 224)], ["train"], ["bf16"], [OURS, "CycleMLP-B2"])
    assert {(row.model, row.run) for row in group} == {
        (name, run) for name in (OURS, "CycleMLP-B2") for run in ("eager", "compiled", "graphed")
    }


@pytest.fixture(scope="module")
def detector():
    return {mode: wholes.Whole("Mask R-CNN, sMLPNet-T", mode, (1, 128, 160), "cpu") for mode in plan.MODES}


def test_a_detectors_training_step_is_split_into_its_parts(detector):
    parts = detector["train"].step()
    assert parts.keys() == set(wholes.PARTS)
    assert all(seconds > 0 for seconds in parts.values())


def test_its_backward_pass_goes_through_the_parts_in_order(detector):
    whole = detector["train"]
    order = []
    whole.clock.switch = order.append
    whole.step()
    del whole.clock.switch
    assert order == ["heads", "neck", "backbone"]


@pytest.mark.slow
def test_a_detectors_inference_has_a_hundred_masks_to_paste(detector):
    parts = detector["eval"].step()
    assert parts.keys() == set(wholes.PARTS) - {"optimizer"}
    with torch.inference_mode():
        (found,) = detector["eval"].predict()
    assert found.pred_instances.masks.shape == (100, 128, 160)
    assert detector["eval"].macs() > 2 * backbones.macs(OURS, (1, 128, 160))


@pytest.mark.parametrize("mode", plan.MODES)
def test_a_segmentors_step_is_split_into_its_parts(mode):
    whole = wholes.Whole("UperNet, ResNet-50", mode, (2, 64, 64), "cpu")
    whole.model.data_preprocessor.size = (64, 64)  # else it pads to 512 x 512 in training
    parts = whole.step()
    last = {"train": "optimizer", "eval": "post-processing"}[mode]
    assert parts.keys() == {"preprocessing", "backbone", "heads", last, "rest"}


def a_row(model=OURS, mode="eval", shape=(8, 224, 224), ms=100.0, device="cpu", **more) -> dict:
    row = {"part": "backbones", "model": model, "mode": mode, "dtype": "fp32", "shape": list(shape), "run": "eager"}
    row |= {"median_ms": ms, "spread": 0.02, "samples": 9, "peak_mb": 50.0, "gmacs": 40.0, "peak_fraction": 0.8}
    return (
        row | {"device": device, "machine": "a machine", "threads": 2, "torch": "2.11.0", "peak_gflops": 160.0} | more
    )


def a_run() -> list[dict]:
    """Results that hold all bars but the counted one."""
    rows = [a_row(), a_row(PAPER, ms=130.0), a_row("Swin-T", ms=100.0)]
    rows += [a_row(mode="train", peak_mb=75.0), a_row(PAPER, "train", ms=120.0, peak_mb=100.0)]
    times = {OURS: 90.0, "Swin-T": 100.0, "ConvNeXt-T": 100.0, "CycleMLP-B2": 164.0}
    rows += [a_row(name, shape=(1, 800, 1344), ms=ms) for name, ms in times.items()]
    times = {1024: 100.0, 2048: 459.0}
    return rows + [a_row(shape=(1, side, side), ms=ms, part="sizes") for side, ms in times.items()]


def test_bars_are_read_off_the_rows_that_they_name():
    for bar in bars.BARS[:-1]:
        assert bar.holds(bar.value(a_run())), bar.name
        assert not bar.holds(bar.bound * (0.99 if bar.sense == bars.AT_LEAST else 1.01)), bar.name
    by_onnxruntime = a_row(ms=1.0, peak_mb=1.0, run=plan.ONNX)
    assert bars.figure([*a_run(), by_onnxruntime], "median_ms", OURS, "eval", (8, 224, 224)) == 100.0
    slower = [row | {"median_ms": 1.02 * row["median_ms"]} if row["model"] == OURS else row for row in a_run()]
    failed = [bar.name for bar in bars.BARS[:-1] if not bar.holds(bar.value(slower))]
    assert len(failed) == 6  # all but memory, the peak and the time per pixel
    with pytest.raises(KeyError, match="Swin-T, eval, fp32 at 8 x 224 x 224 on cpu"):
        bars.BARS[1].value(a_run()[:2])


def test_the_counted_bar_compares_pixels(monkeypatch):
    monkeypatch.setattr(bars, "SIDES", (64, 224))
    small, anchor = (backbones.macs(OURS, (1, side, side)) / side**2 for side in (64, 224))
    assert bars.macs_per_pixel() == pytest.approx(anchor / small)


def test_the_page_gets_the_tables_and_keeps_its_text_and_another_devices_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(bars, "SIDES", (64, 64))
    page, committed = tmp_path / "page.md", tmp_path / "page.json"
    page.write_text(f"# Before\n{report.BEGIN}\nstale\n{report.END}\nafter\n")
    report.write_page([a_row(dtype="bf16", device="cuda", ms=1.234)], page, committed)
    report.write_page(a_run(), page, committed)
    text = page.read_text()
    assert text.startswith("# Before\n")
    assert text.endswith("\nafter\n")
    assert "stale" not in text
    assert "| eval | fp32 | sMLPNet-T | 100 (2%), 50, 0.80 |" in text
    assert "1.23 (2%), 50, 0.80" in text
    assert "| eval, 1 x 800 x 1344: our time / Swin-T's | at most 0.9 | 0.900 | yes |" in text
    assert text == report.with_tables(text, json.loads(committed.read_text()))
    page.write_text("no lines")
    with pytest.raises(ValueError, match="the page needs one line"):
        report.write_page(a_run(), page, committed)
    assert page.read_text() == "no lines"


def test_the_committed_page_shows_the_committed_run_and_that_holds_all_bars():
    page = report.PAGE.read_text("utf-8")
    results = json.loads(report.COMMITTED.read_text())
    assert page == report.with_tables(page, results)
    assert {row[0]: row[-1] for row in report.tables(results)["Bars"][1:] if row[-1] != "yes"} == {}


@pytest.mark.parametrize("readme", ["README.md", "README.zh-CN.md"])
def test_both_readmes_show_the_committed_run(readme):
    rows = {
        (row["model"], row["mode"], tuple(row["shape"])): row
        for row in json.loads(report.COMMITTED.read_text())
        if (row["dtype"], row["run"]) == ("fp32", "eager")
    }
    columns = [
        ("eval", (8, 224, 224), "median_ms"),
        ("eval", (1, 800, 1344), "median_ms"),
        ("train", (8, 224, 224), "median_ms"),
        ("train", (8, 224, 224), "peak_mb"),
    ]
    text = (ROOT / readme).read_text("utf-8")
    for model in (OURS, PAPER, "Swin-T", "ConvNeXt-T", "ResNet-50"):
        (cells,) = re.findall(rf"^\| {re.escape(model)} \| ([\d,]+ \| .*) \|$", text, re.MULTILINE)
        wanted = [
            f"{rows[model, mode, shape][key]:,.0f}" if (model, mode, shape) in rows else None
            for mode, shape, key in columns
        ]
        shown = [cell if re.fullmatch(r"[\d,]+", cell) else None for cell in cells.split(" | ")]
        assert shown == wanted, model


@pytest.mark.parametrize(
    ("limit", "seconds", "rounds"),
    [
        (math.inf, 40.0, (1, 5)),
        (15.0, 1.0, (1, 5)),
        (15.0, 4.0, (1, 2)),
        (15.0, 7.5, (1, 1)),
        (15.0, 8.0, (0, 1)),
        (15.0, 16.0, (0, 0)),
    ],
)
def test_a_round_warms_up_where_there_is_time_for_another(limit, seconds, rounds):
    settings = Settings("cpu", threads=1, sessions=3, repeats=15, limit=limit)
    assert plan_rounds(settings, seconds) == rounds


def run_command(out: Path, *options: str) -> subprocess.CompletedProcess:
    options = ("--out", str(out), "--threads", "1", "--peak-sizes", "64", "--repeats", "1", "--sessions", "1", *options)
    return subprocess.run(
        [sys.executable, ROOT / "benchmarks/speed", *options], capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_the_command_measures_resumes_and_judges(tmp_path):
    options = ("--part", "backbones", "--shapes", "1x224x224", "--only", OURS, PAPER, "--dtypes", "fp32")
    first = run_command(tmp_path, *options, "--modes", "train")
    assert first.returncode == 0, first.stderr
    rows = json.loads((tmp_path / "results.json").read_text())
    assert [(row["model"], row["mode"], row["dtype"]) for row in rows] == [
        (name, "train", "fp32") for name in (OURS, PAPER)
    ]
    for row in rows:
        assert row["shape"] == [1, 224, 224]
        assert row["gmacs"] == pytest.approx(4.989, abs=0.001)
        assert all(row[key] > 0 for key in ("median_ms", "peak_mb", "peak_fraction"))
        assert row["spread"] >= 0
    second = run_command(tmp_path, *options, "--resume")
    assert second.returncode == 0, second.stderr
    resumed = json.loads((tmp_path / "results.json").read_text())
    eager, by_onnxruntime = ([row for row in resumed if (row["run"] == plan.ONNX) is onnx] for onnx in (False, True))
    assert [row["mode"] for row in eager] == ["eval", "eval", "train", "train"]
    if torch.__version__ >= OLDEST_TORCH:
        assert [(row["model"], row["mode"]) for row in by_onnxruntime] == [(OURS, "eval")]
    else:
        assert by_onnxruntime == []
        assert "without the rows of onnxruntime: " in second.stderr
    kept = [row["median_ms"] for row in resumed if row["mode"] == "train"]
    assert kept == [row["median_ms"] for row in rows]
    judged = run_command(tmp_path, "--check")
    assert judged.returncode == 1
    assert "not measured" in judged.stdout
    assert judged.stderr.strip() == "speed: not all bars hold"


@pytest.mark.parametrize("training", [False, True])
def test_each_step_of_the_page_is_timed(training):
    times = speed_steps.measure((1, 3, 64, 64), training, 1)
    assert times.keys() == {PAPER, *speed_steps.VARIANTS}
    assert min(times.values()) > 0


def test_processes_of_other_backbones_keep_the_allocators_own_settings():
    packages = ["speed.backbones", *plan.packages(list(plan.groups("cpu")))]
    code = (
        "import importlib, sys\n"
        f"for package in {packages}: importlib.import_module(package)\n"
        "from speed.backbones import BACKBONES, OURS, build\n"
        "for name in BACKBONES.keys() - {OURS}: build(name, (224, 224))\n"
        "print([name for name in sys.modules if name.startswith('mmsmlp')])"
    )
    path = os.pathsep.join(filter(None, sys.path))
    process = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert process.stdout.splitlines()[-1:] == ["[]"], process.stderr


def test_a_process_that_fails_is_named_with_its_traceback():
    with pytest.raises(RuntimeError, match=r"(?s)the process of nothing at \(1, 8, 8\) failed:.*KeyError: 'nothing'"):
        Worker(Row("backbones", "nothing", "eval", "fp32", (1, 8, 8)), "cpu", 1)


def test_a_process_that_is_killed_is_named():
    worker = Worker(Row("backbones", "sMLPNet-T", "eval", "fp32", (1, 64, 64)), "cpu", 1)
    os.kill(worker._process.pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match=r"sMLPNet-T at \(1, 64, 64\) was killed, perhaps for want of memory"):
        worker.run()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--only", "Swin-X"], "unknown model 'Swin-X', choose from: sMLPNet-T; "),
        (["--shapes", "8x224"], "a shape is like 8x224x224 (images, height, width), got '8x224'"),
        (["--repeats", "0"], "take positive numbers"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["speed", *options])
    with pytest.raises(SystemExit):
        command._arguments()
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_without_results_there_is_nothing_to_judge(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["speed", "--check", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="run the benchmark first"):
        command.main()
