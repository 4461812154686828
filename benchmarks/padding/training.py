"""The trainings that are compared: the coins demos on batches of unequal images, each in a process of its own."""

import contextlib
import io
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope

from padding import INTERPOLATION

ROOT = Path(__file__).parents[2]
MASK_RCNN = ROOT / "configs/demo/mask-rcnn_smlpnet-mini_coins.py"
UPERNET = ROOT / "configs/demo/upernet_smlpnet-mini_coins.py"
# Heights and widths of the crops in pixels, each drawn for itself: the demo's crops are 160 x 160.
CROPS = (80, 240)
_TRAIN = "import sys; from mmengine.config import Config; from mmengine.runner import Runner; \
Runner.from_cfg(Config.fromfile(sys.argv[1])).train()"

DETECTORS = ("Mask R-CNN", "Mask R-CNN, valid areas", "Mask R-CNN, valid areas, neck", "Mask R-CNN, ResNet-50")
SEGMENTORS = ("UperNet", "UperNet, valid areas", "UperNet, ResNet-50")


def config(name: str, seed: int, steps: int) -> Config:
    """The config of one of ``DETECTORS`` or ``SEGMENTORS``."""
    detector = name.startswith("Mask R-CNN")
    cfg = Config.fromfile(MASK_RCNN if detector else UPERNET)
    cfg.model.backbone.interpolation = INTERPOLATION
    if "valid areas" in name:
        cfg.model.data_preprocessor.type = f"mmsmlp.{cfg.model.data_preprocessor.type}"
    if "neck" in name:
        cfg.model.neck = {"type": "mmsmlp.ValidAreaNeck", "neck": cfg.model.neck}
    if "ResNet-50" in name:
        use_resnet(cfg)
    pipeline = cfg.train_dataloader.dataset.pipeline
    crop = next(step for step in pipeline if step.type == "RandomCrop")
    if detector:
        crop.update(crop_size=CROPS, crop_type="absolute_range")
    for part in ("val", "test"):
        for key in ("dataloader", "evaluator", "cfg"):
            cfg[f"{part}_{key}"] = None
    cfg.train_dataloader.dataset.data_root = str(ROOT / "data/coins") + "/"
    cfg.train_cfg = {"type": "IterBasedTrainLoop", "max_iters": steps}
    cfg.param_scheduler[1].end = steps
    cfg.default_hooks.checkpoint.update(interval=steps, save_optimizer=False, save_param_scheduler=False)
    cfg.default_hooks.pop("resume")  # docs/padding.md's figures were found with mmengine's own random numbers
    cfg.randomness = {"seed": seed}
    return cfg


def image_share(cfg: Config, batches: int = 60) -> float:
    """Share of image in the canvases that a detector is trained on, padded to multiples of 32."""
    init_default_scope("mmdet")
    np.random.seed(0)
    loader = cfg.train_dataloader
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools' lines
        dataset = DATASETS.build(loader.dataset)
    image, canvas = 0, 0
    for _ in range(batches):
        sizes = np.array([dataset[0]["inputs"].shape[1:] for _ in range(loader.batch_size)])
        image += sizes.prod(1).sum()
        canvas += len(sizes) * (-(-sizes.max(0) // 32) * 32).prod()
    return float(image / canvas)


def use_resnet(cfg: Config) -> None:
    """Put a ResNet-50 in the backbone's place, trained from scratch as that is."""
    norm = {"type": "BN", "requires_grad": True}
    cfg.model.backbone = {
        "type": "ResNet" if "neck" in cfg.model else "mmseg.ResNet",
        "depth": 50,
        "num_stages": 4,
        "out_indices": (0, 1, 2, 3),
        "frozen_stages": -1,
        "norm_cfg": norm,
        "norm_eval": False,
        "style": "pytorch",
    }
    reader = cfg.model.neck if "neck" in cfg.model else cfg.model.decode_head
    reader.in_channels = [256, 512, 1024, 2048]


def train(name: str, seed: int, steps: int, out: Path) -> Path:
    """The checkpoint of a training: of this one, or of the finished one.

    Args:
        name (str): One of ``DETECTORS`` or ``SEGMENTORS``.
        seed (int): Of initialisation, crops and order.
        steps (int): Training steps.
        out (Path): Folder of all trainings.

    Returns:
        Path: The checkpoint; beside it lie ``config.py`` and the log.
    """
    folder = (out / name.replace(", ", "_").replace(" ", "-") / f"seed{seed}_{steps}").absolute()
    final = folder / "final.pth"
    if not final.exists():
        cfg = config(name, seed, steps)
        cfg.work_dir = str(folder)
        folder.mkdir(parents=True, exist_ok=True)
        cfg.dump(folder / "config.py")
        command = [sys.executable, "-c", _TRAIN, str(folder / "config.py")]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        start = time.perf_counter()
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            last = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
            sys.exit(f"padding: this training failed:\n{shlex.join(command)}\n{last}")
        (folder / "seconds.txt").write_text(f"{time.perf_counter() - start:.0f}\n")
        # Last, so that what is there is complete.
        os.replace(folder / f"iter_{steps}.pth", final)
    return final
