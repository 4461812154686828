"""The patch set: disjoint parts, balanced classes, read as is by mmpretrain, and a task of the right difficulty."""

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmsmlp.photos.patches import (
    COUNTS,
    MIDDLE,
    PATCH,
    cells,
    draw_patches,
    middle,
    patches,
    places,
    write_patches,
)
from mmsmlp.photos.photographs import NAMES, grey_photograph, photograph, window

TOOL = Path(__file__).parents[1] / "tools" / "make_photos.py"
EACH = pytest.mark.parametrize("name", NAMES)
PARTS = pytest.mark.parametrize("part", COUNTS)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A set that tests only read."""
    return write_patches(tmp_path_factory.mktemp("data") / "photos")


def _files(root) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in Path(root).rglob("*") if path.is_file()}


# The photographs.


@EACH
def test_a_photograph_is_rgb_and_large_enough_to_be_cut(name):
    image = photograph(name)
    assert (image.dtype, image.shape[2]) == (np.uint8, 3)
    assert 300 <= image.shape[0] <= 872
    assert 384 <= image.shape[1] <= 1000


def test_nothing_is_downloaded(tmp_path):
    """A real interpreter without scikit-image's downloader and without its cache."""
    code = (
        "import sys, json; sys.modules['pooch'] = None\n"
        "from mmsmlp.photos.photographs import NAMES, photograph\n"
        "print(json.dumps([photograph(name).shape for name in NAMES]))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], env={"HOME": str(tmp_path)}, capture_output=True, text=True, check=True
    )
    assert [tuple(shape) for shape in json.loads(result.stdout)] == [photograph(name).shape for name in NAMES]


def test_an_unknown_photograph_is_named():
    with pytest.raises(ValueError, match=r"unknown photograph 'lena': choose from astronaut, .*rocket"):
        photograph("lena")


@pytest.mark.parametrize("name", ["brick", "camera", "coins", "grass", "gravel"])
def test_a_grey_photograph_keeps_its_greys(name):
    np.testing.assert_array_equal(photograph(name), np.repeat(grey_photograph(name)[..., None], 3, axis=-1))


# Windows of any size.

RAMP = np.arange(12).reshape(3, 4)


def test_a_window_of_the_photographs_size_is_the_photograph():
    np.testing.assert_array_equal(window(RAMP, 3, 4), RAMP)


def test_a_larger_window_continues_as_a_mirror_image():
    np.testing.assert_array_equal(window(RAMP, 7, 9), np.pad(RAMP, ((0, 4), (0, 5)), mode="symmetric"))


def test_windows_differ_and_odd_ones_are_mirrored():
    image = grey_photograph("coins")
    first, second, third = (window(image, 100, 120, number) for number in range(3))
    np.testing.assert_array_equal(first, image[:100, :120])
    np.testing.assert_array_equal(second, image[97:197, 61:181][:, ::-1])
    np.testing.assert_array_equal(third, image[194:294, 122:242])


# The parts.


def _covered(name: str, part: str) -> np.ndarray:
    """(H, W) bool: the pixels in any patch of the part."""
    covered = np.zeros(grey_photograph(name).shape, bool)
    for top, left in places(name, part):
        covered[top : top + PATCH, left : left + PATCH] = True
    return covered


@EACH
def test_no_pixel_is_in_both_parts(name):
    assert not (_covered(name, "train") & _covered(name, "val")).any()


@EACH
def test_there_is_a_gap_of_8_pixels_between_the_parts(name):
    train, val = _covered(name, "train"), _covered(name, "val")
    for shift in range(9):
        assert not (train[shift:] & val[: len(val) - shift]).any()
        assert not (val[shift:] & train[: len(val) - shift]).any()
        assert not (train[:, shift:] & val[:, : val.shape[1] - shift]).any()
        assert not (val[:, shift:] & train[:, : val.shape[1] - shift]).any()


@EACH
def test_about_a_third_of_a_photograph_is_val_and_lies_all_over_it(name):
    height, width = grey_photograph(name).shape
    val = np.zeros((height, width), bool)
    for part, rows, columns in cells(height, width):
        val[rows, columns] |= part == "val"
    assert 0.25 < val.mean() < 0.4
    assert all(half.any() for half in (*np.array_split(val, 2), *np.array_split(val, 2, axis=1)))


@EACH
@PARTS
def test_each_patch_lies_inside_one_cell_of_its_part(name, part):
    own = [(rows, columns) for cell, rows, columns in cells(*grey_photograph(name).shape) if cell == part]
    for top, left in places(name, part):
        assert any(
            rows.start <= top <= rows.stop - PATCH and columns.start <= left <= columns.stop - PATCH
            for rows, columns in own
        )


# The patches.


@EACH
@PARTS
def test_a_part_has_as_many_different_patches_as_it_should(name, part):
    assert len({tuple(place) for place in places(name, part)}) == COUNTS[part]


@EACH
@PARTS
def test_patches_are_the_photographs_greys(name, part):
    grey, (top, left) = grey_photograph(name), places(name, part)[7]
    np.testing.assert_array_equal(patches(name, part)[7], grey[top : top + PATCH, left : left + PATCH])


@EACH
@PARTS
def test_no_patch_is_without_contrast(name, part):
    assert min(middle(patch).std() for patch in patches(name, part)) >= 8


def test_the_middle_is_in_the_middle():
    view = middle(np.arange(PATCH * PATCH).reshape(PATCH, PATCH))
    assert view.shape == (MIDDLE, MIDDLE)
    assert view[0, 0] + view[-1, -1] == PATCH * PATCH - 1


def test_places_are_the_same_on_every_machine():
    """Known values: another version of NumPy or scikit-image must not make another set."""
    assert places("brick", "val")[:4].tolist() == [[385, 345], [174, 24], [20, 210], [218, 40]]
    assert places("retina", "val")[:4].tolist() == [[455, 149], [576, 443], [177, 12], [32, 568]]


def test_an_unknown_part_is_named():
    with pytest.raises(ValueError, match="unknown part 'test': choose from train, val"):
        places("coins", "test")


def test_the_task_is_neither_trivial_nor_impossible():
    """The nearest neighbour by greys alone finds some photographs, not all: chance is 8 %, docs/data.md says 71 %."""
    features, labels = {}, {}
    for part in COUNTS:
        views = np.array([middle(patch).ravel() for name in NAMES for patch in patches(name, part)])
        features[part] = np.quantile(views, np.linspace(0, 1, 33), axis=1).T
        labels[part] = np.repeat(np.arange(len(NAMES)), COUNTS[part])
    distances = ((features["val"][:, None] - features["train"]) ** 2).sum(axis=-1)
    found = labels["train"][distances.argmin(axis=1)]
    assert 0.6 < (found == labels["val"]).mean() < 0.8


# The files.


def test_the_folders_are_balanced(built):
    assert sorted(path.name for path in built.iterdir()) == sorted(COUNTS)
    for part, count in COUNTS.items():
        assert {path.name: len(list(path.iterdir())) for path in (built / part).iterdir()} == dict.fromkeys(
            NAMES, count
        )


def test_two_builds_are_equal_byte_for_byte(built, tmp_path):
    assert _files(write_patches(tmp_path / "again")) == _files(built)


@PARTS
def test_mmpretrain_reads_the_set_as_is(built, part):
    from mmpretrain.datasets import CustomDataset

    pipeline = [{"type": "LoadImageFromFile"}, {"type": "CenterCrop", "crop_size": MIDDLE}]
    dataset = CustomDataset(data_root=str(built), data_prefix=part, pipeline=pipeline)
    assert dataset.CLASSES == NAMES
    assert np.bincount(dataset.get_gt_labels()).tolist() == [COUNTS[part]] * len(NAMES)
    sample = dataset[COUNTS[part]]  # the first of the second class
    wanted = middle(patches(NAMES[1], part)[0])
    np.testing.assert_array_equal(sample["img"], np.repeat(wanted[..., None], 3, axis=-1))


def test_a_complete_set_is_left_untouched(built):
    before = {path: path.stat().st_mtime_ns for path in built.rglob("*")}
    assert write_patches(built) == built
    assert {path: path.stat().st_mtime_ns for path in built.rglob("*")} == before


def test_a_damaged_set_is_refused_and_replaced_on_demand(built, tmp_path):
    root = write_patches(tmp_path / "photos")
    (root / "val/coins/007.png").write_bytes(b"")
    with pytest.raises(FileExistsError, match=r"damaged or an older patch set: .*make_photos\.py --overwrite"):
        write_patches(root)
    write_patches(root, overwrite=True)
    assert _files(root) == _files(built)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_other_files_is_refused(tmp_path, overwrite):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"holds files other than the patch set's \(thesis\.tex\)"):
        write_patches(tmp_path, overwrite)
    assert _files(tmp_path) == {"thesis.tex": b"years of work"}


# The drawing and the tool.


def test_the_drawing_shows_patches_of_the_files(built, tmp_path):
    with Image.open(draw_patches(built, tmp_path / "new" / "sheet.png")) as image:
        picture = np.array(image)
    patch = np.array(Image.open(built / "train" / NAMES[0] / "000.png"))
    inner = slice(2, PATCH - 2)  # without its frame
    views = np.lib.stride_tricks.sliding_window_view(picture[: 2 * PATCH, : 5 * PATCH, 0], (PATCH, PATCH))
    assert (views[:, :, inner, inner] == patch[inner, inner]).all(axis=(2, 3)).any()


def test_drawing_needs_a_set(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{re.escape(str(tmp_path))} holds no patch set"):
        draw_patches(tmp_path, tmp_path / "a.png")


def test_drawing_writes_png_only(built, tmp_path):
    with pytest.raises(ValueError, match=r"\.png file, got .*a\.jpg"):
        draw_patches(built, tmp_path / "a.jpg")


def _run_tool(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["make_photos.py", *map(str, arguments)])
    runpy.run_path(str(TOOL), run_name="__main__")


def test_the_tool_builds_and_draws(built, tmp_path, monkeypatch, capsys):
    _run_tool(monkeypatch, tmp_path / "photos", "--draw", tmp_path / "photos.png")
    assert _files(tmp_path / "photos") == _files(built)
    assert (tmp_path / "photos.png").is_file()
    assert f"drew {tmp_path / 'photos.png'}" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["coco", "ade20k", "cityscapes", "imagenet"])
def test_the_tool_writes_each_format(tmp_path, monkeypatch, name):
    _run_tool(monkeypatch, tmp_path / "set", "--format", name)
    folder = {"coco": "train2017", "ade20k": "images", "cityscapes": "gtFine", "imagenet": "meta"}[name]
    assert (tmp_path / "set" / folder).is_dir()


def test_the_tool_draws_no_format(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        _run_tool(monkeypatch, tmp_path / "set", "--format", "coco", "--draw", tmp_path / "a.png")
    assert "--draw draws the patches, not the coco format" in capsys.readouterr().err


def test_the_tool_ends_with_one_line_on_an_error(tmp_path, monkeypatch):
    (tmp_path / "photos").write_text("a file")
    with pytest.raises(SystemExit, match=r"^make_photos: .*photos is a file[^\n]*$"):
        _run_tool(monkeypatch, tmp_path / "photos")
