"""`doctor`: what is installed, what is usable, what is missing, and what to type about it."""

import importlib
import importlib.metadata
import os
from pathlib import Path

from .artifacts import home
from .errors import MMRecError
from .registry import Registry
from .specs import resolve

LIBRARIES = (
    "torch",
    "torchvision",
    "numpy",
    "pandas",
    "safetensors",
    "pluggy",
    "sentence-transformers",
    "open-clip-torch",
    "timm",
)


def doctor(registry: Registry, data_path: Path) -> tuple[str, bool]:
    """A report, and whether nothing in it needs mending. Missing extras and weights are not faults."""
    lines, healthy = ["libraries"], True
    for name in LIBRARIES:
        try:
            lines.append(f"  {name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            lines.append(f"  {name}: not installed")
    problem = _torchvision_problem()
    if problem:
        healthy = False
        lines.append(f"  ! {problem}")

    import torch

    lines += ["devices", f"  cpu: {os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads"]
    lines += [f"  cuda:{index}: {torch.cuda.get_device_name(index)}" for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        lines.append("  mps: available (choose it with --device mps; untested)")

    lines.append("plugins")
    for plugin in registry.plugins:
        lines.append(f"  {plugin.name}: {plugin.status}{f' ({plugin.reason})' if plugin.reason else ''}")
        healthy = healthy and plugin.status != "quarantined"

    lines.append("encoders")
    for encoder in registry.encoders:
        try:
            weights = resolve(encoder.weights_id)(registry.encoders.load(encoder.name, "config")())
            lines.append(f"  {encoder.name}: ready ({weights})")
        except MMRecError as error:
            lines.append(f"  {encoder.name}: {error}")

    lines.append(f"data sets in {data_path}")
    folders = sorted(path for path in data_path.glob("*") if path.is_dir()) if data_path.is_dir() else []
    lines += [f"  {path.name}" for path in folders] or ["  none; -d demo makes one by itself"]
    lines.append(f"cache: {home()} ({'writable' if _writable(home()) else 'NOT writable: set MMREC_LMM_HOME'})")
    return "\n".join(lines), healthy and _writable(home())


def _torchvision_problem() -> str | None:
    """Why `import torchvision` fails though it is installed: a build made for another torch, most often."""
    try:
        importlib.metadata.version("torchvision")
    except importlib.metadata.PackageNotFoundError:
        return None
    try:
        importlib.import_module("torchvision")
    except Exception as error:
        reason = str(error).splitlines()[0]
        return f"torchvision doesn't fit this torch ({reason}); install both together: pip install -U torch torchvision"
    return None


def _writable(folder: Path) -> bool:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return os.access(existing, os.W_OK)
