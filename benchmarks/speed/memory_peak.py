"""The most memory that a process takes above what it had, on a CPU under Linux or on a GPU."""

from __future__ import annotations

import ctypes
import gc
import re
from pathlib import Path

import torch

MIB = 2**20


class MemoryPeak:
    """Measures from its making on. On a CPU resident memory, on a GPU what PyTorch's allocator gave out.

    Args:
        device (str): 'cpu' or 'cuda'.

    Raises:
        OSError: On a CPU whose system has no /proc/self/clear_refs, which Linux has since 4.0.
    """

    def __init__(self, device: str):
        self.device = device
        gc.collect()
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            ctypes.CDLL(None).malloc_trim(0)  # else what was freed before would be reused unseen
            Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
            self.before = status("VmRSS")

    def mib(self) -> float:
        """The peak above the beginning, in MiB."""
        peak = torch.cuda.max_memory_allocated() if self.device == "cuda" else status("VmHWM")
        return (peak - self.before) / MIB


def status(field: str) -> int:
    """A figure of /proc/self/status, in bytes; getrusage's peak counts the process that started this one, too."""
    return 1024 * int(re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)[1])
