"""Hooks that only the stress runs' trainings have: one kills its process at a chosen moment, one compares processes.

The moment is in the environment variable MMSMLP_KILL, as KIND:ITERATION:FRACTION, the kind one of ``KINDS``. In a
training of several processes the last one is meant.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import torch
from mmengine.dist import all_gather, get_rank, get_world_size
from mmengine.fileio import LocalBackend
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from mmsmlp import checkpoint_hook

KINDS = {
    "write": "while the checkpoint is written, after that part of its bytes",
    "renamed": "after the checkpoint is in its place, before last_checkpoint names it",
    "named": "after last_checkpoint names it, before older ones are deleted",
    "best": "while the file of the best weights is written, after that part of its bytes",
    "validation": "in the middle of the validation",
    "validated": "after the validation's last image, before its results are logged",
    "iteration": "before the step",
    "hang": "before the step, but the process only stops",
}


def die() -> None:
    """End this process as `kill -9` and a lack of memory do."""
    os.kill(os.getpid(), signal.SIGKILL)


@HOOKS.register_module()
class KillHook(Hook):
    """Kills the process at the moment that MMSMLP_KILL names, if it names one."""

    priority = "HIGHEST"

    def __init__(self) -> None:
        kind, iteration, fraction = os.environ.get("MMSMLP_KILL", "none:0:0").split(":")
        last = get_rank() == get_world_size() - 1
        self.kind, self.iteration, self.fraction = kind if last else "none", int(iteration), float(fraction)

    def before_run(self, runner) -> None:
        """Reach into the writing of files."""
        if self.kind in ("write", "best"):
            self._die_in_write(f"best_*_iter_{self.iteration}.pth" if self.kind == "best" else None)
        if self.kind in ("renamed", "named"):
            self._die_at_pointer()

    def before_train_iter(self, runner, *args, **kwargs) -> None:
        """Kill before a step."""
        if self.kind == "iteration" and runner.iter == self.iteration:
            die()
        if self.kind == "hang" and runner.iter == self.iteration:
            os.kill(os.getpid(), signal.SIGSTOP)

    def before_val_iter(self, runner, *args, **kwargs) -> None:
        """Kill in a validation."""
        if self.kind == "validation" and runner.iter == self.iteration:
            die()

    def after_val_epoch(self, runner, *args, **kwargs) -> None:
        """Kill before anybody takes note of the results."""
        if self.kind == "validated" and runner.iter == self.iteration:
            die()

    def _die_in_write(self, best: str | None) -> None:
        put = LocalBackend.put

        def half(backend: LocalBackend, obj: bytes, filepath: str) -> None:
            name = Path(filepath).name.removeprefix(".").removesuffix(".partial")
            if Path(name).match(best or f"iter_{self.iteration}.pth"):
                with open(filepath, "wb") as file:
                    file.write(memoryview(obj)[: int(self.fraction * len(obj))])
                die()
            put(backend, obj, filepath)

        LocalBackend.put = half

    def _die_at_pointer(self) -> None:
        write_pointer = checkpoint_hook.write_pointer

        def write(pointer: Path, checkpoint: str) -> None:
            if not checkpoint.endswith(f"/iter_{self.iteration}.pth"):
                write_pointer(pointer, checkpoint)
                return
            if self.kind == "named":
                write_pointer(pointer, checkpoint)
            die()

        checkpoint_hook.write_pointer = write


@HOOKS.register_module()
class ProcessesAgreeHook(Hook):
    """Ends the training with an error if its processes' parameters are not equal, or have seen images of one size only.

    It is for trainings whose images differ in size from process to process.
    """

    def __init__(self) -> None:
        self.sizes: list[torch.Tensor] = []

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        """Note the sizes of a batch's first image."""
        sizes = torch.tensor(data_batch["inputs"][0].shape[-2:])
        self.sizes.append(torch.stack(all_gather(sizes)))

    def after_train(self, runner) -> None:
        """Compare."""
        if all((step == step[0]).all() for step in self.sizes):
            raise RuntimeError("the processes' images had equal sizes in every step")
        for name, value in runner.model.named_parameters():
            first, *others = all_gather(value.detach().contiguous())
            if not all(torch.equal(first, other) for other in others):
                raise RuntimeError(f"{name} is not the same in all processes")
