"""What the shapes of weights tell about the sMLPNet that they belong to."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

# The official sizes: embed_dims and depths.
ARCHS = {"tiny": (80, (2, 8, 14, 2)), "small": (96, (2, 10, 24, 2)), "base": (112, (2, 10, 24, 2))}

_BLOCK_KEY = re.compile(r"stages\.(\d+)\.(\d+)\..+")


@dataclass(frozen=True)
class Arch:
    """What the shapes of an sMLPNet's weights tell about it.

    Attributes:
        embed_dims (int): Channels of the first stage, doubled by each further one.
        depths (tuple[int, ...]): Blocks per stage, of the stages that there are.
        mlp_ratio (float): Expansion of the channel MLP.
        patch_size (int): Stride of the stem in pixels.
        in_channels (int): Channels of the input image.
        img_size (tuple[int, int]): Height and width in pixels that the axis weights are learned on, rounded up to
            whole patches; (224, 224) where there are no axis weights.
        num_classes (int): Classes of the head, 1000 where there is none.
        switches (dict): The paper's ablations, as arguments of :class:`mmsmlp.SMLPNet`; empty for the paper's network.
            Whether branches that are summed have an identity among them, no weight tells: it is taken for granted.
    """

    embed_dims: int
    depths: tuple[int, ...]
    mlp_ratio: float = 3
    patch_size: int = 4
    in_channels: int = 3
    img_size: tuple[int, int] = (224, 224)
    num_classes: int = 1000
    switches: dict = field(default_factory=dict)

    @property
    def name(self) -> str | None:
        """'tiny', 'small', 'base' or None; the first stages of one are called like the whole."""
        for name, (embed_dims, depths) in ARCHS.items():
            if (self.embed_dims, self.depths) == (embed_dims, depths[: len(self.depths)]):
                return name if (self.mlp_ratio, self.patch_size, self.switches) == (3, 4, {}) else None
        return None

    @property
    def settings(self) -> dict:
        """The ``arch`` dict of :class:`mmsmlp.SMLPNet`."""
        numbers = {"mlp_ratio": self.mlp_ratio, "patch_size": self.patch_size}
        return {"embed_dims": self.embed_dims, "depths": self.depths, **numbers}

    def __str__(self) -> str:
        numbers = f"embed_dims {self.embed_dims}, depths {self.depths}"
        for name, usual in (("mlp_ratio", 3), ("patch_size", 4), ("in_channels", 3)):
            if getattr(self, name) != usual:
                numbers += f", {name} {getattr(self, name):g}"
        numbers += "".join(f", {name}={value!r}" for name, value in self.switches.items())
        return f"{self.name} ({numbers})" if self.name else numbers


def recognise(state_dict: Mapping[str, Tensor]) -> Arch | None:
    """Recognise the arch of a backbone of ours from the shapes of its weights.

    Args:
        state_dict (Mapping[str, Tensor]): Weights under the names of :class:`mmsmlp.SMLPNet`, without a prefix;
            ``head.fc.weight`` may be among them.

    Returns:
        Arch | None: None if the stem or the blocks are missing.
    """
    shapes = {key: tuple(value.shape) for key, value in state_dict.items() if isinstance(value, Tensor)}
    stem = shapes.get("downsample_layers.0.weight", ())
    counts = count_blocks(shapes)
    if len(stem) != 4 or 0 in stem or not counts:
        return None
    lengths = {}
    for stage in sorted(counts, reverse=True):  # the first stage with axis weights decides
        for axis in "hw":
            for end in ("bias", "weight"):
                shape = shapes.get(f"stages.{stage}.0.sparse_mlp.mix_{axis}.{end}")
                if shape:
                    lengths[axis] = shape[0] * stem[2] * 2**stage
    head = shapes.get("head.fc.weight") or shapes.get("head.fc.bias")
    return Arch(
        embed_dims=stem[0],
        depths=tuple(counts.get(stage, 0) for stage in range(max(counts) + 1)),
        mlp_ratio=_mlp_ratio(shapes, stem[0], counts),
        patch_size=stem[2],
        in_channels=stem[1],
        img_size=(lengths["h"], lengths["w"]) if len(lengths) == 2 else (224, 224),
        num_classes=head[0] if head else 1000,
        switches=_switches(shapes, counts),
    )


def _mlp_ratio(shapes: Mapping[str, tuple], embed_dims: int, stages: Iterable[int]) -> float:
    """A ratio that gives the hidden channels of every stage, although they are rounded down."""
    hidden = {}
    for stage in stages:
        layer = f"stages.{stage}.0.channel_mlp.fc1"
        shape = shapes.get(f"{layer}.weight") or shapes.get(f"{layer}.bias")
        if shape:
            hidden[embed_dims * 2**stage] = shape[0]
    candidates = [h / c for c, h in hidden.items()] + [(h + 0.5) / c for c, h in hidden.items()]
    fitting = [r for r in candidates if all(int(c * r) == h for c, h in hidden.items())]
    return next(iter(fitting or candidates), 3)


def _switches(shapes: Mapping[str, tuple], stages: Iterable[int]) -> dict:
    """The ablations that keys and shapes tell of."""
    switches = {}
    if not any(".local." in key for key in shapes):
        switches["local_mixing"] = False
    mixing = [any(key.startswith(f"stages.{stage}.") and ".sparse_mlp." in key for key in shapes) for stage in stages]
    if not all(mixing):
        switches["global_mixing"] = mixing
    if any(mixing):
        block = f"stages.{list(stages)[mixing.index(True)]}.0.sparse_mlp"
        fuse, weights = shapes.get(f"{block}.fuse.weight"), shapes.get(f"{block}.branch_weights")
        if not fuse:
            switches["fusion"] = "weighted" if weights else "sum"
        if (fuse and fuse[1:2] == (2 * fuse[0],)) or (weights and weights[0] == 2):
            switches["identity_branch"] = False
    return switches


def count_blocks(keys: Iterable[str]) -> dict[int, int]:
    """Count the blocks of each stage that keys of ours name, as ``{stage: number of blocks}``."""
    blocks = {(int(match[1]), int(match[2])) for key in keys if (match := _BLOCK_KEY.fullmatch(key))}
    stages = [stage for stage, _ in blocks]
    return {stage: stages.count(stage) for stage in sorted(set(stages))}


def some(keys: Iterable[str], most: int = 3) -> str:
    """List the first keys, and how many there are, for a message."""
    keys = sorted(keys)
    return ", ".join(keys[:most]) + (f", … ({len(keys)} in all)" if len(keys) > most else "") if keys else "no keys"
