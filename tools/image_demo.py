"""Draws what a detector, segmentor or classifier finds in one photograph.

python tools/image_demo.py PHOTO.jpg CONFIG CHECKPOINT --out picture.png
python tools/image_demo.py data/coins/images/val/coins.png configs/demo/mask-rcnn_smlpnet-mini_coins.py work_dirs/demo
"""

import argparse
import sys
from pathlib import Path

from mmsmlp.checkpoint import UnfitWeightsError
from mmsmlp.inference import draw_prediction


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", help="the image")
    parser.add_argument("config", help="a detector's, segmentor's or classifier's config")
    parser.add_argument("checkpoint", help="a checkpoint, or a work directory whose latest one is taken")
    parser.add_argument("--out", help="the picture to write; default: work_dirs/image_demo/ and the photo's name")
    parser.add_argument("--device", help="such as cpu or cuda:0; default: a GPU where there is one")
    parser.add_argument("--score", type=float, default=0.3, help="least score of a detection (default: %(default)s)")
    args = parser.parse_args()
    out = args.out or Path("work_dirs/image_demo", Path(args.photo).stem + ".png")
    try:
        print(f"drew {draw_prediction(args.photo, args.config, args.checkpoint, out, args.device, args.score)}")
    except (OSError, ValueError, UnfitWeightsError) as error:
        sys.exit(f"image_demo: {error}")


if __name__ == "__main__":
    main()
