"""What a forward pass or training step does, counted: a measure of its speed that needs no clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

COPIES = ("clone", "copy_", "_to_copy", "cat", "stack", "constant_pad_nd")
LARGE = 2**20  # bytes


class OperationCounter(TorchDispatchMode):
    """Counts what PyTorch's kernels are called for within it, the backward pass included.

    Attributes:
        calls (Counter): Calls of each operator, by its name in ATen; those that only make a view are left out.
        allocations (list[int]): Bytes of each new memory block of at least ``LARGE`` bytes that an operator returns.
    """

    def __init__(self):
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.allocations: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Run an operator, and count it."""
        given = {_block(tensor) for tensor in _tensors((args, kwargs))}
        results = func(*args, **(kwargs or {}))
        new = {_block(t): t.untyped_storage().nbytes() for t in _tensors(results) if _block(t) not in given}
        if new or func._schema.is_mutable:
            self.calls[func.overloadpacket.__name__] += 1
        self.allocations += [size for size in new.values() if size >= LARGE]
        return results


def count(run: Callable[[], object]) -> dict[str, int]:
    """Count the operations of one call.

    Args:
        run (Callable): What to count; called twice, the second time is counted. Not in inference mode, in which PyTorch
            does not show what operators are made of.

    Returns:
        dict[str, int]: ``operations`` but for views; ``copies``, those of them that only move values (``COPIES``);
            ``large_allocations``, how many memory blocks of at least ``LARGE`` bytes operators returned, and
            ``allocated_mib``, how much all of these are.
    """
    run()  # makes what is made once
    with OperationCounter() as counter:
        run()
    return {
        "operations": counter.calls.total(),
        "copies": sum(counter.calls[name] for name in COPIES),
        "large_allocations": len(counter.allocations),
        "allocated_mib": round(sum(counter.allocations) / 2**20),
    }


def _block(tensor: Tensor) -> int:
    """The identity of a tensor's memory."""
    return tensor.untyped_storage()._cdata


def _tensors(values) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from _tensors(value)
    elif isinstance(values, dict):
        yield from _tensors(list(values.values()))
