"""What a sweep needs to know of a toolbox: its test set, how to point a config at other scenes, what to measure."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, init_default_scope

from mmsmlp.data.coco import average_precision, load_coco
from mmsmlp.data.scenes import ClassSet, CocoSet, LabelMapSet


class Detection:
    """A detector of mmdet on a test set in COCO's format.

    Args:
        cfg (Config): The detector's config.

    Raises:
        FileNotFoundError: If the annotations do not exist.
    """

    # Keys of a row -> their labels; the first two are plotted, all are in the table.
    METRICS = {"bbox_mAP": "box AP", "bbox_mAP_50": "box AP50", "segm_mAP": "mask AP"}

    def __init__(self, cfg: Config):
        dataset = cfg.test_dataloader.dataset
        root = dataset.get("data_root") or ""
        ann_file = Path(root, dataset.ann_file).absolute()
        if not ann_file.is_file():
            raise FileNotFoundError(f"the test set's annotations {ann_file} do not exist: make or download the set")
        self.source = self.tile = CocoSet(ann_file, Path(root, dataset.data_prefix.img).absolute())
        evaluators = cfg.test_evaluator if isinstance(cfg.test_evaluator, list) else [cfg.test_evaluator]
        metric = next((e["metric"] for e in evaluators if "metric" in e), "bbox")
        self.metrics = [metric] if isinstance(metric, str) else list(metric)

    @staticmethod
    def accepts(cfg: Config) -> bool:
        """Whether the config is of this kind."""
        dataset = cfg.get("test_dataloader", {}).get("dataset", {})
        return cfg.get("default_scope") == "mmdet" and dataset.get("ann_file", "").endswith(".json")

    def configure(self, cfg: Config, scenes: CocoSet, predictions: Path, images: int) -> None:
        """Point a config, in place, at ``scenes``, each of ``images`` test images, and at a prefix of result files."""
        dataset = cfg.test_dataloader.dataset
        dataset.data_root = ""
        dataset.ann_file = str(scenes.ann_file)
        dataset.data_prefix = {"img": str(scenes.images)}
        cfg.test_evaluator = {
            "type": "mmdet.CocoMetric",
            "ann_file": str(scenes.ann_file),
            "metric": self.metrics,
            "format_only": True,
            "outfile_prefix": str(predictions),
        }
        _raise_limits(cfg.model.test_cfg, images)

    def row(self, cfg: Config, scenes: CocoSet, predictions: Path, tested: dict) -> dict:
        """Numbers of ``images`` and ``objects``, and the AP of each metric in [0, 1]."""
        coco = load_coco(scenes.ann_file)
        row = {"images": len(coco.imgs), "objects": len(coco.anns)}
        limit = cfg.model.test_cfg.get("rcnn", cfg.model.test_cfg).max_per_img
        for metric in self.metrics:
            precision = average_precision(coco, Path(f"{predictions}.{metric}.json"), metric, limit)
            row |= {f"{metric}_mAP": precision[0], f"{metric}_mAP_50": precision[1]}
        return row


class Segmentation:
    """A segmentor of mmseg, on any test set of images and label maps.

    Args:
        cfg (Config): The segmentor's config.

    Raises:
        FileNotFoundError: If the test set lists no images.
    """

    METRICS = {"mIoU": "mIoU", "aAcc": "pixel accuracy"}

    def __init__(self, cfg: Config):
        listed, self.classes, dataset = _listed(cfg)
        self.source = self.tile = LabelMapSet(tuple((Path(i["img_path"]), Path(i["seg_map_path"])) for i in listed))
        self.first_label = 1 if dataset.reduce_zero_label else 0  # of the label maps that mmseg's metric writes

    @staticmethod
    def accepts(cfg: Config) -> bool:
        """Whether the config is of this kind."""
        dataset = cfg.get("test_dataloader", {}).get("dataset", {})
        return cfg.get("default_scope") == "mmseg" and "seg_map_path" in dataset.get("data_prefix", {})

    def configure(self, cfg: Config, scenes: LabelMapSet, predictions: Path, images: int) -> None:
        """Point a config, in place, at ``scenes``, and at a folder for the predicted label maps."""
        image, labels = scenes.pairs[0]
        cfg.test_dataloader.dataset.update(
            data_root="",
            ann_file="",
            data_prefix={"img_path": str(image.parent), "seg_map_path": str(labels.parent)},
            img_suffix=image.suffix,
            seg_map_suffix=labels.suffix,
        )
        cfg.test_evaluator = {"type": "mmseg.IoUMetric", "iou_metrics": ["mIoU"], "output_dir": str(predictions)}

    def row(self, cfg: Config, scenes: LabelMapSet, predictions: Path, tested: dict) -> dict:
        """Number of ``images``, ``mIoU`` and ``aAcc`` (the share of right pixels) in [0, 1]."""
        return {"images": len(scenes.pairs), **{key: float(tested[key]) / 100 for key in self.METRICS}}


class Classification:
    """A classifier of mmpretrain, on any test set with one class per image.

    Args:
        cfg (Config): The classifier's config.

    Raises:
        FileNotFoundError: If the test set lists no images.
    """

    METRICS = {"top1": "top-1 accuracy"}

    def __init__(self, cfg: Config):
        listed, self.classes, _ = _listed(cfg)
        self.source = ClassSet(tuple((Path(i["img_path"]), int(i["gt_label"])) for i in listed))
        # Wider scenes are made of what the classifier sees: around a crop's border lies more of the same image.
        self.tile = replace(self.source, middle=_crop(cfg.test_dataloader.dataset.pipeline))

    @staticmethod
    def accepts(cfg: Config) -> bool:
        """Whether the config is of this kind."""
        return cfg.get("default_scope") == "mmpretrain" and "test_dataloader" in cfg

    def configure(self, cfg: Config, scenes: ClassSet, predictions: Path, images: int) -> None:
        """Point a config, in place, at ``scenes``, and at a file for the predictions."""
        folder = scenes.samples[0][0].parent
        cfg.test_dataloader.dataset = {
            "type": "mmpretrain.CustomDataset",
            "data_prefix": str(folder),
            "ann_file": str(folder.parent / "labels.txt"),
            "pipeline": cfg.test_dataloader.dataset.pipeline,
        }
        cfg.test_evaluator = [
            {"type": "mmpretrain.Accuracy", "topk": (1,)},
            {"type": "mmengine.DumpResults", "out_file_path": f"{predictions}.pkl"},
        ]

    def row(self, cfg: Config, scenes: ClassSet, predictions: Path, tested: dict) -> dict:
        """Number of ``images``, and ``top1``, the share of right predictions in [0, 1]."""
        return {"images": len(scenes.samples), "top1": float(tested["accuracy/top1"]) / 100}


TASKS = (Detection, Segmentation, Classification)


def find_task(cfg: Config) -> Detection | Segmentation | Classification:
    """The kind of model that a config trains.

    Args:
        cfg (Config): A config with an SMLPNet backbone.

    Returns:
        Detection | Segmentation | Classification: What its test set is, and how to measure on it.

    Raises:
        ValueError: If it is none of them.
    """
    backbone = cfg.get("model", {}).get("backbone", {}).get("type")
    if class_name(backbone).lower() == "smlpnet":
        for task in TASKS:
            if task.accepts(cfg):
                return task(cfg)
    raise ValueError(
        f"{cfg.filename} cannot be swept: that takes an SMLPNet backbone, and a test_dataloader of mmdet (with a COCO-"
        "format ann_file), mmseg (with data_prefix.seg_map_path) or mmpretrain, named by default_scope"
    )


def class_name(config_type: str | type) -> str:
    """The name of a class that a config names by itself or, with or without a scope, by a string."""
    return getattr(config_type, "__name__", str(config_type)).rpartition(".")[2]


def _crop(pipeline: list[dict]) -> tuple[int, int] | None:
    """Height and width of the crop that a test pipeline takes of images as they are; None if it resizes or does not."""
    steps = {class_name(t["type"]): t for t in pipeline}
    if "CenterCrop" not in steps or steps.keys() & {"Resize", "ResizeEdge"}:
        return None
    size = steps["CenterCrop"]["crop_size"]
    return (size, size) if isinstance(size, int) else tuple(size)


def _listed(cfg: Config) -> tuple[list[dict], tuple[str, ...], BaseDataset]:
    """What the config's own data set lists, dicts with ``img_path`` and labels; the names of its classes; the set."""
    init_default_scope(cfg.default_scope)
    dataset = DATASETS.build({**cfg.test_dataloader.dataset, "pipeline": [], "lazy_init": False})
    listed = [dataset.get_data_info(index) for index in range(len(dataset))]
    if not listed:
        raise FileNotFoundError(f"the test set of {cfg.filename} lists no images: make or download the set first")
    return listed, tuple(dataset.metainfo["classes"]), dataset


def _raise_limits(test_cfg: dict, factor: int) -> None:
    """Let a detector keep ``factor`` times as many proposals and detections, in place."""
    for key, value in test_cfg.items():
        if isinstance(value, dict):
            _raise_limits(value, factor)
        elif key in ("max_per_img", "nms_pre"):
            test_cfg[key] = value * factor
