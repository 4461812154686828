"""The official weights' files: downloaded, checked, and loaded as ``spach://`` checkpoints by every OpenMMLab config.

``spach://smlp_b`` downloads the file of microsoft/SPACH's release, ``spach:///path/to/file.pth`` reads a file. See
docs/checkpoints.md.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import os
import re
from contextlib import nullcontext
from pathlib import Path
from urllib.request import urlopen

import torch
from mmengine.dist import all_gather_object, get_dist_info
from mmengine.logging import print_log
from mmengine.runner import CheckpointLoader
from torch import Tensor

from mmsmlp.files import atomic_file
from mmsmlp.weights.arch import Arch, some
from mmsmlp.weights.checkpoint_file import CheckpointFileError, check_whole, not_finite
from mmsmlp.weights.spach import check_spach, convert_spach

SCHEME = "spach://"
RELEASE_URL = "https://github.com/microsoft/SPACH/releases/download/v1.0"
RELEASED = {"smlp_s": "small", "smlp_b": "base"}  # there is no file of the tiny model
MIRROR_VARIABLE = "MMSMLP_SPACH_URL"
_TIMEOUT = 30  # seconds without a byte from the server
_CHUNK = 1 << 20  # bytes


@CheckpointLoader.register_scheme(prefixes=SCHEME, force=True)  # force: the module may be reloaded
def load_from_spach(filename: str, map_location=None) -> dict:
    """Load official weights as a checkpoint of mmpretrain's ImageClassifier with our backbone.

    Registered for ``spach://`` with mmengine, so ``init_cfg=dict(type='Pretrained', checkpoint='spach://smlp_b')``,
    ``load_from`` and ``load_checkpoint`` take it.

    Args:
        filename (str): ``spach://smlp_s`` or ``spach://smlp_b``, downloaded once; or ``spach://`` and the path of a
            file of that structure and any size.
        map_location: As of :func:`torch.load`.

    Returns:
        dict: ``state_dict`` with ``backbone.…`` and ``head.fc.…``, and ``meta`` with ``source``, ``arch`` (its name,
            or a dict where it has none), ``anchor`` (height and width in pixels) and the file's ``sha256``.

    Raises:
        ValueError: If the name is unknown, or (``CheckpointFileError``) the file is not an official one.
        OSError: If the file is not there, or cannot be downloaded.
    """
    target = filename.removeprefix(SCHEME)
    if target in RELEASED:
        path = released_file(target)
        remedy = f"Delete {path}, and it is downloaded again"
    elif "/" in target or target.endswith(".pth"):
        path, remedy = Path(target).expanduser(), "Take the file as it was released"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file (from {filename})")
    else:
        raise ValueError(
            f"unknown official weights {filename!r}: {some(SCHEME + name for name in RELEASED)}, or spach:///path/to/file"
        )
    try:
        state_dict, arch = read_official(path, arch=RELEASED.get(target), map_location=map_location)
    except ValueError as error:
        raise CheckpointFileError(f"{error}. {remedy}") from None
    meta = {
        "source": filename if target in RELEASED else f"{SCHEME}{path.resolve()}",
        "arch": arch.name or arch.settings,
        "anchor": arch.img_size,
        "sha256": _sha256(path),
    }
    return {"state_dict": convert_spach(state_dict), "meta": meta}


def read_official(
    path: str | Path, label: str | None = None, arch: str | None = None, map_location=None
) -> tuple[dict[str, Tensor], Arch]:
    """Read a file of official weights, without executing anything in it, and check its keys and shapes.

    Args:
        path (str | Path): The file: a dict whose key ``model`` holds the state dict. The official training code also
            stores its command line (``argparse.Namespace``) and the optimiser's state; both are left out.
        label (str, optional): What to call the file in an error. Defaults to its path.
        arch (str, optional): 'tiny', 'small' or 'base' if it has to be that one.
        map_location: As of :func:`torch.load`. Defaults to the CPU.

    Returns:
        tuple[dict[str, Tensor], Arch]: The state dict under the official names, and the model recognised from it.

    Raises:
        ValueError: In one line, if the file is damaged, holds more than tensors and plain values, another model, or
            values that are not finite.
        OSError: If it cannot be opened.
    """
    label = label or str(path)
    check_whole(path, label)
    # Exactly this class, which runs nothing; older versions of PyTorch cannot be told.
    allowed = getattr(torch.serialization, "safe_globals", lambda classes: nullcontext())
    with open(path, "rb") as file, allowed([argparse.Namespace]):
        try:
            content = torch.load(file, map_location=map_location or "cpu", weights_only=True)
        except Exception as error:  # of many types, by where the file is broken
            raise ValueError(f"{label}: {_why_unreadable(error, Path(path))}") from None
    state_dict = content.get("model") if isinstance(content, dict) else None
    if not isinstance(state_dict, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state_dict.items()
    ):
        found = some(map(str, content)) if isinstance(content, dict) else f"a {type(content).__name__}"
        own = " (a checkpoint of mmengine: load it without spach://)" if "state_dict" in found else ""
        raise ValueError(f"{label}: not an official file: no tensors under the key 'model', but {found}{own}")
    recognised = check_spach(state_dict, label)
    if broken := not_finite(state_dict):
        raise ValueError(f"{label}: {len(broken)} of {len(state_dict)} tensors hold NaN or infinity ({some(broken)})")
    if arch and recognised.name != arch:
        raise ValueError(f"{label}: holds an sMLPNet {recognised}, not the {arch} one")
    return dict(state_dict), recognised


def download(url: str, path: Path, arch: str | None = None) -> None:
    """Download a file of official weights; ``path`` appears only when all of it is there and checked.

    Args:
        url (str): Where from.
        path (Path): Where to. Other processes meanwhile see it as it was.
        arch (str, optional): The model that it has to be.

    Raises:
        OSError: In one line, if the server cannot be reached, refuses, or sends less than it announced.
        ValueError: In one line, if what arrives is not the official model.
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    try:
        with atomic_file(path) as new:
            with urlopen(url, timeout=_TIMEOUT) as response, open(new, "wb") as out:
                announced = int(response.headers.get("Content-Length") or 0)
                with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
                    task = progress.add_task(path.name, total=announced or None)
                    while chunk := response.read(_CHUNK):
                        out.write(chunk)
                        progress.advance(task, len(chunk))
                received = out.tell()
            if announced and received != announced:
                raise OSError(f"{received:,} of {announced:,} bytes arrived")
            read_official(new, url, arch)
    except (OSError, http.client.HTTPException) as error:
        raise OSError(
            f"cannot download {url} to {path}: {error}. Download it by hand and use checkpoint='spach:///path/to/"
            f"{path.name}', or set {MIRROR_VARIABLE} to a mirror of {RELEASE_URL}"
        ) from None
    print_log(f"downloaded {url} to {path}", logger="current")


def released_file(name: str, folder: str | Path | None = None) -> Path:
    """Find the file of a release name, downloaded once, by one process of each machine; all of them fail if one does.

    Args:
        name (str): A key of ``RELEASED``.
        folder (str | Path, optional): Where files are kept. Defaults to the checkpoints of :func:`torch.hub.get_dir`.

    Returns:
        Path: The file.

    Raises:
        OSError: If it cannot be downloaded.
        ValueError: If what arrives is not the official model.
    """
    path = Path(folder or Path(torch.hub.get_dir()) / "checkpoints") / f"{name}.pth"
    rank, world_size = get_dist_info()
    # As torchrun, Slurm and MPI launchers of mmengine set it.
    local_rank = int(os.environ.get("LOCAL_RANK", rank)) if world_size > 1 else 0
    error = None
    if local_rank == 0 and not path.exists():
        try:
            download(f"{_release_url()}/{path.name}", path, RELEASED[name])
        except Exception as reason:  # whatever it is: the other processes wait below, and have to be told
            error = reason if isinstance(reason, (OSError, ValueError)) else RuntimeError(repr(reason))
    # Waits for every process, whether its own part succeeded or not, so none waits for one that has given up.
    failed = [reason for reason in all_gather_object(error) if reason is not None]
    if failed:
        raise failed[0]
    return path


def _release_url() -> str:
    url = os.environ.get(MIRROR_VARIABLE) or RELEASE_URL
    if not url.startswith(("http://", "https://", "file://")):
        raise ValueError(f"{MIRROR_VARIABLE}={url!r} is no address: it must start with https://, http:// or file://")
    return url.rstrip("/")


def _why_unreadable(error: Exception, path: Path) -> str:
    if match := re.search(r"(?:GLOBAL|class) (\w[\w.]*\.\w+)", str(error)):
        if match[1] == "argparse.Namespace":
            return "holds a command line (argparse.Namespace), which only PyTorch >= 2.5 reads safely: convert it there"
        own = " (a checkpoint of mmengine: load it without spach://)" if match[1].startswith("mmengine.") else ""
        return f"refused, it asks to run {match[1]}: only tensors and plain values are read, and nothing was run{own}"
    first = re.split(r"\.\s|\n", str(error) or type(error).__name__)[0]
    return f"damaged or cut off, or no file of PyTorch weights ({path.stat().st_size:,} bytes; {first})"


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
