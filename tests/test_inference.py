"""The interfaces of the toolboxes that people know, with our configs: inferencers, init_* and inference_*, pictures."""

from pathlib import Path

import mmcv
import numpy as np
import pytest
import torch
from made import make_checkpoint
from mmengine.registry import init_default_scope
from PIL import Image

from mmsmlp.inference import draw_prediction

ROOT = Path(__file__).parents[1]
DETECTION = str(ROOT / "configs/demo/mask-rcnn_smlpnet-mini_coins.py")
SEGMENTATION = str(ROOT / "configs/demo/upernet_smlpnet-mini_coins.py")
CLASSIFICATION = str(ROOT / "configs/demo/smlpnet-mini_photos.py")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, str]:
    """Config -> a checkpoint of its model as it is made, with its classes' names as mmengine's Runner adds them."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return {config: str(make_checkpoint(config, folder)) for config in (DETECTION, SEGMENTATION, CLASSIFICATION)}


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A folder with two photographs."""
    from skimage import data

    folder = tmp_path_factory.mktemp("photos")
    for name, image in (("cat", data.cat()), ("coffee", data.coffee())):
        Image.fromarray(image[:200, :300]).save(folder / f"{name}.png")
    return folder


def forms(photos: Path) -> dict:
    """The forms in which people give images, with the number of images in each."""
    path = photos / "cat.png"
    return {
        "path": (str(path), 1),
        "array": (mmcv.imread(path), 1),
        "folder": (str(photos), 2),
        "list": ([str(path), str(photos / "coffee.png")], 2),
    }


@pytest.mark.parametrize("form", ["path", "array", "folder", "list"])
def test_the_detection_inferencer(checkpoints, photos, form, tmp_path):
    from mmdet.apis import DetInferencer

    images, count = forms(photos)[form]
    inferencer = DetInferencer(DETECTION, checkpoints[DETECTION], "cpu", show_progress=False)
    named = form != "array"  # mmdet calls the files of predictions by the images' paths
    results = inferencer(images, return_vis=True, no_save_pred=not named, out_dir=str(tmp_path))
    assert len(results["predictions"]) == len(results["visualization"]) == count
    assert {"bboxes", "labels", "scores", "masks"} <= results["predictions"][0].keys()
    assert len(list((tmp_path / "preds").glob("*.json"))) == count * named
    assert len(list((tmp_path / "vis").iterdir())) == count


@pytest.mark.parametrize("form", ["path", "array", "folder", "list"])
def test_the_segmentation_inferencer(checkpoints, photos, form, tmp_path):
    from mmseg.apis import MMSegInferencer

    images, count = forms(photos)[form]
    results = MMSegInferencer(SEGMENTATION, checkpoints[SEGMENTATION], device="cpu")(images, out_dir=str(tmp_path))
    predictions = results["predictions"] if count > 1 else [results["predictions"]]
    assert [p.shape for p in predictions] == [(200, 300)] * count
    assert len(list((tmp_path / "vis").iterdir())) == len(list((tmp_path / "pred").iterdir())) == count


@pytest.mark.parametrize("form", ["path", "array", "folder", "list"])
def test_the_classification_inferencer(checkpoints, photos, form):
    from mmpretrain import ImageClassificationInferencer

    images, count = forms(photos)[form]
    init_default_scope("mmpretrain")  # its inferencer keeps the scope of a toolbox that was used before
    results = ImageClassificationInferencer(CLASSIFICATION, checkpoints[CLASSIFICATION], "cpu")(images)
    assert len(results) == count
    assert results[0]["pred_scores"].shape == (12,)
    assert results[0]["pred_class"] == f"photo {results[0]['pred_label']}"


def test_a_detector_by_function_on_a_path_and_an_array(checkpoints, photos):
    from mmdet.apis import inference_detector, init_detector

    model = init_detector(DETECTION, checkpoints[DETECTION], device="cpu")
    path = str(photos / "cat.png")
    found = [inference_detector(model, image).pred_instances for image in (path, mmcv.imread(path))]
    assert torch.equal(found[0].bboxes, found[1].bboxes)
    assert found[0].masks.shape[1:] == (200, 300)
    assert model.dataset_meta["classes"] == ("coin",)


def test_a_segmentor_by_function_on_a_path_and_an_array(checkpoints, photos):
    from mmseg.apis import inference_model, init_model

    model = init_model(SEGMENTATION, checkpoints[SEGMENTATION], device="cpu")
    path = str(photos / "cat.png")
    found = [inference_model(model, image).pred_sem_seg.data for image in (path, mmcv.imread(path))]
    assert torch.equal(*found)
    assert found[0].shape == (1, 200, 300)


def test_a_classifier_by_function(checkpoints, photos):
    """mmpretrain's own inference_model knows the models of its zoo only."""
    from mmpretrain import ImageClassificationInferencer, get_model

    init_default_scope("mmpretrain")
    model = get_model(CLASSIFICATION, pretrained=checkpoints[CLASSIFICATION], device="cpu")
    assert ImageClassificationInferencer(model)(str(photos / "cat.png"))[0]["pred_class"].startswith("photo ")


@pytest.mark.parametrize("config", [DETECTION, SEGMENTATION, CLASSIFICATION], ids=lambda c: Path(c).stem)
def test_a_picture_shows_the_photograph_with_something_drawn_on_it(checkpoints, photos, tmp_path, config):
    out = draw_prediction(photos / "cat.png", config, checkpoints[config], tmp_path / "a/b.png", "cpu", score=0)
    with Image.open(out) as drawn, Image.open(photos / "cat.png") as photo:
        assert np.isclose(drawn.size[0] / drawn.size[1], photo.size[0] / photo.size[1], atol=0.02)
        assert np.abs(np.asarray(drawn.resize(photo.size), float) - np.asarray(photo)).max() > 50


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"photo": "none.png"}, "the photograph none.png does not exist"),
        ({"photo": DETECTION}, "is no image that Pillow can read"),
        ({"config": "none.py"}, "the config none.py does not exist"),
        ({"checkpoint": "none.pth"}, "the checkpoint none.pth does not exist"),
        ({"out": "picture"}, "has to end on a format such as .png"),
    ],
)
def test_a_mistake_is_named_and_nothing_is_written(checkpoints, photos, tmp_path, changed, message):
    arguments = {
        "photo": photos / "cat.png",
        "config": DETECTION,
        "checkpoint": checkpoints[DETECTION],
        "out": tmp_path / "picture.png",
    }
    with pytest.raises((OSError, ValueError), match=message):
        draw_prediction(**{**arguments, **changed})
    assert not list(tmp_path.iterdir())
