"""A guard of speed that needs no clock: what sMLPNet-T does in a pass, held to ceilings.

A ceiling that is exceeded names what there is more of. Where that is meant (more work for a reason that is written in
docs/performance.md), and where a change made it less, put the figures of the failed assertion, or of
`pytest tests/test_guard.py -rP`, in place of the ceilings.
"""

import platform
import subprocess
import sys

import pytest
import torch
from memory import kept_for_backward
from speed.operations import count

from mmsmlp import SMLPNet
from mmsmlp.flops import count_macs

# For 2 images. Sizes at the anchor, and where all axis weights are interpolated.
CEILINGS = {
    ((224, 224), "eval"): {"operations": 945, "copies": 81, "large_allocations": 56, "allocated_mib": 111},
    ((224, 224), "train"): {"operations": 2191, "copies": 217, "large_allocations": 262, "allocated_mib": 520},
    ((256, 320), "eval"): {"operations": 1503, "copies": 163, "large_allocations": 152, "allocated_mib": 297},
    ((256, 320), "train"): {"operations": 3901, "copies": 455, "large_allocations": 597, "allocated_mib": 1184},
}
MEGAMACS = {(224, 224): 9978, (256, 320): 16361}
KEPT_MIB = {(224, 224): 192, (256, 320): 253}


@pytest.fixture(scope="module")
def network():
    return SMLPNet("tiny")


def images(size: tuple[int, int]) -> torch.Tensor:
    return torch.zeros(2, 3, *size)


@pytest.mark.parametrize(("size", "mode"), CEILINGS)
def test_a_pass_has_no_more_operations_copies_and_large_allocations(network, size, mode):
    network.train(mode == "train").zero_grad()
    x = images(size)

    def run():
        with torch.set_grad_enabled(mode == "train"):
            maps = network(x)
        if mode == "train":
            sum(m.square().mean() for m in maps).backward()

    counts = count(run)
    print(f"{size}, {mode}: {counts}")
    ceilings = CEILINGS[size, mode]
    assert counts.keys() == ceilings.keys()
    assert {key: n for key, n in counts.items() if n > ceilings[key]} == {}, counts


@pytest.mark.parametrize("size", MEGAMACS)
def test_a_pass_has_no_more_multiply_accumulates(network, size):
    network.eval()
    counted = sum(count_macs(network, lambda: network(images(size))).values())
    print(f"{size}: {counted / 1e6:.1f} million")
    assert counted / 1e6 <= MEGAMACS[size]


@pytest.mark.parametrize("size", KEPT_MIB)
def test_a_training_step_keeps_no_more_bytes_for_its_backward_pass(network, size):
    kept = kept_for_backward(network.train(), images(size)) / 2**20
    print(f"{size}: {kept:.1f} MiB")
    assert kept <= KEPT_MIB[size]


# In a process of its own: what an allocator keeps depends on all that was allocated before.
COUNT_FAULTS = """
import resource
import sys

import torch
from mmsmlp import SMLPNet

mode = sys.argv[1]
network, images = SMLPNet("tiny").train(mode == "train"), torch.zeros(4, 3, 224, 224)
for _ in range(8):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    with torch.inference_mode(mode == "eval"):
        maps = network(images)
    if mode == "train":
        torch.autograd.backward(maps, [torch.ones_like(m) for m in maps])
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="is about glibc's allocator")
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_a_repeated_pass_or_step_is_in_memory_that_the_process_has(mode):
    run = subprocess.run([sys.executable, "-c", COUNT_FAULTS, mode], capture_output=True, text=True, check=True)
    faults = sorted(map(int, run.stdout.split()[3:]))
    assert faults[len(faults) // 2] < 1000, faults


def test_counted_are_operations_that_compute_copies_and_blocks_of_a_mebibyte():
    x = torch.zeros(1024, 512)

    def run():
        y = x.t().contiguous()  # a view, then a copy of 2 MiB
        y.add_(1)
        y[:, :8].mul(2).sum()  # small ones

    assert count(run) == {"operations": 4, "copies": 1, "large_allocations": 1, "allocated_mib": 2}


def test_the_backward_pass_is_counted():
    layer = torch.nn.Linear(8, 8)
    x = torch.zeros(4, 8)
    forward = count(lambda: layer(x))
    assert count(lambda: layer(x).sum().backward())["operations"] > forward["operations"] + 2
