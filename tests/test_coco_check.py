"""mmsmlp.data.coco_check and its tool: mistakes in annotation files, each named with its place and its remedy."""

import copy
import json
import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

from mmsmlp.data.coco_check import check_coco, check_config, split_coco

ROOT = Path(__file__).parents[1]
TOOL = ROOT / "tools/check_coco.py"


def square(number: int, image: int, category: int) -> dict:
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": [10, 5, 20, 20],
        "area": 400,
        "iscrowd": 0,
        "segmentation": [[10, 5, 30, 5, 30, 25, 10, 25]],
    }


GOOD = {
    "images": [{"id": i, "file_name": f"{i}.png", "width": 60, "height": 40} for i in (1, 2, 3, 4)],
    "annotations": [square(1, 1, 7), square(2, 1, 9), square(3, 2, 7)],
    "categories": [{"id": 7, "name": "cat"}, {"id": 9, "name": "dog"}],
}


@pytest.fixture
def user(tmp_path) -> Path:
    """A folder with photographs and a good annotation file."""
    for image in GOOD["images"]:
        Image.new("RGB", (60, 40)).save(tmp_path / image["file_name"])
    (tmp_path / "set.json").write_text(json.dumps(GOOD))
    return tmp_path


def test_a_good_file_has_no_problems(user):
    report = check_coco(user / "set.json", user, ("cat", "dog"))
    assert report.problems == []
    assert str(report).endswith("set.json: 4 images, 3 objects: 2 cat, 1 dog")


@pytest.mark.parametrize(
    ("entry", "key", "value", "problem"),
    [
        ("annotations", "category_id", 0, "1 x a category_id that is none of ['7', '9']; first: annotation 1 has 0"),
        ("annotations", "image_id", 8, "1 x an image_id of no image; first: annotation 1 has 8"),
        (
            "annotations",
            "bbox",
            [50, 5, 20, 20],
            "a bbox outside of its image; first: annotation 1 has [50,",
        ),
        ("annotations", "bbox", [20, 15, 50, 35], "perhaps [x1, y1, x2, y2] in the place of [x, y, width, height]"),
        ("annotations", "bbox", [20, 15, 0, 35], "1 x an empty bbox"),
        ("annotations", "bbox", [20, 15, 3], "1 x a bbox that is not [x, y, width, height]"),
        ("annotations", "segmentation", [], "1 x no segmentation: a Mask R-CNN needs one"),
        ("annotations", "area", None, "1 x no area, which COCO's evaluation needs"),
        ("annotations", "iscrowd", None, "1 x no iscrowd, which COCO's evaluation needs"),
        ("annotations", "id", 2, "1 x an id in annotations that is missing or used twice; first: 2"),
        ("annotations", "id", 0, "1 x annotation id 0"),
        ("images", "file_name", "x.png", "1 x no such photograph in"),
        ("images", "width", 61, "1.png is (60, 40), the file says (61, 40)"),
        ("images", "id", None, "1 x an id in images that is missing or used twice"),
        ("categories", "id", 9, "1 x an id in categories that is missing or used twice; first: 9"),
    ],
)
def test_a_mistake_is_named_with_its_first_place(user, entry, key, value, problem):
    content = copy.deepcopy(GOOD)
    content[entry][0][key] = value
    if value is None:
        del content[entry][0][key]
    (user / "set.json").write_text(json.dumps(content))
    assert problem in str(check_coco(user / "set.json", user))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "the file does not exist"),
        ("{", "no JSON: "),
        ("[]", "not in COCO's format: no list images, annotations, categories"),
        ('{"images": [], "annotations": {}}', "no list annotations, categories"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_problem(tmp_path, content, problem):
    if content is not None:
        (tmp_path / "set.json").write_text(content)
    (found,) = check_coco(tmp_path / "set.json", tmp_path).problems
    assert problem in found


def test_a_photograph_that_is_none_is_named(user):
    (user / "1.png").write_text("no image")
    assert "1 x a photograph that cannot be read; first: " in str(check_coco(user / "set.json", user))


def test_a_turned_photograph_has_the_size_that_the_toolboxes_see(user):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 60)).save(user / "1.png", exif=exif)
    assert check_coco(user / "set.json", user).problems == []


def test_classes_that_differ_from_the_categories_are_named(user):
    problems = check_coco(user / "set.json", user, ("cat", "Dog")).problems
    assert problems == [
        "the config's class 'Dog' is no category of the file: ['cat', 'dog']",
        "the category 'dog' is not among the config's classes: its objects are ignored",
    ]


CONFIG = f"""_base_ = "{ROOT}/configs/demo/mask-rcnn_smlpnet-mini_coins.py"
sets = dict(data_root="ROOT", ann_file="set.json", data_prefix=dict(img=""), metainfo=dict(classes=("cat", "dog")))
train_dataloader = dict(dataset=sets)
val_dataloader = dict(dataset=sets)
test_dataloader = val_dataloader
"""


def test_a_configs_sets_are_checked_with_its_heads(user):
    (user / "config.py").write_text(CONFIG.replace("ROOT", str(user)))
    (report,) = check_config(user / "config.py")
    assert report.problems == [
        f"model.roi_head.{head}.num_classes is 1, but the config names 2 classes" for head in ("bbox_head", "mask_head")
    ]
    heads = "model = dict(roi_head=dict(bbox_head=dict(num_classes=2), mask_head=dict(num_classes=2)))\n"
    (user / "config.py").write_text(CONFIG.replace("ROOT", str(user)) + heads)
    assert check_config(user / "config.py")[0].problems == []


def test_a_config_without_such_sets_is_refused():
    with pytest.raises(ValueError, match="has no data set with an ann_file that ends on .json"):
        check_config(ROOT / "configs/demo/smlpnet-mini_photos.py")


def test_a_split_keeps_every_image_and_object_once(user):
    train, val = (json.loads(path.read_text()) for path in split_coco(user / "set.json", 0.25))
    assert (len(train["images"]), len(val["images"])) == (3, 1)
    for key in ("images", "annotations"):
        assert sorted([*train[key], *val[key]], key=lambda entry: entry["id"]) == GOOD[key]
    assert train["categories"] == val["categories"] == GOOD["categories"]
    with pytest.raises(FileExistsError, match=r"train\.json exists"):
        split_coco(user / "set.json", 0.25)


@pytest.mark.parametrize("share", [0, 1, -0.5, 2])
def test_a_share_that_leaves_a_part_empty_is_refused(user, share):
    with pytest.raises(ValueError, match="above 0 and below 1"):
        split_coco(user / "set.json", share)


def tool(monkeypatch, *arguments) -> object:
    """Run the tool; its exit status or message, None where all is well."""
    monkeypatch.setattr(sys, "argv", [str(TOOL), *map(str, arguments)])
    try:
        runpy.run_path(str(TOOL), run_name="__main__")
    except SystemExit as end:
        return end.code
    return None


def test_the_tool_checks_and_splits(user, monkeypatch, capsys):
    assert tool(monkeypatch, user / "set.json", user, "--split", "0.5") is None
    assert capsys.readouterr().out.splitlines()[-1] == "no mistakes found"
    assert (user / "val.json").is_file()


def test_the_tool_splits_nothing_that_has_mistakes(user, monkeypatch, capsys):
    (user / "2.png").unlink()
    assert tool(monkeypatch, user / "set.json", user, "--split", "0.5") == "check_coco: 1 kinds of mistakes"
    assert "1 x no such photograph" in capsys.readouterr().out
    assert not (user / "val.json").exists()


def test_the_tool_wants_a_config_or_a_file_with_its_folder(user, monkeypatch, capsys):
    assert tool(monkeypatch, user / "set.json") == 2
    assert tool(monkeypatch, "config.py", "--split", "0.5") == 2
