"""sMLPNet-B on ImageNet-1k: the tiny recipe with another arch. Not trained by us; the paper: top-1 83.4."""

_base_ = "./smlpnet-tiny_8xb128_in1k.py"
model = dict(backbone=dict(arch="base"), head=dict(in_channels=896))
