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
        .new/                    while a run is being finished: its files, then moved to their places; a kill in between
                                 leaves the earlier result whole (`--force`), or all that finishes the run

Shapes: U evaluated users, K listed items, I items, D feature width.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
import numpy as np
from safetensors.numpy import load_file, save_file

from ..cache import plain, read_json, sweep, write_atomic, write_bytes, write_json
from ..config.settings import Settings
from ..errors import ConfigError, DataError, RunBusy, did_you_mean
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
CHECKPOINT = "checkpoint"  # a folder
STAGED = ".new"  # a folder
LOCK = ".lock"

CURE = "try --force, which runs it again"

#: The effective values of settings, if not the default, in runs made before those settings existed.
BEFORE = {"min_steps": 0}


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[Callable[[], None]]:
    """Lock the run's folder; RunBusy at once if another process has locked it. What a killed process left is removed
    or, if it had begun to finish the run, finished.

    Yields a function that locks the folder again if it was removed meanwhile; RunBusy if another process has that one.
    """
    path = folder / LOCK
    with contextlib.ExitStack() as held:

        def lock() -> int:
            """Returns the lock file's inode."""
            folder.mkdir(parents=True, exist_ok=True)
            try:
                held.enter_context(filelock.FileLock(str(path), timeout=0))
            except filelock.Timeout:
                raise RunBusy(
                    f"{folder}: another process is at work on this very run; wait for it, or end it"
                ) from None
            return path.stat().st_ino

        def lock_again() -> None:
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_ino == inode:
                    return
            lock()

        inode = lock()
        for place in (folder, folder / CHECKPOINT):
            sweep(place)
        _publish(folder)
        yield lock_again


def complete(out: Path) -> None:
    """Finish the runs under `out` that were killed while they were finished, as far as this process may."""
    for path in out.glob(f"*/{STAGED}/{RESULT}"):
        with contextlib.suppress(RunBusy, OSError), claimed(path.parent.parent):
            pass


def drop_checkpoint(folder: Path) -> None:
    """Remove the checkpoint of a finished run, unless it is younger than the result: a killed `--force` continues."""
    states = [path.stat().st_mtime_ns for path in (folder / CHECKPOINT).glob("*")]
    if (folder / CHECKPOINT).is_dir() and max(states, default=0) <= (folder / RESULT).stat().st_mtime_ns:
        shutil.rmtree(folder / CHECKPOINT, ignore_errors=True)


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
    """The finished run in `folder`, or None. DataError if its file is invalid, or of a later version."""
    path = folder / RESULT
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
    complete(out)
    found = (load_result(path.parent) for path in sorted(out.glob(f"*/{RESULT}")))
    return [result for result in found if result is not None]


def find_run(out: Path, name: str) -> Path:
    """The folder of a finished run, from its id, the start of its id, or a path."""
    if Path(name).is_dir():
        complete(Path(name).parent)
    if (Path(name) / RESULT).is_file():
        return Path(name)
    complete(out)
    runs = {path.parent.name: path.parent for path in out.glob(f"*/{RESULT}")}
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
    """{"test/users": (U,), "test/recall@20": (U,), ...}."""
    return load_file(folder / PER_USER)


def save_history(folder: Path, reports: Sequence[EpochReport]) -> None:
    """Write the reports of a run's epochs, in order."""
    write_bytes(folder / HISTORY, "".join(f"{json.dumps(plain(report))}\n" for report in reports).encode())


def load_history(folder: Path) -> list[EpochReport]:
    """The reports of a finished run's epochs, in order; DataError if the file is missing or damaged."""
    path = folder / HISTORY
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: expected a run's history, got an unreadable file ({error}); {CURE}") from None
    return [decode(EpochReport, line, where=f"{path}:{at}", cure=CURE) for at, line in enumerate(lines, start=1)]


def save_topk(folder: Path, users: np.ndarray, items: np.ndarray) -> None:
    """Write the best items (U, K) of users (U,) as a table; -1 fills the row of a user with too few candidates."""
    import pandas as pd  # here, as listing runs shouldn't wait for it

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
    """Write all files of a finished run, and remove its checkpoint; `result.json` comes last, and makes it finished.

    Killed at any moment, the folder has an earlier result with its own files, or `complete` makes it the new one.
    """
    from ..training.resume import save_weights  # here, as listing runs shouldn't import torch

    staged = folder / STAGED
    shutil.rmtree(staged, ignore_errors=True)
    try:
        save_config(staged, spec)
        save_weights(staged / WEIGHTS, model.state_dict())
        if callback is not None and (trained_beside := callback.weights()):
            save_weights(staged / ENCODER, trained_beside)
        if model.features.joint:
            save_weights(staged / FEATURES, model.features())
        save_per_user(staged, {split: {"users": rankings[split].users, **values} for split, values in per_user.items()})
        save_history(staged, history)
        if spec.settings.save_recommended_topk:
            save_topk(staged, rankings["test"].users, rankings["test"].items)
        else:
            (staged / TOPK).touch()  # in place of an earlier result's
        save_result(staged, result)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    _publish(folder)


def _publish(folder: Path) -> None:
    """Move the files of STAGED to their places, `result.json` last; if that isn't there, remove them."""
    staged = folder / STAGED
    if (staged / RESULT).is_file():
        for path in staged.iterdir():
            if path.name == TOPK and not path.stat().st_size:
                (folder / TOPK).unlink(missing_ok=True)
                path.unlink()
            elif path.name != RESULT:
                os.replace(path, folder / path.name)
        shutil.rmtree(folder / CHECKPOINT, ignore_errors=True)
        os.replace(staged / RESULT, folder / RESULT)
    shutil.rmtree(staged, ignore_errors=True)


def document(result: RunResult) -> dict[str, Any]:
    """A result as `--json` prints it: run_id, path, parameters, valid, test, ..., and the run's record."""
    return dict(plain(result))


def _dataclass(schema: type, record: Mapping[str, Any]) -> Any:
    """An instance from its JSON form: lists become tuples again."""
    return schema(**{name: tuple(value) if isinstance(value, list) else value for name, value in record.items()})
