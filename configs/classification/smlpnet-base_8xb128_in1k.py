"""sMLPNet-B on ImageNet-1k: the tiny recipe with another arch. Not trained by us; the paper: top-1 83.4.

For 8 GPUs x 128 images.

mim train mmpretrain configs/classification/smlpnet-base_8xb128_in1k.py --gpus 8 --launcher pytorch
"""

_base_ = "./smlpnet-tiny_8xb128_in1k.py"
model = dict(backbone=dict(arch="base"), head=dict(in_channels=896))
