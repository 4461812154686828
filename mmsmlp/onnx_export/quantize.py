"""Eight-bit files: weights and the inputs of convolutions and of products with weights as INT8, by onnxruntime."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, init_default_scope
from torch import Tensor

from mmsmlp.running import read_config

CALIBRATION_IMAGES = 32


def training_images(config: str | Path | Config, count: int = CALIBRATION_IMAGES, seed: int = 0) -> list[Tensor]:
    """What the network gets in training: images of a config's training set, through its pipeline, normalised.

    Args:
        config (str | Path | Config): The config.
        count (int): How many; they are drawn at random.
        seed (int): Of the draw, and of what is random in the pipeline.

    Returns:
        list[Tensor]: Images (1, C, H, W), of the sizes that the pipeline gives.

    Raises:
        ValueError: If the training set is not there.
    """
    cfg = config if isinstance(config, Config) else read_config(config)
    init_default_scope(cfg.get("default_scope", "mmengine"))
    given = {**(cfg.get("data_preprocessor") or {}), **(cfg.model.get("data_preprocessor") or {})}
    given.setdefault("type", "ClsDataPreprocessor")  # of mmpretrain, which alone has a default
    preprocess = MODELS.build(given)
    state = np.random.get_state()
    try:
        dataset = DATASETS.build(cfg.train_dataloader.dataset)
        np.random.seed(seed)
        samples = [dataset[int(i)] for i in np.random.randint(0, len(dataset), count)]
    except (OSError, AssertionError) as error:
        raise ValueError(f"int8 is calibrated on the config's training images, which are not there: {error}") from error
    finally:
        np.random.set_state(state)
    batches = ({"inputs": [s["inputs"]], "data_samples": [s["data_samples"]]} for s in samples)
    with torch.no_grad():
        return [preprocess(batch, False)["inputs"] for batch in batches]


def quantize(model, images: Sequence[Tensor]):
    """Make an INT8 model of a float32 one, its ranges measured on images.

    Weights are symmetric and have a scale for each output channel, inputs are unsigned with one scale. Products of two
    maps stay in float32, so the axis weights and what resizes them keep all of their digits.

    Args:
        model (onnx.ModelProto): From :func:`mmsmlp.onnx_export.write.to_onnx`.
        images (Sequence[Tensor]): Normalised images (1, C, H, W), such as training has; at least one.

    Returns:
        onnx.ModelProto: With QuantizeLinear and DequantizeLinear around what computes in eight bits.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        plain, prepared, quantized = (Path(folder, f"{name}.onnx") for name in ("plain", "prepared", "quantized"))
        onnx.save(model, plain)
        quant_pre_process(plain, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            quantized,
            _Reader(images),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Gemm", "MatMul"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={"MatMulConstBOnly": True},
        )
        return onnx.load(quantized)


class _Reader:
    """What onnxruntime's calibration asks for the next input."""

    def __init__(self, images: Sequence[Tensor]):
        self._images = iter(images)

    def get_next(self) -> dict | None:
        image = next(self._images, None)
        return None if image is None else {"images": image.numpy()}
