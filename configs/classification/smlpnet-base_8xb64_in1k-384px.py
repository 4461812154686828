"""sMLPNet-B fine-tuned at 384 pixels: the tiny recipe with another arch and checkpoint. Not trained by us.

For 8 GPUs x 64 images.

mim train mmpretrain configs/classification/smlpnet-base_8xb64_in1k-384px.py --gpus 8 --launcher pytorch
"""

_base_ = "./smlpnet-tiny_8xb64_in1k-384px.py"
load_from = "work_dirs/smlpnet-base_8xb128_in1k/epoch_300.pth"
model = dict(backbone=dict(arch="base"), head=dict(in_channels=896))
