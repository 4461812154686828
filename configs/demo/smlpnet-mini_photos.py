"""A narrow SMLPNet that tells from which of 12 photographs a grey patch comes: 1200 steps, 1 minute on 2 CPU cores.

    python tools/make_photos.py data/photos
    mim train mmpretrain configs/demo/smlpnet-mini_photos.py --work-dir work_dirs/photos

`make demo-classification` runs both, and evaluates at other sizes.
"""

_base_ = "../_base_/demo_runtime.py"
default_scope = "mmpretrain"

model = dict(
    type="ImageClassifier",
    data_preprocessor=dict(num_classes=12, mean=[118.0] * 3, std=[60.0] * 3, to_rgb=True),
    backbone=dict(
        type="mmsmlp.SMLPNet",
        arch=dict(embed_dims=24, depths=(1, 1, 2, 1)),
        img_size=64,
        out_indices=-1,
    ),
    neck=dict(type="GlobalAveragePooling"),
    head=dict(
        type="LinearClsHead",
        num_classes=12,
        in_channels=192,
        loss=dict(type="LabelSmoothLoss", label_smooth_val=0.1, mode="original"),
        cal_acc=False,
    ),
)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="RandomResizedCrop", scale=64, crop_ratio_range=(0.2, 1.0), interpolation="bicubic", backend="pillow"),
    dict(type="RandomFlip", prob=0.5, direction="horizontal"),
    dict(type="ColorJitter", brightness=0.4, contrast=0.4),
    dict(type="PackInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="CenterCrop", crop_size=64),
    dict(type="PackInputs"),
]

photos = dict(type="CustomDataset", data_root="data/photos")
train_dataloader = dict(
    batch_size=32,
    num_workers=0,
    persistent_workers=False,  # mmpretrain's train.py turns them on, which needs workers
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(data_prefix="train", pipeline=train_pipeline, **photos),
)
val_dataloader = dict(
    batch_size=60,
    num_workers=0,
    persistent_workers=False,  # mmpretrain's train.py turns them on, which needs workers
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(data_prefix="val", pipeline=test_pipeline, **photos),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="Accuracy", topk=(1,))
test_evaluator = val_evaluator

train_cfg = dict(max_iters=1200, val_interval=200)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=20),
    dict(type="CosineAnnealingLR", by_epoch=False, begin=20, end=1200, eta_min_ratio=0.01),
]
default_hooks = dict(checkpoint=dict(interval=200), visualization=dict(type="VisualizationHook"))
visualizer = dict(type="UniversalVisualizer", vis_backends=_base_.vis_backends)
