"""Mask2Former for semantic segmentation with sMLPNet-T on ADE20K. For 8 GPUs x 2 crops. Not trained by us.

mmseg's recipe of Swin-T: the backbone learns at a tenth of the rate, norms without weight decay, drop path 0.3.
ImageNet checkpoint as in upernet_smlpnet-tiny_8xb2-160k_ade20k-512x512.py, and norms for the same reason: SyncBN (the
head has group norms). The head is mmdet's, so mmdet has to be installed, too.

mim train mmseg configs/segmentation/mask2former_smlpnet-tiny_8xb2-160k_ade20k-512x512.py --gpus 8 --launcher pytorch
"""

_base_ = [
    "../_base_/models/mask2former_smlpnet.py",
    "../_base_/datasets/ade20k.py",
    "../_base_/segmentation_runtime.py",
]

train_pipeline = _base_.train_pipeline
train_pipeline[2] = dict(
    type="RandomChoiceResize",
    scales=[512 * tenths // 10 for tenths in range(5, 21)],
    resize_type="ResizeShortestEdge",
    max_size=2048,
)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))

train_cfg = dict(type="IterBasedTrainLoop", max_iters=160000, val_interval=5000)
default_hooks = dict(checkpoint=dict(interval=5000))
slow, plain = dict(lr_mult=0.1, decay_mult=0.0), dict(lr_mult=1.0, decay_mult=0.0)
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-4, weight_decay=0.05, eps=1e-8, betas=(0.9, 0.999)),
    clip_grad=dict(max_norm=0.01, norm_type=2),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        # The longest key that a name contains decides.
        custom_keys={
            "backbone": dict(lr_mult=0.1, decay_mult=1.0),
            "local.norm": slow,
            "sparse_mlp.norm": slow,
            "channel_mlp.norm": slow,
            "backbone.norm": slow,
            "query_embed": plain,
            "query_feat": plain,
            "level_embed": plain,
        },
    ),
)
param_scheduler = [dict(type="PolyLR", power=0.9, eta_min=0.0, by_epoch=False, begin=0, end=160000)]
auto_scale_lr = dict(enable=False, base_batch_size=16)
