"""RetinaNet with sMLPNet-T on COCO, 12 epochs by PVTv2-B2's recipe. For 8 GPUs x 2 images. Not trained by us.

The backbone returns strides 8 to 32, as one-stage detectors read no map of stride 4. Preprocessor, ImageNet checkpoint
and norms (`norm_eval=True`) as in mask-rcnn_smlpnet-tiny_fpn_1x_coco.py.

mim train mmdetection configs/detection/retinanet_smlpnet-tiny_fpn_1x_coco.py --gpus 8 --launcher pytorch
"""

_base_ = [
    "mmdet::_base_/models/retinanet_r50_fpn.py",
    "mmdet::_base_/datasets/coco_detection.py",
    "../_base_/schedules/coco_1x_adamw.py",
    "../_base_/detection_runtime.py",
]
model = dict(
    data_preprocessor=dict(type="mmsmlp.DetDataPreprocessor"),
    backbone=dict(
        _delete_=True,
        type="mmsmlp.SMLPNet",
        arch="tiny",
        out_indices=(1, 2, 3),
        drop_path_rate=0.1,
        norm_eval=True,
        init_cfg=dict(
            type="Pretrained",
            checkpoint="work_dirs/smlpnet-tiny_8xb128_in1k/epoch_300.pth",
            prefix="backbone.",
        ),
    ),
    neck=dict(in_channels=[160, 320, 640], start_level=0),
)
optim_wrapper = dict(optimizer=dict(weight_decay=1e-4))
