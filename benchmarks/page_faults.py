"""Counts the pages of fresh memory that a pass of sMLPNet-T touches, and what they cost, for docs/performance.md.

python benchmarks/page_faults.py
python benchmarks/page_faults.py --sizes 512 1024 --rounds 3

glibc hands memory blocks of more than 32 MiB back to the system when they are freed. The second line of a size is of a
process that was told to keep them, by glibc's environment variables. Linux only.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

import torch
from rich.console import Console
from rich.table import Table

from mmsmlp import SMLPNet

KEEPING = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**33)}


def measure(size: int, rounds: int) -> tuple[float, int]:
    """Median milliseconds, and the page faults of the last pass, of passes over one image of size x size."""
    torch.manual_seed(0)
    network, image = SMLPNet("tiny").eval(), torch.randn(1, 3, size, size)
    times = []
    with torch.inference_mode():
        network(image)
        for _ in range(rounds):
            before, start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
            network(image)
            times.append(1e3 * (time.perf_counter() - start))
            faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return statistics.median(times), faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=int, default=[1024, 2048], help="sides of the image")
    parser.add_argument("--rounds", type=int, default=5, help="timed passes")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # in a process of its own
    args = parser.parse_args()
    if min(*args.sizes, args.rounds) < 1:
        parser.error("sizes and rounds must be positive")
    if args.here:
        print(json.dumps(measure(args.sizes[0], args.rounds)))
        return
    table = Table("image", "memory", "ms", "ns / pixel", "page faults")
    for size in args.sizes:
        for memory, variables in {"as it is": {}, "kept": KEEPING}.items():
            command = [sys.executable, __file__, "--here", "--sizes", str(size), "--rounds", str(args.rounds)]
            result = subprocess.run(command, env=os.environ | variables, stdout=subprocess.PIPE, text=True, check=True)
            ms, faults = json.loads(result.stdout)
            table.add_row(f"{size} x {size}", memory, f"{ms:.0f}", f"{1e6 * ms / size**2:.0f}", f"{faults:,}")
    Console().print(table)


if __name__ == "__main__":
    main()
