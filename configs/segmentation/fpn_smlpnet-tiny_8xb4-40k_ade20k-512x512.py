"""Semantic FPN with sMLPNet-T on ADE20K, 40,000 steps by PVT's recipe. For 8 GPUs x 4 crops. Not trained by us.

The schedule and batch are those of mmseg's PoolFormer. ImageNet checkpoint as in
upernet_smlpnet-tiny_8xb2-160k_ade20k-512x512.py, and norms for the same reason: SyncBN, over 32 crops.

mim train mmseg configs/segmentation/fpn_smlpnet-tiny_8xb4-40k_ade20k-512x512.py --gpus 8 --launcher pytorch
"""

_base_ = [
    "../_base_/models/fpn_smlpnet.py",
    "../_base_/datasets/ade20k.py",
    "../_base_/segmentation_runtime.py",
]
train_dataloader = dict(batch_size=4)
train_cfg = dict(type="IterBasedTrainLoop", max_iters=40000, val_interval=4000)
default_hooks = dict(checkpoint=dict(interval=4000))
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=2e-4, weight_decay=1e-4),
    paramwise_cfg=dict(norm_decay_mult=0.0),
)
param_scheduler = [dict(type="PolyLR", power=0.9, eta_min=0.0, by_epoch=False, begin=0, end=40000)]
auto_scale_lr = dict(enable=False, base_batch_size=32)
