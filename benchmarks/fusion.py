"""Times sMLPNet with and without folded norms (mmsmlp.fuse_norms) and counts the operators, for docs/deploy.md.

python benchmarks/fusion.py --write docs/deploy.md
python benchmarks/fusion.py --seconds 5 --shape 8 3 224 224 --only "float32, layers"

Both networks run in one process, in turns, in inference mode. A row's gain is the median over rounds of the ratio of
the two times of a round, less 1, with the quartiles in brackets. Operators are counted as PyTorch dispatches them in a
pass, views apart.
"""

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mmsmlp import SMLPNet, fuse_norms
from mmsmlp.files import atomic_file

BEGIN, END = "<!-- fusion: made by `python benchmarks/fusion.py --write docs/deploy.md` -->", "<!-- end of fusion -->"
SHAPES = [[1, 3, 224, 224], [8, 3, 224, 224], [1, 3, 800, 1344]]
FEWEST = 5  # rounds


def _layers() -> patch:
    return patch("mmsmlp.blocks.can_fuse", lambda block, x: False)


# Row -> dtype of the weights, and what the pass runs in.
MODES = {
    "float32, fused blocks": (torch.float32, ()),
    "float32, layers": (torch.float32, (_layers,)),
    "bfloat16 autocast": (torch.float32, (lambda: torch.autocast("cpu", torch.bfloat16),)),
    "bfloat16 weights": (torch.bfloat16, ()),
}


class OperatorCount(TorchDispatchMode):
    """Counts the operators that compute or copy something."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += not function.is_view
        return function(*args, **(kwargs or {}))


def network(arch: str, shape: list[int]) -> SMLPNet:
    """The backbone as a classifier or a detector has it, with norms that do something."""
    torch.manual_seed(0)
    net = SMLPNet(arch, in_channels=shape[1], out_indices=(3,) if max(shape[2:]) <= 224 else (0, 1, 2, 3)).eval()
    for norm in (m for m in net.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.running_mean.normal_(std=0.1)
        norm.running_var.uniform_(0.5, 1.5)
    return net


def measure(nets: list[SMLPNet], x: Tensor, contexts: tuple[Callable, ...], seconds: float) -> dict:
    """Operators and median milliseconds of each network, and the median and quartiles of the gain in percent."""
    times, counts = [[], []], []
    with torch.inference_mode(), ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context())
        for net in nets:
            net(x)  # builds the resize matrices
            with OperatorCount() as operators:
                net(x)
            counts.append(operators.count)
        end = time.perf_counter() + seconds
        while len(times[0]) < FEWEST or time.perf_counter() < end:
            for k in (0, 1) if len(times[0]) % 2 else (1, 0):
                start = time.perf_counter()
                nets[k](x)
                times[k].append(1e3 * (time.perf_counter() - start))
    gains = [100 * (before / after - 1) for before, after in zip(*times)]
    low, _, high = statistics.quantiles(gains, n=4)
    medians = [statistics.median(of) for of in times]
    result = {"counts": counts, "times": medians, "rounds": len(gains)}
    return {**result, "gain": statistics.median(gains), "quartiles": (low, high)}


def table(arch: str, shapes: list[list[int]], modes: list[str], seconds: float) -> str:
    """Measure all rows and write them as a table in Markdown."""
    lines = [
        f"sMLPNet-{arch}, CPU, {torch.get_num_threads()} threads, torch {torch.__version__}, ms:",
        "",
        "| images | pass | operators | folded | ms | folded | gain (quartiles) | rounds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for shape in shapes:
        net = network(arch, shape)
        x = torch.randn(shape)
        for mode in modes:
            dtype, contexts = MODES[mode]
            both = [copy.deepcopy(n).to(dtype) for n in (net, fuse_norms(net))]
            row = measure(both, x.to(dtype), contexts, seconds)
            (count, fewer), (before, after), (low, high) = row["counts"], row["times"], row["quartiles"]
            cells = (" x ".join(map(str, shape)), mode, f"{count:,}", f"{fewer:,}", f"{before:,.1f}", f"{after:,.1f}")
            gain = f"{row['gain']:+.1f} % ({low:+.1f} to {high:+.1f})"
            lines.append("| " + " | ".join((*cells, gain, str(row["rounds"]))) + " |")
            print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines)


def main() -> None:
    """Parse the command line, measure, print the table or write it into a page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="tiny", choices=list(SMLPNet.arch_settings))
    parser.add_argument("--shape", type=int, nargs=4, action="append", metavar=("N", "C", "H", "W"))
    parser.add_argument("--seconds", type=float, default=12, help="time for the rounds of a row; default: %(default)s")
    parser.add_argument("--only", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--write", metavar="PAGE", help="replace the table between the page's marks")
    args = parser.parse_args()
    if args.seconds < 0 or min(map(min, args.shape or SHAPES)) < 1:
        parser.error("--seconds takes no negative number, --shape positive ones")
    page = Path(args.write).read_text("utf-8") if args.write else None
    if page is not None and (page.count(BEGIN), page.count(END)) != (1, 1):
        sys.exit(f"fusion: {args.write} has no lines {BEGIN} and {END} for the table")
    made = table(args.arch, args.shape or SHAPES, args.only, args.seconds)
    print(made)
    if page is not None:
        before, rest = page.split(BEGIN)
        with atomic_file(args.write) as new:
            new.write_text(f"{before}{BEGIN}\n{made}\n{END}{rest.split(END)[1]}", "utf-8")


if __name__ == "__main__":
    main()
