"""Large maps in parts that a cache has room for, and whose memory the allocator keeps.

glibc's allocator maps blocks above a threshold from the system, gives them back when they are freed, and trims the end
of its heap to another threshold. Each page costs a fault when it is first written after that, so the import of this
module raises both (docs/performance.md has the figures).
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator, Sequence

from torch import Tensor

# How many values of a map to compute at a time, about: 8 MiB in float32.
CHUNK_VALUES = 2**21

# Numbers of mallopt's parameters in glibc's malloc.h, and the environment variables that set them.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_GLIBC_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES")


def strips(x: Tensor, halo: int = 0) -> Iterator[tuple[slice, slice, slice]]:
    """Parts of a map, of whole lines, or of whole images where they are small.

    Args:
        x (Tensor): (N, H, W, C).
        halo (int): How many lines a convolution sees on either side. Defaults to 0.

    Yields:
        tuple[slice, slice, slice]: Images, lines, and those lines with the neighbours that the convolution sees.
    """
    n, h, w, c = x.shape
    images = max(1, CHUNK_VALUES // (h * w * c))
    count = min(h, max(2 * halo, lines_at_a_time(x)))
    for image in range(0, n, images):
        for start in range(0, h, count):
            stop = min(start + count, h)
            yield slice(image, image + images), slice(start, stop), slice(max(start - halo, 0), min(stop + halo, h))


def lines_at_a_time(x: Tensor) -> int:
    """How many lines of a map (N, H, W, C) make a part, at least one."""
    return max(1, CHUNK_VALUES // (x.shape[2] * x.shape[3]))


def chunks(maps: Sequence[Tensor], values: int) -> Iterator[tuple[Tensor, ...]]:
    """Views (tokens, C) of maps (N, H, W, C), so many tokens at a time that there is room for ``values`` of each."""
    tokens = [m.view(-1, m.shape[-1]) for m in maps]
    count = max(1, -(-len(tokens[0]) * values // CHUNK_VALUES))
    return zip(*(m.chunk(count) for m in tokens))


def _keep_freed_memory() -> None:
    # A pass or step frees about all that it took; glibc would give it back, and the next one would pay for each page
    # again. What the user has set stays, and other allocators do not mind.
    if sys.platform != "linux" or any(name in os.environ for name in _GLIBC_SETTINGS):
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        libc.mallopt(_M_MMAP_THRESHOLD, 2**25)  # the largest that all versions take
        libc.mallopt(_M_TRIM_THRESHOLD, 2**30)


_keep_freed_memory()
