"""Tables in CSV files: read as they are, in parts, and refused in one line that says where."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from paperlib.data import tables
from paperlib.data.tables import TableError, check_table


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "rows.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_a_table_is_read_to_the_bit_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(7, 3)) * 1e6, columns=["a", "b,c", "d e"])
    frame.to_csv(tmp_path / "rows.csv", index=False)
    monkeypatch.setattr(tables, "PART", 3)
    table = check_table(tmp_path / "rows.csv")
    parts = [*table.parts()]
    assert (table.columns, table.rows) == (("a", "b,c", "d e"), 7)
    assert [len(part.lines) for part in parts] == [3, 3, 1]
    assert (np.concatenate([part.rows for part in parts]) == frame.to_numpy()).all()
    assert np.concatenate([part.lines for part in parts]).tolist() == [2, 3, 4, 5, 6, 7, 8]


def test_columns_are_taken_by_their_names(tmp_path: Path) -> None:
    (part,) = check_table(written(tmp_path, "a,b\n1,2\n3,4\n"), ["b", "a"]).parts()
    assert part.rows.tolist() == [[2, 1], [4, 3]]


@pytest.mark.parametrize(
    "text",
    ["a,b\n\n1,2\n\n\n3,4", b"\xef\xbb\xbfa,b\r\n\r\n1,2\r\n\r\n\r\n3,4\r\n\r\n", ' a ,"b"\n  \n"1",2e0\n \n\n 3, 4\n'],
    ids=["empty lines", "of a spreadsheet", "blanks and quotes"],
)
def test_lines_are_those_of_the_file(tmp_path: Path, text: Any) -> None:
    table = check_table(written(tmp_path, text))
    (part,) = table.parts()
    assert table.columns == ("a", "b") and part.lines.tolist() == [3, 6]
    assert part.rows.tolist() == [[1, 2], [3, 4]]


def test_numbers_may_name_the_columns_where_they_count_them(tmp_path: Path) -> None:
    pd.DataFrame(np.ones((2, 3))).to_csv(tmp_path / "rows.csv", index=False)
    assert check_table(tmp_path / "rows.csv", 3).columns == ("0", "1", "2")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "rows.csv is empty: its first line must name the columns"),
        ("\n \n", "rows.csv is empty"),
        ("a,b\n", "rows.csv has a header and no rows"),
        ("1.5,2\n3,4\n", "rows.csv, line 1: the first line must name the columns, and here are numbers"),
        ("17,4\n3,4\n", "rows.csv, line 1: the first line must name the columns, and here are numbers"),
        ("0.0,1\n3,4\n", "rows.csv, line 1: the first line must name the columns, and here are numbers"),
        ("7,7\n3,4\n", "rows.csv, line 1: the first line must name the columns, and here are numbers"),
        ("nan\n3\n", "rows.csv, line 1: the first line must name the columns, and here are numbers"),
        ("a;b\n1;2\n", "rows.csv, line 1: values are to be separated by commas, here is 'a;b'"),
        ("a,,c\n1,2,3\n", "rows.csv, line 1: column 2 has no name"),
        ("a,b,a\n1,2,3\n", "rows.csv, line 1: two columns have the name 'a'"),
        ("a,b\n1,1_000\n", "rows.csv, line 2, column 'b' holds '1_000', which is no number"),
        ("a,b\n1,2\n\n1,two\n", "rows.csv, line 4, column 'b' holds 'two', which is no number"),
        ("a,b\n1,2\n,3\n", "rows.csv, line 3, column 'a' has no value: fill it in, or leave out the row"),
        ("a,b\n1,NaN\n", "rows.csv, line 2, column 'b' holds 'NaN', which is not finite"),
        ("a,b\n1,-inf\n", "rows.csv, line 2, column 'b' holds '-inf', which is not finite"),
        ("a,b\n1,2\n1,2,3\n", "rows.csv, line 3 has 3 values, the header 2 columns"),
        ("a,b\n1\n1,2\n", "rows.csv, line 2 has 1 values, the header 2 columns"),
        ("a,b\n1,x\n1\ny,2\n", "rows.csv, line 2, column 'b' holds 'x'"),
        ('a,b\n1,"2\n', "rows.csv is no table of comma-separated values: unexpected end of data"),
        (b"\x93NUMPY\x01\x00v\x00{", "rows.csv is no table of comma-separated values: 'utf-8' codec can't decode"),
    ],
)
def test_what_is_no_table_is_said_with_its_place(tmp_path: Path, text: str | bytes, words: str) -> None:
    with pytest.raises(TableError) as caught:
        check_table(written(tmp_path, text))
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (["a", "b", "c"], "lacks the column 'c'"),
        (["c", "b", "d"], "lacks the column 'c' and 1 more"),
        (["b"], "has an additional column, which is to be left out: 'a'"),
        (3, "has 2 columns, it must have 3"),
    ],
)
def test_other_columns_are_named(tmp_path: Path, columns: Any, words: str) -> None:
    with pytest.raises(TableError) as caught:
        check_table(written(tmp_path, "a,b\n1,2\n"), columns)
    assert str(caught.value).endswith(words)


def test_rows_that_get_lost_after_the_check_are_missed(tmp_path: Path) -> None:
    table = check_table(written(tmp_path, "a,b\n1,2\n3,4\n"))
    written(tmp_path, "a,b\n1,2\n")
    with pytest.raises(TableError, match="has lost rows while it was read: it had 2, now 1"):
        list(table.parts())


def test_values_outside_of_the_range_are_named(tmp_path: Path) -> None:
    path = written(tmp_path, "a,b\n0,1\n0.5,1.001\n")
    with pytest.raises(TableError, match=r"line 3, column 'b' holds '1.001', outside of the data range \[0, 1\]"):
        check_table(path, low=0.0, high=1.0)
    assert check_table(path, low=0.0, high=1.001).rows == 2


def test_large_finite_values_pass_though_their_sum_is_infinite(tmp_path: Path) -> None:
    (part,) = check_table(written(tmp_path, "a,b\n1e308,1.7e308\n")).parts()
    assert part.rows.tolist() == [[1e308, 1.7e308]]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no such file: .*none\.csv"):
        check_table(tmp_path / "none.csv")
