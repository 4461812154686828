"""What pip is told to install: the pins alone, or the pins with the hash of every file that may be downloaded."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

from .constraints import lock, pins
from .environment import Environment
from .process import SetupError
from .stacks import Stack

# Of pip: names of other places where files come from than one index; what lies there has hashes of its own.
OTHER_PLACES = ("find-links", "extra-index-url")


class Source(NamedTuple):
    """The pins of a stack, with or without hashes.

    Attributes:
        pins: the constraints file.
        lines: name -> the lines of the lock that are about it, hashes included; empty if hashes are not checked.
        folder: where requirement files may be written.
    """

    pins: Path
    lines: dict[str, list[str]]
    folder: Path

    @property
    def hashed(self) -> bool:
        """Tells whether pip checks hashes."""
        return bool(self.lines)

    def options(self, *names: str) -> tuple[str, ...]:
        """Pip's options and arguments for these packages, with their dependencies where no hashes are checked.

        In pip's hash-checking mode all files need a hash, so that dependencies have to be named as well.
        """
        if not self.hashed:
            return "-c", str(self.pins), *names
        path = self.folder / "requirements.txt"
        path.write_text("".join(line for name in names for line in self.lines[name.split("==")[0]]))
        return "--require-hashes", "--no-deps", "-r", str(path)

    def wheels(self, name: str, requirement: str) -> tuple[str, ...]:
        """Pip's options for a wheel of mmcv. A user's own has no known hash, so it may come from his folders alone."""
        return "-c", str(self.pins), "--only-binary", name, *(("--no-index",) if self.hashed else ()), requirement


def read_lock(path: Path) -> dict[str, list[str]]:
    """Reads a file of constraints with hashes.

    Returns:
        Canonical name -> its lines as they stand there (one for each version, several lines of the file each).
    """
    found: dict[str, list[str]] = {}
    for line in re.findall(r"^[^#\s](?:.*\\\n)*.*\n", path.read_text("utf-8"), re.MULTILINE):
        found.setdefault(line.split("==")[0], []).append(line)
    return found


def choose_source(stack: Stack, env: Environment, hashes: bool | None) -> tuple[Source, str]:
    """Decides whether hashes are checked.

    Args:
        stack: the set of packages.
        env: the environment, with its pip.
        hashes: what the user asks for; None where he says nothing: wherever it can be done.

    Returns:
        The source, and why no hashes are checked ('' if they are, or the user wants none).

    Raises:
        SetupError: hashes are asked for where none are known.
    """
    plain = Source(pins(stack), {}, env.folder)
    if hashes is False:
        return plain, ""
    reason = None
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        reason = "the files that this kind of machine needs are not in the lock, which is for Linux on x86_64"
        if hashes:
            raise SetupError(f"{reason}; leave HASHES=1 out")
    elif hashes is None and (places := other_places(env)):
        reason = f"pip is told of {' and '.join(places)}, whose files have others; HASHES=1 checks all the same"
    if reason:
        return plain, f"versions are pinned, hashes are not checked: {reason}"
    return Source(pins(stack), read_lock(lock(stack)), env.folder), ""


def other_places(env: Environment) -> list[str]:
    """Names what the user's configuration of pip (variables and files) has besides one index."""
    command = [str(env.python), "-m", "pip", "config", "list"]
    output = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=os.environ).stdout.decode()
    return [name for name in OTHER_PLACES if re.search(rf"^\S+\.{name}='.*\S.*'$", output, re.MULTILINE)]
