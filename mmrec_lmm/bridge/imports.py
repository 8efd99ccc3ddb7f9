"""The `import` of one model file: MMRec's modules, files of its checkout, and libraries as the file knew them.

A module's code calls the `__import__` of its own builtins. So what is offered here is seen by the file's statements
alone, also by those in its functions. `sys.modules` never has a module called `utils`: files of the checkout are there
under names of their own, where pickles and libraries look for a class's module.
"""

import builtins
import importlib
import importlib.util
import logging
import os
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
    "trapz": getattr(np, "trapezoid", None), "VisibleDeprecationWarning": UserWarning, "ComplexWarning": UserWarning,
    "int0": np.intp, "uint0": np.uintp, "bool8": np.bool_, "cfloat": np.complex128, "singlecomplex": np.complex64,
    "longfloat": np.longdouble, "AxisError": getattr(getattr(np, "exceptions", np), "AxisError", None),
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
        self._importlib = _as_it_was(importlib, {})
        vars(self._importlib)["import_module"] = self._import_module
        self._executed: dict[str, ModuleType] = {}  # by names in sys.modules
        self._name = ""  # of the file's module in sys.modules
        self._paths = list(sys.path)  # before the file's code
        self._added: list[Path] = []  # what its code put into sys.path, within the checkout

    def run(self, name: str, path: Path, module: ModuleType, *, package: str) -> ModuleType:
        """Execute a file as a module that imports by these rules, and that others import as `name`."""
        self.read[path] = hash_file(path)
        self._name = self._name or module.__name__
        vars(module).update(__file__=str(path), __package__=package, __builtins__=self._builtins())
        code = compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
        self.modules[name] = sys.modules[module.__name__] = self._executed[module.__name__] = module
        try:
            exec(code, vars(module))
        except BaseException:
            del self.modules[name], sys.modules[module.__name__], self._executed[module.__name__]
            raise
        return module

    def classes(self) -> Iterator[type]:
        """The classes of what was executed."""
        for module in self._executed.values():
            yield from (
                one for one in vars(module).values() if isinstance(one, type) and one.__module__ == module.__name__
            )

    def enter(self) -> None:
        """Put what was executed into sys.modules again, after other code of the file's was there."""
        sys.modules.update(self._executed)

    def leave(self) -> None:
        """Take what was executed out of sys.modules."""
        for name in self._executed:
            sys.modules.pop(name, None)

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
            return self._numpy if found is np else self._importlib if found is importlib else found
        module = self.module(name)
        if not fromlist:
            return self.modules[top]
        for part in fromlist:
            if part != "*" and not hasattr(module, part):
                with _unless_missing(f"{name}.{part}"):
                    self.module(f"{name}.{part}")
        return module

    def _import_module(self, name: str, package: str | None = None) -> ModuleType:
        """importlib.import_module by the rules of `_import`."""
        if name.startswith("."):
            name = importlib.util.resolve_name(name, package)
        return self.module(name) if self._has(name.partition(".")[0]) else importlib.import_module(name)

    def _has(self, top: str) -> bool:
        """True for the first part of a name that means a module of this file's own."""
        if top in _TOPS or top in self.modules:
            return True
        if top in STAND_INS and not _is_installed(top):
            return True
        if top in sys.stdlib_module_names:
            return False
        return self._source(top) is not None or (self._is_folder(top) and not _is_installed(top))

    def module(self, name: str) -> ModuleType:
        """A module of this file's own, made when it is first asked for. Raises ModuleNotFoundError."""
        if name in self.modules:
            return self.modules[name]
        parent, _, last = name.rpartition(".")
        owner = self.module(parent) if parent else None
        if name in self.modules:  # which its parent made
            return self.modules[name]
        offered = MODULES.get(name, STAND_INS.get(name.partition(".")[0], lambda: {})().get(name))
        path = self._source(name)
        if offered is not None:
            module: ModuleType = _Offered(name, offered, lambda: self._from_checkout(name))
            if name == "utils.utils":
                module.__dict__["get_model"] = self._get_model
            self.modules[name] = module
            for part in STAND_INS[name]() if name in STAND_INS else ():
                self.module(part)  # a library's parts are there without a statement of their own
        elif path is not None:
            module = self._run(name, path)
        elif self._is_folder(name):
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
            return self._run(name, path)
        finally:
            self.modules[name] = offered

    def _run(self, name: str, path: Path) -> ModuleType:
        """A module of the checkout's, executed."""
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]  # where relative imports start
        return self.run(name, path, ModuleType(f"{self._name}.{name}"), package=package)

    def _source(self, name: str) -> Path | None:
        """The file of a module in the checkout; None if there is none."""
        parts = name.split(".")
        places = [self.root.joinpath(*parts)]
        if parts[0] == "models" and len(parts) > 1:
            places.append(self.file.parent.joinpath(*parts[1:]))
        places += [place.joinpath(*parts) for place in self._own_paths()]
        for place in places:
            for path in (place.with_name(f"{place.name}.py"), place / "__init__.py"):
                if path.is_file() and path != self.file:
                    return path
        return None

    def _is_folder(self, name: str) -> bool:
        return self.root.joinpath(*name.split(".")).is_dir()

    def _own_paths(self) -> list[Path]:
        """The folders of the checkout that its code put into sys.path; `process_kept` takes them out there."""
        for entry in sys.path if sys.path != self._paths else ():
            place = Path(os.path.normpath(self.root / entry))  # relative ones start at src, where MMRec runs
            if entry not in self._paths and place.is_relative_to(self.root) and place not in self._added:
                self._added.append(place)
        return self._added

    def _get_model(self, model_name: str) -> Any:
        return getattr(self.module(f"models.{model_name.lower()}"), model_name)


class _Offered(ModuleType):
    """A module with names that are offered here; others come from the checkout's file of that name, if it has one."""

    def __init__(self, name: str, offered: Mapping[str, Any], rest: Callable[[], ModuleType | None]) -> None:
        super().__init__(name)
        vars(self).update(offered, __path__=[], _rest=rest, _names=tuple(offered), _own=None)

    def __getattr__(self, name: str) -> Any:
        if name == "__all__" or not name.startswith("__"):
            if self._own is None:
                vars(self)["_own"] = self._rest() or ModuleType(self.__name__)
            if name == "__all__":
                return [part for part in {**vars(self), **vars(self._own)} if not part.startswith("_")]
            if name in vars(self._own):
                return vars(self._own)[name]
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


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
    """True for a library's name; false where all that is found is a folder without __init__.py."""
    if top in sys.modules:
        return True
    with suppress(ImportError, ValueError):
        spec = importlib.util.find_spec(top)
        return spec is not None and spec.origin is not None
    return False


@contextmanager
def _unless_missing(name: str) -> Iterator[None]:
    """Suppress the ModuleNotFoundError of one module: `from a import b` may name an attribute."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != name:
            raise


def _log(*values: object, sep: str | None = None, file: Any = None, **how: Any) -> None:
    """`print` of a model file: stdout is for results."""
    if file is not None and file is not sys.stdout and file is not sys.stderr:
        print(*values, sep=sep, file=file, **how)
    else:
        logger.info("%s", (" " if sep is None else sep).join(map(str, values)))
