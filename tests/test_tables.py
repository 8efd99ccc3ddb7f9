"""The reader of tables: lines read and rows parsed agree, or a message names the line; and what is no table."""

import gzip
import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmrec_lmm.config.settings import Settings
from mmrec_lmm.data import tables
from mmrec_lmm.data.loading import load_dataset, read_catalog, read_interactions
from mmrec_lmm.data.tables import find_separator, read_integers, read_table
from mmrec_lmm.errors import ConfigError, DataError
from mmrec_lmm.features.files import read_feature_file
from mmrec_lmm_data_tools.writing import write_table


def file(folder: Path, content: str | bytes, name: str = "table") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def refusal(folder: Path, content: str | bytes, **options: Any) -> str:
    path = file(folder, content)
    with pytest.raises(DataError) as caught:
        read_table(path, **options)
    return str(caught.value).replace(str(path), "FILE")


# Rows are lines

TEXT = st.text(st.characters(exclude_characters="\0\r\n\x1f", exclude_categories=["Cs"]), max_size=8)
CELL = st.one_of(TEXT, st.text('"\t\\, a\u2028\x85\x1c', max_size=6))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(CELL, CELL), min_size=1, max_size=8), st.integers(1, 40))
def test_what_is_written_reads_back_equal_row_by_line(rows: list[tuple[str, str]], block: int) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "BLOCK", block)  # cells and lines across blocks
        path = Path(folder) / "items.tsv"
        left, right = zip(*rows, strict=True)
        write_table(path, pd.DataFrame({"id": range(len(rows)), "left": left, "right": right}))
        table = read_table(path)
        assert path.read_bytes().count(b"\n") == len(rows) + 1
        assert list(table.lines) == list(range(2, len(rows) + 2))
        assert list(zip(table.columns["left"], table.columns["right"], strict=True)) == rows
        assert read_integers(path, ["id"]).columns["id"].tolist() == list(range(len(rows)))


def test_a_line_break_within_a_cell_is_written_as_a_blank(tmp_path: Path) -> None:
    write_table(tmp_path / "t", pd.DataFrame({"a": ["x\ny", "x\r\ny"], "b": [1, 2]}))
    assert (tmp_path / "t").read_text() == "a\tb\nx y\t1\nx y\t2\n"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=3, max_size=3), min_size=1), st.integers(1, 60))
def test_whole_numbers_are_read_exactly(rows: list[list[int]], block: int) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "BLOCK", block)
        path = file(Path(folder), "a\tb\tc\n" + "".join("\t".join(map(str, row)) + "\n" for row in rows))
        table = read_integers(path)
        assert np.stack(list(table.columns.values()), axis=1).tolist() == rows


@pytest.mark.parametrize(
    ("written", "expected"),
    [("1.0", 1), ("1e3", 1000), (" 7", 7), ("7 ", 7), ("+7", 7), ("007", 7), ('"7"', 7),
     ("9223372036854775807", 2**63 - 1)],
)  # fmt: skip
def test_a_whole_number_may_be_written_in_many_ways(tmp_path: Path, written: str, expected: int) -> None:
    assert read_integers(file(tmp_path, f"a\tb\n5\t6\n{written}\t6\n")).columns["a"].tolist() == [5, expected]


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("9223372036854775808", "expected a number below 2**63, got '9223372036854775808'"),
        ("1" * 5000, "expected a number below 2**63"), ("1e20", "expected an integer"), ("1.5", "got '1.5'"),
        ("0x10", "got '0x10'"), ("1_000", "got '1_000'"), ("True", "got 'True'"), ("nan", "got 'nan'"),
        ("inf", "got 'inf'"),
        ("", "got '' (1 such rows of 2); is the file truncated?"), ("u1", "got 'u1' (1 such rows of 2); try X"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("error")
def test_what_is_no_whole_number_is_named_with_its_line(tmp_path: Path, written: str, message: str) -> None:
    path = file(tmp_path, f"b\ta\n6\t5\n6\t{written}\n")
    with pytest.raises(DataError) as caught:
        read_integers(path, ["a"], not_a_number="; try X")
    assert str(caught.value).startswith(f"{path}, line 3: a: ")
    assert message in str(caught.value)


def test_blank_lines_are_skipped_and_line_numbers_stay_right(tmp_path: Path) -> None:
    path = file(tmp_path, "\na\tb\r\n1\t2\r\n\r\n   \n3\t4\n\n5\t6")
    table = read_integers(path)
    assert (table.columns["a"].tolist(), list(table.lines)) == ([1, 3, 5], [3, 6, 8])
    assert list(read_table(path).lines) == [3, 6, 8]
    assert table.at(2) == f"{path}, line 8"


def test_a_carriage_return_alone_is_white_space_within_a_cell_and_refused_as_the_end_of_lines(tmp_path: Path) -> None:
    table = read_table(file(tmp_path, "a\tb\n1\tx\ry\n2\tz\r\n"))
    assert table.columns["b"].tolist() == ["x y", "z"]
    for end in ("", "\n"):
        assert refusal(tmp_path, f"a\tb\r1\t2\r3\t4{end}").endswith(r"convert it first: tr '\r' '\n' < FILE")


QUOTED = {  # cells of the second column that a lenient reader gives
    '"12 inch': '"12 inch', '"Best" shirt': '"Best" shirt', '12" x': '12" x', '"a ""q"" b"': 'a "q" b', '""': "",
    '"': '"', '"a\\"': "a\\", '"""': '"""', "'x": "'x",
}  # fmt: skip


@pytest.mark.parametrize(("written", "expected"), QUOTED.items())
def test_a_stray_quote_swallows_nothing(tmp_path: Path, written: str, expected: str) -> None:
    path = file(tmp_path, f'id\ttitle\n0\t{written}\n1\tlamp\n2\t"rug"\n')
    table = read_table(path)
    assert table.columns["title"].tolist() == [expected, "lamp", "rug"]
    assert read_integers(path, ["id"]).columns["id"].tolist() == [0, 1, 2]


def test_where_the_end_of_a_quote_stands_in_the_next_cell_the_number_of_cells_decides(tmp_path: Path) -> None:
    table = read_table(file(tmp_path, 'a\tb\tc\n1\t"x\ty"\n2\t"x\ty"\tz\n'))
    assert table.columns["b"].tolist() == ['"x', "x\ty"]
    assert table.columns["c"].tolist() == ['y"', "z"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1,2,3", "line 3: expected 2 cells, as many as there are columns, got 3; is a separator within a cell?"),
        ("1", "line 3: expected 2 cells, as many as there are columns, got 1; is there a line break within a cell?"),
        ('"1,2', "line 3: expected 2 cells, got a cell that begins with a quote that doesn't end on its line; try"),
        ('1,"2', "try --quotes multiline, where cells may hold line breaks, or --quotes none"),
    ],
)  # fmt: skip
def test_a_line_with_other_cells_than_the_header_is_named(tmp_path: Path, line: str, message: str) -> None:
    assert message in refusal(tmp_path, f"a,b\n1,2\n{line}\n3,4\n", separator=",", quotes="line")


def test_a_last_line_cut_short_is_called_truncated(tmp_path: Path) -> None:
    assert refusal(tmp_path, "a\tb\n1\t2\n3") == (
        "FILE, line 3: expected 2 cells, as many as there are columns, got 1; is the file truncated?"
    )


def test_quotes_may_hold_line_breaks_or_mean_nothing_where_asked(tmp_path: Path) -> None:
    path = file(tmp_path, 'a,b\n1,"x\ny"\n\n2,"z')
    with pytest.raises(DataError, match=r"line 5: expected quoted cells that end.*try --quotes none"):
        read_table(path, separator=",", quotes="multiline")
    path = file(tmp_path, 'a,b\n1,"x\n\ny, ""q"""\n\n2,"z"')
    table = read_table(path, separator=",", quotes="multiline")
    assert (table.columns["b"].tolist(), list(table.lines)) == (['x\n\ny, "q"', "z"], [2, 6])
    table = read_table(file(tmp_path, 'a,b\n"1,2"\n'), separator=",", quotes="none")
    assert [column.tolist() for column in table.columns.values()] == [['"1'], ['2"']]


@pytest.mark.parametrize("separator", ["::", "§", "|", ";", " "])
def test_any_text_may_separate_cells(tmp_path: Path, separator: str) -> None:
    table = read_table(file(tmp_path, "a,b\n1,x\n2,é\n".replace(",", separator)), separator=separator)
    assert [column.tolist() for column in table.columns.values()] == [["1", "2"], ["x", "é"]]


@pytest.mark.parametrize("separator", ["", '"', "\n"])
def test_what_can_not_separate_cells_is_refused(tmp_path: Path, separator: str) -> None:
    with pytest.raises(ConfigError, match="--separator: expected the text between cells"):
        read_table(file(tmp_path, "a\n"), separator=separator)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("a\tb,c;d\n1\t2\n", "\t"), ("a,b\n1,x;y\n", ","), ("a;b\n1;4,5\n2;3,5\n", ";"), ("a|b\n1|2\n", "|"),
        ('a,b\n"x;y, z",2\n', ","), ("a;b,c\n1;2\n3;4\n", ";"),
    ],
)  # fmt: skip
def test_the_separator_is_that_which_all_lines_agree_on(tmp_path: Path, lines: str, expected: str) -> None:
    assert find_separator(file(tmp_path, lines)) == expected


@pytest.mark.parametrize("content", ["\ufeff\ufeffa\tb\n1\t2\n3\t4\n", "a\tb\n\ufeff1\t2\n\ufeff\ufeff3\t4\n"])
@pytest.mark.parametrize("block", [6, 2**24])
def test_byte_order_marks_at_the_start_of_lines_are_no_part_of_them(
    tmp_path: Path, content: str, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "BLOCK", block)
    path = file(tmp_path, content)
    assert {name: cells.tolist() for name, cells in read_table(path).columns.items()} == {
        "a": ["1", "3"],
        "b": ["2", "4"],
    }
    assert read_integers(path).columns["a"].tolist() == [1, 3]


@pytest.mark.parametrize("separator", list("\t,;|"))
def test_a_first_line_that_names_the_separator_is_believed_and_no_row(tmp_path: Path, separator: str) -> None:
    path = file(tmp_path, f"sep={separator}\na{separator}b\n1{separator}2\n")
    assert find_separator(path) == separator
    table = read_table(path, separator=separator)
    assert (list(table.columns), list(table.lines)) == (["a", "b"], [3])


def test_two_separators_that_lines_agree_on_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="got commas and semicolons in each line; try --separator ';'"):
        find_separator(file(tmp_path, "u1;4,5\nu2;3,5\n"))


# What is no table


def parquet() -> bytes:
    return b"PAR1" + bytes(20)


def npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"
FOREIGN = {
    "LFS": (LFS, "a pointer of Git LFS; run `git lfs pull`"),
    "page": (b"<!DOCTYPE html>\n<html>", "a web page"),
    "page with BOM": (b"\xef\xbb\xbf\n<html>", "a web page"),
    "gzip": (gzip.compress(b"a\tb\n"), "compressed by gzip"),
    "zip": (b"PK\x03\x04" + bytes(9), "a zip archive"),
    "parquet": (parquet(), "a table in Parquet"),
    "npy": (npy(), "an array of NumPy"),
    "empty": (b"", "an empty file"),
    "JSON lines": (b'{"user": 1}\n{"user": 2}\n', "got JSON; `data build`"),
    "JSON": (b'[\n {"user": 1}]', "got JSON"),
    "UTF-16": ("user\titem\n".encode("utf-16"), "UTF-16 text"),
    "UTF-16 without BOM": ("user\titem\n".encode("utf-16-be"), "UTF-16 text"),
    "bytes": (b"a\tb\n1\t\0\n", "line 2: expected a table of text, got bytes that aren't text"),
    "blank": (b"\n\n", "got no line but blank ones"),
    "Latin-1": ("a\tb\n1\tx\n2\té\n".encode("latin-1"), "line 3: expected UTF-8 text"),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_file_of_another_kind_is_called_by_its_name(tmp_path: Path, kind: str) -> None:
    content, message = FOREIGN[kind]
    assert message in refusal(tmp_path, content)


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1", "cp1252", "utf-8-sig", "utf-16-le"])
def test_other_encodings_are_read_where_they_are_named(tmp_path: Path, encoding: str) -> None:
    table = read_table(file(tmp_path, "a\tb\n1\té\n".encode(encoding)), encoding=encoding, quotes="line")
    assert table.columns["b"].tolist() == ["é"]


def test_an_unknown_encoding_a_wrong_one_and_a_missing_file_are_named(tmp_path: Path) -> None:
    path = file(tmp_path, "a\né\n")
    with pytest.raises(ConfigError, match=r"--encoding: expected an encoding such as utf-8.*got klingon"):
        read_table(path, encoding="klingon")
    with pytest.raises(DataError, match="expected text in ascii"):
        read_table(path, encoding="ascii")
    with pytest.raises(DataError, match="nowhere: no such file"):
        read_table(tmp_path / "nowhere")
    assert "got 'a' more than once" in refusal(tmp_path, "a\ta\n1\t2\n")


# Data sets


SOUND = "0\t0\t0\n0\t1\t1\n1\t1\t0\n1\t2\t2\n2\t2\t0\n2\t0\t1\n0\t2\t2\n"


@pytest.mark.parametrize(
    ("separator", "flag"),
    [(",", "--field_separator=,"), (";", "--field_separator=';'"), (" ", "--field_separator=' '")],
)
def test_another_separator_of_interactions_is_named_with_its_flag(tmp_path: Path, separator: str, flag: str) -> None:
    path = file(tmp_path, f"userID\titemID\tx_label\n{SOUND}".replace("\t", separator))
    with pytest.raises(DataError) as caught:
        read_interactions(path, Settings())
    assert str(caught.value).endswith(f"try {flag}")
    users, *_ = read_interactions(path, Settings(field_separator=separator))
    assert users.tolist() == [0, 0, 1, 1, 2, 2, 0]


@pytest.mark.parametrize(
    ("header", "user", "item"),
    [
        ("userID\titemID", "user_id:token", "item_id:token"), ("user_id\titem_id", "user_id:token", "item_id:token"),
        ("user_id:token\titem_id:token", "user_id:token", "item_id:token"),
        ("user_id:token\titem_id:token", "user_id", "item_id"), ("uid\tiid", "uid", "iid"),
    ],
)  # fmt: skip
def test_placeholders_of_recbole_hide_no_column(tmp_path: Path, header: str, user: str, item: str) -> None:
    path = file(tmp_path, f"{header}\tx_label\n{SOUND}")
    users, items, labels, _ = read_interactions(path, Settings(USER_ID_FIELD=user, ITEM_ID_FIELD=item))
    assert (users.tolist(), items.tolist()) == ([0, 0, 1, 1, 2, 2, 0], [0, 1, 1, 2, 2, 0, 2])
    assert labels.tolist() == [0, 1, 0, 2, 0, 1, 2]


def test_quotes_in_columns_that_are_not_read_swallow_no_interaction(tmp_path: Path) -> None:
    lines = SOUND.splitlines()
    for place in (0, 3):
        lines[place] += '\t"so good'
    for place in (1, 2, 4, 5, 6):
        lines[place] += "\tfine"
    path = file(tmp_path, "userID\titemID\tx_label\tcomment\n" + "\n".join(lines) + "\n", "toy.inter")
    assert len(read_interactions(path, Settings())[0]) == 7
    path = file(tmp_path, path.read_text().replace("fine", "fine\tthing", 1), "toy.inter")
    with pytest.raises(DataError, match=r"toy.inter, line 3: expected 4 cells.*got 5; is a separator within a cell"):
        load_dataset(tmp_path, "toy", Settings())


def test_a_catalog_keeps_its_items_whatever_its_quotes(tmp_path: Path) -> None:
    file(tmp_path, '\titemID\ttitle\n0\t0\t"12 inch\n1\t1\tlamp\n2\t2\t15" rug"\n', "items.tsv")
    catalog = read_catalog(tmp_path)
    assert dict(catalog.fields) == {"title": ('"12 inch', "lamp", '15" rug"')}
    file(tmp_path, 'itemID\ttitle\n0\t"two\nlines"\n1\tlamp\n', "items.tsv")
    assert read_catalog(tmp_path).fields["title"] == ("two\nlines", "lamp")


# Feature files and their list


@pytest.mark.parametrize(
    ("content", "missed"),
    [
        ("1\n", [1]), ("itemID\n1\n3\n", [1, 3]), (",itemID\n0,1\n1,3\n", [1, 3]), ("\titemID\n0\t3\n", [3]),
        ("1,3\n", [1, 3]), ("itemID,asin\n2,B00\n", [2]), ("Unnamed: 0,missed\n0,2\n", [2]), ("1.0\n", [1]),
        ("\ufeffitemID\r\n1\r\n", [1]),
    ],
)  # fmt: skip
def test_the_list_of_missed_images_is_read_by_the_name_of_its_column(
    tmp_path: Path, content: str, missed: list[int]
) -> None:
    np.save(tmp_path / "f.npy", np.ones((4, 2), np.float32))
    file(tmp_path, content, "missed_img_itemIDs.csv")
    present = read_feature_file(tmp_path / "f.npy", modality="image", n_items=4).present
    assert np.flatnonzero(~present).tolist() == missed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("0,2\n1,3\n", "which may be the numbers of rows; write one id a line"),
        ("a,b\n1,2\n", "expected a column itemID, got a, b"),
        ("itemID\nx\n", "line 2: itemID: expected an integer, got 'x'"),
        ("1.5\n", "expected item ids, got 1.5"),
    ],
)  # fmt: skip
def test_a_list_of_missed_images_whose_ids_would_be_guessed_is_refused(
    tmp_path: Path, content: str, message: str
) -> None:
    np.save(tmp_path / "f.npy", np.ones((4, 2), np.float32))
    file(tmp_path, content, "missed_img_itemIDs.csv")
    with pytest.raises(DataError) as caught:
        read_feature_file(tmp_path / "f.npy", modality="image", n_items=4)
    assert message in str(caught.value)


@pytest.mark.parametrize("kind", ["LFS", "page", "gzip", "zip", "parquet", "empty"])
def test_what_lies_in_place_of_a_feature_file_is_called_by_its_name(tmp_path: Path, kind: str) -> None:
    content, message = FOREIGN[kind]
    with pytest.raises(DataError) as caught:
        read_feature_file(file(tmp_path, content, "f.npy"), modality="image", n_items=4)
    assert "expected a .npy file, got " in str(caught.value)
    assert message in str(caught.value)
    assert ("numpy.save" in str(caught.value)) == (kind in ("zip", "parquet"))
