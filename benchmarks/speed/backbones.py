"""The backbones that are timed, and one pass or training step of each.

Importing ``mmsmlp`` sets how much memory a process's allocator keeps (:mod:`mmsmlp.ops.parts`). So it is imported where
ours is built, and the others run as they would without the package.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor, nn

from speed.cyclemlp import CycleMLP
from speed.paper import PaperSMLPNet

OURS, PAPER = "sMLPNet-T", "sMLPNet-T, paper's formulation"
CLASSIFICATION = (224, 224)  # the one size at which a classifier's last map is wanted; else the maps of all strides


@dataclass(frozen=True)
class Backbone:
    """A backbone of the table.

    Attributes:
        build (Callable): Makes it from the stages whose maps are wanted and the image's height and width.
        packages (tuple[str, ...]): What to import beforehand.
        any_size (bool): Whether it takes other sizes than 224 x 224.
        slow_backward (bool): Whether training steps on a CPU are timed at 224 x 224 only, since they take so long.
    """

    build: Callable[[tuple[int, ...], tuple[int, int]], nn.Module]
    packages: tuple[str, ...] = ()
    any_size: bool = True
    slow_backward: bool = False

    def runs(self, mode: str, size: tuple[int, int], device: str) -> bool:
        """Whether it can be timed in a mode at a height and width on a device."""
        left_out = self.slow_backward and mode == "train" and device == "cpu"
        return size == CLASSIFICATION or (self.any_size and not left_out)


def _toolbox(**cfg) -> Callable[[tuple[int, ...], tuple[int, int]], nn.Module]:
    """Builds a backbone of mmpretrain; stochastic depth is off, as it is in sMLPNet-T."""

    def build(out_indices: tuple[int, ...], size: tuple[int, int]) -> nn.Module:
        from mmengine.registry import MODELS

        options = dict(cfg, out_indices=out_indices)
        if cfg["type"] == "ConvNeXt":  # a classifier's last norm comes after its pooling
            options["gap_before_final_norm"] = size == CLASSIFICATION
        scope = "mmpretrain"
        if cfg["type"] == "SwinTransformer" and size != CLASSIFICATION:  # the detectors' own
            scope = "mmdet"
            options.pop("arch")
        importlib.import_module(f"{scope}.models")
        return MODELS.build(dict(options, type=f"{scope}.{cfg['type']}"))

    return build


def _smlpnet(out_indices: tuple[int, ...], size: tuple[int, int]) -> nn.Module:
    from mmsmlp import SMLPNet

    return SMLPNet("tiny", out_indices=out_indices)


def _mixer(out_indices: tuple[int, ...], size: tuple[int, int]) -> nn.Module:
    return _toolbox(type="MlpMixer", arch="small", img_size=size[0])([-1], size)


_MM = ("mmpretrain.models", "mmdet.models")
BACKBONES = {
    OURS: Backbone(_smlpnet),
    PAPER: Backbone(lambda out_indices, size: PaperSMLPNet(), any_size=False),
    "Swin-T": Backbone(_toolbox(type="SwinTransformer", arch="tiny", drop_path_rate=0.0), _MM),
    "ConvNeXt-T": Backbone(_toolbox(type="ConvNeXt", arch="tiny", drop_path_rate=0.0), _MM),
    "ResNet-50": Backbone(_toolbox(type="ResNet", depth=50), _MM),
    "MLP-Mixer-S/16": Backbone(_mixer, _MM, any_size=False),
    # The operator's backward pass on a CPU is serial, and makes gradients of the constant offsets, too.
    "CycleMLP-B2": Backbone(lambda out_indices, size: CycleMLP(out_indices), slow_backward=True),
}


def build(name: str, size: tuple[int, int]) -> nn.Module:
    """Build a backbone for images of a height and width: its last map at 224 x 224, else all four."""
    return BACKBONES[name].build((3,) if size == CLASSIFICATION else (0, 1, 2, 3), size)


@cache
def macs(name: str, shape: tuple[int, int, int]) -> int:
    """Multiply-accumulates of a forward pass over images (N, H, W), without computing it."""
    from mmsmlp.flops import count_macs

    network = build(name, shape[1:]).to("meta")
    network.train(False)
    images = torch.zeros(shape[0], 3, *shape[1:], device="meta")
    return sum(count_macs(network, lambda: network(images)).values())


def pass_or_step(network: nn.Module, images: Tensor, mode: str, dtype: str) -> Callable[[], None]:
    """One forward pass, or forward and backward pass, of a backbone.

    bf16 is ``torch.autocast``: weights stay float32 and are cast in every pass. A training step has no optimizer: its
    time depends on the number of parameters only. Nor a loss: gradients of the maps are random. (Those of their mean
    squares are zero behind a batch norm, and rounding errors make slow work of the backward pass.)

    Args:
        network (nn.Module): The backbone, which is put into the mode.
        images (Tensor): (N, 3, H, W).
        mode (str): 'eval' or 'train'.
        dtype (str): 'fp32' or 'bf16'.

    Returns:
        Callable[[], None]: Runs it once; on a GPU it may return before the GPU has finished.
    """
    autocast = partial(torch.autocast, images.device.type, torch.bfloat16, enabled=dtype == "bf16")
    network.train(mode == "train")
    gradients: list[Tensor] = []

    def evaluate() -> None:
        with torch.inference_mode(), autocast():
            network(images)

    def train() -> None:
        network.zero_grad(set_to_none=True)
        with autocast():
            maps = network(images)
        if not gradients:
            gradients.extend(map(torch.randn_like, maps))
        torch.autograd.backward(maps, gradients)

    return train if mode == "train" else evaluate
