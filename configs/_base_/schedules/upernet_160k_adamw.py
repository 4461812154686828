"""160,000 steps of a UperNet: ConvNeXt-T's recipe (mmseg's configs/convnext), for 8 GPUs x 2 crops.

ConvNeXt-T's decay of 0.9 is a rate for each of 8 groups of layers, ours is one for each block: of sMLPNet-T's 28 depths
the lowest learns at 0.973 ** 27 = 0.48 of the rate, as ConvNeXt-T's does at 0.9 ** 7. Small and base have
40 depths, so theirs learns at 0.34 of the rate; ConvNeXt-S's and -B's, with 0.9 and 14 groups, at 0.9 ** 13 = 0.25.
"""

train_cfg = dict(type="IterBasedTrainLoop", max_iters=160000, val_interval=16000)
optim_wrapper = dict(
    type="OptimWrapper",
    constructor="mmsmlp.LayerDecayOptimWrapperConstructor",
    optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(layer_decay_rate=0.973),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type="PolyLR", power=1.0, eta_min=0.0, by_epoch=False, begin=1500, end=160000),
]
auto_scale_lr = dict(enable=False, base_batch_size=16)
