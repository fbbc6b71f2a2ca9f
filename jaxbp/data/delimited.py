"""Delimited text: a CSV read as text, before any cell is read as a number.

Python's ``csv`` reads the first thousand rows, by which the layout is guessed, and finds the line
of whatever is wrong.  polars reads a larger file, three times as fast, where nothing in it is out
of the ordinary: UTF-8, no blank before a quote, no row with another number of cells.  Python's
``csv`` reads the others whole.
"""

import csv
import gzip
import importlib
import io
import re
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from jaxbp.data.cells import quoted
from jaxbp.data.errors import DataError, reader
from jaxbp.data.layout import LOOKED_AT, READ_AS_DATA, guess_delimiter, guess_header
from jaxbp.data.tables import EXCEL, Table, excel_rows, is_empty
from jaxbp.text import counted

DELIMITED = {".csv", ".tsv", ".tab", ".txt", ".data"}
COMPRESSED = {".gz", ".zst"}

Rows = Iterator[tuple[int, list[str]]]  # each row's line number, and its cells without blanks

_BYTE_ORDER_MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


class _Layout(NamedTuple):
    """How a file is written."""

    source: str | Path
    encoding: str
    delimiter: str = ","
    wrapped: bool = False  # whether every line is quoted as a whole
    before: int = 0  # lines before the table
    note: str = ""  # of what they are, where it is in doubt


def suffix_of(source: Any) -> str:
    """The suffix of a file's name in lower case, without that of its compression."""
    path = Path(source)
    if path.suffix.lower() in COMPRESSED:
        path = path.with_suffix("")
    return path.suffix.lower()


def is_tabular(source: Any) -> bool:
    """Whether a source is a file of rows of cells: delimited text or a sheet."""
    return suffix_of(source) in DELIMITED | EXCEL


def check_is_file(source: str | Path) -> None:
    """Raise DataError unless a source is a file that is there."""
    if not Path(source).is_file():
        exists = Path(source).exists()
        raise DataError(f"{source}: {'a folder, expected a file' if exists else 'no such file'}")


def read_delimited(
    source: str | Path,
    *,
    header: bool | None = None,
    expected: Sequence[str] = (),
    encoding: str | None = None,
) -> Table:
    """Read a CSV, or the first sheet of an Excel file, as text.

    source: the file; it may be compressed by gzip or zstd.
    header: whether the first row names the columns; guessed unless given.
    expected: names that the columns may have.
    encoding: of its text, by Python's name; UTF-8 unless given, or what a byte order mark says.

    Raises DataError.
    """
    check_is_file(source)
    layout = None if suffix_of(source) in EXCEL else _layout_of(source, encoding)
    sheet, of_sheets = excel_rows(source) if layout is None else ([], "")
    rows = iter(sheet) if layout is None else _rows(layout)
    first = list(islice(rows, LOOKED_AT + 1))
    if not first:
        raise DataError(f"{source}: the file is empty")
    _, top = first[0]
    notes, hint = [of_sheets if layout is None else layout.note], ""
    if header is None:
        below = [row for _, row in first[1:] if len(row) == len(top)]
        header, note = guess_header(top, below, expected)
        notes, hint = [note, *notes], "" if header else READ_AS_DATA
    names = tuple(top) if header else tuple(f"column {i}" for i in range(len(top)))
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated == "":
        count = counted(names.count(""), "cell")
        raise DataError(
            f"{source}, row {first[0][0]}: {count} without a name, expected all columns' names"
        )
    if repeated is not None:
        raise DataError(f"{source}: two columns are called {quoted(repeated)}")
    columns: list[Any] | None = None
    if layout is not None and len(first) > LOOKED_AT:
        columns = _by_polars(layout, len(names), skipped=int(header))
        line: Callable[[int], int] = _Lines(layout, skipped=int(header))
    if columns is None:
        body = chain(first[1:] if header else first, rows)
        lines, text = _of_equal_width(source, body, len(names))
        columns, line = list(text.T), lines.__getitem__
    if len(names) > 1 and not (header and names[-1]) and is_empty(columns[-1]):
        names, columns = names[:-1], columns[:-1]
        notes.append("every row ends with a delimiter: the empty column after it is left out")
    note = "; ".join(filter(None, notes))
    return Table(str(source), names, columns, line, has_header=header, note=note, hint=hint)


class _Lines:
    """The line numbers of a file's rows, which are looked up only for a message."""

    def __init__(self, layout: _Layout, skipped: int) -> None:
        self.layout, self.skipped = layout, skipped

    def __call__(self, row: int) -> int:
        line, _ = next(islice(_rows(self.layout), row + self.skipped, None))
        return line


def _of_equal_width(source: str | Path, rows: Rows, width: int) -> tuple[list[int], np.ndarray]:
    """Line numbers and cells (N, width) of rows, all of which must have that many cells."""
    lines, text = [], []
    for line, row in rows:
        if len(row) != width:
            raise DataError(
                f"{source}, row {line}: {counted(len(row), 'column')}, expected {width}"
            )
        lines.append(line)
        text.append(row)
    if not text:
        raise DataError(f"{source}: a header and no rows")
    return lines, np.array(text, object)


# Text


def _opened(source: str | Path) -> IO[bytes]:
    """The bytes of a file, decompressed."""
    suffix = Path(source).suffix.lower()
    if suffix == ".gz":
        return io.BufferedReader(gzip.open(source))
    if suffix == ".zst":
        zstandard = reader("zstandard", f"{source}: a .zst", "zstandard")
        with Path(source).open("rb") as file:
            return io.BytesIO(zstandard.ZstdDecompressor().stream_reader(file).read())
    return Path(source).open("rb")


def _layout_of(source: str | Path, encoding: str | None) -> _Layout:
    """Guess the encoding by the byte order mark, the delimiter, and whether lines are quoted."""
    try:
        with _opened(source) as file:
            mark = file.read(2)
            encoding = encoding or _BYTE_ORDER_MARKS.get(mark, "utf-8-sig")
            file.seek(0)
            with io.TextIOWrapper(file, encoding=encoding, newline="") as text:
                named = _named_delimiter(text)
                before, note = (1, "") if named else _comments(text)
                start = text.tell()
                delimiter, width = (named, 2) if named else guess_delimiter(text)
                if width < 2 and text.read(1) == '"':
                    text.seek(start)
                    lines = islice(csv.reader(text), LOOKED_AT)
                    inside = io.StringIO("\n".join(line[0] for line in lines if line), newline="")
                    inner, width = guess_delimiter(inside)
                    if width > 1:
                        return _Layout(source, encoding, inner, True, before, note)
    except LookupError:
        raise DataError(f"encoding: got {encoding!r}, expected a name such as latin-1") from None
    except (UnicodeError, csv.Error, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise _unreadable(source, error) from None
    return _Layout(source, encoding, delimiter, False, before, note)


def _named_delimiter(text: IO[str]) -> str:
    """The delimiter that a first line names, as "sep=;" does for Excel; else "", and no line is
    read."""
    start = text.tell()
    named = _NAMED.fullmatch(text.readline().rstrip("\r\n"))
    if not named:
        text.seek(start)
    return named[1] if named else ""


_NAMED = re.compile(r"sep=(.)", re.IGNORECASE)


def _comments(text: IO[str]) -> tuple[int, str]:
    """Read the lines before a table that begin with # and are no row of it -> their number, and a
    note.  One with as many cells as the first row below is its header or a row like it."""
    starts = [text.tell()]
    lines = []
    while (line := text.readline()).startswith("#"):
        lines.append(line)
        starts.append(text.tell())
    text.seek(starts[-1])
    delimiter, width = guess_delimiter(text)
    count = len(lines)
    while count and len(next(csv.reader(lines[count - 1 : count], delimiter=delimiter))) == width:
        count -= 1
    if not line:
        count = 0  # all rows begin so
    text.seek(starts[count])
    what = "line 1 begins" if count == 1 else f"lines 1 to {count} begin"
    return count, f"{what} with # and can be no row: left out" if count else ""


def _unreadable(source: str | Path, error: Exception) -> DataError:
    with Path(source).open("rb") as file:
        start = file.read(4)
    kind = next((kind for mark, kind in _MARKS.items() if start.startswith(mark)), "")
    if kind and Path(source).suffix.lower() not in COMPRESSED:
        return DataError(f"{source}: not a CSV but {kind}: its name is to end so")
    encoding = isinstance(error, UnicodeError)
    hint = "; encoding='latin-1' (--encoding latin-1) reads one of another" if encoding else ""
    return DataError(f"{source}: not a readable CSV ({error}){hint}")


#: what files of other kinds begin with
_MARKS = {
    b"\x1f\x8b": "gzip (.csv.gz)",
    b"\x28\xb5\x2f\xfd": "zstd (.csv.zst)",
    b"PAR1": "Parquet (.parquet)",
    b"PK\x03\x04": "Excel (.xlsx) or another zip",
    b"ARRO": "Arrow (.arrow)",
}


def _rows(layout: _Layout) -> Rows:
    """The rows of a file from the first with a cell on, but for blank lines: a row of as many empty
    cells is a row."""
    try:
        with (
            _opened(layout.source) as file,
            io.TextIOWrapper(file, encoding=layout.encoding, newline="") as text,
        ):
            lines: Any = islice(text, layout.before, None)
            if layout.wrapped:
                lines = (f"{cells[0]}\n" for cells in csv.reader(lines, strict=True) if cells)
            rows = csv.reader(lines, delimiter=layout.delimiter, skipinitialspace=True, strict=True)
            line, width = layout.before + 1, 0
            for cells in rows:
                row = [cell.strip() for cell in cells]
                if any("\0" in cell for cell in row):
                    raise csv.Error(f"row {line} holds a NUL, as UTF-16 does")
                width = width or len(row) * any(row)
                if any(row) or (row and len(row) == width):
                    yield line, row
                line = layout.before + rows.line_num + 1  # a quoted cell may have several lines
    except (UnicodeError, csv.Error, EOFError) as error:
        raise _unreadable(layout.source, error) from None


def _by_polars(layout: _Layout, width: int, *, skipped: int) -> list[Any] | None:
    """The columns of an ordinary file as Series of text; None where Python's csv is to read it.

    layout: of the file.
    width: the number of its columns.
    skipped: rows of the header, 0 or 1.
    """
    if layout.encoding != "utf-8-sig" or layout.wrapped or layout.before:
        return None
    try:
        polars = importlib.import_module("polars")
    except ImportError:
        return None
    odd = (b"\0", f'{layout.delimiter} "'.encode())
    with _opened(layout.source) as file:
        before = b""
        while chunk := file.read(2**24):
            if any(each in before + chunk for each in odd):
                return None
            before = chunk[-2:]
    schema = {str(column): polars.String for column in range(width)}
    try:
        frame = polars.read_csv(
            layout.source,
            has_header=False,
            separator=layout.delimiter,
            schema=schema,
        )
    except polars.exceptions.PolarsError:
        return None  # csv says what is wrong
    frame = _without_blank_lines(polars, frame, layout, width)
    return None if frame is None else list(frame[skipped:].iter_columns())


def _without_blank_lines(polars: Any, frame: Any, layout: _Layout, width: int) -> Any:
    """A frame of text without the rows that polars makes of blank lines; None where a row is too
    short, or where some are of blank lines and others of empty cells."""
    if not frame[str(width - 1)].is_null().any():
        return frame
    widths = [len(row) for _, row in _rows(layout)]
    empty = polars.all_horizontal(polars.all().fill_null("").str.strip_chars() == "")
    for found in (frame, frame.filter(~empty)):
        if len(widths) == len(found) and {*widths} == {width}:
            return found
    return None
