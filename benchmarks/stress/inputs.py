"""Random inputs: what is right comes out right, what is wrong is named."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

import mmsmlp.blocks
from mmsmlp import SMLPNet
from mmsmlp.resize import METHODS
from mmsmlp.valid_area import attach_valid_sizes
from stress.loading import network, silence
from stress.rows import Outcome

# Largest |a - b| / max |b| between two ways to compute the same. In bfloat16, of 8 bits, kernels round differently.
TOLERANCES = {torch.float32: 2e-4, torch.float64: 1e-10, torch.bfloat16: 0.15}
_LONGEST = 150  # pixels of an edge; the anchor's is 64


@cache
def _network(method: str, dtype: torch.dtype) -> SMLPNet:
    net = network(0, interpolation=method)
    torch.manual_seed(1)
    for norm in (module for module in net.modules() if isinstance(module, _BatchNorm)):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 1.5)
    return net.to(dtype).eval()


def _edges() -> st.SearchStrategy[int]:
    # The anchor, its neighbours and what no stride divides, more often than by chance.
    return st.one_of(st.integers(1, _LONGEST), st.sampled_from((1, 2, 3, 4, 5, 31, 32, 33, 63, 64, 65, 68, 128)))


@st.composite
def _cases(draw) -> dict[str, Any]:
    shape = draw(st.integers(1, 3)), 3, draw(_edges()), draw(_edges())
    padded = draw(st.booleans())
    return {
        "shape": shape,
        "dtype": draw(st.sampled_from(list(TOLERANCES))),
        "method": draw(st.sampled_from(METHODS)),
        "layout": draw(st.sampled_from(list(_LAYOUTS))),
        "scale": draw(st.sampled_from((0.0, 1e-4, 1.0, 255.0, 1e4))),
        "sizes": tuple(tuple(draw(st.integers(1, edge)) for edge in shape[2:]) for _ in range(shape[0]))
        if padded
        else None,
        "seed": draw(st.integers(0, 2**31)),
    }


def _sliced(x: Tensor) -> Tensor:
    wide = x.new_full((x.shape[0], 5, 2 * x.shape[2] + 1, x.shape[3] + 3), torch.nan)
    view = wide[:, 1:4, 1::2, 2:-1]
    return view.copy_(x)


_LAYOUTS = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "sliced": _sliced,
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "batch last": lambda x: x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    "expanded batch": lambda x: x[:1].expand(x.shape),
    "expanded channels": lambda x: x[:, :1].expand(x.shape),
    "expanded rows": lambda x: x[:, :, :1].expand(x.shape),
}


def fuzz(tries: int, seed: int, folder: Path) -> Outcome:
    """Draw inputs with hypothesis; every failure is noted, none ends the run."""
    silence()
    notes, tried = [], 0

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=tries,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(_cases())
    def check(case: dict[str, Any]) -> None:
        nonlocal tried
        tried += 1
        try:
            fault = _fault(**case)
        except Exception as error:  # a crash is what is looked for
            fault = f"{type(error).__name__}: {str(error)[:200]}"
        if fault:
            notes.append(f"{case}: {fault}")

    check()
    return Outcome(tried, len(notes), notes=tuple(notes))


def _fault(shape, dtype, method, layout, scale, sizes, seed) -> str | None:
    """What is wrong with the maps of one input; None if nothing is."""
    generator = torch.Generator().manual_seed(seed)
    x = _LAYOUTS[layout]((scale * torch.randn(shape, generator=generator)).to(dtype))
    before = x.clone()
    net = _network(method, dtype)
    given = x if sizes is None else attach_valid_sizes(x, sizes)
    with torch.no_grad():
        maps = net(given)
        with _plain():
            plain = net(given)
        alone = [net(x[i : i + 1] if sizes is None else x[i : i + 1, :, :h, :w]) for i, (h, w) in _areas(shape, sizes)]
    if not torch.equal(x, before):
        return "the input was changed"
    for level, stride in enumerate(net.strides):
        out = maps[level]
        height, width = -(-shape[2] // stride), -(-shape[3] // stride)
        if out.shape != (shape[0], net.channels[level], height, width) or out.dtype != dtype:
            return f"map {level} is {out.dtype} {tuple(out.shape)}"
        if not out.is_contiguous():
            return f"map {level} is not contiguous"
        if not torch.isfinite(out).all():
            return f"map {level} is not finite"
        bound = TOLERANCES[dtype] * max(float(out.abs().max()), 1e-30)
        if (error := float((out - plain[level]).abs().max())) > bound:
            return f"map {level}: fused and plain differ by {error:.1e}, {bound:.1e} allowed"
        for i, maps_alone in enumerate(alone):
            rows, columns = maps_alone[level].shape[2:]
            if (error := float((out[i, :, :rows, :columns] - maps_alone[level][0]).abs().max())) > bound:
                return f"map {level}, image {i}: differs by {error:.1e} from the image alone, {bound:.1e} allowed"
            padding = out[i].clone()
            padding[:, :rows, :columns] = 0
            if padding.any():
                return f"map {level}, image {i}: padding is not zero"
    return None


def _areas(shape: tuple[int, ...], sizes: tuple | None) -> Iterator[tuple[int, tuple[int, int]]]:
    return enumerate(sizes or [shape[2:]] * shape[0])


@contextlib.contextmanager
def _plain() -> Iterator[None]:
    """The layers one by one, without the fused code."""
    fused = mmsmlp.blocks.can_fuse
    mmsmlp.blocks.can_fuse = lambda block, x: False
    try:
        yield
    finally:
        mmsmlp.blocks.can_fuse = fused


_SHAPE = r"(N, 3, H, W)"
_WRONG = {
    "a number": (1.0, _SHAPE),
    "a list of tensors": ([torch.zeros(3, 8, 8)], "list"),
    "an array": (np.zeros((1, 3, 8, 8), np.float32), "ndarray"),
    "None": (None, "NoneType"),
    "rank 0": (torch.zeros(()), _SHAPE),
    "rank 3": (torch.zeros(3, 8, 8), "(3, 8, 8)"),
    "rank 5": (torch.zeros(1, 3, 8, 8, 8), "(1, 3, 8, 8, 8)"),
    "1 channel": (torch.zeros(1, 1, 8, 8), "(1, 1, 8, 8)"),
    "4 channels": (torch.zeros(1, 4, 8, 8), _SHAPE),
    "channels last in shape": (torch.zeros(1, 8, 8, 3), "(1, 8, 8, 3)"),
    "no images": (torch.zeros(0, 3, 8, 8), "(0, 3, 8, 8)"),
    "no channels": (torch.zeros(1, 0, 8, 8), _SHAPE),
    "no rows": (torch.zeros(1, 3, 0, 8), "(1, 3, 0, 8)"),
    "no columns": (torch.zeros(1, 3, 8, 0), "(1, 3, 8, 0)"),
    "uint8": (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "torch.uint8"),
    "int64": (torch.zeros(1, 3, 8, 8, dtype=torch.int64), "torch.int64"),
    "bool": (torch.zeros(1, 3, 8, 8, dtype=torch.bool), "torch.bool"),
    "complex": (torch.zeros(1, 3, 8, 8, dtype=torch.complex64), "torch.complex64"),
    "float64": (torch.zeros(1, 3, 8, 8, dtype=torch.float64), "of torch.float32"),
    "float16": (torch.zeros(1, 3, 8, 8, dtype=torch.float16), "of torch.float32"),
}


def refuse(tries: int, seed: int, folder: Path) -> Outcome:
    """Give what is wrong; the error has to name what is expected and what was given."""
    silence()
    net = network(seed).eval()
    notes = []
    cases = list(_WRONG.items())[:tries]
    for name, (given, named) in cases:
        try:
            net(given)
        except (TypeError, ValueError) as error:
            if _SHAPE not in str(error) or named not in str(error) or "\n" in str(error):
                notes.append(f"{name}: unclear: {str(error)[:200]}")
        except Exception as error:
            notes.append(f"{name}: a bare {type(error).__name__}: {str(error)[:200]}")
        else:
            notes.append(f"{name}: was taken")
    return Outcome(len(cases), len(notes), notes=tuple(notes))
