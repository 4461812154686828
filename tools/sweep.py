"""Evaluates one checkpoint at sizes it was not trained on: a table, results.json, sweep.png and detections.png.

python tools/sweep.py CONFIG CHECKPOINT --zoom 0.5 1 2 --extent 1 2 4 --interpolation exact scaled --out work_dirs/sweep
"""

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from mmsmlp.files import atomic_file
from mmsmlp.plots import draw_detections, plot_sweep
from mmsmlp.resize import METHODS
from mmsmlp.sweep import Sweep


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a detection config with a COCO-format test set")
    parser.add_argument("checkpoint", help="a checkpoint, or a work directory whose latest one is taken")
    parser.add_argument("--zoom", type=float, nargs="+", default=[], metavar="F", help="resize the test images by F")
    parser.add_argument("--extent", type=int, nargs="+", default=[], metavar="K", help="scenes of K x K mirrored copies")
    parser.add_argument("--interpolation", nargs="+", choices=METHODS, default=[], help="default: the config's own")
    parser.add_argument("--symmetries", type=int, default=1, metavar="N", help="zoom under N of 8 flips and rotations")
    parser.add_argument("--out", default="work_dirs/sweep", help="folder of all that is written (default: %(default)s)")
    args = parser.parse_args()
    out = Path(args.out)
    try:
        sweep = Sweep(
            args.config, args.checkpoint, out, args.zoom, args.extent, args.interpolation, args.symmetries
        )
        points = list(sweep.points())
        rows = [sweep.evaluate(point) for point in track(points, "Evaluating", console=Console(stderr=True))]
        with atomic_file(out / "results.json") as new:
            new.write_text(json.dumps(sweep.summary(rows), indent=1) + "\n")
        plot_sweep(rows, out / "sweep.png")
        shown = [p for p in points if p.interpolation == sweep.interpolations[0] and (p.kind, p.factor) in SHOWN]
        if shown:
            titles = {"zoom": "test image", "extent": "canvas of 3 x 3 test images"}
            draw_detections([(titles[p.kind], p.scenes, p.predictions) for p in shown], out / "detections.png")
    except (OSError, ValueError) as error:
        sys.exit(f"sweep: {error}")
    Console().print(table(rows))
    Console().print(f"wrote results.json, sweep.png and detections.png to {out}" if shown else f"wrote {out}")


SHOWN = (("zoom", 1), ("extent", 3))


def table(rows: list[dict]) -> Table:
    """A row for each size, box AP / AP50 / mask AP of each interpolation."""
    result = Table(title="box AP / box AP50 / mask AP")
    methods = list(dict.fromkeys(row["interpolation"] for row in rows))
    for heading in ("kind", "factor", "objects", *methods):
        result.add_column(heading, justify="left" if heading == "kind" else "right")
    cells = {(row["kind"], row["factor"], row["interpolation"]): row for row in rows}
    for kind, factor in dict.fromkeys((row["kind"], row["factor"]) for row in rows):
        found = [cells[kind, factor, method] for method in methods]
        values = [
            " / ".join(f"{row[key]:.3f}" for key in ("bbox_mAP", "bbox_mAP_50", "segm_mAP") if key in row)
            for row in found
        ]
        result.add_row(kind, f"{factor:g}", str(found[0]["objects"]), *values)
    return result


if __name__ == "__main__":
    main()
