"""The study's tables in Markdown, its bars, and how they get into docs/positional_interpolation.md."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from mmsmlp.files import atomic_file
from mmsmlp.resize import DEFAULT_METHOD as DEFAULT
from mmsmlp.resize import METHODS
from study.estimates import GROUPS, Estimate, averages, differences, estimate, select, value_at
from study.plan import ANSWERS, FULL, NETWORKS, ZOOMS, recipes_of

_NAMES = {"features": "feature resizing", "windows": "sliding windows"}


def answers_table(rows: list[dict]) -> str:
    """For each network and recipe: every answer averaged over zooms, grids and extents; the best mean bold."""
    lines = _header("network, trained", "average over", *(_NAMES.get(a, f"`{a}`") for a in ANSWERS))
    for network in NETWORKS:
        for recipe in FULL:
            for group in GROUPS:
                found = {a: averages(rows, network, recipe, a, group) for a in ANSWERS}
                cells = {a: estimate(list(v.values())) for a, v in found.items() if v}
                if cells:
                    best = max(c.mean for c in cells.values())
                    shown = [_bold(cells[a], cells[a].mean == best) if a in cells else "" for a in ANSWERS]
                    lines.append(_row(f"{network}, {recipe}", group, *shown))
    return "\n".join(lines)


def differences_table(rows: list[dict]) -> str:
    """Every other answer minus the default, paired on the same checkpoints."""
    others = [a for a in ANSWERS if a != DEFAULT]
    lines = _header(f"minus `{DEFAULT}`, trained", "average over", *(_NAMES.get(a, f"`{a}`") for a in others))
    for network in NETWORKS:
        for recipe in recipes_of(NETWORKS[network]):
            for group in GROUPS:
                found = [differences(rows, network, recipe, a, DEFAULT, group) for a in others]
                if any(found):
                    lines.append(_row(f"{network}, {recipe}", group, *(estimate(d).signed if d else "" for d in found)))
    return "\n".join(lines)


def recipes_table(rows: list[dict]) -> str:
    """Every recipe with the default answer: at the test image's own size, and averaged."""
    lines = _header("network", "trained", "zoom 1", *GROUPS)
    for network in NETWORKS:
        for recipe in recipes_of(NETWORKS[network]):
            own = _default_at(rows, network, recipe, ("zoom", 1))
            means = [estimate(list(averages(rows, network, recipe, DEFAULT, g).values())) for g in GROUPS]
            lines.append(_row(network, recipe, own, *means))
    return "\n".join(lines)


def training_table(rows: list[dict]) -> str:
    """Every recipe minus 'random scales', paired on the seed, with the default answer."""
    lines = _header("network", "trained, minus random scales", *GROUPS)
    for network in NETWORKS:
        for recipe in recipes_of(NETWORKS[network]):
            if recipe != "random scales":
                cells = []
                for group in GROUPS:
                    ours, base = (averages(rows, network, r, DEFAULT, group) for r in (recipe, "random scales"))
                    cells.append(estimate([ours[s] - base[s] for s in ours if s in base]).signed)
                lines.append(_row(network, recipe, *cells))
    return "\n".join(lines)


def sizes_table(rows: list[dict]) -> str:
    """Box AP50 of the detectors at every zoom and extent, with the default answer."""
    factors = [("zoom", z) for z in ZOOMS] + [("extent", e) for e in NETWORKS["Mask R-CNN"].extents]
    lines = _header("AP50, trained", *(f"{kind} {_fraction(factor)}" for kind, factor in factors))
    for recipe in FULL:
        cells = [_default_at(rows, "Mask R-CNN", recipe, size, "bbox_mAP_50") for size in factors]
        lines.append(_row(recipe, *cells))
    return "\n".join(lines)


def times_table(numbers: dict) -> str:
    """Time of the backbone with every answer over that with the default, on the same image."""
    lines = _header(f"time / that of `{DEFAULT}`", *(_NAMES.get(a, f"`{a}`") for a in ANSWERS))
    for row in numbers["times"]:
        own = row["milliseconds"][DEFAULT]
        height, width = row["size"]
        ratios = (f"{row['milliseconds'][answer] / own:.2f}" for answer in ANSWERS)
        lines.append(_row(f"{height} x {width}, {own:.0f} ms", *ratios))
    return "\n".join(lines)


def bars_table(rows: list[dict]) -> str:
    """The bars that the study was set, each with what was measured."""
    lines = _header("bar", "measured", "holds")
    for text, measured, holds in bars(rows):
        lines.append(_row(text, measured, "yes" if holds else "**no**"))
    return "\n".join(lines)


def bars(rows: list[dict]) -> list[tuple[str, str, bool]]:
    """What was asked of the default.

    Returns:
        list[tuple[str, str, bool]]: Each bar, the worst that was measured, and whether it holds.
    """
    margins = []
    for network in NETWORKS:
        for recipe in recipes_of(NETWORKS[network]):
            for group in ("zooms", "extents"):
                for other in METHODS:
                    behind = differences(rows, network, recipe, other, DEFAULT, group)
                    if other != DEFAULT and behind:
                        value = estimate(behind)
                        excess = value.mean - max(1, 2 * (value.error or 0))
                        where = f"`{other}` ahead by {value} on the {group} of {network}, {recipe}"
                        margins.append((excess, where))
    excess, where = max(margins)
    result = [
        (
            "averaged over zooms and over extents, no other weight variant is ahead of the default by more than "
            "max(1 point, 2 standard errors)",
            f"{where}, the worst of {len(margins)}",
            excess <= 0,
        )
    ]
    for recipe in ("random scales", "random sizes"):
        for kind, factors, allowed in (("zoom", (0.75, 1.5, 2), 5), ("extent", (2, 3, 4), 10)):
            losses = {}
            for factor in factors:
                here, own = (_default_at(rows, "Mask R-CNN", recipe, (kind, f), "bbox_mAP_50") for f in (factor, 1))
                if here.count and own.count:
                    losses[factor] = own.mean - here.mean
            if not losses:
                continue
            factor = max(losses, key=losses.get)
            sizes = "zooms 0.75 to 2" if kind == "zoom" else "extents to 4"
            result.append(
                (f"{recipe}: {sizes} lose at most {allowed} points of AP50 against 1",
                 f"{losses[factor]:.1f} at {kind} {factor:g}", losses[factor] <= allowed)
            )  # fmt: skip
    return result


TABLES: dict[str, Callable[[list[dict]], str]] = {
    "answers": answers_table,
    "differences": differences_table,
    "recipes": recipes_table,
    "training": training_table,
    "sizes": sizes_table,
    "bars": bars_table,
}
OTHER_TABLES = ("wide", "limits", "spectra", "times")  # of other results than rows


def wide_table(wide: dict) -> str:
    """What the AP of wide scenes lacks, by cause: means over seeds, in points; then what other limits change."""
    causes = ("localisation", "scores", "both")
    gains = [f"gain: perfect {name}" for name in ("boxes", "scores", "both")]
    lines = _header("trained", "extent", "box AP", "AP50", "inside: box AP", "objects missed", *gains)
    for recipe, extent in dict.fromkeys((row["recipe"], row["extent"]) for row in wide["split"]):
        found = select(wide["split"], recipe=recipe, extent=extent)
        own = [estimate([row[key] for row in found]) for key in ("bbox_mAP", "bbox_mAP_50", "inside", "missed")]
        mended = [estimate([row["restored"][cause]["bbox_mAP"] for row in found]).signed for cause in causes]
        lines.append(_row(recipe, extent, *own, *mended))
    return "\n".join(lines)


def limits_table(wide: dict) -> str:
    """What other limits of proposals and detections change, of one checkpoint."""
    lines = _header("extent", "proposals kept", "detections kept", "proposals' recall", "box AP", "AP50")
    for row in wide["limits"]:
        numbers = [f"{100 * row[key]:.1f}" for key in ("proposal_recall", "bbox_mAP", "bbox_mAP_50")]
        lines.append(_row(row["extent"], row["max_proposals"], row["max_detections"], *numbers))
    return "\n".join(lines)


def spectra_table(numbers: dict) -> str:
    """What axis weights hold at high frequencies, and what noise gains when m = n + 1 positions are read."""
    lines = _header(
        "network", "stage", "n", "moved by training", "highest frequency, times n", "of what training added",
        "noise gain at n + 1, `exact`", "`bounded`"
    )  # fmt: skip
    for network, stages in numbers["spectra"].items():
        for stage, row in stages.items():
            n, gains = row["length"], row["sizes"]["n + 1"]
            shares = [f"{row[kind]['highest'][0] * n:.2f}" for kind in ("trained", "added")]
            noise = [f"{gains[method]['trained']:.2f}" for method in ("exact", "bounded")]
            lines.append(_row(network, stage.removeprefix("stage "), n, f"{row['moved']:.2f}", *shares, *noise))
    return "\n".join(lines)


def write_into(page: Path, tables: dict[str, str]) -> None:
    """Replace a page's tables by new ones.

    Args:
        page (Path): A Markdown page with a pair of lines ``<!-- study: NAME -->`` and ``<!-- end -->`` for each table.
        tables (dict[str, str]): Name -> the table.

    Raises:
        ValueError: If the page lacks the lines of a table.
    """
    text = page.read_text()
    for name, table in tables.items():
        between = re.compile(rf"(<!-- study: {name} -->\n).*?(<!-- end -->)", re.S)
        if not between.search(text):
            raise ValueError(f"{page} has no lines '<!-- study: {name} -->' and '<!-- end -->' for a table")
        text = between.sub(lambda match: match[1] + table + "\n" + match[2], text)  # noqa: B023
    with atomic_file(page) as new:
        new.write_text(text)


def _default_at(rows: list[dict], network: str, recipe: str, size: tuple[str, float], metric: str = "") -> Estimate:
    metric = metric or NETWORKS[network].metrics[0]
    return value_at(rows, size, metric, network=network, recipe=recipe, interpolation=DEFAULT)


def _header(*headings: str) -> list[str]:
    return [_row(*headings), _row(*("---" for _ in headings))]


def _row(*cells) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _bold(text, bold: bool) -> str:
    return f"**{text}**" if bold else str(text)


def _fraction(factor: float) -> str:
    return "1/3" if abs(factor - 1 / 3) < 1e-9 else f"{factor:g}"
