"""Random numbers that depend on the seed and on the iteration, and on nothing that was drawn before.

A training that goes on from a checkpoint then draws what it would have drawn without the interruption.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_rank
from mmengine.runner import IterBasedTrainLoop, Runner
from torch.utils.data import DataLoader, IterableDataset

# What a stream of random numbers is for; the first word after the seed.
STEP, VALIDATION, ORDER, SAMPLE = range(4)


def seed_generators(*words: int) -> None:
    """Seed the generators of Python, NumPy and PyTorch (CPU, and the GPUs in use).

    Args:
        *words (int): Non-negative numbers. Other numbers, or the same in another order, give unrelated streams.
    """
    state = np.random.SeedSequence(words).generate_state(4)
    random.seed(int(state[0]))
    np.random.seed(state[1])
    seed = int(state[2]) << 32 | int(state[3])
    # Not torch.manual_seed: as long as no GPU is in use, it formats its call stack, once a sample here.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


class Place(NamedTuple):
    """A sample's index in its data set, and the words that its random numbers come from."""

    index: int
    words: tuple[int, ...]


class SeededDataset:
    """A data set that seeds the generators for each sample; all else is the data set's own.

    In whichever worker process a sample is loaded, and whatever was loaded before, its augmentation is the same.

    Args:
        dataset (Sized): A data set with ``__getitem__``. It is indexed by :class:`Place`, or directly.
    """

    def __init__(self, dataset: Any) -> None:
        self.__dict__["_seeded"] = dataset

    def __len__(self) -> int:
        return len(self._seeded)

    def __getitem__(self, place: Place | int) -> Any:
        if not isinstance(place, Place):
            return self._seeded[place]
        seed_generators(*place.words)
        return self._seeded[place.index]

    def __getattr__(self, name: str) -> Any:
        if name == "_seeded" or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(name)  # pickling, and PyTorch's __getitems__, which would pass this class by
        return getattr(self._seeded, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._seeded, name, value)


class SeededBatches:
    """A batch sampler that starts at the batch of the training's iteration, and says for each sample where it stands.

    The batches before are drawn from the sampler, not loaded.

    Args:
        batches (Iterable[list[int]]): The batch sampler of the training's data loader.
        sampler (Sampler): The sampler that it draws from.
        runner (Runner): The runner. Its seed and its loop's position count at the time of iterating.
    """

    def __init__(self, batches: Iterable[list[int]], sampler: Any, runner: Runner) -> None:
        self.batches, self.sampler, self._runner = batches, sampler, runner
        self._endless = isinstance(runner.train_loop, IterBasedTrainLoop)

    def __len__(self) -> int:
        return len(self.batches)

    def __getattr__(self, name: str) -> Any:  # batch_size, drop_last
        if name == "batches":
            raise AttributeError(name)
        return getattr(self.batches, name)

    def __iter__(self) -> Iterator[list[Place]]:
        loop, seed = self._runner.train_loop, (self._runner.seed, get_rank())
        start = loop.iter
        epoch, number = (0, 0) if self._endless else (loop.epoch, loop.epoch * len(self))
        while True:
            seed_generators(*seed, ORDER, epoch)  # for samplers that draw from PyTorch's own generator
            if self._endless and hasattr(self.sampler, "set_epoch"):
                self.sampler.set_epoch(epoch)
            first = number
            for batch in self.batches:
                if number >= start:
                    words = (*seed, SAMPLE, number)
                    yield [Place(index, (*words, place)) for place, index in enumerate(batch)]
                number += 1
            if not self._endless:
                return
            if number == first:
                raise ValueError("the training data loader has no batch: the data set is empty or below the batch size")
            epoch += 1


class SeededIterator:
    """The endless iterator over batches that an IterBasedTrainLoop draws from.

    Args:
        loader (DataLoader): A loader from :func:`seeded_loader`.
        skips (int): How many calls return nothing: mmengine 0.10.7 draws, and throws away, the batches before the
            iteration that a training goes on from. The loader starts after them.
    """

    def __init__(self, loader: DataLoader, skips: int) -> None:
        self._loader, self._skips, self._iterator = loader, skips, None

    def __iter__(self) -> SeededIterator:
        return self

    def __next__(self) -> Any:
        if self._skips:
            self._skips -= 1
            return None
        if self._iterator is None:
            self._iterator = iter(self._loader)
        return next(self._iterator)

    def skip_iter(self, count: int) -> None:
        """What onedl's mmengine calls instead: nothing is left to do."""


def seeded_loader(loader: DataLoader, runner: Runner) -> DataLoader | None:
    """A data loader like another one, its batches and augmentations functions of the seed and the iteration.

    Args:
        loader (DataLoader): The training's data loader.
        runner (Runner): The runner.

    Returns:
        DataLoader | None: The other loader; None for data sets that can only be read from their start.
    """
    if isinstance(loader.dataset, IterableDataset) or loader.batch_sampler is None:
        return None
    sampler = getattr(loader.batch_sampler, "sampler", loader.sampler)
    return DataLoader(
        SeededDataset(loader.dataset),
        batch_sampler=SeededBatches(loader.batch_sampler, sampler, runner),
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
        pin_memory_device=loader.pin_memory_device,
    )


def restart_sampler(sampler: Any, seed: int | None) -> None:
    """Put a sampler back to its start.

    Args:
        sampler (Sampler): Any sampler.
        seed (int, optional): Its seed in the run that is gone on with, if it has one.
    """
    if seed is not None and hasattr(sampler, "seed"):
        sampler.seed = seed
    if isinstance(sampler, InfiniteSampler):
        # It counts on over all its iterators, and mmengine 0.10.7's workers have fetched from it by now.
        sampler.indices = sampler._indices_of_rank()
