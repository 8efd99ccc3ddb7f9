"""Public layouts as files of their real formats, some damaged: what is read, what is counted, what stops."""

import gzip
import json
import os
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import call

from mmrec_lmm.config.settings import Settings
from mmrec_lmm.data.loading import load_dataset
from mmrec_lmm.errors import ConfigError, DataError
from mmrec_lmm_data_tools.building import build_folder
from mmrec_lmm_data_tools.raw import RawData
from mmrec_lmm_data_tools.sources import LAYOUTS, lines, read_folder

TIME = 1_370_000_000


def review(user: object, item: object, rating: object = 5.0, time: object = TIME, **others: object) -> str:
    fields = {"reviewerID": user, "asin": item, "helpful": [0, 1], "reviewText": 'Good, "really"', "overall": rating}
    return json.dumps(fields | {"unixReviewTime": time, **others})


def write(path: Path, *content: str | bytes, end: str = "\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = b"".join((line if isinstance(line, bytes) else line.encode()) + end.encode() for line in content)
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def pairs(raw: RawData) -> list[tuple[str, str]]:
    return list(zip(raw.interactions["user"], raw.interactions["item"], strict=True))


def counts(raw: RawData) -> dict[str, tuple[int, int | None]]:
    return {reason: (skipped.count, skipped.line) for reason, skipped in raw.skipped.items()}


def table(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)


# The layouts, complete


def amazon_2014(folder: Path) -> None:
    write(folder / "ratings_Baby.csv", *(f"A{user:012d},B{item:09d},{item % 5 + 1}.0,{TIME + item}"
                                         for user in range(5) for item in (7, 3, 1)))  # fmt: skip
    write(folder / "reviews_Baby_5.json.gz", review("A000000000009", "B000000009"))
    write(
        folder / "meta_Baby.json.gz",
        "{'asin': 'B000000001', 'title': \"Baby's &amp; Mug\", 'brand': 'Acme', 'imUrl': 'http://x/a b.jpg', "
        "'categories': [['Baby', 'Mugs, Cups'], ['Baby', 'Gifts']], 'description': '<b>Nice</b>', 'price': 7.5}",
        "{'asin': 'B000000007', 'related': {'also_bought': ['B000000001']}, 'salesRank': {}}",
        "{'asin': 'B000000077', 'title': 'nobody reviewed it'}",
    )
    vector = struct.pack("<4096f", *([0.5] * 4096))
    (folder / "image_features_Baby.b").write_bytes(b"B000000001" + vector + b"B000000099" + vector)


def amazon_2018(folder: Path) -> None:
    write(folder / "Toys_5.json", *(review(f"A{user:012d}", f"B{item:09d}", verified=True)
                                    for user in range(5) for item in (7, 3, 1)))  # fmt: skip
    item = {"asin": "B000000001", "category": ["Toys", "Mugs"], "title": "Mug", "brand": "Acme", "feature": ["1 l"],
            "description": ["Nice.", "Blue."], "imageURL": ["http://x/small.jpg"],
            "imageURLHighRes": ["http://x/large.jpg", "http://x/other.jpg"]}  # fmt: skip
    script = "var aPageStart = (new Date()).getTime(); window.ue = 1"
    write(
        folder / "meta_Toys.json",
        *map(json.dumps, (item, {"asin": "B000000007", "title": script, "category": []}, item | {"title": "Second"})),
    )


def amazon_2023(folder: Path) -> None:
    for split, item in (("train", 7), ("valid", 3), ("test", 1)):
        rows = [f"A{user},B{item:09d},4.0,{TIME}000" for user in range(5)]
        write(folder / f"Toys.{split}.csv.gz", "user_id,parent_asin,rating,timestamp", *rows)
    write(
        folder / "meta_Toys.jsonl",
        json.dumps({
            "parent_asin": "B000000001", "title": "Mug", "store": "Acme", "categories": ["Toys", "Mugs"],
            "description": ["Nice.", "Blue."], "features": ["1 l"], "main_category": "Toys",
            "images": [{"variant": "PT01", "large": "http://x/back.jpg"},
                       {"variant": "MAIN", "hi_res": None, "large": "http://x/large.jpg", "thumb": "http://x/t.jpg"}],
        }),
        json.dumps({"parent_asin": "B000000007", "title": None, "images": [], "description": []}),
    )  # fmt: skip


def movielens_100k(folder: Path) -> None:
    write(folder / "u.data", *(f"{user}\t{item}\t3\t{TIME + item}" for user in range(1, 6) for item in (7, 3, 1)))
    flags = ["0"] * 19
    flags[1] = flags[5] = "1"
    write(
        folder / "u.item",
        "|".join(["1", "Les Misérables (1995)", "01-Jan-1995", "", "http://x", *flags]).encode("latin-1"),
    )


def movielens_1m(folder: Path) -> None:
    write(folder / "ratings.dat", *(f"{user}::{item}::3::{TIME + item}" for user in range(1, 6) for item in (7, 3, 1)))
    write(folder / "movies.dat", "1::Les Misérables (1995)::Action|Comedy".encode("latin-1"))


def movielens_latest(folder: Path) -> None:
    rows = [f"{user},{item},3.5,{TIME + item}" for user in range(1, 6) for item in (7, 3, 1)]
    write(folder / "ratings.csv", "userId,movieId,rating,timestamp", *rows, end="\r\n")
    write(folder / "movies.csv", "movieId,title,genres", '1,"Misérables, Les (1995)",Action|Comedy',
          "7,Heat,(no genres listed)", end="\r\n")  # fmt: skip
    write(folder / "tags.csv", "userId,movieId,tag,timestamp", "1,1,sad,1")


def recbole(folder: Path) -> None:
    rows = [f"u{user}\ti{item}\t3\t{TIME + item}" for user in range(1, 6) for item in (7, 3, 1)]
    write(folder / "toys.inter", "user_id:token\titem_id:token\trating:float\ttimestamp:float", *rows)
    write(folder / "toys.item", "item_id:token\tmovie_title:token_seq\tgenre:token_seq", "i1\tThe Mug\tToys Mugs")


def mmrec(folder: Path) -> None:
    rows = [f"{user}\t{item}\t4.5\t{TIME}\t{item}" for user in range(2) for item in (2, 0, 1)]
    write(folder / "toys.inter", "userID\titemID\trating\ttimestamp\tx_label", *rows)
    write(folder / "i_id_mapping.csv", "asin\titemID", "B7\t0", "B3\t1", "B1\t2", "B0\t3")
    write(folder / "u_id_mapping.csv", "user_id\tuserID", "Ann\t0", "Bob\t1")
    write(folder / "meta-toys.csv", "itemID,asin,title,imUrl,description", '2,B1,Mug,http://x/a.jpg,"two\nlines"')
    np.save(folder / "image_feat.npy", np.arange(8, dtype=np.float64).reshape(4, 2) + 1)
    write(folder / "missed_img_itemIDs.csv", "1")


MAKERS: Mapping[str, tuple[str, Callable[[Path], None]]] = {
    maker.__name__: (layout, maker)
    for layout, maker in (
        ("amazon-2014", amazon_2014), ("amazon-2018", amazon_2018), ("amazon-2023", amazon_2023),
        ("movielens", movielens_100k), ("movielens", movielens_1m), ("movielens", movielens_latest),
        ("recbole", recbole), ("mmrec", mmrec),
    )
}  # fmt: skip


@pytest.mark.parametrize("name", MAKERS)
def test_every_layout_is_recognized_read_and_made_a_data_set_that_the_host_reads(tmp_path: Path, name: str) -> None:
    layout, make = MAKERS[name]
    make(tmp_path / "raw")
    report = build_folder(tmp_path / "raw", tmp_path / "shop")
    assert report.source == layout
    dataset = load_dataset(tmp_path / "shop", "shop", Settings())
    assert (dataset.n_users, dataset.n_items) == (report.users, report.items)
    assert all(report.splits.values())
    assert read_folder(tmp_path / "raw", layout=layout)[0] == layout
    manifest = json.loads((tmp_path / "shop" / "manifest.json").read_text())
    assert (manifest["source"], manifest["interactions"]) == (layout, report.interactions)
    assert str(tmp_path) not in json.dumps(manifest)


@pytest.mark.parametrize("name", MAKERS)
def test_the_same_files_give_the_same_bytes(tmp_path: Path, name: str) -> None:
    MAKERS[name][1](tmp_path / "raw")
    for folder in ("one", "two"):
        build_folder(tmp_path / "raw", tmp_path / folder / "shop")
    for path in (tmp_path / "one" / "shop").rglob("*"):
        assert (
            path.is_dir() or path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()
        )


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name.startswith("amazon")])
def test_amazon_items_have_text_brand_categories_and_the_best_addresses_of_their_image(
    tmp_path: Path, layout: str
) -> None:
    MAKERS[layout.replace("-", "_")][1](tmp_path / "raw")
    report = build_folder(tmp_path / "raw", tmp_path / "shop")
    items = table(tmp_path / "shop" / "items.tsv").set_index("raw_id")
    assert list(items.index) == ["B000000007", "B000000003", "B000000001"]  # by appearance
    expected = {
        "amazon-2014": ["Baby's & Mug", "Acme", "Baby, Mugs, Cups, Gifts", "Nice", "http://x/a%20b.jpg"],
        "amazon-2018": ["Mug", "Acme", "Toys, Mugs", "Nice. Blue.", "http://x/large.jpg http://x/small.jpg"],
        "amazon-2023": ["Mug", "Acme", "Toys, Mugs", "Nice. Blue.", "http://x/large.jpg http://x/t.jpg"],
    }[layout]
    assert items.loc["B000000001", ["title", "brand", "categories", "description", "image_url"]].tolist() == expected
    assert items.loc["B000000003", ["title", "description", "image_url"]].tolist() == ["", "", ""]
    assert report.items_without_content == 1
    assert items.loc["B000000007", "title"] == ""  # absent, or a page's script


def test_repeated_items_scripts_and_items_of_nobody_are_counted(tmp_path: Path) -> None:
    amazon_2018(tmp_path / "raw")
    report = build_folder(tmp_path / "raw", tmp_path / "shop", strict=True)
    assert report.skipped["item repeated, its first row kept"].line == 3
    assert report.cleaned == {"page scripts cut off": 1}
    amazon_2014(tmp_path / "older")
    assert counts(read_folder(tmp_path / "older")[1]) == {"item without interactions": (1, 3)}


def test_amazons_image_features_go_to_their_items_and_absent_rows_are_zero(tmp_path: Path) -> None:
    amazon_2014(tmp_path / "raw")
    report = build_folder(tmp_path / "raw", tmp_path / "shop")
    features = np.load(tmp_path / "shop" / "image_feat.npy")
    assert (features.shape, features.dtype) == ((3, 4096), np.float32)
    assert features.any(axis=1).tolist() == [False, False, True]
    assert (features[2] == 0.5).all()
    assert report.features == {"image_feat.npy": 1}
    with (tmp_path / "raw" / "image_features_Baby.b").open("ab") as file:
        file.write(b"B0000")
    with pytest.raises(DataError, match=r"image_features_Baby\.b: .*ends within record 3; download it again"):
        build_folder(tmp_path / "raw", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_all_ratings_go_before_reviews_and_what_is_left_out_is_said(tmp_path: Path) -> None:
    amazon_2014(tmp_path / "raw")
    raw = read_folder(tmp_path / "raw")[1]
    assert len(raw.interactions) == 15
    assert raw.read[-1] == "not read: reviews_Baby_5.json.gz"


def test_a_benchmarks_split_is_kept_and_another_can_be_drawn(tmp_path: Path) -> None:
    amazon_2023(tmp_path / "raw")
    report = build_folder(tmp_path / "raw", tmp_path / "shop")
    assert (report.splits, report.split) == ({"train": 5, "valid": 5, "test": 5}, "as the files have it")
    other = build_folder(tmp_path / "raw", tmp_path / "other", split="leave-one-out")
    assert other.split == "leave-one-out, drawn from seed 0"
    (tmp_path / "raw" / "Toys.valid.csv.gz").unlink()
    with pytest.raises(DataError, match="expected one file each of train, valid and test, got Toys"):
        read_folder(tmp_path / "raw")


def test_films_have_titles_in_latin_1_and_genres(tmp_path: Path) -> None:
    for name in ("movielens_100k", "movielens_1m", "movielens_latest"):
        MAKERS[name][1](tmp_path / name)
        raw = read_folder(tmp_path / name)[1]
        assert raw.items is not None
        title, genres = raw.items.loc["1", ["title", "categories"]]
        assert "Misérables" in title
        assert genres == "Action, Comedy"
        assert raw.interactions["rating"].iloc[0] == (3.5 if name == "movielens_latest" else 3)


def test_an_mmrec_folder_keeps_its_numbers_items_and_rows_of_features(tmp_path: Path) -> None:
    mmrec(tmp_path / "raw")
    build_folder(tmp_path / "raw", tmp_path / "shop")
    assert table(tmp_path / "shop" / "i_id_mapping.csv")["asin"].tolist() == ["B7", "B3", "B1", "B0"]
    assert table(tmp_path / "shop" / "items.tsv")["description"].tolist() == ["", "", "two lines", ""]
    assert np.load(tmp_path / "shop" / "image_feat.npy").tolist() == [[1, 2], [0, 0], [5, 6], [7, 8]]
    inter = table(tmp_path / "shop" / "shop.inter")
    assert set(zip(inter["itemID"], inter["x_label"], strict=True)) == {("0", "0"), ("1", "1"), ("2", "2")}


@pytest.mark.parametrize("label", ["3", "-1", "9"])
def test_an_mmrec_folder_with_a_label_of_no_split_is_refused_with_its_line(tmp_path: Path, label: str) -> None:
    mmrec(tmp_path / "raw")
    inter = tmp_path / "raw" / "toys.inter"
    lines = inter.read_text().splitlines()
    for row in (2, 5):
        lines[row] = lines[row].rsplit("\t", 1)[0] + f"\t{label}"
    write(inter, *lines)
    answer = call("data", "build", "shop", "--from", tmp_path / "raw", "--data-path", tmp_path / "data")
    assert answer.code == 4
    expected = f"x_label: expected 0 (train), 1 (valid) or 2 (test), got {label} (2 such rows)"
    assert f"{inter}, line 3: {expected}" in answer.err


def test_atomic_files_may_lack_ratings_and_times(tmp_path: Path) -> None:
    write(tmp_path / "toys.inter", "item_id:token\tuser_id:token", "i1\tu1", "i2\tu1")
    assert list(read_folder(tmp_path)[1].interactions.columns) == ["user", "item"]


# Lines that can't be used


GOOD = [review("A1", "B1"), review("A2", "B2")]
BAD_LINES: Mapping[str, tuple[str | bytes, str]] = {
    "foreign text": ("--- cut here ---", "not JSON"),
    "a page": ("<!DOCTYPE html><html>", "not JSON"),
    "a cut line": (review("A3", "B3")[:40], "not JSON"),
    "a list": ("[1, 2]", "not a JSON object"),
    "deep nesting": ('{"a":' * 100_000, "not JSON"),
    "no user": (json.dumps({"asin": "B3", "overall": 5.0, "unixReviewTime": TIME}), "no user id"),
    "an empty item": (review("A3", " "), "no item id"),
    "an id that is a list": (review(["A3"], "B3"), "no user id"),
    "an id with a tab": (review("A\t3", "B3"), "no user id"),
    "an id with a line break": (review("A3", "B\n3"), "no item id"),
    "a rating in words": (review("A3", "B3", "five"), "rating isn't a number"),
    "no rating": (review("A3", "B3", None), "rating isn't a number"),
    "an infinite rating": (review("A3", "B3", "inf"), "rating isn't a number"),
    "a time in words": (review("A3", "B3", time="yesterday"), "time isn't a number"),
    "a line of 10 MB": (review("A3", "B3", summary="x" * 10_000_000), "longer than 1,048,576 bytes"),
}


@pytest.mark.parametrize("quick", [True, False], ids=["msgspec", "json"])
@pytest.mark.parametrize("case", BAD_LINES)
def test_a_line_that_cant_be_used_is_skipped_and_counted_or_stops(
    tmp_path: Path, case: str, quick: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    _parser(quick, monkeypatch)
    line, reason = BAD_LINES[case]
    write(tmp_path / "reviews_X.json", GOOD[0], line, line, GOOD[1])
    raw = read_folder(tmp_path)[1]
    assert counts(raw) == {reason: (2, 2)}
    assert pairs(raw) == [("A1", "B1"), ("A2", "B2")]
    with pytest.raises(DataError, match=rf"reviews_X\.json, line 2: {reason}; without --strict"):
        read_folder(tmp_path, strict=True)


def test_a_layout_is_recognized_behind_a_line_that_is_nested_too_deeply(tmp_path: Path) -> None:
    write(tmp_path / "reviews_X.json", '{"a":' * 100_000, *GOOD)
    name, raw = read_folder(tmp_path)
    assert (name, pairs(raw)) == ("amazon-2014", [("A1", "B1"), ("A2", "B2")])


def _parser(quick: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use msgspec, which must be installed, or the standard library."""
    lines._json_taker.cache_clear()
    if quick:
        pytest.importorskip("msgspec", reason="the extra `data` isn't installed")
    else:
        monkeypatch.setitem(__import__("sys").modules, "msgspec", None)


@pytest.mark.parametrize("quick", [True, False], ids=["msgspec", "json"])
def test_odd_but_usable_lines_are_taken(tmp_path: Path, quick: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    _parser(quick, monkeypatch)
    odd = [
        review('A"quoted"', "0000031852"), review("Ünal", "B'2"), review(7, "B3", "4.0", str(TIME)),
        '{"asin": "B4", "asin": "B5", "reviewerID": "A\\u0031", "overall": 1e0, "unixReviewTime": 1.37e9}',
    ]  # fmt: skip
    write(tmp_path / "reviews_X.json", *odd, "", "   ", end="\r\n")
    raw = read_folder(tmp_path)[1]
    assert pairs(raw) == [('A"quoted"', "0000031852"), ("Ünal", "B'2"), ("7", "B3"), ("A1", "B5")]
    assert raw.interactions["rating"].tolist() == [5, 5, 4, 1]
    assert counts(raw) == {}
    lines._json_taker.cache_clear()


def test_ids_with_quotes_survive_the_way_to_the_host(tmp_path: Path) -> None:
    users = ['A"quoted"', '"all"', "plain", "'single'"]
    write(tmp_path / "raw" / "reviews_X.json", *(review(user, f'"B{item}') for user in users for item in range(3)))
    build_folder(tmp_path / "raw", tmp_path / "shop")
    from mmrec_lmm.data.tables import read_table

    assert read_table(tmp_path / "shop" / "u_id_mapping.csv").columns["user_id"].tolist() == users
    assert read_table(tmp_path / "shop" / "i_id_mapping.csv").columns["asin"].tolist() == ['"B0', '"B1', '"B2']


def test_other_encodings_within_a_file_are_read_and_counted(tmp_path: Path) -> None:
    write(tmp_path / "u.data", "1\t1\t5\t1", "2\t2\t5\t1")
    flags = "|".join("0" * 19)
    write(tmp_path / "u.item", f"1|Amélie||||{flags}", f"2|Café||||{flags}".encode("latin-1"))
    raw = read_folder(tmp_path)[1]
    assert raw.items is not None
    assert raw.items["title"].tolist() == ["Amélie", "Café"]
    assert str(raw.repaired["not UTF-8, read as Latin-1"]) == "1 (first: u.item, line 2)"


def test_times_in_another_unit_become_the_layouts_own_and_are_counted(tmp_path: Path) -> None:
    write(tmp_path / "reviews_X.json", GOOD[0], review("A2", "B2", time=TIME * 1000), review("A3", "B3", time=0))
    raw = read_folder(tmp_path)[1]
    assert raw.interactions["timestamp"].tolist() == [TIME, TIME, 0]
    assert str(raw.repaired["time in milliseconds, made seconds"]) == "1 (first: reviews_X.json, line 2)"


def test_a_truncated_or_damaged_gzip_file_stops_with_the_line(tmp_path: Path) -> None:
    path = write(tmp_path / "reviews_X.json.gz", *(review(f"A{os.urandom(9).hex()}", "B1") for _ in range(2000)))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"reviews_X\.json\.gz, line \d+: .*ends early; download it again, or .*zcat"):
        build_folder(tmp_path, tmp_path / "out" / "shop")
    path.write_bytes(whole[:5000] + b"\0" * 100 + whole[5100:])
    with pytest.raises(DataError, match=r"reviews_X\.json\.gz, line \d+: .*a damaged one"):
        build_folder(tmp_path, tmp_path / "out" / "shop")
    assert not (tmp_path / "out").exists()
    path.write_bytes(whole + gzip.compress(review("A1", "B2").encode()) + b"\0" * 512)  # members, then padding
    assert len(read_folder(tmp_path)[1].interactions) == 2001


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("reviews_X.json.gz", b"<!DOCTYPE html><html>", r"got a web page"),
        ("reviews_X.json.gz", gzip.compress(b"<html>404", mtime=0), r"got a web page"),
        ("reviews_X.json", b"version https://git-lfs.github.com/spec/v1", r"git lfs pull"),
        ("reviews_X.json", b"", r"got an empty file"),
        ("reviews_X.json", review("A1", "B1").encode("utf-16"), r"got UTF-16"),
        ("reviews_X.json", review("A1", "B1", "five").encode(), r"no usable line; rating isn't a number: 1 \(first: "),
        ("ratings.csv", b"hello\nworld\n", r"expected files of a known layout, got ratings\.csv; try .*data import"),
    ],
)  # fmt: skip
def test_a_file_of_which_nothing_can_be_used_is_named_with_the_reason(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_folder(tmp_path)


LITERALS = {
    "code": ("{'asin': __import__('os').system('touch hacked')}", "not a Python literal"),
    "a call": ("{'asin': str(1)}", "not a Python literal"),
    "deep": ("{'asin': " + "[" * 5000 + "]" * 5000 + "}", "a Python literal that is nested too deeply"),
    "signs": ("{'asin': " + "-" * 5000 + "1}", "a Python literal that is nested too deeply"),
    "long number": ("{'asin': " + "9" * 5000 + "}", "not a Python literal"),
    "cut": ("{'asin': 'B2', 'title': 'Mu", "not a Python literal"),
    "a set": ("{'asin', 'B2'}", "not a record of fields"),
    "no id": ("{'title': 'Mug'}", "no item id"),
    "NUL": ("{'asin': 'B\0'}", "not a Python literal"),
}


@pytest.mark.parametrize("case", LITERALS)
def test_a_python_literal_is_never_run_and_bad_ones_are_counted(
    tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line, reason = LITERALS[case]
    write(tmp_path / "reviews_X.json", *GOOD)
    write(tmp_path / "meta_X.json", "{'asin': 'B1', 'title': 'Mug [[[ - - \\' x'}", line)
    raw = read_folder(tmp_path)[1]
    assert counts(raw) == {reason: (1, 2)}
    assert raw.items is not None
    assert raw.items["title"].to_dict() == {"B1": "Mug [[[ - - ' x"}
    assert not (tmp_path / "hacked").exists()


# Choosing, filters, the command


def test_files_of_several_layouts_or_categories_are_told_apart_by_name(tmp_path: Path) -> None:
    write(tmp_path / "reviews_Toys.json", *GOOD)
    write(tmp_path / "reviews_Baby.json", GOOD[0])
    with pytest.raises(DataError, match=r"expected one file of reviews, got reviews_Baby\.json, .*try --category TEXT"):
        read_folder(tmp_path)
    assert len(read_folder(tmp_path, category="toys")[1].interactions) == 2
    with pytest.raises(ConfigError, match=r"--category: .* got 'Shoes'; there are reviews_Baby\.json"):
        read_folder(tmp_path, category="Shoes")
    movielens_100k(tmp_path)
    with pytest.raises(DataError, match="got those of amazon-2014 and movielens; try --layout NAME"):
        read_folder(tmp_path)
    with pytest.raises(ConfigError, match=r"--layout: .*did you mean movielens\?"):
        read_folder(tmp_path, layout="movilens")


def test_ratings_by_item_and_user_are_the_2018_edition(tmp_path: Path) -> None:
    write(
        tmp_path / "Toys.csv", "cut here", f"B000000001,A00000000001,5.0,{TIME}", f"0000031852,A00000000002,5.0,{TIME}"
    )
    name, raw = read_folder(tmp_path)
    assert counts(raw) == {"not 4 cells": (1, 1)}
    assert (name, pairs(raw)[1]) == ("amazon-2018", ("A00000000002", "0000031852"))


def test_threshold_repeats_and_core_are_counted_in_this_order_and_ids_follow_what_is_left(tmp_path: Path) -> None:
    rows = [
        ("u9", "x", 1),
        ("u1", "a", 4),
        ("u1", "b", 5),
        ("u1", "a", 5),
        ("u2", "b", 4),
        ("u2", "a", 4),
        ("u3", "a", 4),
    ]
    write(tmp_path / "raw" / "reviews_X.json", *(review(user, item, rating) for user, item, rating in rows))
    report = build_folder(tmp_path / "raw", tmp_path / "shop", min_rating=4, core=2)
    assert report.dropped == {"rating below 4": 1, "pair repeated": 1, "outside the 2-core": 1}
    assert table(tmp_path / "shop" / "u_id_mapping.csv")["user_id"].tolist() == ["u1", "u2"]
    assert table(tmp_path / "shop" / "i_id_mapping.csv")["asin"].tolist() == ["a", "b"]
    inter = table(tmp_path / "shop" / "shop.inter")
    assert sorted(zip(inter["userID"], inter["itemID"], inter["rating"], strict=True)) == [
        ("0", "0", "4.0"), ("0", "1", "5.0"), ("1", "0", "4.0"), ("1", "1", "4.0"),
    ]  # fmt: skip


def test_several_processes_read_what_one_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    users = [f"A{number * 7919 % 997}" for number in range(3000)]
    content = [review(user, f"B{place % 31}") if place % 100 else "x" for place, user in enumerate(users)]
    write(tmp_path / "reviews_X.json.gz", *content)
    whole = read_folder(tmp_path)[1]
    monkeypatch.setattr(lines, "BLOCK", 20_000)
    parts = read_folder(tmp_path)[1]
    assert pairs(whole) == pairs(parts) == [(user, f"B{i % 31}") for i, user in enumerate(users) if i % 100]
    assert list(parts.interactions["user"].cat.categories) == list(whole.interactions["user"].cat.categories)
    assert counts(whole) == counts(parts) == {"not JSON": (30, 1)}


def test_the_command_says_what_it_took_and_what_to_type_next(tmp_path: Path) -> None:
    amazon_2014(tmp_path / "raw")
    (tmp_path / "raw" / "image_features_Baby.b").unlink()
    answer = call("data", "build", "shop", "--from", tmp_path / "raw", "--data-path", tmp_path / "data")
    assert answer.code == 0, answer.err
    assert "ratings_Baby.csv: ratings of Amazon 2014, 15 of user, item, rating, time in seconds" in answer.out
    assert answer.out.splitlines()[-1].startswith(f"next: mmrec-lmm data images shop --data-path {tmp_path / 'data'}")
    again = call("data", "build", "shop", "--from", tmp_path / "raw", "--data-path", tmp_path / "data")
    assert (again.code, "--force" in again.err) == (2, True)
    movielens_100k(tmp_path / "ml")
    answer = call("data", "build", "ml", "--from", tmp_path / "ml", "--data-path", tmp_path / "data", "--strict")
    assert answer.out.splitlines()[-2].startswith("next: mmrec-lmm data check -d ml")
    assert answer.out.splitlines()[-1].startswith("      mmrec-lmm run -d ml")
    missing = call("data", "build", "x", "--from", tmp_path / "nowhere", "--data-path", tmp_path / "data")
    assert (missing.code, "nowhere: no such file or folder" in missing.err) == (4, True)


# The real files


@pytest.fixture
def amazon_raw(shared: Path) -> Path:
    folder = shared / "data" / "amazon_raw"
    if not folder.is_dir():
        pytest.skip(f"no {folder}")
    return folder


def test_all_real_lines_of_2014_are_read(tmp_path: Path, amazon_raw: Path) -> None:
    shutil.copy(amazon_raw / "reviews_2014_electronics_800.jsonl", tmp_path)
    literals = (amazon_raw / "meta_2014_pydict_lines.txt").read_text(encoding="utf-8")
    write(tmp_path / "meta.json", literals, end="")
    asins = [line.split("'asin': '")[1][:10] for line in literals.splitlines()]
    with (tmp_path / "reviews_2014_electronics_800.jsonl").open("a") as file:
        file.writelines(review("A0", asin) + "\n" for asin in asins)  # the 800 reviews are of another item
    raw = read_folder(tmp_path, strict=True)[1]
    assert (len(raw.interactions), raw.skipped) == (832, {})
    assert raw.items is not None
    assert list(raw.items.index) == asins
    assert len(raw.items) == 32


def test_the_real_2018_file_has_134_repeated_reviews(tmp_path: Path, amazon_raw: Path) -> None:
    shutil.copy(amazon_raw / "AMAZON_FASHION_5.json.gz", tmp_path)
    report = build_folder(tmp_path, tmp_path / "shop", strict=True)
    assert report.dropped == {"pair repeated": 134}
    assert (report.users, report.items, report.interactions) == (406, 31, 3042)


def test_the_benchmarks_reviews_have_the_format_of_2014(tmp_path: Path) -> None:
    from benchmarks.data import write as write_reviews

    write_reviews(tmp_path / "reviews_X.json.gz", 2000, plain=False)
    name, raw = read_folder(tmp_path, strict=True)
    assert (name, len(raw.interactions), raw.skipped) == ("amazon-2014", 2000, {})
    assert set(json.loads(lines.first_lines(tmp_path / "reviews_X.json.gz", 1)[0])) == {
        "reviewerID", "asin", "reviewerName", "helpful", "reviewText", "overall", "summary", "unixReviewTime",
        "reviewTime",
    }  # fmt: skip
