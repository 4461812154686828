"""docs/tutorial.md, followed literally: its files are written, its commands run, what it quotes is compared.

What the word after a block's language means: `file=NAME` a file to write, `server` a command to be stopped once its
page answers, `elsewhere` a command that is not run here. That is `make demo` alone, which tests/test_demo.py runs: in
its place stands a training by the same config, of a few steps, under the name that the demo's checkpoint has.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from conftest import STACK

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/tutorial.md"
BROUGHT = ("configs", "tools", "mmsmlp", "model-index.yml")  # what a clone has that the page uses
STEPS = 10  # of the training in the place of `make demo`, which takes 300


class Block(NamedTuple):
    language: str
    mark: str
    text: str


def blocks() -> list[Block]:
    found = re.findall(r"^```(\w+) ?(\S*)\n(.*?)^```$", PAGE.read_text("utf-8"), re.M | re.S)
    return [Block(*block) for block in found]


def clone(folder: Path) -> Path:
    """A folder like a clone after `make setup`: nothing in it but what git holds, and the environment."""
    for name in BROUGHT:
        (folder / name).symlink_to(ROOT / name)
    (folder / ".venv/bin").mkdir(parents=True)
    # This interpreter's environment, whichever it is; the page's first command is `source .venv/bin/activate`.
    (folder / ".venv/bin/activate").write_text(f'export PATH="{Path(sys.executable).parent}:$PATH"\n')
    return folder


def run(folder: Path, command: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    if STACK == "openmmlab":  # as the page says
        command = command.replace("mim run mmdetection", "mim run mmdet")
    shell = f"source .venv/bin/activate && {command}"
    return subprocess.run(["bash", "-ec", shell], cwd=folder, env=env, capture_output=True, text=True, check=False)


def follow(folder: Path, block: Block) -> str:
    """Do what a block says; what its command says."""
    if block.mark.startswith("file="):
        path = folder / block.mark.removeprefix("file=")
        path.parent.mkdir(exist_ok=True)
        path.write_text(block.text)
    elif block.mark == "server":
        serve(folder, block.text)
    elif block.language == "console":
        command, quoted = block.text.removeprefix("$ ").split("\n", 1)
        result = run(folder, command)
        assert result.returncode != 0
        output = (result.stdout + result.stderr).splitlines()
        assert [line for line in quoted.splitlines() if line not in output] == [], output[-5:]
    elif block.mark == "":
        result = run(folder, block.text)
        assert result.returncode == 0, block.text + (result.stdout + result.stderr)[-3000:]
        return result.stdout + result.stderr
    return ""


def serve(folder: Path, command: str) -> None:
    env = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    shell = f"source .venv/bin/activate && exec {command}"
    with subprocess.Popen(["bash", "-ec", shell], cwd=folder, env=env, stdout=subprocess.PIPE, text=True) as process:
        address = next(line for line in process.stdout if line.startswith("http://")).split()[0]
        assert "One network at any size" in httpx.get(address, timeout=60).text
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


def train_shortly(folder: Path) -> None:
    """What stands for `make demo`: its data, and a checkpoint under the name of its own."""
    options = f"train_cfg.max_iters={STEPS} train_cfg.val_interval={STEPS} default_hooks.checkpoint.interval={STEPS}"
    config = "configs/demo/mask-rcnn_smlpnet-mini_coins.py"
    command = f"python tools/train.py {config} --work-dir work_dirs/demo --cfg-options {options}"
    result = run(folder, f"python tools/make_coins.py data/coins && {command}")
    assert result.returncode == 0, result.stderr[-3000:]
    shutil.move(folder / f"work_dirs/demo/iter_{STEPS}.pth", folder / "work_dirs/demo/iter_300.pth")
    (folder / "work_dirs/demo/last_checkpoint").write_text(str(folder / "work_dirs/demo/iter_300.pth"))


def test_the_page_consists_of_blocks_that_can_be_followed():
    found = blocks()
    assert PAGE.read_text("utf-8").count("```") == 2 * len(found)
    kinds = {(block.language, re.sub("=.*", "", block.mark)) for block in found}
    assert kinds == {
        ("bash", ""), ("bash", "elsewhere"), ("bash", "server"), ("console", ""), ("json", "file"), ("python", "file"),
    }  # fmt: skip
    assert [block.text for block in found if block.mark == "elsewhere"] == ["make demo\n"]
    assert all(block.text.startswith("$ ") for block in found if block.language == "console")


def test_the_example_data_and_their_check(tmp_path):
    """The quick part of the page: up to the split of the data."""
    folder = clone(tmp_path)
    parts = [b for b in blocks() if "mine/example.json" in b.mark or "make_example.py" in b.mark + b.text]
    parts += [b for b in blocks() if "--split" in b.text]
    assert len(parts) == 4
    for block in parts:
        follow(folder, block)
    json.loads((folder / "mine/example.json").read_text())
    train, val = (json.loads((folder / f"mine/{part}.json").read_text()) for part in ("train", "val"))
    assert (len(train["images"]), len(val["images"])) == (9, 3)
    for part in (train, val):
        assert {annotation["category_id"] for annotation in part["annotations"]} == {1, 2}


@pytest.mark.slow
def test_the_whole_page_followed_to_its_end(tmp_path):
    folder, said = clone(tmp_path), ""
    for block in blocks():
        if block.mark == "elsewhere":
            train_shortly(folder)
        else:
            said += follow(folder, block)
    assert "size mismatch for roi_head.bbox_head.fc_cls.weight" in said, "the page says that it is there"
    assert (folder / "work_dirs/mine/iter_100.pth").is_file()
    assert len(list((folder / "mine/seen").iterdir())) == 9
    assert len(list((folder / "mine/found").rglob("*.jpg"))) == 3
    assert (folder / "mine/found.png").is_file()
    rows = json.loads((folder / "work_dirs/mine/sweep/results.json").read_text())["rows"]
    assert [row["factor"] for row in rows] == [0.5, 1, 2]
    assert rows[1]["bbox_mAP_50"] > 0.3, "nothing was learned"
