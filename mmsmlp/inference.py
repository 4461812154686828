"""One picture of what a model finds in a photograph, by the inferencer of its toolbox."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmengine.registry import init_default_scope
from PIL import Image

from mmsmlp.files import atomic_file
from mmsmlp.running import find_checkpoint

_MIN_EDGE = 256  # pixels: a classifier's text has to fit into the picture


def draw_prediction(
    photo: str | Path,
    config: str | Path,
    checkpoint: str | Path,
    out: str | Path,
    device: str | None = None,
    score: float = 0.3,
) -> Path:
    """Draw boxes and masks, a label map, or a class with its score over a photograph.

    Args:
        photo (str | Path): The photograph.
        config (str | Path): A detector's, segmentor's or classifier's config.
        checkpoint (str | Path): A checkpoint, or a work directory whose latest one is taken.
        out (str | Path): The picture to write, in the format that its name ends on.
        device (str, optional): Where to compute, such as 'cpu' or 'cuda:0'. Defaults to a GPU where there is one.
        score (float): Detections below it are not drawn. Defaults to 0.3.

    Returns:
        Path: ``out``.

    Raises:
        FileNotFoundError: If the photograph, the config or the checkpoint does not exist.
        ValueError: If the photograph is no image, or the config's toolbox is unknown.
    """
    for what, path in (("photograph", photo), ("config", config)):
        if not Path(path).is_file():
            raise FileNotFoundError(f"the {what} {path} does not exist")
    try:
        with Image.open(photo) as file:
            file.verify()
    except OSError as error:
        raise ValueError(f"{photo} is no image that Pillow can read") from error
    if Path(out).suffix.lower() not in Image.registered_extensions():
        raise ValueError(f"{out}: the picture's name has to end on a format such as .png or .jpg")
    scope = Config.fromfile(config).get("default_scope")
    draw = {"mmdet": _draw_instances, "mmseg": _draw_labels, "mmpretrain": _draw_class}.get(scope)
    if draw is None:
        raise ValueError(f"{config}: default_scope is {scope!r}, and not mmdet, mmseg or mmpretrain")
    picture = draw(str(photo), str(config), find_checkpoint(checkpoint), device, score)
    with atomic_file(out) as new:
        Image.fromarray(picture).save(new)
    return Path(out)


def _draw_instances(photo: str, config: str, checkpoint: str, device: str | None, score: float) -> np.ndarray:
    from mmdet.apis import DetInferencer

    inferencer = DetInferencer(config, checkpoint, device, show_progress=False)
    return inferencer(photo, return_vis=True, pred_score_thr=score)["visualization"][0]


def _draw_labels(photo: str, config: str, checkpoint: str, device: str | None, score: float) -> np.ndarray:
    from mmseg.apis import MMSegInferencer

    inferencer = MMSegInferencer(config, checkpoint, device=device)
    inferencer.show_progress = False  # no argument of mmseg 1.2.2's
    return inferencer(photo, return_vis=True)["visualization"]


def _draw_class(photo: str, config: str, checkpoint: str, device: str | None, score: float) -> np.ndarray:
    from mmpretrain import ImageClassificationInferencer

    init_default_scope("mmpretrain")  # its inferencer keeps the scope of a toolbox that was used before
    inferencer = ImageClassificationInferencer(config, checkpoint, device)
    with Image.open(photo) as file:
        resize = max(_MIN_EDGE, min(file.size))
    with tempfile.TemporaryDirectory() as folder:  # mmpretrain draws nothing without one
        samples = inferencer(photo, return_datasamples=True)
        return inferencer.visualize([photo], samples, resize=resize, show_dir=folder)[0]
