"""Looks inside a network: axis weights, effective receptive fields and feature maps, in one HTML report.

python tools/visualize.py configs/demo/mask-rcnn_smlpnet-mini_coins.py work_dirs/demo --sizes 160 320x480
python tools/visualize.py CONFIG [CHECKPOINT] --image PHOTO.jpg --sizes 224 448x672 --out FOLDER
"""

import argparse
import shlex
import sys

from mmengine.config import DictAction

from mmsmlp.visualize.overview import DEFAULT_PHOTOGRAPH, visualize


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a classifier's, detector's or segmentor's config, with any backbone")
    parser.add_argument(
        "checkpoint",
        nargs="?",
        help="a checkpoint, or a work directory whose latest one is taken; default: random weights",
    )
    parser.add_argument("--image", help=f"the photograph; default: scikit-image's {DEFAULT_PHOTOGRAPH}")
    parser.add_argument(
        "--sizes",
        nargs="+",
        default=[],
        metavar="SIZE",
        help="HEIGHTxWIDTH in pixels, or one number for both; default: the anchor's size and twice that",
    )
    parser.add_argument("--out", default="work_dirs/visualize", help="folder of report.html (default: %(default)s)")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, help="changes to the config, as key=value")
    args = parser.parse_args()
    command = shlex.join(["python", *sys.argv])
    try:
        report = visualize(args.config, args.checkpoint, args.out, args.image, args.sizes, args.cfg_options, command)
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: parts of the model do not fit each other
        sys.exit(f"visualize: {error}")
    print(f"wrote {report}")


if __name__ == "__main__":
    main()
