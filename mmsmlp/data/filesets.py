"""Data sets as folders of files: written completely or not at all, and never over files that are not theirs."""

import io
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from mmengine.logging import print_log

from mmsmlp.data.coco import write_coco
from mmsmlp.files import atomic_directory

try:
    from PIL import Image
except ModuleNotFoundError as error:
    raise ImportError(f"mmsmlp.data.filesets needs Pillow ({error}): pip install -e '.[demo]' in its clone") from error

Content = np.ndarray | dict | bytes


def write_set(
    root: str | Path, contents: Mapping[str, Content], title: str, tool: str, overwrite: bool = False
) -> Path:
    """Writes a set of files. A complete set is left untouched, and so is all that is not such a set.

    Args:
        root: the set's folder; missing parent folders are made.
        contents: file name relative to ``root`` -> an image, (H, W) or (H, W, 3) uint8, written as PNG; the arguments
            of :func:`mmsmlp.data.coco.write_coco` without the path; or the file's bytes.
        title: what the messages call the set, for example 'coins set'.
        tool: the command that they name, for example 'make_coins.py'.
        overwrite: rebuild an existing set, complete or damaged.

    Returns:
        ``root``.

    Raises:
        FileExistsError: ``root`` is a file, holds files that are not the set's, or (without ``overwrite``) holds a
            damaged set.
        OSError: ``root`` cannot be written (its subclass says why, for example ``PermissionError``).
    """
    root = Path(root)
    if _is_set(root, contents) and not overwrite:
        print_log(f"{root} already holds the complete {title}: left untouched", logger="current")
        return root
    _refuse_others(root, contents, title, tool, overwrite)
    try:
        with atomic_directory(root, overwrite) as folder:
            for name, content in contents.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                _save(folder / name, content)
    except OSError as error:
        if not overwrite and _is_set(root, contents):  # another process was faster
            return root
        reason = (
            f"cannot write the {title} to {root}: {error.strerror or error}. "
            f"Choose a writable folder with {_megabytes(contents)} MB free"
        )
        raise OSError(error.errno, reason) from error
    print_log(f"{root}: wrote the {title}", logger="current")
    return root


def png(image: np.ndarray) -> bytes:
    """Encodes an image, (H, W) or (H, W, 3) uint8, as PNG."""
    # In memory: Pillow's own file writing hides the reason of a failed write.
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def read_image(path: Path) -> np.ndarray:
    """Reads an image file as it is, (H, W) or (H, W, 3) uint8."""
    with Image.open(path) as image:
        return np.array(image)


def _save(path: Path, content: Content) -> None:
    if isinstance(content, dict):
        write_coco(path, **content)
    else:
        path.write_bytes(png(content) if isinstance(content, np.ndarray) else content)


def _is_set(root: Path, contents: Mapping[str, Content]) -> bool:
    """Whether the files under ``root`` say what they should."""
    try:
        return all(_says(root / name, content) for name, content in contents.items())
    except (OSError, ValueError, SyntaxError):  # missing or damaged; Pillow calls a broken PNG a SyntaxError
        return False


def _says(path: Path, content: Content) -> bool:
    if isinstance(content, dict):
        return json.loads(path.read_text(encoding="utf-8")) == content
    if isinstance(content, np.ndarray):  # decoded, since PNG bytes differ between zlib versions
        return np.array_equal(read_image(path), content)
    return path.read_bytes() == content


def _refuse_others(root: Path, contents: Mapping[str, Content], title: str, tool: str, overwrite: bool) -> None:
    """Raises FileExistsError where writing to ``root`` would destroy something that is not ours to destroy."""
    if root.exists() and not root.is_dir():
        raise FileExistsError(f"{root} is a file, not a folder: choose another path for the {title}")
    found = False
    for path in root.rglob("*"):
        if not path.is_dir():
            found, name = True, path.relative_to(root).as_posix()
            if name not in contents:
                raise FileExistsError(
                    f"{root} holds files other than the {title}'s ({name}): choose another folder or move them away"
                )
    if found and not overwrite:
        raise FileExistsError(
            f"{root} holds a damaged or an older {title}: overwrite=True ({tool} --overwrite) replaces it"
        )


def _megabytes(contents: Mapping[str, Content]) -> int:
    """An upper estimate of the set's size on a disk."""

    def size(content: Content) -> int:
        if isinstance(content, np.ndarray):
            return content.nbytes
        return len(json.dumps(content, indent=1)) if isinstance(content, dict) else len(content)

    return 1 + sum(map(size, contents.values())) // 1_000_000
