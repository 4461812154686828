"""Twelve real photographs that ship inside scikit-image's wheels: nothing is downloaded.

They are those of ``skimage.data`` that are photographs, sharp, large enough to be cut into parts, and stated there to
be free of copyright restrictions; NOTICE names their sources.
"""

import numpy as np

try:
    from PIL import Image
    from skimage import data
except ModuleNotFoundError as error:
    raise ImportError(
        f"mmsmlp.photos needs scikit-image and Pillow ({error}): pip install -e '.[demo]' in its clone"
    ) from error

# Functions of skimage.data, in alphabetical order.
NAMES = (
    "astronaut",
    "brick",
    "camera",
    "chelsea",
    "coffee",
    "coins",
    "grass",
    "gravel",
    "hubble_deep_field",
    "immunohistochemistry",
    "retina",
    "rocket",
)
_HALVED = ("retina",)  # 1411 x 1411 pixels: at full size a patch of it shows a single blurred vessel


def photograph(name: str) -> np.ndarray:
    """Reads a photograph.

    Args:
        name: one of ``NAMES``.

    Returns:
        (H, W, 3) uint8, RGB, between 300 x 384 and 872 x 1000 pixels; the grey ones (brick, camera, coins, grass,
        gravel) have three equal channels. The retina is halved in size.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in NAMES:
        raise ValueError(f"unknown photograph {name!r}: choose from {', '.join(NAMES)}")
    image = Image.fromarray(getattr(data, name)()).convert("RGB")
    return np.array(image.reduce(2) if name in _HALVED else image)


def grey_photograph(name: str) -> np.ndarray:
    """Reads a photograph as its luma (ITU-R 601), (H, W) uint8. Arguments and errors as in :func:`photograph`."""
    return np.array(Image.fromarray(photograph(name)).convert("L"))


def window(array: np.ndarray, height: int, width: int, number: int = 0) -> np.ndarray:
    """Cuts a window of any size out of a photograph, or out of labels of its pixels.

    The photograph continues in all directions as its own mirror image, so a window may be larger than it.

    Args:
        array: (H, W, ...), the photograph or its labels.
        height: height of the window, in pixels.
        width: its width.
        number: which window: each next one lies 97 rows and 61 columns further, and the odd ones are mirrored.

    Returns:
        (height, width, ...), a copy.
    """
    rows = _mirrored(array.shape[0], 97 * number, height)
    columns = _mirrored(array.shape[1], 61 * number, width)
    cut = array[rows][:, columns]
    return np.ascontiguousarray(cut[:, ::-1] if number % 2 else cut)


def _mirrored(length: int, start: int, count: int) -> np.ndarray:
    """Indices of ``count`` places from ``start`` on, along an axis that runs to and fro: 0 1 2 2 1 0 0 1 2 ..."""
    places = np.arange(start, start + count) % (2 * length)
    return np.minimum(places, 2 * length - 1 - places)
