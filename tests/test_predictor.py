"""mmsmlp.web_demo.predictor: a model of each toolbox on one photograph at several sizes."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from made import few_objects, make_checkpoint
from PIL import Image

from mmsmlp.web_demo.predictor import SIZES, Predictor

ROOT = Path(__file__).parents[1]
CONFIGS = {
    "mmdet": ROOT / "configs/demo/mask-rcnn_smlpnet-mini_coins.py",
    "mmseg": ROOT / "configs/demo/upernet_smlpnet-mini_coins.py",
    "mmpretrain": ROOT / "configs/demo/smlpnet-mini_photos.py",
}


@pytest.fixture(scope="module")
def photograph() -> Image.Image:
    from skimage import data

    return Image.fromarray(data.coffee()[:200, :300])


@pytest.fixture(scope="module", params=CONFIGS)
def predictor(request, tmp_path_factory) -> Predictor:
    folder = tmp_path_factory.mktemp("model")
    config = few_objects(folder) if request.param == "mmdet" else CONFIGS[request.param]
    return Predictor(config, make_checkpoint(config, folder), "cpu", 0.0)


def test_pictures_are_equally_large_and_differ_between_sizes(predictor, photograph):
    small, large = (predictor.predict(photograph, size) for size in (64, 128))
    assert (small.seen, large.seen) == ((96, 64), (192, 128))
    assert small.picture.shape == large.picture.shape
    assert small.picture.dtype == np.uint8
    assert not np.array_equal(small.picture, large.picture)


def test_what_is_found_is_said_in_words(predictor, photograph):
    found = predictor.predict(photograph, 64)
    pattern = {"mmdet": r"\d+ objects?", "mmseg": r"(background|coin) \d+\.\d %", "mmpretrain": r"photo \d+"}
    assert str(found).startswith("64 (96 x 64): ")
    assert re.match(pattern[predictor.scope], found.found)
    assert found.score is None or 0 <= found.score <= 1


def test_predictions_are_those_of_the_toolboxs_own_inference(photograph, tmp_path):
    """At a photograph's own size, where nothing is resized before the network: the same boxes."""
    from mmdet.apis import inference_detector, init_detector

    config = few_objects(tmp_path)
    checkpoint = make_checkpoint(config, tmp_path)
    square = photograph.crop((0, 0, 288, 192))
    given = np.asarray(square)[..., ::-1].copy()
    theirs = inference_detector(init_detector(str(config), str(checkpoint), device="cpu"), given).pred_instances
    predictor = Predictor(config, checkpoint, "cpu", 0.0)
    ours = predictor.predict(square, 192)
    assert ours.found == f"{(theirs.scores > 0).sum()} objects"
    assert ours.score == pytest.approx(theirs.scores.mean().item(), rel=1e-5)


@pytest.mark.parametrize("size", [32, 1056, 100, 96.5, float("nan"), float("inf"), "96", None, True])
def test_a_size_that_is_none_of_the_sliders_is_refused(predictor, photograph, size):
    with pytest.raises(ValueError, match="the size must be one of 64, 96, ... 1024"):
        predictor.predict(photograph, size)


def test_the_native_size_is_that_of_the_anchor_grid(predictor):
    assert predictor.native == {"mmdet": 160, "mmseg": 160, "mmpretrain": 64}[predictor.scope]
    assert predictor.native in SIZES


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"smlpnet-mini_photos\.pth does not fit .*mask-rcnn"):
        Predictor(CONFIGS["mmdet"], make_checkpoint(CONFIGS["mmpretrain"], tmp_path), "cpu")


def test_a_checkpoint_without_names_is_refused_where_the_config_has_none(tmp_path):
    path = make_checkpoint(CONFIGS["mmpretrain"], tmp_path)
    torch.save({"state_dict": torch.load(path, weights_only=False)["state_dict"]}, path)
    with pytest.raises(ValueError, match="names the classes"):
        Predictor(CONFIGS["mmpretrain"], path, "cpu")


@pytest.mark.parametrize(
    ("config", "score", "message"),
    [
        ("none.py", 0.3, "the config none.py does not exist"),
        (CONFIGS["mmdet"], 0.3, "the checkpoint none.pth does not exist"),
        (CONFIGS["mmdet"], 2.0, "from 0 to 1, got 2.0"),
    ],
)
def test_a_mistake_is_named(config, score, message):
    with pytest.raises((OSError, ValueError), match=message):
        Predictor(config, "none.pth", score=score)
