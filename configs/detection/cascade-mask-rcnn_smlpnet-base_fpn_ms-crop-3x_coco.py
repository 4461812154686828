r"""Cascade Mask R-CNN with sMLPNet-B on COCO, 36 epochs: the tiny config with another arch, and the official weights.

For 8 GPUs x 2 images. Not trained by us.

mim train mmdetection configs/detection/cascade-mask-rcnn_smlpnet-base_fpn_ms-crop-3x_coco.py \
    --gpus 8 --launcher pytorch
"""

_base_ = "./cascade-mask-rcnn_smlpnet-tiny_fpn_ms-crop-3x_coco.py"
model = dict(
    backbone=dict(arch="base", drop_path_rate=0.3, init_cfg=dict(checkpoint="spach://smlp_b")),
    neck=dict(in_channels=[112, 224, 448, 896]),
)
