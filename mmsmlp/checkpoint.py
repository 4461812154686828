"""Checkpoints: the official key names, a report on every load, and a guard for a resumed optimiser."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from mmsmlp.resize import is_axis_parameter

# Official (microsoft/SPACH, models/smlp.py) names within a block -> ours. Beware: `proj_h` mixes along W, it is a 1x1
# convolution whose channels are the columns; `proh_w` (sic) mixes along H.
_TOKEN_MIX = {
    "0.conv_merge.BN": "local.norm",
    "0.conv_merge.Conv": "local.conv",
    "1.BN": "sparse_mlp.norm",
    "1.proj_h": "sparse_mlp.mix_w",
    "1.proh_w": "sparse_mlp.mix_h",
    "1.fuse": "sparse_mlp.fuse",
}
_CHANNEL_MIX = {"1": "channel_mlp.norm", "2.net.0": "channel_mlp.fc1", "2.net.3": "channel_mlp.fc2"}
_BLOCK_KEY = re.compile(r"(token_mix|channel_mix)\.(\d+)\.(.+)\.(\w+)")


def convert_spach(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn the official sMLPNet's state dict into that of an mmpretrain ImageClassifier with our backbone.

    Args:
        state_dict (Mapping[str, Tensor]): Weights under the names of microsoft/SPACH ``models/smlp.py``, any size.

    Returns:
        dict[str, Tensor]: The same tensors as ``backbone.…`` and ``head.fc.…``; 1x1 convolutions that are linear
            layers here lose their two unit axes. The anchor grid stays the one that they were trained on.

    Raises:
        ValueError: If a key is not one of the official model's, or the stem is missing.
    """
    stem = "to_patch_embedding.0.0.weight"
    if stem not in state_dict:
        hint = "; pass checkpoint['model']" if "model" in state_dict else ""
        raise ValueError(f"not an official sMLPNet state dict: no key {stem!r} among {_some(state_dict)}{hint}")
    stages = _stage_of_block(state_dict, embed_dims=state_dict[stem].shape[0])
    last = max(int(key.split(".")[1]) for key in state_dict if key.startswith("to_patch_embedding."))
    converted = {}
    for key, value in state_dict.items():
        name = _convert_key(key, stages, last)
        linear = name.endswith(("fuse.weight", "mix_w.weight", "mix_h.weight"))
        converted[name] = value.flatten(1) if linear else value
    return converted


def report_loading(model: nn.Module, state_dict: Mapping[str, Tensor], prefix: str) -> None:
    """Log one line on how a state dict fits a backbone, and arm the guard of :func:`refuse_resumed_moments`.

    Args:
        model (nn.Module): The backbone about to load.
        state_dict (Mapping[str, Tensor]): What it is given; only keys that start with ``prefix`` concern it.
        prefix (str): The backbone's name within the whole model, with a trailing dot, or ''.

    Raises:
        RuntimeError: If no key matches: the usual cause is a missing or superfluous ``prefix``.
    """
    own = model.state_dict(keep_vars=True)
    given = {key[len(prefix) :]: value for key, value in state_dict.items() if key.startswith(prefix)}
    common = own.keys() & given.keys()
    resized = [
        k
        for k in common
        if _is_axis_key(k) and own[k].shape != given[k].shape and is_axis_parameter(given[k], own[k].ndim)
    ]
    matched = [k for k in common if own[k].shape == given[k].shape or k in resized]
    name = type(model).__name__
    if not matched:
        raise RuntimeError(
            f"{name}: none of the {len(given)} given keys fits, so nothing would be loaded. Given: {_some(given)}; "
            f"wanted: {_some(own)}. Is the prefix right (init_cfg=dict(type='Pretrained', checkpoint=..., "
            "prefix='backbone.') for a backbone inside a larger model), and the arch?"
        )
    parts = [f"{len(matched)} of {len(own)} keys matched"]
    if resized:
        axes = sorted({(len(given[k]), len(own[k])) for k in resized}, reverse=True)
        parts.append(f"{len(resized)} axis weights and biases resized ({', '.join(f'{a} -> {b}' for a, b in axes)})")
    # mmengine, too, does not count the batch norms' counters: old checkpoints lack them, and nothing depends on them.
    groups = {
        "missing": [k for k in own.keys() - given.keys() if not k.endswith("num_batches_tracked")],
        "of another shape": [k for k in common if k not in matched],
        "unexpected": list(given.keys() - own.keys()),
    }
    parts += [f"{len(keys)} {label} ({_some(keys)})" for label, keys in groups.items() if keys]
    print_log(f"{name}: {'; '.join(parts)}", logger="current")
    if resized:
        _guard_optimizers()


def refuse_resumed_moments(optimizer: torch.optim.Optimizer, *_) -> None:
    """Refuse the first step of an optimiser whose moments belong to another anchor grid.

    A global pre-hook of optimiser steps, installed with the first checkpoint that was resized while loading. Weights
    can be resized, moments cannot: ``load_state_dict`` of PyTorch's optimisers takes them without a word. What has no
    moments (SGD without momentum) has nothing that could not go on: an exponential moving average of the weights is
    resized as the weights are.

    Args:
        optimizer (torch.optim.Optimizer): The optimiser about to step.

    Raises:
        RuntimeError: Before the first step, naming both grids and the remedy.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            before = getattr(parameter, "resized_from", None)
            if before is None:
                continue
            # Judged at the first step only: later, an optimiser may keep state of any shape, as Adafactor does.
            del parameter.resized_from
            moments = [v for v in optimizer.state.get(parameter, {}).values() if isinstance(v, Tensor) and v.ndim]
            if any(moment.shape != parameter.shape for moment in moments):
                raise RuntimeError(
                    f"cannot resume on another anchor grid: the checkpoint's optimizer state belongs to axis weights "
                    f"of {before} positions, this model's have {len(parameter)} (img_size of the backbone). To go on "
                    "from its weights, start a new run with load_from=CHECKPOINT instead of resume."
                )


def _convert_key(key: str, stages: Mapping[int, tuple[int, int]], last: int) -> str:
    kind, _, rest = key.partition(".")
    if kind == "to_patch_embedding" and rest.endswith(".0.weight"):
        return f"backbone.downsample_layers.{rest.split('.')[0]}.weight"
    if kind == "batch_norm":
        return f"backbone.norm{last}.{rest}"
    if kind == "mlp_head" and rest.startswith("0."):
        return f"head.fc.{rest[2:]}"
    match = _BLOCK_KEY.fullmatch(key)
    layer = match and (_TOKEN_MIX if kind == "token_mix" else _CHANNEL_MIX).get(match[3])
    if not layer:
        raise ValueError(f"not an official sMLPNet key: {key!r}")
    if int(match[2]) not in stages:
        raise ValueError(f"incomplete sMLPNet state dict: {key!r} is there, token_mix.{match[2]}.1.BN.weight is not")
    stage, block = stages[int(match[2])]
    return f"backbone.stages.{stage}.{block}.{layer}.{match[4]}"


def _stage_of_block(state_dict: Mapping[str, Tensor], embed_dims: int) -> dict[int, tuple[int, int]]:
    """Official running block number -> (stage, block within it): each stage doubles the channels."""
    blocks: dict[int, tuple[int, int]] = {}
    depths: dict[int, int] = {}
    number = 0
    while f"token_mix.{number}.1.BN.weight" in state_dict:
        channels = state_dict[f"token_mix.{number}.1.BN.weight"].shape[0]
        stage = (channels // embed_dims).bit_length() - 1
        blocks[number] = stage, depths.setdefault(stage, 0)
        depths[stage] += 1
        number += 1
    return blocks


_guarded = False


def _guard_optimizers() -> None:
    # (torch 2.1 runs no step hooks once torch.compile was used; there PyTorch's own error about sizes remains.)
    global _guarded
    if not _guarded:
        register_optimizer_step_pre_hook(refuse_resumed_moments)
        _guarded = True


def _is_axis_key(key: str) -> bool:
    return key.rpartition(".")[0].endswith(("mix_w", "mix_h"))


def _some(keys: Iterable[str], most: int = 3) -> str:
    keys = sorted(keys)
    return ", ".join(keys[:most]) + (f", … ({len(keys)} in all)" if len(keys) > most else "") if keys else "no keys"
