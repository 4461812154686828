"""What a resize means, as figures: resized weights, effective receptive fields, spectra of learned weights.

Each figure's numbers come back as a dict that JSON can hold.
"""

from __future__ import annotations

import copy
import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # files only: works without a display

import matplotlib.pyplot as plt
import torch
from matplotlib.colors import LogNorm
from matplotlib.ticker import FixedLocator, NullLocator
from mmengine.config import Config
from mmengine.registry import DefaultScope
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmsmlp import SMLPNet
from mmsmlp.checkpoint import read_checkpoint
from mmsmlp.files import atomic_file
from mmsmlp.layers import AxisLinear
from mmsmlp.resize import METHODS, check_method, is_axis_parameter, resampling_matrix, resize_axis_weight

# Colours of Okabe and Ito, told apart by colour-blind readers.
_BLUE, _ORANGE, _GREEN, _RED, _GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#666666"
# Name -> positions m for an anchor of n.
_SIZES = {
    "n + 1": lambda n: n + 1,
    "n + 2": lambda n: n + 2,
    "1.5 n": lambda n: math.ceil(1.5 * n),
    "2 n": lambda n: 2 * n,
}
_DRAWS = 400  # of random weights, for their spread
_CELLS = 80  # along an axis of a drawn receptive field
_DPI = 110


def load_backbone(config: str | Path, checkpoint: str | Path) -> SMLPNet:
    """The trained backbone of a demo's network, in eval mode.

    Args:
        config (str | Path): The network's config.
        checkpoint (str | Path): Its checkpoint.

    Raises:
        RuntimeError: If the checkpoint does not fit.
    """
    settings = Config.fromfile(config).model.backbone.to_dict()
    settings.pop("type")
    backbone = SMLPNet(**settings)
    weights = read_checkpoint(checkpoint)["state_dict"]
    prefix = "backbone."
    backbone.load_state_dict({k[len(prefix) :]: v for k, v in weights.items() if k.startswith(prefix)})
    return backbone.eval()


def initial_backbone(config: str | Path) -> SMLPNet:
    """The backbone that a training began with: its network built again, from the config's seed.

    Args:
        config (str | Path): The config that a work directory holds. Its training started from no checkpoint.

    Raises:
        ValueError: If the config names no seed.
    """
    cfg = Config.fromfile(config)
    seed = cfg.get("randomness", {}).get("seed")
    if seed is None:
        raise ValueError(f"{config} has no seed (randomness), so what its training began with is unknown")
    with torch.random.fork_rng(devices=[]), DefaultScope.overwrite_default_scope(cfg.default_scope):
        torch.manual_seed(seed)  # as mmengine's Runner does right before it builds the model
        return importlib.import_module(f"{cfg.default_scope}.registry").MODELS.build(cfg.model).backbone.eval()


def with_interpolation(backbone: nn.Module, method: str) -> nn.Module:
    """A copy of a network whose axis weights are resized by another of ``mmsmlp.resize.METHODS``."""
    backbone = copy.deepcopy(backbone)
    for module in backbone.modules():
        if isinstance(module, AxisLinear):
            module.interpolation = check_method(method)
    return backbone


def untrained(backbone: nn.Module, images: Tensor, seed: int = 0) -> nn.Module:
    """A copy of a network with random weights, and the statistics of its batch norms taken from ``images``.

    Args:
        backbone (nn.Module): The network.
        images (Tensor): (N, C, H, W), as the network takes them.
        seed (int): Of the weights. Defaults to 0.
    """
    backbone = copy.deepcopy(backbone).train()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for module in backbone.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
            if isinstance(module, _BatchNorm):
                module.momentum = None  # plain averages, of this one batch
        backbone(images)
    return backbone.eval()


def axis_weights(backbone: nn.Module) -> dict[str, Tensor]:
    """The axis weights of a backbone, (n, n) float64 each, named as 'stage 1, block 1, along W'.

    Raises:
        ValueError: If there are none.
    """
    weights = {}
    for number, stage in enumerate(backbone.stages, 1):
        for position, block in enumerate(stage, 1):
            for axis in "WH" if block.sparse_mlp is not None else "":
                layer = getattr(block.sparse_mlp, f"mix_{axis.lower()}")
                weights[f"stage {number}, block {position}, along {axis}"] = layer.weight.detach().cpu().double()
    if not weights:
        raise ValueError("this network has no axis weights: it was built with global_mixing=False")
    return weights


def draw_weights(weights: Mapping[str, Tensor], out: str | Path) -> dict:
    """Draw axis weights on their anchor and resized to n/2, n + 1, 2n and 3n positions by all methods.

    Entries are drawn times m / n, so that a method that keeps the mass shows the same colours at all sizes.

    Args:
        weights (Mapping[str, Tensor]): Title -> weight (n, n), side by side, each with a colour scale of its own.
        out (str | Path): The picture to write.

    Returns:
        dict: Title -> method -> size as a string -> largest absolute row sum.

    Raises:
        ValueError: If there is no weight, or one is not (n, n).
    """
    if not weights:
        raise ValueError("no weights to draw")
    for title, weight in weights.items():
        if not is_axis_parameter(weight, 2):
            raise ValueError(f"an axis weight is (n, n), {title!r} is {tuple(weight.shape)}")
    figure = plt.figure(figsize=(7.4 * len(weights), 6.2), layout="constrained")
    parts = figure.subfigures(1, len(weights), squeeze=False)[0]
    sums = {title: _draw_weight(part, title, weight) for part, (title, weight) in zip(parts, weights.items())}
    _save(figure, out)
    return sums


def _draw_weight(figure, title: str, weight: Tensor) -> dict:
    """One weight: a column for each size, a row for each method."""
    weight = weight.detach().double()
    n = len(weight)
    sizes = {"n": n, "n / 2": max(n // 2, 1), "n + 1": n + 1, "2 n": 2 * n, "3 n": 3 * n}
    limit = float(weight.abs().flatten().quantile(0.995)) or 1.0
    axes = figure.subplots(len(METHODS), len(sizes))
    sums: dict = {}
    for row, method in zip(axes, METHODS):
        sums[method] = {}
        for axis, (name, size) in zip(row, sizes.items()):
            resized = resize_axis_weight(weight, size, method)
            total = float(resized.abs().sum(1).max())
            sums[method][str(size)] = total
            image = axis.imshow((resized * (size / n)).numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit)
            axis.set(xticks=[], yticks=[], xlabel=f"{total:.2f}")
            if method == METHODS[0]:
                axis.set_title(f"m = {size}" if name == "n" else f"m = {size} ({name})", fontsize=10)
        row[0].set_ylabel(method, fontsize=11)
    figure.suptitle(f"{title} (n = {n})")
    figure.supxlabel("below each map: its largest absolute row sum", fontsize=10)
    bar = figure.colorbar(image, ax=axes, shrink=0.6, aspect=30, extend="both")
    bar.set_label("entry times m / n")
    return sums


@dataclass(frozen=True)
class ReceptiveField:
    """How much each pixel moves one token.

    Attributes:
        shares (Tensor): (H, W) float64, sums to 1: absolute gradients, averaged over images, summed over channels.
        centre (tuple[float, float]): Row and column of the token's centre, in pixels from the upper left corner.
    """

    shares: Tensor
    centre: tuple[float, float]

    def half_side(self, share: float) -> float:
        """Half a side, in pixels, of the smallest square round the token that holds a share of the field."""
        rows, columns = (
            (torch.arange(size, dtype=torch.float64) + 0.5 - centre).abs()
            for size, centre in zip(self.shares.shape, self.centre)
        )
        distance, order = torch.maximum(rows[:, None], columns[None]).flatten().sort()
        held = self.shares.flatten()[order].cumsum(0)
        last = min(int((held < share - 1e-9).sum()), len(held) - 1)
        return float(distance[last]) + 0.5

    def side(self, share: float) -> float:
        """Side of that square relative to the canvas; an even field has the side ``share ** 0.5``.

        Where the square leaves the canvas only its part inside counts: the root of that part's share of the area.
        """
        half, area = self.half_side(share), 1.0
        for size, centre in zip(self.shares.shape, self.centre):
            area *= (min(centre + half, size) - max(centre - half, 0)) / size
        return area**0.5

    def beyond(self, height: int, width: int) -> float:
        """Share of the field outside of a (height, width) window round the token, moved to lie on the canvas."""
        inside = self.shares
        for dim, size in enumerate((height, width)):
            length = inside.shape[dim]
            start = min(max(round(self.centre[dim] - size / 2), 0), max(length - size, 0))
            inside = inside.narrow(dim, start, min(size, length))
        return 1 - float(inside.sum())


def effective_receptive_field(backbone: nn.Module, images: Tensor, factor: float = 1) -> ReceptiveField:
    """The effective receptive field (arXiv 1701.04128) of the last map's centre token, summed over its channels.

    Args:
        backbone (nn.Module): Returns a map, or maps the last of which counts. It is run in eval mode.
        images (Tensor): (N, C, H, W), as the network takes them.
        factor (float): How many times as high and wide the canvas is; images are continued as their own mirror image.

    Returns:
        ReceptiveField: On a canvas (round(factor * H), round(factor * W)). Of an even number of tokens, the centre
            token is the one right of and below the middle.

    Raises:
        ValueError: If the images are not four-dimensional, the factor is below 1, or the field is zero everywhere.
    """
    if images.ndim != 4 or not len(images):
        raise ValueError(f"images must be (N, C, H, W), got {tuple(images.shape)}")
    if factor < 1:
        raise ValueError(f"a canvas is at least as large as the images (factor 1), got {factor}")
    for dim in (2, 3):
        length = images.shape[dim]
        position = torch.arange(round(factor * length)) % (2 * length)
        images = images.index_select(dim, torch.minimum(position, 2 * length - 1 - position))
    modes = [(module, module.training) for module in backbone.modules()]
    backbone.eval()
    total = torch.zeros(images.shape[2:], dtype=torch.float64)
    try:
        for image in images.split(1):  # one by one, to save memory
            image = image.detach().clone().requires_grad_()
            maps = backbone(image)
            last = maps[-1] if isinstance(maps, Sequence) else maps
            tokens = last.shape[2:]
            token = last[0, :, tokens[0] // 2, tokens[1] // 2].sum()
            total += torch.autograd.grad(token, image)[0].abs().sum((0, 1))
    finally:
        for module, mode in modes:
            module.training = mode
    if not total.sum() > 0:
        raise ValueError("no pixel has a gradient: is the network's output constant?")
    centre = tuple((count // 2 + 0.5) * size / count for count, size in zip(tokens, total.shape))
    return ReceptiveField(total / total.sum(), centre)


def draw_receptive_fields(
    networks: Mapping[str, nn.Module], images: Tensor, out: str | Path, factors: Sequence[float] = (1, 3)
) -> dict:
    """Draw the effective receptive fields of networks on canvases of several sizes.

    Args:
        networks (Mapping[str, nn.Module]): Title -> network, a column each.
        images (Tensor): (N, C, H, W), as the networks take them, of the anchor's size.
        out (str | Path): The picture to write.
        factors (Sequence[float]): Sizes of the canvas relative to the images, a row each.

    Returns:
        dict: Title -> factor as a string -> ``canvas`` (height, width in pixels), ``side_50`` and ``side_90``
            (:meth:`ReceptiveField.side`), and ``beyond``, the share outside of a window of the images' size.

    Raises:
        ValueError: If there is no network or no factor, or an argument is invalid.
    """
    if not networks or not factors:
        raise ValueError("nothing to draw: give at least one network and one factor")
    size = (len(factors), len(networks))
    figure, axes = plt.subplots(
        *size, figsize=(1.3 + 2.6 * size[1], 0.9 + 2.7 * size[0]), squeeze=False, layout="constrained"
    )
    numbers: dict = {}
    for column, (title, network) in enumerate(networks.items()):
        numbers[title] = {}
        for axis, factor in zip(axes[:, column], factors):
            field = effective_receptive_field(network, images, factor)
            sides = {"side_50": field.side(0.5), "side_90": field.side(0.9)}
            beyond = field.beyond(*images.shape[2:])
            height, width = field.shares.shape
            numbers[title][f"{factor:g}"] = {"canvas": [height, width], **sides, "beyond": beyond}
            image = _draw_field(axis, field)
            label = f"50 %: {sides['side_50']:.2f}, 90 %: {sides['side_90']:.2f}"
            axis.set_xlabel(label + (f"\nbeyond {images.shape[3]} pixels: {100 * beyond:.0f} %" if factor > 1 else ""))
            if column == 0:
                axis.set_ylabel(f"canvas {factor:g}x: {width} x {height}", fontsize=11)
        axes[0, column].set_title(title, fontsize=11)
    bar = figure.colorbar(image, ax=axes, shrink=0.7, aspect=30, extend="both")
    bar.set_label("gradient, relative to an even spread over the canvas")
    figure.suptitle("Effective receptive field of the centre token; below: sides of the squares that hold it / canvas")
    _save(figure, out)
    return numbers


def _draw_field(axis, field: ReceptiveField):
    density = field.shares * field.shares.numel()
    height, width = density.shape
    step = max(height // _CELLS, 1)  # means over as many cells on every canvas, else small canvases look noisier
    density = nn.functional.avg_pool2d(density[None, None], step, ceil_mode=True, count_include_pad=False)[0, 0]
    image = axis.imshow(
        density.clamp(min=1e-9).numpy(), cmap="magma", extent=(0, width, height, 0), norm=LogNorm(0.03, 30)
    )
    y, x = field.centre
    for share, style in ((0.5, "-"), (0.9, "--")):
        half = field.half_side(share)
        corner = (x - half, y - half)
        axis.add_patch(plt.Rectangle(corner, 2 * half, 2 * half, fill=False, color="white", linestyle=style))
    axis.set(xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0))
    return image


def dct_matrix(length: int) -> Tensor:
    """The orthonormal DCT-II, (length, length) float64: row k is a cosine of k half waves along the axis."""
    position = torch.arange(length, dtype=torch.float64)
    basis = torch.cos(math.pi / length * (position + 0.5) * position[:, None]) * (2 / length) ** 0.5
    basis[0] /= 2**0.5
    return basis


def energy_shares(weight: Tensor) -> Tensor:
    """How a weight (..., n, n) reads frequencies: the shares (..., n) of its energy along its input axis's DCT-II."""
    energy = (weight.double() @ dct_matrix(weight.shape[-1]).T).square().sum(-2)
    return energy / energy.sum(-1, keepdim=True)


def reading_gains(anchor: int, size: int, method: str) -> Tensor:
    """Gain of the resampling from ``size`` positions down to the ``anchor``'s, by frequency of the anchor.

    Of a signal of white noise, relative to an ideal resampling: the root mean square of frequency k is
    ``gain * sqrt(anchor / size)``. A smooth signal has the gain 1.

    Args:
        anchor (int): Positions n.
        size (int): Positions m, at least n.
        method (str): 'exact' (the pseudo-inverse) or 'bounded' (the triangle filter).

    Returns:
        Tensor: (n,) float64.

    Raises:
        ValueError: If the size is smaller than the anchor, where the reading interpolates, or the method has none.
    """
    if size < anchor:
        raise ValueError(f"a gain of reading needs a size of at least the anchor's {anchor} positions, got {size}")
    return (dct_matrix(anchor) @ resampling_matrix(size, anchor, method)).norm(dim=1) * (size / anchor) ** 0.5


def weight_spectra(trained: Sequence[nn.Module], initial: Sequence[nn.Module] = ()) -> dict:
    """Which frequencies the axis weights of trained networks read, and which ones a resize amplifies.

    Args:
        trained (Sequence[nn.Module]): Backbones of one arch and anchor, of several seeds.
        initial (Sequence[nn.Module]): What their trainings began with (:func:`initial_backbone`), in the same order;
            then what training has added is told apart from what it began with. Defaults to none.

    Returns:
        dict: For each stage, as 'stage 1':

            - ``length``: anchor positions n; ``top_quarter_from``: the first frequency of the top quarter.
            - ``trained``, ``random`` and, with ``initial``, ``added``: spectra of the trained weights, of weights drawn
              as they are initialised, and of trained minus initial ones. Each has ``shares`` (n of them, summing to
              1, mean over networks), their ``range`` over networks (random: the middle 90 % of networks), and
              ``highest`` and ``top_quarter``, each [mean, low, high] likewise.
            - ``moved``, with ``initial``: norm of what training has added, relative to the initial weights.
            - ``sizes``: 'n + 1' and so on -> ``size`` m, and for 'exact' and 'bounded' the ``gains`` of their reading
              by frequency and, as keys like the spectra's, the root mean square gain of the resized layer to white
              noise: what of the amplified frequencies the weights read.

    Raises:
        ValueError: If networks differ in their axis weights, or not every one has its initial one.
    """
    if not trained or (initial and len(initial) != len(trained)):
        raise ValueError(f"one initial network for each trained one, or none: got {len(initial)} for {len(trained)}")
    after, before = _by_stage(trained), _by_stage(initial) if initial else None
    spectra = {}
    for stage, weights in after.items():
        networks, count, n, _ = weights.shape
        generator = torch.Generator().manual_seed(0)
        drawn = torch.rand(_DRAWS, count, n, n, generator=generator, dtype=torch.float64) * 2 - 1
        kinds = {"trained": weights, "random": drawn}
        top = min(math.ceil(0.75 * n), n - 1)
        row: dict = {"length": n, "top_quarter_from": top, "networks": networks, "weights_per_network": count}
        if before is not None:
            if stage not in before or before[stage].shape != weights.shape:
                raise ValueError(f"the initial networks are not those of the trained ones: {stage} differs")
            kinds["added"] = weights - before[stage]
            row["moved"] = float((kinds["added"].norm(dim=(2, 3)) / before[stage].norm(dim=(2, 3))).mean())
        row |= {kind: _spectrum(energy_shares(w).mean(1), top, kind == "random") for kind, w in kinds.items()}
        row["sizes"] = {name: _gains(n, size(n), kinds) for name, size in _SIZES.items()}
        spectra[stage] = row
    return spectra


def _by_stage(networks: Sequence[nn.Module]) -> dict[str, Tensor]:
    """Stage -> its axis weights, (networks, weights, n, n)."""
    found = [axis_weights(network) for network in networks]
    shapes = [{name: weight.shape for name, weight in weights.items()} for weights in found]
    if any(other != shapes[0] for other in shapes):
        raise ValueError("spectra are averaged over networks of one arch and anchor, but these differ")
    stages: dict[str, list] = {}
    for name in found[0]:
        stages.setdefault(name.partition(",")[0], []).append(torch.stack([weights[name] for weights in found]))
    for stage, weights in stages.items():
        if len({weight.shape for weight in weights}) > 1:
            raise ValueError(f"spectra need square anchors, but H and W of {stage} differ")
    return {stage: torch.stack(weights, 1) for stage, weights in stages.items()}


def _spectrum(shares: Tensor, top: int, many: bool) -> dict:
    """Means and ranges of shares (networks, n)."""

    def summary(values: Tensor) -> list:
        # of many networks, the middle 90 %
        bounds = values.quantile(torch.tensor([0.05, 0.95] if many else [0.0, 1.0], dtype=values.dtype), dim=0)
        return [values.mean(0).tolist(), *bounds.tolist()]

    mean, *bounds = summary(shares)
    highest, top_quarter = summary(shares[:, -1]), summary(shares[:, top:].sum(1))
    return {"shares": mean, "range": bounds, "highest": highest, "top_quarter": top_quarter}


def _gains(n: int, size: int, kinds: Mapping[str, Tensor]) -> dict:
    row: dict = {"size": size}
    for method in ("exact", "bounded"):
        read = resampling_matrix(size, n, method)
        of_kinds = {}
        for kind, weights in kinds.items():
            gain = (weights @ read).norm(dim=(2, 3)) / weights.norm(dim=(2, 3)) * (size / n) ** 0.5
            of_kinds[kind] = float(gain.square().mean().sqrt())
        row[method] = {"gains": reading_gains(n, size, method).tolist(), **of_kinds}
    return row


def draw_spectra(spectra: Mapping[str, dict], out: str | Path, title: str = "Axis weights of trained networks") -> None:
    """Draw spectra and gains, a column for each stage.

    Args:
        spectra (Mapping[str, dict]): Of :func:`weight_spectra`.
        out (str | Path): The picture to write.
        title (str): What networks these are.

    Raises:
        ValueError: If there are no spectra.
    """
    if not spectra:
        raise ValueError("no spectra to draw")
    figure, axes = plt.subplots(
        2,
        len(spectra),
        figsize=(1.2 + 3.3 * len(spectra), 6.4),
        sharex="col",
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    styles = {"trained": (_BLUE, "o"), "added": (_RED, "^")}
    names = {"trained": "trained weights", "added": "what training added", "random": "random weights, 90 % of networks"}
    for (above, below), (stage, row) in zip(axes.T, spectra.items()):
        n, frequency = row["length"], range(row["length"])
        low, high = ([share * n for share in bound] for bound in row["random"]["range"])
        above.fill_between(frequency, low, high, color=_GREY, alpha=0.25, linewidth=0, label=names["random"])
        for kind, (colour, marker) in styles.items():
            if kind in row:
                curve = [share * n for share in row[kind]["shares"]]
                above.plot(frequency, curve, color=colour, marker=marker, markersize=3, label=names[kind])
                low, high = ([share * n for share in bound] for bound in row[kind]["range"])
                above.fill_between(frequency, low, high, color=colour, alpha=0.2, linewidth=0)
        highest = f"{100 * row['trained']['highest'][0]:.1f} % (even {100 / n:.1f} %)"
        above.set_title(f"{stage}, n = {n}\nat the highest: {highest}", fontsize=10)
        for colour, (name, gains) in zip((_RED, _ORANGE, _GREEN, _BLUE), row["sizes"].items()):
            for method, line in (("exact", "-"), ("bounded", "--")):
                style = {"color": colour, "linestyle": line, "marker": ".", "markersize": 4}
                below.plot(frequency, gains[method]["gains"], label=f"{method}, m = {name}", **style)
        below.set(xlabel="half waves along the axis")
        below.xaxis.get_major_locator().set_params(integer=True)
        for axis, ticks in ((above, (0.1, 0.2, 0.5, 1, 2, 5, 10, 20)), (below, (0.4, 0.5, 0.7, 1, 1.5, 2, 3, 4))):
            axis.set_yscale("log")
            axis.yaxis.set_major_locator(FixedLocator(ticks))
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_locator(NullLocator())
            axis.axhline(1, color="black", linewidth=0.8)
            axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("share of the energy, times n")
    axes[1, 0].set_ylabel("gain of reading m positions")
    for axis in axes[:, -1]:
        axis.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize=9)
    figure.suptitle(title)
    _save(figure, out)


def _save(figure: plt.Figure, out: str | Path) -> None:
    try:
        with atomic_file(out) as new:
            figure.savefig(new, dpi=_DPI)
    finally:
        plt.close(figure)
