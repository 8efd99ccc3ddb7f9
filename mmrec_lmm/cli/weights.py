"""`weights list`, `weights get` and `weights merge`: the files that encoders need, where they are, bringing them here,
and making one of a run's training."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..config.resolve import Request, resolve_request
from ..downloads.files import RemoteFile, known_hash
from ..errors import ConfigError, MMRecError, PluginError
from ..formatting import first_line
from ..types import EncoderName
from ..weights.download import place_of, present

if TYPE_CHECKING:
    from pathlib import Path

    from ..plugin.registry import Registry
    from ..plugin.specs import EncoderSpec, WeightFile

logger = logging.getLogger(__name__)

HERE, DOWNLOADED, MISSING = "here", "downloaded", "missing"


@dataclass(frozen=True)
class Asked:
    """An encoder with its configuration."""

    name: EncoderName
    spec: EncoderSpec
    config: Any

    def files(self, registry: Registry) -> dict[WeightFile, list[str]]:
        """The published files that it needs, each with the modalities that need it."""
        needed = registry.encoders.load(self.spec.name, "files")
        files: dict[WeightFile, list[str]] = {}
        for modality in self.spec.modalities if needed else ():
            for file in needed(self.config, modality):
                files.setdefault(file, []).append(modality)
        return files


def asked(names: Sequence[str], registry: Registry, overrides: Mapping[str, str]) -> list[Asked]:
    """The encoders of these names, as NAME or NAME:VARIANT, configured as a run would have them; without names, all
    that need files. Raises ConfigError."""
    chosen = names or [spec.name for spec in registry.encoders if spec.files is not None]
    found = []
    for name in map(EncoderName.typed, chosen):
        (run,) = resolve_request(Request("", "", encoder=name, overrides=dict(overrides)), registry).runs
        found.append(Asked(name, registry.encoders.get(name.name), run.encoder_config))
    return found


def list_files(encoders: Sequence[Asked], registry: Registry) -> list[dict[str, Any]]:
    """A row for each file of the encoders; one without a file for an encoder that names none. No network is used."""
    rows = []
    for encoder in encoders:
        files = encoder.files(registry)
        rows += [_row(encoder, file, modalities, _present(encoder, file)) for file, modalities in files.items()]
        rows += [] if files else [_without_files(encoder, None)]
    return rows


def get_files(encoders: Sequence[Asked], registry: Registry) -> tuple[list[dict[str, Any]], list[MMRecError]]:
    """Bring all that runs of the encoders need: rows as of `list_files`, whose state says what was here before, and
    the errors of what failed. The rest is brought nevertheless."""
    rows: list[dict[str, Any]] = []
    errors: dict[str, MMRecError] = {}
    for encoder in encoders:
        before = {file: _present(encoder, file) for file in encoder.files(registry)}
        modalities = encoder.files(registry)
        failed: set[str] = set()
        try:
            encodes = encoder.spec.encodes(encoder.config)
        except MMRecError as error:
            errors.setdefault(str(error), error)
            encodes = ()
            failed.update(encoder.spec.modalities)
        for modality in encodes:
            try:
                registry.encoders.load(encoder.spec.name, "weights_id")(encoder.config, modality)
                if encoder.spec.fetch is not None:
                    registry.encoders.load(encoder.spec.name, "fetch")(encoder.config, modality)
            except Exception as error:  # a plugin's function may raise anything
                failed.add(modality)
                text = f"encoder {encoder.name}: {modality}: {type(error).__name__}: {first_line(error)}"
                known = error if isinstance(error, MMRecError) else PluginError(text)
                errors.setdefault(str(known), known)
        missing = encoder.files(registry)
        for file, path in before.items():
            now = _present(encoder, file)
            row = _row(encoder, file, modalities[file], now)
            if path is None and (now is not None or file not in missing):  # or a library's own cache has it
                row["state"] = DOWNLOADED
            rows.append(row)
        if not before:
            rows.append(_without_files(encoder, MISSING if failed else HERE))
    return rows, list(errors.values())


def merge(run: str, file: Path, registry: Registry, *, out: Path) -> dict[str, Any]:
    """Write the whole encoder of an end-to-end run, with what the run trained of it, to `file`.

    Returns what was read and written. Raises ConfigError for a run that trained no encoder, DataError for a damaged or
    a foreign file.
    """
    from ..features.encoding import build_encoder, encoder_spec
    from ..running import run_folder
    from ..training.resume import save_weights
    from ..training.tune import merge_file

    folder = run_folder.find_run(out, run)
    spec, result = run_folder.load_config(folder, registry), run_folder.load_result(folder)
    assert result is not None
    paths = [folder / name for name in (run_folder.ADAPTER, run_folder.ENCODER) if (folder / name).is_file()]
    if getattr(spec.paradigm_config, "tune", "") == "side":
        raise ConfigError(
            f"weights merge: expected a run that trained its encoder, got {result.run_id}, of ete.tune=side, whose "
            "encoder is as it was: the run's encoder.safetensors is a network beside it"
        )
    if not registry.paradigms.get(spec.paradigm).joint or not paths:
        raise ConfigError(
            f"weights merge: expected a run that trained an encoder with its recommender, got {result.run_id} of "
            f"--paradigm {spec.paradigm}; try one of --paradigm ete"
        )
    run_folder.check_own(paths[0])
    by = encoder_spec(spec, registry)
    modalities = [each for each in by.modalities if each in (result.record.axes.modalities or ())]
    state = merge_file(paths[0], build_encoder(by, spec.encoder_config, modalities))
    save_weights(file, state)
    return {"run": result.run_id, "from": str(paths[0]), "path": str(file), "tensors": len(state)}


COLUMNS = ("encoder", "state", "file", "for", "bytes", "sha256", "license", "path", "url")


def _without_files(encoder: Asked, state: str | None) -> dict[str, Any]:
    return {**dict.fromkeys(COLUMNS), "encoder": str(encoder.name), "state": state}


def _present(encoder: Asked, file: WeightFile) -> Path | None:
    given = getattr(encoder.config, "weights", None)
    return present(file, encoder=encoder.spec.name, given=given or None)


def _row(encoder: Asked, file: WeightFile, modalities: Sequence[str], path: Path | None) -> dict[str, Any]:
    """What is known of a file; `path` is where it is, or would be."""
    place = path or place_of(file, encoder.spec.name)
    return {
        "encoder": str(encoder.name),
        "state": HERE if path else MISSING,
        "file": file.name,
        "for": ", ".join(modalities),
        "bytes": path.stat().st_size if path else None,
        "sha256": known_hash(RemoteFile(file.name, (file.url,), file.sha256 or ""), place) or None,
        "license": encoder.spec.license,
        "path": str(place),
        "url": file.url,
    }
