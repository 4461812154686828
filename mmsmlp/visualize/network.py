"""The backbone of any config, with a checkpoint's weights, and its maps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn

from mmsmlp.checkpoint import read_checkpoint
from mmsmlp.running import find_checkpoint, load_config
from mmsmlp.weights.arch import some

_BACKBONE = "backbone."
_SEED = 0  # of the weights of a network without a checkpoint


@dataclass(frozen=True)
class Network:
    """A config's model with the weights that it is looked at with.

    Attributes:
        cfg (Config): The config.
        model (nn.Module): The whole model, in eval mode; only its backbone has the checkpoint's weights.
        checkpoint (str | None): What was read; None: the weights are random.
        iterations (int | None): Training steps that the checkpoint is of, if it says so.
    """

    cfg: Config
    model: nn.Module
    checkpoint: str | None
    iterations: int | None

    @property
    def backbone(self) -> nn.Module:
        """What is looked at."""
        return self.model.backbone


def load_network(config: str | Path, checkpoint: str | Path | None = None, options: dict | None = None) -> Network:
    """Build a config's model on the CPU, and load its backbone.

    Args:
        config (str | Path): A classifier's, detector's or segmentor's config, with any backbone.
        checkpoint (str | Path, optional): A checkpoint of the model or of the backbone alone, a work directory whose
            latest one is taken, or an address such as ``spach://smlp_b``. Defaults to none: random weights, seed 0.
        options (dict, optional): Changes to the config, dotted keys to values.

    Returns:
        Network: The model in eval mode.

    Raises:
        FileNotFoundError: If the config or the checkpoint does not exist.
        ValueError: If the config has no model with a backbone, or the checkpoint does not fit it.
    """
    cfg = load_config(config, options, None)
    if "backbone" not in (cfg.get("model") or {}):
        raise ValueError(f"{config}: a model with a backbone is needed, and there is none")
    found = None if checkpoint is None else find_checkpoint(checkpoint)
    init_default_scope(cfg.get("default_scope", "mmengine"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        try:
            model = revert_sync_batchnorm(MODELS.build(cfg.model)).eval()
        except KeyError as error:  # a type that no registry knows
            raise ValueError(f"{config}: {error.args[0]}") from error
    content = {} if found is None else read_checkpoint(found)
    if found is not None:
        _load(model.backbone, content["state_dict"], f"{found} does not fit the backbone of {config}")
    return Network(cfg, model, found, content.get("meta", {}).get("iter"))


def maps_of(backbone: nn.Module, images: Tensor) -> tuple[Tensor, ...]:
    """Run a backbone.

    Args:
        backbone (nn.Module): Returns a map (N, C, H, W), or several.
        images (Tensor): (N, C, H, W), as the network takes them.

    Returns:
        tuple[Tensor, ...]: The maps, levels from fine to coarse.

    Raises:
        ValueError: If it returns something else.
    """
    maps = backbone(images)
    maps = tuple(maps) if isinstance(maps, Sequence) else (maps,)
    if not maps or not all(isinstance(level, Tensor) and level.ndim == 4 for level in maps):
        kinds = ", ".join(str(tuple(level.shape)) if isinstance(level, Tensor) else str(type(level)) for level in maps)
        raise ValueError(f"{type(backbone).__name__} is no backbone that returns maps (N, C, H, W), but: {kinds}")
    return maps


def token_size(pixels: int, tokens: int) -> float:
    """How many pixels a token covers along an axis.

    Networks that pad their input have ceil(pixels / stride) tokens, the last of which lies partly outside; strides are
    powers of 2. Otherwise tokens are taken to share the axis evenly.

    Args:
        pixels (int): Length of the image's axis.
        tokens (int): That of the map's.
    """
    stride = 2 ** max(math.ceil(math.log2(pixels / tokens)), 0)
    return stride if -(-pixels // stride) == tokens else pixels / tokens


@contextmanager
def eval_mode(network: nn.Module) -> Iterator[None]:
    """Have a network in eval mode, then each of its modules in the mode that it was in."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _load(backbone: nn.Module, weights: dict[str, Tensor], complaint: str) -> None:
    """Load a backbone; weights that it lacks are an error, those of stages that it does not have are not."""
    below = {key[len(_BACKBONE) :]: value for key, value in weights.items() if key.startswith(_BACKBONE)}
    try:
        missing = backbone.load_state_dict(below or weights, strict=False).missing_keys
    except RuntimeError as error:
        raise ValueError(f"{complaint}: {' '.join(str(error).split())[:300]}") from error
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    if missing:
        raise ValueError(f"{complaint}: {some(missing)} missing")
