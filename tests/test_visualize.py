"""mmsmlp.visualize but for receptive fields: what pictures show, what the report says, and the tool as a process."""

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
from mmengine.config import Config
from PIL import Image
from torch import nn

from mmsmlp import SMLPNet
from mmsmlp.photos.photographs import photograph
from mmsmlp.resize import interpolation_matrix, resize_axis_weight
from mmsmlp.visualize.features import Projection, draw_level, feature_maps, strongest_channels
from mmsmlp.visualize.fields import draw_fields, draw_reach
from mmsmlp.visualize.inputs import fit, mirrored, normalise, parse_sizes, read_photograph
from mmsmlp.visualize.network import load_network
from mmsmlp.visualize.overview import visualize
from mmsmlp.visualize.receptive_field import effective_receptive_fields
from mmsmlp.visualize.report import Picture, Section, Table, render, write_report
from mmsmlp.visualize.weights import axis_weights, draw_stage, weights_at

ROOT = Path(__file__).parents[1]
CONFIG = """
default_scope = 'mmpretrain'
data_preprocessor = dict(num_classes=3, mean=[100., 110., 120.], std=[50., 60., 70.], to_rgb=True)
model = dict(
    type='ImageClassifier',
    backbone=dict(type='mmsmlp.SMLPNet', arch=dict(embed_dims=8, depths=(1, 1, 2, 1)), img_size=64),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=3, in_channels=64))
"""
OTHER = (
    CONFIG[: CONFIG.index("model")]
    + """
model = dict(
    type='ImageClassifier',
    backbone=dict(type='ResNet', depth=18, out_indices=(0, 3)),
    head=dict(type='LinearClsHead', num_classes=3, in_channels=512))
"""
)


def network(**kwargs) -> SMLPNet:
    arch = {"embed_dims": 4, "depths": (2, 2)}  # strides 4 and 8
    return SMLPNet(**{"arch": arch, "img_size": 64, "out_indices": (0, 1), **kwargs}).eval()


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


# Axis weights


def test_the_heat_map_of_the_anchor_is_the_weight_itself():
    net = network()
    first = weights_at(net, [(128, 96)])[0]
    assert first.name == "stage 1, block 1, along W"
    assert torch.equal(first.anchor, net.stages[0][0].sparse_mlp.mix_w.weight.detach().double())


@pytest.mark.parametrize("interpolation", ["bounded", "exact"])
def test_at_a_size_the_weight_is_what_the_layer_applies_there(interpolation):
    net = network(interpolation=interpolation)
    along_w, along_h = weights_at(net, [(128, 97)])[-2:]
    assert [along_w.name, along_h.name] == [f"stage 2, block 2, along {axis}" for axis in "WH"]
    mlp = net.stages[1][1].sparse_mlp
    for weight, layer, count in ((along_w, mlp.mix_w, 13), (along_h, mlp.mix_h, 16)):
        matrix = weight.resized[128, 97]
        assert torch.equal(matrix, resize_axis_weight(layer.weight.detach().double(), count, interpolation))
        # applied to a signal, it does what the layer does to a map
        signal = torch.randn(count)
        shape = (1, count, 1, 1) if layer.dim == 1 else (1, 1, count, 1)
        with torch.no_grad():
            mixed = (layer(signal.view(shape)) - layer(torch.zeros(shape))).flatten()
        torch.testing.assert_close(matrix.float() @ signal, mixed, rtol=1e-4, atol=1e-5)


def test_a_smooth_weight_keeps_its_colours_at_twice_the_size():
    net = network()
    ramp = torch.linspace(0, 1, 16)
    net.stages[0][0].sparse_mlp.mix_w.weight.data = ramp[:, None] + ramp
    weight = weights_at(net, [(128, 128)])[0]
    up = interpolation_matrix(16, 32)
    error = (2 * weight.resized[128, 128] - up @ weight.anchor @ up.T).abs()  # times m / n, as it is drawn
    assert float(error[:, 3:-3].max()) < 0.05  # at the border, what is read is a mean of fewer positions


def test_a_size_with_the_anchors_positions_has_no_column_of_its_own():
    sizes = [(64, 64), (61, 64), (64, 65)]
    weights = weights_at(network(), sizes)
    assert all(list(weight.resized) == [(64, 65)] for weight in weights)


def test_axis_weights_are_found_by_stage_block_and_axis():
    net = network(global_mixing=[False, True])
    weights = axis_weights(net)
    assert list(weights) == [f"stage 2, block {block}, along {axis}" for block in (1, 2) for axis in "WH"]
    torch.testing.assert_close(
        weights["stage 2, block 1, along H"], net.stages[1][0].sparse_mlp.mix_h.weight.detach().double()
    )


def test_a_network_without_axis_weights_is_refused_or_has_none():
    with pytest.raises(ValueError, match="global_mixing=False"):
        axis_weights(network(global_mixing=False))
    assert weights_at(nn.Conv2d(3, 3, 1), [(64, 64)]) == []


# Feature maps


def test_components_are_those_of_a_singular_value_decomposition():
    features = torch.randn(6, 5, 7, dtype=torch.float64) * torch.arange(1, 7).view(6, 1, 1) + 3
    projection = Projection.fit(features)
    tokens = features.flatten(1).T
    wanted = torch.linalg.svd(tokens - tokens.mean(0)).Vh[:3]
    torch.testing.assert_close((projection.components * wanted).sum(1).abs(), torch.ones(3).double())
    colours = projection(features)
    assert colours.shape == (5, 7, 3)
    assert float(colours.min()) == 0
    assert float(colours.max()) == 1
    values = (tokens - tokens.mean(0)) @ projection.components.T
    assert torch.equal(colours.flatten(0, 1).argmax(0), values.argmax(0))


@pytest.mark.parametrize("shape", [(2, 4, 4), (1, 3, 3), (5, 1, 1)])
def test_maps_with_few_channels_or_tokens_have_colours(shape):
    features = torch.randn(shape)
    colours = Projection.fit(features)(features)
    assert colours.shape == (*shape[1:], 3)
    assert colours.isfinite().all()


def test_the_same_features_have_the_same_colours_at_another_size():
    small = torch.randn(8, 4, 4)
    large = small.repeat_interleave(2, 1).repeat_interleave(2, 2)
    projection = Projection.fit(small)
    torch.testing.assert_close(projection(large)[::2, ::2], projection(small))


def test_the_strongest_channels_vary_most():
    features = torch.randn(5, 8, 8) * torch.tensor([1.0, 9, 0, 4, 2]).view(5, 1, 1) + 100
    assert strongest_channels(features) == [1, 3, 4]
    assert strongest_channels(features[:2]) == [1, 0]


# Pictures


def test_pictures_show_something():
    net = network()
    sizes = [(64, 64), (96, 160)]
    photographs = {size: fit(Image.fromarray(photograph("coins")), size) for size in sizes}
    inputs = {size: torch.from_numpy(picture).permute(2, 0, 1)[None] / 99 for size, picture in photographs.items()}
    weights = weights_at(net, sizes)
    width, height = check_drawn(draw_stage(weights[:4]))
    assert height > 1.5 * width  # four rows, two columns
    fields = {size: effective_receptive_fields(net, image) for size, image in inputs.items()}
    for draw in (draw_fields, draw_reach):
        assert check_drawn(draw(fields))[0] > 600
    maps = [feature_maps(net, image)[1] for image in inputs.values()]
    width, height = check_drawn(draw_level(2, photographs, maps))
    assert width > height > 400


# What the network is shown


def test_sizes_are_height_by_width():
    assert parse_sizes(["224", "448x672", " 64X32", "224x224"]) == [(224, 224), (448, 672), (64, 32)]


@pytest.mark.parametrize("text", ["", "0", "64x0", "big", "64x64x64", "-5", "1e2", "4097", "64,64", "9999999999"])
def test_a_size_that_is_none_is_named(text):
    with pytest.raises(ValueError, match=f"from 1 to 4096, such as 224 or 448x672; got '{re.escape(text)}'"):
        parse_sizes([text])


def test_a_photograph_is_read_upright_in_rgb(tmp_path):
    picture = Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6) * 10)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    picture.save(tmp_path / "turned.png", exif=exif)
    read = read_photograph(tmp_path / "turned.png")
    assert (read.mode, read.size) == ("RGB", (4, 6))


def test_a_photograph_covers_a_size():
    picture = np.zeros((40, 100, 3), np.uint8)
    picture[:, 50:] = 255
    fitted = fit(Image.fromarray(picture), (80, 80))
    assert fitted.shape == (80, 80, 3)
    assert fitted[:, :36].max() == 0  # the middle stays the middle, nothing is stretched
    assert fitted[:, 44:].min() == 255


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"mean": [1, 2, 3], "std": [1, 2, 4], "bgr_to_rgb": True}, [9, 9, 6.75]),
        ({"mean": [1, 2, 3], "std": [1, 2, 4], "to_rgb": True}, [9, 9, 6.75]),
        ({"mean": [1, 2, 3], "std": [1, 2, 4]}, [29, 9, 1.75]),  # blue comes first
        ({}, [30, 20, 10]),
    ],
)
def test_images_are_normalised_as_the_config_says(settings, wanted):
    image = np.full((2, 2, 3), (10, 20, 30), np.uint8)
    for cfg in ({"model": {"data_preprocessor": settings}}, {"model": {}, "data_preprocessor": settings}):
        assert normalise(image, Config(cfg))[0, :, 1, 1].tolist() == wanted


def test_mirror_images_average_to_an_even_view():
    image = torch.arange(6.0).view(1, 1, 2, 3)
    four = mirrored(image)
    assert four.shape == (4, 1, 2, 3)
    torch.testing.assert_close(four.mean(0)[0], torch.full((2, 3), 2.5))


# The network


def test_a_checkpoint_of_the_model_or_of_the_backbone_is_loaded(tmp_path, config):
    random = load_network(config)
    assert random.checkpoint is None
    other = load_network(config, options={"model.backbone.img_size": 96})
    torch.save({"state_dict": other.model.state_dict(), "meta": {"iter": 7}}, tmp_path / "model.pth")
    torch.save(other.backbone.state_dict(), tmp_path / "backbone.pth")
    for name, steps in (("model", 7), ("backbone", None)):
        loaded = load_network(config, tmp_path / f"{name}.pth")
        assert loaded.iterations == steps
        key = "stages.2.1.channel_mlp.fc1.weight"
        assert not torch.equal(random.backbone.state_dict()[key], other.backbone.state_dict()[key])
        assert torch.equal(loaded.backbone.state_dict()[key], other.backbone.state_dict()[key])


def test_random_weights_are_the_same_each_time(config):
    before = torch.random.get_rng_state()
    one, two = (load_network(config).backbone.state_dict() for _ in range(2))
    assert all(torch.equal(value, two[key]) for key, value in one.items())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_what_does_not_fit_is_said_in_one_line(tmp_path, config):
    state = load_network(config).model.state_dict()
    del state["backbone.norm3.weight"]
    torch.save(state, tmp_path / "partial.pth")
    with pytest.raises(ValueError, match=r"partial.pth does not fit the backbone of .*config.py: norm3.weight missing"):
        load_network(config, tmp_path / "partial.pth")
    wider = {"model.backbone.arch.embed_dims": 16, "model.head.in_channels": 128}
    torch.save(load_network(config, options=wider).model.state_dict(), tmp_path / "wider.pth")
    with pytest.raises(ValueError, match=r"wider.pth does not fit the backbone of [^\n]*$"):
        load_network(config, tmp_path / "wider.pth")
    (tmp_path / "empty.py").write_text("x = 1")
    with pytest.raises(ValueError, match="a model with a backbone is needed"):
        load_network(tmp_path / "empty.py")
    (tmp_path / "unknown.py").write_text(CONFIG.replace("mmsmlp.SMLPNet", "mmsmlp.NoNet"))
    with pytest.raises(ValueError, match="unknown.py: .*NoNet"):
        load_network(tmp_path / "unknown.py")


# The report

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
    nan = load_network(config).model.state_dict()
    nan["backbone.norm3.weight"] = torch.full_like(nan["backbone.norm3.weight"], torch.nan)
    torch.save(nan, tmp_path / "nan.pth")
    with pytest.raises(ValueError, match="no pixel has a gradient"):
        visualize(config, tmp_path / "nan.pth", out, sizes=["64"])
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
    names = [f"{kind}{level}" for kind in ("weights-stage", "features-level") for level in range(1, 5)]
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


def test_a_mistake_ends_the_tool_with_one_line(tmp_path, config):
    last = run(tmp_path, config, "--sizes", "64", "0x3", fails=True)
    assert last.startswith("visualize: a size is HEIGHTxWIDTH in pixels")
    assert last.endswith("got '0x3'")
    assert [path.name for path in tmp_path.iterdir()] == ["config.py"]
