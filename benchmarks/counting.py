"""Count a function's work: torch's operations, the arithmetic of its products, the bytes that it touches."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

PRODUCTS = ("mm", "addmm", "addmm_")
GATHERS = ("index_select", "index", "embedding")
SCATTERS = ("index_add", "index_add_", "index_copy_", "index_fill_", "index_put", "index_put_", "_index_put_impl_")
BAGS = (
    "_embedding_bag",
    "_embedding_bag_forward_only",
    "_embedding_bag_backward",
    "_embedding_bag_per_sample_weights_backward",
)
OPTIMIZERS = ("_fused_adam_",)


class Count(TorchDispatchMode):
    """The work of torch's operations within the context. Views don't count.

    `bytes` is what operations read and write, whether it comes from memory or from a cache; of a table that is
    gathered from or scattered into, only the rows concerned. `moved` is the share of gathers, scatters and the
    optimizer in them. `flops` are those of dense products, `sparse_flops` those of sparse ones; `selected` is, by k,
    how many numbers the largest k were chosen from.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations = self.flops = self.sparse_flops = self.bytes = self.moved = 0
        self.selected: Counter[int] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if func.is_view:
            return result
        inputs = _tensors(args)
        written = _tensors(result) or inputs  # Adam returns nothing and overwrites what it is given
        self.operations += 1
        if name in PRODUCTS:
            left, right = inputs[-2:]
            if left.layout == torch.sparse_csr:
                self.sparse_flops += 2 * left.values().numel() * right.shape[1]
            else:
                self.flops += 2 * left.shape[0] * left.shape[1] * right.shape[1]
        elif name in BAGS:
            ids = next(tensor for tensor in inputs if not tensor.is_floating_point())
            self.sparse_flops += 2 * ids.numel() * inputs[0].shape[1]
        elif name == "topk":
            self.selected[args[1]] += inputs[0].numel()
        if name in GATHERS or name in SCATTERS:
            inputs, written = inputs[1:], written if name in GATHERS else inputs[-1:]
            inputs += written  # each row is read here and written there
        elif name == "embedding_dense_backward":
            inputs, written = inputs + inputs[:1], inputs[:1]  # the gradient's rows, added to those of a table
        elif name in OPTIMIZERS:
            written = [tensor for place in (0, 2, 3) for tensor in args[place]]  # all but the gradients
        touched = sum(_bytes(tensor) for tensor in inputs + written)
        self.bytes += touched
        if name in (*GATHERS, *SCATTERS, "embedding_dense_backward", *OPTIMIZERS):
            self.moved += touched
        return result


def count(work: Callable[[], object]) -> Count:
    """The work in one call."""
    with Count() as counted:
        work()
    return counted


def _bytes(tensor: Tensor) -> int:
    """The size of a tensor; of a sparse one, of all its parts."""
    if tensor.layout == torch.sparse_csr:
        return sum(_bytes(part) for part in (tensor.crow_indices(), tensor.col_indices(), tensor.values()))
    return tensor.numel() * tensor.element_size()


def _tensors(value: Any) -> list[Tensor]:
    """The tensors in (nested lists of) arguments or results."""
    if isinstance(value, torch.Tensor):
        return [value]
    return [tensor for part in value for tensor in _tensors(part)] if isinstance(value, list | tuple) else []
