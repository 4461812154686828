"""sMLPNet-T on ImageNet-1k, 300 epochs. Not trained by us; the paper: top-1 81.9.

The recipe is that of the official code (main.py and datasets.py of microsoft/SPACH): AdamW, lr 5e-4 per 512 images,
weight decay 0.05 but for norms and biases, no clipping, 20 epochs of warm-up from 1e-6, cosine to 1e-5, RandAugment
m9-mstd0.5-inc1, random erasing 0.25, repeated augmentation, mixup 0.8, CutMix 1.0, label smoothing 0.1; tests resize
to 256 and crop 224, bicubic. Its colour jitter of 0.4 is not here since timm ignores it beside RandAugment. Not quite
the same: the warm-up rises by iteration, the cosine starts after it, and there is no moving average of the weights,
which the official code keeps and does not evaluate. For 8 GPUs x 128 images.

mim train mmpretrain configs/classification/smlpnet-tiny_8xb128_in1k.py --gpus 8 --launcher pytorch
"""

_base_ = [
    "mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py",
    "mmpretrain::_base_/schedules/imagenet_bs1024_adamw_swin.py",
    "../_base_/classification_runtime.py",
]

model = dict(
    type="ImageClassifier",
    backbone=dict(type="mmsmlp.SMLPNet", arch="tiny"),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(
        type="LinearClsHead",
        num_classes=1000,
        in_channels=640,
        init_cfg=None,  # PyTorch's own, as in the official code
        loss=dict(type="LabelSmoothLoss", label_smooth_val=0.1, mode="original"),
        cal_acc=False,
    ),
    train_cfg=dict(augments=[dict(type="Mixup", alpha=0.8), dict(type="CutMix", alpha=1.0)]),
)
train_dataloader = dict(batch_size=128, drop_last=True, sampler=dict(type="RepeatAugSampler"))
