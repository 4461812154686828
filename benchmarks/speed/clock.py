"""Seconds of a step, split by its parts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

REST = "rest"


class Clock:
    """A stopwatch with parts: time goes to the innermost part that is running, what is outside of all to ``REST``.

    Args:
        device (str): 'cpu' or 'cuda', where each change of part waits for the GPU.
    """

    def __init__(self, device: str):
        self.device = device
        self.start()

    def start(self) -> None:
        """Begin anew, at zero."""
        self.seconds: dict[str, float] = {}
        self._running = [REST]
        self._since = self._now()

    def stop(self) -> dict[str, float]:
        """Seconds of each part since the start."""
        self._lap()
        return self.seconds

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A part that runs within the present one."""
        self._lap()
        self._running.append(name)
        yield
        self._lap()
        self._running.pop()

    def switch(self, name: str) -> None:
        """From now on it is another part that runs in the present one's place."""
        self._lap()
        self._running[-1] = name

    def _lap(self) -> None:
        now = self._now()
        part = self._running[-1]
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._since
        self._since = now

    def _now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()
