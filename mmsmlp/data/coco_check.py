"""A user's own annotations in COCO's format: checked before a training meets them, and split in two."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mmengine.config import Config

from mmsmlp.data.coco import write_coco

try:
    from PIL import Image
except ModuleNotFoundError as error:
    remedy = "pip install -e '.[demo]' in its clone"
    raise ImportError(f"mmsmlp.data.coco_check needs Pillow ({error}): {remedy}") from error

_LISTS = ("images", "annotations", "categories")
_OUTSIDE = 1.0  # pixels that a box may stick out: tools round differently


@dataclass
class Report:
    """What a check found.

    Attributes:
        name (str): What was checked.
        counts (str): Images and objects of each class.
        problems (list[str]): A line for each kind of mistake: how often, what, the first place, the remedy.
    """

    name: str
    counts: str = ""
    problems: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.counts or 'not read'}", *(f"  {problem}" for problem in self.problems)]
        return "\n".join(lines)


def check_coco(ann_file: str | Path, photos: str | Path, classes: Sequence[str] | None = None) -> Report:
    """Look for what stops a training, or spoils it without a word.

    Args:
        ann_file (str | Path): The JSON.
        photos (str | Path): The folder that its file names are relative to.
        classes (Sequence[str], optional): A config's classes, to be compared with the categories.

    Returns:
        Report: Of what it holds, and of mistakes.
    """
    report = Report(str(ann_file))
    try:
        content = json.loads(Path(ann_file).read_text(encoding="utf-8"))
    except FileNotFoundError:
        report.problems.append("the file does not exist")
        return report
    except ValueError as error:
        report.problems.append(f"no JSON: {error}")
        return report
    missing = [key for key in _LISTS if not isinstance(content, dict) or not isinstance(content.get(key), list)]
    if missing:
        report.problems.append(f"not in COCO's format: no list {', '.join(missing)}")
        return report
    images, annotations, categories = (content[key] for key in _LISTS)
    names = {category.get("id"): category.get("name") for category in categories}
    per_class = Counter(names.get(a.get("category_id"), "of no category") for a in annotations)
    objects = ", ".join(f"{count} {name}" for name, count in per_class.most_common())
    report.counts = f"{len(images)} images, {len(annotations)} objects" + (f": {objects}" if objects else "")
    found = [*_ids(content), *_files(images, Path(photos)), *_objects(images, annotations, names)]
    first = dict(reversed(found))  # kind of mistake -> its first place
    for kind, count in Counter(kind for kind, _ in found).items():
        report.problems.append(f"{count} x {kind}; first: {first[kind]}")
    if classes is not None:
        report.problems += _classes(classes, list(names.values()))
    return report


def check_config(config: str | Path) -> list[Report]:
    """Check the data sets of a detector's config, and that its heads have as many classes.

    Args:
        config (str | Path): The config.

    Returns:
        list[Report]: One of each annotation file.

    Raises:
        FileNotFoundError: If the config does not exist.
        ValueError: If it has no data sets in COCO's format.
    """
    if not Path(config).is_file():
        raise FileNotFoundError(f"the config {config} does not exist")
    cfg = Config.fromfile(config)
    reports = {}
    for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
        dataset = (cfg.get(loader) or {}).get("dataset", {})
        while "dataset" in dataset:  # wrapped sets
            dataset = dataset.dataset
        if not str(dataset.get("ann_file", "")).endswith(".json"):
            continue
        root = Path(dataset.get("data_root") or "")
        classes = (dataset.get("metainfo") or {}).get("classes")
        photos = root / dataset.get("data_prefix", {}).get("img", "")
        report = check_coco(root / dataset.ann_file, photos, classes)
        if classes is not None:
            report.problems += _heads(cfg.model, len(classes))
        reports.setdefault(root / dataset.ann_file, report)
    if not reports:
        raise ValueError(f"{config} has no data set with an ann_file that ends on .json")
    return list(reports.values())


def split_coco(ann_file: str | Path, share: float, seed: int = 0) -> tuple[Path, Path]:
    """Split a set by its images into ``train.json`` and ``val.json``, beside it.

    Args:
        ann_file (str | Path): The JSON; it stays as it is.
        share (float): Of the images that go to val, above 0 and below 1; at least one goes to each.
        seed (int): Of the choice. Defaults to 0.

    Returns:
        tuple[Path, Path]: The two files.

    Raises:
        FileExistsError: If one of them exists.
        ValueError: If ``share`` is not between 0 and 1, or there are fewer than two images.
    """
    ann_file = Path(ann_file)
    if not 0 < share < 1:
        raise ValueError(f"the share of the val images must be above 0 and below 1, got {share}")
    content = json.loads(ann_file.read_text(encoding="utf-8"))
    ids = sorted(image["id"] for image in content["images"])
    if len(ids) < 2:
        raise ValueError(f"{ann_file} has {len(ids)} images: too few to be split")
    val = set(random.Random(seed).sample(ids, min(max(1, round(share * len(ids))), len(ids) - 1)))
    outs = ann_file.with_name("train.json"), ann_file.with_name("val.json")
    for out in outs:
        if out.exists():
            raise FileExistsError(f"{out} exists: move it away first")
    for out, chosen in zip(outs, (set(ids) - val, val)):
        images = [image for image in content["images"] if image["id"] in chosen]
        annotations = [a for a in content["annotations"] if a["image_id"] in chosen]
        write_coco(out, images, annotations, content["categories"], content.get("info"), content.get("licenses"))
    return outs


def _ids(content: dict) -> Iterator[tuple[str, str]]:
    for key in _LISTS:
        for number, count in Counter(str(entry.get("id")) for entry in content[key]).items():
            if count > 1 or number == "None":
                yield f"an id in {key} that is missing or used twice", number
    if any(str(annotation.get("id")) == "0" for annotation in content["annotations"]):
        yield "annotation id 0, which COCO's evaluation takes for no match: count from 1", "0"


def _files(images: list[dict], photos: Path) -> Iterator[tuple[str, str]]:
    for image in images:
        path = photos / str(image.get("file_name"))
        try:
            with Image.open(path) as file:
                size, turned = file.size, file.getexif().get(0x0112, 1) > 4
        except FileNotFoundError:
            yield f"no such photograph in {photos}", str(image.get("file_name"))
            continue
        except OSError:
            yield "a photograph that cannot be read", str(path)
            continue
        given = (image.get("width"), image.get("height"))
        # The toolboxes turn a photograph as its EXIF entry says.
        if given != (size[::-1] if turned else size):
            yield "width and height are not the photograph's", f"{path.name} is {size}, the file says {given}"


def _objects(images: list[dict], annotations: list[dict], names: dict) -> Iterator[tuple[str, str]]:
    sizes = {image.get("id"): (image.get("width"), image.get("height")) for image in images}
    for annotation in annotations:
        place = f"annotation {annotation.get('id')}"
        if annotation.get("category_id") not in names:
            yield (
                f"a category_id that is none of {sorted(map(str, names))}",
                f"{place} has {annotation.get('category_id')}",
            )
        for key in ("area", "iscrowd"):
            if key not in annotation:
                yield f"no {key}, which COCO's evaluation needs", place
        if not annotation.get("segmentation"):
            yield "no segmentation: a Mask R-CNN needs one (a Faster R-CNN does not)", place
        if annotation.get("image_id") not in sizes:
            yield "an image_id of no image", f"{place} has {annotation.get('image_id')}"
            continue
        yield from _box(annotation.get("bbox"), sizes[annotation["image_id"]], place)


def _box(box: object, size: tuple, place: str) -> Iterator[tuple[str, str]]:
    """A box is [x, y, width, height] in pixels."""
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(value, (int, float)) for value in box):
        yield "a bbox that is not [x, y, width, height]", f"{place} has {box}"
        return
    x, y, width, height = box
    if width <= 0 or height <= 0:
        yield "an empty bbox", f"{place} has {box}"
    elif all(isinstance(side, int) for side in size):
        outside = max(-x, -y, x + width - size[0], y + height - size[1])
        if outside > _OUTSIDE:
            corners = x < width <= size[0] + _OUTSIDE and y < height <= size[1] + _OUTSIDE
            hint = ", perhaps [x1, y1, x2, y2] in the place of [x, y, width, height]" if corners else ""
            yield "a bbox outside of its image", f"{place} has {box} in {size[0]} x {size[1]} pixels{hint}"


def _classes(classes: Sequence[str], names: list[str]) -> Iterator[str]:
    for name in classes:
        if name not in names:
            yield f"the config's class {name!r} is no category of the file: {sorted(map(str, names))}"
    for name in names:
        if name not in classes:
            yield f"the category {name!r} is not among the config's classes: its objects are ignored"


def _heads(model: dict, count: int, path: str = "model") -> Iterator[str]:
    for key, value in model.items():
        if key == "num_classes" and value != count:
            yield f"{path}.num_classes is {value}, but the config names {count} classes"
        elif isinstance(value, dict) and key != "rpn_head":  # which tells objects from background
            yield from _heads(value, count, f"{path}.{key}")
