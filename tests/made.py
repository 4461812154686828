"""Checkpoints of models as they are made, without training: for what has to run, not to be right."""

from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

ROOT = Path(__file__).parents[1]


def few_objects(folder: Path) -> Path:
    """Writes a config of the demo's detector that finds at most five objects: an untrained one finds 100."""
    path = folder / "few-objects.py"
    path.write_text(
        f'_base_ = "{ROOT}/configs/demo/mask-rcnn_smlpnet-mini_coins.py"\n'
        "model = dict(test_cfg=dict(rcnn=dict(max_per_img=5)))\n"
    )
    return path


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
