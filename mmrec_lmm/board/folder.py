"""A board: a folder of verified submissions under one protocol, in plain files that git keeps.

    board.yaml                          the protocol (BoardKeys)
    submissions/<id>/bundle.zip         a bundle as it was submitted
    submissions/<id>/submission.json    when it was added, under which protocol, and what it supersedes
    submissions/<id>/verification.json  the tier that it reached
    site/                               page, tables, CSV, JSON and the difference to the last state: made by `build`

Submissions are only added. A correction is a further submission that supersedes another, which stays in its folder. A
changed protocol is another board: what was submitted under one protocol can't be compared under another.
"""

import contextlib
import dataclasses
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml

from ..cache import fingerprint
from ..config import yaml_layers
from ..config.resolve import Request, Value, resolve_request
from ..config.schema import DIFFERENT_METRICS, HOST, SIGNIFICANCE, Limit, schema_of
from ..data.opening import open_dataset
from ..disk.folders import new_folder, restore_folder
from ..disk.hashing import read_hash
from ..disk.locks import locked
from ..disk.reading import is_there, read_json
from ..disk.writing import write_bytes, write_json
from ..errors import ConfigError, DataError, did_you_mean
from ..plugin.names import NAME_RULE, is_safe_name
from ..plugin.registry import Registry
from ..typed_json import OPTIONAL, decode, plain
from .bundle import Bundle, Refusal
from .tiers import TIERS
from .verify import Baseline, Verification, verify

BOARD, SUBMISSIONS, SITE = "board.yaml", "submissions", "site"
BUNDLE, SUBMISSION, VERIFICATION = "bundle.zip", "submission.json", "verification.json"
CURE = "restore it from git"


@dataclass(frozen=True)
class BoardKeys:
    """The keys of `board.yaml`."""

    name: str
    version: int  # of the protocol
    dataset: str
    data: str  # fingerprint of the interactions and their split
    metrics: tuple[str, ...]  # that rows show
    title: str = ""
    valid_metric: str = "Recall@20"  # that selects epochs and points of grids, and ranks rows
    settings: Mapping[str, Any] = field(default_factory=dict)  # configuration keys that every run has
    tier: Literal["recomputed", "replayed", "fresh"] = "recomputed"  # that a submission reaches at least
    baseline: Mapping[str, Any] = field(default_factory=lambda: {"model": "Pop"})  # of `fresh`; with its keys
    test: Literal["t-test", "t-test-users", "wilcoxon", "permutation"] = "t-test"
    alpha: float = 0.05
    encoders: Mapping[str, Any] = field(default_factory=dict)  # encoder -> the data that trained it, as declared

    LIMITS: ClassVar[Mapping[str, Limit]] = {"metrics": DIFFERENT_METRICS, "alpha": SIGNIFICANCE}


#: Keys that may change without another protocol.
_FREE = {"title", "encoders"}


@dataclass(frozen=True)
class Protocol:
    """A board's protocol: its name, version and the hash of all that decides."""

    name: str
    version: int
    hash: str


@dataclass(frozen=True)
class Submission:
    """The content of `submission.json`."""

    id: str
    bundle: str  # SHA-256 of the file
    added: str  # ISO 8601, UTC
    protocol: Protocol
    supersedes: str | None = field(default=None, metadata=OPTIONAL)
    note: str | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class Entered:
    """A submission on a board, with its record of verification."""

    submission: Submission
    verification: Verification
    folder: Path

    @property
    def bundle(self) -> Path:
        return self.folder / BUNDLE


@dataclass(frozen=True)
class Checked:
    """What `check` found of a submission; `problem` is empty if nothing."""

    id: str
    tier: str
    problem: str = ""


@dataclass(frozen=True)
class Board:
    """A board's folder and protocol."""

    folder: Path
    keys: BoardKeys

    @property
    def protocol(self) -> Protocol:
        deciding = {name: value for name, value in plain(self.keys).items() if name not in _FREE}
        return Protocol(self.keys.name, self.keys.version, fingerprint(deciding))

    @property
    def baseline(self) -> Baseline:
        """What fresh runs are compared with."""
        keys = {name: value for name, value in self.keys.baseline.items() if name != "model"}
        return Baseline(str(self.keys.baseline["model"]), keys)

    def accept(self, bundle: Bundle) -> None:
        """Refuse a bundle that isn't of this board's protocol: other data, split, settings or metrics, or encoders
        whose training data nobody declared."""
        keys = self.keys
        for row in bundle.manifest.rows:
            if row.axes.dataset != keys.dataset or any(
                result.record.data != keys.data for result in bundle.results(row)
            ):
                raise Refusal(
                    "protocol",
                    f"{row.key}: expected runs on {keys.dataset} with the split {keys.data[:12]}..., as {BOARD} says, "
                    "got another data set or split; try `submit --where` to pack some rows of a study",
                )
            encoder = row.axes.encoder
            if encoder is not None and row.axes.control != "none" and encoder.name not in keys.encoders:
                raise Refusal(
                    "protocol",
                    f"{row.key}: expected an encoder whose training data {BOARD} declares "
                    f"({', '.join(keys.encoders) or 'none yet'}), got {encoder}; try "
                    f"encoders: {{{encoder.name}: 'what trained it'}} there",
                )
            for run in row.runs:
                settings = bundle.settings(run)
                wanted = {"valid_metric": keys.valid_metric, **keys.settings}
                for name, value in wanted.items():
                    own, due = (plain(HOST.keys[name].read(one)) for one in (getattr(settings, name), value))
                    same = own == due if name != "valid_metric" else str(own).lower() == str(due).lower()
                    if not same:
                        raise Refusal(
                            "protocol", f"{row.key}: {run}: {name}: expected {value}, as {BOARD} says, got {own}"
                        )
                missing = [name for name in keys.metrics if name.lower() not in bundle.result(run).test]
                if missing:
                    raise Refusal(
                        "protocol", f"{row.key}: {run}: expected {missing[0]}, which the board shows, got none"
                    )

    def submissions(self) -> list[Entered]:
        """All submissions in the order in which they were added. DataError names a damaged or misplaced one."""
        folder = self.folder / SUBMISSIONS
        if not folder.is_dir():
            return []
        found = [_entered(one) for one in sorted(folder.iterdir()) if one.is_dir() and not one.name.startswith(".")]
        ids = [one.submission.id for one in found]
        for one in found:
            if ids.count(one.submission.id) > 1:
                both = ", ".join(str(other.folder) for other in found if other.submission.id == one.submission.id)
                raise DataError(f"{folder}: expected submissions of different ids, got {one.submission.id} in {both}")
        for one in found:
            if one.folder.name != one.submission.id:
                raise DataError(f"{one.folder}: expected the folder of its submission, {one.submission.id}; rename it")
            _check_superseded(one, found)
        return sorted(found, key=lambda one: (one.submission.added, one.submission.id))

    def current(self) -> list[Entered]:
        """The submissions that no other supersedes."""
        everything = self.submissions()
        gone = {one.submission.supersedes for one in everything}
        return [one for one in everything if one.submission.id not in gone]


def open_board(folder: Path, registry: Registry) -> Board:
    """The board in a folder. ConfigError has one line for each problem of `board.yaml`."""
    path = folder / BOARD
    if not is_there(path, CURE):
        raise ConfigError(f"{path}: no such file; try `board new`, which writes one")
    file = yaml_layers.read(path, "board", sections=())
    schema = schema_of(BoardKeys, "a board").keys
    problems, values = [], {}
    for name, value in file.values.items():
        if name not in schema:
            problems.append(f"{file.origin(name)}: unknown key {name}{did_you_mean(name, schema)}")
            continue
        try:
            values[name] = schema[name].read(value)
        except ValueError as error:
            problems.append(f"{file.origin(name)}: {name} {error}")
    needed = [one.name for one in dataclasses.fields(BoardKeys) if _is_required(one)]
    problems += [f"{path}: {name}: expected a value, got none" for name in needed if name not in file.values]
    if not problems:
        problems += _faults(BoardKeys(**values), file, registry)
    if problems:
        raise ConfigError("\n".join(problems))
    return Board(folder, BoardKeys(**values))


def new_board(
    folder: Path,
    registry: Registry,
    *,
    name: str,
    dataset: str,
    split: str | None,
    data_path: str | None,
    baseline: str,
    metrics: Sequence[str],
) -> Path:
    """Write the `board.yaml` of a data set as it is here. ConfigError if there is one."""
    path = folder / BOARD
    if path.exists():
        raise ConfigError(f"{path}: expected a folder without a board, got one that has it; try another")
    if not is_safe_name(name):
        raise ConfigError(f"--name: expected {NAME_RULE}, got {name!r}")
    for fault in _metric_faults(metrics, registry):
        raise ConfigError(f"--metrics: {fault}")
    if not DIFFERENT_METRICS.holds(metrics):
        raise ConfigError(f"--metrics: expected {DIFFERENT_METRICS.text}, got {', '.join(metrics)}; try each once")
    keys = {"split": split, "data_path": data_path}
    given = {key: Value(value) for key, value in keys.items() if value is not None}
    model = registry.models.get(baseline).name
    settings = resolve_request(Request(model, dataset, overrides=given), registry).runs[0].settings
    found = open_dataset(dataset, settings, registry)
    fixed: dict[str, Any] = {"mask_valid_in_test": settings.mask_valid_in_test}
    if settings.split:
        fixed |= {"split": settings.split, "split_seed": settings.split_seed}
    content = {
        "name": name,
        "version": 1,
        "dataset": found.name,
        "data": found.fingerprint,
        "metrics": list(metrics),
        "valid_metric": settings.valid_metric,
        "settings": fixed,
        "tier": "recomputed",
        "baseline": {"model": model},
        "encoders": {},
    }
    text = (
        "# A board: `mmrec-lmm board add FOLDER BUNDLE`, then `mmrec-lmm board build FOLDER`. The keys are in\n"
        "# docs/board.md. After the first submission, what decides may not change: that is another board.\n"
        "# Rows of an encoder are refused until `encoders` says what trained it: {clip: 400 million pairs}.\n"
    )
    return write_bytes(path, (text + yaml.safe_dump(content, sort_keys=False, allow_unicode=True)).encode())


def add(
    board: Board,
    bundle: Path,
    registry: Registry,
    *,
    tier: str | None = None,
    supersedes: str | None = None,
    note: str = "",
    data_path: str | None = None,
    device: str | None = None,
    seed: int | None = None,
    progress: bool = False,
) -> Entered:
    """Verify a bundle, and put it on the board with the record of that if it reaches the board's tier.

    `tier` asks for more than the board does: a bundle that stops before it is added with what it reached, and the row
    says what stopped it. Refusal for one that stops before the board's tier: nothing is added then.
    """
    asked = max(board.keys.tier, tier or board.keys.tier, key=TIERS.index)
    with locked(board.folder / SUBMISSIONS):
        known = board.submissions()
        check_protocol(board, known)
        ids = [one.submission.id for one in known]
        if supersedes is not None and supersedes not in ids:
            hint = did_you_mean(supersedes, ids)
            raise ConfigError(f"--supersedes: expected a submission of this board, got {supersedes}{hint}")
        digest = read_hash(bundle) if bundle.is_file() else ""
        if digest in {one.submission.bundle for one in known}:
            raise ConfigError(
                f"{bundle}: expected a bundle that isn't on the board, got one that is; it stays as it is"
            )
        found = verify(
            bundle, registry, tier=asked, data_path=data_path, device=device, baseline=board.baseline, seed=seed,
            progress=progress, accept=board.accept,
        )  # fmt: skip
        if found.stopped is not None and (
            found.tier not in TIERS or TIERS.index(found.tier) < TIERS.index(board.keys.tier)
        ):
            raise Refusal(
                found.stopped.check,
                f"{bundle}: not added, as the check {found.stopped.check} of the tier {found.stopped.tier} stops it: "
                f"{found.stopped.reason}",
            )
        submission = Submission(
            id=f"{found.name}-{found.bundle[:8]}",
            bundle=found.bundle,
            added=found.verified,
            protocol=board.protocol,
            supersedes=supersedes,
            note=note or None,
        )
        folder = board.folder / SUBMISSIONS / submission.id
        entered = Entered(submission, found, folder)
        if folder.exists():
            raise ConfigError(f"{folder}: expected no submission of that id, got one; nothing was added")
        _check_superseded(entered, known)
        with new_folder(folder) as building:
            shutil.copyfile(bundle, building / BUNDLE)
            if read_hash(building / BUNDLE) != found.bundle:
                raise DataError(f"{bundle}: expected the file that was verified, got another: it changed meanwhile")
            write_json(building / VERIFICATION, found)
            write_json(building / SUBMISSION, submission)
    return entered


def check(
    board: Board,
    registry: Registry,
    *,
    tier: str | None = None,
    data_path: str | None = None,
    device: str | None = None,
    progress: bool = False,
) -> Iterator[Checked]:
    """Verify each submission again, up to a tier, and that it is what was added. Yields what was found of each."""
    known = board.submissions()
    check_protocol(board, known)
    for one in known:
        problem = _changed(one)
        if problem:
            yield Checked(one.submission.id, one.verification.tier, problem)
            continue
        again = verify(
            one.bundle, registry, tier=tier or "recomputed", data_path=data_path, device=device,
            baseline=board.baseline, seed=one.verification.seed, progress=progress, accept=board.accept,
        )  # fmt: skip
        recorded = one.verification.tier
        stopped = again.stopped
        if stopped is not None and TIERS.index(stopped.tier) <= TIERS.index(recorded):
            yield Checked(one.submission.id, again.tier, f"{stopped.tier}: {stopped.check}: {stopped.reason}")
        else:
            yield Checked(one.submission.id, recorded)


def check_whole(one: Entered) -> None:
    """Raise DataError if a submission isn't what was verified and added."""
    if problem := _changed(one):
        raise DataError(f"{one.folder}: {problem}; {CURE}")


def _changed(one: Entered) -> str:
    """What differs between a submission's files and its records; "" if nothing."""
    if not one.bundle.is_file():
        return f"expected {BUNDLE}, got none"
    digest = read_hash(one.bundle)
    if digest != one.submission.bundle or digest != one.verification.bundle:
        return f"expected the bundle of hash {one.submission.bundle[:12]}..., got {digest[:12]}..."
    if one.verification.tier not in TIERS:
        return f"{VERIFICATION}: tier: expected one of {', '.join(TIERS)}, got {one.verification.tier}"
    return ""


def _entered(folder: Path) -> Entered:
    restore_folder(folder)
    path, beside = folder / SUBMISSION, folder / VERIFICATION
    submission = decode(Submission, read_json(path, cure=CURE), where=str(path), cure=CURE)
    verification = decode(Verification, read_json(beside, cure=CURE), where=str(beside), cure=CURE)
    return Entered(submission, verification, folder)


def _check_superseded(one: Entered, known: Sequence[Entered]) -> None:
    """Raise ConfigError if a submission supersedes one that isn't there, came later, or is superseded by another."""
    old = one.submission.supersedes
    if old is None:
        return
    ids = [other.submission.id for other in known if other.submission.id != one.submission.id]
    if old not in ids:
        raise ConfigError(
            f"{one.folder}: supersedes: expected a submission of this board, got {old}{did_you_mean(old, ids)}"
        )
    for other in known:
        if other.submission.id == old and other.submission.added > one.submission.added:
            raise ConfigError(f"{one.folder}: supersedes: expected an earlier submission, got {old}, which came later")
        if other.submission.supersedes == old and other.submission.id != one.submission.id:
            raise ConfigError(
                f"{one.folder}: supersedes: expected one that isn't superseded, got {old}; try {other.submission.id}, "
                "which supersedes it"
            )


def check_protocol(board: Board, known: Sequence[Entered]) -> None:
    """Raise ConfigError if submissions came under another protocol than that of `board.yaml`."""
    for one in known:
        if one.submission.protocol != board.protocol:
            then, now = one.submission.protocol, board.protocol
            raise ConfigError(
                f"{board.folder / BOARD}: expected the protocol of {one.submission.id} ({then.name} {then.version}, "
                f"hash {then.hash[:8]}), got {now.name} {now.version}, hash {now.hash[:8]}; a changed protocol is a "
                "board of its own: give it another name and version, in another folder"
            )


def _faults(keys: BoardKeys, file: yaml_layers.Layer, registry: Registry) -> Iterator[str]:
    """What is wrong with values of `board.yaml`, beside their types."""
    if not is_safe_name(keys.name):
        yield f"{file.origin('name')}: name: expected {NAME_RULE}, got {keys.name!r}"
    if keys.version < 1:
        yield f"{file.origin('version')}: version: expected 1 or more, got {keys.version}"
    for name, value in keys.settings.items():
        if name not in HOST.keys:
            yield f"{file.origin(f'settings.{name}')}: settings: unknown key {name}{did_you_mean(name, HOST.keys)}"
            continue
        with contextlib.suppress(ValueError):
            HOST.keys[name].read(value)
            continue
        yield f"{file.origin(f'settings.{name}')}: settings: {name}: expected a value of that key, got {value!r}"
    for name, declared in keys.encoders.items():
        if declared in (None, "", "...", "what trained it"):
            where = file.origin(f"encoders.{name}")
            yield f"{where}: encoders: {name}: expected the data that trained it, got {declared!r}"
    model = keys.baseline.get("model")
    if not isinstance(model, str) or model not in registry.models:
        known = ", ".join(registry.models.names())
        yield f"{file.origin('baseline')}: baseline: model: expected one of {known}, got {model}"
    else:
        own = {name: Value(value) for name, value in keys.baseline.items() if name != "model"}
        try:
            runs = resolve_request(Request(model, keys.dataset, overrides=own), registry).runs
            fault = "" if len(runs) == 1 else f"expected one value of each key, got a grid of {len(runs)} points"
        except ConfigError as error:
            fault = str(error).removeprefix("command line: ")
        if fault:
            yield f"{file.origin('baseline')}: baseline: {fault}"
    for fault in _metric_faults((*keys.metrics, keys.valid_metric), registry):
        yield f"{file.origin('metrics')}: metrics: {fault}"


def _metric_faults(metrics: Sequence[str], registry: Registry) -> Iterator[str]:
    for metric in metrics:
        name, _, k = metric.partition("@")
        if name not in registry.metrics or not re.fullmatch("[1-9][0-9]{0,8}", k):
            yield f"expected METRIC@K, got {metric}{did_you_mean(name, registry.metrics.names())}"
        elif registry.metrics.get(name).needs:
            yield f"expected metrics that lists give, got {metric}, which needs more"


def _is_required(one: "dataclasses.Field[Any]") -> bool:
    return one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING
