"""What of a config's model goes into an ONNX file: as a module from images to a tuple of tensors, with their names."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from pathlib import Path

import torch.nn.functional as F
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

import mmsmlp
from mmsmlp.checkpoint import read_checkpoint
from mmsmlp.onnx_export.layers import make_exportable
from mmsmlp.running import find_checkpoint, read_config
from mmsmlp.smlpnet import SMLPNet

PARTS = ("backbone", "model")


@dataclass(frozen=True)
class Part:
    """A model, or a part of it, that can be exported.

    Attributes:
        module (nn.Module): Images (N, C, H, W), normalised, to a tuple of tensors; PyTorch's own, in eval mode.
        outputs (tuple[str, ...]): Their names.
        model (nn.Module): The whole model that it is of.
        metadata (dict[str, str]): What a user of the file has to know, see docs/deploy.md.
    """

    module: nn.Module
    outputs: tuple[str, ...]
    model: nn.Module
    metadata: dict[str, str]

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return self.module.backbone.downsample_layers[0].in_channels

    def exportable(self) -> nn.Module:
        """A copy of the module whose code does not depend on the input's size.

        Raises:
            ValueError: If a layer has no such form.
        """
        return make_exportable(copy.deepcopy(self.module))


def backbone_part(net: SMLPNet) -> Part:
    """The backbone alone, of any origin: maps ``stage0``, ``stage1``, … of its ``out_indices``."""
    return Part(_Maps(net).eval(), _stages(net), net, {"part": "backbone", **_describe(net)})


def read_part(config: str | Path | Config, checkpoint: str | Path | None = None, part: str = "model") -> Part:
    """Build what is to be exported of a config's model, with weights.

    Args:
        config (str | Path | Config): A classifier's, detector's or segmentor's config.
        checkpoint (str | Path, optional): A checkpoint of that model, or a work directory whose latest one is taken;
            for the backbone also the address of official weights, ``spach://…``. Without one the weights are new.
        part (str): 'backbone', or 'model': a classifier's or segmentor's logits, a detector's maps before any box.

    Returns:
        Part: In eval mode, on the CPU.

    Raises:
        FileNotFoundError: If the config or the checkpoint does not exist.
        ValueError: If the model is of a kind that cannot be exported, or the checkpoint is of another model.
    """
    if part not in PARTS:
        raise ValueError(f"unknown part {part!r}, choose one of {', '.join(map(repr, PARTS))}")
    cfg = config if isinstance(config, Config) else read_config(config)
    scope = cfg.get("default_scope")
    init_default_scope(scope or "mmengine")
    if "model" not in cfg:
        raise ValueError(f"{cfg.filename} has no model: it is not a model's config")
    if cfg.model.get("backbone", {}).get("type") not in ("mmsmlp.SMLPNet", "mmsmlp.sMLPNet", "SMLPNet", "sMLPNet"):
        raise ValueError(f"{cfg.filename}: its backbone is no mmsmlp.SMLPNet, and that is what this exports")
    build = _BUILD.get(scope)
    if part == "model" and build is None:
        raise ValueError(f"default_scope is {scope!r}, not {', '.join(map(repr, _BUILD))}: export part 'backbone'")
    model = revert_sync_batchnorm(MODELS.build(cfg.model)).eval()
    classes = _load(model, checkpoint, part)
    module, outputs = build(model) if part == "model" else (_Maps(model.backbone), _stages(model.backbone))
    metadata = {"part": part, **_describe(model.backbone), **_preprocessing(cfg)}
    classes = classes or _classes(cfg)
    if classes and part == "model":
        metadata["classes"] = json.dumps(classes)
    return Part(module.eval(), outputs, model, metadata)


class _Maps(nn.Module):
    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.backbone(x))


class _Segmentor(nn.Module):
    """Logits at the images' size: mmseg's ``encode_decode``."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.backbone, self.decode_head = model.backbone, model.decode_head
        self.neck = model.neck if model.with_neck else nn.Identity()

    def forward(self, x: Tensor) -> tuple[Tensor]:
        logits = self.decode_head(self.neck(self.backbone(x)))
        size, align_corners = x.shape[2:], self.decode_head.align_corners
        return (F.interpolate(logits, size, mode="bilinear", align_corners=align_corners),)


class _Classifier(nn.Module):
    """Logits: mmpretrain's mode 'tensor'."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.backbone, self.head = model.backbone, model.head
        self.neck = model.neck if model.with_neck else nn.Identity()

    def forward(self, x: Tensor) -> tuple[Tensor]:
        return (self.head(self.neck(self.backbone(x))),)


class _Detector(nn.Module):
    """Maps of the neck, and of the head that looks at every position: all before anchors, boxes and suppression."""

    def __init__(self, backbone: nn.Module, neck: nn.Module, head: nn.Module):
        super().__init__()
        self.backbone, self.neck, self.head = backbone, neck, head

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        maps = self.neck(self.backbone(x))
        return (*maps, *(m for kind in self.head(maps) for m in kind))


def _build_segmentor(model: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    kind, head = type(model).__name__, type(getattr(model, "decode_head", None)).__name__
    if kind != "EncoderDecoder" or head not in ("UPerHead", "FPNHead"):
        raise ValueError(
            f"a {kind} with a {head} was not tried: UperNet (UPerHead) and Semantic FPN (FPNHead) are exported whole, "
            "of other segmentors the backbone (--part backbone)"
        )
    return _Segmentor(model), ("logits",)


def _build_classifier(model: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    head = type(getattr(model, "head", None)).__name__
    if head != "LinearClsHead":
        raise ValueError(f"a classifier with a {head} was not tried: take LinearClsHead, or --part backbone")
    return _Classifier(model), ("logits",)


# What a dense head's forward pass gives for each level, by the names that mmdet has for it.
_DENSE_HEADS = {
    "RPNHead": ("rpn_cls", "rpn_bbox"),
    "RetinaHead": ("cls", "bbox"),
    "ATSSHead": ("cls", "bbox", "centerness"),
}


def _build_detector(model: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    head = getattr(model, "rpn_head", None) or getattr(model, "bbox_head", None)
    kinds = _DENSE_HEADS.get(type(head).__name__)
    if kinds is None or not model.with_neck:
        raise ValueError(
            f"a {type(model).__name__} has none of the heads {', '.join(_DENSE_HEADS)} over a neck: of it, the "
            "backbone is exported (--part backbone)"
        )
    levels = range(model.neck.num_outs)
    outputs = (*(f"fpn{i}" for i in levels), *(f"{kind}{i}" for kind in kinds for i in levels))
    return _Detector(model.backbone, model.neck, head), outputs


_BUILD = {"mmseg": _build_segmentor, "mmpretrain": _build_classifier, "mmdet": _build_detector}


def _stages(net: SMLPNet) -> tuple[str, ...]:
    return tuple(f"stage{i}" for i in net.out_indices)


def _load(model: nn.Module, checkpoint: str | Path | None, part: str) -> list[str]:
    """Load weights, all of them; returns the classes that the checkpoint names."""
    if checkpoint is None:
        return []
    path = find_checkpoint(checkpoint)
    content = read_checkpoint(path)
    try:
        if part == "model":
            model.load_state_dict(content["state_dict"])
        else:
            given = content["state_dict"]
            below = {key[9:]: value for key, value in given.items() if key.startswith("backbone.")}
            model.backbone.load_state_dict(below or dict(given), strict=False)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{checkpoint} does not fit the config: {reason[:300]}") from error
    return list((content.get("meta") or {}).get("dataset_meta", {}).get("classes", ()))


def _classes(cfg: Config) -> list[str]:
    dataset = (cfg.get("test_dataloader") or {}).get("dataset") or {}
    return list((dataset.get("metainfo") or {}).get("classes") or ())


def _describe(net: SMLPNet) -> dict[str, str]:
    blocks = [len(stage) for stage in net.stages]
    grid, stride = net.grids[0], net.strides[0]
    return {
        "mmsmlp_version": mmsmlp.__version__,
        "arch": json.dumps({"embed_dims": net.channels[0], "depths": blocks}),
        "anchor": json.dumps([grid[0] * stride, grid[1] * stride]),
        "interpolation": net.interpolation,
    }


def _preprocessing(cfg: Config) -> dict[str, str]:
    """Mean and deviation of each channel, and whether they are in the order RGB."""
    given = {**(cfg.get("data_preprocessor") or {}), **(cfg.model.get("data_preprocessor") or {})}
    to_rgb = given.get("bgr_to_rgb", given.get("to_rgb", False))
    divisor = (given.get("test_cfg") or {}).get("size_divisor") or given.get("pad_size_divisor") or 1
    values = {"mean": given.get("mean"), "std": given.get("std"), "to_rgb": bool(to_rgb), "size_divisor": divisor}
    return {key: json.dumps(value) for key, value in values.items() if value is not None}
