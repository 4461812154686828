"""sMLPNet-T fine-tuned at 384 pixels from its 224-pixel checkpoint. Not trained by us; the paper has no such model.

`load_from` names that checkpoint, where training with smlpnet-tiny_8xb128_in1k.py leaves it; another one:
`--cfg-options load_from=CHECKPOINT`. While it is loaded its axis weights are resized from 56, 28, 14 and 7 positions to
96, 48, 24 and 12.

The recipe is Swin-B's (configs/swin/swin_base_patch4_window12_384_finetune.yaml of microsoft/Swin-Transformer): 30
epochs, 5 of them warm-up from 2e-8, lr 2e-5 per 512 images, cosine to 2e-7, weight decay 1e-8, gradients clipped at 5,
augmentation as at 224 but not repeated; tests see the whole image, squeezed to 384 x 384. Drop path stays the arch's.

For 8 GPUs x 64 images.

mim train mmpretrain configs/classification/smlpnet-tiny_8xb64_in1k-384px.py --gpus 8 --launcher pytorch
"""

_base_ = "./smlpnet-tiny_8xb128_in1k.py"
load_from = "work_dirs/smlpnet-tiny_8xb128_in1k/epoch_300.pth"
model = dict(backbone=dict(img_size=384))

train_pipeline = _base_.train_pipeline
train_pipeline[1].scale = 384  # RandomResizedCrop
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(384, 384), backend="pillow", interpolation="bicubic"),
    dict(type="PackInputs"),
]
train_dataloader = dict(batch_size=64, sampler=dict(type="DefaultSampler"), dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

optim_wrapper = dict(optimizer=dict(lr=2e-5, weight_decay=1e-8), clip_grad=dict(max_norm=5.0))
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=True, end=5, convert_to_iter_based=True),
    dict(type="CosineAnnealingLR", eta_min=2e-7, by_epoch=True, begin=5),
]
train_cfg = dict(max_epochs=30)
auto_scale_lr = dict(base_batch_size=512)
