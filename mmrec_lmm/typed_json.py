"""Frozen dataclasses as JSON, and back: `plain` writes, `parse` and `decode` read. Both name the file of a misfit.

All JSON that this program wrote is read by `parse`: disks, editors and syncing damage files.

`decode` reads files of earlier versions: a field with a default may be absent, and an unknown key is ignored,
unless the dataclass has a FLAT mapping, which keeps it.
"""

import dataclasses
import functools
import hashlib
import json
import math
import re
import reprlib
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType, NoneType, UnionType
from typing import Any, Literal, NoReturn, Self, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from .errors import DataError

_T = TypeVar("_T")

DEPTH = 100  # of nested lists and objects in what `parse` takes; those of this program have a dozen
INT64 = range(-(2**63), 2**63)  # whole numbers that arrays and tables hold

#: Metadata of a field whose content is written among its owner's fields instead of under its own name: a dataclass, or
#: a mapping of all keys that no other field has.
FLAT: Mapping[str, bool] = MappingProxyType({"flat": True})
#: Metadata of a field that is left out where it is None.
OPTIONAL: Mapping[str, bool] = MappingProxyType({"optional": True})
#: Metadata of a field that is left out where it has its default: one that came later leaves earlier fingerprints alone.
ADDED: Mapping[str, bool] = MappingProxyType({"added": True})
#: Metadata of a field that isn't written, and so is part of no fingerprint; it needs a default.
UNWRITTEN: Mapping[str, bool] = MappingProxyType({"unwritten": True})


class AsText(ABC):
    """A type that JSON holds as text: `parse` reads what `str` writes."""

    @classmethod
    @abstractmethod
    def parse(cls, text: str) -> Self: ...

    @abstractmethod
    def __str__(self) -> str: ...


_PLAIN = frozenset({bool, int, float, str})


def plain(value: Any) -> Any:
    """`value` as JSON can hold it; the same for equal content, whatever the container."""
    if value is None or type(value) in _PLAIN:  # most values by far, and the checks below are slow
        return _text(value) if type(value) is str else value
    if isinstance(value, AsText):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _plain_fields(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    numpy: Any = sys.modules.get("numpy")  # without it there are no values of its types, and importing it takes time
    if numpy and isinstance(value, numpy.ndarray):
        content = numpy.ascontiguousarray(value)
        return {"array": [str(value.dtype), list(value.shape), hashlib.sha256(content).hexdigest()]}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in (sorted(value) if isinstance(value, set | frozenset) else value)]
    if numpy and isinstance(value, numpy.generic):
        return value.item()
    return value if value is None or isinstance(value, bool | int | float) else _text(str(value))


def _text(text: str) -> str:
    """A text as UTF-8 can hold it: bytes of a file's name that aren't UTF-8 are escaped."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def _plain_fields(value: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in dataclasses.fields(value):
        if field.metadata == UNWRITTEN:
            continue
        if field.metadata == ADDED and getattr(value, field.name) == field.default:
            continue
        content = plain(getattr(value, field.name))
        if field.metadata == FLAT:
            found |= content
        elif content is not None or field.metadata != OPTIONAL:
            found[field.name] = content
    return found


def parse(content: str | bytes, *, where: str, cure: str) -> Any:
    """The value of a JSON text in UTF-8. NaN and infinities are taken, as losses may be either.

    DataError names `where` (a file) and the `cure` if it isn't JSON, has a key twice, a whole number beyond 64 bits,
    half of a surrogate pair, or more than DEPTH nested lists and objects.
    """
    try:
        text = content if isinstance(content, str) else content.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_distinct, parse_int=_int64)
        if text.count("[") + text.count("{") > DEPTH:
            _check_depth(value, DEPTH)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise _damaged(where, f"lists nested more than {DEPTH} deep", cure) from None
    except UnicodeEncodeError:
        raise _damaged(where, "half of a surrogate pair", cure) from None
    except UnicodeDecodeError as error:
        raise _damaged(where, f"byte {error.start} isn't UTF-8", cure) from None
    except ValueError as error:
        raise _damaged(where, str(error) if content else "the file is empty", cure) from None
    return value


_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def _damaged(where: str, reason: str, cure: str) -> DataError:
    return DataError(f"{where}: expected JSON, got a damaged file ({reason}); {cure}")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(name for name in names if names.count(name) > 1)!r} twice")
    return found


def _int64(digits: str) -> int:
    if len(digits) > 20 or int(digits) not in INT64:
        raise ValueError(f"{reprlib.repr(digits)} is beyond 64 bits")
    return int(digits)


def _check_depth(value: Any, left: int) -> None:
    """RecursionError if lists and objects are nested deeper than `left`."""
    if isinstance(value, list | dict):
        if not left:
            raise RecursionError
        for item in value.values() if isinstance(value, dict) else value:
            _check_depth(item, left - 1)


def check_finite(value: Any, *, where: str, cure: str) -> None:
    """DataError with the key of the first NaN or infinity in numbers, and in lists and objects of these."""
    inner = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, item in inner:
        check_finite(item, where=f"{where}.{key}", cure=cure)
    if isinstance(value, float) and not math.isfinite(value):
        raise DataError(f"{where}: expected a finite number, got {value}; {cure}")


def decode(kind: type[_T], value: Any, *, where: str, cure: str) -> _T:
    """The dataclass `kind` from its `plain` form `value`.

    DataError names `where` (a file), the key, the expected and the found value, and the `cure`.
    """
    try:
        reader: _Read = _reader(cast(Any, kind))
        result: _T = reader(value)
    except _Misfit as misfit:
        what = ": ".join([where, *([".".join(misfit.path)] if misfit.path else [])])
        raise DataError(f"{what}: expected {_in_words(misfit.hint)}, got {misfit.got()}; {cure}") from None
    return result


class _Misfit(Exception):
    """A value that isn't of the expected type; `path` lists the keys that lead to it.

    Unions raise many that nobody sees, so the words are made when they are asked for.
    """

    def __init__(self, hint: Any, got: Callable[[], str]) -> None:
        super().__init__()
        self.path: list[str] = []
        self.hint, self.got = hint, got


_Read = Callable[[Any], Any]


@functools.cache
def _reader(hint: Any) -> _Read:
    """The function that makes a value of a type from its JSON, or raises _Misfit; built once for each type."""
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return _same
    if origin in (Union, UnionType):
        return _union(args)
    if origin in (tuple, Sequence):
        return _sequence(hint, origin, args)
    if origin is Mapping:
        inner = _reader(args[1])
        return lambda value: {name: _at(name, inner, item) for name, item in _checked(hint, Mapping, value).items()}
    if dataclasses.is_dataclass(hint) and not _is_text(hint):
        return functools.partial(_fields, hint)
    if origin is Literal:
        return lambda value: value if value in args else _fail(hint, value)
    shape, make = (str, hint.parse) if _is_text(hint) else _SCALARS[hint]
    return lambda value: make(_checked(hint, shape, value))


def _union(hints: Sequence[Any]) -> _Read:
    """Read as the first type that fits. If none does, the error is the last one's."""
    *others, last = sorted(hints, key=lambda hint: hint is not NoneType)  # None first, as it is quick to check

    def read(value: Any) -> Any:
        for hint in others:
            with suppress(_Misfit):
                return _reader(hint)(value)
        return _reader(last)(value)

    return read


def _sequence(hint: Any, origin: Any, args: Sequence[Any]) -> _Read:
    fixed = origin is tuple and args[1:] != (...,)
    make = tuple if origin is tuple else list

    def read(value: Any) -> Any:
        items = _checked(hint, (list, tuple), value)
        if fixed and len(items) != len(args):
            _fail(hint, value)
        inner = args if fixed else [args[0]] * len(items)
        return make(_at(str(place), _reader(inner[place]), item) for place, item in enumerate(items))

    return read


def _fields(kind: Any, value: Any) -> Any:
    """A dataclass from a mapping. A FLAT mapping gets the keys that no field has; without one, these are ignored."""
    content, found = _checked(kind, Mapping, value), {}
    for field, hint in _hints(kind):
        if field.metadata == FLAT:
            rest = {key: content[key] for key in content if key not in _keys(kind)}
            found[field.name] = _reader(hint)(content if dataclasses.is_dataclass(hint) else rest)
        elif field.name in content:
            found[field.name] = _at(field.name, _reader(hint), content[field.name])
        elif field.default is field.default_factory is dataclasses.MISSING:
            misfit = _Misfit(hint, lambda: "nothing")
            misfit.path.append(field.name)
            raise misfit
    return kind(**found)


def _at(name: str, read: _Read, value: Any) -> Any:
    try:
        return read(value)
    except _Misfit as misfit:
        misfit.path.insert(0, name)
        raise


def _checked(hint: Any, shape: Any, value: Any) -> Any:
    if not isinstance(value, shape) or (isinstance(value, bool) and hint is not bool):
        _fail(hint, value)
    return value


def _fail(hint: Any, value: Any) -> NoReturn:
    raise _Misfit(hint, lambda: reprlib.repr(value))


@functools.cache
def _hints(kind: Any) -> tuple[tuple["dataclasses.Field[Any]", Any], ...]:
    hints = get_type_hints(kind)
    return tuple((field, hints[field.name]) for field in dataclasses.fields(kind))


@functools.cache
def _keys(kind: Any) -> frozenset[str]:
    """The keys of a dataclass's own fields, and of those written flat among them."""
    names: set[str] = set()
    for field, hint in _hints(kind):
        if field.metadata != FLAT:
            names.add(field.name)
        elif dataclasses.is_dataclass(hint):
            names |= _keys(cast(Any, hint))
    return frozenset(names)


def _is_text(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, AsText)


def _same(value: Any) -> Any:
    return value


#: For each type without parts: its type in JSON, and the function that makes it from that.
_SCALARS: Mapping[Any, tuple[Any, _Read]] = {
    bool: (bool, _same),
    int: (int, _same),
    float: ((int, float), _same),
    str: (str, _same),
    NoneType: (NoneType, _same),
    Path: (str, Path),
}
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
