"""Sets in the formats of COCO, ADE20K, Cityscapes and ImageNet, as the toolboxes' own configs, classes and metrics."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image
from pycocotools import mask as mask_utils

from mmsmlp.data.coco import load_coco
from mmsmlp.photos import (
    write_ade20k_format,
    write_cityscapes_format,
    write_coco_format,
    write_imagenet_format,
)
from mmsmlp.photos.formats import coco_categories
from mmsmlp.photos.photographs import photograph, window

SMALL = (128, 192)
WRITERS = {
    "coco": write_coco_format,
    "ade20k": write_ade20k_format,
    "cityscapes": write_cityscapes_format,
    "imagenet": write_imagenet_format,
}
# The toolbox and its own data set config.
STOCK = {
    "coco": ("mmdet", "coco_instance.py"),
    "ade20k": ("mmseg", "ade20k.py"),
    "cityscapes": ("mmseg", "cityscapes.py"),
    "imagenet": ("mmpretrain", "imagenet_bs64_swin_224.py"),
}
EACH = pytest.mark.parametrize("name", WRITERS)
PARTS = pytest.mark.parametrize("part", ["train", "val"])


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Small sets that tests only read: name -> folder."""
    root = tmp_path_factory.mktemp("data")
    return {name: write(root / name, SMALL) for name, write in WRITERS.items()}


def stock_config(name: str) -> Config:
    """The toolbox's own config of the data set, its registry made the default."""
    toolbox, file = STOCK[name]
    importlib.import_module(f"{toolbox}.utils").register_all_modules(init_default_scope=False)
    init_default_scope(toolbox)
    folder = Path(importlib.import_module(toolbox).__file__).parent
    return Config.fromfile(folder / ".mim/configs/_base_/datasets" / file)


def stock_dataset(name: str, part: str, root: Path):
    cfg = stock_config(name)[f"{part}_dataloader"].dataset
    cfg.data_root = str(root)
    return DATASETS.build(cfg)


def _files(root) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in Path(root).rglob("*") if path.is_file()}


# Every format.

COUNTS = {
    ("coco", "train"): 4,  # the fifth has no objects and is filtered out
    ("coco", "val"): 3,
    ("ade20k", "train"): 5,
    ("ade20k", "val"): 3,
    ("cityscapes", "train"): 2,
    ("cityscapes", "val"): 2,
    ("imagenet", "train"): 20,
    ("imagenet", "val"): 10,
}


@EACH
@PARTS
def test_the_stock_class_and_pipeline_read_every_image(built, name, part):
    dataset = stock_dataset(name, part, built[name])
    samples = [dataset[index] for index in range(len(dataset))]
    assert len(samples) == COUNTS[name, part]
    assert all(sample["inputs"].shape[0] == 3 for sample in samples)


def perfect(name: str, sample: dict) -> dict:
    """The data sample that a model would give which knows the labels."""
    sample = sample["data_samples"]
    if name == "coco":
        gt = sample.gt_instances
        rles = [mask_utils.encode(np.asfortranarray(mask)) for mask in gt.masks.to_ndarray().astype(np.uint8)]
        prediction = {"bboxes": gt.bboxes.tensor, "scores": torch.ones(len(rles)), "labels": gt.labels, "masks": rles}
        return {**sample.metainfo, "pred_instances": prediction}
    if name == "imagenet":
        return {"gt_label": sample.gt_label, "pred_score": torch.eye(1000)[sample.gt_label.item()]}
    labels = sample.gt_sem_seg.data
    return {"gt_sem_seg": {"data": labels}, "pred_sem_seg": {"data": labels * (labels != 255)}}


SCORES = {
    "coco": {"coco/bbox_mAP": 1, "coco/segm_mAP": 1},
    "ade20k": {"mIoU": 100, "aAcc": 100},
    "cityscapes": {"mIoU": 100, "aAcc": 100},
    "imagenet": {"accuracy/top1": 100, "accuracy/top5": 100},
}


def evaluate(name: str, root: Path, predict) -> dict[str, float]:
    """The stock evaluator's scores of ``predict(sample)`` on the val part."""
    dataset = stock_dataset(name, "val", root)
    cfg = stock_config(name).val_evaluator
    if "ann_file" in cfg:
        cfg.ann_file = str(root / "annotations/instances_val2017.json")
    evaluator = Evaluator(cfg)
    evaluator.dataset_meta = dataset.metainfo
    for index in range(len(dataset)):
        evaluator.process([predict(name, dataset[index])])
    return evaluator.evaluate(len(dataset))


@EACH
def test_the_labels_themselves_get_the_best_score(built, name):
    scores = evaluate(name, built[name], perfect)
    assert {key: scores[key] for key in SCORES[name]} == pytest.approx(SCORES[name])


def test_wrong_labels_get_a_lower_score(built):
    def shifted(name, sample):
        found = perfect(name, sample)
        found["pred_sem_seg"]["data"] = found["pred_sem_seg"]["data"].roll(16, dims=-1)
        return found

    assert evaluate("ade20k", built["ade20k"], shifted)["mIoU"] < 90


@EACH
def test_two_builds_are_equal_byte_for_byte(built, tmp_path, name):
    assert _files(WRITERS[name](tmp_path / "again", SMALL)) == _files(built[name])


@EACH
def test_a_complete_set_is_left_untouched(built, name):
    before = {path: path.stat().st_mtime_ns for path in built[name].rglob("*")}
    WRITERS[name](built[name], SMALL)
    assert {path: path.stat().st_mtime_ns for path in built[name].rglob("*")} == before


@EACH
def test_a_set_of_another_size_is_refused_and_replaced_on_demand(built, tmp_path, name):
    root = WRITERS[name](tmp_path / "set", (64, 80))
    before = _files(root)
    with pytest.raises(FileExistsError, match=r"an older .*-format set: .*make_photos\.py --overwrite"):
        WRITERS[name](root, SMALL)
    assert _files(root) == before
    WRITERS[name](root, SMALL, overwrite=True)
    assert _files(root) == _files(built[name])


@EACH
def test_too_small_images_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="at least 64 pixels high and wide, got 63 x 100"):
        WRITERS[name](tmp_path / "set", (63, 100))


# COCO.


def _instances(built, part: str) -> dict:
    return json.loads((built["coco"] / f"annotations/instances_{part}2017.json").read_text())


def test_coco_has_the_80_categories_of_mmdet_with_the_right_ids():
    from mmdet.datasets import CocoDataset

    categories = coco_categories()
    assert tuple(category["name"] for category in categories) == CocoDataset.METAINFO["classes"]
    known = {1: "person", 13: "stop sign", 17: "cat", 44: "bottle", 62: "chair", 72: "tv", 90: "toothbrush"}
    ids = {category["id"]: category["name"] for category in categories}
    assert {key: ids[key] for key in known} == known
    assert len(ids) == 80


@PARTS
def test_coco_files_have_cocos_sections_and_names(built, part):
    content = _instances(built, part)
    assert content.keys() == {"info", "licenses", "images", "annotations", "categories"}
    for image in content["images"]:
        assert image["file_name"] == f"{image['id']:012d}.jpg"
        with Image.open(built["coco"] / f"{part}2017" / image["file_name"]) as file:
            assert (file.format, file.size) == ("JPEG", (image["width"], image["height"]))


@PARTS
def test_coco_objects_are_polygons_and_crowds_uncompressed_run_lengths(built, part):
    annotations = _instances(built, part)["annotations"]
    for annotation in annotations:
        if annotation["iscrowd"]:
            assert annotation["segmentation"].keys() == {"size", "counts"}
            assert all(isinstance(count, int) for count in annotation["segmentation"]["counts"])
        else:
            assert all(len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in annotation["segmentation"])
    assert sum(annotation["iscrowd"] for annotation in annotations) == 1


@PARTS
def test_coco_boxes_and_areas_are_those_of_the_masks(built, part):
    coco = load_coco(built["coco"] / f"annotations/instances_{part}2017.json")
    for annotation in coco.dataset["annotations"]:
        mask = coco.annToMask(annotation)
        assert annotation["area"] == mask.sum()
        assert annotation["bbox"] == mask_utils.toBbox(mask_utils.encode(np.asfortranarray(mask))).tolist()


def test_coco_has_one_image_without_objects_in_each_part(built):
    for part in ("train", "val"):
        content = _instances(built, part)
        empty = {image["id"] for image in content["images"]} - {a["image_id"] for a in content["annotations"]}
        assert len(empty) == 1


def test_coco_crowds_are_ignored_by_mmdet(built):
    dataset = stock_dataset("coco", "train", built["coco"])
    sample = dataset[0]["data_samples"]
    assert len(sample.ignored_instances) == 1
    assert len(sample.gt_instances) >= 1


def test_coco_polygons_follow_the_regions(tmp_path):
    """At full size each polygon covers nearly the pixels of one region of the segmentation."""
    from mmsmlp.photos.formats import _regions

    coco = load_coco(write_coco_format(tmp_path / "coco") / "annotations/instances_train2017.json")
    regions = window(_regions("astronaut"), 480, 640, 2)
    for annotation in coco.loadAnns(coco.getAnnIds(3)):
        mask = coco.annToMask(annotation) > 0
        assert np.bincount(regions[mask]).max() > 0.8 * mask.sum()


# ADE20K.


def test_ade20k_labels_are_0_to_150_and_0_is_other(built):
    """Stored 0 becomes 255, ignored, and 1 to 150 become 0 to 149."""
    stored, read = [], []
    for part, folder in (("train", "training"), ("val", "validation")):
        for sample in stock_dataset("ade20k", part, built["ade20k"]):
            read.append(np.unique(sample["data_samples"].gt_sem_seg.data))
        for path in (built["ade20k"] / "annotations" / folder).iterdir():
            stored.append(np.unique(np.array(Image.open(path))))
    stored, read = np.unique(np.concatenate(stored)), np.unique(np.concatenate(read))
    assert stored[0] == 0
    assert stored[-1] <= 150
    assert len(stored) > 50
    assert set(read) <= {*(stored[1:] - 1), 255}


@pytest.mark.parametrize(("part", "short"), [("training", "train"), ("validation", "val")])
def test_ade20k_images_and_annotations_have_the_benchmarks_names(built, part, short):
    images = sorted(path.name for path in (built["ade20k"] / "images" / part).iterdir())
    assert images == [f"ADE_{short}_{number + 1:08d}.jpg" for number in range(len(images))]
    annotations = sorted(path.name for path in (built["ade20k"] / "annotations" / part).iterdir())
    assert annotations == [name.replace(".jpg", ".png") for name in images]


# Cityscapes.

# id -> trainId, from cityscapesScripts' labels.py.
TRAIN_IDS = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13}
TRAIN_IDS |= {27: 14, 28: 15, 31: 16, 32: 17, 33: 18}


def test_cityscapes_train_ids_are_the_official_ones(built):
    for path in built["cityscapes"].rglob("*_labelIds.png"):
        ids = np.array(Image.open(path))
        train_ids = np.array(Image.open(str(path).replace("labelIds", "labelTrainIds")))
        np.testing.assert_array_equal(train_ids, np.vectorize(lambda label: TRAIN_IDS.get(label, 255))(ids))


def test_cityscapes_has_ignored_and_evaluated_pixels(built):
    labels = np.concatenate([np.array(Image.open(p)) for p in built["cityscapes"].rglob("*_labelTrainIds.png")])
    assert 255 in labels
    assert len(np.unique(labels)) > 10


def test_cityscapes_files_have_the_official_names(built):
    assert sorted(_files(built["cityscapes"]))[-1] == (
        "leftImg8bit/val/frankfurt/frankfurt_000001_000019_leftImg8bit.png"
    )
    images = {p.name.removesuffix("_leftImg8bit.png") for p in built["cityscapes"].glob("leftImg8bit/*/*/*")}
    for kind in ("labelIds", "labelTrainIds"):
        suffix = f"_gtFine_{kind}.png"
        found = {p.name.removesuffix(suffix) for p in built["cityscapes"].glob(f"gtFine/*/*/*{suffix}")}
        assert found == images


def test_cityscapes_images_are_1024_x_2048_by_default(tmp_path):
    root = write_cityscapes_format(tmp_path / "cityscapes")
    assert {Image.open(path).size for path in root.rglob("*.png")} == {(2048, 1024)}


# ImageNet.


def test_imagenet_labels_name_what_the_photographs_show(built):
    dataset = stock_dataset("imagenet", "train", built["imagenet"])
    assert len(dataset.CLASSES) == 1000
    names = {}
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        names[Path(info["img_path"]).parent.name] = dataset.CLASSES[info["gt_label"]].split(",")[0]
    assert names == {
        "n02123045": "tabby",
        "n03773504": "missile",
        "n04326547": "stone wall",
        "n04485082": "tripod",
        "n07920052": "espresso",
    }


def test_imagenet_labels_follow_the_order_of_the_wordnet_ids(built):
    """A label is the place of its class among the 1000 sorted WordNet ids."""
    lines = (built["imagenet"] / "meta/train.txt").read_text().splitlines()
    wnids = [line.split("/")[0] for line in lines]
    labels = [int(line.split()[1]) for line in lines]
    assert wnids == sorted(wnids)
    assert labels == sorted(labels)


def test_imagenet_counts_are_arguments(tmp_path):
    root = write_imagenet_format(tmp_path / "imagenet", (64, 64), train=1, val=3)
    assert len(list(root.glob("train/*/*.JPEG"))) == 5
    assert len(list(root.glob("val/ILSVRC2012_val_*.JPEG"))) == 15


def test_imagenet_has_grey_files_too(built):
    modes = {Image.open(path).mode for path in built["imagenet"].rglob("*.JPEG")}
    assert modes == {"RGB", "L"}


def test_images_are_the_photographs(built):
    """Up to what JPEG loses."""
    image = np.array(Image.open(built["coco"] / "train2017/000000000001.jpg")).astype(int)
    assert np.abs(image - window(photograph("chelsea"), *SMALL)).mean() < 2
