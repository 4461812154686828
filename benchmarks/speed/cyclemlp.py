"""CycleMLP-B2, an MLP for any image size by deformable convolution, written from its paper (arXiv 2107.10224).

A *cycle FC* is a fully connected layer over channels whose input channels are read at different positions: channel c
is read at an offset along one axis that goes round with c, through a pseudo-kernel of S positions (section 3.2). Its
published form is a deformable 1x1 convolution with constant offsets; so it is here. Dimensions and depths are B2's.
"""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import flop_counter
from torchvision.ops import deform_conv2d

DIMS = (64, 128, 320, 512)
DEPTHS = (2, 3, 10, 3)
MLP_RATIO = 4
STEP = 3  # positions of the pseudo-kernel


def _deform_conv_flop(x: torch.Size, weight: torch.Size, *_, out_shape: torch.Size, **__) -> int:
    """The products, as of any convolution; reading at the offsets is not counted."""
    return 2 * out_shape.numel() * weight[1:].numel()


if hasattr(flop_counter, "register_flop_formula"):
    flop_counter.register_flop_formula(torch.ops.torchvision.deform_conv2d)(_deform_conv_flop)
else:  # torch 2.1 has the table only
    flop_counter.flop_mapping[torch.ops.torchvision.deform_conv2d] = _deform_conv_flop


class CycleFC(nn.Module):
    """A fully connected layer over channels, channel c read at an offset along an axis.

    Args:
        channels (int): Number of channels C.
        along_w (bool): Whether offsets go along W; else along H.
    """

    def __init__(self, channels: int, along_w: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels))
        nn.init.trunc_normal_(self.weight, std=0.02)
        offset = torch.zeros(channels, 2)  # of each channel, along H and W
        offset[:, int(along_w)] = (torch.arange(channels) + STEP // 2) % STEP - STEP // 2
        self.register_buffer("offset", offset.view(1, -1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        n, _, h, w = x.shape
        # The operator takes one type only; autocast does not know it.
        offset = self.offset.to(x.dtype).expand(n, -1, h, w)
        # On a CPU torchvision has it in float32 only.
        with nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False):
            dtype = torch.promote_types(x.dtype, torch.float32) if x.device.type == "cpu" else x.dtype
            mixed = deform_conv2d(x.to(dtype), offset.to(dtype), self.weight.to(dtype), self.bias.to(dtype))
        return mixed.to(x.dtype)


class CycleMixer(nn.Module):
    """Token mixing: cycle FCs along H and along W and a channel FC, summed with weights made from the input.

    Args:
        channels (int): Number of channels C.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.fc = nn.Linear(channels, channels, bias=False)
        self.cycle_w = CycleFC(channels, along_w=True)
        self.cycle_h = CycleFC(channels, along_w=False)
        self.reweight = nn.Sequential(
            nn.Linear(channels, channels // 4), nn.GELU(), nn.Linear(channels // 4, 3 * channels)
        )
        self.project = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> the same shape."""
        n, c = x.shape[0], x.shape[3]
        maps = x.permute(0, 3, 1, 2)
        branches = [self.cycle_w(maps).permute(0, 2, 3, 1), self.cycle_h(maps).permute(0, 2, 3, 1), self.fc(x)]
        mean = sum(branches).mean((1, 2))  # (N, C)
        weights = self.reweight(mean).view(n, c, 3).softmax(2)  # of the three branches, for each channel
        mixed = sum(branch * weight[:, None, None] for branch, weight in zip(branches, weights.unbind(2)))
        return self.project(mixed)


class CycleBlock(nn.Module):
    """Token mixing and a channel MLP, each after a layer norm and with a shortcut.

    Args:
        channels (int): Number of channels C.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.mixer = CycleMixer(channels)
        self.norm2 = nn.LayerNorm(channels)
        self.fc1 = nn.Linear(channels, MLP_RATIO * channels)
        self.fc2 = nn.Linear(MLP_RATIO * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) -> the same shape."""
        x = x + self.mixer(self.norm1(x))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class CycleMLP(nn.Module):
    """The backbone CycleMLP-B2: overlapping patches of 7 x 7 at stride 4, then of 3 x 3 at stride 2 between stages.

    Args:
        out_indices (tuple[int, ...]): Stages whose maps are returned, each after a layer norm.
    """

    def __init__(self, out_indices: tuple[int, ...] = (0, 1, 2, 3)):
        super().__init__()
        self.out_indices = out_indices
        self.downsample_layers, self.stages = nn.ModuleList(), nn.ModuleList()
        for stage, (given, channels, depth) in enumerate(zip((3, *DIMS), DIMS, DEPTHS)):
            kernel, stride, padding = (7, 4, 2) if stage == 0 else (3, 2, 1)
            self.downsample_layers.append(nn.Conv2d(given, channels, kernel, stride, padding))
            self.stages.append(nn.Sequential(*(CycleBlock(channels) for _ in range(depth))))
            if stage in out_indices:
                self.add_module(f"norm{stage}", nn.LayerNorm(channels))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Images (N, 3, H, W) -> maps (N, C, H / stride, W / stride) of ``out_indices``, contiguous."""
        maps = []
        for index, (downsample, stage) in enumerate(zip(self.downsample_layers, self.stages)):
            x = stage(downsample(x).permute(0, 2, 3, 1))
            if index in self.out_indices:
                maps.append(getattr(self, f"norm{index}")(x).permute(0, 3, 1, 2).contiguous())
            x = x.permute(0, 3, 1, 2)
        return tuple(maps)
