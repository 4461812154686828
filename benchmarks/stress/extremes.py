"""The smallest, narrowest and largest images, each in a process of its own, whose peak of memory is measured."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from speed.memory_peak import MIB, status

from stress.rows import Outcome

# Height, width, dtype, and the most memory in MiB that the process may have held, PyTorch's own 300 to 600 in it.
CASES = (
    (1, 1, "float32", 1024),
    (1, 4096, "float32", 1024),
    (4096, 1, "float32", 1024),
    (4096, 4096, "bfloat16", 3072),
)


def extremes(tries: int, seed: int, folder: Path) -> Outcome:
    """Run sMLPNet-T on each."""
    notes = []
    cases = CASES[:tries]
    for height, width, dtype, most in cases:
        command = [sys.executable, __file__, str(height), str(width), dtype, str(seed)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        told = ended.stdout.split()
        name = f"{height} x {width} {dtype}"
        if ended.returncode or len(told) != 2:
            notes.append(f"{name}: status {ended.returncode}, {(ended.stderr.strip().splitlines() or [''])[-1][:200]}")
            continue
        print(f"measured: {name}: {told[0]}, peak {told[1]} MiB")
        if told[0] != "right":
            notes.append(f"{name}: {told[0]}")
        elif int(told[1]) > most:
            notes.append(f"{name}: {told[1]} MiB, {most} allowed")
    return Outcome(len(cases), len(notes), notes=tuple(notes))


def _main() -> None:
    import torch

    from mmsmlp import SMLPNet

    height, width, dtype, seed = *map(int, sys.argv[1:3]), sys.argv[3], int(sys.argv[4])
    torch.manual_seed(seed)
    net = SMLPNet("tiny").to(getattr(torch, dtype)).eval()
    x = torch.randn(1, 3, height, width, dtype=getattr(torch, dtype))
    with torch.no_grad():
        maps = net(x)
    shapes = [(1, c, -(-height // s), -(-width // s)) for c, s in zip(net.channels, net.strides)]
    right = [tuple(m.shape) for m in maps] == shapes and all(bool(torch.isfinite(m).all()) for m in maps)
    print("right" if right else "wrong", status("VmHWM") // MIB)


if __name__ == "__main__":
    _main()
