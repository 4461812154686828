"""UperNet with sMLPNet-S on ADE20K, 160,000 steps: the tiny config with another arch, and the official weights.

For 8 GPUs x 2 crops. Not trained by us.

mim train mmseg configs/segmentation/upernet_smlpnet-small_8xb2-160k_ade20k-512x512.py --gpus 8 --launcher pytorch
"""

_base_ = "./upernet_smlpnet-tiny_8xb2-160k_ade20k-512x512.py"
model = dict(
    backbone=dict(arch="small", init_cfg=dict(checkpoint="spach://smlp_s")),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
