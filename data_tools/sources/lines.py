"""Files of lines, plain or gzip, read as a stream: blocks of whole lines, taken apart by several processes.

A line is one record. What can't be used is skipped, and counted by reason with its first place. Memory is bounded by
the block, whatever the file holds: a line above LONGEST bytes is skipped, and never held whole.

JSON: msgspec where it is installed (extra `data`), which decodes only the fields that are asked for, in a quarter of
the standard library's time; both give the same values.
"""

import codecs
import csv
import functools
import itertools
import json
import math
import multiprocessing
import operator
import os
import re
import signal
import threading
import zlib
from collections import deque
from collections.abc import Callable, Container, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import pandas as pd

from mmrec_lmm.cache import check_readable
from mmrec_lmm.data.splitting import UNITS, time_units
from mmrec_lmm.errors import DataError
from mmrec_lmm.formatting import foreign

from ..raw import Tallies, Tally

BLOCK = 2**23  # bytes of whole lines that one process takes apart at a time
RATIO, FLOOR = 200, 2**30  # a gzip file may unpack to so many times its size, and so many bytes beside that
LONGEST = 2**20  # bytes of a line; the longest that Amazon's metadata has are a tenth of that
CONTROL = re.compile(r"[\x00-\x1f\x7f]")

Take = Callable[[bytes], Sequence[Any]]  # a line's values, or Unusable; picklable
Result = TypeVar("Result")


class Unusable(Exception):
    """A line that can't be used; the text is the reason."""


# Lines


def blocks_of(path: Path) -> Iterator[tuple[int, bytes]]:
    """Whole lines, and the number of the first. Raises DataError for a file that is damaged or not text."""
    number, rest = 1, b""
    for piece in _pieces(path):
        cut = piece.rfind(b"\n") + 1
        if not cut:
            rest = (rest + piece)[: LONGEST + 1]  # enough to see that it is too long
            continue
        block, rest = rest + piece[:cut], piece[cut:]
        yield number, block
        number += block.count(b"\n")
    if rest:
        yield number, rest


def first_lines(path: Path, most: int) -> list[bytes]:
    """The first lines that aren't blank, at most `most` of the file's first block."""
    for _, block in blocks_of(path):
        return [line.rstrip(b"\r") for line in block.split(b"\n") if line.strip()][:most]
    return []


def _pieces(path: Path) -> Iterator[bytes]:
    """The file's bytes, unpacked, without a byte order mark, after a look at what they are."""
    check_readable(path)
    try:
        with path.open("rb") as file:
            start = file.read(2)
            file.seek(0)
            pieces = _unpacked(path, file) if start == b"\x1f\x8b" else iter(lambda: file.read(BLOCK), b"")
            head = next(pieces, b"")
            if got := foreign(head[:4096]):
                raise DataError(f"{path}: expected lines of text, got {got}")
            if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise DataError(f"{path}: expected UTF-8 text, got UTF-16; convert it: iconv -f UTF-16 -t UTF-8 FILE")
            yield head.removeprefix(codecs.BOM_UTF8)
            yield from pieces
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None


def _unpacked(path: Path, file: IO[bytes]) -> Iterator[bytes]:
    """The content of a gzip file of one or more members, in pieces of at most BLOCK bytes."""
    lines, member = 1, None  # None: between two members
    left = FLOOR + RATIO * os.fstat(file.fileno()).st_size
    try:
        while packed := file.read(2**18):
            while packed:
                if member is None:
                    packed = packed.lstrip(b"\0")  # padding
                    if not packed:
                        break
                    member = zlib.decompressobj(wbits=31)
                piece = member.decompress(packed, BLOCK)
                lines, left = lines + piece.count(b"\n"), left - len(piece)
                if left < 0:
                    raise DataError(
                        f"{path}, line {lines}: expected a file that unpacks to at most {RATIO} times its size, got "
                        "more; if that is right, unpack it with gunzip and name the unpacked file"
                    )
                yield piece
                if member.eof:
                    packed, member = member.unused_data, None
                else:
                    packed = member.unconsumed_tail
        while member is not None and not member.eof and (piece := member.decompress(b"", BLOCK)):
            yield piece
    except zlib.error as error:
        raise DataError(
            f"{path}, line {lines}: expected a whole gzip file, got a damaged one ({error}); download it again"
        ) from None
    if member is not None and not member.eof:
        raise DataError(
            f"{path}, line {lines}: expected a whole gzip file, got one that ends early; download it again, or take "
            "what there is: zcat FILE > NEW, then read NEW"
        )


# What is taken of a line


@dataclass(frozen=True)
class Fields:
    """Takes fields of a JSON object; None where one is absent."""

    names: tuple[str, ...]

    def __call__(self, line: bytes) -> Sequence[Any]:
        return _json_taker(self.names)(line)


@dataclass(frozen=True)
class Cells:
    """Takes cells by their places in a line of `count` cells, "0" where a place is None. `quoted`: as in CSV."""

    separator: str
    count: int
    places: tuple[int | None, ...]
    encoding: str = "utf-8"
    quoted: bool = False

    def __call__(self, line: bytes) -> Sequence[Any]:
        text = line.decode(self.encoding)
        cells = text.split(self.separator)
        if self.quoted and '"' in text:
            try:
                cells = next(csv.reader([text], delimiter=self.separator, strict=True))
            except csv.Error:
                raise Unusable("a quoted cell doesn't end") from None
        if len(cells) != self.count:
            raise Unusable(f"not {self.count} cells")
        return ["0" if place is None else cells[place].strip() for place in self.places]


@functools.cache
def _json_taker(names: tuple[str, ...]) -> Take:
    try:
        import msgspec
    except ImportError:
        return functools.partial(_standard_json, names)
    record = msgspec.defstruct("Record", [(name, Any, None) for name in names], gc=False)
    decode, values = msgspec.json.Decoder(record).decode, operator.attrgetter(*names)

    def take(line: bytes) -> Sequence[Any]:
        try:
            return values(decode(line))
        except msgspec.ValidationError:
            raise Unusable("not a JSON object") from None
        except (msgspec.DecodeError, RecursionError):
            raise Unusable("not JSON") from None

    return take


def _standard_json(names: tuple[str, ...], line: bytes) -> Sequence[Any]:
    try:
        record = json.loads(line, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        if isinstance(error, UnicodeDecodeError):
            raise
        raise Unusable("not JSON") from None
    if not isinstance(record, dict):
        raise Unusable("not a JSON object")
    return [record.get(name) for name in names]


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


# Blocks of lines, taken apart


@dataclass
class Taken:
    """What a block's lines gave: a row each, and its line; and what was found, as (reason, line) in file order."""

    rows: list[Sequence[Any]]
    lines: list[int]
    skipped: list[tuple[str, int]]
    repaired: list[tuple[str, int]]


def take_lines(take: Take, skip_first: bool, block: tuple[int, bytes]) -> Taken:
    """Take each line of a block apart; the file's first is a header if `skip_first`."""
    first, content = block
    taken = Taken([], [], [], [])
    for number, line in enumerate(content.split(b"\n"), first):
        if (number == 1 and skip_first) or not line or line.isspace():
            continue
        if len(line) > LONGEST:
            taken.skipped.append((f"longer than {LONGEST:,} bytes", number))
            continue
        try:
            try:
                row = take(line)
            except UnicodeDecodeError:
                row = take(line.decode("latin-1").encode())
                taken.repaired.append(("not UTF-8, read as Latin-1", number))
        except Unusable as reason:
            taken.skipped.append((str(reason), number))
            continue
        taken.rows.append(row)
        taken.lines.append(number)
    return taken


def each_block(path: Path, work: Callable[[tuple[int, bytes]], Result]) -> Iterator[Result]:
    """`work` of each block, in file order. Several processes share it where the file has several blocks."""
    blocks = blocks_of(path)
    ahead = list(itertools.islice(blocks, 2))
    processes = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if len(ahead) < 2 or processes < 2:
        yield from map(work, itertools.chain(ahead, blocks))
        return
    with ProcessPoolExecutor(processes, initializer=_begin_work) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for block in itertools.chain(ahead, blocks):
                waiting.append(pool.submit(work, block))
                if len(waiting) > processes + 1:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _begin_work() -> None:
    """Leave Ctrl-C to the process that reads, and end with it, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Any) -> None:
    """End this process when its parent ends: a killed command leaves none behind."""
    parent.join()
    os._exit(1)


# Interactions


PER_SECOND = dict(zip(UNITS, (1, 1e3, 1e6, 1e9), strict=True))


@dataclass
class _Rows:
    """The interactions of a block: ids as codes of their own distinct ones, which pass between processes quickly."""

    users: tuple[np.ndarray, list[str]]
    items: tuple[np.ndarray, list[str]]
    ratings: np.ndarray
    times: np.ndarray
    skipped: list[tuple[str, int]]
    repaired: list[tuple[str, int]]


class Interactions:
    """Collects interactions of one or more files. `read` takes (user, item, rating, time) of each line."""

    def __init__(self, tallies: Tallies) -> None:
        self._skipped, self._repaired = tallies.skipped, tallies.repaired
        self._users: dict[str, int] = {}
        self._items: dict[str, int] = {}
        self._parts: list[tuple[np.ndarray, ...]] = []

    def read(self, path: Path, take: Take, unit: str | None, *, header: bool = False, label: int | None = None) -> int:
        """Add a file's interactions; returns how many. Times are made `unit`, one of splitting's UNITS, where they are
        plainly in another; None leaves them. DataError where no line can be used."""
        rows = 0
        for part in each_block(path, functools.partial(_interactions, take, unit, header)):
            _count(part.skipped, self._skipped, path)
            _count(part.repaired, self._repaired, path)
            columns = [_join(part.users, self._users), _join(part.items, self._items), part.ratings, part.times]
            if label is not None:
                columns.append(np.full(len(part.times), label, np.int8))
            self._parts.append(tuple(columns))
            rows += len(part.times)
        if not rows:
            why = self._skipped.first()
            raise DataError(f"{path}: expected interactions, got no usable line{why and f'; {why}'}")
        return rows

    def table(self) -> pd.DataFrame:
        """All interactions in the order of files and lines; ids are categories in order of appearance."""
        users, items, *others = (np.concatenate(column) for column in zip(*self._parts, strict=True))
        self._parts.clear()
        named = dict(zip(("rating", "timestamp", "label"), others, strict=False))
        return pd.DataFrame({"user": _categories(users, self._users), "item": _categories(items, self._items), **named})

    @property
    def items(self) -> dict[str, int]:
        """The items' ids so far."""
        return self._items


def _interactions(take: Take, unit: str | None, header: bool, block: tuple[int, bytes]) -> _Rows:
    """A block's interactions that have ids, a rating and a time."""
    taken = take_lines(take, header, block)
    columns = list(zip(*taken.rows, strict=True)) or [(), (), (), ()]
    (users, user_ids, no_user), (items, item_ids, no_item) = _ids(columns[0]), _ids(columns[1])
    ratings, times = numbers(columns[2]), numbers(columns[3])
    reasons = {
        "no user id": no_user,
        "no item id": no_item,
        "rating isn't a number": ~np.isfinite(ratings),
        "time isn't a number": ~(np.isfinite(times) & (np.abs(times) < 2**53)),
    }
    keep = np.ones(len(users), bool)
    for reason, bad in reasons.items():
        taken.skipped += [(reason, taken.lines[row]) for row in np.flatnonzero(bad & keep).tolist()]
        keep &= ~bad
    users, items, ratings, times = users[keep], items[keep], ratings[keep], times[keep]
    lines = np.array(taken.lines)[keep] if len(keep) else np.empty(0, np.int64)
    for other in UNITS if unit else ():
        factor = PER_SECOND[other] / PER_SECOND[unit or other]
        strange = (time_units(times) == UNITS.index(other)) & (other != unit)
        if strange.any():
            times = np.where(strange, times / factor, times)
            taken.repaired += [(f"time in {other}, made {unit}", line) for line in lines[strange].tolist()]
    return _Rows((users, user_ids), (items, item_ids), ratings, times.astype(np.int64), taken.skipped, taken.repaired)


def _ids(cells: Sequence[Any]) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Codes (N,) int32, the distinct ids that they stand for, and which cells are no id: absent, empty, no text, or
    with control characters, which no table can hold."""
    texts = [cell if isinstance(cell, str) else str(cell) if isinstance(cell, int) else "" for cell in cells]
    codes, distinct = pd.factorize(np.array(texts, object))
    plain = [one.strip() for one in distinct]
    good = np.array([bool(one) and CONTROL.search(one) is None for one in plain], bool)
    return codes.astype(np.int32), plain, ~good[codes]


def numbers(cells: Sequence[Any]) -> np.ndarray:
    """Cells (N,) as float64; NaN for what isn't a number."""
    try:
        return np.array(cells, np.float64)
    except (ValueError, TypeError, OverflowError):
        return np.array([_number(cell) for cell in cells], np.float64)


def _number(cell: Any) -> float:
    try:
        return float(cell)
    except (ValueError, TypeError, OverflowError):
        return math.nan


def _join(part: tuple[np.ndarray, list[str]], known: dict[str, int]) -> np.ndarray:
    """A block's codes as codes of the whole file. Ids are added in the order in which rows have them."""
    codes, ids = part
    used = np.zeros(len(ids), bool)
    used[codes] = True  # `ids` is in order of appearance
    joined = np.zeros(len(ids), np.int32)
    joined[used] = [known.setdefault(one, len(known)) for one in itertools.compress(ids, used)]
    return joined[codes]


def _categories(codes: np.ndarray, ids: dict[str, int]) -> pd.Categorical:
    return pd.Categorical.from_codes(codes, pd.Index(list(ids), dtype=object))


# Items


def read_items(
    path: Path, take: Take, columns: Sequence[str], wanted: Container[str], tallies: Tallies, *, header: bool = False
) -> pd.DataFrame:
    """The items of a file that are in `wanted`, indexed by id: text columns, of which `take` gives the id and each.

    An item that comes again is counted, and its first row kept. DataError where no line can be used.
    """
    rows: dict[str, Sequence[str]] = {}
    usable = False
    for taken in each_block(path, functools.partial(take_lines, take, header)):
        _count(taken.skipped, tallies.skipped, path)
        _count(taken.repaired, tallies.repaired, path)
        for row, line in zip(taken.rows, taken.lines, strict=True):
            raw_id, *texts = row
            if not raw_id or CONTROL.search(raw_id):
                tallies.skipped.add("no item id", path, line)
                continue
            usable = True
            if raw_id not in wanted:
                tallies.left_out.add("item without interactions", path, line)
            elif raw_id in rows:
                tallies.left_out.add("item repeated, its first row kept", path, line)
            else:
                rows[raw_id] = texts
    if not usable:
        why = tallies.skipped.first()
        raise DataError(f"{path}: expected items, got no usable line{why and f'; {why}'}")
    index = pd.Index(list(rows), dtype=object)
    return pd.DataFrame(list(rows.values()), index=index, columns=list(columns), dtype=object)


def _count(found: Sequence[tuple[str, int]], tally: Tally, path: Path) -> None:
    """Add what a block's lines gave to the counts, the first line first."""
    for reason, line in sorted(found, key=operator.itemgetter(1)):
        tally.add(reason, path, line)
