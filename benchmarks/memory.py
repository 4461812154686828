"""Measures the memory of a training step with and without with_cp, on a CPU under Linux.

python benchmarks/memory.py --arch tiny --shape 4 3 224 224 --shape 1 3 512 512 --json work_dirs/memory.json

"kept" is what the forward pass keeps for the backward pass, parameters apart: counted, the same every time. "peak" is
how far a forward and backward pass lifts the process's memory over what it was before, with the model built, its
gradients allocated and the code loaded by a pass over one small image: measured in a fresh process, the median of
--repeats. "step" is the time of the same pass. There is no optimizer, whose state with_cp does not change.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

import torch
from rich.console import Console
from rich.table import Table
from speed.memory_peak import status

from mmsmlp import SMLPNet
from mmsmlp.files import atomic_file

MIB = 2**20


def kept_for_backward(net: torch.nn.Module, x: torch.Tensor) -> int:
    """Bytes that a forward pass keeps for the backward pass, each memory block once, parameters apart."""
    own = {parameter.untyped_storage().data_ptr() for parameter in net.parameters()}
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        maps = net(x)
    size = sum(kept.values())
    del maps  # held until here: freed blocks would be counted under one address
    return size


def measure(arch: str, shape: list[int], with_cp: bool) -> dict:
    """Measure this process: call it once, in a fresh one.

    Returns:
        dict: ``peak`` and ``kept`` in bytes, ``step`` in seconds.
    """
    torch.manual_seed(0)
    net = SMLPNet(arch, in_channels=shape[1], with_cp=with_cp).train()
    x = torch.randn(shape)
    net(torch.randn(2, shape[1], 32, 32))[-1].sum().backward()
    before = status("VmRSS")
    start = time.perf_counter()
    sum(m.square().mean() for m in net(x)).backward()
    step = time.perf_counter() - start
    peak = status("VmHWM")
    return {"peak": peak - before, "step": step, "kept": kept_for_backward(net, x)}


def measure_afresh(arch: str, shape: list[int], with_cp: bool, repeats: int) -> dict:
    """Medians of :func:`measure` over fresh processes."""
    command = [sys.executable, __file__, "--worker", json.dumps([arch, shape, with_cp])]
    runs = []
    for _ in range(repeats):
        worker = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        runs.append(json.loads(worker.stdout.splitlines()[-1]))
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="tiny", choices=list(SMLPNet.arch_settings))
    parser.add_argument("--shape", type=int, nargs=4, action="append", metavar=("N", "C", "H", "W"))
    parser.add_argument("--repeats", type=int, default=3, help="fresh processes for each row")
    parser.add_argument("--json", help="also write the rows here")
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(measure(*args.worker)))
        return
    if args.repeats < 1 or min(min(shape) for shape in args.shape or [[1]]) < 1:
        parser.error("--repeats and --shape take positive numbers")
    rows = []
    for shape in args.shape or [[4, 3, 224, 224]]:
        for with_cp in (False, True):
            row = {"arch": args.arch, "shape": shape, "with_cp": with_cp}
            try:
                rows.append({**row, **measure_afresh(args.arch, shape, with_cp, args.repeats)})
            except subprocess.CalledProcessError as error:
                sys.exit(f"memory: a measuring process ended with {error.returncode} at {shape}; its message is above")
    table = Table(title=f"one training step of sMLPNet-{args.arch}, float32, CPU")
    for heading in ("images", "with_cp", "kept, MiB", "peak, MiB", "step, s"):
        table.add_column(heading, justify="right")
    for row in rows:
        numbers = (f"{row['kept'] / MIB:,.0f}", f"{row['peak'] / MIB:,.0f}", f"{row['step']:.2f}")
        table.add_row(" x ".join(map(str, row["shape"])), str(row["with_cp"]), *numbers)
    Console().print(table)
    if args.json:
        with atomic_file(args.json) as path:
            path.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
