"""Mask R-CNN with sMLPNet-T on COCO, 12 epochs by Swin-T's recipe. For 8 GPUs x 2 images. Not trained by us.

`model.backbone.init_cfg` names the ImageNet checkpoint, where training with
configs/classification/smlpnet-tiny_8xb128_in1k.py leaves it; another one:
`--cfg-options model.backbone.init_cfg.checkpoint=CHECKPOINT`. Norms: `norm_eval=True`, see the model's base.

mim train mmdetection configs/detection/mask-rcnn_smlpnet-tiny_fpn_1x_coco.py --gpus 8 --launcher pytorch
"""

_base_ = [
    "../_base_/models/mask-rcnn_smlpnet_fpn.py",
    "mmdet::_base_/datasets/coco_instance.py",
    "../_base_/schedules/coco_1x_adamw.py",
    "../_base_/detection_runtime.py",
]
