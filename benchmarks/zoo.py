"""Figures of every model of the zoo: parameters and multiply-accumulates, counted; speed and training memory, measured.

All at the test size: detectors at 800 x 1280 (their test images have 800 rows or columns), segmentors at the size of
their training crops (on Cityscapes one of the 9 windows of a test image), classifiers at their own size. Configs with
the same model, as of 1x and 3x, are counted and measured once. --measure adds speed and memory, each model in a fresh
process (benchmarks/zoo_measure.py says what exactly): on an idle machine only. --write puts all figures that are known
into configs/*/metafile.yml and, from there, the tables into the READMEs.

What is known is kept in --out as it comes: the command can be stopped and called again. About 5 minutes to count and 12
to measure, on 2 cores.

python benchmarks/zoo.py --write
python benchmarks/zoo.py --measure --write
python benchmarks/zoo.py --only mask-rcnn_smlpnet-tiny_fpn_1x_coco
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import re
import subprocess
import sys
import warnings
from functools import cache
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
# The README's own rows; the others are in the README of their folder.
SHORT = re.compile(r"mask-rcnn_smlpnet-\w+_fpn_1x_coco|upernet_smlpnet-\w+_8xb2-160k_ade20k-512x512")
# Headings of a table, and its words for what is not known.
WORDS = {
    "README.md": (
        ("config", "M parameters", "GMAC", "at", "s an image", "training, GB (images)", "accuracy"),
        ("not measured", "not trained"),
    ),
    "README.zh-CN.md": (
        ("配置", "参数量(M)", "GMAC", "输入尺寸", "每幅图像的秒数", "训练内存 GB(图像数)", "精度"),
        ("未测量", "未训练"),
    ),
}
COUNTED, MEASURED = ("parameters", "macs"), ("seconds", "memory", "images", "hardware")


def configs() -> list[str]:
    """The zoo's configs, paths in the repository, ordered by folder, method and size of the backbone."""
    sizes = ["tiny", "small", "base"]

    def place(path: Path) -> tuple:
        size = next(s for s in sizes if s in path.stem)
        return path.stem.replace(size, ""), sizes.index(size)

    folders = (sorted((ROOT / "configs" / folder).glob("*.py"), key=place) for folder in FOLDERS)
    return [str(path.relative_to(ROOT)) for paths in folders for path in paths]


@cache
def load(config: str) -> Config:
    """A config, to be read only, by its path in the repository."""
    return Config.fromfile(ROOT / config)


def shape(config: str, cfg: Config) -> tuple[int, int]:
    """Height and width in pixels that a config's cost is counted at."""
    if "/detection/" in config:
        return DETECTION_SIZE
    if "/segmentation/" in config:
        return tuple(cfg.model.data_preprocessor.size)
    return (384, 384) if "384px" in config else (224, 224)


def key(config: str) -> str:
    """What configs with the same figures share: the model, but for its weights and drop path, and the size."""
    cfg = load(config)
    model = cfg.model.to_dict()
    for name in ("init_cfg", "drop_path_rate"):
        model["backbone"].pop(name, None)
    return hashlib.sha256(json.dumps([model, shape(config, cfg)], sort_keys=True).encode()).hexdigest()[:16]


def count(config: str) -> dict:
    """Count a config: its ``parameters`` and ``macs``."""
    cfg = Config.fromfile(ROOT / config)  # a copy of its own: some heads take entries out of what they are built from
    counted = count_config(cfg, shape(config, cfg))
    return {"parameters": counted.parameters, "macs": counted.total_macs}


def measure(config: str) -> dict:
    """Measure a config in a fresh process: ``seconds``, ``memory`` in bytes, ``images`` and ``hardware``."""
    size = shape(config, load(config))
    command = [sys.executable, str(ROOT / "benchmarks/zoo_measure.py"), config, *map(str, size)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"a process ended with {done.returncode}: out of memory?"]
        sys.exit(f"zoo: {config}: {lines[-1]}. What was measured before is kept")
    return json.loads(done.stdout.splitlines()[-1])


def row(config: str, figures: dict) -> dict:
    """``config``, ``shape`` (height, width), ``parameters``, ``macs``, and what is measured, None if it is not."""
    known = {name: figures.get(name) for name in (*COUNTED, *MEASURED)}
    return {"config": config, "shape": shape(config, load(config)), **known}


def listed(root: Path = ROOT) -> list[dict]:
    """The rows as the metafiles below a folder have them."""
    rows = {}
    for folder in FOLDERS:
        for model in yaml.safe_load((root / "configs" / folder / "metafile.yml").read_text("utf-8"))["Models"]:
            data = model["Metadata"]
            figures = {"parameters": data["Parameters"], "macs": data["FLOPs"]}
            if "Training Memory (GB)" in data:
                (time,) = data["inference time (ms/im)"]
                memory = round(data["Training Memory (GB)"] * 1e9)
                figures |= {"seconds": time["value"] / 1e3, "hardware": time["hardware"], "memory": memory}
                figures["images"] = data["Training Memory Images"]
            rows[model["Config"]] = row(model["Config"], figures)
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
        stem = Path(found["config"]).stem
        data = {"classification": "ImageNet-1k", "detection": "COCO"}.get(folder)
        models.append(
            {
                "Name": stem,
                "In Collection": "sMLPNet",
                "Config": found["config"],
                "Metadata": {
                    "Training Data": data or ("Cityscapes" if "cityscapes" in stem else "ADE20K"),
                    **_metadata(found),
                },
                "README": f"configs/{folder}/README.md",
            }
        )
    content = {"Collections": [collection]} if folder == "classification" else {}
    header = "# Written by `python benchmarks/zoo.py --write`. None of the models is trained: no results, no weights.\n"
    return header + yaml.safe_dump(content | {"Models": models}, sort_keys=False, allow_unicode=True, width=120)


def _metadata(found: dict) -> dict:
    """What a metafile says of a row, under OpenMMLab's names."""
    cfg = load(found["config"])
    loop, size = cfg.train_cfg, " x ".join(map(str, found["shape"]))
    metadata = {
        "Training Resources": "8 GPUs (not trained)",
        "Batch Size": cfg.auto_scale_lr.base_batch_size,
        **({"Epochs": loop.max_epochs} if "max_epochs" in loop else {"Iterations": loop.max_iters}),
        "Test Size": size,
        "Parameters": found["parameters"],
        "FLOPs": found["macs"],
    }
    if found["seconds"] is not None:
        conditions = {"hardware": found["hardware"], "backend": "PyTorch", "batch size": 1, "mode": "FP32"}
        time = {"value": round(1e3 * found["seconds"]), **conditions, "resolution": size}
        metadata |= {"inference time (ms/im)": [time]}
        metadata |= {"Training Memory (GB)": round(found["memory"] / 1e9, 1), "Training Memory Images": found["images"]}
    return metadata


def markdown(rows: list[dict], document: str) -> str:
    """The table of a document, whose links start from the document's folder."""
    headings, (unmeasured, untrained) = WORDS[Path(document).name]
    lines = ["| " + " | ".join(headings) + " |", "|---|" + "---|" * (len(headings) - 1)]
    for found in rows:
        path = Path(found["config"])
        link = path.name if document.startswith("configs/") else found["config"]
        measured = (unmeasured, unmeasured)
        if found["seconds"] is not None:
            measured = f"{found['seconds']:.2f}", f"{found['memory'] / 1e9:.1f} ({found['images']})"
        counted = f"{found['parameters'] / 1e6:.1f}", f"{found['macs'] / 1e9:.1f}", " x ".join(map(str, found["shape"]))
        lines.append(f"| [{path.stem}]({link}) | " + " | ".join((*counted, *measured, untrained)) + " |")
    return "\n".join(lines)


def documents(rows: list[dict]) -> dict[str, str]:
    """The documents with tables, paths in the repository, and what they should hold."""
    begin, end = MARKS
    texts = {}
    for document in ("README.md", "README.zh-CN.md", *(f"configs/{folder}/README.md" for folder in FOLDERS)):
        folder = str(Path(document).parent)
        if folder == ".":
            own = [r for r in rows if SHORT.fullmatch(Path(r["config"]).stem)]
        else:
            own = [r for r in rows if str(Path(r["config"]).parent) == folder]
        before, _, rest = (ROOT / document).read_text("utf-8").partition(begin)
        texts[document] = f"{before}{begin}\n{markdown(own, document)}\n{end}{rest.partition(end)[2]}"
    return texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = {Path(config).stem: config for config in configs()}
    parser.add_argument("--only", nargs="+", choices=names, default=list(names), metavar="CONFIG", help="by file name")
    parser.add_argument("--measure", action="store_true", help="speed and training memory, too")
    parser.add_argument("--write", action="store_true", help="update configs/*/metafile.yml and the READMEs")
    parser.add_argument("--out", type=Path, default=ROOT / "work_dirs/zoo", help="folder of what is known")
    args = parser.parse_args()
    MMLogger.get_instance("mmengine").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module=r"mm(det|seg)\.")  # about their own heads
    store = args.out / "figures.json"
    figures = json.loads(store.read_text()) if store.exists() else {}
    stages = [("Counting", COUNTED, count)] + ([("Measuring", MEASURED, measure)] if args.measure else [])
    for title, wanted, find in stages:
        for name in track(args.only, title, console=Console(stderr=True)):
            known = figures.setdefault(key(names[name]), {})
            if not all(figure in known for figure in wanted):
                known.update(find(names[name]))
                with atomic_file(store) as new:
                    new.write_text(json.dumps(figures, indent=1) + "\n")
    print(markdown([row(names[name], figures[key(names[name])]) for name in args.only], "README.md"))
    if args.write:
        write({config: figures.get(key(config), {}) for config in names.values()})


def write(figures: dict[str, dict]) -> None:
    """Update metafiles and READMEs by ``figures`` (config -> its figures); what is not there stays as it was."""
    known = {r["config"]: r for r in listed()} if (ROOT / "configs/detection/metafile.yml").exists() else {}
    rows = []
    for config, found in figures.items():
        if config not in known and not found:
            sys.exit(f"zoo: nothing written, {config} was never counted: leave out --only")
        old = {name: known[config][name] for name in (*COUNTED, *MEASURED)} if config in known else {}
        rows.append(row(config, old | found))
    for folder in FOLDERS:
        own = [r for r in rows if f"/{folder}/" in r["config"]]
        with atomic_file(ROOT / "configs" / folder / "metafile.yml") as new:
            new.write_text(metafile(folder, own), "utf-8")
    for document, text in documents(rows).items():
        with atomic_file(ROOT / document) as new:
            new.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
