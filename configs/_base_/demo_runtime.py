"""What the demos share: AdamW, one checkpoint kept, a line in the log every 10 steps, seed 0.

A demo says how many steps it takes, with its schedule and the intervals of validations and checkpoints.
"""

train_cfg = dict(type="IterBasedTrainLoop")
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
    clip_grad=dict(max_norm=10.0),
)

default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=10, log_metric_by_epoch=False),
    param_scheduler=dict(type="ParamSchedulerHook"),
    checkpoint=dict(type="mmsmlp.CheckpointHook", by_epoch=False, max_keep_ckpts=1),
    sampler_seed=dict(type="DistSamplerSeedHook"),
    resume=dict(type="mmsmlp.ResumeHook"),
)
log_processor = dict(type="LogProcessor", by_epoch=False, window_size=10)
env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0),
    dist_cfg=dict(backend="nccl"),
)
vis_backends = [dict(type="LocalVisBackend")]
log_level = "INFO"
load_from = None
resume = False
randomness = dict(seed=0)
