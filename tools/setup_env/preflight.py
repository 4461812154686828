"""What the machine must have, checked before anything is downloaded."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from .process import SetupError
from .stacks import Stack

CANDIDATES = ("python3", "python3.12", "python3.11", "python3.10")

# The base interpreter is asked for, since an environment made from another one's Python would depend on that one.
_PROBE = """
import json, os, sys, sysconfig
def has(name):
    try:
        return bool(__import__(name))
    except ImportError:
        return False
print(json.dumps({
    'executable': getattr(sys, '_base_executable', sys.executable),
    'version': list(sys.version_info[:3]),
    'venv': has('venv') and has('ensurepip'),
    'headers': os.path.exists(os.path.join(sysconfig.get_paths()['include'], 'Python.h')),
}))
"""


class Interpreter(NamedTuple):
    """A Python that runs: where it is, its version, and whether it has what an environment and a compilation need."""

    executable: str
    version: tuple[int, int, int]
    venv: bool
    headers: bool

    @property
    def dotted(self) -> str:
        """The version as users write it."""
        return ".".join(map(str, self.version))


def probe(python: str) -> Interpreter | None:
    """Asks a Python about itself; None if it does not run (a pyenv shim may exist and fail)."""
    try:
        answer = subprocess.run([python, "-c", _PROBE], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=60)
        facts = json.loads(answer.stdout) if answer.returncode == 0 else None
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    return facts and Interpreter(**{**facts, "version": tuple(facts["version"])})


def choose_interpreter(stack: Stack, candidates: Sequence[str]) -> Interpreter:
    """Takes the first candidate that runs and suits the stack.

    Raises:
        SetupError: there is none; the line names what was found, the range, and the remedy.
    """
    found = [facts for facts in map(probe, candidates) if facts]
    for interpreter in found:
        if stack.oldest <= interpreter.version[:2] <= stack.newest:
            return interpreter
    low, high = (".".join(map(str, version)) for version in (stack.oldest, stack.newest))
    needs = f"the {stack.name} stack needs Python {low} to {high}"
    remedy = f"name one: make setup PYTHON=/path/to/python{high} (apt-get install python3 python3-venv python3-dev)"
    if not found:
        raise SetupError(f"{', '.join(candidates)}: no such Python runs; {needs}; {remedy}")
    age = "old" if found[0].version[:2] < stack.oldest else "new"
    raise SetupError(f"Python {found[0].dotted} ({found[0].executable}) is too {age}; {needs}; {remedy}")


def check_interpreter(interpreter: Interpreter) -> None:
    """Raises `SetupError` if the venv module or the C headers of this Python are not installed."""
    name = "python{}.{}".format(*interpreter.version[:2])
    if not interpreter.venv:
        raise SetupError(f"{interpreter.executable} has no venv module with ensurepip; apt-get install {name}-venv")
    if not interpreter.headers:
        raise SetupError(f"{interpreter.executable} has no headers (Python.h); apt-get install {name}-dev")


def find_compiler() -> str:
    """Returns a C++ compiler that works with C++17 and its standard library: `CXX`, or the first one on the PATH.

    Raises:
        SetupError: none works.
    """
    remedy = "install one (apt-get install g++) or name it: CXX=/path/to/g++"
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    compiler = next((name for name in names if shutil.which(name.split()[0])), None)
    if compiler is None:
        raise SetupError(f"there is no C++ compiler ({', '.join(names)}), which mmcv's operators need; {remedy}")
    trial = [*compiler.split(), "-std=c++17", "-fsyntax-only", "-x", "c++", "-"]
    result = subprocess.run(
        trial, input=b"#include <optional>\nint main() {}\n", stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if result.returncode:
        raise SetupError(f"the C++ compiler {compiler} does not compile C++17; {remedy}")
    return compiler


class Space(NamedTuple):
    """Gigabytes that a set-up takes: in the environment, and as downloads in TMPDIR and once more in pip's cache."""

    installed: float
    downloads: float


# Measured with onedl on Python 3.11 (5.8 and 2.6), rounded up; PyPI's torch for Linux brings CUDA's libraries. Without
# these and triton (3.4) and their part of torch.
WITH_CUDA_LIBRARIES = Space(installed=6.5, downloads=3.0)
WITHOUT = Space(installed=2.5, downloads=0.5)


def needed_space() -> Space:
    """Tells which torch pip will find: the CPU-only index, where given, holds the build that shadows PyPI's."""
    indexes = os.environ.get("PIP_INDEX_URL", "") + " " + os.environ.get("PIP_EXTRA_INDEX_URL", "")
    cpu_only = sys.platform != "linux" or any(url.rstrip("/").endswith("/cpu") for url in indexes.split())
    return WITHOUT if cpu_only else WITH_CUDA_LIBRARIES


def check_space(folder: Path, present: float = 0.0) -> bool:
    """Checks every disk that the set-up writes to.

    Args:
        folder: the environment's folder, there or not.
        present: gigabytes that it holds already.

    Returns:
        Whether there is room for pip's cache too, which only a later set-up profits from.

    Raises:
        SetupError: some disk has too little room even without the cache.
    """
    need = needed_space()
    # what is installed was downloaded before: an interrupted set-up needs the rest only
    rest = max(0.0, 1 - present / need.installed)
    cache = os.environ.get("PIP_CACHE_DIR") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pip"
    required = [(folder, need.installed * rest), (Path(tempfile.gettempdir()), need.downloads * rest)]
    if full := next(_too_small(required), None):
        place, free, gigabytes = full
        raise SetupError(
            f"the disk of {place} has {free:.1f} GB free and the set-up needs {gigabytes:.1f} GB; "
            f"free some, or take the CPU-only torch: "
            f"PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make setup"
        )
    return not any(_too_small([*required, (Path(cache), need.downloads * rest)]))


def _too_small(places: Iterable[tuple[Path, float]]) -> Iterator[tuple[Path, float, float]]:
    """Sums up the gigabytes wanted on each disk; yields, where there are fewer, a folder, those free, those wanted."""
    wanted: dict[int, float] = defaultdict(float)
    example = {}
    for place, gigabytes in places:
        while not place.exists():
            place = place.parent
        disk = place.stat().st_dev
        wanted[disk] += gigabytes
        example.setdefault(disk, place)
    for disk, gigabytes in wanted.items():
        free = shutil.disk_usage(example[disk]).free / 1e9
        if free < gigabytes:
            yield example[disk], free, gigabytes
