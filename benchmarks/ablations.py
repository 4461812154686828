"""Trains the paper's ablations on the photograph patches, several seeds each: parameters, operations, accuracy.

Every run is a `mim train` of configs/demo/smlpnet-mini_photos.py with other options, in a process of its own. A run
that is finished is not repeated while its recipe stays the same, so the command can be stopped and called again. A run
takes 50 seconds on one core.

python tools/make_photos.py data/photos
python benchmarks/ablations.py --seeds 0 1 2
python benchmarks/ablations.py --seeds 0 1 2 --only "full" "no local mixing"
"""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
from mmengine.config import Config, DictAction
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mmsmlp import SMLPNet
from mmsmlp.files import atomic_file
from mmsmlp.flops import count_config

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).parents[1]
CONFIG = "configs/demo/smlpnet-mini_photos.py"
TINY = "configs/classification/smlpnet-tiny_8xb128_in1k.py"
ITERATIONS = 600
WARM_UP = 20  # steps, as the config has it
# What a finished run must have in common with the run that is asked for.
RECIPE = ("model", "optim_wrapper", "param_scheduler", "train_cfg", "randomness")
LOADERS = ("train_dataloader", "val_dataloader")  # of which mmpretrain's train.py completes the rest

# Row -> options of the backbone; the same are applied to sMLPNet-T at 224 for its costs.
VARIANTS = {
    "full": [],
    "no local mixing": ["local_mixing=False"],
    "no global mixing": ["global_mixing=False"],
    "no global mixing in stage 1": ["global_mixing=[False,True,True,True]"],
    "no global mixing in stage 2": ["global_mixing=[True,False,True,True]"],
    "no global mixing in stage 3": ["global_mixing=[True,True,False,True]"],
    "no global mixing in stage 4": ["global_mixing=[True,True,True,False]"],
    "fusion by a sum": ["fusion=sum"],
    "fusion by a weighted sum": ["fusion=weighted"],
    "no identity branch": ["identity_branch=False"],
    "alpha 1": ["arch.mlp_ratio=1"],
    "alpha 2": ["arch.mlp_ratio=2"],
    "alpha 4": ["arch.mlp_ratio=4"],
    # 5 blocks as well, about as many operations as the pyramid, all of them at stride 8.
    "single stage": ["arch.embed_dims=48", "arch.depths=[5]", "arch.patch_size=8"],
}
HEAD = {"single stage": ["model.head.in_channels=48"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="ROW")
    parser.add_argument("--iterations", type=int, default=ITERATIONS, help=f"at least {WARM_UP + 1}, past the warm-up")
    parser.add_argument("--threads", type=int, default=1, help="of a training; 1 lets several of them run side by side")
    parser.add_argument("--out", type=Path, default=Path("work_dirs/ablations"))
    args = parser.parse_args()
    if args.iterations <= WARM_UP:
        parser.error(f"--iterations must be more than the {WARM_UP} of the warm-up, got {args.iterations}")
    runs = [(name, seed) for seed in args.seeds for name in args.only]
    accuracies: dict[str, list[float]] = {name: [] for name in args.only}
    for name, seed in track(runs, "Training", console=Console(stderr=True)):
        accuracies[name].append(train(name, seed, args.iterations, args.threads, args.out))
    rows = [row(name, accuracies[name], args.seeds, args.iterations) for name in args.only]
    results = args.out / "results.json"
    known = {r["name"]: r for r in json.loads(results.read_text())} if results.exists() else {}
    known |= {r["name"]: r for r in rows}  # the rows of earlier calls stay
    everything = [known[name] for name in VARIANTS if name in known]
    with atomic_file(results) as new:
        new.write_text(json.dumps(everything, indent=1) + "\n")
    plot(everything, args.out / "ablations.png")
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(table(rows))
    console.print(f"wrote results.json and ablations.png to {args.out}")


def options(name: str, seed: int, iterations: int) -> list[str]:
    """What `mim train` gets after --cfg-options."""
    schedule = [
        f"randomness.seed={seed}",
        f"train_cfg.max_iters={iterations}",
        f"train_cfg.val_interval={iterations}",
        f"param_scheduler.1.end={iterations}",
        f"default_hooks.checkpoint.interval={iterations}",
    ]
    return [f"model.backbone.{option}" for option in VARIANTS[name]] + HEAD.get(name, []) + schedule


def train(name: str, seed: int, iterations: int, threads: int, out: Path) -> float:
    """Top-1 accuracy in [0, 1] on the val patches after the last step: of this training, or of the finished one."""
    folder = out / re.sub(r"\W+", "-", name) / f"seed{seed}_{iterations}"
    result = folder / "accuracy.json"
    if not (result.exists() and recipe(folder / Path(CONFIG).name) == recipe(ROOT / CONFIG, name, seed, iterations)):
        mim = str(Path(sys.executable).with_name("mim"))
        command = [mim, "train", "mmpretrain", CONFIG, "--work-dir", str(folder.absolute())]
        command += ["--cfg-options", *options(name, seed, iterations)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            # mim's own frames come last; the first error is the cause.
            errors = re.findall(r"^\w*(?:Error|Exception|Interrupt)\b.*", done.stdout + done.stderr, re.M)
            sys.exit(f"ablations: {errors[0] if errors else 'a training failed'}, from\n{shlex.join(command)}")
        # The newest log of the folder; the last line with an accuracy is the validation after the last step.
        logs = sorted(folder.glob("*/vis_data/scalars.json"))
        scalars = [json.loads(line) for line in logs[-1].read_text().splitlines()]
        accuracy = [line["accuracy/top1"] for line in scalars if "accuracy/top1" in line][-1]
        with atomic_file(result) as new:
            new.write_text(json.dumps({"top1": accuracy / 100}))
    return json.loads(result.read_text())["top1"]


def recipe(config: Path, *run) -> dict:
    """What decides the result of a training: of a config file, with the options of ``run`` if given."""
    cfg = Config.fromfile(config)
    cfg.merge_from_dict(_parsed(options(*run)) if run else {})
    decisive = {key: cfg[key] for key in RECIPE}
    decisive |= {key: (cfg[key].batch_size, cfg[key].dataset) for key in LOADERS}
    return json.loads(json.dumps(decisive))  # tuples become lists


def row(name: str, accuracies: list[float], seeds: list[int], iterations: int) -> dict:
    """A row of results.json: costs of the trained network and of sMLPNet-T, accuracies, and the command of a run."""
    trained = cost(CONFIG, [f"model.backbone.{o}" for o in VARIANTS[name]] + HEAD.get(name, []), 64)
    result = {"name": name, "parameters": trained[0], "macs": trained[1]}
    if "single" not in name:
        tiny = cost(TINY, [f"model.backbone.{o}" for o in VARIANTS[name]], 224)
        result |= {"tiny_parameters": tiny[0], "tiny_macs": tiny[1]}
    overrides = " ".join(options(name, seeds[0], iterations))
    return result | {
        "seeds": seeds,
        "top1": accuracies,
        "command": f"mim train mmpretrain {CONFIG} --work-dir work_dirs/ablation --cfg-options {overrides}",
    }


def cost(config: str, overrides: list[str], size: int) -> tuple[int, int]:
    """Parameters and multiply-accumulates of a config with options, on one image of size x size pixels."""
    cfg = Config.fromfile(ROOT / config)
    if config == TINY:
        cfg.model.backbone.arch = {**SMLPNet.arch_settings["tiny"]}  # spelled out, so that options reach into it
    cfg.merge_from_dict(_parsed(overrides))
    counted = count_config(cfg, (size, size))
    return counted.parameters, counted.total_macs


def _parsed(overrides: list[str]) -> dict:
    """What mmengine makes of `--cfg-options`."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, default={})
    return parser.parse_args(["--cfg-options", *overrides] if overrides else []).cfg_options


def table(rows: list[dict]) -> Table:
    """Costs, and mean and sample standard deviation of the accuracies, in percent."""
    result = Table(title=f"{len(rows[0]['seeds'])} seeds: top-1 on the val patches, mean ± standard deviation")
    for heading in ("", "parameters", "MMAC at 64", "top-1", "tiny: M parameters", "GMAC at 224"):
        result.add_column(heading, justify="right" if heading else "left")
    for r in rows:
        top1 = 100 * np.array(r["top1"])
        spread = f" ± {top1.std(ddof=1):.1f}" if len(top1) > 1 else ""
        tiny = (f"{r['tiny_parameters'] / 1e6:.2f}", f"{r['tiny_macs'] / 1e9:.3f}") if "tiny_macs" in r else ("", "")
        result.add_row(r["name"], f"{r['parameters']:,}", f"{r['macs'] / 1e6:.2f}", f"{top1.mean():.1f}{spread}", *tiny)
    return result


def plot(rows: list[dict], out: Path) -> None:
    """Every run as a dot, the mean of a row as a line."""
    figure, axis = plt.subplots(figsize=(8, 0.8 + 0.32 * len(rows)), layout="constrained")
    for place, r in enumerate(rows):
        top1 = 100 * np.array(r["top1"])
        axis.plot(top1, [place] * len(top1), "o", color="#0072B2", alpha=0.7)
        axis.plot([top1.mean()] * 2, [place - 0.3, place + 0.3], color="#D55E00")
    for r in rows:
        if r["name"] == "full":
            axis.axvline(100 * np.mean(r["top1"]), color="grey", linestyle=":", zorder=0)
    axis.set_yticks(range(len(rows)), [r["name"] for r in rows])
    axis.invert_yaxis()
    axis.set_xlabel("top-1 accuracy on the val patches in percent: each seed, and the mean")
    axis.grid(axis="x", alpha=0.3)
    with atomic_file(out) as new:
        figure.savefig(new, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
