"""sMLPNet-T as an ONNX file, for the rows that onnxruntime runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from mmsmlp import SMLPNet


def write_file(folder: Path) -> Path:
    """Export sMLPNet-T into a folder, with open batch, height and width.

    Raises:
        ModuleNotFoundError: If onnx, onnxscript or onnxruntime is missing.
        ValueError: If the torch at hand cannot export it.
    """
    from mmsmlp.onnx_export.parts import backbone_part
    from mmsmlp.onnx_export.write import export_onnx

    path = folder / "smlpnet-tiny.onnx"
    export_onnx(backbone_part(SMLPNet("tiny", out_indices=(0, 1, 2, 3))), path)
    return path


def open_session(path: Path, threads: int):
    """An ``onnxruntime.InferenceSession`` on CPU threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def make_pass(path: Path) -> Callable[[Tensor], Callable[[], None]]:
    """Open a file on PyTorch's number of threads; returns what makes a forward pass over images (N, 3, H, W)."""
    session = open_session(path, torch.get_num_threads())

    def of(images: Tensor) -> Callable[[], None]:
        feed = {"images": images.numpy()}

        def run() -> None:
            session.run(None, feed)

        return run

    return of
