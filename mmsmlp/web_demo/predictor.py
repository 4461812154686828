"""One model on one photograph at any size: what a person sees who moves a slider."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, VISUALIZERS, init_default_scope
from mmengine.runner import load_checkpoint
from PIL import Image

from mmsmlp.running import find_checkpoint

SIZES = range(64, 1025, 32)  # of the shorter side, in pixels
_VISUALIZERS = {"mmdet": "DetLocalVisualizer", "mmseg": "SegLocalVisualizer", "mmpretrain": "UniversalVisualizer"}
_DRAWN = (480, 1024)  # the shorter side of a drawn picture lies between these, so that text can be read
# Transforms that read, or set a size: the photograph is read, and the size is set, before the pipeline.
_LEFT_OUT = ("Load", "Resize", "CenterCrop", "TenCrop", "RandomFlip")


@dataclass(frozen=True)
class Prediction:
    """What a model finds in a photograph at one size.

    Attributes:
        picture (np.ndarray): (H, W, 3) uint8, RGB: the photograph with what was found, equally large for all sizes.
        size (int): Shorter side that the network saw, in pixels.
        seen (tuple[int, int]): Width and height that the network saw.
        found (str): What was found, in words: objects, shares of the pixels, or classes.
        score (float | None): Mean score of a detector's objects, or score of a classifier's first class.
        seconds (float): Time of the network and what belongs to it, without drawing.
    """

    picture: np.ndarray
    size: int
    seen: tuple[int, int]
    found: str
    score: float | None
    seconds: float

    def __str__(self) -> str:
        score = "" if self.score is None else f", score {self.score:.2f}"
        return f"{self.size} ({self.seen[0]} x {self.seen[1]}): {self.found}{score}"


class Predictor:
    """A detector, segmentor or classifier for one photograph at a time.

    Args:
        config (str | Path): Its config.
        checkpoint (str | Path): A checkpoint, or a work directory whose latest one is taken.
        device (str, optional): Such as 'cpu' or 'cuda:0'. Defaults to a GPU where there is one.
        score (float): Detections below it are left out. Defaults to 0.3.

    Raises:
        FileNotFoundError: If the config or the checkpoint does not exist.
        ValueError: If the toolbox is unknown, the checkpoint is of another model, or ``score`` is not in [0, 1].
    """

    def __init__(self, config: str | Path, checkpoint: str | Path, device: str | None = None, score: float = 0.3):
        if not Path(config).is_file():
            raise FileNotFoundError(f"the config {config} does not exist")
        if not 0 <= score <= 1:
            raise ValueError(f"the score must be from 0 to 1, got {score}")
        cfg = Config.fromfile(config)
        self.scope, self.score = cfg.get("default_scope"), score
        if self.scope not in _VISUALIZERS:
            raise ValueError(f"{config}: default_scope is {self.scope!r}, and not mmdet, mmseg or mmpretrain")
        path = find_checkpoint(checkpoint)
        init_default_scope(self.scope)
        self.model = revert_sync_batchnorm(MODELS.build(cfg.model))
        try:  # strict: a picture made by a model half of whose weights are random would be a riddle
            content = load_checkpoint(self.model, path, map_location="cpu", strict=True)
        except RuntimeError as error:
            raise ValueError(f"{path} does not fit {config}: {' '.join(str(error).split())[:300]}") from error
        self.model.to(device or ("cuda:0" if torch.cuda.is_available() else "cpu")).eval()
        dataset = cfg.test_dataloader.dataset
        while "dataset" in dataset:  # wrapped sets
            dataset = dataset.dataset
        self.meta = _meta(content, dict(dataset.get("metainfo") or {}))
        self.pipeline = Compose([step for step in dataset.pipeline if not _left_out(step)])
        self.name = Path(config).stem
        self.native = _native(cfg)
        self._visualizer = VISUALIZERS.build({"type": _VISUALIZERS[self.scope], "name": f"predictor_{id(self)}"})
        self._visualizer.dataset_meta = self.meta
        self._lock = threading.Lock()  # neither the toolboxes' scopes nor matplotlib's figure is for two threads

    def predict(self, photograph: Image.Image, size: int) -> Prediction:
        """Find and draw.

        Args:
            photograph (Image.Image): RGB.
            size (int): Shorter side of what the network sees, in pixels.

        Returns:
            Prediction: What is found.

        Raises:
            ValueError: If ``size`` is none of ``SIZES``.
        """
        if isinstance(size, bool) or size not in SIZES:
            raise ValueError(f"the size must be one of {SIZES[0]}, {SIZES[1]}, ... {SIZES[-1]}, got {str(size)[:20]!r}")
        seen = _resize(photograph, int(size))
        drawn = _resize(photograph, min(max(min(photograph.size), _DRAWN[0]), _DRAWN[1]))
        with self._lock, torch.no_grad():
            init_default_scope(self.scope)
            start = time.perf_counter()
            sample = self.model.test_step(pseudo_collate([self.pipeline(_as_loaded(seen, drawn))]))[0].cpu()
            seconds = time.perf_counter() - start
            found, score = getattr(self, f"_{self.scope}")(sample)
            picture = self._draw(np.asarray(drawn), sample)
        return Prediction(picture, int(size), seen.size, found, score, seconds)

    def _mmdet(self, sample) -> tuple[str, float | None]:
        scores = sample.pred_instances.scores
        scores = scores[scores > self.score]  # as mmdet draws
        objects = f"{len(scores)} object{'' if len(scores) == 1 else 's'}"
        return objects, scores.mean().item() if len(scores) else None

    def _mmseg(self, sample) -> tuple[str, None]:
        labels = sample.pred_sem_seg.data.flatten()
        shares = torch.bincount(labels, minlength=len(self.meta["classes"])) / len(labels)
        first = shares.argsort(descending=True)[:3]
        return ", ".join(f"{self.meta['classes'][i]} {100 * shares[i]:.1f} %" for i in first if shares[i] > 0), None

    def _mmpretrain(self, sample) -> tuple[str, float]:
        first = sample.pred_score.argsort(descending=True)[:5]
        sample.set_pred_label(first)
        return self.meta["classes"][first[0]], sample.pred_score[first[0]].item()

    def _draw(self, image: np.ndarray, sample) -> np.ndarray:
        if self.scope == "mmpretrain":
            return self._visualizer.visualize_cls(image, sample, draw_gt=False)
        score = {"pred_score_thr": self.score} if self.scope == "mmdet" else {}
        self._visualizer.add_datasample("photograph", image, sample, draw_gt=False, **score)
        return self._visualizer.get_image()


def _left_out(step: dict) -> bool:
    name = step["type"] if isinstance(step["type"], str) else step["type"].__name__
    return name.rpartition(".")[2].startswith(_LEFT_OUT) or ("Pad" in name and "size" in step)


def _meta(checkpoint: dict, metainfo: dict) -> dict:
    """Names and colours of the classes: the checkpoint's, else the config's."""
    saved = {key.lower(): value for key, value in checkpoint.get("meta", {}).get("dataset_meta", {}).items()}
    meta = {**metainfo, **saved}
    if not meta.get("classes"):
        raise ValueError("neither the checkpoint nor the config's test set (metainfo) names the classes")
    if not meta.get("palette"):
        # not too dark, so that black text can be read on it
        meta["palette"] = np.random.RandomState(0).randint(64, 256, (len(meta["classes"]), 3)).tolist()
    return meta


def _native(cfg: Config) -> int:
    """The size nearest to that of the network's anchor grid, which is where its weights are not interpolated."""
    given = cfg.model.get("backbone", {}).get("img_size", 224)
    given = min(given) if isinstance(given, (list, tuple)) else given
    return min(SIZES, key=lambda size: abs(size - given))


def _resize(photograph: Image.Image, size: int) -> Image.Image:
    """Both sides times the same factor, so that the shorter one is ``size``; antialiased."""
    factor = size / min(photograph.size)
    return photograph.resize([max(1, round(side * factor)) for side in photograph.size], Image.Resampling.BILINEAR)


def _as_loaded(seen: Image.Image, drawn: Image.Image) -> dict:
    """What a pipeline that loads and resizes would have made of a photograph as large as ``drawn``."""
    image = np.asarray(seen)[..., ::-1].copy()  # OpenCV's order, as the toolboxes load
    original = (drawn.height, drawn.width)
    return {
        "img": image,
        "img_id": 0,
        "img_path": "",
        "img_shape": image.shape[:2],
        "ori_shape": original,
        "scale_factor": (seen.width / drawn.width, seen.height / drawn.height),
        "flip": False,
        "flip_direction": None,
    }
