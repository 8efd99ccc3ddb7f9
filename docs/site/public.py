"""The directive `public`: the reference of each public name of a module, from its signature and docstrings."""

import importlib
import inspect
from collections.abc import Iterator
from types import ModuleType

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class Public(SphinxDirective):
    """`.. public:: mmrec_lmm.api`"""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        module = importlib.import_module(self.arguments[0])
        names = getattr(module, "__all__", None) or [
            name for name, thing in vars(module).items() if _own(thing, module)
        ]
        lines = [line for name in names for line in _lines(module.__name__, name, getattr(module, name))]
        content = nodes.container()
        self.state.nested_parse(StringList(lines, source=module.__file__), 0, content)
        return content.children


def _own(thing: object, module: ModuleType) -> bool:
    is_code = inspect.isroutine(thing) or inspect.isclass(thing)
    return is_code and thing.__module__.startswith(module.__name__) and thing.__name__[0] != "_"


def _lines(module: str, name: str, thing: object) -> Iterator[str]:
    if inspect.isclass(thing):
        yield f".. autoclass:: {module}.{name}"
        yield "    :members:"
    elif inspect.isroutine(thing):
        yield f".. autofunction:: {module}.{name}"
    else:
        yield f".. py:data:: {module}.{name}"
    yield ""


def setup(app: Sphinx) -> None:
    app.add_directive("public", Public)
