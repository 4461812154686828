"""A training that was interrupted goes on as if it had not been: random numbers and validations."""

from __future__ import annotations

import logging

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, Runner

from mmsmlp.registry import HOOKS
from mmsmlp.seeding import STEP, VALIDATION, SeededIterator, restart_sampler, seed_generators, seeded_loader

_STATE = "mmsmlp_resume"  # the key in a checkpoint


@HOOKS.register_module()
class ResumeHook(Hook):
    """Makes ``--resume`` end where the run would have ended without the interruption.

    Random numbers: those of a step are a function of the seed and the iteration, those of a sample's augmentation of
    the seed, the process's rank, the iteration and the place in the batch. Batches before the checkpoint's are not
    loaded again. On a CPU the weights are bitwise those of a run that was never interrupted, with any number of
    worker processes; mmengine alone starts anew with the seed's first random numbers.

    Validations: a checkpoint is written before the validation of its iteration. What the checkpoint does not hold the
    results of is validated again before the training goes on; mmengine alone goes on with the next iteration.

    It works with mmengine's ``IterBasedTrainLoop`` and ``EpochBasedTrainLoop`` (there also from the middle of an
    epoch, with ``by_epoch=False`` in the checkpoint hook) and any sampler that is itself a function of its seed and
    the epoch. Data sets that can only be read from their start (``IterableDataset``) keep their own order, which is
    logged. In a config: ``default_hooks = dict(resume=dict(type='mmsmlp.ResumeHook'))``.
    """

    priority = "HIGHEST"  # before any hook draws random numbers

    def __init__(self) -> None:
        self._resumed = False
        self._sampler_seed: int | None = None
        self._validated = -1  # the last iteration after which there was a validation

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Take over what the interrupted run left."""
        if runner._resume:
            self._resumed = True
            state = checkpoint.get(_STATE, {})
            self._sampler_seed = state.get("sampler_seed")
            self._validated = state.get("validated", -1)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Leave what a run needs that goes on from here; numbers only, so that any PyTorch reads it."""
        checkpoint[_STATE] = {"sampler_seed": self._sampler_seed, "validated": self._validated}

    def before_train(self, runner: Runner) -> None:
        """Put the seeded data loader into the training loop."""
        loop = runner.train_loop
        known = isinstance(loop, (IterBasedTrainLoop, EpochBasedTrainLoop))
        loader = seeded_loader(loop.dataloader, runner) if known else None
        if loader is None:
            print_log(
                f"{type(loop).__name__} with {type(loop.dataloader.dataset).__name__}: batches do not depend on the "
                "iteration alone, so a resumed run sees others than an uninterrupted one",
                logger="current",
                level=logging.WARNING,
            )
            return
        sampler = loader.batch_sampler.sampler
        restart_sampler(sampler, self._sampler_seed)
        self._sampler_seed = getattr(sampler, "seed", None)
        loop.dataloader = loader
        if isinstance(loop, IterBasedTrainLoop):
            skips = 0 if hasattr(loop.dataloader_iterator, "skip_iter") else loop.iter
            loop.dataloader_iterator = SeededIterator(loader, skips)

    def before_train_epoch(self, runner: Runner) -> None:
        """Make up for a validation that the interruption cut off."""
        self._make_up_for_validation(runner)

    def after_train(self, runner: Runner) -> None:
        """The same where no epoch is left to train."""
        self._make_up_for_validation(runner)

    def before_train_iter(self, runner: Runner, *args, **kwargs) -> None:
        """Seed the generators for the step."""
        seed_generators(runner.seed, STEP, runner.iter)

    def before_val(self, runner: Runner) -> None:
        """Seed the generators for the validation."""
        seed_generators(runner.seed, VALIDATION, runner.iter)

    def after_val_epoch(self, runner: Runner, *args, **kwargs) -> None:
        """Note that this iteration is validated, before the checkpoint hook may save the best weights."""
        self._validated = runner.iter

    def _make_up_for_validation(self, runner: Runner) -> None:
        resumed, self._resumed = self._resumed, False
        if not resumed or self._validated == runner.iter or not _validation_due(runner):
            return
        print_log(f"validating iteration {runner.iter}: its checkpoint was written before", logger="current")
        runner.val_loop.run()


def _validation_due(runner: Runner) -> bool:
    """Whether the training loop would have validated right after the iteration at which it stands."""
    loop = runner.train_loop
    if runner.val_loop is None or loop.iter == 0:
        return False
    loop._decide_current_val_interval()
    if isinstance(loop, IterBasedTrainLoop):
        done, last = loop.iter, loop.max_iters
    elif isinstance(loop, EpochBasedTrainLoop) and loop.iter == loop.epoch * len(loop.dataloader):
        done, last = loop.epoch, loop.max_epochs
    else:
        return False
    return done >= loop.val_begin and (done % loop.val_interval == 0 or done == last)
