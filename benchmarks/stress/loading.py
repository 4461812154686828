"""Every way that a checkpoint gets into an SMLPNet, and what makes an error a clear one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from mmengine.logging import HistoryBuffer, MMLogger
from mmengine.runner import load_checkpoint
from torch import Tensor

from mmsmlp import SMLPNet, create_model
from mmsmlp.checkpoint import UnfitWeightsError
from mmsmlp.running import find_checkpoint
from mmsmlp.weights.spach import export_spach

ARCH = {"embed_dims": 8, "depths": (1, 1, 2, 1)}
SIZE = 64
CLEAR = (ValueError, OSError, UnfitWeightsError)  # what the package raises, in one line, and the tools print
_LONGEST = 900  # characters of a clear line

State = dict[str, Tensor]


def network(seed: int = 0, **options) -> SMLPNet:
    """A small network with random weights."""
    torch.manual_seed(seed)
    return SMLPNet(**{"arch": ARCH, "img_size": SIZE, **options})


def whole_model(backbone: SMLPNet) -> State:
    """Its weights and a classifier's, under mmengine's names."""
    state = {f"backbone.{key}": value.clone() for key, value in backbone.state_dict().items()}
    head = torch.randn(10, backbone.channels[-1])
    return {**state, "head.fc.weight": head, "head.fc.bias": head[:, 0].clone()}


def write_mmengine(state: Mapping, path: Path) -> Path:
    """Write weights as mmengine's CheckpointHook does, with a log and moments in it."""
    buffer = HistoryBuffer([1.0, 0.5], [1, 1])
    moments = {i: {"exp_avg": torch.randn(64, 8), "step": torch.tensor(3.0)} for i in range(4)}
    content = {
        "meta": {"iter": 3, "epoch": 0, "seed": 0, "cfg": "", "dataset_meta": {"classes": ("coin",)}},
        "state_dict": dict(state),
        "message_hub": {"log_scalars": {"train/loss": buffer}, "runtime_info": {"iter": 3}, "resumed_keys": {}},
        "optimizer": {"state": moments, "param_groups": [{"lr": 1e-3, "params": [0, 1, 2, 3]}]},
    }
    torch.save(content, path)
    return path


def write_official(state: Mapping[str, Tensor], path: Path) -> Path:
    """Write weights as microsoft/SPACH does."""
    torch.save({"model": export_spach(state)}, path)
    return path


def by_init_cfg(path: Path) -> SMLPNet:
    """As a config's backbone does."""
    net = network(1, init_cfg={"type": "Pretrained", "checkpoint": str(path), "prefix": "backbone."})
    net.init_weights()
    return net


def by_create_model(path: Path) -> SMLPNet:
    """As the package's own function does."""
    return create_model(ARCH, pretrained=path, img_size=SIZE, features_only=True)


def by_tools(path: Path) -> SMLPNet:
    """As tools/train.py, tools/test.py, tools/image_demo.py and tools/sweep.py do: looked at, then by mmengine."""
    net = torch.nn.ModuleDict({"backbone": network(1)})
    load_checkpoint(net, find_checkpoint(path), map_location="cpu", logger="silent")
    return net["backbone"]


def by_spach(path: Path) -> SMLPNet:
    """As ``spach:///path`` in a config does."""
    net = network(1, init_cfg={"type": "Pretrained", "checkpoint": f"spach://{path}", "prefix": "backbone."})
    net.init_weights()
    return net


WAYS: dict[str, Callable[[Path], SMLPNet]] = {
    "init_cfg": by_init_cfg,
    "create_model": by_create_model,
    "tools": by_tools,
}


def silence() -> None:
    """Keep mmengine from logging every load."""
    MMLogger.get_current_instance().setLevel(logging.CRITICAL)


def fault_of(load: Callable[[], SMLPNet], wanted: Mapping[str, Tensor] | None, names: str = "") -> str | None:
    """What is wrong with how a load ended; None if nothing is.

    Args:
        load (Callable[[], SMLPNet]): Loads.
        wanted (Mapping[str, Tensor], optional): The weights that are right if it succeeds; None: it must not.
        names (str): What the error has to name. Defaults to '', anything.

    Returns:
        str | None: In a few words.
    """
    try:
        net = load()
    except CLEAR as error:
        message = str(error)
        if not message or "\n" in message or len(message) > _LONGEST:
            return f"an unclear error: {message[:200]!r}"
        return None if names in message else f"an error that does not name {names!r}: {message[:200]}"
    except Exception as error:
        return f"a bare {type(error).__name__}: {str(error)[:200]}"
    if wanted is None:
        return "was taken without a word"
    own = net.state_dict()
    different = [k for k, v in own.items() if k not in wanted or not torch.equal(v, wanted[k].to(v.dtype))]
    return f"loaded with other weights, without a word: {different[:3]}" if different else None
