"""Shared: seeds, golden outputs of the official model (see tests/data/README.md), files like its, `needs_torch`."""

import importlib.metadata
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger
from packaging.version import Version

STACK = "openmmlab" if any(importlib.metadata.distributions(name="openmim")) else "onedl"  # as the Makefile names it
DATA = Path(__file__).parent / "data"
MINI = {"embed_dims": 8, "depths": (1, 1, 2, 1)}  # the arch of the golden data, at 64 pixels


def weights_like_official(arch: str) -> dict[str, torch.Tensor]:
    """Official names and shapes; the tensors share one storage, at different places, to keep the file small."""
    official = json.loads((DATA / "official_keys.json").read_text())
    noise = torch.rand(2_600_000) * 0.1
    weights = {}
    for number, (key, shape) in enumerate(official[arch]["keys"].items()):
        count = torch.Size(shape).numel()
        start = number * 997 % (len(noise) - count)
        weights[key] = noise[start : start + count].view(shape) if shape else torch.tensor(number)
    return weights


TORCH = Version(Version(torch.__version__).base_version)
_too_old = pytest.StashKey[dict[tuple[str, str], set[str]]]()  # of the configuration: (file, need) -> test functions


def pytest_configure(config):
    config.stash[_too_old] = {}


def pytest_collection_modifyitems(config, items):
    """Skips what is marked ``@pytest.mark.needs_torch("2.11", reason="...")`` where torch is older."""
    for item in items:
        for marker in item.iter_markers("needs_torch"):
            (version,), reason = marker.args, marker.kwargs["reason"]
            if Version(version) > TORCH:
                need = f"needs torch {version}: {reason}"
                item.add_marker(pytest.mark.skip(reason=need))
                config.stash[_too_old].setdefault((item.path.name, need), set()).add(item.originalname)


def pytest_terminal_summary(terminalreporter, config):
    """Lists each need that this torch does not meet once, with its tests; docs/testing.md holds the same list."""
    if too_old := config.stash[_too_old]:
        terminalreporter.section(f"skipped with torch {TORCH}: {len(too_old)}, see docs/testing.md")
        for (file, need), names in sorted(too_old.items()):
            terminalreporter.line(f"{file} {need} ({', '.join(sorted(names))})")


@pytest.fixture(autouse=True)
def _log_level():
    """Commands that a test calls in this process quieten mmengine's log, which other tests read."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture(scope="session")
def golden() -> dict[str, torch.Tensor]:
    """Arrays of the official miniature model, under the names of tests/data/README.md."""
    with np.load(DATA / "official_smlpnet_mini.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


@pytest.fixture(scope="session")
def golden_group(golden):
    """Returns a function: the golden arrays below a prefix such as 'state_dict/', the prefix cut off."""

    def group(prefix: str) -> dict[str, torch.Tensor]:
        return {name[len(prefix) :]: array for name, array in golden.items() if name.startswith(prefix)}

    return group


@pytest.fixture(scope="session")
def relative_error():
    """Returns a function: max |a - b| / max |b|, the measure of all tolerances (DESIGN: parity)."""

    def error(a: torch.Tensor, b: torch.Tensor) -> float:
        assert a.shape == b.shape
        a, b = a.detach().double(), b.detach().double()
        return ((a - b).abs().max() / b.abs().max()).item()

    return error


@pytest.fixture
def official_mirror(tmp_path, monkeypatch):
    """An empty cache, and a folder as the release's mirror. Returns a function: put a file there, give its weights."""
    monkeypatch.setenv("MMSMLP_SPACH_URL", tmp_path.as_uri())
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))

    def publish(arch: str) -> dict[str, torch.Tensor]:
        weights = weights_like_official(arch)
        torch.save({"model": weights}, tmp_path / f"smlp_{arch[0]}.pth")
        return weights

    yield publish
    for path in tmp_path.rglob("smlp_*.pth"):
        path.unlink()
