"""Regenerates `constraints/*.txt`: a pin for every transitive dependency, on every Python of the stack's range.

Each set has two files: `NAME.txt` with the versions, `NAME.lock.txt` with the same ones and the SHA-256 of every file
of each, as the index tells them.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from .environment import ROOT
from .process import SetupError
from .stacks import STACKS, Stack

UV = "uv==0.13.9"
HEADER = (
    "# Written by `make constraints` from the extras of setup.py; each line holds for every Python without a marker.\n"
)
LOCK_HEADER = (
    "# Written by `make constraints`: the versions beside this file, with the SHA-256 of every file of each on PyPI.\n"
)


def pins(stack: Stack) -> Path:
    """Path of the stack's constraints file."""
    return ROOT / "constraints" / f"{stack.name}.txt"


def lock(stack: Stack) -> Path:
    """Path of the stack's constraints with hashes."""
    return ROOT / "constraints" / f"{stack.name}.lock.txt"


def regenerate(upgrade: bool) -> None:
    """Resolves the extras of `setup.py` for every stack and Python, with uv in a throw-away environment of its own.

    The resolution is that of Linux on x86_64; elsewhere it constrains what it names. Pins that still fit stay as they
    are, unless `upgrade` asks for the newest versions.
    """
    with tempfile.TemporaryDirectory() as temporary:
        python = f"{temporary}/venv/bin/python"
        _run(sys.executable, "-m", "venv", f"{temporary}/venv")
        _run(python, "-m", "pip", "install", "--quiet", UV)
        for stack in STACKS.values():
            resolved, hashes = {}, {}
            for minor in range(stack.oldest[1], stack.newest[1] + 1):
                version = f"3.{minor}"
                print(f"setup: resolving the {stack.name} stack for Python {version}", flush=True)
                found = _resolve(python, stack, version, Path(temporary), upgrade)
                resolved[version] = list(found)
                hashes.update(found)
            lines = merge(resolved)
            pins(stack).parent.mkdir(exist_ok=True)
            pins(stack).write_text(HEADER + "\n".join(lines) + "\n")
            lock(stack).write_text(LOCK_HEADER + "".join(with_hashes(line, hashes) for line in lines))


def _resolve(python: str, stack: Stack, version: str, folder: Path, upgrade: bool) -> dict[str, list[str]]:
    """Runs uv for one Python; returns lines name==version, sorted, with the SHA-256 of each release's files."""
    tools = folder / "build_tools.in"
    tools.write_text("\n".join(stack.build_tools) + "\n")
    output = folder / "output.txt"
    output.unlink(missing_ok=True)
    if pins(stack).exists() and not upgrade:
        shutil.copy(pins(stack), output)  # uv prefers the versions that it finds in its output file
    command = [python, "-m", "uv", "pip", "compile", "setup.py", str(tools), "--quiet", "--output-file", str(output)]
    for extra in (stack.name, "demo", "export", "web", "dev"):
        command += ["--extra", extra]
    # mmcv's metadata are made by its setup.py, which wants the same tools as its compilation
    command += ["--build-constraints", str(tools)]
    command += ["--python-version", version, "--python-platform", "x86_64-manylinux_2_28"]
    command += ["--generate-hashes", "--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links"]
    _run(*command)
    return parse(output.read_text())


def parse(output: str) -> dict[str, list[str]]:
    """Splits what uv writes.

    Returns:
        Line name==version -> the SHA-256 of its files.
    """
    releases = re.findall(r"^(\S+==\S+)((?: \\\n +--hash=\S+)*)$", output, re.MULTILINE)
    return {release: re.findall(r"--hash=sha256:(\w+)", hashes) for release, hashes in releases}


def with_hashes(line: str, hashes: dict[str, list[str]]) -> str:
    """A line of the constraints, with or without a marker, continued by the hashes of its release."""
    return " \\\n    ".join([line, *(f"--hash=sha256:{value}" for value in hashes[line.split(" ;")[0]])]) + "\n"


def merge(resolved: dict[str, list[str]]) -> list[str]:
    """Joins the resolutions of several Pythons: a line of all of them stays plain, any other gets a marker.

    Args:
        resolved: version of Python, as markers write it -> lines name==version.
    """
    lines = sorted({line for lines in resolved.values() for line in lines})
    merged = []
    for line in lines:
        versions = [version for version, of_version in resolved.items() if line in of_version]
        markers = " or ".join(f'python_version == "{version}"' for version in versions)
        merged.append(line if len(versions) == len(resolved) else f"{line} ; {markers}")
    return merged


def _run(*command: str) -> None:
    """Runs a command in the repository; what it prints is for the user.

    uv reads variables of its own, so it is told the index that the user told pip; but not the extra ones, since a local
    version such as +cpu would be pinned.
    """
    index = {"UV_DEFAULT_INDEX": os.environ["PIP_INDEX_URL"]} if os.environ.get("PIP_INDEX_URL") else {}
    if subprocess.call(command, cwd=ROOT, env={**os.environ, **index}):
        raise SetupError(
            f"{Path(command[0]).name} {' '.join(command[1:5])} ... failed; what it printed above tells why"
        )
