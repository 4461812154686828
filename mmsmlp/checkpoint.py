"""Checkpoints: a report on every load, a guard for a resumed optimiser, and the move to another anchor grid."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from io import BytesIO
from pathlib import Path
from urllib.parse import urlparse

import torch
from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from mmsmlp.files import atomic_file
from mmsmlp.resize import DEFAULT_METHOD, is_axis_parameter, resize_axis_bias, resize_axis_weight
from mmsmlp.weights.arch import count_blocks, recognise, some
from mmsmlp.weights.checkpoint_file import CheckpointFileError, check_checkpoint_file, not_finite

FUSED_MARK = "fused_norms"  # in the metadata of a state dict, and in the meta of a checkpoint

_BACKBONE = "backbone."
_FOLDED_NORM = re.compile(r"(?:stages\.\d+\.\d+\.(?:local|sparse_mlp)\.norm|norm\d+)\.scale")
# Not the batch norms' counters: old checkpoints lack them, and nothing depends on them.
_BLOCK_PART = re.compile(r"stages\.\d+\..*(?<!num_batches_tracked)$")
_AXIS_KEY = re.compile(r"((?:.*\.)?)stages\.(\d+)\.\d+\.sparse_mlp\.mix_([hw])\.(weight|bias)")


class UnfitWeightsError(RuntimeError):
    """Weights that a backbone refuses: nothing of them is loaded. One line, with the remedy."""


def report_loading(model: nn.Module, state_dict: MutableMapping[str, Tensor], prefix: str) -> None:
    """Log one line on how a state dict fits a backbone, and arm the guard of :func:`refuse_resumed_moments`.

    A bare backbone that is given a whole model's weights takes those below ``backbone.``: they are renamed in
    ``state_dict``, which every loading path has copied before.

    Args:
        model (nn.Module): The backbone about to load.
        state_dict (MutableMapping[str, Tensor]): What it is given; only keys that start with ``prefix`` concern it.
        prefix (str): The backbone's name within the whole model, with a trailing dot, or ''.

    Raises:
        UnfitWeightsError: If the weights are of another arch, which mmengine would load in part with a mere warning; if
            no key matches, the usual cause of which is a missing or superfluous ``prefix``; if norms are folded in the
            weights and not in the backbone, or the other way round (:func:`mmsmlp.fuse_norms`); or if they are no
            finite floating-point numbers.
    """
    own = model.state_dict(keep_vars=True)
    below = f" below {_BACKBONE!r}" if not prefix and _strip_backbone(own, state_dict) else ""
    given = {key[len(prefix) :]: value for key, value in state_dict.items() if key.startswith(prefix)}
    name = type(model).__name__
    common = own.keys() & given.keys()
    if others := [f"{key} is a {type(given[key]).__name__}" for key in common if not isinstance(given[key], Tensor)]:
        raise UnfitWeightsError(f"{name}: the given weights are no tensors, so none is loaded: {some(others)}")
    resized = [
        k
        for k in common
        if _is_axis_key(k) and own[k].shape != given[k].shape and is_axis_parameter(given[k], own[k].ndim)
    ]
    matched = [k for k in common if own[k].shape == given[k].shape or k in resized]
    _refuse_other_norms(name, own, given)
    _refuse_another_arch(name, own, given, sorted(common.difference(matched)))
    if not matched:
        raise UnfitWeightsError(
            f"{name}: none of the {len(given)} given keys fits, so nothing would be loaded. Given: {some(given)}; "
            f"wanted: {some(own)}. Is the prefix right (init_cfg=dict(type='Pretrained', checkpoint=..., "
            "prefix='backbone.') for a backbone inside a larger model), and the arch?"
        )
    real = [key for key in matched if own[key].is_floating_point()]
    _refuse_useless_values(name, {key: own[key] for key in real}, given)
    parts = [f"{len(matched)} of {len(own)} keys matched{below}"]
    if kinds := {str(given[key].dtype)[6:] for key in real if given[key].dtype != own[key].dtype}:
        parts.append(f"stored as {', '.join(sorted(kinds))}")
    if resized:
        axes = sorted({(len(given[k]), len(own[k])) for k in resized}, reverse=True)
        parts.append(f"{len(resized)} axis weights and biases resized ({', '.join(f'{a} -> {b}' for a, b in axes)})")
    # mmengine, too, does not count the batch norms' counters: old checkpoints lack them, and nothing depends on them.
    groups = {
        "missing": [k for k in own.keys() - given.keys() if not k.endswith("num_batches_tracked")],
        "unexpected": list(given.keys() - own.keys()),
    }
    parts += [f"{len(keys)} {label} ({some(keys)})" for label, keys in groups.items() if keys]
    print_log(f"{name}: {'; '.join(parts)}", logger="current")
    if resized:
        _guard_optimizers()


def reanchor(
    state_dict: Mapping[str, Tensor], img_size: int | Sequence[int], interpolation: str = DEFAULT_METHOD
) -> dict[str, Tensor]:
    """Move the axis weights of SMLPNets to the anchor grid of another image size.

    What loading into a backbone of that ``img_size`` does, without the backbone.

    Args:
        state_dict (Mapping[str, Tensor]): Weights of any model that contains an SMLPNet, under any prefix. A
            ``SparseMLP`` outside of one stays as it is: its grid does not follow from the image's size.
        img_size (int | Sequence[int]): Height and width in pixels, or one number for both.
        interpolation (str): One of ``mmsmlp.resize.METHODS``. Defaults to 'bounded'.

    Returns:
        dict[str, Tensor]: The same keys in the same order; all but axis weights and biases are the same tensors.

    Raises:
        ValueError: If there are no axis weights of an SMLPNet, or an argument is invalid.
    """
    size = tuple(img_size) if isinstance(img_size, Sequence) else (img_size, img_size)
    if len(size) != 2 or not all(isinstance(s, int) and s > 0 for s in size):
        raise ValueError(f"img_size must be a positive int or (height, width), got {img_size!r}")
    moved = {}
    for key, value in state_dict.items():
        match = _AXIS_KEY.fullmatch(key)
        stem = match and state_dict.get(f"{match[1]}downsample_layers.0.weight")
        if stem is None:
            continue
        stride = stem.shape[-1] * 2 ** int(match[2])
        length = -(-size["hw".index(match[3])] // stride)
        moved[key] = (resize_axis_weight if match[4] == "weight" else resize_axis_bias)(value, length, interpolation)
    if not moved:
        raise ValueError(f"no axis weights of an SMLPNet among {some(state_dict)}")
    return {**state_dict, **moved}


def read_checkpoint(name: str | Path) -> dict:
    """Read a checkpoint as mmengine does, onto the CPU, once :mod:`mmsmlp.weights.checkpoint_file` has looked at it.

    Args:
        name (str | Path): A file, an address (http://…, https://…; downloaded once, to where PyTorch keeps them), or
            what else mmengine knows, ``spach://…`` for example. mmengine's own schemes, such as ``openmmlab://…``, are
            read by mmengine alone, unchecked.

    Returns:
        dict: Its content, with a ``state_dict``; a file with nothing but tensors is taken for one.

    Raises:
        ValueError: In one line, if it cannot be read, asks to run something, or holds no state dict, or one with
            values that are not finite.
        OSError: If it is not there.
    """
    source = _downloaded(str(name)) if str(name).startswith(("http://", "https://")) else str(name)
    check_local_file(source)
    try:
        content = CheckpointLoader.load_checkpoint(source, map_location="cpu", logger="silent")
    except (OSError, ValueError):
        raise
    except Exception as error:  # of many types, by where the file is broken
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CheckpointFileError(f"{name}: damaged, or no checkpoint ({reason})") from None
    if isinstance(content, dict) and content and all(isinstance(value, Tensor) for value in content.values()):
        content = {"state_dict": content}  # what torch.save(model.state_dict()) writes
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), Mapping):
        found = some(map(str, content)) if isinstance(content, dict) else f"a {type(content).__name__}"
        raise ValueError(
            f"{name}: no checkpoint of mmengine, no state_dict but {found} (official files are read as spach://PATH)"
        )
    if broken := not_finite(content["state_dict"]):
        raise CheckpointFileError(f"{name}: {_diverged(broken, content['state_dict'])}")
    return content


def check_local_file(checkpoint: str) -> None:
    """Check what is about to be loaded as a checkpoint, if it is a file and not an address.

    Args:
        checkpoint (str): As mmengine takes it.

    Raises:
        CheckpointFileError: If the file is damaged, or asks to run something.
    """
    path = Path(checkpoint).expanduser()
    if "://" not in checkpoint and path.is_file():
        check_checkpoint_file(path)


def write_checkpoint(checkpoint: Mapping, path: str | Path, overwrite: bool = False) -> None:
    """Write a checkpoint file, whole or not at all.

    Args:
        checkpoint (Mapping): ``state_dict`` and ``meta``, or whatever the file is to hold.
        path (str | Path): The file; missing folders are made.
        overwrite (bool): Whether to replace an existing file. Defaults to False.

    Raises:
        OSError: If the file exists (``FileExistsError``) or cannot be written.
    """
    if Path(path).exists() and not overwrite:
        raise FileExistsError(f"{path} exists: choose another name, or overwrite it (--overwrite)")
    # Through memory: PyTorch would write the temporary name into the file, and says of a full disk "unexpected pos".
    archive = BytesIO()
    torch.save(dict(checkpoint), archive)
    with atomic_file(path) as new:
        new.write_bytes(archive.getbuffer())


def refuse_resumed_moments(optimizer: torch.optim.Optimizer, *_) -> None:
    """Refuse the first step of an optimiser whose moments belong to another anchor grid.

    A global pre-hook of optimiser steps, installed with the first checkpoint that was resized while loading. Weights
    can be resized, moments cannot: ``load_state_dict`` of PyTorch's optimisers takes them without a word. What has no
    moments (SGD without momentum) has nothing that could not go on: an exponential moving average of the weights is
    resized as the weights are.

    Args:
        optimizer (torch.optim.Optimizer): The optimiser about to step.

    Raises:
        UnfitWeightsError: Before the first step, naming both grids and the remedy.
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
                raise UnfitWeightsError(
                    f"cannot resume on another anchor grid: the checkpoint's optimizer state belongs to axis weights "
                    f"of {before} positions, this model's have {len(parameter)} (img_size of the backbone). To go on "
                    "from its weights, start a new run with load_from=CHECKPOINT instead of resume."
                )


def _strip_backbone(own: Mapping[str, Tensor], state_dict: MutableMapping[str, Tensor]) -> bool:
    """Rename ``backbone.KEY`` to ``KEY`` where a bare backbone would find nothing else; returns whether it did."""
    below = [key for key in state_dict if key.startswith(_BACKBONE)]
    names = [key[len(_BACKBONE) :] for key in below]
    if own.keys() & state_dict.keys() or not any(name in own and name.startswith("stages.") for name in names):
        return False
    for key, name in zip(below, names):
        state_dict[name] = state_dict.pop(key)
    return True


def has_folded_norms(keys: Iterable[str]) -> bool:
    """Whether keys of a backbone's state dict, without a prefix, are those of one with folded norms."""
    return any(map(_FOLDED_NORM.fullmatch, keys))


def _refuse_other_norms(name: str, own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    # Judged by keys: the mark in the metadata is lost wherever a state dict is copied as a plain dict.
    wanted, found = has_folded_norms(own), has_folded_norms(given)
    if found and not wanted:
        raise UnfitWeightsError(
            f"{name}: the given weights have folded norms (mmsmlp.fuse_norms), this backbone has norms, so none is "
            "loaded: set fused_norms=True (--cfg-options model.backbone.fused_norms=True), or take the checkpoint "
            "they were made from"
        )
    if wanted and not found and own.keys() & given.keys():
        raise UnfitWeightsError(
            f"{name}: this backbone has folded norms (fused_norms=True), the given weights have norms, so none is "
            "loaded: leave out fused_norms and call mmsmlp.fuse_norms(model) after loading, or fold the checkpoint by "
            "tools/fuse.py"
        )


def _refuse_another_arch(
    name: str, own: Mapping[str, Tensor], given: Mapping[str, Tensor], misfits: Sequence[str]
) -> None:
    wanted, found = count_blocks(own), count_blocks(given)
    faults = [
        f"{key} is {tuple(given[key].shape)} instead of {tuple(own[key].shape)}"
        for key in sorted(misfits, key=lambda key: not key.endswith("weight"))[:1]
    ]
    faults += [f"and {len(misfits) - 1} more keys are of another shape"] if len(misfits) > 1 else []
    # Stages that are missing altogether are reported as such; stages that are not built need none.
    depths = [
        f"stage {stage} has {found[stage]} blocks instead of {count}"
        for stage, count in wanted.items()
        if found.get(stage, count) != count
    ]
    faults += depths[:1]
    # A part of the blocks that only one side has, in stages that both have: an ablation (`local_mixing` and so on).
    for keys, others, verb in ((own, given, "lacks"), (given, own, "also has")):
        lone = [k for k in keys.keys() - others.keys() if _BLOCK_PART.match(k) and _stage(k) in wanted.keys() & found]
        if lone and not depths:
            faults.append(f"{verb} {some(lone)}")
    if faults:
        raise UnfitWeightsError(
            f"{name}: the given weights do not fit, so none is loaded: {', '.join(faults)}. Given: "
            f"{recognise(given) or 'an unknown arch'}; this backbone: {recognise(own)}. Set its arguments, or take "
            "others"
        )


def _refuse_useless_values(name: str, own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """Refuse what ``copy_`` would take without a word: integers, and what is not finite in the backbone's dtype."""
    if others := [f"{key} is {given[key].dtype}" for key in own if not given[key].is_floating_point()]:
        raise UnfitWeightsError(
            f"{name}: the given weights are no floating-point numbers, so none is loaded: {some(others)}. Quantised "
            "weights have to be turned back first"
        )
    if broken := [key for key in own if not_finite({key: given[key].to(own[key].dtype)})]:
        raise UnfitWeightsError(f"{name}: {_diverged(broken, own)}, so none is loaded")


def _diverged(broken: Sequence[str], weights: Mapping[str, Tensor]) -> str:
    return (
        f"{len(broken)} of {len(weights)} tensors hold NaN or infinity ({some(broken)}): the training that wrote them "
        "diverged, or they overflow"
    )


def _downloaded(address: str) -> str:
    path = Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(address).path).name)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(address, str(path), progress=sys.stderr.isatty())
    return str(path)


def _stage(key: str) -> int:
    return int(key.split(".")[1])


_guarded = False


def _guard_optimizers() -> None:
    # (torch 2.1 runs no step hooks once torch.compile was used; there PyTorch's own error about sizes remains.)
    global _guarded
    if not _guarded:
        register_optimizer_step_pre_hook(refuse_resumed_moments)
        _guarded = True


def _is_axis_key(key: str) -> bool:
    return key.rpartition(".")[0].endswith(("mix_w", "mix_h"))
