"""Packages to begin a plugin with: copies of the folders in `templates`, with their names replaced.

A template is a whole plugin, called `plugin_name`, `plugin-name` and `PluginName` in its files and their names.
"""

import importlib.util
import keyword
import re
import shutil
import sys
from pathlib import Path

from ..errors import ConfigError
from .names import LONGEST

KINDS = ("model", "encoder", "dataset", "metric", "sampler", "paradigm", "observer")


def write_plugin(kind: str, name: str, folder: Path | None = None) -> Path:
    """Write a package with a plugin of that kind, and return its folder: by default the module's name in the working
    directory. ConfigError for a name that no module can have, or if the folder exists."""
    module = _module_name(name)
    words = module.split("_")
    folder = folder or Path(module.replace("_", "-"))
    if folder.exists():
        raise ConfigError(f"{folder}: expected a new folder, got one that exists; try -o DIR")
    camel = name if re.fullmatch("[A-Z][A-Za-z0-9]*", name) else "".join(word.capitalize() for word in words)
    names = {"plugin_name": module, "plugin-name": module.replace("_", "-"), "PluginName": camel}
    source = shipped_templates() / kind
    texts = {
        _renamed(path.relative_to(source).as_posix(), names): _renamed(path.read_text(encoding="utf-8"), names)
        for path in sorted(source.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    folder.mkdir(parents=True)
    try:
        for relative, text in texts.items():
            (folder / relative).parent.mkdir(parents=True, exist_ok=True)
            (folder / relative).write_text(text, encoding="utf-8")
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def shipped_templates() -> Path:
    """The folder of templates: among the installed packages, or in the checkout."""
    here = Path(__file__).resolve().parents[2]  # of the package mmrec_lmm
    installed = here / "mmrec_lmm_plugins" / "templates"
    return installed if installed.is_dir() else here / "templates"


def _module_name(name: str) -> str:
    """MyModel and my-model are my_model. ConfigError for a name that can't be a new module's."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9]*([-_][A-Za-z0-9]+)*", name) or len(name) > LONGEST:
        raise ConfigError(
            f"{name}: expected a plugin's name, at most {LONGEST} letters and digits with single - or _ between them, "
            "first a letter; try my-plugin"
        )
    module = re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z])|-", "_", name).lower()
    taken = module in sys.stdlib_module_names or importlib.util.find_spec(module) is not None
    if keyword.iskeyword(module) or taken:
        raise ConfigError(f"{name}: expected the name of a new module, got {module}, which Python has; try my-{name}")
    return module


def _renamed(text: str, names: dict[str, str]) -> str:
    return re.sub("|".join(names), lambda found: names[found[0]], text)
