"""Moves a checkpoint to the anchor grid of another image size, and prints what that changes.

python tools/reanchor.py work_dirs/demo/iter_300.pth reanchored.pth --img-size 320 320
"""

import argparse
import sys
from pathlib import Path

from mmengine.logging import MMLogger
from rich.console import Console
from rich.table import Table

from mmsmlp.checkpoint import read_checkpoint, write_checkpoint
from mmsmlp.resize import DEFAULT_METHOD, METHODS
from mmsmlp.weights.anchors import compare_anchors, reanchor_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="an mmengine checkpoint, or spach://…")
    parser.add_argument("out", help="the file to write: state_dict and meta")
    parser.add_argument("--img-size", type=int, nargs=2, required=True, metavar=("H", "W"), help="in pixels")
    parser.add_argument("--interpolation", choices=METHODS, default=DEFAULT_METHOD, help="default: %(default)s")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT where it exists")
    args = parser.parse_args()
    MMLogger.get_current_instance().setLevel("WARNING")
    try:
        if Path(args.out).exists() and not args.overwrite:
            raise FileExistsError(f"{args.out} exists: choose another name, or add --overwrite")
        checkpoint = read_checkpoint(args.checkpoint)
        moved, left_out = reanchor_checkpoint(checkpoint, args.img_size, args.interpolation)
        write_checkpoint(moved, args.out, args.overwrite)
    except (OSError, ValueError) as error:
        sys.exit(f"reanchor: {error}")
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(f"wrote {args.out}" + (f"; left out: {', '.join(left_out)}" if left_out else ""))
    try:
        rows, back = compare_anchors(checkpoint["state_dict"], moved["state_dict"], args.interpolation)
    except ValueError as error:
        console.print(f"no comparison of outputs: {error}")
        return
    table = Table(title="last map: difference to the original's")
    for heading in ("image", "H x W", "max |a - b| / max |b|"):
        table.add_column(heading, justify="left" if heading == "image" else "right")
    for label, size, error in rows:
        table.add_row(label, " x ".join(map(str, size)), f"{error:.1e}")
    console.print(table)
    console.print(f"axis weights moved back to the old anchor: relative error {back:.1e}")


if __name__ == "__main__":
    main()
