"""The two sets of OpenMMLab packages that share their import names: never both in one environment."""

from __future__ import annotations

from typing import NamedTuple


class Stack(NamedTuple):
    """What differs between the sets; exact versions stand in `setup.py`'s extras and in `constraints/`.

    Attributes:
        name: the extra of `setup.py` and the file of `constraints/`.
        oldest: first Python (major, minor) that the set supports.
        newest: last one.
        folder: the virtual environment's folder.
        mmcv: the distribution whose operators may have to be compiled.
        build_tools: what has to be there before mmcv can be compiled and this package be installed.
        editable: pip's options for the editable installation of this package.
        modules: what the verification imports, besides mmcv and its operators.
    """

    name: str
    oldest: tuple[int, int]
    newest: tuple[int, int]
    folder: str
    mmcv: str
    build_tools: tuple[str, ...]
    editable: tuple[str, ...]
    modules: tuple[str, ...]


TOOLBOXES = ("mmengine", "mmdet", "mmseg", "mmpretrain", "mim")

STACKS = {
    "onedl": Stack(
        name="onedl",
        oldest=(3, 10),
        newest=(3, 12),
        folder=".venv",
        mmcv="onedl-mmcv",
        # setuptools < 80 rejects onedl-mmcv's licence field, setuptools >= 82 has no pkg_resources
        build_tools=("pip==25.3", "setuptools==80.9.0", "wheel", "ninja", "psutil"),
        # a plain .pth file, which every tool understands; onedl-mim reads pip's direct_url.json
        editable=("--config-settings", "editable_mode=compat"),
        modules=TOOLBOXES,
    ),
    "openmmlab": Stack(
        name="openmmlab",
        oldest=(3, 10),
        newest=(3, 11),
        folder=".venv-openmmlab",
        mmcv="mmcv",
        # openmim finds an editable package by its egg-link only, which setuptools >= 80 and pip >= 25.3 no longer write
        build_tools=("pip==25.2", "setuptools==79.0.1", "wheel", "ninja", "psutil"),
        editable=("--no-use-pep517",),
        modules=TOOLBOXES,
    ),
}
