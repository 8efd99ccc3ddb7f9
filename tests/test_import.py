"""Importing anyone's tables: what is written, what is reported, and what is refused with which words."""

import ast
import inspect
import json
import os
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import ROOT
from helpers import call

from mmrec_lmm.config.settings import Settings
from mmrec_lmm.data.loading import load_dataset
from mmrec_lmm.errors import ConfigError, DataError, MMRecError
from mmrec_lmm_data_tools.importing import import_dataset


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def ratings(tmp_path: Path) -> Path:
    """Two users with four interactions each, in MovieLens' form; item c is never touched."""
    rows = [f"{user}\t{item}\t{4 + i % 2}\t{100 + i}" for user in ("u9", "u3") for i, item in enumerate("dbae")]
    return write(tmp_path / "u.data", *rows)


@pytest.fixture
def items(tmp_path: Path) -> Path:
    return write(
        tmp_path / "goods.csv",
        "asin,Title,price,description,image",
        'a,"Mug, ""blue""",3,"two lines\tand a tab",a.jpg',
        "b,Lamp,,,lost.jpg",
        "c,NA,5,unloved,sub/c.png",
        "d,,,,",
        "e,Rug,7,soft,a.jpg",
    )


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.jpg").write_bytes(b"\xff\xd8 a")
    (folder / "sub" / "c.png").write_bytes(b"\x89PNG c")
    (folder / "unused.jpg").write_bytes(b"nobody's")
    return folder


def test_a_table_without_header_is_read_by_position_and_split_by_mmrecs_rule(tmp_path: Path, ratings: Path) -> None:
    report = import_dataset(ratings, tmp_path / "shop")
    table = read(tmp_path / "shop" / "shop.inter")
    assert list(table.columns) == ["userID", "itemID", "rating", "timestamp", "x_label"]
    assert table["x_label"].tolist() == ["0", "0", "1", "2"] * 2
    assert sorted(zip(table["itemID"], table["rating"], table["timestamp"], strict=True)) == sorted(
        [("0", "4", "100"), ("1", "5", "101"), ("2", "4", "102"), ("3", "5", "103")] * 2
    )
    assert (report.users, report.items, report.splits) == (2, 4, {"train": 4, "valid": 2, "test": 2})
    assert not (tmp_path / "shop" / "items.tsv").exists()


def test_users_are_numbered_by_appearance_and_items_by_their_row_in_the_catalog(
    tmp_path: Path, ratings: Path, items: Path
) -> None:
    import_dataset(ratings, tmp_path / "shop", items=items)
    assert read(tmp_path / "shop" / "u_id_mapping.csv").to_dict("list") == {
        "user_id": ["u9", "u3"],
        "userID": ["0", "1"],
    }
    assert read(tmp_path / "shop" / "i_id_mapping.csv").to_dict("list") == {
        "asin": list("abcde"),
        "itemID": list("01234"),
    }
    assert set(read(tmp_path / "shop" / "shop.inter")["itemID"]) == {"0", "1", "3", "4"}


def test_text_keeps_its_words_and_loses_its_line_breaks_and_every_item_keeps_its_row(
    tmp_path: Path, ratings: Path, items: Path, images: Path
) -> None:
    report = import_dataset(ratings, tmp_path / "shop", items=items, images=images)
    table = read(tmp_path / "shop" / "items.tsv")
    assert table["raw_id"].tolist() == list("abcde")
    assert table["title"].tolist() == ['Mug, "blue"', "Lamp", "NA", "", "Rug"]
    assert table["description"].tolist() == ["two lines and a tab", "", "unloved", "", "soft"]
    assert table["price"].tolist() == ["3", "", "5", "", "7"]
    assert table["image"].tolist() == ["a.jpg", "", "sub/c.png", "", "a.jpg"]
    assert report.texts == {"title": 4, "description": 3}
    assert (report.images, report.images_missing, report.items_without_interactions) == (3, ("b",), 1)
    assert "1 images named but not found, of items b" in str(report)


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path: Path, ratings: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for interactions, items in ((tmp_path / "pipe", None), (ratings, tmp_path / "pipe")):
        with pytest.raises(DataError, match="pipe: expected a file, got a pipe, a socket or a device; try saving"):
            import_dataset(interactions, tmp_path / "shop", items=items)


def test_quoted_cells_may_hold_line_breaks_where_asked(tmp_path: Path, ratings: Path) -> None:
    goods = write(tmp_path / "goods.csv", "asin,title", 'a,"two', 'lines"', "b,x", "d,", "e,")
    with pytest.raises(DataError, match=r"goods\.csv, line 2: .*try --quotes multiline.*or --quotes none"):
        import_dataset(ratings, tmp_path / "shop", items=goods)
    report = import_dataset(ratings, tmp_path / "shop", items=goods, quotes="multiline")
    assert report.items == 4
    assert read(tmp_path / "shop" / "items.tsv")["title"].tolist() == ["two lines", "x", "", ""]


def test_images_are_copied_byte_for_byte_and_only_those_that_items_name(
    tmp_path: Path, ratings: Path, items: Path, images: Path
) -> None:
    import_dataset(ratings, tmp_path / "shop", items=items, images=images)
    assert files(tmp_path / "shop" / "images") == {"a.jpg": b"\xff\xd8 a", "sub/c.png": b"\x89PNG c"}


def test_without_an_image_column_a_file_belongs_to_the_item_that_it_is_named_after(
    tmp_path: Path, ratings: Path, images: Path
) -> None:
    report = import_dataset(ratings, tmp_path / "shop", images=images)
    assert read(tmp_path / "shop" / "items.tsv")["image"].tolist() == ["", "", "a.jpg", ""]  # items d b a e
    assert (report.images, report.images_missing) == (1, ())


def test_the_host_reads_what_was_imported(tmp_path: Path, ratings: Path, items: Path, images: Path) -> None:
    import_dataset(ratings, tmp_path / "shop", items=items, images=images)
    dataset = load_dataset(tmp_path / "shop", "shop", Settings())
    assert (dataset.n_users, dataset.n_items, len(dataset.train)) == (2, 5, 4)
    assert dataset.catalog is not None
    assert dataset.catalog.raw_ids == ("a", "b", "c", "d", "e")
    assert [path is not None and path.is_file() for path in dataset.catalog.images] == [True, False, True, False, True]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_another_split(
    tmp_path: Path, ratings: Path, items: Path, images: Path
) -> None:
    for folder, seed in (("one", 1), ("two", 1), ("three", 2)):
        import_dataset(ratings, tmp_path / folder / "shop", items=items, images=images, seed=seed)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert files(tmp_path / "one")["shop/shop.inter"] != files(tmp_path / "three")["shop/shop.inter"]


def test_the_report_lies_beside_the_data(tmp_path: Path, ratings: Path) -> None:
    report = import_dataset(ratings, tmp_path / "shop", seed=4)
    content = json.loads((tmp_path / "shop" / "manifest.json").read_text())
    assert (content["name"], content["users"], content["options"]["split_seed"]) == ("shop", 2, 4)
    assert content["inputs"] == report.inputs


@pytest.mark.parametrize(
    ("lines", "options"),
    [
        (["userID,itemID", "u1,x", "u1,y"], {}),
        (["\ufeffUser,Item", "u1,x", "u1,y"], {}),
        (["buyer,good", "u1,x", "u1,y"], {"user_column": "buyer", "item_column": "good"}),
        (["good,stars,buyer", "x,5,u1", "y,4,u1"], {"user_column": "buyer", "item_column": "good"}),
        (["u1,x", "u1,y"], {}),
        (["9,u1,x", "8,u1,y"], {"columns": ("timestamp", "user", "item")}),
        (["u1::x::5", "u1::y::4"], {"separator": "::"}),
    ],
)
def test_headers_orders_and_separators_of_many_kinds_are_understood(
    tmp_path: Path, lines: list[str], options: dict[str, str]
) -> None:
    import_dataset(write(tmp_path / "table", *lines), tmp_path / "shop", **options)
    assert read(tmp_path / "shop" / "u_id_mapping.csv")["user_id"].tolist() == ["u1"]
    assert read(tmp_path / "shop" / "i_id_mapping.csv")["asin"].tolist() == ["x", "y"]


# Columns, headers, splits


@pytest.mark.parametrize(
    ("lines", "options", "said"),
    [
        ([",user,item,rating", "0,u1,x,5", "1,u1,y,4"], {}, "not used: one without a name"),
        (["Unnamed: 0,user,item", "0,u1,x", "1,u1,y"], {}, "not used: one without a name"),
        (["user_id:token\titem_id:token\trating:float", "u1\tx\t5", "u1\ty\t4"], {}, "user user_id, item item_id"),
        (["buyer,good,when", "u1,x,5", "u1,y,4"], {"user_column": "buyer", "item_column": "good"}, "a header"),
        (["user;item;rating", "u1;x;4,5", "u1;y;3"], {"decimal": ","}, "separator ';'"),
        (["a,b", "u1,x", "u1,y"], {"header": True, "user_column": "a", "item_column": "b"}, "user a, item b"),
        (["u1,x", "u1,y"], {"header": False}, "no header"),
        (['u1,x,"so good"', 'u1,y,"5"" wide"'], {"columns": ("user", "item", "note")}, "no header"),
    ],
)
def test_what_was_taken_of_a_table_is_said(
    tmp_path: Path, lines: list[str], options: dict[str, Any], said: str
) -> None:
    report = import_dataset(write(tmp_path / "table", *lines), tmp_path / "shop", **options)
    assert said in str(report).splitlines()[0]
    assert read(tmp_path / "shop" / "u_id_mapping.csv")["user_id"].tolist() == ["u1"]
    assert read(tmp_path / "shop" / "i_id_mapping.csv")["asin"].tolist() == ["x", "y"]


@pytest.mark.parametrize(
    ("name", "cells", "said"),
    [
        ("ts", "12", "ts (--time-column ts takes it as the time)"),
        ("createdAt", "12", "createdAt (--time-column createdAt takes it as the time)"),
        ("Review Date", "12", "(--time-column 'Review Date' takes it as the time)"),
        ("t_dat", ["2018-09-20", "2018-09-21"], "(--time-column t_dat takes it as the time once its cells are numbers"),
        ("chat", "12", "not used: chat\n"),
        ("date_of_birth", "12", "not used: date_of_birth\n"),
    ],
)
def test_a_column_with_the_name_of_a_time_is_named_with_its_flag(
    tmp_path: Path, name: str, cells: list[str], said: str
) -> None:
    table = write(tmp_path / "table", f"user,item,{name}", f"u1,x,{cells[0]}", f"u1,y,{cells[1]}")
    assert said in str(import_dataset(table, tmp_path / "shop"))
    with pytest.raises(ConfigError, match=r"--split user-time: expected interactions with times.*; try --time-column"):
        import_dataset(table, tmp_path / "other", split="user-time")


def test_times_and_ratings_have_the_columns_that_flags_name(tmp_path: Path) -> None:
    table = write(tmp_path / "table", "user,item,time,ts,score", "u1,x,0,7,2", "u1,y,0,8,3", "u1,z,0,9,4")
    options: dict[str, Any] = {"time_column": "ts", "rating_column": "score"}
    report = import_dataset(table, tmp_path / "shop", split="user-time", **options)
    written = read(tmp_path / "shop" / "shop.inter")
    assert sorted(zip(written["timestamp"], written["rating"], strict=True)) == [("7", "2"), ("8", "3"), ("9", "4")]
    assert (report.options["time_column"], report.options["rating_column"]) == ("ts", "score")
    with pytest.raises(ConfigError, match="--time-column: expected another column than that of item, got 'item'"):
        import_dataset(table, tmp_path / "other", time_column="item")
    with pytest.raises(ConfigError, match=r"--rating-column: .* that of timestamp, .*; try --time-column NAME too"):
        import_dataset(table, tmp_path / "other", rating_column="time")
    with pytest.raises(DataError, match=r": --time-column: expected column 'tss', got .*did you mean ts\?"):
        import_dataset(table, tmp_path / "other", time_column="tss")


@pytest.mark.parametrize(
    "lines",
    [
        ("user,item,rating", "u1,x,5", "user,item,rating", "u1,y,4"),
        ("user,item,rating", "u1,x,5", "\ufeffuser,item,rating", "u1,y,4"),
        ("user,item", "u1,x", "user,item"),
        ("buyer,good,score", "u1,x,5", "buyer,good,score", "u1,y,4"),
    ],
)
def test_a_header_that_comes_again_is_refused(tmp_path: Path, lines: tuple[str, ...]) -> None:
    options = {"user_column": "buyer", "item_column": "good"} if lines[0].startswith("buyer") else {}
    table = write(tmp_path / "table", *lines)
    with pytest.raises(DataError, match=r"table, line 3: .* repeats the header; remove it \(1 such rows\)"):
        import_dataset(table, tmp_path / "shop", **options)


def test_a_header_of_unknown_names_that_comes_again_is_no_row(tmp_path: Path) -> None:
    table = write(tmp_path / "table", "kunde,ware,note", "u1,x,5", "kunde,ware,note", "u1,y,4")
    with pytest.raises(DataError, match=r"line 3: .* repeats the header"):
        import_dataset(table, tmp_path / "shop")


def test_the_header_of_items_that_comes_again_is_refused(tmp_path: Path, ratings: Path) -> None:
    goods = write(tmp_path / "goods.csv", "asin,title", "a,x", "asin,title", "b,y")
    with pytest.raises(DataError, match=r"goods\.csv, line 3: .* repeats the header"):
        import_dataset(ratings, tmp_path / "shop", items=goods)


@pytest.mark.parametrize("drop_unknown", [False, True])
@pytest.mark.parametrize("first", ["d,Rug", "d,item"])
def test_an_items_table_whose_first_row_became_its_header_is_asked_for_one(
    tmp_path: Path, ratings: Path, first: str, drop_unknown: bool
) -> None:
    goods = write(tmp_path / "goods.csv", first, "a,Mug", "b,Lamp", "e,Cup")
    options: dict[str, Any] = {"items_id_column": "d", "drop_unknown": drop_unknown}
    with pytest.raises(DataError, match=r"goods\.csv: has the items table no header\? .*, with d in place") as refused:
        import_dataset(ratings, tmp_path / "shop", items=goods, **options)
    assert "--drop-unknown" not in str(refused.value)


@pytest.mark.parametrize("first", ["sep=;", '"sep=;"', "SEP=;", "sep=;\r", "\ufeffsep=;", "sep=;\n"])
def test_the_separator_that_excel_is_told_is_taken(tmp_path: Path, first: str) -> None:
    table = write(tmp_path / "table", first, "user;item;note", "u1;x;a,b", "u1;y;c,d")
    report = import_dataset(table, tmp_path / "shop")
    assert "separator ';', a header; columns: user user, item item; not used: note" in str(report)
    assert report.interactions == 2
    with pytest.raises(DataError, match=f"table, line {4 + first.count(chr(10))}: expected 3 cells"):
        import_dataset(write(table, first, "user;item;note", "u1;x;a,b", "u1;y"), tmp_path / "other")


@pytest.mark.parametrize("third", ["1700000002", "1700000002000", "1700000002.5"])
def test_a_third_column_of_times_is_the_timestamp(tmp_path: Path, third: str) -> None:
    table = write(tmp_path / "table", f"u1,x,{third}", f"u1,y,{third}")
    report = import_dataset(table, tmp_path / "shop")
    assert "no header; columns: user user, item item, timestamp timestamp" in str(report)
    assert read(tmp_path / "shop" / "shop.inter")["timestamp"].tolist() == [third] * 2
    table = write(tmp_path / "table", f"u1,x,{third},5", f"u1,y,{third},4")
    with pytest.raises(DataError, match=r"third column that looks like times .* try --columns user,item,timestamp,"):
        import_dataset(table, tmp_path / "other")
    report = import_dataset(table, tmp_path / "other", columns=("user", "item", "timestamp", "rating"))
    assert report.interactions == 2


@pytest.mark.parametrize("third", ["5", "4.5", "99999"])
def test_a_third_column_of_small_numbers_is_the_rating(tmp_path: Path, third: str) -> None:
    import_dataset(write(tmp_path / "table", f"u1,x,{third}", "u1,y,1700000002"), tmp_path / "shop")
    assert list(read(tmp_path / "shop" / "shop.inter").columns) == ["userID", "itemID", "rating", "x_label"]


@pytest.mark.parametrize(
    ("cell", "code"),
    [("u\u200b1", "200B"), ("\u2060u1", "2060"), ("u1\ufeff", "FEFF"), ("u1\u200d", "200D"), ("u\xad1", "00AD")],
)
def test_an_id_with_an_invisible_character_is_named(tmp_path: Path, cell: str, code: str) -> None:
    good = write(tmp_path / "good", "user,item", "u1,x", "u1,y")
    table = write(tmp_path / "table", "user,item", "u1,x", f"u1,{cell}")
    with pytest.raises(
        DataError, match=rf"table, line 3: expected an item id .* with U\+{code} \(1 such rows\); remove"
    ):
        import_dataset(table, tmp_path / "shop")
    goods = write(tmp_path / "goods", "item,title", "x,a", f"{cell},b", "y,c")
    with pytest.raises(DataError, match=rf"goods, line 3: expected an item id .* with U\+{code}"):
        import_dataset(good, tmp_path / "shop", items=goods)


def test_a_joiner_within_a_word_is_part_of_it(tmp_path: Path) -> None:
    report = import_dataset(write(tmp_path / "table", "user,item", "u1,می\u200cخواهم", "u1,y"), tmp_path / "shop")
    assert report.items == 2


@pytest.mark.parametrize(
    ("lines", "cure"),
    [
        (("user,item", "u,x", ",y"), "remove such rows, or try --user-column NAME"),
        (("user,item", "u,x", "u,"), "remove such rows, or try --item-column NAME"),
        (("u,x,5", ",y,4"), "remove such rows, or try --columns user,item,..."),
    ],
)
def test_an_empty_id_is_refused_with_a_way_out(tmp_path: Path, lines: tuple[str, ...], cure: str) -> None:
    with pytest.raises(DataError) as refused:
        import_dataset(write(tmp_path / "table", *lines), tmp_path / "shop")
    assert cure in str(refused.value)


def test_decimal_commas_and_a_byte_order_mark_become_numbers(tmp_path: Path) -> None:
    table = write(tmp_path / "table", "\ufeffuser;item;rating", "u1;x;4,5", "u1;y;3,0")
    with pytest.raises(DataError, match=r"table, line 2: rating: expected a number, got '4,5' .*try --decimal ','"):
        import_dataset(table, tmp_path / "shop")
    import_dataset(table, tmp_path / "shop", decimal=",")
    assert read(tmp_path / "shop" / "shop.inter")["rating"].tolist() == ["4.5", "3.0"]


BAD_NUMBERS = {
    "a word": ("rating", "abc", {}, "rating: expected a number, got 'abc' (1 such rows of 2); correct such cells"),
    "not a number": ("rating", "NaN", {}, "got 'NaN'"),
    "infinite": ("rating", "-inf", {}, "got '-inf'"),
    "too large": ("rating", "1e999", {}, "got '1e999'"),
    "empty": ("rating", "", {}, "got '' (1 such rows of 2); fill such cells or remove their rows"),
    "blank": ("timestamp", " ", {}, "got ' ' (1 such rows of 2); fill such cells or remove their rows"),
    "a date": (
        "timestamp",
        "2024-01-03",
        {},
        "timestamp: expected a number, such as seconds since 1970, got '2024-01-03' (1 such rows of 2); "
        "convert dates to seconds, or rename the column",
    ),
    "a date and time": ("time", "2024-01-03T10:00:00Z", {}, "; convert dates to seconds, or rename the column"),
    "a date with points": ("time", "3.1.2024", {"decimal": ","}, "; convert dates to seconds, or rename the column"),
    "a decimal comma": ("stars", "4,5", {}, "; try --decimal ','"),
    "a point between thousands": ("stars", "1.234,5", {"decimal": ","}, "got '1.234,5' (1 such rows of 2); with"),
    "a point alone": ("stars", "1.234", {"decimal": ","}, "a number has no point"),
    "two commas": ("stars", "1,234,5", {"decimal": ","}, "; correct such cells"),
}


@pytest.mark.parametrize("split", [None, "user-time"])
@pytest.mark.parametrize(("column", "cell", "options", "message"), BAD_NUMBERS.values(), ids=BAD_NUMBERS.keys())
def test_a_rating_or_time_that_is_no_number_is_refused_with_its_line(
    tmp_path: Path, column: str, cell: str, options: dict[str, Any], message: str, split: Any
) -> None:
    table = write(tmp_path / "table", f"user;item;{column}", "u1;x;5", f"u1;y;{cell}")
    with pytest.raises(DataError) as refused:
        import_dataset(table, tmp_path / "shop", split=split, **options)
    assert str(refused.value).startswith(f"{table}, line 3: {column}: expected a number")
    assert message in str(refused.value)


@pytest.mark.parametrize("cell", ["4", " 4.5 ", "-1", "+.5", "1e3"])
def test_numbers_may_be_written_in_many_ways_and_stay_as_they_are(tmp_path: Path, cell: str) -> None:
    table = write(tmp_path / "table", "user;item;rating", "u1;x;5", f"u1;y;{cell}")
    import_dataset(table, tmp_path / "shop")
    assert sorted(read(tmp_path / "shop" / "shop.inter")["rating"]) == sorted(["5", cell])


@pytest.mark.parametrize(
    ("first", "options", "message"),
    [
        ("user,item,part", {"user_column": "item"}, "--user-column: expected another column than that of item, got "),
        ("user,item,part", {"item_column": "user"}, "--item-column: expected another column than that of user, got "),
        ("a,b,part", {"user_column": "a", "item_column": "a"}, "--user-column: expected another column than that of "),
        ("user,item,rating", {"user_column": "rating"}, "--user-column: expected another column than that of rating"),
        ("user,item,part", {"split_column": "user"}, "--split-column: expected another column than that of user, got "),
        ("user,item,part", {"separator": ""}, "--separator: expected the text between cells, got ''"),
    ],
)
def test_flags_that_contradict_the_table_are_named(
    tmp_path: Path, first: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        import_dataset(write(tmp_path / "table", first, "1,2,0", "1,3,1"), tmp_path / "shop", **options)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("flag", "value", "expected"),
    [
        ("--core", "-3", "a whole number from 0 to 2,147,483,647"),
        ("--core", "2.5", "a whole number from 0 to 2,147,483,647"),
        ("--split-seed", "-1", "a whole number from 0 to 2,147,483,647"),
        ("--min-rating", "nan", "a number"),
        ("--min-rating", "many", "a number"),
    ],
)
@pytest.mark.parametrize("verb", [("import", "--interactions"), ("build", "--from")], ids=lambda verb: verb[0])
def test_filters_out_of_range_are_usage_errors(
    tmp_path: Path, ratings: Path, verb: tuple[str, str], flag: str, value: str, expected: str
) -> None:
    answer = call("data", verb[0], "shop", verb[1], ratings, "--data-path", tmp_path, flag, value)
    assert (answer.code, list(tmp_path.glob("shop*"))) == (2, [])
    assert f"{flag}: expected {expected}, got '{value}'" in answer.err.replace("/--seed", "")


@pytest.mark.parametrize("words", ["a,b", "kunde,ware", "c,d"])
def test_words_over_words_are_refused(tmp_path: Path, words: str) -> None:
    table = write(tmp_path / "table", words, "u1,x", "u1,y")
    with pytest.raises(DataError, match=r"which may be either; try --header .* or --no-header"):
        import_dataset(table, tmp_path / "shop")


@pytest.mark.parametrize(
    ("column", "values", "options"),
    [
        ("x_label", "012", {}), ("x_label", ["0.0", "1.0", "2.0"], {}),
        ("part", ["train", "valid", "test"], {"split_column": "part"}),
        ("part", ["Train", "dev", "TEST"], {"split_column": "part"}),
        ("part", ["train", "validation", "test"], {"split_column": "part"}),
    ],
)  # fmt: skip
def test_a_split_that_a_table_brings_is_kept(
    tmp_path: Path, column: str, values: list[str], options: dict[str, str]
) -> None:
    rows = [f"u{user},{item},{values[item % 3]},{item}" for user in range(3) for item in range(6)]
    table = write(tmp_path / "table", f"user,item,{column},timestamp", *rows)
    report = import_dataset(table, tmp_path / "shop", **options)
    assert report.split == "as the files have it"
    written = read(tmp_path / "shop" / "shop.inter")
    assert [int(item) % 3 for item in written["timestamp"]] == written["x_label"].astype(int).tolist()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("013", "line 4: x_label: expected 0, 1, 2 or train, valid, test, got '3'"),
        (["0", "1", ""], "line 4: x_label: expected 0, 1, 2 or train, valid, test, got ''"),
        ("002", "got train 2, valid 0, test 1"),
        ("000", "got train 3, valid 0, test 0"),
    ],
)
def test_a_split_that_no_run_could_use_is_refused_unless_another_is_drawn(
    tmp_path: Path, values: str, message: str
) -> None:
    table = write(tmp_path / "table", "user,item,x_label", *(f"u,i{place},{item}" for place, item in enumerate(values)))
    with pytest.raises(DataError) as refused:
        import_dataset(table, tmp_path / "shop")
    assert message in str(refused.value)
    assert "try --split ratio" in str(refused.value)
    report = import_dataset(table, tmp_path / "shop", split="ratio")
    assert report.splits == {"train": 1, "valid": 1, "test": 1}
    assert "not used: x_label" in str(report)


@pytest.mark.parametrize("first", ["", "Unnamed: 0"])
def test_row_numbers_are_no_item_ids(tmp_path: Path, ratings: Path, first: str) -> None:
    goods = write(tmp_path / "goods.csv", f"{first},code,title", "0,d,Rug", "1,b,Lamp", "2,a,Mug", "3,e,Cup")
    with pytest.raises(DataError, match=r"got a first column without a name, .* try --items-id-column NAME"):
        import_dataset(ratings, tmp_path / "shop", items=goods)
    import_dataset(ratings, tmp_path / "shop", items=goods, items_id_column="code")
    table = read(tmp_path / "shop" / "items.tsv")
    assert table["raw_id"].tolist() == ["d", "b", "a", "e"]
    assert list(table.columns) == ["itemID", "raw_id", "title", "image"]


def test_two_columns_that_differ_in_case_only_are_refused(tmp_path: Path, ratings: Path) -> None:
    goods = write(tmp_path / "goods.csv", "asin,title,Title", "a,x,y")
    with pytest.raises(DataError, match="got title more than once; rename one"):
        import_dataset(ratings, tmp_path / "shop", items=goods)


def test_a_pair_that_occurs_twice_counts_once_and_is_reported(tmp_path: Path) -> None:
    table = write(tmp_path / "table", "user,item,rating", "u,x,1", "u,y,2", "u,x,3")
    report = import_dataset(table, tmp_path / "shop")
    assert (report.interactions, report.dropped) == (2, {"pair repeated": 1})
    assert sorted(read(tmp_path / "shop" / "shop.inter")["rating"]) == ["1", "2"]


def test_a_core_leaves_dense_ids_of_the_items_that_remain(tmp_path: Path, items: Path, images: Path) -> None:
    pairs = ["u1,e", "u1,b", "u2,b", "u2,e", "u2,a", "u3,c"]
    table = write(tmp_path / "table", "user,item", *pairs)
    report = import_dataset(table, tmp_path / "shop", items=items, images=images, core=2)
    assert read(tmp_path / "shop" / "items.tsv")["raw_id"].tolist() == ["b", "e"]
    assert set(read(tmp_path / "shop" / "shop.inter")["itemID"]) == {"0", "1"}
    assert (report.users, report.dropped) == (2, {"outside the 2-core": 2})
    assert files(tmp_path / "shop" / "images") == {"a.jpg": b"\xff\xd8 a"}  # of item e


def test_unknown_items_are_dropped_where_asked(tmp_path: Path, items: Path) -> None:
    table = write(tmp_path / "table", "user,item", "u,a", "u,zzz", "u,b")
    report = import_dataset(table, tmp_path / "shop", items=items, drop_unknown=True)
    assert (report.items, report.interactions, report.skipped["item unknown"].count) == (5, 2, 1)


GOOD = ("user,item", "u,a", "u,b")
BAD_INPUT = {
    "unknown column": (("customer,item", "u,a"), {"user_column": "custommer"}, "did you mean customer?"),
    "no known column": (("buyer,good,when", "u,a,x"), {}, "got buyer, good, when, which may be either; try --header"),
    "unknown items": ((*GOOD, "u,zz", "v,zz", "v,yy"), {}, "got 3 interactions with 2 others (zz, yy)"),
    "no rows": (("user,item",), {}, "expected interactions, got no rows"),
    "empty file": ((), {}, "expected a table, got no line but blank ones"),
    "no separator": (("user/item", "u/a"), {}, "in the first line, got 'user/item'; try --separator"),
    "an empty id": ((*GOOD, ",a"), {}, ", line 4: expected a user id, got an empty cell (1 such rows of 3)"),
    "too many cells": ((*GOOD, "u,a,b,c"), {}, ", line 4: expected 2 cells, as many as there are columns, got 4"),
    "wrong number of names": (
        GOOD,
        {"columns": ("user", "item", "rating")},
        "expected a name for each of 2 columns, got 3: user, item, rating",
    ),
    "nothing left": (GOOD, {"core": 5}, "no interaction is left; dropped: outside the 5-core 2"),
}


@pytest.mark.parametrize(("lines", "options", "message"), BAD_INPUT.values(), ids=BAD_INPUT.keys())
def test_a_bad_interactions_table_is_refused_and_leaves_nothing_behind(
    tmp_path: Path, items: Path, lines: tuple[str, ...], options: dict[str, str], message: str
) -> None:
    table = write(tmp_path / "table", *lines)
    with pytest.raises(DataError) as refused:
        import_dataset(table, tmp_path / "out" / "shop", items=items, **options)
    assert str(table) in str(refused.value)
    assert message in str(refused.value)
    assert not list(tmp_path.glob("out/*"))


BAD_ITEMS = {
    "repeated ids": (
        ("item,title", "a,x", "b,y", "a,z"),
        "expected one row per item, got 1 ids more than once in column item (a)",
    ),
    "an empty id": (("item,title", "a,x", ",y"), ", line 3: expected an id in column item, got an empty cell"),
    "no rows": (("item,title",), "got no rows below the header (item, title)"),
    "a reserved name": (("item,raw_id", "a,x", "b,y"), "column raw_id: the data set has its own column"),
    "an image elsewhere": (("item,image", "a,../secret.jpg", "b,"), "got '../secret.jpg'"),
    "more cells than names": (
        ("item,title", "a,x,1", "b,y,2"),
        ", line 2: expected 2 cells, as many as there are columns, got 3; is a separator within a cell?",
    ),
}


@pytest.mark.parametrize(("lines", "message"), BAD_ITEMS.values(), ids=BAD_ITEMS.keys())
def test_a_bad_items_table_is_refused(tmp_path: Path, images: Path, lines: tuple[str, ...], message: str) -> None:
    table = write(tmp_path / "table", *GOOD)
    with pytest.raises(DataError) as refused:
        import_dataset(table, tmp_path / "out" / "shop", items=write(tmp_path / "bad.csv", *lines), images=images)
    assert message in str(refused.value)
    assert not list(tmp_path.glob("out/*"))


def test_a_missing_file_and_one_that_is_not_text_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.csv: no such file"):
        import_dataset(tmp_path / "nowhere.csv", tmp_path / "shop")
    (tmp_path / "latin.csv").write_bytes("user,item\nu,café\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.csv, line 2: expected UTF-8 text.*try --encoding latin-1"):
        import_dataset(tmp_path / "latin.csv", tmp_path / "shop")


def test_an_existing_data_set_gives_way_only_to_force(tmp_path: Path, ratings: Path) -> None:
    import_dataset(ratings, tmp_path / "shop", seed=1)
    before = files(tmp_path / "shop")
    with pytest.raises(ConfigError, match="exists already; try another folder, or --force"):
        import_dataset(ratings, tmp_path / "shop", seed=2)
    assert files(tmp_path / "shop") == before
    import_dataset(ratings, tmp_path / "shop", seed=2, force=True)
    assert json.loads((tmp_path / "shop" / "manifest.json").read_text())["options"]["split_seed"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shop", "u.data"]


def test_a_failed_import_leaves_the_data_set_that_it_was_to_replace(tmp_path: Path, ratings: Path) -> None:
    import_dataset(ratings, tmp_path / "shop")
    before = files(tmp_path / "shop")
    with pytest.raises(MMRecError):
        import_dataset(write(tmp_path / "bad", "user,item"), tmp_path / "shop", force=True)
    assert files(tmp_path / "shop") == before


def test_inputs_that_lie_in_the_folder_to_be_replaced_are_not_read(tmp_path: Path, ratings: Path) -> None:
    import_dataset(ratings, tmp_path / "shop")
    with pytest.raises(ConfigError, match="which the new data set would replace"):
        import_dataset(tmp_path / "shop" / "shop.inter", tmp_path / "shop", force=True)
    assert (tmp_path / "shop" / "shop.inter").is_file()


def test_movielens_100k_becomes_a_data_set(tmp_path: Path) -> None:
    shared = Path(os.environ.get("MMREC_LMM_SHARED", Path(__file__).parents[2] / "shared"))
    source = shared / "data" / "ml100k"
    if not source.is_dir():
        pytest.skip(f"{source} is absent; MMREC_LMM_SHARED names another folder")
    report = import_dataset(
        source / "u.data",
        tmp_path / "ml100k",
        items=source / "items.tsv",
        images=source / "images",
    )
    assert (report.users, report.items, report.interactions, report.images) == (943, 1682, 100_000, 1663)
    assert (report.texts["title"], report.texts["description"]) == (1682, 1679)
    assert (report.images_missing, report.dropped) == ((), {})
    assert len(list((tmp_path / "ml100k" / "images").iterdir())) == 1663
    first = read(tmp_path / "ml100k" / "items.tsv").iloc[0]
    assert (first["title"], first["image"]) == ("Toy Story (1995)", "1.jpg")


def test_columns_that_encoders_do_not_read_unasked_are_named_with_the_flag(tmp_path: Path, ratings: Path) -> None:
    table = tmp_path / "table.csv"
    table.write_text("item,title,color\n" + "".join(f"{one},Title {one},red\n" for one in "abcde"))
    report = import_dataset(ratings, tmp_path / "shop", items=table)
    assert report.other_columns == {"color": 5}
    assert "other columns: color 5; encoders read them by --text_fields=[title,color]" in str(report)


@pytest.mark.parametrize(("names", "seen"), [(["x.jpg", "y.jpg"], "2 have other names, such as"), ([], "0 have other")])
def test_a_folder_of_images_of_which_none_is_an_items_is_named(
    tmp_path: Path, ratings: Path, names: list[str], seen: str
) -> None:
    (tmp_path / "photos").mkdir()
    for name in names:
        (tmp_path / "photos" / name).write_bytes(b"x")
    report = import_dataset(ratings, tmp_path / "shop", images=tmp_path / "photos")
    assert report.images == 0
    assert f"no image is named after an item, such as d.jpg; {seen}" in str(report)


def test_no_message_of_an_import_names_a_functions_argument() -> None:
    """Users know flags and their own columns: `--user-column`, not `user_column`."""
    arguments = {name for name in inspect.signature(import_dataset).parameters if "_" in name}
    spoken = re.compile(rf"\b({'|'.join(map(re.escape, sorted(arguments)))})\b")
    said = [
        (path.name, part.value)
        for path in (ROOT / "data_tools").rglob("*.py")
        for raised in ast.walk(ast.parse(path.read_text()))
        if isinstance(raised, ast.Raise)
        for part in ast.walk(raised)
        if isinstance(part, ast.Constant) and isinstance(part.value, str)
    ]
    assert len(said) > 100
    assert not [each for each in said if spoken.search(each[1])]
