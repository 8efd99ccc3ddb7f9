"""mmrec_lmm: do large multi-modal encoders help recommenders? A benchmark host with plugins for every moving part.

Users type `mmrec-lmm run -m VBPR -d demo`, or call it: `from mmrec_lmm import run, study`. Plugin authors import from
`mmrec_lmm.api`. Names are fetched on first use (PEP 562): importing this package imports no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .library.data import datasets as datasets
    from .library.features import encode as encode
    from .library.runs import Grid as Grid
    from .library.runs import Run as Run
    from .library.runs import Runs as Runs
    from .library.runs import grid as grid
    from .library.runs import recommend as recommend
    from .library.runs import run as run
    from .library.runs import runs as runs
    from .library.studies import Study as Study
    from .library.studies import study as study

__version__ = "0.1.0"

_HOME = {
    "library.data": ("datasets",),
    "library.features": ("encode",),
    "library.runs": ("Grid", "Run", "Runs", "grid", "recommend", "run", "runs"),
    "library.studies": ("Study", "study"),
}
_MODULE = {name: module for module, names in _HOME.items() for name in names}

__all__ = sorted(_MODULE)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in _MODULE:
        raise AttributeError(f"mmrec_lmm has no {name!r}; it offers {', '.join(__all__)}")
    return getattr(importlib.import_module(f".{_MODULE[name]}", __name__), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
