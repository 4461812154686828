"""The built-in data set: 24 coins in one real photograph, for stock mmdet and mmseg data sets.

Photograph: ``skimage.data.coins()``, Greek coins from Pompeii, Brooklyn Museum Collection, no known copyright
restrictions.
Labels: *algorithmic*, by the classical watershed segmentation of scikit-image's gallery
(https://scikit-image.org/docs/stable/auto_examples/applications/plot_coins_segmentation.html); nobody drew them.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mmsmlp.data.coco import coco_annotation, mask_utils
from mmsmlp.data.filesets import Content, png, read_image, write_set
from mmsmlp.files import atomic_file

try:
    from PIL import Image, ImageDraw, ImageFont
    from scipy import ndimage
    from skimage import data, filters, segmentation
except ModuleNotFoundError as error:
    raise ImportError(
        f"mmsmlp.coins needs scikit-image, SciPy and Pillow ({error}): pip install -e '.[demo]' in its clone"
    ) from error

# The coins lie in four rows, and none touches pixel rows 145 to 155, so this cut leaves all of them whole, 12 in each
# part. No vertical cut does that: every one from 81 to 381 goes through a coin.
PARTS = {"train": slice(0, 150), "val": slice(150, 303)}
CATEGORIES = [{"id": 1, "name": "coin"}]
INFO = {
    "description": "scikit-image's coins photograph, cut into two parts. The labels are algorithmic: a watershed of "
    "the Sobel gradient; nobody drew them.",
    "url": "https://www.brooklynmuseum.org/opencollection/archives/image/51611",
    "contributor": "photograph: Brooklyn Museum Collection, no known copyright restrictions, as shipped with "
    "scikit-image; labels: mmsmlp.coins",
    "version": "1.0",
}
_MIN_AREA = 100  # pixels; the watershed leaves one speck of 2, the smallest coin has 1077
_ENLARGE = 3  # of the drawing
_COLOURS = {"train": (86, 180, 233), "val": (230, 159, 0)}  # told apart by colour-blind readers too (Okabe and Ito)


class Part(NamedTuple):
    """One part of the photograph: ``image`` (H, W) uint8 and ``masks`` (K, H, W) bool, one for each coin in it."""

    image: np.ndarray
    masks: np.ndarray


def photograph() -> np.ndarray:
    """Returns the photograph, (303, 384) uint8, grey. It ships inside scikit-image: nothing is downloaded."""
    return data.coins()


def instance_masks() -> np.ndarray:
    """Segments the coins: watershed of the Sobel gradient from sure background (grey < 30) and sure coins (grey > 150).

    Returns:
        (24, 303, 384) bool, disjoint, without holes, in the order of their topmost pixels.
    """
    grey = photograph()
    markers = np.zeros(grey.shape, dtype=np.int32)
    markers[grey < 30] = 1
    markers[grey > 150] = 2
    coins = segmentation.watershed(filters.sobel(grey), markers) == 2
    labels, count = ndimage.label(ndimage.binary_fill_holes(coins))
    masks = labels == np.arange(1, count + 1)[:, None, None]
    return masks[masks.sum(axis=(1, 2)) >= _MIN_AREA]


def split() -> dict[str, Part]:
    """Cuts the photograph into disjoint parts, no coin in both.

    Returns:
        'train': the upper 150 rows, 'val': the lower 153, each with its 12 coins, all whole.
    """
    grey, masks = photograph(), instance_masks()
    parts = {}
    for name, rows in PARTS.items():
        cropped = masks[:, rows]
        parts[name] = Part(grey[rows], cropped[cropped.any(axis=(1, 2))])
    return parts


def write_coins(root: str | Path, overwrite: bool = False) -> Path:
    """Writes the set to disk, for mmdet's ``CocoDataset`` and mmseg's ``BaseSegDataset``.

    For each part: ``images/<part>/coins.png`` (8-bit grey; the stock loaders give three equal channels),
    ``annotations/instances_<part>.json`` (COCO) and ``labels/<part>/coins.png`` (8-bit, 0 background, 1 coin). The
    folder appears complete or not at all. A complete set is left untouched, and so is all that is not a coins set.

    Args:
        root: the set's folder; missing parent folders are made.
        overwrite: rebuild an existing coins set, complete or damaged.

    Returns:
        ``root``.

    Raises:
        FileExistsError: ``root`` is a file, holds files that are not the set's, or (without ``overwrite``) holds a
            damaged set.
        OSError: ``root`` cannot be written (its subclass says why, for example ``PermissionError``).
    """
    return write_set(root, _contents(), "coins set", "make_coins.py", overwrite)


def draw_annotations(root: str | Path, out: str | Path) -> Path:
    """Draws the outlines, boxes and ids of a written set's annotations over the photograph, three times enlarged.

    Args:
        root: the folder that :func:`write_coins` wrote; what is drawn is what its files say.
        out: the PNG to write, 1152 x 909 pixels; missing parent folders are made.

    Returns:
        ``out``.

    Raises:
        ValueError: ``out`` does not end in .png.
        FileNotFoundError: ``root`` holds no coins set.
    """
    root, out = Path(root), Path(out)
    if out.suffix.lower() != ".png":
        raise ValueError(f"the drawing must be a .png file, got {out}")
    picture = np.concatenate([_draw_part(root, name) for name in PARTS])
    seam = PARTS["val"].start * _ENLARGE
    picture[seam - 1 : seam + 1] = 255
    with atomic_file(out) as new:
        new.write_bytes(png(picture))
    return out


def _contents() -> dict[str, Content]:
    """The set: file name -> image (H, W) uint8, or the arguments of :func:`write_coco`."""
    contents = {}
    for name, (image, masks) in split().items():
        height, width = image.shape
        contents[f"images/{name}/coins.png"] = image
        contents[f"labels/{name}/coins.png"] = masks.any(axis=0).astype(np.uint8)
        contents[f"annotations/instances_{name}.json"] = {
            "info": INFO,
            "images": [{"id": 1, "file_name": "coins.png", "width": width, "height": height}],
            "annotations": [coco_annotation(mask, 1, index, 1) for index, mask in enumerate(masks, start=1)],
            "categories": CATEGORIES,
        }
    return contents


def _draw_part(root: Path, name: str) -> np.ndarray:
    """Returns (3H, 3W, 3) uint8: one part of the written set with its annotations."""
    source = root / f"annotations/instances_{name}.json"
    try:
        annotations = json.loads(source.read_text(encoding="utf-8"))["annotations"]
        image = read_image(root / f"images/{name}/coins.png")
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{root} holds no coins set ({error.filename} is missing): write_coins makes it"
        ) from error
    colour = _COLOURS[name]
    pixels = np.repeat(_enlarge(image)[..., None], 3, axis=-1)
    for annotation in annotations:
        mask = _enlarge(mask_utils.decode(annotation["segmentation"]).astype(bool))
        pixels[mask & ~ndimage.binary_erosion(mask, iterations=2)] = colour
    picture = Image.fromarray(pixels)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=18)
    for annotation in annotations:
        x, y, width, height = (value * _ENLARGE for value in annotation["bbox"])
        draw.rectangle((x, y, x + width - 1, y + height - 1), outline=colour)
        draw.text((x + 3, y + 1), str(annotation["id"]), fill=colour, font=font)
    draw.text(
        (8, 6), f"{name}: {len(annotations)} coins", fill=colour, font=font, stroke_width=3, stroke_fill=(0, 0, 0)
    )
    return np.array(picture)


def _enlarge(image: np.ndarray) -> np.ndarray:
    return image.repeat(_ENLARGE, axis=0).repeat(_ENLARGE, axis=1)
