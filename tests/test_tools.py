"""tools/train.py, tools/test.py and tools/image_demo.py as processes, with a model of each toolbox."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageChops

from mmsmlp.coins import write_coins
from mmsmlp.photos import write_patches

ROOT = Path(__file__).parents[1]
CONFIGS = {
    "mmdet": ROOT / "configs/demo/mask-rcnn_smlpnet-mini_coins.py",
    "mmseg": ROOT / "configs/demo/upernet_smlpnet-mini_coins.py",
    "mmpretrain": ROOT / "configs/demo/smlpnet-mini_photos.py",
}
# A training of one toolbox takes about 15 seconds; that of the two others runs in `make test-all`.
TOOLBOXES = [
    "mmpretrain",
    pytest.param("mmdet", marks=pytest.mark.slow),
    pytest.param("mmseg", marks=pytest.mark.slow),
]
SHORT = ["train_cfg.max_iters=2", "train_cfg.val_interval=2", "default_hooks.checkpoint.interval=2"]


def run(folder: Path, tool: str, *arguments, fails: bool = False) -> str:
    """Run a tool as a user does who stands in `folder`; its output."""
    command = [sys.executable, ROOT / "tools" / f"{tool}.py", *arguments]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(list(map(str, command)), cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert (result.returncode != 0) == fails, result.stderr[-3000:]
    return result.stdout + result.stderr


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A folder in which the configs find their data."""
    folder = tmp_path_factory.mktemp("user")
    write_coins(folder / "data/coins")
    write_patches(folder / "data/photos")
    return folder


@pytest.fixture(scope="module", params=TOOLBOXES)
def trained(request, data) -> tuple[str, Path]:
    """A toolbox, and the work directory (relative to the user's folder) of a training by tools/train.py."""
    options = ["--auto-scale-lr", "--cfg-options", "auto_scale_lr.base_batch_size=64", *SHORT]
    run(data, "train", CONFIGS[request.param], "--work-dir", f"work/{request.param}", *options)
    return request.param, Path("work", request.param)


def test_a_training_leaves_a_checkpoint_and_its_config_under_a_name_that_no_config_has(data, trained):
    toolbox, work = trained
    assert (data / work / "iter_2.pth").is_file()
    assert (data / work / "config.py").is_file()
    assert not (data / work / CONFIGS[toolbox].name).exists()


def test_the_learning_rate_is_scaled_where_that_is_asked_for(data, trained):
    log = min((data / trained[1]).glob("*/*.log")).read_text()
    assert "LR is set based on batch size of 64" in log


def test_a_training_resumes_where_it_was(data, trained):
    toolbox, work = trained
    options = ["train_cfg.max_iters=3", *SHORT[1:], "default_hooks.checkpoint.max_keep_ckpts=-1"]
    output = run(data, "train", CONFIGS[toolbox], "--work-dir", work, "--resume", "--cfg-options", *options)
    assert "resumed epoch: 0, iter: 2" in output
    assert torch.load(data / work / "iter_3.pth", weights_only=False)["meta"]["iter"] == 3


def test_a_test_writes_predictions_and_pictures(data, trained):
    toolbox, work = trained
    out = Path("out", toolbox if toolbox == "mmseg" else f"{toolbox}.pkl")
    show = Path("show", toolbox)
    run(data, "test", work / "config.py", work, "--work-dir", "tested", "--out", out, "--show-dir", show)
    pictures = [p for p in (data / show).rglob("*.*") if p.suffix in (".png", ".jpg")]
    # 30 patches of each class bear the same names, by which mmpretrain calls its pictures
    images, names = (360, 30) if toolbox == "mmpretrain" else (1, 1)
    assert len(pictures) == names
    if toolbox == "mmseg":
        assert [p.name for p in (data / out).iterdir()] == ["coins.png"]
    else:
        assert len(pickle.loads((data / out).read_bytes())) == images


@pytest.mark.slow
def test_a_test_under_flips(data, trained):
    toolbox, work = trained
    output = run(data, "test", CONFIGS[toolbox], work, "--work-dir", "tested", "--tta")
    assert {"mmdet": "coco/bbox_mAP", "mmseg": "mIoU", "mmpretrain": "accuracy/top1"}[toolbox] in output
    assert "segm_mAP" not in output


@pytest.mark.slow
def test_one_picture_of_a_photograph(data, trained):
    toolbox, work = trained
    photo = next((data / "data" / ("photos/val" if toolbox == "mmpretrain" else "coins/images/val")).rglob("*.png"))
    run(data, "image_demo", photo, CONFIGS[toolbox], work, "--out", f"{toolbox}.png", "--score", "0")
    with Image.open(data / f"{toolbox}.png") as picture, Image.open(photo) as original:
        assert picture.size[0] >= original.size[0]
        difference = ImageChops.difference(picture.convert("RGB").resize(original.size), original.convert("RGB"))
    assert max(high for _, high in difference.getextrema()) > 50, "nothing is drawn"


@pytest.mark.parametrize(
    ("tool", "arguments", "line"),
    [
        pytest.param("train", ["none.py"], "train: the config none.py does not exist", marks=pytest.mark.slow),
        pytest.param(
            "train",
            [CONFIGS["mmdet"], "--amp"],
            "train: --amp needs a GPU (mmengine's AmpOptimWrapper does) and there is none: leave it out",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
        ("test", [CONFIGS["mmdet"], "none.pth"], "test: the checkpoint none.pth does not exist"),
        pytest.param(
            "image_demo",
            ["none.jpg", CONFIGS["mmdet"], "x"],
            "image_demo: the photograph none.jpg does not exist",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_mistake_ends_with_one_line(tmp_path, tool, arguments, line):
    assert run(tmp_path, tool, *arguments, fails=True).strip().splitlines()[-1] == line


@pytest.mark.slow
def test_missing_data_end_a_training_with_the_remedy(tmp_path):
    last = run(tmp_path, "train", CONFIGS["mmdet"], fails=True).strip().splitlines()[-1]
    assert last.startswith("train: [Errno 2]")
    assert "data/coins/annotations/instances_train.json" in last
    assert "make or download the data first" in last
