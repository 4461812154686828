"""COCO annotations: what pycocotools and mmdet read back is what was written; AP beyond 100 detections."""

import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

from mmsmlp.data.coco import average_precision, coco_annotation, write_coco


def _disc() -> np.ndarray:
    y, x = np.mgrid[:20, :30]
    return (y - 9) ** 2 + (x - 12) ** 2 < 36


def _shapes() -> dict[str, np.ndarray]:
    pixel, ring, pieces, full = np.zeros((20, 30), bool), _disc(), np.zeros((20, 30), bool), np.ones((20, 30), bool)
    pixel[19, 29] = True
    ring[8:11, 11:14] = False
    pieces[0, 0] = pieces[1, 1] = pieces[10:12, 20:] = True
    return {"disc": _disc(), "one pixel": pixel, "ring": ring, "pieces": pieces, "full": full}


IMAGE = {"id": 7, "file_name": "a.png", "width": 30, "height": 20}
COIN = {"id": 1, "name": "coin"}
SHAPES = pytest.mark.parametrize("mask", _shapes().values(), ids=_shapes().keys())


@SHAPES
def test_pycocotools_decodes_the_same_mask(mask, tmp_path):
    coco = COCO(write_coco(tmp_path / "a.json", [IMAGE], [coco_annotation(mask, 7, 1, 1)], [COIN]))
    np.testing.assert_array_equal(coco.annToMask(coco.anns[1]).astype(bool), mask)


@SHAPES
def test_box_and_area_are_those_of_pycocotools(mask):
    annotation = coco_annotation(mask, 7, 1, 1)
    assert annotation["bbox"] == mask_utils.toBbox(annotation["segmentation"]).tolist()
    assert annotation["area"] == mask_utils.area(annotation["segmentation"])


def test_box_encloses_the_mask_tightly():
    mask = np.zeros((20, 30), bool)
    mask[3:8, 10:12] = True
    assert coco_annotation(mask, 7, 1, 1)["bbox"] == [10, 3, 2, 5]


def test_annotation_survives_json():
    annotation = coco_annotation(_disc(), 7, 5, 1)
    assert json.loads(json.dumps(annotation)) == annotation
    assert (annotation["id"], annotation["image_id"], annotation["category_id"], annotation["iscrowd"]) == (5, 7, 1, 0)


def test_memory_layout_does_not_matter():
    mask = _disc()
    assert coco_annotation(np.asfortranarray(mask), 7, 1, 1) == coco_annotation(mask, 7, 1, 1)
    assert coco_annotation(mask[:, ::-1][:, ::-1], 7, 1, 1) == coco_annotation(mask, 7, 1, 1)


@pytest.mark.parametrize(
    ("mask", "annotation_id", "message"),
    [
        (np.zeros((4, 4), bool), 3, "annotation 3 is empty"),
        (np.ones((1, 4, 4), bool), 1, r"shape \(1, 4, 4\)"),
        (np.ones((4, 4), np.uint8), 1, "dtype uint8"),
        (np.ones((4, 4), bool), 0, "1 or more, got 0"),
    ],
    ids=["empty", "3-D", "not bool", "id 0"],
)
def test_bad_masks_and_ids_are_refused(mask, annotation_id, message):
    with pytest.raises(ValueError, match=message):
        coco_annotation(mask, 7, annotation_id, 1)


@pytest.mark.parametrize(
    ("images", "ids", "categories", "message"),
    [
        ([IMAGE, IMAGE], [1], [COIN], r"image ids must be unique, got \[7, 7\]"),
        ([IMAGE], [1, 1], [COIN], r"annotation ids must be unique, got \[1, 1\]"),
        ([IMAGE], [1], [COIN, COIN], r"category ids must be unique, got \[1, 1\]"),
        ([], [1], [COIN], r"names image 7, known are \[\]"),
        ([IMAGE], [1], [], r"names category 1, known are \[\]"),
    ],
)
def test_inconsistent_files_are_refused(images, ids, categories, message, tmp_path):
    annotations = [coco_annotation(_disc(), 7, index, 1) for index in ids]
    with pytest.raises(ValueError, match=message):
        write_coco(tmp_path / "a.json", images, annotations, categories)
    assert not list(tmp_path.iterdir())


def test_equal_content_gives_equal_bytes(tmp_path):
    first, second = (
        write_coco(tmp_path / name, [IMAGE], [coco_annotation(_disc(), 7, 1, 1)], [COIN], info={"version": "1"})
        for name in ("a.json", "b.json")
    )
    assert first.read_bytes() == second.read_bytes()


def test_info_is_written(tmp_path):
    path = write_coco(tmp_path / "a.json", [IMAGE], [], [COIN], info={"description": "a test"})
    assert COCO(path).dataset["info"] == {"description": "a test"}


@pytest.fixture
def many_objects(tmp_path) -> COCO:
    """An image with 150 objects of 4 x 4 pixels."""
    annotations = []
    for index in range(150):
        mask = np.zeros((60, 90), bool)
        mask[index // 15 * 6 : index // 15 * 6 + 4, index % 15 * 6 : index % 15 * 6 + 4] = True
        annotations.append(coco_annotation(mask, 1, index + 1, 1))
    image = {"id": 1, "file_name": "1.png", "width": 90, "height": 60}
    return COCO(str(write_coco(tmp_path / "set.json", [image], annotations, [{"id": 1, "name": "thing"}])))


def predictions(coco: COCO, path: Path, count: int) -> Path:
    """Perfect predictions of the first ``count`` objects."""
    anns = [coco.anns[i] for i in sorted(coco.anns)[:count]]
    keys = ("image_id", "category_id", "bbox", "segmentation")
    path.write_text(json.dumps([{**{k: ann[k] for k in keys}, "score": 0.9} for ann in anns]))
    return path


@pytest.mark.parametrize("metric", ["bbox", "segm"])
def test_all_of_150_objects_found_is_an_ap_of_1(many_objects, tmp_path, metric):
    results = predictions(many_objects, tmp_path / "all.json", 150)
    assert average_precision(many_objects, results, metric, 150) == (1.0, 1.0)


def test_the_detection_limit_counts(many_objects, tmp_path):
    results = predictions(many_objects, tmp_path / "all.json", 150)
    ap = average_precision(many_objects, results, "bbox", 75)[0]
    assert ap == pytest.approx(0.5, abs=0.01)


def test_no_prediction_is_an_ap_of_0(many_objects, tmp_path):
    results = predictions(many_objects, tmp_path / "none.json", 0)
    assert average_precision(many_objects, results, "bbox", 100) == (0.0, 0.0)


def test_classes_without_objects_do_not_count(many_objects, tmp_path):
    many_objects.dataset["categories"].append({"id": 2, "name": "absent"})
    many_objects.createIndex()
    results = predictions(many_objects, tmp_path / "all.json", 150)
    assert average_precision(many_objects, results, "bbox", 150)[0] == 1.0


def test_a_set_without_objects_is_named(tmp_path):
    image = {"id": 1, "file_name": "1.png", "width": 9, "height": 6}
    empty = COCO(str(write_coco(tmp_path / "set.json", [image], [], [{"id": 1, "name": "thing"}])))
    with pytest.raises(ValueError, match="holds no objects"):
        average_precision(empty, tmp_path / "none.json", "bbox", 100)
