"""Semantic FPN with sMLPNet-T; preprocessor, norms (SyncBN) and weights as in upernet_smlpnet.py."""

norm_cfg = dict(type="SyncBN", requires_grad=True)
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="mmsmlp.SegDataPreProcessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        size=(512, 512),
        pad_val=0,
        seg_pad_val=255,
        test_cfg=dict(size_divisor=32),
    ),
    backbone=dict(
        type="mmsmlp.SMLPNet",
        arch="tiny",
        drop_path_rate=0.1,
        norm_cfg=norm_cfg,
        out_norm=True,
        init_cfg=dict(
            type="Pretrained",
            checkpoint="work_dirs/smlpnet-tiny_8xb128_in1k/epoch_300.pth",
            prefix="backbone.",
        ),
    ),
    neck=dict(type="FPN", in_channels=[80, 160, 320, 640], out_channels=256, num_outs=4),
    decode_head=dict(
        type="FPNHead",
        in_channels=[256, 256, 256, 256],
        in_index=[0, 1, 2, 3],
        feature_strides=[4, 8, 16, 32],
        channels=128,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
)
