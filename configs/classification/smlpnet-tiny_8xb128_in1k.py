"""sMLPNet-T on ImageNet-1k, 300 epochs. Not trained by us; the paper: top-1 81.9.

The official code's recipe, without its moving average of the weights.

mim train mmpretrain configs/classification/smlpnet-tiny_8xb128_in1k.py --gpus 8 --launcher pytorch
"""

_base_ = [
    "mmpretrain::_base_/datasets/imagenet_bs64_swin_224.py",
    "mmpretrain::_base_/schedules/imagenet_bs1024_adamw_swin.py",
    "mmpretrain::_base_/default_runtime.py",
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
train_dataloader = dict(batch_size=128, sampler=dict(type="RepeatAugSampler"))
