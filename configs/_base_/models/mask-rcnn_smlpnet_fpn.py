"""Mask R-CNN with sMLPNet-T.

Norms: `norm_eval=True`. A GPU sees two images at a time, whose statistics would be a poor stand-in for those of
pre-training; mmdet's ResNets are trained in the same way. Measured on coins at batch 2 (three seeds, docs/training.md):
79.5 box AP against 76.6 with the statistics of the two images. With it, norms of the first three maps (`out_norm`)
would never see statistics, so there are none.
"""

_base_ = "mmdet::_base_/models/mask-rcnn_r50_fpn.py"

model = dict(
    # An image's features do not depend on its neighbours in the batch: docs/padding.md.
    data_preprocessor=dict(type="mmsmlp.DetDataPreprocessor"),
    backbone=dict(
        _delete_=True,
        type="mmsmlp.SMLPNet",
        arch="tiny",
        drop_path_rate=0.1,
        norm_eval=True,
        # There are no official weights of tiny: this is where our ImageNet config leaves yours.
        init_cfg=dict(
            type="Pretrained",
            checkpoint="work_dirs/smlpnet-tiny_8xb128_in1k/epoch_300.pth",
            prefix="backbone.",
        ),
    ),
    neck=dict(in_channels=[80, 160, 320, 640]),
)
