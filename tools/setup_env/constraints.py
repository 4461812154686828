"""Regenerates `constraints/*.txt`: a pin for every transitive dependency, on every Python of the stack's range."""

from __future__ import annotations

import os
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


def pins(stack: Stack) -> Path:
    """Path of the stack's constraints file."""
    return ROOT / "constraints" / f"{stack.name}.txt"


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
            resolved = {}
            for minor in range(stack.oldest[1], stack.newest[1] + 1):
                version = f"3.{minor}"
                print(f"setup: resolving the {stack.name} stack for Python {version}", flush=True)
                resolved[version] = _resolve(python, stack, version, Path(temporary), upgrade)
            pins(stack).parent.mkdir(exist_ok=True)
            pins(stack).write_text(HEADER + "\n".join(merge(resolved)) + "\n")


def _resolve(python: str, stack: Stack, version: str, folder: Path, upgrade: bool) -> list[str]:
    """Runs uv for one Python; returns lines name==version, sorted."""
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
    _run(*command, "--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links")
    return output.read_text().split("\n")[:-1]


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
