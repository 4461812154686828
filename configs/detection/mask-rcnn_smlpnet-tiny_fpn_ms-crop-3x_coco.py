"""Mask R-CNN with sMLPNet-T on COCO, 36 epochs at several scales. For 8 GPUs x 2 images. Not trained by us.

Layer-wise decay as ConvNeXt-T's, drop path as Swin-T's; ImageNet checkpoint and norms (`norm_eval=True`) as in the 1x
config.

mim train mmdetection configs/detection/mask-rcnn_smlpnet-tiny_fpn_ms-crop-3x_coco.py --gpus 8 --launcher pytorch
"""

_base_ = [
    "../_base_/models/mask-rcnn_smlpnet_fpn.py",
    "../_base_/datasets/coco_instance_ms-crop.py",
    "../_base_/schedules/coco_3x_adamw.py",
    "../_base_/detection_runtime.py",
]
model = dict(backbone=dict(drop_path_rate=0.2))
