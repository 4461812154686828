"""Real detectors and segmentors on batches of unequal images, and what their backbones make of them."""

from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData, PixelData
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmsmlp.valid_area import downsampled

ROOT = Path(__file__).parents[1]
ARCH = {"embed_dims": 16, "depths": (1, 1, 2, 1)}
CHANNELS = [16, 32, 64, 128]
STRIDES = (4, 8, 16, 32)
SIZES = [(64, 96), (90, 75), (33, 61)]
DEMOS = {
    "mmdet": ROOT / "configs/demo/mask-rcnn_smlpnet-mini_coins.py",
    "mmseg": ROOT / "configs/demo/upernet_smlpnet-mini_coins.py",
}
WIDTHS = {"out_channels": 16, "in_channels": 16, "feat_channels": 16, "conv_out_channels": 16, "fc_out_channels": 32}


def demo_config(toolbox: str, noted: bool = True) -> Config:
    """The coins demo's config, small, with our preprocessor."""
    cfg = Config.fromfile(DEMOS[toolbox])
    if noted:
        cfg.model.data_preprocessor.type = f"mmsmlp.{cfg.model.data_preprocessor.type}"
    cfg.model.backbone.arch = ARCH
    reader = cfg.model.neck if toolbox == "mmdet" else cfg.model.decode_head
    reader.in_channels = CHANNELS
    return cfg


def detector(base: str, noted: bool = True, **preprocessor) -> nn.Module:
    """A detector of mmdet, 'demo' or the name of a base of its models, small, with our preprocessor."""
    init_default_scope("mmdet")
    if base == "demo":
        model = demo_config("mmdet", noted).model
    else:
        model = Config.fromstring(f"_base_ = ['mmdet::_base_/models/{base}.py']", ".py").model
        for part in ("rpn_head", "roi_head", "bbox_head", "neck"):
            narrow(model.get(part, {}))
        model.data_preprocessor.type = ("mmsmlp." if noted else "") + "DetDataPreprocessor"
        model.backbone = {"type": "mmsmlp.SMLPNet", "arch": ARCH, "img_size": 96, "out_norm": True}
        model.neck.in_channels = CHANNELS
        if model.neck.get("start_level"):  # one-stage detectors read no map of stride 4
            model.backbone.out_indices = (1, 2, 3)
            model.neck.update(in_channels=CHANNELS[1:], start_level=0)
    model.data_preprocessor.update(preprocessor)
    return with_live_norms(MODELS.build(model))


def narrow(cfg: ConfigDict) -> None:
    """Few channels in a part of a detector, in place."""
    for key, value in cfg.items():
        if key in WIDTHS and not isinstance(value, list):
            cfg[key] = WIDTHS[key]
        for inner in value if isinstance(value, list) else [value]:
            if isinstance(inner, dict):
                narrow(inner)


def segmentor(noted: bool = True, **changes) -> nn.Module:
    """The UperNet of the coins demo, small, with our preprocessor; ``changes`` to the config's model."""
    init_default_scope("mmseg")
    cfg = demo_config("mmseg", noted)
    cfg.merge_from_dict({"model": changes})
    return with_live_norms(MODELS.build(cfg.model))


def with_live_norms(model: nn.Module) -> nn.Module:
    """Initialised, in eval mode, the norms with statistics that are not those of the start."""
    torch.manual_seed(0)
    model.init_weights()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            nn.init.normal_(module.bias, 0, 0.2)
    model.eval()
    return model


def detection_batch(sizes=SIZES) -> dict:
    """Noise with a box and its mask in each image."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    generator = torch.Generator().manual_seed(1)
    batch = {"inputs": [], "data_samples": []}
    for index, (height, width) in enumerate(sizes):
        gt = InstanceData(bboxes=torch.tensor([[5.0, 4, width - 9, height - 7]]), labels=torch.zeros(1).long())
        mask = np.zeros((1, height, width), np.uint8)
        mask[:, 4 : height - 7, 5 : width - 9] = 1
        gt.masks = BitmapMasks(mask, height, width)
        meta = {"img_shape": (height, width), "ori_shape": (height, width), "scale_factor": (1, 1), "img_id": index}
        batch["data_samples"].append(DetDataSample(gt_instances=gt, metainfo=meta))
        batch["inputs"].append(torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8))
    return batch


def segmentation_batch(sizes=SIZES) -> dict:
    """Noise with noise for labels."""
    from mmseg.structures import SegDataSample

    generator = torch.Generator().manual_seed(1)
    batch = {"inputs": [], "data_samples": []}
    for size in sizes:
        labels = PixelData(data=torch.randint(0, 2, (1, *size), generator=generator))
        meta = {"img_shape": size, "ori_shape": size, "img_path": "noise.png"}
        batch["data_samples"].append(SegDataSample(gt_sem_seg=labels, metainfo=meta))
        batch["inputs"].append(torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8))
    return batch


def one_of(batch: dict, index: int) -> dict:
    """A batch of one image of it."""
    return {key: value[index : index + 1] for key, value in batch.items()}


@contextmanager
def recorded(module: nn.Module):
    """Yields a list that collects what the module returns."""
    calls = []
    handle = module.register_forward_hook(lambda module, args, out: calls.append(out))
    try:
        yield calls
    finally:
        handle.remove()


def cut(maps: Tensor, index: int, size: tuple[int, int], stride: int) -> Tensor:
    """What an image of ``size`` pixels has of a batch's map."""
    ((height, width),) = downsampled((size,), stride)
    return maps[index, :, :height, :width]


def difference(together: tuple, alone: list[tuple], sizes=SIZES) -> float:
    """Largest relative difference of any level's map, up to that of stride 32, between a batch and each image alone."""
    errors = []
    for index, (size, own) in enumerate(zip(sizes, alone)):
        for maps, own_maps, stride in zip(together, own, STRIDES[-len(own) :]):
            wanted = cut(own_maps, 0, size, stride)
            errors.append((cut(maps, index, size, stride) - wanted).abs().max() / wanted.abs().max())
    return float(max(errors))
