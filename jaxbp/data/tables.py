"""Tables: named columns of text or numbers, from a DataFrame, a dict of arrays or a file of them.

A column is a polars Series or an object array of text, whose cells may have blanks around them and
are "" where there is none, or an array of numbers, NaN where there is none.
"""

import json
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from itertools import dropwhile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxbp.data.cells import INTEGER, MISSING, Decimal, quoted
from jaxbp.data.errors import DataError, readable, reader
from jaxbp.reprs import short
from jaxbp.text import counted


class Table(NamedTuple):
    """Named columns of equally many rows."""

    source: str  # as messages name it
    names: tuple[str, ...]  # of the columns
    columns: Sequence[Any]  # (N,) each
    line: Callable[[int], int] = int  # a row's number in messages: a CSV's line, else from 0
    has_header: bool | None = None  # whether a CSV's first row names the columns; None for no CSV
    note: str = ""  # where it is in doubt whether the first row is a header, or what is left out
    hint: str = ""  # to errors, where it was guessed that it is none
    categorical: Collection[str] = ()  # names of the columns whose type says so
    decimals: Collection[Decimal] = ()  # that some columns show, for those that leave it open

    def place(self, row: int, column: int) -> str:
        """Name a cell in a message."""
        return f"{self.source}, row {self.line(row)}, column {quoted(self.names[column])}"

    def take(self, rows: np.ndarray) -> "Table":
        """The table of some of its rows."""
        line = self.line
        return self._replace(
            columns=[column[rows] for column in self.columns], line=lambda row: line(int(rows[row]))
        )

    def position(self, name: str | int) -> int:
        """Find a column by its name or, where none is called so, by its position; -1 is the last.

        Where all names are numbers, as they may be in a DataFrame, one from 0 on is a name.
        """
        if str(name) in self.names:
            return self.names.index(str(name))
        if not INTEGER.fullmatch(str(name)):
            raise self.no_such_column(name)
        if int(name) >= 0 and all(map(INTEGER.fullmatch, self.names)):
            raise self.no_such_column(name)
        try:
            return range(len(self.names))[int(name)]
        except IndexError:
            raise self.no_such_column(name) from None

    def positions(self, names: Sequence[str]) -> list[int]:
        """Find columns by their names alone."""
        absent = [name for name in names if name not in self.names]
        if absent:
            raise self.no_such_column(*absent)
        return [self.names.index(name) for name in names]

    def no_such_column(self, wanted: str | int, *others: str) -> DataError:
        """The error of columns that are not there, with a name that is near the first."""
        near = [] if isinstance(wanted, int) else get_close_matches(wanted, self.names, n=1)
        hint = f"; did you mean {quoted(near[0])}?" if near else ""
        hint += f", nor {', '.join(map(quoted, others[:5]))}" if others else ""
        hint += ", ..." if len(others) > 5 else ""
        names = ", ".join(map(quoted, self.names[:10])) + (", ..." if len(self.names) > 10 else "")
        note = f"; {self.note}" if self.note else ""
        return DataError(
            f"{self.source}: no column {quoted(wanted)}{hint} (the columns are {names}){note}"
        )


# Columns


@dataclass(frozen=True)
class Unreadable:
    """A column of neither numbers nor text, such as one of lists: an error where it is used."""

    error: str
    rows: int

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, rows: Any) -> "Unreadable":
        return replace(self, rows=len(rows))


def is_text(column: Any) -> bool:
    """Whether a column holds text, and not numbers.  Raises DataError where it holds neither."""
    if isinstance(column, Unreadable):
        raise DataError(column.error)
    return not isinstance(column, np.ndarray) or column.dtype == object


def is_empty(column: Any) -> bool:
    """Whether a column of text has no cell but empty ones."""
    if isinstance(column, np.ndarray):
        return not any(column)
    return bool((column.fill_null("").str.strip_chars() == "").all())


def texts(column: Any) -> list[str]:
    """A column's cells as text without blanks around them; a whole number has no fraction."""
    if is_text(column) and not isinstance(column, np.ndarray):
        column = column.fill_null("")
    cells = column.tolist() if isinstance(column, np.ndarray) else column.to_list()
    return [cell.strip() if isinstance(cell, str) else _text(cell) for cell in cells]


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def distinct(column: Any) -> tuple[list[str], np.ndarray]:
    """The different cells of a column as text, and which of them each row has, (N,)."""
    if is_text(column) and not isinstance(column, np.ndarray):
        cells = column.fill_null("").str.strip_chars()
        different = cells.unique(maintain_order=True)
        codes = cells.replace_strict(different, np.arange(len(different)))
        return different.to_list(), codes.to_numpy()
    position: dict[str, int] = {}
    found = (position.setdefault(cell, len(position)) for cell in texts(column))
    codes = np.fromiter(found, np.int64, len(column))
    return list(position), codes


def all_numbers(column: Any) -> np.ndarray | None:
    """Read a column as float64 at once, NaN where a cell is missing; None where any is no number.

    What stands for a missing value in an object array, but for "nan", is no number here.
    """
    if isinstance(column, np.ndarray):
        try:
            values = column.astype(np.float64)
        except (TypeError, ValueError):
            return None
        # to NumPy 1_0 is 10
        underscore = any("_" in cell for cell in column if isinstance(cell, str))
        return None if underscore and is_text(column) else values
    polars = reader("polars", "a large table", "polars")
    cast = column.cast(polars.Float64, strict=False)
    others = column.filter(cast.is_null()).fill_null("").unique().to_list()
    if any(cell.strip().lower() not in MISSING for cell in others):
        return None
    found: np.ndarray = cast.fill_null(np.nan).to_numpy()
    return found


# DataFrames, and files of typed columns

FRAMES = {".parquet", ".feather", ".arrow", ".ipc"}
EXCEL = {".xlsx", ".xls", ".xlsb", ".ods"}


def is_frame(source: Any) -> bool:
    """Whether a source is a DataFrame or a dict of arrays, rather than the name of a file."""
    return isinstance(source, Mapping) or hasattr(type(source), "columns")


def frame_table(source: Any, name: str = "table") -> Table:
    """Read a DataFrame of pandas, polars or another library, or a dict of arrays.

    Raises DataError for two columns of one name, and for columns of different lengths.
    """
    if isinstance(source, Mapping):
        names, categorical = tuple(map(str, source)), set()
        columns = [_of_array(name, str(key), value) for key, value in source.items()]
    else:
        narwhals = reader("narwhals", "a DataFrame", "narwhals")
        try:
            frame = narwhals.from_native(source, eager_only=True)
        except TypeError:
            how = "; its collect() is one" if hasattr(source, "collect") else ""
            raise DataError(
                f"{name}: got {type(source).__name__}, expected a DataFrame{how}"
            ) from None
        except ValueError as error:  # two columns of one name
            raise DataError(f"{name}: {' '.join(str(error).split())}") from None
        names = tuple(map(str, frame.columns))
        columns = [_of_series(name, series) for series in frame.iter_columns()]
        kinds = (narwhals.Categorical, narwhals.Enum)
        categorical = {str(column) for column, dtype in frame.schema.items() if dtype in kinds}
    if not columns or not len(columns[0]):
        raise DataError(f"{name}: no rows")
    lengths = {len(column) for column in columns}
    if len(lengths) > 1:
        raise DataError(f"{name}: columns of {', '.join(map(str, sorted(lengths)))} rows")
    if len(set(names)) < len(names):
        raise DataError(f"{name}: two columns are called {quoted(max(names, key=names.count))}")
    return Table(name, names, columns, categorical=categorical)


_NO_CELLS = ("Duration", "Time", "Unknown", "Binary")  # types of narwhals


def _of_series(source: str, series: Any) -> Any:
    """A narwhals Series as numbers, NaN where there is none, or as text."""
    if series.null_count() == len(series):  # polars has a type of its own for it
        return _cells([None] * len(series), [True] * len(series))
    own = getattr(series.to_native(), "dtype", series.dtype)
    has_zone = getattr(own, "tz", None) is not None  # of pandas, of which narwhals knows a few
    if not has_zone and (series.dtype.is_nested() or str(series.dtype).startswith(_NO_CELLS)):
        return _unreadable(source, series.name, own, len(series))
    if series.dtype.is_numeric():
        whole = series.dtype.is_integer() and series.null_count() == 0
        values: np.ndarray = series.to_numpy()
        if values.dtype == object or not whole:
            values = np.array([np.nan if each is None else each for each in values], np.float64)
        return values
    return _cells(series.to_list(), series.is_null().to_list())


def _of_array(source: str, name: str, values: Any) -> Any:
    """An array of a dict as numbers or as text."""
    array = np.asarray(values)
    if not array.ndim:
        raise DataError(f"{source}, column {quoted(name)}: got {short(values)}, expected (N,)")
    if array.ndim > 1:
        return _unreadable(source, name, f"shape {array.shape}", len(array))
    if array.dtype.kind in "cmSV" or np.ma.is_masked(values):
        what = "masked values" if np.ma.is_masked(values) else array.dtype
        return _unreadable(source, name, what, len(array))
    if array.dtype.kind in "iuf":
        return array
    if array.dtype.kind == "M":
        return _cells(array.astype("M8[us]").tolist(), np.isnat(array))
    missing = [
        value is None or (isinstance(value, float) and math.isnan(value))
        for value in array.tolist()
    ]
    return _cells(array.tolist(), missing)


def _unreadable(source: str, name: str, what: Any, rows: int) -> Unreadable:
    kinds = "numbers, text, truth values or dates"
    error = f"{source}, column {quoted(name)}: got {what}, expected {kinds}"
    return Unreadable(error, rows)


def _cells(values: Sequence[Any], missing: Sequence[bool] | np.ndarray) -> np.ndarray:
    """Values as text: a date as ISO writes it, a missing one as an empty cell."""
    cells = np.empty(len(values), object)
    cells[:] = ["" if gap else _text(value) for value, gap in zip(values, missing, strict=True)]
    return cells


class IndexOfPandas(NamedTuple):
    """The columns of a file that pandas wrote of a table's index, which is none of its columns."""

    unnamed: tuple[str, ...] = ()  # left out
    named: tuple[str, ...] = ()  # inputs like the others, before them

    def arranged(self, names: Sequence[str]) -> list[str]:
        """The columns of a file in the order that they would have without an index."""
        return [*self.named, *(name for name in names if name not in {*self.unnamed, *self.named})]

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines that say what became of them."""
        listed = [", ".join(map(quoted, each)) for each in self]
        said = ("the index of pandas, is left out", "the index of pandas, is a column like others")
        return tuple(f"{names}, {what}" for names, what in zip(listed, said, strict=True) if names)


def index_of_pandas(file: str | Path, names: Sequence[str]) -> IndexOfPandas:
    """Find the index by the file's own metadata, and by the name that pandas gives one without."""
    unnamed = [name for name in names if re.fullmatch(r"__index_level_\d+__", name)]
    held = {}
    if Path(file).suffix.lower() == ".parquet":
        polars = reader("polars", f"{file}: Parquet", "polars")
        held = json.loads(polars.read_parquet_metadata(file).get("pandas", "{}"))
    others = {*names} - {*unnamed}
    listed = [each for each in held.get("index_columns", ()) if isinstance(each, str)]  # or a range
    return IndexOfPandas(tuple(unnamed), tuple(each for each in listed if each in others))


def _in_utc(polars: Any, frame: Any) -> Any:
    """A frame whose times of a zone such as +05:30 are in UTC: polars names zones of whole hours
    alone, and reads others where POLARS_IGNORE_TIMEZONE_PARSE_ERROR is set."""
    for name, dtype in frame.schema.items():
        if re.fullmatch(r"[+-]\d\d:\d\d", getattr(dtype, "time_zone", None) or ""):
            numbers = polars.col(name).to_physical()
            frame = frame.with_columns(numbers.cast(polars.Datetime(dtype.time_unit)))
    return frame


def read_frame(source: str | Path) -> Table:
    """Read a Parquet or an Arrow (Feather) file.  Raises DataError."""
    suffix = Path(source).suffix.lower()
    polars = reader("polars", f"{source}: a {suffix}", "polars")
    read = polars.read_parquet if suffix == ".parquet" else polars.read_ipc
    with readable(polars, source, suffix):
        frame = _in_utc(polars, read(source))
        index = index_of_pandas(source, frame.columns)
    table = frame_table(frame.select(index.arranged(frame.columns)), str(source))
    return table._replace(note="; ".join(index.notes))


def excel_rows(source: str | Path) -> tuple[list[tuple[int, list[str]]], str]:
    """Read the first sheet of an Excel file -> line numbers and cells as text of the rows from the
    first that has any, and a note where there are other sheets."""
    calamine = reader("python_calamine", f"{source}: Excel", "python-calamine")
    try:
        book = calamine.CalamineWorkbook.from_path(str(source))
        rows = book.get_sheet_by_index(0).to_python(skip_empty_area=False)
    except Exception as error:  # calamine's own, of many kinds
        raise DataError(f"{source}: not a readable Excel file ({error})") from None
    lines = [(line, [_text(cell).strip() for cell in row]) for line, row in enumerate(rows, 1)]
    first, *others = book.sheet_names
    note = f"sheet {quoted(first)} is read, and {counted(len(others), 'other')} not"
    filled = dropwhile(lambda row: not any(row[1]), lines)
    return list(filled), note if others else ""
