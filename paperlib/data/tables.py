"""Tables of numbers in CSV files: read in parts of constant size, and checked to the last line before they are used.

The first line names the columns, and commas separate values. Lines are counted from 1, as an editor counts them; empty
ones are passed over.
"""

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

PART = 1_024  # rows that are in memory at a time


class TableError(ValueError):
    """A file cannot be used as a table; says the line, the column, and what is wrong there."""


class Part(NamedTuple):
    """Some rows of a table: the line of each in the file, [rows], and the rows themselves, [rows, columns]."""

    lines: NDArray[np.int64]
    rows: NDArray[np.float64]


@dataclass(frozen=True)
class Table:
    """A file that was read once to its end: there is a row, and all rows are finite numbers in [low, high].

    Args:
        columns: their names, in their order in `parts`.
        rows: how many there are.
    """

    path: Path
    columns: tuple[str, ...]
    rows: int
    low: float
    high: float

    def parts(self) -> Iterator[Part]:
        """The rows, read anew, at most `PART` at a time.

        Raises TableError if the file has changed since it was checked, and no longer is such a table or has fewer rows.
        """
        rows = 0
        for part in _parts(self.path, self.columns, self.low, self.high):
            yield part
            rows += len(part.lines)
        if rows < self.rows:
            raise TableError(f"{self.path} has lost rows while it was read: it had {self.rows}, now {rows}")


def check_table(
    path: Path, columns: Sequence[str] | int | None = None, low: float = -math.inf, high: float = math.inf
) -> Table:
    """The table in a file, after a look at all of it; nothing of it stays in memory.

    Args:
        columns: that it must have, in any order, and the order in which `Table.parts` gives them; or how many it must
            have, whatever their names. None: those that it has.
        low, high: the range of the values.

    Raises FileNotFoundError, and TableError for a file that is no such table: for the first line at fault, and the
    first column there.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    names = _header(path, _lines(path))
    if isinstance(columns, int):
        if len(names) != columns:
            raise TableError(f"{path} has {len(names)} columns, it must have {columns}")
    elif columns is not None:
        for why, others in (
            ("lacks the column", [name for name in columns if name not in names]),
            ("has an additional column, which is to be left out:", [name for name in names if name not in columns]),
        ):
            if others:
                more = f" and {len(others) - 1} more" if len(others) > 1 else ""
                raise TableError(f"{path} {why} {others[0]!r}{more}")
        names = tuple(columns)
    rows = sum(len(part.lines) for part in _parts(path, names, low, high))
    if rows == 0:
        raise TableError(f"{path} has a header and no rows")
    return Table(path, names, rows, low, high)


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The number and the cells of each line that is not empty."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # some spreadsheets begin a file by a mark
            reader = csv.reader(file, strict=True)
            for cells in reader:
                if any(cell.strip() for cell in cells) or len(cells) > 1:
                    yield reader.line_num, cells
    except (UnicodeDecodeError, csv.Error) as error:
        raise TableError(f"{path} is no table of comma-separated values: {error}") from error


def _header(path: Path, lines: Iterator[tuple[int, list[str]]]) -> tuple[str, ...]:
    line, cells = next(lines, (0, []))
    names = tuple(cell.strip() for cell in cells)
    if not names:
        raise TableError(f"{path} is empty: its first line must name the columns")
    if len(names) == 1 and {";", "\t"} & {*names[0]}:
        raise TableError(f"{path}, line {line}: values are to be separated by commas, here is {names[0]!r}")
    if "" in names:
        raise TableError(f"{path}, line {line}: column {names.index('') + 1} has no name")
    # 0, 1, 2, ... may be the names of columns that had none; any other numbers are a row, which must not get lost
    numbered = tuple(map(str, range(len(names))))
    if names != numbered and all(_number(name) is not None for name in names):
        raise TableError(f"{path}, line {line}: the first line must name the columns, and here are numbers")
    for place, name in enumerate(names):
        if name in names[:place]:
            raise TableError(f"{path}, line {line}: two columns have the name {name!r}")
    return names


def _parts(path: Path, columns: tuple[str, ...], low: float, high: float) -> Iterator[Part]:
    lines = _lines(path)
    names = _header(path, lines)
    if lost := [name for name in columns if name not in names]:
        raise TableError(f"{path} has lost the column {lost[0]!r} while it was read")
    order = [names.index(name) for name in columns]
    numbers: list[int] = []
    rows: list[list[float]] = []
    for line, cells in lines:
        rows.append(_row(f"{path}, line {line}", names, cells, low, high))
        numbers.append(line)
        if len(rows) == PART:
            yield Part(np.array(numbers), np.array(rows)[:, order])
            numbers, rows = [], []
    if rows:
        yield Part(np.array(numbers), np.array(rows)[:, order])


def _row(where: str, names: tuple[str, ...], cells: list[str], low: float, high: float) -> list[float]:
    if len(cells) != len(names):
        raise TableError(f"{where} has {len(cells)} values, the header {len(names)} columns")
    try:
        values = [float(cell) for cell in cells]
        # all at once, for speed; the sum is finite unless a value is not, or it overflows
        if math.isfinite(sum(values)) and min(values) >= low and max(values) <= high and "_" not in "".join(cells):
            return values
    except ValueError:
        pass
    return [_value(f"{where}, column {name!r}", cell, low, high) for name, cell in zip(names, cells, strict=True)]


def _value(where: str, cell: str, low: float, high: float) -> float:
    if not cell.strip():
        raise TableError(f"{where} has no value: fill it in, or leave out the row")
    value = _number(cell)
    if value is None:
        raise TableError(f"{where} holds {cell!r}, which is no number")
    if not math.isfinite(value):
        raise TableError(f"{where} holds {cell!r}, which is not finite: fill in a number, or leave out the row")
    if not low <= value <= high:
        raise TableError(f"{where} holds {cell!r}, outside of the data range [{low:g}, {high:g}]")
    return value


def _number(cell: str) -> float | None:
    """None for what is no number, and for 1_000, which Python alone takes for one."""
    try:
        return None if "_" in cell else float(cell)
    except ValueError:
        return None
