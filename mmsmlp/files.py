"""Writing to disk so that a reader never meets half a file or half a folder."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_directory(root: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Yields a temporary folder beside ``root`` that becomes ``root`` if the block succeeds, and vanishes if it raises.

    Args:
        root: the folder to make; missing parents are made, and removed again on failure. A link is followed.
        overwrite: replace ``root`` where it exists; otherwise only an empty folder is.

    Raises:
        OSError: the folder cannot be made, or ``root`` is not empty and ``overwrite`` is false.
    """
    root = Path(os.path.realpath(root))
    new_parents = [parent for parent in root.parents if not parent.exists()]  # the deepest first
    # Not tempfile.mkdtemp: its folders are closed to other users whatever the umask says.
    new = root.with_name(f".{root.name}.{uuid.uuid4().hex[:8]}.partial")
    old = new.with_suffix(".old")
    try:
        new.mkdir(parents=True)
        yield new
        if overwrite and root.exists():
            os.replace(root, old)
        os.replace(new, root)
    finally:
        if old.exists() and not root.exists():
            os.replace(old, root)
        for leftover in (new, old):
            shutil.rmtree(leftover, ignore_errors=True)
        for parent in new_parents:
            with contextlib.suppress(OSError):  # not empty: it holds the set
                parent.rmdir()


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside ``path`` (same suffix); what is written there becomes ``path`` on success.

    Args:
        path: the file to write or replace; missing parent folders are made.

    Raises:
        OSError: the file cannot be written. The old file, if any, is still whole then.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}{path.suffix}")
    try:
        yield new
        durable_replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def durable_replace(new: str | Path, path: str | Path) -> None:
    """Rename a file or folder to its place, after its contents have reached the disk.

    Args:
        new: what was written, beside ``path``.
        path: its place. A file there is replaced at once, a folder removed first.

    Raises:
        OSError: it cannot be flushed or renamed.
    """
    new, path = Path(new), Path(path)
    for file in [new, *new.rglob("*")] if new.is_dir() else [new]:
        _flush(file)
    if path.is_dir():
        shutil.rmtree(path)
    os.replace(new, path)
    with contextlib.suppress(OSError):  # some network file systems flush no folders; the file is in its place
        _flush(path.parent)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
