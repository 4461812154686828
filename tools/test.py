"""Tests a checkpoint with a config of any toolbox: mmdet, mmseg or mmpretrain, by the config's default_scope.

python tools/test.py configs/demo/mask-rcnn_smlpnet-mini_coins.py work_dirs/demo --show-dir work_dirs/pictures
"""

import argparse
import os
import sys

from mmengine.config import DictAction

from mmsmlp.checkpoint import UnfitWeightsError
from mmsmlp.running import LAUNCHERS, build_runner, find_checkpoint, load_config
from mmsmlp.testing import augment_test, draw_test, dump_test
from mmsmlp.weights.checkpoint_file import CheckpointFileError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a detector's, segmentor's or classifier's config")
    parser.add_argument("checkpoint", help="a checkpoint, or a work directory whose latest one is taken")
    parser.add_argument("--work-dir", help="folder of the log; default: work_dirs/ and the config's name")
    parser.add_argument("--out", help="write the predictions: FILE.pkl, or of a segmentor a folder of label maps")
    parser.add_argument("--show-dir", help="draw the predictions on the test images, into this folder")
    parser.add_argument("--tta", action="store_true", help="test-time augmentation: the config's, or a horizontal flip")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, help="changes to the config, as key=value")
    parser.add_argument("--launcher", choices=LAUNCHERS, default="none", help="how processes are started")
    # torch.distributed.launch, by which mim starts processes, passes it
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    try:
        cfg = load_config(args.config, args.cfg_options, args.work_dir, args.launcher)
        cfg.resume, cfg.load_from = False, find_checkpoint(args.checkpoint)
        if args.tta:
            augment_test(cfg)
        if args.show_dir:
            draw_test(cfg, args.show_dir)
        if args.out:
            dump_test(cfg, args.out)
    except (OSError, ValueError) as error:
        sys.exit(f"test: {error}")
    runner = build_runner(cfg)
    try:
        runner.test()
    except FileNotFoundError as error:
        sys.exit(f"test: {error}: make or download the data first, or name its place by --cfg-options")
    except (CheckpointFileError, UnfitWeightsError) as error:
        sys.exit(f"test: {error}")


if __name__ == "__main__":
    main()
