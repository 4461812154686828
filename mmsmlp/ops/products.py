"""Matrix products of tokens with weights, by the quickest kernels that PyTorch has for them on a CPU.

``torch.mm`` in float32 goes to MKL. On one of the two AMD CPUs of docs/performance.md it reaches half of oneDNN's rate,
on the other about the same. PyTorch brings oneDNN along in its own builds, and its product computes GELU on the way
out. The operator is one that TorchInductor emits; it is not documented, so each use falls back on ``torch.mm`` where it
is missing. It has no autograd formula: this module is for :mod:`mmsmlp.ops.fused`, which brings its own.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import flop_counter

_ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None

# oneDNN has another kernel for a weight that is transposed in memory. It is the quicker one on an AMD EPYC of
# family 25, model 17; from so many tokens on that is worth a copy. Not measured on other CPUs.
TOKENS_WORTH_A_COPY = 1500


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
    """``x @ weight.T + bias``, then GELU if wanted.

    Args:
        x (Tensor): Tokens (..., K), contiguous.
        weight (Tensor): (O, K), of any strides.
        bias (Tensor | None): (O,).
        gelu (bool): Whether to apply the exact GELU.

    Returns:
        Tensor: (..., O), contiguous.
    """
    if _suits_onednn(x):
        weight = _for_onednn(weight, tokens=x.numel() // x.shape[-1])
        return _ONEDNN(x, weight, bias, "gelu" if gelu else "none", [], "none" if gelu else "")
    y = F.linear(x, weight, bias)
    return torch.ops.aten.gelu_(y) if gelu else y


def weight_gradient(grad: Tensor, x: Tensor) -> Tensor:
    """Gradient of the weight in ``x @ weight.T``: ``grad.T @ x``.

    Args:
        grad (Tensor): Gradient of the product (..., O), contiguous.
        x (Tensor): Tokens (..., K), contiguous.

    Returns:
        Tensor: (O, K), contiguous.
    """
    grad, x = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
    if not _suits_onednn(x):
        return grad.t() @ x
    # oneDNN takes one operand that is transposed in memory as it is, not two; the smaller one of the two is copied.
    if x.shape[1] < grad.shape[1]:
        return _transposed(_ONEDNN(_transposed(x), grad.t(), None, "none", [], ""))
    return _ONEDNN(_transposed(grad), x.t(), None, "none", [], "")


def _suits_onednn(x: Tensor) -> bool:
    # An empty product is not worth a special case there.
    return _ONEDNN is not None and x.device.type == "cpu" and x.dtype == torch.float32 and x.numel() > 0


def _transposed(matrix: Tensor) -> Tensor:
    # PyTorch copies a transposed matrix in one thread, and a transposed batch of matrices in all of them.
    return matrix.t()[None].contiguous()[0]


def _for_onednn(weight: Tensor, tokens: int) -> Tensor:
    """The weight in a memory order that oneDNN multiplies by quickly."""
    if weight.t().is_contiguous():
        return weight
    if tokens >= TOKENS_WORTH_A_COPY:
        return _transposed(weight).t()
    # Other strides, such as those of a slice, would make oneDNN hundreds of times slower.
    return weight.contiguous()


def _linear_flop(x_shape, weight_shape, *_, **__) -> int:
    return 2 * torch.Size(x_shape).numel() * weight_shape[0]


if _ONEDNN is not None and hasattr(flop_counter, "register_flop_formula"):  # not in torch 2.1
    # So that PyTorch's own counter, which users may run over a network, sees these products.
    flop_counter.register_flop_formula(_ONEDNN)(_linear_flop)
