"""Whole detectors and segmentors: a step of each, and the time of its parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import costs
import numpy as np
import torch
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn
from torch.autograd.graph import register_multi_grad_hook

from mmsmlp.flops import count_macs
from speed.clock import REST, Clock

PACKAGES = ("mmdet.models", "mmseg.models", "mmpretrain.models")
SHAPES = {"Mask R-CNN": (1, 800, 1344), "UperNet": (2, 512, 512)}
WHOLES = {
    network.name: network
    for table in costs.TABLES.values()
    for network in table
    if network.name.split(", ")[0] in SHAPES and "ConvNeXt" not in network.name
}
OBJECTS = 8  # in an image; COCO's have 7 on average

# What is called for each part, where the model has it. Heads are the RPN, or a segmentor's two heads.
CALLS = {
    "data_preprocessor.forward": "preprocessing",
    "backbone.forward": "backbone",
    "neck.forward": "neck",
    "rpn_head.loss_and_predict": "heads",
    "rpn_head.predict": "heads",
    "decode_head.loss": "heads",
    "decode_head.predict": "heads",
    "auxiliary_head.loss": "heads",
    "roi_head.loss": "RoI",
    "roi_head.predict": "RoI",
    "rpn_head.predict_by_feat": "post-processing",
    "roi_head.bbox_head.predict_by_feat": "post-processing",
    "roi_head.mask_head.predict_by_feat": "post-processing",
    "postprocess_result": "post-processing",
}
PARTS = (*dict.fromkeys(CALLS.values()), "optimizer", REST)
# The backward pass goes through the parts in the reverse order of the forward pass: a part's begins when the gradients
# of its outputs are all there.
OUTPUTS = {"backbone": "backbone", "neck": "neck", "rpn_head": "heads"}


class Whole:
    """A stock config's model with an optimizer and a batch of noise.

    A detector's classifier is made to prefer one class, since untrained it would find nothing: all its 1000 proposals
    are candidates then and 100 detections get masks, as in an image full of objects.

    Args:
        name (str): One of ``WHOLES``.
        mode (str): 'eval' or 'train'.
        shape (tuple[int, int, int]): Images (N, H, W).
        device (str): 'cpu' or 'cuda'.
    """

    def __init__(self, name: str, mode: str, shape: tuple[int, int, int], device: str):
        config = costs.load(WHOLES[name])
        init_default_scope(config.default_scope)
        self.model = revert_sync_batchnorm(MODELS.build(config.model)).to(device)
        self.model.train(mode == "train")
        if hasattr(self.model, "roi_head"):
            with torch.no_grad():
                self.model.roi_head.bbox_head.fc_cls.bias[0] += 5.0
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], 1e-5)
        self.mode, self.device = mode, device
        self.batch = (_detections if config.default_scope == "mmdet" else _segmentations)(shape)
        self.clock = Clock(device)
        for path, part in CALLS.items():
            self._time(path, part)
        for name, part in OUTPUTS.items():
            if isinstance(getattr(self.model, name, None), nn.Module):
                getattr(self.model, name).register_forward_hook(self._switch_at(part))

    def step(self) -> dict[str, float]:
        """Run an inference, or a training step with its optimizer; seconds of each of ``PARTS`` that the model has."""
        self.clock.start()
        if self.mode == "eval":
            with torch.inference_mode():
                self.predict()
        else:
            self.optimizer.zero_grad()
            losses = self.losses()
            loss, _ = self.model.parse_losses(losses)
            with self.clock.part("RoI" if hasattr(self.model, "roi_head") else "heads"):
                loss.backward()
            with self.clock.part("optimizer"):
                self.optimizer.step()
        return self.clock.stop()

    def predict(self) -> list:
        """What the model finds on its batch: data samples."""
        return self.model(**self.model.data_preprocessor(self.batch, False), mode="predict")

    def losses(self) -> dict:
        """The model's losses on its batch."""
        return self.model(**self.model.data_preprocessor(self.batch, True), mode="loss")

    def macs(self) -> int:
        """Multiply-accumulates of an inference, or of a training step's forward pass."""
        return sum(count_macs(self.model, self.predict if self.mode == "eval" else self.losses).values())

    def _time(self, path: str, part: str) -> None:
        """Let the clock run while a method of the model does; nothing to do where there is no such method."""
        owner, _, method = path.rpartition(".")
        module = self.model
        for name in filter(None, owner.split(".")):
            module = getattr(module, name, None)
        called = getattr(module, method, None)
        if called is None:
            return

        def timed(*args, **kwargs):
            with self.clock.part(part):
                return called(*args, **kwargs)

        setattr(module, method, timed)

    def _switch_at(self, part: str) -> Callable:
        """A hook: from when the gradients of a module's outputs are there, time is the part's."""

        def hook(module: nn.Module, args: tuple, outputs) -> None:
            tensors = [tensor for tensor in _tensors(outputs) if tensor.requires_grad]
            if tensors:
                register_multi_grad_hook(tensors, lambda gradients: self.clock.switch(part))

        return hook


def _tensors(outputs) -> Iterator[Tensor]:
    """All tensors of nested tuples and lists."""
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, (tuple, list)):
        for output in outputs:
            yield from _tensors(output)


def _images(shape: tuple[int, int, int]) -> list[Tensor]:
    return list(torch.randint(0, 256, (shape[0], 3, *shape[1:]), dtype=torch.uint8))


def _detections(shape: tuple[int, int, int]) -> dict:
    """Noise with boxes of a quarter of the image's height and width at random places, the masks filling them."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    height, width = shape[1:]
    samples = []
    for number in range(shape[0]):
        corners = torch.rand(OBJECTS, 2) * torch.tensor([width, height]) * 0.75
        boxes = torch.cat([corners, corners + torch.tensor([width, height]) / 4], 1)
        masks = np.zeros((OBJECTS, height, width), np.uint8)
        for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist()):
            mask[top:bottom, left:right] = 1
        size = {"img_shape": (height, width), "ori_shape": (height, width), "scale_factor": (1.0, 1.0)}
        sample = DetDataSample(metainfo={"img_id": number, **size})
        labels = torch.randint(0, 80, (OBJECTS,))
        sample.gt_instances = InstanceData(bboxes=boxes, labels=labels, masks=BitmapMasks(masks, height, width))
        sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
        samples.append(sample)
    return {"inputs": _images(shape), "data_samples": samples}


def _segmentations(shape: tuple[int, int, int]) -> dict:
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    height, width = shape[1:]
    samples = []
    for _ in range(shape[0]):
        sample = SegDataSample(metainfo={"img_shape": (height, width), "ori_shape": (height, width)})
        sample.gt_sem_seg = PixelData(data=torch.randint(0, 150, (1, height, width)))
        samples.append(sample)
    return {"inputs": _images(shape), "data_samples": samples}
