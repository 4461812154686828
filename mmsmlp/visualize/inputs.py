"""What a network is shown: sizes, and a photograph fitted to each, as the config's preprocessor gives it on."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from PIL import Image, ImageOps
from torch import Tensor

LARGEST = 4096  # pixels of a side: the gradients of larger images need more memory than most computers have


def parse_sizes(texts: Iterable[str]) -> list[tuple[int, int]]:
    """Read sizes such as '224' or '448x672'.

    Args:
        texts (Iterable[str]): HEIGHTxWIDTH in pixels each, or one number for both.

    Returns:
        list[tuple[int, int]]: Heights and widths, each size once, in the order given.

    Raises:
        ValueError: If one is not like that, or not from 1 to 4096.
    """
    sizes = []
    for text in texts:
        match = re.fullmatch(r"([0-9]{1,9})(?:[xX]([0-9]{1,9}))?", text.strip())
        size = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not all(1 <= length <= LARGEST for length in size):
            raise ValueError(
                f"a size is HEIGHTxWIDTH in pixels, or one number for both, each from 1 to {LARGEST}, such as 224 or "
                f"448x672; got {text!r}"
            )
        sizes.append(size)
    return list(dict.fromkeys(sizes))


def size_name(size: tuple[int, int]) -> str:
    """A size in words: '448 x 672', height first."""
    return f"{size[0]} x {size[1]}"


def read_photograph(path: str | Path) -> Image.Image:
    """Read a photograph, upright, in RGB.

    Args:
        path (str | Path): A file that Pillow can read.

    Raises:
        FileNotFoundError: If it does not exist.
        ValueError: If it is no image.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"the photograph {path} does not exist")
    try:
        with Image.open(path) as file:
            return ImageOps.exif_transpose(file).convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # SyntaxError: of a broken PNG
        raise ValueError(f"{path} is no image that Pillow can read") from error


def fit(photograph: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """Resize a photograph until it covers a size, and cut out its middle.

    Args:
        photograph (Image.Image): RGB.
        size (tuple[int, int]): Height and width in pixels.

    Returns:
        np.ndarray: (H, W, 3) uint8.
    """
    return np.asarray(ImageOps.fit(photograph, size[::-1], Image.Resampling.BICUBIC))


def normalise(image: np.ndarray, cfg: Config) -> Tensor:
    """What a config's data preprocessor makes of an image.

    Args:
        image (np.ndarray): (H, W, 3) uint8, RGB.
        cfg (Config): Its ``data_preprocessor``, the model's or the config's own, says mean, standard deviation and the
            order of the channels (toolboxes load images as BGR).

    Returns:
        Tensor: (1, 3, H, W) float32.
    """
    settings = cfg.model.get("data_preprocessor") or cfg.get("data_preprocessor") or {}
    tensor = torch.tensor(image).permute(2, 0, 1)[None].float()
    if not (settings.get("bgr_to_rgb") or settings.get("rgb_to_bgr") or settings.get("to_rgb")):
        tensor = tensor.flip(1)  # the network sees BGR
    if settings.get("mean") is not None:
        mean, std = (torch.tensor(settings[key], dtype=torch.float32)[:, None, None] for key in ("mean", "std"))
        tensor = (tensor - mean) / std
    return tensor


def mirrored(images: Tensor) -> Tensor:
    """Images (N, C, H, W) and their mirror images: left to right, upside down, and both, (4 N, C, H, W)."""
    return torch.cat([images, images.flip(3), images.flip(2), images.flip(2, 3)])
