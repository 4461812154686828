"""The table of results, for the terminal and for docs/reliability.md."""

from __future__ import annotations

from rich.table import Table

from stress.rows import ROWS

_COLUMNS = ("tried", "failed", "lost", "seed", "seconds")


def table(results: dict[str, dict]) -> Table:
    """For the terminal."""
    made = Table(title="stress")
    made.add_column("row")
    for name in _COLUMNS:
        made.add_column(name, justify="right")
    for name, result in results.items():
        style = "red" if result["failed"] or result["lost"] else None
        made.add_row(name, *(f"{result[column]:,}" for column in _COLUMNS), style=style)
    return made


def markdown(results: dict[str, dict]) -> str:
    """For the page: all rows that there are results of, in the order of the rows."""
    lines = ["| row | what is tried, and must hold | tried | failed | lost | seconds |", "|---|---|--:|--:|--:|--:|"]
    for row in ROWS:
        if row.name in results:
            result = results[row.name]
            numbers = " | ".join(f"{result[key]:,}" for key in ("tried", "failed", "lost"))
            lines.append(f"| `{row.name}` | {row.what} | {numbers} | {result['seconds']:,.0f} |")
    return "\n".join(lines)
