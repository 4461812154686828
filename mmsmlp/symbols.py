"""Sizes that are symbols while ``torch.compile`` or ``torch.export`` records operations for any size.

A plain ``if`` on such a size would tie the recorded graph to one side of the branch.
"""

from __future__ import annotations

import torch

_IS_NEW = hasattr(torch.compiler, "is_compiling")  # not in torch 2.1


def is_compiling() -> bool:
    """Whether ``torch.compile`` or ``torch.export`` records operations."""
    return (torch.compiler if _IS_NEW else torch._dynamo).is_compiling()


def is_certain(condition: bool) -> bool:
    """Whether a condition on sizes holds; on those that are symbols, whether it holds whatever their values are."""
    if not _IS_NEW or not is_compiling():
        return bool(condition)
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # loads sympy, so not before it is needed

    return statically_known_true(condition)


def is_fixed(m: int, n: int) -> bool:
    """Whether a number of positions is a number, not a symbol of ``torch.export`` or ``torch.compile`` that may be any.

    Args:
        m (int): The number of positions.
        n (int): The anchor's, which it is to be compared with.
    """
    # torch.compile shows symbols as integers, so they are told by what is known of them.
    return not isinstance(m, torch.SymInt) and (is_certain(m == n) or is_certain(m < n) or is_certain(m > n))
