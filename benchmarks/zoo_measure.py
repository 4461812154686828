"""Measures one config in this process, for benchmarks/zoo.py: seconds of a forward pass, and a training step's memory.

Speed: the pass that is counted (one image; no loading, no post-processing), float32, the median of --repeats after one
that is left out. Memory: how far a training step lifts the process over what it was before the model was built:
weights, gradients, the optimiser's state and what the backward pass needs. Images of the same size, and as many as
there is room for on a small machine: 1 for a detector (its configs train with 2 a GPU), 2 for a segmentor, 8 for a
classifier; Mask2Former's detector pads them to the 1024 x 1024 that it is trained with. Images and labels are random.

python benchmarks/zoo_measure.py configs/segmentation/upernet_smlpnet-tiny_8xb2-160k_ade20k-512x512.py 512 512
"""

import argparse
import gc
import json
import logging
import statistics
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, init_default_scope
from speed.memory_peak import status

from mmsmlp.flops import build_pass

IMAGES = {"mmdet": 1, "mmseg": 2, "mmpretrain": 8}
OBJECTS = 10  # of an image of a detector; COCO's have 7 on average


def seconds(cfg: Config, shape: tuple[int, int], repeats: int) -> float:
    """Median time of the pass that is counted."""
    model, data, mode = build_pass(cfg, shape)
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        with torch.no_grad():
            model(**data, mode=mode)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def training_memory(cfg: Config, shape: tuple[int, int]) -> int:
    """Peak of a training step, in bytes over what the process holds before it."""
    images = IMAGES[cfg.default_scope]
    for augment in cfg.model.get("data_preprocessor", {}).get("batch_augments") or ():
        if augment["type"].endswith("BatchFixedSizePad"):  # takes images of at most its own size
            shape = tuple(map(min, shape, augment["size"]))
    before = status("VmRSS")
    cfg.model.setdefault("data_preprocessor", cfg.get("data_preprocessor"))  # as mmengine's Runner does
    model = revert_sync_batchnorm(MODELS.build(cfg.model)).train()
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    # The state of AdamW, which a first step makes only after its backward pass: a step of nothing has it there before.
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optim_wrapper.step()
    optim_wrapper.zero_grad()
    data = {
        "inputs": [torch.randint(256, (3, *shape), dtype=torch.uint8) for _ in range(images)],
        "data_samples": [labels(cfg, shape) for _ in range(images)],
    }
    model.train_step(data, optim_wrapper)
    return status("VmHWM") - before


def labels(cfg: Config, shape: tuple[int, int]):
    """A random label of an image, as the toolbox's data set would give it."""
    height, width = shape
    meta = {"img_shape": shape, "ori_shape": shape, "scale_factor": (1.0, 1.0)}
    if cfg.default_scope == "mmpretrain":
        from mmpretrain.structures import DataSample

        return DataSample(metainfo=meta).set_gt_label(int(torch.randint(1000, (1,))))
    if cfg.default_scope == "mmseg":
        from mmengine.structures import PixelData
        from mmseg.structures import SegDataSample

        classes = cfg.model.decode_head.num_classes
        areas = torch.randint(classes, (1, height // 16, width // 16)).repeat_interleave(16, 1).repeat_interleave(16, 2)
        return SegDataSample(metainfo=meta, gt_sem_seg=PixelData(data=areas))
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    corners = torch.rand(OBJECTS, 2) * torch.tensor([width, height]) * 0.7
    boxes = torch.cat([corners, corners + torch.tensor([width, height]) * 0.2], 1)
    masks = np.zeros((OBJECTS, height, width), np.uint8)
    for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist()):
        mask[top:bottom, left:right] = 1
    objects = InstanceData(
        bboxes=boxes, labels=torch.randint(80, (OBJECTS,)), masks=BitmapMasks(masks, height=height, width=width)
    )
    return DetDataSample(metainfo=meta, gt_instances=objects, ignored_instances=InstanceData(bboxes=torch.zeros(0, 4)))


def hardware() -> str:
    """The processor and the number of threads."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown CPU")
    return f"{name}, {torch.get_num_threads()} threads"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("shape", type=int, nargs=2, metavar="PIXELS", help="height and width")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    MMLogger.get_instance("mmengine").setLevel(logging.WARNING)
    warnings.simplefilter("ignore")  # mmseg's about its own heads
    torch.manual_seed(0)
    cfg, shape = Config.fromfile(args.config), tuple(args.shape)
    init_default_scope(cfg.default_scope)
    fast = seconds(cfg, shape, args.repeats)
    gc.collect()
    memory = training_memory(cfg, shape)
    figures = {"seconds": fast, "memory": memory, "images": IMAGES[cfg.default_scope], "hardware": hardware()}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
