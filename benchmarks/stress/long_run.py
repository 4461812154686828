"""A long training with ever changing sizes: nothing grows."""

from __future__ import annotations

import ast
import gc
import importlib
import os
import random
import statistics
import sys
from collections.abc import Iterator
from functools import _lru_cache_wrapper
from pathlib import Path

import torch

import mmsmlp
from stress.loading import network, silence
from stress.rows import Outcome

MOST_GROWTH = 0.02  # of the mean memory, from the second quarter to the last
_SIZES = (33, 160)
_WARM_UP = 20
_LEAST_FOR_MEMORY = 400  # below, quarters are too short to tell
# Caches by names of photographs, of which there are 12; and what is told of a device once.
_UNBOUNDED = {"mmsmlp.photos.formats._regions"}


def long_run(tries: int, seed: int, folder: Path) -> Outcome:
    """Train a small network for ``tries`` steps, each of another size."""
    silence()
    unbounded = [f"{name} has no bound" for name, cache in caches() if cache.cache_info().maxsize is None]
    unbounded = [note for note in unbounded if note.split()[0] not in _UNBOUNDED]
    net = network(seed).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)
    sizes = random.Random(seed)
    memory, before = [], {}
    for step in range(_WARM_UP + tries):
        if step == _WARM_UP:
            gc.collect()
            before = _held()
        x = torch.randn(sizes.randint(1, 3), 3, sizes.randint(*_SIZES), sizes.randint(*_SIZES))
        optimizer.zero_grad()
        sum(m.square().mean() for m in net(x)).backward()
        optimizer.step()
        if step >= _WARM_UP:
            memory.append(_resident())
    gc.collect()
    notes = unbounded
    for name, count in _held().items():
        if count > before[name]:
            notes.append(f"{name}: {count}, {before[name]} before")
    for name, cache in caches():
        info = cache.cache_info()
        if info.maxsize is not None and info.currsize > info.maxsize:
            notes.append(f"{name} holds {info.currsize} of {info.maxsize}")
    quarter = len(memory) // 4
    second, last = statistics.mean(memory[quarter : 2 * quarter]), statistics.mean(memory[3 * quarter :])
    growth = last / second - 1
    print(f"measured: {second / 2**20:.1f} MiB in the second quarter, {last / 2**20:.1f} in the last: {growth:+.2%}")
    if tries >= _LEAST_FOR_MEMORY and growth > MOST_GROWTH:
        notes.append(f"memory grew by {growth:.1%} from the second quarter ({second / 2**20:.0f} MiB) to the last")
    return Outcome(tries, len(notes), notes=tuple(notes))


def caches() -> Iterator[tuple[str, _lru_cache_wrapper]]:
    """Every function of the package with a cache, found in the sources, with its name."""
    root = Path(mmsmlp.__file__).parent
    for path in sorted(root.rglob("*.py")):
        functions = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.FunctionDef)]
        cached = [f.name for f in functions if any("cache" in ast.unparse(d) for d in f.decorator_list)]
        if cached:
            module = ".".join(("mmsmlp", *path.relative_to(root).with_suffix("").parts))
            yield from ((f"{module}.{name}", getattr(importlib.import_module(module), name)) for name in cached)


def _held() -> dict[str, int]:
    """What must not become more: files, threads, and what lies in collections of the package's modules."""
    counts = {"file descriptors": len(os.listdir("/proc/self/fd")), "threads": len(os.listdir("/proc/self/task"))}
    modules = [module for name, module in sys.modules.items() if name.partition(".")[0] == "mmsmlp"]
    for module in modules:
        for name, value in vars(module).items():
            if isinstance(value, (dict, list, set)) and not name.startswith("__"):
                counts[f"{module.__name__}.{name}"] = len(value)
    return counts


def _resident() -> int:
    """Bytes of memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
