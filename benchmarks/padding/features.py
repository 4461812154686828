"""How far the maps of a photograph in a padded batch are from those of the photograph alone."""

from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
import torch
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmsmlp import SMLPNet
from mmsmlp.files import atomic_file
from mmsmlp.photos.photographs import photograph, window
from mmsmlp.valid_area import attach_valid_sizes
from padding import INTERPOLATION

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.colors import LogNorm

# Of the first, the differences are drawn. 320 x 320 is the canvas, in multiples of 32 as mmdet pads.
PHOTOGRAPHS = {"coffee": (203, 290), "chelsea": (300, 217), "rocket": (317, 188), "astronaut": (256, 256)}
NETWORKS = {
    "sMLPNet-T, valid areas": lambda: SMLPNet("tiny", interpolation=INTERPOLATION),
    "sMLPNet-T": lambda: SMLPNet("tiny", interpolation=INTERPOLATION),
    "Swin-T (mmdet)": lambda: MODELS.build({"type": "SwinTransformer"}),
    "ResNet-50 (mmdet)": lambda: MODELS.build({"type": "ResNet", "depth": 50, "norm_eval": False}),
}
_MEAN, _STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
_DRAWN = 1  # the level of stride 8


def photographs(dtype: torch.dtype) -> list[Tensor]:
    """The photographs, normalised, (3, H, W) each."""
    images = [window(photograph(name), *size) for name, size in PHOTOGRAPHS.items()]
    return [torch.from_numpy((image - _MEAN) / _STD).to(dtype).permute(2, 0, 1) for image in images]


def batch_of(images: list[Tensor], divisor: int = 32) -> Tensor:
    """One padded batch, as mmdet's preprocessor makes it, without a note."""
    height, width = (-(-max(i.shape[axis] for i in images) // divisor) * divisor for axis in (1, 2))
    batch = images[0].new_zeros(len(images), 3, height, width)
    for canvas, image in zip(batch, images):
        canvas[:, : image.shape[1], : image.shape[2]] = image
    return batch


def build(name: str, dtype: torch.dtype) -> nn.Module:
    """A network of random weights in eval mode, its batch norms with the statistics of the photographs.

    The norms' own weights are random, too: mmdet's ResNet starts with some of 0, which switch its 3x3 convolutions off.
    """
    init_default_scope("mmdet")
    torch.manual_seed(0)
    network = NETWORKS[name]()
    network.init_weights()
    network.to(dtype).train()
    for module in network.modules():
        if isinstance(module, (_BatchNorm, nn.LayerNorm)):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        norm.momentum = None  # averages over the photographs
    with torch.no_grad():
        for image in photographs(dtype) if norms else []:
            network(image[None])
    network.eval()  # no chaining: that of mmdet's Swin returns None
    return network


def differences(name: str, dtype: torch.dtype) -> tuple[dict, np.ndarray]:
    """Compare a network's maps of the photographs alone and in a padded batch.

    Args:
        name (str): One of ``NETWORKS``.
        dtype (torch.dtype): Of weights and photographs.

    Returns:
        tuple[dict, np.ndarray]: A row: ``largest``, for each level max |a - b| / max |b| over the photographs, and
            ``touched``, the share of positions where the channels' vectors differ by more than 1 % of a vector's mean
            length; and for the first photograph, that difference at each position of the level of stride 8.
    """
    network, images = build(name, dtype), photographs(dtype)
    batch = batch_of(images)
    if "valid areas" in name:
        attach_valid_sizes(batch, [image.shape[1:] for image in images])
    with torch.no_grad():
        together = network(batch)
        alone = [network(image[None]) for image in images]
    largest, touched = [], []
    for level, maps in enumerate(together):
        pairs = [(maps[i, :, : m[level].shape[2], : m[level].shape[3]], m[level][0]) for i, m in enumerate(alone)]
        largest.append(max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs))
        touched.append(float(torch.cat([_relative(a, b).flatten() > 0.01 for a, b in pairs]).double().mean()))
        if level == _DRAWN:
            drawn = _relative(*pairs[0]).numpy()
    row = {"network": name, "dtype": str(dtype).removeprefix("torch."), "largest": largest, "touched": touched}
    return row, drawn


def _relative(a: Tensor, b: Tensor) -> Tensor:
    """Distance of the vectors at each position (H, W), over the mean length of a vector."""
    return (a - b).norm(dim=0) / b.norm(dim=0).mean()


def measure(track: Callable) -> tuple[list[dict], dict[str, np.ndarray]]:
    """Rows of all networks in float32, and of ours in float64; what to draw of each in float32."""
    rows, drawn = [], {}
    wanted = [(name, torch.float32) for name in NETWORKS] + [(next(iter(NETWORKS)), torch.float64)]
    for name, dtype in track(wanted, "Features"):
        row, picture = differences(name, dtype)
        rows.append(row)
        drawn.setdefault(name, picture)
    return rows, drawn


def draw(drawn: dict[str, np.ndarray], out: Path) -> None:
    """Draw the photograph on its canvas, and where the maps of each network differ."""
    image = window(photograph(next(iter(PHOTOGRAPHS))), *next(iter(PHOTOGRAPHS.values())))
    canvas = np.full((320, 320, 3), 255, np.uint8)
    canvas[: image.shape[0], : image.shape[1]] = image
    figure, axes = plt.subplots(1, 1 + len(drawn), figsize=(14, 3.4), layout="constrained")
    axes[0].imshow(canvas)
    axes[0].add_patch(plt.Rectangle((0, 0), 319, 319, fill=False, linestyle="--", color="grey"))
    axes[0].set_title("photograph, canvas", fontsize=10)
    for axis, (name, values) in zip(axes[1:], drawn.items()):
        shown = axis.imshow(
            np.maximum(values, 1e-8),
            norm=LogNorm(1e-6, 1),
            cmap="magma",
            extent=(0, values.shape[1] * 8, values.shape[0] * 8, 0),
        )
        axis.set(xlim=(0, 320), ylim=(320, 0))
        axis.set_title(f"{name}\nmedian {np.median(values):.1g}, largest {values.max():.1g}", fontsize=10)
    for axis in axes:
        axis.set_xticks([])
        axis.set_yticks([])
    figure.colorbar(shown, ax=axes, shrink=0.8, pad=0.01, label="difference / mean length")
    with atomic_file(out) as new:
        figure.savefig(new, dpi=100)
    plt.close(figure)
