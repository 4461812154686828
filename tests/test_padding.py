"""The benchmark of padding: the measures mean what docs/padding.md says of them."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from padding import cost, downstream, features, training, views

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("name", "dtype", "smallest", "largest"),
    [
        ("sMLPNet-T, valid areas", torch.float32, 0, 1e-5),
        pytest.param("sMLPNet-T, valid areas", torch.float64, 0, 1e-9, marks=pytest.mark.slow),
        ("sMLPNet-T", torch.float32, 0.1, 10),
        ("Swin-T (mmdet)", torch.float32, 0.1, 10),
        ("ResNet-50 (mmdet)", torch.float32, 0.1, 10),
    ],
)
def test_only_with_valid_areas_a_photographs_maps_do_not_depend_on_the_batch(name, dtype, smallest, largest):
    row, drawn = features.differences(name, dtype)
    assert len(row["largest"]) == 4
    assert smallest <= max(row["largest"]) < largest
    assert (max(row["touched"]) == 0) == (largest < 1)
    assert drawn.shape == (26, 37)  # of 203 x 290 pixels, at stride 8


def test_the_picture_shows_each_network(tmp_path):
    from PIL import Image

    features.draw({name: np.full((26, 37), 0.1) for name in features.NETWORKS}, tmp_path / "picture.png")
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.size[0] > 1000


def test_views_are_the_same_at_each_call_and_of_many_sizes():
    first, second = views.views(16), views.views(16)
    assert all(np.array_equal(a.image, b.image) and np.array_equal(a.masks, b.masks) for a, b in zip(first, second))
    assert len({view.image.shape for view in first}) == 16
    for view in first:
        assert view.masks.shape[1:] == view.image.shape[:2]
        # coins are bright on a dark ground: the masks lie where the coins are
        coins = view.masks.any(0)
        assert view.image[coins].mean() > view.image[~coins].mean() + 20
    assert 0.3 < views.image_share(first) < 0.7
    assert views.image_share(first[:1]) > 0.7


@pytest.mark.parametrize("name", training.DETECTORS + training.SEGMENTORS)
def test_each_training_differs_in_what_its_name_says(name):
    cfg, plain = (training.config(n, 1, 50) for n in (name, name.split(",")[0]))
    assert cfg.model.data_preprocessor.type.startswith("mmsmlp.") == ("valid areas" in name)
    assert (cfg.model.get("neck", {}).get("type") == "mmsmlp.ValidAreaNeck") == name.endswith("neck")
    assert (cfg.model.backbone.type == "mmsmlp.SMLPNet") == ("ResNet" not in name)
    assert cfg.train_dataloader == plain.train_dataloader
    assert cfg.optim_wrapper == plain.optim_wrapper
    assert cfg.param_scheduler == plain.param_scheduler
    assert cfg.randomness == {"seed": 1}
    assert cfg.train_cfg.max_iters == 50


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, Path]:
    """Checkpoints of trainings of 21 steps."""
    from mmsmlp.coins import write_coins

    write_coins(ROOT / "data/coins")
    out = tmp_path_factory.mktemp("trainings")
    return {name: training.train(name, 0, 21, out) for name in ("Mask R-CNN, valid areas", "UperNet, valid areas")}


@pytest.mark.slow
def test_a_finished_training_is_not_repeated(trained):
    name, checkpoint = next(iter(trained.items()))
    before = checkpoint.stat().st_mtime_ns
    assert training.train(name, 0, 21, checkpoint.parents[2]) == checkpoint
    assert checkpoint.stat().st_mtime_ns == before


@pytest.mark.slow
def test_predictions_in_a_batch_are_compared_with_those_alone(trained):
    shown = views.views(8)
    plain, noted, both = (
        downstream.compare_detections(trained["Mask R-CNN, valid areas"], shown, *known)
        for known in ((False, False), (True, False), (True, True))
    )
    assert plain.keys() == noted.keys() == both.keys()
    assert all(0 <= row["changed_at_border"] <= row["changed"] <= row["detections"] for row in (plain, noted, both))
    rows = [downstream.compare_segmentations(trained["UperNet, valid areas"], shown, noted) for noted in (False, True)]
    assert all(0 <= row["changed"] <= 1 and 0 < row["mIoU_batch"] < 1 for row in rows)


@pytest.mark.slow
def test_the_command_measures_cost(tmp_path):
    command = [sys.executable, ROOT / "benchmarks/padding", "--part", "cost", "--repeats", "1", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads((tmp_path / "cost.json").read_text())
    assert [(row["batch"], row["kind"]) for row in rows] == [
        (batch, kind) for batch in cost.BATCHES for kind in ("forward", "training step")
    ]
    assert all(row["plain"] > 0 and row["noted"] > 0 for row in rows)
    assert "nearly full" in done.stdout
