"""Averages sweeps of several seeds: mean and sample standard deviation over the zooms, and over the extents.

python tools/average_sweeps.py work_dirs/demo work_dirs/seed1 work_dirs/seed2 work_dirs/seed3
"""

import argparse
import json
import sys
from pathlib import Path
from statistics import mean, stdev

from rich.console import Console
from rich.table import Table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="what tools/sweep.py wrote, one folder a seed")
    parser.add_argument("--metric", help="a key of the rows; default: the first accuracy, such as bbox_mAP")
    args = parser.parse_args()
    if len(args.folders) < 2:
        parser.error("give at least two folders: one seed has no spread")
    try:
        sweeps = [json.loads((folder / "results.json").read_text())["rows"] for folder in args.folders]
        metric = args.metric or next(key for key in sweeps[0][0] if key in ("bbox_mAP", "mIoU", "top1"))
        averages = [average(rows, metric) for rows in sweeps]
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"average_sweeps: cannot average these sweeps: {error!r}")
    if any(a.keys() != averages[0].keys() for a in averages):
        sys.exit("average_sweeps: the sweeps have different kinds of sizes or interpolations, so they do not compare")
    methods = list(dict.fromkeys(method for _, method in averages[0]))
    table = Table(title=f"{metric} of {len(sweeps)} seeds, mean ± standard deviation, in percent")
    for heading in ("average of", *methods):
        table.add_column(heading, justify="left" if heading == "average of" else "right")
    for kind in dict.fromkeys(kind for kind, _ in averages[0]):
        cells = [[100 * a[kind, method] for a in averages] for method in methods]
        table.add_row(f"the {kind}s", *(f"{mean(values):.1f} ± {stdev(values):.1f}" for values in cells))
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def average(rows: list[dict], metric: str) -> dict[tuple[str, str], float]:
    """(Kind of size, interpolation) -> the mean of a metric over its sizes."""
    groups: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        groups.setdefault((row["kind"], row["interpolation"]), []).append(row[metric])
    return {key: mean(values) for key, values in groups.items()}


if __name__ == "__main__":
    main()
