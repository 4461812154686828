"""All pictures of the study, from its rows and its checkpoints."""

from __future__ import annotations

from pathlib import Path

import torch
from mmengine.config import Config
from torch import Tensor

from mmsmlp.photos.photographs import photograph, window
from mmsmlp.resize import DEFAULT_METHOD
from mmsmlp.visualize.weights import axis_weights
from study import times
from study.backbones import initial_backbone, load_backbone, untrained, with_interpolation
from study.curves import draw_network, draw_summary
from study.fields import draw_receptive_fields
from study.plan import NETWORKS, Network
from study.rivals import use_rival
from study.spectra import draw_spectra, weight_spectra
from study.training import folder_of
from study.weights import draw_weights

RECIPE = "random scales"  # of the networks that are looked into
_FIELDS = "Mask R-CNN"  # whose receptive fields are drawn
_CROPS = 4  # of the coins photograph, that receptive fields are averaged over


def draw_all(rows: list[dict], seeds: list[int], out: Path) -> dict:
    """Draw everything.

    Args:
        rows (list[dict]): Of ``study.evaluation``.
        seeds (list[int]): Of the checkpoints that spectra are averaged over; the first one's weights are drawn.
        out (Path): Folder of the study.

    Returns:
        dict: ``weights``, ``fields`` and ``spectra``: the numbers in the pictures, by network; ``times``, rows of
            :func:`study.times.measure`.
    """
    draw_summary(rows, out / "summary.png", RECIPE)
    numbers: dict = {"weights": {}, "fields": {}, "spectra": {}}
    for network in NETWORKS.values():
        name = network.name.lower().replace(" ", "-")
        draw_network(rows, network.name, out / f"curves-{name}.png")
        paths = [folder_of(network, RECIPE, seed, out) for seed in seeds]
        trained = [load_backbone(path / "config.py", path / "final.pth") for path in paths]
        initial = [initial_backbone(path / "config.py") for path in paths]
        spectra = weight_spectra(trained, initial)
        draw_spectra(spectra, out / f"spectra-{name}.png", f"Axis weights of the {network.name}, {len(seeds)} seeds")
        numbers["spectra"][network.name] = spectra
        if network.name == _FIELDS:
            before, after = axis_weights(initial[0]), axis_weights(trained[0])
            key = "stage 1, block 1, along H"
            shown = {key: after[key], "what training added to it": after[key] - before[key]}
            numbers["weights"][network.name] = draw_weights(shown, out / "weights.png")
            numbers["times"] = times.measure(with_interpolation(trained[0], DEFAULT_METHOD))
            numbers["fields"][network.name] = _draw_fields(network, trained[0], out / "fields.png")
    return numbers


def _draw_fields(network: Network, trained: torch.nn.Module, out: Path) -> dict:
    images = _crops(network)
    columns = {f"trained, {m}": with_interpolation(trained, m) for m in ("exact", "bounded", "naive")}
    columns |= {f"trained, {r}": use_rival(trained, r) for r in ("features", "windows")}
    columns["random weights, exact"] = with_interpolation(untrained(trained, images), "exact")
    return draw_receptive_fields(columns, images, out)


def _crops(network: Network) -> Tensor:
    """Crops (N, 3, H, W) of the coins photograph of the anchor's size, normalised as the network takes them."""
    settings = Config.fromfile(network.config).model.data_preprocessor
    mean, std = (torch.tensor(settings[key])[:, None, None] for key in ("mean", "std"))
    size = network.anchor
    crops = [torch.tensor(window(photograph("coins"), size, size, seed)) for seed in range(_CROPS)]
    return torch.stack([(crop.permute(2, 0, 1).float() - mean) / std for crop in crops])
