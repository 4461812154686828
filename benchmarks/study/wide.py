"""Why wide scenes cost a detector accuracy, on what it predicted in the evaluation and with other limits."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from mmsmlp.data.coco import load_coco
from mmsmlp.files import atomic_file
from mmsmlp.resize import DEFAULT_METHOD
from study.causes import split, within
from study.evaluation import evaluated_config, predictions_of, scenes_folder
from study.limits import limits
from study.plan import NETWORKS
from study.training import fingerprint_of, folder_of

NETWORK = NETWORKS["Mask R-CNN"]
RECIPES = ("random scales", "random sizes")
_MORE = 4  # times the limits of the evaluation, tried at the smallest extent only: a quarter of an hour at the largest


def explain_wide(
    seeds: list[int], extents: tuple[int, ...], out: Path, shown: Callable[..., Iterator]
) -> dict[str, list[dict]]:
    """Take the AP of wide scenes apart.

    Args:
        seeds (list[int]): Of the checkpoints; limits are tried on the first one's.
        extents (tuple[int, ...]): Evaluated before, with the default interpolation.
        out (Path): Folder of the study.
        shown (Callable): Shows progress over an iterator, given its ``total``.

    Returns:
        dict[str, list[dict]]: ``split``, a dict of :func:`study.causes.split` for each recipe, seed and extent, with
            ``inside``, the box AP without the outermost copies; ``limits``, a dict of :func:`study.limits.limits` for
            each extent and limit, of the first recipe and seed.
    """
    per_image = evaluated_config(NETWORK, RECIPES[0]).model.test_cfg.rcnn.max_per_img
    jobs = [(recipe, seed, extent) for recipe in RECIPES for seed in seeds for extent in extents]
    splits = []
    for recipe, seed, extent in shown(iter(jobs), total=len(jobs)):
        annotations = scenes_folder(NETWORK, out) / f"extent_{extent}" / "annotations.json"
        found = predictions_of(NETWORK, recipe, seed, out, "extent", extent, DEFAULT_METHOD)
        detections = Path(f"{found}.bbox.json")
        row = split(annotations, detections, per_image * extent**2)
        # Without the outermost copies of the test image.
        image = next(iter(load_coco(annotations).imgs.values()))
        margin = (image["width"] // extent, image["height"] // extent)
        files = within(annotations, detections, margin, out / "within") if extent > 2 else (annotations, detections)
        inside = split(*files, per_image * extent**2)["bbox_mAP"]
        splits.append({"recipe": recipe, "seed": seed, "extent": extent, "inside": inside, **row})
    return {"split": splits, "limits": _limits(seeds[0], extents, out, shown)}


def _limits(seed: int, extents: tuple[int, ...], out: Path, shown: Callable[..., Iterator]) -> list[dict]:
    """Rows of other limits: of now, or of before if that is the same checkpoint."""
    recipe = RECIPES[0]
    file = out / "limits.json"
    wanted = {"fingerprint": fingerprint_of(folder_of(NETWORK, recipe, seed, out)), "extents": list(extents)}
    known = json.loads(file.read_text()) if file.exists() else {}
    if {key: known.get(key) for key in wanted} == wanted:
        return known["rows"]
    rows = []
    cfg, checkpoint = evaluated_config(NETWORK, recipe), folder_of(NETWORK, recipe, seed, out) / "final.pth"
    for extent in shown(iter(extents), total=len(extents)):
        factors = [1, extent**2] + [_MORE * extent**2] * (extent == min(extents))
        found = limits(cfg, checkpoint, extent, factors, out / "limits", DEFAULT_METHOD)
        rows += [{"recipe": recipe, "seed": seed, "extent": extent, **row} for row in found]
    with atomic_file(file) as new:
        new.write_text(json.dumps(wanted | {"rows": rows}))
    return rows
