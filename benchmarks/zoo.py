"""Counts parameters and multiply-accumulates of every config of the zoo, at its test size.

Detectors at 800 x 1280 (their test images have 800 rows or columns), segmentors at the size of their training crops (on
Cityscapes that is one of the 9 windows of a test image), classifiers at their own size. 10 minutes on a core, of which
the large detectors take most. --write puts the figures into configs/*/metafile.yml and, from there, the tables into the
READMEs.

python benchmarks/zoo.py
python benchmarks/zoo.py --only mask-rcnn_smlpnet-tiny_fpn_1x_coco
python benchmarks/zoo.py --write
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from pathlib import Path

import yaml
from mmengine.config import Config
from mmengine.logging import MMLogger
from rich.console import Console
from rich.progress import track

from mmsmlp.files import atomic_file
from mmsmlp.flops import count_config

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("classification", "detection", "segmentation")
DETECTION_SIZE = (800, 1280)
MARKS = "<!-- zoo: written by benchmarks/zoo.py --write -->", "<!-- end of zoo -->"
HEADINGS = {
    "README.md": ("config", "M parameters", "GMAC", "at", "accuracy", "not trained"),
    "README.zh-CN.md": ("配置", "参数量(M)", "GMAC", "输入尺寸", "精度", "未训练"),
}


def configs() -> list[str]:
    """The zoo's configs, paths in the repository, ordered by folder, method and size of the backbone."""
    sizes = ["tiny", "small", "base"]

    def place(path: Path) -> tuple:
        size = next(s for s in sizes if s in path.stem)
        return path.stem.replace(size, ""), sizes.index(size)

    folders = (sorted((ROOT / "configs" / folder).glob("*.py"), key=place) for folder in FOLDERS)
    return [str(path.relative_to(ROOT)) for paths in folders for path in paths]


def shape(config: str, cfg: Config) -> tuple[int, int]:
    """Height and width in pixels that a config's cost is counted at."""
    if "/detection/" in config:
        return DETECTION_SIZE
    if "/segmentation/" in config:
        return tuple(cfg.model.data_preprocessor.size)
    return (384, 384) if "384px" in config else (224, 224)


def row(config: str) -> dict:
    """Count a config.

    Args:
        config (str): Its path in the repository.

    Returns:
        dict: ``config``, ``shape`` (height, width), ``parameters`` and ``macs``.
    """
    cfg = Config.fromfile(ROOT / config)
    size = shape(config, cfg)
    count = count_config(cfg, size)
    return {"config": config, "shape": size, "parameters": count.parameters, "macs": count.total_macs}


def listed() -> list[dict]:
    """The rows as the metafiles have them."""
    rows = {}
    for folder in FOLDERS:
        for model in yaml.safe_load((ROOT / "configs" / folder / "metafile.yml").read_text("utf-8"))["Models"]:
            data = model["Metadata"]
            size = tuple(int(side) for side in data["Test Size"].split(" x "))
            found = {"shape": size, "parameters": data["Parameters"], "macs": data["FLOPs"]}
            rows[model["Config"]] = {"config": model["Config"], **found}
    return [rows[config] for config in configs() if config in rows]


def metafile(folder: str, rows: list[dict]) -> str:
    """A folder's metafile.yml, which `mim search` reads. FLOPs are multiply-accumulates, as in mmpretrain's."""
    collection = {
        "Name": "sMLPNet",
        "Metadata": {"Architecture": ["Depth-wise Convolution", "Sparse MLP"]},
        "Paper": {
            "Title": "Sparse MLP for Image Recognition: Is Self-Attention Really Necessary?",
            "URL": "https://arxiv.org/abs/2109.05422",
        },
        "README": "configs/classification/README.md",
    }
    models = []
    for found in rows:
        cfg = Config.fromfile(ROOT / found["config"])
        loop = cfg.train_cfg
        schedule = {"Epochs": loop.max_epochs} if "max_epochs" in loop else {"Iterations": loop.max_iters}
        data = {"classification": "ImageNet-1k", "detection": "COCO"}.get(folder)
        models.append(
            {
                "Name": Path(found["config"]).stem,
                "In Collection": "sMLPNet",
                "Config": found["config"],
                "Metadata": {
                    "Training Data": data or ("Cityscapes" if "cityscapes" in found["config"] else "ADE20K"),
                    "Training Resources": "8 GPUs (not trained)",
                    "Batch Size": cfg.auto_scale_lr.base_batch_size,
                    **schedule,
                    "Test Size": " x ".join(map(str, found["shape"])),
                    "Parameters": found["parameters"],
                    "FLOPs": found["macs"],
                },
                "README": f"configs/{folder}/README.md",
            }
        )
    content = {"Collections": [collection]} if folder == "classification" else {}
    header = "# Written by `python benchmarks/zoo.py --write`. None of the models is trained: no results, no weights.\n"
    return header + yaml.safe_dump(content | {"Models": models}, sort_keys=False, allow_unicode=True, width=120)


def markdown(rows: list[dict], document: str) -> str:
    """The table of a document, whose links start from the document's folder."""
    *headings, untrained = HEADINGS[Path(document).name]
    lines = ["| " + " | ".join(headings) + " |", "|---|" + "---|" * (len(headings) - 1)]
    for found in rows:
        path = Path(found["config"])
        link = path.name if document.startswith("configs/") else found["config"]
        cells = f"{found['parameters'] / 1e6:.1f}", f"{found['macs'] / 1e9:.1f}", " x ".join(map(str, found["shape"]))
        lines.append(f"| [{path.stem}]({link}) | " + " | ".join((*cells, untrained)) + " |")
    return "\n".join(lines)


def documents(rows: list[dict]) -> dict[str, str]:
    """The documents with tables, paths in the repository, and what they should hold."""
    begin, end = MARKS
    texts = {}
    for document in ("README.md", "README.zh-CN.md", *(f"configs/{folder}/README.md" for folder in FOLDERS)):
        folder = str(Path(document).parent)
        table = markdown([r for r in rows if folder in (".", str(Path(r["config"]).parent))], document)
        before, _, rest = (ROOT / document).read_text("utf-8").partition(begin)
        texts[document] = f"{before}{begin}\n{table}\n{end}{rest.partition(end)[2]}"
    return texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = {Path(config).stem: config for config in configs()}
    parser.add_argument("--only", nargs="+", choices=names, default=list(names), metavar="CONFIG", help="by file name")
    parser.add_argument("--write", action="store_true", help="update configs/*/metafile.yml and the READMEs")
    args = parser.parse_args()
    MMLogger.get_instance("mmengine").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module=r"mmseg\.")  # about arguments in its own heads
    counted = {}
    for name in track(args.only, "Counting", console=Console(stderr=True)):
        counted[names[name]] = row(names[name])
    print(markdown(list(counted.values()), "README.md"))
    if not args.write:
        return
    try:
        known = {r["config"]: r for r in listed()}
    except FileNotFoundError:  # the first time
        known = {}
    known |= counted
    if missing := [config for config in names.values() if config not in known]:
        sys.exit(f"zoo: nothing written, {missing[0]} was never counted: leave out --only")
    rows = [known[config] for config in names.values()]
    for folder in FOLDERS:
        own = [r for r in rows if f"/{folder}/" in r["config"]]
        with atomic_file(ROOT / "configs" / folder / "metafile.yml") as new:
            new.write_text(metafile(folder, own), "utf-8")
    for document, text in documents(rows).items():
        with atomic_file(ROOT / document) as new:
            new.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
