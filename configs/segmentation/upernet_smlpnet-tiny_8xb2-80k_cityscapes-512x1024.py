"""UperNet with sMLPNet-T on Cityscapes, 80,000 steps, tested in sliding windows.

The recipe of ADE20K in half the steps; ImageNet checkpoint and norms (SyncBN) as there. Test images of 1024 x 2048 are
cut into 9 windows of the training crops' size. The backbone takes a window as a whole image, and none is padded here.
For 8 GPUs x 2 crops. Not trained by us.

mim train mmseg configs/segmentation/upernet_smlpnet-tiny_8xb2-80k_cityscapes-512x1024.py --gpus 8 --launcher pytorch
"""

_base_ = [
    "../_base_/models/upernet_smlpnet.py",
    "../_base_/datasets/cityscapes.py",
    "../_base_/schedules/upernet_160k_adamw.py",
    "../_base_/segmentation_runtime.py",
]
model = dict(
    data_preprocessor=dict(size=(512, 1024)),
    decode_head=dict(num_classes=19),
    auxiliary_head=dict(num_classes=19),
    test_cfg=dict(mode="slide", crop_size=(512, 1024), stride=(341, 683)),
)
train_cfg = dict(max_iters=80000, val_interval=8000)
param_scheduler = _base_.param_scheduler
param_scheduler[1].end = 80000
default_hooks = dict(checkpoint=dict(interval=8000))
