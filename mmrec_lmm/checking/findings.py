"""What a check finds, as frozen types that JSON can hold: counts, degrees, content, and findings.

A finding's name and the fields here are stable: scripts may rely on them.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..typed_json import plain
from ..types import SPLITS

#: error: a run would fail; warning: suspicious; note: worth knowing, and in real data usual.
Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")

FORMAT = 1  # of the JSON document; raised when a field changes its meaning or goes
NAMED = 5  # items and users that a finding names
FEW, SHARE = 10, 0.01  # content that so many items, and that share of them, have in common is a placeholder
MANY = 0.2  # of the items share their content with another: it says little


@dataclass(frozen=True)
class Place:
    """Where something was found: a file, perhaps a line or column of it, and the first items (raw ids) and users."""

    file: str | None = None
    line: int | None = None
    column: str | None = None
    items: tuple[str, ...] = ()
    users: tuple[str, ...] = ()

    def __str__(self) -> str:
        line = f"line {self.line}" if self.line is not None else None
        named = {"item": self.items, "user": self.users}
        lists = [f"{one}{'s' * (len(ids) > 1)} {', '.join(ids)}" for one, ids in named.items() if ids]
        return "; ".join([", ".join(filter(None, (self.file, line, self.column))), *lists])


@dataclass(frozen=True)
class Finding:
    """One fact about a data set. `count` rows, items or users have it, of `of`; `cure` is what to do."""

    name: str
    severity: Severity
    what: str
    count: int = 1
    of: int | None = None
    where: Place = field(default_factory=Place)
    cure: str = ""

    @property
    def counted(self) -> str:
        """What was found, with its count."""
        return f"{self.count:,} of {self.of:,} {self.what}" if self.of is not None else self.what

    @property
    def text(self) -> str:
        """Place, what was found and what to do, as a message has them."""
        place = f"{self.where}: " if str(self.where) else ""
        return f"{place}{self.counted}{f'; {self.cure}' if self.cure else ''}"


@dataclass(frozen=True)
class SplitCounts:
    """The rows of a split, and the distinct users and items in them."""

    rows: int
    users: int
    items: int


@dataclass(frozen=True)
class Bin:
    """How many users or items have `low` to `high` training rows."""

    low: int
    high: int
    count: int


@dataclass(frozen=True)
class Degrees:
    """The training rows of each user, or of each item: quantiles by name, and a histogram."""

    quantiles: Mapping[str, float]
    bins: tuple[Bin, ...]


@dataclass(frozen=True)
class Counts:
    """Sizes of a data set. `interactions` are distinct pairs, over all splits; density is their share of all pairs."""

    users: int
    items: int
    rows: int
    interactions: int
    density: float
    cold_items: int  # without a training row
    cold_users: int
    splits: Mapping[str, SplitCounts]
    degrees: Mapping[str, Degrees]  # "users", "items"


@dataclass(frozen=True)
class Times:
    """The time column: its first and last time, as dates where the unit is known."""

    column: str
    first: str
    last: str
    unit: str | None


@dataclass(frozen=True)
class Content:
    """A column of the catalog: how many items have it, and how many not, by reason."""

    items: int
    missing: Mapping[str, int]
    examined: int | None = None  # images that were decoded; None: none were


@dataclass(frozen=True)
class Features:
    """A feature file: its rows that hold features, of one width."""

    file: str
    items: int
    width: int


@dataclass(frozen=True)
class Report:
    """All that a check found. `counts` is None where the interactions can't be read."""

    name: str
    folder: str
    split: str | None  # that a rule drew; None: the data set's own labels
    fingerprint: str | None  # as in a run's record; None where no run could load it
    counts: Counts | None
    times: Times | None
    content: Mapping[str, Content]
    features: Mapping[str, Features]
    findings: tuple[Finding, ...]  # by severity
    version: int = FORMAT

    def of(self, severity: Severity) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity == severity]

    @property
    def failed(self) -> bool:
        """True if a run would fail."""
        return bool(self.of("error"))

    @property
    def verdict(self) -> str:
        """The outcome as a sentence."""
        errors, warnings = len(self.of("error")), len(self.of("warning"))
        counted = [
            f"{count} {name}{'s' if count > 1 else ''}"
            for count, name in ((errors, "error"), (warnings, "warning"))
            if count
        ]
        if not counted:
            return "nothing is wrong"
        return " and ".join(counted) + (": a run would fail" if errors else "")

    def document(self) -> dict[str, Any]:
        """The report as JSON can hold it."""
        found: dict[str, Any] = plain(self)
        return found


def by_severity(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity)))


def refusal(name: str, error: Exception, *, severity: Severity = "error") -> Finding:
    """A finding of an error's message, whose file and line become its place, and whose end what to do."""
    text = str(error)
    begin = re.match(r"(?P<file>/?[^:\n]*?[./][^:\n]*?)(?:, line (?P<line>\d+))?: (?P<rest>.+)", text, re.DOTALL)
    place = Place()
    if begin is not None:
        place = Place(Path(begin["file"]).name, int(begin["line"]) if begin["line"] else None)
        text = begin["rest"]
    what, _, cure = text.partition("; ")
    return Finding(name, severity, what, where=place, cure=cure)


def of_placeholder(largest: int, shared: int, total: int) -> bool:
    """True if one content that `largest` items have, or all that `shared` items have in common, is no accident among
    `total`: a few identical posters aren't, a picture that says "no image" is."""
    return largest >= max(FEW, SHARE * total) or (shared >= FEW and shared > MANY * total)


def in_splits(counts: Counts) -> list[tuple[str, SplitCounts]]:
    """The splits in their order."""
    return [(split, counts.splits[split]) for split in SPLITS]
