"""A model file as a plugin: what is read of its text, its class, the configuration that goes with it, and its faults.

Every fault is one message that begins with the file and the line.
"""

import ast
import functools
import hashlib
import keyword
import re
import sys
import textwrap
import traceback
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import field, make_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from ..config import yaml_layers
from ..config.schema import HOST
from ..config.yaml_layers import ENCODER, GRID
from ..errors import ConfigError, MMRecError, NotApplicable, PluginError, RunError, did_you_mean
from ..formatting import first_line, foreign
from ..plugin.hookspecs import hookimpl
from ..plugin.registry import FILE_CODE
from ..plugin.specs import ModelSpec
from . import model_name
from .imports import ModelImports, offered_names
from .interface import AbstractRecommender, set_attribute
from .run_values import HOST_KEYS, OVERALL
from .scope import NEEDS, process_kept, running
from .stand_ins import STAND_INS

FEATURE_NAMES = {"image": "v_feat", "text": "t_feat"}  # by modality
_CONFIGS = {"config", "cfg", "conf", "configs", "final_config_dict"}  # names of the configuration in model files
_ALWAYS = ("is_multimodal_model", "end2end", "use_neg_sampling", "use_full_sampling", "req_training")  # the host's part
_PACKAGES = {  # what pip installs; of some only a source is published, which is built beside the installed torch
    "sklearn": "scikit-learn", "yaml": "PyYAML", "PIL": "pillow", "faiss": "faiss-cpu", "cv2": "opencv-python-headless",
    "torch_scatter": "--no-build-isolation torch-scatter", "torch_sparse": "--no-build-isolation torch-sparse",
    "torch_cluster": "--no-build-isolation torch-cluster",
}  # fmt: skip


class ModelPlugin:
    """The plugin of one file."""

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec

    @hookimpl
    def mmrec_register_models(self) -> list[ModelSpec]:
        return [self._spec]


class ModelFile:
    """One file: its module, the keys that it reads with their places, and the YAML that goes with it."""

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self.imports = ModelImports(self.path)
        self.keys: dict[str, str] = {}  # key -> file:line
        self.cls: Any = nn.Module  # once executed, the model's class
        self.summary = ""
        self._lines: dict[str, int] = {}  # of classes
        self._tree = self._parse(self.path)
        self._note_keys(self.path, self._tree)

    @property
    def code(self) -> str:
        """The hash of the file and of what it imports from its checkout."""
        hashes = [self.imports.read[path] for path in sorted(self.imports.read)]
        return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()

    @property
    def configs(self) -> Path | None:
        """The folder of YAML beside the file, as in a checkout: src/configs of src/models/freedom.py."""
        places = (self.imports.root / "configs", self.path.parent / "configs")
        return next((place for place in places if (place / "model").is_dir()), None)

    def execute(self, module: ModuleType) -> None:
        """Run the file's code, and find its model class."""
        package = self.imports.package
        at_import = NEEDS.keys() - {"device"}  # which isn't known yet
        with self.blaming("import"), process_kept(), running(torch.device("cpu"), needs=at_import):
            self.imports.run(f"{package}.{self.path.stem}", self.path, module, package=package)
        for cls in self.imports.classes():
            if issubclass(cls, nn.Module) and cls.__setattr__ is nn.Module.__setattr__:
                type.__setattr__(cls, "__setattr__", set_attribute)
        for path in self.imports.read:
            if path != self.path:
                self._note_keys(path, self._parse(path))
        self.cls = self._model_class(module)
        text = ast.get_docstring(self._tree) or ""
        words = [line.strip(" #:\t") for line in text.splitlines()]
        found = (line for line in words if re.search(r"\w{3}", line) and "coding:" not in line)
        self.summary = textwrap.shorten(next(found, ""), 100, placeholder=" ...")

    def mentions(self, pattern: str) -> bool:
        """True if the text of the file, or of what it imports from its checkout, has a match."""
        files = {self.path, *self.imports.read}
        return any(re.search(pattern, path.read_text(encoding="utf-8", errors="replace")) for path in files)

    def in_strings(self, pattern: str) -> list[str]:
        """The matches in the strings of the file, and of what it imports from its checkout; comments have none."""
        trees = [ast.parse(path.read_bytes()) for path in {self.path, *self.imports.read}]
        values = [node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)]
        return sorted({found for one in values if isinstance(one, str) for found in re.findall(pattern, one)})

    @functools.cached_property
    def needs(self) -> frozenset[str]:
        """The parts of `running` that the file's code needs, once it is executed."""
        return frozenset(name for name, pattern in NEEDS.items() if self.mentions(pattern))

    @property
    def features(self) -> tuple[str, ...]:
        """The modalities whose features the file reads."""
        return tuple(modality for modality, name in FEATURE_NAMES.items() if self.mentions(rf"\b{name}\b"))

    def yaml(self) -> Mapping[str, Any]:
        """The values of the YAML beside the file; none without such a file."""
        path = yaml_layers.find([self.configs], "model", f"{self.path.stem}.yaml") if self.configs else None
        try:
            return yaml_layers.read(path, "model", sections=()).values if path else {}
        except ConfigError as error:
            raise PluginError(str(error)) from None

    def _parse(self, path: Path) -> ast.Module:
        content = path.read_bytes()
        if b"\0" in content:
            raise PluginError(
                f"{path}:1: expected Python in UTF-8, got {foreign(content[:8]) or 'bytes of another encoding'}; try "
                "saving it as UTF-8"
            )
        with self.blaming("import"):
            return ast.parse(content, str(path))

    def _note_keys(self, path: Path, tree: ast.Module) -> None:
        for key, line in _keys_in(tree):
            self.keys.setdefault(key, f"{path}:{line}")

    def _model_class(self, module: ModuleType) -> type[nn.Module]:
        """The class whose name is the file's, in any case, or the only one that is a model."""
        classes = [node for node in ast.walk(self._tree) if isinstance(node, ast.ClassDef)]
        lines = self._lines = {node.name: node.lineno for node in classes}
        own = [one for one in vars(module).values() if isinstance(one, type) and one.__module__ == module.__name__]
        models = {one.__name__: one for one in own if _is_model(one)}
        same = [name for name in models if name.lower().replace("_", "") == self.path.stem.lower().replace("_", "")]
        if len(same) == 1 or len(models) == 1:
            return models[same[0] if len(same) == 1 else next(iter(models))]
        if models:
            found = ", ".join(f"{name} (line {lines.get(name, '?')})" for name in models)
            raise PluginError(
                f"{self.path}:{min(lines.get(name, 1) for name in models)}: expected one model class, got {found}; try "
                f"calling the file as the one that is meant, such as {next(iter(models)).lower()}.py"
            )
        raise PluginError(f"{self.path}:{self._no_model(lines)}")

    def _no_model(self, lines: Mapping[str, int]) -> str:
        if "mmrec_register_models" in {node.name for node in ast.walk(self._tree) if isinstance(node, ast.FunctionDef)}:
            return "1: expected a model file in MMRec's interface, got a plugin; try -p FILE -m NAME"
        got = ", ".join(f"{name} (line {line})" for name, line in lines.items())
        return (
            f"{min(lines.values(), default=1)}: expected a model class, which defines calculate_loss and "
            f"full_sort_predict, got {f'the classes {got}' if got else 'no class'}; try a file of MMRec's src/models"
        )

    # Faults

    @contextmanager
    def blaming(self, doing: str, *, config: Any = None, missing: Iterable[str] = ()) -> Iterator[None]:
        """A context for the file's code: what it raises becomes one message. `config` has the keys that it read,
        `missing` the modalities without features."""
        try:
            yield
        except MMRecError as error:
            if type(error) is not ConfigError:
                raise
            path, line, _ = self._place(error)  # of a tensor that is too large for the memory
            raise ConfigError(f"{path}:{line}: {error}") from None
        except (Exception, SystemExit) as error:  # a file may call exit()
            raise self._fault(error, doing, config, tuple(missing)) from error

    def _fault(self, error: Exception | SystemExit, doing: str, config: Any, missing: tuple[str, ...]) -> MMRecError:
        path, line, text = self._place(error)
        where, said = f"{path}:{line}", _said(error, text)
        if isinstance(error, SyntaxError):
            return PluginError(f"{where}: expected Python, got a syntax error: {error.msg}")
        if isinstance(error, ImportError):
            return PluginError(f"{where}: {self._not_imported(error)}")
        if re.search(r"CUDA|NVIDIA|torch\.cuda\.", str(error)) and not torch.cuda.is_available():
            return NotApplicable(
                f"{where}: expected a GPU, which it asks for by name, got none ({first_line(error)}); try a machine "
                "with one and --device cuda"
            )
        wanted = missing if "None" in str(error) and "feat" in text else self._guarding(error, missing)
        if wanted:
            flags = " and ".join(f"{modality} features ({FEATURE_NAMES[modality]})" for modality in wanted)
            return NotApplicable(
                f"{where}: expected {flags}, got none; try --features {wanted[0]}=FILE.npy, or an --encoder and "
                "--modalities that have them"
            )
        library = re.match(r"module '(\w+)[\w.]*' has no attribute", str(error))
        if library is not None and library[1] in STAND_INS and library[1] not in sys.modules:
            return PluginError(f"{where}: {self._more_of(library[1], error)}")
        without = tuple(config.without_value) if config is not None else ()
        without = tuple(sorted(without, key=lambda key: not re.search(rf"\b{re.escape(key)}\b", text)))  # stable
        places = {key: self.keys.get(key, "read there") for key in without}
        keys = ", ".join(f"{key} ({place})" if place != where else key for key, place in places.items())
        if "None" in str(error) and without:
            named = next((key for key in without if key in self.keys and key.isidentifier()), None)
            flag = f"--{named}=VALUE, or " if named else ""
            return PluginError(
                f"{where}: expected a value of {keys}, got none, which is None to the file; try {flag}"
                f"a file configs/model/{self.path.stem}.yaml ({said})"
            )
        if isinstance(error, RuntimeError | MemoryError) and doing != "import":
            return RunError(f"{where}: {self.cls.__name__} failed in {doing}: {said}")
        cure = ""
        if isinstance(error, FileNotFoundError):
            own = config is not None and str(error.filename).startswith(str(config.final_config_dict.get("data_path")))
            cure = "; try putting it into the data set's folder" if own else "; try the folder that its path starts at"
        elif isinstance(error, AttributeError) and (set_there := self._set_by_own_base(error)):
            cure = f"; {set_there} sets it, which isn't used here: try setting it in the file"
        elif without and isinstance(error, AttributeError | NameError | KeyError):
            cure = f"; it got no value of {keys}, which may be why"
        elif isinstance(error, AttributeError | NameError):
            cure = _meant(error)
        elif config is not None and isinstance(error, TypeError | ValueError) and (odd := self._odd(config, text)):
            cure = f"; it got {odd}, which may be why; a list is a grid's where hyper_parameters names its key"
        return PluginError(f"{where}: expected it to {_EXPECTED.get(doing, f'run {doing}')}, got {said}{cure}")

    def _odd(self, config: Any, text: str) -> str:
        """The values that the file read and that are lists, or numbers in quotation marks, with their places; those of
        keys in the line `text` alone, if it has such keys."""
        values = {key: config.final_config_dict.get(key) for key in config.read if key in self.keys}
        found = {
            key: value
            for key, value in values.items()
            if key not in HOST_KEYS
            and (isinstance(value, list) or (isinstance(value, str) and _NUMBER.fullmatch(value)))
        }
        named = [key for key in found if re.search(rf"\b{re.escape(key)}\b", text)]
        return ", ".join(f"{key} = {found[key]!r} ({self.keys[key]})" for key in named or found)

    def _set_by_own_base(self, error: AttributeError) -> Path | None:
        """The checkout's own base class's file, if it sets the attribute that `error` lacks."""
        path = self.imports.root / "common" / "abstract_recommender.py"
        lacking = re.search(r"no attribute '(\w+)'", str(error))
        if lacking is None or not path.is_file():
            return None
        found = re.search(rf"\bself\.{lacking[1]}\b[^=\n]*=", path.read_text(encoding="utf-8", errors="replace"))
        return path if found else None

    def _guarding(self, error: BaseException, missing: Iterable[str]) -> tuple[str, ...]:
        """The missing modalities under whose `if self.v_feat is not None:` the name is set that `error` lacks."""
        if not isinstance(error, AttributeError | NameError):
            return ()
        lacking = set(re.findall(r"'(\w+)'", str(error)))
        found = []
        for node in ast.walk(self._tree):
            if isinstance(node, ast.If) and lacking & set(_names_set(node.body)):
                test = ast.unparse(node.test)
                found += [modality for modality in missing if re.search(rf"\b{FEATURE_NAMES[modality]}\b", test)]
        return tuple(dict.fromkeys(found))

    def _more_of(self, top: str, error: BaseException) -> str:
        return (
            f"expected a part of {top} that is offered where it isn't installed, got more ({first_line(error)}); try "
            f"pip install {_PACKAGES.get(top, top)}"
        )

    def _place(self, error: BaseException) -> tuple[Path, int, str]:
        """The file, line and its text where the file's code was, when it failed."""
        if isinstance(error, SyntaxError) and error.filename:
            return Path(error.filename), error.lineno or 1, ""
        own = {str(path) for path in {self.path, *self.imports.read}}
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in own]
        if not frames:  # such as arguments that its constructor doesn't take
            return self.path, self._lines.get(self.cls.__name__, 1), ""
        return Path(frames[-1].filename), frames[-1].lineno or 1, frames[-1].line or ""

    def _not_imported(self, error: ImportError) -> str:
        name = error.name or "?"
        top = name.partition(".")[0]
        if not isinstance(error, ModuleNotFoundError) and offered_names(name):
            wanted = str(error).partition("import name ")[2].partition(" ")[0].strip("'\"")
            return (
                f"expected a helper of {name} ({', '.join(offered_names(name))}), got {wanted}"
                f"{did_you_mean(wanted, offered_names(name)) or ';'} or try a checkout that has it, in "
                f"{self.imports.root.joinpath(*name.split('.'))}.py"
            )
        if top in ("common", "utils", "models"):
            return (
                f"expected a module of MMRec's that is offered here, got {name}; try a checkout that has it, in "
                f"{self.imports.root.joinpath(*name.split('.'))}.py"
            )
        if top in STAND_INS and top not in sys.modules:
            return self._more_of(top, error)
        if isinstance(error, ModuleNotFoundError):
            return (
                f"expected the package {top}, which it imports, got none; try pip install {_PACKAGES.get(top, top)}, "
                f"or put it into {self.imports.root} if it is a module of the file's author"
            )
        return f"expected its imports to succeed, got {first_line(error)}"


def _names_set(statements: Iterable[ast.stmt]) -> Iterator[str]:
    """The variables and attributes that statements set."""
    for statement in statements:
        for node in ast.walk(statement):
            if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
                yield node.id if isinstance(node, ast.Name) else node.attr


def _said(error: BaseException, text: str) -> str:
    """An exception in words; of one without a message, such as an assertion's, the line that raised it."""
    name, message = type(error).__name__, first_line(error) if str(error).strip() else text
    return f"{name}: {message}" if message else name


def _meant(error: AttributeError | NameError) -> str:
    """A question after the name that is nearest to the one that `error` lacks; empty if none is near."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    if isinstance(error, AttributeError):
        known: Iterable[str] = dir(error.obj) if error.name else ()
    else:
        known = [*last.tb_frame.f_locals, *last.tb_frame.f_globals] if last is not None else ()
    return did_you_mean(error.name or "", known)


_NUMBER = re.compile(r"[-+]?[\d.]+(e[-+]?\d+)?", re.IGNORECASE)
_EXPECTED = {"import": "be imported", "__init__": "be constructed"}


def load(path: Path) -> ModelPlugin:
    """The plugin of a model file. A second load of an unchanged file gives the same classes."""
    if not path.is_file():
        got = "a folder; try one of its files" if path.is_dir() else "no such file; try the path of a .py file"
        raise PluginError(f"{path}: expected a Python file with a model, got {got}")
    name = _module_name(path)
    known = sys.modules.get(name)
    if known is not None and _unchanged(loaded_file(path)):
        plugin: ModelPlugin = vars(known)[_PLUGIN]
        return plugin
    file = ModelFile(path)
    module = sys.modules[name] = ModuleType(name)
    try:
        file.execute(module)
        plugin = ModelPlugin(_spec(file, module))
    except BaseException:
        file.imports.leave()
        sys.modules.pop(name, None)
        if known is not None:
            sys.modules[name] = known
            loaded_file(path).imports.enter()
        raise
    vars(module).update({FILE_CODE: file.code, _FILE: file, _PLUGIN: plugin})
    return plugin


def loaded_file(path: Path) -> ModelFile:
    """The file that `load` has loaded."""
    file: ModelFile = vars(sys.modules[_module_name(path)])[_FILE]
    return file


def _module_name(path: Path) -> str:
    """Of the file's module, which is unlike all others', also that of the same file as a plugin."""
    return f"mmrec_lmm_model_file_{re.sub('[^0-9A-Za-z_]', '_', path.stem)}_{_digest(bytes(path.resolve()))[:8]}"


_FILE, _PLUGIN = "__mmrec_lmm_model_file__", "__mmrec_lmm_plugin__"  # of the module of a file


def _unchanged(file: ModelFile) -> bool:
    return all(path.is_file() and _digest(path.read_bytes()) == code for path, code in file.imports.read.items())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _spec(file: ModelFile, module: ModuleType) -> ModelSpec:
    from .adapter import BridgedModel

    yaml = file.yaml()
    wanted = dict.fromkeys([*_ALWAYS, *file.keys, *yaml])
    if file.mentions("LightGCN_Encoder"):
        wanted |= dict.fromkeys(["embedding_size", "n_layers"])
    barred = {*HOST.keys, GRID, ENCODER, "device", "model", "dataset"}
    keys = [key for key in wanted if key.isidentifier() and not keyword.iskeyword(key) and key not in barred]
    config = make_dataclass(
        "Config",
        [(key, Any, field(default=OVERALL.get(key))) for key in keys],
        frozen=True,
        namespace={"__module__": module.__name__},
    )
    unnamed = {key: value for key, value in yaml.items() if not key.isidentifier()}
    adapter = type(
        file.cls.__name__, (BridgedModel,), {"__module__": module.__name__, "file": file, "unnamed": unnamed}
    )
    adapter.__qualname__ = _ADAPTER
    config.__qualname__ = config.__name__ = _CONFIG
    vars(module).update({_ADAPTER: adapter, _CONFIG: config})
    takes = yaml.get("use_neg_sampling", True)
    multimodal = yaml.get("is_multimodal_model", True) and not yaml.get("end2end", False)
    return ModelSpec(
        name=model_name(file.path),
        cls=adapter,
        config=config,
        summary=file.summary or f"{file.cls.__name__}, a model file of MMRec's",
        uses_features=bool(file.features and multimodal),
        configs=file.configs,
        negatives="one" if takes else "none",
        file_stem=file.path.stem,
    )


_ADAPTER, _CONFIG = "MMRecLMMAdapter", "MMRecLMMConfig"  # in the file's module: pickles find the classes there


def _is_model(cls: type) -> bool:
    """True for a class that defines, or inherits, what the trainer calls."""
    return issubclass(cls, nn.Module) and all(
        getattr(cls, name, None) not in (None, getattr(AbstractRecommender, name))
        for name in ("calculate_loss", "full_sort_predict")
    )


def _keys_in(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """The keys that a module's code reads of its configuration, with their lines, in order."""
    names, looped = {*_CONFIGS, *_first_parameters(tree)}, dict(_loops(tree))
    for node in ast.walk(tree):
        key: ast.expr | None = None
        if isinstance(node, ast.Subscript) and _is_one_of(node.value, names):
            key = node.slice
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
            key = node.args[0] if node.args and _is_one_of(node.func.value, names) else None
        elif isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.In | ast.NotIn):
            key = node.left if _is_one_of(node.comparators[0], names) else None
        if isinstance(key, ast.Name):
            yield from ((one, key.lineno) for one in looped.get(key.id, ()))
        elif isinstance(key, ast.Constant) and isinstance(key.value, str):
            yield key.value, key.lineno


def _is_one_of(node: ast.expr, names: Collection[str]) -> bool:
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    return name in names


def _first_parameters(tree: ast.AST) -> Iterator[str]:
    """What constructors of two arguments call the first: a model's is the configuration."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == "__init__" and len(node.args.args) == 3:
            yield node.args.args[1].arg


def _loops(tree: ast.AST) -> Iterator[tuple[str, list[str]]]:
    """Variables that run through strings, such as `for key in ("knn_k", "dropout")`, with these."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.For | ast.comprehension) or not isinstance(node.target, ast.Name):
            continue
        parts = node.iter.elts if isinstance(node.iter, ast.Tuple | ast.List) else []
        if strings := [one.value for one in parts if isinstance(one, ast.Constant) and isinstance(one.value, str)]:
            yield node.target.id, strings
