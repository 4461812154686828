"""Averages over sizes, means over seeds with their standard errors, and differences paired on the same checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from math import nan
from statistics import mean, stdev

from study.plan import NETWORKS, WIDE

# What is averaged: zooms, wider scenes, and grids on and one position off the anchor.
GROUPS = {"zooms": "zoom", "extents": "extent", "grids": "grid"}


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds in points (percent), and its standard error; without one if there is one seed only.

    Of no seeds at all, where a size was not evaluated, it is not a number, and shown as nothing.
    """

    mean: float
    error: float | None
    count: int

    def __str__(self) -> str:
        if not self.count:
            return ""
        return f"{self.mean:.1f}" + ("" if self.error is None else f" ± {self.error:.1f}")

    @property
    def signed(self) -> str:
        """The same with a sign, for differences."""
        if not self.count:
            return ""
        return f"{self.mean:+.2f}" + ("" if self.error is None else f" ± {self.error:.2f}")


def estimate(values: list[float]) -> Estimate:
    """Mean and standard error of the mean of values in [0, 1], in points."""
    if not values:
        return Estimate(nan, None, 0)
    error = 100 * stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
    return Estimate(100 * mean(values), error, len(values))


def select(rows: list[dict], **wanted) -> list[dict]:
    """The rows with these values."""
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


def averages(rows: list[dict], network: str, recipe: str, answer: str, group: str) -> dict[int, float]:
    """Seed -> the mean of the network's first metric over the sizes of a group.

    Args:
        rows (list[dict]): Rows of ``study.evaluation``.
        network (str): One of ``study.plan.NETWORKS``.
        recipe (str): One of ``study.plan.RECIPES``.
        answer (str): One of ``study.plan.ANSWERS``.
        group (str): One of ``GROUPS``. Extents above ``study.plan.WIDE`` do not count: not every answer has them.

    Returns:
        dict[int, float]: Empty where there are no such rows.
    """
    metric = NETWORKS[network].metrics[0]
    chosen = select(rows, network=network, recipe=recipe, interpolation=answer, kind=GROUPS[group])
    chosen = [row for row in chosen if row["kind"] != "extent" or row["factor"] <= WIDE]
    seeds = sorted({row["seed"] for row in chosen})
    return {seed: mean(row[metric] for row in select(chosen, seed=seed)) for seed in seeds}


def differences(rows: list[dict], network: str, recipe: str, answer: str, other: str, group: str) -> list[float]:
    """``answer`` minus ``other`` on the same checkpoints, a value for each seed that has both."""
    ours, theirs = (averages(rows, network, recipe, a, group) for a in (answer, other))
    return [ours[seed] - theirs[seed] for seed in ours if seed in theirs]


def value_at(rows: list[dict], size: tuple[str, float], metric: str, **wanted) -> Estimate:
    """The estimate of a metric at one kind and factor, of the rows with these values."""
    kind, factor = size
    chosen = select(rows, kind=kind, **wanted)
    return estimate([row[metric] for row in chosen if abs(row["factor"] - factor) < 1e-9])
