"""tools/train.py in two CPU processes, by the commands of docs/scale.md: data parallel, and fully sharded."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch.distributed.fsdp.wrap import _recursive_wrap

from mmsmlp import SMLPNet
from mmsmlp.blocks import SMLPBlock
from mmsmlp.photos import write_patches
from mmsmlp.sharding import wrap_blocks

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs/demo/smlpnet-mini_photos.py"
SHORT = [
    *("train_cfg.max_iters=2", "train_cfg.val_interval=2", "default_hooks.checkpoint.interval=2"),
    *("train_dataloader.batch_size=8", "model.backbone.norm_cfg.type=SyncBN"),
]
FSDP = [
    *("runner_type=FlexibleRunner", "strategy.type=FSDPStrategy", "strategy.state_dict_cfg=full"),
    "strategy.model_wrapper.auto_wrap_policy=mmsmlp.sharding.wrap_blocks",
]


_needs_newer = pytest.mark.needs_torch("2.11", reason="FSDP of 2.1 shards on GPUs only")


@pytest.fixture(scope="module", params=[[], pytest.param(FSDP, marks=_needs_newer)], ids=["data parallel", "FSDP"])
def trained(request, tmp_path_factory) -> tuple[Path, str]:
    """The checkpoint of a training of two processes, and what they printed."""
    folder = tmp_path_factory.mktemp("two")
    write_patches(folder / "data/photos")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launcher, ROOT / "tools/train.py", CONFIG, "--launcher", "pytorch", "--work-dir", "work"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [*command, "--cfg-options", *SHORT, *request.param],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return folder / "work/iter_2.pth", result.stdout


@pytest.mark.slow
def test_two_processes_write_a_checkpoint_of_the_whole_model(trained):
    checkpoint = torch.load(trained[0], weights_only=False)
    cfg = Config.fromfile(CONFIG)
    init_default_scope("mmpretrain")
    MODELS.build(cfg.model).load_state_dict(checkpoint["state_dict"], strict=True)
    assert checkpoint["meta"]["iter"] == 2
    assert checkpoint["optimizer"]["state"]


@pytest.mark.slow
def test_synchronised_norms_are_reverted_in_each_process(trained):
    assert "no GPU: SyncBN has no CPU implementation" in trained[1]


def test_blocks_are_the_units_of_sharding():
    """By PyTorch's own walk over the modules, with a wrapper that only marks what it is given."""

    class Unit(torch.nn.Module):
        def __init__(self, module: torch.nn.Module):
            super().__init__()
            self.module = module

    net = SMLPNet({"embed_dims": 8, "depths": (1, 1, 2, 1)}, img_size=64)
    _recursive_wrap(net, wrap_blocks, Unit, set(), set())
    units = [m.module for m in net.modules() if isinstance(m, Unit)]
    assert len(units) == 5
    assert all(isinstance(m, SMLPBlock) for m in units)
