"""Folds the norms of a checkpoint's backbone into the layers beside them, for inference.

python tools/fuse.py configs/demo/mask-rcnn_smlpnet-mini_coins.py work_dirs/demo/iter_300.pth fused.pth

What is written belongs to the same config with model.backbone.fused_norms=True.
"""

import argparse
import sys
from pathlib import Path

import torch
from mmengine.config import Config, DictAction
from mmengine.logging import MMLogger

from mmsmlp.checkpoint import write_checkpoint
from mmsmlp.deploy import OPTION, fuse_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a classifier's, detector's or segmentor's config")
    parser.add_argument("checkpoint", help="its checkpoint, that you trust")
    parser.add_argument("out", help="the file to write: state_dict and meta")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT where it exists")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, help="changes to the config, as key=value")
    args = parser.parse_args()
    MMLogger.get_current_instance().setLevel("WARNING")
    try:
        if Path(args.out).exists() and not args.overwrite:
            raise FileExistsError(f"{args.out} exists: choose another name, or add --overwrite")
        config = Config.fromfile(args.config)
        config.merge_from_dict(args.cfg_options or {})
        fused, *models = fuse_checkpoint(config, args.checkpoint)
        image = torch.randn(1, models[0].backbone.downsample_layers[0].in_channels, 200, 264)
        with torch.inference_mode():
            pairs = zip(*(model.backbone(image) for model in models))
            error = max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)
        write_checkpoint(fused, args.out, args.overwrite)
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: the checkpoint is of another model
        sys.exit(f"fuse: {error}")
    print(f"wrote {args.out}; largest relative difference of the backbone's maps, on noise: {error:.1e}")
    print(f"use it with --cfg-options {OPTION}")


if __name__ == "__main__":
    main()
