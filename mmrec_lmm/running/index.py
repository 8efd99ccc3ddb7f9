"""The index over a folder of runs: an SQLite file for fast queries over all runs.

The results are in each run's `result.json`. `index.sqlite` is derived from them and can be deleted at any time: a query
first brings it up to date, and rebuilds it if it is missing, damaged or of another version. Runs never write it, so
none can fail because of it.

The file is replaced as a whole, under a lock for a single writer, and is read into memory: SQLite's own locks and WAL
aren't reliable on network folders. If it can't be written, queries are answered from memory.
"""

import contextlib
import json
import logging
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..cache import locked, plain, write_bytes
from ..errors import ConfigError, DataError, MMRecError, RunError, did_you_mean
from ..formatting import csv_text
from ..types import AXES, RunResult
from .run_folder import CURE, PER_USER, RESULT, complete, load_result

logger = logging.getLogger(__name__)

INDEX = "index.sqlite"
VERSION = 2  # of the tables; increase it when they change

#: Columns of `runs`. Columns marked JSON become objects again in an export to JSONL.
JSON = "TEXT /* JSON */"
COLUMNS: Mapping[str, str] = {
    "run": "TEXT PRIMARY KEY",  # the folder's name
    "model": "TEXT",
    "dataset": "TEXT",
    "encoder": "TEXT",
    "paradigm": "TEXT",
    "modalities": "TEXT",  # image,text
    "control": "TEXT",
    "split_rule": "TEXT",  # that drew the split; NULL: the data set's own
    "seed": "INTEGER",
    "parameters": JSON,  # of the first grid that had the run as a point
    "best_epoch": "INTEGER",
    "epochs": "INTEGER",
    "stopped": "TEXT",
    "data_hash": "TEXT",
    "features_hash": JSON,  # by modality
    "code_hash": JSON,  # of host, model and encoder
    "config_hash": "TEXT",
    "config": JSON,  # every value, as in config.json
    "numerics_version": "INTEGER",
    "versions": JSON,  # of this package, Python, torch and numpy
    "device": "TEXT",
    "threads": "INTEGER",
    "seconds": JSON,  # load, tune, encode, train, rank
    "train_seconds": "REAL",
    "peak_memory_bytes": "INTEGER",
    "parameters_trained": "INTEGER",
    "finished": "TEXT",  # ISO 8601, UTC
    "per_user": "TEXT",  # the file of per-user metrics, within the folder of runs
    "stamp": "TEXT",  # size and modification time of result.json; another stamp means another result
}
TABLES = f"""
    CREATE TABLE runs ({", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())});
    CREATE TABLE metrics (run TEXT, split TEXT, metric TEXT, value REAL, PRIMARY KEY (run, split, metric));
    PRAGMA user_version = {VERSION};
"""

#: The operations that a query may use: none that writes or opens another file.
_READS = (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE)


def rebuild(out: Path) -> int:
    """Rebuild the index over the runs in `out`, and return their number. RunError if it can't be written."""
    _check_folder(out)
    complete(out)
    with locked(out / INDEX):
        connection = _empty()
        _update(connection, out)
        write_bytes(out / INDEX, connection.serialize())
    count: int = connection.execute("SELECT count(*) FROM runs").fetchone()[0]
    return count


def open_index(out: Path) -> sqlite3.Connection:
    """The index over the runs in `out`, up to date and read-only: tables `runs` and `metrics`.

    A damaged `result.json` is logged by name and left out. Raises DataError if the folder is missing.
    """
    _check_folder(out)
    complete(out)
    connection = _stored(out / INDEX)
    if connection is None or _stale(connection, out):
        connection = _refreshed(out)
    connection.set_authorizer(lambda action, *_: sqlite3.SQLITE_OK if action in _READS else sqlite3.SQLITE_DENY)
    return connection


def query(out: Path, sql: str) -> list[dict[str, Any]]:
    """The rows that a SELECT finds in the index over `out`. ConfigError if it isn't a valid SELECT."""
    with contextlib.closing(open_index(out)) as connection:
        try:
            return _rows(connection.execute(sql))
        except (sqlite3.Error, sqlite3.Warning) as error:
            raise ConfigError(
                f"query: expected one SELECT over runs ({', '.join(COLUMNS)}) and metrics (run, split, metric, value), "
                f"got {sql!r}: {error}"
            ) from None


def find_runs(out: Path, where: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """One row per run: the columns of the index, then each metric as "valid/recall@20", "test/recall@20".

    `where` selects the runs whose columns have these values, ignoring case; an empty value means "none". ConfigError
    names an unknown column.
    """
    where = where or {}
    for name in where:
        if name not in COLUMNS:
            raise ConfigError(
                f"--where: expected a column ({', '.join(COLUMNS)}), got {name}{did_you_mean(name, COLUMNS)}"
            )
    conditions = " AND ".join(f"CAST(ifnull({name}, '') AS TEXT) = ? COLLATE NOCASE" for name in where) or "1"
    with contextlib.closing(open_index(out)) as connection:
        rows = _rows(connection.execute(f"SELECT * FROM runs WHERE {conditions} ORDER BY run", [*where.values()]))
        found = {row["run"]: row for row in rows}
        for run, split, metric, value in connection.execute("SELECT * FROM metrics ORDER BY rowid"):
            if run in found:
                found[run][f"{split}/{metric}"] = value
    for row in rows:
        del row["stamp"]
        row.update({name: json.loads(row[name]) for name, kind in COLUMNS.items() if kind == JSON})
    return rows


def as_jsonl(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as one JSON object per line."""
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV, with nested values as JSON."""
    return csv_text(
        {name: json.dumps(value) if isinstance(value, dict) else value for name, value in row.items()} for row in rows
    )


def _check_folder(out: Path) -> None:
    if not out.is_dir():
        raise DataError(f"--out: expected a folder of runs, got {out}, which doesn't exist; try another")


def _refreshed(out: Path) -> sqlite3.Connection:
    """Bring the index up to date, and write it if possible."""
    try:
        with locked(out / INDEX):
            connection = _stored(out / INDEX) or _empty()  # read again: another process may have updated it
            if _update(connection, out):
                write_bytes(out / INDEX, connection.serialize())
    except (OSError, RunError) as error:
        logger.info("%s isn't written: %s", out / INDEX, error)
        connection = _stored(out / INDEX) or _empty()
        _update(connection, out)
    return connection


def _stored(path: Path) -> sqlite3.Connection | None:
    """The index in a file, read into memory; None if it is missing, damaged or of another version."""
    connection = sqlite3.connect(":memory:")
    try:
        content = path.read_bytes()
        connection.deserialize(content or b"damaged")  # Python raises MemoryError for empty bytes
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version == VERSION and connection.execute("PRAGMA quick_check").fetchone()[0] == "ok":
            return connection
    except (OSError, sqlite3.Error, OverflowError):
        pass
    connection.close()
    return None


def _empty() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:")
    connection.executescript(TABLES)
    return connection


def _stamps(out: Path) -> dict[str, str]:
    """Size and modification time of each finished run's `result.json`, by run."""
    stamps = {}
    for path in sorted(out.glob(f"*/{RESULT}")):
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile
            stat = path.stat()
            stamps[path.parent.name] = f"{stat.st_size} {stat.st_mtime_ns}"
    return stamps


def _known(connection: sqlite3.Connection) -> dict[str, str]:
    return dict(connection.execute("SELECT run, stamp FROM runs"))


def _stale(connection: sqlite3.Connection, out: Path) -> bool:
    return _known(connection) != _stamps(out)


def _update(connection: sqlite3.Connection, out: Path) -> bool:
    """Bring the tables up to date with the folder; return True if that changed anything."""
    known, stamps = _known(connection), _stamps(out)
    outdated = [run for run in known if known[run] != stamps.get(run)]
    for table in ("runs", "metrics"):
        connection.executemany(f"DELETE FROM {table} WHERE run = ?", [(run,) for run in outdated])
    added = 0
    for run, stamp in stamps.items():
        if known.get(run) == stamp:
            continue
        try:
            result = load_result(out / run)
            if result is None:
                continue
            row = _row(result, stamp)
        except MMRecError as error:
            logger.warning("left out of the index: %s", error)
            continue
        except OSError as error:
            logger.warning("left out of the index: %s: %s", out / run / RESULT, error)
            continue
        added += 1
        connection.execute(f"INSERT INTO runs VALUES ({', '.join('?' * len(COLUMNS))})", row)
        connection.executemany("INSERT INTO metrics VALUES (?, ?, ?, ?)", _metrics(result))
    connection.commit()
    return bool(outdated or added)


def _row(result: RunResult, stamp: str) -> list[Any]:
    """A run's values of COLUMNS."""
    record = result.record
    if record.resolved is None:
        raise DataError(
            f"{result.path / RESULT}: expected a run that recorded its configuration, got one of an earlier version; "
            f"{CURE}"
        )
    values = {
        "run": result.path.name,
        **{axis: record.axes.value(axis) for axis in AXES},
        "modalities": ",".join(record.axes.modalities or ()),
        "split_rule": record.axes.split,
        "seed": record.seed,
        "parameters": result.parameters,
        "best_epoch": result.best_epoch,
        "epochs": result.epochs,
        "stopped": result.stopped,
        "data_hash": record.data,
        "features_hash": record.features,
        "code_hash": record.code,
        "config_hash": record.config,
        "config": record.resolved,
        "numerics_version": record.numerics_version,
        "versions": record.versions,
        "device": record.device,
        "threads": record.threads,
        "seconds": plain(record.seconds),
        "train_seconds": record.seconds.train,
        "peak_memory_bytes": record.peak_memory_bytes,
        "parameters_trained": record.parameters_trained,
        "finished": record.finished,
        "per_user": f"{result.path.name}/{PER_USER}",
        "stamp": stamp,
    }
    return [json.dumps(values[name]) if kind == JSON else values[name] for name, kind in COLUMNS.items()]


def _metrics(result: RunResult) -> Iterator[tuple[str, str, str, float]]:
    for split, values in (("valid", result.valid), ("test", result.test)):
        for name, value in values.items():
            yield result.path.name, split, name, value


def _rows(cursor: sqlite3.Cursor) -> list[dict[str, Any]]:
    names = [column[0] for column in cursor.description or ()]
    return [dict(zip(names, row, strict=True)) for row in cursor]
