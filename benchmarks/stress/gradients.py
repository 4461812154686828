"""Gradients against float64, after freed memory was filled with large values.

PyTorch 2.1 on a CPU can return what was in memory as a gradient, for layouts that a training meets: see
:meth:`mmsmlp.blocks.SMLPBlock.forward`.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmsmlp.blocks import SMLPBlock
from stress.inputs import _plain
from stress.loading import network, silence
from stress.rows import Outcome

TOLERANCE = 1e-3  # of the largest value of a gradient, or of a hundredth of the largest of all
_RUBBISH = 1e30


def _last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _permuted(x: Tensor) -> Tensor:
    """The layout in which a gradient comes back from what works on (N, H, W, C)."""
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)


_INPUTS: dict[str, Callable[[Tensor], Tensor]] = {"NCHW": Tensor.contiguous, "channels_last": _last}
_INCOMING = {"NCHW": Tensor.contiguous, "permuted": _permuted, "expanded": lambda g: g[:, :, :1, :1].expand(g.shape)}
# Anchor, larger, smaller, one of each.
_SIZES = ((64, 64), (96, 72), (33, 40), (48, 100))
_MODULES = ("block", "network")
_CODE = ("fused", "plain")


def gradients(tries: int, seed: int, folder: Path) -> Outcome:
    """Blocks and networks in every combination of sizes and layouts, by the fused code and by the layers' own."""
    silence()
    cases = list(itertools.product(_MODULES, _CODE, _SIZES, _INPUTS, _INCOMING))
    step = max(len(cases) // tries, 1)  # a spread of them where not all are wanted
    cases = cases[::step][:tries]
    notes = []
    for number, (module, code, size, layout, incoming) in enumerate(cases):
        name = f"{module}, {code}, {size[0]} x {size[1]}, input {layout}, gradient {incoming}"
        net, x = _made(module, size, seed + number)
        if fault := _fault(net, x, _INPUTS[layout], _INCOMING[incoming], code == "plain"):
            notes.append(f"{name}: {fault}")
    return Outcome(len(cases), len(notes), notes=tuple(notes))


def _made(module: str, size: tuple[int, int], seed: int) -> tuple[nn.Module, Tensor]:
    net = network(seed) if module == "network" else SMLPBlock(16, (16, 16))
    for norm in (part for part in net.modules() if isinstance(part, _BatchNorm)):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
    if module == "network":
        return net.train(), torch.randn(2, 3, *size)
    return net.train(), torch.randn(2, 16, size[0] // 4, size[1] // 4)


def _fault(net: nn.Module, x: Tensor, layout: Callable, incoming: Callable, plain: bool) -> str | None:
    exact = _gradients(copy.deepcopy(net).double(), x.double(), layout, incoming)
    shapes = [tuple(x.shape), *{tuple(p.shape) for p in net.parameters()}, (2, 16, 24, 18), (2, 8, 24, 18, 3)]
    rubbish = [torch.full(shape, _RUBBISH) for shape in shapes for _ in range(20)]
    del rubbish
    if plain:
        with _plain():
            found = _gradients(copy.deepcopy(net), x, layout, incoming)
    else:
        found = _gradients(copy.deepcopy(net), x, layout, incoming)
    largest = max(float(g.abs().max()) for g in exact.values())
    for name, gradient in found.items():
        scale = max(float(exact[name].abs().max()), 1e-2 * largest)
        error = float((gradient.double() - exact[name]).abs().max()) / scale
        if not error < TOLERANCE:
            return f"{name} is wrong by {error:.1e}"
    return None


def _gradients(net: nn.Module, x: Tensor, layout: Callable, incoming: Callable) -> dict[str, Tensor]:
    leaf = layout(x).requires_grad_(True)
    out = net(leaf)
    maps = out if isinstance(out, tuple) else (out,)
    torch.manual_seed(3)
    torch.autograd.backward(maps, [incoming(torch.randn(m.shape).to(m.dtype)) for m in maps])
    return {"images": leaf.grad, **{name: p.grad for name, p in net.named_parameters() if p.grad is not None}}
