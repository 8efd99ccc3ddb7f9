"""The folder of a run: its files, and the functions that write and read them.

    runs/<model>-<data set>-<8 hex of the run's identity>/
        config.json              the resolved run: every value, sufficient to build it again
        best.safetensors         the weights of the best epoch
        encoder.safetensors      of an end-to-end run, the encoder's weights of that epoch
        features.safetensors     of an end-to-end run, that encoder's features of all items: (I, D) by modality
        per_user.safetensors     valid/users, valid/recall@20, ..., test/...: one number per evaluated user; of a
                                 cold-item split also cold/...: test with cold items as the only candidates
        history.jsonl            one line per epoch: losses, validation metrics, seconds (types.EpochReport)
        topk.tsv                 each tested user's best items, in MMRec's columns (id, top_0, ...)
        checkpoint/              until the run is finished: a state of training, or the trained model
        result.json              written last: a run that has it is finished

Shapes: U evaluated users, K listed items, I items, D feature width.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from safetensors.numpy import load_file, save_file

from ..cache import check_readable, holding, plain, read_json, write_atomic, write_bytes, write_json
from ..config.settings import Settings
from ..errors import ConfigError, DataError, RunBusy, did_you_mean, is_denied
from ..plugin.registry import Registry
from ..typed_json import decode
from ..types import RECORD_VERSION, Dataset, EpochReport, FeatureTable, RunResult, RunSpec

if TYPE_CHECKING:
    from ..evaluation.ranking import Ranking
    from ..plugin.contracts import Recommender, TrainerCallback

CONFIG = "config.json"
WEIGHTS = "best.safetensors"
ENCODER = "encoder.safetensors"
FEATURES = "features.safetensors"
PER_USER = "per_user.safetensors"
HISTORY = "history.jsonl"
TOPK = "topk.tsv"
COLD = "cold"  # in PER_USER, beside the splits
RESULT = "result.json"

CURE = "try --force, which runs it again"

#: The effective values of settings, if not the default, in runs made before those settings existed.
BEFORE = {"min_steps": 0}


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Lock the run's folder; RunBusy at once if another process has locked it. Raises NoAccess."""
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(holding(folder / ".lock", wait=False))
        except BlockingIOError:
            raise RunBusy(f"{folder}: another process is at work on this very run; wait for it, or end it") from None
        for leftover in folder.rglob(".*.tmp"):  # unfinished files of a killed process
            leftover.unlink(missing_ok=True)
        yield


def save_config(folder: Path, spec: RunSpec) -> None:
    """Write the resolved run."""
    write_json(folder / CONFIG, spec)


def load_config(folder: Path, registry: Registry) -> RunSpec:
    """The resolved run in `folder`, with the plugins' own configuration classes."""
    record = read_json(folder / CONFIG)
    model_class = registry.models.load(record["model"], "config")
    encoder = record["encoder"]
    encoder_class = registry.encoders.load(encoder, "config") if encoder else None
    paradigm_class = registry.paradigms.load(record["paradigm"], "config")
    try:
        return RunSpec(
            **{
                **record,
                "settings": _dataclass(Settings, BEFORE | record["settings"]),
                "model_config": _dataclass(model_class, record["model_config"]),
                "encoder_config": _dataclass(encoder_class, record["encoder_config"]) if encoder_class else None,
                "paradigm_config": _dataclass(paradigm_class, record["paradigm_config"]) if paradigm_class else None,
                "modalities": tuple(record["modalities"]) if record["modalities"] is not None else None,
                "features": {modality: Path(path) for modality, path in record["features"].items()},
            }
        )
    except TypeError as error:
        raise DataError(f"{folder / CONFIG}: expected a run of this version, got {error}; {CURE}") from None


def load_settings(folder: Path) -> Settings | None:
    """The host's settings of the run in `folder`; None if it has no `config.json`.

    Keys that this version doesn't know are left out.
    """
    path = folder / CONFIG
    check_readable(path)
    if not path.is_file():
        return None
    config = read_json(path)
    settings = config.get("settings") if isinstance(config, dict) else None
    content = BEFORE | settings if isinstance(settings, dict) else settings
    return decode(Settings, content, where=f"{path}: settings", cure=CURE)


def save_result(folder: Path, result: RunResult) -> None:
    """Write `result.json`, which makes the run finished."""
    content = plain(result)
    del content["path"]
    write_json(folder / RESULT, content)


def load_result(folder: Path) -> RunResult | None:
    """The finished run in `folder`, or None. DataError if its file is invalid, or of a later version; NoAccess."""
    path = folder / RESULT
    check_readable(path)
    if not path.is_file():
        return None
    content = read_json(path)
    if isinstance(content, dict):
        content["path"] = str(folder)
    result = decode(RunResult, content, where=str(path), cure=CURE)
    if result.record.record_version > RECORD_VERSION:
        raise DataError(
            f"{path}: record.record_version: expected at most {RECORD_VERSION}, got {result.record.record_version}; "
            "try a later mmrec-lmm"
        )
    return result


def check_unchanged(result: RunResult, dataset: Dataset, tables: Mapping[str, FeatureTable] | None = None) -> None:
    """Raise DataError if the data set, or the features if given, changed since the run."""
    record = result.record
    now = None if tables is None else {name: table.fingerprint for name, table in tables.items()}
    for part, same in (("data", record.data == dataset.fingerprint), ("features", now in (None, record.features))):
        if not same:
            raise DataError(f"{result.run_id}: the {part} changed since this run; try running it again")


def list_results(out: Path) -> list[RunResult]:
    """All finished runs under `out`, by name."""
    found = (load_result(path.parent) for path in result_files(out))
    return [result for result in found if result is not None]


def result_files(out: Path) -> list[Path]:
    """The `result.json` of each finished run under `out`, by name; also where its folder can't be looked into, which
    reading it reports. Raises NoAccess for `out` itself."""
    check_readable(out)
    found = []
    for folder in sorted(out.iterdir()) if out.is_dir() else ():
        try:
            (folder / RESULT).stat()
        except OSError as error:
            if not is_denied(error):  # missing, or `folder` is a file
                continue
        found.append(folder / RESULT)
    return found


def find_run(out: Path, name: str) -> Path:
    """The folder of a finished run, from its id, the start of its id, or a path."""
    check_readable(Path(name) / RESULT)
    if (Path(name) / RESULT).is_file():
        return Path(name)
    runs = {path.parent.name: path.parent for path in result_files(out)}
    matches = [folder for run_id, folder in runs.items() if run_id.lower().startswith(name.lower())]
    if len(matches) == 1:
        return matches[0]
    if matches:
        starts = ", ".join(sorted(path.name for path in matches))
        raise ConfigError(f"{name}: expected the start of one run's id, got that of {len(matches)}; try {starts}")
    raise DataError(
        f"{name}: expected a finished run in {out}, got none of that name{did_you_mean(name, runs)}; try `list runs`"
    )


def save_per_user(folder: Path, splits: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Write {"test": {"users": (U,), "recall@20": (U,), ...}, ...}."""
    flat = {
        f"{split}/{name}": np.ascontiguousarray(values)
        for split, arrays in splits.items()
        for name, values in arrays.items()
    }
    write_atomic(folder / PER_USER, lambda temporary: save_file(flat, temporary))


def load_per_user(folder: Path) -> dict[str, np.ndarray]:
    """{"test/users": (U,), "test/recall@20": (U,), ...}. Raises NoAccess."""
    check_readable(folder / PER_USER)
    return load_file(folder / PER_USER)


def save_history(folder: Path, reports: Sequence[EpochReport]) -> None:
    """Write the reports of a run's epochs, in order."""
    write_bytes(folder / HISTORY, "".join(f"{json.dumps(plain(report))}\n" for report in reports).encode())


def load_history(folder: Path) -> list[EpochReport]:
    """The reports of a finished run's epochs, in order; DataError if the file is missing or damaged."""
    path = folder / HISTORY
    check_readable(path)
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: expected a run's history, got an unreadable file ({error}); {CURE}") from None
    return [decode(EpochReport, line, where=f"{path}:{at}", cure=CURE) for at, line in enumerate(lines, start=1)]


def save_topk(folder: Path, users: np.ndarray, items: np.ndarray) -> None:
    """Write the best items (U, K) of users (U,) as a table; -1 fills the row of a user with too few candidates."""
    columns = ["id", *(f"top_{rank}" for rank in range(items.shape[1]))]
    table = pd.DataFrame(np.column_stack([users, items]), columns=columns)
    write_atomic(folder / TOPK, lambda temporary: table.to_csv(temporary, sep="\t", index=False))


def save_run(
    folder: Path,
    spec: RunSpec,
    result: RunResult,
    model: Recommender,
    callback: TrainerCallback | None,
    history: Sequence[EpochReport],
    rankings: Mapping[str, Ranking],
    per_user: Mapping[str, Mapping[str, np.ndarray]],
) -> None:
    """Write all files of a finished run; `result.json` comes last, and makes it finished."""
    from ..training.resume import save_weights  # here, as listing runs shouldn't import torch

    save_weights(folder / WEIGHTS, model.state_dict())
    if callback is not None and (trained_beside := callback.weights()):
        save_weights(folder / ENCODER, trained_beside)
    if model.features.joint:
        save_weights(folder / FEATURES, model.features())
    save_per_user(folder, {split: {"users": rankings[split].users, **values} for split, values in per_user.items()})
    save_history(folder, history)
    if spec.settings.save_recommended_topk:
        save_topk(folder, rankings["test"].users, rankings["test"].items)
    save_result(folder, result)


def document(result: RunResult) -> dict[str, Any]:
    """A result as `--json` prints it: run_id, path, parameters, valid, test, ..., and the run's record."""
    return dict(plain(result))


def _dataclass(schema: type, record: Mapping[str, Any]) -> Any:
    """An instance from its JSON form: lists become tuples again."""
    return schema(**{name: tuple(value) if isinstance(value, list) else value for name, value in record.items()})
