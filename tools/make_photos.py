"""Writes a set made of scikit-image's photographs: patches to classify, or a small set in a well-known format.

python tools/make_photos.py data/photos
python tools/make_photos.py data/photos --draw photos_patches.png
python tools/make_photos.py data/coco --format coco
"""

import argparse
import sys


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", help="the set's folder, for example data/photos; a complete set is left untouched")
    parser.add_argument(
        "--format",
        choices=["patches", "coco", "ade20k", "cityscapes", "imagenet"],
        default="patches",
        help="patches: the set to classify; the others: a handful of images in that data set's format",
    )
    parser.add_argument("--overwrite", action="store_true", help="rebuild an existing set")
    parser.add_argument("--draw", metavar="OUT.png", help="also draw the photographs' parts and some patches")
    args = parser.parse_args()
    if args.draw and args.format != "patches":
        parser.error(f"--draw draws the patches, not the {args.format} format")
    try:
        from mmsmlp import photos

        write = photos.write_patches if args.format == "patches" else getattr(photos, f"write_{args.format}_format")
        write(args.root, overwrite=args.overwrite)
        if args.draw:
            print(f"drew {photos.draw_patches(args.root, args.draw)}")
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"make_photos: {error}")


if __name__ == "__main__":
    main()
