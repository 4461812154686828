"""Count the operations of a model by running it once: multiply-accumulates, split by what they are spent on."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmsmlp.blocks import PatchConv
from mmsmlp.layers import AxisLinear, ChannelMLP, LocalMixer, SparseMLP

PARTS = ("stem and merging", "local mixing", "axis mixing", "fusion", "channel MLP", "head")


@dataclass(frozen=True)
class OperationCount:
    """What one forward pass costs.

    Attributes:
        input_shape (tuple[int, ...]): (N, C, H, W) that the network saw, after the model's own padding.
        macs (dict[str, int]): Multiply-accumulates of each of ``PARTS``; 'head' is all outside an SMLPNet.
        parameters (int): Number of parameters.
    """

    input_shape: tuple[int, ...]
    macs: dict[str, int]
    parameters: int

    @property
    def total_macs(self) -> int:
        """Multiply-accumulates of the whole pass."""
        return sum(self.macs.values())


def count_macs(model: nn.Module, run: Callable[[], object]) -> dict[str, int]:
    """Count the multiply-accumulates of one call, by PyTorch's own operator counter.

    Convolutions and matrix products count, as everywhere in the field; norms, activations and pooling do not. On top
    of PyTorch's counter come operators that it leaves out: those that resize axis parameters (matrix-vector products,
    and bicubic interpolation at 16 taps a value), the taps of :mod:`mmsmlp.ops.taps`, and attention fused for a CPU.
    Applying resize matrices to weights counts; building them does not, since that happens once per size.

    Blocks are counted by their layers' own code (the hooks that tell the parts apart see to that): on maps larger than
    the anchor :mod:`mmsmlp.ops.fused` computes less than this.

    A model on the meta device, called with meta tensors, is counted without computing anything, as on a CPU.

    Args:
        model (nn.Module): The model. In one without an SMLPNet or its layers all is 'head'.
        run (Callable): Calls the model, e.g. ``lambda: model(x)``. Called twice, the second call is counted.

    Returns:
        dict[str, int]: Multiply-accumulates of each of ``PARTS``.
    """
    counter = FlopCounterMode(display=False, custom_mapping=_LEFT_OUT)
    parts = dict.fromkeys(PARTS, 0)
    with ExitStack() as hooks:
        for module in model.modules():
            for part, counted in _counted_modules(module):
                meter = _Meter(counter, parts, part)
                hooks.callback(counted.register_forward_pre_hook(meter.start).remove)
                hooks.callback(counted.register_forward_hook(meter.stop).remove)
        with torch.no_grad():
            run()  # builds the resize matrices
            parts.update(dict.fromkeys(PARTS, 0))
            with counter:
                run()
    parts["head"] = counter.get_total_flops() // 2 - sum(parts.values())
    return parts


def count_config(config: str | Config, shape: tuple[int, int]) -> OperationCount:
    """Count the operations of a config's whole model on one image.

    Args:
        config (str | Config): A classifier's, detector's or segmentor's config, as a path or loaded.
        shape (tuple[int, int]): Height and width of the image in pixels; the model's own padding comes on top.

    Returns:
        OperationCount: Counts of the pass of :func:`build_pass`.
    """
    model, data, mode = build_pass(config, shape)
    return OperationCount(
        input_shape=tuple(data["inputs"].shape),
        macs=count_macs(model, lambda: model(**data, mode=mode)),
        parameters=sum(p.numel() for p in model.parameters()),
    )


def build_pass(config: str | Config, shape: tuple[int, int]) -> tuple[nn.Module, dict, str]:
    """Build a config's whole model, in eval mode, and what it is called with for one black image.

    Args:
        config (str | Config): A classifier's, detector's or segmentor's config, as a path or loaded.
        shape (tuple[int, int]): Height and width of the image in pixels; the model's own padding comes on top.

    Returns:
        tuple[nn.Module, dict, str]: Model, data and mode for ``model(**data, mode=mode)``. The mode is 'tensor' (a
            two-stage detector runs its heads on its own proposals, with as many masks as a test has at most), and
            'predict' for mmseg's Mask2Former.
    """
    cfg = config if isinstance(config, Config) else Config.fromfile(config)
    scope = cfg.get("default_scope", "mmengine")
    init_default_scope(scope)
    model = revert_sync_batchnorm(MODELS.build(cfg.model)).eval()
    data = {"inputs": [torch.zeros(3, *shape, dtype=torch.uint8)]}
    meta = {"img_id": 0, "img_shape": shape, "ori_shape": shape, "scale_factor": (1.0, 1.0)}
    mode = "tensor"
    if scope == "mmdet":
        from mmdet.structures import DetDataSample

        data["data_samples"] = [DetDataSample(metainfo=meta)]
        if getattr(getattr(model, "roi_head", None), "num_stages", 1) > 1 and model.roi_head.with_mask:
            for head in model.roi_head.mask_head:
                _limit_masks(head, model.test_cfg.rcnn.max_per_img)
    elif scope == "mmseg":
        from mmseg.structures import SegDataSample

        data["data_samples"] = [SegDataSample(metainfo=meta)]
        # mmdet's heads want the samples, which mmseg's segmentors hand on in prediction only.
        if "batch_data_samples" in inspect.signature(model.decode_head.forward).parameters:
            mode = "predict"
    return model, model.data_preprocessor(data, False), mode


def _limit_masks(head: nn.Module, limit: int) -> None:
    """Let a mask head compute ``limit`` masks, the others zeros.

    mmdet's cascades, other than its plain R-CNN, ask for a mask of each proposal in mode 'tensor', as no test does.
    """
    asked = []

    def first(_, inputs):
        asked.append(len(inputs[0]))
        return (inputs[0][:limit],)

    def fill_up(_, inputs, masks):
        return nn.functional.pad(masks, (0, 0, 0, 0, 0, 0, 0, asked.pop() - len(masks)))

    head.register_forward_pre_hook(first)
    head.register_forward_hook(fill_up)


def sparse_mlp_macs(height: int, width: int, channels: int) -> int:
    """Multiply-accumulates of a sparse MLP at its anchor: HWC (H + W) for the axes and 3 HWC² for the fusion."""
    return height * width * channels * (height + width) + 3 * height * width * channels**2


def mixer_token_macs(height: int, width: int, channels: int, ratio: float) -> int:
    """Multiply-accumulates of MLP-Mixer's token mixing: 2 ratio (HW)² C, two full layers over all HW tokens.

    Args:
        height (int): Rows of tokens H.
        width (int): Columns of tokens W.
        channels (int): Number of channels C.
        ratio (float): Hidden tokens relative to the HW tokens.

    Returns:
        int: The count; it grows with the square of the number of tokens.
    """
    return 2 * int(ratio * height * width) * height * width * channels


class _Meter:
    """Adds what is counted between a module's start and stop to its part."""

    def __init__(self, counter: FlopCounterMode, parts: dict[str, int], part: str):
        self.counter, self.parts, self.part = counter, parts, part
        self.before = 0

    def start(self, *_) -> None:
        self.before = self.counter.get_total_flops()

    def stop(self, *_) -> None:
        self.parts[self.part] += (self.counter.get_total_flops() - self.before) // 2


def _counted_modules(module: nn.Module):
    """Parts that a module is itself, or has below it; no two of them overlap."""
    by_type = {
        PatchConv: "stem and merging",
        LocalMixer: "local mixing",
        AxisLinear: "axis mixing",
        ChannelMLP: "channel MLP",
    }
    if type(module) in by_type:
        yield by_type[type(module)], module
    elif isinstance(module, SparseMLP) and module.fusion == "concat":
        yield "fusion", module.fuse


def _matrix_vector_flop(matrix, vector, *_, **__) -> int:
    return 2 * matrix[0] * matrix[1]


def _bicubic_flop(*_, out_shape=None, **__) -> int:
    return 2 * 16 * torch.Size(out_shape).numel()


def _taps_flop(table, indices, *_, **__) -> int:
    return 2 * math.prod(indices) * table[1]


def _attention_flop(query, key, value, *_, **__) -> int:
    """Products of queries with keys, then of the weights with the values; the shapes are (N, heads, length, C)."""
    return 2 * math.prod(query[:3]) * key[2] * (query[3] + value[3])


_LEFT_OUT = {
    torch.ops.aten.mv: _matrix_vector_flop,
    torch.ops.aten.upsample_bicubic2d: _bicubic_flop,
    torch.ops.aten._embedding_bag_forward_only: _taps_flop,
}
if hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu"):  # not in older versions of PyTorch
    _LEFT_OUT[torch.ops.aten._scaled_dot_product_flash_attention_for_cpu] = _attention_flop
