"""The toolboxes' data preprocessors, telling the backbone each image's valid area (:mod:`mmsmlp.valid_area`).

In a config, the type is all that changes: ``data_preprocessor=dict(type='mmsmlp.DetDataPreprocessor', ...)`` for
mmdet, ``'mmsmlp.SegDataPreProcessor'`` for mmseg. It is part of ``model``, so it works in training, testing and the
inferencers.
"""

from __future__ import annotations

from functools import cache

from mmengine.model import BaseDataPreprocessor
from torch import Tensor

from mmsmlp.registry import MODELS
from mmsmlp.valid_area import attach_valid_sizes


@MODELS.register_module(name="DetDataPreprocessor")
def build_det_preprocessor(**cfg) -> BaseDataPreprocessor:
    """Build mmdet's ``DetDataPreprocessor``, with its own arguments, that notes valid areas.

    Not after ``batch_augments`` in training, which resize batches: images then fill the canvas for the backbone. A
    ``Pad`` in the pipeline hides what is image and what is not; leave it out, this pads.
    """
    return _det_class()(**cfg)


@MODELS.register_module(name="SegDataPreProcessor")
def build_seg_preprocessor(**cfg) -> BaseDataPreprocessor:
    """Build mmseg's ``SegDataPreProcessor``, with its own arguments, that notes valid areas.

    It also takes test batches of images of different sizes, which mmseg's own refuses. Sliding-window inference cuts
    windows out of a batch; the backbone takes those as full.
    """
    return _seg_class()(**cfg)


# The classes exist once they are needed: importing mmsmlp must not import the toolboxes.


@cache
def _det_class() -> type:
    from mmdet.models import DetDataPreprocessor

    class ValidAreaDetDataPreprocessor(DetDataPreprocessor):
        def forward(self, data: dict, training: bool = False) -> dict:
            sizes = _image_sizes(data["inputs"])
            data = super().forward(data, training)
            if sizes and not (training and self.batch_augments):
                attach_valid_sizes(data["inputs"], sizes)
            return data

    return ValidAreaDetDataPreprocessor


@cache
def _seg_class() -> type:
    from mmseg.models import SegDataPreProcessor
    from mmseg.utils import stack_batch

    class ValidAreaSegDataPreProcessor(SegDataPreProcessor):
        def forward(self, data: dict, training: bool = False) -> dict:
            sizes = _image_sizes(data["inputs"])
            if sizes and not training and len(set(sizes)) > 1:
                data = self._test_batch(data)
            else:
                data = super().forward(data, training)
            if sizes and not (training and self.batch_augments):
                attach_valid_sizes(data["inputs"], sizes)
            return data

        def _test_batch(self, data: dict) -> dict:
            """Pad images of different sizes to one canvas; mmseg cuts the predictions to size."""
            settings, self.test_cfg = self.test_cfg or {}, None
            try:  # normalised one by one, not padded
                images = [SegDataPreProcessor.forward(self, {"inputs": [i]})["inputs"][0] for i in data["inputs"]]
            finally:
                self.test_cfg = settings or None
            size = settings.get("size")
            divisor = None if size else settings.get("size_divisor", 1)
            images, padding = stack_batch(images, size=size, size_divisor=divisor, pad_val=self.pad_val)
            samples = self.cast_data(data.get("data_samples"))
            for sample, meta in zip(samples or [], padding):
                sample.set_metainfo(meta)
            return {"inputs": images, "data_samples": samples}

    return ValidAreaSegDataPreProcessor


def _image_sizes(inputs) -> list[tuple[int, int]] | None:
    """Heights and widths of the images before padding; None where they come as one tensor, without padding."""
    return None if isinstance(inputs, Tensor) else [tuple(image.shape[-2:]) for image in inputs]
