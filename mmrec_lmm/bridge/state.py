"""What a model file keeps in plain attributes and changes in training: no buffer, and yet scores may depend on it.

Tensors, dense or sparse, arrays and numbers that changed since construction, under attributes.<module>.<name>; also
tuples, lists and dicts of these. A large tensor that scores don't depend on, such as a graph that each epoch builds
again, is left out.
"""

import hashlib
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import MMRecError
from .interface import set_attribute

_PREFIX = "attributes."
_OF_MODULES = frozenset(vars(nn.Module()))
_NUMBER = "number"  # the last part of a number's name
_KINDS: Mapping[str, type] = {"tuple": tuple, "list": list, "dict": dict}  # of several, by the name of their parts
_ENTRIES = 64  # of one that is kept, at most: longer ones are indices or graphs
LARGE = 2**25  # bytes


class Attributes:
    """The plain attributes of a module and its parts, beside what they were when this was made."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._before = {name: _mark(value) for name, _, _, value in self._all()}
        self._unneeded: dict[str, bool] = {}  # of large tensors that were tried

    def changed(self) -> dict[str, Tensor]:
        """The attributes that changed, as dense tensors by name."""
        found: dict[str, Tensor] = {}
        for name, _, _, value in self._all():
            if not _is_same(value, self._before.get(name)) and not self._unneeded.get(name):
                found |= {f"{_PREFIX}{name}.{part}": tensor for part, tensor in _parts(value)}
        return found

    def try_large(self, score: Callable[[], Tensor]) -> None:
        """Find out which large tensors `score` doesn't depend on: its result is the same with NaN in their place."""
        for name, module, attribute, value in [*self._all()]:
            if name in self._unneeded or not _is_large(value) or _is_same(value, self._before.get(name)):
                continue
            expected = score()
            vars(module)[attribute] = value.new_full((), float("nan")).expand(value.shape)
            try:
                self._unneeded[name] = torch.equal(score(), expected)
            except MMRecError:
                self._unneeded[name] = False
            finally:
                vars(module)[attribute] = value

    def restore(self, state: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
        """Set the attributes that `changed` wrote, on `device` where they are new, and return what else `state` has."""
        rest: dict[str, Any] = {}
        kept: dict[str, dict[str, Tensor]] = {}
        for name, value in state.items():
            if name.startswith(_PREFIX):
                attribute, _, part = name.removeprefix(_PREFIX).rpartition(".")
                kept.setdefault(attribute, {})[part] = value
            else:
                rest[name] = value
        for attribute, parts in kept.items():
            path, _, name = attribute.rpartition(".")
            module = self._module.get_submodule(path)
            now = getattr(module, name, None)
            place = now.device if isinstance(now, Tensor) else device
            set_attribute(module, name, _value(parts, place))
        return rest

    def _all(self) -> Iterator[tuple[str, nn.Module, str, Any]]:
        for path, module in self._module.named_modules():
            for name, value in vars(module).items():
                if name not in _OF_MODULES and (_is_one(value) or _is_several(value)):
                    yield f"{path}.{name}" if path else name, module, name, value


def _is_one(value: Any) -> bool:
    is_array = isinstance(value, np.ndarray) and value.dtype.kind in "fib"
    return is_array or isinstance(value, Tensor | bool | int | float)


def _is_several(value: Any) -> bool:
    """True for a tuple, list or dict of what is kept, with a tensor or an array among it."""
    if type(value) not in _KINDS.values() or not 0 < len(value) <= _ENTRIES:
        return False
    entries = _entries(value)
    return (
        all(_is_one(one) for one in entries.values())
        and any(isinstance(one, Tensor | np.ndarray) for one in entries.values())
        and all(isinstance(key, str) and key.isidentifier() for key in (value if isinstance(value, dict) else ()))
    )


def _entries(value: Any) -> Mapping[Any, Any]:
    return value if isinstance(value, dict) else dict(enumerate(value))


def _is_large(value: Any) -> bool:
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.numel() * value.element_size() <= LARGE:
        return False
    return value.is_floating_point() or value.is_complex()


def _mark(value: Any) -> Any:
    """What shows later whether a value is still the same; holds no memory of a tensor."""
    if isinstance(value, Tensor):
        return weakref.ref(value), (value._version, _address(value))
    if isinstance(value, np.ndarray):
        return weakref.ref(value), _digest(value)
    if type(value) in _KINDS.values():
        return type(value), {key: _mark(one) for key, one in _entries(value).items()}
    return type(value), value


def _address(value: Tensor) -> int:
    """Of its numbers: `x.data = y` changes that alone."""
    return value.data_ptr() if value.layout == torch.strided else 0


def _is_same(value: Any, mark: tuple[Any, Any] | None) -> bool:
    if mark is None:
        return False
    if isinstance(value, Tensor):
        is_it = isinstance(mark[0], weakref.ref) and mark[0]() is value
        return is_it and bool(mark[1] == (value._version, _address(value)))
    if isinstance(value, np.ndarray):
        is_it = isinstance(mark[0], weakref.ref) and mark[0]() is value
        return is_it and bool(mark[1] == _digest(value))
    if type(value) in _KINDS.values():
        entries = _entries(value)
        alike = mark[0] is type(value) and mark[1].keys() == entries.keys()
        return alike and all(_is_same(one, mark[1][key]) for key, one in entries.items())
    return bool(mark == (type(value), value))


def _digest(value: np.ndarray) -> bytes:
    return hashlib.blake2b(value.tobytes()).digest()


def _parts(value: Any) -> Iterator[tuple[str, Tensor]]:
    if type(value) in _KINDS.values():
        for key, one in _entries(value).items():
            yield from ((f"{type(value).__name__}/{key}/{part}", tensor) for part, tensor in _parts(one))
        return
    if isinstance(value, np.ndarray):
        yield "array", torch.from_numpy(value.copy())
        return
    if not isinstance(value, Tensor):
        dtype = torch.bool if isinstance(value, bool) else torch.int64 if isinstance(value, int) else torch.float64
        yield _NUMBER, torch.tensor(value, dtype=dtype)
        return
    value = value.detach()
    if value.is_complex():  # which no file of weights holds
        yield "complex", torch.view_as_real(value.to_dense().resolve_conj()).clone()
        return
    if value.layout == torch.strided:
        yield "tensor", value.clone(memory_format=torch.contiguous_format)  # it may be a view of another
        return
    size = torch.tensor(value.shape)
    if value.layout == torch.sparse_csr:
        yield from (("crow", value.crow_indices()), ("col", value.col_indices()), ("values", value.values()))
    else:
        value = value.to_sparse_coo().coalesce()
        yield from (("indices", value.indices()), ("values", value.values()))
    yield "size", size


def _value(parts: Mapping[str, Tensor], device: torch.device) -> Any:
    if kind := _KINDS.get(next(iter(parts)).partition("/")[0]):
        grouped: dict[str, dict[str, Tensor]] = {}
        for name, part in parts.items():
            _, key, rest = name.split("/")
            grouped.setdefault(key, {})[rest] = part
        if kind is dict:
            return {key: _value(inner, device) for key, inner in grouped.items()}
        return kind(_value(grouped[key], device) for key in sorted(grouped, key=int))
    if _NUMBER in parts:
        return parts[_NUMBER].item()
    if "array" in parts:
        return parts["array"].cpu().numpy().copy()
    return _tensor(parts).to(device)


def _tensor(parts: Mapping[str, Tensor]) -> Tensor:
    if "tensor" in parts:
        return parts["tensor"].clone()
    if "complex" in parts:
        return torch.view_as_complex(parts["complex"].clone())
    size, parts = parts["size"].tolist(), {name: part.clone() for name, part in parts.items()}
    if "crow" in parts:
        return torch.sparse_csr_tensor(parts["crow"], parts["col"], parts["values"], size, check_invariants=False)
    return torch.sparse_coo_tensor(parts["indices"], parts["values"], size, is_coalesced=True, check_invariants=False)
