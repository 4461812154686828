"""Data sets made from scikit-image's photographs, without a download."""

from mmsmlp.photos.formats import (
    write_ade20k_format,
    write_cityscapes_format,
    write_coco_format,
    write_imagenet_format,
)
from mmsmlp.photos.patches import draw_patches, write_patches

__all__ = [
    "draw_patches",
    "write_ade20k_format",
    "write_cityscapes_format",
    "write_coco_format",
    "write_imagenet_format",
    "write_patches",
]
