"""How much work is in a function: torch's operations, the arithmetic of its products, the bytes that it touches."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

PRODUCTS = ("mm", "addmm", "addmm_")
INDEXED = ("index_select", "index_add_", "index_copy_", "index_fill_", "index_put_", "_index_put_impl_")


class Count(TorchDispatchMode):
    """What was called while it was entered. Views count for nothing.

    `bytes` is what operations read and write, whether it comes from memory or from a cache; of a table that is
    gathered from or scattered into, only the rows concerned.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations = self.flops = self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if func.is_view:
            return result
        inputs = _tensors(args)
        written = _tensors(result) or inputs  # Adam returns nothing and overwrites what it is given
        self.operations += 1
        if name in INDEXED:
            inputs, written = inputs[1:], written if name == "index_select" else inputs[-1:]
            inputs += written  # each row is read here and written there
        self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in inputs + written)
        if name in PRODUCTS:
            left, right = inputs[-2:]
            self.flops += 2 * left.shape[0] * left.shape[1] * right.shape[1]
        return result


def count(work: Callable[[], object]) -> Count:
    """The work in one call."""
    with Count() as counted:
        work()
    return counted


def _tensors(value: Any) -> list[Tensor]:
    """The tensors in (nested lists of) arguments or results."""
    if isinstance(value, torch.Tensor):
        return [value]
    return [tensor for part in value for tensor in _tensors(part)] if isinstance(value, list | tuple) else []
