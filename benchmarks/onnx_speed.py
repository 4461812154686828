"""Files in onnxruntime beside PyTorch: differences at many sizes, accuracy of a trained UperNet, seconds.

    python benchmarks/onnx_speed.py prepare work_dirs/demo-segmentation   # files, mIoU
    python benchmarks/onnx_speed.py compare work_dirs/demo-segmentation   # differences at many sizes
    OMP_NUM_THREADS=2 python benchmarks/onnx_speed.py time                # needs an idle machine; 3 minutes

All write work_dirs/onnx/results.json and the tables between the marks in docs/deploy.md.
"""

import argparse
import copy
import json
import os
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from speed.onnx_file import open_session
from torch.nn.modules.batchnorm import _BatchNorm

import mmsmlp
from mmsmlp import SMLPNet
from mmsmlp.files import atomic_file
from mmsmlp.onnx_export.parts import Part, backbone_part, read_part
from mmsmlp.onnx_export.quantize import training_images
from mmsmlp.onnx_export.write import PRECISIONS, compare, export_onnx
from mmsmlp.running import find_checkpoint

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "work_dirs/onnx"
RESULTS = FOLDER / "results.json"
PAGE = ROOT / "docs/deploy.md"
UPERNET = ROOT / "configs/demo/upernet_smlpnet-mini_coins.py"
# Name -> the model, (N, H, W) of its images.
ROWS = {
    "sMLPNet-T, 8 x 224 x 224": ("tiny", (8, 224, 224)),
    "sMLPNet-T, 1 x 800 x 1344": ("tiny", (1, 800, 1344)),
    "UperNet of the demo, 1 x 160 x 320": ("upernet", (1, 160, 320)),
}
# Heading -> what is compared at SIZES: one of the models above, or the config of another.
COMPARED = {
    "sMLPNet-T": "tiny",
    "UperNet": "upernet",
    "classifier": "demo/smlpnet-mini_photos.py",
    "Mask R-CNN maps": "demo/mask-rcnn_smlpnet-mini_coins.py",
    "Semantic FPN": "segmentation/fpn_smlpnet-tiny_8xb4-40k_ade20k-512x512.py",
}
SIZES = (
    *((1, 224, 224), (3, 224, 224), (3, 64, 96), (1, 32, 32), (1, 5, 9), (1, 31, 47), (1, 160, 160), (1, 225, 228)),
    *((1, 97, 640), (2, 257, 255), (1, 333, 200), (1, 384, 416), (1, 511, 130), (1, 480, 640)),
)


def tiny() -> Part:
    """An sMLPNet-T with new weights, and running statistics unlike those of new norms."""
    torch.manual_seed(0)
    return with_statistics(backbone_part(SMLPNet("tiny")))


def with_statistics(part: Part) -> Part:
    """The part with running statistics as after training: those of new norms would hide a norm that was left out."""
    for norm in part.module.modules():
        if isinstance(norm, _BatchNorm):
            norm.running_mean.normal_(0, 0.3)
            norm.running_var.uniform_(0.5, 2)
    return part


def file_of(model: str, precision: str) -> Path:
    """Where a model's file lies."""
    return FOLDER / f"{model}-{precision}.onnx"


def prepare(checkpoint: str) -> None:
    """Write all files, and evaluate those of the UperNet on the coins' validation image."""
    noise = [torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    models = {"tiny": (tiny(), noise), "upernet": (read_part(UPERNET, checkpoint), training_images(UPERNET))}
    miou, files = {"PyTorch": evaluate(checkpoint, None)}, {}
    for model, (part, images) in reversed(models.items()):
        for precision in PRECISIONS:
            path = file_of(model, precision)
            errors = export_onnx(part, path, precision, images)
            files[path.stem] = {"bytes": path.stat().st_size, "error": max(errors.values())}
            print(path.stem, files[path.stem], flush=True)
            if model == "upernet":
                miou[precision] = evaluate(checkpoint, path)
    write({"files": files, "miou": miou})


def compare_sizes(checkpoint: str) -> None:
    """Compare at SIZES: the files that are there, and those of other models, written for it."""
    models, sizes = {"tiny": tiny(), "upernet": read_part(UPERNET, checkpoint)}, {}
    for name, of in COMPARED.items():
        if of in models:
            part, path = models[of], file_of(of, "fp32")
        else:
            part, path = with_statistics(read_part(ROOT / "configs" / of)), FOLDER / f"{Path(of).stem}.onnx"
            export_onnx(part, path)
        sizes[name] = {" x ".join(map(str, size)): error for size, error in compare(part, path, SIZES).items()}
        write({"sizes": sizes})


def evaluate(checkpoint: str, path: Path | None) -> dict[str, float]:
    """What mmseg's own test says of the coins' validation image, in percent; logits of a file, or of PyTorch."""
    cfg = copy.deepcopy(Config.fromfile(UPERNET))
    cfg.work_dir, cfg.load_from, cfg.log_level = str(FOLDER / "logs"), find_checkpoint(checkpoint), "ERROR"
    runner = Runner.from_cfg(cfg)
    if path is not None:
        session = open_session(path, torch.get_num_threads())

        def encode_decode(inputs: torch.Tensor, _) -> torch.Tensor:
            return torch.from_numpy(session.run(None, {"images": inputs.numpy()})[0])

        runner.model.encode_decode = encode_decode
    metrics = runner.test()
    return {key: float(metrics[key]) for key in ("mIoU", "aAcc")}


def measure(rounds: int) -> dict:
    """Seconds of each row, PyTorch and every file in turns."""
    parts = {"tiny": tiny().module, "upernet": read_part(UPERNET).module}
    rows = {}
    for name, (model, (count, height, width)) in ROWS.items():
        images = torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(0))
        runs: dict[str, Callable[[], object]] = {"PyTorch": lambda m=parts[model], x=images: m(x)}
        for precision in PRECISIONS:
            session = open_session(file_of(model, precision), torch.get_num_threads())
            feed = {"images": images.numpy()}
            runs[precision] = lambda s=session, f=feed: s.run(None, f)
        seconds = {key: [] for key in runs}
        with torch.inference_mode():
            for i in range(rounds + 1):
                for key, run in runs.items():
                    start = time.perf_counter()
                    run()
                    if i:  # the first one warms up
                        seconds[key].append(time.perf_counter() - start)
        rows[name] = {key: statistics.median(values) for key, values in seconds.items()}
        print(name, {key: f"{value:.3f}" for key, value in rows[name].items()}, flush=True)
    return {"threads": torch.get_num_threads(), "rounds": rounds, "date": time.strftime("%Y-%m-%d"), "rows": rows}


def tables(results: dict) -> dict[str, str]:
    """The page's tables, by the names of their marks."""
    made = {}
    if "sizes" in results:
        given = results["sizes"]
        lines = [f"| N x H x W | {' | '.join(given)} |", "|---" * (1 + len(given)) + "|"]
        for size in next(iter(given.values())):
            lines.append(f"| {size} | {' | '.join(f'{errors[size]:.1e}' for errors in given.values())} |")
        made["sizes"] = "\n".join(lines)
    if "miou" in results:
        lines = ["| | mIoU | pixel accuracy | file | largest difference |", "|---|---|---|---|---|"]
        for key, row in results["miou"].items():
            file = results["files"].get(f"upernet-{key}")
            size, error = (f"{file['bytes'] / 1e6:.2f} MB", f"{file['error']:.1e}") if file else ("", "")
            name = key if file is None else f"onnxruntime, {key}"
            lines.append(f"| {name} | {row['mIoU']:.2f} | {row['aAcc']:.2f} | {size} | {error} |")
        made["accuracy"] = "\n".join(lines)
    if "times" in results:
        lines = ["| | PyTorch | " + " | ".join(f"onnxruntime, {p}" for p in PRECISIONS) + " |", "|---" * 5 + "|"]
        for name, row in results["times"]["rows"].items():
            eager = row["PyTorch"]
            cells = [f"{1e3 * row[p]:.0f} ms ({eager / row[p]:.2f}x)" for p in PRECISIONS]
            lines.append(f"| {name} | {1e3 * eager:.0f} ms | {' | '.join(cells)} |")
        made["times"] = "\n".join(lines)
    return made


def write(results: dict) -> None:
    """Put results beside those that are there, and all tables into the page."""
    import onnxruntime

    versions = {"mmsmlp": mmsmlp.__version__, "torch": torch.__version__, "onnxruntime": onnxruntime.__version__}
    old = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {}
    results = {**old, **results, "versions": {**versions, "numpy": np.__version__}, "cpus": os.cpu_count()}
    with atomic_file(RESULTS) as new:
        new.write_text(json.dumps(results, indent=1), "utf-8")
    page = PAGE.read_text("utf-8")
    for name, table in tables(results).items():
        begin, end = f"<!-- onnx: {name}, by benchmarks/onnx_speed.py -->", "<!-- end -->"
        between = re.compile(f"({re.escape(begin)}\n).*?({end})", re.S)
        page, found = between.subn(lambda match, t=table: f"{match[1]}{t}\n{match[2]}", page)
        if found != 1:
            raise ValueError(f"{PAGE} has no line {begin!r} for a table")
    with atomic_file(PAGE) as new:
        new.write_text(page, "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for command in ("prepare", "compare"):
        commands.add_parser(command).add_argument("checkpoint", help="of the UperNet, or its work directory")
    commands.add_parser("time").add_argument("--rounds", type=int, default=9, help="default: %(default)s")
    args = parser.parse_args()
    if args.command == "prepare":
        prepare(args.checkpoint)
    elif args.command == "compare":
        compare_sizes(args.checkpoint)
    else:
        write({"times": measure(args.rounds)})


if __name__ == "__main__":
    main()
