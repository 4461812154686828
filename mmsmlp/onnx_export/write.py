"""An ONNX file of a :class:`~mmsmlp.onnx_export.parts.Part`: exported, described, checked, then named."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from mmsmlp.files import atomic_file
from mmsmlp.onnx_export.parts import Part

# The first with GELU as an operator.
OPSET = 20
OLDEST_TORCH = (2, 11)
INPUT = "images"
PRECISIONS = ("fp32", "fp16", "int8")
# What a file may differ from PyTorch by, max |a - b| / max |b|, before it takes its name. Of int8 this only tells a
# broken file from a sound one: its accuracy is to be measured on data.
TOLERANCES = {"fp32": 1e-4, "fp16": 2e-2, "int8": 1.0}
# Neither is square or the traced one; with an anchor of 224, one lies below and one above.
CHECKED_SIZES = ((1, 97, 160), (2, 261, 230))
_TRACED = (2, 90, 122)


def export_onnx(
    part: Part, out: str | Path, precision: str = "fp32", calibration: Sequence[Tensor] = ()
) -> dict[tuple[int, int, int], float]:
    """Write one file for every batch, height and width, and compare it with PyTorch before it takes its name.

    Args:
        part (Part): What to export.
        out (str | Path): The file; an existing one is replaced when the new one is complete and has passed.
        precision (str): 'fp32', 'fp16' (weights and maps; images and outputs stay float32), or 'int8' (weights and
            inputs of convolutions and of products with weights; the rest float32).
        calibration (Sequence[Tensor]): For 'int8': normalised images (1, C, H, W), such as training has.

    Returns:
        dict[tuple[int, int, int], float]: (N, H, W) that were run, to the largest ``max |a - b| / max |b|`` of the
            outputs.

    Raises:
        ValueError: If the model, the precision or the torch at hand does not allow it, or the file differs too much.
        ModuleNotFoundError: If onnx, onnxscript or onnxruntime is missing.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"unknown precision {precision!r}, choose one of {', '.join(map(repr, PRECISIONS))}")
    if precision == "int8" and not calibration:
        raise ValueError("int8 needs images of the training set to measure ranges on (calibration)")
    onnx = _require()
    model = to_onnx(part, half=precision == "fp16")
    with atomic_file(out) as new:
        if precision == "int8":
            from mmsmlp.onnx_export.quantize import quantize

            model = quantize(model, calibration)
        onnx.helper.set_model_props(model, {**part.metadata, "precision": precision, "opset": str(OPSET)})
        onnx.save(model, new)
        onnx.checker.check_model(str(new), full_check=True)
        errors = compare(part, new)
        worst = max(errors.values())
        if worst > TOLERANCES[precision]:
            raise ValueError(
                f"the file differs from PyTorch by {worst:.1e} of the largest value, more than {TOLERANCES[precision]} "
                f"({precision}), and was not kept"
            )
    return errors


def to_onnx(part: Part, half: bool = False):
    """Export a part with open batch, height and width; returns an ``onnx.ModelProto`` without metadata."""
    module: nn.Module = part.exportable()
    if half:
        module = _Half(module)
    image = torch.zeros(_TRACED[0], part.channels, *_TRACED[1:])
    open_axes = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            module,
            (image,),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=(open_axes,),
            input_names=[INPUT],
            output_names=list(part.outputs),
            verbose=False,
        )
    model = program.model_proto
    for node in model.graph.node:
        del node.metadata_props[:]  # lines of the code that made it, with the paths of this machine
    _name_axes(model)
    return model


def compare(part: Part, path: str | Path, sizes: Sequence[tuple[int, int, int]] = CHECKED_SIZES) -> dict:
    """Run a file in onnxruntime and the part in PyTorch on the same noise.

    Args:
        part (Part): What the file was exported from.
        path (str | Path): The file.
        sizes (Sequence[tuple[int, int, int]]): (N, H, W) of the images.

    Returns:
        dict[tuple[int, int, int], float]: Each size to the largest ``max |a - b| / max |b|`` of the outputs.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    errors = {}
    for count, height, width in sizes:
        images = torch.randn(count, part.channels, height, width, generator=generator)
        with torch.no_grad():
            wanted = part.module(images)
        given = session.run(list(part.outputs), {INPUT: images.numpy()})
        errors[count, height, width] = max(map(_difference, map(torch.from_numpy, given), wanted))
    return errors


class _Half(nn.Module):
    """A module computed in float16, with images and outputs in float32."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module.half()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(out.float() for out in self.module(x.half()))


def _difference(given: Tensor, wanted: Tensor) -> float:
    if given.shape != wanted.shape:
        return math.inf
    error = ((given - wanted).abs().max() / wanted.abs().max()).item()
    return math.inf if math.isnan(error) else error


def _name_axes(model) -> None:
    """Give the open axes names: PyTorch's are formulas of symbols."""
    names = {}
    for axis, dim in zip(("batch", "channels", "height", "width"), model.graph.input[0].type.tensor_type.shape.dim):
        names[dim.dim_param] = axis
        if dim.dim_param:
            dim.dim_param = axis
    for output in model.graph.output:
        dims = output.type.tensor_type.shape.dim
        for axis, dim in zip(("batch", "channels", "height", "width"), dims):
            if dim.dim_param:
                dim.dim_param = names.get(dim.dim_param, axis if axis == "batch" else f"{output.name}_{axis}")
    del model.graph.value_info[:]  # shapes of what is in between, under the old names


def _require():
    """The package onnx, if all that the exporter needs is there."""
    version = tuple(map(int, re.match(r"(\d+)\.(\d+)", torch.__version__).groups()))
    if version < OLDEST_TORCH:
        raise ValueError(
            f"exporting needs torch {'.'.join(map(str, OLDEST_TORCH))} or newer, this is {torch.__version__}"
        )
    try:
        import onnx
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}: pip install -e '.[export]'", name=error.name) from None
    return onnx


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's progress and hints to its developers; errors are raised."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
