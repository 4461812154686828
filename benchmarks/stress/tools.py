"""The tools, as processes, with checkpoints that are damaged, hostile or of another model."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mmsmlp import SMLPNet
from mmsmlp.weights.spach import export_spach
from stress.loading import SIZE, network, silence, whole_model, write_mmengine
from stress.rows import Outcome

ROOT = Path(__file__).parents[2]
_CONFIG = """
_base_ = {base!r}
model = dict(backbone=dict(arch=dict(embed_dims=8, depths=(1, 1, 2, 1)), img_size=64), head=dict(in_channels=64))
train_dataloader = dict(batch_size=2, dataset=dict(data_root={data!r}))
val_dataloader = dict(dataset=dict(data_root={data!r}))
test_dataloader = val_dataloader
train_cfg = dict(max_iters=2, val_interval=2)
"""


class _Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def tools(tries: int, seed: int, folder: Path) -> Outcome:
    """Call each tool with each checkpoint; the first tries are a mixture."""
    silence()
    config = _write_config(folder)
    pairs = [(tool, kind) for kind in _KINDS for tool in _TOOLS]
    # Weights that do not fit are for the tools that build a model of a config.
    pairs += [(tool, kind) for kind in _UNFIT for tool in ("test", "image_demo", "train load_from")]
    pairs += [("reanchor", "a NaN"), ("convert_spach", "a NaN")]
    pairs = pairs[:: max(len(pairs) // tries, 1)][:tries]
    notes = []
    for tool, kind in pairs:
        if fault := _fault(tool, kind, seed, config, folder):
            notes.append(f"{tool}, {kind}: {fault}")
    return Outcome(len(pairs), len(notes), lost=sum("RUN" in note for note in notes), notes=tuple(notes))


def _fault(tool: str, kind: str, seed: int, config: Path, folder: Path) -> str | None:
    work_dir, out, mark = folder / "work_dir", folder / "out.pth", folder / "RUN"
    work_dir.mkdir(exist_ok=True)
    path = work_dir / "iter_1.pth"
    official = tool == "convert_spach"
    {**_KINDS, **_UNFIT}[kind](path, seed, mark, official)
    (work_dir / "last_checkpoint").write_text(str(path))
    before = path.read_bytes()
    given = {"checkpoint": path, "work_dir": work_dir, "config": config, "out": out, "photo": folder / "data/a.png"}
    script, *arguments = [part.format(**given) for part in _TOOLS[tool]]
    command = [sys.executable, str(ROOT / f"tools/{script}.py"), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "500"}
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    lines = [line for line in ended.stderr.splitlines() if line.strip()]
    last = lines[-1] if lines else ""
    if mark.exists():
        mark.unlink()
        return "ITS CODE WAS RUN"
    if ended.returncode != 1 or not last.startswith(f"{script}: ") or "Traceback" in ended.stderr:
        return f"status {ended.returncode}, {last[:300]!r}" + (", a traceback" if "Traceback" in ended.stderr else "")
    if out.exists() or path.read_bytes() != before:
        return "a file was written"
    return None


# {checkpoint} is damaged; with {work_dir}, it is the latest one there.
_TOOLS = {
    "reanchor": ("reanchor", "{checkpoint}", "{out}", "--img-size", "96", "96"),
    "convert_spach": ("convert_spach", "{checkpoint}", "{out}"),
    "convert_spach back": ("convert_spach", "{checkpoint}", "{out}", "--to-official"),
    "image_demo": ("image_demo", "{photo}", "{config}", "{checkpoint}", "--out", "{out}.png", "--device", "cpu"),
    "sweep": ("sweep", "{config}", "{checkpoint}", "--zoom", "1", "--out", "{out}"),
    "test": ("test", "{config}", "{checkpoint}", "--work-dir", "{work_dir}"),
    "train resume": ("train", "{config}", "--work-dir", "{work_dir}", "--resume"),
    "train load_from": (
        *("train", "{config}", "--work-dir", "{work_dir}"),
        *("--cfg-options", "load_from={checkpoint}"),
    ),
}


def _whole(path: Path, seed: int, official: bool, net: SMLPNet | None = None, **more) -> None:
    state = whole_model(net or network(seed))
    if official:
        torch.save({"model": export_spach(state), **more}, path)
    else:
        torch.save({**torch.load(write_mmengine(state, path), weights_only=False), **more}, path)


def _cut(path: Path, seed: int, mark: Path, official: bool) -> None:
    _whole(path, seed, official)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def _flip(path: Path, seed: int, mark: Path, official: bool) -> None:
    _whole(path, seed, official)
    content = bytearray(path.read_bytes())
    weights = network(seed).state_dict()["stages.2.1.channel_mlp.fc1.weight"].numpy().tobytes()
    content[content.index(weights) + len(weights) // 2] ^= 64
    path.write_bytes(content)


def _hostile(path: Path, seed: int, mark: Path, official: bool) -> None:
    _whole(path, seed, official, extra=_Touch(mark))


def _not_a_checkpoint(path: Path, seed: int, mark: Path, official: bool) -> None:
    path.write_text("<html>404</html>\n")


def _another_arch(path: Path, seed: int, mark: Path, official: bool) -> None:
    _whole(path, seed, official, network(seed, arch={"embed_dims": 8, "depths": (1, 1, 3, 1)}))


def _nan(path: Path, seed: int, mark: Path, official: bool) -> None:
    net = network(seed)
    weight: Tensor = net.stages[2][0].channel_mlp.fc1.weight
    weight.data[0, 0] = torch.nan
    _whole(path, seed, official, net)


_KINDS: dict[str, Callable[[Path, int, Path, bool], None]] = {
    "cut off": _cut,
    "a flipped bit": _flip,
    "a pickle with code": _hostile,
    "a page of text": _not_a_checkpoint,
}
_UNFIT = {"another arch": _another_arch, "a NaN": _nan}


def _write_config(folder: Path) -> Path:
    """A classifier's config on a few small images."""
    random = np.random.default_rng(0)
    for part in ("train", "val"):
        for name in ("a", "b"):
            path = folder / f"data/{part}/{name}/{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (SIZE, SIZE, 3), np.uint8)).save(path)
    Image.open(folder / "data/val/a/a.png").save(folder / "data/a.png")
    path = folder / "config.py"
    base = str(ROOT / "configs/demo/smlpnet-mini_photos.py")
    path.write_text(_CONFIG.format(base=base, data=str(folder / "data")))
    return path
