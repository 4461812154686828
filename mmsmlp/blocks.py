"""The blocks of sMLPNet (arXiv 2109.05422, section 3), the stages made of them, and the patches between stages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from mmsmlp.layers import ChannelMLP, DropPath, LocalMixer, SparseMLP
from mmsmlp.ops.axis_mixing import is_traced, product_dtype
from mmsmlp.ops.fused import DEVICES, can_fuse, fused_block
from mmsmlp.resize import DEFAULT_METHOD
from mmsmlp.symbols import is_certain
from mmsmlp.valid_area import Sizes, on_each_image


class SMLPBlock(nn.Module):
    """A block of sMLPNet: ``x + drop_path(sparse_mlp(local(x)))``, then ``x + drop_path(channel_mlp(x))``.

    Args:
        channels (int): Number of channels C.
        grid (tuple[int, int]): Anchor positions (H, W).
        mlp_ratio (float): Expansion of the channel MLP.
        drop_path_rate (float): Stochastic depth rate, the same for both branches.
        interpolation (str): One of ``mmsmlp.resize.METHODS``.
        norm_cfg (dict | None): Batch norm config. Defaults to ``dict(type='BN')``.
        with_cp (bool): Recompute the block in the backward pass instead of keeping its activations.
        local_mixing (bool): Whether there is the depth-wise convolution with its norm. Defaults to True.
        global_mixing (bool): Whether there is the sparse MLP. Defaults to True.
        fusion (str): How the sparse MLP fuses its branches, see :class:`SparseMLP`. Defaults to 'concat'.
        identity_branch (bool): Whether the sparse MLP has an identity branch. Defaults to True.

    Raises:
        ValueError: If an argument is invalid, or nothing is left that mixes tokens.
    """

    def __init__(
        self,
        channels: int,
        grid: tuple[int, int],
        mlp_ratio: float = 3,
        drop_path_rate: float = 0.0,
        interpolation: str = DEFAULT_METHOD,
        norm_cfg: dict | None = None,
        with_cp: bool = False,
        local_mixing: bool = True,
        global_mixing: bool = True,
        fusion: str = "concat",
        identity_branch: bool = True,
    ):
        super().__init__()
        if not (local_mixing or global_mixing):
            raise ValueError("a block without local and without global mixing does not mix tokens: keep one of them")
        self.local = LocalMixer(channels, norm_cfg) if local_mixing else None
        self.sparse_mlp = None
        if global_mixing:
            self.sparse_mlp = SparseMLP(channels, grid, interpolation, norm_cfg, fusion, identity_branch)
        self.channel_mlp = ChannelMLP(channels, mlp_ratio)
        self.drop_path = DropPath(drop_path_rate)
        self.with_cp = with_cp

    def forward(self, x: Tensor, sizes: Sizes | None = None) -> Tensor:
        """(N, C, H, W), or a row of maps packed with ``sizes`` -> the same shape, channels-last memory."""
        # An NCHW-contiguous input makes torch 2.1.2 on a CPU return uninitialised memory as gradients, when the
        # gradient comes back in the permuted layout; and every product below wants channels last.
        x = x.contiguous(memory_format=torch.channels_last)
        if self.with_cp and torch.is_grad_enabled():
            contexts = partial(_checkpoint_contexts, self)
            return checkpoint(self._forward, x, sizes, use_reentrant=False, context_fn=contexts)
        return self._forward(x, sizes)

    def _forward(self, x: Tensor, sizes: Sizes | None) -> Tensor:
        return fused_block(self, x, sizes) if can_fuse(self, x) else self._plain(x, sizes)

    def _plain(self, x: Tensor, sizes: Sizes | None) -> Tensor:
        mixed = x
        for mixer in (self.local, self.sparse_mlp):
            if mixer is not None:
                mixed = mixer(mixed, sizes)
        x = x + self.drop_path(mixed, sizes)
        return x + self.drop_path(self.channel_mlp(x), sizes)


class Stage(nn.Sequential):
    """Blocks one after the other, on a batch or on a row of packed maps."""

    def forward(self, x: Tensor, sizes: Sizes | None = None) -> Tensor:
        """(N, C, H, W), or a row of maps packed with ``sizes`` -> the same shape."""
        for block in self:
            x = block(x, sizes)
        return x


class PatchConv(nn.Conv2d):
    """Non-overlapping patches to tokens: a k x k convolution of stride k without bias.

    The stem (k = 4 in the paper) and the merging between stages (k = 2). Maps that k does not divide are padded with
    zeros on the right and at the bottom, so H and W become ceil(H / k) and ceil(W / k), as in Swin.

    Args:
        in_channels (int): Number of input channels.
        out_channels (int): Number of output channels.
        patch_size (int): Patch edge k.
    """

    def __init__(self, in_channels: int, out_channels: int, patch_size: int):
        super().__init__(in_channels, out_channels, patch_size, stride=patch_size, bias=False)
        self.patch_size = patch_size

    def forward(self, x: Tensor, sizes: Sizes | None = None) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, ceil(H / k), ceil(W / k)); or for each map of a row packed with ``sizes``."""
        return on_each_image(self._embed, x, sizes)

    def _embed(self, x: Tensor) -> Tensor:
        k = self.patch_size
        if not all(is_certain(size % k == 0) for size in x.shape[2:]):
            # As much as any size needs; the stride leaves out what is too much. So it is the same for all sizes.
            x = nn.functional.pad(x, (0, k - 1, 0, k - 1))
        weight = self.weight
        if x.device.type in DEVICES and not is_traced(x) and not x.is_contiguous(memory_format=torch.channels_last):
            # One operand in channels-last memory makes the result so, as the blocks want it; images rarely are.
            weight = weight.contiguous(memory_format=torch.channels_last)
        return nn.functional.conv2d(x, weight, stride=self.stride)


def check_images(x: Tensor, stem: PatchConv) -> None:
    """Refuse what a network with this stem cannot take.

    Args:
        x (Tensor): What is meant to be images (N, C_in, H, W).
        stem (PatchConv): The network's first layer.

    Raises:
        TypeError: If it is no tensor.
        ValueError: If its shape or dtype is another.
    """
    wanted = f"SMLPNet takes images (N, {stem.in_channels}, H, W) with N, H, W >= 1"
    if not isinstance(x, Tensor):
        raise TypeError(f"{wanted} as one tensor, got a {type(x).__name__}")
    if x.ndim != 4 or x.shape[1] != stem.in_channels or 0 in x.shape:
        raise ValueError(f"{wanted}, got {tuple(x.shape)}")
    dtype = getattr(stem.weight, "dtype", x.dtype)  # a method in a quantised layer
    if not x.is_floating_point() or (x.dtype != dtype and product_dtype(x) == x.dtype):
        raise ValueError(
            f"{wanted} of {dtype}, which its weights are, got {x.dtype}: convert the images (normalised, as the "
            "network was trained), the network (net.to(dtype)), or run under torch.autocast"
        )


def _checkpoint_contexts(module: nn.Module):
    """Contexts for :func:`torch.utils.checkpoint.checkpoint`: of the forward pass, and of its recomputation."""
    return nullcontext(), _unchanged_running_statistics(module)


@contextmanager
def _unchanged_running_statistics(module: nn.Module) -> Iterator[None]:
    """Keep batch norms from counting the same batch a second time when a forward pass is recomputed."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    saved = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        norm.num_batches_tracked = norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, (momentum, batches) in zip(norms, saved):
            norm.momentum, norm.num_batches_tracked = momentum, batches
