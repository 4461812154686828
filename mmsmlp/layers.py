"""The layers of sMLPNet (arXiv 2109.05422, section 3), at any size; :mod:`mmsmlp.blocks` puts them together.

Maps are (N, C, H, W) tensors in channels-last memory: mixing along H and along W, the fusion and the channel MLP are
then matrix products on views of one buffer, without permuted copies.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmsmlp.ops.axis_mixing import mix_axis
from mmsmlp.resize import DEFAULT_METHOD, check_method, is_axis_parameter, resize_axis_bias, resize_axis_weight
from mmsmlp.valid_area import Sizes, on_each_image, pack

NORMS = {"BN": nn.BatchNorm2d, "SyncBN": nn.SyncBatchNorm}
FUSIONS = ("concat", "sum", "weighted")


def check_fusion(fusion: str) -> str:
    """Return the name of a fusion of :class:`SparseMLP` if there is such a one, else raise ``ValueError``."""
    if fusion not in FUSIONS:
        raise ValueError(f"unknown fusion {fusion!r}, choose one of {', '.join(map(repr, FUSIONS))}")
    return fusion


def build_norm(norm_cfg: dict, channels: int) -> _BatchNorm:
    """Build a batch norm from an OpenMMLab ``norm_cfg``, without needing mmcv.

    Args:
        norm_cfg (dict): ``type`` 'BN' or 'SyncBN', optional ``requires_grad`` and the layer's own arguments.
        channels (int): Number of channels.

    Returns:
        nn.BatchNorm2d | nn.SyncBatchNorm: The layer.

    Raises:
        ValueError: If the type is missing or another.
    """
    cfg = dict(norm_cfg)
    norm_type = cfg.pop("type", None)
    if norm_type not in NORMS:
        raise ValueError(f"norm_cfg type must be one of {', '.join(map(repr, NORMS))}, got {norm_type!r}")
    requires_grad = cfg.pop("requires_grad", True)
    norm = NORMS[norm_type](channels, **cfg)
    norm.requires_grad_(requires_grad)
    return norm


class DropPath(nn.Module):
    """Stochastic depth: drop a residual branch per sample in training and scale the kept ones by 1 / (1 - rate).

    Args:
        rate (float): Probability of dropping a branch, in [0, 1).

    Raises:
        ValueError: If the rate is outside.
    """

    def __init__(self, rate: float = 0.0):
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"a drop path rate must be in [0, 1), got {rate}")
        self.rate = rate

    def forward(self, x: Tensor, sizes: Sizes | None = None) -> Tensor:
        """Drop samples of ``x`` (N, ...), or of a row of maps packed with ``sizes``."""
        if not self.training or self.rate == 0:
            return x
        count = x.shape[0] if sizes is None else len(sizes)
        keep = x.new_empty((count,) + (1,) * (x.ndim - 1)).bernoulli_(1 - self.rate).div_(1 - self.rate)
        if sizes is not None:
            keep = pack([k.expand(1, 1, *size) for k, size in zip(keep[:, None], sizes)])
        return x * keep

    def extra_repr(self) -> str:
        """The rate, for ``print(model)``."""
        return f"rate={self.rate:.3f}"


class ChannelAffine(nn.Module):
    """``x * scale + shift`` with one of each per channel: what a batch norm with running statistics comes down to.

    Its parameters are not called like those of a norm, so that weights of the one never pass for those of the other.

    Args:
        scale (Tensor): (C,).
        shift (Tensor): (C,).
    """

    def __init__(self, scale: Tensor, shift: Tensor):
        super().__init__()
        self.scale = nn.Parameter(scale)
        self.shift = nn.Parameter(shift)
        self.register_buffer("zeros", torch.zeros_like(shift), persistent=False)
        self.register_buffer("ones", torch.ones_like(scale), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Any map (N, C, H, W), same shape and dtype out."""
        if x.dtype == self.scale.dtype and x.dtype.itemsize > 2:
            return torch.addcmul(self.shift[:, None, None], x, self.scale[:, None, None])
        # In half precision a norm's operator is the faster one on a CPU, and under autocast rounds only its result.
        # Its eps has to be positive; this one is lost in rounding.
        return nn.functional.batch_norm(x, self.zeros, self.ones, self.scale, self.shift, eps=1e-30)

    def extra_repr(self) -> str:
        """The number of channels, for ``print(model)``."""
        return str(len(self.scale))


class AxisLinear(nn.Module):
    """A fully connected layer over the positions of one axis, shared by all lines of that axis and all channels.

    Its weight lives on an anchor of ``length`` positions. A map with another number of positions gets the weight
    resized to it (:mod:`mmsmlp.resize`, :mod:`mmsmlp.ops.axis_mixing`), and so does a checkpoint trained on another
    anchor when it is loaded.

    Args:
        length (int): Number of anchor positions n.
        dim (int): The axis of the (N, H, W, C) input to mix along: 1 is H, 2 is W.
        interpolation (str): One of ``mmsmlp.resize.METHODS``. Defaults to 'bounded'.

    Raises:
        ValueError: If an argument is invalid.
    """

    def __init__(self, length: int, dim: int, interpolation: str = DEFAULT_METHOD):
        super().__init__()
        if not isinstance(length, int) or length < 1:
            raise ValueError(f"an axis needs a positive number of anchor positions, got {length!r}")
        if dim not in (1, 2):
            raise ValueError(f"dim must be 1 (H) or 2 (W) of an (N, H, W, C) tensor, got {dim}")
        self.length = length
        self.dim = dim
        self.interpolation = check_method(interpolation)
        self.weight = nn.Parameter(torch.empty(length, length))
        self.bias = nn.Parameter(torch.empty(length))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform in ±1/√n, as the official code's 1x1 convolutions over the axis start."""
        bound = self.length**-0.5
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """Mix (N, H, W, C) along the axis; any H and W, same shape out."""
        return mix_axis(x, self.weight, self.bias, self.dim, self.interpolation)

    def extra_repr(self) -> str:
        """Length, axis and method, for ``print(model)``."""
        return f"length={self.length}, dim={self.dim}, interpolation={self.interpolation!r}"

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        # Every loading path passes here (init_cfg, load_from, load_state_dict). The caller's dict stays as it is.
        state_dict = dict(state_dict)
        resized_from = {}
        for name, resize, ndim in (("weight", resize_axis_weight, 2), ("bias", resize_axis_bias, 1)):
            given = state_dict.get(prefix + name)
            # Any other shape is left to PyTorch's own error.
            if given is not None and is_axis_parameter(given, ndim) and len(given) != self.length:
                state_dict[prefix + name] = resize(given.detach(), self.length, self.interpolation)
                resized_from[name] = len(given)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        for name, length in resized_from.items():  # for mmsmlp.checkpoint.refuse_resumed_moments
            getattr(self, name).resized_from = length


class LocalMixer(nn.Module):
    """Local mixing: BN, GELU, 3x3 depth-wise convolution without bias (paper, section 3.3).

    Args:
        channels (int): Number of channels C.
        norm_cfg (dict | None): Batch norm config. Defaults to ``dict(type='BN')``.
    """

    def __init__(self, channels: int, norm_cfg: dict | None = None):
        super().__init__()
        self.norm = build_norm(norm_cfg or {"type": "BN"}, channels)
        self.act = nn.GELU()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)

    def forward(self, x: Tensor, sizes: Sizes | None = None) -> Tensor:
        """Mix (N, C, H, W), or a row of maps packed with ``sizes``, in 3x3 neighbourhoods; same shape out."""
        return on_each_image(self.conv, self.act(self.norm(x)), sizes)


class SparseMLP(nn.Module):
    """Sparse MLP: mix each token with its row and its column, then fuse (paper, section 3.2).

    BN and GELU, then three branches (identity, mixing along W, mixing along H), concatenated and fused by a linear
    layer without bias. One block connects a token to its row and column, two connect it to every position.

    Args:
        channels (int): Number of channels C.
        grid (int | tuple[int, int]): Anchor positions (H, W) that the axis weights are learned on.
        interpolation (str): How the axis weights reach other sizes, one of ``mmsmlp.resize.METHODS``.
        norm_cfg (dict | None): Batch norm config. Defaults to ``dict(type='BN')``.
        fusion (str): 'concat' is the paper's; its ablations are 'sum', and 'weighted', a sum with a learned weight
            per branch and channel that starts as 'sum'. Defaults to 'concat'.
        identity_branch (bool): Whether there is an identity branch. Defaults to True.

    Raises:
        ValueError: If an argument is invalid.
    """

    def __init__(
        self,
        channels: int,
        grid: int | tuple[int, int],
        interpolation: str = DEFAULT_METHOD,
        norm_cfg: dict | None = None,
        fusion: str = "concat",
        identity_branch: bool = True,
    ):
        super().__init__()
        grid = tuple(grid) if isinstance(grid, Sequence) else (grid, grid)
        if len(grid) != 2:
            raise ValueError(f"grid must be a number of positions or (height, width), got {grid!r}")
        check_fusion(fusion)
        height, width = grid
        branches = 3 if identity_branch else 2
        self.fusion, self.identity_branch = fusion, identity_branch
        self.norm = build_norm(norm_cfg or {"type": "BN"}, channels)
        self.act = nn.GELU()
        self.mix_w = AxisLinear(width, 2, interpolation)
        self.mix_h = AxisLinear(height, 1, interpolation)
        if fusion == "concat":
            self.fuse = nn.Linear(branches * channels, channels, bias=False)
        elif fusion == "weighted":
            self.branch_weights = nn.Parameter(torch.ones(branches, channels))

    @property
    def is_standard(self) -> bool:
        """Whether it is the paper's, no ablation."""
        return self.fusion == "concat" and self.identity_branch

    def forward(self, x: Tensor, sizes: Sizes | None = None) -> Tensor:
        """Mix (N, C, H, W), or a row of maps packed with ``sizes``, along rows and columns.

        Any H and W, same shape out, channels-last memory.
        """
        x = self.act(self.norm(x.contiguous(memory_format=torch.channels_last)))
        return on_each_image(self._mix, x, sizes)

    def _mix(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)  # (N, C, H, W) -> (N, H, W, C), a view
        branches = [x] if self.identity_branch else []
        branches += [self.mix_w(x), self.mix_h(x)]
        if self.fusion == "concat":
            x = self.fuse(torch.cat(branches, dim=-1))
        elif self.fusion == "weighted":
            x = sum(weight * branch for weight, branch in zip(self.branch_weights, branches))
        else:
            x = sum(branches)
        return x.permute(0, 3, 1, 2)


class ChannelMLP(nn.Module):
    """Channel mixing: LayerNorm over C, Linear C -> ratio * C, GELU, Linear back.

    Args:
        channels (int): Number of channels C.
        ratio (float): Expansion of the hidden layer, alpha in the paper. Defaults to 3.
    """

    def __init__(self, channels: int, ratio: float = 3):
        super().__init__()
        hidden = int(channels * ratio)
        self.norm = nn.LayerNorm(channels)
        self.fc1 = nn.Linear(channels, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Mix the channels of (N, C, H, W); same shape out."""
        x = x.permute(0, 2, 3, 1)  # (N, C, H, W) -> (N, H, W, C), a view
        x = self.fc2(self.act(self.fc1(self.norm(x))))
        return x.permute(0, 3, 1, 2)
