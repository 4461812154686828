"""The parts of sMLPNet's block without gradients, in the memory of one map.

Used by :mod:`mmsmlp.ops.fused` where nothing is kept for a backward pass. Norms with running statistics are folded into
the convolution and an affine map, in every pass where :mod:`mmsmlp.folding` has not done it once. A part works on some
lines of the map at a time (:mod:`mmsmlp.ops.parts`) and writes its result over its input wherever that is its own; so
each block of layers takes one new map of memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmsmlp.layers import ChannelAffine
from mmsmlp.ops import parts
from mmsmlp.ops.axis_mixing import add_product, choose_path, two_tap_factors
from mmsmlp.ops.products import linear
from mmsmlp.ops.taps import Taps, add_rows, combine
from mmsmlp.resize import resize_axis_bias, resize_axis_weight

gelu = torch.ops.aten.gelu
gelu_ = torch.ops.aten.gelu_


@dataclass(frozen=True)
class Axis:
    """What a map is mixed with along an axis: ``write (weight (read x) + bias)``, without taps on its own positions.

    Attributes:
        dim (int): 1 (H) or 2 (W) of (N, H, W, C).
        read (Taps | None): From the map's positions to the anchor's.
        write (Taps | None): From the anchor's positions to the map's.
    """

    dim: int
    read: Taps | None = None
    write: Taps | None = None


def axis_of(layer: nn.Module, size: int, channels: int) -> tuple[Axis, Tensor, Tensor]:
    """An axis layer's way to a number of positions.

    Args:
        layer (AxisLinear): The layer.
        size (int): Number of positions of the map.
        channels (int): Number of channels that are fused along the way.

    Returns:
        tuple[Axis, Tensor, Tensor]: The way, and weight (k, k) and bias (k,) on the anchor's or map's positions.
    """
    weight, bias, method = layer.weight, layer.bias, layer.interpolation
    if choose_path(layer.length, size, method, weight.device.type, channels=channels) == "two_tap":
        weight, read, write = two_tap_factors(weight, size, method)
        return Axis(layer.dim, read, write), weight, bias
    return Axis(layer.dim), resize_axis_weight(weight, size, method), resize_axis_bias(bias, size, method)


def local(mixer: nn.Module, norm: nn.Module, x: Tensor) -> Tensor:
    """The local mixer, and the norm and activation of the sparse MLP, which follow it.

    Args:
        mixer (LocalMixer): Norm, activation and depth-wise convolution.
        norm (_BatchNorm | nn.Identity): The norm that follows. Norms have running statistics, or :mod:`mmsmlp.folding`
            has folded them.
        x (Tensor): (N, C, H, W), channels-last memory; left as it is.

    Returns:
        Tensor: (N, C, H, W), channels-last memory, new.
    """
    conv = mixer.conv
    scale, shift = _affine(mixer.norm)
    weight, bias = conv.weight, conv.bias
    if isinstance(norm, _BatchNorm):
        scale_after, bias = _affine(norm)
        weight = weight * scale_after[:, None, None, None]

    def convolved(lines: Tensor) -> Tensor:
        activated = gelu_(torch.addcmul(shift, lines, scale)).permute(0, 3, 1, 2)
        y = F.conv2d(activated, weight, bias, padding=conv.padding, groups=conv.groups)
        return y.permute(0, 2, 3, 1)  # contiguous, as oneDNN's GELU wants it

    x = x.permute(0, 2, 3, 1)  # (N, C, H, W) -> (N, H, W, C), a view
    if x.numel() <= parts.CHUNK_VALUES:
        return gelu_(convolved(x)).permute(0, 3, 1, 2)
    result = torch.empty_like(x)
    for images, lines, wider in parts.strips(x, conv.padding[0]):
        first = lines.start - wider.start
        strip = convolved(x[images, wider])[:, first : first + lines.stop - lines.start]
        gelu.out(strip, out=result[images, lines])
    return result.permute(0, 3, 1, 2)


def mix_and_fuse(
    x: Tensor,
    residual: Tensor | None,
    fuse: Tensor,
    w_weight: Tensor,
    w_bias: Tensor,
    h_weight: Tensor,
    h_bias: Tensor,
    w_axis: Axis,
    h_axis: Axis,
) -> Tensor:
    """The branches of a sparse MLP and their fusion.

    Args:
        x (Tensor): (N, H, W, C), contiguous, after norm and activation; overwritten.
        residual (Tensor | None): What to add, of the same shape.
        fuse (Tensor): Weight of the fusion (C, 3C).
        w_weight (Tensor): Weight along W, see :func:`axis_of`.
        w_bias (Tensor): Bias along W.
        h_weight (Tensor): Weight along H.
        h_bias (Tensor): Bias along H.
        w_axis (Axis): The way along W.
        h_axis (Axis): The way along H.

    Returns:
        Tensor: ``x``, which now holds the result.
    """
    identity, *of_axes = thirds(fuse)
    whole, written = [], []
    for axis, third, weight, bias in zip((w_axis, h_axis), of_axes, (w_weight, h_weight), (w_bias, h_bias)):
        fused = linear(x if axis.read is None else combine(x, axis.dim, axis.read), third)
        # The bias of a position is the same in all channels; fusing weighs each by the sum of a channel's weights.
        offset = bias[:, None] * third.sum(1)
        offset = offset if axis.dim == 2 else offset[:, None]
        if axis.write is None:
            whole.append((axis.dim, weight, fused, offset))
        else:
            on_anchor = add_product(torch.empty_like(fused).copy_(offset), weight, fused, axis.dim)
            written.append((axis, on_anchor))
    # While a strip is in the cache: all that is computed of its own lines, or comes back from the anchor grid.
    for images, lines, _ in parts.strips(x):
        strip = x[images, lines]
        torch.add(linear(strip, identity), 0 if residual is None else residual[images, lines], out=strip)
        for axis, on_anchor in written:
            add_rows(strip, on_anchor[images], axis.dim, axis.write, lines)
    for dim, weight, fused, offset in whole:
        add_product(x, weight, fused, dim)
        x.add_(offset)
    return x


def channel_mlp(mlp: nn.Module, x: Tensor, residual: bool) -> Tensor:
    """The channel MLP.

    Args:
        mlp (ChannelMLP): Norm, linear, activation, linear.
        x (Tensor): (N, H, W, C), contiguous; overwritten if ``residual``, since it is the sum of the layers before.
        residual (bool): Whether to add ``x``.

    Returns:
        Tensor: The same shape.
    """
    norm, fc1, fc2 = mlp.norm, mlp.fc1, mlp.fc2
    out = x if residual else torch.zeros_like(x)
    for tokens, result in parts.chunks((x, out), fc1.out_features):
        hidden = linear(norm(tokens), fc1.weight, fc1.bias, gelu=True)
        result.add_(linear(hidden, fc2.weight, fc2.bias))
    return out


def _affine(norm: _BatchNorm | ChannelAffine) -> tuple[Tensor, Tensor]:
    """Scale and shift (C,) of a norm with running statistics."""
    if isinstance(norm, ChannelAffine):
        return norm.scale, norm.shift
    return scale_and_shift(norm.weight, norm.bias, norm.running_mean, (norm.running_var + norm.eps).rsqrt())


def scale_and_shift(weight: Tensor, bias: Tensor, mean: Tensor, inverse_std: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and shift (C,) of a norm with these parameters and statistics (C,)."""
    scale = weight * inverse_std
    return scale, bias - mean * scale


def thirds(fuse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The weights (C, C) of the identity, W and H branches in that of their fusion, (C, 3C)."""
    return fuse.unflatten(1, (3, -1)).transpose(0, 1).contiguous().unbind()
