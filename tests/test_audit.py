"""The audit of files that users bring: planted leaks are flagged, honest files aren't, unfair splits aren't judged."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import call
from scipy import sparse

from benchmarks.audit import HONEST, LEAKS, UNSEEN, World, audited, mean_content, world
from mmrec_lmm.checking.audit import PERMUTATIONS, Pairs, _Circles, audit_file, pair_scores
from mmrec_lmm.data.splitting import TEST, TRAIN, VALID

FEW = 999  # permutations that still can flag


def small(labels: list[int], users: list[int], items: list[int]) -> Pairs:
    return Pairs.from_rows(np.array(users), np.array(items), np.array(labels), max(users) + 1, max(items) + 1)


def test_pairs_are_distinct_sorted_by_user_and_in_one_split() -> None:
    pairs = small([TEST, TRAIN, TRAIN, TRAIN, VALID], [1, 0, 0, 1, 1], [2, 1, 1, 2, 0])
    assert (pairs.users.tolist(), pairs.items.tolist(), pairs.labels.tolist()) == ([0, 1], [1, 0], [TRAIN, VALID])


def test_a_pairs_score_is_the_mean_closeness_to_the_users_other_items() -> None:
    pairs = small([TRAIN] * 4, [0, 0, 0, 1], [0, 1, 2, 0])
    values = np.array([[1.0, 0], [1, 0], [-1, 0], [-1, 0]])  # of mean zero
    scores = pair_scores("item", values, pairs)
    assert scores[:3].tolist() == [0.0, 0.0, -1.0]
    assert np.isnan(scores[3]), "the user has no other item"
    values[1] = 0  # absent
    assert np.isnan(pair_scores("item", values, pairs)[[1, 3]]).all()


def test_a_graphs_score_is_the_mean_weight_of_links_in_both_directions() -> None:
    pairs = small([TRAIN] * 3, [0, 0, 0], [0, 1, 2])
    graph = sparse.csr_array(np.array([[5.0, 1, 0], [0, 0, 0], [3, 0, 0]]))
    assert pair_scores("item", graph, pairs).tolist() == [2.0, 0.5, 1.5]
    weights = sparse.csr_array(np.array([[0.0, 4, 2]]))
    assert pair_scores("both", weights, pairs).tolist() == [0.0, 4.0, 2.0]


def test_profiles_are_compared_as_features_with_users_and_items_exchanged() -> None:
    made = world(0)
    profiles = mean_content(made.rows(TRAIN), made.content)
    mirrored = Pairs.from_rows(
        made.pairs.items, made.pairs.users, made.pairs.labels, made.pairs.n_items, made.pairs.n_users
    )
    place = np.lexsort((mirrored.users, mirrored.items))
    ours, theirs = pair_scores("user", profiles, made.pairs), pair_scores("item", profiles, mirrored)[place]
    assert np.allclose(ours, theirs, equal_nan=True)


def test_blocks_change_no_score(monkeypatch: pytest.MonkeyPatch) -> None:
    made = world(1)
    files = [HONEST["content"](made), HONEST["graph of content"](made)]
    whole = [pair_scores(side, matrix, made.pairs) for side, matrix in files]
    monkeypatch.setattr("mmrec_lmm.checking.audit._BLOCK_BYTES", 40_000)
    for (side, matrix), scores in zip(files, whole, strict=True):
        assert np.allclose(pair_scores(side, matrix, made.pairs), scores, equal_nan=True)


def test_the_sum_of_a_turn_is_that_of_the_pairs_it_labels() -> None:
    made, rng = world(4), np.random.default_rng(0)
    known = np.ones(len(made.pairs.users), bool)
    circles = _Circles.between(TEST, TRAIN, made.pairs, known, rng)
    assert (made.pairs.labels[circles.pairs[circles.members(circles.starts)]] == TEST).all()
    values = rng.standard_normal((len(circles.pairs), 1))
    sums = circles.sums(values)
    for begins in next(circles.turns(5, rng)):
        members = circles.members(begins)
        assert len(set(members)) == circles.counts.sum()
        assert np.isclose(sums[begins].sum(), values[members].sum())
        users = made.pairs.users[circles.pairs[members]]
        assert (np.bincount(users)[np.bincount(users) > 0] == circles.counts).all()


def test_p_is_even_where_nothing_is_known_as_an_exact_test_must_be() -> None:
    made, rng = world(2), np.random.default_rng(0)
    least = []
    for seed in range(40):
        found = audit_file(
            "noise", "item", rng.standard_normal((made.pairs.n_items, 2)), made.pairs, permutations=39, seed=seed
        )
        least += [test.p for test in found.tests]
    assert len(least) == 200
    assert 0.4 < np.mean(least) < 0.6
    assert np.mean(np.array(least) <= 0.1) < 0.2


@pytest.mark.parametrize("name", ["a column of test counts", "profiles of training and test"])
def test_a_leak_is_flagged_and_named(name: str) -> None:
    assert "test" in audited(LEAKS[name], 0, FEW).leak


@pytest.mark.parametrize("name", ["content", "graph of training"])
def test_an_honest_file_is_not_flagged(name: str) -> None:
    assert not audited(HONEST[name], 0, FEW).leak


@pytest.mark.slow
def test_ten_leaks_are_flagged_and_honest_files_hardly_ever() -> None:
    assert len(LEAKS) == 10
    assert [name for name, make in LEAKS.items() if not audited(make, 1, PERMUTATIONS).leak] == []
    alarms = [name for name, make in HONEST.items() for seed in range(3) if audited(make, seed, FEW).leak]
    assert len(alarms) <= 1, "21 honest files at a chance of 1 %"


def test_what_the_audit_can_not_see_is_not_flagged() -> None:
    [make] = UNSEEN.values()
    assert not audited(make, 0, FEW).leak


# The command


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A world whose data set is data/small in the working folder."""
    monkeypatch.chdir(tmp_path)
    found = world(3)
    folder = Path("data/small")
    folder.mkdir(parents=True)
    pairs = found.pairs
    used, items = np.unique(pairs.items, return_inverse=True)
    table = pd.DataFrame({"userID": pairs.users, "itemID": items, "x_label": pairs.labels})
    table["timestamp"] = np.random.default_rng(0).permutation(len(table))
    table.to_csv(folder / "small.inter", sep="\t", index=False)
    np.save(folder / "text_feat.npy", found.content[used])
    return World(Pairs(pairs.users, items, pairs.labels, pairs.n_users, len(used)), found.content[used])


def test_the_command_passes_honest_files_and_refuses_leaks_by_name(made: World) -> None:
    honest = call("data", "audit", "-d", "small", "--permutations", FEW)
    assert honest.code == 0, honest.err
    assert "text: data/small/text_feat.npy" in honest.out
    assert "nothing shows: p = " in honest.out

    np.save("users.npy", mean_content(made.rows(TEST), made.content))
    both = sparse.csr_array(made.rows(TRAIN))
    sparse.save_npz("links.npz", sparse.block_array([[None, both], [both.T, None]], format="csr"))
    leaky = call(
        "data", "audit", "-d", "small", "--profiles", "users.npy", "--graph", "links.npz", "--permutations", FEW
    )
    assert leaky.code == 4
    assert "users.npy: expected a file that knows training rows alone, got one that knows test (p = " in leaky.err
    assert "links.npz" in leaky.out
    assert "text_feat" not in leaky.out
    document = json.loads(
        call("data", "audit", "-d", "small", "--profiles", "users.npy", "--permutations", FEW, "--format", "json").out
    )
    assert document["files"][0]["leak"] == "test"
    assert document["pairs"]["training"] == int((made.pairs.labels == TRAIN).sum())


def test_a_split_that_follows_time_or_popularity_is_not_judged(made: World) -> None:
    path = Path("data/small/small.inter")
    table = pd.read_csv(path, sep="\t")
    by_time = call("data", "audit", "-d", "small", "--split", "user-time", "--permutations", FEW)
    assert by_time.code == 4
    assert "the split is drawn by the rule user-time, so parts differ without any leak" in by_time.err
    table["timestamp"] += len(table) * (table.x_label == TEST)
    table.to_csv(path, sep="\t", index=False)
    answer = call("data", "audit", "-d", "small", "--permutations", FEW)
    assert answer.code == 4
    assert "not judged: items of test are more recent than the same users' of training" in answer.out
    assert answer.err.rstrip().endswith("; try --split ratio")
    table["timestamp"] = 0
    table.to_csv(path, sep="\t", index=False)
    assert call("data", "audit", "-d", "small", "--permutations", FEW).code == 0


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        (("--graph", "none.npz"), "none.npz: "),
        (("--graph", "bad.npz"), "bad.npz: expected a graph as scipy.sparse.save_npz writes it, got "),
        (("--graph", "cut.npz"), "cut.npz: expected a graph as scipy.sparse.save_npz writes it, got "),
        (
            ("--graph", "locked.npz"),
            "locked.npz: expected a graph as scipy.sparse.save_npz writes it, got File 'format",
        ),
        (
            ("--graph", "arrays.npz"),
            "arrays.npz: expected a graph as scipy.sparse.save_npz writes it, got an archive of x",
        ),
        (("--graph", "shape.npz"), "shape.npz: expected a graph of "),
        (
            ("--profiles", "few.npy"),
            "few.npy: expected numbers of shape (300, width), row u for user u, got float64 of",
        ),
        (("--profiles", "nan.npy"), "nan.npy: expected finite numbers, got NaN or infinity"),
        (("--features", "text=few.npy"), "few.npy: expected "),
        (("--permutations", "10"), "--permutations: expected 999 or more, "),
    ],
)
def test_a_file_that_can_not_be_audited_is_refused_by_name(made: World, flag: tuple[str, str], message: str) -> None:
    Path("bad.npz").write_bytes(b"not an archive")
    sparse.save_npz("shape.npz", sparse.csr_array(np.eye(3)))
    Path("cut.npz").write_bytes(Path("shape.npz").read_bytes()[:-40])
    locked = Path("shape.npz").read_bytes()
    for head, at in ((b"PK\3\4", 6), (b"PK\1\2", 8)):  # the flag of an encrypted file
        parts = locked.split(head)
        locked = head.join([parts[0], *(part[: at - 4] + b"\1" + part[at - 3 :] for part in parts[1:])])
    Path("locked.npz").write_bytes(locked)
    np.savez("arrays.npz", x=np.eye(3))
    np.save("few.npy", np.eye(3))
    np.save("nan.npy", np.full((300, 2), np.nan))
    answer = call("data", "audit", "-d", "small", *flag)
    assert answer.code in (2, 4)
    assert message in answer.err
    assert answer.err.count("\n") <= 2


def test_without_a_file_there_is_nothing_to_audit(made: World) -> None:
    Path("data/small/text_feat.npy").unlink()
    answer = call("data", "audit", "-d", "small")
    assert answer.code == 2
    assert "data audit: expected files, got none, and small has no feature files; try --features" in answer.err
