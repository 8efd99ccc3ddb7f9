"""Schemas of configuration: the fields of frozen dataclasses, read as keys with types, defaults and limits.

The host's keys are the fields of `Settings`; a model's and an encoder's are those of the dataclass that its spec
names. Nothing is evaluated as code: a value of YAML is converted to the field's type, or refused with a message.
"""

import dataclasses
import logging
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ..errors import ConfigValueError, PluginError, did_you_mean
from ..plugin import specs
from ..plugin.names import PATH_RULE, is_within
from ..typed_json import INT64
from ..user_paths import expand_home
from .settings import Settings

_WORDS: Mapping[str, bool] = {
    word: switch
    for words, switch in (("yes on", True), ("no off", False))
    for name in words.split()
    for word in (name, name.capitalize(), name.upper())
}
_MISFIT = object()  # returned by `_coerce` for a value that doesn't fit the type; None is a value


@dataclass(frozen=True)
class Limit:
    """A limit beyond the type; `text` completes "must be ...". `spelled` maps other spellings of a value to it.

    A plugin's dataclass declares its limits by field, in the class attribute LIMITS. None is always allowed where the
    type allows it. Limits are there for values that can't be meant: a size of 0, a rate of 1e308.
    """

    text: str
    holds: Callable[[Any], bool]
    spelled: Mapping[Any, Any] = dataclasses.field(default_factory=dict)


def at_least(least: float) -> Limit:
    """Finite numbers from `least` on."""
    return Limit(f"at least {least}", lambda value: least <= value < math.inf)


def above(low: float) -> Limit:
    """Finite numbers above `low`."""
    return Limit(f"above {low} and finite", lambda value: low < value < math.inf)


def between(least: float, most: float) -> Limit:
    """Numbers from `least` to `most`, both included."""
    return Limit(f"from {least:,} to {most:,}", lambda value: least <= value <= most)


def each(limit: Limit) -> Limit:
    """Lists, and mappings, whose numbers keep a limit."""

    def holds(values: Any) -> bool:
        return all(map(limit.holds, values.values() if isinstance(values, Mapping) else values))

    return Limit(f"numbers, each {limit.text}", holds)


SIZE = between(1, 2**20)  # a vector's length, a graph's neighbors
LAYERS = between(0, 1000)
WEIGHT = Limit("at least 0 and finite", lambda value: 0 <= value < math.inf)  # of a loss or a penalty
RATE = Limit("at least 0 and below 1", lambda value: 0 <= value < 1)  # of dropout
SIGNIFICANCE = Limit("above 0 and below 1", lambda alpha: 0 < alpha < 1)  # below which p is significant


@dataclass(frozen=True)
class Key:
    """One configuration key. `name` is as users write it (`encoder.image_size`), `hint` the field's type, `default`
    may be MISSING."""

    name: str
    hint: Any
    default: Any
    limit: Limit | None = None

    def read(self, value: Any) -> Any:
        """A value from YAML in the key's type; ValueError says what is allowed."""
        result = _coerce(value, self.hint)
        if result is _MISFIT:
            meant = did_you_mean(str(value), map(str, _choices(self.hint)))
            raise ValueError(f"must be {describe_type(self.hint)}, got {_shown(value)}{meant}")
        if self.limit and self.limit.spelled:
            result = self.limit.spelled.get(result, result)
        if self.limit and result is not None and not self.limit.holds(result):
            raise ValueError(f"must be {self.limit.text}, got {_shown(value)}")
        return result

    def fits(self, value: Any) -> bool:
        """True if `value` can be converted to the key's type."""
        return _coerce(value, self.hint) is not _MISFIT

    def is_axis(self, value: Any) -> bool:
        """True if a list holds several values of the key instead of one: it is nested deeper than the key's type."""
        return _depth(value) > _type_depth(self.hint)


@dataclass(frozen=True)
class Schema:
    """The keys of one dataclass; `prefix` is their section (`encoder.`), if any."""

    owner: str  # for messages: "the host", "model VBPR"
    cls: Any
    keys: Mapping[str, Key]
    prefix: str = ""

    def build(self, values: Mapping[str, Any]) -> Any:
        """The dataclass from the values of its keys, by full name; what its own checks raise passes through."""
        return self.cls(**{name.removeprefix(self.prefix): values[name] for name in self.keys})


def schema_of(config: Any, owner: str, *, prefix: str = "", limits: Mapping[str, Limit] | None = None) -> Schema:
    """The schema that a dataclass (or the "module:Class" that names it) defines; PluginError names a faulty owner.

    `limits` are by field; by default those in the class's attribute LIMITS, if it has one.
    """
    try:
        cls = specs.resolve(config)
        hints = get_type_hints(cls)
        fields = [field for field in dataclasses.fields(cls) if field.init]
    except Exception as error:  # a plugin's module can raise anything while it is imported
        raise PluginError(f"{owner}: expected a dataclass as its schema, got {config!r} ({error})") from error
    for field in fields:
        if not _is_supported(hints[field.name]):
            raise PluginError(
                f"{owner}: field {field.name}: expected int, float, bool, str, Path, Literal, a tuple or Mapping of "
                f"these, or | None, got {hints[field.name]}"
            )
    limits = getattr(cls, "LIMITS", {}) if limits is None else limits
    keys = [Key(prefix + field.name, hints[field.name], _default(field), limits.get(field.name)) for field in fields]
    return Schema(owner, cls, {key.name: key for key in keys}, prefix)


def _shown(value: Any) -> str:
    """A value for a message, which a list of a million numbers mustn't fill."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:197]}..."


def _default(field: "dataclasses.Field[Any]") -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _coerce(value: Any, hint: Any) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return _WORDS.get(value, value) if isinstance(value, str) else value
    if hint in _SCALARS:
        return _SCALARS[hint](value)
    if origin in (Union, UnionType):
        fits = [fit for arg in args if (fit := _coerce(value, arg)) is not _MISFIT]
        same = [fit for fit in fits if type(fit) is type(value)]  # "3" stays text where `int | str` takes either
        return (same + fits + [_MISFIT])[0]
    if origin is Literal:
        return _literal(value, args)
    if origin is tuple:
        return _tuple(value, args)
    if not isinstance(value, Mapping):
        return _MISFIT
    pairs = {_coerce(name, args[0]): _coerce(item, args[1]) for name, item in value.items()}
    return _MISFIT if _MISFIT in (*pairs, *pairs.values()) else pairs


def _int(value: Any) -> Any:
    """A whole number of 64 bits, also as `1e3` or text; True isn't one."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value if value in INT64 else _MISFIT
    number = _float(value)
    whole = number is not _MISFIT and abs(number) < 2**63 and number == int(number)
    return int(number) if whole else _MISFIT


def _float(value: Any) -> Any:
    """A number, also as text ("1e-4", which MMRec evaluates); True and NaN aren't numbers."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return _MISFIT
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return _MISFIT
    return _MISFIT if math.isnan(number) else number


def _bool(value: Any) -> Any:
    """A switch, also as yes, no, on, off, which YAML 1.1 reads as switches everywhere."""
    return value if isinstance(value, bool) else _WORDS.get(value, _MISFIT) if isinstance(value, str) else _MISFIT


def _literal(value: Any, allowed: tuple[Any, ...]) -> Any:
    """The allowed value of the same text, in any case: MMRec's users write `Adam` and `adam`."""
    if value is None:
        return None if None in allowed else _MISFIT
    return {str(one).lower(): one for one in allowed}.get(str(value).lower(), _MISFIT)


def _tuple(value: Any, args: tuple[Any, ...]) -> Any:
    """A list in each element's type; one value is read as a list of one."""
    if value is None:
        return _MISFIT
    items = list(value) if isinstance(value, list | tuple) else [value]
    hints = [args[0]] * len(items) if args[1:] == (...,) else list(args)
    if len(items) != len(hints):
        return _MISFIT
    fits = tuple(_coerce(item, hint) for item, hint in zip(items, hints, strict=True))
    return _MISFIT if _MISFIT in fits else fits


def _text(value: Any) -> Any:
    """Text without the character 0, at which the system would end a path. A path in the user's folder is whole."""
    return expand_home(value) if isinstance(value, str) and "\0" not in value else _MISFIT


def _path(value: Any) -> Any:
    text: Any = _text(str(value)) if isinstance(value, str | Path) else _MISFIT
    return _MISFIT if text is _MISFIT else Path(text)


_SCALARS: Mapping[Any, Callable[[Any], Any]] = {
    int: _int,
    float: _float,
    bool: _bool,
    str: _text,
    Path: _path,
    NoneType: lambda value: None if value is None else _MISFIT,
}

_NAMES: Mapping[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    Path: "a path",
    NoneType: "null",
    Any: "anything",
}


def describe_type(hint: Any) -> str:
    """A type in words: "a number", "one of adam, sgd", "a list of whole numbers"."""
    origin, args = get_origin(hint), get_args(hint)
    if hint in _NAMES:
        return _NAMES[hint]
    if origin is Literal:
        return f"one of {', '.join(map(str, args))}"
    if origin is tuple and args[1:] == (...,):
        return f"a list, each item {describe_type(args[0])}"
    if origin is tuple:
        return f"a list of {len(args)} ({', '.join(map(describe_type, args))})"
    if origin in (Union, UnionType):
        return " or ".join(map(describe_type, args))
    return f"a mapping to {describe_type(args[1])}"


def takes_whole(hint: Any) -> bool | None:
    """True for a type of whole numbers, False for one of numbers, None for any other."""
    hints = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return False if float in hints else True if int in hints else None


def _choices(hint: Any) -> list[Any]:
    """The values that a Literal, or a type made with one, lists."""
    args = get_args(hint)
    return list(args) if get_origin(hint) is Literal else [choice for arg in args for choice in _choices(arg)]


def _is_supported(hint: Any) -> bool:
    origin, args = get_origin(hint), get_args(hint)
    if hint in _NAMES or origin is Literal:
        return True
    if origin is tuple:
        return bool(args) and all(arg is ... or _is_supported(arg) for arg in args)
    return origin in (Union, UnionType, Mapping, dict) and all(map(_is_supported, args))


def _depth(value: Any) -> int:
    return 1 + max(map(_depth, value), default=0) if isinstance(value, list | tuple) else 0


def _type_depth(hint: Any) -> int:
    origin = get_origin(hint)
    inner = max(map(_type_depth, get_args(hint)), default=0) if origin in (tuple, Union, UnionType) else 0
    return inner + (origin is tuple)


LONGEST_LIST = 1_000_000  # of recommended items
SEED = Limit("between 0 and 4294967295", lambda seed: 0 <= seed < 2**32)  # NumPy's range
DIFFERENT_METRICS = Limit(
    "different metrics, at least one", lambda names: names and len({name.lower() for name in names}) == len(names)
)
_INSIDE = Limit(f"{PATH_RULE}, that of the data set", is_within)
_LIMITS: Mapping[str, Limit] = {
    "inter_file_name": _INSIDE,
    "vision_feature_file": _INSIDE,
    "text_feature_file": _INSIDE,
    **dict.fromkeys(("train_batch_size", "eval_batch_size", "encode_batch_size", "eval_step"), at_least(1)),
    **dict.fromkeys(("epochs", "stopping_step", "min_steps", "gpu_id"), at_least(0)),
    **dict.fromkeys(("threads", "workers"), between(0, 1024)),
    "n_negatives": between(1, 1000),
    **dict.fromkeys(("valid_users", "checkpoint_seconds"), at_least(0)),
    **dict.fromkeys(("seed", "split_seed"), SEED),
    "learning_rate": Limit("above 0 and finite", lambda rate: 0 < rate < math.inf),
    "weight_decay": Limit("at least 0 and finite", lambda decay: 0 <= decay < math.inf),
    "learning_rate_scheduler": Limit(
        "two numbers above 0", lambda pair: len(pair) == 2 and all(0 < number < math.inf for number in pair)
    ),
    "clip_grad_norm": Limit(  # the arguments of torch.nn.utils.clip_grad_norm_
        "{max_norm: NUMBER above 0}, perhaps with norm_type, error_if_nonfinite, foreach",
        lambda norm: (
            isinstance(norm.get("max_norm"), int | float)
            and norm["max_norm"] > 0
            and norm.keys() <= {"max_norm", "norm_type", "error_if_nonfinite", "foreach"}
        ),
    ),
    "field_separator": Limit(
        "a single character",
        lambda text: len(text) == 1,
        spelled={r"\t": "\t"},  # as one types it in a shell
    ),
    "topk": Limit(
        f"different numbers from 1 to {LONGEST_LIST:,}",
        lambda topk: topk and 1 <= min(topk) <= max(topk) <= LONGEST_LIST and len(set(topk)) == len(topk),
    ),
    "metrics": DIFFERENT_METRICS,
    "valid_metric": Limit(
        "METRIC@K, such as Recall@20", lambda text: re.fullmatch(r"\w+@[1-9][0-9]*", text) is not None
    ),
    "device": Limit(
        "auto, cpu, mps, cuda or cuda:N", lambda text: re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]+)?", text) is not None
    ),
    "state": Limit("a log level, such as INFO", lambda text: text.upper() in logging.getLevelNamesMapping()),
}

#: The host's own schema.
HOST = schema_of(Settings, "the host", limits=_LIMITS)


def check_settings(settings: Settings) -> None:
    """Check several of the host's keys together: ConfigValueError if the metric to stop by isn't computed."""
    metric, _, k = settings.valid_metric.partition("@")
    if metric.lower() not in map(str.lower, settings.metrics) or int(k) not in settings.topk:
        raise ConfigValueError(
            "valid_metric",
            f"{settings.valid_metric} is not computed with metrics [{', '.join(settings.metrics)}] and topk "
            f"[{', '.join(map(str, settings.topk))}]: add it there, or set valid_metric to one of these",
            "metrics",
            "topk",
        )
