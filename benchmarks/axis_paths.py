"""Times the three paths of mmsmlp.ops.axis_mixing and prints the table of constants that its rule reads.

python benchmarks/axis_paths.py
python benchmarks/axis_paths.py --device cuda --repeats 31
python benchmarks/axis_paths.py --positions 56 112 --positions 56 336 --json work_dirs/axis_paths.json

One axis of one map at a time, at the sizes of detectors' images, on one thread. Times are medians in milliseconds,
the paths interleaved; "f" is the forward pass, "f+b" a training step's forward and backward pass. On a CPU it is the
processor time, so that waiting for other processes does not count. "chosen" is the path that today's constants choose.
The constants printed at the end are fitted to the forward passes: paste them into RATES.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table

from mmsmlp.files import atomic_file
from mmsmlp.ops.axis_mixing import PATHS, Rates, choose_path
from mmsmlp.ops.products import linear

# Anchor positions n and channels of sMLPNet-T's stages, and the positions of images of 448 to 2048 pixels.
CHANNELS = {56: 80, 28: 160, 14: 320, 7: 640}
POSITIONS = [(56, 112), (56, 224), (56, 336), (56, 512), (28, 168), (14, 84), (7, 42)]


def measure(n: int, m: int, dim: int, dtype: torch.dtype, device: str, method: str, repeats: int) -> dict:
    """Time every path at one size.

    Args:
        n (int): Anchor positions.
        m (int): Positions of the map along ``dim``; along the other axis it has three fifths as many, at least 8.
        dim (int): Axis to mix along, 1 or 2.
        dtype (torch.dtype): Of the map and the weight.
        device (str): Device of PyTorch.
        method (str): 'exact' or 'bounded'.
        repeats (int): How often each path runs; one more run comes before.

    Returns:
        dict: The sizes, ``cells`` (values of the map for each position), ``chosen``, and medians in seconds of
            'forward' and 'training' for each path.
    """
    torch.manual_seed(0)
    channels, other = CHANNELS.get(n, 80), max(m * 3 // 5, 8)
    shape = (1, m, other, channels) if dim == 1 else (1, other, m, channels)
    x = torch.randn(shape, device=device).to(dtype).requires_grad_()
    weight = (torch.randn(n, n, device=device) / n**0.5).to(dtype).requires_grad_()
    bias = torch.randn(n, device=device).to(dtype).requires_grad_()
    gradient = torch.randn(shape, device=device).to(dtype)

    def forward(path: Callable) -> None:
        with torch.no_grad():
            path(x, weight, bias, dim, method)

    def train(path: Callable) -> None:
        torch.autograd.grad(path(x, weight, bias, dim, method), (x, weight, bias), gradient)

    times = {kind: {name: [] for name in PATHS} for kind in ("forward", "training")}
    for repeat in range(repeats + 1):
        for kind, run in (("forward", forward), ("training", train)):
            for name, path in PATHS.items():
                seconds = _timed(lambda run=run, path=path: run(path), device)
                if repeat > 0:
                    times[kind][name].append(seconds)
    half = dtype.itemsize == 2
    return {
        "n": n,
        "m": m,
        "dim": dim,
        "dtype": str(dtype).removeprefix("torch."),
        "cells": other * channels,
        "chosen": choose_path(n, m, method, torch.device(device).type, half=half),
        **{kind: {name: statistics.median(of) for name, of in paths.items()} for kind, paths in times.items()},
    }


def measure_channels(device: str, repeats: int) -> float:
    """Seconds of one multiply-accumulate of a product with a channel weight, as in the four stages of sMLPNet-T."""
    rates = []
    for side, channels in ((56, 80), (28, 160), (14, 320), (7, 640)):
        x = torch.randn(8 * side**2, channels, device=device)
        weight = torch.randn(channels, channels, device=device)
        times = [_timed(lambda x=x, weight=weight: linear(x, weight), device) for _ in range(repeats + 1)][1:]
        rates.append(statistics.median(times) / (x.numel() * channels))
    return statistics.median(rates)


def fit(rows: list[dict], channel: float) -> Rates:
    """Constants, in picoseconds, that explain the rows' forward times: medians over the rows.

    Args:
        rows (list[dict]): Of :func:`measure`, in float32 and bfloat16 at the same sizes.
        channel (float): Of :func:`measure_channels`.
    """
    single = [row for row in rows if row["dtype"] == "float32"]
    half = [row for row in rows if row["dtype"] == "bfloat16"]

    def median(values: list[float]) -> float:
        return float(f"{statistics.median(values) * 1e12:.2g}")

    product = median([row["forward"]["dense"] / row["cells"] / row["m"] ** 2 for row in single])
    tapped = [row["forward"]["two_tap"] / row["cells"] - product * 1e-12 * row["n"] ** 2 for row in single]
    return Rates(
        product=product,
        half_product=median([row["forward"]["dense"] / row["cells"] / row["m"] ** 2 for row in half]),
        tap=median([seconds / (4 * row["m"]) for seconds, row in zip(tapped, single)]),
        conversion=median(
            [
                (low["forward"]["two_tap"] - row["forward"]["two_tap"]) / row["cells"] / row["m"]
                for low, row in zip(half, single)
            ]
        ),
        channel=median([channel]),
    )


def _timed(run: Callable[[], None], device: str) -> float:
    cuda = torch.device(device).type == "cuda"
    if not cuda:
        start = time.process_time()
        run()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def _table(rows: list[dict], title: str) -> Table:
    table = Table(title=title)
    for heading in ("n", "m", "dim", "dtype", *(f"{kind} {name}" for kind in ("f", "f+b") for name in PATHS), "chosen"):
        table.add_column(heading, justify="right")
    for row in rows:
        times = [f"{row[kind][name] * 1e3:.2f}" for kind in ("forward", "training") for name in PATHS]
        table.add_row(*(str(row[key]) for key in ("n", "m", "dim", "dtype")), *times, row["chosen"])
    return table


def main() -> None:
    """Parse the command line, measure, print the table and the constants."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="'cpu' or 'cuda'")
    parser.add_argument("--method", default="exact", choices=["exact", "bounded"])
    parser.add_argument("--positions", type=int, nargs=2, action="append", metavar=("N", "M"), help="sizes, N < M")
    parser.add_argument("--repeats", type=int, default=11, help="runs of each path, at each size")
    parser.add_argument("--json", metavar="FILE.json", help="write the rows there, too")
    args = parser.parse_args()
    sizes = args.positions or POSITIONS
    if args.repeats < 1 or not all(0 < n < m for n, m in sizes):
        parser.error("--repeats takes a positive number, --positions numbers 0 < N < M")
    torch.set_num_threads(1)
    rows = [
        measure(n, m, dim, dtype, args.device, args.method, args.repeats)
        for dtype in (torch.float32, torch.bfloat16)
        for n, m in sizes
        for dim in (1, 2)
    ]
    console = Console(width=150)
    console.print(_table(rows, f"one axis layer, '{args.method}', {args.device}, torch {torch.__version__}, ms"))
    console.print(f'    "{torch.device(args.device).type}": {fit(rows, measure_channels(args.device, args.repeats))},')
    if args.json:
        with atomic_file(args.json) as path:
            path.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
