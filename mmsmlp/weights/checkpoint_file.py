"""Checkpoint files before they are loaded: whole to the last bit, and without anything that runs.

PyTorch writes a checksum (CRC-32) of every record and never looks at it again: with a flipped bit, ``torch.load`` gives
wrong weights without a word. And a checkpoint is a pickle, which can call any function while it is read; mmengine reads
it so (``weights_only=False``, or as a fallback). :func:`check_checkpoint_file` finds both before that.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from mmsmlp.resize import is_plain

_MAGIC = 0x1950A86A20F9469CFC6C  # how files of PyTorch before 1.6 begin, after which come pickles, then bytes
_LEGACY_PICKLES = 5  # magic number, protocol, system, content, keys of the storages
_ZIP_START = b"PK\x03\x04"

# What tensors, the plain values around them and mmengine's log are made of. Nothing in it runs another's code, nor
# calls what it is given: no torch.storage._load_from_bytes (a pickle again), no torch._tensor._rebuild_from_type_v2.
_HISTORY = ("mmengine.logging.history_buffer", "HistoryBuffer")
_NUMPY = ("_reconstruct", "scalar")
_ALLOWED = {
    "torch._utils": ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter", "_rebuild_parameter_with_state"),
    "torch": ("Size", "device"),
    "torch.storage": ("UntypedStorage", "TypedStorage"),
    "collections": ("OrderedDict", "defaultdict", "deque", "Counter"),
    "builtins": (
        "set",
        "frozenset",
        "slice",
        "complex",
        "list",
        "dict",
        "tuple",
        "int",
        "float",
        "str",
        "bool",
        "bytes",
    ),
    "_codecs": ("encode",),
    "numpy": ("dtype", "ndarray"),
    "numpy.core.multiarray": _NUMPY,
    "numpy._core.multiarray": _NUMPY,
    "datetime": ("datetime", "date", "time", "timedelta"),
    "pathlib": ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath"),
    "argparse": ("Namespace",),
    _HISTORY[0]: _HISTORY[1:],
}
_STATISTICS = ("current", "max", "mean", "min")  # methods of a HistoryBuffer, which it stores by `getattr`


class CheckpointFileError(ValueError):
    """A checkpoint file that is not read: damaged, or more than weights. One line, naming the file."""


def check_checkpoint_file(path: str | Path, label: str | None = None) -> None:
    """Refuse a checkpoint that is damaged, or that asks for more than tensors and plain values.

    The pickle is gone through with inert objects in place of all that it names, so nothing runs. Files of
    PyTorch before 1.6 have no checksums: of them, only what is cut off within the pickles is found.

    Args:
        path (str | Path): The file.
        label (str, optional): What to call it in an error. Defaults to the path.

    Raises:
        CheckpointFileError: In one line, naming what is wrong.
        OSError: If the file cannot be opened.
    """
    label = label or str(path)
    check_whole(path, label)
    with open(path, "rb") as file:
        try:
            for pickled in _pickles(file):
                _Inspector(pickled).load()
        except _RefusedError as refusal:
            raise CheckpointFileError(
                f"{label}: refused, it asks to run {refusal}: only tensors and plain values are read, and nothing was "
                "run. From a source that you trust, keep its weights alone: "
                "torch.save({'state_dict': torch.load(FILE, weights_only=False)['state_dict']}, NEW)"
            ) from None
        except Exception as error:  # of many types, by where the file is broken
            raise CheckpointFileError(f"{label}: {_damage(path, error)}") from None


def check_whole(path: str | Path, label: str | None = None) -> None:
    """Refuse a file of PyTorch that is cut off or has a flipped bit, by the checksums of its records.

    Files of PyTorch before 1.6 have none and pass.

    Args:
        path (str | Path): The file.
        label (str, optional): What to call it in an error. Defaults to the path.

    Raises:
        CheckpointFileError: In one line, naming the record.
        OSError: If the file cannot be opened.
    """
    label = label or str(path)
    with open(path, "rb") as file:
        if file.read(len(_ZIP_START)) != _ZIP_START:
            return
        try:
            with zipfile.ZipFile(file) as archive:
                broken = archive.testzip()
        except Exception as error:  # of many types, by where the file is broken
            raise CheckpointFileError(f"{label}: {_damage(path, error)}") from None
    if broken:
        raise CheckpointFileError(f"{label}: {_damage(path, f'the checksum of its record {broken!r} is another')}")


def not_finite(weights: Mapping[str, Any]) -> list[str]:
    """The keys of tensors that hold NaN or infinity; those without values (``meta``, sharded) are passed over."""
    return [
        key
        for key, value in weights.items()
        if isinstance(value, torch.Tensor)
        and is_plain(value)
        and value.is_floating_point()
        and not value.is_meta
        and not torch.isfinite(value).all()
    ]


def _damage(path: str | Path, reason: Exception | str) -> str:
    first = str(reason).partition("\n")[0].rstrip(".") or type(reason).__name__
    return f"damaged or cut off, or no file of PyTorch weights ({Path(path).stat().st_size:,} bytes; {first})"


def _pickles(file: BinaryIO) -> Iterator[BinaryIO]:
    """The pickles in a file, as files."""
    if file.read(len(_ZIP_START)) == _ZIP_START:
        file.seek(0)
        # PyTorch's own reader: another might find another record under the name.
        records = torch._C.PyTorchFileReader(file)
        if "constants.pkl" in records.get_all_records():
            raise _RefusedError("a TorchScript program")
        yield io.BytesIO(records.get_record("data.pkl"))
        return
    file.seek(0)
    if _Inspector(file).load() != _MAGIC:
        raise ValueError("neither a zip archive nor an older file of PyTorch")
    for _ in range(_LEGACY_PICKLES - 1):
        yield file


class _RefusedError(Exception):
    """A pickle names something that is not allowed."""


class _Ignored:
    """A method that does nothing. Asked of a class itself, which a pickle could change for all others, it refuses."""

    def __get__(self, instance: object | None, owner: type) -> Callable:
        if instance is None:
            raise _RefusedError(f"a change of the class {owner.__name__}")
        return lambda *args: None


class _Inert:
    """Takes whatever a pickle does with an object, and does nothing."""

    def __new__(cls, *args, **kwargs):
        return object.__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    __setstate__ = __setitem__ = append = extend = add = _Ignored()


class _Inspector(pickle.Unpickler):
    """Goes through a pickle without making anything of what it names."""

    def __init__(self, file: BinaryIO):
        super().__init__(file, encoding="utf-8")
        self._inert: dict[tuple[str, str], type] = {}

    def find_class(self, module: str, name: str) -> Any:
        """An inert class in place of what is allowed.

        Raises:
            _RefusedError: For everything else.
        """
        module = "builtins" if module == "__builtin__" else module
        if (module, name) == ("builtins", "getattr"):
            return self._getattr
        if name not in _ALLOWED.get(module, ()) and not _is_type_of_values(module, name):
            raise _RefusedError(f"{module}.{name}")
        return self._inert.setdefault((module, name), type(name, (_Inert,), {}))

    def persistent_load(self, pid: object) -> _Inert:
        """An inert object in place of a storage."""
        return _Inert()

    def _getattr(self, owner: object, name: object) -> Callable:
        if owner is not self._inert.get(_HISTORY) or name not in _STATISTICS:
            raise _RefusedError(f"builtins.getattr(…, {name!r})")
        return _Inert


def _is_type_of_values(module: str, name: str) -> bool:
    """Whether a name is that of a storage or dtype of PyTorch, or of a dtype of NumPy."""
    if module == "numpy.dtypes":
        return name.endswith("DType") and name.isidentifier()
    if module != "torch":
        return False
    return isinstance(getattr(torch, name, None), torch.dtype) or (name.endswith("Storage") and name.isidentifier())
