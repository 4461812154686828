"""Trains the coins Mask R-CNN at batch 2 with batch norms in training or in eval mode, several seeds each.

Detectors see few images at a time. Do the backbone's norms then do better with the statistics of those few, or with the
frozen ones of pre-training (`norm_eval=True`)? Eval mode makes sense with statistics to freeze only, so the detectors
start from a classifier: the demo's, trained on patches of 11 photographs with 32 patches at a time. The twelfth is the
coins, which it must not know. The rows from scratch show the trap: there, eval mode freezes what norms are made with.

SyncBN on k processes with 2 images each computes what BN computes on one process with 2 k, so the rows of batch 8 stand
for SyncBN on 4 GPUs. A row is to be compared with the other row of its batch: more images a step are more training.

Every run is a `mim train` in a process of its own, then a `tools/sweep.py` over the 8 symmetries of the val image. What
is finished is not repeated: the command can be stopped and called again.

python tools/make_coins.py data/coins
python tools/make_photos.py data/photos
python benchmarks/norms.py
python benchmarks/norms.py --only "batch 8, batch statistics" "batch 8, norm_eval" --iterations 300
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mmsmlp.files import atomic_file

ROOT = Path(__file__).parents[1]
CLASSIFIER = "configs/demo/smlpnet-mini_photos.py"
DETECTOR = "configs/demo/mask-rcnn_smlpnet-mini_coins.py"
LEFT_OUT = "coins"  # of the photographs: the detector's
WARM_UP = 20  # steps, as both configs have it
# The detector's normalisation, so that the classifier's norms have seen what the detector's will.
NORMALISATION = [
    "model.data_preprocessor.mean=[123.675,116.28,103.53]",
    "model.data_preprocessor.std=[58.395,57.12,57.375]",
]

# Row -> batch, whether pre-trained, options of the backbone. `out_norm` off, as in configs/detection, unless said.
STATISTICS, EVAL = ["norm_eval=False"], ["norm_eval=True"]
BARE, NORMED = ["out_norm=False"], ["out_norm=True"]
VARIANTS = {
    "batch 2, batch statistics": (2, True, STATISTICS + BARE),
    "batch 2, norm_eval": (2, True, EVAL + BARE),
    "batch 2, batch statistics, out_norm": (2, True, STATISTICS + NORMED),
    "batch 2, norm_eval, out_norm": (2, True, EVAL + NORMED),
    "batch 8, batch statistics": (8, True, STATISTICS + BARE),
    "batch 8, norm_eval": (8, True, EVAL + BARE),
    "batch 2, from scratch, batch statistics": (2, False, STATISTICS + BARE),
    "batch 2, from scratch, norm_eval": (2, False, EVAL + BARE),
}
METRICS = {"bbox_mAP": "box AP", "segm_mAP": "mask AP"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS)[:2], metavar="ROW")
    parser.add_argument("--iterations", type=int, default=150, help=f"of a detector, at least {WARM_UP + 1}")
    parser.add_argument("--pretraining", type=int, default=600, help=f"steps of a classifier, at least {WARM_UP + 1}")
    parser.add_argument("--threads", type=int, default=1, help="of a training; 1 lets several of them run side by side")
    parser.add_argument("--out", type=Path, default=Path("work_dirs/norms"))
    args = parser.parse_args()
    for name in ("iterations", "pretraining"):
        if getattr(args, name) <= WARM_UP:
            parser.error(f"--{name} must be more than the {WARM_UP} of the warm-up, got {getattr(args, name)}")
    out = args.out.absolute()
    found: dict[str, list[dict]] = {name: [] for name in args.only}
    runs = [(name, seed) for seed in args.seeds for name in args.only]
    for name, seed in track(runs, "Training", console=Console(stderr=True)):
        start = pretrained(seed, args.pretraining, args.threads, out) if VARIANTS[name][1] else None
        found[name].append(detector(name, seed, args.iterations, start, args.threads, out))
    rows = [{"name": name, "seeds": args.seeds, "iterations": args.iterations, "runs": found[name]} for name in found]
    results = out / "results.json"
    known = {r["name"]: r for r in json.loads(results.read_text())} if results.exists() else {}
    known |= {r["name"]: r for r in rows}  # the rows of earlier calls stay
    with atomic_file(results) as new:
        new.write_text(json.dumps([known[name] for name in VARIANTS if name in known], indent=1) + "\n")
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table(rows))
    console.print(f"wrote {results}")


def pretrained(seed: int, iterations: int, threads: int, out: Path) -> Path:
    """Train a classifier of all photographs but the detector's, unless that is done.

    Returns:
        Path: Its last checkpoint.
    """
    photos = out / "photos"
    if not photos.exists():
        new = photos.with_suffix(".new")
        shutil.rmtree(new, ignore_errors=True)
        shutil.copytree(ROOT / "data/photos", new, ignore=shutil.ignore_patterns(LEFT_OUT))
        new.rename(photos)
    classes = len(list((photos / "train").iterdir()))
    overrides = [
        *(f"{part}_dataloader.dataset.data_root={photos}" for part in ("train", "val", "test")),
        f"model.head.num_classes={classes}",
        f"model.data_preprocessor.num_classes={classes}",
        *NORMALISATION,
        *schedule(seed, iterations),
    ]
    folder = out / f"classifier_seed{seed}_{iterations}"
    train("mmpretrain", CLASSIFIER, folder, overrides, threads)
    return folder / f"iter_{iterations}.pth"


def detector(name: str, seed: int, iterations: int, start: Path | None, threads: int, out: Path) -> dict[str, float]:
    """Box and mask AP in [0, 1] on the val image under 8 symmetries: of this training, or of the finished one."""
    batch, _, backbone = VARIANTS[name]
    overrides = [f"model.backbone.{option}" for option in backbone]
    overrides += [f"train_dataloader.batch_size={batch}", *schedule(seed, iterations)]
    if start is not None:
        overrides += [
            "model.backbone.init_cfg.type=Pretrained",
            f"model.backbone.init_cfg.checkpoint={start}",
            "model.backbone.init_cfg.prefix=backbone.",
        ]
    folder = out / re.sub(r"\W+", "-", name) / f"seed{seed}_{iterations}"
    train(detection_toolbox(), DETECTOR, folder, overrides, threads)
    swept = folder / "sweep" / "results.json"
    if not swept.exists() or swept.stat().st_mtime < (folder / "finished.json").stat().st_mtime:
        command = [sys.executable, "tools/sweep.py", str(folder / Path(DETECTOR).name), str(folder)]
        call([*command, "--zoom", "1", "--symmetries", "8", "--out", str(swept.parent)], threads)
    (row,) = json.loads(swept.read_text())["rows"]
    return {metric: row[metric] for metric in METRICS}


def schedule(seed: int, iterations: int) -> list[str]:
    """Options of both configs: a training of this length, evaluated and kept at its end."""
    return [
        f"randomness.seed={seed}",
        f"train_cfg.max_iters={iterations}",
        f"train_cfg.val_interval={iterations}",
        f"param_scheduler.1.end={iterations}",
        f"default_hooks.checkpoint.interval={iterations}",
    ]


def train(toolbox: str, config: str, folder: Path, overrides: list[str], threads: int) -> None:
    """Train by mim in a process of its own, unless a training with these options was finished in the folder."""
    done = folder / "finished.json"
    recipe = [config, (ROOT / config).read_text("utf-8"), *overrides]
    if done.exists() and json.loads(done.read_text()) == recipe:
        return
    shutil.rmtree(folder, ignore_errors=True)
    mim = str(Path(sys.executable).with_name("mim"))
    call([mim, "train", toolbox, config, "--work-dir", str(folder), "--cfg-options", *overrides], threads)
    with atomic_file(done) as new:
        new.write_text(json.dumps(recipe))


def call(command: list[str], threads: int) -> None:
    """Run a command at the repository's root; end with one line if it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        # mim's own frames come last; the first error is the cause.
        errors = re.findall(r"^\w*(?:Error|Exception|Interrupt)\b.*", done.stdout + done.stderr, re.M)
        sys.exit(f"norms: {errors[0] if errors else 'a command failed'}, from\n{shlex.join(command)}")


def detection_toolbox() -> str:
    """What mim calls mmdet: the name of its distribution."""
    try:
        importlib.metadata.distribution("onedl-mmdetection")
    except importlib.metadata.PackageNotFoundError:
        return "mmdet"
    return "mmdetection"


def table(rows: list[dict]) -> Table:
    """Mean and sample standard deviation of the accuracies, in percent."""
    result = Table(title="AP on the val image under its 8 symmetries, in percent: mean ± standard deviation")
    for heading in ("", "seeds", *METRICS.values()):
        result.add_column(heading, justify="right" if heading else "left")
    for row in rows:
        cells = []
        for metric in METRICS:
            values = 100 * np.array([run[metric] for run in row["runs"]])
            cells.append(f"{values.mean():.1f}" + (f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else ""))
        result.add_row(row["name"], str(len(row["seeds"])), *cells)
    return result


if __name__ == "__main__":
    main()
