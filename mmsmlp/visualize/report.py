"""A report as one HTML file: pictures inside, nothing loaded from anywhere, readable on a telephone."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

from mmsmlp.files import atomic_file

# The policy forbids a browser to load anything: whatever slips into the page cannot call home.
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ margin: 0 auto; padding: 1rem; max-width: 64rem; color: #222; background: #fff;
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: break-word; }}
h1 {{ font-size: 1.6rem; line-height: 1.25; }}
h2 {{ font-size: 1.3rem; margin-top: 2.5rem; border-bottom: 1px solid #ccc; }}
nav ul {{ padding-left: 1.2rem; }}
a {{ color: #005a9c; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; margin: 1rem 0; }}
th, td {{ border: 1px solid #ccc; padding: 0.3rem 0.6rem; text-align: left; vertical-align: top; }}
th {{ background: #f3f3f3; }}
figure {{ margin: 1.5rem 0; }}
figcaption {{ color: #444; }}
img {{ display: block; max-width: 100%; height: auto; }}
@media (max-width: 40rem) {{ img {{ max-width: 44rem; }} }}
.note {{ border-left: 4px solid #d55e00; padding: 0.2rem 0.8rem; background: #fdf3ec; }}
</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        rows (Sequence[Sequence[str]]): Cells, the first of each row being its heading.
        heading (Sequence[str]): Of the columns; none by default.
    """

    rows: Sequence[Sequence[str]]
    heading: Sequence[str] = ()


@dataclass(frozen=True)
class Picture:
    """A picture with the words that belong to it.

    Attributes:
        name (str): Of the PNG file.
        content (bytes): The PNG.
        caption (str): What is shown, below it.
        alt (str): What is shown, for those who do not see it.
    """

    name: str
    content: bytes
    caption: str
    alt: str


@dataclass(frozen=True)
class Section:
    """A part of a report.

    Attributes:
        title (str): Its heading.
        text (Sequence[str]): Paragraphs that say what to look for.
        tables (Sequence[Table]): After the text.
        pictures (Sequence[Picture]): After the tables.
        note (str): A paragraph that stands out, before the text; none by default.
    """

    title: str
    text: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = field(default=())
    note: str = ""


def render(title: str, sections: Sequence[Section]) -> str:
    """A report as HTML.

    Args:
        title (str): Its heading.
        sections (Sequence[Section]): Its parts; any text in them may hold any character.

    Returns:
        str: A whole page, all pictures inside.
    """
    links = "".join(f'<li><a href="#s{i}">{escape(section.title)}</a></li>' for i, section in enumerate(sections, 1))
    parts = [f"<nav><ul>{links}</ul></nav>"]
    for number, section in enumerate(sections, 1):
        parts.append(f'<section id="s{number}">\n<h2>{escape(section.title)}</h2>')
        if section.note:
            parts.append(f'<p class="note">{escape(section.note)}</p>')
        parts += [f"<p>{escape(text)}</p>" for text in section.text]
        parts += map(_table, section.tables)
        parts += map(_figure, section.pictures)
        parts.append("</section>")
    return _PAGE.format(title=escape(title), body="\n".join(parts))


def write_report(title: str, sections: Sequence[Section], folder: str | Path) -> Path:
    """Write a report, and its pictures as files beside it; each file whole or not at all, the report last.

    Args:
        title (str): Its heading.
        sections (Sequence[Section]): Its parts.
        folder (str | Path): Where to; other files there stay as they are.

    Returns:
        Path: ``report.html`` in the folder.
    """
    page = render(title, sections)
    report = Path(folder, "report.html")
    for section in sections:
        for picture in section.pictures:
            with atomic_file(report.with_name(f"{picture.name}.png")) as new:
                new.write_bytes(picture.content)
    with atomic_file(report) as new:
        # A file name may hold bytes that are no text; they are shown as question marks.
        new.write_text(page, "utf-8", errors="replace")
    return report


def _table(table: Table) -> str:
    rows = [_row(table.heading, "th", 'scope="col"')] if table.heading else []
    rows += [_row(row[:1], "th", 'scope="row"', _cells(row[1:], "td")) for row in table.rows]
    return '<div class="scroll"><table>\n' + "\n".join(rows) + "\n</table></div>"


def _row(cells: Sequence[str], tag: str, attributes: str, more: str = "") -> str:
    return f"<tr>{_cells(cells, tag, attributes)}{more}</tr>"


def _cells(cells: Sequence[str], tag: str, attributes: str = "") -> str:
    return "".join(f"<{f'{tag} {attributes}'.strip()}>{escape(cell)}</{tag}>" for cell in cells)


def _figure(picture: Picture) -> str:
    content = base64.b64encode(picture.content).decode()
    image = f'<img alt="{escape(picture.alt)}" src="data:image/png;base64,{content}">'
    return (
        f'<figure><div class="scroll">{image}</div>\n<figcaption>{escape(picture.caption)} '
        f"({escape(picture.name)}.png)</figcaption></figure>"
    )
