"""Checkpoints of models as they are made, without training: for what has to run, not to be right."""

from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope


def make_checkpoint(config: str | Path, folder: Path) -> Path:
    """Writes a checkpoint of a demo's model into a folder, with its classes' names as mmengine's Runner adds them."""
    cfg = Config.fromfile(config)
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    names = cfg.test_dataloader.dataset.get("metainfo", {"classes": [f"photo {i}" for i in range(12)]})
    path = folder / f"{Path(config).stem}.pth"
    torch.save({"state_dict": model.state_dict(), "meta": {"dataset_meta": dict(names)}}, path)
    return path
