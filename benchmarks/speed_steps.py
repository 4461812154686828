"""Times sMLPNet-T with the steps of mmsmlp.ops.fused one after the other, for docs/performance.md.

python benchmarks/speed_steps.py
python benchmarks/speed_steps.py --rounds 3 --only "8x224x224 eval"

All variants run in one process, in turns; times are medians. They differ in how blocks are computed only. The paper's
formulation, which takes images of 224 x 224, keeps its freed memory here, too, as the import of mmsmlp sets it.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from speed.backbones import PAPER
from speed.paper import PaperSMLPNet
from torch import nn

from mmsmlp import SMLPNet

CASES = {
    "8x224x224 eval": ((8, 3, 224, 224), False),
    "8x224x224 train": ((8, 3, 224, 224), True),
    "1x800x1344 eval": ((1, 3, 800, 1344), False),
}


def _dense(*_, **__) -> str:
    return "dense"


PLAIN = {"mmsmlp.blocks.can_fuse": lambda block, x: False}
DENSE = {"mmsmlp.ops.in_place.choose_path": _dense, "mmsmlp.ops.axis_mixing.choose_path": _dense}
BY_MM = {"mmsmlp.ops.products._ONEDNN": None}
AS_THEY_ARE = {"mmsmlp.ops.products.TOKENS_WORTH_A_COPY": math.inf}
# What each variant leaves out of the package's code.
VARIANTS = {
    "layers one by one": PLAIN | DENSE,
    "axes in factors": PLAIN,
    "fused blocks, axes dense": DENSE | BY_MM,
    "fused blocks, axes in factors": BY_MM,
    "products by oneDNN": AS_THEY_ARE,
    "weights transposed for it": {},
}


def measure(shape: tuple[int, ...], training: bool, rounds: int) -> dict[str, float]:
    """Median milliseconds of each variant that takes the shape: a forward pass, or a step from random gradients."""
    torch.manual_seed(0)
    square = shape[2] == shape[3]
    ours = SMLPNet("tiny", out_indices=(3,) if square else (0, 1, 2, 3))
    variants: dict[str, tuple[nn.Module, dict]] = {name: (ours, changes) for name, changes in VARIANTS.items()}
    if square:
        variants = {PAPER: (PaperSMLPNet(img_size=shape[2]), {}), **variants}
    images = torch.randn(shape)
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in track(range(rounds + 1), description=f"{shape}"):
        for name, (network, changes) in variants.items():
            network.train(training)
            with _changed(changes):
                seconds = _timed(_step if training else _pass, network, images)
            if number > 0:  # the first round warms up
                times[name].append(1e3 * seconds)
    return {name: statistics.median(of) for name, of in times.items()}


@contextmanager
def _changed(changes: dict[str, object]) -> Iterator[None]:
    with ExitStack() as stack:
        for target, value in changes.items():
            stack.enter_context(patch(target, value))
        yield


def _pass(network: nn.Module, images: torch.Tensor) -> None:
    with torch.inference_mode():
        network(images)


def _step(network: nn.Module, images: torch.Tensor) -> None:
    maps = network(images)
    torch.autograd.backward(maps, [torch.randn_like(m) for m in maps])
    network.zero_grad()


def _timed(run: Callable[[nn.Module, torch.Tensor], None], network: nn.Module, images: torch.Tensor) -> float:
    start = time.perf_counter()
    run(network, images)
    return time.perf_counter() - start


def main() -> None:
    """Parse the command line, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="timed runs of each variant")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error("--rounds takes a positive number")
    table = Table("", *args.only, title=f"sMLPNet-T, ms, {torch.get_num_threads()} threads, torch {torch.__version__}")
    columns = [measure(*CASES[name], args.rounds) for name in args.only]
    for name in (PAPER, *VARIANTS):
        table.add_row(name, *(f"{column[name]:,.0f}" if name in column else "" for column in columns))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
