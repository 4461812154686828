"""mmsmlp.visualize: axis weights, feature maps, pictures, what a network is shown (fields: test_receptive_field)."""

import re
from io import BytesIO

import numpy as np
import pytest
import torch
from made import SMALL_CLASSIFIER as CONFIG
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
from mmsmlp.visualize.receptive_field import effective_receptive_fields
from mmsmlp.visualize.weights import axis_weights, draw_stage, weights_at


def network(**kwargs) -> SMLPNet:
    arch = {"embed_dims": 4, "depths": (2, 2)}  # strides 4 and 8
    return SMLPNet(**{"arch": arch, "img_size": 64, "out_indices": (0, 1), **kwargs}).eval()


def check_drawn(content: bytes) -> tuple[int, int]:
    with Image.open(BytesIO(content)) as picture:
        assert picture.format == "PNG"
        assert np.asarray(picture.convert("L")).std() > 5, "nothing is drawn"
        return picture.size


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
    inputs = {size: torch.tensor(picture).permute(2, 0, 1)[None] / 99 for size, picture in photographs.items()}
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
        key = "stages.1.1.channel_mlp.fc1.weight"
        assert not torch.equal(random.backbone.state_dict()[key], other.backbone.state_dict()[key])
        assert torch.equal(loaded.backbone.state_dict()[key], other.backbone.state_dict()[key])


def test_random_weights_are_the_same_each_time(config):
    before = torch.random.get_rng_state()
    one, two = (load_network(config).backbone.state_dict() for _ in range(2))
    assert all(torch.equal(value, two[key]) for key, value in one.items())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_what_does_not_fit_is_said_in_one_line(tmp_path, config):
    state = load_network(config).model.state_dict()
    del state["backbone.norm1.weight"]
    torch.save(state, tmp_path / "partial.pth")
    with pytest.raises(ValueError, match=r"partial.pth does not fit the backbone of .*config.py: norm1.weight missing"):
        load_network(config, tmp_path / "partial.pth")
    wider = {"model.backbone.arch.embed_dims": 16, "model.head.in_channels": 32}
    torch.save(load_network(config, options=wider).model.state_dict(), tmp_path / "wider.pth")
    with pytest.raises(ValueError, match=r"wider.pth does not fit the backbone of [^\n]*$"):
        load_network(config, tmp_path / "wider.pth")
    (tmp_path / "empty.py").write_text("x = 1")
    with pytest.raises(ValueError, match="a model with a backbone is needed"):
        load_network(tmp_path / "empty.py")
    (tmp_path / "unknown.py").write_text(CONFIG.replace("mmsmlp.SMLPNet", "mmsmlp.NoNet"))
    with pytest.raises(ValueError, match="unknown.py: .*NoNet"):
        load_network(tmp_path / "unknown.py")
