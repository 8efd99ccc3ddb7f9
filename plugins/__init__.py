"""The plugins that ship with mmrec-lmm. They use the public API alone: nothing here has a back door into the host."""

from pathlib import Path


def configs() -> Path:
    """The folder of shipped YAML: inside the package when installed as a wheel, beside it in a checkout."""
    here = Path(__file__).resolve().parent
    return next(folder for folder in (here / "configs", here.parent / "configs") if folder.is_dir())
