"""Training steps through the real detectors and segmentors of mmdet and mmseg, with the backbone in their config."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import InstanceData, PixelData

from mmsmlp import SMLPNet

ROOT = Path(__file__).parents[1]
MINI = {"embed_dims": 16, "depths": (1, 1, 2, 1)}
CHANNELS = [16, 32, 64, 128]


def train_step(model, data) -> dict[str, float]:
    """One step with AdamW through the model's own ``train_step``."""
    from mmengine.optim import OptimWrapper

    model.init_weights()
    optimizer = OptimWrapper(torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0), clip_grad={"max_norm": 10.0})
    before = {name: p.detach().clone() for name, p in model.backbone.named_parameters()}
    losses = model.train().train_step(data, optimizer)
    for name, parameter in model.backbone.named_parameters():
        assert parameter.isfinite().all(), name
        assert not torch.equal(parameter, before[name]), f"{name} got no gradient"
    return {name: float(value) for name, value in losses.items()}


def instances(height: int, width: int):
    """Two boxes with their masks."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    masks = np.zeros((2, height, width), np.uint8)
    masks[0, 5:40, 8:44] = masks[1, 30:58, 40:70] = 1
    gt = InstanceData(bboxes=torch.tensor([[8.0, 5, 44, 40], [40, 30, 70, 58]]), labels=torch.zeros(2).long())
    gt.masks = BitmapMasks(list(masks), height, width)
    sample = DetDataSample(gt_instances=gt)
    sample.set_metainfo({"img_shape": (height, width), "ori_shape": (height, width), "scale_factor": (1, 1)})
    return sample


@pytest.mark.parametrize("backbone_type", ["mmsmlp.SMLPNet", SMLPNet], ids=["by name", "by class"])
def test_a_training_step_of_mask_rcnn(backbone_type):
    cfg = Config.fromfile(ROOT / "configs/demo/mask-rcnn_smlpnet-mini_coins.py")
    init_default_scope("mmdet")
    cfg.model.backbone = {"type": backbone_type, "arch": MINI, "img_size": 96}
    cfg.model.neck.in_channels = CHANNELS
    model = MODELS.build(cfg.model)
    sizes = [(64, 96), (90, 75)]  # unequal: the batch is padded
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in sizes]
    losses = train_step(model, {"inputs": images, "data_samples": [instances(*size) for size in sizes]})
    assert {"loss_rpn_cls", "loss_bbox", "loss_mask"} <= losses.keys()
    assert all(np.isfinite(value) for value in losses.values())


@pytest.mark.parametrize("size", [(96, 96), (80, 112)])
def test_a_training_step_of_upernet(size):
    from mmseg.structures import SegDataSample

    init_default_scope("mmseg")
    decode = {"num_classes": 4, "norm_cfg": {"type": "BN"}, "align_corners": False}
    loss = {"type": "CrossEntropyLoss", "loss_weight": 1.0}
    model = MODELS.build(
        {
            "type": "EncoderDecoder",
            "data_preprocessor": {"type": "SegDataPreProcessor", "size": size, "mean": [127.5] * 3, "std": [64.0] * 3},
            "backbone": {"type": "mmsmlp.SMLPNet", "arch": MINI, "img_size": 96},
            "decode_head": {
                "type": "UPerHead",
                "in_channels": CHANNELS,
                "in_index": [0, 1, 2, 3],
                "pool_scales": (1, 2, 3, 6),
                "channels": 32,
                "loss_decode": loss,
                **decode,
            },
            "auxiliary_head": {
                "type": "FCNHead",
                "in_channels": 64,
                "in_index": 2,
                "channels": 16,
                "num_convs": 1,
                "loss_decode": loss,
                **decode,
            },
        }
    )
    samples = []
    for _ in range(2):
        samples.append(SegDataSample(gt_sem_seg=PixelData(data=torch.randint(0, 4, (1, *size)))))
        samples[-1].set_metainfo({"img_shape": size, "ori_shape": size})
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for _ in samples]
    losses = train_step(model, {"inputs": images, "data_samples": samples})
    assert {"decode.loss_ce", "aux.loss_ce"} <= losses.keys()
    assert all(np.isfinite(value) for value in losses.values())


def test_roi_features_are_those_of_the_maps_contents():
    """The reason why maps leave the backbone contiguous: mmcv's RoIAlign reads memory whatever the strides say."""
    from mmcv.ops import roi_align

    net = SMLPNet(MINI, img_size=64).eval()
    rois = torch.tensor([[0, 4.0, 8.0, 40.0, 30.0]])
    with torch.no_grad():
        maps = net(torch.randn(1, 3, 64, 64))[0]
    # (roi, output size, scale, sampling ratio, pooling, aligned); torchvision's operator respects strides.
    from torchvision.ops import roi_align as reference

    wanted = reference(maps, rois, 7, 0.25, 2, True)
    torch.testing.assert_close(roi_align(maps, rois, 7, 0.25, 2, "avg", True), wanted)
