"""The probes of features, beside values that are worked out by hand and beside their definitions, item by item."""

import json
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from helpers import Answer, call

from mmrec_lmm.checking import probes
from mmrec_lmm.checking.probes import (
    Agreement,
    Retrieval,
    Similarity,
    Skipped,
    cka,
    co_purchase_neighbors,
    feature_neighbors,
    feedback,
    image_text_recall,
    linear_cka,
    neighbor_agreement,
    probe,
)
from mmrec_lmm.types import FeatureTable, Interactions


def features(rows: object, modality: str = "image", absent: tuple[int, ...] = ()) -> FeatureTable:
    values = np.array(rows, dtype=np.float32)
    present = np.ones(len(values), dtype=bool)
    present[list(absent)] = False
    values[~present] = 0
    return FeatureTable(modality, values, present, "named")


def bought(*baskets: tuple[int, ...]) -> Interactions:
    """One user for each basket of items."""
    pairs = np.array([(user, item) for user, basket in enumerate(baskets) for item in basket])
    return Interactions(*pairs.T)


@pytest.fixture
def no_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Means without the bootstrap, which takes longest."""
    monkeypatch.setattr(probes, "mean_over_items", lambda values: probes.Estimate(float(np.mean(values)), 0.0, 1.0))


# Neighbors


def test_neighbors_by_co_purchase_are_counted_by_hand() -> None:
    train = bought((0, 1), (0, 1, 2), (2, 3), (2,), (4,))
    # C: 01 = 2, 02 = 12 = 1, 23 = 1; degrees 2, 2, 3, 1, 1. So 2 ranks 3 (1/sqrt 3) over 0 and 1 (1/sqrt 6, a tie)
    expected = [[1, 2, -1], [0, 2, -1], [3, 0, 1], [2, -1, -1], [-1, -1, -1]]
    assert co_purchase_neighbors(feedback(train, 5), 3).tolist() == expected


def test_a_repeated_training_row_counts_once() -> None:
    once, twice = bought((0, 1), (1, 2), (1, 2)), bought((0, 1, 0, 1, 0), (1, 2), (1, 2))
    for k in (1, 2):
        found = [co_purchase_neighbors(feedback(train, 3), k).tolist() for train in (once, twice)]
        assert found[0] == found[1]


def test_agreement_is_a_fraction_that_can_be_redone() -> None:
    # directions in degrees: 0 -> 0, 1 -> 10, 2 -> 30, 3 -> 90; so N_x with k = 1 is 1, 0, 1, 2
    angles = np.radians([0, 10, 30, 90])
    table = features(np.column_stack([np.cos(angles), np.sin(angles)]) * [[1], [7], [2], [0.5]])
    train = bought((0, 1), (0, 1), (2, 3), (1, 2))
    # N_c with k = 1: 0 -> 1; 1 -> 0 (2/sqrt 2 > 1/sqrt 2); 2 -> 3 (1/sqrt 1 > 1/sqrt 3); 3 -> 2
    found = neighbor_agreement(table, train, k=1)
    assert isinstance(found, Agreement)
    hits = [1, 1, 0, 1]
    assert found.recall.value == Fraction(sum(hits), 4)
    assert found.chance == pytest.approx(Fraction(1, 3))
    assert found.lift == pytest.approx(Fraction(9, 4))
    assert (found.items, found.left_out, found.k) == (4, 0, 1)
    # by popularity: 3 has one row, then 0 and 2 two, 1 three; the first part takes the odd item
    assert [(part.items, part.least, part.most, part.recall.value) for part in found.terciles] == [
        (2, 1, 2, 1.0),
        (1, 2, 2, 0.0),
        (1, 3, 3, 1.0),
    ]


def test_an_item_with_fewer_neighbors_than_k_is_measured_on_those() -> None:
    table = features([[1, 0], [1, 0.1], [0, 1], [0.1, 1]])
    found = neighbor_agreement(table, bought((0, 1), (1, 2), (3,)), k=2)
    assert isinstance(found, Agreement)
    # N_x: 0 -> {1, 3}, 1 -> {0, 3}, 2 -> {3, 1}; N_c: 0 -> {1}, 1 -> {0, 2}, 2 -> {1}; 3 has none
    assert found.recall.value == pytest.approx(Fraction(1, 3) * (1 + Fraction(1, 2) + 1))
    assert (found.items, found.left_out) == (3, 1)


def test_items_without_the_modality_are_nobodys_neighbors() -> None:
    table = features([[1, 0], [1, 0.1], [1, 0.2], [0, 1]], absent=(1,))
    found = neighbor_agreement(table, bought((0, 1), (0, 1), (0, 2)), k=1)
    assert isinstance(found, Agreement)
    assert (found.recall.value, found.items, found.left_out, found.chance) == (1.0, 2, 1, 0.5)


def naive_agreement(table: FeatureTable, train: Interactions, k: int) -> float:
    """By the definition, one item after the other."""
    items = np.flatnonzero(table.present)
    owners = [set(train.users[train.items == item]) for item in items]
    rows = table.values[items].astype(np.float64)
    recalls = []
    for i, mine in enumerate(owners):
        others = [j for j in range(len(items)) if j != i]
        shared = {j: len(mine & owners[j]) / np.sqrt(len(mine) * len(owners[j]) or 1) for j in others}
        cosine = {j: rows[i] @ rows[j] / np.linalg.norm(rows[i]) / np.linalg.norm(rows[j]) for j in others}
        bought_with = sorted((j for j in others if shared[j] > 0), key=lambda j: (-round(shared[j], 12), j))[:k]
        alike = sorted(others, key=lambda j: (-cosine[j], j))[:k]
        if bought_with:
            recalls.append(len({*bought_with} & {*alike}) / min(k, len(bought_with)))
    return float(np.mean(recalls))


@pytest.mark.parametrize("shift", [0, 300])
def test_it_is_the_definition_also_where_all_rows_are_nearly_alike(shift: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "_BLOCK_BYTES", 8 * 90 * 7)  # 7 items of 90 at once
    rng = np.random.default_rng(3)
    table = features(rng.standard_normal((90, 6)) + shift, absent=(4, 17))
    train = Interactions(rng.integers(0, 60, 700), rng.integers(0, 90, 700))
    found = neighbor_agreement(table, train)
    assert isinstance(found, Agreement)
    assert found.recall.value == pytest.approx(naive_agreement(table, train, 10), abs=1e-12)
    assert found.recall.low < found.recall.value < found.recall.high


def test_equal_features_tie_to_the_lower_ids() -> None:
    assert feature_neighbors(np.full((5, 3), 0.1, np.float32), 2).tolist() == [[1, 2], [0, 2], [0, 1], [0, 1], [0, 1]]
    zero = np.array([[0, 0], [1, 0], [-1, 0]], np.float32)
    assert feature_neighbors(zero, 1).tolist() == [[1], [0], [0]]


@pytest.mark.usefixtures("no_intervals")
@pytest.mark.parametrize("k", [1, 10])
def test_random_features_agree_as_chance_says(k: int) -> None:
    rng = np.random.default_rng(0)
    train = Interactions(np.repeat(np.arange(400), 2), rng.permuted(np.tile(np.arange(80), 10)))
    tables = [features(rng.standard_normal((80, 8))) for _ in range(60)]
    lifts = [neighbor_agreement(table, train, k=k).lift for table in tables]  # type: ignore[union-attr]
    assert np.mean(lifts) == pytest.approx(1, abs=0.2)


def test_what_has_no_neighbors_says_why() -> None:
    one = neighbor_agreement(features([[1, 0], [0, 1]], absent=(1,)), bought((0, 1)))
    assert one == Skipped("1 of 2 items have image: there are no neighbors")
    alone = neighbor_agreement(features([[1, 0], [0, 1]]), bought((0,), (1,)))
    assert alone == Skipped("no user has two items with image in train")


# Image and text


def test_image_text_recall_is_counted_by_hand() -> None:
    # text of 0 is nearest to image 0, texts of 1 and 2 are swapped; lengths don't matter
    image = features(3 * np.eye(3), "image")
    text = features(np.eye(3)[[0, 2, 1]] * [[1], [5], [2]], "text")
    found = image_text_recall({"image": image, "text": text})
    assert isinstance(found, Retrieval)
    for way in ("image to text", "text to image"):
        assert found.recall[way]["recall@1"].value == pytest.approx(Fraction(1, 3))
        assert found.recall[way]["recall@5"].value == 1
    assert found.chance == {"recall@1": pytest.approx(1 / 3), "recall@5": 1, "recall@10": 1}


def test_rows_that_are_all_alike_retrieve_nothing() -> None:
    alike = np.ones((30, 4))
    found = image_text_recall({"image": features(alike), "text": features(alike, "text")})
    assert isinstance(found, Retrieval)
    assert found.recall["image to text"]["recall@10"].value == 0


@pytest.mark.parametrize(
    ("tables", "reason"),
    [
        ([features(np.eye(3))], "there are no text features"),
        (
            [features(np.eye(3)), features(np.ones((3, 4)), "text")],
            "image has 3 numbers and text 4: they share no space",
        ),
        (
            [features(np.eye(3), absent=(0,)), features(np.eye(3), "text", absent=(1,))],
            "1 of 3 items have image and text",
        ),
    ],
)
def test_features_without_a_common_space_have_no_recall_and_say_why(tables: list[FeatureTable], reason: str) -> None:
    assert image_text_recall({table.modality: table for table in tables}) == Skipped(reason)


# Similarity


def hsic(k: np.ndarray, el: np.ndarray) -> Fraction | float:
    """The unbiased HSIC by its definition, of two matrices (n, n) whose diagonals are left out."""
    n = len(k)
    k, el = k.copy(), el.copy()
    np.fill_diagonal(k, 0)
    np.fill_diagonal(el, 0)
    trace, product = (k @ el).trace(), (k @ el).sum()
    return (trace + k.sum() * el.sum() / ((n - 1) * (n - 2)) - 2 * product / (n - 2)) / (n * (n - 3))


def naive_cka(x: np.ndarray, y: np.ndarray) -> float:
    k, el = x @ x.T, y @ y.T
    return float(hsic(k, el)) / float(hsic(k, k) * hsic(el, el)) ** 0.5


def test_cka_equals_exact_fractions() -> None:
    x = np.array([[Fraction(value)] for value in (0, 1, 2, 4, 7)], dtype=object)
    y = np.array([[Fraction(value), Fraction(other)] for value, other in ((1, 0), (0, 2), (3, 1), (5, 5), (4, 9))])
    k, el = x @ x.T, y @ y.T
    assert isinstance(hsic(k, el), Fraction)
    exact = float(hsic(k, el)) / float(hsic(k, k) * hsic(el, el)) ** 0.5
    assert linear_cka(x.astype(float), y.astype(float)).value == pytest.approx(exact, abs=1e-14)


@pytest.mark.parametrize(("p", "q"), [(3, 5), (200, 150), (2, 300)])  # by moments, by Gram matrices, mixed
def test_cka_is_its_definition_and_its_interval_the_jackknife(p: int, q: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "_BLOCK_BYTES", 8 * 60 * 7)
    rng = np.random.default_rng(1)
    x = rng.standard_normal((30, p)) + 3  # far from zero: K isn't centered in the definition
    y = x[:, : min(p, q)] @ rng.standard_normal((min(p, q), q)) + 2 * rng.standard_normal((30, q))
    found = linear_cka(x, y)
    assert found.value == pytest.approx(naive_cka(x, y), abs=1e-7)
    without = [naive_cka(np.delete(x, item, axis=0), np.delete(y, item, axis=0)) for item in range(30)]
    error = np.sqrt(29 * np.var(without))
    assert found.high - found.low == pytest.approx(2 * 2.045229642132703 * error, rel=1e-5)  # t of 29 degrees


def test_cka_is_one_up_to_rotation_scale_and_place_and_about_zero_for_strangers() -> None:
    rng = np.random.default_rng(2)
    x = rng.standard_normal((60, 10))
    rotation = np.linalg.qr(rng.standard_normal((10, 10)))[0]
    assert linear_cka(x, 1e4 * x @ rotation + 7).value == pytest.approx(1, abs=1e-9)
    assert linear_cka(x, x * 1e-30).value == pytest.approx(1, abs=1e-9)
    strangers = [linear_cka(x, rng.standard_normal((60, 500))).value for _ in range(20)]
    assert abs(np.mean(strangers)) < 0.03  # the biased form gives about 0.4


def test_cka_reads_the_items_that_have_both_and_says_why_it_is_none() -> None:
    rng = np.random.default_rng(0)
    image, text = rng.standard_normal((12, 3)), rng.standard_normal((12, 4))
    found = cka(features(image, absent=(0,)), features(text, "text", absent=(1, 2)))
    assert isinstance(found, Similarity)
    assert found.items == 9
    assert found.cka.value == pytest.approx(naive_cka(image[3:], text[3:]), abs=1e-5)
    few = cka(features(image, absent=tuple(range(8))), features(text, "text"))
    assert few == Skipped("4 of 12 items have image and text: CKA needs 5")
    alike = cka(features(np.full((12, 3), 0.1)), features(text, "text"))
    assert alike == Skipped("all items have the same image features")
    for rows in (np.eye(12), np.eye(12)[:, :1]):  # one number per item, and all but one alike
        found = cka(features(rows), features(text, "text"))
        assert isinstance(found, Skipped)
        assert "make CKA or its interval 0 / 0" in found.reason


# The command


def probed(data_path: object, *flags: object) -> Answer:
    return call("encode", "-d", "toy", "--data-path", data_path, "--encoder", "precomputed", "--probe", *flags)


def test_the_probes_of_the_checkerboard_are_known(data_path) -> None:
    said = json.loads(probed(data_path, "--json").out)
    assert [row["modality"] for row in said["features"]] == ["image", "text"]
    for modality in ("image", "text"):
        found = said["probes"]["neighbors"][modality]
        assert found["items"] == 15  # the last has no features
        assert found["recall"]["value"] == 1  # k = 10 > 6 or 7 others of its color, and all of them are among the 10
        assert found["chance"] == pytest.approx(10 / 14)
        assert len(found["terciles"]) == 3
    assert set(said["probes"]) == {"neighbors", "retrieval", "similarity"}


def test_no_row_of_validation_or_test_moves_a_probe_and_one_of_train_does(data_path) -> None:
    before = probed(data_path, "--json").out
    path = data_path / "toy" / "toy.inter"
    rows = pd.read_csv(path, sep="\t")
    held_out = (rows.x_label > 0).to_numpy()
    rng = np.random.default_rng(0)
    rows.loc[held_out, "itemID"] = rng.permutation(rows.itemID[held_out].to_numpy())
    rows.loc[held_out, "x_label"] = rng.permutation(rows.x_label[held_out].to_numpy())
    rows.to_csv(path, sep="\t", index=False)
    assert probed(data_path, "--json").out == before
    rows.loc[~held_out, "itemID"] = rng.permutation(rows.itemID[~held_out].to_numpy())
    rows.to_csv(path, sep="\t", index=False)
    assert probed(data_path, "--json").out != before


def test_the_command_prints_tables_and_the_reason_for_what_it_leaves_out(data_path) -> None:
    said = call("encode", "-d", "toy", "--data-path", data_path, "--encoder", "basic", "--probe")
    assert said.code == 0
    assert "recall@10" in said.out
    assert "image-text recall: not measured: image has 384 numbers and text 1,024: they share no space" in said.out
    assert "image-text" in said.out


def test_a_file_of_features_is_probed_too(data_path, tmp_path) -> None:
    np.save(tmp_path / "audio.npy", np.random.default_rng(0).standard_normal((16, 3)))
    said = json.loads(probed(data_path, "--features", f"audio={tmp_path / 'audio.npy'}", "--json").out)
    assert set(said["probes"]["neighbors"]) == {"audio", "image", "text"}
    assert set(said["probes"]["similarity"]) == {"audio-image", "audio-text", "image-text"}


def test_the_studys_script_correlates_ranks_with_an_interval() -> None:
    from benchmarks.probes import rank_correlation

    value, low, high = rank_correlation(np.array([1.0, 2, 3, 4, 5, 6]), np.array([1.0, 3, 2, 4, 6, 5]))
    assert value == pytest.approx(1 - 6 * 4 / (6 * 35))  # 1 - 6 sum d^2 / (n (n^2 - 1))
    assert low < value < high <= 1


@pytest.mark.usefixtures("no_intervals")
def test_nothing_of_all_items_by_all_items_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """With small blocks all arrays of NumPy together are far smaller than one (n, n)."""
    import tracemalloc

    rng = np.random.default_rng(0)
    n = 2000
    image, text = (features(rng.standard_normal((n, 8)), modality) for modality in ("image", "text"))
    train = Interactions(rng.integers(0, 2000, 6000), rng.integers(0, n, 6000))
    monkeypatch.setattr(probes, "_BLOCK_BYTES", 1 << 20)
    tracemalloc.start()
    probe({"image": image, "text": text}, train)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < n * n  # bytes
