"""Writes the coins data set (images, COCO json, label PNGs), and draws its annotations over the photograph.

python tools/make_coins.py data/coins
python tools/make_coins.py data/coins --draw coins.png
"""

import argparse
import sys


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", help="the set's folder, for example data/coins; a complete set is left untouched")
    parser.add_argument("--overwrite", action="store_true", help="rebuild an existing coins set")
    parser.add_argument("--draw", metavar="OUT.png", help="also draw the annotations over the photograph")
    args = parser.parse_args()
    try:
        from mmsmlp.coins import draw_annotations, write_coins

        write_coins(args.root, args.overwrite)
        if args.draw:
            print(f"drew {draw_annotations(args.root, args.draw)}")
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"make_coins: {error}")


if __name__ == "__main__":
    main()
