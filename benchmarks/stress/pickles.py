"""Checkpoints that try to run code while they are read."""

from __future__ import annotations

import importlib
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from mmengine.logging import HistoryBuffer

from mmsmlp.weights.spach import export_spach
from stress.loading import WAYS, by_spach, fault_of, network, silence, whole_model
from stress.rows import Outcome


class _Call:
    """Is pickled as a call."""

    def __init__(self, function: Callable, *arguments, state=None):
        self.call = function, arguments, state

    def __reduce__(self):
        return self.call if self.call[2] is not None else self.call[:2]


def _attacks(mark: Path) -> dict[str, object]:
    """What a pickle may hold that creates the file ``mark``, or would if it were read."""
    shell = f"touch {mark}"
    code = f"open({str(mark)!r}, 'w').close()"
    nested = pickle.dumps(_Call(os.system, shell))
    globals_of = _Call(getattr, HistoryBuffer.mean, "__globals__")
    return {
        "os.system": _Call(os.system, shell),
        "eval": _Call(eval, f"__import__('os').system({shell!r})"),
        "exec": _Call(exec, code),
        "open": _Call(open, str(mark), "w"),
        "subprocess": _Call(importlib.import_module("subprocess").Popen, ["touch", str(mark)]),
        "import": _Call(importlib.import_module, "this"),
        "getattr": _Call(getattr, HistoryBuffer, "__init__"),
        "getattr into globals": _Call(getattr, globals_of, "get"),
        "partial": _Call(partial, os.system, shell),
        "map": _Call(list, _Call(map, eval, [code])),
        "a pickle within": _Call(pickle.loads, nested),
        "torch.load within": _Call(torch.storage._load_from_bytes, nested),
        "rebuild": _Call(torch._tensor._rebuild_from_type_v2, os.system, torch.Tensor, (shell,), {}),
        "state of an object": _Call(dict, state=[_Call(os.system, shell)]),
        "a key": {_Call(os.system, shell): 1},
        "an unknown class": _Unknown(),
    }


class _Unknown:
    """Harmless, but of a class of its own: reading it imports a module."""


def _proto0(mark: Path) -> bytes:
    """The oldest way to say it: GLOBAL, STRING, REDUCE."""
    return f"cos\nsystem\n(S'touch {mark}'\ntR.".encode()


def _inst(mark: Path) -> bytes:
    """By the opcode INST."""
    return f"(S'touch {mark}'\nios\nsystem\n.".encode()


def _obj(mark: Path) -> bytes:
    """By the opcode OBJ, the name put together on the stack."""
    argument = f"touch {mark}".encode()
    return b"\x80\x04(\x8c\x02os\x8c\x06system\x93X" + struct.pack("<I", len(argument)) + argument + b"o."


def _memo(mark: Path) -> bytes:
    """The name from the memo, where a scanner of neighbouring strings does not see it."""
    argument = f"touch {mark}".encode()
    strings = b"\x8c\x02os\x940\x8c\x06system\x940\x8c\x09HistoryBu\x940\x8c\x05torch\x940"
    return b"\x80\x04" + strings + b"h\x00h\x01\x93X" + struct.pack("<I", len(argument)) + argument + b"\x85R."


def _of_a_class(mark: Path) -> bytes:
    """BUILD on a class that is allowed: it would be another for all that use it later."""
    return b"cargparse\nNamespace\ncbuiltins\ntuple\n((N(S'x'\nS'y'\ndltRb."


_RAW = {"a change of a class": _of_a_class, "protocol 0": _proto0, "INST": _inst, "OBJ": _obj, "by the memo": _memo}


def pickles(tries: int, seed: int, folder: Path) -> Outcome:
    """Put each attack into a checkpoint and read that in each way, of PyTorch's two formats in turn."""
    silence()
    state = whole_model(network())
    mark = folder / "RUN"
    attacks = [*_attacks(mark).items(), *_RAW.items()]
    ways = {**WAYS, "spach": by_spach}
    cases = [(attack, way, legacy) for way in ways for attack in attacks for legacy in (False, True)]
    random.Random(seed).shuffle(cases)
    cases, notes = cases[:tries], []
    for (name, attack), way, legacy in cases:
        path = folder / "attack.pth"
        if callable(attack):
            _write_raw(attack(mark), path, legacy)
        else:
            content = {"state_dict": state, "model": export_spach(state), "extra": attack}
            torch.save(content, path, _use_new_zipfile_serialization=not legacy)
        fault = fault_of(partial(ways[way], path), None, path.name)
        if mark.exists():
            fault = "ITS CODE WAS RUN"
            mark.unlink()
        if fault:
            notes.append(f"{name}, {way}, {'older' if legacy else 'zip'} format: {fault}")
    return Outcome(len(cases), len(notes), lost=sum("RUN" in note for note in notes), notes=tuple(notes))


def _write_raw(pickled: bytes, path: Path, legacy: bool) -> None:
    """A file of PyTorch around a pickle written by hand."""
    if legacy:
        head = [torch.serialization.MAGIC_NUMBER, torch.serialization.PROTOCOL_VERSION, {"little_endian": True}]
        path.write_bytes(b"".join(pickle.dumps(part, 2) for part in head) + pickled + pickle.dumps([], 2))
        return
    torch.save({}, path)
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, pickled if name.endswith("data.pkl") else content)
