"""The sMLPNet backbone (arXiv 2109.05422) for classification, detection and segmentation at any input size."""

from __future__ import annotations

from collections.abc import Sequence

from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import mmsmlp.weights.spach_files  # noqa: F401  (makes 'spach://' known to mmengine, so that a config suffices)
from mmsmlp.blocks import PatchConv, SMLPBlock, Stage, check_images
from mmsmlp.checkpoint import FUSED_MARK, UnfitWeightsError, check_local_file, report_loading
from mmsmlp.folding import fold_backbone
from mmsmlp.layers import build_norm, check_fusion
from mmsmlp.registry import MODELS
from mmsmlp.resize import DEFAULT_METHOD, check_method
from mmsmlp.valid_area import attach_valid_sizes, attached_valid_sizes, downsampled, pack_valid, to_canvas


@MODELS.register_module(name=["SMLPNet", "sMLPNet"])
class SMLPNet(BaseModule):
    """sMLPNet: depth-wise convolutions for local mixing, sparse MLPs along rows and columns for global mixing.

    From `Sparse MLP for Image Recognition: Is Self-Attention Really Necessary? <https://arxiv.org/abs/2109.05422>`_,
    equal to the official code (microsoft/SPACH, ``models/smlp.py``) at the anchor's size. At any other size the axis
    weights are positionally interpolated (:mod:`mmsmlp.resize`).

    Args:
        arch (str | dict): 'tiny', 'small' or 'base', or a dict with ``embed_dims`` (channels of the first stage,
            doubled by each further one), ``depths`` (blocks per stage), and optionally ``mlp_ratio`` (alpha in the
            paper, default 3), ``drop_path_rate`` (default 0) and ``patch_size`` (stride of the stem, default 4; with a
            single stage it makes an isotropic network). Defaults to 'tiny'.
        in_channels (int): Channels of the input image. Defaults to 3.
        img_size (int | tuple[int, int]): Height and width in pixels that the anchor grid is made for: the size of
            (pre-)training, at which nothing is interpolated. Defaults to 224.
        interpolation (str): 'exact', 'bounded', 'scaled' or 'naive'. Defaults to 'bounded'.
        out_indices (int | Sequence[int]): Stages whose maps are returned, in this order; negative numbers count from
            the last. Stages after the last one needed are neither built nor run. Defaults to (0, 1, 2, 3).
        out_norm (bool): Whether the maps of the first stages get a norm, too, as the last stage's always does.
            Defaults to False.
        drop_path_rate (float, optional): Stochastic depth rate of the last block, linear in depth. Defaults to the
            arch's: 0, 0.2 and 0.3 for tiny, small and base.
        norm_cfg (dict, optional): Batch norms, type 'BN' or 'SyncBN'. Defaults to ``dict(type='BN')``.
        frozen_stages (int): -1 freezes nothing, 0 the stem, k the stem and the first k stages with the norms of
            their outputs: no gradients, norms in eval mode. Defaults to -1.
        norm_eval (bool): Whether all batch norms stay in eval mode in training. Defaults to False.
        with_cp (bool): Whether to recompute blocks in the backward pass to save memory. Defaults to False.
        local_mixing (bool): Ablation of the paper: whether blocks have the depth-wise convolution. Defaults to True.
        global_mixing (bool | Sequence[bool]): Ablation: whether blocks have the sparse MLP, for all stages or for each
            one. Defaults to True.
        fusion (str): Ablation: how the sparse MLP fuses its branches, 'concat', 'sum' or 'weighted'
            (:class:`~mmsmlp.layers.SparseMLP`). Defaults to 'concat'.
        identity_branch (bool): Ablation: whether the sparse MLP has an identity branch. Defaults to True.
        fused_norms (bool): Whether to build what :func:`mmsmlp.fuse_norms` makes of a network, to load weights whose
            norms were folded (``tools/fuse.py``); for inference only. Defaults to False.
        init_cfg (dict, optional): mmengine initialisation, e.g. ``dict(type='Pretrained', checkpoint=...)``.

    Raises:
        ValueError: If an argument is invalid.

    Examples:
        >>> import torch
        >>> from mmsmlp import SMLPNet
        >>> maps = SMLPNet('tiny').eval()(torch.zeros(1, 3, 200, 333))
        >>> [tuple(m.shape) for m in maps]
        [(1, 80, 50, 84), (1, 160, 25, 42), (1, 320, 13, 21), (1, 640, 7, 11)]
    """

    arch_settings = {
        "tiny": {"embed_dims": 80, "depths": (2, 8, 14, 2), "drop_path_rate": 0.0},
        "small": {"embed_dims": 96, "depths": (2, 10, 24, 2), "drop_path_rate": 0.2},
        "base": {"embed_dims": 112, "depths": (2, 10, 24, 2), "drop_path_rate": 0.3},
    }

    def __init__(
        self,
        arch: str | dict = "tiny",
        in_channels: int = 3,
        img_size: int | tuple[int, int] = 224,
        interpolation: str = DEFAULT_METHOD,
        out_indices: int | Sequence[int] = (0, 1, 2, 3),
        out_norm: bool = False,
        drop_path_rate: float | None = None,
        norm_cfg: dict | None = None,
        frozen_stages: int = -1,
        norm_eval: bool = False,
        with_cp: bool = False,
        local_mixing: bool = True,
        global_mixing: bool | Sequence[bool] = True,
        fusion: str = "concat",
        identity_branch: bool = True,
        fused_norms: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ):
        super().__init__(init_cfg=init_cfg)
        settings = self._settings(arch)
        depths = settings["depths"]
        self.num_stages = len(depths)
        self.out_indices = self._stage_indices(out_indices)
        self.interpolation = check_method(interpolation)
        self.norm_eval = norm_eval
        if frozen_stages not in range(-1, self.num_stages + 1):
            raise ValueError(f"frozen_stages must be -1 (nothing) to {self.num_stages}, got {frozen_stages!r}")
        self.frozen_stages = frozen_stages
        norm_cfg = norm_cfg or {"type": "BN"}
        global_mixing = self._per_stage(global_mixing)
        check_fusion(fusion)
        rate = settings["drop_path_rate"] if drop_path_rate is None else drop_path_rate
        if not isinstance(rate, (int, float)) or not 0 <= rate < 1:
            raise ValueError(f"drop_path_rate must be in [0, 1), got {rate!r}")
        if not isinstance(in_channels, int) or in_channels < 1:
            raise ValueError(f"in_channels must be a positive int, got {in_channels!r}")
        rates = [rate * i / max(sum(depths) - 1, 1) for i in range(sum(depths))]

        built = max(self.out_indices) + 1
        self.channels = [settings["embed_dims"] * 2**i for i in range(built)]
        self.strides = [settings["patch_size"] * 2**i for i in range(built)]
        height, width = self._image_size(img_size)
        self.grids = [(-(-height // stride), -(-width // stride)) for stride in self.strides]
        block_cfg = {
            "mlp_ratio": settings["mlp_ratio"],
            "interpolation": interpolation,
            "norm_cfg": norm_cfg,
            "with_cp": with_cp,
            "local_mixing": local_mixing,
            "fusion": fusion,
            "identity_branch": identity_branch,
        }
        self.downsample_layers = nn.ModuleList()
        self.stages = nn.ModuleList()
        given, patch_size = in_channels, settings["patch_size"]
        for i, (channels, grid) in enumerate(zip(self.channels, self.grids)):
            self.downsample_layers.append(PatchConv(given, channels, patch_size))
            given, patch_size = channels, 2
            first = sum(depths[:i])
            blocks = [
                SMLPBlock(channels, grid, drop_path_rate=block_rate, global_mixing=global_mixing[i], **block_cfg)
                for block_rate in rates[first : first + depths[i]]
            ]
            self.stages.append(Stage(*blocks))
            if i in self.out_indices and (out_norm or i == self.num_stages - 1):
                self.add_module(f"norm{i}", build_norm(norm_cfg, channels))
        self._freeze()
        self.fused_norms = False
        if fused_norms:
            fold_backbone(self)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the maps of ``out_indices``.

        Args:
            x (Tensor): Images (N, C_in, H, W), any H and W from 1 up. (In training, batch norms need more than one
                value per channel: one image of up to 32 x 32 pixels has a last map of a single value.)

        Returns:
            tuple[Tensor, ...]: Maps (N, C, ceil(H / stride), ceil(W / stride)) in the order of ``out_indices``, with
                the strides of ``self.strides`` (4, 8, 16, 32), contiguous in memory.

        Raises:
            TypeError: If ``x`` is no tensor.
            ValueError: If ``x`` is not four-dimensional, has other channels, an empty axis or another dtype than the
                weights (without autocast).
        """
        check_images(x, self.downsample_layers[0])
        sizes = attached_valid_sizes(x)
        height, width = x.shape[2:]
        if sizes is not None:
            x = pack_valid(x, sizes)
        maps = {}
        for i, (downsample, stage) in enumerate(zip(self.downsample_layers, self.stages)):
            x = downsample(x, sizes)
            stride = downsample.patch_size
            height, width = -(-height // stride), -(-width // stride)
            if sizes is not None:
                sizes = downsampled(sizes, stride)
            x = stage(x, sizes)
            if i in self.out_indices:
                norm = getattr(self, f"norm{i}", None)
                out = x if norm is None else norm(x)
                if sizes is not None:
                    out = attach_valid_sizes(to_canvas(out, sizes, height, width), sizes)
                # mmcv's RoIAlign and its kin read memory as if it were (N, C, H, W) in order, whatever the strides
                # say: with channels-last maps a detector trains on scrambled features, without an error.
                maps[i] = out.contiguous()
        return tuple(maps[i] for i in self.out_indices)

    def train(self, mode: bool = True) -> SMLPNet:
        """Set training mode, except for frozen stages and, with ``norm_eval``, all batch norms.

        Raises:
            RuntimeError: If the norms are folded, since there is nothing left to take statistics with.
        """
        if mode and self.fused_norms:
            raise RuntimeError(
                "an SMLPNet with folded norms (fused_norms=True) is for inference and cannot be trained: train it "
                "without fused_norms, from weights with norms, then fold them again"
            )
        super().train(mode)
        self._freeze()
        if mode and self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def init_weights(self) -> None:
        """Initialise as ``init_cfg`` says; the file of 'Pretrained' has to be whole, and to ask for nothing to run.

        Raises:
            CheckpointFileError: If that file is damaged, or asks to run something.
            UnfitWeightsError: If its weights do not fit.
        """
        for cfg in [self.init_cfg] if isinstance(self.init_cfg, dict) else self.init_cfg or ():
            if cfg.get("type") == "Pretrained":
                check_local_file(str(cfg.get("checkpoint")))
        try:
            super().init_weights()
        except AssertionError as error:  # mmengine's, of a prefix that no key has
            raise UnfitWeightsError(f"{type(self).__name__}: init_cfg {self.init_cfg}: {error}") from error

    def get_layer_depth(self, param_name: str, prefix: str = "") -> tuple[int, int]:
        """Tell how deep a parameter lies, for layer-wise learning-rate decay; in the dialect of mmpretrain's backbones.

        The stem has depth 0 and every block its own; the merging before a stage goes with the stage's first block.
        The norms of the outputs go with what follows the backbone, as in mmpretrain's Swin and ConvNeXt.

        Args:
            param_name (str): The parameter's name within the whole model.
            prefix (str): The backbone's name there, with a trailing dot. Defaults to ''.

        Returns:
            tuple[int, int]: The depth, and the number of depths: that of the deepest plus 1. Stages that are not
                built do not count.
        """
        num_layers = sum(len(stage) for stage in self.stages) + 2
        kind, *indices = param_name[len(prefix) :].split(".") if param_name.startswith(prefix) else ("",)
        if kind not in ("downsample_layers", "stages"):
            return num_layers - 1, num_layers
        stage, block = int(indices[0]), int(indices[1]) if kind == "stages" else 0
        stem = kind == "downsample_layers" and stage == 0
        return 0 if stem else 1 + sum(len(s) for s in self.stages[:stage]) + block, num_layers

    def _freeze(self) -> None:
        if self.frozen_stages < 0:
            return
        frozen = [*self.downsample_layers[: max(self.frozen_stages, 1)], *self.stages[: self.frozen_stages]]
        frozen += [norm for i in range(self.frozen_stages) if (norm := getattr(self, f"norm{i}", None))]
        for module in frozen:
            module.eval()
            module.requires_grad_(False)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.fused_norms and hasattr(destination, "_metadata"):
            destination._metadata[prefix[:-1]][FUSED_MARK] = True

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        report_loading(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    @classmethod
    def _settings(cls, arch: str | dict) -> dict:
        known = ", ".join(map(repr, cls.arch_settings))
        if isinstance(arch, str) and arch in cls.arch_settings:
            arch = cls.arch_settings[arch]
        if not isinstance(arch, dict):
            raise ValueError(f"unknown arch {arch!r}, choose one of {known}, or give a dict")
        settings = {"mlp_ratio": 3, "drop_path_rate": 0.0, "patch_size": 4, **arch}
        if settings.keys() != {"embed_dims", "depths", "mlp_ratio", "drop_path_rate", "patch_size"}:
            raise ValueError(
                "an arch dict has the keys embed_dims and depths, optionally mlp_ratio, drop_path_rate and patch_size; "
                f"got {', '.join(map(repr, arch))}"
            )
        depths = settings["depths"]
        numbers = (*depths,) if isinstance(depths, Sequence) and depths else (0,)
        numbers += (settings["embed_dims"], settings["patch_size"])
        ratio = settings["mlp_ratio"]
        if (
            not all(isinstance(number, int) and number > 0 for number in numbers)
            or not isinstance(ratio, (int, float))
            or settings["embed_dims"] * ratio < 1
        ):
            raise ValueError(
                "embed_dims, patch_size and all depths must be positive (depths a list), and mlp_ratio leave a hidden "
                f"channel; got {dict(arch)}"
            )
        return settings

    def _stage_indices(self, out_indices: int | Sequence[int]) -> tuple[int, ...]:
        count = self.num_stages
        given = tuple(out_indices) if isinstance(out_indices, Sequence) else (out_indices,)
        indices = tuple(i + count if isinstance(i, int) and i < 0 else i for i in given)
        if (
            not indices
            or not all(isinstance(i, int) for i in indices)
            or len(set(indices)) < len(indices)
            or not all(0 <= i < count for i in indices)
        ):
            raise ValueError(f"out_indices must be distinct numbers from {-count} to {count - 1}, got {out_indices!r}")
        return indices

    def _per_stage(self, switch: bool | Sequence[bool]) -> tuple[bool, ...]:
        switches = (switch,) * self.num_stages if isinstance(switch, bool) else switch
        right = isinstance(switches, Sequence) and len(switches) == self.num_stages
        if not right or not all(isinstance(s, bool) for s in switches):
            raise ValueError(f"global_mixing must be a bool or one per stage ({self.num_stages}), got {switch!r}")
        return tuple(switches)

    @staticmethod
    def _image_size(img_size: int | Sequence[int]) -> tuple[int, int]:
        size = tuple(img_size) if isinstance(img_size, Sequence) else (img_size, img_size)
        if len(size) != 2 or not all(isinstance(s, int) and s > 0 for s in size):
            raise ValueError(f"img_size must be a positive int or (height, width), got {img_size!r}")
        return size
