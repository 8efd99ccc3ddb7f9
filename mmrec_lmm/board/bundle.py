"""A bundle: one file with the evidence of a run or a study, and reading one that somebody else made.

    manifest.json                       what is claimed, and the SHA-256 of every other file (Manifest)
    runs/<run id>/config.json           the resolved run
    runs/<run id>/result.json           its metrics and its record
    runs/<run id>/history.jsonl         its epochs
    runs/<run id>/per_user.safetensors  its metrics by user
    runs/<run id>/lists.safetensors     each tested user's best items

The file is a zip archive with names in order and one date: the same runs give the same bytes. A bundle is others' data.
It is read within bounds, only files of these names are taken from it, and nothing in it is code or a pickle.

Shapes: U tested users, K listed items, P bytes of an id.
"""

import os
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..config.settings import OF_NO_NUMBER, Settings
from ..disk.folders import scratch_folder
from ..disk.hashing import read_hash
from ..disk.reading import check_file, read_json
from ..disk.sealed import load_arrays, save_file
from ..disk.writing import write_json, write_output_by
from ..errors import DataError
from ..plugin.names import NAME_RULE, is_safe_name
from ..running import run_folder
from ..running.differences import differing
from ..studies.leaderboard import Score
from ..typed_json import FLAT, OPTIONAL, check_finite, decode, plain
from ..types import Axes, DrawnSplit, RunResult

FORMAT, VERSION = "mmrec-lmm bundle", 1  # increase VERSION when older programs would misread a bundle
MANIFEST, RUNS, LISTS = "manifest.json", "runs", "lists.safetensors"
OF_RUN = (run_folder.CONFIG, run_folder.RESULT, run_folder.HISTORY, run_folder.PER_USER, LISTS)

LARGEST = 2**32  # bytes, of a bundle and of all that is in one
LARGEST_FILE = 2**30  # bytes of a file in it
MOST_FILES = 50_000
CURE = "ask its author for the file as `submit` wrote it"

_DATE = (1980, 1, 1, 0, 0, 0)  # the first that a zip archive knows
_AT_ONCE = 1 << 20  # bytes
_MEMBER = re.compile(rf"{RUNS}/([^/]+)/({'|'.join(map(re.escape, OF_RUN))})")


class Refusal(DataError):
    """A bundle contradicts itself, or what was found of it. `check` names what it failed."""

    def __init__(self, check: str, reason: str) -> None:
        super().__init__(reason)
        self.check = check


@dataclass(frozen=True)
class FileHash:
    """A file of a bundle."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Attempt:
    """A run from which a row's numbers could have been chosen. It has no test metrics: they choose nothing."""

    run: str
    seed: int
    kind: Literal["grid", "earlier"]  # a point of the row's grid; another run of the same axes on this machine
    parameters: Mapping[str, Any]  # its point of the grid, without the seed
    valid: Mapping[str, float]
    best_epoch: int
    epochs: int
    seconds: float  # of training
    finished: str
    config: str  # the hash of all its values


@dataclass(frozen=True)
class FailedPoint:
    """A point of a grid without a result."""

    parameters: Mapping[str, Any]
    reason: str


@dataclass(frozen=True)
class SubmittedRow:
    """One row: the runs of a grid's winner in the order of their seeds, and all that was tried for it."""

    axes: Axes = field(metadata=FLAT)
    runs: tuple[str, ...]
    parameters: Mapping[str, Any]
    scores: Mapping[str, Score]  # as `compare` gives them for this bundle's rows
    attempts: tuple[Attempt, ...]
    failed: tuple[FailedPoint, ...] = ()

    @property
    def key(self) -> str:
        """The row's name within its bundle."""
        return self.axes.key

    def counts(self) -> dict[str, int]:
        """How many runs were tried: of the grid, its points and seeds, earlier ones, and failed points."""
        grid = [one for one in self.attempts if one.kind == "grid"]
        return {
            "runs": len(grid),
            "points": len({repr(sorted(one.parameters.items())) for one in grid}),
            "seeds": len({one.seed for one in grid}),
            "earlier": len(self.attempts) - len(grid),
            "failed": len(self.failed),
        }


@dataclass(frozen=True)
class SubmittedData:
    """The data set and split of some rows."""

    dataset: str
    fingerprint: str  # of the interactions and the split
    split: DrawnSplit | None
    files: Mapping[str, str]  # file -> hash


@dataclass(frozen=True)
class SubmittedPlugin:
    """A plugin that brings something of a run, with the hash of that code."""

    name: str
    version: str | None
    part: str  # host, model, encoder, paradigm, sampler, metric NAME
    code: str


@dataclass(frozen=True)
class SubmittedMethod:
    """How the rows were compared; as `comparison.Method`."""

    metrics: tuple[str, ...]
    baseline: Mapping[str, str | None] = field(default_factory=dict)
    test: str = "t-test"
    alpha: float = 0.05
    best_within: tuple[str, ...] = ("dataset",)
    family: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a bundle claims."""

    format: str = FORMAT
    version: int = VERSION
    name: str
    title: str
    finished: str  # when the last of its runs was, ISO 8601, UTC
    made_by: Mapping[str, str]  # library -> version, of its latest run
    data: Mapping[str, SubmittedData]  # by `Axes.tested_on`
    method: SubmittedMethod
    rows: tuple[SubmittedRow, ...]
    plugins: tuple[SubmittedPlugin, ...]
    files: Mapping[str, FileHash]
    note: str | None = field(default=None, metadata=OPTIONAL)

    @property
    def run_ids(self) -> tuple[str, ...]:
        """The runs whose evidence it has, each once."""
        return tuple(dict.fromkeys(run for row in self.rows for run in row.runs))


@dataclass(frozen=True)
class Bundle:
    """A bundle that is unpacked: `folder` has the folders of its runs, as far as `run_folder` reads them."""

    path: Path
    sha256: str
    manifest: Manifest
    folder: Path

    def run(self, run_id: str) -> Path:
        """The folder of one of its runs."""
        return self.folder / RUNS / run_id

    def result(self, run_id: str) -> RunResult:
        """The result of one of its runs. Refusal where it doesn't fit its folder and configuration."""
        return _read_result(self.run(run_id))

    def settings(self, run_id: str) -> Settings:
        """The host's settings of one of its runs. Refusal where its configuration is damaged."""
        folder = self.run(run_id)
        try:
            settings = run_folder.load_settings(folder)
        except DataError as error:
            raise Refusal("record", f"{run_id}: {_without(str(error), folder)}") from None
        assert settings is not None
        return settings

    def results(self, row: SubmittedRow) -> tuple[RunResult, ...]:
        """The results of a row's runs."""
        return tuple(self.result(run) for run in row.runs)


# Writing


def pack(folder: Path, manifest: Manifest, output: Path) -> Path:
    """Write the files below `folder` and a manifest of them as a bundle. The manifest's `files` are made here."""
    members = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {path.relative_to(folder).as_posix(): FileHash(read_hash(path), path.stat().st_size) for path in members}
    unknown = [name for name in files if not _MEMBER.fullmatch(name)]
    assert not unknown, unknown
    document = {**plain(manifest), "files": plain(files)}
    write_json(folder / MANIFEST, document)

    def write(place: Path) -> None:
        with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            for name in (MANIFEST, *files):
                about = zipfile.ZipInfo(name, _DATE)
                about.compress_type, about.external_attr, about.create_system = zipfile.ZIP_DEFLATED, 0o644 << 16, 3
                with (folder / name).open("rb") as source, archive.open(about, "w") as target:
                    while block := source.read(_AT_ONCE):
                        target.write(block)

    return write_output_by(output, write)


def save_lists(path: Path, users: np.ndarray, items: np.ndarray) -> None:
    """Write the best items (U, K) of users (U,): ids + 1 as bytes, the lowest ones first, since 0 stands for -1.

    Bytes of one place lie together, which deflate packs to about what they carry.
    """
    ids = (items + 1).astype("<u8")  # (U, K)
    width = max(1, -(-int(ids.max(initial=0)).bit_length() // 8))
    planes = np.stack([(ids >> (8 * place) & 255).astype(np.uint8) for place in range(width)])  # (P, U, K)
    save_file({"users": users.astype(np.int64), "items": planes}, path)


def load_lists(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The users (U,) and their best items (U, K) int64, -1 where there is none. Refusal for a damaged file."""
    try:
        arrays, _ = load_arrays(path)
        users, planes = arrays["users"], arrays["items"]
    except (DataError, OSError, KeyError) as error:
        raise Refusal("lists", f"{_shown(path)}: expected users and items, got a damaged file ({error})") from None
    if (users.ndim, planes.ndim) != (1, 3) or users.dtype != np.int64 or planes.dtype != np.uint8:
        raise Refusal("lists", f"{_shown(path)}: expected users (U,) and items (P, U, K), got {planes.shape}")
    if planes.shape[1] != len(users) or not 1 <= len(planes) <= 4:
        raise Refusal("lists", f"{_shown(path)}: expected a list for each of {len(users)} users, got {planes.shape}")
    ids = np.zeros(planes.shape[1:], np.int64)
    for place in range(len(planes)):  # at most four
        ids |= planes[place].astype(np.int64) << (8 * place)
    return users, ids - 1


# Reading


@contextmanager
def opened(path: Path) -> Iterator[Bundle]:
    """The bundle in a file, unpacked for this context. Refusal for one that isn't well-formed, or of a later version;
    DataError where the file is missing."""
    check_file(path, CURE)
    with scratch_folder() as folder:
        digest = read_hash(path)
        _unpack(path, folder)
        manifest = _read_manifest(path, folder)
        _compare_files(path, folder, manifest)
        bundle = Bundle(path, digest, manifest, folder)
        check_rows(bundle)
        yield bundle


def read_manifest(path: Path) -> Manifest:
    """The manifest of a bundle alone. Refusal as of `opened`, but the other files aren't looked at."""
    check_file(path, CURE)
    with scratch_folder() as folder:
        _unpack(path, folder, only=MANIFEST)
        return _read_manifest(path, folder)


def _unpack(path: Path, folder: Path, *, only: str = "") -> None:
    """Write the members of an archive below `folder`, each within bounds and under a name that a bundle may have."""
    size = path.stat().st_size
    if size > LARGEST:
        raise Refusal("archive", f"{path}: expected at most {LARGEST:,} bytes, got {size:,}; {CURE}")
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if len(members) > MOST_FILES:
                raise Refusal("archive", f"{path}: expected at most {MOST_FILES:,} files, got {len(members):,}; {CURE}")
            _check_members(path, members)
            for member in members:
                if not only or member.filename == only:
                    _extract(archive, member, folder, path)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError, ValueError) as error:
        if isinstance(error, OSError) and error.filename:
            raise
        raise Refusal(
            "archive", f"{path}: expected a bundle, got a damaged or truncated archive ({error}); {CURE}"
        ) from None


def _check_members(path: Path, members: Sequence[zipfile.ZipInfo]) -> None:
    """Refuse names that a bundle doesn't have, one that comes twice, and more than LARGEST bytes in all."""
    names = [member.filename for member in members]
    for name in names:
        found = _MEMBER.fullmatch(name)
        if name != MANIFEST and not (found and is_safe_name(found[1])):
            raise Refusal(
                "archive",
                f"{path}: expected {MANIFEST} and {RUNS}/NAME/ with {', '.join(OF_RUN)}, where a name has {NAME_RULE}, "
                f"got {name[:200]!r}; {CURE}",
            )
    if len(set(names)) < len(names):
        (twice, _), *_ = Counter(names).most_common(1)
        raise Refusal("archive", f"{path}: expected each file once, got {twice} twice; {CURE}")
    for member in members:
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise Refusal(
                "archive",
                f"{path}: {member.filename}: expected it packed by deflate, or not packed, got another method; {CURE}",
            )
    if MANIFEST not in names:
        raise Refusal("archive", f"{path}: expected {MANIFEST} in it, got an archive of other files; {CURE}")
    largest = max(members, key=lambda member: member.file_size)
    if largest.file_size > LARGEST_FILE or sum(member.file_size for member in members) > LARGEST:
        raise Refusal(
            "archive",
            f"{path}: {largest.filename}: expected at most {LARGEST_FILE:,} bytes a file and {LARGEST:,} in all, got "
            f"{largest.file_size:,}; {CURE}",
        )


def _extract(archive: zipfile.ZipFile, member: zipfile.ZipInfo, folder: Path, path: Path) -> None:
    """Write one member, no more of it than its entry says."""
    place, left = folder / member.filename, member.file_size
    place.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(member) as source, place.open("wb") as target:
        while block := source.read(_AT_ONCE):
            left -= len(block)
            if left < 0:
                raise Refusal("archive", f"{path}: {member.filename}: expected {member.file_size:,} bytes, got more")
            target.write(block)
    if left:
        raise Refusal("archive", f"{path}: {member.filename}: expected {member.file_size:,} bytes, got fewer; {CURE}")


def _read_manifest(path: Path, folder: Path) -> Manifest:
    where = f"{path}: {MANIFEST}"
    try:
        document = read_json(folder / MANIFEST, cure=CURE)
    except DataError as error:
        raise Refusal("manifest", f"{where}: {str(error).partition(': ')[2]}") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise Refusal("manifest", f"{where}: format: expected {FORMAT!r}, got another file; {CURE}")
    version = document.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise Refusal("version", f"{where}: version: expected a whole number, got {version!r}; {CURE}")
    if version > VERSION:
        raise Refusal("version", f"{where}: version: expected at most {VERSION}, got {version}; try a later mmrec-lmm")
    try:
        manifest = decode(Manifest, document, where=where, cure=CURE)
        check_finite(document.get("rows"), where=f"{where}: rows", cure=CURE)
    except DataError as error:
        raise Refusal("manifest", str(error)) from None
    if not is_safe_name(manifest.name):
        raise Refusal("manifest", f"{where}: name: expected {NAME_RULE}, got {manifest.name!r}; {CURE}")
    return manifest


def _compare_files(path: Path, folder: Path, manifest: Manifest) -> None:
    """Refuse a bundle whose files aren't those of its manifest."""
    wanted = {f"{RUNS}/{run}/{name}" for run in manifest.run_ids for name in OF_RUN}
    present = {found.relative_to(folder).as_posix() for found in folder.rglob("*") if found.is_file()} - {MANIFEST}
    for what, names in (
        ("manifest", wanted ^ manifest.files.keys()),
        ("archive", present ^ manifest.files.keys()),
    ):
        if names:
            raise Refusal(
                "files",
                f"{path}: expected {', '.join(OF_RUN)} of each of its runs, and no others, got a difference in its "
                f"{what}: {min(names)}; {CURE}",
            )
    for name, file in manifest.files.items():
        if read_hash(folder / name) != file.sha256:
            raise Refusal(
                "hash", f"{path}: {name}: expected the file of hash {file.sha256[:12]}..., got another; {CURE}"
            )


def check_rows(bundle: Bundle) -> None:
    """Refuse rows that repeat, have no runs, or whose runs have other axes, data or parameters than the row says."""
    manifest, where = bundle.manifest, bundle.path
    keys = [row.key for row in manifest.rows]
    if not manifest.method.metrics:
        raise Refusal("rows", f"{where}: method: expected metrics, got none; {CURE}")
    if not keys or len(set(keys)) < len(keys):
        twice = next((key for key in keys if keys.count(key) > 1), None)
        got = f"{twice} twice" if twice else "none"
        raise Refusal("rows", f"{where}: rows: expected rows of different axes, got {got}; {CURE}")
    for row in manifest.rows:
        if not row.runs or len(set(row.runs)) < len(row.runs):
            raise Refusal("rows", f"{where}: {row.key}: expected different runs, got {', '.join(row.runs) or 'none'}")
        data = manifest.data.get(row.axes.tested_on)
        seeds = set()
        for result in bundle.results(row):
            record = result.record
            seeds.add(record.seed)
            axes: dict[str, Any] = {"modalities": record.axes.modalities or (), "split": record.axes.split}
            own: dict[str, Any] = {"modalities": row.axes.modalities or (), "split": row.axes.split}
            for name in ("model", "dataset", "paradigm", "control"):
                axes[name], own[name] = getattr(record.axes, name), getattr(row.axes, name)
            encoder = row.axes.encoder
            axes["encoder"], own["encoder"] = (one and one.name for one in (record.axes.encoder, encoder))
            if encoder is not None and encoder.variant:
                axes["variant"], own["variant"] = variant_of(result), encoder.variant
            if axes != own:
                raise Refusal(
                    "rows", f"{where}: {row.key}: expected runs of these axes, got {result.run_id} of {record.axes.key}"
                )
            if data is None or record.data != data.fingerprint:
                raise Refusal(
                    "data", f"{where}: {row.key}: expected runs on the data that it names, got {result.run_id} on other"
                )
        if len(seeds) < len(row.runs):
            raise Refusal("rows", f"{where}: {row.key}: expected a run of each seed, got two of one seed")


def beside_the_seed(one: RunResult, other: RunResult, *, but: Collection[str] = ()) -> str:
    """The first key of configuration, `but` for some, or part of the inputs in which two runs differ beside the seed;
    "" if there is none. Files count by their content."""
    found = differing(one.record.resolved or {}, other.record.resolved or {}).keys()
    keys = sorted(found - {"seed", "point", *OF_NO_NUMBER, *but})
    then, now = (
        {part: sorted(files.values()) for part, files in run.record.files.items() if part != "data"}
        for run in (one, other)
    )
    parts = sorted(part for part in {**then, **now} if then.get(part) != now.get(part))
    return next(iter([*keys, *(f"file of {part} features" for part in parts)]), "")


def variant_of(result: RunResult) -> str:
    """The variant of a run's encoder; "" where it has none."""
    config = (result.record.resolved or {}).get("encoder_config")
    return str(config.get("variant", "")) if isinstance(config, dict) else ""


def _read_result(folder: Path) -> RunResult:
    """The result in an unpacked run's folder. Refusal where it is damaged, another run's, or has no configuration."""
    try:
        result = run_folder.load_result(folder)
        assert result is not None
        if result.record.resolved is None:
            raise DataError(f"{folder / run_folder.RESULT}: expected the run's configuration in it, got none")
        run_folder.check_config(result)
    except DataError as error:
        raise Refusal("record", f"{folder.name}: {_without(str(error), folder)}") from None
    return result


def _without(message: str, folder: Path) -> str:
    """A message without the path of a temporary folder, and without the cure of a run of one's own."""
    return message.replace(f"{folder}{os.sep}", "").removesuffix(f"; {run_folder.CURE}")


def _shown(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"
