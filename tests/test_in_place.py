"""The parts of a block that write over their input: equal in any number of parts, and nobody else's map is touched."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from made import with_random_norms
from speed.operations import OperationCounter

from mmsmlp import SMLPNet
from mmsmlp.blocks import SMLPBlock
from mmsmlp.valid_area import attach_valid_sizes

BENCHMARK = Path(__file__).parents[1] / "benchmarks/page_faults.py"
ARCH = {"embed_dims": 8, "depths": (1, 1, 2, 1)}


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return with_random_norms(SMLPNet(ARCH, img_size=64).double().eval())


def in_parts_of(values: int, monkeypatch) -> None:
    monkeypatch.setattr("mmsmlp.ops.parts.CHUNK_VALUES", values)


@torch.inference_mode()
@pytest.mark.parametrize("sizes", [None, ((224, 212), (61, 300))], ids=["whole", "valid areas"])
@pytest.mark.parametrize("values", [1, 1000, 20_000, 40_000])
def test_parts_of_any_size_give_the_same(network, values, sizes, monkeypatch):
    x = torch.randn(2, 3, 224, 300, dtype=torch.float64)
    x = x if sizes is None else attach_valid_sizes(x, sizes)
    whole = network(x)
    in_parts_of(values, monkeypatch)
    for a, b in zip(network(x), whole):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@torch.inference_mode()
@pytest.mark.parametrize("values", [1, 10**9])
@pytest.mark.parametrize("shape", [(2, 8, 56, 75), (1, 8, 3, 75), (3, 8, 1, 1)])
def test_a_block_leaves_its_input_alone(network, shape, values, monkeypatch):
    in_parts_of(values, monkeypatch)
    x = torch.randn(shape, dtype=torch.float64).to(memory_format=torch.channels_last)
    kept = x.clone()
    network.stages[0][0](x)
    assert torch.equal(x, kept)


@torch.no_grad()
def test_a_block_takes_one_new_map_of_memory(monkeypatch):
    block = SMLPBlock(32, grid=(14, 14)).eval()
    x = torch.randn(1, 32, 128, 128).to(memory_format=torch.channels_last)
    in_parts_of(x.numel() // 16, monkeypatch)
    with OperationCounter() as counter:
        block(x)
    assert [size for size in counter.allocations if size >= x.nbytes] == [x.nbytes]


def test_the_benchmark_counts_page_faults_of_both_kinds_of_process():
    command = [sys.executable, BENCHMARK, "--sizes", "64", "--rounds", "1"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert all(text in result.stdout for text in ("64 x 64", "as it is", "kept"))
