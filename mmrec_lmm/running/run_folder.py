"""The folder of a run: its files, and the functions that write and read them.

    runs/<model>-<data set>-<8 hex of the run's identity>/
        config.json              the resolved run: every value, sufficient to build it again
        best.safetensors         the weights of the best epoch
        encoder.safetensors      of an end-to-end run, the encoder's weights of that epoch; under `ete.tune: last:N` the
                                 trained ones alone, and the hash of the base that they belong to
        adapter.safetensors      under `ete.tune: lora`, in its place: A and B by weight, rank, alpha, the base's hash
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
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ..config.schema import HOST, Schema, schema_of
from ..config.settings import Settings
from ..disk.hashing import read_hash
from ..disk.locks import holding
from ..disk.reading import check_readable, is_there, read_file, read_json
from ..disk.sealed import read_arrays, read_metadata, save_file, value_of
from ..disk.temporaries import sweep
from ..disk.writing import write_atomic, write_bytes, write_json
from ..errors import ConfigError, DataError, NoAccess, RunBusy, did_you_mean, is_denied
from ..evaluation.metrics import METRICS
from ..formatting import counted
from ..plugin.registry import Registry
from ..typed_json import check_finite, decode, parse, plain
from ..types import RECORD_VERSION, Dataset, EpochReport, FeatureTable, RunResult, RunSpec
from .differences import differing, keys_of

if TYPE_CHECKING:
    from ..evaluation.ranking import Ranking
    from ..plugin.contracts import Recommender, TrainerCallback

logger = logging.getLogger(__name__)

CONFIG = "config.json"
WEIGHTS = "best.safetensors"
ENCODER = "encoder.safetensors"
ADAPTER = "adapter.safetensors"
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
LARGEST_HISTORY = 2**30  # bytes; an epoch has some 500

_METRIC = re.compile(r"[^@]+@[1-9][0-9]{0,8}")
#: From 0 to 1; of a plugin's metrics, and of those that see more than hits, no range is known.
_SHARES = frozenset(spec.name.lower() for spec in METRICS if not spec.context)
_ROUNDING = 1e-6  # of metrics in float32

#: The effective values of settings, if not the default, in runs made before those settings existed.
BEFORE = {"min_steps": 0}


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[Callable[[], None]]:
    """Lock the run's folder; RunBusy at once if another process has locked it. What a killed process left is removed
    or, if it had begun to finish the run, finished. Raises NoAccess.

    Yields a function that locks the folder again if it was removed meanwhile; RunBusy if another process has that one.
    """
    path = folder / LOCK
    with contextlib.ExitStack() as held:

        def lock() -> int:
            """Returns the lock file's inode."""
            try:
                held.enter_context(holding(path, wait=False))
            except BlockingIOError:
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
    for staged in out.glob(f"*/{STAGED}"):
        complete_run(staged.parent)


def complete_run(folder: Path) -> None:
    """Finish the run in `folder` if it was killed while it was finished, as far as this process may."""
    with contextlib.suppress(RunBusy, NoAccess, OSError):
        if (folder / STAGED).exists():
            with claimed(folder):
                pass


def tidy(folder: Path) -> None:
    """Remove what killed processes left in a finished run's folder, and its checkpoint, unless it is younger than the
    result: a killed `--force` continues."""
    sweep(folder)
    with contextlib.suppress(OSError, NoAccess):
        if (folder / LOCK).exists():
            with holding(folder / LOCK, wait=False):
                pass  # leaving it removes the file
    with contextlib.suppress(OSError):
        states = [path.stat().st_mtime_ns for path in (folder / CHECKPOINT).glob("*")]
        if (folder / CHECKPOINT).is_dir() and max(states, default=0) <= (folder / RESULT).stat().st_mtime_ns:
            shutil.rmtree(folder / CHECKPOINT, ignore_errors=True)


def save_config(folder: Path, spec: RunSpec) -> None:
    """Write the resolved run."""
    write_json(folder / CONFIG, spec)


@dataclass(frozen=True, kw_only=True)
class _Config:
    """The content of `config.json`: a RunSpec whose sections are still mappings."""

    model: str
    dataset: str
    settings: Mapping[str, Any]
    model_config: Mapping[str, Any] | None
    encoder: str | None
    encoder_config: Mapping[str, Any] | None
    paradigm: str
    paradigm_config: Mapping[str, Any] | None
    modalities: tuple[str, ...] | None
    features: Mapping[str, Path]
    control: str | None
    point: Mapping[str, Any] = field(default_factory=dict)
    sampler_config: Mapping[str, Any] | None = None


def load_config(folder: Path, registry: Registry) -> RunSpec:
    """The resolved run in `folder`, with the plugins' own configuration classes. DataError names a damaged file, or one
    with keys that this version doesn't know."""
    path = folder / CONFIG
    found = decode(_Config, read_json(path, cure=CURE), where=str(path), cure=CURE)
    model = registry.models.load(found.model, "config")
    encoder = registry.encoders.load(found.encoder, "config") if found.encoder else None
    paradigm = registry.paradigms.load(found.paradigm, "config")
    sections = {
        "settings": _section(HOST, BEFORE | {**found.settings}, f"{path}: settings"),
        "model_config": _section(schema_of(model, found.model), found.model_config, f"{path}: model_config"),
        "encoder_config": encoder
        and _section(schema_of(encoder, str(found.encoder)), found.encoder_config, f"{path}: encoder_config"),
        "paradigm_config": paradigm
        and _section(schema_of(paradigm, found.paradigm), found.paradigm_config, f"{path}: paradigm_config"),
    }
    if found.sampler_config is not None:
        sampler = sections["settings"].sampler
        schema = schema_of(registry.samplers.load(sampler, "config"), sampler)
        sections["sampler_config"] = _section(schema, found.sampler_config, f"{path}: sampler_config")
    return RunSpec(**{one.name: getattr(found, one.name) for one in fields(found)} | sections)


def _section(schema: Schema, values: Mapping[str, Any] | None, where: str) -> Any:
    """The dataclass of a schema from its JSON form, with each value checked as if it were typed."""
    values = values or {}
    if unknown := values.keys() - schema.keys.keys():
        raise DataError(f"{where}: expected a run of this version, got the key {min(unknown)}; {CURE}")
    read = {}
    for name, value in values.items():
        try:
            read[name] = schema.keys[name].read(value)
        except ValueError as error:
            raise DataError(f"{where}.{name}: {error}; {CURE}") from None
    try:
        return schema.cls(**read)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: expected a run of this version, got {error}; {CURE}") from None


def load_settings(folder: Path) -> Settings | None:
    """The host's settings of the run in `folder`; None if it has no `config.json`.

    Keys that this version doesn't know are left out.
    """
    path = folder / CONFIG
    if not is_there(path, CURE):
        return None
    return _settings(read_json(path, cure=CURE), f"{path}: settings")


def settings_of(result: RunResult) -> Settings | None:
    """The host's settings of a finished run: of `config.json`, or of its record where that is missing or damaged."""
    resolved = result.record.resolved
    try:
        found = load_settings(result.path)
    except DataError:
        if resolved is None:
            raise
        found = None
    if found is None and resolved is not None:
        return _settings(resolved, f"{result.path / RESULT}: record.resolved.settings")
    return found


def _settings(config: Any, where: str) -> Settings:
    """Of the configuration of a run the host's settings, without keys that this version doesn't know."""
    settings = config.get("settings") if isinstance(config, dict) else None
    known = {name: value for name, value in settings.items() if name in HOST.keys} if isinstance(settings, dict) else {}
    return cast(Settings, _section(HOST, BEFORE | known, where))


def save_result(folder: Path, result: RunResult) -> None:
    """Write `result.json`, which makes the run finished."""
    content = plain(result)
    del content["path"]
    write_json(folder / RESULT, content)


def load_result(folder: Path) -> RunResult | None:
    """The finished run in `folder`, or None. DataError if its file is invalid, or of a later version; NoAccess."""
    path = folder / RESULT
    if not is_there(path, CURE):
        return None
    content = read_json(path, cure=CURE)
    if isinstance(content, dict):
        content["path"] = str(folder)
    result = decode(RunResult, content, where=str(path), cure=CURE)
    if result.run_id != _name(folder):
        raise DataError(
            f"{path}: run_id: expected the name of its folder, got {result.run_id}; rename the folder, or {CURE}"
        )
    cold = result.record.cold_items
    splits = {"valid": result.valid, "test": result.test} | ({"record.cold_items.test": cold.test} if cold else {})
    for split, values in splits.items():
        check_finite(values, where=f"{path}: {split}", cure=CURE)
        for name, value in values.items():
            if not _METRIC.fullmatch(name):
                raise DataError(f"{path}: {split}: expected METRIC@K, such as recall@20, got {name!r}; {CURE}")
            if name.partition("@")[0] in _SHARES and not -_ROUNDING <= value <= 1 + _ROUNDING:
                raise DataError(f"{path}: {split}.{name}: expected 0 to 1, got {value:g}; {CURE}")
    if result.record.record_version > RECORD_VERSION:
        raise DataError(
            f"{path}: record.record_version: expected at most {RECORD_VERSION}, got {result.record.record_version}; "
            "try a later mmrec-lmm"
        )
    return result


def check_own(path: Path) -> None:
    """Raise DataError if a file of tensors in a run's folder is another run's; those of earlier versions don't say."""
    _check_own(path, read_metadata(path, "run", cure=CURE, default=_name(path.parent)))


def _check_own(path: Path, run: Any) -> None:
    if run != _name(path.parent):
        raise DataError(f"{path}: expected the file of this run, got that of {run}; {CURE}")


def check_config(result: RunResult) -> None:
    """Raise DataError if `config.json` isn't as the result says."""
    path = result.path / CONFIG
    if result.record.resolved is not None and read_json(path, cure=CURE) != result.record.resolved:
        raise DataError(f"{path}: expected the run's configuration as {RESULT} has it, got another; {CURE}")


def _name(folder: Path) -> str:
    return os.path.basename(os.path.abspath(folder))


def check_unchanged(result: RunResult, dataset: Dataset, tables: Mapping[str, FeatureTable] | None = None) -> None:
    """Raise DataError if the data set, or the features if given, changed since the run."""
    record = result.record
    now = None if tables is None else {name: table.fingerprint for name, table in tables.items()}
    for part, same in (("data", record.data == dataset.fingerprint), ("features", now in (None, record.features))):
        if not same:
            raise DataError(f"{result.run_id}: the {part} changed since this run; try running it again")


def list_results(out: Path) -> list[RunResult]:
    """All finished runs under `out`, by name. A damaged one is logged and left out."""
    complete(out)
    return [result for folder in finished_runs(out) if (result := try_result(folder)) is not None]


def try_result(folder: Path) -> RunResult | None:
    """The finished run in `folder`, for what reads many: a damaged one is logged, and None as one that isn't there."""
    try:
        return load_result(folder)
    except DataError as error:
        logger.warning("left out: %s", error)
        return None


def finished_runs(out: Path) -> list[Path]:
    """The folders under `out` that have a result, by name. Raises NoAccess for `out` itself."""
    check_readable(out)
    return [folder for folder in (sorted(out.iterdir()) if out.is_dir() else ()) if has_result(folder)]


def has_result(folder: Path) -> bool:
    """True if a folder has a `result.json`, whatever that is, or if this user may not look: reading it reports both."""
    try:
        (folder / RESULT).lstat()
    except OSError as error:
        return is_denied(error)  # else it is missing, or `folder` is a file
    return True


def find_run(out: Path, name: str) -> Path:
    """The folder of a finished run, from its id, the start of its id, or a path."""
    if Path(name).is_dir():
        complete_run(Path(name))
    check_readable(Path(name) / RESULT)
    if os.path.lexists(Path(name) / RESULT):
        return Path(name)
    complete(out)
    runs = {folder.name: folder for folder in finished_runs(out)}
    matches = [folder for run_id, folder in runs.items() if run_id.lower().startswith(name.lower())]
    if len(matches) == 1:
        return matches[0]
    if matches:
        starts = ", ".join(sorted(path.name for path in matches))
        raise ConfigError(f"{name}: expected the start of one run's id, got that of {len(matches)}; try {starts}")
    raise DataError(
        f"{name}: expected a finished run in {out}, got none of that name{did_you_mean(name, runs)}; try `list runs`"
    )


def find_latest(out: Path, name: str) -> tuple[Path, str | None]:
    """As `find_run`; of several runs that differ only in the hash, which `name` lacks, the latest without a control. If
    that is a point of a grid, the grid's best on validation. Also a note that says which of what was taken; None if
    there was no choice."""
    complete(out)
    same = [folder for folder in finished_runs(out) if folder.name.rpartition("-")[0].lower() == name.lower()]
    results = [result for folder in same if (result := try_result(folder)) is not None]
    if not results or os.path.lexists(Path(name) / RESULT):
        return find_run(out, name), None
    own = [result for result in results if result.record.axes.control is None]
    latest = max(own or results, key=lambda result: (result.record.finished, (result.path / RESULT).stat().st_mtime_ns))
    if not own:
        which = f"the latest of {counted(len(results), 'run')}, all with a control ({latest.record.axes.control})"
    elif len(points := [result for result in own if _differs_by_point(result, latest)]) > 1:
        metric = str(dict(keys_of(latest.record.resolved or {})).get("valid_metric")).lower()
        latest = max(points, key=lambda result: result.valid.get(metric, 0.0))
        which = f"the best on validation of the latest grid's {len(points)} points"
    elif len(same) == 1:
        return latest.path, None
    else:
        which = f"the latest of {counted(len(own), 'run')}" + (" without a control" if len(own) < len(results) else "")
    return latest.path, f"{name}: {which}: {latest.path.name}"


def _differs_by_point(result: RunResult, other: RunResult) -> bool:
    """True if two runs have all in common, the seed too, but the values of a grid that both are points of."""
    axes, then, now = result.parameters.keys() - {"seed"}, result.record.resolved, other.record.resolved
    if not axes or result.parameters.keys() != other.parameters.keys() or then is None or now is None:
        return False
    return differing(then, now).keys() <= {*axes, "point"}


def save_per_user(
    folder: Path, splits: Mapping[str, Mapping[str, np.ndarray]], metadata: Mapping[str, str] | None = None
) -> None:
    """Write {"test": {"users": (U,), "recall@20": (U,), ...}, ...}."""
    flat = {f"{split}/{name}": values for split, arrays in splits.items() for name, values in arrays.items()}
    write_atomic(folder / PER_USER, lambda temporary: save_file(flat, temporary, metadata))


def load_per_user(folder: Path) -> dict[str, np.ndarray]:
    """{"test/users": (U,), "test/recall@20": (U,), ...}. DataError if the file is missing or damaged."""
    path = folder / PER_USER
    arrays, metadata = read_arrays(path, cure=CURE)
    _check_own(path, value_of(metadata, "run", path, cure=CURE, default=_name(folder)))
    for name, values in arrays.items():
        split, _, what = name.partition("/")
        users = arrays.get(f"{split}/users")
        kind = "iu" if what == "users" else "f"
        if users is None or values.ndim != 1 or values.shape != users.shape or values.dtype.kind not in kind:
            raise DataError(
                f"{path}: {name}: expected one number for each of {split}/users, got {values.dtype} of shape "
                f"{values.shape}; {CURE}"
            )
        if not np.isfinite(values).all():
            raise DataError(f"{path}: {name}: expected finite numbers, got NaN or infinity; {CURE}")
    if "test/users" not in arrays:
        raise DataError(f"{path}: expected test/users, got {', '.join(arrays) or 'nothing'}; {CURE}")
    return arrays


def save_history(folder: Path, reports: Sequence[EpochReport]) -> None:
    """Write the reports of a run's epochs, in order."""
    write_bytes(folder / HISTORY, "".join(f"{json.dumps(plain(report))}\n" for report in reports).encode())


def load_history(folder: Path) -> list[EpochReport]:
    """The reports of a finished run's epochs, in order; DataError if the file is missing or damaged."""
    path = folder / HISTORY
    lines = read_file(path, largest=LARGEST_HISTORY, cure=CURE).splitlines()
    where = [f"{path}:{at}" for at in range(1, len(lines) + 1)]
    return [
        decode(EpochReport, parse(line, where=place, cure=CURE), where=place, cure=CURE)
        for line, place in zip(lines, where, strict=True)
    ]


def save_topk(folder: Path, users: np.ndarray, items: np.ndarray) -> None:
    """Write the best items (U, K) of users (U,) as a table; -1 fills the row of a user with too few candidates."""
    import pandas as pd  # here, as listing runs shouldn't wait for it

    table = pd.DataFrame(np.column_stack([users, items]), columns=_topk_columns(items.shape[1]))
    write_atomic(folder / TOPK, lambda temporary: table.to_csv(temporary, sep="\t", index=False))


def load_topk(folder: Path, *, n_users: int, n_items: int, sha256: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The tested users (U,) of a run and their best items (U, K), -1 for lack of candidates. DataError if the file is
    missing, damaged, another than that with the hash `sha256`, or names a user or an item that the data set lacks."""
    from ..data.tables import read_integers  # here, as listing runs shouldn't wait for pandas

    path = folder / TOPK
    if not is_there(path, CURE):
        raise DataError(
            f"{path}: expected the run's top-K lists, got no such file; try running it again with --force "
            "--save_recommended_topk=true"
        )
    if sha256 not in (None, read_hash(path)):
        raise DataError(f"{path}: expected the lists of this run as it wrote them, got others; {CURE}")
    columns = read_integers(path, not_a_number="; try running it again with --force").columns
    if list(columns) != _topk_columns(len(columns) - 1) or len(columns) < 2:
        raise DataError(f"{path}: expected the columns id, top_0, top_1, ..., got {', '.join(columns)}; {CURE}")
    users, *items = columns.values()
    listed = np.stack(items, axis=1)
    for what, ids, least, n in (("users", users, 0, n_users), ("items", listed, -1, n_items)):
        if ((ids < least) | (ids >= n)).any():
            raise DataError(
                f"{path}: expected {what} from 0 to {n - 1}, got {ids[(ids < least) | (ids >= n)][0]}; {CURE}"
            )
    if len(np.unique(users)) < len(users):
        raise DataError(f"{path}: expected each user once, got some twice; {CURE}")
    return users, listed


def _topk_columns(k: int) -> list[str]:
    return ["id", *(f"top_{rank}" for rank in range(k))]


def save_run(
    folder: Path,
    spec: RunSpec,
    result: RunResult,
    model: Recommender,
    callback: TrainerCallback | None,
    history: Sequence[EpochReport],
    rankings: Mapping[str, Ranking],
    per_user: Mapping[str, Mapping[str, np.ndarray]],
) -> RunResult:
    """Write all files of a finished run, and remove its checkpoint; `result.json` comes last, and makes it finished.
    Returns the result as written.

    Killed at any moment, the folder has an earlier result with its own files, or `complete` makes it the new one.
    """
    from ..training.resume import save_weights  # here, as listing runs shouldn't import torch

    staged, whose = folder / STAGED, {"run": json.dumps(result.run_id)}
    shutil.rmtree(staged, ignore_errors=True)
    try:
        save_config(staged, spec)
        save_weights(staged / WEIGHTS, model.state_dict(), whose)
        if callback is not None and (trained_beside := callback.weights()):
            header = callback.about_weights()
            about = {name: json.dumps(value) for name, value in header.items()}
            save_weights(staged / (ADAPTER if header.get("tune") == "lora" else ENCODER), trained_beside, about | whose)
        if model.features.joint:
            save_weights(staged / FEATURES, model.features(), whose)
        users = {split: {"users": rankings[split].users, **values} for split, values in per_user.items()}
        save_per_user(staged, users, whose)
        save_history(staged, history)
        if spec.settings.save_recommended_topk:
            save_topk(staged, rankings["test"].users, rankings["test"].items)
            result = replace(result, record=replace(result.record, topk=read_hash(staged / TOPK)))
        else:
            (staged / TOPK).touch()  # in place of an earlier result's
        save_result(staged, result)
    except BaseException:
        shutil.rmtree(staged, ignore_errors=True)
        raise
    _publish(folder)
    return result


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
