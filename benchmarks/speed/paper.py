"""The paper's formulation of sMLPNet, written plainly: what the package's layers are measured against.

Maps stay (N, C, H, W) contiguous. A fully connected layer over an axis is a 1x1 convolution that takes that axis for
its channels, so maps are permuted there and back, as the paper's code does (arXiv 2109.05422, section 3;
microsoft/SPACH). The axis layers have one length: only images of the anchor's size run.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PaperSMLP(nn.Module):
    """Sparse MLP: norm, GELU, identity and mixing along W and H, concatenated and fused.

    Args:
        channels (int): Number of channels C.
        size (int): Number of rows, and of columns.
    """

    def __init__(self, channels: int, size: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.mix_w = nn.Conv2d(size, size, 1)
        self.mix_h = nn.Conv2d(size, size, 1)
        self.fuse = nn.Conv2d(3 * channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        x = F.gelu(self.norm(x))
        along_w = self.mix_w(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # (N, W, C, H) and back
        along_h = self.mix_h(x.permute(0, 2, 1, 3)).permute(0, 2, 1, 3)  # (N, H, C, W) and back
        return self.fuse(torch.cat([x, along_w, along_h], dim=1))


class PaperLocal(nn.Module):
    """Local mixing: norm, GELU, 3x3 depth-wise convolution.

    Args:
        channels (int): Number of channels C.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        return self.conv(F.gelu(self.norm(x)))


class PaperChannelMLP(nn.Module):
    """Channel mixing: tokens as rows (N, HW, C), layer norm, two linear layers, and back to (N, C, H, W).

    Args:
        channels (int): Number of channels C.
        ratio (int): Expansion of the hidden layer.
    """

    def __init__(self, channels: int, ratio: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.fc1 = nn.Linear(channels, ratio * channels)
        self.fc2 = nn.Linear(ratio * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape, contiguous."""
        tokens = x.flatten(2).transpose(1, 2)
        tokens = self.fc2(F.gelu(self.fc1(self.norm(tokens))))
        return tokens.transpose(1, 2).reshape(x.shape)


class PaperBlock(nn.Module):
    """A block: token mixing, then channel mixing, each with a shortcut.

    Args:
        channels (int): Number of channels C.
        size (int): Number of rows, and of columns.
        ratio (int): Expansion of the channel MLP.
    """

    def __init__(self, channels: int, size: int, ratio: int):
        super().__init__()
        self.local = PaperLocal(channels)
        self.sparse_mlp = PaperSMLP(channels, size)
        self.channel_mlp = PaperChannelMLP(channels, ratio)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape."""
        x = x + self.sparse_mlp(self.local(x))
        return x + self.channel_mlp(x)


class PaperSMLPNet(nn.Module):
    """sMLPNet's backbone in the paper's formulation, with the names of :class:`mmsmlp.SMLPNet`'s parameters.

    Args:
        embed_dims (int): Channels of the first stage, doubled by each further one. Defaults to 80, the tiny size.
        depths (tuple[int, ...]): Blocks of each stage. Defaults to the tiny size's.
        img_size (int): Height and width of the images in pixels, a multiple of the last stride. Defaults to 224.
        mlp_ratio (int): Expansion of the channel MLPs. Defaults to 3.
    """

    def __init__(
        self, embed_dims: int = 80, depths: tuple[int, ...] = (2, 8, 14, 2), img_size: int = 224, mlp_ratio: int = 3
    ):
        super().__init__()
        self.downsample_layers, self.stages = nn.ModuleList(), nn.ModuleList()
        given, patch, size = 3, 4, img_size
        for stage, depth in enumerate(depths):
            channels = embed_dims * 2**stage
            size //= patch
            self.downsample_layers.append(nn.Conv2d(given, channels, patch, stride=patch, bias=False))
            self.stages.append(nn.Sequential(*(PaperBlock(channels, size, mlp_ratio) for _ in range(depth))))
            given, patch = channels, 2
        self.add_module(f"norm{len(depths) - 1}", nn.BatchNorm2d(given))
        self.norm_name = f"norm{len(depths) - 1}"

    def forward(self, x: Tensor) -> tuple[Tensor]:
        """Images (N, 3, img_size, img_size) -> a tuple with the last map (N, C, img_size / 32, img_size / 32)."""
        for downsample, stage in zip(self.downsample_layers, self.stages):
            x = stage(downsample(x))
        return (getattr(self, self.norm_name)(x),)

    def load_smlpnet(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the weights of an :class:`mmsmlp.SMLPNet`, whose linear layers are 1x1 convolutions here.

        Args:
            state_dict (Mapping[str, Tensor]): All of its weights.

        Raises:
            RuntimeError: If keys are missing or superfluous, or the anchor grid is another.
        """
        own = self.state_dict()
        self.load_state_dict(
            {
                key: value[..., None, None] if key in own and value.ndim == own[key].ndim - 2 else value
                for key, value in state_dict.items()
            }
        )
