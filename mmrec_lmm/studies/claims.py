"""The claims that a study's rows can bear out or contradict, counted as papers count them: "better in x of 120 cells".

A claim compares two values of one axis, all else equal: one encoder with another, dual-stream encoders with unified
ones, one paradigm with another, both modalities with one, an item's own features with those of a control run. A cell is
a pair of finished rows on one metric. `comparison.py` tests the pairs, as it tests rows against their baseline.
"""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..types import AXES, PRE_TRAINED
from .leaderboard import FINISHED, Claim, Row

DUAL, UNIFIED = "dual", "unified"  # of EncoderSpec.streams
OWN = "own features"
ANY_OTHER, EITHER = "any other", "either alone"

Pair = tuple[str, str]  # the keys of two rows: of the one that is claimed to be better, and of the other


@dataclass(frozen=True)
class Asked:
    """A claim and its pairs of finished rows, before they are compared."""

    axis: str
    better: str
    than: str
    pairs: tuple[Pair, ...]
    within: str = ""  # the encoder of all pairs; "": of any


@dataclass(frozen=True)
class Verdict:
    """How a pair compares on one metric."""

    sign: int  # 1: the first row is better, -1: the second, 0: neither
    testable: bool  # True if both rows have the seeds that a star needs
    starred: bool  # True if the better one is so significantly
    marked: bool  # True if either row carries a mark

    def reversed(self) -> "Verdict":
        """The verdict on the pair in the other order."""
        return dataclasses.replace(self, sign=-self.sign)


def claims_of(rows: Sequence[Row], *, baseline: Mapping[str, str | None], streams: Mapping[str, str]) -> list[Asked]:
    """Every claim that at least one pair of finished rows bears on.

    `baseline` is the study's: other encoders are compared with its encoder, also all together. `streams` has, by
    encoder, DUAL or UNIFIED.
    """
    finished = [row for row in rows if row.state == FINISHED and row.scores]
    own = [row for row in finished if row.axes.control is None]
    found = [*_of_encoders(own, baseline, streams), *_of_paradigms(own), *_of_modalities(own), *_of_content(finished)]
    return [one for asked in found if asked.pairs for one in (asked, *_by_encoder(asked, own))]


def count(asked: Asked, verdicts: Mapping[Pair, Mapping[str, Verdict]]) -> Claim:
    """The claim with its cells counted. `verdicts` has each pair in one order or the other, by metric."""
    cells = [
        verdict if pair in verdicts else verdict.reversed()
        for pair in asked.pairs
        for verdict in verdicts[pair if pair in verdicts else pair[::-1]].values()
    ]
    return Claim(
        axis=asked.axis,
        better=asked.better,
        than=asked.than,
        encoder=asked.within,
        pairs=len(asked.pairs),
        cells=len(cells),
        won=sum(cell.sign > 0 for cell in cells),
        won_starred=sum(cell.sign > 0 and cell.starred for cell in cells),
        lost=sum(cell.sign < 0 for cell in cells),
        lost_starred=sum(cell.sign < 0 and cell.starred for cell in cells),
        testable=sum(cell.testable for cell in cells),
        marked=sum(cell.marked for cell in cells),
    )


def _of_encoders(
    rows: Sequence[Row], baseline: Mapping[str, str | None], streams: Mapping[str, str]
) -> Iterator[Asked]:
    based = [row for row in rows if "encoder" in baseline and row.axes.has("encoder", baseline["encoder"])]
    first = _values(based, "encoder")
    names = list(dict.fromkeys([*first, *_values(rows, "encoder")]))
    if len(first) == 1 and len(names) > 2:
        yield _asked(rows, "encoder", ANY_OTHER, first[0], [(name, first[0]) for name in names[1:]])
    by_stream = {stream: [name for name in names if _stream(name, streams) == stream] for stream in (DUAL, UNIFIED)}
    yield _asked(rows, "encoder", "dual-stream", UNIFIED, itertools.product(by_stream[DUAL], by_stream[UNIFIED]))
    yield from (_asked(rows, "encoder", better, than, [(better, than)]) for than, better in _pairs(names))


def _stream(encoder: str, streams: Mapping[str, str]) -> str:
    return streams.get(encoder.partition(":")[0], "")


def _of_paradigms(rows: Sequence[Row]) -> Iterator[Asked]:
    names = sorted(_values(rows, "paradigm"), key=lambda name: name != PRE_TRAINED)
    yield from (_asked(rows, "paradigm", better, than, [(better, than)]) for than, better in _pairs(names))


def _of_modalities(rows: Sequence[Row]) -> Iterator[Asked]:
    """More modalities over fewer of them, and one over another."""
    names = sorted(_values(rows, "modalities"), key=lambda name: name.count("+"))
    for more in names:
        parts = [name for name in names if {*name.split("+")} < {*more.split("+")}]
        if len(parts) > 1:
            yield _asked(rows, "modalities", more, EITHER, [(more, part) for part in parts])
    yield from (_asked(rows, "modalities", better, than, [(better, than)]) for than, better in _pairs(names))


def _of_content(rows: Sequence[Row]) -> Iterator[Asked]:
    keys = {row.key for row in rows}
    for control in dict.fromkeys(control for row in rows for control in row.twins):
        pairs = [(row.key, row.twins[control]) for row in rows if row.twins.get(control) in keys]
        yield Asked("control", OWN, control, tuple(pairs))


def _by_encoder(asked: Asked, rows: Sequence[Row]) -> Iterator[Asked]:
    """The claim within each encoder, where its pairs have several; encoders aren't compared within one."""
    encoder = {row.key: row.axes.value("encoder") or "" for row in rows}
    names = list(dict.fromkeys(encoder[better] for better, _ in asked.pairs))
    if asked.axis != "encoder" and len(names) > 1:
        for name in filter(None, names):
            own = tuple(pair for pair in asked.pairs if encoder[pair[0]] == name)
            yield dataclasses.replace(asked, pairs=own, within=name)


def _asked(rows: Sequence[Row], axis: str, better: str, than: str, values: Iterable[Pair]) -> Asked:
    """The claim of some pairs of values, with each two rows that differ in nothing else."""
    others = [name for name in AXES if name != axis]
    found: dict[tuple[str | None, ...], dict[str | None, str]] = {}
    for row in rows:
        found.setdefault(tuple(map(row.axes.value, others)), {})[row.axes.value(axis)] = row.key
    pairs = [(same[one], same[other]) for one, other in values for same in found.values() if {one, other} <= {*same}]
    return Asked(axis, better, than, tuple(pairs))


def _values(rows: Sequence[Row], axis: str) -> list[str]:
    return list(dict.fromkeys(value for row in rows if (value := row.axes.value(axis))))


def _pairs(names: Sequence[str]) -> Iterator[Pair]:
    """Each two names, in their order."""
    return itertools.combinations(names, 2)
