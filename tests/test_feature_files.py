"""Features in files: rows never shift, and a damaged or foreign file is refused by name; and what controls are."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from mmrec_lmm import cache
from mmrec_lmm.disk import hashing
from mmrec_lmm.errors import ConfigError, DataError
from mmrec_lmm.features import files
from mmrec_lmm.testing import checkerboard_features
from mmrec_lmm.types import FeatureTable


def save(path: Path, array: np.ndarray, **options: Any) -> Path:
    np.save(path, array, **options)
    return path


# Feature files


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_feature_file_of_any_float_type_becomes_float32_with_row_i_for_item_i(tmp_path, dtype):
    rows = np.arange(1, 7, dtype=dtype).reshape(3, 2) / 8
    table = files.read_feature_file(save(tmp_path / "f.npy", rows), modality="text", n_items=3)
    assert table.values.dtype == np.float32
    np.testing.assert_array_equal(table.values, rows)
    assert table.present.all()


def test_a_fortran_ordered_file_is_read_in_the_right_order(tmp_path):
    rows = np.asfortranarray(np.arange(1, 7, dtype=np.float32).reshape(3, 2))
    table = files.read_feature_file(save(tmp_path / "f.npy", rows), modality="text", n_items=3)
    np.testing.assert_array_equal(torch.as_tensor(table.values), [[1, 2], [3, 4], [5, 6]])


def test_an_all_zero_row_is_an_absent_item(tmp_path):
    path = save(tmp_path / "f.npy", np.array([[1.0, 0], [0, 0]]))
    assert files.read_feature_file(path, modality="text", n_items=2).present.tolist() == [True, False]


def test_images_that_mmrec_filled_with_the_mean_are_absent_and_the_file_stays_as_it_is(tmp_path):
    path = save(tmp_path / "image_feat.npy", np.array([[1, 3], [2, 2], [3, 1]], np.float32))
    before = path.read_bytes()
    (tmp_path / "missed_img_itemIDs.csv").write_text("1\n")
    image = files.read_feature_file(path, modality="image", n_items=3)
    text = files.read_feature_file(path, modality="text", n_items=3)
    assert image.present.tolist() == [True, False, True]
    np.testing.assert_array_equal(image.values, [[1, 3], [0, 0], [3, 1]])
    assert text.present.all()
    assert image.fingerprint != text.fingerprint
    assert path.read_bytes() == before
    np.testing.assert_array_equal(files.mean_filled(image).values, [[1, 3], [2, 2], [3, 1]])


def test_a_list_of_missed_images_that_names_no_item_is_refused(tmp_path):
    path = save(tmp_path / "image_feat.npy", np.ones((3, 2)))
    (tmp_path / "missed_img_itemIDs.csv").write_text("1,3\n")
    with pytest.raises(DataError, match=r"missed_img_itemIDs.csv: expected item ids from 0 to 2, got 3"):
        files.read_feature_file(path, modality="image", n_items=3)


def bad_features(tmp_path: Path, kind: str) -> Path:
    path = tmp_path / "f.npy"
    good = np.ones((4, 3), np.float32)
    if kind == "missing":
        return path
    if kind == "not npy":
        path.write_text("1,2,3")
    elif kind == "pickle":
        path.write_bytes(b"\x80\x04K\x01.")
    elif kind == "objects":
        save(path, np.array([[{}]], object), allow_pickle=True)
    elif kind == "flat":
        save(path, np.ones(4))
    elif kind == "words":
        save(path, np.array([["a"]] * 4))
    elif kind == "rows":
        save(path, good[:3])
    elif kind == "nan":
        good[1, 2], good[3, 0] = np.nan, np.inf
        save(path, good)
    elif kind == "too large":
        save(path, good * np.array(1e200))
    elif kind == "truncated":
        save(path, good)
        path.write_bytes(path.read_bytes()[:-5])
    elif kind == "truncated head":
        save(path, good)
        path.write_bytes(path.read_bytes()[:9])
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "no such file"),
        ("not npy", "expected a .npy file, got another format"),
        ("pickle", "expected a .npy file, got a pickle, which can hold code"),
        ("objects", "pickled Python objects"),
        ("flat", r"shape \(4,\)"),
        ("words", "got <U1 of shape"),
        ("rows", "expected 4 rows, row i for item i, got 3"),
        ("nan", "NaN or infinity in 2 of 4 rows, first 1, 3"),
        ("too large", "NaN or infinity in 4 of 4 rows"),
        ("truncated", "truncated or damaged"),
        ("truncated head", "truncated or damaged"),
    ],
)
def test_a_bad_feature_file_is_named_with_what_is_wrong(tmp_path, kind, message):
    path = bad_features(tmp_path, kind)
    with pytest.raises(DataError, match=message) as caught:
        files.read_feature_file(path, modality="image", n_items=4)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f4", "<f8", ">f4", "<f2", "<i8"])
def test_a_file_that_is_overwritten_or_cut_after_it_was_read_changes_no_feature(tmp_path, dtype, order):
    numbers = np.arange(20_000, dtype=np.float32).reshape(4000, 5) % 128
    path = save(tmp_path / "f.npy", np.asarray(numbers, dtype, order=order))
    table = files.read_feature_file(path, modality="text", n_items=4000)
    assert table.fingerprint == cache.fingerprint([hashing.read_hash(path), numbers.any(axis=1)])
    with path.open("r+b") as file:
        file.seek(128)
        file.write(bytes(1000))
    np.testing.assert_array_equal(table.values, numbers)
    os.truncate(path, 100)
    np.testing.assert_array_equal(table.values, numbers)  # SIGBUS, if the file were mapped


@pytest.mark.parametrize(
    "shape", ["(-4, 2)", "(4, -2)", "(4, 2000000000000)", "(4,)", "()", "(4, 2, 1)", "(True, 2)", "(", "1e99"]
)
def test_a_header_that_promises_other_data_than_there_is_is_refused(tmp_path, shape):
    path = save(tmp_path / "f.npy", np.ones((4, 2), np.float32))
    content = path.read_bytes()
    header = content[:128].replace(b"(4, 2)", shape.encode())
    header = header[:10] + header[10:].strip().ljust(117) + b"\n"
    path.write_bytes(header + content[128:])
    with pytest.raises(DataError, match=r"f.npy: expected"):
        files.read_feature_file(path, modality="text", n_items=4)


# Their scale


def raw_features(rows: int = 300, width: int = 20, *, common: float = 0.0, spread: float = 0.0) -> FeatureTable:
    """Rows of length 33: one of them absent, `common` their cosine to one direction, `spread` that of log lengths."""
    rng = np.random.default_rng(0)
    own = rng.standard_normal((rows, width))
    own[:, 0] = 0
    own *= np.sqrt(1 - common**2) / np.linalg.norm(own, axis=1, keepdims=True)
    own[:, 0] = common
    values = (33 * np.exp(spread * rng.standard_normal((rows, 1))) * own).astype(np.float32)
    present = np.arange(rows) != 7
    return FeatureTable("text", values * present[:, None], present, "raw")


def test_features_as_they_are_keep_table_and_name():
    assert files.normalized(raw := raw_features(), "none") is raw


@pytest.mark.parametrize("how", ["unit", "centered", "standard"])
def test_normalized_features_keep_absent_rows_zero_and_have_a_name_of_their_own(how):
    raw = raw_features(common=0.9, spread=1.0)
    scaled = files.normalized(raw, how)
    np.testing.assert_array_equal(scaled.present, raw.present)
    assert scaled.values.dtype == np.float32
    assert not scaled.values[7].any()
    assert len({files.normalized(raw, each).fingerprint for each in files.NORMALIZATIONS}) == 4
    assert scaled.fingerprint == files.normalized(raw, how).fingerprint


def test_each_normalization_does_what_its_name_says():
    raw = raw_features(common=0.9, spread=1.0)
    rows = {how: files.normalized(raw, how).values[raw.present].astype(float) for how in files.NORMALIZATIONS}
    plain = rows["none"]
    np.testing.assert_allclose(rows["unit"], plain / np.linalg.norm(plain, axis=1, keepdims=True), atol=1e-6)
    less = plain - plain.mean(axis=0)
    np.testing.assert_allclose(rows["centered"], less / np.linalg.norm(less, axis=1, keepdims=True), atol=1e-6)
    np.testing.assert_allclose(rows["standard"].mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(rows["standard"].std(axis=0), 1, atol=1e-6)


@pytest.mark.parametrize("how", ["unit", "centered", "standard"])
def test_what_has_no_scale_becomes_zero_and_never_nan_or_noise(how):
    constant = np.full((5, 3), 0.1, np.float32)
    constant[:, 2] = [1, 2, 3, 4, 5]
    present = np.array([True, True, True, True, False])
    mixed = FeatureTable("text", constant * present[:, None], present, "c")
    equal = FeatureTable("text", np.full((5, 3), 0.1, np.float32) * present[:, None], present, "e")
    one = FeatureTable("text", constant * (np.arange(5) == 1)[:, None], np.arange(5) == 1, "o")
    nobody = FeatureTable("text", np.zeros((5, 3), np.float32), np.zeros(5, bool), "n")
    for table in (mixed, equal, one, nobody):
        assert np.isfinite(files.normalized(table, how).values).all()
    if how == "standard":
        assert not files.normalized(mixed, how).values[:, :2].any()
    if how != "unit":
        assert not files.normalized(equal, how).values.any()
        assert not files.normalized(one, how).values.any()


def test_an_unknown_normalization_is_refused_with_a_suggestion():
    with pytest.raises(ConfigError, match=r"normalize: expected none, .*, got centerd; did you mean centered\?"):
        files.normalized(raw_features(), "centerd")


def test_rows_that_differ_little_and_rows_of_very_unequal_length_are_noted_until_they_are_normalized():
    alike, unequal = raw_features(common=0.92), raw_features(spread=1.0)
    note = files.scale_note(alike)
    assert note is not None
    assert "mean cosine 0.92 to their mean row, length 33 at most" in note
    assert note.endswith("try --normalize=centered")
    assert files.scale_note(files.normalized(alike, "unit")) is not None
    assert files.scale_note(files.normalized(alike, "centered")) is None
    note = files.scale_note(unequal)
    assert note is not None
    assert note.startswith("rows of very unequal length (")
    assert note.endswith("try --normalize=unit")
    assert files.scale_note(files.normalized(unequal, "unit")) is None


def test_features_without_fault_are_not_noted():
    unit = files.normalized(raw_features(common=0.85), "unit")  # as alike as rows of real encoders are
    empty = FeatureTable("text", np.zeros((2, 2), np.float32), np.zeros(2, bool), "n")
    for table in (raw_features(spread=0.3), unit, empty, *checkerboard_features().values()):
        assert files.scale_note(table) is None


# Tables in the store


def test_a_saved_table_is_loaded_as_it_was(tmp_path):
    table = FeatureTable("text", np.arange(6, dtype=np.float32).reshape(3, 2).T, np.array([True, False]), "abc")
    loaded, about = files.load_with_header(files.save_table(tmp_path / "t.safetensors", table, encoder="some"))
    np.testing.assert_array_equal(loaded.values, table.values)
    np.testing.assert_array_equal(loaded.present, table.present)
    assert (loaded.modality, loaded.fingerprint, about.encoder) == ("text", "abc", "some")


def test_the_safetensors_library_reads_a_saved_table(tmp_path):
    table = FeatureTable("text", np.arange(6, dtype=np.float32).reshape(3, 2), np.array([True, False, True]), "abc")
    arrays = load_file(files.save_table(tmp_path / "t.safetensors", table))
    np.testing.assert_array_equal(arrays["values"], table.values)
    np.testing.assert_array_equal(arrays["present"], table.present)


def test_each_bit_of_a_table_counts(tmp_path):
    path = tmp_path / "t.safetensors"
    files.save_table(path, FeatureTable("text", np.ones((2, 2), np.float32), np.ones(2, bool), "abc"))
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0b101]) + content[place + 1 :])
        with pytest.raises(DataError, match=r"t.safetensors: expected a feature table, got a damaged one"):
            files.load_with_header(path)


@pytest.mark.parametrize("keep", [0, 5, 60, -1])
def test_a_damaged_table_is_named(tmp_path, keep):
    path = tmp_path / "t.safetensors"
    files.save_table(path, FeatureTable("text", np.ones((2, 2), np.float32), np.ones(2, bool), "abc"))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"t.safetensors: expected a feature table, got a damaged one .* delete it"):
        files.load_with_header(path)


# Controls


def two_tables() -> dict[str, FeatureTable]:
    """200 items; row i of either modality holds i, so that a row tells where it came from."""
    ids = np.arange(200, dtype=np.float32)[:, None] + 1
    with_image, with_text = np.arange(200) % 5 != 0, np.arange(200) % 3 != 0
    return {
        "image": FeatureTable("image", np.hstack([ids, -ids]) * with_image[:, None], with_image, "i"),
        "text": FeatureTable("text", ids * with_text[:, None], with_text, "t"),
    }


def test_shuffled_features_move_whole_items_among_those_that_have_the_same_modalities():
    real, shuffled = two_tables(), files.control_tables(two_tables(), "shuffled", seed=1)
    for modality, table in shuffled.items():
        np.testing.assert_array_equal(table.present, real[modality].present)
        np.testing.assert_array_equal(np.sort(table.values[:, 0]), np.sort(real[modality].values[:, 0]))
        assert not table.values[~table.present].any()
    both = real["image"].present & real["text"].present
    np.testing.assert_array_equal(shuffled["image"].values[both, 0], shuffled["text"].values[both, 0])
    assert np.mean(shuffled["text"].values[both] == real["text"].values[both]) < 0.1


def test_random_features_have_the_mean_and_deviation_of_each_column_and_zero_where_absent():
    real, random = two_tables()["image"], files.control_tables(two_tables(), "random", seed=1)["image"]
    np.testing.assert_array_equal(random.present, real.present)
    assert not random.values[~random.present].any()
    known, drawn = real.values[real.present], random.values[random.present]
    np.testing.assert_allclose(drawn.mean(axis=0), known.mean(axis=0), atol=0.3 * known.std())
    np.testing.assert_allclose(drawn.std(axis=0), known.std(axis=0), rtol=0.2)
    assert drawn.dtype == np.float32


def test_a_control_is_the_same_for_the_same_seed_and_named_after_kind_and_seed():
    runs = [("shuffled", 1), ("shuffled", 2), ("random", 1)]
    made = [files.control_tables(two_tables(), control, seed=seed)["image"] for control, seed in runs]
    again = files.control_tables(two_tables(), "shuffled", seed=1)["image"]
    np.testing.assert_array_equal(made[0].values, again.values)
    assert made[0].fingerprint == again.fingerprint
    assert len({table.fingerprint for table in [*made, two_tables()["image"]]}) == 4


def test_an_exported_table_is_read_again_with_the_same_values_and_gaps(tmp_path):
    table = FeatureTable("text", np.array([[1, 2], [0, 0], [3, 4]], np.float32), np.array([True, False, True]), "t")
    path = files.export_table(tmp_path / "out" / "text_feat.npy", table)
    again = files.read_feature_file(path, modality="text", n_items=3)
    np.testing.assert_array_equal(again.values, table.values)
    np.testing.assert_array_equal(again.present, table.present)


def test_the_control_none_leaves_zero_rows_of_one_width_with_nothing_present():
    none = files.control_tables(two_tables(), "none", seed=1)
    assert none.keys() == two_tables().keys()
    for modality, table in none.items():
        assert table.values.shape == (len(two_tables()[modality].values), files.ABSENT_WIDTH)
        assert not table.values.any()
        assert not table.present.any()


def test_constant_features_are_the_mean_row_of_those_that_have_the_modality_whatever_the_seed():
    real = two_tables()["text"]
    one, other = (files.control_tables(two_tables(), "constant", seed=seed)["text"] for seed in (1, 2))
    np.testing.assert_array_equal(one.present, real.present)
    np.testing.assert_allclose(one.values[one.present], real.values[real.present].mean(), rtol=1e-6)
    assert not one.values[~one.present].any()
    assert one.values.dtype == np.float32
    assert one.fingerprint == other.fingerprint != real.fingerprint
    np.testing.assert_array_equal(one.values, other.values)


def test_a_modality_that_no_item_has_stays_absent_under_the_control_constant():
    nobody = FeatureTable("text", np.zeros((3, 2), np.float32), np.zeros(3, bool), "n")
    constant = files.control_tables({"text": nobody}, "constant", seed=1)["text"]
    assert not constant.values.any()
    assert not constant.present.any()


def test_an_unknown_control_is_refused_with_a_suggestion():
    with pytest.raises(ConfigError, match=r"control: expected one of .*, got shufled; did you mean shuffled\?"):
        files.control_tables(two_tables(), "shufled", seed=1)


def test_mean_filled_features_are_present_everywhere_and_absent_rows_hold_the_mean():
    filled = files.mean_filled(FeatureTable("text", np.array([[1.0], [0], [3]]), np.array([True, False, True]), "t"))
    assert filled.values.tolist() == [[1], [2], [3]]
    assert filled.present.all()
    assert filled.fingerprint != "t"


def test_a_mean_of_no_items_is_refused():
    nobody = FeatureTable("text", np.zeros((1200, 2), np.float32), np.zeros(1200, bool), "n")
    with pytest.raises(ConfigError) as caught:
        files.mean_filled(nobody)
    assert str(caught.value) == (
        "missing: mean: expected items that have text, got none of 1,200; try --missing=zero, or leave text out of "
        "--modalities"
    )


@pytest.mark.parametrize("shape", [(40, 5), (6, 30)], ids=["tall", "wide"])
def test_whitened_columns_are_uncorrelated_with_deviation_one_over_present_items(shape):
    rng = np.random.default_rng(0)
    values = (rng.normal(size=shape) @ rng.normal(size=(shape[1], shape[1])) + 3).astype(np.float32)
    present = np.arange(shape[0]) % 5 != 4
    raw = FeatureTable("image", values * present[:, None], present, "raw")
    made = files.whitened(raw)
    rows, rank = made.values[present].astype(float), min(shape[1], present.sum() - 1)
    assert not made.values[~present].any()
    np.testing.assert_allclose(rows.mean(axis=0), 0, atol=1e-5)
    spread = np.linalg.svd(rows, compute_uv=False) / np.sqrt(len(rows))
    np.testing.assert_allclose(spread[:rank], 1, atol=1e-4)  # in each direction in which items differ
    np.testing.assert_allclose(spread[rank:], 0, atol=1e-4)
    assert made.fingerprint == files.whitened(raw).fingerprint != raw.fingerprint
    np.testing.assert_array_equal(made.values, files.whitened(raw).values)


def test_whitening_keeps_to_the_original_axes_where_these_are_uncorrelated():
    values = np.array([[3, 1], [3, -1], [-3, 1], [-3, -1]], np.float32)
    made = files.whitened(FeatureTable("text", values, np.ones(4, bool), "raw"))
    np.testing.assert_allclose(made.values, np.sign(values), atol=1e-6)


def test_a_direction_without_differences_becomes_zero_and_no_items_are_no_error():
    values = np.array([[1, 7, 2], [2, 7, 4], [3, 7, 6]], np.float32)  # columns 0 and 2 together, 1 the same for all
    made = files.whitened(FeatureTable("text", values, np.ones(3, bool), "raw")).values
    np.testing.assert_allclose(made[:, 1], 0, atol=1e-6)
    assert np.isfinite(made).all()
    assert np.linalg.matrix_rank(made, tol=1e-4) == 1
    same = FeatureTable("text", np.full((3, 2), 0.1, np.float32), np.ones(3, bool), "raw")
    assert not files.whitened(same).values.any()
    nothing = FeatureTable("text", np.zeros((3, 2), np.float32), np.zeros(3, bool), "raw")
    assert not files.whitened(nothing).values.any()


def test_modalities_of_unequal_length_are_named_by_the_mean_over_present_items():
    def table(modality, lengths):
        values = np.outer(lengths, [0.6, 0.8]).astype(np.float32)
        return FeatureTable(modality, values, np.array(lengths) > 0, modality)

    image, text = table("image", [10, 0, 30]), table("text", [3, 3, 3])
    said = files.unequal_lengths([image, text])
    assert said.startswith("mean length of feature vectors: image 20, text 3; ")
    assert "--normalize=unit" in said
    unit = [files.normalized(each, "unit") for each in (image, text)]
    for equal in ([image], [image, table("text", [4, 5, 6])], [image, table("text", [0, 0, 0])], unit, []):
        assert files.unequal_lengths(equal) == ""
