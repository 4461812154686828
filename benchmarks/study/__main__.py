"""The study of positional interpolation: three networks, three seeds, every answer to "any resolution", every size.

What is trained is not trained again, what is evaluated not evaluated again, as long as it is the same: the command can
be stopped and called again. Tables and pictures of docs/positional_interpolation.md are made from all that is there.

python benchmarks/study
python benchmarks/study --quick --out work_dirs/study-quick
python benchmarks/study --part figures
"""

import argparse
import json
import logging
import multiprocessing
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console
from rich.progress import track

from mmsmlp.files import atomic_file
from study import report
from study.evaluation import evaluate_job, known_rows, missing_points, write_scenes
from study.pictures import draw_all
from study.plan import NETWORKS, SEEDS, STARTS, Network, points_of, recipes_of
from study.training import train
from study.wide import explain_wide

PARTS = ("train", "evaluate", "explain", "figures")
PAGE = Path(__file__).parents[2] / "docs/positional_interpolation.md"
QUICK_STEPS = 24  # of a training; enough for every part to run, not to learn anything
QUICK_SIZES = [("zoom", 0.5), ("zoom", 1), ("extent", 1), ("extent", 2)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--network", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NETWORK")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--workers", type=int, default=2, help="processes side by side, one thread each")
    parser.add_argument("--quick", action="store_true", help="every part, but trainings of a few steps and few sizes")
    parser.add_argument("--docs", action="store_true", help=f"write tables and pictures into {PAGE.parent.name}/, too")
    parser.add_argument("--out", type=Path, default=Path("work_dirs/study"))
    args = parser.parse_args()
    args.network = [NETWORKS[name] for name in args.network]
    logging.getLogger("mmengine").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")  # of the toolboxes, about their own configs
    try:
        for part in args.part:
            {"train": _train, "evaluate": _evaluate, "explain": _explain, "figures": _figures}[part](args)
    except (OSError, ValueError, RuntimeError) as error:
        sys.exit(f"study: {error}")


def _jobs(args: argparse.Namespace) -> list[tuple[Network, str, int]]:
    """Checkpoints, the first seed of all of them first."""
    return [(n, recipe, seed) for seed in args.seeds for n in args.network for recipe in recipes_of(n)]


def _sizes(args: argparse.Namespace, network: Network) -> list[tuple[str, float]]:
    return QUICK_SIZES if args.quick else points_of(network)


def _train(args: argparse.Namespace) -> None:
    # Those that go on from another's checkpoint wait for all others.
    for title, tuned in (("Training", False), ("Tuning", True)):
        jobs = [(n, r, s, QUICK_STEPS if args.quick else n.steps, args.out) for n, r, s in _jobs(args)]
        jobs = [job for job in jobs if (job[1] in STARTS) == tuned]
        with ThreadPoolExecutor(args.workers) as pool:
            pending = [pool.submit(train, *job) for job in jobs]
            try:
                for done in _shown(as_completed(pending), title, len(pending)):
                    done.result()
            finally:
                for job in pending:
                    job.cancel()


def _evaluate(args: argparse.Namespace) -> None:
    for network in args.network:
        sizes = _sizes(args, network)
        jobs = [(recipe, seed) for n, recipe, seed in _jobs(args) if n is network]
        rows = {job: known_rows(network, *job, args.out) for job in jobs}
        jobs = [job for job in jobs if missing_points(network, job[0], sizes, rows[job])]
        if jobs:
            scenes = write_scenes(network, sizes, args.out)
            work = partial(evaluate_job, network, scenes, args.out)
            # Fresh processes: what a toolbox leaves behind in one must not meet the next.
            with multiprocessing.get_context("spawn").Pool(args.workers) as pool:
                for _ in _shown(pool.imap_unordered(work, jobs), f"Evaluating {network.name}", len(jobs)):
                    pass


def _explain(args: argparse.Namespace) -> None:
    extents = (2,) if args.quick else (4, 6, 8)
    found = explain_wide(args.seeds, extents, args.out, partial(_shown, title="Explaining wide scenes"))
    _write_json(args.out / "wide.json", found)


def _figures(args: argparse.Namespace) -> None:
    rows = []
    for network, recipe, seed in _jobs(args):
        known = known_rows(network, recipe, seed, args.out)
        if missing_points(network, recipe, _sizes(args, network), known):
            raise ValueError(f"{network.name}, {recipe}, seed {seed} is not evaluated: run the other parts first")
        planned = set(missing_points(network, recipe, _sizes(args, network), []))  # an older plan may have had others
        rows += [row for row in known if (row["kind"], row["factor"], row["interpolation"]) in planned]
    _write_json(args.out / "rows.json", rows)
    wide = json.loads((args.out / "wide.json").read_text())
    numbers = draw_all(rows, args.seeds, args.out)
    _write_json(args.out / "figures.json", numbers)
    tables = {name: table(rows) for name, table in report.TABLES.items()}
    other = (
        report.wide_table(wide),
        report.limits_table(wide),
        report.spectra_table(numbers),
        report.times_table(numbers),
    )
    tables |= dict(zip(report.OTHER_TABLES, other))
    with atomic_file(args.out / "tables.md") as new:
        new.write_text("\n\n".join(f"## {name}\n\n{table}" for name, table in tables.items()) + "\n")
    console = Console(width=None if sys.stdout.isatty() else 150)
    for text, measured, holds in report.bars(rows):
        console.print(f"{'holds' if holds else 'MISSED'}: {text}: {measured}")
    if args.docs:
        report.write_into(PAGE, tables)
        for picture in sorted(args.out.glob("*.png")):
            with atomic_file(PAGE.parent / "images" / f"study-{picture.name}") as new:
                new.write_bytes(picture.read_bytes())
    console.print(f"wrote rows.json, wide.json, figures.json, tables.md and pictures to {args.out}")


def _shown(items: Iterator, title: str, total: int) -> Iterator:
    return track(items, title, total=total, console=Console(stderr=True))


def _write_json(path: Path, content: Callable | list | dict) -> None:
    with atomic_file(path) as new:
        new.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
