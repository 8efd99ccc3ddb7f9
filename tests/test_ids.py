"""A data set's own ids: mappings as people write them, and what is refused in them, by its line."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmrec_lmm.config.settings import Settings
from mmrec_lmm.data.ids import Ids, Kind, read_ids
from mmrec_lmm.data.loading import load_dataset
from mmrec_lmm.errors import DataError

INTER = "userID\titemID\tx_label\n" + "".join(f"{user}\t{item}\t{item}\n" for user in range(2) for item in range(3))
CATALOG = "itemID\traw_id\ttitle\n0\tA\tcup\n1\tB\tmug\n2\tC\tjug\n"
PLAIN = "itemID\ttitle\n0\tcup\n1\tmug\n2\tjug\n"
Read = Callable[..., Ids]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Reads the ids of a data set with two users and three items, whose folder gets the given files."""

    def read(kind: Kind = "item", **files: str) -> Ids:
        folder = tmp_path / "shop"
        folder.mkdir(exist_ok=True)
        names = {"users": "u_id_mapping.csv", "items": "i_id_mapping.csv", "catalog": "items.tsv"}
        (folder / "shop.inter").write_text(INTER)
        for name, text in files.items():
            (folder / names[name]).write_text(text)
        return read_ids(load_dataset(folder, "shop", Settings()), kind)

    return read


def test_ids_come_from_the_mapping_else_the_catalog_else_are_the_numbers(read: Read) -> None:
    assert (read().of.tolist(), read().source) == (["0", "1", "2"], None)
    assert read(catalog=PLAIN).source is None
    assert (read(catalog=CATALOG).of.tolist(), read().source) == (["A", "B", "C"], "items.tsv")
    both = read(items="asin\titemID\nC\t2\nB\t1\nA\t0\n")
    assert both.of.tolist() == ["A", "B", "C"]
    assert both.source is not None
    assert both.source.endswith("i_id_mapping.csv")
    assert read(catalog=PLAIN, items="asin\titemID\nx\t0\ny\t2\nz\t1\n").of.tolist() == ["x", "z", "y"]
    assert read("user").source is None


@pytest.mark.parametrize(
    "text",
    [
        "user_id\tuserID\nann\t0\nbob, jr\t1\n",
        "userID\tuser_id\n1\tbob, jr\n0\tann\n",
        "User_ID\tuserid\nann\t0\nbob, jr\t1\n",
        'userID,user_id\n0,ann\n1,"bob, jr"\n',
        "\tuser_id\tuserID\n0\tann\t0\n1\tbob, jr\t1\n",
        "Unnamed: 0\treviewerID\tuserID\n0\tann\t0\n1\tbob, jr\t1\n",
        "\ufeffuser_id\tuserID\r\nann\t0.0\r\nbob, jr\t1.0\r\n",
        "user_id\tuserID\nann\t0\nbob, jr\t1\nof the whole shop\t2\n",
        'user_id\tuserID\nann\t0\n"bob, jr"\t1\n',
    ],
)
def test_a_mapping_is_read_as_people_write_it(text: str, read: Read) -> None:
    ids = read("user", users=text)
    assert ids.of.tolist() == ["ann", "bob, jr"]
    assert ids.numbers(["bob, jr", "1", "ann", "bob, jr"]).tolist() == [1, -1, 0, 1]


def test_an_id_is_text_and_never_the_number_that_it_looks_like(read: Read) -> None:
    ids = read("user", users="user_id\tuserID\n1\t0\n007\t1\n")
    assert ids.numbers(["1", "007", "7", "0", "nan"]).tolist() == [0, 1, -1, -1, -1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("asin\titemID\nA\t0\nB\t1\n", ": expected the itemID 0 to 2, got none of 2 (1 are missing); is it"),
        ("asin\titemID\nA\t0\nB\t1\nC\t1\n", ", line 4: itemID: expected each once, got 1 again (first in line 3"),
        ("asin\titemID\nA\t0\nB\t1\nA\t2\n", ", line 4: asin: expected each once, got A again (first in line 2"),
        ("asin\titemID\nA\t0\n\t1\nC\t2\n", ", line 3: asin: expected an id, got an empty cell"),
        ("asin\titemID\nA\t0\nB\tone\n", ", line 3: itemID: expected a whole number, 0 or more, got 'one' (1 "),
        ("asin\titemID\nA\t0\nB\t-1\n", ", line 3: itemID: expected a whole number, 0 or more, got '-1'"),
        ("asin\titemID\nA\t0\nB\t1.5\n", ", line 3: itemID: expected a whole number, 0 or more, got '1.5'"),
        ("asin\titmID\nA\t0\n", ": expected the column itemID, got asin, itmID; did you mean itmID?"),
        ("sku\tcode\titemID\nA\ta\t0\n", ": expected the columns asin and itemID, got sku, code, itemID"),
        ("asin\titemID\nA\t0\nB\n", ", line 3: expected 2 cells, as many as there are columns, got 1; is there a line"),
        ("asin\titemID\nA\t0\nC\t1\nB\t2\n", ", line 3: item 1: expected B, as in items.tsv, got C (2 items"),
        ("<html>", ": expected a table of text, got a web page"),
    ],
)  # fmt: skip
def test_a_wrong_mapping_is_refused_by_its_line_but_stops_no_run(text: str, message: str, read: Read) -> None:
    with pytest.raises(DataError, match=re.escape(f"i_id_mapping.csv{message}")):
        read(items=text, catalog=CATALOG)


def test_what_may_be_meant_is_found_among_very_many_ids() -> None:
    names = np.array([f"{number * 7919 % 10**6:06d}-{number:06d}" for number in range(300_000)], dtype=object)
    ids = Ids("user", names, "u_id_mapping.csv")
    for typed in (names[123_456].replace("-", "_"), f"x{names[123_456][1:]}", f"{names[123_456][:-1]}x"):
        assert ids.expected(typed).endswith(f"got {typed}; did you mean {names[123_456]}?")


def test_a_plugins_data_set_without_mappings_has_its_catalogs_ids(read: Read, tmp_path: Path) -> None:
    read("user", catalog=CATALOG.replace("C", "B"), items="asin\titemID\n")
    dataset = replace(load_dataset(tmp_path / "shop", "shop", Settings()), id_files={})
    ids = read_ids(dataset, "item")
    assert ids.of.tolist() == ["A", "B", "B"]
    assert ids.numbers(["B", "A", "C"]).tolist() == [1, 0, -1]
    assert read_ids(replace(dataset, catalog=None), "item").of.tolist() == ["0", "1", "2"]


def test_an_unknown_number_is_not_compared_with_other_numbers(read: Read) -> None:
    ids = read("user", users="user_id\tuserID\n196\t0\n186\t1\n")
    begin = f"expected ids of {ids.source} such as 196, 186, got"
    assert ids.expected("1") == f"{begin} 1; user number 1 is 186 (--internal-ids takes numbers)"
    assert ids.expected("195") == f"{begin} 195"
    assert ids.expected("9" * 30).startswith(f"{begin} 999")
    assert ids.expected("u196") == f"{begin} u196; did you mean 196?"


def test_real_mappings_of_mmrec_are_read(shared: Path) -> None:
    folder = shared / "data" / "baby"
    dataset = load_dataset(folder, "baby", Settings())
    users, items = read_ids(dataset, "user"), read_ids(dataset, "item")
    assert (len(users), len(items)) == (19_445, 7_050)
    assert (users.of[0], items.of[0]) == ("A1HK2FQW6KXQB2", "097293751X")
    assert dataset.catalog is not None
    assert tuple(items.of) == dataset.catalog.raw_ids
