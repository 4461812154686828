"""UperNet with sMLPNet-T on ADE20K, 160,000 steps by ConvNeXt-T's recipe. For 8 GPUs x 2 crops. Not trained by us.

`model.backbone.init_cfg` names the ImageNet checkpoint, where training with
configs/classification/smlpnet-tiny_8xb128_in1k.py leaves it; another one:
`--cfg-options model.backbone.init_cfg.checkpoint=CHECKPOINT`. Drop path 0.3 as in Swin's UperNets. Norms: SyncBN, see
the model's base.

mim train mmseg configs/segmentation/upernet_smlpnet-tiny_8xb2-160k_ade20k-512x512.py --gpus 8 --launcher pytorch
"""

_base_ = [
    "../_base_/models/upernet_smlpnet.py",
    "../_base_/datasets/ade20k.py",
    "../_base_/schedules/upernet_160k_adamw.py",
    "../_base_/segmentation_runtime.py",
]
