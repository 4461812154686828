"""Trains a model from a config of any toolbox: mmdet, mmseg or mmpretrain, by the config's default_scope.

python tools/train.py configs/demo/mask-rcnn_smlpnet-mini_coins.py --work-dir work_dirs/demo
python -m torch.distributed.run --nproc-per-node=8 tools/train.py CONFIG --launcher pytorch --auto-scale-lr
"""

import argparse
import os
import sys

from mmengine.config import DictAction

from mmsmlp.checkpoint import UnfitWeightsError
from mmsmlp.running import LAUNCHERS, build_runner, load_config, set_training
from mmsmlp.weights.checkpoint_file import CheckpointFileError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a detector's, segmentor's or classifier's config")
    parser.add_argument("--work-dir", help="folder of logs and checkpoints; default: work_dirs/ and the config's name")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="CHECKPOINT",
        help="go on from this checkpoint, or without one from the latest in the work directory",
    )
    parser.add_argument("--amp", action="store_true", help="mixed precision; needs a GPU")
    parser.add_argument("--auto-scale-lr", action="store_true", help="scale the learning rate by the actual batch size")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, help="changes to the config, as key=value")
    parser.add_argument("--launcher", choices=LAUNCHERS, default="none", help="how processes are started")
    # torch.distributed.launch, by which mim starts processes, passes it
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    try:
        cfg = load_config(args.config, args.cfg_options, args.work_dir, args.launcher)
        set_training(cfg, args.resume, args.amp, args.auto_scale_lr)
    except (OSError, ValueError) as error:
        sys.exit(f"train: {error}")
    try:
        build_runner(cfg).train()
    except FileNotFoundError as error:
        sys.exit(f"train: {error}: make or download the data first, or name its place by --cfg-options")
    except (CheckpointFileError, UnfitWeightsError, OSError) as error:  # a bad checkpoint; a full or read-only disk
        sys.exit(f"train: {error}")


if __name__ == "__main__":
    main()
