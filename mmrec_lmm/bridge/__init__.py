"""The bridge to model files that were written for MMRec: one file becomes a plugin with one model, and isn't edited.

    python run.py -m path/to/freedom.py -d baby         is  -p mmrec_lmm.bridge:path/to/freedom.py -m freedom.py

A room of the host and not a plugin: it reads the host's settings, which no plugin sees. MMRec's interface is written
here from its description, not from its code (docs/from-mmrec.md compares the two).

The file's code gets its own `__import__` (imports.py): `common`, `utils` and `models` exist for it alone, and two files
with modules of equal names have each their own. What must be changed elsewhere, such as `Tensor.cuda`, is changed while
the file's code runs, and put back (scope.py).
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ..user_paths import expand_home

if TYPE_CHECKING:
    from .model_file import ModelPlugin


def read_plugin(path: Path) -> "ModelPlugin":
    """The plugin that a model file becomes; its code is executed. PluginError names the file and the line."""
    from .model_file import load  # imports torch

    return load(path)


def with_model_file(model: str, plugins: Iterable[str]) -> tuple[str, list[str]]:
    """The name of a model, where the path of a .py file is one, and the plugins with which that name is known."""
    model = expand_home(model)
    if not model.endswith(".py"):
        return model, list(plugins)
    known, reader = list(plugins), f"{__name__}:"
    given = {Path(plugin.removeprefix(reader)).resolve() for plugin in known if plugin.startswith(reader)}
    if Path(model).resolve() not in given:
        known.append(f"{reader}{model}")
    return model_name(Path(model)), known


def model_name(path: Path) -> str:
    """The name of a file's model: the file's own, such as freedom.py, as FREEDOM is another."""
    return re.sub(r"[^\w.+-]", "_", path.name).lstrip(".+-")
