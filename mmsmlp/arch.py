"""What the shapes of weights tell about the sMLPNet that they belong to."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

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
    """

    embed_dims: int
    depths: tuple[int, ...]
    mlp_ratio: float = 3
    patch_size: int = 4
    in_channels: int = 3
    img_size: tuple[int, int] = (224, 224)
    num_classes: int = 1000

    @property
    def name(self) -> str | None:
        """'tiny', 'small', 'base' or None; the first stages of one are called like the whole."""
        for name, (embed_dims, depths) in ARCHS.items():
            if (self.embed_dims, self.depths) == (embed_dims, depths[: len(self.depths)]):
                return name if (self.mlp_ratio, self.patch_size) == (3, 4) else None
        return None

    @property
    def settings(self) -> dict:
        """The ``arch`` dict of :class:`mmsmlp.SMLPNet`."""
        numbers = {"mlp_ratio": self.mlp_ratio, "patch_size": self.patch_size}
        return {"embed_dims": self.embed_dims, "depths": self.depths, **numbers}

    def __str__(self) -> str:
        numbers = f"embed_dims {self.embed_dims}, depths {self.depths}"
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
    hidden = shapes.get("stages.0.0.channel_mlp.fc1.weight") or shapes.get("stages.0.0.channel_mlp.fc1.bias")
    head = shapes.get("head.fc.weight") or shapes.get("head.fc.bias")
    return Arch(
        embed_dims=stem[0],
        depths=tuple(counts.get(stage, 0) for stage in range(max(counts) + 1)),
        mlp_ratio=hidden[0] / stem[0] if hidden else 3,
        patch_size=stem[2],
        in_channels=stem[1],
        img_size=(lengths["h"], lengths["w"]) if len(lengths) == 2 else (224, 224),
        num_classes=head[0] if head else 1000,
    )


def count_blocks(keys: Iterable[str]) -> dict[int, int]:
    """Count the blocks of each stage that keys of ours name, as ``{stage: number of blocks}``."""
    blocks = {(int(match[1]), int(match[2])) for key in keys if (match := _BLOCK_KEY.fullmatch(key))}
    stages = [stage for stage, _ in blocks]
    return {stage: stages.count(stage) for stage in sorted(set(stages))}


def some(keys: Iterable[str], most: int = 3) -> str:
    """List the first keys, and how many there are, for a message."""
    keys = sorted(keys)
    return ", ".join(keys[:most]) + (f", … ({len(keys)} in all)" if len(keys) > most else "") if keys else "no keys"
