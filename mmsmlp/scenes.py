"""Scenes made from the images of a COCO set: their flips and rotations, and wider scenes at the same pixel size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools.coco import COCO

from mmsmlp.coco import coco_annotation, load_coco, write_coco
from mmsmlp.files import atomic_directory


@dataclass(frozen=True)
class CocoSet:
    """A data set in COCO's detection format: its annotation file and the folder of its images."""

    ann_file: Path
    images: Path


def symmetry(array: np.ndarray, index: int) -> np.ndarray:
    """One of the 8 flips and rotations of a rectangle, the dihedral group.

    Args:
        array (np.ndarray): (H, W, ...), an image or a mask.
        index (int): 0 to 7; 0 is the array itself, 1 and 2 flip it left-right and up-down, 3 does both, and 4 to 7
            do the same after exchanging H and W.

    Returns:
        np.ndarray: (H, W, ...) or (W, H, ...), a view.

    Raises:
        ValueError: If the index is not one of the 8.
    """
    if index not in range(8):
        raise ValueError(f"a rectangle has the symmetries 0 to 7, got {index!r}")
    if index & 4:
        array = array.swapaxes(0, 1)
    if index & 2:
        array = array[::-1]
    return array[:, ::-1] if index & 1 else array


def mirrored_tiles(height: int, width: int, count: int) -> Iterator[tuple[int, int, int]]:
    """Places of ``count`` x ``count`` copies of an image that continue each other: each one mirrors its neighbours.

    Args:
        height (int): Height of the image.
        width (int): Width of the image.
        count (int): Copies along each axis.

    Yields:
        tuple[int, int, int]: Top row and left column of a copy, and its :func:`symmetry`; the first is the image.
    """
    for row in range(count):
        for column in range(count):
            yield row * height, column * width, column % 2 + row % 2 * 2


def write_symmetries(source: CocoSet, root: str | Path, count: int = 8) -> CocoSet:
    """Write a COCO set with flips and rotations of every image and its objects.

    Args:
        source (CocoSet): The set to read.
        root (str | Path): Folder to write to; replaced if it exists.
        count (int): How many of the 8 symmetries, the image itself first. Defaults to all.

    Returns:
        CocoSet: The set written.

    Raises:
        ValueError: If ``count`` is not 1 to 8.
    """
    if count not in range(1, 9):
        raise ValueError(f"symmetries must be 1 to 8, got {count!r}")

    def views(image, objects):
        for index in range(count):
            yield symmetry(image, index), [(ann, symmetry(mask, index)) for ann, mask in objects]

    return _derive(source, root, views)


def write_extent(source: CocoSet, root: str | Path, count: int) -> CocoSet:
    """Write a COCO set whose every image is ``count`` x ``count`` mirrored copies of the original, objects included.

    The pixels of an object stay as large as they were: the scene gets wider, not closer.

    Args:
        source (CocoSet): The set to read.
        root (str | Path): Folder to write to; replaced if it exists.
        count (int): Copies along each axis, at least 1.

    Returns:
        CocoSet: The set written.

    Raises:
        ValueError: If ``count`` is not a positive integer.
    """
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"extents must be positive integers, got {count!r}")

    def canvas(image, objects):
        height, width = image.shape[:2]
        tiles = list(mirrored_tiles(height, width, count))
        wide = np.zeros((height * count, width * count, *image.shape[2:]), image.dtype)
        placed = []
        for top, left, index in tiles:
            place = slice(top, top + height), slice(left, left + width)
            wide[place] = symmetry(image, index)
            for ann, mask in objects:
                wide_mask = np.zeros(wide.shape[:2], bool)
                wide_mask[place] = symmetry(mask, index)
                placed.append((ann, wide_mask))
        yield wide, placed

    return _derive(source, root, canvas)


def _derive(source: CocoSet, root: str | Path, scenes: Callable) -> CocoSet:
    """Write the set that ``scenes(image, [(annotation, mask)])`` makes of every image, replacing an older one."""
    root = Path(root)
    coco = load_coco(source.ann_file)
    images, annotations = [], []
    with atomic_directory(root, overwrite=True) as folder:
        (folder / "images").mkdir()
        for entry in coco.loadImgs(sorted(coco.imgs)):
            with Image.open(source.images / entry["file_name"]) as file:
                image = np.asarray(file)
            objects = [(ann, _mask(coco, ann)) for ann in coco.loadAnns(coco.getAnnIds(entry["id"]))]
            for scene, placed in scenes(image, objects):
                name = f"{len(images) + 1:06d}.png"
                Image.fromarray(np.ascontiguousarray(scene)).save(folder / "images" / name)
                height, width = scene.shape[:2]
                images.append({"id": len(images) + 1, "file_name": name, "width": width, "height": height})
                for ann, mask in placed:
                    if mask.any():
                        new = coco_annotation(mask, len(images), len(annotations) + 1, ann["category_id"])
                        annotations.append({**new, "iscrowd": ann.get("iscrowd", 0)})
        write_coco(folder / "annotations.json", images, annotations, coco.dataset["categories"])
    return CocoSet(root / "annotations.json", root / "images")


def _mask(coco: COCO, ann: dict) -> np.ndarray:
    """The mask (H, W) bool of an object; its box where the set has boxes only."""
    if ann.get("segmentation"):
        return coco.annToMask(ann) > 0
    entry = coco.imgs[ann["image_id"]]
    mask = np.zeros((entry["height"], entry["width"]), bool)
    x, y, width, height = (round(value) for value in ann["bbox"])
    mask[max(y, 0) : y + height, max(x, 0) : x + width] = True
    return mask
