"""Mask2Former for instances with sMLPNet-T on COCO, 50 epochs. For 8 GPUs x 2 images. Not trained by us.

mmdet's recipe of Swin-T: the backbone learns at a tenth of the rate, its norms without weight decay, drop path 0.3.
Preprocessor, ImageNet checkpoint and norms (`norm_eval=True`) as in mask-rcnn_smlpnet-tiny_fpn_1x_coco.py.

mim train mmdetection configs/detection/mask2former_smlpnet-tiny_8xb2-lsj-50e_coco.py --gpus 8 --launcher pytorch
"""

_base_ = "mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco.py"
model = dict(
    data_preprocessor=dict(type="mmsmlp.DetDataPreprocessor"),
    backbone=dict(
        _delete_=True,
        type="mmsmlp.SMLPNet",
        arch="tiny",
        drop_path_rate=0.3,
        norm_eval=True,
        init_cfg=dict(
            type="Pretrained",
            checkpoint="work_dirs/smlpnet-tiny_8xb128_in1k/epoch_300.pth",
            prefix="backbone.",
        ),
    ),
    panoptic_head=dict(in_channels=[80, 160, 320, 640]),
)
# The longest key that a name contains decides: these are longer than mmdet's 'backbone'.
norm = dict(lr_mult=0.1, decay_mult=0.0)
norms = {"local.norm": norm, "sparse_mlp.norm": norm, "channel_mlp.norm": norm, "backbone.norm": norm}
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=norms))
default_hooks = dict(checkpoint=dict(type="mmsmlp.CheckpointHook"), resume=dict(type="mmsmlp.ResumeHook"))
