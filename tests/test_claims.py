"""Claims counted on small studies whose every cell is known, and costs from records that say what they are."""

import dataclasses
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers import axes_of
from scipy import stats

from mmrec_lmm.disk.writing import write_json
from mmrec_lmm.errors import ConfigError
from mmrec_lmm.evaluation.statistics import holm
from mmrec_lmm.report import paper
from mmrec_lmm.report.tables import render
from mmrec_lmm.running import run_folder
from mmrec_lmm.studies import costs
from mmrec_lmm.studies.claims import OWN, Verdict, claims_of, count
from mmrec_lmm.studies.comparison import Entry, Method, compare
from mmrec_lmm.studies.costs import cost_of
from mmrec_lmm.studies.leaderboard import (
    PARTIAL,
    Claim,
    Interval,
    Leaderboard,
    Measured,
    Row,
    Score,
    from_document,
)
from mmrec_lmm.types import UNRECORDED, Axes, EncoderCost, EncoderName, RunRecord, RunResult, RunSeconds

BOTH, IMAGE, TEXT = ("image", "text"), ("image",), ("text",)
USERS = 40


def row(**more: Any) -> Row:
    places = {"model": "VBPR", "dataset": "toys", "encoder": "a", "modalities": BOTH}
    axes, more = axes_of(**places | more)
    return Row(axes, **{"scores": {"recall@20": Score(0.1, Interval(0.1, None, None), (0.1,))}, **more})


def asked(*rows: Row, baseline: Mapping[str, str] | None = None, streams: Mapping[str, str] | None = None) -> Any:
    """Axis, better, than, encoder -> the number of pairs."""
    found = claims_of(rows, baseline=baseline or {}, streams=streams or {})
    return {(one.axis, one.better, one.than, one.within): len(one.pairs) for one in found}


# Which claims there are


def test_two_rows_are_a_pair_only_if_one_axis_alone_differs() -> None:
    rows = [row(), row(encoder="b"), row(encoder="b", model="BPR"), row(encoder="c", dataset="tools"), row(split="x")]
    assert asked(*rows) == {("encoder", "b", "a", ""): 1}
    assert asked(row(), row(encoder="b", paradigm="ft")) == {}


def test_rows_that_are_not_finished_and_control_runs_make_no_pairs_of_encoders() -> None:
    assert asked(row(), row(encoder="b", state=PARTIAL)) == {}
    assert asked(row(control="shuffled"), row(encoder="b", control="shuffled")) == {}


def test_the_encoder_of_the_baseline_is_what_others_are_claimed_to_beat_each_and_all() -> None:
    rows = [row(encoder=name) for name in ("x", "y", "cnn:lite")]
    assert asked(*rows, baseline={"encoder": "cnn"}) == {
        ("encoder", "any other", "cnn:lite", ""): 2,
        ("encoder", "x", "cnn:lite", ""): 1,
        ("encoder", "y", "cnn:lite", ""): 1,
        ("encoder", "y", "x", ""): 1,
    }
    assert ("encoder", "any other", "x", "") not in asked(*rows)


def test_dual_stream_encoders_are_compared_with_unified_ones_whatever_their_variants() -> None:
    rows = [row(encoder=name) for name in ("clip", "clip:tiny", "vlmo", "basic")]
    found = asked(*rows, streams={"clip": "dual", "vlmo": "unified"})
    assert found["encoder", "dual-stream", "unified", ""] == 2


def test_paradigms_are_compared_from_the_pre_trained_one_on_and_within_each_encoder() -> None:
    rows = [row(encoder=name, paradigm=paradigm) for name in ("a", "b") for paradigm in ("ete", "pt")]
    found = {key: pairs for key, pairs in asked(*rows, row(paradigm="ft")).items() if key[0] == "paradigm"}
    assert found == {
        ("paradigm", "ete", "pt", ""): 2,
        ("paradigm", "ete", "pt", "a"): 1,
        ("paradigm", "ete", "pt", "b"): 1,
        ("paradigm", "ft", "pt", ""): 1,
        ("paradigm", "ft", "ete", ""): 1,
    }


def test_both_modalities_are_claimed_to_beat_either_and_each() -> None:
    assert asked(*(row(modalities=has) for has in (BOTH, TEXT, IMAGE))) == {
        ("modalities", "image+text", "either alone", ""): 2,
        ("modalities", "image", "text", ""): 1,
        ("modalities", "image+text", "text", ""): 1,
        ("modalities", "image+text", "image", ""): 1,
    }


def test_own_features_are_compared_with_each_control_of_the_row() -> None:
    none, shuffled = row(encoder=None, control="none"), row(control="shuffled", state=PARTIAL)
    own = row(twins={"none": none.key, "shuffled": shuffled.key})
    assert asked(own, none, shuffled) == {("control", OWN, "none", ""): 1}, "the other isn't finished"


# How they are counted


def test_a_pair_counts_from_the_side_of_the_claim_whichever_way_it_was_compared() -> None:
    (claim,) = claims_of([row(encoder="b"), row()], baseline={"encoder": "b"}, streams={})
    ((better, than),) = claim.pairs
    cells = {"recall@20": Verdict(1, True, True, False), "ndcg@20": Verdict(-1, True, True, True)}
    counted = count(claim, {(than, better): {**cells, "map@20": Verdict(0, False, False, False)}})
    assert counted == Claim("encoder", "a", "b", 1, 3, 1, 1, 1, 1, 2, 1)


@pytest.fixture
def study(tmp_path: Path) -> Any:
    """`study({"a": values, ...}, **options)`: the leaderboard of VBPR with each encoder, whose runs have `values`
    (S, U); by `encoder/paradigm` if the name has one."""

    def study(entries: Mapping[str, Any], **options: Any) -> Leaderboard:
        made = []
        for name, values in entries.items():
            encoder, _, paradigm = name.partition("/")
            axes = Axes("VBPR", "demo", EncoderName(encoder), paradigm or "pt", BOTH)
            runs = []
            for seed, per_user in enumerate(np.atleast_2d(np.asarray(values, float)), start=1):
                folder = tmp_path / f"{encoder}-{paradigm}-{seed}"
                folder.mkdir()
                run_folder.save_per_user(folder, {"test": {"users": np.arange(len(per_user)), "recall@20": per_user}})
                settings = {"seed": seed, "valid_metric": "Recall@20", "epochs": 100, "eval_step": 1}
                write_json(folder / run_folder.CONFIG, {"settings": settings})
                record = dataclasses.replace(UNRECORDED, seed=seed, axes=axes)
                runs.append(RunResult(folder.name, folder, {}, {}, {}, 10, 31, "patience", record))
            made.append(Entry(axes, runs=runs))
        return compare(made, Method(metrics=["Recall@20"], **options), study="small")

    return study


def counts(board: Leaderboard) -> dict[tuple[str, str], tuple[int, ...]]:
    """Better, than -> cells, won, starred, lost, starred, testable."""
    return {
        (one.better, one.than): (one.cells, one.won, one.won_starred, one.lost, one.lost_starred, one.testable)
        for one in board.claims
    }


def noise(seed: int, seeds: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).random((seeds, USERS)) / 100


def test_cells_are_better_worse_or_equal_and_starred_both_ways(study: Any) -> None:
    base = noise(0)
    board = study({"a": base, "b": base + 0.5 + noise(1), "c": base})
    assert board.claim_comparisons == 3
    assert counts(board) == {
        ("b", "a"): (1, 1, 1, 0, 0, 1),
        ("c", "a"): (1, 0, 0, 0, 0, 1),
        ("c", "b"): (1, 0, 0, 1, 1, 1),
    }


@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_than_three_seeds_are_counted_but_never_starred(study: Any, seeds: int) -> None:
    base = noise(0, seeds)
    board = study({"a": base, "b": base + 0.5 + noise(1, seeds)})
    assert counts(board) == {("b", "a"): (1, 1, 0, 0, 0, 0)}
    assert board.claim_comparisons == (0 if seeds == 1 else 1)
    text = render(board, layout="claims")
    assert text.count("– (a)") == 2, "neither of the two counts of stars"
    assert "(a) no star is possible: it needs three seeds on both sides; with one seed some star would be false" in text
    assert ("Nothing was tested" in text) == (seeds == 1)


def test_p_of_all_pairs_is_corrected_together_by_holm(study: Any) -> None:
    """Ten users, all seeds alike, `t-test-users`: each p is scipy's, and the largest that is starred is Holm's."""
    users = np.arange(10.0)
    rows = {"a": 0 * users, "b": 0.2 + 0.1 * (users % 3), "c": 0.05 + 0.2 * (users % 2) - 0.05 * (users % 3)}
    board = study({name: np.stack([values] * 3) for name, values in rows.items()}, test="t-test-users")
    pairs = [("b", "a"), ("c", "a"), ("c", "b")]
    p = [stats.ttest_rel(rows[one], rows[other]).pvalue for one, other in pairs]
    starred = dict(zip(pairs, holm(np.array(p)) < 0.05, strict=True))
    assert sum(starred.values()) > 0
    found = {(one.better, one.than): one.won_starred + one.lost_starred == 1 for one in board.claims}
    assert found == starred


def test_a_dual_claim_uses_the_comparison_that_the_pair_of_encoders_has(study: Any) -> None:
    board = study({"clip": noise(0) + 0.5, "vlmo": noise(1)}, streams={"clip": "dual", "vlmo": "unified"})
    assert board.claim_comparisons == 1
    assert counts(board) == {("dual-stream", "unified"): (1, 1, 1, 0, 0, 1), ("vlmo", "clip"): (1, 0, 0, 1, 1, 1)}


def test_one_encoder_gets_no_line_of_its_own_and_several_do(study: Any) -> None:
    rows = {"a": noise(0), "a/ft": noise(1) + 0.5, "b": noise(2), "b/ft": noise(3) - 0.5}
    board = study(rows)
    ft = {one.encoder: (one.cells, one.won, one.lost) for one in board.claims if one.axis == "paradigm"}
    assert ft == {"": (2, 1, 1), "a": (1, 1, 0), "b": (1, 0, 1)}


def test_claims_survive_the_file_and_an_earlier_file_has_none(study: Any) -> None:
    board = study({"a": noise(0), "b": noise(1)})
    assert from_document(json.loads(json.dumps(board.document()))).claims == board.claims
    document = board.document()
    del document["claims"], document["claim_comparisons"]
    for each in document["rows"]:
        del each["cost"]
    earlier = from_document(document)
    assert (earlier.claims, earlier.rows[0].cost) == ((), {})
    with pytest.raises(ConfigError, match="try --layout plain, or `study table` if this leaderboard is an earlier"):
        render(earlier, layout="claims")
    with pytest.raises(ConfigError, match="--layout efficiency: expected finished rows with their cost, got none"):
        render(earlier, layout="efficiency")


# Their table


def claimed(*claims: Claim, **more: Any) -> Leaderboard:
    given = {"study": "s", "title": "Toys", "metrics": ("recall@20",), "claim_comparisons": 24, "rows": [row()]}
    return Leaderboard(**{**given, "claims": claims, **more})


def test_the_papers_own_count_stands_beside_ours() -> None:
    board = claimed(
        Claim("encoder", "any other", "cnn_sbert", 10, 20, 15, 9, 4, 1, 20),
        Claim("paradigm", "ete", "ft", 10, 20, 15, 9, 4, 1, 12, marked=3, encoder="clip"),
    )
    (first, second) = [line for line in render(board, layout="claims").splitlines() if line.startswith("| ")][2:]
    assert [cell.strip() for cell in first.strip("|").split("|")][1:] == [
        "all", "20", "15 (75 %)", "9", "4 (20 %)", "1", "84 of 120 (70 %)",
    ]  # fmt: skip
    assert [cell.strip() for cell in second.strip("|").split("|")][1:] == [
        "clip", "20", "15 (75 %)†", "9† (a)", "4 (20 %)†", "1† (a)", "49 of 60 (81.7 %)",
    ]  # fmt: skip
    assert "12 of the 20 cells have three seeds on both sides" in render(board, layout="claims")
    assert paper.count_of(Claim("encoder", "clip", "basic", 1, 1, 1, 0, 0, 0, 0)) is None


def test_in_csv_each_claim_has_all_its_numbers_and_no_star_where_none_is_possible() -> None:
    board = claimed(
        Claim("encoder", "any other", "cnn_sbert", 10, 20, 15, 9, 4, 1, 20),
        Claim("control", OWN, "none", 1, 2, 1, 0, 1, 0, 0, 2),
    )
    table = pd.read_csv(io.StringIO(render(board, layout="claims", format="csv")))
    assert table.loc[0, ["cells", "won", "won_starred", "lost", "lost_starred"]].tolist() == [20, 15, 9, 4, 1]
    assert table.loc[0, ["paper_won", "paper_cells", "comparisons"]].tolist() == [84, 120, 24]
    assert table.loc[1, ["won_starred", "lost_starred", "paper_won"]].isna().all()
    assert table.marked.tolist() == [0, 2]


# Costs


def result(*, epochs: int = 10, **record: Any) -> RunResult:
    axes = Axes("VBPR", "demo", EncoderName("clip"), record.pop("paradigm", "pt"), BOTH)
    given = {"axes": axes, "seconds": RunSeconds(encode=5.0, train=30.0), "peak_memory_bytes": 7}
    made: RunRecord = dataclasses.replace(UNRECORDED, **{**given, **record})
    return RunResult("run", Path("run"), {}, {}, {}, 1, epochs, "patience", made)


def test_costs_are_medians_over_seeds() -> None:
    runs = [
        result(epochs=epochs, parameters=9, parameters_trained=8, peak_memory_bytes=peak,
               seconds=RunSeconds(encode=5.0, train=train), encoder_cost=EncoderCost(4.0, 0.0, 60, 0))
        for train, epochs, peak in ((30.0, 10, 100), (80.0, 20, 900), (10.0, 1, 300))
    ]  # fmt: skip
    assert cost_of(runs) == {
        "encode": Measured(4.0), "tune": Measured(0.0), "epoch": Measured(4.0), "train": Measured(30.0),
        "parameters": Measured(9), "parameters_trained": Measured(8), "encoder_parameters": Measured(60),
        "encoder_parameters_trained": Measured(0), "memory": Measured(300),
    }  # fmt: skip


def test_a_joint_epoch_has_its_seconds_by_part_and_other_rows_have_none() -> None:
    parts = [{"recommender": 1.0, "loading": 0.5, "forward": forward, "backward": 4.0} for forward in (2.0, 3.0, 9.0)]
    joint = [EncoderCost(4.0, 0.0, 60, 60, {**seconds}, 2**20) for seconds in parts]
    found = cost_of([result(paradigm="ete", encoder_cost=cost) for cost in joint])
    assert {name: found[name].value for name in (*costs.PARTS, "cached")} == {
        "recommender": 1.0, "loading": 0.5, "forward": 3.0, "backward": 4.0, "refresh": 0.0, "evaluation": 0.0,
        "cached": 2**20,
    }  # fmt: skip
    assert not {*costs.PARTS, "cached"} & cost_of([result(encoder_cost=EncoderCost(4.0, 0.0, 60, 0))]).keys()


def test_columns_of_joint_epochs_appear_where_a_row_has_them_in_each_format() -> None:
    own = {"epoch": Measured(9.0)}
    parts = {part: Measured(1.25) for part in costs.PARTS}
    pt, ete = row(cost=own), row(encoder="b", cost={**own, **parts, "cached": Measured(3 * 2**20)})
    alone, both = (Leaderboard("s", "Toys", ("recall@20",), rows) for rows in ([pt], [pt, ete]))
    for format in ("markdown", "csv", "latex", "html"):
        assert "backward" not in render(alone, layout="efficiency", format=format)
        assert "backward" in render(both, layout="efficiency", format=format)
    text = render(both, layout="efficiency")
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "| " in line]
    assert lines[0][-7:] == [*costs.PARTS, "cached"]
    assert lines[3][-7:] == [*["1.25"] * 6, "3 MiB"]
    assert len({*lines[2][-7:]}) == 1, "a dash with one footnote"
    assert costs.NOT_JOINT in text
    table = pd.read_csv(io.StringIO(render(both, layout="efficiency", format="csv")))
    assert table.cached.tolist()[1] == 3 * 2**20
    assert table.loading.isna().tolist() == [True, False]


def test_what_another_run_made_is_noted_unless_a_seed_made_it_itself() -> None:
    cost = EncoderCost(4.0, 20.0, 60, 50)
    made = result(seconds=RunSeconds(encode=4.1, tune=20.2, train=1.0), encoder_cost=cost)
    took = result(seconds=RunSeconds(encode=0.1, tune=0.2, train=1.0), encoder_cost=cost)
    assert cost_of([took, made])["encode"] == Measured(4.0)
    assert cost_of([took, took])["encode"] == Measured(4.0, costs.CACHED)
    assert cost_of([took, took])["tune"] == Measured(20.0, costs.CACHED)


def test_what_was_not_measured_says_why() -> None:
    unknown = cost_of([result(encoder_cost=EncoderCost(None, 0.0, None, None), parameters=9)])
    assert (unknown["encode"], unknown["encoder_parameters"]) == (
        Measured(None, costs.NO_TIME), Measured(None, costs.NO_COUNT),
    )  # fmt: skip
    assert unknown["encoder_parameters_trained"] == Measured(None, costs.NOT_REPORTED)
    assert cost_of([result(parameters=9)])["encode"] == Measured(None, costs.FROM_FILES)
    ids = dataclasses.replace(result().record.axes, encoder=None)
    assert cost_of([result(axes=ids)])["tune"] == Measured(None, costs.NO_ENCODER)
    assert cost_of([result(epochs=0)])["epoch"] == Measured(None, costs.UNMEASURED)


def test_the_record_of_an_earlier_version_gives_what_it_has() -> None:
    earlier = cost_of([result(seconds=RunSeconds(encode=0.1, encoder=3.0, train=30.0))])
    assert earlier["encode"] == Measured(3.0, costs.CACHED)
    assert earlier["parameters"] == Measured(None, costs.EARLIER)
    assert cost_of([result(paradigm="ft")])["tune"] == Measured(None, costs.EARLIER)


def test_the_layout_efficiency_has_a_line_for_each_row_in_each_format() -> None:
    cost = {
        "encode": Measured(4.05, costs.CACHED), "tune": Measured(0.0), "epoch": Measured(0.1234),
        "train": Measured(1234.5), "parameters": Measured(149_620_737), "parameters_trained": Measured(2_400_000),
        "encoder_parameters": Measured(None, costs.NO_COUNT), "encoder_parameters_trained": Measured(0),
        "memory": Measured(1.5 * 2**30),
    }  # fmt: skip
    failed = row(encoder="b", state="failed", reason="no memory")
    board = Leaderboard("s", "Toys", ("recall@20",), [row(cost=cost, seeds=(1, 2, 3)), failed])
    text = render(board, layout="efficiency")
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "| " in line]
    assert lines[2][-9:] == [
        "4.05 (a)", "0", "0.123", "1,234", "2.40 M", "150 M", "0", "– (b)", "1.50 GiB",
    ]  # fmt: skip
    assert lines[3][-9:] == ["– (c)"] * 9
    assert f"(a) {costs.CACHED}" in text
    assert "(c) failed: no memory" in text
    table = pd.read_csv(io.StringIO(render(board, layout="efficiency", format="csv")), keep_default_na=False)
    assert table.encode_note.tolist() == [costs.CACHED, ""]
    assert table.train.tolist() == ["1234.5", ""]
    assert r"2.40 M & 150 M" in render(board, layout="efficiency", format="latex")
    assert "<td>1.50 GiB</td>" in render(board, layout="efficiency", format="html")
