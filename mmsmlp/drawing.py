"""What all pictures share: colours, and how they are written."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # files only: works without a display

import matplotlib.pyplot as plt
from PIL import Image

from mmsmlp.files import atomic_file

# Colours of Okabe and Ito, told apart by colour-blind readers.
BLUE, ORANGE, GREEN, RED, PINK, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#666666"
_DPI = 110


def png(figure: plt.Figure, palette: Image.Quantize | None = None) -> bytes:
    """The content of a PNG file that shows a figure, which is closed.

    Args:
        figure (plt.Figure): What to show.
        palette (Image.Quantize, optional): How to make do with 256 colours, which takes a third of the space:
            'MAXCOVERAGE' errs little anywhere, 'MEDIANCUT' little where there is much. Defaults to all colours.
    """
    content = io.BytesIO()
    try:
        figure.savefig(content, dpi=_DPI, format="png")
    finally:
        plt.close(figure)
    if palette is not None:
        with Image.open(content) as full:
            reduced = full.convert("RGB").quantize(256, palette)
        content = io.BytesIO()
        reduced.save(content, format="png", optimize=True)
    return content.getvalue()


def save(figure: plt.Figure, out: str | Path) -> Path:
    """Write a figure as a PNG, whole or not at all, and close it."""
    content = png(figure)
    with atomic_file(out) as new:
        new.write_bytes(content)
    return Path(out)
