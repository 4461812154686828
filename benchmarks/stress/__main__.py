"""What goes wrong when things go wrong: damaged checkpoints, odd inputs, bad data, long runs.

Each row runs in a process of its own. results.json and the table are written anew after every row; a row that is run
again replaces its old result. The exit status is 1 if anything failed. docs/reliability.md says what the rows promise.

python benchmarks/stress
python benchmarks/stress --only checkpoints_flipped input_fuzzing --seed 7
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from stress.harness import kept_results, run_row, write_page, write_results
from stress.report import markdown, table
from stress.rows import ROWS

PAGE = Path(__file__).parents[2] / "docs/reliability.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [row.name for row in ROWS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--short", action="store_true", help="as few tries as `make test` makes")
    parser.add_argument("--docs", action="store_true", help=f"write the table into docs/{PAGE.name}, too")
    parser.add_argument("--out", type=Path, default=Path("work_dirs/stress"))
    args = parser.parse_args()
    rows = [row for row in ROWS if row.name in args.only]
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    try:
        results = kept_results(args.out)
        with Progress(*columns, console=Console(stderr=True)) as progress:
            for row in rows:
                tries = row.short if args.short else row.tries
                task = progress.add_task(f"{row.name}: {tries} tries", total=1)
                results[row.name] = run_row(row, tries, args.seed, args.out)
                write_results(args.out, results)
                progress.advance(task)
        if args.docs:
            write_page(PAGE, markdown(results))
    except (OSError, ValueError) as error:
        sys.exit(f"stress: {error}")
    console = Console(width=None if sys.stdout.isatty() else 150)
    done = {row.name: results[row.name] for row in rows}
    console.print(table(done))
    for name, result in done.items():
        for note in result["notes"]:
            console.print(f"{name}: {note}", markup=False)
    sys.exit(1 if any(result["failed"] or result["lost"] for result in done.values()) else 0)


if __name__ == "__main__":
    main()
