"""Effective receptive fields: networks whose field is known, and the numbers that are read off one."""

import math

import pytest
import torch
from torch import nn

from mmsmlp import SMLPNet
from mmsmlp.visualize.network import token_size
from mmsmlp.visualize.receptive_field import ReceptiveField, effective_receptive_fields

TWO_STAGES = {"embed_dims": 4, "depths": (2, 2)}  # strides 4 and 8


def network(**kwargs) -> SMLPNet:
    return SMLPNet(**{"arch": TWO_STAGES, "img_size": 64, "out_indices": (0, 1), **kwargs}).eval()


def field_of(net: nn.Module, images: torch.Tensor) -> ReceptiveField:
    """That of the last level."""
    return effective_receptive_fields(net, images, [-1])[0]


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64)


@pytest.mark.parametrize("size", [(9, 9), (8, 12)])
def test_the_field_of_1x1_convolutions_is_a_point(size):
    net = nn.Sequential(nn.Conv2d(3, 5, 1), nn.GELU(), nn.Conv2d(5, 7, 1))
    field = field_of(net, torch.randn(2, 3, *size))
    middle = (size[0] // 2, size[1] // 2)
    assert float(field.shares[middle]) == 1
    assert field.centre == (middle[0] + 0.5, middle[1] + 0.5)
    assert field.half_side(0.9) == 0.5
    assert field.own_lines()[0] == 1


@pytest.mark.parametrize("size", [(64, 64), (96, 40), (65, 67)])
def test_the_field_of_one_block_is_its_whole_row_and_column_and_nothing_else(size):
    net = network(arch={"embed_dims": 4, "depths": (1,)}, out_indices=0, local_mixing=False)
    field = field_of(net, torch.randn(1, 3, *size))
    row, column = (int(length / 2 / 4) * 4 for length in size)
    cross = torch.zeros(*size, dtype=torch.bool)
    cross[row : row + 4] = True
    cross[:, column : column + 4] = True
    assert (field.shares[cross] > 0).all()
    assert (field.shares[~cross] == 0).all()
    share, area = field.own_lines()
    assert share == pytest.approx(1)
    assert area == pytest.approx(float(cross.double().mean()))


def test_the_field_of_local_mixing_ends_where_its_convolutions_end(images):
    field = field_of(network(global_mixing=False), images)
    # Stage 2's token 4 sees 2 tokens of 8 pixels on either side, and stage 1 another 2 tokens of 4 pixels.
    inside = torch.zeros(64, 64, dtype=torch.bool)
    inside[32 - 24 : 40 + 24, 32 - 24 : 40 + 24] = True
    assert (field.shares[~inside] == 0).all()
    assert (field.shares[inside] > 0).all()
    assert field.centre == (36, 36)
    assert field.token == (8, 8)


@pytest.mark.parametrize("size", [(64, 64), (96, 160)])
def test_the_field_of_sparse_mlps_covers_the_canvas(size):
    field = field_of(network(), torch.randn(1, 3, *size))
    assert field.shares.shape == size
    assert (field.shares > 0).all()
    assert float(field.shares.sum()) == pytest.approx(1)


def test_each_level_has_its_field(images):
    net = network()
    fields = effective_receptive_fields(net, images)
    assert [field.token for field in fields] == [(4, 4), (8, 8)]
    torch.testing.assert_close(fields[1].shares, field_of(net, images).shares)
    assert fields[0].half_side(0.5) < fields[1].half_side(0.5)


def test_a_field_averages_absolute_gradients_over_the_images():
    class Square(nn.Module):
        def forward(self, x):
            return nn.functional.avg_pool2d(x.square(), 2).sum(1, keepdim=True)

    images = torch.tensor([[[[1.0, -2.0], [0.0, 0.0]]], [[[-3.0, 0.0], [0.0, 2.0]]]])
    field = field_of(Square(), images)
    assert field.shares.tolist() == [[0.5, 0.25], [0.0, 0.25]]
    assert field.centre == (1, 1)


def test_a_layer_norm_at_the_end_does_not_leave_rounding_noise():
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 16, 3, padding=1)

        def forward(self, x):
            x = self.conv(x).permute(0, 2, 3, 1)
            return nn.functional.layer_norm(x, (16,)).permute(0, 3, 1, 2)

    net, images = Normed(), torch.randn(1, 3, 9, 9)
    image = images.clone().requires_grad_()
    net(image)[0, :, 4, 4].clamp(min=0).sum().backward()
    wanted = image.grad[0].abs().sum(0).double()
    torch.testing.assert_close(field_of(net, images).shares, wanted / wanted.sum())


def test_a_field_leaves_the_network_as_it_was(images):
    net = network().train()
    net.stages[0].eval()
    with torch.no_grad():
        field_of(net, images)
    assert net.training
    assert not net.stages[0].training
    assert net.stages[1].training
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize("share", [0.5, 0.9, 1])
def test_the_side_of_an_even_field_is_the_root_of_its_share(share):
    field = ReceptiveField(torch.full((200, 200), 1 / 200**2, dtype=torch.float64), (100, 100))
    assert field.side(share) == pytest.approx(share**0.5, abs=0.01)  # one pixel on either side


def test_the_side_counts_only_what_lies_on_the_canvas():
    shares = torch.zeros(8, 8, dtype=torch.float64)
    shares[6, 6], shares[2, 6] = 0.6, 0.4
    field = ReceptiveField(shares, (6, 6))  # where the four pixels round it meet
    assert field.half_side(0.6) == 1
    assert field.side(0.6) == pytest.approx(2 / 8)
    assert field.half_side(0.9) == 4  # rows and columns 2 to 8 of 0 to 8
    assert field.side(0.9) == pytest.approx(6 / 8)


def test_the_reach_tells_the_share_within_each_square():
    shares = torch.zeros(5, 5, dtype=torch.float64)
    shares[2, 2], shares[1, 2], shares[3, 3], shares[0, 0] = 0.4, 0.1, 0.2, 0.3
    distance, held = ReceptiveField(shares, (2.5, 2.5)).reach()
    assert distance.tolist() == [0.5, 1.5, 2.5]
    assert held.tolist() == pytest.approx([0.4, 0.7, 1])


def test_own_lines_are_the_tokens_row_and_column():
    shares = torch.full((4, 6), 1 / 24, dtype=torch.float64)
    field = ReceptiveField(shares, (3, 3), (2, 2))  # rows 2 and 3, columns 2 and 3
    assert field.own_lines() == pytest.approx((16 / 24, 16 / 24))


def test_beyond_is_what_a_window_moved_onto_the_canvas_leaves_out():
    shares = torch.zeros(8, 8, dtype=torch.float64)
    shares[7, 7], shares[4, 4], shares[3, 7] = 0.5, 0.3, 0.2
    field = ReceptiveField(shares, (7, 7))
    assert field.beyond(4, 4) == pytest.approx(0.2)
    assert field.beyond(8, 8) == pytest.approx(0)


@pytest.mark.parametrize("pixels", [1, 20, 33, 64, 224, 225, 333])
@pytest.mark.parametrize("stride", [4, 32])
def test_the_middle_token_of_a_padded_map_lies_where_its_stride_says(pixels, stride):
    tokens = math.ceil(pixels / stride)
    size = token_size(pixels, tokens)
    assert size == stride or (tokens == 1 and size >= pixels)


@pytest.mark.parametrize(("pixels", "tokens", "size"), [(224, 16, 14), (225, 56, 225 / 56)])
def test_tokens_of_other_networks_share_the_axis(pixels, tokens, size):
    assert token_size(pixels, tokens) == size


def test_fields_that_make_no_sense_are_refused(images):
    with pytest.raises(ValueError, match=r"\(N, C, H, W\), got \(3, 64, 64\)"):
        field_of(network(), images[0])
    with pytest.raises(ValueError, match="no pixel has a gradient"):
        field_of(network(), images * torch.nan)
    with pytest.raises(ValueError, match=r"Flatten is no backbone that returns maps \(N, C, H, W\), but: \(1, 12288\)"):
        field_of(nn.Flatten(), images)
