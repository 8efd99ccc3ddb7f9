"""What is to be said of a data set's interactions: counts, degrees, pairs, times.

All are array operations over the rows of the file, whose lines findings name.

Shapes: N rows, U users, I items.
"""

import datetime
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ..config.settings import Settings
from ..data.loading import column_name, occur_again, reader_of_times, time_column
from ..data.splitting import UNITS, Rule, time_units
from ..data.tables import first_cells, read_integers
from ..errors import DataError
from ..types import SPLITS, Dataset, DrawnSplit
from .findings import NAMED, Bin, Counts, Degrees, Finding, Place, Severity, SplitCounts, Times, refusal

QUANTILES = {"least": 0.0, "5 %": 0.05, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "95 %": 0.95, "most": 1.0}
HALF = 0.5  # of all users, or items: a data set of which so many can't be used is suspicious
DAY = 86_400


@dataclass(frozen=True)
class Rows:
    """The rows of the interactions' file: users, items, labels (N,) int64, and the line of each, where there is a file.

    `leaves_out`: a run leaves out rows of users without a training row.
    """

    file: str
    users: np.ndarray
    items: np.ndarray
    labels: np.ndarray
    lines: Sequence[int] | np.ndarray | None
    n_users: int
    n_items: int
    leaves_out: bool = True

    @cached_property
    def pairs(self) -> np.ndarray:
        """One number (N,) for each pair of user and item."""
        return self.users * self.n_items + self.items

    @cached_property
    def repeated(self) -> np.ndarray:
        """The rows whose pair occurs more than once, ascending."""
        return np.flatnonzero(occur_again(self.pairs))

    def of(self, split: str) -> np.ndarray:
        return self.labels == SPLITS.index(split)

    @cached_property
    def has_history(self) -> np.ndarray:
        """(U,) bool: does the user have a training row."""
        return np.bincount(self.users[self.of("train")], minlength=self.n_users) > 0


def read_rows(path: Path, settings: Settings, rule: Rule | None, *, n_items: int = 0) -> Rows:
    """The rows, labeled as a run would label them, by the `rule` of its split, if any. Raises DataError where a run
    would.

    `n_items` is that of the catalog, if there is one.
    """
    separator = settings.field_separator
    header = first_cells(path, separator=separator)
    columns = [
        column_name(settings.USER_ID_FIELD, "userID", header),
        column_name(settings.ITEM_ID_FIELD, "itemID", header),
        *([] if rule else [settings.inter_splitting_label]),
    ]
    table = read_integers(path, columns, separator=separator)
    users, items, *labels = (table.columns[column] for column in columns)
    if not len(table) or min(users.min(), items.min()) < 0 or max(users.max(), items.max()) >= max(len(table), n_items):
        raise DataError(f"{path}: expected rows with ids from 0 on without gaps")  # a table by id would fill the memory
    if rule is not None:
        times = None
        if rule.needs_times:
            column = time_column(path, header, settings, reader_of_times(rule))
            times = read_integers(path, [column], separator=separator, times=[column]).columns[column]
        labels = [rule.labels(users, items, times, settings.split_seed)]
    n_users, n_items = int(users.max()) + 1, max(n_items, int(items.max()) + 1)
    leaves_out = settings.filter_out_cod_start_users
    return Rows(path.name, users, items, labels[0], table.lines, n_users, n_items, leaves_out)


def rows_of(dataset: Dataset) -> Rows:
    """The rows of a data set that a plugin reads from whatever it has."""
    splits = (dataset.train, dataset.valid, dataset.test)
    users, items = (np.concatenate([getattr(rows, name) for rows in splits]) for name in ("users", "items"))
    labels = np.repeat(np.arange(len(splits)), [len(rows) for rows in splits])
    return Rows(dataset.name, users, items, labels, None, dataset.n_users, dataset.n_items)


def count(rows: Rows) -> Counts:
    """Sizes and degrees, without the rows that a run leaves out."""
    splits, has_history = {}, rows.has_history
    for split in SPLITS:
        chosen = rows.of(split) & (has_history[rows.users] | (not rows.leaves_out))
        splits[split] = SplitCounts(int(chosen.sum()), _distinct(rows.users[chosen]), _distinct(rows.items[chosen]))
    train = rows.of("train")
    of_users = np.bincount(rows.users[train], minlength=rows.n_users)
    of_items = np.bincount(rows.items[train], minlength=rows.n_items)
    distinct = len(rows.pairs) - len(rows.repeated) + len(np.unique(rows.pairs[rows.repeated]))
    return Counts(
        users=rows.n_users,
        items=rows.n_items,
        rows=len(rows.users),
        interactions=distinct,
        density=distinct / (rows.n_users * rows.n_items),
        cold_items=int(np.sum(of_items == 0)),
        cold_users=int(np.sum(of_users == 0)),
        splits=splits,
        degrees={"users": _degrees(of_users), "items": _degrees(of_items)},
    )


def _distinct(ids: np.ndarray) -> int:
    return int(np.count_nonzero(np.bincount(ids)))


def _degrees(degrees: np.ndarray) -> Degrees:
    """Quantiles of degrees (U,) or (I,), and a histogram whose bins double: 0, 1, 2 to 3, 4 to 7, ..."""
    quantiles = np.quantile(degrees, list(QUANTILES.values()), method="inverted_cdf")
    powers = np.frexp(degrees)[1]  # 0 for 0, 1 for 1, 2 for 2 and 3
    counts = np.bincount(powers)
    bins = tuple(Bin(2**power // 2, max(0, 2**power - 1), int(number)) for power, number in enumerate(counts))
    return Degrees(dict(zip(QUANTILES, map(float, quantiles), strict=True)), bins)


def findings(rows: Rows, raw_ids: Sequence[str] | None, drawn: DrawnSplit | None) -> Iterator[Finding]:
    """What is to be said of the rows; `raw_ids` (I,) name items as the catalog does."""
    yield from _without_negative(rows)
    yield from _repeated(rows, raw_ids)
    yield from _cold(rows, raw_ids, drawn)


def _without_negative(rows: Rows) -> Iterator[Finding]:
    """Users who have all training items: `NegativeSampler` refuses them."""
    train = rows.of("train")
    n_items = _distinct(rows.items[train])
    degrees = np.bincount(rows.users[train], minlength=rows.n_users)
    likely = degrees[rows.users] >= max(1, n_items)  # repeated pairs count in a degree
    pairs = np.unique(rows.pairs[train & likely])
    users = np.flatnonzero(np.bincount(pairs // rows.n_items) == n_items) if len(pairs) else pairs
    if len(users):
        yield Finding(
            "no-negative",
            "error",
            f"users have all {n_items:,} training items, so no negative item exists for them",
            len(users),
            rows.n_users,
            Place(rows.file, _line(rows, int(np.argmax(rows.users == users[0]))), users=_named(users)),
            "drop these users",
        )


def _repeated(rows: Rows, raw_ids: Sequence[str] | None) -> Iterator[Finding]:
    again = rows.repeated
    pairs = rows.pairs[again]
    own = {split: rows.labels[again] == place for place, split in enumerate(SPLITS)}  # few rows
    for split in SPLITS:
        seen = again[own[split]][_seen_before(pairs[own[split]])]
        if len(seen):
            what, cure = f"rows of {split} repeat a pair of the same split", "keep one row of each pair"
            yield _of_pairs(rows, raw_ids, seen, "repeated-pairs", what, cure)
    for split in ("valid", "test"):
        seen = again[own[split] & np.isin(pairs, pairs[own["train"]])]
        if len(seen):
            what = f"rows of {split} repeat a training pair, whose item is masked, so it can't be hit"
            yield _of_pairs(rows, raw_ids, seen, "in-train-too", what, f"drop them from {split}")
    seen = again[own["test"] & np.isin(pairs, pairs[own["valid"]])]
    if len(seen):
        what = "rows of test repeat a pair of valid: the epoch is then selected on what is tested"
        yield _of_pairs(rows, raw_ids, seen, "in-valid-too", what, "drop them from one of the two")


def _seen_before(values: np.ndarray) -> np.ndarray:
    """(N,) bool: does an earlier value equal this one."""
    order = np.argsort(values, kind="stable")
    again = np.zeros(len(values), dtype=bool)
    again[order[1:]] = values[order[1:]] == values[order[:-1]]
    return again


def _of_pairs(
    rows: Rows, raw_ids: Sequence[str] | None, places: np.ndarray, name: str, what: str, cure: str
) -> Finding:
    """A finding of rows, `places`, that are all in one split."""
    where = Place(
        rows.file,
        _line(rows, int(places[0])),
        items=_items(np.unique(rows.items[places]), raw_ids),
        users=_named(np.unique(rows.users[places])),
    )
    total = int(np.sum(rows.labels == rows.labels[places[0]]))
    return Finding(name, "warning", what, len(places), total, where, cure)


def _cold(rows: Rows, raw_ids: Sequence[str] | None, drawn: DrawnSplit | None) -> Iterator[Finding]:
    """Users and items that training says little or nothing of."""
    train = rows.of("train")
    cold = np.flatnonzero(np.bincount(rows.items[train], minlength=rows.n_items) == 0)
    if len(cold):
        yield Finding(
            "cold-items",
            _if_most(len(cold), rows.n_items),
            "items have no training row",
            len(cold),
            rows.n_items,
            Place(rows.file, items=_items(cold, raw_ids)),
            "only models that read content can rank them; `slices` measures them alone",
        )
    left_out = ~train & ~rows.has_history[rows.users]
    if left_out.any():
        users = np.flatnonzero(np.bincount(rows.users[left_out]))
        yield Finding(
            "no-history",
            "warning" if drawn is None else _if_most(len(users), rows.n_users),
            f"users have no training row; a run {'leaves out' if rows.leaves_out else 'still measures'} their "
            f"{int(left_out.sum()):,} rows of valid and test",
            len(users),
            rows.n_users,
            Place(rows.file, _line(rows, int(np.argmax(left_out))), users=_named(users)),
            "label a row of each user 0 (train)" if drawn is None else "other rules of --split keep more users",
        )
    per_user, per_item = np.bincount(rows.users), np.bincount(rows.items)
    single = np.flatnonzero(per_user == 1)
    if len(single):
        yield Finding(
            "single-users",
            _if_most(len(single), rows.n_users),
            "users have one interaction, so they are never tested",
            len(single),
            rows.n_users,
            Place(rows.file, users=_named(single)),
            "a k-core (`data import --core 5`) leaves them out",
        )
    single = np.flatnonzero(per_item == 1)
    if len(single):
        yield Finding(
            "single-items",
            _if_most(len(single), rows.n_items),
            "items have one interaction",
            len(single),
            rows.n_items,
            Place(rows.file, items=_items(single, raw_ids)),
            "a k-core (`data import --core 5`) leaves them out",
        )


def _if_most(count: int, total: int) -> Severity:
    return "warning" if count > HALF * total else "note"


def times(path: Path, settings: Settings, now: float) -> tuple[Times | None, list[Finding]]:
    """The time column, and what is to be said of it; `now` is in seconds since 1970."""
    header = first_cells(path, separator=settings.field_separator)
    try:
        column = time_column(path, header, settings, "data check")
    except DataError:
        cure = "the rules leave-one-out, user-time and global-time of --split need one; --TIME_FIELD=COLUMN names it"
        return None, [Finding("no-times", "note", "there is no column of times", where=Place(path.name), cure=cure)]
    try:
        table = read_integers(path, [column], separator=settings.field_separator, times=[column])
    except DataError as error:
        return None, [refusal("times-unreadable", error, severity="warning")]
    found = table.columns[column]
    units = time_units(found)
    known = np.unique(units[units >= 0])
    unit = UNITS[known[0]] if len(known) == 1 else None

    def finding(name: str, what: str, chosen: np.ndarray, cure: str) -> Finding:
        place = Place(path.name, int(table.lines[int(np.argmax(chosen))]), column)
        return Finding(name, "warning", what, int(chosen.sum()), len(found), place, cure)

    said = []
    if len(known) > 1:
        counts = {UNITS[one]: int(np.sum(units == one)) for one in known}
        mixed = " and ".join(f"{count:,} {name}" for name, count in counts.items())
        fewest = known[np.argmin(list(counts.values()))]
        said.append(
            finding(
                "mixed-units",
                f"times look like {mixed}",
                units == fewest,
                "convert them to one unit; the rules of time refuse them",
            )
        )
    elif len(known) and (units < 0).any():
        said.append(
            finding(
                "early-times",
                f"times lie before 1973, beside {unit} since 1970",
                units < 0,
                "is 0 a missing time? They count as the earliest",
            )
        )
    scale = np.where(units >= 0, 1000.0 ** np.maximum(units, 0), 1.0)
    if len(known) and (late := (units >= 0) & (found / scale > now + DAY)).any():
        said.append(finding("future-times", "times lie in the future", late, "mend or drop them"))
    if len(found) > 1 and found.min() == found.max():
        said.append(
            finding(
                "equal-times",
                "all times are equal, so they order nothing",
                np.ones(len(found), dtype=bool),
                "another column may hold the times: --TIME_FIELD=COLUMN",
            )
        )
    if not len(found):
        return None, said
    about = Times(column, _date(found.min(), unit), _date(found.max(), unit), unit)
    return about, said


def _date(time: float, unit: str | None) -> str:
    """A time as a date, where its unit is known."""
    if unit is None:
        return f"{time:g}"
    seconds = float(time) / 1000 ** UNITS.index(unit)
    try:
        return datetime.datetime.fromtimestamp(seconds, datetime.UTC).date().isoformat()
    except (ValueError, OverflowError, OSError):
        return f"{time:g}"


def _line(rows: Rows, row: int) -> int | None:
    return None if rows.lines is None else int(rows.lines[row])


def _items(items: np.ndarray, raw_ids: Sequence[str] | None) -> tuple[str, ...]:
    return tuple(str(raw_ids[item]) if raw_ids is not None else str(item) for item in items[:NAMED])


def _named(users: np.ndarray) -> tuple[str, ...]:
    return tuple(map(str, users[:NAMED]))
