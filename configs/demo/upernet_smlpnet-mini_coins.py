"""UperNet with a narrow SMLPNet on the coins photograph: 200 steps, 1 minute on 2 CPU cores.

    python tools/make_coins.py data/coins
    mim train mmseg configs/demo/upernet_smlpnet-mini_coins.py --work-dir work_dirs/upernet

`make demo-segmentation` runs both, and evaluates at other sizes.
"""

_base_ = "../_base_/demo_runtime.py"
default_scope = "mmseg"

norm_cfg = dict(type="BN")
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        size=(160, 160),
        pad_val=0,
        seg_pad_val=255,
        # mmseg stretches the logits of maps of ceil(size / 4) to the image: where 4 does not divide the size, they end
        # up to 3 pixels off. With 32, the stride of the last map, all levels fit; mmseg cuts the padding off again.
        test_cfg=dict(size_divisor=32),
    ),
    backbone=dict(
        type="mmsmlp.SMLPNet",
        arch=dict(embed_dims=24, depths=(1, 1, 2, 1)),
        img_size=160,
        out_norm=True,
    ),
    decode_head=dict(
        type="UPerHead",
        in_channels=[24, 48, 96, 192],
        in_index=[0, 1, 2, 3],
        pool_scales=(1, 2, 3, 6),
        channels=64,
        dropout_ratio=0.1,
        num_classes=2,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", loss_weight=1.0),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations"),
    dict(type="RandomResize", scale=(384, 150), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type="RandomCrop", crop_size=(160, 160)),
    dict(type="RandomFlip", prob=[0.25, 0.25, 0.25], direction=["horizontal", "vertical", "diagonal"]),
    # The train part is lit better than the val part.
    dict(type="PhotoMetricDistortion", brightness_delta=48),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale_factor=1.0, keep_ratio=True),
    # After resizing, so that the labels keep the photograph's own size, at which predictions are scored.
    dict(type="LoadAnnotations"),
    dict(type="PackSegInputs"),
]

coins = dict(
    type="BaseSegDataset",
    data_root="data/coins",
    img_suffix=".png",
    seg_map_suffix=".png",
    reduce_zero_label=False,
    metainfo=dict(classes=("background", "coin"), palette=[[0, 0, 0], [230, 159, 0]]),
)
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(
        data_prefix=dict(img_path="images/train", seg_map_path="labels/train"),
        pipeline=train_pipeline,
        **coins,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        data_prefix=dict(img_path="images/val", seg_map_path="labels/val"),
        pipeline=test_pipeline,
        **coins,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
test_evaluator = val_evaluator

train_cfg = dict(max_iters=200, val_interval=50)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=20),
    dict(type="PolyLR", power=1.0, eta_min=1e-5, by_epoch=False, begin=20, end=200),
]
default_hooks = dict(checkpoint=dict(interval=50), visualization=dict(type="SegVisualizationHook"))
visualizer = dict(type="SegLocalVisualizer", vis_backends=_base_.vis_backends, name="visualizer")
