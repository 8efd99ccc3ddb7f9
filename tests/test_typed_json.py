"""Dataclasses as JSON and back: what is written is read as it was, and what doesn't fit is named by file and key."""

import dataclasses
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from mmrec_lmm.config.settings import Settings
from mmrec_lmm.errors import DataError
from mmrec_lmm.studies.executor import Record
from mmrec_lmm.studies.leaderboard import Leaderboard
from mmrec_lmm.training.end_to_end import EncoderNumbers, EndToEndReport
from mmrec_lmm.training.fine_tuning import TunerNumbers, TuningRecord
from mmrec_lmm.training.paradigms import EndToEnd, FineTuning
from mmrec_lmm.training.trainer import TrainerNumbers
from mmrec_lmm.typed_json import FLAT, OPTIONAL, decode, plain
from mmrec_lmm.types import (
    AXES,
    UNRECORDED,
    Axes,
    Chance,
    ChanceBySplit,
    EncoderName,
    EpochReport,
    RunRecord,
    RunResult,
    RunSeconds,
)


@dataclass(frozen=True)
class Size:
    width: int
    height: float = 1.0


@dataclass(frozen=True)
class Thing:
    """One field of each kind."""

    size: Size = field(metadata=FLAT)
    name: str
    sizes: tuple[Size, ...] = ()
    pair: tuple[int, float] = (0, 0.0)
    names: Sequence[str] = ()
    by_name: Mapping[str, Size] = field(default_factory=dict)
    path: Path = Path("here")
    kind: Literal["a", "b"] = "a"
    encoder: EncoderName | None = None
    flag: bool = False
    note: str | None = field(default=None, metadata=OPTIONAL)
    rest: Mapping[str, Any] = field(default_factory=dict, metadata=FLAT)


FULL = Thing(
    Size(2), "n", (Size(1, 2.5),), (1, 2.0), ["x"], {"y": Size(3)}, Path("there"), "b", EncoderName("clip", "tiny"),
    True, "said", {"later": [1, {"z": None}]},
)  # fmt: skip


def read(content: Any, kind: Any = Thing) -> Any:
    return decode(kind, content, where="a.json", cure="try again")


@pytest.mark.parametrize("thing", [FULL, Thing(Size(1), "bare", names=[])])
def test_what_is_written_is_read_as_it_was(thing: Thing) -> None:
    assert read(json.loads(json.dumps(plain(thing)))) == thing


def test_flat_fields_stand_beside_their_owners_and_optional_ones_are_left_out_where_they_are_none() -> None:
    assert plain(Thing(Size(1), "n", rest={"later": 2})) == {
        "width": 1, "height": 1.0, "name": "n", "sizes": [], "pair": [0, 0.0], "names": [], "by_name": {},
        "path": "here", "kind": "a", "encoder": None, "flag": False, "later": 2,
    }  # fmt: skip


def test_a_field_with_a_default_may_be_absent_and_an_unknown_key_is_ignored_where_nothing_keeps_it() -> None:
    assert read({"width": 3, "color": "red"}, Size) == Size(3, 1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": None}, "name: expected text, got None"),
        ({"width": "2"}, "width: expected a whole number, got '2'"),
        ({"width": True}, "width: expected a whole number, got True"),
        ({"height": True}, "height: expected a number, got True"),
        ({"sizes": [{"width": 1}, {"height": 1}]}, "sizes.1.width: expected a whole number, got nothing"),
        ({"sizes": {}}, "sizes: expected a list, got {}"),
        ({"pair": [1]}, r"pair: expected a list of 2, got \[1\]"),
        ({"by_name": {"y": {"width": 1.5}}}, "by_name.y.width: expected a whole number, got 1.5"),
        ({"by_name": []}, r"by_name: expected an object, got \[\]"),
        ({"path": 3}, "path: expected a path, got 3"),
        ({"kind": "c"}, "kind: expected one of a, b, got 'c'"),
        ({"encoder": 3}, "encoder: expected text, got 3"),
        ({"flag": 1}, "flag: expected true or false, got 1"),
    ],
)
def test_what_does_not_fit_is_named_by_file_and_key(change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=rf"^a\.json: {message}; try again$"):
        read(plain(FULL) | change)


def test_what_is_no_object_at_all_is_named_by_file() -> None:
    with pytest.raises(DataError, match=r"^a\.json: expected an object, got \[\]; try again$"):
        read([])


@pytest.mark.parametrize(
    "kind",
    [
        RunResult, RunRecord, TuningRecord, EpochReport, TrainerNumbers, TunerNumbers, EncoderNumbers, EndToEndReport,
        Record, Leaderboard, Settings, FineTuning, EndToEnd,
    ],
)  # fmt: skip
def test_all_that_is_kept_as_json_can_be_read(kind: Any) -> None:
    with pytest.raises(DataError, match=r"^a\.json: expected an object, got 3"):
        read(3, kind)
    required = [
        each.name
        for each in dataclasses.fields(kind)
        if each.default is each.default_factory is dataclasses.MISSING and each.metadata != FLAT
    ]
    if required:
        with pytest.raises(DataError, match=rf"^a\.json: {'model' if kind is RunRecord else required[0]}: expected"):
            read({}, kind)
    else:
        assert read({}, kind) == kind()


# The axes


def test_an_encoders_name_is_read_and_written_in_one_way() -> None:
    for text, name in {"clip": EncoderName("clip"), "clip:tiny": EncoderName("clip", "tiny")}.items():
        assert EncoderName.parse(text) == name
        assert str(name) == text
    assert EncoderName.parse("clip:a:b") == EncoderName("clip", "a:b")


def test_axes_have_a_key_values_as_text_and_match_in_any_case_whatever_the_variant() -> None:
    one = Axes("VBPR", "demo", EncoderName("clip", "tiny"), "ft", ("image", "text"), "shuffled")
    assert one.key == "VBPR/demo/clip:tiny/ft/image+text/shuffled"
    assert [one.value(axis) for axis in AXES] == ["VBPR", "demo", "clip:tiny", "ft", "image+text", "shuffled", None]
    split = dataclasses.replace(one, split="global-time")
    assert (split.key, one.tested_on, split.tested_on) == (f"{one.key}/global-time", "demo", "demo/global-time")
    assert "split" not in plain(one)
    assert decode(Axes, plain(split), where="here", cure="") == split
    assert Axes("BPR", "demo", modalities=()).key == "BPR/demo/-/pt/-"
    assert one.matches({"model": "vbpr", "encoder": "CLIP", "modalities": "image+text"})
    assert one.matches({"encoder": "clip:TINY"})
    assert not one.matches({"encoder": "clip:base"})
    assert not one.matches({"control": None})
    assert Axes("BPR", "demo").matches({"encoder": None, "control": None})


# The record of a run

RECORD = dataclasses.replace(
    UNRECORDED,
    axes=Axes("VBPR", "toy", EncoderName("clip"), "ft", ("image", "text")),
    seed=3,
    features={"image": "f"},
    files={"data": {"toy.inter": "h"}},
    resolved={"model": "VBPR"},
    seconds=RunSeconds(load=1.0, encoder=2.0, train=3.0),
    processes=2,
    chance=ChanceBySplit("recall@20", Chance(0.1, 0.01, 0.001), Chance(0.2, 0.01, 0.001)),
    record_version=1,
    reports={"ft": {"best_epoch": 2}},
)


def test_a_record_is_flat_and_comes_back_with_the_reports_of_paradigms_that_nobody_knows() -> None:
    content = json.loads(json.dumps(plain(RECORD)))
    assert list(content)[:7] == ["model", "dataset", "encoder", "paradigm", "modalities", "control", "seed"]
    assert (content["encoder"], content["ft"]) == ("clip", {"best_epoch": 2})
    assert read(content, RunRecord) == RECORD


def test_an_earlier_record_is_read_with_the_defaults_of_what_it_does_not_say() -> None:
    content = plain(RECORD)
    for name in ("files", "resolved", "processes", "chance", "record_version", "ft"):
        del content[name]
    for name in ("tune", "encoder"):
        content["seconds"].pop(name)
    found = read(content, RunRecord)
    assert (found.files, found.resolved, found.processes, found.chance) == ({}, None, 1, None)
    assert (found.record_version, found.reports) == (0, {})
    assert (found.seconds.tune, found.seconds.encoder, found.seconds.train) == (0.0, None, 3.0)
    assert plain(found).keys() == content.keys() | {"files", "processes", "record_version"}


def test_a_record_is_still_a_mapping_for_observers_of_the_version_before_and_says_what_to_read_instead() -> None:
    with pytest.warns(DeprecationWarning, match=r"RunResult\.record\['seed'\]: .* try RunResult\.record\.seed"):
        assert RECORD["seed"] == 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        assert dict(RECORD) == plain(RECORD)
        assert RECORD["seconds"]["train"] == 3.0
        assert RECORD["ft"]["best_epoch"] == 2
        assert RECORD.get("nothing") is None
