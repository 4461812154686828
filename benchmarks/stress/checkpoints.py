"""Checkpoints that are cut off, or have a flipped bit."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from stress.loading import WAYS, by_spach, fault_of, network, silence, whole_model, write_mmengine, write_official
from stress.rows import Outcome


def truncated(tries: int, seed: int, folder: Path) -> Outcome:
    """Cut files off at random bytes; the first byte and the last among them."""
    return _damaged(tries, seed, folder, lambda content, number: content[:number], must_fail=True)


def flipped(tries: int, seed: int, folder: Path) -> Outcome:
    """Flip random bits. One in the padding between records, or in a date, may be taken, if the weights are right."""

    def flip(content: bytes, number: int) -> bytes:
        changed = bytearray(content)
        changed[number] ^= 1 << number % 8
        return bytes(changed)

    return _damaged(tries, seed, folder, flip, must_fail=False)


def _damaged(tries: int, seed: int, folder: Path, damage: Callable[[bytes, int], bytes], must_fail: bool) -> Outcome:
    silence()
    net = network()
    weights, state = net.state_dict(), whole_model(net)
    ours = write_mmengine(state, folder / "whole.pth").read_bytes()
    official = write_official(state, folder / "official.pth").read_bytes()
    ways = [(name, ours, way) for name, way in WAYS.items()] + [("spach", official, by_spach)]
    notes, failed = [], 0
    for name, content, way in ways:  # a file that is whole is read
        (folder / "damaged.pth").write_bytes(content)
        if fault := fault_of(lambda way=way: way(folder / "damaged.pth"), weights):
            return Outcome(tries, tries, notes=(f"{name}: the whole file: {fault}",))
    places = random.Random(seed)
    for number in range(tries):
        faults = []
        for name, content, way in ways:
            place = places.randrange(len(content))
            if number < 2:
                place = (0, len(content) - 1)[number]
            path = folder / "damaged.pth"
            path.write_bytes(damage(content, place))
            fault = fault_of(lambda way=way, path=path: way(path), None if must_fail else weights, path.name)
            if fault:
                faults.append(f"try {number}, {name}, byte {place:,} of {len(content):,}: {fault}")
        failed += bool(faults)
        notes += faults
    return Outcome(tries, failed, lost=sum("without a word" in note for note in notes), notes=tuple(notes))
