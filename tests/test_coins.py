"""The coins set: whole coins, disjoint parts, read exactly by the stock toolboxes, written completely or not at all."""

import importlib
import json
import os
import re
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from mmsmlp import coins, files
from mmsmlp.data import filesets

TOOL = Path(__file__).parents[1] / "tools" / "make_coins.py"
NAMES = ("train", "val")


@pytest.fixture(scope="module")
def parts():
    return coins.split()


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A set that tests only read."""
    return coins.write_coins(tmp_path_factory.mktemp("data") / "coins")


def _files(root) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in Path(root).rglob("*") if path.is_file()}


# The labels.


def test_photograph_is_the_grey_one():
    assert (coins.photograph().shape, coins.photograph().dtype) == ((303, 384), np.uint8)


def test_there_are_24_coins_of_plausible_size():
    masks = coins.instance_masks()
    assert (masks.shape, masks.dtype) == ((24, 303, 384), np.bool_)
    areas = masks.sum(axis=(1, 2))
    assert areas.min() > 1000
    assert areas.max() < 3500


def test_coins_do_not_overlap():
    assert coins.instance_masks().sum(axis=0).max() == 1


@pytest.mark.parametrize("index", range(24))
def test_each_coin_is_one_piece_without_holes(index):
    mask = coins.instance_masks()[index]
    assert ndimage.label(mask)[1] == 1
    np.testing.assert_array_equal(ndimage.binary_fill_holes(mask), mask)


# The split.


def test_parts_are_the_whole_photograph_once(parts):
    np.testing.assert_array_equal(np.concatenate([parts[name].image for name in NAMES]), coins.photograph())


@pytest.mark.parametrize("index", range(24))
def test_each_coin_lies_in_exactly_one_part(index):
    mask = coins.instance_masks()[index]
    assert [bool(mask[rows].any()) for rows in coins.PARTS.values()].count(True) == 1


@pytest.mark.parametrize("name", NAMES)
def test_each_part_has_12_whole_coins(parts, name):
    masks = parts[name].masks
    assert masks.shape == (12, *parts[name].image.shape)
    border = np.ones(masks.shape[1:], bool)
    border[1:-1, 1:-1] = False
    assert not (masks & border).any()


def test_no_vertical_cut_would_do():
    """The reason for cutting between rows of coins: near the middle every column cut goes through a coin."""
    spans = [np.flatnonzero(mask.any(axis=0))[[0, -1]] for mask in coins.instance_masks()]
    clean = [cut for cut in range(1, 384) if not any(first < cut <= last for first, last in spans)]
    assert not [cut for cut in clean if 80 < cut < 382]


# What stock mmdet and mmseg read.


@pytest.fixture(scope="module")
def detection(built):
    """The samples of mmdet's CocoDataset for each part, through the stock loading transforms."""
    datasets = importlib.import_module("mmdet.datasets")
    from mmcv.transforms import LoadImageFromFile
    from mmdet.datasets.transforms import LoadAnnotations

    def samples(name):
        dataset = datasets.CocoDataset(
            data_root=str(built),
            ann_file=f"annotations/instances_{name}.json",
            data_prefix={"img": f"images/{name}/"},
            metainfo={"classes": ("coin",)},
            filter_cfg={"filter_empty_gt": True, "min_size": 32},
            pipeline=[LoadImageFromFile(), LoadAnnotations(with_bbox=True, with_mask=True, poly2mask=True)],
        )
        return [dataset[index] for index in range(len(dataset))]

    return {name: samples(name) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_mmdet_reads_one_three_channel_image(detection, parts, name):
    (sample,) = detection[name]
    np.testing.assert_array_equal(sample["img"], np.repeat(parts[name].image[..., None], 3, axis=-1))


@pytest.mark.parametrize("name", NAMES)
def test_mmdet_reads_exactly_the_masks(detection, parts, name):
    (sample,) = detection[name]
    np.testing.assert_array_equal(sample["gt_masks"].to_ndarray().astype(bool), parts[name].masks)
    assert not sample["gt_ignore_flags"].any()


@pytest.mark.parametrize("name", NAMES)
def test_mmdet_reads_exactly_the_boxes(detection, parts, name):
    (sample,) = detection[name]
    boxes = [[box[1].start, box[0].start, box[1].stop, box[0].stop] for box in map(_extent, parts[name].masks)]
    np.testing.assert_array_equal(sample["gt_bboxes"].tensor.numpy(), boxes)
    assert sample["gt_bboxes_labels"].tolist() == [0] * 12


def _extent(mask):
    return ndimage.find_objects(mask.astype(int))[0]


def test_the_labels_themselves_score_1_in_mmdet(built, parts):
    """COCO evaluation reads the written annotations too, through pycocotools."""
    metrics = importlib.import_module("mmdet.evaluation")
    import torch
    from pycocotools import mask as mask_utils

    masks = parts["val"].masks
    rles = [mask_utils.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]
    boxes = torch.tensor(mask_utils.toBbox(rles), dtype=torch.float32)
    boxes[:, 2:] += boxes[:, :2]
    prediction = {
        "bboxes": boxes,
        "scores": torch.ones(12),
        "labels": torch.zeros(12, dtype=torch.int64),
        "masks": rles,
    }
    metric = metrics.CocoMetric(str(built / "annotations/instances_val.json"), metric=["bbox", "segm"])
    metric.dataset_meta = {"classes": ("coin",)}
    metric.process({}, [{"img_id": 1, "ori_shape": masks.shape[1:], "pred_instances": prediction}])
    scores = metric.evaluate(size=1)
    assert (scores["coco/bbox_mAP"], scores["coco/segm_mAP"]) == (1.0, 1.0)


@pytest.mark.parametrize("name", NAMES)
def test_mmseg_reads_exactly_the_label_map(built, parts, name):
    datasets = importlib.import_module("mmseg.datasets")
    from mmcv.transforms import LoadImageFromFile
    from mmseg.datasets.transforms import LoadAnnotations

    dataset = datasets.BaseSegDataset(
        data_root=str(built),
        data_prefix={"img_path": f"images/{name}", "seg_map_path": f"labels/{name}"},
        img_suffix=".png",
        seg_map_suffix=".png",
        metainfo={"classes": ("background", "coin"), "palette": [[0, 0, 0], [255, 255, 255]]},
        reduce_zero_label=False,
        pipeline=[LoadImageFromFile(), LoadAnnotations()],
    )
    (sample,) = [dataset[index] for index in range(len(dataset))]
    np.testing.assert_array_equal(sample["gt_seg_map"], parts[name].masks.any(axis=0))
    assert sample["img"].shape == (*parts[name].image.shape, 3)


@pytest.mark.parametrize("name", NAMES)
def test_the_file_says_that_the_labels_are_algorithmic(built, name):
    content = json.loads((built / f"annotations/instances_{name}.json").read_text())
    assert "labels are algorithmic" in content["info"]["description"]
    assert content["categories"] == [{"id": 1, "name": "coin"}]


# Writing: complete or not at all.


def test_two_builds_are_equal_byte_for_byte(built, tmp_path):
    assert _files(coins.write_coins(tmp_path / "again")) == _files(built)


def test_nothing_but_the_set_is_written(tmp_path):
    root = coins.write_coins(tmp_path / "new" / "coins")
    assert [path.name for path in tmp_path.rglob("*") if path.parent in (tmp_path, tmp_path / "new")] == [
        "new",
        "coins",
    ]
    assert sorted(_files(root)) == [
        *(f"annotations/instances_{name}.json" for name in NAMES),
        *(f"{kind}/{name}/coins.png" for kind in ("images", "labels") for name in NAMES),
    ]


def test_the_set_is_as_readable_as_the_umask_says(tmp_path):
    old = os.umask(0o022)
    try:
        assert coins.write_coins(tmp_path / "coins").stat().st_mode & 0o777 == 0o755
    finally:
        os.umask(old)


def test_a_complete_set_is_left_untouched(tmp_path):
    root = coins.write_coins(tmp_path / "coins")
    before = {path: path.stat().st_mtime_ns for path in [root, *root.rglob("*")]}
    assert coins.write_coins(root) == root
    assert {path: path.stat().st_mtime_ns for path in [root, *root.rglob("*")]} == before


def test_an_empty_folder_is_filled(built, tmp_path):
    (tmp_path / "coins").mkdir()
    assert _files(coins.write_coins(tmp_path / "coins")) == _files(built)


def test_a_link_to_a_folder_stays_a_link(built, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "coins").symlink_to(tmp_path / "disk")
    coins.write_coins(tmp_path / "coins")
    assert (tmp_path / "coins").is_symlink()
    assert _files(tmp_path / "disk") == _files(built)


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


DAMAGES = {
    "missing": ("labels/val/coins.png", Path.unlink),
    "truncated image": ("images/train/coins.png", _truncate),
    "truncated json": ("annotations/instances_val.json", _truncate),
    "other labels": ("labels/train/coins.png", lambda path: Image.new("L", (384, 150)).save(path)),
}
DAMAGED = pytest.mark.parametrize(("name", "damage"), DAMAGES.values(), ids=DAMAGES.keys())


@DAMAGED
def test_a_damaged_set_is_refused(tmp_path, name, damage):
    root = coins.write_coins(tmp_path / "coins")
    damage(root / name)
    before = _files(root)
    with pytest.raises(FileExistsError, match=f"{re.escape(str(root))} holds a damaged .*--overwrite"):
        coins.write_coins(root)
    assert _files(root) == before


@DAMAGED
def test_overwrite_replaces_a_damaged_set(built, tmp_path, name, damage):
    root = coins.write_coins(tmp_path / "coins")
    damage(root / name)
    coins.write_coins(root, overwrite=True)
    assert _files(root) == _files(built)
    assert [path.name for path in tmp_path.iterdir()] == ["coins"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_other_files_is_refused(tmp_path, overwrite):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match=rf"{re.escape(str(tmp_path))} holds files .*thesis\.tex.*another folder"):
        coins.write_coins(tmp_path, overwrite)
    assert _files(tmp_path) == {"thesis.tex": b"years of work"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_in_the_place_is_refused(tmp_path, overwrite):
    path = tmp_path / "coins"
    path.write_text("a file")
    with pytest.raises(FileExistsError, match=f"{re.escape(str(path))} is a file.*another path"):
        coins.write_coins(path, overwrite)
    assert path.read_text() == "a file"


def test_a_parent_which_is_a_file_is_named(tmp_path):
    (tmp_path / "data").write_text("a file")
    with pytest.raises(
        NotADirectoryError, match=f"cannot write the coins set to {re.escape(str(tmp_path / 'data/coins'))}"
    ):
        coins.write_coins(tmp_path / "data" / "coins")


@pytest.fixture
def unwritable():
    """A folder that can be read and not written. Root may write everywhere, so it becomes nobody for a while."""
    root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o555)
        if root:
            os.seteuid(65534)
        yield folder
        if root:
            os.seteuid(0)
        folder.chmod(0o755)


def test_an_unwritable_parent_is_named(unwritable):
    with pytest.raises(PermissionError, match="cannot write the coins set to .*writable folder"):
        coins.write_coins(unwritable / "coins")


@pytest.mark.parametrize("failing", ["write_coco", "png"])
@pytest.mark.parametrize(
    "error", [KeyboardInterrupt, OSError(28, "No space left on device")], ids=["ctrl-c", "disk full"]
)
def test_an_interrupted_first_build_leaves_nothing(tmp_path, monkeypatch, failing, error):
    monkeypatch.setattr(filesets, failing, _fail_on_call(getattr(filesets, failing), error))
    with pytest.raises(error if isinstance(error, type) else OSError):
        coins.write_coins(tmp_path / "new" / "coins")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("call", [1, 2, 3], ids=["while writing", "old set aside", "new set in"])
def test_an_interrupted_overwrite_keeps_the_old_set(built, tmp_path, monkeypatch, call):
    root = coins.write_coins(tmp_path / "coins")
    if call == 1:
        monkeypatch.setattr(filesets, "png", _fail_on_call(filesets.png, KeyboardInterrupt))
    else:
        monkeypatch.setattr(files.os, "replace", _fail_on_call(os.replace, KeyboardInterrupt, call - 1))
    with pytest.raises(KeyboardInterrupt):
        coins.write_coins(root, overwrite=True)
    assert _files(root) == _files(built)
    assert [path.name for path in tmp_path.iterdir()] == ["coins"]


def _fail_on_call(function, error, call=2):
    calls = []

    def failing(*args, **kwargs):
        calls.append(args)
        if len(calls) == call:
            raise error
        return function(*args, **kwargs)

    return failing


def test_two_builders_at_once_agree(built, tmp_path, monkeypatch):
    """The slower one finds the set in place and keeps it."""
    root = tmp_path / "coins"
    replace = os.replace

    def overtaken(source, target):
        monkeypatch.setattr(files.os, "replace", replace)
        coins.write_coins(root)
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", overtaken)
    assert coins.write_coins(root) == root
    assert _files(root) == _files(built)
    assert [path.name for path in tmp_path.iterdir()] == ["coins"]


def test_a_real_failed_write_leaves_nothing(tmp_path):
    """The kernel refuses files above 8 KB, as a full disk would, in a process of its own."""
    import resource

    result = subprocess.run(
        [sys.executable, "-B", TOOL, tmp_path / "new" / "coins"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192)),
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TOOL.parents[1]), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert f"cannot write the coins set to {tmp_path / 'new/coins'}: File too large" in result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


# The drawing and the tool.


@pytest.fixture(scope="module")
def drawing(built, tmp_path_factory):
    path = coins.draw_annotations(built, tmp_path_factory.mktemp("drawing") / "new" / "coins.png")
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.array(image)


def test_the_drawing_is_the_photograph_three_times_enlarged(drawing):
    assert drawing.shape == (909, 1152, 3)


@pytest.mark.parametrize("index", range(24))
def test_the_drawing_marks_each_outline_and_not_each_inside(drawing, index):
    mask = coins.instance_masks()[index]
    grey = np.repeat(coins.photograph()[..., None], 3, axis=-1)
    corners = drawing[1::3, 1::3]  # the middle of each enlarged pixel
    edge = mask & ~ndimage.binary_erosion(mask)
    changed = (drawing.reshape(303, 3, 384, 3, 3) != grey[:, None, :, None]).any(axis=(1, 3, 4))
    assert changed[edge].all()
    # Inside there is at most the id, in the corner of the box.
    middle = ndimage.binary_erosion(mask, iterations=10)
    np.testing.assert_array_equal(corners[middle], grey[middle])


def test_the_drawing_shows_what_the_files_say(built, tmp_path):
    """Not what the module would compute anew: a wrong annotation has to be seen."""
    root = coins.write_coins(tmp_path / "coins")
    path = root / "annotations/instances_val.json"
    content = json.loads(path.read_text())
    content["annotations"] = content["annotations"][1:]
    path.write_text(json.dumps(content))
    whole, fewer = (coins.draw_annotations(source, tmp_path / "a.png").read_bytes() for source in (built, root))
    assert whole != fewer


def test_drawing_needs_a_set(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{re.escape(str(tmp_path))} holds no coins set"):
        coins.draw_annotations(tmp_path, tmp_path / "a.png")


def test_drawing_writes_png_only(built, tmp_path):
    with pytest.raises(ValueError, match=r"\.png file, got .*a\.jpg"):
        coins.draw_annotations(built, tmp_path / "a.jpg")


def _run_tool(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["make_coins.py", *map(str, arguments)])
    runpy.run_path(str(TOOL), run_name="__main__")


def test_the_tool_builds_and_draws(built, tmp_path, monkeypatch, capsys):
    _run_tool(monkeypatch, tmp_path / "coins", "--draw", tmp_path / "coins.png")
    assert _files(tmp_path / "coins") == _files(built)
    assert (tmp_path / "coins.png").is_file()
    assert f"drew {tmp_path / 'coins.png'}" in capsys.readouterr().out


def test_the_tool_says_that_a_set_was_there(built, monkeypatch):
    messages = []
    monkeypatch.setattr(filesets, "print_log", lambda message, logger: messages.append(message))
    _run_tool(monkeypatch, built)
    assert messages == [f"{built} already holds the complete coins set: left untouched"]


def test_the_tool_ends_with_one_line_on_an_error(tmp_path, monkeypatch):
    (tmp_path / "coins").write_text("a file")
    with pytest.raises(SystemExit, match=r"^make_coins: .*coins is a file[^\n]*$"):
        _run_tool(monkeypatch, tmp_path / "coins")


@pytest.mark.parametrize("module", ["skimage", "scipy", "PIL", "pycocotools"])
def test_a_missing_package_names_the_extra(monkeypatch, module):
    for loaded in ("mmsmlp.coins", "mmsmlp.data.coco"):
        monkeypatch.delitem(sys.modules, loaded, raising=False)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"{module}[^\n]*pip install -e .\.\[demo\]"):
        importlib.import_module("mmsmlp.coins")
