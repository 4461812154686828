"""Turns an official file into an mmengine checkpoint (a classifier's, with its head), or back.

python tools/convert_spach.py smlp_b.pth smlpnet-base.pth
python tools/convert_spach.py smlpnet-base.pth smlp_b.pth --to-official
"""

import argparse
import sys
from pathlib import Path

from mmsmlp.checkpoint import read_checkpoint, write_checkpoint
from mmsmlp.weights.spach import check_spach, export_spach
from mmsmlp.weights.spach_files import SCHEME, load_from_spach


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", metavar="IN", help="an official file, or spach://smlp_s or spach://smlp_b")
    parser.add_argument("out", metavar="OUT", help="the file to write")
    parser.add_argument("--to-official", action="store_true", help="IN is an mmengine checkpoint, OUT an official file")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT where it exists")
    args = parser.parse_args()
    try:
        if Path(args.out).exists() and not args.overwrite:
            raise FileExistsError(f"{args.out} exists: choose another name, or add --overwrite")
        if args.to_official:
            converted = {"model": export_spach(read_checkpoint(args.input)["state_dict"])}
            summary = f"sMLPNet {check_spach(converted['model'])} under the official names"
        else:
            named = args.input.startswith(SCHEME)
            converted = load_from_spach(args.input if named else f"{SCHEME}{Path(args.input).expanduser().absolute()}")
            meta = converted["meta"]
            summary = (
                f"sMLPNet {meta['arch']}, anchor {meta['anchor'][0]} x {meta['anchor'][1]}, sha256 {meta['sha256']}"
            )
        write_checkpoint(converted, args.out, args.overwrite)
    except (OSError, ValueError) as error:
        sys.exit(f"convert_spach: {error}")
    print(f"wrote {args.out}: {summary}")


if __name__ == "__main__":
    main()
