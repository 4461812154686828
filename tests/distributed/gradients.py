"""Computes a classifier's or segmentor's gradients for one batch, alone or with its parts in several processes.

OMP_NUM_THREADS=1 python tests/distributed/gradients.py upernet one.pth
OMP_NUM_THREADS=1 python -m torch.distributed.run --standalone --nproc-per-node=2 \
    tests/distributed/gradients.py upernet two.pth --compare one.pth
"""

import argparse
import os

import torch
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import MODELS, init_default_scope
from mmengine.structures import PixelData
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

BACKBONE = {
    "type": "mmsmlp.SMLPNet",
    "arch": {"embed_dims": 8, "depths": (1, 1, 2, 1)},
    "img_size": 64,
    "drop_path_rate": 0.0,
    "norm_eval": True,
}
BATCH, CLASSES, SIZE = 4, 5, (48, 80)


def classifier() -> tuple[nn.Module, list]:
    from mmpretrain.structures import DataSample

    init_default_scope("mmpretrain")
    model = {
        "type": "ImageClassifier",
        "data_preprocessor": {"mean": [127.5] * 3, "std": [64.0] * 3},
        "backbone": {**BACKBONE, "out_indices": (3,)},
        "neck": {"type": "GlobalAveragePooling"},
        "head": {"type": "LinearClsHead", "num_classes": CLASSES, "in_channels": 64},
    }
    return MODELS.build(model), [DataSample().set_gt_label(i % CLASSES) for i in range(BATCH)]


def upernet() -> tuple[nn.Module, list]:
    from mmseg.structures import SegDataSample

    init_default_scope("mmseg")
    head = {
        "type": "UPerHead",
        "in_channels": [8, 16, 32, 64],
        "in_index": [0, 1, 2, 3],
        "pool_scales": (1, 2, 3, 6),
        "channels": 16,
        "num_classes": CLASSES,
        "dropout_ratio": 0.0,
        "norm_cfg": {"type": "BN"},
        "align_corners": False,
    }
    preprocessor = {"type": "SegDataPreProcessor", "size": SIZE, "mean": [127.5] * 3, "std": [64.0] * 3}
    model = {"type": "EncoderDecoder", "data_preprocessor": preprocessor, "backbone": BACKBONE, "decode_head": head}
    labels = torch.randint(0, CLASSES, (BATCH, 1, *SIZE))  # no pixel is ignored
    samples = [SegDataSample(gt_sem_seg=PixelData(data=label)) for label in labels]
    for sample in samples:
        sample.set_metainfo({"img_shape": SIZE, "ori_shape": SIZE})
    return MODELS.build(model), samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=("classifier", "upernet"))
    parser.add_argument("out", help="the gradients, by the parameters' names, are written here")
    parser.add_argument("--compare", help="print the largest relative difference to the gradients in this file")
    args = parser.parse_args()
    rank, processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))

    torch.manual_seed(0)
    model, samples = {"classifier": classifier, "upernet": upernet}[args.model]()
    model.double().train()
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.eval()  # the head's, too: each process would normalise by its own part of the batch
    images = torch.randint(0, 256, (BATCH, 3, *SIZE), dtype=torch.uint8)
    part = slice(rank * BATCH // processes, (rank + 1) * BATCH // processes)
    data = model.data_preprocessor({"inputs": list(images[part]), "data_samples": samples[part]}, training=True)
    data["inputs"] = data["inputs"].double()

    step = model
    if processes > 1:
        torch.distributed.init_process_group("gloo")
        step = MMDistributedDataParallel(model, broadcast_buffers=False, find_unused_parameters=False)
    loss, _ = model.parse_losses(step(**data, mode="loss"))
    loss.backward()
    if rank == 0:
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        torch.save(gradients, args.out)
        if args.compare:
            others = torch.load(args.compare)
            print(max(((gradients[name] - g).abs().max() / g.abs().max()).item() for name, g in others.items()))


if __name__ == "__main__":
    main()
