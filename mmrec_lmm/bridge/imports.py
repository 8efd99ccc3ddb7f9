"""The `import` of one model file: MMRec's modules, files of its checkout, and libraries as the file knew them.

A module's code calls the `__import__` of its own builtins. So what is offered here is seen by the file's statements
alone, also by those in its functions; `sys.modules` never has a module called `utils`.
"""

import builtins
import importlib
import importlib.util
import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ..disk.hashing import hash_file
from .interface import MODULES
from .stand_ins import STAND_INS

logger = logging.getLogger(__name__)

_TOPS = frozenset(name.partition(".")[0] for name in MODULES)

#: Names that NumPy dropped, and what each was.
_GONE_FROM_NUMPY: Mapping[str, Any] = {
    "int": int, "float": float, "bool": bool, "object": object, "str": str, "complex": complex, "long": int,
    "unicode": str, "float_": np.float64, "complex_": np.complex128, "string_": np.bytes_, "unicode_": np.str_,
    "Inf": np.inf, "Infinity": np.inf, "infty": np.inf, "PINF": np.inf, "NINF": -np.inf, "NaN": np.nan,
    "PZERO": 0.0, "NZERO": -0.0, "product": np.prod, "cumproduct": np.cumprod, "alltrue": np.all, "sometrue": np.any,
    "round_": np.round, "row_stack": np.vstack, "mat": np.asmatrix, "asscalar": lambda array: array.item(),
    "asfarray": lambda array, dtype=np.float64: np.asarray(array, dtype), "msort": lambda array: np.sort(array, axis=0),
    "in1d": lambda first, second, **how: np.isin(np.ravel(first), second, **how),
    "trapz": getattr(np, "trapezoid", None), "VisibleDeprecationWarning": UserWarning,
}  # fmt: skip


class ModelImports:
    """The modules of one model file, by name. `read` has the checkout's files that were executed, with their hashes."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.root = next((place.parent for place in file.parents if place.name == "models"), file.parent)  # MMRec's src
        self.package = ".".join(file.parent.relative_to(self.root).parts) or "models"
        self.modules: dict[str, ModuleType] = {}
        self.read: dict[Path, str] = {}
        self._numpy = _as_it_was(np, _GONE_FROM_NUMPY)

    def run(self, name: str, path: Path, module: ModuleType, *, package: str) -> ModuleType:
        """Execute a file as a module that imports by these rules, and that others import as `name`."""
        self.read[path] = hash_file(path)
        vars(module).update(__file__=str(path), __package__=package, __builtins__=self._builtins())
        code = compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
        self.modules[name] = module
        try:
            exec(code, vars(module))
        except BaseException:
            del self.modules[name]
            raise
        return module

    def _builtins(self) -> dict[str, Any]:
        return {**vars(builtins), "__import__": self._import, "print": _log}

    def _import(
        self,
        name: str,
        globals_: Mapping[str, Any] | None = None,
        locals_: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        if level:
            name = importlib.util.resolve_name("." * level + name, str((globals_ or {}).get("__package__") or ""))
        top = name.partition(".")[0]
        if not self._has(top):
            found = builtins.__import__(name, globals_, locals_, fromlist or (), 0)
            return self._numpy if found is np else found
        module = self.module(name)
        if not fromlist:
            return self.modules[top]
        for part in fromlist:
            if part != "*" and not hasattr(module, part):
                with _unless_missing(f"{name}.{part}"):
                    self.module(f"{name}.{part}")
        return module

    def _has(self, top: str) -> bool:
        """True for the first part of a name that means a module of this file's own."""
        if top in _TOPS or top in self.modules:
            return True
        if top in STAND_INS and not _is_installed(top):
            return True
        return top not in sys.stdlib_module_names and self._source(top) is not None

    def module(self, name: str) -> ModuleType:
        """A module of this file's own, made when it is first asked for. Raises ModuleNotFoundError."""
        if name in self.modules:
            return self.modules[name]
        parent, _, last = name.rpartition(".")
        owner = self.module(parent) if parent else None
        offered = MODULES.get(name, STAND_INS.get(name.partition(".")[0], lambda: {})().get(name))
        path = self._source(name)
        if offered is not None:
            module: ModuleType = _Offered(name, offered, lambda: self._from_checkout(name))
            if name == "utils.utils":
                module.__dict__["get_model"] = self._get_model
            self.modules[name] = module
        elif path is not None:
            module = self.run(name, path, ModuleType(name), package=_package(name, path))
        elif self.root.joinpath(*name.split(".")).is_dir():
            module = self.modules[name] = ModuleType(name)  # a folder without __init__.py
        else:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        if owner is not None:
            setattr(owner, last, module)
        return module

    def _from_checkout(self, name: str) -> ModuleType | None:
        """The checkout's own module of a name that is offered here, for what isn't; None if it has none."""
        path = self._source(name)
        if path is None:
            return None
        offered = self.modules[name]
        try:
            return self.run(name, path, ModuleType(name), package=_package(name, path))
        finally:
            self.modules[name] = offered

    def _source(self, name: str) -> Path | None:
        """The file of a module in the checkout; None if there is none."""
        parts = name.split(".")
        places = [self.root.joinpath(*parts)]
        if parts[0] == "models" and len(parts) > 1:
            places.append(self.file.parent.joinpath(*parts[1:]))
        for place in places:
            for path in (place.with_name(f"{place.name}.py"), place / "__init__.py"):
                if path.is_file() and path != self.file:
                    return path
        return None

    def _get_model(self, model_name: str) -> Any:
        return getattr(self.module(f"models.{model_name.lower()}"), model_name)


class _Offered(ModuleType):
    """A module with names that are offered here; others come from the checkout's file of that name, if it has one."""

    def __init__(self, name: str, offered: Mapping[str, Any], rest: Callable[[], ModuleType | None]) -> None:
        super().__init__(name)
        vars(self).update(offered, __path__=[], _rest=rest, _names=tuple(offered), _own=None)

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("__"):
            if self._own is None:
                vars(self)["_own"] = self._rest() or ModuleType(self.__name__)
            if name in vars(self._own):
                return vars(self._own)[name]
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


def _package(name: str, path: Path) -> str:
    """What a module's relative imports start from."""
    return name if path.name == "__init__.py" else name.rpartition(".")[0]


def offered_names(module: str) -> Sequence[str]:
    """The names that a module offers here."""
    return tuple(MODULES.get(module, ()))


def _as_it_was(library: ModuleType, gone: Mapping[str, Any]) -> ModuleType:
    """A library with the names that it dropped."""
    module = ModuleType(library.__name__)
    vars(module).update({**gone, **vars(library)})
    vars(module)["__getattr__"] = lambda name: getattr(library, name)
    return module


def _is_installed(top: str) -> bool:
    if top in sys.modules:
        return True
    with suppress(ImportError, ValueError):
        return importlib.util.find_spec(top) is not None
    return False


@contextmanager
def _unless_missing(name: str) -> Iterator[None]:
    """Suppress the ModuleNotFoundError of one module: `from a import b` may name an attribute."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != name:
            raise


def _log(*values: object, sep: str | None = None, **_: object) -> None:
    """`print` of a model file: stdout is for results."""
    logger.info("%s", (" " if sep is None else sep).join(map(str, values)))
