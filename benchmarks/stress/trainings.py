"""Short trainings of the demo's Mask R-CNN in processes of their own, and what they leave behind."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "configs/demo/mask-rcnn_smlpnet-mini_coins.py"
# Figures of a run that are not the model's: the clock's, and what a hook notes of the machine.
CLOCK = ("time", "data_time", "memory", "eta", "iter_tic")

SHORT = """
_base_ = [{demo!r}]
custom_imports = dict(imports=['stress.hooks'], allow_failed_imports=False)
custom_hooks = [dict(type='KillHook'), dict(type='EMAHook', momentum=0.1)]
crop = (96, 96)
train_pipeline = _base_.train_pipeline
train_pipeline[3].update(crop_size=crop)
train_dataloader = dict(batch_size=2, num_workers={workers}, dataset=dict(data_root='{data}/', pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(data_root='{data}/'))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file='{data}/annotations/instances_val.json', metric='bbox')
test_evaluator = val_evaluator
train_cfg = dict(max_iters={iterations}, val_interval={interval})
default_hooks = dict(
    checkpoint=dict(interval={interval}, max_keep_ckpts={keep}, save_best='coco/bbox_mAP_50', rule='greater'),
    logger=dict(interval=1),
)
"""


def write_config(
    path: Path, data: Path, iterations: int, interval: int, keep: int = 1, workers: int = 0, extra: str = ""
) -> Path:
    """Write the config of a short training: a moving average, a checkpoint before each validation, the best one.

    Args:
        path (Path): The config to write.
        data (Path): The coins data set.
        iterations (int): How long.
        interval (int): Iterations from one checkpoint and validation to the next.
        keep (int): ``max_keep_ckpts``. Defaults to 1.
        workers (int): Processes that load images. Defaults to 0: the training's own.
        extra (str): More lines. Defaults to none.

    Returns:
        Path: The config.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    text = SHORT.format(
        demo=str(DEMO), data=data.absolute(), iterations=iterations, interval=interval, keep=keep, workers=workers
    )
    path.write_text(text + extra)
    return path


def train(
    config: Path,
    work_dir: Path,
    *options: str,
    kill: str | None = None,
    mim: bool = False,
    threads: int = 1,
    processes: int = 1,
    timeout: int = 900,
    preparation: Callable[[], None] | None = None,
) -> subprocess.CompletedProcess:
    """Train in a process of its own.

    Args:
        config (Path): The config.
        work_dir (Path): Where to.
        *options (str): Such as ``--resume``.
        kill (str, optional): The moment at which the process kills itself, as :mod:`stress.hooks` says.
        mim (bool): Whether by ``mim train``, else by tools/train.py. Defaults to False.
        threads (int): PyTorch's. Defaults to 1.
        processes (int): How many train together. Defaults to 1.
        timeout (int): Seconds after which it counts as hanging. Defaults to 900.
        preparation (Callable, optional): What the process calls first.

    Returns:
        subprocess.CompletedProcess: Its end, both outputs in ``stdout``.
    """
    variables = {
        **os.environ,
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'benchmarks'}",
        "OMP_NUM_THREADS": str(threads),
        "MMSMLP_KILL": kill or "",
    }
    if not kill:
        variables.pop("MMSMLP_KILL")
    command = [str(ROOT / "tools/train.py"), str(config)]
    if mim:
        package = "mmdetection" if _onedl() else "mmdet"
        command = ["-m", "mim", "train", package, str(config), "--gpus", "0"]
    if processes > 1:
        command = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *command]
        options = (*options, "--launcher", "pytorch")
    return subprocess.run(
        [sys.executable, *command, "--work-dir", str(work_dir), *options],
        env=variables,
        cwd=work_dir.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=timeout,
        preexec_fn=preparation,
    )


def _onedl() -> bool:
    from importlib.metadata import PackageNotFoundError, version

    try:
        version("onedl-mmdetection")
    except PackageNotFoundError:
        return False
    return True


def validations(work_dir: Path) -> dict[int, dict[str, float]]:
    """The logged results of all validations in a work directory, by iteration, whichever run they are from."""
    found: dict[int, dict[str, float]] = {}
    for file in sorted(work_dir.glob("*/vis_data/scalars.json")):
        for line in file.read_text().splitlines():
            try:
                row = json.loads(line)
            except ValueError:  # the line at which the process was killed
                continue
            results = {key: value for key, value in row.items() if key.startswith("coco/")}
            if results:
                found.setdefault(row["step"], {}).update(results)
    return found


def resumed_at(output: str) -> int:
    """The iteration that a training's log says it went on from; 0 from the beginning."""
    found = re.findall(r"resumed epoch: \d+, iter: (\d+)", output)
    return int(found[-1]) if found else 0


def differences(a: object, b: object, place: str = "") -> list[str]:
    """Where two checkpoints differ, bit by bit, but for times of the clock, paths and texts.

    Args:
        a (object): A checkpoint, or a part of one.
        b (object): Another.
        place (str): Where the parts are. Defaults to the top.

    Returns:
        list[str]: The places.
    """
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()
        return [] if same else [place]
    if isinstance(a, dict) and isinstance(b, dict):
        keys = sorted({str(key) for key in (*a, *b)})
        a, b = ({str(key): value for key, value in part.items()} for part in (a, b))
        keys = [key for key in keys if not any(part in CLOCK for part in key.split("/"))]
        return [at for key in keys for at in differences(a.get(key), b.get(key), f"{place}/{key}")]
    if hasattr(a, "_log_history") and hasattr(b, "_log_history"):  # mmengine's HistoryBuffer
        same = a._log_history.tobytes() == b._log_history.tobytes()
        return [] if same else [place]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        return [at for i, (x, y) in enumerate(zip(a, b)) for at in differences(x, y, f"{place}/{i}")]
    if isinstance(a, str) and isinstance(b, str):
        return []
    return [] if a == b or (a != a and b != b) else [place]
