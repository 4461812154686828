"""Patch classification: from which photograph does a grey patch come?

Each photograph is cut into cells, about 150 pixels high and wide. The cells of every third diagonal are its val part,
the others its train part, so both see all regions of the photograph and share no pixel; 8 pixels between
neighbouring cells belong to none. Patches are grey, since colour alone would tell most photographs apart. A patch whose
middle has hardly any contrast (a sky, the black round the retina) could be from anywhere and is not taken.

A patch is 96 x 96 pixels, of which tests look at the middle 64 x 64; the rest is room for random crops and zooms in
training. Patches of a part overlap each other: their number says less than it would if they were independent.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mmsmlp.data.filesets import png, read_image, write_set
from mmsmlp.files import atomic_file
from mmsmlp.photos.photographs import NAMES, grey_photograph

try:
    from PIL import Image, ImageDraw, ImageFont
except ModuleNotFoundError as error:
    raise ImportError(f"mmsmlp.photos needs Pillow ({error}): pip install -e '.[demo]' in its clone") from error

PATCH = 96  # pixels, height and width of a stored patch
MIDDLE = 64  # pixels, the middle of it that tests look at
COUNTS = {"train": 60, "val": 30}  # patches of each class
_CELL = 150  # pixels, about
_MARGIN = 4  # pixels around a cell that are in no patch
_STRIDE = 4  # pixels between places where a patch may start
_MIN_CONTRAST = 8  # standard deviation of the middle, of 255 grey levels
_SEED = 0
_COLOURS = {"train": (86, 180, 233), "val": (230, 159, 0)}  # told apart by colour-blind readers too (Okabe and Ito)


def cells(height: int, width: int) -> Iterator[tuple[str, slice, slice]]:
    """Cuts a photograph into the cells of its two parts.

    Args:
        height: height of the photograph, in pixels.
        width: its width.

    Yields:
        The part, 'train' or 'val', and the cell's rows and columns, without its margin.
    """
    rows, columns = (max(2, round(side / _CELL)) for side in (height, width))
    for row in range(rows):
        for column in range(columns):
            part = "val" if (row + column) % 3 == 1 else "train"
            yield part, _span(height, rows, row), _span(width, columns, column)


def places(name: str, part: str) -> np.ndarray:
    """Chooses where a part's patches lie; the same on every machine.

    Args:
        name: a photograph, one of ``NAMES``.
        part: 'train' or 'val'.

    Returns:
        (K, 2) int, the top row and left column of each patch, K as ``COUNTS`` says.

    Raises:
        ValueError: the name or the part is unknown.
    """
    if part not in COUNTS:
        raise ValueError(f"unknown part {part!r}: choose from {', '.join(COUNTS)}")
    grey = grey_photograph(name)
    found = [
        (top, left)
        for cell_part, rows, columns in cells(*grey.shape)
        if cell_part == part
        for top in range(rows.start, rows.stop - PATCH + 1, _STRIDE)
        for left in range(columns.start, columns.stop - PATCH + 1, _STRIDE)
        if middle(grey[top : top + PATCH, left : left + PATCH]).std() >= _MIN_CONTRAST
    ]
    # RandomState's stream is frozen; that of default_rng may change between versions of NumPy.
    return np.array(found)[np.random.RandomState(_SEED).permutation(len(found))[: COUNTS[part]]]


def patches(name: str, part: str) -> np.ndarray:
    """Cuts out a part's patches: (K, 96, 96) uint8, grey. Arguments and errors as in :func:`places`."""
    grey = grey_photograph(name)
    return np.stack([grey[top : top + PATCH, left : left + PATCH] for top, left in places(name, part)])


def middle(patch: np.ndarray) -> np.ndarray:
    """Returns the middle 64 x 64 pixels of a patch, a view."""
    start = (PATCH - MIDDLE) // 2
    return patch[start : start + MIDDLE, start : start + MIDDLE]


def write_patches(root: str | Path, overwrite: bool = False) -> Path:
    """Writes the set to disk, for mmpretrain's ``CustomDataset(data_root=root, data_prefix='train')`` (or 'val').

    The files are ``<part>/<photograph>/<number>.png``, 8-bit grey; the stock loaders give three equal channels. The
    folder appears complete or not at all. A complete set is left untouched, and so is all that is not such a set.

    Args:
        root: the set's folder; missing parent folders are made.
        overwrite: rebuild an existing set, complete or damaged.

    Returns:
        ``root``.

    Raises:
        FileExistsError: ``root`` is a file, holds files that are not the set's, or (without ``overwrite``) holds a
            damaged set.
        OSError: ``root`` cannot be written (its subclass says why, for example ``PermissionError``).
    """
    contents = {
        f"{part}/{name}/{number:03d}.png": patch
        for part in COUNTS
        for name in NAMES
        for number, patch in enumerate(patches(name, part))
    }
    return write_set(root, contents, "patch set", "make_photos.py", overwrite)


def draw_patches(root: str | Path, out: str | Path) -> Path:
    """Draws each photograph with its cells, train blue and val orange, and beside it patches of a written set.

    Args:
        root: the folder that :func:`write_patches` wrote; the patches drawn are its files, the first of each class.
        out: the PNG to write; missing parent folders are made.

    Returns:
        ``out``.

    Raises:
        ValueError: ``out`` does not end in .png.
        FileNotFoundError: ``root`` holds no patch set.
    """
    root, out = Path(root), Path(out)
    if out.suffix.lower() != ".png":
        raise ValueError(f"the drawing must be a .png file, got {out}")
    rows = [_draw_class(root, name) for name in NAMES]
    half = len(rows) // 2
    picture = np.concatenate([np.concatenate(rows[:half]), np.concatenate(rows[half:])], axis=1)
    with atomic_file(out) as new:
        new.write_bytes(png(picture))
    return out


def _span(length: int, count: int, index: int) -> slice:
    return slice(length * index // count + _MARGIN, length * (index + 1) // count - _MARGIN)


def _draw_class(root: Path, name: str) -> np.ndarray:
    """Returns (216, 616, 3) uint8: the photograph with its cells, and 3 patches of each part in its colour."""
    row = Image.new("RGB", (616, 216), "white")
    draw = ImageDraw.Draw(row)
    draw.text((4, 0), name, fill="black", font=ImageFont.load_default(size=14))
    photograph = _draw_cells(grey_photograph(name))
    photograph.thumbnail((296, 192))
    row.paste(photograph, (4, 20))
    for top, part in zip((20, 118), COUNTS):
        for number in range(3):
            left = 308 + 98 * number
            try:
                patch = read_image(root / part / name / f"{number:03d}.png")
            except FileNotFoundError as error:
                message = f"{root} holds no patch set ({error.filename} is missing): write_patches makes it"
                raise FileNotFoundError(message) from error
            row.paste(Image.fromarray(patch).convert("RGB"), (left, top))
            draw.rectangle((left, top, left + PATCH - 1, top + PATCH - 1), outline=_COLOURS[part], width=2)
    return np.array(row)


def _draw_cells(grey: np.ndarray) -> Image.Image:
    picture = Image.fromarray(grey).convert("RGB")
    draw = ImageDraw.Draw(picture)
    for part, rows, columns in cells(*grey.shape):
        draw.rectangle(
            (columns.start, rows.start, columns.stop - 1, rows.stop - 1), outline=_COLOURS[part], width=_MARGIN
        )
    return picture
