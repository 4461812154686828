"""The study's causes: oracles on results with known answers, and the limits of a real detector."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from study.causes import split, within
from study.limits import boxes_only, limits

from mmsmlp.coins import write_coins
from mmsmlp.data.coco import coco_annotation, write_coco
from mmsmlp.sweep import Sweep

CONFIG = Path(__file__).parents[1] / "configs/demo/mask-rcnn_smlpnet-mini_coins.py"
SIZE, PITCH = 20, 50  # of the objects, and from one to the next, in pixels
COUNT = 10


def _squares(path: Path, crowd: int | None = None) -> Path:
    """Two images with a row of squares each; ``crowd`` is the number of one that is a crowd."""
    images = [{"id": i, "file_name": f"{i}.png", "width": PITCH * COUNT, "height": PITCH} for i in (1, 2)]
    annotations = []
    for number in range(2 * COUNT):
        mask = np.zeros((PITCH, PITCH * COUNT), bool)
        mask[10 : 10 + SIZE, (left := number % COUNT * PITCH + 10) : left + SIZE] = True
        annotation = coco_annotation(mask, 1 + number // COUNT, number + 1, 1)
        annotations.append({**annotation, "iscrowd": int(number == crowd)})
    return write_coco(path, images, annotations, [{"id": 1, "name": "square"}])


@pytest.fixture
def squares(tmp_path) -> Path:
    return _squares(tmp_path / "squares.json")


def found(number: int, score: float = 0.9, shift: float = 0) -> dict:
    """A detection of one of the squares, some pixels to the right of it."""
    box = [number % COUNT * PITCH + 10 + shift, 10, SIZE, SIZE]
    return {"image_id": 1 + number // COUNT, "category_id": 1, "bbox": box, "score": score}


def shift_for(iou: float) -> float:
    """How many pixels to the right a square overlaps itself by an IoU."""
    return SIZE * (1 - iou) / (1 + iou)


def taken_apart(annotations: Path, detections: list[dict], limit: int = 100) -> dict:
    path = annotations.with_name("found.json")
    path.write_text(json.dumps(detections))
    return split(annotations, path, limit)


def test_perfect_detections_leave_nothing_to_restore(squares):
    row = taken_apart(squares, [found(n, 0.5 + n / 100) for n in range(2 * COUNT)])
    assert (row["bbox_mAP"], row["bbox_mAP_50"], row["missed"]) == (1, 1, 0)
    assert all(gain == 0 for gains in row["restored"].values() for gain in gains.values())
    assert (row["objects"], row["detections"], row["true_positives"]) == (20, 20, 20)
    assert row["false_positives"] == {"duplicate": 0, "localisation": 0, "background": 0}


def test_false_positives_above_the_true_ones_are_the_scores_fault(squares):
    right = [found(n, 0.3) for n in range(2 * COUNT)]
    wrong = [found(n, 0.9, shift=SIZE + 5) for n in range(2 * COUNT)]
    row = taken_apart(squares, right + wrong)
    assert row["bbox_mAP"] == pytest.approx(0.5, abs=0.01)  # twenty of forty, at full recall; never more before
    assert row["restored"]["scores"]["bbox_mAP"] == pytest.approx(1 - row["bbox_mAP"])
    assert row["restored"]["localisation"]["bbox_mAP"] == 0
    assert row["false_positives"] == {"duplicate": 0, "localisation": 0, "background": 20}


def test_scores_are_at_fault_in_every_order_of_the_same_detections(squares):
    scores = torch.linspace(0.1, 0.9, 3 * COUNT)[torch.randperm(3 * COUNT)].tolist()
    shifts = [0] * 2 * COUNT + [SIZE + 5] * COUNT
    row = taken_apart(squares, [found(n % 20, s, shift) for n, (s, shift) in enumerate(zip(scores, shifts))])
    assert 0.4 < row["bbox_mAP"] < 0.95
    assert row["bbox_mAP"] + row["restored"]["scores"]["bbox_mAP"] == pytest.approx(1)


def test_perfect_scores_put_the_better_boxes_first_at_every_threshold(squares):
    """Half of the boxes have an IoU of 0.73: beyond 0.70 they are false, and must not stand above the others."""
    boxes = [found(n, 0.9 - n / 100, shift=shift_for(0.73) * (n % 2 == 0)) for n in range(2 * COUNT)]
    row = taken_apart(squares, boxes)
    # Five of the ten thresholds are passed by all; at the others half of the recall levels, 0.00 to 0.50, are reached.
    assert row["bbox_mAP"] + row["restored"]["scores"]["bbox_mAP"] == pytest.approx((5 + 5 * 51 / 101) / 10)


def test_shifted_boxes_are_the_localisations_fault(squares):
    row = taken_apart(squares, [found(n, shift=shift_for(0.4)) for n in range(2 * COUNT)])
    assert (row["bbox_mAP"], row["missed"]) == (0, 1)
    assert row["restored"]["localisation"] == {"bbox_mAP": 1, "bbox_mAP_50": 1}
    assert row["restored"]["scores"] == {"bbox_mAP": 0, "bbox_mAP_50": 0}
    assert row["false_positives"] == {"duplicate": 0, "localisation": 20, "background": 0}


@pytest.mark.parametrize(("iou", "gain", "kind"), [(0.11, 1, "localisation"), (0.09, 0, "background")])
def test_what_hardly_overlaps_an_object_is_background(squares, iou, gain, kind):
    row = taken_apart(squares, [found(n, shift=shift_for(iou)) for n in range(2 * COUNT)])
    assert row["restored"]["localisation"]["bbox_mAP"] == gain
    assert row["false_positives"][kind] == 20


def test_duplicates_stay_false_when_boxes_are_mended(squares):
    """Each object twice, the second time with a higher score than the next object's first."""
    boxes = [found(n, 0.9 - n / 50 - again / 75, shift=2 * again) for n in range(2 * COUNT) for again in (0, 1)]
    row = taken_apart(squares, boxes)
    assert row["false_positives"] == {"duplicate": 20, "localisation": 0, "background": 0}
    assert row["bbox_mAP_50"] == pytest.approx(0.55, abs=0.05)
    assert row["restored"]["localisation"]["bbox_mAP_50"] == 0
    assert row["bbox_mAP"] + row["restored"]["scores"]["bbox_mAP"] == pytest.approx(1)


def test_only_the_best_scored_of_several_bad_boxes_is_mended(squares):
    boxes = [found(n, score, shift=shift_for(0.4)) for n in range(2 * COUNT) for score in (0.9, 0.8)]
    row = taken_apart(squares, boxes)
    assert row["restored"]["localisation"]["bbox_mAP"] == 1  # the twenty others are ranked behind
    assert taken_apart(squares, boxes + [found(0, 0.95, SIZE + 5)])["restored"]["localisation"]["bbox_mAP"] < 1


def test_missing_objects_nothing_restores(squares):
    row = taken_apart(squares, [found(n) for n in range(COUNT)])
    assert row["bbox_mAP"] == pytest.approx(51 / 101)  # the recall levels 0.00 to 0.50
    assert all(gain == 0 for gains in row["restored"].values() for gain in gains.values())
    assert row["missed"] == 0.5


def test_no_detection_at_all(squares):
    row = taken_apart(squares, [])
    assert (row["bbox_mAP"], row["missed"], row["detections"], row["true_positives"]) == (0, 1, 0, 0)


def test_both_oracles_restore_more_than_each(squares):
    boxes = [found(n, 0.3, shift=shift_for(0.6)) for n in range(2 * COUNT)]
    boxes += [found(n, 0.9, shift=SIZE + 5) for n in range(COUNT)]
    row = taken_apart(squares, boxes)
    gains = {name: gain["bbox_mAP"] for name, gain in row["restored"].items()}
    assert row["bbox_mAP"] + gains["both"] == pytest.approx(1)
    assert 0 < max(gains["localisation"], gains["scores"]) < gains["both"]


def test_low_scores_do_not_count_as_false_positives_but_as_finds(squares):
    row = taken_apart(squares, [found(0, 0.04), found(1, 0.04, SIZE + 5)])
    assert (row["true_positives"], sum(row["false_positives"].values())) == (0, 0)
    assert row["missed"] == 0.95


def test_the_limit_keeps_the_best_scored_of_every_image(squares):
    row = taken_apart(squares, [found(n, 0.9 - n / 100) for n in range(2 * COUNT)], limit=4)
    assert row["detections"] == 8
    assert row["missed"] == pytest.approx(0.6)


def test_a_crowd_is_neither_an_object_nor_a_false_positive(tmp_path):
    row = taken_apart(_squares(tmp_path / "crowd.json", crowd=0), [found(n) for n in range(2 * COUNT)])
    assert (row["objects"], row["bbox_mAP"], row["missed"], row["true_positives"]) == (19, 1, 0, 19)
    assert sum(row["false_positives"].values()) == 0


def test_the_border_of_images_can_be_left_out(squares, tmp_path):
    """Bad boxes of the first and the last object of both images, which a margin of one pitch leaves out."""
    path = tmp_path / "found.json"
    path.write_text(json.dumps([found(n, shift=9 * (n % COUNT in (0, COUNT - 1))) for n in range(2 * COUNT)]))
    assert split(squares, path, 100)["bbox_mAP"] < 0.9
    row = split(*within(squares, path, (PITCH, 0), tmp_path / "inner"), 100)
    assert (row["bbox_mAP"], row["objects"], row["detections"]) == (1, 16, 16)


def test_bad_arguments_are_named(squares, config, tmp_path):
    with pytest.raises(ValueError, match="limit must be a positive number of detections, got 0"):
        taken_apart(squares, [], limit=0)
    with pytest.raises(ValueError, match="a detection is of image 3, category 1, which the ground truth does not list"):
        taken_apart(squares, [found(2 * COUNT)])
    with pytest.raises(ValueError, match=r"factors must be positive integers, got \[0.5\]"):
        limits(config, "iter_3.pth", 1, [0.5], tmp_path)
    with pytest.raises(ValueError, match="is no two-stage detector: its model has no rpn_head"):
        boxes_only(Config({"model": {"type": "RetinaNet"}}))


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Config:
    """The demo's config, with the coins set in a folder of the test's own."""
    root = write_coins(tmp_path_factory.mktemp("data") / "coins")
    cfg = Config.fromfile(CONFIG)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.data_root = f"{root}/"
    cfg.val_evaluator.ann_file = cfg.test_evaluator.ann_file = f"{root}/annotations/instances_val.json"
    return cfg


@pytest.fixture(scope="module")
def checkpoint(config, tmp_path_factory) -> Path:
    """A checkpoint after 3 real training steps."""
    cfg = copy.deepcopy(config)
    cfg.work_dir = str(tmp_path_factory.mktemp("run"))
    cfg.train_cfg = {"type": "IterBasedTrainLoop", "max_iters": 3, "val_interval": 10}
    cfg.default_hooks.checkpoint.interval = 3
    cfg.experiment_name = "causes_checkpoint"
    cfg.visualizer.name = "causes"  # a visualizer of the toolbox's name is another test's
    Runner.from_cfg(cfg).train()
    return Path(cfg.work_dir, "iter_3.pth")


def test_the_boxes_are_the_same_without_the_mask_head(config, checkpoint, tmp_path):
    boxes = []
    for name, cfg in (("whole", config), ("boxes", boxes_only(config))):
        sweep = Sweep(cfg, checkpoint, tmp_path / name, extents=[1])
        row = sweep.evaluate(point := next(sweep.points()))
        boxes.append(json.loads(Path(f"{point.predictions}.bbox.json").read_text()))
        assert ("segm_mAP" in row) == (name == "whole")
    assert boxes[0] == boxes[1]
    assert len(boxes[0]) > 10
    assert config.model.roi_head.mask_head is not None  # the copy was changed, not the config


def test_all_but_the_mask_head_has_to_fit(config, checkpoint, tmp_path):
    content = torch.load(checkpoint, weights_only=False)
    content["state_dict"]["roi_head.another_head.weight"] = torch.ones(1)
    torch.save(content, tmp_path / "other.pth")
    sweep = Sweep(boxes_only(config), tmp_path / "other.pth", tmp_path, extents=[1])
    with pytest.raises(ValueError, match="does not fit .*another_head"):
        sweep.evaluate(next(sweep.points()))


@pytest.fixture(scope="module")
def limited(config, checkpoint, tmp_path_factory) -> list[dict]:
    return limits(config, checkpoint, 2, [1, 4, 16], tmp_path_factory.mktemp("limits"), "bounded")


@pytest.mark.slow
def test_more_proposals_find_more_objects(limited):
    recalls = [row["proposal_recall"] for row in limited]
    assert recalls == sorted(recalls)
    assert 0 <= recalls[0] < recalls[-1] <= 1


@pytest.mark.slow
def test_limits_are_multiples_of_the_configs_own(limited, config):
    own = config.model.test_cfg
    for row, factor in zip(limited, (1, 4, 16)):
        assert row["limit_factor"] == factor
        assert row["nms_pre"] == factor * own.rpn.nms_pre
        assert row["max_detections"] == factor * own.rcnn.max_per_img
        assert row["proposals"] == row["max_proposals"] == factor * own.rpn.max_per_img  # it gives all it may
        assert (row["factor"], row["interpolation"], row["objects"]) == (2, "bounded", 48)


@pytest.mark.slow
def test_rows_can_be_written_and_taken_apart(limited):
    for row in json.loads(json.dumps(limited)):
        apart = split(row["annotations"], row["detections"], row["max_detections"])
        assert apart["bbox_mAP"] == row["bbox_mAP"]
        assert apart["detections"] <= row["max_detections"]


@pytest.mark.slow
def test_the_sweeps_own_limits_give_the_sweeps_own_row(limited, config, checkpoint, tmp_path):
    sweep = Sweep(config, checkpoint, tmp_path, extents=[2], interpolations=["bounded"])
    row = sweep.evaluate(next(sweep.points()))
    assert {key: limited[1][key] for key in ("bbox_mAP", "bbox_mAP_50")} == {
        key: row[key] for key in ("bbox_mAP", "bbox_mAP_50")
    }
