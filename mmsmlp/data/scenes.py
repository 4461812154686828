"""Scenes made from the images of a test set: their flips and rotations, and wider scenes at the same pixel size.

Three kinds of sets, as mmdet, mmseg and mmpretrain read them: objects in COCO's format, label maps, and classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools.coco import COCO

from mmsmlp.data.coco import coco_annotation, load_coco, write_coco
from mmsmlp.files import atomic_directory

# A copy of an image within a scene: its top row, its left column and its `symmetry`.
Tile = tuple[int, int, int]
# Height and width of an image -> the scenes made of it, each a list of tiles.
Scenes = Callable[[int, int], list[list[Tile]]]


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


def mirrored_tiles(height: int, width: int, count: int) -> Iterator[Tile]:
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


def paste(array: np.ndarray, tiles: Iterable[Tile]) -> np.ndarray:
    """Copy an image or a label map to the places of a scene.

    Args:
        array (np.ndarray): (H, W, ...).
        tiles (Iterable[tuple[int, int, int]]): Top row, left column and symmetry of each copy.

    Returns:
        np.ndarray: (H', W', ...), as large as the copies reach; zero where there is none.
    """
    copies = [(top, left, symmetry(array, index)) for top, left, index in tiles]
    height = max(top + copy.shape[0] for top, _, copy in copies)
    width = max(left + copy.shape[1] for _, left, copy in copies)
    scene = np.zeros((height, width, *array.shape[2:]), array.dtype)
    for top, left, copy in copies:
        scene[top : top + copy.shape[0], left : left + copy.shape[1]] = copy
    return scene


@dataclass(frozen=True)
class CocoSet:
    """A data set in COCO's detection format: its annotation file and the folder of its images."""

    ann_file: Path
    images: Path

    def derive(self, root: str | Path, scenes: Scenes) -> CocoSet:
        """Write the set of the scenes of every image to ``root``, replacing an older one."""
        root = Path(root)
        coco = load_coco(self.ann_file)
        images, annotations = [], []
        with atomic_directory(root, overwrite=True) as folder:
            (folder / "images").mkdir()
            for entry in coco.loadImgs(sorted(coco.imgs)):
                image = _read(self.images / entry["file_name"])
                objects = [(ann, _mask(coco, ann)) for ann in coco.loadAnns(coco.getAnnIds(entry["id"]))]
                for tiles in scenes(*image.shape[:2]):
                    scene = paste(image, tiles)
                    name = f"{len(images) + 1:06d}.png"
                    _write(scene, folder / "images" / name)
                    height, width = scene.shape[:2]
                    images.append({"id": len(images) + 1, "file_name": name, "width": width, "height": height})
                    for tile in tiles:
                        for ann, mask in objects:
                            if mask.any():
                                placed = _place(mask, tile, height, width)
                                new = coco_annotation(placed, len(images), len(annotations) + 1, ann["category_id"])
                                annotations.append({**new, "iscrowd": ann.get("iscrowd", 0)})
            write_coco(folder / "annotations.json", images, annotations, coco.dataset["categories"])
        return CocoSet(root / "annotations.json", root / "images")


@dataclass(frozen=True)
class LabelMapSet:
    """Images with a label map each, as mmseg's data sets list them."""

    pairs: tuple[tuple[Path, Path], ...]

    def derive(self, root: str | Path, scenes: Scenes) -> LabelMapSet:
        """Write the set of the scenes of every image to ``root/images`` and ``root/labels``, replacing an older one."""
        root, names = Path(root), []
        with atomic_directory(root, overwrite=True) as folder:
            for kind in ("images", "labels"):
                (folder / kind).mkdir()
            for image, labels in ((_read(i), _read(m)) for i, m in self.pairs):
                for tiles in scenes(*image.shape[:2]):
                    names.append(f"{len(names) + 1:06d}.png")
                    _write(paste(image, tiles), folder / "images" / names[-1])
                    _write(paste(labels, tiles), folder / "labels" / names[-1])
        return LabelMapSet(tuple((root / "images" / name, root / "labels" / name) for name in names))


@dataclass(frozen=True)
class ClassSet:
    """Images with a class number each, as mmpretrain's data sets list them; ``middle`` pixels of them, if said."""

    samples: tuple[tuple[Path, int], ...]
    middle: tuple[int, int] | None = None

    def derive(self, root: str | Path, scenes: Scenes) -> ClassSet:
        """Write the set of the scenes of every image to ``root/images``, replacing an older one.

        ``root/labels.txt`` has the lines 'file name, blank, class number' of mmpretrain's ``CustomDataset``.
        """
        root, samples = Path(root), []
        with atomic_directory(root, overwrite=True) as folder:
            (folder / "images").mkdir()
            for path, label in self.samples:
                image = _middle(_read(path), self.middle)
                for tiles in scenes(*image.shape[:2]):
                    name = f"{len(samples) + 1:06d}.png"
                    _write(paste(image, tiles), folder / "images" / name)
                    samples.append((root / "images" / name, label))
            (folder / "labels.txt").write_text("".join(f"{path.name} {label}\n" for path, label in samples))
        return ClassSet(tuple(samples))


def write_symmetries(source, root: str | Path, count: int = 8):
    """Write a set with flips and rotations of every image and what belongs to it.

    Args:
        source (CocoSet | LabelMapSet | ClassSet): The set to read.
        root (str | Path): Folder to write to; replaced if it exists.
        count (int): How many of the 8 symmetries, the image itself first. Defaults to all.

    Returns:
        CocoSet | LabelMapSet | ClassSet: The set written.

    Raises:
        ValueError: If ``count`` is not 1 to 8.
    """
    if count not in range(1, 9):
        raise ValueError(f"symmetries must be 1 to 8, got {count!r}")
    return source.derive(root, lambda height, width: [[(0, 0, index)] for index in range(count)])


def write_extent(source, root: str | Path, count: int):
    """Write a set whose every image is ``count`` x ``count`` mirrored copies of the original.

    The pixels of an object stay as large as they were: the scene gets wider, not closer.

    Args:
        source (CocoSet | LabelMapSet | ClassSet): The set to read.
        root (str | Path): Folder to write to; replaced if it exists.
        count (int): Copies along each axis, at least 1.

    Returns:
        CocoSet | LabelMapSet | ClassSet: The set written.

    Raises:
        ValueError: If ``count`` is not a positive integer.
    """
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"extents must be positive integers, got {count!r}")
    return source.derive(root, lambda height, width: [list(mirrored_tiles(height, width, count))])


def _middle(image: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    """The middle (height, width) pixels of an image, or all of it where there are fewer."""
    if size is None:
        return image
    top, left = (max(extent - wanted, 0) // 2 for extent, wanted in zip(image.shape, size))
    return image[top : top + size[0], left : left + size[1]]


def _place(mask: np.ndarray, tile: Tile, height: int, width: int) -> np.ndarray:
    """The mask (height, width) of one copy of an object in a scene."""
    copy = paste(mask, [tile])
    return np.pad(copy, ((0, height - copy.shape[0]), (0, width - copy.shape[1])))


def _read(path: Path) -> np.ndarray:
    with Image.open(path) as file:
        return np.asarray(file)


def _write(array: np.ndarray, path: Path) -> None:
    Image.fromarray(np.ascontiguousarray(array)).save(path)


def _mask(coco: COCO, ann: dict) -> np.ndarray:
    """The mask (H, W) bool of an object; its box where the set has boxes only."""
    if ann.get("segmentation"):
        return coco.annToMask(ann) > 0
    entry = coco.imgs[ann["image_id"]]
    mask = np.zeros((entry["height"], entry["width"]), bool)
    x, y, width, height = (round(value) for value in ann["bbox"])
    mask[max(y, 0) : y + height, max(x, 0) : x + width] = True
    return mask
