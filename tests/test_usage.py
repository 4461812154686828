"""The toolboxes' own tools and hooks on our configs, by the commands of docs/usage.md."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.config import Config
from stack import MMDET

from mmsmlp.coins import write_coins
from mmsmlp.photos import write_patches

ROOT = Path(__file__).parents[1]
CONFIGS = {
    MMDET: ROOT / "configs/demo/mask-rcnn_smlpnet-mini_coins.py",
    "mmseg": ROOT / "configs/demo/upernet_smlpnet-mini_coins.py",
    "mmpretrain": ROOT / "configs/demo/smlpnet-mini_photos.py",
}


@pytest.fixture(scope="module")
def user(tmp_path_factory) -> Path:
    """A folder in which the configs find their data."""
    folder = tmp_path_factory.mktemp("user")
    write_coins(folder / "data/coins")
    write_patches(folder / "data/photos")
    return folder


def run(user: Path, *command) -> str:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    result = subprocess.run(
        [sys.executable, *map(str, command)], cwd=user, env=env, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, (result.stdout + result.stderr)[-3000:]
    return result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("toolbox", CONFIGS)
def test_print_config(user, toolbox):
    assert "mmsmlp.SMLPNet" in run(user, "-m", "mim", "run", toolbox, "print_config", CONFIGS[toolbox])


@pytest.mark.slow
@pytest.mark.parametrize("toolbox", CONFIGS)
def test_browse_dataset(user, toolbox):
    # Training samples without end are not for browsing: 5 of them, by each tool's own way
    # Its other modes call a private function of matplotlib, which has other arguments since 3.11.
    few = {"mmpretrain": ["--show-number", "5", "--mode", "original"]}.get(toolbox, [])
    out = user / "browse" / toolbox
    run(user, "-m", "mim", "run", toolbox, "browse_dataset", CONFIGS[toolbox], "--output-dir", out, "--not-show", *few)
    assert list(out.rglob("*.png")) + list(out.rglob("*.jpg"))


@pytest.mark.slow
@pytest.mark.parametrize("toolbox", CONFIGS)
def test_hooks_draw_validation_images_and_logs_are_analysed(user, toolbox):
    options = ["train_cfg.max_iters=10", "train_cfg.val_interval=10"]
    options += ["default_hooks.visualization.interval=1"]
    options += [f"default_hooks.visualization.{'enable' if toolbox == 'mmpretrain' else 'draw'}=True"]
    work = user / "work" / toolbox
    run(user, ROOT / "tools/train.py", CONFIGS[toolbox], "--work-dir", work, "--cfg-options", *options)
    assert list(work.glob("*/vis_data/vis_image/*.png"))
    assert Config.fromfile(next(work.glob("*/vis_data/config.py"))).default_scope
    log = next(p for p in work.glob("*/vis_data/*.json") if p.name != "scalars.json")
    picture = user / f"{toolbox}.png"
    # mmdet's default style is no style of matplotlib
    style = ["--style", "ggplot"] if toolbox == MMDET else []
    # mmseg's script draws curves and nothing else
    plot = [] if toolbox == "mmseg" else ["plot_curve"]
    run(user, "-m", "mim", "run", toolbox, "analyze_logs", *plot, log, "--keys", "loss", "--out", picture, *style)
    assert picture.stat().st_size > 1000


@pytest.mark.slow
def test_tensorboard_holds_losses_accuracies_and_pictures(user):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = ["train_cfg.max_iters=10", "train_cfg.val_interval=10"]
    options += ["visualizer.vis_backends.0.type=TensorboardVisBackend"]
    options += ["default_hooks.visualization.enable=True", "default_hooks.visualization.interval=100"]
    config, work = CONFIGS["mmpretrain"], user / "work/tensorboard"
    run(user, ROOT / "tools/train.py", config, "--work-dir", work, "--cfg-options", *options)
    events = EventAccumulator(str(next(work.rglob("events.out.*"))))
    events.Reload()
    tags = events.Tags()
    assert {"loss", "accuracy/top1"} <= set(tags["scalars"])
    assert tags["images"]
