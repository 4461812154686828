"""sMLPNet-S on ImageNet-1k: the tiny recipe with another arch. Not trained by us; the paper: top-1 83.1.

For 8 GPUs x 128 images.

mim train mmpretrain configs/classification/smlpnet-small_8xb128_in1k.py --gpus 8 --launcher pytorch
"""

_base_ = "./smlpnet-tiny_8xb128_in1k.py"
model = dict(backbone=dict(arch="small"), head=dict(in_channels=768))
