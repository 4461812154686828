"""What all pictures share: colours, and how they are written."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # files only: works without a display

import matplotlib.pyplot as plt

from mmsmlp.files import atomic_file

# Colours of Okabe and Ito, told apart by colour-blind readers.
BLUE, ORANGE, GREEN, RED, PINK, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#666666"
_DPI = 110


def png(figure: plt.Figure) -> bytes:
    """The content of a PNG file that shows a figure, which is closed."""
    content = io.BytesIO()
    try:
        figure.savefig(content, dpi=_DPI, format="png")
    finally:
        plt.close(figure)
    return content.getvalue()


def save(figure: plt.Figure, out: str | Path) -> Path:
    """Write a figure as a PNG, whole or not at all, and close it."""
    content = png(figure)
    with atomic_file(out) as new:
        new.write_bytes(content)
    return Path(out)
