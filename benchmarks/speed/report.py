"""Results as tables, in the terminal and in docs/performance.md."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from mmsmlp.files import atomic_file
from speed import bars, wholes

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "performance.md"
COMMITTED = ROOT / "docs" / "performance.json"  # the results that the page shows
BEGIN, END = "<!-- results: made by `python benchmarks/speed --docs` -->", "<!-- end of results -->"

Cells = list[list[str]]  # the first row has the headings


def tables(results: Sequence[dict]) -> dict[str, Cells]:
    """Make the tables of results: title -> rows of cells. Those without a row are left out."""
    found = {}
    for device in dict.fromkeys(row["device"] for row in results):
        rows = [row for row in results if row["device"] == device]
        backbones = [row for row in rows if row["part"] == "backbones"]
        machine = _machine(rows)
        found[f"Backbones: ms (spread), peak MiB, fraction of the peak. {machine}"] = _backbones(backbones)
        found[f"GMACs of a forward pass of the whole batch ({device})"] = _gmacs(backbones)
        found[f"Whole models: ms (share of the time) in each part ({device})"] = _wholes(rows)
    found["Bars"] = _bars(results)
    return {title: cells for title, cells in found.items() if len(cells) > 1}


def terminal_tables(results: Sequence[dict]) -> list[Table]:
    """The tables for the terminal."""
    made = []
    for title, cells in tables(results).items():
        made.append(Table(title=title))
        for heading in cells[0]:
            made[-1].add_column(heading)
        for row in cells[1:]:
            made[-1].add_row(*row)
    return made


def markdown(results: Sequence[dict]) -> str:
    """The tables for the page."""
    lines = []
    for title, cells in tables(results).items():
        rows = [f"| {' | '.join(row)} |" for row in cells]
        lines += [f"{title}:", "", rows[0], "|" + "---|" * len(cells[0]), *rows[1:], ""]
    return "\n".join(lines)


def write_page(results: Sequence[dict], page: Path = PAGE, committed: Path = COMMITTED) -> None:
    """Put results into the page, and beside it as a file; results of another device stay.

    Args:
        results (Sequence[dict]): The results of a run.
        page (Path): The page, which has the lines ``BEGIN`` and ``END``.
        committed (Path): The file of all results that the page shows.

    Raises:
        ValueError: If the page has not both lines.
        OSError: If a file cannot be read or written.
    """
    devices = {row["device"] for row in results}
    others = json.loads(committed.read_text("utf-8")) if committed.exists() else []
    together = [*results, *(row for row in others if row["device"] not in devices)]
    together.sort(key=lambda row: row["device"])
    text = with_tables(page.read_text("utf-8"), together)
    write_results(together, committed)
    with atomic_file(page) as new:
        new.write_text(text, "utf-8")


def with_tables(text: str, results: Sequence[dict]) -> str:
    """A page's text with the tables of results between its two lines.

    Raises:
        ValueError: If the text has not both lines, each once.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"the page needs one line {BEGIN!r} and one line {END!r} below it")
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{markdown(results)}\n{END}{rest.partition(END)[2]}"


def write_results(results: Sequence[dict], path: Path) -> None:
    """Write results as a list of JSON objects, one a line, the file whole at any time."""
    with atomic_file(path) as new:
        new.write_text("[\n" + ",\n".join(json.dumps(row) for row in results) + "\n]\n", "utf-8")


def shape_text(shape: Sequence[int]) -> str:
    """'8 x 224 x 224'."""
    return " x ".join(map(str, shape))


def _machine(rows: Sequence[dict]) -> str:
    peaks: dict[str, float] = {}
    for row in rows:
        peaks[row["dtype"]] = max(row["peak_gflops"], peaks.get(row["dtype"], 0.0))
    rates = ", ".join(f"{rate:,.0f} GFLOPS {dtype}" for dtype, rate in sorted(peaks.items(), reverse=True))
    first = rows[0]
    threads = f", {first['threads']} threads" if first["device"] == "cpu" else ""
    own = max(row.get("onednn_gflops", 0) for row in rows)
    rates += f" by torch.mm; {own:,.0f} GFLOPS fp32 by oneDNN" if own else ""
    return f"{first['machine']}{threads}, torch {first['torch']}; matrix products reach {rates}"


def _name(row: dict) -> str:
    return row["model"] if row["run"] == "eager" else f"{row['model']} ({row['run']})"


def _backbones(rows: Sequence[dict]) -> Cells:
    shapes = list(dict.fromkeys(tuple(row["shape"]) for row in rows))
    lines: dict[tuple, dict[tuple, str]] = {}
    for row in rows:
        cell = f"{row['median_ms']:,.{_digits(row)}f} ({row['spread']:.0%}), {row['peak_mb']:,.0f}, "
        line = lines.setdefault((row["mode"], row["dtype"], _name(row)), {})
        line[tuple(row["shape"])] = cell + f"{row['peak_fraction']:.2f}"
    body = [[*key, *(line.get(shape, "") for shape in shapes)] for key, line in lines.items()]
    order = ["eval", "train"]
    body.sort(key=lambda line: (order.index(line[0]), line[1] != "fp32"))
    return [["mode", "type", "backbone", *map(shape_text, shapes)], *body]


def _digits(row: dict) -> int:
    return 2 if row["median_ms"] < 100 else 0


def _gmacs(rows: Sequence[dict]) -> Cells:
    shapes = list(dict.fromkeys(tuple(row["shape"]) for row in rows))
    counts: dict[str, dict[tuple, float]] = {}
    for row in rows:
        counts.setdefault(row["model"], {})[tuple(row["shape"])] = row["gmacs"]
    body = [[name, *(f"{c[s]:.1f}" if s in c else "" for s in shapes)] for name, c in counts.items()]
    return [["backbone", *map(shape_text, shapes)], *body]


def _wholes(rows: Sequence[dict]) -> Cells:
    rows = [row for row in rows if row["part"] == "models"]
    parts = [part for part in wholes.PARTS if any(part in row["parts_ms"] for row in rows)]
    cells = [["model", "images", "mode", "ms (spread)", "peak MiB", "GMAC", *parts]]
    for row in rows:
        line = [row["model"], shape_text(row["shape"]), row["mode"]]
        line += [f"{row['median_ms']:,.0f} ({row['spread']:.0%})", f"{row['peak_mb']:,.0f}", f"{row['gmacs']:.0f}"]
        total = sum(row["parts_ms"].values())
        for part in parts:
            ms = row["parts_ms"].get(part)
            line.append("" if ms is None else f"{ms:,.0f} ({ms / total:.0%})")
        cells.append(line)
    return cells


def _bars(results: Sequence[dict]) -> Cells:
    cells = [["bar", "bound", "measured", "holds"]]
    for bar in bars.bars(results):
        try:
            value = bar.value(results)
        except KeyError:
            cells.append([bar.name, f"{bar.sense} {bar.bound:g}", "", "not measured"])
        else:
            cells.append([bar.name, f"{bar.sense} {bar.bound:g}", f"{value:.3f}", "yes" if bar.holds(value) else "NO"])
    return cells
