"""The toolboxes' data preprocessors, telling the backbone each image's valid area (:mod:`mmsmlp.valid_area`).

In a config, the type is all that changes: ``data_preprocessor=dict(type='mmsmlp.DetDataPreprocessor', ...)`` for
mmdet, ``'mmsmlp.SegDataPreProcessor'`` for mmseg. It is part of ``model``, so it works in training, testing and the
inferencers.

The classes lie in modules of their own, imported once one is built: importing mmsmlp must not import the toolboxes.
"""

from mmengine.model import BaseDataPreprocessor

from mmsmlp.registry import MODELS


@MODELS.register_module(name="DetDataPreprocessor")
def build_det_preprocessor(**cfg) -> BaseDataPreprocessor:
    """Build :class:`mmsmlp.preprocessors.detection.ValidAreaDetDataPreprocessor` with mmdet's own arguments."""
    from mmsmlp.preprocessors.detection import ValidAreaDetDataPreprocessor

    return ValidAreaDetDataPreprocessor(**cfg)


@MODELS.register_module(name="SegDataPreProcessor")
def build_seg_preprocessor(**cfg) -> BaseDataPreprocessor:
    """Build :class:`mmsmlp.preprocessors.segmentation.ValidAreaSegDataPreProcessor` with mmseg's own arguments."""
    from mmsmlp.preprocessors.segmentation import ValidAreaSegDataPreProcessor

    return ValidAreaSegDataPreProcessor(**cfg)
