"""The documentation site: `make docs` builds it from docs/*.md with Sphinx, MyST and furo, warnings as errors.

Markdown stays readable where it lies, on any server of git; the site adds search, a reference from docstrings, and
strict links. Furo is accessible, has a dark mode, and loads nothing from other servers.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

from mmrec_lmm import __version__  # noqa: E402

project, author, copyright = "mmrec-lmm", "The mmrec-lmm authors", "The mmrec-lmm authors; Apache-2.0"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "public"]
source_suffix = {".md": "markdown", ".ipynb": "markdown"}
exclude_patterns = ["site/*.py"]
html_theme, html_title, html_copy_source = "furo", f"mmrec-lmm {version}", False
myst_heading_anchors = 4  # GitHub's names of headings, which links between pages use
myst_enable_extensions = ["html_image"]
default_role = "code"  # docstrings have `names` as Markdown does
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
nitpicky = False  # types of other libraries have no page here
suppress_warnings = ["misc.highlighting_failure"]  # YAML with "..." in it
OUTSIDE = re.compile(r"\[[^][]+\]\(\.\./((?!CHANGELOG|CONTRIBUTING)[^)]+)\)")  # links to files that the site lacks


def _source(app: Sphinx, docname: str, source: list[str]) -> None:
    """Turn a notebook's JSON into Markdown (it has no outputs: a test executes it), and links to code into its path."""
    source[0] = OUTSIDE.sub(r"`\1`", source[0]) if "/" not in docname else source[0]
    if Path(str(app.env.doc2path(docname))).suffix != ".ipynb":
        return
    cells: list[dict[str, Any]] = json.loads(source[0])["cells"]
    texts = ["".join(cell["source"]) for cell in cells]
    kinds = [cell["cell_type"] for cell in cells]
    source[0] = "\n\n".join(
        text if kind == "markdown" else f"```python\n{text}\n```" for text, kind in zip(texts, kinds, strict=True)
    )


def _docstring(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Make a docstring, which is plain text with `names`, what reStructuredText reads as the same."""
    blocks = re.split(r"\n\s*\n", "\n".join(lines).strip())
    lines[:] = []
    for block in blocks:
        rows = block.splitlines()
        if any(row.startswith(" ") for row in rows):  # a table, or a list of terms
            lines += ["::", "", *(f"    {row}" for row in rows), ""]
        else:
            lines += [*(_escaped(row) for row in rows), ""]


def _escaped(row: str) -> str:
    """A line with the signs of markup escaped outside of `names`."""
    parts = re.split(r"(``?[^`]+``?)", row)
    return "".join(part if part.startswith("`") else re.sub(r"([*|_\\])", r"\\\1", part) for part in parts)


def setup(app: Sphinx) -> None:
    app.connect("source-read", _source)
    app.connect("autodoc-process-docstring", _docstring)
