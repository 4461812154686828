"""The study's figures: their numbers against networks and weights whose answer is known, and that pictures appear."""

import json

import numpy as np
import pytest
import torch
from conftest import MINI
from PIL import Image
from scipy.fft import dct
from study.backbones import initial_backbone, load_backbone, untrained, with_interpolation
from study.fields import draw_receptive_fields, widened
from study.spectra import draw_spectra, energy_shares, reading_gains, weight_spectra
from study.weights import draw_weights

from mmsmlp import SMLPNet
from mmsmlp.layers import AxisLinear
from mmsmlp.resize import DEFAULT_METHOD, METHODS, interpolation_matrix, resampling_matrix
from mmsmlp.visualize.receptive_field import effective_receptive_fields
from mmsmlp.visualize.weights import axis_weights

TWO_STAGES = {"embed_dims": 4, "depths": (2, 2)}  # strides 4 and 8
CONFIG = """
default_scope = 'mmpretrain'
randomness = dict(seed=3)
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmsmlp.SMLPNet', arch=dict(embed_dims=8, depths=(1, 1, 2, 1)), img_size=64, out_indices=-1),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=3, in_channels=64))
"""


def network(**kwargs) -> SMLPNet:
    return SMLPNet(**{"arch": TWO_STAGES, "img_size": 64, "out_indices": (0, 1), **kwargs}).eval()


def picture_size(path) -> tuple[int, int]:
    with Image.open(path) as picture:
        picture.load()
        assert np.asarray(picture.convert("L")).std() > 5  # something is drawn
        return picture.size


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64)


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(CONFIG)
    return path


# Resized weights


def test_row_sums_below_the_maps_are_those_of_the_resized_weight(tmp_path):
    sums = draw_weights({"constant": torch.full((6, 6), 0.5)}, tmp_path / "weights.png")["constant"]
    assert list(sums) == list(METHODS)
    for method in METHODS:
        # A constant weight has row sums of 3 at every size, unless the mass is not kept.
        wanted = {str(m): 3 * (m / 6 if method == "naive" else 1) for m in (6, 3, 7, 12, 18)}
        assert sums[method] == pytest.approx(wanted, rel=1e-6)


def test_weights_are_drawn_side_by_side(tmp_path):
    weights = axis_weights(network())
    names = ["stage 1, block 1, along W", "stage 1, block 1, along H"]
    widths = []
    for count in (1, 2):
        numbers = draw_weights({name: weights[name] for name in names[:count]}, tmp_path / "weights.png")
        assert list(json.loads(json.dumps(numbers))) == names[:count]
        width, height = picture_size(tmp_path / "weights.png")
        assert height > 500
        widths.append(width)
    assert widths[1] == pytest.approx(2 * widths[0], abs=2)


def test_what_cannot_be_drawn_leaves_the_picture_alone(tmp_path):
    out = tmp_path / "weights.png"
    out.write_bytes(b"old")
    with pytest.raises(ValueError, match=r"an axis weight is \(n, n\), 'bias' is \(5,\)"):
        draw_weights({"good": torch.eye(4), "bias": torch.ones(5)}, out)
    with pytest.raises(ValueError, match="no weights"):
        draw_weights({}, out)
    assert [path.name for path in tmp_path.iterdir()] == ["weights.png"]
    assert out.read_bytes() == b"old"


# Receptive fields


def test_a_larger_canvas_shows_the_image_and_its_mirror_images():
    image = torch.arange(6.0).reshape(1, 1, 2, 3)
    wide = widened(image, 2)[0, 0].tolist()
    assert wide == [[0, 1, 2, 2, 1, 0], [3, 4, 5, 5, 4, 3], [3, 4, 5, 5, 4, 3], [0, 1, 2, 2, 1, 0]]


def test_receptive_fields_are_drawn_with_their_numbers(tmp_path, images):
    net = network()
    networks = {"exact": net, "local": network(global_mixing=False)}
    numbers = draw_receptive_fields(networks, images, tmp_path / "fields.png", (1, 3))
    assert json.loads(json.dumps(numbers)) == numbers
    assert numbers["exact"]["3"]["canvas"] == [192, 192]
    assert numbers["exact"]["3"]["beyond"] > 0.1
    assert numbers["local"]["3"]["beyond"] == pytest.approx(0)
    assert numbers["exact"]["3"]["side_90"] == effective_receptive_fields(net, widened(images, 3), [-1])[0].side(0.9)
    # convolutions reach as many pixels on any canvas
    assert numbers["local"]["3"]["side_90"] == pytest.approx(numbers["local"]["1"]["side_90"] / 3, rel=0.1)
    width, height = picture_size(tmp_path / "fields.png")
    assert width > 500
    assert height > 500


def test_fields_that_make_no_sense_are_refused(tmp_path, images):
    with pytest.raises(ValueError, match="factor 1"):
        widened(images, 0.5)
    with pytest.raises(ValueError, match=r"\(N, C, H, W\), got \(3, 64, 64\)"):
        widened(images[0], 2)
    with pytest.raises(ValueError, match="nothing to draw"):
        draw_receptive_fields({}, images, tmp_path / "fields.png")


def test_another_interpolation_is_set_on_a_copy(images):
    net = network()
    other = with_interpolation(net, "naive")
    assert {m.interpolation for m in other.modules() if isinstance(m, AxisLinear)} == {"naive"}
    assert {m.interpolation for m in net.modules() if isinstance(m, AxisLinear)} == {DEFAULT_METHOD}
    torch.testing.assert_close(other(images), net(images))
    with pytest.raises(ValueError, match="unknown interpolation 'cubic'"):
        with_interpolation(net, "cubic")


def test_an_untrained_network_has_other_weights_and_the_statistics_of_the_images(images):
    net = network()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    random = untrained(net, images)
    assert not random.training
    assert all((before[name] == value).all() for name, value in net.state_dict().items())
    assert not torch.equal(random.stages[0][0].sparse_mlp.mix_w.weight, net.stages[0][0].sparse_mlp.mix_w.weight)
    norm = random.stages[0][0].local.norm
    first = random.downsample_layers[0](images)
    torch.testing.assert_close(norm.running_mean, first.mean((0, 2, 3)))
    again = untrained(net, images)
    torch.testing.assert_close(again(images)[1], random(images)[1], rtol=0, atol=0)


# Spectra


@pytest.mark.parametrize("frequency", [0, 1, 4, 6])
def test_a_weight_that_reads_one_cosine_has_its_frequency_alone(frequency):
    position = torch.arange(7, dtype=torch.float64)
    cosine = torch.cos(torch.pi * frequency * (position + 0.5) / 7)
    shares = energy_shares(torch.randn(7, dtype=torch.float64)[:, None] * cosine)
    assert shares.argmax() == frequency
    assert float(shares[frequency]) == pytest.approx(1)


def test_energy_shares_are_those_of_a_cosine_transform_of_the_input_axis():
    weight = torch.randn(5, 8, 8, dtype=torch.float64)
    energy = (dct(weight.numpy(), axis=2, norm="ortho") ** 2).sum(1)
    torch.testing.assert_close(energy_shares(weight).numpy(), energy / energy.sum(1, keepdims=True))


@pytest.mark.parametrize("anchor", [5, 14, 40])
def test_the_gain_at_one_position_more_is_that_of_the_pseudo_inverse(anchor):
    up = interpolation_matrix(anchor, anchor + 1).numpy()
    left, values, right = np.linalg.svd(up, full_matrices=False)
    inverse = right.T / values @ left.T
    rows = dct(inverse, axis=0, norm="ortho")  # frequency of the anchor, position read
    wanted = np.linalg.norm(rows, axis=1) * ((anchor + 1) / anchor) ** 0.5
    gains = reading_gains(anchor, anchor + 1, "exact")
    np.testing.assert_allclose(gains.numpy(), wanted, rtol=1e-9)
    assert gains.argmax() == anchor - 1
    assert gains[-1] > 1.8


def test_twice_as_many_positions_double_the_highest_frequency_or_halve_it():
    # U averages neighbours with 3/4 and 1/4, so it halves an alternating signal; its inverse doubles it.
    assert float(reading_gains(40, 80, "exact")[-1]) == pytest.approx(2, rel=0.01)
    assert float(reading_gains(40, 80, "bounded")[-1]) == pytest.approx(0.5, rel=0.01)


@pytest.mark.parametrize("method", ["exact", "bounded"])
@pytest.mark.parametrize("size", [14, 15, 21, 28, 100])
def test_constants_are_read_as_they_are(method, size):
    assert float(reading_gains(14, size, method)[0]) == pytest.approx(1, abs=0.02)


def test_gains_are_of_sizes_beyond_the_anchor():
    with pytest.raises(ValueError, match="at least the anchor's 14"):
        reading_gains(14, 13, "exact")


def test_spectra_sum_to_one_and_tell_the_shares_of_the_top():
    nets = [network() for _ in range(3)]
    spectra = json.loads(json.dumps(weight_spectra(nets)))
    assert [row["length"] for row in spectra.values()] == [16, 8]
    for row in spectra.values():
        n = row["length"]
        for kind in ("trained", "random"):
            shares = row[kind]["shares"]
            assert len(shares) == n
            assert sum(shares) == pytest.approx(1)
            assert row[kind]["highest"][0] == pytest.approx(shares[-1])
            assert row[kind]["top_quarter"][0] == pytest.approx(sum(shares[n * 3 // 4 :]))
            low, high = row[kind]["range"]
            assert all(a <= b <= c for a, b, c in zip(low, shares, high))
    stack = torch.stack([torch.stack([w for k, w in axis_weights(net).items() if "stage 2" in k]) for net in nets])
    torch.testing.assert_close(spectra["stage 2"]["trained"]["shares"], energy_shares(stack).mean((0, 1)).tolist())


def test_weights_as_they_are_initialised_are_even_and_lie_within_the_spread():
    row = weight_spectra([SMLPNet(MINI, img_size=224)])["stage 1"]
    assert row["random"]["shares"] == pytest.approx([1 / 56] * 56, rel=0.05)
    low, high = row["random"]["range"]
    inside = sum(a <= share <= b for a, share, b in zip(low, row["trained"]["shares"], high))
    assert 42 <= inside <= 56  # 90 % of 56 are 50


def test_what_training_added_is_told_from_what_it_began_with():
    initial = network()
    trained = network()
    trained.load_state_dict(initial.state_dict())
    for name, parameter in trained.named_parameters():
        if name.endswith("mix_w.weight") or name.endswith("mix_h.weight"):
            parameter.data += 0.1  # reads the mean
    row = weight_spectra([trained], [initial])["stage 1"]
    assert row["added"]["shares"][0] == pytest.approx(1)
    assert row["added"]["highest"][0] == pytest.approx(0, abs=1e-9)
    norms = [w.norm() for k, w in axis_weights(initial).items() if "stage 1" in k]
    assert row["moved"] == pytest.approx(float(np.mean([0.1 * 16 / norm for norm in norms])), rel=1e-5)
    assert row["sizes"]["2 n"]["exact"]["added"] == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("method", ["exact", "bounded"])
def test_the_gain_of_a_layer_is_what_it_makes_of_white_noise(method):
    net = network(arch={"embed_dims": 4, "depths": (1,)}, out_indices=0)
    row = weight_spectra([net])["stage 1"]["sizes"]["1.5 n"]
    assert row["size"] == 24
    ratios = []
    for weight in axis_weights(net).values():
        noise = torch.randn(24, 20000, dtype=torch.float64)
        mixed = weight @ (resampling_matrix(24, 16, method) @ noise)
        same = weight @ torch.randn(16, 20000, dtype=torch.float64)
        ratios.append(float(mixed.square().mean() / same.square().mean()) * 24 / 16)
    assert row[method]["trained"] == pytest.approx(np.mean(ratios) ** 0.5, rel=0.02)


def test_spectra_are_drawn(tmp_path):
    nets = [network(), network()]
    draw_spectra(weight_spectra(nets, nets[::-1]), tmp_path / "spectra.png", "two networks")
    width, height = picture_size(tmp_path / "spectra.png")
    assert width > height > 500
    with pytest.raises(ValueError, match="no spectra"):
        draw_spectra({}, tmp_path / "none.png")


def test_an_anchor_of_one_position_can_be_drawn(tmp_path):
    spectra = weight_spectra([network(img_size=8)])
    assert spectra["stage 2"]["length"] == 1
    assert spectra["stage 2"]["trained"]["shares"] == [1]
    draw_spectra(spectra, tmp_path / "spectra.png")
    draw_weights({"one": torch.ones(1, 1)}, tmp_path / "weights.png")


def test_networks_that_cannot_be_averaged_are_refused():
    with pytest.raises(ValueError, match="got 0 for 0"):
        weight_spectra([])
    with pytest.raises(ValueError, match="got 1 for 2"):
        weight_spectra([network(), network()], [network()])
    with pytest.raises(ValueError, match="one arch and anchor"):
        weight_spectra([network(), network(img_size=32)])
    with pytest.raises(ValueError, match="stage 1 differs"):
        weight_spectra([network()], [network(img_size=32)])
    with pytest.raises(ValueError, match="square anchors, but H and W of stage 1"):
        weight_spectra([network(img_size=(64, 32))])


# Networks from their configs and checkpoints


def test_a_backbone_is_loaded_from_a_whole_models_checkpoint(tmp_path, config):
    net = SMLPNet(MINI, img_size=64, out_indices=-1)
    weights = {f"backbone.{k}": v for k, v in net.state_dict().items()} | {"head.fc.bias": torch.zeros(3)}
    torch.save({"state_dict": weights}, tmp_path / "model.pth")
    loaded = load_backbone(config, tmp_path / "model.pth")
    assert not loaded.training
    assert all(torch.equal(loaded.state_dict()[k], v) for k, v in net.state_dict().items())


def test_the_initial_backbone_is_the_one_that_mmengines_runner_builds(tmp_path, config):
    from mmengine.config import Config
    from mmengine.runner import Runner

    state = torch.random.get_rng_state()
    initial = initial_backbone(config)
    assert torch.equal(torch.random.get_rng_state(), state)
    cfg = Config.fromfile(config)
    cfg.work_dir, cfg.experiment_name = str(tmp_path), "initial_backbone"
    runner = Runner.from_cfg(cfg)
    runner.model.init_weights()
    built = runner.model.backbone.state_dict()
    assert all(torch.equal(built[name], value) for name, value in initial.state_dict().items())


def test_a_config_without_a_seed_has_no_initial_backbone(config):
    config.write_text(CONFIG.replace("randomness = dict(seed=3)", ""))
    with pytest.raises(ValueError, match="no seed"):
        initial_backbone(config)
