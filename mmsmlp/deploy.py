"""Models made ready for inference: norms folded once, in memory and in checkpoints."""

from __future__ import annotations

import copy
from pathlib import Path

from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from mmsmlp.checkpoint import FUSED_MARK, read_checkpoint
from mmsmlp.folding import fold_backbone
from mmsmlp.smlpnet import SMLPNet

OPTION = "model.backbone.fused_norms=True"


def fuse_norms(model: nn.Module, inplace: bool = False) -> nn.Module:
    """Fold the norms of every SMLPNet in a model into the layers beside them (:mod:`mmsmlp.folding`), for inference.

    Outputs stay the same to rounding. The model cannot be trained any more. Its weights have other names and belong
    into a backbone built with ``fused_norms=True``; neither loads into the other by mistake. Heads and necks are left
    as they are: mmcv's ``fuse_conv_bn(model)`` folds theirs, in memory.

    Args:
        model (nn.Module): A backbone, or any detector, segmentor or classifier that contains one.
        inplace (bool): Whether to change ``model`` itself instead of a copy. Defaults to False.

    Returns:
        nn.Module: The model, in eval mode.

    Raises:
        ValueError: If there is no SMLPNet in it, a batch norm has no running statistics, or a layer to fold into was
            replaced by one of another type. A model to be changed in place may then be so in part.

    Examples:
        >>> import torch, mmsmlp
        >>> net = mmsmlp.create_model({"embed_dims": 8, "depths": (1, 1)}).eval()
        >>> fused, x = mmsmlp.fuse_norms(net), torch.rand(1, 3, 100, 64)
        >>> torch.allclose(fused(x), net(x), atol=1e-5)
        True
    """
    if not any(isinstance(module, SMLPNet) for module in model.modules()):
        raise ValueError(f"there is no SMLPNet in this {type(model).__name__}, so no norms to fold")
    if not inplace:
        model = copy.deepcopy(model)
    model.eval()
    for module in model.modules():
        if isinstance(module, SMLPNet):
            fold_backbone(module)
    return model


def fuse_checkpoint(config: str | Path | Config, checkpoint: str | Path) -> tuple[dict, nn.Module, nn.Module]:
    """Fold the norms of a checkpoint of a config's model.

    Args:
        config (str | Path | Config): The detector's, segmentor's or classifier's config.
        checkpoint (str | Path): Its checkpoint.

    Returns:
        tuple[dict, nn.Module, nn.Module]: A checkpoint with ``state_dict`` and ``meta`` alone, for the config with
            ``model.backbone.fused_norms=True``; the model as it was; and with folded norms.

    Raises:
        ValueError: If the checkpoint is unsuitable, or has folded norms already.
        RuntimeError: If it is not of the config's model, or not complete.
        OSError: If a file is not there.
    """
    config = config if isinstance(config, Config) else Config.fromfile(config)
    content = read_checkpoint(checkpoint)
    if content.get("meta", {}).get(FUSED_MARK):
        raise ValueError(f"{checkpoint}: its norms are folded already")
    init_default_scope(config.get("default_scope", "mmengine"))
    model = revert_sync_batchnorm(MODELS.build(config.model))
    model.load_state_dict(content["state_dict"])
    model.eval()
    fused = fuse_norms(model)
    meta = {**content.get("meta", {}), FUSED_MARK: True}
    return {"meta": meta, "state_dict": fused.state_dict()}, model, fused
