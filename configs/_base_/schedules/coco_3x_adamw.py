"""36 epochs of COCO, with layer-wise decay as in ConvNeXt-T's recipe (mmdet's configs/convnext).

ConvNeXt-T's 0.95 is a rate for each of 8 groups of layers, ours is one for each block: of sMLPNet-T's 28 depths the
lowest learns at 0.987 ** 27 = 0.70 of the rate, as ConvNeXt-T's does at 0.95 ** 7.
"""

_base_ = "./coco_1x_adamw.py"
train_cfg = dict(max_epochs=36)
optim_wrapper = dict(
    constructor="mmsmlp.LayerDecayOptimWrapperConstructor",
    paramwise_cfg=dict(layer_decay_rate=0.987),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type="MultiStepLR", by_epoch=True, begin=0, end=36, milestones=[27, 33], gamma=0.1),
]
