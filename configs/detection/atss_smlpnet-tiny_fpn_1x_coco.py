"""ATSS with sMLPNet-T on COCO, 12 epochs. For 8 GPUs x 2 images. Not trained by us.

mmdet's ATSS; backbone, ImageNet checkpoint and norms (`norm_eval=True`) as in retinanet_smlpnet-tiny_fpn_1x_coco.py,
AdamW as in mask-rcnn_smlpnet-tiny_fpn_1x_coco.py.

mim train mmdetection configs/detection/atss_smlpnet-tiny_fpn_1x_coco.py --gpus 8 --launcher pytorch
"""

_base_ = "mmdet::atss/atss_r50_fpn_1x_coco.py"
model = dict(
    data_preprocessor=dict(type="mmsmlp.DetDataPreprocessor"),
    backbone=dict(
        _delete_=True,
        type="mmsmlp.SMLPNet",
        arch="tiny",
        out_indices=(1, 2, 3),
        drop_path_rate=0.1,
        norm_eval=True,
        init_cfg=dict(
            type="Pretrained",
            checkpoint="work_dirs/smlpnet-tiny_8xb128_in1k/epoch_300.pth",
            prefix="backbone.",
        ),
    ),
    neck=dict(in_channels=[160, 320, 640], start_level=0),
)
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type="AdamW", lr=1e-4, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type="MultiStepLR", by_epoch=True, begin=0, end=12, milestones=[8, 11], gamma=0.1),
]
default_hooks = dict(checkpoint=dict(type="mmsmlp.CheckpointHook"), resume=dict(type="mmsmlp.ResumeHook"))
