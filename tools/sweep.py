"""Evaluates one checkpoint at sizes it was not trained on: a table, results.json and sweep.png.

With zoom 1 or extent 3 among the sizes, predictions.png shows what was found there.

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
from mmsmlp.plots import draw_predictions, plot_sweep
from mmsmlp.resize import METHODS
from mmsmlp.sweep import Sweep

# The points whose predictions are drawn, with their titles.
DRAWN = {("zoom", 1): "test image", ("extent", 3): "3 x 3 mirrored test images"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a detector's, segmentor's or classifier's config")
    parser.add_argument("checkpoint", help="a checkpoint, or a work directory whose latest one is taken")
    parser.add_argument("--zoom", type=float, nargs="+", default=[], metavar="F", help="resize the test images by F")
    parser.add_argument("--extent", type=int, nargs="+", default=[], metavar="K", help="scenes of K x K mirror images")
    parser.add_argument("--interpolation", nargs="+", choices=METHODS, default=[], help="default: the config's own")
    parser.add_argument("--symmetries", type=int, default=1, metavar="N", help="zoom under N of 8 flips and rotations")
    parser.add_argument("--out", default="work_dirs/sweep", help="folder of all that is written (default: %(default)s)")
    args = parser.parse_args()
    out = Path(args.out)
    try:
        sweep = Sweep(args.config, args.checkpoint, out, args.zoom, args.extent, args.interpolation, args.symmetries)
        points = list(sweep.points())
        rows = [sweep.evaluate(point) for point in track(points, "Evaluating", console=Console(stderr=True))]
        with atomic_file(out / "results.json") as new:
            new.write_text(json.dumps(sweep.summary(rows), indent=1) + "\n")
        metrics = {key: label for key, label in sweep.task.METRICS.items() if key in rows[0]}
        plot_sweep(rows, dict(list(metrics.items())[:2]), out / "sweep.png")
        written = ["results.json", "sweep.png"]
        shown = [p for p in points if p.interpolation == sweep.interpolations[0] and (p.kind, p.factor) in DRAWN]
        if shown:
            panels = [(DRAWN[p.kind, p.factor], p) for p in shown]
            written.append(draw_predictions(sweep.task, panels, out / "predictions.png").name)
    except (OSError, ValueError) as error:
        sys.exit(f"sweep: {error}")
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table(rows, metrics))
    console.print(f"wrote {', '.join(written)} to {out}")


def table(rows: list[dict], metrics: dict[str, str]) -> Table:
    """A row for each size, the accuracies of each interpolation in a cell."""
    result = Table(title=f"{' / '.join(metrics.values())}, in percent")
    methods = list(dict.fromkeys(row["interpolation"] for row in rows))
    counts = [key for key in ("images", "objects") if key in rows[0]]
    for heading in ("kind", "factor", *counts, *methods):
        result.add_column(heading, justify="left" if heading == "kind" else "right")
    cells = {(row["kind"], row["factor"], row["interpolation"]): row for row in rows}
    for kind, factor in dict.fromkeys((row["kind"], row["factor"]) for row in rows):
        found = [cells[kind, factor, method] for method in methods]
        values = [" / ".join(f"{100 * row[key]:.1f}" for key in metrics) for row in found]
        result.add_row(kind, f"{factor:g}", *(str(found[0][key]) for key in counts), *values)
    return result


if __name__ == "__main__":
    main()
