"""UperNet with sMLPNet-B on ADE20K at 640 pixels. For 8 GPUs x 2 crops. Not trained by us.

As at 512, but for the sizes of crops and test images; the official weights and their anchor grid of 224 stay.

mim train mmseg configs/segmentation/upernet_smlpnet-base_8xb2-160k_ade20k-640x640.py --gpus 8 --launcher pytorch
"""

_base_ = "./upernet_smlpnet-base_8xb2-160k_ade20k-512x512.py"
model = dict(data_preprocessor=dict(size=(640, 640)))

crop_size = (640, 640)
train_pipeline = _base_.train_pipeline
train_pipeline[2].scale = (2560, 640)  # RandomResize
train_pipeline[3].crop_size = crop_size
test_pipeline = _base_.test_pipeline
test_pipeline[1].scale = (2560, 640)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
