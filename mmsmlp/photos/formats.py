"""Small sets of real photographs in the directory and annotation formats of COCO, ADE20K, Cityscapes and ImageNet.

They let the real data set classes, pipelines and metrics of mmdet, mmseg and mmpretrain run where the real sets are
not at hand. The images are windows of scikit-image's photographs. The labels are algorithmic: regions of
Felzenszwalb's segmentation, given classes by counting through them, so they say nothing about what is shown, and
accuracies on these sets mean nothing. Only the ImageNet-format classes are what the photographs show.

Sources of the formats: https://cocodataset.org/#format-data; the ADE20K benchmark's archive
(https://groups.csail.mit.edu/vision/datasets/ADE20K/); cityscapesScripts (``helpers/labels.py``) and mmseg's
``docs/en/user_guides/2_dataset_prepare.md``; mmpretrain's ``ImageNet`` class.
"""

import functools
import io
from pathlib import Path

import numpy as np

from mmsmlp.data.coco import coco_annotation, mask_utils
from mmsmlp.data.filesets import Content, write_set
from mmsmlp.photos.photographs import photograph, window

try:
    from PIL import Image
    from scipy import ndimage
    from skimage import measure, segmentation
except ModuleNotFoundError as error:
    raise ImportError(
        f"mmsmlp.photos needs scikit-image, SciPy and Pillow ({error}): pip install -e '.[demo]' in its clone"
    ) from error

_TOOL = "make_photos.py"
_MIN_SIDE = 64  # pixels; smaller windows may show a single region

# COCO's supercategories with their categories, in the order of the 80 categories' ids.
_COCO_CATEGORIES = {
    "person": "person",
    "vehicle": "bicycle, car, motorcycle, airplane, bus, train, truck, boat",
    "outdoor": "traffic light, fire hydrant, stop sign, parking meter, bench",
    "animal": "bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe",
    "accessory": "backpack, umbrella, handbag, tie, suitcase",
    "sports": "frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, "
    "tennis racket",
    "kitchen": "bottle, wine glass, cup, fork, knife, spoon, bowl",
    "food": "banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake",
    "furniture": "chair, couch, potted plant, bed, dining table, toilet",
    "electronic": "tv, laptop, mouse, remote, keyboard, cell phone",
    "appliance": "microwave, oven, toaster, sink, refrigerator",
    "indoor": "book, clock, vase, scissors, teddy bear, hair drier, toothbrush",
}
_COCO_UNUSED_IDS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)  # of 1 to 90
_COCO_OBJECTS = 6  # of an image, at most
_COCO_MIN_AREA = 100  # pixels
_COCO_INFO = {
    "description": "Photographs of scikit-image in COCO's format. The labels are algorithmic and arbitrary.",
    "url": "https://scikit-image.org",
    "version": "1.0",
    "year": 2026,
    "contributor": "mmsmlp.photos",
    "date_created": "2026/01/01",
}
_COCO_LICENSE = {"id": 1, "name": "No known copyright restrictions", "url": "https://flickr.com/commons/usage/"}

# Cityscapes: id -> trainId of the classes that are evaluated; every other id is 255, ignored.
_CITYSCAPES_EVALUATED = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
_CITYSCAPES_IDS = 34  # 0 unlabeled to 33 bicycle

# ImageNet classes that photographs show: WordNet id and label, the place among the 1000 sorted WordNet ids.
_IMAGENET_CLASSES = {
    "chelsea": ("n02123045", 281),  # tabby
    "rocket": ("n03773504", 657),  # missile
    "brick": ("n04326547", 825),  # stone wall
    "camera": ("n04485082", 872),  # tripod
    "coffee": ("n07920052", 967),  # espresso
}

_TRAIN = ("chelsea", "coffee", "astronaut", "coins", "grass")
_VAL = ("camera", "rocket", "immunohistochemistry")


def coco_categories() -> list[dict]:
    """Returns the 80 categories of COCO 2017 as its annotation files list them: supercategory, id and name."""
    ids = (number for number in range(1, 91) if number not in _COCO_UNUSED_IDS)
    return [
        {"supercategory": group, "id": next(ids), "name": name}
        for group, names in _COCO_CATEGORIES.items()
        for name in names.split(", ")
    ]


def write_coco_format(root: str | Path, size: tuple[int, int] = (480, 640), overwrite: bool = False) -> Path:
    """Writes a set in COCO 2017's format: 5 images in ``train2017``, 3 in ``val2017``.

    Objects are polygons. In each part the first image also has a crowd (run lengths) and the last has no objects.

    Args:
        root: the set's folder, mmdet's ``data_root``; missing parent folders are made.
        size: height and width of an image; every second one stands upright.
        overwrite: rebuild an existing set, complete or damaged.

    Returns:
        ``root``.

    Raises:
        ValueError: an image would have less than 64 pixels along an axis.
        FileExistsError: as in :func:`mmsmlp.data.filesets.write_set`.
        OSError: ``root`` cannot be written.
    """
    contents: dict[str, Content] = {}
    for part, names in (("train2017", _TRAIN), ("val2017", _VAL)):
        images, annotations = [], []
        for number, (name, (height, width)) in enumerate(zip(names, _sizes(size, len(names)))):
            image_id = number + 1 if part == "train2017" else 1001 + number
            file_name = f"{image_id:012d}.jpg"
            contents[f"{part}/{file_name}"] = _jpeg(window(photograph(name), height, width, number))
            images.append({"license": 1, "file_name": file_name, "height": height, "width": width, "id": image_id})
            if number < len(names) - 1:
                objects = _objects(window(_regions(name), height, width, number), with_crowd=number == 0)
                for mask, crowd in objects:
                    annotations.append(_coco_object(mask, crowd, image_id, len(annotations) + 1))
        contents[f"annotations/instances_{part}.json"] = {
            "info": _COCO_INFO,
            "licenses": [_COCO_LICENSE],
            "images": images,
            "annotations": annotations,
            "categories": coco_categories(),
        }
    return write_set(root, contents, "COCO-format set", _TOOL, overwrite)


def write_ade20k_format(root: str | Path, size: tuple[int, int] = (512, 683), overwrite: bool = False) -> Path:
    """Writes a set in the format of ADE20K's benchmark: 5 images in ``training``, 3 in ``validation``.

    Label 0 is 'other', 1 to 150 are the classes, as mmseg's ``reduce_zero_label=True`` expects.

    Args:
        root: the set's folder, mmseg's ``data_root``, usually called ``ADEChallengeData2016``.
        size: height and width of an image; every second one stands upright.
        overwrite: rebuild an existing set, complete or damaged.

    Returns:
        ``root``.

    Raises:
        ValueError: an image would have less than 64 pixels along an axis.
        FileExistsError: as in :func:`mmsmlp.data.filesets.write_set`.
        OSError: ``root`` cannot be written.
    """
    contents: dict[str, Content] = {}
    for part, short, names in (("training", "train", _TRAIN), ("validation", "val", _VAL)):
        for number, (name, (height, width)) in enumerate(zip(names, _sizes(size, len(names)))):
            stem = f"ADE_{short}_{number + 1:08d}"
            contents[f"images/{part}/{stem}.jpg"] = _jpeg(window(photograph(name), height, width, number))
            labels = 7 * window(_regions(name), height, width, number) % 151  # 7: neighbours get distant classes
            contents[f"annotations/{part}/{stem}.png"] = labels.astype(np.uint8)
    return write_set(root, contents, "ADE20K-format set", _TOOL, overwrite)


def write_cityscapes_format(root: str | Path, size: tuple[int, int] = (1024, 2048), overwrite: bool = False) -> Path:
    """Writes a set in Cityscapes' format: 2 images of ``train/aachen``, 2 of ``val/frankfurt``.

    Beside ``_gtFine_labelIds.png`` stand the ``_gtFine_labelTrainIds.png`` that mmseg's converter makes of Cityscapes.

    Args:
        root: the set's folder, mmseg's ``data_root``; missing parent folders are made.
        size: height and width of an image; Cityscapes' own by default.
        overwrite: rebuild an existing set, complete or damaged.

    Returns:
        ``root``.

    Raises:
        ValueError: an image would have less than 64 pixels along an axis.
        FileExistsError: as in :func:`mmsmlp.data.filesets.write_set`.
        OSError: ``root`` cannot be written.
    """
    height, width = _sizes(size, 1)[0]
    train_ids = np.full(256, 255, np.uint8)
    train_ids[list(_CITYSCAPES_EVALUATED)] = np.arange(len(_CITYSCAPES_EVALUATED))
    contents: dict[str, Content] = {}
    for part, city, names in (("train", "aachen", _TRAIN[:2]), ("val", "frankfurt", _VAL[:2])):
        for number, name in enumerate(names):
            stem = f"{part}/{city}/{city}_{number:06d}_000019"
            contents[f"leftImg8bit/{stem}_leftImg8bit.png"] = window(photograph(name), height, width, number)
            labels = (window(_regions(name), height, width, number) % _CITYSCAPES_IDS).astype(np.uint8)
            contents[f"gtFine/{stem}_gtFine_labelIds.png"] = labels
            contents[f"gtFine/{stem}_gtFine_labelTrainIds.png"] = train_ids[labels]
    return write_set(root, contents, "Cityscapes-format set", _TOOL, overwrite)


def write_imagenet_format(
    root: str | Path, size: tuple[int, int] = (375, 500), train: int = 4, val: int = 2, overwrite: bool = False
) -> Path:
    """Writes a set in ImageNet-1k's format, with images of five of the 1000 classes.

    Training images stand in folders named after WordNet ids, validation images in one folder; ``meta/train.txt`` and
    ``meta/val.txt`` give each image's label, 0 to 999. As in ImageNet a few images are grey.

    Args:
        root: the set's folder, mmpretrain's ``data_root``; missing parent folders are made.
        size: height and width of an image; every second one stands upright.
        train: training images of each class.
        val: validation images of each class.
        overwrite: rebuild an existing set, complete or damaged.

    Returns:
        ``root``.

    Raises:
        ValueError: an image would have less than 64 pixels along an axis.
        FileExistsError: as in :func:`mmsmlp.data.filesets.write_set`.
        OSError: ``root`` cannot be written.
    """
    contents: dict[str, Content] = {}
    lines: dict[str, list[str]] = {"train": [], "val": []}
    for name, (wnid, label) in _IMAGENET_CLASSES.items():
        for number, (height, width) in enumerate(_sizes(size, train + val)):
            if number < train:
                part, file_name = "train", f"{wnid}/{wnid}_{number + 1}.JPEG"
            else:
                part, file_name = "val", f"ILSVRC2012_val_{len(lines['val']) + 1:08d}.JPEG"
            image = window(photograph(name), height, width, number)
            contents[f"{part}/{file_name}"] = _jpeg(image, grey=name == "camera")
            lines[part].append(f"{file_name} {label}\n")
    for part, content in lines.items():
        contents[f"meta/{part}.txt"] = "".join(content).encode()
    return write_set(root, contents, "ImageNet-format set", _TOOL, overwrite)


def _sizes(size: tuple[int, int], count: int) -> list[tuple[int, int]]:
    """Heights and widths of ``count`` images, lying and upright by turns."""
    if min(size) < _MIN_SIDE:
        raise ValueError(f"images must be at least {_MIN_SIDE} pixels high and wide, got {size[0]} x {size[1]}")
    return [size if number % 2 == 0 else size[::-1] for number in range(count)]


@functools.cache
def _regions(name: str) -> np.ndarray:
    """Segments a photograph: (H, W) int, numbered from 0 on."""
    return segmentation.felzenszwalb(photograph(name), scale=300, sigma=0.8, min_size=300)


def _objects(regions: np.ndarray, with_crowd: bool) -> list[tuple[np.ndarray, bool]]:
    """The largest pieces of regions but the background, without holes: (mask (H, W) bool, whether it is a crowd)."""
    pieces = measure.label(regions, background=-1, connectivity=1)
    sizes = np.bincount(pieces.ravel())
    largest = np.argsort(-sizes, kind="stable")[1 : _COCO_OBJECTS + 1]
    masks = [ndimage.binary_fill_holes(pieces == piece) for piece in largest if sizes[piece] >= _COCO_MIN_AREA]
    return [(mask, with_crowd and index == 0) for index, mask in enumerate(masks)]


def _coco_object(mask: np.ndarray, crowd: bool, image_id: int, annotation_id: int) -> dict:
    """An annotation as COCO has it: polygons, or for a crowd uncompressed run lengths."""
    categories = coco_categories()
    category = categories[7 * annotation_id % len(categories)]["id"]
    if crowd:
        annotation = coco_annotation(mask, image_id, annotation_id, category)
        return {**annotation, "iscrowd": 1, "segmentation": {"size": list(mask.shape), "counts": _run_lengths(mask)}}
    # Contours of the padded mask, half a pixel further out and back: pixel edges in COCO's coordinates.
    contours = measure.find_contours(np.pad(mask, 1).astype(float), 0.5)
    outline = measure.approximate_polygon(max(contours, key=len), tolerance=1)
    polygon = np.clip(outline[:-1, ::-1] - 0.5, 0, mask.shape[::-1])
    segmentation = [[float(value) for value in polygon.ravel()]]
    drawn = mask_utils.decode(mask_utils.merge(mask_utils.frPyObjects(segmentation, *mask.shape))).astype(bool)
    return {**coco_annotation(drawn, image_id, annotation_id, category), "segmentation": segmentation}


def _run_lengths(mask: np.ndarray) -> list[int]:
    """Lengths of the runs of 0, 1, 0, ... down the columns, the first possibly 0."""
    pixels = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(pixels)) + 1
    lengths = np.diff(np.concatenate([[0], edges, [pixels.size]])).tolist()
    return [0, *lengths] if pixels[0] else lengths


def _jpeg(image: np.ndarray, grey: bool = False) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).convert("L" if grey else "RGB").save(buffer, format="JPEG", quality=95)
    return buffer.getvalue()
