"""Counts parameters and multiply-accumulates of sMLPNet and of its peers in the installed toolboxes, with one counter.

Beside every count stands what the toolbox's own metafile quotes for that config. The tables of docs/comparison.md come
from here. Runs on a CPU, downloads nothing, two minutes in all.

python benchmarks/costs.py --out work_dirs/costs.json
python benchmarks/costs.py --only Swin-T sMLPNet-T
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import logging
import sys
import warnings
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import yaml
from mmengine.config import Config
from mmengine.logging import MMLogger
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mmsmlp.files import atomic_file
from mmsmlp.flops import count_config

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Network:
    """One row of a table.

    Attributes:
        name (str): The network's usual name.
        config (str): 'toolbox::path' below the toolbox's configs, or a path in this repository.
        shape (tuple[int, int]): Height and width of the image in pixels.
        options (dict): Changes to the config, as ``Config.merge_from_dict`` takes them.
    """

    name: str
    config: str
    shape: tuple[int, int] = (224, 224)
    options: dict = field(default_factory=dict)


def _ours(arch: str, *in_channels: str) -> dict:
    """Options that make sMLPNet the backbone, the modules that read its four maps told their channels."""
    channels = [{"tiny": 80, "small": 96, "base": 112}[arch] * 2**i for i in range(4)]
    backbone = {"_delete_": True, "type": "mmsmlp.SMLPNet", "arch": arch}
    return {"model.backbone": backbone, **{f"model.{module}.in_channels": channels for module in in_channels}}


TABLES = {
    "ImageNet, 224 x 224": (
        Network("ResNet-50", "mmpretrain::resnet/resnet50_8xb32_in1k.py"),
        Network("ConvNeXt-T", "mmpretrain::convnext/convnext-tiny_32xb128_in1k.py"),
        Network("ConvNeXt-S", "mmpretrain::convnext/convnext-small_32xb128_in1k.py"),
        Network("ConvNeXt-B", "mmpretrain::convnext/convnext-base_32xb128_in1k.py"),
        Network("ViT-B/16", "mmpretrain::vision_transformer/vit-base-p16_32xb128-mae_in1k.py"),
        Network("DeiT-S", "mmpretrain::deit/deit-small_4xb256_in1k.py"),
        Network("DeiT-B", "mmpretrain::deit/deit-base_16xb64_in1k.py"),
        Network("Swin-T", "mmpretrain::swin_transformer/swin-tiny_16xb64_in1k.py"),
        Network("Swin-S", "mmpretrain::swin_transformer/swin-small_16xb64_in1k.py"),
        Network("Swin-B", "mmpretrain::swin_transformer/swin-base_16xb64_in1k.py"),
        Network("PoolFormer-S36", "mmpretrain::poolformer/poolformer-s36_32xb128_in1k.py"),
        Network("PoolFormer-M36", "mmpretrain::poolformer/poolformer-m36_32xb128_in1k.py"),
        Network("MLP-Mixer-B/16", "mmpretrain::mlp_mixer/mlp-mixer-base-p16_64xb64_in1k.py"),
        Network("RepMLPNet-B", "mmpretrain::repmlp/repmlp-base_8xb64_in1k.py"),
        Network("sMLPNet-T", "configs/classification/smlpnet-tiny_8xb128_in1k.py"),
        Network("sMLPNet-S", "configs/classification/smlpnet-small_8xb128_in1k.py"),
        Network("sMLPNet-B", "configs/classification/smlpnet-base_8xb128_in1k.py"),
    ),
    "ImageNet, other sizes": (
        Network("RepMLPNet-B at 256", "mmpretrain::repmlp/repmlp-base_8xb64_in1k-256px.py", (256, 256)),
        Network("DeiT-B at 384", "mmpretrain::deit/deit-base_16xb32_in1k-384px.py", (384, 384)),
        Network("Swin-B at 384", "mmpretrain::swin_transformer/swin-base_16xb64_in1k-384px.py", (384, 384)),
        Network("ConvNeXt-B at 384", "mmpretrain::convnext/convnext-base_32xb128_in1k-384px.py", (384, 384)),
        Network("sMLPNet-B at 384", "configs/classification/smlpnet-base_8xb128_in1k.py", (384, 384)),
        Network(
            "sMLPNet-B, img_size 384",
            "configs/classification/smlpnet-base_8xb128_in1k.py",
            (384, 384),
            {"model.backbone.img_size": 384},
        ),
    ),
    "Mask R-CNN, 800 x 1280": (
        Network("Mask R-CNN, ResNet-50", "mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py", (800, 1280)),
        Network("Mask R-CNN, Swin-T", "mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py", (800, 1280)),
        Network(
            "Mask R-CNN, ConvNeXt-T",
            "mmdet::convnext/mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco.py",
            (800, 1280),
        ),
        Network(
            "Mask R-CNN, sMLPNet-T",
            "mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py",
            (800, 1280),
            _ours("tiny", "neck"),
        ),
    ),
    "UperNet, 512 x 512": (
        Network("UperNet, ResNet-50", "mmseg::upernet/upernet_r50_4xb4-160k_ade20k-512x512.py", (512, 512)),
        Network(
            "UperNet, Swin-T",
            "mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py",
            (512, 512),
        ),
        Network(
            "UperNet, ConvNeXt-T",
            "mmseg::convnext/convnext-tiny_upernet_8xb2-amp-160k_ade20k-512x512.py",
            (512, 512),
        ),
        Network(
            "UperNet, sMLPNet-T",
            "mmseg::swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512.py",
            (512, 512),
            {**_ours("tiny", "decode_head"), "model.auxiliary_head.in_channels": 320},
        ),
    ),
}


def load(network: Network) -> Config:
    """Read a network's config, with its options.

    Args:
        network (Network): The network.

    Returns:
        Config: The whole config.

    Raises:
        OSError: If it does not exist.
    """
    config = Config.fromfile(_path(network.config))
    config.merge_from_dict(copy.deepcopy(network.options))  # merging takes _delete_ out of what it is given
    return config


def measure(network: Network) -> dict:
    """Count a network and look up what is quoted for it.

    Args:
        network (Network): The network; its weights are random, which changes no count here.

    Returns:
        dict: A row of plain JSON types: ``network``, ``config``, ``shape`` (height, width), ``parameters``, ``macs``,
            and ``quoted`` (see :func:`quoted`).

    Raises:
        OSError: If the config does not exist.
    """
    count = count_config(load(network), network.shape)
    return {
        "network": network.name,
        "config": network.config,
        "shape": list(network.shape),
        "parameters": count.parameters,
        "macs": count.total_macs,
        "quoted": quoted(network),
    }


def quoted(network: Network) -> dict[str, float]:
    """Look up what the toolbox's metafile says of a network's config.

    Args:
        network (Network): The network.

    Returns:
        dict[str, float]: The metafile's results under its own names ('Top 1 Accuracy', 'box AP', ...), and its
            'Parameters' and 'FLOPs', where it has them. Where several models share a config, those of the first, which
            is the toolbox's own training if there is one. Empty for sMLPNet, which no toolbox knows.
    """
    if "::" not in network.config or network.options:
        return {}
    for model in _metafile(_path(network.config).parent):
        if model["Config"] == f"configs/{network.config.partition('::')[2]}":
            results = model["Results"] if isinstance(model["Results"], list) else [model["Results"]]
            found = {name: model["Metadata"][name] for name in ("Parameters", "FLOPs") if name in model["Metadata"]}
            for result in results:
                found.update(result["Metrics"])
            return found
    return {}


def _path(config: str) -> Path:
    """The file of a config. mmengine's own look-up knows no 'mmseg' in the onedl set."""
    toolbox, separator, path = config.rpartition("::")
    if not separator:
        return ROOT / path
    spec = importlib.util.find_spec(toolbox)
    if spec is None:
        raise FileNotFoundError(f"{config}: {toolbox} is not installed; `make setup` installs it")
    return Path(spec.submodule_search_locations[0]) / ".mim" / "configs" / path


@cache
def _metafile(folder: Path) -> list[dict]:
    files = sorted(folder.glob("metafile.y*ml"))
    return yaml.safe_load(files[0].read_text("utf-8"))["Models"] if files else []


def _table(title: str, rows: list[dict]) -> Table:
    """Measured columns, then what is quoted."""
    table = Table(title=title)
    for heading in ("network", "M params", "GMAC", "quoted M", "quoted G", "quoted results"):
        table.add_column(heading, justify="left" if heading in ("network", "quoted results") else "right")
    for row in rows:
        results = dict(row["quoted"])
        parameters, flops = results.pop("Parameters", None), results.pop("FLOPs", None)
        table.add_row(
            row["network"],
            f"{row['parameters'] / 1e6:.1f}",
            f"{row['macs'] / 1e9:.2f}",
            f"{parameters / 1e6:.1f}" if parameters else "",
            f"{flops / 1e9:.2f}" if flops else "",
            ", ".join(f"{name} {value:g}" for name, value in results.items()),
        )
    return table


def main() -> None:
    """Parse the command line, count, print a table for each task."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    networks = {network.name: network for table in TABLES.values() for network in table}
    parser.add_argument("--only", nargs="+", default=list(networks), metavar="NAME", help="networks to count, by name")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write the rows there, too")
    args = parser.parse_args()
    unknown = [name for name in args.only if name not in networks]
    if unknown:
        parser.error(f"unknown network {unknown[0]!r}, choose from: {'; '.join(networks)}")
    MMLogger.get_instance("mmengine").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module=r"mmseg\.")  # about arguments in its own configs
    try:
        names = track(args.only, "Counting", console=Console(stderr=True))
        rows = {name: measure(networks[name]) for name in names}
        if args.out:
            with atomic_file(args.out) as new:
                new.write_text(json.dumps(list(rows.values()), indent=1) + "\n")
    except OSError as error:
        sys.exit(f"costs: {error}")
    console = Console(width=None if sys.stdout.isatty() else 120)
    for title, table in TABLES.items():
        found = [rows[network.name] for network in table if network.name in rows]
        if found:
            console.print(_table(title, found))
    if args.out:
        console.print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
