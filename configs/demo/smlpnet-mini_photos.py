"""A narrow SMLPNet that tells from which of 12 photographs a grey patch comes.

    python tools/make_photos.py data/photos
    mim train mmpretrain configs/demo/smlpnet-mini_photos.py --work-dir work_dirs/photos

`make demo-classification` runs both, and evaluates at other sizes.
"""

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

train_cfg = dict(type="IterBasedTrainLoop", max_iters=1200, val_interval=200)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
    clip_grad=dict(max_norm=10.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=20),
    dict(type="CosineAnnealingLR", by_epoch=False, begin=20, end=1200, eta_min_ratio=0.01),
]

default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=10, log_metric_by_epoch=False),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=200, max_keep_ckpts=1),
    sampler_seed=dict(type="DistSamplerSeedHook"),
    visualization=dict(type="VisualizationHook", enable=False),
)
log_processor = dict(by_epoch=False, window_size=10)
env_cfg = dict(cudnn_benchmark=False, mp_cfg=dict(mp_start_method="fork"), dist_cfg=dict(backend="nccl"))
vis_backends = [dict(type="LocalVisBackend")]
visualizer = dict(type="UniversalVisualizer", vis_backends=vis_backends)
log_level = "INFO"
load_from = None
resume = False
randomness = dict(seed=0)
