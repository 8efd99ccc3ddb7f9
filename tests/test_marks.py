"""Marks: which runs' numbers may say more of their budget than of their model."""

import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrec_lmm.cache import write_json
from mmrec_lmm.running.marks import FIRST, LAST, UNTRAINED, marks, marks_of
from mmrec_lmm.running.run_folder import CONFIG
from mmrec_lmm.types import UNRECORDED, Chance, ChanceBySplit, RunResult


def result(
    folder: Path,
    best: int,
    done: int,
    stopped: str,
    *,
    epochs: int = 100,
    eval_step: int = 1,
    chance: ChanceBySplit | None = None,
) -> RunResult:
    write_json(folder / CONFIG, {"settings": {"epochs": epochs, "eval_step": eval_step}})
    return RunResult("r", folder, {}, {}, {}, best, done, stopped, replace(UNRECORDED, chance=chance))


@pytest.mark.parametrize(
    ("best", "done", "stopped", "epochs", "eval_step", "expected"),
    [
        (10, 31, "patience", 100, 1, ()),
        (0, 21, "patience", 100, 1, (FIRST,)),
        (1, 21, "patience", 100, 1, ()),
        (4, 105, "patience", 1000, 5, (FIRST,)),
        (9, 105, "patience", 1000, 5, ()),
        (99, 100, "epochs", 100, 1, (LAST,)),
        (98, 100, "epochs", 100, 1, ()),
        (9, 10, "epochs", 10, 4, (LAST,)),  # evaluated at 3, 7 and, the budget over, 9
        (7, 10, "epochs", 10, 4, ()),
        (3, 10, "epochs", 10, 4, (FIRST,)),
        (0, 1, "epochs", 1, 1, (LAST,)),  # the only one: it has only just begun
        (2, 3, "epochs", 3, 5, (LAST,)),
        (0, 3, "diverged", 100, 1, (FIRST,)),
        (0, 1, "diverged", 100, 1, ()),  # nothing but the first was evaluated
        (0, 0, "untrained", 0, 1, (UNTRAINED,)),
    ],
)
def test_the_best_epoch_marks_a_run_at_either_end(
    best: int, done: int, stopped: str, epochs: int, eval_step: int, expected: tuple[str, ...], tmp_path: Path
) -> None:
    assert marks(result(tmp_path, best, done, stopped, epochs=epochs, eval_step=eval_step)) == expected


def chance(valid: float, test: float) -> ChanceBySplit:
    """Scores in deviations above the mean of random rankings."""
    return ChanceBySplit("recall@20", *(Chance(0.02 + z * 0.001, 0.02, 0.001) for z in (valid, test)))


@pytest.mark.parametrize(
    ("valid", "test", "expected"),
    [
        (9, 9, ()),
        (2.9, 9, ("recall@20 at chance on validation",)),
        (9, 2.9, ("recall@20 at chance on test",)),
        (-5, 0, ("recall@20 at chance on validation and test",)),
        (3.1, 3.1, ()),
    ],
)
def test_a_score_within_three_deviations_of_chance_is_marked(
    valid: float, test: float, expected: tuple[str, ...], tmp_path: Path
) -> None:
    assert marks(result(tmp_path, 10, 31, "patience", chance=chance(valid, test))) == expected


def test_a_run_can_have_several_marks_and_an_earlier_one_says_nothing_of_chance(tmp_path: Path) -> None:
    assert marks(result(tmp_path, 0, 21, "patience", chance=chance(0, 0))) == (
        FIRST, "recall@20 at chance on validation and test",
    )  # fmt: skip
    assert marks(result(tmp_path, 10, 31, "patience")) == ()


def test_a_row_says_how_many_of_its_seeds_share_a_mark(tmp_path: Path) -> None:
    first, good = (result(tmp_path / str(best), best, 31, "patience") for best in (0, 10))
    assert marks_of([first, good, first]) == (f"{FIRST} (2 of 3 seeds)",)
    assert marks_of([first, first]) == (FIRST,)
    assert marks_of([good]) == marks_of([]) == ()


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 60))
def test_exactly_the_first_and_the_last_of_a_whole_budget_are_marked(epochs: int, every: int, pick: int) -> None:
    evaluated = sorted({*range(every - 1, epochs, every), epochs - 1})
    best = evaluated[pick % len(evaluated)]
    with tempfile.TemporaryDirectory() as folder:
        found = marks(result(Path(folder), best, epochs, "epochs", epochs=epochs, eval_step=every))
    assert bool(found) == (best in (evaluated[0], evaluated[-1]))


def test_a_run_without_most_of_a_modality_is_marked_unless_it_is_to_have_none(tmp_path: Path) -> None:
    most = result(tmp_path, 5, 31, "patience")
    scarce = replace(most, record=replace(UNRECORDED, present={"image": 4, "text": 5}, n_items=10))
    assert marks(scarce) == ("most items lack image: 4 of 10 have it",)
    none = replace(scarce.record, axes=replace(UNRECORDED.axes, control="none"))
    assert marks(replace(scarce, record=none)) == ()
    assert marks(replace(scarce, record=replace(scarce.record, n_items=0))) == ()
