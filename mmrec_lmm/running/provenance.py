"""The provenance of a result: its identity, and hashes, versions, machine and cost for its record."""

import dataclasses
import functools
import inspect
import platform
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import __version__
from ..cache import fingerprint
from ..config.settings import identifying
from ..disk.hashing import hash_files
from ..distributed import processes
from ..machine import cpu_threads
from ..plugin.contracts import Recommender
from ..plugin.registry import NamedSpecs, Registry, code_of
from ..typed_json import plain
from ..types import (
    RECORD_VERSION,
    ChanceBySplit,
    ColdItems,
    EncoderCost,
    Inputs,
    RunRecord,
    RunSeconds,
    RunSpec,
)
from .inputs import reads_timestamps
from .plugins import used

NUMERICS_VERSION = 4  # increase it when the same run would give other numbers, and say why in CHANGELOG


def run_id(spec: RunSpec, inputs: Inputs, registry: Registry) -> str:
    """<model>-<data set>-<8 hex>: a hash of exactly the inputs and settings that can change a number."""
    paradigm = registry.paradigms.get(spec.paradigm)
    # The fingerprints of features depend on a prepared encoder's settings, but not on those of joint training
    in_features = spec.paradigm_config is None or (paradigm.prepares and not paradigm.joint)
    identity = {
        "numerics_version": NUMERICS_VERSION,
        "model": [spec.model.lower(), spec.model_config],
        "data": inputs.dataset.fingerprint,
        "features": {modality: table.fingerprint for modality, table in inputs.tables.items()},
        "paradigm": spec.paradigm if in_features else [spec.paradigm, spec.paradigm_config],
        "settings": {**identifying(spec.settings), "threads": cpu_threads(spec.settings)},
    }
    if spec.sampler_config is not None:
        identity["sampler"] = spec.sampler_config
    if inputs.dataset.timestamps is not None and reads_timestamps(spec, registry):
        identity["timestamps"] = inputs.dataset.timestamps
    return f"{spec.model}-{spec.dataset}-{fingerprint(identity)[:8]}"


def code_hashes(spec: RunSpec, registry: Registry) -> dict[str, str]:
    """Hashes of source code: of the host, of the run's model and encoder, and of its paradigm, sampler and metrics if
    they don't come with mmrec-lmm.

    A plugin's hash is that of its module or, for a package, of all files in its folder.
    """
    classes = {"model": registry.models.load(spec.model, "cls"), **_beside_the_model(spec, registry)}
    if spec.encoder is not None and registry.encoders.get(spec.encoder).cls is not None:
        classes["encoder"] = registry.encoders.load(spec.encoder, "cls")
    return {"host": _host_hash(), **_hashes(classes)}


def plugin_code(spec: RunSpec, registry: Registry) -> dict[str, str]:
    """The hashes of the parts of a run that don't come with mmrec-lmm, and that training runs: all but the encoder,
    whose code shows in its features."""
    is_shipped = registry.is_shipped(registry.models.provider(spec.model))
    classes = {} if is_shipped else {"model": registry.models.load(spec.model, "cls")}
    return _hashes({**classes, **_beside_the_model(spec, registry)})


def plugin_code_of(record: RunRecord) -> dict[str, str]:
    """The hashes of `plugin_code`, as a record has them: runs that differ there are of two methods."""
    shipped = {"host", "encoder"} | ({"model"} if record.plugin.startswith("mmrec-lmm:") else set())
    return {part: code for part, code in record.code.items() if part not in shipped}


def _beside_the_model(spec: RunSpec, registry: Registry) -> dict[str, Any]:
    """A run's paradigm, sampler and metrics that don't come with mmrec-lmm: by part, the class or function."""
    parts: dict[str, tuple[NamedSpecs[Any], str, str]] = {
        "paradigm": (registry.paradigms, spec.paradigm, "cls"),
        "sampler": (registry.samplers, spec.settings.sampler, "cls"),
        **{f"metric {name}": (registry.metrics, name, "fn") for name in spec.settings.metrics},
    }
    loaded = {
        part: specs.load(name, what)
        for part, (specs, name, what) in parts.items()
        if not registry.is_shipped(specs.provider(name))
    }
    return {part: one for part, one in loaded.items() if one is not None}  # a sampler that draws nothing has no class


def _hashes(classes: Mapping[str, Any]) -> dict[str, str]:
    hashes = {}
    for part, plugin_class in classes.items():
        if (loaded := code_of(plugin_class)) is not None:
            hashes[part] = loaded
            continue
        file = Path(inspect.getfile(plugin_class))
        in_package = bool(sys.modules[plugin_class.__module__].__package__)
        hashes[part] = hash_files(sorted(file.parent.glob("*.py")) if in_package else [file])
    return hashes


@functools.cache
def _host_hash() -> str:
    """The hash of the host's code as this process first found it: a later change of the files isn't what runs here."""
    return hash_files(sorted(Path(__file__).parents[1].rglob("*.py")))


def versions() -> dict[str, str]:
    """The versions of libraries that a run's numbers may depend on."""
    return {
        "mmrec_lmm": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),  # torch's own version class takes 2.1 and 2.1.0 as equal
        "numpy": np.__version__,
    }


def device_name(device: torch.device) -> str:
    """The device's name: that of the GPU, or "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def run_record(
    spec: RunSpec,
    inputs: Inputs,
    model: Recommender,
    registry: Registry,
    device: torch.device,
    *,
    seconds: RunSeconds,
    peak_memory_bytes: int,
    chance: ChanceBySplit,
    cold_items: ColdItems | None,
    reports: Mapping[str, Any],
) -> RunRecord:
    """The record of a run: hashes, versions, machine, cost."""
    return RunRecord(
        axes=dataclasses.replace(spec.axes, modalities=tuple(sorted(inputs.tables))),
        seed=spec.settings.seed,
        data=inputs.dataset.fingerprint,
        features={modality: table.fingerprint for modality, table in inputs.tables.items()},
        present={modality: int(table.present.sum()) for modality, table in inputs.tables.items()},
        n_items=inputs.dataset.n_items,
        files=inputs.files,
        config=fingerprint(spec),
        resolved=plain(spec),
        code=code_hashes(spec, registry),
        numerics_version=NUMERICS_VERSION,
        plugin=registry.models.provider(spec.model),
        plugins=used(spec, registry) or None,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        parameters_trained=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        device=device_name(device),
        threads=cpu_threads(spec.settings),
        processes=processes(),
        versions=versions(),
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds=seconds,
        peak_memory_bytes=peak_memory_bytes,
        encoder_cost=_encoder_cost(inputs.encoder_cost, reports.get(spec.paradigm, {})),
        chance=chance,
        drawn=inputs.dataset.split,
        cold_items=cold_items,
        record_version=RECORD_VERSION,
        reports=reports,
    )


def _encoder_cost(cost: EncoderCost | None, report: Mapping[str, Any]) -> EncoderCost | None:
    """The cost with what the report of a paradigm that trains the encoder says of it."""
    counts = ("parameters", "parameters_trained", "cached_bytes")
    known: dict[str, Any] = {name: report[name] for name in counts if isinstance(report.get(name), int)}
    if isinstance(report.get("epoch_seconds"), Mapping):
        known["epoch_seconds"] = report["epoch_seconds"]
    return dataclasses.replace(cost, **known) if cost is not None else None
