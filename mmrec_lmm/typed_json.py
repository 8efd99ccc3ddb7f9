"""Frozen dataclasses as JSON, and back: `plain` writes, `decode` reads and names the file and key of what doesn't fit.

A reader of ours takes files of earlier versions: a field with a default may be absent, and an unknown key is ignored,
unless the dataclass has a FLAT mapping, which keeps it.
"""

import dataclasses
import functools
import hashlib
import reprlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, NoneType, UnionType
from typing import Any, Literal, Self, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from .errors import DataError

_T = TypeVar("_T")

#: Metadata of a field whose content stands beside its owner's fields instead of under its own name: a dataclass, or a
#: mapping of all keys that no other field has.
FLAT: Mapping[str, bool] = MappingProxyType({"flat": True})
#: Metadata of a field that is left out where it is None.
OPTIONAL: Mapping[str, bool] = MappingProxyType({"optional": True})


class AsText(ABC):
    """What JSON holds as text: `parse` reads what `str` writes."""

    @classmethod
    @abstractmethod
    def parse(cls, text: str) -> Self: ...

    @abstractmethod
    def __str__(self) -> str: ...


def plain(value: Any) -> Any:
    """`value` as JSON can hold it; the same for equal content, whatever the container."""
    if isinstance(value, AsText):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain_fields(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        content: Any = np.ascontiguousarray(value)
        return {"array": [str(value.dtype), list(value.shape), hashlib.sha256(content).hexdigest()]}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in (sorted(value) if isinstance(value, set | frozenset) else value)]
    if isinstance(value, np.generic):
        return value.item()
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _plain_fields(value: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in dataclasses.fields(value):
        content = plain(getattr(value, field.name))
        if field.metadata == FLAT:
            found |= content
        elif content is not None or field.metadata != OPTIONAL:
            found[field.name] = content
    return found


def decode(kind: type[_T], value: Any, *, where: str, cure: str) -> _T:
    """The `kind`, a dataclass, whose `plain` form `value` is.

    DataError says `where` (a file), which key, what was expected and what is there, and the `cure`.
    """
    result: _T = _Decoder(where, cure).read(kind, value, "")
    return result


@dataclasses.dataclass(frozen=True)
class _Decoder:
    where: str
    cure: str

    def read(self, hint: Any, value: Any, key: str) -> Any:
        origin, args = get_origin(hint), get_args(hint)
        if origin in (Union, UnionType):
            return self.union(args, value, key)
        if not _fits(hint, value):
            what = f"{self.where}: {key}" if key else self.where
            raise DataError(f"{what}: expected {_in_words(hint)}, got {reprlib.repr(value)}; {self.cure}")
        if hint is Path:
            return Path(value)
        if _is_text(hint):
            return hint.parse(value)
        if dataclasses.is_dataclass(hint):
            return self.fields(hint, value, key)
        if origin in (tuple, Sequence):
            inner = [args[0]] * len(value) if origin is Sequence or args[1:] == (...,) else args
            items = [
                self.read(one, item, _join(key, at)) for at, (one, item) in enumerate(zip(inner, value, strict=True))
            ]
            return tuple(items) if origin is tuple else items
        if origin is Mapping:
            return {name: self.read(args[1], item, _join(key, name)) for name, item in value.items()}
        return value

    def union(self, hints: Sequence[Any], value: Any, key: str) -> Any:
        if value is None and NoneType in hints:
            return None
        *others, last = [hint for hint in hints if hint is not NoneType]
        for hint in others:
            try:
                return self.read(hint, value, key)
            except DataError:
                continue
        return self.read(last, value, key)

    def fields(self, kind: Any, value: Mapping[str, Any], key: str) -> Any:
        found = {}
        for field in dataclasses.fields(kind):
            hint, name = _hints(kind)[field.name], _join(key, field.name)
            if field.metadata == FLAT:
                rest = {other: value[other] for other in value.keys() - _keys(kind)}
                found[field.name] = self.read(hint, value if dataclasses.is_dataclass(hint) else rest, key)
            elif field.name in value:
                found[field.name] = self.read(hint, value[field.name], name)
            elif field.default is field.default_factory is dataclasses.MISSING:
                raise DataError(f"{self.where}: {name}: expected {_in_words(hint)}, got nothing; {self.cure}")
        return kind(**found)


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


@functools.cache
def _keys(kind: type) -> frozenset[str]:
    """The keys of a dataclass' own fields, and of those that stand flat beside them."""
    names: set[str] = set()
    for field in dataclasses.fields(kind):
        hint = _hints(kind)[field.name]
        if field.metadata != FLAT:
            names.add(field.name)
        elif dataclasses.is_dataclass(hint):
            names |= _keys(hint)  # type: ignore[arg-type]
    return frozenset(names)


def _join(key: str, name: object) -> str:
    return f"{key}.{name}" if key else str(name)


def _is_text(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, AsText)


def _fits(hint: Any, value: Any) -> bool:
    """Whether a value has the outer shape of a type; what is inside is read next."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if origin is Literal:
        return value in args
    if origin in (tuple, Sequence):
        fixed = origin is tuple and args[1:] != (...,)
        return isinstance(value, list | tuple) and (not fixed or len(value) == len(args))
    if isinstance(value, bool):
        return hint is bool
    if hint in _SHAPES:
        return isinstance(value, _SHAPES[hint])
    return isinstance(value, str if _is_text(hint) else Mapping)


_SHAPES: Mapping[Any, Any] = {
    bool: bool, int: int, float: int | float, str: str, NoneType: NoneType, Path: str,
}  # fmt: skip
_WORDS: Mapping[Any, str] = {
    Any: "anything", bool: "true or false", int: "a whole number", float: "a number", str: "text", NoneType: "null",
    Path: "a path",
}  # fmt: skip


def _in_words(hint: Any) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if hint in _WORDS:
        return _WORDS[hint]
    if origin in (Union, UnionType):
        return " or ".join(map(_in_words, args))
    if origin is Literal:
        return f"one of {', '.join(map(str, args))}"
    if origin in (tuple, Sequence):
        return f"a list of {len(args)}" if origin is tuple and args[1:] != (...,) else "a list"
    return "text" if _is_text(hint) else "an object"
