"""Cascade Mask R-CNN with sMLPNet-T; preprocessor, norms and weights as in mask-rcnn_smlpnet_fpn.py."""

_base_ = "mmdet::_base_/models/cascade-mask-rcnn_r50_fpn.py"

model = dict(
    data_preprocessor=dict(type="mmsmlp.DetDataPreprocessor"),
    backbone=dict(
        _delete_=True,
        type="mmsmlp.SMLPNet",
        arch="tiny",
        drop_path_rate=0.1,
        norm_eval=True,
        init_cfg=dict(
            type="Pretrained",
            checkpoint="work_dirs/smlpnet-tiny_8xb128_in1k/epoch_300.pth",
            prefix="backbone.",
        ),
    ),
    neck=dict(in_channels=[80, 160, 320, 640]),
)
