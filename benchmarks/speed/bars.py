"""The bars that sMLPNet-T's speed and memory are held to, read off the results of a run."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from speed.backbones import OURS, PAPER, macs
from speed.plan import ONNX, SIZES

CLASSIFIED, DENSE = (8, 224, 224), (1, 800, 1344)
SIDES = (BASE, LARGE) = (224, 4096)  # pixels, for the cost per pixel
AT_LEAST, AT_MOST = "at least", "at most"
_HOLDS = {AT_LEAST: operator.ge, AT_MOST: operator.le}


@dataclass(frozen=True)
class Bar:
    """A figure that is held to a bound.

    Attributes:
        name (str): What is measured.
        sense (str): 'at least' or 'at most'.
        bound (float): The bound.
        value (Callable): The figure, from the results; raises ``KeyError`` where a row is missing.
    """

    name: str
    sense: str
    bound: float
    value: Callable[[Sequence[dict]], float]

    def holds(self, value: float) -> bool:
        """Whether a figure keeps the bound."""
        return _HOLDS[self.sense](value, self.bound)


def figure(
    results: Sequence[dict], key: str, model: str, mode: str, shape: tuple, dtype: str = "fp32", device: str = "cpu"
) -> float:
    """A figure of one row in PyTorch, the best of its runs on a GPU.

    Raises:
        KeyError: If there is no such row.
    """
    wanted = (device, model, mode, dtype, list(shape))
    rows = [r for r in results if r["run"] != ONNX]
    found = [r[key] for r in rows if (r["device"], r["model"], r["mode"], r["dtype"], r["shape"]) == wanted]
    if not found:
        raise KeyError(f"{model}, {mode}, {dtype} at {' x '.join(map(str, shape))} on {device}")
    return min(found)


def _ratio(key: str, above: str, below: str, mode: str, shape: tuple, **where) -> Callable[[Sequence[dict]], float]:
    return lambda rows: figure(rows, key, above, mode, shape, **where) / figure(rows, key, below, mode, shape, **where)


def _time_per_pixel(rows: Sequence[dict]) -> float:
    small, large = (figure(rows, "median_ms", OURS, "eval", shape) / (shape[1] * shape[2]) for shape in SIZES)
    return large / small


def macs_per_pixel(rows: Sequence[dict] = ()) -> float:
    """GMACs per pixel of sMLPNet-T at the large side over those at the base; counted, no results needed."""
    base, large = (macs(OURS, (1, side, side)) / side**2 for side in SIDES)
    return large / base


TIME, MEMORY = "median_ms", "peak_mb"
BARS = (
    Bar("eval, 8 x 224 x 224: time of the paper's formulation / ours", AT_LEAST, 1.3,
        _ratio(TIME, PAPER, OURS, "eval", CLASSIFIED)),
    Bar("eval, 8 x 224 x 224: our time / Swin-T's", AT_MOST, 1.0, _ratio(TIME, OURS, "Swin-T", "eval", CLASSIFIED)),
    Bar("eval, 1 x 800 x 1344: our time / Swin-T's", AT_MOST, 0.9, _ratio(TIME, OURS, "Swin-T", "eval", DENSE)),
    Bar("eval, 1 x 800 x 1344: our time / ConvNeXt-T's", AT_MOST, 0.9, _ratio(TIME, OURS, "ConvNeXt-T", "eval", DENSE)),
    Bar("eval, 1 x 800 x 1344: our time / CycleMLP-B2's", AT_MOST, 0.55,
        _ratio(TIME, OURS, "CycleMLP-B2", "eval", DENSE)),
    Bar("training step, 8 x 224 x 224: time of the paper's formulation / ours", AT_LEAST, 1.2,
        _ratio(TIME, PAPER, OURS, "train", CLASSIFIED)),
    Bar("training step, 8 x 224 x 224: our peak memory / the paper's formulation's", AT_MOST, 0.75,
        _ratio(MEMORY, OURS, PAPER, "train", CLASSIFIED)),
    Bar("eval, 8 x 224 x 224: fraction of the matrix-product peak", AT_LEAST, 0.75,
        lambda rows: figure(rows, "peak_fraction", OURS, "eval", CLASSIFIED)),
    Bar("eval: time per pixel at 2048 x 2048 / at 1024 x 1024", AT_MOST, 1.15, _time_per_pixel),
    Bar("GMACs per pixel at 4096 x 4096 / at 224 x 224", AT_MOST, 1.03, macs_per_pixel),
)  # fmt: skip
GPU_BARS = tuple(
    Bar(f"GPU, bf16, {mode}, 8 x 224 x 224: Swin-T's time / ours, each at its best", AT_LEAST, 1.3,
        _ratio(TIME, "Swin-T", OURS, mode, CLASSIFIED, dtype="bf16", device="cuda"))
    for mode in ("eval", "train")
)  # fmt: skip

# Mode, type and shape of the rows that bars compare; these get all their repeats.
JUDGED = {
    ("eval", "fp32", CLASSIFIED),
    ("train", "fp32", CLASSIFIED),
    ("eval", "fp32", DENSE),
    *(("eval", "fp32", shape) for shape in SIZES),
}


def bars(results: Sequence[dict]) -> tuple[Bar, ...]:
    """The bars that results are held to: a GPU's only where they are from one."""
    devices = {row["device"] for row in results}
    return (BARS if devices != {"cuda"} else ()) + (GPU_BARS if "cuda" in devices else ())
