"""Whole and harmless checkpoints whose weights do not fit: refused, or taken to the last value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from mmsmlp import SMLPNet
from mmsmlp.resize import resize_axis_bias, resize_axis_weight
from stress.loading import (
    ARCH,
    SIZE,
    WAYS,
    State,
    by_spach,
    fault_of,
    network,
    silence,
    whole_model,
    write_mmengine,
    write_official,
)
from stress.rows import Outcome


def unfit(tries: int, seed: int, folder: Path) -> Outcome:
    """Load each kind of weights in each way, as often as ``tries`` allows."""
    silence()
    cases = [(kind, way) for kind in _KINDS for way in [*WAYS, "load_state_dict", "spach"]]
    cases = [(kind, way) for kind, way in cases if way != "spach" or kind not in _NOT_OFFICIAL]
    notes = []
    cases = cases[:: max(len(cases) // tries, 1)][:tries]
    for kind, way in cases:
        make, expected = _KINDS[kind]
        state = make(seed)
        wanted = None if expected is None else expected(_below(state))
        path = folder / "unfit.pth"
        if way == "load_state_dict":
            load = partial(_by_state_dict, state)
        elif way == "spach":
            write_official(state, path)
            load = partial(by_spach, path)
        else:
            write_mmengine(state, path)
            load = partial(WAYS[way], path)
        if fault := fault_of(load, wanted):
            notes.append(f"{kind}, {way}: {fault}")
    return Outcome(len(cases), len(notes), lost=sum("without a word" in note for note in notes), notes=tuple(notes))


def _by_state_dict(state: State) -> SMLPNet:
    net = network(1)
    net.load_state_dict(_below(state), strict=False)
    return net


def _below(state: Mapping[str, Tensor]) -> State:
    return {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")}


def _made(**options) -> Callable[[int], State]:
    return lambda seed: whole_model(network(seed, **options))


def _changed(change: Callable[[str, Tensor], object]) -> Callable[[int], State]:
    return lambda seed: {key: change(key, value) for key, value in whole_model(network(seed)).items()}


def _cast(dtype: torch.dtype, counters: bool = False) -> Callable[[int], State]:
    return _changed(lambda key, value: value.to(dtype) if value.is_floating_point() or counters else value)


def _with(key: str, value: float) -> Callable[[int], State]:
    def change(name: str, tensor: Tensor) -> Tensor:
        if name == f"backbone.{key}":
            tensor = tensor.clone()
            tensor.view(-1)[tensor.numel() // 2] = value
        return tensor

    return _changed(change)


def _same(state: State) -> State:
    return state


def _resized(state: State) -> State:
    """What is right at the network's own anchor."""
    own = network(1).state_dict()
    resize = {2: resize_axis_weight, 1: resize_axis_bias}
    return {key: resize[value.ndim](value, len(own[key])) if ".mix_" in key else value for key, value in state.items()}


_FUSE = "stages.2.1.sparse_mlp.fuse.weight"
# What is given, and what is right to have loaded: None where it has to be refused.
_KINDS: dict[str, tuple[Callable[[int], Mapping], Callable[[State], State] | None]] = {
    "the same": (_made(), _same),
    "wider": (_made(arch={**ARCH, "embed_dims": 16}), None),
    "narrower": (_made(arch={**ARCH, "embed_dims": 4}), None),
    "deeper": (_made(arch={**ARCH, "depths": (1, 1, 3, 1)}), None),
    "shallower": (_made(arch={**ARCH, "depths": (1, 1, 1, 1)}), None),
    "another ratio": (_made(arch={**ARCH, "mlp_ratio": 2}), None),
    "another patch": (_made(arch={**ARCH, "patch_size": 2}), None),
    "one channel": (_made(in_channels=1), None),
    "an ablation": (_made(fusion="sum"), None),
    "another network": (lambda seed: {"conv1.weight": torch.zeros(3), "fc.weight": torch.zeros(3)}, None),
    "nothing": (lambda seed: {}, None),
    "a larger anchor": (_made(img_size=2 * SIZE), _resized),
    "a smaller anchor": (_made(img_size=SIZE // 2), _resized),
    "float16": (_cast(torch.float16), _same),
    "bfloat16": (_cast(torch.bfloat16), _same),
    "float64": (_cast(torch.float64), _same),
    "float16, counters too": (_cast(torch.float16, counters=True), _same),
    "int64": (_cast(torch.int64), None),
    "int8": (_cast(torch.int8), None),
    "bool": (_cast(torch.bool), None),
    "complex": (_cast(torch.complex64), None),
    "float64 beyond float32": (
        lambda seed: {k: v.double() * 1e300 if k.endswith(_FUSE) else v for k, v in whole_model(network(seed)).items()},
        None,
    ),
    "a NaN": (_with(_FUSE, float("nan")), None),
    "an infinity": (_with("downsample_layers.1.weight", float("inf")), None),
    "a NaN in statistics": (_with("stages.0.0.local.norm.running_var", float("nan")), None),
    "text": (_changed(lambda key, value: "weights" if key.endswith(_FUSE) else value), None),
    "None": (_changed(lambda key, value: None if key.endswith(_FUSE) else value), None),
}
# The official code has no such networks, or the tool that writes its files refuses them.
_NOT_OFFICIAL = {"an ablation", "another patch", "text", "None", "complex", "bool", "another network", "nothing"}
