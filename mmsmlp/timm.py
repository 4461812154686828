"""sMLPNet as models of timm: after ``import mmsmlp.timm``, ``timm.create_model('smlpnet_tiny')`` makes one.

timm has no entry points for other packages' models, so the import is what registers them; ``import mmsmlp`` alone does
not touch timm. Names, arguments and methods follow timm's conventions, at any input size. Not supported are
``torch.jit.script`` and, of timm's ways to extract features, ``feature_cls`` 'list', 'dict' and 'fx'; 'getter' (the
default) and 'hook' are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmsmlp.smlpnet import SMLPNet
from mmsmlp.weights.checkpoint_file import check_whole
from mmsmlp.weights.spach import check_spach, convert_spach
from mmsmlp.weights.spach_files import RELEASE_URL, released_file

try:
    from timm.layers import ClassifierHead
    from timm.models import (
        build_model_with_cfg,
        generate_default_cfgs,
        register_model,
        resolve_pretrained_cfg,
    )
    from timm.models._features import feature_take_indices  # as timm's own models do
except ModuleNotFoundError as error:
    raise ImportError(f"mmsmlp.timm needs timm ({error}): pip install timm, or in its clone -e '.[timm]'") from error

__all__ = ["TimmSMLPNet", "checkpoint_filter_fn", "smlpnet_base", "smlpnet_small", "smlpnet_tiny"]


class TimmSMLPNet(nn.Module):
    """sMLPNet with the interface of timm's models.

    Its weights have the names of :class:`mmsmlp.models.SMLPNetClassifier` and of mmpretrain's classifiers,
    ``backbone.…`` and ``head.fc.…``.

    Args:
        arch (str | dict): 'tiny', 'small', 'base', or a dict as :class:`~mmsmlp.SMLPNet` takes it. Defaults to 'tiny'.
        img_size (int | tuple[int, int]): The anchor: height and width in pixels at which nothing is interpolated. The
            model takes any size. Defaults to 224.
        in_chans (int): Channels of the input image. Defaults to 3.
        num_classes (int): Number of classes, 0 for none. Defaults to 1000.
        global_pool (str): Any pooling of timm, '' for none. Defaults to 'avg'.
        drop_rate (float): Dropout before the classifier. Defaults to 0.
        drop_path_rate (float, optional): Stochastic depth. Defaults to the arch's: 0, 0.2, 0.3.
        device: Where the parameters are. Defaults to torch's default.
        dtype: Of the parameters. Defaults to torch's default.
        **backbone: Any other argument of :class:`~mmsmlp.SMLPNet` but ``out_indices``.

    Attributes:
        feature_info (list[dict]): ``num_chs``, ``reduction`` and ``module`` of each stage.
    """

    def __init__(
        self,
        arch: str | dict = "tiny",
        img_size: int | Sequence[int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **backbone,
    ):
        super().__init__()
        self.in_chans, self.num_classes, self.drop_rate = in_chans, num_classes, drop_rate
        self.backbone = SMLPNet(
            arch, in_channels=in_chans, img_size=img_size, out_indices=-1, drop_path_rate=drop_path_rate, **backbone
        )
        self.feature_info = [
            {"num_chs": channels, "reduction": stride, "module": f"backbone.stages.{stage}"}
            for stage, (channels, stride) in enumerate(zip(self.backbone.channels, self.backbone.strides))
        ]
        self.num_features = self.backbone.channels[-1]
        self.head = ClassifierHead(self.num_features, num_classes, pool_type=global_pool, drop_rate=drop_rate)
        self.head_hidden_size = self._head_width()
        self.to(device=device, dtype=dtype)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (N, C_in, H, W) to the last map, after its norm: (N, C, ceil(H / 32), ceil(W / 32))."""
        return self.backbone(x)[-1]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The last map to logits (N, num_classes), or with ``pre_logits`` to what the linear layer gets."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, C_in, H, W) of any size to logits (N, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Compute the maps of several stages.

        Args:
            x (Tensor): Images (N, C_in, H, W).
            indices (int | Sequence[int], optional): Stages, or the number of last stages. Defaults to all.
            norm (bool): Whether the last stage's map gets its norm, as in ``forward_features``; the others have none.
                Defaults to False, as in timm.
            stop_early (bool): Whether stages after the last one wanted are not run. Defaults to False.
            output_fmt (str): 'NCHW', the only one.
            intermediates_only (bool): Whether to return the maps alone. Defaults to False.

        Returns:
            list[Tensor] | tuple[Tensor, list[Tensor]]: The maps in the order of the stages, (N, C, ceil(H / stride),
                ceil(W / stride)); before them what ``forward_features`` returns (the last map that was run).

        Raises:
            ValueError: If ``output_fmt`` is another.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be 'NCHW', got {output_fmt!r}")
        stages = len(self.backbone.stages)
        take, highest = feature_take_indices(stages, indices)
        maps = []
        for i in range(highest + 1 if stop_early else stages):
            x = self.backbone.stages[i](self.backbone.downsample_layers[i](x))
            if i in take:
                maps.append(x.contiguous())
        normed = norm and i in take
        if normed or not intermediates_only:  # once, for its running statistics
            x = getattr(self.backbone, f"norm{i}", nn.Identity())(x).contiguous()
        if normed:
            maps[-1] = x
        return maps if intermediates_only else (x, maps)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what the maps of some stages do not need.

        Args:
            indices (int | Sequence[int]): Stages, or the number of last stages. Defaults to 1.
            prune_norm (bool): Whether to remove the last stage's norm, too. Defaults to False.
            prune_head (bool): Whether to remove pooling and classifier; without the last stage they always go.
                Defaults to True.

        Returns:
            list[int]: The stages, counted from 0.
        """
        net, last = self.backbone, len(self.backbone.stages) - 1
        take, highest = feature_take_indices(last + 1, indices)
        if (prune_norm or highest < last) and hasattr(net, f"norm{last}"):
            delattr(net, f"norm{last}")
        for name in ("stages", "downsample_layers", "channels", "strides", "grids"):
            setattr(net, name, getattr(net, name)[: highest + 1])
        net.out_indices = (highest,)
        if prune_head or highest < last:
            self.reset_classifier(0, "")
        self.num_features = net.channels[-1]
        self.head_hidden_size = self._head_width()
        return take

    def get_classifier(self) -> nn.Module:
        """The linear layer."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the linear layer by a new one, none with 0 classes; and the pooling, none with ''."""
        self.num_classes = num_classes
        parameter = next(self.backbone.parameters())
        self.head.reset(num_classes, global_pool)
        self.head.to(parameter.device, parameter.dtype)
        self.head_hidden_size = self._head_width()

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns of layers, from the stem to the head, for layer-wise learning rates.

        The same layers as :meth:`mmsmlp.SMLPNet.get_layer_depth`: a merging belongs to the block after it, the last
        norm to the head. ``coarse`` makes one layer of each stage.
        """
        blocks = [(r"^backbone\.downsample_layers\.(\d+)", (0,)), (r"^backbone\.stages\.(\d+)\.(\d+)", None)]
        return {
            "stem": r"^backbone\.downsample_layers\.0\.",
            "blocks": r"^backbone\.(?:downsample_layers|stages)\.(\d+)" if coarse else blocks,
        }

    def no_weight_decay(self) -> set[str]:
        """Parameters that are scales although they are no vectors: the branch weights of ``fusion='weighted'``."""
        return {name for name, _ in self.named_parameters() if name.endswith(".branch_weights")}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in the backward pass, as ``with_cp`` of the backbone does, or not."""
        for stage in self.backbone.stages:
            for block in stage:
                block.with_cp = enable

    def _head_width(self) -> int:
        return self.num_features * self.head.global_pool.feat_mult()


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Give weights the names of :class:`TimmSMLPNet`: official ones (checked), and those of a backbone alone.

    Args:
        state_dict (dict[str, Tensor]): Weights; mmpretrain's classifiers and ours already have the names.
        model (nn.Module): The model that is to load them.

    Returns:
        dict[str, Tensor]: The same tensors.

    Raises:
        ValueError: If they have the official names, but are not exactly the official keys.
    """
    if "to_patch_embedding.0.0.weight" in state_dict:
        check_spach(state_dict, "the official weights")
        return convert_spach(state_dict)
    if "downsample_layers.0.weight" in state_dict:
        return {f"backbone.{key}": value for key, value in state_dict.items()}
    return state_dict


def _cfg(url: str = "", **kwargs) -> dict[str, Any]:
    return {
        "url": url,
        "input_size": (3, 224, 224),
        "fixed_input_size": False,
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "num_classes": 1000,
        "first_conv": "backbone.downsample_layers.0",
        "classifier": "head.fc",
        "license": "mit",
        "origin_url": "https://github.com/microsoft/SPACH",
        "paper_ids": "arXiv:2109.05422",
        "paper_name": "Sparse MLP for Image Recognition: Is Self-Attention Really Necessary?",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "smlpnet_tiny.untrained": _cfg(),
        "smlpnet_small.ms_in1k": _cfg(f"{RELEASE_URL}/smlp_s.pth"),
        "smlpnet_base.ms_in1k": _cfg(f"{RELEASE_URL}/smlp_b.pth"),
    }
)


def _create(variant: str, pretrained: bool = False, **kwargs) -> nn.Module:
    if pretrained:
        kwargs = _with_released_file(variant, kwargs)
    return build_model_with_cfg(
        TimmSMLPNet,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": kwargs.pop("out_indices", (0, 1, 2, 3)), "feature_cls": "getter"},
        **kwargs,
    )


def _with_released_file(variant: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Let mmsmlp fetch the official weights: with its checks and its mirror, where timm would just download."""
    overlay = kwargs.get("pretrained_cfg_overlay") or {}
    cfg = resolve_pretrained_cfg(variant, kwargs.get("pretrained_cfg"), overlay)
    elsewhere = cfg.state_dict or cfg.file or cfg.hf_hub_id or cfg.source in ("hf-hub", "local-dir")
    if elsewhere or not (cfg.url or "").startswith(RELEASE_URL):
        return kwargs
    name = cfg.url.removeprefix(f"{RELEASE_URL}/").removesuffix(".pth")
    file = released_file(name, kwargs.get("cache_dir"))
    check_whole(file)  # PyTorch does not
    return {**kwargs, "pretrained_cfg_overlay": {**overlay, "file": str(file)}}


@register_model
def smlpnet_tiny(pretrained: bool = False, **kwargs) -> nn.Module:
    """sMLPNet-T: 24.1 M parameters, 4.989 GMACs at 224 pixels; there are no official weights."""
    return _create("smlpnet_tiny", pretrained, **{"arch": "tiny", **kwargs})


@register_model
def smlpnet_small(pretrained: bool = False, **kwargs) -> nn.Module:
    """sMLPNet-S: 48.6 M parameters, 10.312 GMACs at 224 pixels; official ImageNet weights."""
    return _create("smlpnet_small", pretrained, **{"arch": "small", **kwargs})


@register_model
def smlpnet_base(pretrained: bool = False, **kwargs) -> nn.Module:
    """sMLPNet-B: 65.9 M parameters, 13.987 GMACs at 224 pixels; official ImageNet weights."""
    return _create("smlpnet_base", pretrained, **{"arch": "base", **kwargs})
