"""The block of sMLPNet in few passes over memory: :func:`fused_block`, equal to the layers' plain code to rounding.

What is different:

- Mixing after fusing. Channel and axis mixing commute, so instead of mixing, concatenating and fusing, the map is
  multiplied by each third of the fusion's weight, and the axis products add to the sum: no concatenation. On a map that
  is larger than the anchor, channels are mixed on the anchor's fewer positions. In training on the map's own
  positions (the anchor's size and below) the branches are concatenated: the gradient of the fusion's weight takes them.
- Less is kept for the backward pass: besides those branches the inputs of norms, of the convolution and of the axes,
  and the channel MLP's hidden layer before its activation. Norms and activations are computed again.
- Without gradients there is :mod:`mmsmlp.ops.in_place`.
- Products go through :mod:`mmsmlp.ops.products`.

docs/performance.md has what each brings.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm

from mmsmlp.layers import AxisLinear, ChannelAffine, DropPath
from mmsmlp.ops import in_place
from mmsmlp.ops.axis_mixing import add_product, is_traced, lines_of, product, product_dtype
from mmsmlp.ops.in_place import axis_of, scale_and_shift, thirds
from mmsmlp.ops.parts import chunks
from mmsmlp.ops.products import linear, weight_gradient
from mmsmlp.ops.taps import add_combined, combine
from mmsmlp.valid_area import Sizes, on_each_image

# Where it was measured. Operations counted on the meta device are those of a CPU.
DEVICES = ("cpu", "meta")
DTYPES = (torch.float32, torch.float64)

_LAYERS = (nn.Conv2d, nn.Linear, nn.LayerNorm, nn.GELU, AxisLinear, ChannelAffine, DropPath)

gelu_ = torch.ops.aten.gelu_
gelu_backward = torch.ops.aten.gelu_backward.grad_input


def can_fuse(block: nn.Module, x: Tensor) -> bool:
    """Whether :func:`fused_block` serves a block and a map.

    Not for other devices and types than ``DEVICES`` and ``DTYPES`` or autocast, where it was not measured; not while
    operations are recorded (``torch.compile``, ``torch.export``, ``torch.jit.trace``), since compilers fuse on their
    own and know plain operators best; not for ablations of the block, norms that are synchronised or without weights,
    and layers that were replaced or have hooks, which would be passed over.
    """
    if x.device.type not in DEVICES or x.dtype not in DTYPES or is_traced(x) or product_dtype(x) != x.dtype:
        return False
    if block.local is None or block.sparse_mlp is None or not block.sparse_mlp.is_standard:
        return False
    modules = list(_tree(block))
    if any(map(_has_hooks, modules[1:])):
        return False
    layers = [module for module in modules if not module._modules]
    if type(block.local.norm) is ChannelAffine and type(block.sparse_mlp.norm) is nn.Identity:  # by mmsmlp.folding
        if _needs_grad(x, block):
            return False
        layers.remove(block.sparse_mlp.norm)
    return all(_is_plain(layer, x.dtype) for layer in layers)


def fused_block(block: nn.Module, x: Tensor, sizes: Sizes | None = None) -> Tensor:
    """Apply an :class:`~mmsmlp.blocks.SMLPBlock` where :func:`can_fuse` holds.

    Args:
        block (SMLPBlock): The block.
        x (Tensor): (N, C, H, W) in channels-last memory, or a row of maps packed with ``sizes``.
        sizes (tuple[tuple[int, int], ...] | None): Height and width of each packed map.

    Returns:
        Tensor: The same shape, channels-last memory, what ``block`` gives by its layers' own code.

    Raises:
        ValueError: If a batch norm is to take statistics of a single value per channel.
    """
    y = _local(block.local, block.sparse_mlp.norm, x, sizes)
    dropping = block.drop_path.training and block.drop_path.rate > 0
    if sizes is None and not dropping:
        x = _mix_and_fuse(block.sparse_mlp, y, residual=x)
    else:
        mixed = on_each_image(partial(_mix_and_fuse, block.sparse_mlp), y, sizes)
        x = x + block.drop_path(mixed, sizes)
    if dropping:
        return x + block.drop_path(_channel_mlp(block.channel_mlp, x, residual=False), sizes)
    return _channel_mlp(block.channel_mlp, x, residual=True)


def _local(local: nn.Module, norm: _BatchNorm, x: Tensor, sizes: Sizes | None) -> Tensor:
    """The local mixer, and the norm and activation of the sparse MLP, which follow it."""
    if _needs_grad(x, local, norm) or _uses_batch_statistics(local.norm) or _uses_batch_statistics(norm):
        return _norm_gelu(norm, on_each_image(local.conv, _norm_gelu(local.norm, x), sizes))
    return on_each_image(partial(in_place.local, local, norm), x, sizes)


def _norm_gelu(norm: _BatchNorm, x: Tensor) -> Tensor:
    """GELU of a batch norm of (N, C, H, W); keeps ``x`` alone for the backward pass."""
    batch = _uses_batch_statistics(norm)
    if batch and x.numel() == x.shape[1]:
        raise ValueError(
            f"a batch norm in training needs more than one value per channel, got a map {tuple(x.shape)}: use larger "
            "images or batches, or norm_eval=True"
        )
    momentum = norm.momentum
    if norm.training and norm.track_running_stats:
        norm.num_batches_tracked.add_(1)
        momentum = 1 / float(norm.num_batches_tracked) if momentum is None else momentum  # a cumulative average
    running = (norm.running_mean, norm.running_var) if not norm.training or norm.track_running_stats else (None, None)
    return _NormGELU.apply(x, norm.weight, norm.bias, *running, batch, momentum or 0.0, norm.eps)


class _NormGELU(torch.autograd.Function):
    """(N, C, H, W) -> the same shape; norm and activation are computed again in the backward pass."""

    @staticmethod
    def forward(ctx, x, weight, bias, running_mean, running_var, batch, momentum, eps):
        y, mean, inverse_std = torch.ops.aten.native_batch_norm(
            x, weight, bias, running_mean, running_var, batch, momentum, eps
        )
        # Statistics of the batch are in what the operator returns, running ones are not.
        kept = (None, None, mean, inverse_std) if batch else (running_mean, running_var, None, None)
        ctx.save_for_backward(x, weight, bias, *kept)
        ctx.batch, ctx.eps = batch, eps
        gelu_(y.permute(0, 2, 3, 1))  # oneDNN's, which is for contiguous tensors only
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight, bias, running_mean, running_var, mean, inverse_std = ctx.saved_tensors
        if ctx.batch:
            scale, shift = scale_and_shift(weight, bias, mean, inverse_std)
        else:
            scale, shift = scale_and_shift(weight, bias, running_mean, (running_var + ctx.eps).rsqrt())
        normed = torch.addcmul(shift, x.permute(0, 2, 3, 1), scale)
        grad = gelu_backward(grad.permute(0, 2, 3, 1), normed, grad_input=normed).permute(0, 3, 1, 2)
        grads = torch.ops.aten.native_batch_norm_backward(
            grad, x, weight, running_mean, running_var, mean, inverse_std, ctx.batch, ctx.eps, ctx.needs_input_grad[:3]
        )
        return *grads, None, None, None, None, None


def _mix_and_fuse(sparse: nn.Module, x: Tensor, residual: Tensor | None = None) -> Tensor:
    """The branches of a sparse MLP and their fusion, on (N, C, H, W) after norm and activation; plus a residual."""
    needs_grad = _needs_grad(x, sparse) or (residual is not None and _needs_grad(residual))
    x = x.permute(0, 2, 3, 1)
    residual = None if residual is None else residual.permute(0, 2, 3, 1)
    _, height, width, channels = x.shape
    w_axis, w_weight, w_bias = axis_of(sparse.mix_w, width, channels)
    h_axis, h_weight, h_bias = axis_of(sparse.mix_h, height, channels)
    arguments = (x, residual, sparse.fuse.weight, w_weight, w_bias, h_weight, h_bias)
    if not needs_grad:
        x = in_place.mix_and_fuse(*arguments, w_axis, h_axis)
    elif w_axis.read is None and h_axis.read is None:
        x = _MixAndFuse.apply(*arguments)
    else:
        x = _FuseAndMix.apply(*arguments, w_axis, h_axis)
    return x.permute(0, 3, 1, 2)


class _MixAndFuse(torch.autograd.Function):
    """(N, H, W, C) -> the same shape, where all is mixed on the map's own positions; keeps the branches."""

    @staticmethod
    def forward(ctx, x, residual, fuse, w_weight, w_bias, h_weight, h_bias):
        branches = torch.cat([x, product(w_weight, x, 2, w_bias), product(h_weight, x, 1, h_bias)], -1)
        ctx.save_for_backward(branches, fuse, w_weight, h_weight)
        ctx.residual = residual is not None
        out = linear(branches, fuse)
        return out if residual is None else out.add_(residual)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        branches, fuse, w_weight, h_weight = ctx.saved_tensors
        grad = grad.contiguous()
        x = branches[..., : len(fuse)].contiguous()
        identity, *of_branches = thirds(fuse)
        grad_x = linear(grad, identity.t())
        of_axes = []
        for dim, third, weight in zip((2, 1), of_branches, (w_weight, h_weight)):
            grad_mixed = linear(grad, third.t())
            of_axes += _axis_gradients(grad_mixed, x, dim)
            add_product(grad_x, weight.t(), grad_mixed, dim)
        return grad_x, grad if ctx.residual else None, weight_gradient(grad, branches), *of_axes


class _FuseAndMix(torch.autograd.Function):
    """(N, H, W, C) -> the same shape, where an axis is mixed on its anchor's positions; keeps the map alone."""

    @staticmethod
    def forward(ctx, x, residual, fuse, w_weight, w_bias, h_weight, h_bias, w_axis, h_axis):
        ctx.save_for_backward(x, fuse, w_weight, w_bias, h_weight, h_bias)
        ctx.axes, ctx.residual = (w_axis, h_axis), residual is not None
        identity, *of_branches = thirds(fuse)
        out = linear(x, identity)
        for axis, third, weight, bias in zip(ctx.axes, of_branches, (w_weight, h_weight), (w_bias, h_bias)):
            read = x if axis.read is None else combine(x, axis.dim, axis.read)
            fused = linear(read, third)
            # The bias of a position is the same in all channels; fusing weighs each by the sum of a channel's weights.
            offset = bias[:, None] * third.sum(1)
            if axis.write is None:
                add_product(out, weight, fused, axis.dim)
                out.add_(offset if axis.dim == 2 else offset[:, None])
            else:
                mixed = torch.empty_like(fused).copy_(offset if axis.dim == 2 else offset[:, None])
                add_product(mixed, weight, fused, axis.dim)
                add_combined(out, mixed, axis.dim, axis.write)
        return out if residual is None else out.add_(residual)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, fuse, w_weight, w_bias, h_weight, h_bias = ctx.saved_tensors
        grad = grad.contiguous()
        identity, *of_branches = thirds(fuse)
        grad_x = linear(grad, identity.t())
        of_fuse, of_axes = [weight_gradient(grad, x)], []
        for axis, third, weight, bias in zip(ctx.axes, of_branches, (w_weight, h_weight), (w_bias, h_bias)):
            dim = axis.dim
            read = x if axis.read is None else combine(x, dim, axis.read)
            grad_mixed = grad if axis.write is None else combine(grad, dim, axis.write.transpose)
            of_fuse.append(weight_gradient(grad_mixed, product(weight, read, dim, bias)))
            grad_mixed = linear(grad_mixed, third.t())  # before fusing
            of_axes += _axis_gradients(grad_mixed, read, dim)
            if axis.read is None:
                add_product(grad_x, weight.t(), grad_mixed, dim)
            else:
                add_combined(grad_x, product(weight.t(), grad_mixed, dim), dim, axis.read.transpose)
        return grad_x, grad if ctx.residual else None, torch.cat(of_fuse, 1), *of_axes, None, None


def _axis_gradients(grad: Tensor, x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Gradients of an axis's weight (k, k) and bias (k,), from that of what it gave and what it took, (N, H, W, C)."""
    lines = lines_of(grad, dim)
    # Summed in two steps, which takes a third of the time of one.
    return torch.bmm(lines, lines_of(x, dim).transpose(1, 2)).sum(0), lines.sum(2).sum(0)


def _channel_mlp(mlp: nn.Module, x: Tensor, residual: bool) -> Tensor:
    """The channel MLP on (N, C, H, W); plus its input if ``residual``."""
    x = x.permute(0, 2, 3, 1)
    norm, fc1, fc2 = mlp.norm, mlp.fc1, mlp.fc2
    if _needs_grad(x, mlp):
        parameters = (norm.weight, norm.bias, fc1.weight, fc1.bias, fc2.weight, fc2.bias)
        x = _ChannelMLP.apply(x, *parameters, norm.eps, residual)
    else:
        x = in_place.channel_mlp(mlp, x, residual)
    return x.permute(0, 3, 1, 2)


class _ChannelMLP(torch.autograd.Function):
    """Keeps the input and the hidden layer before its activation; computes the rest for some tokens at a time."""

    @staticmethod
    def forward(ctx, x, norm_weight, norm_bias, weight1, bias1, weight2, bias2, eps, residual):
        out, mean, inverse_std = torch.native_layer_norm(x, x.shape[-1:], norm_weight, norm_bias, eps)
        hidden = []
        for tokens, part in chunks((x, out), values=len(weight1)):
            hidden.append(linear(part, weight1, bias1))
            mixed = linear(F.gelu(hidden[-1]), weight2, bias2)
            torch.add(mixed, tokens if residual else 0, out=part)  # in place of the normed tokens
        ctx.save_for_backward(x, norm_weight, norm_bias, mean, inverse_std, weight1, weight2, *hidden)
        ctx.residual, ctx.eps = residual, eps
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, norm_weight, norm_bias, mean, inverse_std, weight1, weight2, *hidden = ctx.saved_tensors
        grad = grad.contiguous()
        grad_x = torch.empty_like(x)
        sums: list[Tensor] = []  # over the tokens, in the order of forward's arguments
        parts = chunks((x, mean, inverse_std, grad, grad_x), values=len(weight1))
        for before, (tokens, *statistics, of_out, of_tokens) in zip(hidden, parts):
            of_weight2 = weight_gradient(of_out, F.gelu(before))
            of_hidden = linear(of_out, weight2.t())
            gelu_backward(of_hidden, before, grad_input=of_hidden)
            normed = torch.native_layer_norm(tokens, x.shape[-1:], norm_weight, norm_bias, ctx.eps)[0]
            of_weight1 = weight_gradient(of_hidden, normed)
            of_normed = linear(of_hidden, weight1.t())
            of_normed, *of_norm = torch.ops.aten.native_layer_norm_backward(
                of_normed, tokens, x.shape[-1:], *statistics, norm_weight, norm_bias, [True, True, True]
            )
            torch.add(of_normed, of_out if ctx.residual else 0, out=of_tokens)
            of_part = [*of_norm, of_weight1, of_hidden.sum(0), of_weight2, of_out.sum(0)]
            sums = [total.add_(more) for total, more in zip(sums, of_part)] if sums else of_part
        return grad_x, *sums, None, None


def _uses_batch_statistics(norm: nn.Module) -> bool:
    return isinstance(norm, _BatchNorm) and (norm.training or norm.running_mean is None)


def _needs_grad(x: Tensor, *modules: nn.Module) -> bool:
    parameters = (p for module in modules for p in module.parameters())
    return torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in parameters))


def _tree(module: nn.Module) -> Iterator[nn.Module]:
    # nn.Module.modules() looks for duplicates, which takes longer; this is asked for each block in every pass.
    yield module
    for child in module._modules.values():
        if child is not None:
            yield from _tree(child)


def _is_plain(layer: nn.Module, dtype: torch.dtype) -> bool:
    """Whether a layer computes what its type says, in the map's type."""
    if isinstance(layer, _BatchNorm):
        synchronised = isinstance(layer, nn.SyncBatchNorm) and layer.training
        return layer.affine and not synchronised and layer.weight.dtype == dtype
    if type(layer) is nn.GELU and layer.approximate != "none":
        return False
    return type(layer) in _LAYERS and all(p is None or p.dtype == dtype for p in layer._parameters.values())


def _has_hooks(m: nn.Module) -> bool:
    return bool(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks)
