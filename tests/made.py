"""Small models, and checkpoints of models as they are made, without training: for what has to run, not to be right."""

from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

ROOT = Path(__file__).parents[1]
SMALL_CLASSIFIER = """
default_scope = 'mmpretrain'
data_preprocessor = dict(num_classes=3, mean=[100., 110., 120.], std=[50., 60., 70.], to_rgb=True)
model = dict(
    type='ImageClassifier',
    backbone=dict(type='mmsmlp.SMLPNet', arch=dict(embed_dims=8, depths=(1, 2)), img_size=64, out_indices=(0, 1)),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=3, in_channels=16))
"""


def with_random_norms(network: nn.Module) -> nn.Module:
    """Gives a network's batch norms statistics and parameters as training would, other than those they start with."""
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 1.5)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_()
    return network


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
