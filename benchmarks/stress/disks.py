"""Disks that are full or read-only: a file system of its own where one may be mounted, else limits of the process."""

from __future__ import annotations

import contextlib
import os
import resource
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

MEGABYTE = 1 << 20


class Disk:
    """A folder with a fault, for child processes.

    Args:
        folder (Path): The folder, empty.
        mounted (bool): Whether it is a file system of its own.
    """

    def __init__(self, folder: Path, mounted: bool) -> None:
        self.folder, self.mounted = folder, mounted
        self._room: int | None = None

    def fill(self, room: int) -> None:
        """Leave no more than some room.

        Args:
            room (int): Bytes that can still be written. Without a file system of its own, no file can become longer.
        """
        if not self.mounted:
            self._room = room
            return
        status = os.statvfs(self.folder)
        with open(self.folder / "filler", "wb") as file:
            # Blocks that are really taken: a file with a hole takes none.
            os.posix_fallocate(file.fileno(), 0, max(1, status.f_bavail * status.f_frsize - room))

    def make_read_only(self) -> None:
        """Refuse all writing."""
        if self.mounted:
            subprocess.run(["mount", "-o", "remount,ro", str(self.folder)], check=True)
            return
        for path in [self.folder, *self.folder.rglob("*")]:
            path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))

    def mend(self) -> None:
        """Take the fault away."""
        self._room = None
        if self.mounted:
            subprocess.run(["mount", "-o", "remount,rw", str(self.folder)], check=True)
            (self.folder / "filler").unlink(missing_ok=True)
            return
        self.folder.chmod(0o755)
        for path in self.folder.rglob("*"):
            path.chmod(path.stat().st_mode | stat.S_IWUSR)

    def preparation(self) -> Callable[[], None] | None:
        """What a child process has to call first: subprocess's ``preexec_fn``."""
        if self._room is None:
            return None
        return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (self._room, self._room))


@contextlib.contextmanager
def disk(folder: Path, size: int = 160 * MEGABYTE) -> Iterator[Disk]:
    """A disk in memory, mounted on a folder as long as the block runs; the folder itself where that is not allowed.

    Args:
        folder (Path): Where; made if it is missing.
        size (int): Bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    allowed = sys.platform == "linux" and os.geteuid() == 0
    mounted = allowed and subprocess.run(command, capture_output=True, check=False).returncode == 0
    result = Disk(folder, mounted)
    try:
        yield result
    finally:
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            result.mend()
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def can_fail(fault: str, disk: Disk) -> bool:
    """Whether a fault takes effect: root may write to a read-only folder that is no file system of its own."""
    return fault == "full" or disk.mounted or os.geteuid() != 0
