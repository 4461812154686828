"""Norms folded into the layers beside them, for inference: the same outputs to rounding, with fewer operations.

In eval mode a batch norm is ``x * scale + shift`` per channel. A block of sMLPNet has three norms:

- the batch norm after the depth-wise convolution goes into its weight and a new bias;
- the batch norm at the entrance, with an activation after it and a residual sum before it, has no layer to go into: it
  becomes a :class:`~mmsmlp.layers.ChannelAffine`, and so do norms of the outputs;
- the layer norm's weight and bias go into the linear layer after it; its statistics are those of each token and stay.

:func:`mmsmlp.fuse_norms` is the public call.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmsmlp.layers import ChannelAffine


def fold_backbone(net: nn.Module) -> None:
    """Fold the norms of an :class:`~mmsmlp.SMLPNet`, in place and for good; one that is folded stays as it is.

    Raises:
        ValueError: If a layer was replaced by one of another type, or a batch norm has no running statistics.
    """
    if net.fused_norms:
        return
    for stage in net.stages:
        for block in stage:
            fold_block(block)
    for name in (f"norm{i}" for i in net.out_indices):
        if hasattr(net, name):
            setattr(net, name, to_affine(getattr(net, name)))
    net.eval().requires_grad_(False)
    net.fused_norms = True


def fold_block(block: nn.Module) -> None:
    """Fold the norms of an :class:`~mmsmlp.blocks.SMLPBlock`, in place; of its ablations as well.

    Raises:
        ValueError: If a layer was replaced by one of another type, or a batch norm has no running statistics.
    """
    local, sparse, mlp = block.local, block.sparse_mlp, block.channel_mlp
    if local is not None and sparse is not None:
        _fold_into_conv(local.conv, sparse.norm)
        sparse.norm = nn.Identity()
    elif sparse is not None:
        sparse.norm = to_affine(sparse.norm)
    if local is not None:
        local.norm = to_affine(local.norm)
    mlp.norm = _fold_into_linear(mlp.norm, mlp.fc1)


@torch.no_grad()
def to_affine(norm: _BatchNorm) -> ChannelAffine:
    """Make the affine map that a batch norm is in eval mode.

    Raises:
        ValueError: If it is no batch norm, or has no running statistics.
    """
    return ChannelAffine(*(t.to(norm.running_mean.dtype) for t in _scale_and_shift(norm)))


@torch.no_grad()
def _fold_into_conv(conv: nn.Conv2d, norm: _BatchNorm) -> None:
    """Multiply the batch norm after a convolution into it, in place."""
    _check_type(conv, nn.Conv2d)
    scale, shift = _scale_and_shift(norm)
    dtype = conv.weight.dtype
    bias = shift if conv.bias is None else shift + scale * conv.bias.double()
    conv.weight = nn.Parameter((conv.weight.double() * scale[:, None, None, None]).to(dtype))
    conv.bias = nn.Parameter(bias.to(dtype))


@torch.no_grad()
def _fold_into_linear(norm: nn.LayerNorm, linear: nn.Linear) -> nn.LayerNorm:
    """Multiply a layer norm's weight and bias into the linear layer after it, in place; returns the norm without."""
    _check_type(norm, nn.LayerNorm)
    _check_type(linear, nn.Linear)
    dtype = linear.weight.dtype
    weight = linear.weight.double()
    if norm.bias is not None:
        shift = weight @ norm.bias.double()
        linear.bias = nn.Parameter((shift if linear.bias is None else shift + linear.bias.double()).to(dtype))
    if norm.weight is not None:
        linear.weight = nn.Parameter((weight * norm.weight.double()).to(dtype))
    return nn.LayerNorm(norm.normalized_shape, norm.eps, elementwise_affine=False)


def _scale_and_shift(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Scale and shift (C,) of a batch norm in eval mode, float64."""
    if not isinstance(norm, _BatchNorm):
        raise ValueError(f"a batch norm was to be folded, but there is a {type(norm).__name__}")
    if norm.running_mean is None:
        raise ValueError(
            "a batch norm without running statistics (track_running_stats=False) depends on the batch and cannot be "
            "folded"
        )
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    return scale, shift if norm.bias is None else shift + norm.bias.double()


def _check_type(layer: nn.Module, wanted: type) -> None:
    # Of a subclass nobody knows what else it computes: an adapter, a quantised layer.
    if type(layer) is not wanted:
        raise ValueError(f"norms fold into PyTorch's own {wanted.__name__}, but there is a {type(layer).__name__}")
