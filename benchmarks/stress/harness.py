"""Runs rows, each in a process of its own, and keeps what came of them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

from mmsmlp.files import atomic_file
from stress.rows import ROWS, Outcome, Row

RESULTS = "results.json"
MEASURED = "measured: "  # how a line begins that a row prints to be kept
_WORKER = Path(__file__).with_name("worker.py")
_MOST_NOTES = 20


def run_row(row: Row, tries: int, seed: int, out: Path) -> dict:
    """Run a row in a fresh process, in an empty folder below ``out`` that goes away if nothing failed.

    Args:
        row (Row): The row.
        tries (int): How often to try.
        seed (int): Seed of its random choices.
        out (Path): The folder of the results.

    Returns:
        dict: ``name``, ``tried``, ``failed``, ``lost``, ``seed``, ``command`` (which does it again), ``seconds``,
            ``notes``, and ``measured``, the figures that the row printed. A process that ends without a result has
            failed in all tries.
    """
    folder = out.absolute() / row.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    told = folder.with_suffix(".told.json")
    told.unlink(missing_ok=True)
    start = time.perf_counter()
    command = [sys.executable, str(_WORKER), row.name, str(tries), str(seed), str(folder), str(told)]
    with open(folder.with_suffix(".log"), "w") as log:
        ended = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False)
    seconds = time.perf_counter() - start
    if told.exists():
        outcome = json.loads(told.read_text())
        told.unlink()
    else:
        reason = f"the process ended with status {ended.returncode} and no result, see {log.name}"
        outcome = asdict(Outcome(tries, failed=tries, notes=(reason,)))
    lines = Path(log.name).read_text(errors="replace").splitlines()
    if not outcome["failed"] and not outcome["lost"]:
        shutil.rmtree(folder)
        Path(log.name).unlink()
    full = tries == row.tries
    again = f"python benchmarks/stress --only {row.name} --seed {seed}" + ("" if full else " --short")
    return {
        "name": row.name,
        **{key: outcome[key] for key in ("tried", "failed", "lost")},
        "seed": seed,
        "command": again,
        "seconds": round(seconds, 1),
        "notes": list(outcome["notes"])[:_MOST_NOTES],
        "measured": [line.removeprefix(MEASURED) for line in lines if line.startswith(MEASURED)],
    }


def kept_results(out: Path) -> dict[str, dict]:
    """The results of earlier runs, by name.

    Args:
        out (Path): The folder of the results.

    Returns:
        dict[str, dict]: Of rows that there still are.

    Raises:
        ValueError: If the file is none of ours.
    """
    path = out / RESULTS
    if not path.exists():
        return {}
    try:
        known = {result["name"]: result for result in json.loads(path.read_text())}
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is no file of results: delete it ({error!r})") from None
    return {row.name: known[row.name] for row in ROWS if row.name in known}


def write_results(out: Path, results: dict[str, dict]) -> None:
    """Write results.json, whole or not at all, in the order of the rows."""
    rows = [results[row.name] for row in ROWS if row.name in results]
    with atomic_file(out / RESULTS) as new:
        new.write_text(json.dumps(rows, indent=1) + "\n")


def write_page(page: Path, text: str) -> None:
    """Put the table between its marks on a page.

    Args:
        page (Path): With the lines ``<!-- stress -->`` and ``<!-- end -->``.
        text (str): The table.

    Raises:
        ValueError: If the page lacks the lines.
    """
    content = page.read_text("utf-8")
    between = re.compile(r"(<!-- stress -->\n).*?(<!-- end -->)", re.S)
    if not between.search(content):
        raise ValueError(f"{page} has no lines '<!-- stress -->' and '<!-- end -->' for the table")
    with atomic_file(page) as new:
        new.write_text(between.sub(lambda match: match[1] + text + "\n" + match[2], content), "utf-8")
