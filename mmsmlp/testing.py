"""What a test command's flags mean in each toolbox: test-time augmentation, pictures, predictions on disk."""

from __future__ import annotations

from pathlib import Path

from mmengine.config import Config

# What each toolbox calls the things that the flags need.
_VISUALIZATION = {"mmdet": "DetVisualizationHook", "mmseg": "SegVisualizationHook", "mmpretrain": "VisualizationHook"}
_DUMP = {"mmdet": "DumpDetResults", "mmpretrain": "DumpResults"}
_TTA = {
    "mmdet": {"type": "DetTTAModel", "tta_cfg": {"nms": {"type": "nms", "iou_threshold": 0.5}, "max_per_img": 100}},
    "mmseg": {"type": "SegTTAModel"},
    "mmpretrain": {"type": "AverageClsScoreTTA"},
}


def augment_test(cfg: Config) -> None:
    """Test under flips, in place: as the config's ``tta_model`` and ``tta_pipeline`` say, else as it is and mirrored.

    mmdet merges boxes only. A two-stage detector's mask head is left out then, which is printed.

    Args:
        cfg (Config): The config of a detector, segmentor or classifier.

    Raises:
        ValueError: If its toolbox is unknown.
    """
    scope = _scope(cfg, "--tta")
    dataset = cfg.test_dataloader.dataset
    while "dataset" in dataset:  # wrapped sets
        dataset = dataset.dataset
    if "tta_pipeline" not in cfg:
        *steps, pack = dataset.pipeline
        if "meta_keys" in pack:
            pack = {**pack, "meta_keys": tuple(dict.fromkeys([*pack["meta_keys"], "flip", "flip_direction"]))}
        # The image as it is comes first: its annotations are the ones that are scored.
        flips = [{"type": "RandomFlip", "prob": prob, "direction": "horizontal"} for prob in (0.0, 1.0)]
        cfg.tta_pipeline = [*steps, {"type": "TestTimeAug", "transforms": [flips, [pack]]}]
    if scope == "mmdet" and cfg.model.get("roi_head", {}).get("mask_head"):
        print("--tta: mmdet merges boxes only, so masks are neither predicted nor evaluated")
        cfg.model.roi_head.update(mask_head=None, mask_roi_extractor=None)
        for evaluator in _evaluators(cfg):
            if "segm" in evaluator.get("metric", []):
                evaluator["metric"] = "bbox"
    model = cfg.get("tta_model") or _TTA[scope]
    cfg.model = {**model, "module": cfg.model}
    dataset.pipeline = cfg.tta_pipeline


def draw_test(cfg: Config, folder: str | Path) -> None:
    """Let the toolbox's visualisation hook draw every test image into a folder, in place.

    Args:
        cfg (Config): The config of a detector, segmentor or classifier.
        folder (str | Path): Where pictures go; mmseg's backend puts them below ``vis_data/vis_image`` there.

    Raises:
        ValueError: If its toolbox is unknown.
    """
    scope = _scope(cfg, "--show-dir")
    folder = str(Path(folder).absolute())  # mmdet would take a relative one as relative to the work directory
    options = {
        "mmdet": {"draw": True, "test_out_dir": folder},
        "mmseg": {"draw": True},
        "mmpretrain": {"enable": True, "interval": 1, "out_dir": folder},
    }[scope]
    hook = cfg.get("default_hooks", {}).get("visualization") or {"type": _VISUALIZATION[scope]}
    cfg.merge_from_dict({"default_hooks.visualization": {**hook, **options}})
    if scope == "mmseg":
        visualizer = cfg.get("visualizer") or {"type": "SegLocalVisualizer", "name": "visualizer"}
        cfg.visualizer = {"vis_backends": [{"type": "LocalVisBackend"}], **visualizer, "save_dir": folder}


def dump_test(cfg: Config, out: str | Path) -> None:
    """Write the predictions to disk, in place: a .pkl file, or of a segmentor a folder of label maps.

    Args:
        cfg (Config): The config of a detector, segmentor or classifier.
        out (str | Path): The file or folder.

    Raises:
        ValueError: If its toolbox is unknown, or the file's name does not end on .pkl.
    """
    scope = _scope(cfg, "--out")
    evaluators = _evaluators(cfg)
    if scope == "mmseg":
        if Path(out).suffix:
            raise ValueError(f"--out {out}: a segmentor's predictions are PNG files, so name a folder")
        evaluators[0]["output_dir"] = str(out)
        return
    if Path(out).suffix not in (".pkl", ".pickle"):
        raise ValueError(f"--out {out}: predictions are pickled, so the name has to end on .pkl")
    cfg.test_evaluator = [*evaluators, {"type": _DUMP[scope], "out_file_path": str(out)}]


def _evaluators(cfg: Config) -> list[dict]:
    given = cfg.test_evaluator
    return list(given) if isinstance(given, (list, tuple)) else [given]


def _scope(cfg: Config, flag: str) -> str:
    scope = cfg.get("default_scope")
    if scope not in _TTA:
        raise ValueError(f"{flag} needs a config with default_scope {', '.join(_TTA)}; this one's is {scope!r}")
    return scope
