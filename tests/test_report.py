"""The HTML report of mmsmlp.visualize: what it says, what it never does, and tools/visualize.py as a process."""

import base64
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from made import SMALL_CLASSIFIER as CONFIG
from PIL import Image

from mmsmlp.photos.photographs import photograph
from mmsmlp.visualize.network import load_network
from mmsmlp.visualize.overview import visualize
from mmsmlp.visualize.report import Picture, Section, Table, render, write_report

ROOT = Path(__file__).parents[1]
OTHER = (
    CONFIG[: CONFIG.index("model")]
    + """
model = dict(
    type='ImageClassifier',
    backbone=dict(type='ResNet', depth=18, out_indices=(0, 3)),
    head=dict(type='LinearClsHead', num_classes=3, in_channels=512))
"""
)


def check_drawn(content: bytes) -> tuple[int, int]:
    with Image.open(BytesIO(content)) as picture:
        assert picture.format == "PNG"
        assert np.asarray(picture.convert("L")).std() > 5, "nothing is drawn"
        return picture.size


class Page(HTMLParser):
    """The tags, the links and the text of a page, each tag closed in order."""

    VOID = ("meta", "img", "br")

    def __init__(self, text: str):
        super().__init__()
        self.open, self.tags, self.links, self.text, self.alts = [], [], [], "", []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        self.alts += [dict(attrs).get("alt")] if tag == "img" else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def check_page(text: str) -> Page:
    """A page is well formed, loads nothing, runs nothing, and describes its pictures."""
    page = Page(text)
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in page.links)
    assert not {"script", "iframe", "object", "embed", "link", "form"} & set(page.tags)
    assert "url(" not in text
    assert "@import" not in text
    assert all(page.alts)
    return page


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(CONFIG)
    return path


NASTY = """<script>alert("1")</script> & 'quoted' {braces} \N{SNOWMAN}"""


def test_whatever_the_text_holds_is_shown_and_not_obeyed():
    picture = Picture("a", b"png", NASTY, NASTY)
    tables = [Table([(NASTY, NASTY)], (NASTY, NASTY))]
    page = check_page(render(NASTY, [Section(NASTY, [NASTY], tables, [picture], NASTY)]))
    assert page.text.count(NASTY) >= 10
    assert page.alts == [NASTY]
    assert page.links[-1] == "data:image/png;base64," + base64.b64encode(b"png").decode()


def test_a_report_replaces_an_older_one_and_leaves_other_files(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for word in ("first", "second"):
        content = word.encode()
        report = write_report(word, [Section("s", pictures=[Picture("p", content, "c", "a")])], tmp_path / "new" / "..")
        assert (tmp_path / "p.png").read_bytes() == content
        assert word in report.read_text("utf-8")
    assert {path.name for path in tmp_path.iterdir()} == {"new", "notes.txt", "p.png", "report.html"}


def test_after_an_error_the_old_report_is_whole(tmp_path, config):
    out = tmp_path / "out"
    write_report("old", [Section("s", pictures=[Picture("weights-stage1", b"old", "c", "a")])], out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    blind = load_network(config).model.state_dict()
    blind["backbone.downsample_layers.0.weight"].zero_()
    torch.save(blind, tmp_path / "blind.pth")
    with pytest.raises(ValueError, match="no pixel has a gradient"):
        visualize(config, tmp_path / "blind.pth", out, sizes=["64"])
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_another_backbone_has_fields_and_features_but_no_axis_weights(tmp_path):
    (tmp_path / "resnet.py").write_text(OTHER)
    page = check_page(visualize(tmp_path / "resnet.py", None, tmp_path, sizes=["64x96"]).read_text("utf-8"))
    assert "This backbone has no axis weights" in page.text
    assert "ResNet, 11,176,512 parameters" in page.text
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "receptive-fields.png",
        "receptive-fields-reach.png",
        "features-level1.png",
        "features-level2.png",
    }


def run(folder: Path, *arguments, fails: bool = False) -> str:
    command = [sys.executable, ROOT / "tools/visualize.py", *arguments]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(list(map(str, command)), cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert (result.returncode != 0) == fails, result.stderr[-3000:]
    return (result.stderr if fails else result.stdout).strip().splitlines()[-1]


def test_the_tool_writes_a_report_of_a_photograph(tmp_path, config):
    photo = tmp_path / "<script>.png"
    Image.fromarray(photograph("chelsea")).save(photo)
    torch.save(
        {"state_dict": load_network(config).model.state_dict(), "meta": {"iter": 1200}}, tmp_path / "steps & more.pth"
    )
    line = run(tmp_path, config, "steps & more.pth", "--image", photo.name, "--sizes", "64", "96x144", "--out", "seen")
    assert line == "wrote seen/report.html"
    text = (tmp_path / "seen/report.html").read_text("utf-8")
    assert "<script" not in text
    page = check_page(text)
    for words in (
        "Inside config (steps & more.pth)",
        "steps & more.pth, after 1,200 iterations",
        "--image '<script>.png' --sizes 64 96x144",
        "ImageClassifier, ",
        "64 x 64 pixels",
        "bounded",
        "torch ",
        "96 x 144",
    ):
        assert words in page.text
    assert "Not trained" not in page.text
    names = [f"{kind}{level}" for kind in ("weights-stage", "features-level") for level in (1, 2)]
    files = {path.stem: path.read_bytes() for path in (tmp_path / "seen").glob("*.png")}
    assert files.keys() == {*names, "receptive-fields", "receptive-fields-reach"}
    embedded = {base64.b64decode(link.partition(",")[2]) for link in page.links if link.startswith("data:")}
    assert embedded == set(files.values())
    for content in embedded:
        check_drawn(content)


def test_without_a_checkpoint_the_report_says_so_and_shows_the_anchors_size_and_twice_that(tmp_path, config):
    page = check_page(visualize(config, out=tmp_path).read_text("utf-8"))
    assert "Not trained: weights are random" in page.text
    assert "astronaut of scikit-image" in page.text
    assert "128 x 128" in page.text


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"config": "none.py"}, "the config none.py does not exist"),
        ({"checkpoint": "none.pth"}, "the checkpoint none.pth does not exist"),
        ({"image": "none.jpg"}, "the photograph none.jpg does not exist"),
        ({"image": "config.py"}, "config.py is no image that Pillow can read"),
    ],
)
def test_a_mistake_is_named_and_nothing_is_written(tmp_path, config, monkeypatch, given, line):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((FileNotFoundError, ValueError), match=re.escape(line)):
        visualize(**{"config": "config.py", "out": "out", **given})
    assert not Path("out").exists()


@pytest.mark.slow
def test_a_mistake_ends_the_tool_with_one_line(tmp_path, config):
    last = run(tmp_path, config, "--sizes", "64", "0x3", fails=True)
    assert last.startswith("visualize: a size is HEIGHTxWIDTH in pixels")
    assert last.endswith("got '0x3'")
    assert [path.name for path in tmp_path.iterdir()] == ["config.py"]
