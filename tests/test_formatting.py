"""An error's first line, the first few of many names, columns and CSV."""

import pytest

from mmrec_lmm.formatting import aligned, csv_text, first_few, first_line


@pytest.mark.parametrize(
    ("error", "line"), [(OSError("one\ntwo"), "one"), (TimeoutError(), "TimeoutError"), (ValueError("one"), "one")]
)
def test_an_error_is_named_by_its_first_line_or_its_type(error: Exception, line: str) -> None:
    assert first_line(error) == line


@pytest.mark.parametrize(("count", "text"), [(1, "0"), (2, "0, 1"), (3, "0, 1 and 1 more"), (9, "0, 1 and 7 more")])
def test_the_first_few_names_are_followed_by_how_many_more_there_are(count: int, text: str) -> None:
    assert first_few(range(count), 2) == text


def test_columns_are_as_wide_as_their_widest_cell_and_numbers_end_at_one_edge() -> None:
    lines = [["model", "Recall"], ["VBPR", "0.1"]]
    assert aligned(lines, right=[False, True]) == [["model", "Recall"], ["VBPR ", "   0.1"]]
    assert aligned([["a"]], right=[True], at_least=3) == [["  a"]]


def test_csv_has_the_columns_of_all_rows_and_quotes_what_holds_a_comma() -> None:
    assert csv_text([{"a": 1, "b": None}, {"a": "x, y", "c": 2}]) == 'a,b,c\n1,,\n"x, y",,2\n'
