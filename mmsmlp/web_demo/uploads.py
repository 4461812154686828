"""Photographs from people one does not know: checked before they are decoded, and brought to upright RGB."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

MAX_BYTES = 20_000_000
MAX_PIXELS = 40_000_000
MAX_ASPECT = 4  # longer side / shorter side, since a size is given by the shorter one
MIN_SIDE = 16  # pixels
# What cameras, screenshots and browsers write. Not all that Pillow reads: EPS, for one, starts Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")


class RefusedUploadError(ValueError):
    """An upload that is not taken; its text is meant for the person who sent it."""


def read_upload(path: str | Path) -> Image.Image:
    """Read a photograph that anybody may have sent.

    Bytes, format and pixels are checked before anything is decoded: a PNG of 60 kB can hold a gigabyte of zeros.

    Args:
        path (str | Path): The file. Its name says nothing about what it is.

    Returns:
        Image.Image: RGB, 8 bits, rotated as its EXIF entry says; transparent pixels are white, and of several frames
            it is the first.

    Raises:
        RefusedUploadError: With the reason, if it is too large, too small, too long, damaged or no image.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is the stricter one
            if Path(path).stat().st_size > MAX_BYTES:
                raise RefusedUploadError(f"the file is larger than {MAX_BYTES // 10**6} MB")
            with Image.open(path, formats=FORMATS) as file:  # reads no further than the header
                _check_size(*file.size)
                file.load()
                return _to_rgb(ImageOps.exif_transpose(file))
    except RefusedUploadError:
        raise
    except FileNotFoundError:
        raise RefusedUploadError("the photograph is no longer here: upload it again") from None
    except Image.DecompressionBombError:
        raise RefusedUploadError(_too_large("too many")) from None
    except Image.UnidentifiedImageError:
        raise RefusedUploadError(f"this is no image that can be read here ({', '.join(FORMATS)})") from None
    except Exception:  # of many types: every decoder has its own
        raise RefusedUploadError("the image is damaged or was not uploaded to its end") from None


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise RefusedUploadError(_too_large(f"{width} x {height}"))
    if min(width, height) < MIN_SIDE:
        raise RefusedUploadError(f"the image has {width} x {height} pixels: no side may be below {MIN_SIDE}")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise RefusedUploadError(f"{width} x {height} pixels: one side is more than {MAX_ASPECT} times the other")


def _too_large(pixels: str) -> str:
    return f"the image has {pixels} pixels, at most {MAX_PIXELS // 10**6} million are taken"


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any mode of Pillow -> RGB. Its own conversion of 16-bit greys would cut them off at 255."""
    if image.mode.startswith("I;16") or image.mode == "I":
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
