"""Whole checkpoints moved to another anchor grid, and what that changes in a backbone's output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mmsmlp.checkpoint import has_folded_norms, reanchor
from mmsmlp.resize import DEFAULT_METHOD
from mmsmlp.smlpnet import SMLPNet
from mmsmlp.weights.arch import Arch, recognise

_STEM = "downsample_layers.0.weight"


def reanchor_checkpoint(
    checkpoint: Mapping, img_size: Sequence[int], interpolation: str = DEFAULT_METHOD
) -> tuple[dict, list[str]]:
    """Move a checkpoint, the moving average of its weights too, to the anchor grid of another image size.

    Args:
        checkpoint (Mapping): A checkpoint of mmengine, with a ``state_dict``.
        img_size (Sequence[int]): Height and width in pixels.
        interpolation (str): One of ``mmsmlp.resize.METHODS``. Defaults to 'bounded'.

    Returns:
        tuple[dict, list[str]]: ``state_dict``, ``ema_state_dict`` if given, and ``meta`` with ``anchor`` set; and the
            names of what was left out: an optimiser's moments cannot move.

    Raises:
        ValueError: If there are no axis weights of an SMLPNet in it.
    """
    moved = {
        name: reanchor(checkpoint[name], img_size, interpolation)
        for name in ("state_dict", "ema_state_dict")
        if name in checkpoint
    }
    moved["meta"] = {**checkpoint.get("meta", {}), "anchor": tuple(img_size)}
    return moved, [name for name in checkpoint if name not in moved]


def find_backbone(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Arch]:
    """Find the one SMLPNet in a model's weights.

    Args:
        state_dict (Mapping[str, Tensor]): Weights of any model.

    Returns:
        tuple[dict[str, Tensor], Arch]: Its weights without a prefix and without the norms of its outputs, and its arch.

    Raises:
        ValueError: If there are none or several.
    """
    found = []
    for prefix in (key[: -len(_STEM)] for key in state_dict if key.endswith(_STEM)):
        parts = (f"{prefix}downsample_layers.", f"{prefix}stages.")
        weights = {key[len(prefix) :]: value for key, value in state_dict.items() if key.startswith(parts)}
        arch = recognise(weights)
        if arch and any(".sparse_mlp." in key for key in weights):
            found.append((weights, arch))
    if len(found) != 1:
        raise ValueError(f"{len(found)} SMLPNets in the weights, not one")
    return found[0]


def compare_anchors(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], interpolation: str = DEFAULT_METHOD
) -> tuple[list[tuple[str, tuple[int, int], float]], float]:
    """Compare a backbone's output with that of the same backbone on another anchor grid.

    Args:
        before (Mapping[str, Tensor]): A model's weights.
        after (Mapping[str, Tensor]): The same, re-anchored.
        interpolation (str): One of ``mmsmlp.resize.METHODS``: how both backbones reach other sizes.

    Returns:
        tuple[list[tuple[str, tuple[int, int], float]], float]: For the new size, the old one and two others: what it
            is, height and width, and the relative error max |a - b| / max |b| of the last stage's map for an image of
            noise. Then the largest relative error of the axis weights moved back to the old grid.

    Raises:
        ValueError: If there is not exactly one SMLPNet in the weights, and complete.
    """
    (old_weights, old), (new_weights, new) = find_backbone(before), find_backbone(after)
    nets = [_build(old_weights, old, interpolation), _build(new_weights, new, interpolation)]
    sizes = {new.img_size: "new anchor"}
    sizes.setdefault(old.img_size, "old anchor")
    sizes.setdefault(tuple((a + b) // 2 for a, b in zip(old.img_size, new.img_size)), "between")
    sizes.setdefault(tuple(max(3 * min(a, b) // 4, 1) for a, b in zip(old.img_size, new.img_size)), "smaller")
    rows = []
    for size, label in sizes.items():
        x = torch.randn(1, old.in_channels, *size, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            wanted, got = (net(x)[0] for net in nets)
        rows.append((label, size, _relative_error(got, wanted)))
    back = reanchor(new_weights, old.img_size, interpolation)
    moved = [key for key in back if back[key] is not new_weights[key]]
    return rows, max((_relative_error(back[key], old_weights[key]) for key in moved), default=0.0)


def _build(weights: Mapping[str, Tensor], arch: Arch, interpolation: str) -> SMLPNet:
    # One stage more, which is not built, leaves out the norm of the last map: checkpoints of dense models may lack it.
    settings = {**arch.settings, "depths": (*arch.depths, 1)}
    switches = dict(arch.switches)
    if "global_mixing" in switches:
        switches["global_mixing"] = [*switches["global_mixing"], True]
    switches["fused_norms"] = has_folded_norms(weights)
    last = len(arch.depths) - 1
    net = SMLPNet(settings, arch.in_channels, arch.img_size, interpolation, out_indices=last, **switches)
    try:
        net.load_state_dict(weights)
    except RuntimeError:
        raise ValueError(f"the SMLPNet in the weights ({arch}) is not complete") from None
    return net.eval()


def _relative_error(a: Tensor, b: Tensor) -> float:
    return ((a - b).abs().max() / b.abs().max()).item()
