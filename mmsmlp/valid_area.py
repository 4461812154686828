"""Valid areas: each image of a padded batch is computed on its own pixels only.

Detectors pad the images of a batch to a common canvas, and a backbone sees only the canvas: what an image's features
are then depends on its neighbours in the batch. Here the tokens of all images that are not padding are *packed* into
one row, a map (1, C, 1, T) in channels-last memory. Whatever works token by token (norms, activations, linear layers)
runs on it as on any map, and batch norms count valid tokens only, without knowing. Whatever looks at neighbours runs on
each image's own map, a view of that row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor

# Height and width of each image of a batch, in pixels or in tokens.
Sizes = tuple[tuple[int, int], ...]

_ATTRIBUTE = "valid_sizes"


def attach_valid_sizes(images: Tensor, sizes: Sequence[Sequence[int]]) -> Tensor:
    """Note on a batch how much of each image is not padding; the rest lies to the right and below.

    The note is an attribute of this very tensor: what slices, copies or resizes it makes a tensor without, whose images
    fill the canvas. So sizes cannot outlive what they describe.

    Args:
        images (Tensor): Images (N, C, H, W).
        sizes (Sequence[Sequence[int]]): Height and width of each image in pixels.

    Returns:
        Tensor: ``images``.

    Raises:
        ValueError: If there is not one size per image, or one does not fit into the canvas.
    """
    given = tuple((int(height), int(width)) for height, width in sizes)
    canvas_height, canvas_width = images.shape[2:]
    if len(given) != len(images) or not all(1 <= h <= canvas_height and 1 <= w <= canvas_width for h, w in given):
        raise ValueError(
            f"valid sizes must be one (height, width) per image within the canvas: {len(images)} images of "
            f"{canvas_height} x {canvas_width}, got {list(sizes)}"
        )
    setattr(images, _ATTRIBUTE, given)
    return images


def image_sizes(images: Sequence[Tensor] | Tensor) -> list[tuple[int, int]]:
    """Heights and widths in pixels of images (C, h, w), a list of them or one tensor (N, C, h, w), before padding."""
    return [tuple(image.shape[-2:]) for image in images]


def attached_valid_sizes(images: Tensor) -> Sizes | None:
    """Valid sizes noted on a batch; None if there are none, or all images fill the canvas."""
    sizes = getattr(images, _ATTRIBUTE, None)
    return None if sizes is None or all(size == tuple(images.shape[2:]) for size in sizes) else sizes


def downsampled(sizes: Sizes, stride: int) -> Sizes:
    """Sizes of the maps after patches of ``stride``: rounded up, as the last patch of an axis may be padded."""
    return tuple((-(-height // stride), -(-width // stride)) for height, width in sizes)


def pack(maps: Sequence[Tensor]) -> Tensor:
    """Put the tokens of maps (n, C, h, w) of any sizes into one row (1, C, 1, T), channels-last."""
    tokens = [m.permute(0, 2, 3, 1).reshape(-1, m.shape[1]) for m in maps]
    return torch.cat(tokens)[None, None].permute(0, 3, 1, 2)


def pack_valid(images: Tensor, sizes: Sizes) -> Tensor:
    """Pack the valid areas of a batch (N, C, H, W)."""
    return pack([image[None, :, :height, :width] for image, (height, width) in zip(images, sizes)])


def unpack(row: Tensor, sizes: Sizes) -> Iterator[Tensor]:
    """Views of a row (1, C, 1, T) as maps (n, C, h, w): one for each run of ``n`` images of equal sizes."""
    tokens = row.permute(0, 2, 3, 1)[0, 0]
    start = 0
    for (height, width), run in groupby(sizes):
        count = len(list(run))
        stop = start + count * height * width
        yield tokens[start:stop].view(count, height, width, -1).permute(0, 3, 1, 2)
        start = stop


def on_each_image(operation: Callable[[Tensor], Tensor], x: Tensor, sizes: Sizes | None) -> Tensor:
    """Run an operation that looks at neighbours.

    Args:
        operation (Callable[[Tensor], Tensor]): (n, C, h, w) -> (n, C', h', w').
        x (Tensor): A row of packed maps of ``sizes``, or a batch (N, C, H, W) if there are no sizes.
        sizes (tuple[tuple[int, int], ...] | None): Height and width of each image's map.

    Returns:
        Tensor: The row of the results, or the batch of them.
    """
    if sizes is None:
        return operation(x)
    return pack([operation(m) for m in unpack(x, sizes)])


def to_canvas(row: Tensor, sizes: Sizes, height: int, width: int) -> Tensor:
    """Lay a row of packed maps out on canvases (N, C, height, width), zero outside of the valid areas."""
    canvas = row.new_zeros(len(sizes), row.shape[1], height, width)
    first = 0
    for maps in unpack(row, sizes):
        canvas[first : first + len(maps), :, : maps.shape[2], : maps.shape[3]] = maps
        first += len(maps)
    return canvas
