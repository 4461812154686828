"""ONNX files that run at every input size: :func:`export_onnx` writes one of what :func:`read_part` makes."""

from mmsmlp.onnx_export.parts import Part, backbone_part, read_part
from mmsmlp.onnx_export.quantize import training_images
from mmsmlp.onnx_export.write import compare, export_onnx
from mmsmlp.running import read_config

__all__ = ["Part", "backbone_part", "compare", "export_onnx", "read_config", "read_part", "training_images"]
