"""Spectra of axis weights: which frequencies they read, and which a resize amplifies."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.ticker import FixedLocator, NullLocator
from torch import Tensor, nn

from mmsmlp.drawing import BLUE, GREEN, GREY, ORANGE, RED, save
from mmsmlp.resize import resampling_matrix
from mmsmlp.visualize.weights import axis_weights

# Name -> positions m for an anchor of n.
_SIZES = {
    "n + 1": lambda n: n + 1,
    "n + 2": lambda n: n + 2,
    "1.5 n": lambda n: math.ceil(1.5 * n),
    "2 n": lambda n: 2 * n,
}
_DRAWS = 400  # of random weights, for their spread


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
    styles = {"trained": (BLUE, "o"), "added": (RED, "^")}
    names = {"trained": "trained weights", "added": "what training added", "random": "random weights, 90 % of networks"}
    for (above, below), (stage, row) in zip(axes.T, spectra.items()):
        n, frequency = row["length"], range(row["length"])
        low, high = ([share * n for share in bound] for bound in row["random"]["range"])
        above.fill_between(frequency, low, high, color=GREY, alpha=0.25, linewidth=0, label=names["random"])
        for kind, (colour, marker) in styles.items():
            if kind in row:
                curve = [share * n for share in row[kind]["shares"]]
                above.plot(frequency, curve, color=colour, marker=marker, markersize=3, label=names[kind])
                low, high = ([share * n for share in bound] for bound in row[kind]["range"])
                above.fill_between(frequency, low, high, color=colour, alpha=0.2, linewidth=0)
        highest = f"{100 * row['trained']['highest'][0]:.1f} % (even {100 / n:.1f} %)"
        above.set_title(f"{stage}, n = {n}\nat the highest: {highest}", fontsize=10)
        for colour, (name, gains) in zip((RED, ORANGE, GREEN, BLUE), row["sizes"].items()):
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
    save(figure, out)
