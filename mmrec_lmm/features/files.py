"""Feature tables in files: MMRec's .npy, the cache's safetensors; their scale; and the controls made of a table.

Rows never shift: every table has one row per item, and an item without the modality has a zero row that `present`
masks.

Shapes: I items, D feature width.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import BufferedReader
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from ..cache import fingerprint
from ..data.arrays import CURE, damaged, read_header
from ..data.tables import read_integers
from ..disk.faults import is_machines, machine_failed
from ..disk.reading import LARGEST_JSON, check_file, is_there, read_file
from ..disk.sealed import DamagedFile, load_arrays, save_file
from ..disk.writing import write_atomic
from ..errors import ConfigError, DataError, did_you_mean
from ..formatting import first_few
from ..typed_json import OPTIONAL, decode, parse, plain
from ..types import FeatureTable, ItemCatalog
from .controls import CONTROLS

ABSENT_WIDTH = 64  # of the tables of `absent_table`
NORMALIZATIONS = ("none", "unit", "centered", "standard")
UNEQUAL = 5  # one modality's vectors are so many times as long as another's
ROUNDING = 1e-6  # of a number's size: more than float32's rounding error in a difference of equal numbers
SAME_DIRECTION = 0.9  # mean cosine to the mean row: four fifths of a row's squared length are then common to all
UNEQUAL_LENGTHS = 10.0  # 95th over 5th percentile: items' shares in a gradient then differ a hundredfold
MISSED_IMAGES = "missed_img_itemIDs.csv"  # MMRec's list of items whose image feature is only the mean of the others


def read_feature_file(path: Path, *, modality: str, n_items: int) -> FeatureTable:
    """The table of a .npy file of any float type, as float32, in memory: what is hashed is what is used.

    Absent are the items with an all-zero row, and for images those that MMRec's `missed_img_itemIDs.csv` beside the
    file names (there their row is the mean of the others; here it becomes zero). Raises DataError where the file is
    missing, damaged, pickled, holds NaN or infinity, or hasn't one row per item.
    """
    values, digest = _read_npy(path, n_items)
    finite, present = np.empty(n_items, bool), np.empty(n_items, bool)
    step = _rows_at_once(values.shape[1])
    for start in range(0, n_items, step):
        rows = slice(start, start + step)
        finite[rows], present[rows] = np.isfinite(values[rows]).all(axis=1), values[rows].any(axis=1)
    if not finite.all():
        bad = np.flatnonzero(~finite)
        raise DataError(
            f"{path}: expected finite numbers, got NaN or infinity in {len(bad)} of {n_items} rows, first "
            f"{first_few(bad)}"
        )
    missed = path.with_name(MISSED_IMAGES)
    if modality == "image" and is_there(missed):
        ids = _missed_items(missed, n_items)
        present[ids] = False
        values[ids] = 0
    return FeatureTable(modality, values, present, fingerprint([digest, present]))


def _read_npy(path: Path, n_items: int) -> tuple[np.ndarray, str]:
    """The array (I, D) in a .npy file as float32, and the SHA-256 of the file, which is read once, from one descriptor.

    Pickles are refused by name, and so is a header that promises other data than the file has.
    """
    digest = hashlib.sha256()
    size = check_file(path, CURE)
    try:
        with path.open("rb") as file:
            shape, by_columns, dtype = read_header(file, path, size)
            if len(shape) != 2 or dtype.kind not in "fiu":
                raise DataError(f"{path}: expected numbers of shape (items, width), got {dtype} of shape {shape}")
            if shape[0] != n_items:
                raise DataError(f"{path}: expected {n_items} rows, row i for item i, got {shape[0]}")
            begin = file.tell()
            file.seek(0)
            digest.update(file.read(begin))
            values = _numbers(file, digest, shape[::-1] if by_columns else shape, dtype)
            while rest := file.read(1 << 20):
                digest.update(rest)
    except (OSError, ValueError) as error:
        if is_machines(error):
            raise machine_failed(path, error) from None
        raise damaged(path, str(error)) from None
    return np.ascontiguousarray(values.T) if by_columns else values, digest.hexdigest()


def _numbers(file: BufferedReader, digest: Any, shape: Sequence[int], dtype: np.dtype[Any]) -> np.ndarray:
    """The rows that come next in a file, as float32. They are added to the digest."""
    values = np.empty(shape, np.float32)
    step = _rows_at_once(shape[1])
    for start in range(0, shape[0], step):
        rows = values[start : start + step]
        block = rows if dtype == np.float32 else np.empty(rows.shape, dtype)
        wanted = block.reshape(-1).view(np.uint8).data
        if file.readinto(wanted) != len(wanted):
            raise ValueError("it ended while it was read")
        digest.update(wanted)
        if block is not rows:
            with np.errstate(over="ignore"):  # a float64 beyond float32's range becomes inf, which is reported
                rows[:] = block
    return values


def _rows_at_once(width: int) -> int:
    return max(1, 2**24 // max(1, width))  # 64 MB


def _missed_items(path: Path, n_items: int) -> np.ndarray:
    """The ids in MMRec's list: one column, or one line; of a table, the column itemID or the only one with a name."""
    try:
        text = read_file(path, largest=LARGEST_JSON, cure="write one id a line").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected item ids as text in UTF-8, got another encoding ({error.reason})") from None
    separator = "\t" if "\t" in (first := text.partition("\n")[0]) else ","
    cells = [cell.strip(' "\r') for cell in first.split(separator)]
    if any(re.search("[A-Za-z]", cell) for cell in cells) or (len(cells) > 1 and not cells[0]):
        named = [name for name in cells if name and not name.startswith("Unnamed: ")]
        chosen = [name for name in named if name.lower() == "itemid"] or named
        if len(chosen) != 1:
            raise DataError(f"{path}: expected a column itemID, got {', '.join(named) or 'none with a name'}")
        ids = read_integers(path, chosen, separator=separator).columns[chosen[0]]
    else:
        rows = [line.replace(",", " ").split() for line in text.splitlines()]
        rows = [row for row in rows if row]
        if len(rows) > 1 and min(map(len, rows)) > 1 and [row[0] for row in rows] == [*map(str, range(len(rows)))]:
            raise DataError(
                f"{path}: expected item ids, got rows that begin with 0, 1, 2, ..., which may be the numbers of rows; "
                "write one id a line"
            )
        try:
            numbers = np.array([float(word) for row in rows for word in row])
            if not np.isfinite(numbers).all():
                raise ValueError("NaN or infinity")
        except ValueError as error:
            raise DataError(f"{path}: expected item ids ({error})") from None
        if (wrong := numbers != np.floor(numbers)).any():
            raise DataError(f"{path}: expected item ids, got {first_few(numbers[wrong])}")
        ids = numbers.astype(np.int64)
    wrong = (ids < 0) | (ids >= n_items)
    if wrong.any():
        raise DataError(f"{path}: expected item ids from 0 to {n_items - 1}, got {first_few(ids[wrong])}")
    return ids


@dataclass(frozen=True)
class TableHeader:
    """What the header of a feature file says of its table."""

    modality: str
    fingerprint: str
    encoder: str | None = field(default=None, metadata=OPTIONAL)
    unreadable: Mapping[str, str] = field(default_factory=dict)  # item -> why its image can't be read, without its path
    decoders: tuple[str, ...] = ()  # those that couldn't read any of them
    seconds: float | None = field(default=None, metadata=OPTIONAL)  # that a shard took


def save_table(
    path: Path,
    table: FeatureTable,
    *,
    encoder: str | None = None,
    unreadable: Mapping[str, str] = MappingProxyType({}),
    decoders: Sequence[str] = (),
    seconds: float | None = None,
) -> Path:
    """Write a table atomically as safetensors with a checksum and a TableHeader."""
    header = TableHeader(table.modality, table.fingerprint, encoder, unreadable, tuple(decoders), seconds)
    arrays = {"values": table.values, "present": table.present}
    metadata = {"about": json.dumps(plain(header))}
    return write_atomic(path, lambda temporary: save_file(arrays, temporary, metadata))


def export_table(path: Path, table: FeatureTable) -> Path:
    """Write a table as MMRec's .npy: (I, D) float32, rows of absent items zero, as `read_feature_file` expects."""

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:  # given a name, numpy would append its own suffix
            np.save(file, table.values)

    return write_atomic(path, write)


def load_with_header(path: Path) -> tuple[FeatureTable, TableHeader]:
    """The table in a file of `save_table`, in memory, and the file's header.

    Raises DamagedFile where the content isn't what was written, DataError for a missing file, NoAccess for one that
    this user may not read, and RunError where the machine fails to read it.
    """
    cure = "delete it to make it again"
    check_file(path, cure)
    try:
        arrays, metadata = load_arrays(path)
        about = parse(metadata["about"], where=str(path), cure=cure)
        header = decode(TableHeader, about, where=str(path), cure=cure)
        values, present = arrays["values"], arrays["present"]
        if values.dtype != np.float32 or present.dtype != np.bool_:
            raise TypeError(f"values of {values.dtype} and present of {present.dtype}")
        return FeatureTable(header.modality, values, present, header.fingerprint), header
    except OSError as error:
        if is_machines(error):
            raise machine_failed(path, error) from None
        raise DataError(f"{path}: expected a file that can be read, got {error.strerror}") from None
    except (DataError, KeyError, TypeError, ValueError) as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise DamagedFile(f"{path}: expected a feature table, got a damaged one ({reason}); {cure}") from None


def coverage(table: FeatureTable, catalog: ItemCatalog) -> str:
    """One line for a log: how many items have the modality, and which are the first that don't."""
    absent = np.flatnonzero(~table.present)
    line = f"{table.modality}: {len(catalog) - len(absent)} of {len(catalog)} items have it"
    if len(absent):
        line += f"; {len(absent)} don't and are masked, first {first_few([catalog.raw_ids[item] for item in absent])}"
    return line


def scarcity(modality: str, present: int, n_items: int) -> str:
    """The warning where most items lack a modality; empty where they don't."""
    return f"most items lack {modality}: {present:,} of {n_items:,} have it" if 2 * present < n_items else ""


def unequal_lengths(tables: Iterable[FeatureTable]) -> str:
    """What to say where the vectors of one modality are UNEQUAL times as long as another's or longer; else empty."""
    lengths = {}
    for table in tables:
        rows = np.linalg.norm(table.values[table.present].astype(np.float64), axis=1)  # (P,)
        if rows.any():
            lengths[table.modality] = rows[rows > 0].mean()
    if not lengths or max(lengths.values()) < UNEQUAL * min(lengths.values()):
        return ""
    said = ", ".join(f"{modality} {length:.3g}" for modality, length in lengths.items())
    return (
        f"mean length of feature vectors: {said}; a model that puts modalities side by side, such as VBPR, hears the "
        "longer; --normalize=unit makes them equal"
    )


def normalized(table: FeatureTable, how: str) -> FeatureTable:
    """The table on a common scale (`normalize`); absent items stay zero.

    unit: each row to length 1. centered: less the mean row, then each to length 1. standard: each column to mean 0 and
    deviation 1 over the present items. A row, or a column, that equals the mean in float32 becomes zero.
    """
    if how == "none":
        return table
    if how not in NORMALIZATIONS:
        known = ", ".join(NORMALIZATIONS)
        raise ConfigError(f"normalize: expected {known}, got {how}{did_you_mean(how, NORMALIZATIONS)}")
    rows = table.values[table.present].astype(np.float64)  # (P, D)
    if len(rows):
        axis = 0 if how == "standard" else 1
        size = np.abs(rows).max(axis=axis, keepdims=True)
        if how != "unit":
            rows -= rows.mean(axis=0)
        scale = rows.std(axis=0, keepdims=True) if how == "standard" else np.linalg.norm(rows, axis=1, keepdims=True)
        real = scale > ROUNDING * size
        rows = np.where(real, rows, 0.0) / np.where(real, scale, 1.0)
    values = np.zeros(table.values.shape, np.float32)
    values[table.present] = rows
    return replace(table, values=values, fingerprint=fingerprint([table.fingerprint, how]))


def whitened(table: FeatureTable) -> FeatureTable:
    """The table with uncorrelated columns of mean 0 and deviation 1 over the present items; absent ones stay zero.

    ZCA, of all such tables the one nearest to the centered rows: with these as U S V', it is sqrt(P) U V' (Kessy et
    al., American Statistician 2018, arXiv:1512.00809). A direction in which rows don't differ, to the precision of
    float32, becomes zero. Nothing but the table is read. The eigenvectors are of the smaller of (D, D) and (P, P).
    """
    rows = table.values[table.present].astype(np.float64)  # (P, D)
    values = np.zeros(table.values.shape, np.float32)
    if len(rows):
        size = np.abs(rows).max()
        rows -= rows.mean(axis=0)
        wide = len(rows) < table.dim
        squares, vectors = np.linalg.eigh(rows @ rows.T if wide else rows.T @ rows)  # S^2, and U or V
        lengths = np.sqrt(squares.clip(min=0))
        least = max(lengths.max() * ROUNDING, size * ROUNDING * np.sqrt(len(rows)))
        real = lengths > least
        root = (vectors[:, real] / lengths[real]) @ vectors[:, real].T  # U S^-1 U', or V S^-1 V'
        values[table.present] = np.sqrt(len(rows)) * (root @ rows if wide else rows @ root)
    return replace(table, values=values, fingerprint=fingerprint([table.fingerprint, "whiten"]))


def scale_note(table: FeatureTable) -> str | None:
    """A note if a table's scale is likely to harm a model that reads it as it is, with the option to try; else None."""
    if not table.present.any():
        return None
    lengths = np.sqrt(np.einsum("ij,ij->i", table.values, table.values, dtype=np.float64))  # (I,)
    mean = table.values.sum(axis=0, dtype=np.float64)
    mean = (mean / max(np.linalg.norm(mean), np.finfo(np.float64).tiny)).astype(np.float32)  # of length 1, or zero
    cosine = float(((table.values @ mean)[table.present] / lengths[table.present]).mean())
    low, high = np.percentile(lengths[table.present], [5, 95])
    if cosine > SAME_DIRECTION:
        what = f"rows differ little (mean cosine {cosine:.2f} to their mean row, length {lengths.max():.3g} at most)"
        return f"{what}; try --normalize=centered"
    if high > UNEQUAL_LENGTHS * low:
        what = f"rows of very unequal length ({low:.3g} to {high:.3g}, the 5th and the 95th percentile)"
        return f"{what}; try --normalize=unit"
    return None


def mean_filled(table: FeatureTable) -> FeatureTable:
    """The table filled as in MMRec (`missing: mean`): absent items get the mean row of the others. ConfigError if there
    are no others."""
    if table.present.all():
        return table
    if not table.present.any():
        raise ConfigError(
            f"missing: mean: expected items that have {table.modality}, got none of {len(table.present):,}; try "
            f"--missing=zero, or leave {table.modality} out of --modalities"
        )
    mean = table.values[table.present].mean(axis=0, dtype=np.float64)
    values = np.where(table.present[:, None], table.values, mean.astype(np.float32))
    name = fingerprint([table.fingerprint, "mean"])
    return FeatureTable(table.modality, values, np.ones_like(table.present), name)


def control_tables(tables: Mapping[str, FeatureTable], control: str, seed: int) -> dict[str, FeatureTable]:
    """Features without their items' content, to compare real ones with.

    shuffled: each item gets all rows of another item that has the same modalities, so modalities still agree with
    each other, and only the link between items and content is cut; which items are present doesn't change. random:
    Gaussian rows with each column's mean and deviation. constant: every item that has the modality gets the mean row
    of them all, whatever the seed. none: `absent_table`, whatever the tables were: any model then runs on ids alone.
    """
    if control not in CONTROLS:
        raise ConfigError(
            f"control: expected one of {', '.join(CONTROLS)}, got {control}{did_you_mean(control, CONTROLS)}"
        )
    if not tables:
        return {}
    sources = sorted((name, table.fingerprint) for name, table in tables.items())
    shuffled = _shuffled([tables[name].present for name, _ in sources], seed)
    controls = {}
    for name, table in tables.items():
        present = table.present
        if control == "shuffled":
            values = table.values[shuffled]
        elif control == "random":
            values = _random_like(table, seed)
        else:
            controls[name] = _constant(table) if control == "constant" else absent_table(name, len(present))
            continue
        controls[name] = FeatureTable(name, values, present, fingerprint([sources, name, control, seed]))
    return controls


def absent_table(modality: str, n_items: int) -> FeatureTable:
    """A modality that no item has: zero rows of one fixed width, so a model without features is the same model whatever
    encoder it is compared with. Its fingerprint depends on nothing else."""
    values = np.zeros((n_items, ABSENT_WIDTH), np.float32)
    return FeatureTable(modality, values, np.zeros(n_items, bool), fingerprint(["absent", ABSENT_WIDTH]))


def _shuffled(present: Sequence[np.ndarray], seed: int) -> np.ndarray:
    """A random permutation (I,) of the items within each group that has the same modalities."""
    groups = np.stack(present, axis=1) @ (1 << np.arange(len(present)))  # (I,)
    permutation = np.arange(len(groups))
    rng = np.random.default_rng(seed)
    for group in np.unique(groups):  # at most 2 ** modalities
        members = np.flatnonzero(groups == group)
        permutation[members] = rng.permutation(members)
    return permutation


def _random_like(table: FeatureTable, seed: int) -> np.ndarray:
    rng = np.random.default_rng([seed, *table.modality.encode()])  # independent of which other modalities there are
    known = table.values[table.present]
    values = np.zeros(table.values.shape, np.float32)
    values[table.present] = rng.standard_normal(known.shape, np.float32) * known.std(axis=0) + known.mean(axis=0)
    return values


def _constant(table: FeatureTable) -> FeatureTable:
    values = np.zeros(table.values.shape, np.float32)
    if table.present.any():
        values[table.present] = table.values[table.present].mean(axis=0, dtype=np.float64)
    name = fingerprint([table.fingerprint, "constant"])
    return FeatureTable(table.modality, values, table.present, name)
