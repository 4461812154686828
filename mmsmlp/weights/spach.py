"""Names and shapes of the official weights (microsoft/SPACH, ``models/smlp.py``): check, convert, export.

Pure functions on state dicts; :mod:`mmsmlp.weights.spach_files` downloads and reads the files.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from mmsmlp.weights.arch import Arch, recognise, some

# Official names within a block -> ours. Beware: `proj_h` mixes along W, it is a 1x1 convolution whose channels are the
# columns; `proh_w` (sic) mixes along H.
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
_STEM = "to_patch_embedding.0.0.weight"
_NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def official_shapes(arch: Arch) -> dict[str, tuple[int, ...]]:
    """List the keys of the official model with their shapes, in its order.

    Args:
        arch (Arch): The model.

    Returns:
        dict[str, tuple[int, ...]]: Key -> shape.

    Raises:
        ValueError: If the official code could not make such a model: it takes square images that all strides divide.
    """
    height, width = arch.img_size
    last = len(arch.depths) - 1
    coarsest = arch.patch_size * 2**last
    if height != width or height % coarsest:
        raise ValueError(
            f"the official sMLPNet takes square images of a multiple of {coarsest} pixels, this one has axis weights "
            f"for {height} x {width}; tools/reanchor.py moves them to another size"
        )
    channels = [arch.embed_dims * 2**stage for stage in range(last + 1)]
    shapes = {_STEM: (channels[0], arch.in_channels, arch.patch_size, arch.patch_size)}
    for stage in range(1, last + 1):
        shapes[f"to_patch_embedding.{stage}.0.weight"] = (channels[stage], channels[stage - 1], 2, 2)
    stages = [stage for stage, depth in enumerate(arch.depths) for _ in range(depth)]
    for number, stage in enumerate(stages):
        c, n = channels[stage], height // arch.patch_size // 2**stage
        block = f"token_mix.{number}"
        shapes.update(_norm_shapes(f"{block}.0.conv_merge.BN", c))
        shapes[f"{block}.0.conv_merge.Conv.weight"] = (c, 1, 3, 3)
        shapes.update(_norm_shapes(f"{block}.1.BN", c))
        for axis in ("proj_h", "proh_w"):
            shapes[f"{block}.1.{axis}.weight"] = (n, n, 1, 1)
            shapes[f"{block}.1.{axis}.bias"] = (n,)
        shapes[f"{block}.1.fuse.weight"] = (c, 3 * c, 1, 1)
    for number, stage in enumerate(stages):
        c, block = channels[stage], f"channel_mix.{number}"
        hidden = int(c * arch.mlp_ratio)
        for layer, shape in (("1", (c,)), ("2.net.0", (hidden, c)), ("2.net.3", (c, hidden))):
            shapes[f"{block}.{layer}.weight"] = shape
            shapes[f"{block}.{layer}.bias"] = shape[:1]
    shapes.update(_norm_shapes("batch_norm", channels[-1]))
    shapes["mlp_head.0.weight"] = (arch.num_classes, channels[-1])
    shapes["mlp_head.0.bias"] = (arch.num_classes,)
    return shapes


def check_spach(state_dict: Mapping[str, Tensor], source: str = "state dict") -> Arch:
    """Check that a state dict is exactly that of an official sMLPNet, of any size.

    Args:
        state_dict (Mapping[str, Tensor]): Weights under the official names.
        source (str): What to call it in an error, e.g. the file. Defaults to 'state dict'.

    Returns:
        Arch: The model, recognised from the shapes.

    Raises:
        ValueError: In one line, if keys are missing, superfluous or of another shape.
    """
    try:
        blocks, last = _structure(state_dict)
        ours = {_our_name(key, blocks, last): value for key, value in state_dict.items()}
        ours.pop(None, None)
        arch = recognise({key.removeprefix("backbone."): value for key, value in ours.items()})
        if arch is None:
            raise ValueError("not an official sMLPNet state dict: no blocks in it")
        wanted = official_shapes(arch)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    wrong = [
        f"{key} {tuple(value.shape)} instead of {wanted[key]}"
        for key, value in state_dict.items()
        if key in wanted and tuple(value.shape) != wanted[key]
    ]
    groups = {
        "missing": wanted.keys() - state_dict.keys(),
        "unexpected": state_dict.keys() - wanted.keys(),
        "of another shape": wrong,
    }
    faults = [f"{len(keys)} {label} ({some(keys)})" for label, keys in groups.items() if keys]
    if faults:
        raise ValueError(f"{source}: not the keys of an official sMLPNet {arch}: {'; '.join(faults)}")
    return arch


def convert_spach(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn the official sMLPNet's state dict into that of an mmpretrain ImageClassifier with our backbone.

    Args:
        state_dict (Mapping[str, Tensor]): Weights, or a part such as gradients, under the names of microsoft/SPACH
            ``models/smlp.py``, any size. :func:`check_spach` tells whether they are complete.

    Returns:
        dict[str, Tensor]: The same tensors as ``backbone.…`` and ``head.fc.…``; 1x1 convolutions that are linear
            layers here lose their two unit axes. The anchor grid stays the one that they were trained on.

    Raises:
        ValueError: If a key is not one of the official model's, or the stem is missing.
    """
    blocks, last = _structure(state_dict)
    converted = {}
    for key, value in state_dict.items():
        name = _our_name(key, blocks, last)
        if name is None:
            raise ValueError(f"not an official sMLPNet key: {key!r}")
        converted[name] = value.flatten(1) if _is_linear(name) else value
    return converted


def export_spach(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn the state dict of an ImageClassifier with our backbone into the official sMLPNet's, without loss.

    Args:
        state_dict (Mapping[str, Tensor]): Weights as ``backbone.…`` and ``head.fc.…``.

    Returns:
        dict[str, Tensor]: The same tensors under the official names, in the official order.

    Raises:
        ValueError: If the official model has no place for a key, lacks one, or takes no images of such a size.
    """
    arch = recognise({key.removeprefix("backbone."): value for key, value in state_dict.items()})
    if arch is None or "backbone.downsample_layers.0.weight" not in state_dict:
        raise ValueError(f"no classifier with an SMLPNet: backbone.… and head.fc.… wanted, {some(state_dict)} given")
    shapes = official_shapes(arch)
    stages = [(stage, block) for stage, depth in enumerate(arch.depths) for block in range(depth)]
    names = {_our_name(key, dict(enumerate(stages)), len(arch.depths) - 1): key for key in shapes}
    missing, extra = names.keys() - state_dict.keys(), state_dict.keys() - names.keys()
    if missing or extra:
        parts = [f"{some(missing)} missing"] if missing else []
        parts += [f"no place for {some(extra)}"] if extra else []
        raise ValueError(
            f"the official sMLPNet cannot hold this checkpoint: {'; '.join(parts)}. It is a classifier, without "
            "out_norm, ablations or weights between the backbone and head.fc"
        )
    exported = {}
    for name, key in names.items():
        value = state_dict[name]
        exported[key] = value[:, :, None, None] if _is_linear(name) and value.ndim == 2 else value
    check_spach(exported, "this checkpoint, under the official names")
    return exported


def _structure(state_dict: Mapping[str, Tensor]) -> tuple[dict[int, tuple[int, int]], int]:
    """Official running block number -> (stage, block within it), each stage doubling the channels; the last stage."""
    stem = state_dict.get(_STEM)
    if stem is None or not isinstance(stem, Tensor) or stem.ndim != 4 or not stem.numel():
        hint = "; pass checkpoint['model']" if "model" in state_dict else ""
        raise ValueError(f"not an official sMLPNet state dict: no key {_STEM!r} among {some(state_dict)}{hint}")
    numbers = {int(match[2]) for key in state_dict if (match := _BLOCK_KEY.fullmatch(key))}
    blocks: dict[int, tuple[int, int]] = {}
    depths: dict[int, int] = {}
    for number in range(max(numbers, default=-1) + 1):
        keys = (f"token_mix.{number}.1.BN.weight", f"token_mix.{number}.1.fuse.weight")
        channels = [len(state_dict[key]) for key in keys if key in state_dict and state_dict[key].ndim]
        if not channels:
            raise ValueError(f"incomplete sMLPNet state dict: block {number} lacks {keys[0]} and {keys[1]}")
        stage = max((channels[0] // stem.shape[0]).bit_length() - 1, 0)
        blocks[number] = stage, depths.setdefault(stage, 0)
        depths[stage] += 1
    return blocks, max(depths, default=0)


def _our_name(key: str, blocks: Mapping[int, tuple[int, int]], last: int) -> str | None:
    kind, _, rest = key.partition(".")
    if kind == "to_patch_embedding" and re.fullmatch(r"\d+\.0\.weight", rest):
        return f"backbone.downsample_layers.{rest.split('.')[0]}.weight"
    if kind == "batch_norm":
        return f"backbone.norm{last}.{rest}"
    if kind == "mlp_head" and rest.startswith("0."):
        return f"head.fc.{rest[2:]}"
    match = _BLOCK_KEY.fullmatch(key)
    layer = match and (_TOKEN_MIX if kind == "token_mix" else _CHANNEL_MIX).get(match[3])
    if not layer:
        return None
    stage, block = blocks[int(match[2])]
    return f"backbone.stages.{stage}.{block}.{layer}.{match[4]}"


def _is_linear(name: str) -> bool:
    """Whether a layer of ours with this key is linear where the official one is a 1x1 convolution."""
    return name.endswith(("fuse.weight", "mix_w.weight", "mix_h.weight"))


def _norm_shapes(prefix: str, channels: int) -> dict[str, tuple[int, ...]]:
    return {f"{prefix}.{end}": () if end == "num_batches_tracked" else (channels,) for end in _NORM}
