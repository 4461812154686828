"""Trains the demo's Mask R-CNN for 3 steps, and keeps what this process ended with; started by test_distributed.py.

OMP_NUM_THREADS=1 python -m torch.distributed.run --standalone --nproc-per-node=2 \
    tests/distributed/train_mask_rcnn.py data/coins work_dirs/two --out-indices 0 1 2 3 --buffers sync
"""

import argparse
import os
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

DEMO = Path(__file__).parents[2] / "configs/demo/mask-rcnn_smlpnet-mini_coins.py"


class KeepBuffers(Hook):
    """Keeps the buffers as the last step left them, before any other hook acts on them."""

    priority = "HIGHEST"

    def after_train_iter(self, runner, *args, **kwargs) -> None:
        self.buffers = {name: value.clone() for name, value in runner.model.module.named_buffers()}


def config(args: argparse.Namespace) -> Config:
    cfg = Config.fromfile(DEMO)
    cfg.model.backbone.out_indices = args.out_indices
    cfg.model.neck.in_channels = [cfg.model.neck.in_channels[i] for i in args.out_indices]
    strides = [4 * 2 ** (args.out_indices[0] + i) for i in range(5)]
    cfg.model.rpn_head.anchor_generator.strides = strides
    for part in ("bbox_roi_extractor", "mask_roi_extractor"):
        cfg.model.roi_head[part].featmap_strides = strides[:4]
    for part in ("train_dataloader", "val_dataloader"):
        cfg[part].dataset.data_root = f"{args.data}/"
    cfg.val_evaluator.ann_file = f"{args.data}/annotations/instances_val.json"
    for key in ("test_dataloader", "test_evaluator", "test_cfg"):
        cfg.pop(key)

    if args.buffers == "sync":
        cfg.custom_hooks = [dict(type="SyncBuffersHook")]
    else:
        cfg.model.backbone.norm_eval = True
    cfg.train_cfg.update(max_iters=3, val_interval=3)
    cfg.train_dataloader.batch_size = 2
    # There is one training image: with the same seed in both processes, both would draw the same crops of it.
    cfg.randomness = dict(seed=0, diff_rank_seed=True)
    cfg.find_unused_parameters = False
    # mmengine would name a GPU by the process's rank; None is a CPU's
    cfg.model_wrapper_cfg = dict(
        type="MMDistributedDataParallel", device_ids=None, broadcast_buffers=False, find_unused_parameters=False
    )
    cfg.launcher = "pytorch"
    cfg.env_cfg.dist_cfg = dict(backend="gloo")
    cfg.work_dir = str(args.out)
    return cfg


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="the coins data set")
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("--out-indices", type=int, nargs="+", default=[0, 1, 2, 3])
    parser.add_argument("--buffers", choices=("sync", "frozen"), required=True, help="SyncBuffersHook or norm_eval")
    args = parser.parse_args()
    # mmengine's own start of the processes asks for a GPU, whatever the backend.
    torch.distributed.init_process_group("gloo")
    runner = Runner.from_cfg(config(args))
    keep = KeepBuffers()
    runner.register_hook(keep)
    runner.train()
    model = runner.model.module
    kept = {
        "parameters": dict(model.named_parameters()),
        "buffers": dict(model.named_buffers()),
        "buffers_before": keep.buffers,
        "world_size": torch.distributed.get_world_size(),
    }
    torch.save(kept, args.out / f"rank{os.environ['RANK']}.pth")


if __name__ == "__main__":
    main()
