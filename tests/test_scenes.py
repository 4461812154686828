"""Scenes made from test sets: symmetries and mirrored canvases, images and what belongs to them alike."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from mmsmlp.data.coco import coco_annotation, write_coco
from mmsmlp.data.scenes import ClassSet, CocoSet, LabelMapSet, mirrored_tiles, symmetry, write_extent, write_symmetries

HEIGHT, WIDTH = 7, 11


@pytest.fixture
def source(tmp_path) -> CocoSet:
    """Two images (7, 11, 3) with two objects each, that have the image's own pixels above 128 in red."""
    generator = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    images, annotations = [], []
    for image_id in (1, 2):
        pixels = generator.integers(0, 128, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        for index, place in enumerate((np.s_[1:3, 0:4], np.s_[4:7, 6:8])):
            mask = np.zeros((HEIGHT, WIDTH), bool)
            mask[place] = True
            pixels[mask, 0] = 200 + index
            annotations.append(coco_annotation(mask, image_id, len(annotations) + 1, index + 1))
        Image.fromarray(pixels).save(tmp_path / "images" / f"{image_id}.png")
        images.append({"id": image_id, "file_name": f"{image_id}.png", "width": WIDTH, "height": HEIGHT})
    categories = [{"id": 1, "name": "wide"}, {"id": 2, "name": "tall"}]
    return CocoSet(write_coco(tmp_path / "set.json", images, annotations, categories), tmp_path / "images")


def assert_masks_mark_their_pixels(scenes: CocoSet) -> None:
    """Every object covers exactly pixels of its category's red value, all objects together all of them."""
    coco = COCO(str(scenes.ann_file))
    for entry in coco.loadImgs(coco.getImgIds()):
        red = np.asarray(Image.open(scenes.images / entry["file_name"]))[:, :, 0]
        covered = np.zeros(red.shape, int)
        for ann in coco.loadAnns(coco.getAnnIds(entry["id"])):
            mask = coco.annToMask(ann) > 0
            assert set(red[mask]) == {199 + ann["category_id"]}
            assert ann["area"] == mask.sum()
            covered += mask
        assert np.array_equal(covered, red >= 200)


def test_the_eight_symmetries_are_all_different():
    array = np.arange(6).reshape(2, 3)
    assert len({(symmetry(array, i).shape, symmetry(array, i).tobytes()) for i in range(8)}) == 8


def test_symmetries_keep_colour_channels_together():
    image = np.random.default_rng(0).integers(0, 255, (2, 3, 3))
    for i in range(8):
        pixels = symmetry(image, i).reshape(-1, 3)
        assert sorted(map(tuple, pixels)) == sorted(map(tuple, image.reshape(-1, 3)))


@pytest.mark.parametrize("index", [-1, 8, 1.5])
def test_a_bad_symmetry_is_named(index):
    with pytest.raises(ValueError, match=f"symmetries 0 to 7, got {index}"):
        symmetry(np.zeros((2, 3)), index)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_mirrored_tiles_continue_each_other(count):
    image = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH))
    canvas = np.zeros((HEIGHT * count, WIDTH * count), int)
    for top, left, index in mirrored_tiles(HEIGHT, WIDTH, count):
        canvas[top : top + HEIGHT, left : left + WIDTH] = symmetry(image, index)
    wanted = np.pad(image, ((0, HEIGHT * (count - 1)), (0, WIDTH * (count - 1))), mode="symmetric")
    assert np.array_equal(canvas, wanted)


@pytest.mark.parametrize("count", [1, 8])
def test_written_symmetries_carry_their_objects_along(source, tmp_path, count):
    scenes = write_symmetries(source, tmp_path / "views", count)
    content = json.loads(scenes.ann_file.read_text())
    assert (len(content["images"]), len(content["annotations"])) == (2 * count, 4 * count)
    assert_masks_mark_their_pixels(scenes)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_written_extent_carries_its_objects_along(source, tmp_path, count):
    scenes = write_extent(source, tmp_path / "canvas", count)
    content = json.loads(scenes.ann_file.read_text())
    assert {(e["height"], e["width"]) for e in content["images"]} == {(HEIGHT * count, WIDTH * count)}
    assert len(content["annotations"]) == 4 * count**2
    assert_masks_mark_their_pixels(scenes)


def test_an_extent_of_one_is_the_image_itself(source, tmp_path):
    scenes = write_extent(source, tmp_path / "canvas", 1)
    for new, old in (("000001.png", "1.png"), ("000002.png", "2.png")):
        a, b = (np.asarray(Image.open(f)) for f in (scenes.images / new, source.images / old))
        assert np.array_equal(a, b)


def test_objects_without_masks_are_carried_along_by_their_boxes(source, tmp_path):
    content = json.loads(source.ann_file.read_text())
    for ann in content["annotations"]:
        del ann["segmentation"]
    source.ann_file.write_text(json.dumps(content))
    assert_masks_mark_their_pixels(write_extent(source, tmp_path / "canvas", 2))  # the objects are rectangles


def test_writing_again_replaces_the_older_scenes(source, tmp_path):
    write_symmetries(source, tmp_path / "views", 8)
    scenes = write_symmetries(source, tmp_path / "views", 1)
    assert len(list(scenes.images.iterdir())) == 2


def images_of(source: CocoSet) -> list:
    return sorted(source.images.iterdir())


@pytest.mark.parametrize(("write", "count", "scenes_per_image"), [(write_symmetries, 8, 8), (write_extent, 3, 1)])
def test_label_maps_follow_their_images(source, tmp_path, write, count, scenes_per_image):
    """The label map says where red is above 128, before and after."""
    pairs = []
    for path in images_of(source):
        labels = tmp_path / f"{path.stem}_labels.png"
        Image.fromarray((np.asarray(Image.open(path))[:, :, 0] > 128).astype(np.uint8)).save(labels)
        pairs.append((path, labels))
    scenes = write(LabelMapSet(tuple(pairs)), tmp_path / "scenes", count)
    assert len(scenes.pairs) == 2 * scenes_per_image
    for image, labels in scenes.pairs:
        assert np.array_equal(np.asarray(Image.open(labels)), np.asarray(Image.open(image))[:, :, 0] > 128)


@pytest.mark.parametrize(("write", "count", "scenes_per_image"), [(write_symmetries, 8, 8), (write_extent, 3, 1)])
def test_classes_follow_their_images(source, tmp_path, write, count, scenes_per_image):
    samples = tuple((path, index) for index, path in enumerate(images_of(source)))
    scenes = write(ClassSet(samples), tmp_path / "scenes", count)
    assert [label for _, label in scenes.samples] == [0] * scenes_per_image + [1] * scenes_per_image
    for path, label in scenes.samples:
        with Image.open(path) as scene, Image.open(samples[label][0]) as original:
            size = {s % o for s, o in zip(sorted(scene.size), sorted(original.size))}
            assert size == {0}
            assert set(scene.getdata()) == set(original.getdata())
    lines = (tmp_path / "scenes" / "labels.txt").read_text().splitlines()
    assert lines == [f"{path.name} {label}" for path, label in scenes.samples]
