"""Checks a detector's data sets in COCO's format, before a training meets them: ids, files, sizes, boxes, classes.

python tools/check_coco.py ANNOTATIONS.json PHOTOS                  # one file, and the folder of its photographs
python tools/check_coco.py ANNOTATIONS.json PHOTOS --split 0.25     # then also write train.json and val.json beside it
python tools/check_coco.py CONFIG.py                                # what a config names, with its classes
"""

import argparse
import sys


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="an annotation file, or a config")
    parser.add_argument("photos", nargs="?", help="the folder that the annotation file's names are relative to")
    parser.add_argument("--split", type=float, metavar="SHARE", help="share of the images that go to val.json")
    args = parser.parse_args()
    is_config = args.source.endswith(".py")
    if is_config == bool(args.photos) or (is_config and args.split is not None):
        parser.error("give a config alone, or an annotation file with its folder of photographs")
    try:
        from mmsmlp.data.coco_check import check_coco, check_config, split_coco

        reports = check_config(args.source) if is_config else [check_coco(args.source, args.photos)]
        for report in reports:
            print(report)
        mistakes = sum(len(report.problems) for report in reports)
        if mistakes:
            sys.exit(f"check_coco: {mistakes} kinds of mistakes")
        if args.split is not None:
            train, val = split_coco(args.source, args.split)
            print(f"wrote {train} and {val}")
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"check_coco: {error}")
    print("no mistakes found")


if __name__ == "__main__":
    main()
