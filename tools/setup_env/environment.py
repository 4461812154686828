"""The virtual environment's folder: made, repaired after an interruption, locked, and stamped when it is complete."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from .preflight import Interpreter
from .process import run

ROOT = Path(__file__).resolve().parents[2]


class Environment:
    """A virtual environment with a lock, a log and a stamp beside its packages.

    Attributes:
        folder: where it is.
        python: its interpreter.
        log: the output of every command that made it.
    """

    def __init__(self, folder: Path):
        """Names the files; nothing is read or made."""
        self.folder = folder
        self.python = folder / "bin" / "python"
        self.log = folder / "setup.log"
        self._stamp = folder / "setup.stamp"
        self._hashed = folder / "setup.hashed"
        self._lock_fd = -1

    @property
    def version(self) -> str | None:
        """Version of Python that it was made with, or None if it is not there."""
        with contextlib.suppress(OSError):
            match = re.search(r"^version *= *(\S+)", (self.folder / "pyvenv.cfg").read_text(), re.MULTILINE)
            return match and match[1]
        return None

    @property
    def packages(self) -> Path:
        """Its site-packages folder."""
        return self.folder / "lib" / "python{}.{}".format(*self.version.split(".")[:2]) / "site-packages"

    @property
    def torch(self) -> tuple[str, str | None]:
        """Versions of the installed torch and of the CUDA it was built for, read without importing it (seconds)."""
        with contextlib.suppress(OSError, AttributeError):
            text = (self.packages / "torch" / "version.py").read_text()
            cuda = re.search(r"^cuda\b.*?= *'([\d.]+)'", text, re.MULTILINE)
            return re.search(r"^__version__ = '(.+)'", text, re.MULTILINE)[1], cuda and cuda[1]
        return "", None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lets one set-up at a time work here; children inherit the lock, so an orphaned pip is waited for, too."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock_fd = os.open(self.folder / "setup.lock", os.O_CREAT | os.O_RDWR, 0o644)
        try:
            try:
                fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"setup: waiting for another set-up of {self.folder} to end", flush=True)
                fcntl.flock(self._lock_fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def is_stamped(self, fingerprint: str) -> bool:
        """Tells whether a set-up with this fingerprint was completed, and the environment still runs."""
        try:
            complete = self._stamp.read_text() == fingerprint
        except OSError:
            return False
        return complete and self._runs("-S", "-c", "")

    def stamp(self, fingerprint: str) -> None:
        """Marks the set-up as complete, in one step that an interruption cannot split."""
        temporary = self._stamp.with_suffix(".tmp")
        temporary.write_text(fingerprint)
        os.replace(temporary, self._stamp)

    def unstamp(self) -> None:
        """Takes the mark away before anything is changed."""
        with contextlib.suppress(FileNotFoundError):
            self._stamp.unlink()

    @property
    def hashed(self) -> bool:
        """Whether all that was downloaded into it had its hash checked."""
        return self._hashed.exists()

    @hashed.setter
    def hashed(self, value: bool) -> None:
        if value:
            self._hashed.touch()
        elif self.hashed:
            self._hashed.unlink()

    def make(self, interpreter: Interpreter, anew: bool = False) -> bool:
        """Makes the environment; makes it anew if it is another Python's, half made, or moved here from elsewhere.

        Args:
            interpreter: the Python to make it with.
            anew: make it anew in any case, without the mmcv that was compiled here.

        Returns:
            Whether it was made, so that it is empty.
        """
        new = anew or self.version != interpreter.dotted or not self._is_sound()
        if new:
            keep = {"setup.lock", "setup.log", *(() if anew else ("wheels", "build"))}
            for child in self.folder.iterdir():
                if child.name not in keep:
                    shutil.rmtree(child) if child.is_dir() and not child.is_symlink() else child.unlink()
            self.run([interpreter.executable, "-m", "venv", str(self.folder)], "making the virtual environment")
        self._repair()
        return new

    def _is_sound(self) -> bool:
        """Tells whether pip runs and its launcher points here."""
        try:
            here = str(self.python.parent) in (self.folder / "bin" / "pip").read_text()
        except OSError:
            return False
        return here and self._runs("-m", "pip", "--version")

    def _runs(self, *arguments: str) -> bool:
        """Tells whether its Python is there and exits without an error."""
        command = [str(self.python), *arguments]
        with contextlib.suppress(OSError):
            return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0
        return False

    def _repair(self) -> None:
        """Removes what a killed set-up left: packages moved aside (~name), metadata of half-copied ones, our own.

        pip writes INSTALLER after a package's last file; without the metadata it installs the package again.
        """
        half = (info for info in self.packages.glob("*.dist-info") if not (info / "INSTALLER").exists())
        for folder in [*self.packages.glob("~*"), *half, *self.folder.glob("build/tmp*")]:
            shutil.rmtree(folder, ignore_errors=True)

    def run(self, command: list[str], doing: str, env: dict[str, str] | None = None, cwd: Path = ROOT) -> None:
        """Runs a command with the log and the lock of this environment; raises `SetupError` if it fails."""
        run(command, doing, self.log, env, cwd, self._lock_fd)

    def pip(self, command: str, *arguments: str, doing: str, env: dict[str, str] | None = None) -> None:
        """Runs its pip; the user's PIP_* variables apply, except that a `--user` default would break an environment."""
        progress = ["--progress-bar", "raw"] if command in ("install", "download") and self._pip_is_recent() else []
        env = {"PIP_USER": "0", "PIP_NO_INPUT": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1", **(env or {})}
        self.run([str(self.python), "-m", "pip", command, *progress, *arguments], doing, env)

    def _pip_is_recent(self) -> bool:
        """Tells whether pip knows `--progress-bar raw` (24.1); the one that the venv module brings may not."""
        names = [info.name.split("-")[1] for info in self.packages.glob("pip-*.dist-info")]
        return all(int(name.split(".")[0]) >= 25 for name in names)


def fingerprint(*facts: str, files: list[Path]) -> str:
    """Returns a hash over facts and the content of files: if it changes, the set-up has work to do.

    The repository's place belongs to the facts, since an environment cannot be moved.
    """
    digest = hashlib.sha256("\0".join([str(ROOT), *facts]).encode())
    for path in sorted(files):
        digest.update(b"\0" + path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest() + "\n"
