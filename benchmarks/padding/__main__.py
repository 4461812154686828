"""What valid areas change: features, cost, predictions and training, against the plain path and against the peers.

Tables on the terminal, results as JSON and the picture of docs/padding.md below --out. Runs on a CPU and downloads
nothing. The parts `downstream` and `training` train the coins demos, each in a process of its own, 2 minutes a Mask
R-CNN on one core, 8 a ResNet-50; what is trained is not trained again, so the command can be stopped and called again.

python benchmarks/padding
python benchmarks/padding --part features cost
OMP_NUM_THREADS=1 python benchmarks/padding --part downstream training --seeds 0 1 2 --steps 200
"""

import argparse
import json
import logging
import statistics
import sys
import warnings
from pathlib import Path

from mmengine.logging import MMLogger
from rich.console import Console
from rich.progress import track
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmsmlp.files import atomic_file
from padding import cost, downstream, features, training
from padding.views import image_share, views

PARTS = ("features", "cost", "downstream", "training")
VIEWS = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of `training`")
    parser.add_argument("--steps", type=int, default=200, help="of a training")
    parser.add_argument("--repeats", type=int, default=9, help="of `cost`")
    parser.add_argument("--out", type=Path, default=Path("work_dirs/padding"))
    args = parser.parse_args()
    MMLogger.get_instance("mmengine").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore")  # of the toolboxes, about their own configs
    console = Console(width=None if sys.stdout.isatty() else 120)
    for part in args.part:
        rows = {"features": _features, "cost": _cost, "downstream": _downstream, "training": _training}[part](args)
        with atomic_file(args.out / f"{part}.json") as new:
            new.write_text(json.dumps(rows, indent=1) + "\n")
        for table in TABLES[part](rows):
            console.print(table)
        console.print(f"wrote {args.out / part}.json")


def _progress(items: list, title: str):
    return track(items, title, console=Console(stderr=True))


def _features(args: argparse.Namespace) -> list[dict]:
    rows, drawn = features.measure(_progress)
    features.draw(drawn, args.out / "padding.png")
    return rows


def _cost(args: argparse.Namespace) -> list[dict]:
    return cost.measure(args.repeats, _progress)


def _downstream(args: argparse.Namespace) -> list[dict]:
    """Each checkpoint of seed 0, with and without what it can be told of valid areas."""
    plain, noted, both, resnet = training.DETECTORS
    runs = [(plain, False, False), (noted, False, False), (noted, True, False), (noted, True, True)]
    runs += [(both, True, True), (resnet, False, False)]
    runs += [(name, known, False) for name in training.SEGMENTORS for known in (False, True)]
    rows, shown = [], views(VIEWS)
    for name, known, neck in _progress(runs, "Downstream"):
        if known and "ResNet" in name:  # it would not know what to do with them
            continue
        checkpoint = training.train(name, 0, args.steps, args.out / "trainings")
        row = {"trained": name, "valid_areas": known, "neck": neck, "image_share": image_share(shown)}
        if name in training.DETECTORS:
            row |= downstream.compare_detections(checkpoint, shown, known, neck)
        else:
            row |= downstream.compare_segmentations(checkpoint, shown, known)
        rows.append(row)
    return rows


def _training(args: argparse.Namespace) -> list[dict]:
    """Each kind of training, several seeds, evaluated as it was trained."""
    rows, shown = [], views(VIEWS)
    share = training.image_share(training.config(training.DETECTORS[0], 0, args.steps))
    runs = [(name, seed) for seed in args.seeds for name in training.DETECTORS[:3]]
    for name, seed in _progress(runs, "Training"):
        checkpoint = training.train(name, seed, args.steps, args.out / "trainings")
        compared = downstream.compare_detections(checkpoint, shown, "valid areas" in name, "neck" in name)
        rows.append({"trained": name, "seed": seed, "steps": args.steps, "image_share": share, **compared})
    return rows


def _features_table(rows: list[dict]) -> list[Table]:
    tables = []
    for key, title, form in (
        ("largest", "Largest relative difference of a level's map, alone against in a batch", "{:.1e}"),
        ("touched", "Share of positions that differ by more than 1 %", "{:.1%}"),
    ):
        tables.append(_table(title, ["backbone", "type", "stride 4", "8", "16", "32"]))
        for row in rows:
            tables[-1].add_row(row["network"], row["dtype"], *map(form.format, row[key]))
    return tables


def _cost_table(rows: list[dict]) -> list[Table]:
    table = _table("sMLPNet-T, 4 images", ["batch", "image in canvas", "", "plain, s", "valid areas, s", "ratio"])
    for row in rows:
        times = (f"{row[key]:.3f}" for key in ("plain", "noted", "ratio"))
        table.add_row(row["batch"], f"{row['share']:.0%}", row["kind"], *times)
    return [table]


def _downstream_table(rows: list[dict]) -> list[Table]:
    known = {(False, False): "nothing", (True, False): "backbone", (True, True): "backbone, neck"}
    headings = ["trained", "who knows valid areas", "box AP, one by one", "of 8", "mask AP", "of 8"]
    share = f"{rows[0]['image_share']:.0%} of the canvases of 8 are image"
    tables = [
        _table(f"Detections: {share}", [*headings, "mean IoU", "score", "largest", "changed", "of these at a border"])
    ]
    headings = ["trained", "who knows valid areas", "mIoU, one by one", "in batches of 8", "pixels changed"]
    tables.append(_table("Segmentations", headings))
    for row in rows:
        first = (row["trained"], known[row["valid_areas"], row["neck"]])
        if "iou" in row:
            precisions = (f"{100 * row[f'{m}_{run}']:.1f}" for m in ("bbox", "segm") for run in ("alone", "batch"))
            scores = (f"{row['iou']:.3f}", f"{row['score']:.3f}", f"{row['largest_score']:.2f}")
            changed = f"{row['changed']} of {row['detections']}"
            tables[0].add_row(*first, *precisions, *scores, changed, str(row["changed_at_border"]))
        else:
            accuracies = (f"{100 * row[f'mIoU_{run}']:.2f}" for run in ("alone", "batch"))
            tables[1].add_row(*first, *accuracies, f"{row['changed']:.3%}")
    return tables


def _training_table(rows: list[dict]) -> list[Table]:
    keys = {"box AP, one by one": "bbox_alone", "of 8": "bbox_batch", "mask AP, one by one": "segm_alone"}
    keys["of 8 "] = "segm_batch"
    seeds = sorted({row["seed"] for row in rows})
    share = f"{rows[0]['image_share']:.0%} of the canvases of a training are image"
    table = _table(f"Mask R-CNN, seeds {', '.join(map(str, seeds))}: each, and the mean; {share}", ["trained", *keys])
    for name in dict.fromkeys(row["trained"] for row in rows):
        cells = []
        for key in keys.values():
            values = [100 * row[key] for row in rows if row["trained"] == name]
            cells.append(f"{' '.join(f'{v:.1f}' for v in values)}: {statistics.mean(values):.1f}")
        table.add_row(name, *cells)
    return [table]


def _table(title: str, headings: list[str]) -> Table:
    table = Table(title=title)
    for heading in headings:
        table.add_column(heading)
    return table


TABLES = {
    "features": _features_table,
    "cost": _cost_table,
    "downstream": _downstream_table,
    "training": _training_table,
}


if __name__ == "__main__":
    main()
