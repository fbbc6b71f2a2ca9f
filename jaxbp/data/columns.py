"""Columns: of what kind each input column of a table is, and how it becomes numbers.

    kind       becomes
    number     itself
    boolean    0 or 1
    date       days since the first of the training rows
    category   an input for each category of the training rows: 1 where it is the row's, else 0

A missing number, truth value or date becomes the median of the training rows; where at least 5 %
of them miss it, a further input is 1 in rows that do.  A missing category is one of its own.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from jaxbp.data.cells import (
    BOOLEANS,
    CODE,
    DAY_OR_MONTH_FIRST,
    INTEGER,
    MISSING,
    Decimal,
    day,
    days,
    decimals_of,
    is_number,
    number,
    quoted,
    truth,
)
from jaxbp.data.errors import DataError
from jaxbp.data.tables import Table, Unreadable, all_numbers, distinct, is_text, texts
from jaxbp.text import cut, significant

Kind = Literal["number", "boolean", "date", "category", "empty"]
Missing = Literal["impute", "error"]

#: the share of training rows from which that a cell is missing is an input of its own: in fewer
#: rows than one in twenty it is too rare to learn a weight of it
MANY_MISSING = 0.05
MOST_CATEGORIES = 1000  # of a column: each is an input
_FEW = 10  # categories that even the shortest table may have, however few rows there are

LARGEST_FLOAT32 = float(np.finfo(np.float32).max)


class Column(NamedTuple):
    """An input column, as it is remembered: how its cells become a network's inputs."""

    name: str
    kind: Kind = "number"
    fill: float = 0.0  # what stands for a missing number: the training rows' median
    indicator: bool = False  # whether a further input is 1 where the cell is missing
    categories: tuple[str, ...] = ()  # those of the training rows; "" is a missing one
    origin: float = 0.0  # a date's days are counted from here, in days since 1970
    decimal: Decimal | None = None  # before a number's fraction; None: as Python writes it
    missing: Missing = "impute"  # whether a missing cell is refused
    constant: bool = False  # whether no training row has another number than fill

    def __str__(self) -> str:
        return f"{self.name}: {self.kind}"

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of its inputs."""
        if self.kind == "category":
            return tuple(f"{self.name}={category or '(missing)'}" for category in self.categories)
        since = f" (days since {day(self.origin)})"
        own = f"{self.name}{since if self.kind == 'date' else ''}"
        return (own, f"{self.name} is missing") if self.indicator else (own,)

    @property
    def is_scaled(self) -> tuple[bool, ...]:
        """Which of its inputs are standardised: not those that tell by 1 what a row is."""
        if self.kind == "category":
            return (False,) * len(self.categories)
        return (True, False) if self.indicator else (True,)


class Values(NamedTuple):
    """The cells of a column, read by its kind."""

    numbers: np.ndarray  # (N,) NaN where missing; of categories their position in names, or NaN
    names: tuple[str, ...] = ()  # of categories

    @property
    def missing(self) -> np.ndarray:
        """Which cells are missing, (N,)."""
        return np.isnan(self.numbers)


class Examined(NamedTuple):
    """A column of a table, as it is found to be."""

    column: Column  # what is known of it before there are training rows
    values: Values
    refused: str = ""  # why it can be no input
    note: str = ""  # how its numbers were read, where other columns decided


# Kinds


def shown_decimals(table: Table) -> set[Decimal]:
    """The decimal signs that the first rows of some columns show, which can be read by one alone.

    If it is one, it decides for columns that leave it open, as one of 1.040 and 972 beside 6,67.
    """
    signs: set[Decimal] = set()
    readable = [each for each in table.columns if not isinstance(each, Unreadable)]
    for column in filter(is_text, readable):
        cells = _present(distinct(column[:_FIRST])[0])
        points = decimals_of(cells) if cells else []
        signs |= {*points} if len(points) == 1 else set()
    return signs


_FIRST = 1000  # rows


def _is_open(cells: Sequence[str]) -> bool:
    """Whether all numbers may have a decimal comma as well as a point, and differ by that."""
    return len(decimals_of(cells)) == 2 and any(
        number(cell, ".") != number(cell, ",") for cell in cells
    )


def _present(cells: Iterable[str]) -> list[str]:
    """The cells that are not missing."""
    return [cell for cell in cells if cell.lower() not in MISSING]


def examine(
    table: Table, position: int, *, categorical: bool = False, decimal: Decimal | None = None
) -> Examined:
    """Find out of what kind a column is, and read its cells.

    table: that has it.
    position: of the column.
    categorical: whether it is to be taken for categories, whatever its cells are.
    decimal: the sign before the fraction of its numbers; found by its cells unless given.

    What cannot be read is told as ``refused``, and not raised.
    """
    name, column = table.names[position], table.columns[position]
    own = Column(name, decimal=decimal)
    if isinstance(column, Unreadable):
        refused = f"{column.error}; drop={name!r} (--drop) leaves it out"
        return Examined(own, Values(np.full(len(column), np.nan)), refused)
    by_others = decimal is None and "," in table.decimals and is_text(column)
    if not categorical and not (decimal == "," and is_text(column)):
        found = all_numbers(column)
        if found is not None and not (by_others and _is_open(_present(distinct(column)[0]))):
            only = found[~np.isnan(found)]
            kind: Kind = "boolean" if ((only == 0) | (only == 1)).all() else "number"
            kind = kind if len(only) else "empty"
            refused = _beyond_float32(table, position, found) or _beyond_float64(
                table, position, found
            )
            return Examined(own._replace(kind=kind), Values(found), refused)
    cells, codes = distinct(column)
    present = _present(cells)
    if not present:
        return Examined(own._replace(kind="empty"), Values(np.full(len(codes), np.nan)))
    if categorical:
        return Examined(own._replace(kind="category"), _as_categories(cells, codes))
    return _examine_text(table, position, own, cells, codes, decimal)


def note_of_codes(table: Table, position: int) -> str:
    """A note of numbers that may be codes, as 01234 is where it is a postal one; else empty."""
    name, column = table.names[position], table.columns[position]
    cells = distinct(column[:_FIRST])[0] if is_text(column) else []
    code = next((cell for cell in cells if CODE.fullmatch(cell)), "")
    return code and (
        f"column {quoted(name)}: {quoted(code)} is read as a number; categorical={name!r} "
        f"(--categorical {name}) makes codes of such cells"
    )


def _examine_text(
    table: Table,
    position: int,
    own: Column,
    cells: list[str],
    codes: np.ndarray,
    decimal: Decimal | None,
) -> Examined:
    """``examine`` for a column of text by its different cells, and which of them each row has."""
    present = _present(cells)
    kind, points = _kind_of(present, decimal, table.decimals)
    if kind == "category":
        counts = np.bincount(codes, minlength=len(cells))
        is_present = np.array([cell.lower() not in MISSING for cell in cells])
        rows = int(counts[is_present].sum())
        for column in (own, own._replace(kind="date")):
            fits = np.array([_read_cell(column, cell) is not None for cell in cells]) & is_present
            if 2 * counts[fits].sum() > rows:  # numbers, or dates, and a cell or two that is none
                found = _read_or_refused(table, position, column, cells, codes)
                return found._replace(refused=f"{found.refused}; {_ways(own.name)}")
        refused = _not_categories(table, own.name, present, rows)
        return Examined(own._replace(kind=kind), _as_categories(cells, codes), refused)
    note = ""
    if len(points) > 1:
        cell = next(cell for cell in present if number(cell, ".") != number(cell, ","))
        if len(table.decimals) != 1:
            refused = (
                f"{table.source}: column {quoted(own.name)}: {quoted(cell)} may have a decimal "
                f"comma or groups of thousands: {_SAID}"
            )
            return Examined(own, Values(np.full(len(codes), np.nan)), refused)
        points = [*table.decimals]
        taken_for = significant(number(cell, points[0]) or 0.0, 6)
        note = (
            f"column {quoted(own.name)}: {quoted(cell)} is taken for {taken_for}, by the decimal "
            f"sign of other columns; {_SAID}"
        )
    own = own._replace(kind=kind, decimal=points[0] if points else own.decimal)
    return _read_or_refused(table, position, own, cells, codes)._replace(note=note)


def _kind_of(
    present: list[str], decimal: Decimal | None, shown: Collection[Decimal]
) -> tuple[Kind, list[Decimal]]:
    """The kind of a column by its different cells that are not missing; of numbers also how they
    may be written: with ``decimal``, if that is told, and else perhaps as other columns show."""
    by_comma = "," in shown and _is_open(present)
    if decimal is None and not by_comma and all(map(is_number, present)):
        return ("boolean" if {float(cell) for cell in present} <= {0, 1} else "number"), []
    if decimal is not None and all(number(cell, decimal) is not None for cell in present):
        return "number", [decimal]
    lower = {cell.lower() for cell in present}
    if any(lower <= {*words} for words in BOOLEANS):
        return "boolean", []
    if decimal is None:
        points = decimals_of(present)
        if points:
            return "number", points if len(points) == 1 or _is_open(present) else points[:1]
    if all(days(cell) is not None for cell in present):
        return "date", []
    return "category", []


def _not_categories(table: Table, name: str, present: list[str], rows: int) -> str:
    """Why text can be no categories; empty where it can."""
    where, ways = f"{table.source}: column {quoted(name)}", _ways(name)
    if all(map(DAY_OR_MONTH_FIRST.fullmatch, present)):
        return (
            f"{where}: {quoted(present[0])} may begin with the day or the month: write dates as "
            f"2020-12-31; {ways}"
        )
    if len(present) > max(_FEW, rows / 2):
        return f"{where}: text with {len(present)} different values in {rows} rows: {ways}"
    if len(present) > MOST_CATEGORIES:
        return f"{where}: {len(present)} categories, more than {MOST_CATEGORIES}: {ways}"
    return ""


def _ways(name: str) -> str:
    """The things to do about a column that is refused, in words."""
    return (
        f"drop={quoted(name)} (--drop {name}) leaves it out, categorical={quoted(name)} "
        f"(--categorical {name}) takes it for categories all the same"
    )


def _as_categories(cells: Sequence[str], codes: np.ndarray) -> Values:
    """Cells as categories by name; a missing one is NaN."""
    names = tuple(sorted(cell for cell in cells if cell.lower() not in MISSING))
    position = {name: float(index) for index, name in enumerate(names)}
    return Values(np.array([position.get(cell, np.nan) for cell in cells])[codes], names)


_SAID = "decimal=',' (--decimal ,) or decimal='.' (--decimal .) says which"
_DATE = "a date, year first,"
_EXPECTED = {"number": "a number", "boolean": "true or false", "date": _DATE}


def _read_or_refused(
    table: Table, position: int, column: Column, cells: Sequence[str], codes: np.ndarray
) -> Examined:
    try:
        return Examined(column, _read_cells(table, position, column, cells, codes))
    except DataError as error:
        return Examined(column, Values(np.full(len(codes), np.nan)), str(error))


def _read_cells(
    table: Table, position: int, column: Column, cells: Sequence[str], codes: np.ndarray
) -> Values:
    """Read numbers, truth values or dates.  Raises DataError that names the first cell that is
    none, or that float32 cannot hold."""

    found = [_read_cell(column, cell) for cell in cells]
    wrong = np.array([value is None for value in found])[codes]
    if wrong.any():
        row = int(wrong.argmax())
        cell = cells[codes[row]]
        signs = [sign for sign in decimals_of([cell]) if sign != (column.decimal or ".")]
        hint = f"; decimal={signs[0]!r} (--decimal {signs[0]}) reads it" if signs else ""
        raise DataError(
            f"{table.place(row, position)}: {quoted(cell)} where {_EXPECTED[column.kind]} belongs"
            f"{hint if column.kind == 'number' else ''}"
        )
    numbers = np.array(found, np.float64)[codes]
    if refused := _beyond_float32(table, position, numbers):
        raise DataError(refused)
    return Values(numbers)


def _read_cell(column: Column, cell: str) -> float | None:
    """Read a number, truth value or date: NaN where it is missing, None where it is none."""
    if cell.lower() in MISSING:
        return np.nan
    if column.kind == "boolean":
        return truth(cell)
    return days(cell) if column.kind == "date" else number(cell, column.decimal)


def _beyond_float64(table: Table, position: int, numbers: np.ndarray) -> str:
    """Why integers are refused that float64 does not tell apart; empty for others."""
    if not (np.abs(numbers) > 2**53).any():
        return ""
    cells = [cell for cell in distinct(table.columns[position])[0] if INTEGER.fullmatch(cell)]
    if len({float(cell) for cell in cells}) == len({int(cell) for cell in cells}):
        return ""
    name = table.names[position]
    return (
        f"{table.source}: column {quoted(name)}: integers beyond 2⁵³, as {max(cells, key=int)}, of "
        f"which float64 does not tell some apart: {_ways(name)}"
    )


def _beyond_float32(table: Table, position: int, numbers: np.ndarray) -> str:
    beyond = np.abs(numbers) > LARGEST_FLOAT32  # a missing one is NaN, and is not
    if not beyond.any():
        return ""
    row = int(beyond.argmax())
    cell = texts(table.columns[position][row : row + 1])[0]
    return f"{table.place(row, position)}: {cut(cell, 40)} is not finite in float32"


# From cells to inputs


def fitted(examined: Examined, rows: np.ndarray, missing: Missing) -> Column:
    """Learn from the training rows what is to be remembered of a column.

    rows are the numbers of these rows; missing says whether a missing cell is refused.
    """
    column = examined.column._replace(missing=missing)
    numbers = examined.values.numbers[rows]
    present = numbers[~np.isnan(numbers)]
    if column.kind == "category":
        names = [examined.values.names[int(code)] for code in np.unique(present)]
        gaps = [""] if len(present) < len(numbers) else []
        return column._replace(categories=(*names, *gaps))
    if not len(present):
        return column
    return column._replace(
        constant=bool((present == present[0]).all()),
        fill=float(np.median(present)),
        indicator=1 - len(present) / len(numbers) >= MANY_MISSING,
        origin=float(np.floor(present.min())) if column.kind == "date" else 0.0,
    )


def read(table: Table, position: int, column: Column, decimal: Decimal | None = None) -> Values:
    """Read the cells of a column of new rows by what is remembered of it.

    table: of the new rows.
    position: of the column there.
    column: as it is remembered.
    decimal: the sign before a number's fraction; that of the training rows unless given.

    Raises DataError for what is no such cell, and where the training rows had a decimal comma and
    the new ones may have a point, or the other way round.
    """
    cells = table.columns[position]
    if decimal is not None and column.kind == "number":
        column = column._replace(decimal=decimal)
    if column.kind == "category":
        names, codes = distinct(cells)
        if not is_text(cells) and cells.dtype.kind == "f":  # 1.0 in a file is 1 by its number
            whole = {name.removesuffix(".0"): name for name in column.categories}
            names = [name if name in column.categories else whole.get(name, name) for name in names]
        return _as_categories(names, codes)
    if not is_text(cells):
        numbers = cells.astype(np.float64)
        if column.kind == "date" and not np.isnan(numbers).all():  # of what since when?
            row = int(np.argmin(np.isnan(numbers)))
            shown = texts(cells[row : row + 1])[0]
            raise DataError(f"{table.place(row, position)}: {cut(shown, 40)} where {_DATE} belongs")
        return Values(numbers)
    if column.kind != "date" and column.decimal != ",":
        found = all_numbers(cells)
        if found is not None and not _beyond_float32(table, position, found):
            return Values(found)
    names, codes = distinct(cells)
    if decimal is None and column.decimal is not None:
        _check_decimal(table, column.name, column.decimal, names)
    return _read_cells(table, position, column, names, codes)


def _check_decimal(table: Table, name: str, decimal: Decimal, cells: Sequence[str]) -> None:
    """Raise DataError where all numbers of a column may have the other decimal sign, some sign is
    there, and other columns do not decide: it would make them 1000 times larger or smaller."""
    other = "." if decimal == "," else ","
    found = _present(cells)
    in_doubt = [cell for cell in found if other in cell]
    if in_doubt and len(decimals_of(found)) == 2 and {*table.decimals} != {decimal}:
        has = {",": "a decimal comma", ".": "a decimal point"}
        raise DataError(
            f"{table.source}: column {quoted(name)}: {quoted(in_doubt[0])} may have {has[other]}, "
            f"and the rows trained on have {has[decimal]}: {_SAID}"
        )


def check_complete(table: Table, position: int, values: Values) -> None:
    """Raise DataError for the first cell of a column that is missing."""
    if values.missing.any():
        raise DataError(f"{table.place(int(values.missing.argmax()), position)}: missing value")


def encode(column: Column, values: Values) -> np.ndarray:
    """The inputs (N, I) of a column's cells.  An unknown category is 0 in all of them."""
    missing = values.missing
    if column.kind == "category":
        position = {name: index for index, name in enumerate(column.categories)}
        places = np.array([position.get(name, -1) for name in (*values.names, "")])
        code = np.where(missing, len(values.names), values.numbers).astype(int)
        return np.asarray(places[code][:, None] == np.arange(len(position)), np.float64)
    numbers = np.where(missing, column.fill, values.numbers) - column.origin
    return np.stack([numbers, missing], 1) if column.indicator else numbers[:, None]
