"""Train and test any config by mmengine's Runner, whatever its toolbox: what tools/train.py and tools/test.py share."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner, find_latest_checkpoint

from mmsmlp.checkpoint import check_local_file

LAUNCHERS = ("none", "pytorch", "slurm", "mpi")
# The copy of the config in a work directory. Not the config's own name: mim looks for that name in the whole checkout.
COPY = "config.py"


def read_config(path: str | Path, options: dict | None = None) -> Config:
    """Read a config and apply a command line's changes.

    Args:
        path (str | Path): The config.
        options (dict, optional): Changes to it, dotted keys to values.

    Returns:
        Config: As it is written, not fitted to the machine.

    Raises:
        FileNotFoundError: If the config does not exist.
        ValueError: If the changes do not fit it.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"the config {path} does not exist")
    cfg = Config.fromfile(path)
    try:
        cfg.merge_from_dict(options or {})
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"--cfg-options {options} do not fit {path}: {error}") from error
    return cfg


def load_config(path: str | Path, options: dict | None, work_dir: str | None, launcher: str = "none") -> Config:
    """Read a config, apply a command line's changes, and fit it to the machine.

    mmpretrain's loaders get what its own scripts give them (pinned memory, workers that persist where there are any).
    Without a GPU synchronised batch norms become ordinary ones, which is printed, and processes talk by gloo.

    Args:
        path (str | Path): The config.
        options (dict, optional): Changes to it, dotted keys to values.
        work_dir (str, optional): Where to write. Defaults to the config's own, or ``work_dirs/`` and its name.
        launcher (str): One of ``LAUNCHERS``. Defaults to 'none', a single process.

    Returns:
        Config: What :func:`build_runner` takes.

    Raises:
        FileNotFoundError: If the config does not exist.
        ValueError: If the changes do not fit it, or the launcher needs a GPU and there is none.
    """
    path = Path(path)
    cfg = read_config(path, options)
    cfg.launcher = launcher
    cfg.work_dir = work_dir or cfg.get("work_dir") or f"work_dirs/{path.stem}"
    cfg.experiment_name = cfg.get("experiment_name") or path.stem
    object.__setattr__(cfg, "_filename", COPY)  # Config's own __setattr__ would make an entry of it
    if cfg.get("default_scope") == "mmpretrain":
        for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
            if cfg.get(loader) is not None:
                _complete_loader(cfg[loader])
    if not torch.cuda.is_available():
        _fit_cpu(cfg)
    return cfg


def set_training(cfg: Config, resume: str | None, amp: bool, auto_scale_lr: bool) -> None:
    """Apply a training command's flags to a config, in place.

    Args:
        cfg (Config): From :func:`load_config`.
        resume (str, optional): A checkpoint to go on from, or 'auto' for the latest one in the work directory.
        amp (bool): Whether to train in mixed precision.
        auto_scale_lr (bool): Whether to scale the learning rate by the actual batch size.

    Raises:
        FileNotFoundError: If the checkpoint does not exist.
        ValueError: If there is no GPU for ``amp``, no base batch size for ``auto_scale_lr``, or the checkpoint to go on
            or to start from (``load_from``) is damaged or asks to run something.
    """
    if amp:
        if not torch.cuda.is_available():
            raise ValueError("--amp needs a GPU (mmengine's AmpOptimWrapper does) and there is none: leave it out")
        cfg.optim_wrapper.type = "AmpOptimWrapper"
        cfg.optim_wrapper.setdefault("loss_scale", "dynamic")
    if auto_scale_lr:
        if not cfg.get("auto_scale_lr", {}).get("base_batch_size"):
            raise ValueError(
                "--auto-scale-lr needs the batch size that the config's learning rate is meant for: "
                "--cfg-options auto_scale_lr.base_batch_size=16"
            )
        cfg.auto_scale_lr.enable = True
    if resume:
        cfg.resume = True
        cfg.load_from = None if resume == "auto" else find_checkpoint(resume)
    latest = find_latest_checkpoint(cfg.work_dir) if cfg.get("resume") and not cfg.get("load_from") else None
    if start := latest or cfg.get("load_from"):
        check_local_file(str(start))


def build_runner(cfg: Config) -> Runner:
    """Build the runner that a config asks for: mmengine's Runner, or that of its ``runner_type``.

    Args:
        cfg (Config): From :func:`load_config`.

    Returns:
        Runner: Ready for ``train()`` or ``test()``.
    """
    if cfg.launcher == "pytorch" and not torch.cuda.is_available() and not dist.is_initialized():
        timeout = cfg.get("env_cfg", {}).get("dist_cfg", {}).get("timeout")  # in seconds, as mmengine reads it
        limits = {} if timeout is None else {"timeout": timedelta(seconds=timeout)}
        dist.init_process_group("gloo", **limits)  # mmengine's own start sets a GPU
    return RUNNERS.build(cfg) if "runner_type" in cfg else Runner.from_cfg(cfg)


def find_checkpoint(checkpoint: str | Path) -> str:
    """The file that a user means by a checkpoint; it has to be whole, and to ask for nothing to run.

    Args:
        checkpoint (str | Path): A file, an address such as https://…, or a work directory whose latest one is taken.

    Returns:
        str: The file's absolute path, or the address as it is.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If the file is damaged, or asks to run something. Addresses are not looked at.
    """
    if "://" in str(checkpoint):
        return str(checkpoint)
    path = Path(checkpoint)
    if path.is_dir():
        latest = find_latest_checkpoint(str(path))
        if latest is None:
            raise FileNotFoundError(f"the work directory {path} holds no checkpoint: train first")
        path = Path(latest)
    if not path.is_file():
        raise FileNotFoundError(f"the checkpoint {path} does not exist")
    check_local_file(str(path))
    return str(path.absolute())


def _complete_loader(loader: dict) -> None:
    """Mmpretrain's defaults of a data loader; workers cannot persist where there are none."""
    defaults = {
        "pin_memory": torch.cuda.is_available(),
        "persistent_workers": loader.get("num_workers", 0) > 0,
        "collate_fn": {"type": "default_collate"},
    }
    for key, value in defaults.items():
        loader.setdefault(key, value)
    if not loader.get("num_workers", 0):
        loader["persistent_workers"] = False


def _fit_cpu(cfg: Config) -> None:
    """Replace what needs a GPU, in place."""
    synchronised = [part for part in _dicts(cfg.get("model")) if part.get("type") in ("SyncBN", "MMSyncBN")]
    for part in synchronised:
        part["type"] = "BN"
    if cfg.pop("sync_bn", None) or synchronised:
        print("no GPU: SyncBN has no CPU implementation, so these norms are BN in this run")
    if cfg.launcher in ("slurm", "mpi"):
        raise ValueError(f"--launcher {cfg.launcher} needs GPUs and there are none: on CPUs take --launcher pytorch")
    if cfg.launcher == "pytorch":
        cfg.merge_from_dict({"env_cfg.dist_cfg.backend": "gloo"})
        if "runner_type" not in cfg:
            wrapper = {
                "type": "MMDistributedDataParallel",
                "broadcast_buffers": False,
                "find_unused_parameters": cfg.get("find_unused_parameters", False),
            }
            # by default mmengine names the GPU of the process's rank; None is a CPU's
            cfg.model_wrapper_cfg = {**wrapper, **(cfg.get("model_wrapper_cfg") or {}), "device_ids": None}
        elif cfg.get("strategy", {}).get("type") == "FSDPStrategy":
            cfg.merge_from_dict({"strategy.model_wrapper": {"type": "MMFullyShardedDataParallel", "device_id": "cpu"}})
            if cfg.strategy.get("state_dict_cfg") == "full":
                # mmengine's 'full' moves parameters to the CPU before FSDP frees them. Where they are already there,
                # that copies nothing, and what is saved is freed memory: the process crashes.
                kept = {"rank0_only": True, "offload_to_cpu": False}
                cfg.strategy.state_dict_cfg = {
                    "state_dict_type": "FULL_STATE_DICT",
                    "state_dict_config": {"type": "FullStateDictConfig", **kept},
                    "optim_state_dict_config": {"type": "FullOptimStateDictConfig", **kept},
                }


def _dicts(part: object) -> Iterator[dict]:
    """All dicts of a config, however deep."""
    if isinstance(part, dict):
        yield part
        part = list(part.values())
    if isinstance(part, (list, tuple)):
        for value in part:
            yield from _dicts(value)
