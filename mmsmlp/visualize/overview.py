"""Everything in one call: a config and a checkpoint to a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mmsmlp.flops import count_macs
from mmsmlp.photos.photographs import photograph
from mmsmlp.smlpnet import SMLPNet
from mmsmlp.sweep import versions
from mmsmlp.visualize.features import draw_level, feature_maps
from mmsmlp.visualize.fields import draw_fields, draw_reach
from mmsmlp.visualize.inputs import fit, mirrored, normalise, parse_sizes, read_photograph, size_name
from mmsmlp.visualize.network import Network, load_network
from mmsmlp.visualize.receptive_field import effective_receptive_fields
from mmsmlp.visualize.report import Picture, Section, Table, write_report
from mmsmlp.visualize.weights import draw_stage, weights_at

DEFAULT_PHOTOGRAPH = "astronaut"  # of scikit-image
_NATIVE = (224, 224)  # pixels, where a backbone does not say

Size = tuple[int, int]


def visualize(
    config: str | Path,
    checkpoint: str | Path | None = None,
    out: str | Path = "work_dirs/visualize",
    image: str | Path | None = None,
    sizes: Sequence[str] = (),
    options: dict | None = None,
    command: str = "",
) -> Path:
    """Write a report on what a network has learned and on how it takes images of several sizes.

    Nothing is written before everything is drawn: after an error an older report is still whole.

    Args:
        config (str | Path): A classifier's, detector's or segmentor's config. With a backbone other than SMLPNet the
            section on axis weights says that there are none.
        checkpoint (str | Path, optional): See :func:`~mmsmlp.visualize.network.load_network`. Defaults to none.
        out (str | Path): Folder for ``report.html`` and its pictures. Defaults to 'work_dirs/visualize'.
        image (str | Path, optional): A photograph. Defaults to scikit-image's astronaut.
        sizes (Sequence[str]): HEIGHTxWIDTH each, or one number. Defaults to the anchor's size and twice that.
        options (dict, optional): Changes to the config, dotted keys to values.
        command (str): What was typed, for the report.

    Returns:
        Path: The report.

    Raises:
        FileNotFoundError: If the config, the checkpoint or the photograph does not exist.
        ValueError: If a size is none, the photograph is no image, or config and checkpoint do not fit each other.
    """
    wanted = parse_sizes(sizes)
    shown = Image.fromarray(photograph(DEFAULT_PHOTOGRAPH)) if image is None else read_photograph(image)
    network = load_network(config, checkpoint, options)
    height, width = _anchor(network) or _NATIVE
    photographs = {size: fit(shown, size) for size in wanted or [(height, width), (2 * height, 2 * width)]}
    run = {
        "command": command or "mmsmlp.visualize.overview.visualize(...)",
        "config": str(config),
        "checkpoint": network.checkpoint or "none",
        "photograph": f"{DEFAULT_PHOTOGRAPH} of scikit-image" if image is None else str(image),
    }
    name = run["checkpoint"] if network.checkpoint else "untrained"
    sections = [
        _facts(network, run, photographs),
        _weights(network, list(photographs)),
        _fields(network, photographs),
        _features(network, photographs),
    ]
    return write_report(f"Inside {Path(config).stem} ({Path(name).name})", sections, out)


def _anchor(network: Network) -> Size | None:
    """Height and width in pixels that nothing is interpolated at; None: there is no such size."""
    if not isinstance(network.backbone, SMLPNet):
        return None
    return tuple(network.backbone.strides[0] * count for count in network.backbone.grids[0])


def _facts(network: Network, run: dict[str, str], photographs: Mapping[Size, np.ndarray]) -> Section:
    backbone, settings = network.backbone, network.cfg.model.backbone
    anchor = _anchor(network)
    steps = "" if network.iterations is None else f", after {network.iterations:,} iterations"
    facts = {
        "command": run["command"],
        "config": run["config"],
        "checkpoint": run["checkpoint"] + steps,
        "photograph": run["photograph"],
        "model": f"{type(network.model).__name__}, {_parameters(network.model):,} parameters",
        "backbone": f"{type(backbone).__name__}, {_parameters(backbone):,} parameters",
        "arch": str(settings.get("arch", "as in the config")),
        "anchor": f"{size_name(anchor)} pixels" if anchor else "none",
        "interpolation": getattr(backbone, "interpolation", "none"),
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }
    rows = []
    for size, picture in photographs.items():
        inputs = normalise(picture, network.cfg)
        macs = sum(count_macs(backbone, lambda inputs=inputs: backbone(inputs)).values())
        rows.append((size_name(size), f"{macs / 1e9:.3f}"))
    note = (
        "Not trained: weights are random (seed 0), since no checkpoint was given. What follows shows how the network "
        "is built, and nothing that it has learned."
    )
    tables = [Table(list(facts.items())), Table(rows, ("height x width in pixels", "GMAC of the backbone"))]
    return Section("What was run", tables=tables, note="" if network.checkpoint else note)


def _weights(network: Network, sizes: list[Size]) -> Section:
    title = "Axis weights"
    weights = weights_at(network.backbone, sizes)
    if not weights:
        return Section(title, ["This backbone has no axis weights: there is nothing to show here."])
    stages = sorted({weight.stage for weight in weights})
    pictures = []
    for stage in stages:
        of_stage = [weight for weight in weights if weight.stage == stage]
        grid = size_name(network.backbone.grids[stage - 1])
        resized = " and ".join(["its anchor", *map(size_name, of_stage[0].resized)])
        pictures.append(
            Picture(
                f"weights-stage{stage}",
                draw_stage(of_stage),
                f"Stage {stage}: the anchor is a grid of {grid} tokens.",
                f"Heat maps of {len(of_stage)} axis weights of stage {stage} on {resized}, red above and blue below 0",
            )
        )
    text = [
        "A stage mixes the n tokens of every row (along W) and of every column (along H) by a matrix. Row o, column i "
        "of a map is how much input position i adds to output position o, the same in all channels. The first column "
        "of maps shows the matrices as they were learned, on the anchor grid; the others as the layer applies them to "
        "m tokens, after interpolation. They are drawn times m / n: equal colours are equal weights of an equal part "
        "of the image.",
        "What to look for: a band along the diagonal mixes neighbours; vertical stripes are positions that all others "
        "read; noise without structure is what training started from. A resized matrix should look like the learned "
        "one, magnified and smoother, with the same colours: that is what interpolation promises.",
    ]
    return Section(title, text, pictures=pictures)


def _fields(network: Network, photographs: Mapping[Size, np.ndarray]) -> Section:
    fields = {
        size: effective_receptive_fields(network.backbone, mirrored(normalise(picture, network.cfg)))
        for size, picture in photographs.items()
    }
    rows = []
    for size, found in fields.items():
        for level, field in enumerate(found, 1):
            (cross, area), sides = field.own_lines(), (2 * field.half_side(share) for share in (0.5, 0.9))
            cells = [f"{side:.0f}" for side in sides] + [f"{100 * cross:.1f} %", f"{100 * area:.1f} %"]
            rows.append((f"{size_name(size)}, level {level}", *cells))
    heading = ("size, level", "50 % within, px", "90 % within, px", "on its row and column", "their share of the area")
    sizes = ", ".join(map(size_name, fields))
    pictures = [
        Picture(
            "receptive-fields",
            draw_fields(fields),
            "Brighter pixels move the middle token more; the scale is logarithmic, and 1 is an even spread over the "
            "image. Half of the gradient lies in the solid square, 90 % in the dashed one.",
            f"Heat maps of effective receptive fields at {sizes}, a row for each size, a column for each level",
        ),
        Picture(
            "receptive-fields-reach",
            draw_reach(fields),
            "The share of the gradient that lies within a square round the token. A curve above the grey one is more "
            "local than an even spread.",
            f"Curves of the gradient's share within a distance at {sizes}, one for each level",
        ),
    ]
    text = [
        "The effective receptive field (arXiv 1701.04128): the gradient of the middle token's summed features with "
        "respect to every pixel, in absolute value, averaged over the photograph and its three mirror images. Levels "
        "are the maps that the backbone returns, from fine to coarse. The photograph is resized until it covers a "
        "size, and its middle is cut out.",
        "What to look for: a cross means that the token listens to its own row and column; the table compares the "
        "gradient on that cross with the cross's share of the area. Squares that grow with the image: the reach is a "
        "part of the image. Squares that stay as they are: it is a number of pixels, as with convolutions.",
    ]
    return Section("Effective receptive fields", text, [Table(rows, heading)], pictures)


def _features(network: Network, photographs: Mapping[Size, np.ndarray]) -> Section:
    at_sizes = [feature_maps(network.backbone, normalise(picture, network.cfg)) for picture in photographs.values()]
    sizes = ", ".join(map(size_name, photographs))
    pictures = [
        Picture(
            f"features-level{number}",
            draw_level(number, photographs, levels),
            f"Level {number}, {len(levels[0])} channels.",
            f"The photograph, and over it feature maps of level {number}, at {sizes}",
        )
        for number, levels in enumerate(zip(*at_sizes), 1)
    ]
    first = size_name(next(iter(photographs)))
    text = [
        "Beside the photograph, the three principal components of all channels as red, green and blue, then the "
        f"channels that vary most, over the photograph. Components, channels and colour ranges are chosen at {first} "
        "and kept: the same colour means the same feature at all sizes.",
        "What to look for: parts of the picture that belong together should have one colour, and the same at all "
        "sizes. Stripes along rows or columns come from the axis layers: each position along an axis has weights and "
        "a bias of its own, so lines that look alike get the same stripes.",
    ]
    return Section("Feature maps", text, pictures=pictures)


def _parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
