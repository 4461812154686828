"""UperNet with sMLPNet-T.

Norms: SyncBN, in the backbone as in mmseg's heads, so that a step's statistics are those of all 16 crops and not of the
two on a GPU, which on coins cost a detector 3 box AP (docs/training.md; SyncBN itself was not measured). The norms of
the first three maps (`out_norm`) learn statistics, too. On one process mmengine turns SyncBN into BN by itself.
"""

norm_cfg = dict(type="SyncBN", requires_grad=True)
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        # The features of an image that is smaller than a crop do not depend on the padding: docs/padding.md.
        type="mmsmlp.SegDataPreProcessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        size=(512, 512),
        pad_val=0,
        seg_pad_val=255,
        # So that the maps of all levels fit onto the image: see configs/demo/upernet_smlpnet-mini_coins.py.
        test_cfg=dict(size_divisor=32),
    ),
    backbone=dict(
        type="mmsmlp.SMLPNet",
        arch="tiny",
        drop_path_rate=0.3,
        norm_cfg=norm_cfg,
        out_norm=True,
        # There are no official weights of tiny: this is where our ImageNet config leaves yours.
        init_cfg=dict(
            type="Pretrained",
            checkpoint="work_dirs/smlpnet-tiny_8xb128_in1k/epoch_300.pth",
            prefix="backbone.",
        ),
    ),
    decode_head=dict(
        type="UPerHead",
        in_channels=[80, 160, 320, 640],
        in_index=[0, 1, 2, 3],
        pool_scales=(1, 2, 3, 6),
        channels=512,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
    ),
    auxiliary_head=dict(
        type="FCNHead",
        in_channels=320,
        in_index=2,
        channels=256,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=0.4),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
)
