"""The backbones of the study's networks: trained, as they began, and with other weights."""

from __future__ import annotations

import copy
import importlib
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmsmlp import SMLPNet
from mmsmlp.checkpoint import read_checkpoint
from mmsmlp.layers import AxisLinear
from mmsmlp.resize import check_method


def load_backbone(config: str | Path, checkpoint: str | Path) -> SMLPNet:
    """The trained backbone of a demo's network, in eval mode.

    Args:
        config (str | Path): The network's config.
        checkpoint (str | Path): Its checkpoint.

    Raises:
        RuntimeError: If the checkpoint does not fit.
    """
    settings = Config.fromfile(config).model.backbone.to_dict()
    settings.pop("type")
    backbone = SMLPNet(**settings)
    weights = read_checkpoint(checkpoint)["state_dict"]
    prefix = "backbone."
    backbone.load_state_dict({k[len(prefix) :]: v for k, v in weights.items() if k.startswith(prefix)})
    return backbone.eval()


def initial_backbone(config: str | Path) -> SMLPNet:
    """The backbone that a training began with: its network built again, from the config's seed.

    Args:
        config (str | Path): The config that a work directory holds. Its training started from no checkpoint.

    Raises:
        ValueError: If the config names no seed.
    """
    cfg = Config.fromfile(config)
    seed = cfg.get("randomness", {}).get("seed")
    if seed is None:
        raise ValueError(f"{config} has no seed (randomness), so what its training began with is unknown")
    with torch.random.fork_rng(devices=[]), DefaultScope.overwrite_default_scope(cfg.default_scope):
        torch.manual_seed(seed)  # as mmengine's Runner does right before it builds the model
        return importlib.import_module(f"{cfg.default_scope}.registry").MODELS.build(cfg.model).backbone.eval()


def with_interpolation(backbone: nn.Module, method: str) -> nn.Module:
    """A copy of a network whose axis weights are resized by another of ``mmsmlp.resize.METHODS``."""
    backbone = copy.deepcopy(backbone)
    for module in backbone.modules():
        if isinstance(module, AxisLinear):
            module.interpolation = check_method(method)
    return backbone


def untrained(backbone: nn.Module, images: Tensor, seed: int = 0) -> nn.Module:
    """A copy of a network with random weights, and the statistics of its batch norms taken from ``images``.

    Args:
        backbone (nn.Module): The network.
        images (Tensor): (N, C, H, W), as the network takes them.
        seed (int): Of the weights. Defaults to 0.
    """
    backbone = copy.deepcopy(backbone).train()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for module in backbone.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
            if isinstance(module, _BatchNorm):
                module.momentum = None  # plain averages, of this one batch
        backbone(images)
    return backbone.eval()
