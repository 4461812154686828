"""mmseg's Mask2Former with sMLPNet-T; preprocessor, norms and weights as in upernet_smlpnet.py."""

attention = dict(embed_dims=256, num_heads=8, attn_drop=0.0, proj_drop=0.0, dropout_layer=None, batch_first=True)
act_cfg = dict(type="ReLU", inplace=True)
encoder_layer = dict(
    self_attn_cfg=dict(embed_dims=256, num_heads=8, num_levels=3, num_points=4, dropout=0.0, batch_first=True),
    ffn_cfg=dict(embed_dims=256, feedforward_channels=1024, num_fcs=2, ffn_drop=0.0, act_cfg=act_cfg),
)
decoder_layer = dict(
    self_attn_cfg=attention,
    cross_attn_cfg=attention,
    ffn_cfg=dict(embed_dims=256, feedforward_channels=2048, num_fcs=2, ffn_drop=0.0, act_cfg=act_cfg),
)
match_costs = [
    dict(type="mmdet.ClassificationCost", weight=2.0),
    dict(type="mmdet.CrossEntropyLossCost", weight=5.0, use_sigmoid=True),
    dict(type="mmdet.DiceCost", weight=5.0, pred_act=True, eps=1.0),
]
num_classes = 150
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
        drop_path_rate=0.3,
        norm_cfg=dict(type="SyncBN", requires_grad=True),
        out_norm=True,
        init_cfg=dict(
            type="Pretrained",
            checkpoint="work_dirs/smlpnet-tiny_8xb128_in1k/epoch_300.pth",
            prefix="backbone.",
        ),
    ),
    decode_head=dict(
        type="Mask2FormerHead",
        in_channels=[80, 160, 320, 640],
        strides=[4, 8, 16, 32],
        feat_channels=256,
        out_channels=256,
        num_classes=num_classes,
        num_queries=100,
        num_transformer_feat_level=3,
        align_corners=False,
        pixel_decoder=dict(
            type="mmdet.MSDeformAttnPixelDecoder",
            num_outs=3,
            norm_cfg=dict(type="GN", num_groups=32),
            act_cfg=dict(type="ReLU"),
            encoder=dict(num_layers=6, layer_cfg=encoder_layer),
            positional_encoding=dict(num_feats=128, normalize=True),
        ),
        enforce_decoder_input_project=False,
        positional_encoding=dict(num_feats=128, normalize=True),
        transformer_decoder=dict(return_intermediate=True, num_layers=9, layer_cfg=decoder_layer, init_cfg=None),
        loss_cls=dict(
            type="mmdet.CrossEntropyLoss",
            use_sigmoid=False,
            loss_weight=2.0,
            reduction="mean",
            class_weight=[1.0] * num_classes + [0.1],
        ),
        loss_mask=dict(type="mmdet.CrossEntropyLoss", use_sigmoid=True, reduction="mean", loss_weight=5.0),
        loss_dice=dict(
            type="mmdet.DiceLoss",
            use_sigmoid=True,
            activate=True,
            reduction="mean",
            naive_dice=True,
            eps=1.0,
            loss_weight=5.0,
        ),
        train_cfg=dict(
            num_points=12544,
            oversample_ratio=3.0,
            importance_sample_ratio=0.75,
            assigner=dict(type="mmdet.HungarianAssigner", match_costs=match_costs),
            sampler=dict(type="mmdet.MaskPseudoSampler"),
        ),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
)
