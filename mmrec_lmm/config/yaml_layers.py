"""Configuration files: where each layer's YAML is looked for, and its values with line numbers.

A layer is one file: the first folder that has it wins, `--configs DIR`, then ./configs, then the plugin's own folder
(for the files of its own model, encoder or data set), then the folder shipped with mmrec-lmm.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..disk.reading import read_file
from ..errors import ConfigError, ConfigValueError, DataError
from ..typed_json import INT64

ENCODER = "encoder"  # the section of an encoder's keys; each paradigm has one of its own name, all else is flat
GRID = "hyper_parameters"

LARGEST = 1_000_000  # bytes of a file; the largest shipped one has a few thousand
DEPTH = 100  # of lists and mappings within each other
VALUES = 20_000  # in a file, each alias counted as often as it is used


class TooMany(yaml.MarkedYAMLError):
    """A text with more than VALUES values, or deeper than DEPTH."""


@dataclass(frozen=True)
class Origin:
    """A key's value, the layer that set it, and the file and line if it was a file. An axis has a tuple of values."""

    value: Any
    layer: str
    source: str
    line: int | None = None

    def __str__(self) -> str:
        return f"{self.source}:{self.line}" if self.line else self.source


@dataclass(frozen=True)
class Layer:
    """One file, or the command line: flat keys (a section's are dotted) with their values and lines."""

    name: str
    source: str
    values: Mapping[str, Any]
    lines: Mapping[str, int] = field(default_factory=dict)
    prefix: str = ""  # the section of a whole file; messages leave it out, as the file does

    def origin(self, name: str) -> Origin:
        return Origin(None, self.name, self.source, self.lines.get(name))

    def grid_names(self) -> list[str]:
        """The keys that `hyper_parameters` names here; ValueError where it holds something else."""
        names = self.values.get(GRID) or []
        names = [names] if isinstance(names, str) else names
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"must be a list of keys, got {names!r}")
        return [name if name.startswith(self.prefix) else self.prefix + name for name in names]


class _Loader(yaml.SafeLoader):
    """YAML whose values mean what a person reads, and whose keys differ.

    PyYAML follows YAML 1.1, where 010 is 8, 1:30 is 90, `no` is false and 1e-4 is text. Here numbers are decimal or
    0x10, 1e-4 is one (as in MMRec), and yes, no, on, off, dates and times are text; a switch takes yes, no, on and off.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._values = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """A node; YAMLError as soon as the text is too large or too deep, as composing it takes long."""
        self._depth += 1
        self._values += 1
        if self._depth > DEPTH or self._values > VALUES:
            what = f"{DEPTH} lists and mappings within each other" if self._depth > DEPTH else f"{VALUES:,} values"
            raise TooMany(problem=f"expected at most {what}, got more", problem_mark=self.get_mark())
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key.value}", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_whole(self, node: yaml.ScalarNode) -> int | str:
        """A whole number, or its text beyond 64 bits: no key takes such a number, and one of text may be called so."""
        text = node.value.replace("_", "")
        if len(text) > 40:
            return str(node.value)
        number = int(text, 16) if "x" in text.lower() else int(text)
        return number if number in INT64 else str(node.value)


_SCALARS = {
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?(0[xX][0-9a-fA-F]+|[0-9][0-9_]*)", "-+0123456789"),
    "float": (
        r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)([eE][-+]?[0-9]+)?|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
}
_Loader.yaml_implicit_resolvers = {
    start: [(tag, form) for tag, form in known if tag.rpartition(":")[2] not in (*_SCALARS, "timestamp")]
    for start, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _name, (_form, _starts) in _SCALARS.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"^({_form})$"), list(_starts))
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_whole)


def parse(text: str) -> Any:
    """The value that YAML gives a text, as in a configuration file; yaml.YAMLError where it isn't YAML."""
    return _compose(text)[1]


def _compose(text: str) -> tuple[yaml.Node | None, Any]:
    """A text's YAML node, which has line numbers, and its value. A value that contains itself is refused, and one that
    aliases or nesting make large."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node:
            _expanded(node, {})
        return node, loader.construct_object(node, deep=True) if node else None
    except (ValueError, OverflowError, RecursionError) as error:  # 2024-13-45 isn't a date
        raise yaml.YAMLError(str(error)) from None


def _expanded(node: yaml.Node, known: dict[int, int]) -> int:
    """The number of values under a node, each alias counted as often as it is used. `known` has those of nodes that
    were counted, 0 while they are."""
    if id(node) not in known:
        known[id(node)] = 0
        inner = node.value if isinstance(node, yaml.CollectionNode) else ()
        parts = [part for pair in inner for part in (pair if isinstance(pair, tuple) else (pair,))]
        known[id(node)] = 1 + sum(_expanded(part, known) for part in parts)
        if known[id(node)] > VALUES:
            raise TooMany(
                problem=f"expected at most {VALUES:,} values with aliases, got more",
                problem_mark=node.start_mark,
            )
    elif not known[id(node)]:
        raise yaml.MarkedYAMLError(problem="a value contains itself", problem_mark=node.start_mark)
    return known[id(node)]


def read(path: Path, name: str, *, prefix: str = "", sections: Collection[str]) -> Layer:
    """A YAML file as the layer `name`; ConfigError names file and line of anything but YAML keys."""
    try:
        node, content = _compose(read_file(path, largest=LARGEST, cure="try splitting it").decode("utf-8"))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path}:{mark.line + 1}" if mark else path
        raise ConfigError(f"{where}: not valid YAML: {error.problem or error.context}") from None
    except DataError as error:
        raise ConfigError(str(error)) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: can't be read as YAML in UTF-8: {error}") from None
    if node is None:
        content = {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected `key: value` lines, got {str(content)[:40]!r}")

    lines = {key if key == GRID else prefix + key: line for key, line in _lines(node)}
    if prefix:
        values = {key if key == GRID else f"{prefix}{key}": value for key, value in content.items()}
        return Layer(name, str(path), values, lines, prefix)
    for key, value in content.items():
        if key in sections and not isinstance(value, dict | None):
            raise ConfigError(f"{path}:{lines[key]}: {key}: expected a section with keys of its own, got {value!r}")
    try:
        return Layer(name, str(path), flat(content, sections), lines)
    except ConfigValueError as error:
        raise ConfigError(f"{path}:{lines.get(error.key, '?')}: {error.key}: {error.text}") from None


def flat(values: Mapping[Any, Any], sections: Collection[str]) -> dict[str, Any]:
    """The values with the keys of sections under their full names: {ft: {epochs: 2}} becomes {ft.epochs: 2}.
    ConfigValueError for a key that is given both ways."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        is_section = name in sections and isinstance(value, dict | None)
        own = {f"{name}.{key}": inner for key, inner in (value or {}).items()} if is_section else {str(name): value}
        for key in own:
            if key in found:
                raise ConfigValueError(key, "expected one value, got one in its section and another beside it; try one")
        found |= own
    return found


def _lines(node: yaml.Node | None, outer: str = "") -> Iterator[tuple[str, int]]:
    """Each key (dotted where mappings nest, with its place in a list) and the number of its line."""
    for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
        yield f"{outer}{key.value}", key.start_mark.line + 1
        yield from _lines(value, f"{outer}{key.value}.")
    for place, item in enumerate(node.value if isinstance(node, yaml.SequenceNode) else ()):
        yield from _lines(item, f"{outer}{place}.")


def as_yaml(value: Any) -> str:
    """A value on one line, as one would write it in a file or after --key=."""
    plain = str(value) if isinstance(value, Path) else value
    return yaml.safe_dump(plain, default_flow_style=True, width=10**6, allow_unicode=True).removesuffix("...\n").strip()


def shipped() -> Path:
    """The folder of YAML that comes with mmrec-lmm: among the installed packages, or in the checkout."""
    here = Path(__file__).resolve().parents[2]  # of the package mmrec_lmm
    installed = here / "mmrec_lmm_plugins" / "configs"
    return installed if installed.is_dir() else here / "configs"


def folders(chosen: Path | None, own: Path | None = None) -> list[Path]:
    """Where a layer is looked for, in order. ConfigError if `chosen` isn't a folder of configuration."""
    known = ("overall.yaml", "dataset", "model", "encoder", "preset", "grid", "study")
    if chosen and not any(_entry(chosen, name) for name in known):
        raise ConfigError(f"--configs {chosen}: expected a folder with one of {', '.join(known)}, got none of them")
    return [folder for folder in (chosen, Path("configs"), own, shipped()) if folder]


def find(places: Iterable[Path], *parts: str) -> Path | None:
    """The first `place/part/part` that is a file, whatever the case of its letters (MMRec has VBPR.yaml)."""
    for place in places:
        path: Path | None = place
        for part in parts:
            path = _entry(path, part) if path else None
        if path and path.is_file():
            return path
    return None


def _entry(folder: Path, name: str) -> Path | None:
    """The entry of that name, the exact spelling first; a name with a slash or `..` has none."""
    same = [path for path in entries(folder) if path.name.lower() == name.lower()]
    return min(same, key=lambda path: (path.name != name, path.name), default=None)


def entries(folder: Path) -> list[Path]:
    """The entries of a folder, sorted; none if it doesn't exist."""
    return sorted(folder.iterdir()) if folder.is_dir() else []
