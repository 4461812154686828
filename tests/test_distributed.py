"""Training in two real processes (gloo, CPU): what they end with, and which gradients equal those of one process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from conftest import MINI

from mmsmlp import SMLPNet

SCRIPTS = Path(__file__).parent / "distributed"


def run(script: str, *args, processes: int = 1) -> None:
    """Run a script in one process, or in several that know of each other."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *(launcher if processes > 1 else []), SCRIPTS / script, *map(str, args)]
    result = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]


@pytest.fixture(scope="module")
def coins(tmp_path_factory) -> Path:
    from mmsmlp.coins import write_coins

    return write_coins(tmp_path_factory.mktemp("data") / "coins")


@pytest.fixture(
    scope="module",
    params=[("sync", (0, 1, 2, 3)), ("sync", (1, 2, 3)), ("frozen", (0, 1, 2))],
    ids=["SyncBuffersHook", "SyncBuffersHook, from level 1", "frozen norms, up to level 2"],
)
def trained(request, coins, tmp_path_factory) -> tuple[str, list[dict]]:
    """How buffers are kept equal, and what each process of a Mask R-CNN's training ended with."""
    buffers, out_indices = request.param
    out = tmp_path_factory.mktemp("two")
    run("train_mask_rcnn.py", coins, out, "--buffers", buffers, "--out-indices", *out_indices, processes=2)
    return buffers, [torch.load(out / f"rank{rank}.pth") for rank in range(2)]


def different(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> set[str]:
    assert a.keys() == b.keys()
    return {name for name in a if not torch.equal(a[name], b[name])}


@pytest.mark.slow
def test_two_processes_train_a_mask_rcnn_and_end_with_equal_parameters(trained):
    """A parameter without a gradient would have ended the training: DDP is not told to look for any."""
    _, (first, second) = trained
    assert first["world_size"] == second["world_size"] == 2
    assert not different(first["parameters"], second["parameters"])


@pytest.mark.slow
def test_two_processes_end_with_equal_buffers(trained):
    buffers, (first, second) = trained
    assert not different(first["buffers"], second["buffers"])
    # Their data differed: it is the hook, or the norms' eval mode, that makes them equal.
    assert bool(different(first["buffers_before"], second["buffers_before"])) == (buffers == "sync")


@pytest.mark.slow
@pytest.mark.parametrize("model", ["classifier", "upernet"])
def test_gradients_of_two_processes_equal_those_of_one_with_the_whole_batch(model, tmp_path, relative_error):
    """With norms in eval mode and nothing dropped. Not so Mask R-CNN's: see docs/training.md."""
    for processes in (1, 2):
        run("gradients.py", model, tmp_path / f"{processes}.pth", processes=processes)
    one, two = (torch.load(tmp_path / f"{processes}.pth") for processes in (1, 2))
    assert one.keys() == two.keys()
    errors = {name: relative_error(two[name], one[name]) for name in one}
    assert max(errors.values()) < 1e-9, errors


def test_synchronised_norms_need_a_gpu_in_distributed_training():
    """PyTorch's limit, as docs/training.md says it."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(ValueError, match="SyncBatchNorm expected input tensor to be on"):
            SMLPNet(MINI, norm_cfg={"type": "SyncBN"})(torch.randn(2, 3, 64, 64))
    finally:
        dist.destroy_process_group()


def test_synchronised_norms_in_one_process_are_batch_norms():
    nets = [SMLPNet(MINI, img_size=64, norm_cfg={"type": kind}) for kind in ("BN", "SyncBN")]
    nets[1].load_state_dict(nets[0].state_dict())
    x = torch.randn(2, 3, 64, 64)
    for a, b in zip(*(net(x) for net in nets)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    for a, b in zip(*(net.buffers() for net in nets)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
