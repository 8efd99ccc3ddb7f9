"""MMRec's data set folder: what is read, what is noted, and what is refused with which words."""

import re
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mmrec_lmm.config.settings import Settings
from mmrec_lmm.data.loading import load_dataset, read_catalog
from mmrec_lmm.errors import DataError
from mmrec_lmm.types import Dataset

HEAD = "userID\titemID\tx_label\n"
# 3 users, 3 items, all three splits
SOUND = [(0, 0, 0), (0, 1, 1), (1, 1, 0), (1, 2, 2), (2, 2, 0), (2, 0, 1), (0, 2, 2)]
CATALOG = "itemID\traw_id\ttitle\timage\n2\tC\tred mug\t\n0\tA\tblue cup\ta.png\n1\tB\t\tmissing.png\n"


def table(rows: list[tuple[object, ...]], head: str = HEAD) -> str:
    return head + "".join("\t".join(map(str, row)) + "\n" for row in rows)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a sound data set without a catalog."""
    place = tmp_path / "data" / "toy"
    place.mkdir(parents=True)
    (place / "toy.inter").write_text(table(SOUND))
    return place


@pytest.fixture
def load(folder: Path) -> Callable[..., Dataset]:
    """Loads `toy`, after `inter` and `items`, where given, have become its files; the rest are settings."""

    def load(inter: str | None = None, items: str | None = None, **settings: Any) -> Dataset:
        if inter is not None:
            (folder / "toy.inter").write_text(inter)
        if items is not None:
            (folder / "items.tsv").write_text(items)
        return load_dataset(folder, "toy", Settings(**settings))

    return load


def refusal(load: Callable[..., Dataset], *texts: str, **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(*texts, **settings)
    return str(caught.value)


def test_the_splits_hold_the_rows_of_their_label_in_file_order(load: Callable[..., Dataset]) -> None:
    dataset = load()
    assert (dataset.name, dataset.n_users, dataset.n_items) == ("toy", 3, 3)
    splits = {"train": [(0, 0), (1, 1), (2, 2)], "valid": [(0, 1), (2, 0)], "test": [(1, 2), (0, 2)]}
    for split, pairs in splits.items():
        rows = getattr(dataset, split)
        assert list(zip(rows.users.tolist(), rows.items.tolist(), strict=True)) == pairs
        assert rows.users.dtype == rows.items.dtype == np.int64
    assert dataset.catalog is None
    assert dataset.feature_files == {}
    assert dataset.notes == ()


def test_the_five_columns_of_mmrecs_own_files_are_read_unedited(load: Callable[..., Dataset]) -> None:
    head = "userID\titemID\trating\ttimestamp\tx_label\n"
    rows = [(user, item, 4.0, 1373932800 + user, label) for user, item, label in SOUND]
    five, three = load(table(rows, head)), load(table(SOUND))
    for split in ("train", "valid", "test"):
        assert getattr(five, split).users.tolist() == getattr(three, split).users.tolist()
        assert getattr(five, split).items.tolist() == getattr(three, split).items.tolist()


def test_columns_separator_and_file_are_named_by_mmrecs_keys(folder: Path) -> None:
    (folder / "other.csv").write_text(table(SOUND, "u\ti\tsplit\n").replace("\t", ","))
    settings = Settings(
        inter_file_name="other.csv",
        USER_ID_FIELD="u",
        ITEM_ID_FIELD="i",
        inter_splitting_label="split",
        field_separator=",",
    )
    assert len(load_dataset(folder, "toy", settings).train) == 3


def test_a_separator_at_the_end_of_each_row_shifts_no_column(load: Callable[..., Dataset]) -> None:
    trailing = load(table([(*row, "") for row in SOUND]))
    assert trailing.train.users.tolist() == [0, 1, 2]
    assert trailing.train.items.tolist() == [0, 1, 2]


def test_feature_files_are_found_by_modality_and_either_may_be_absent(folder: Path) -> None:
    np.save(folder / "text_feat.npy", np.zeros((3, 2)))
    np.save(folder / "clip.npy", np.zeros((3, 2)))
    assert load_dataset(folder, "toy", Settings()).feature_files == {"text": folder / "text_feat.npy"}
    both = load_dataset(folder, "toy", Settings(vision_feature_file="clip.npy")).feature_files
    assert both == {"text": folder / "text_feat.npy", "image": folder / "clip.npy"}


# The catalog


def test_the_catalog_is_sorted_by_item_and_knows_what_is_missing(load: Callable[..., Dataset], folder: Path) -> None:
    dataset = load(items=CATALOG)
    catalog = dataset.catalog
    assert catalog is not None
    assert dataset.n_items == len(catalog) == 3
    assert catalog.raw_ids == ("A", "B", "C")
    assert catalog.fields == {"title": ("blue cup", "", "red mug")}
    assert catalog.images == (folder / "images" / "a.png", folder / "images" / "missing.png", None)


def test_with_a_catalog_items_may_lack_interactions_and_it_says_how_many_there_are(
    load: Callable[..., Dataset],
) -> None:
    more = CATALOG + "3\tD\tnever bought\t\n"
    rows = [(user, 2 if item == 1 else item, label) for user, item, label in SOUND]
    assert load(table(rows), more).n_items == 4


def test_texts_keep_what_looks_like_a_number_or_like_nothing(load: Callable[..., Dataset]) -> None:
    dataset = load(items='itemID\ttitle\n0\t007\n1\tNA\n2\t"a ""quoted"" name"\n')
    assert dataset.catalog is not None
    assert dataset.catalog.fields["title"] == ("007", "NA", 'a "quoted" name')


def test_the_catalogs_fingerprint_follows_texts_and_image_contents(load: Callable[..., Dataset], folder: Path) -> None:
    def fingerprint(items: str = CATALOG) -> str:
        catalog = load(items=items).catalog
        assert catalog is not None
        return catalog.fingerprint

    first = fingerprint()
    assert fingerprint(CATALOG.replace("red mug", "red cup")) != first
    (folder / "images").mkdir()
    (folder / "images" / "a.png").write_bytes(b"pixels")
    with_image = fingerprint()
    (folder / "images" / "a.png").write_bytes(b"other pixels")
    assert len({first, with_image, fingerprint()}) == 3


def test_the_data_fingerprint_follows_the_interactions(load: Callable[..., Dataset]) -> None:
    assert load().fingerprint == load().fingerprint
    assert load().fingerprint != load(table([*SOUND, (0, 0, 0)])).fingerprint


# What is mended, with a note


def test_held_out_rows_of_users_without_training_rows_are_dropped_and_counted(load: Callable[..., Dataset]) -> None:
    cold = table([*SOUND, (3, 0, 1), (3, 1, 2), (3, 2, 2)])
    dataset = load(cold)
    assert (len(dataset.valid), len(dataset.test), dataset.n_users) == (2, 2, 4)
    assert dataset.notes == (
        "valid: dropped 1 rows of users without a training row (1 of 4 users have none)",
        "test: dropped 2 rows of users without a training row (1 of 4 users have none)",
    )
    kept = load(cold, filter_out_cod_start_users=False)
    assert (len(kept.valid), len(kept.test), kept.notes) == (3, 4, ())


def test_pairs_that_repeat_are_kept_and_noted(load: Callable[..., Dataset]) -> None:
    dataset = load(table([*SOUND, (0, 0, 0), (1, 1, 2), (0, 1, 1)]))
    assert len(dataset.train) == 4
    assert dataset.notes == (
        "train: 1 rows repeat a pair of the same split",
        "valid: 1 rows repeat a pair of the same split",
        "test: 1 rows repeat a training pair; those items are masked, so they can't be hit",
    )


# What is refused


def test_a_missing_file_is_named_with_what_lies_there_instead(folder: Path) -> None:
    (folder / "toy.inter").rename(folder / "5core.inter")
    with pytest.raises(DataError) as caught:
        load_dataset(folder, "toy", Settings())
    assert str(caught.value) == (
        f"{folder / 'toy.inter'}: no such file; the folder has 5core.inter (inter_file_name chooses one)"
    )


def test_a_folder_without_interactions_is_answered_with_what_makes_a_data_set(folder: Path) -> None:
    (folder / "toy.inter").unlink()
    with pytest.raises(DataError) as caught:
        load_dataset(folder, "toy", Settings())
    assert str(caught.value) == (
        f"{folder / 'toy.inter'}: no such file; `data import` makes a data set from tables of interactions and items"
    )


def test_a_missing_folder_is_named_with_its_neighbors_and_the_likely_one(folder: Path) -> None:
    (folder.parent / "baby").mkdir()
    with pytest.raises(DataError) as caught:
        load_dataset(folder.parent / "babby", "babby", Settings())
    assert str(caught.value) == (
        f"{folder.parent / 'babby' / 'babby.inter'}: no such file; {folder.parent} holds baby, toy; did you mean baby?"
    )


def test_a_missing_data_path_is_named_with_the_flag_that_chooses_another(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere"
    with pytest.raises(DataError) as caught:
        load_dataset(nowhere / "toy", "toy", Settings())
    assert str(caught.value) == (
        f"{nowhere / 'toy' / 'toy.inter'}: no such file; the folder {nowhere} doesn't exist "
        "(--data-path chooses another)"
    )


def test_a_data_path_without_any_data_set_is_said_to_be_empty(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=re.escape(f"{tmp_path} holds no data set")):
        load_dataset(tmp_path / "toy", "toy", Settings())


RAW_IDS = "; `data import` makes a data set from raw ids"
INTER_FAULTS = {
    "another column": (
        table(SOUND, "user_ID\titemID\tx_label\n"),
        ": expected the column 'userID', got user_ID, itemID, x_label; did you mean user_ID?",
    ),
    "another separator": (
        table(SOUND).replace("\t", ","),
        ": expected the column 'userID', got userID,itemID,x_label; it is separated by commas: try --field_separator=,",
    ),
    "an empty file": ("", ": expected a table of text, got an empty file; copy or download it again"),
    "a quote that never closes": (
        table(SOUND) + '"0\t0\t0\n',
        f", line 9: userID: expected an integer, got '\"0' (1 such rows of 8){RAW_IDS}",
    ),
    "a truncated row": (
        table(SOUND) + "1\t0",
        ", line 9: expected 3 cells, as many as there are columns, got 2; is the file truncated?",
    ),
    "a truncated cell": (
        table(SOUND) + "1\t0\t",
        ", line 9: x_label: expected an integer, got '' (1 such rows of 8); is the file truncated?",
    ),
    "a word": (
        table([*SOUND, ("u7", 0, 0), ("u8", 0, 0)]),
        f", line 9: userID: expected an integer, got 'u7' (2 such rows of 9){RAW_IDS}",
    ),
    "half an item": (
        table([*SOUND, (0, 1.5, 0)]),
        f", line 9: itemID: expected an integer, got '1.5' (1 such rows of 8){RAW_IDS}",
    ),
    "an infinite item": (
        table([*SOUND, (0, "inf", 0)]),
        f", line 9: itemID: expected an integer, got 'inf' (1 such rows of 8){RAW_IDS}",
    ),
    "a fourth split": (
        table([*SOUND, (0, 0, 3), (0, 0, -1)]),
        ", line 9: x_label: expected 0 (train), 1 (valid) or 2 (test), got 3 (2 such rows)",
    ),
    "no rows": (HEAD, ": expected rows, got only a header"),
    "a negative user": (table([*SOUND, (-1, 0, 0)]), ", line 9: userID: expected 0 or more, got -1 (1 such rows)"),
    "a negative item": (
        table([*SOUND, (0, -3, 0), (0, -1, 1)]),
        ", line 9: itemID: expected 0 or more, got -3 (2 such rows)",
    ),
    "a gap in users": (
        table([*SOUND, (5, 0, 0)]),
        ": userID: expected 0 to 5 without gaps, got 4 of these 6 ids; the first missing is 3. Renumber the ids",
    ),
    "a gap in items": (
        table([*SOUND, (0, 4, 0)]),
        ": itemID: expected 0 to 4 without gaps, got 4 of these 5 ids; the first missing is 3. "
        "Renumber the ids, or list all items in items.tsv beside it",
    ),
    "ids from one on": (
        table([(user + 1, item, label) for user, item, label in SOUND]),
        ": userID: expected 0 to 3 without gaps, got 3 of these 4 ids; the first missing is 0. Renumber the ids",
    ),
    "no test rows": (
        table([row for row in SOUND if row[2] != 2]),
        ": expected rows in each split, got none for test (train 3, valid 2, test 0); column x_label must mark rows "
        "0 (train), 1 (valid) and 2 (test)",
    ),
    "no training rows": (
        table([row for row in SOUND if row[2] != 0]),
        ": expected rows in each split, got none for train (train 0, valid 0, test 0); column x_label must mark rows "
        "0 (train), 1 (valid) and 2 (test)",
    ),
}


@pytest.mark.parametrize("fault", INTER_FAULTS)
def test_interactions_are_refused_with_the_file_the_line_and_the_reason(
    fault: str, load: Callable[..., Dataset], folder: Path
) -> None:
    text, expected = INTER_FAULTS[fault]
    message = refusal(load, text)
    assert message.startswith(f"{folder / 'toy.inter'}{expected}")
    if not expected.endswith(": "):  # the parser's own words follow
        assert message == f"{folder / 'toy.inter'}{expected}"


def test_bytes_that_are_no_text_are_refused(load: Callable[..., Dataset], folder: Path) -> None:
    (folder / "toy.inter").write_bytes(table(SOUND).encode() + b"\xff\xfe\x00\n")
    assert refusal(load).startswith(f"{folder / 'toy.inter'}, line 9: expected a table of text, got bytes that aren't")


def test_an_item_beyond_the_catalog_is_refused(load: Callable[..., Dataset], folder: Path) -> None:
    assert refusal(load, table([*SOUND, (0, 3, 0)]), CATALOG) == (
        f"{folder / 'toy.inter'}: itemID: expected at most 2, as the catalog has 3 rows ({folder / 'items.tsv'}), "
        "got 3; add its row or drop its interactions"
    )


CATALOG_FAULTS = {
    "an empty file": ("", ": expected a table of text, got an empty file; copy or download it again"),
    "no itemID": ("asin\ttitle\nA\tcup\n", ": expected the column 'itemID', got asin, title"),
    "an id twice": (
        "itemID\n0\n1\n1\n",
        ": itemID: expected each of 0 ... 2 once, as row i of every feature table is item i, "
        "got 2 distinct numbers in 3 rows",
    ),
    "a gap": (
        "itemID\n0\n2\n",
        ": itemID: expected each of 0 ... 1 once, as row i of every feature table is item i, "
        "got 2 distinct numbers in 2 rows",
    ),
    "a word": (
        "itemID\n0\nB00\n",
        ": itemID: expected each of 0 ... 1 once, as row i of every feature table is item i, "
        "got 1 distinct numbers in 2 rows",
    ),
}


@pytest.mark.parametrize("fault", CATALOG_FAULTS)
def test_a_catalog_is_refused_with_the_file_and_the_reason(
    fault: str, load: Callable[..., Dataset], folder: Path
) -> None:
    text, expected = CATALOG_FAULTS[fault]
    message = refusal(load, table(SOUND), text)
    assert message.startswith(f"{folder / 'items.tsv'}{expected}")
    if not expected.endswith(": "):
        assert message == f"{folder / 'items.tsv'}{expected}"


# Real data


def test_amazon_baby_has_the_counts_that_its_readme_states(shared: Path) -> None:
    baby = load_dataset(shared / "data" / "baby", "baby", Settings())
    assert (baby.n_users, baby.n_items) == (19_445, 7_050)
    assert (len(baby.train), len(baby.valid), len(baby.test)) == (118_551, 20_559, 21_682)
    assert baby.catalog is not None
    assert sum(map(bool, baby.catalog.fields["title"])) == 3_416
    assert sum(map(bool, baby.catalog.fields["description"])) == 978
    assert baby.catalog.raw_ids[0] == "097293751X"


def test_amazon_sports_has_the_counts_that_its_readme_states(shared: Path) -> None:
    sports = load_dataset(shared / "data" / "sports", "sports", Settings())
    assert (sports.n_users, sports.n_items) == (35_598, 18_357)
    assert (len(sports.train), len(sports.valid), len(sports.test)) == (218_409, 37_899, 40_029)
    assert sports.catalog is None


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_an_image_is_found_in_either_unicode_form_of_its_name(tmp_path: Path, form: str) -> None:
    there = tmp_path / "images" / unicodedata.normalize(form, "Café.jpg")
    there.parent.mkdir()
    there.touch()
    for written in ("NFC", "NFD"):
        (tmp_path / "items.tsv").write_text(f"itemID\timage\n0\t{unicodedata.normalize(written, 'Café.jpg')}\n")
        [path] = read_catalog(tmp_path).images
        assert path is not None
        assert path.exists()


@pytest.mark.parametrize(("files", "noted"), [((), False), ((".DS_Store",), False), (("010/0108775015.jpg",), True)])
def test_a_catalog_that_names_no_image_beside_a_folder_of_files_is_noted(
    data_path: Path, files: tuple[str, ...], noted: bool
) -> None:
    folder = data_path / "toy"
    (folder / "items.tsv").write_text("itemID\ttitle\n" + "".join(f"{item}\tmug\n" for item in range(16)))
    shutil.rmtree(folder / "images")
    for file in files:
        (folder / "images" / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / "images" / file).touch()
    notes = load_dataset(folder, "toy", Settings()).notes
    assert any("`mmrec-lmm data images toy --from" in note for note in notes) == noted
