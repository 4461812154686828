"""Checkpoints that are whole on disk at every moment."""

from __future__ import annotations

import logging
import os
import re
import shutil
import struct
import zipfile
import zlib
from collections import deque
from pathlib import Path
from typing import Any

from mmengine.dist import barrier, is_main_process
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook as _CheckpointHook
from mmengine.logging import print_log
from mmengine.runner import Runner

from mmsmlp.files import atomic_file, durable_replace
from mmsmlp.registry import HOOKS

_POINTER = "last_checkpoint"
_SUPERSEDED = "superseded_best"  # in the message hub: best checkpoints that are to be deleted after the next writing


class CheckpointError(OSError):
    """A checkpoint cannot be written, or is not whole; the message says which and what to do."""


def is_whole(path: str | Path) -> bool:
    """Whether a checkpoint file is complete: PyTorch's archive with every check sum right.

    Args:
        path (str | Path): A file from ``torch.save``, or a folder as sharded strategies write, of which only its
            being there is looked at.

    Returns:
        bool: The answer; False where there is nothing.
    """
    if Path(path).is_dir():
        return True
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, EOFError, RuntimeError, ValueError, struct.error, zipfile.BadZipFile, zlib.error):
        return False


@HOOKS.register_module()
class CheckpointHook(_CheckpointHook):
    """mmengine's CheckpointHook, which a kill or a full disk at any moment leaves with a whole checkpoint.

    A file (a folder, where a strategy shards) is written beside its place, flushed to the disk and renamed; then
    ``last_checkpoint`` is replaced in the same way; then what ``max_keep_ckpts`` and ``save_best`` no longer keep is
    deleted. So the disk needs room for one checkpoint more than are kept. ``--resume`` takes the checkpoint that
    ``last_checkpoint`` names, or if that is torn or gone the newest whole one, which is logged.

    The arguments are those of mmengine's. All this holds for folders; object stores (``s3://``) are left as they are.
    """

    def before_run(self, runner: Runner) -> None:
        """See to it that a training goes on from a whole checkpoint.

        Raises:
            CheckpointError: If the run is to go on from a certain file, and it is not whole.
        """
        named = runner._resume if isinstance(runner._resume, str) else runner._load_from
        if not runner._resume or "://" in str(named or self.out_dir or runner.work_dir):
            return
        if named is not None and Path(named).is_file() and not is_whole(named):
            raise CheckpointError(
                f"the checkpoint {named} is damaged or was not written to its end: "
                "resume without naming a file, then the newest whole one is taken"
            )
        if named is None and is_main_process():
            self._mend_pointer(runner)
        barrier()

    def before_train(self, runner: Runner) -> None:
        """Set up as mmengine does, and remove what an interrupted write left."""
        super().before_train(runner)
        self._local = isinstance(self.file_backend, LocalBackend)
        if self._local and is_main_process():
            info = runner.message_hub.runtime_info
            superseded = [path for path in info.get(_SUPERSEDED, []) if path not in self._best()]
            unfinished = [*Path(self.out_dir).glob(".*.partial"), *Path(runner.work_dir).glob(f".{_POINTER}.*")]
            for path in [*unfinished, *superseded]:
                _remove(Path(path))

    def _mend_pointer(self, runner: Runner) -> None:
        """Make ``last_checkpoint`` name a whole checkpoint, or nothing."""
        pointer = Path(runner.work_dir) / _POINTER
        try:
            named = pointer.read_text().strip()
        except (OSError, UnicodeDecodeError):
            named = ""
        if named and is_whole(named):
            return
        folder = Path(runner.work_dir)
        if self.out_dir is not None and Path(self.out_dir) != folder:
            folder = Path(self.out_dir) / folder.name
        pattern = re.compile(re.escape(self.filename_tmpl).replace(r"\{\}", r"\d+"))
        files = [path for path in folder.glob("*") if pattern.fullmatch(path.name)]
        files.sort(key=lambda path: path.stat().st_mtime, reverse=True)
        whole = next((path for path in files if is_whole(path)), None)
        if not files and not pointer.exists():
            return  # a new work directory
        found = f"names {named or 'nothing'}, which is not whole" if pointer.exists() else "is missing"
        if whole is None:
            pointer.unlink(missing_ok=True)
            then = "training starts from the beginning"
        else:
            write_pointer(pointer, str(whole))
            then = f"resuming from the newest whole checkpoint, {whole}"
        print_log(f"last_checkpoint {found}; {then}", logger="current", level=logging.WARNING)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        """As mmengine's, with the deletions after the writing."""
        if not self._local:
            super()._save_checkpoint_with_step(runner, step, meta)
            return
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info("last_ckpt", self.last_ckpt)
        superseded = []
        if self.max_keep_ckpts > 0:
            kept = [other for other in self.keep_ckpt_ids if other != step] + [step]
            superseded = kept[: -self.max_keep_ckpts]
            # The checkpoint lists what is still to be deleted: a run that goes on from it does that first.
            runner.message_hub.update_info("keep_ckpt_ids", kept)
            self.keep_ckpt_ids = deque(kept, self.max_keep_ckpts)
        if isinstance(self.file_backend, LateDeletions):
            runner.message_hub.update_info(_SUPERSEDED, list(self.file_backend.condemned))
        options = {"save_optimizer": self.save_optimizer, "save_param_scheduler": self.save_param_scheduler}
        options.update(meta=meta, by_epoch=self.by_epoch, backend_args=self.backend_args, **self.args)
        WholeSaves(runner).save_checkpoint(self.out_dir, name, self.file_client_args, **options)
        if is_main_process():
            write_pointer(Path(runner.work_dir) / _POINTER, self.last_ckpt)
            for other in superseded:
                _remove(Path(self.out_dir) / self.filename_tmpl.format(other))

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        """As mmengine's, with the deletions after the writing."""
        if not self._local:
            super()._save_best_checkpoint(runner, metrics)
            return
        backend, self.file_backend = self.file_backend, LateDeletions()
        try:
            super()._save_best_checkpoint(WholeSaves(runner), metrics)
            condemned = self.file_backend.condemned
        finally:
            self.file_backend = backend
        for path in condemned:
            if path not in self._best():  # validated again after an interruption, the file has the old one's name
                _remove(Path(path))
        runner.message_hub.update_info(_SUPERSEDED, [])

    def _best(self) -> set:
        """The paths of the best checkpoints."""
        return {getattr(self, "best_ckpt_path", None), *getattr(self, "best_ckpt_path_dict", {}).values()}


class LateDeletions(LocalBackend):
    """A file backend that only notes what is to be deleted, in ``condemned``."""

    def __init__(self) -> None:
        super().__init__()
        self.condemned: list[str] = []

    def remove(self, filepath: str | Path) -> None:
        """Note a file."""
        self.condemned.append(str(filepath))

    def rmtree(self, dir_path: str | Path) -> None:
        """Note a folder."""
        self.condemned.append(str(dir_path))


class WholeSaves:
    """A runner whose checkpoints appear whole or not at all; all else is the runner's own.

    Args:
        runner (Runner): The runner, of any type.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def save_checkpoint(self, out_dir: str, filename: str, *args, **kwargs) -> None:
        """Save beside, flush, rename. The arguments are those of the runner's method.

        Raises:
            CheckpointError: If the file cannot be written. What was there before is still whole then.
        """
        path, partial = Path(out_dir) / filename, Path(out_dir) / f".{filename}.partial"
        try:
            self._runner.save_checkpoint(out_dir, partial.name, *args, **kwargs)
            barrier()  # where every process writes a part
            if is_main_process():
                durable_replace(partial, path)
        except OSError as error:
            if is_main_process():
                _remove(partial)
            raise CheckpointError(
                f"the checkpoint {path} cannot be written ({error.strerror or error}); those before it are whole: "
                "make room, then go on with --resume"
            ) from error


def write_pointer(pointer: Path, checkpoint: str) -> None:
    """Make a ``last_checkpoint`` file name a checkpoint."""
    with atomic_file(pointer) as new:
        new.write_text(checkpoint)


def _remove(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    elif path.exists():
        os.remove(path)
