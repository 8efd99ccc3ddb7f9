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
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..disk.hashing import stamp
from ..disk.locks import locked
from ..disk.reading import AGAIN, read_file
from ..disk.writing import write_bytes
from ..errors import ConfigError, DataError, MMRecError, NoAccess, RunError, did_you_mean
from ..formatting import csv_text
from ..typed_json import parse, plain
from ..types import AXES, RunResult
from .run_folder import CURE, PER_USER, RESULT, complete, finished_runs, load_result

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
    "stamp": "TEXT",  # of result.json: another stamp means another result
}
TABLES = f"""
    CREATE TABLE runs ({", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())});
    CREATE TABLE metrics (run TEXT, split TEXT, metric TEXT, value REAL, PRIMARY KEY (run, split, metric));
    PRAGMA user_version = {VERSION};
"""

SECONDS = 60.0  # that a query may take
ROWS = 1_000_000  # of its answer
MEMORY = 2**30  # bytes, of SQLite and again of the answer
LARGEST_VALUE = 1_000_000  # bytes of a text or blob
LARGEST_INDEX = 2**32  # bytes

#: Functions that a query may not use: printf('%.*c', 2000000000, 'x') can't be interrupted.
_UNBOUNDED = ("printf", "format")
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
    """The index over the runs in `out`, up to date and in memory: tables `runs` and `metrics`.

    A damaged `result.json` is logged by name and left out. Raises DataError if the folder is missing.
    """
    _check_folder(out)
    complete(out)
    connection = _stored(out / INDEX)
    if connection is None or _stale(connection, out):
        connection = _refreshed(out)
    return connection


def query(out: Path, sql: str, *, seconds: float = SECONDS) -> list[dict[str, Any]]:
    """The rows that a SELECT finds in the index over `out`; of columns with one name, the later get :1, :2, ...

    ConfigError if it isn't a valid SELECT, or takes more than `seconds`, ROWS or MEMORY. It is computed by a thread: a
    signal ends it at once, which SQLite itself would only see between two of its steps.
    """
    connection = open_index(out)
    heap = _restrict(connection)
    answer: list[list[dict[str, Any]] | Exception] = []

    def work() -> None:
        try:
            with contextlib.closing(connection.execute(sql)) as cursor:
                answer.append(_rows(cursor, distinct=True, bounded=True))
        except (sqlite3.Error, sqlite3.Warning, ValueError, MemoryError) as error:
            answer.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        thread.join(seconds)
        late = not answer
    finally:
        if not answer:
            connection.interrupt()
    thread.join(1)
    if not thread.is_alive():
        connection.set_authorizer(None)
        connection.execute(f"PRAGMA hard_heap_limit = {heap}")
        connection.close()
    if answer and isinstance(answer[0], list) and not late:
        return answer[0]
    error = f"it takes more than {seconds:g} s; try LIMIT, or conditions that select less" if late else answer[0]
    if isinstance(error, MemoryError):
        error = f"it takes more than {ROWS:,} rows or {MEMORY:,} bytes; try LIMIT, or conditions that select less"
    raise ConfigError(
        f"query: expected one SELECT over runs ({', '.join(COLUMNS)}) and metrics (run, split, metric, value), got "
        f"{sql[:1000]!r}: {error}"
    )


def _restrict(connection: sqlite3.Connection) -> int:
    """Let queries on a connection only read, within bounds. Returns the heap's former limit, that of the process."""
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LARGEST_VALUE)
    connection.setlimit(sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 1000)
    heap: int = connection.execute("PRAGMA hard_heap_limit").fetchone()[0]
    connection.execute(f"PRAGMA hard_heap_limit = {MEMORY}")

    def allow(action: int, _: str | None, name: str | None, *others: str | None) -> int:
        refused = action not in _READS or (action == sqlite3.SQLITE_FUNCTION and name in _UNBOUNDED)
        return sqlite3.SQLITE_DENY if refused else sqlite3.SQLITE_OK

    connection.set_authorizer(allow)
    return heap


def find_runs(out: Path, where: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """One row per run: the columns of the index, then each metric as "valid/recall@20", "test/recall@20".

    `where` selects the runs whose columns have these values, ignoring case, and of modalities their order; an empty
    value means "none". ConfigError names an unknown column.
    """
    where = dict(where or {})
    if "modalities" in where:
        where["modalities"] = ",".join(sorted(name.strip() for name in where["modalities"].split(",")))
    for name in where:
        if name not in COLUMNS:
            raise ConfigError(
                f"--where: expected a column ({', '.join(COLUMNS)}), got {name}{did_you_mean(name, COLUMNS)}"
            )
    with contextlib.closing(open_index(out)) as connection, contextlib.suppress(DataError, sqlite3.Error):
        return _found(connection, where, str(out / INDEX))
    logger.warning("%s: expected an index of runs, got a damaged file; it isn't used", out / INDEX)
    with contextlib.closing(_empty()) as connection:
        _update(connection, out)
        return _found(connection, where, str(out / INDEX))


def _found(connection: sqlite3.Connection, where: Mapping[str, str], path: str) -> list[dict[str, Any]]:
    """`find_runs` of an index. DataError or sqlite3.Error if it is damaged."""
    conditions = " AND ".join(f"CAST(ifnull({name}, '') AS TEXT) = ? COLLATE NOCASE" for name in where) or "1"
    rows = _rows(connection.execute(f"SELECT * FROM runs WHERE {conditions} ORDER BY run", [*where.values()]))
    found = {row["run"]: row for row in rows}
    for run, split, metric, value in connection.execute("SELECT * FROM metrics ORDER BY rowid"):
        if run in found:
            found[run][f"{split}/{metric}"] = value
    for row in rows:
        del row["stamp"]
        for name in (name for name, kind in COLUMNS.items() if kind == JSON):
            row[name] = parse(str(row[name]), where=f"{path}: {row['run']}: {name}", cure=AGAIN)
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
    except (OSError, RunError, NoAccess) as error:
        logger.info("%s isn't written: %s", out / INDEX, error)
        connection = _stored(out / INDEX) or _empty()
        _update(connection, out)
    return connection


def _stored(path: Path) -> sqlite3.Connection | None:
    """The index in a file, read into memory; None if it is missing, damaged or of another version."""
    connection = sqlite3.connect(":memory:", check_same_thread=False)
    try:
        content = read_file(path, largest=LARGEST_INDEX)
        connection.deserialize(content or b"damaged")  # Python raises MemoryError for empty bytes
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if (
            version == VERSION
            and connection.execute("PRAGMA quick_check").fetchone()[0] == "ok"
            and _tables(connection) == _tables(_empty())
        ):
            return connection
    except (DataError, sqlite3.Error, OverflowError, MemoryError):
        pass
    connection.close()
    return None


def _tables(connection: sqlite3.Connection) -> list[tuple[str, ...]]:
    return sorted(connection.execute("SELECT type, name, coalesce(sql, '') FROM sqlite_master"))


def _empty() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", check_same_thread=False)
    connection.executescript(TABLES)
    return connection


def _stamps(out: Path) -> dict[str, str]:
    """The stamp of each finished run's `result.json`, by run."""
    stamps = {}
    for folder in finished_runs(out):
        try:
            stamps[folder.name] = " ".join(map(str, stamp((folder / RESULT).stat())))
        except OSError:  # reading it says why
            stamps[folder.name] = ""
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
    for run, found in stamps.items():
        if known.get(run) == found:
            continue
        try:
            result = load_result(out / run)
            if result is None:
                continue
            connection.execute(f"INSERT INTO runs VALUES ({', '.join('?' * len(COLUMNS))})", _row(result, found))
            connection.executemany("INSERT INTO metrics VALUES (?, ?, ?, ?)", _metrics(result))
        except MMRecError as error:
            logger.warning("left out of the index: %s", error)
            continue
        except (OSError, ValueError, sqlite3.Error) as error:  # the name of a folder may not be UTF-8
            logger.warning("left out of the index: %s: %s", plain(out / run / RESULT), error)
            continue
        added += 1
    connection.commit()
    return bool(outdated or added)


def _row(result: RunResult, found: str) -> list[Any]:
    """A run's values of COLUMNS."""
    values = {**_values(result), "stamp": found}
    return [json.dumps(values[name]) if kind == JSON else values[name] for name, kind in COLUMNS.items()]


def row_of(result: RunResult) -> dict[str, Any]:
    """A run's row as `find_runs` gives it, without an index."""
    values = _values(result)
    metrics = {f"{split}/{metric}": value for _, split, metric, value in _metrics(result)}
    return {**{name: values[name] for name in COLUMNS if name in values}, **metrics}


def _values(result: RunResult) -> dict[str, Any]:
    """A run's values of COLUMNS but the stamp, as plain values."""
    record = result.record
    if record.resolved is None:
        raise DataError(
            f"{result.path / RESULT}: expected a run that recorded its configuration, got one of an earlier version; "
            f"{CURE}"
        )
    return {
        "run": result.path.name,
        **{axis: record.axes.value(axis) for axis in AXES},
        "modalities": ",".join(record.axes.modalities or ()),
        "split_rule": record.axes.split,
        "seed": record.seed,
        "parameters": plain(result.parameters),
        "best_epoch": result.best_epoch,
        "epochs": result.epochs,
        "stopped": result.stopped,
        "data_hash": record.data,
        "features_hash": plain(record.features),
        "code_hash": plain(record.code),
        "config_hash": record.config,
        "config": plain(record.resolved),
        "numerics_version": record.numerics_version,
        "versions": plain(record.versions),
        "device": record.device,
        "threads": record.threads,
        "seconds": plain(record.seconds),
        "train_seconds": record.seconds.train,
        "peak_memory_bytes": record.peak_memory_bytes,
        "parameters_trained": record.parameters_trained,
        "finished": record.finished,
        "per_user": f"{result.path.name}/{PER_USER}",
    }


def _metrics(result: RunResult) -> Iterator[tuple[str, str, str, float]]:
    for split, values in (("valid", result.valid), ("test", result.test)):
        for name, value in values.items():
            yield result.path.name, split, name, value


def _rows(cursor: sqlite3.Cursor, *, distinct: bool = False, bounded: bool = False) -> list[dict[str, Any]]:
    """The rows by column; blobs as hex. `distinct` gives equal names of columns a number, `bounded` raises MemoryError
    beyond ROWS or MEMORY."""
    if cursor.description is None:
        raise ValueError("it has no statement")
    names = [column[0] for column in cursor.description]
    if distinct:
        names = [f"{name}:{before}" if (before := names[:at].count(name)) else name for at, name in enumerate(names)]
    rows: list[dict[str, Any]] = []
    held = 0
    for row in cursor:
        values = [value.hex() if isinstance(value, bytes) else value for value in row]
        held += 64 * len(values) + sum(len(value) for value in values if isinstance(value, str))
        if bounded and (held > MEMORY or len(rows) == ROWS):
            raise MemoryError
        rows.append(dict(zip(names, values, strict=True)))
    return rows
