"""What a run measures: rows in groups, the rows of a group interleaved."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from speed import wholes
from speed.backbones import BACKBONES, OURS
from speed.worker import Row

PARTS = ("backbones", "sizes", "models")
SHAPES = ((8, 224, 224), (2, 512, 512), (1, 800, 1344), (1, 1024, 2048))
SIZES = ((1, 1024, 1024), (1, 2048, 2048))  # for the time per pixel
MODES, DTYPES = ("eval", "train"), ("fp32", "bf16")
RUNS = {"cpu": ("eager",), "cuda": ("eager", "compiled", "graphed")}
ONNX = "onnxruntime"  # of sMLPNet-T in eval and fp32, on a CPU

Group = tuple[Row, ...]


def groups(
    device: str,
    parts: Sequence[str] = PARTS,
    shapes: Sequence[tuple[int, int, int]] = SHAPES,
    modes: Sequence[str] = MODES,
    dtypes: Sequence[str] = DTYPES,
    only: Sequence[str] | None = None,
) -> Iterator[Group]:
    """List the groups of a run.

    Args:
        device (str): 'cpu' or 'cuda', where fp32 is left out and backbones run compiled, too.
        parts (Sequence[str]): Of ``PARTS``: backbones at all shapes; sMLPNet-T at ``SIZES``; whole models.
        shapes (Sequence[tuple[int, int, int]]): Images (N, H, W) of the backbones.
        modes (Sequence[str]): Of ``MODES``.
        dtypes (Sequence[str]): Of ``DTYPES``. Sizes and whole models run in fp32.
        only (Sequence[str] | None): Names of models; None for all.

    Yields:
        tuple[Row, ...]: Rows to interleave, at least one.
    """
    for group in _all_groups(device, parts, shapes, modes, dtypes):
        kept = tuple(row for row in group if only is None or row.model in only)
        if kept:
            yield kept


def _all_groups(device, parts, shapes, modes, dtypes) -> Iterator[Group]:
    if "backbones" in parts:
        for shape in shapes:
            for dtype in dtypes:
                for mode in modes:
                    names = [name for name, b in BACKBONES.items() if b.runs(mode, shape[1:], device)]
                    runs = RUNS[device]
                    rows = [Row("backbones", name, mode, dtype, shape, run) for run in runs for name in names]
                    if (mode, dtype, device) == ("eval", "fp32", "cpu"):
                        rows.append(Row("backbones", OURS, mode, dtype, shape, ONNX))
                    yield tuple(rows)
    if "sizes" in parts and "eval" in modes:
        yield tuple(Row("sizes", OURS, "eval", "fp32", shape) for shape in SIZES)
    if "models" in parts:
        for task, shape in wholes.SHAPES.items():
            for mode in modes:
                names = [name for name in wholes.WHOLES if name.startswith(f"{task}, ")]
                yield tuple(Row("models", name, mode, "fp32", shape) for name in names)


def without_onnx(planned: Sequence[Group]) -> list[Group]:
    """The groups without the rows of onnxruntime, where it or the exporter is missing."""
    kept = [tuple(row for row in group if row.run != ONNX) for group in planned]
    return [group for group in kept if group]


def packages(planned: Sequence[Group]) -> list[str]:
    """What the rows' models import; not ``mmsmlp``, whose import would set the allocator of all rows' processes."""
    rows = [row for group in planned for row in group]
    found = {package for row in rows if row.part != "models" for package in BACKBONES[row.model].packages}
    found |= set(wholes.PACKAGES) if any(row.part == "models" for row in rows) else set()
    return sorted(found)
