"""Sources: a CSV, an ``.npz`` or one of scikit-learn's bundled sets, read as raw arrays.

Anything wrong with a file is a ``DataError`` of one line that names the file, the row and the
column.  Rows of a CSV are its line numbers, as an editor shows them; rows of an array count from 0.
"""

import csv
import importlib
import operator
import re
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxbp.data.cells import INTEGER, MISSING, is_number, quoted
from jaxbp.data.layout import LOOKED_AT, READ_AS_DATA, counts_rows, guess_delimiter, guess_header
from jaxbp.text import counted

Task = Literal["classification", "regression"]

BUNDLED = ("digits", "breast_cancer", "wine", "iris", "diabetes")  # real sets of scikit-learn


class DataError(ValueError):
    """Something is wrong with the data; the message says where."""


class DataWarning(UserWarning):
    """The data may have been read otherwise than they are meant; the message says how."""


Target = str | int | tuple[str | int, ...] | None  # a column by name or position, or several


class RawData(NamedTuple):
    """The contents of a source, before they are split and scaled."""

    name: str  # as the user gave it
    features: tuple[str, ...]  # names of the D columns of x
    x: np.ndarray  # (N, D)
    target: np.ndarray  # (N,) text or numbers, or (N, K) numbers
    outputs: tuple[str, ...] = ()  # names of the K columns of a target (N, K)
    labels: tuple[str, ...] | None = None  # of classes 0, 1, ... where the source names them
    cells: tuple[str, ...] | None = None  # (N,) the target's text where it was read as decimals
    target_name: str = ""  # of the column or array; a bundled set has one without a name
    header: bool | None = None  # whether a CSV's first row names its columns
    dropped: tuple[str, ...] = ()  # names of the columns that are neither input nor target
    lines: tuple[int, ...] | None = None  # (N,) each row's line number in a CSV
    notes: tuple[str, ...] = ()  # what may have been read otherwise than it is meant
    hint: str = ""  # what may be the cause of an error


def read_source(
    source: str | Path, target: Target, task: Task | None, header: bool | None
) -> RawData:
    """Read a CSV, an ``.npz`` or a bundled set, unscaled.  Raises DataError."""
    suffix = Path(source).suffix.lower()
    if suffix == ".csv":
        return _read_csv(source, target, task, header)
    if suffix == ".npz":
        return _read_npz(source, "y" if target is None else str(target))
    bundled = _read_bundled(str(source))
    if target is not None:
        raise DataError(f"target: got {target!r}, but {source} has its own target")
    return bundled


def read_features(source: str | Path, features: Sequence[str]) -> np.ndarray:
    """Read the named columns of a source as raw numbers (N, D), to predict from; no target needed.

    A CSV with a header is read by name.  A CSV without one, and an ``.npz``, must hold exactly
    these columns in this order.  Raises DataError.
    """
    suffix = Path(source).suffix.lower()
    if suffix == ".csv":
        cells = _read_cells(source, expected=features)
        if cells.has_header:
            return _numeric_columns(cells, _positions(cells, features))
        _check_width(source, len(cells.names), features)
        return _numeric_columns(cells, range(len(features)))
    if suffix == ".npz":
        x = _npz_features(source, _npz_arrays(source))
    else:
        x = _read_bundled(str(source)).x
    _check_width(source, x.shape[1], features)
    return x


def read_labelled(
    source: str | Path, features: Sequence[str], target: Target, is_text: bool
) -> RawData:
    """Read the named columns of a source and its target, to evaluate a network on.

    source: as ``load`` takes it.
    features: names of the columns, found as by ``read_features``; a CSV without a header holds
        these in order, and the target.
    target: as ``load`` takes it.
    is_text: whether a CSV's target is the names of classes, and not quantities.

    Raises DataError.
    """
    suffix = Path(source).suffix.lower()
    if suffix != ".csv":
        raw = read_source(source, target, None, None)
        _check_width(source, raw.x.shape[1], features)
        return raw
    cells = _read_cells(source, expected=features)
    chosen = _target_positions(cells, target)
    if cells.has_header:
        others = _positions(cells, features)
    else:
        others = [position for position in range(len(cells.names)) if position not in chosen]
        _check_width(source, len(others), features)
    for position in chosen:
        if position in others:
            name = quoted(cells.names[position])
            raise DataError(f"{source}: column {name} is one of the inputs; name the target")
    if len(chosen) > 1:
        values = _numeric_columns(cells, chosen)
    elif is_text:
        _check_no_target_is_missing(cells, chosen[0])
        values = cells.text[:, chosen[0]].astype(str)
    else:
        values = _numeric_columns(cells, chosen)[:, 0]
    names = tuple(cells.names[position] for position in chosen)
    return RawData(
        str(source),
        tuple(features),
        _numeric_columns(cells, others),
        values,
        names if len(chosen) > 1 else (),
        target_name=",".join(names),
        lines=cells.lines,
    )


def _check_width(source: str | Path, width: int, features: Sequence[str]) -> None:
    if width != len(features):
        raise DataError(
            f"{source}: {counted(width, 'column')}, expected the {len(features)} the network was "
            "trained on, without the target "
            f"({', '.join(features[:5])}{', ...' if len(features) > 5 else ''})"
        )


# Bundled sets


def _read_bundled(name: str) -> RawData:
    if name not in BUNDLED:
        near = get_close_matches(name, BUNDLED, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        what = "neither a .csv nor an .npz" if Path(name).exists() else f"no such data{hint}"
        raise DataError(f"{name}: {what} (there are {', '.join(BUNDLED)}, and .csv and .npz files)")
    bunch = getattr(scikit_learn("datasets"), f"load_{name}")()
    features = tuple(map(str, bunch.feature_names))
    labels = None if name == "diabetes" else tuple(map(str, bunch.target_names))
    return RawData(name, features, bunch.data, bunch.target, labels=labels)


def scikit_learn(module: str) -> Any:
    """Import a module of scikit-learn, which only an extra installs."""
    try:
        return importlib.import_module(f"sklearn.{module}")
    except ImportError as error:
        raise ImportError("jaxbp.data needs scikit-learn: pip install 'jaxbp[cli]'") from error


# Arrays


def _read_npz(source: str | Path, target: str) -> RawData:
    arrays = _npz_arrays(source)
    x = _npz_features(source, arrays)
    y = _npz_array(source, arrays, target)
    if y.ndim not in {1, 2} or len(y) != len(x) or not y.size or y.dtype.kind not in "biufU":
        raise DataError(
            f"{source}: {target} is {y.dtype} of shape {y.shape}, expected text or numbers for "
            f"each of x's {len(x)} rows"
        )
    if y.dtype.kind == "f":
        _check_finite(source, target, y)
    if y.shape[1:] == (1,):
        y = y[:, 0]
    features = tuple(f"x{i}" for i in range(x.shape[1]))
    outputs = tuple(map(str, range(y.shape[1]))) if y.ndim > 1 else ()
    return RawData(str(source), features, x, y, outputs, target_name=target)


def _npz_arrays(source: str | Path) -> dict[str, np.ndarray]:
    """Load all plain arrays of a file; nothing pickled is ever read."""
    _check_is_file(source)
    if not zipfile.is_zipfile(source):
        raise DataError(f"{source}: not a complete .npz")
    try:
        with Path(source).open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except Exception as error:  # a damaged archive raises any of numpy's and zlib's exceptions
        pickled = "pickle" in str(error)
        reason = "it holds pickled objects, which are never read" if pickled else error
        raise DataError(f"{source}: not an .npz of plain arrays ({reason})") from None
    return {name: array for name, array in arrays.items() if isinstance(array, np.ndarray)}


def _npz_array(source: str | Path, arrays: dict[str, np.ndarray], name: str) -> np.ndarray:
    if name not in arrays:
        raise DataError(f"{source}: no array {name!r}; it holds {', '.join(arrays) or 'nothing'}")
    return arrays[name]


def _npz_features(source: str | Path, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Take the array x as numbers (N, D), each image as one row."""
    x = _npz_array(source, arrays, "x")
    if x.dtype.kind not in "biuf" or x.ndim < 2 or not x.size:
        raise DataError(f"{source}: x is {x.dtype} of shape {x.shape}, expected rows of numbers")
    x = x.reshape(len(x), -1).astype(np.float64)
    _check_finite(source, "x", x)
    return x


LARGEST_FLOAT32 = float(np.finfo(np.float32).max)


def _check_finite(source: str | Path, name: str, array: np.ndarray) -> None:
    beyond = np.argwhere(~(np.abs(array) <= LARGEST_FLOAT32))
    if len(beyond):
        first = tuple(beyond[0])
        column = f", column {first[1]}" if array.ndim > 1 else ""
        raise DataError(
            f"{source}: {name}, row {first[0]}{column}: {array[first]:g} is not finite in float32"
        )


def _check_is_file(source: str | Path) -> None:
    if not Path(source).is_file():
        exists = Path(source).exists()
        raise DataError(f"{source}: {'a folder, expected a file' if exists else 'no such file'}")


# CSV


_NO_NAME = re.compile(r"(Unnamed: \d+(\.\d+)*)?")  # pandas' names for columns without one


class _Cells(NamedTuple):
    """A CSV as text, before any cell is read as a number."""

    source: str | Path
    names: tuple[str, ...]  # of the columns
    has_header: bool
    note: str  # where it is in doubt whether the first row is a header
    hint: str  # to errors, where it was guessed that it is none
    lines: tuple[int, ...]  # (N,) each row's line number in the file
    text: np.ndarray  # (N, columns)


def _read_csv(
    source: str | Path, target: Target, task: Task | None, header: bool | None
) -> RawData:
    cells = _read_cells(source, header=header)
    if len(cells.names) < 2:
        raise DataError(
            f"{source}: one column, expected features and a target with a comma, semicolon or tab "
            "between"
        )
    chosen = _target_positions(cells, target)
    others = [position for position in range(len(cells.names)) if position not in chosen]
    if not others:
        raise DataError(f"{source}: every column is a target, expected an input at least")
    notes = [cells.note] if cells.note else []
    dropped: tuple[str, ...] = ()
    while cells.has_header and _NO_NAME.fullmatch(cells.names[others[0]]):
        column = others[0]
        first = "the first column" if column == 0 else f"column {quoted(cells.names[column])}"
        if not counts_rows(cells.text[:, column]) or len(others) == 1:
            notes.append(f"{first} has no name, and is an input like the others")
            break
        others.remove(column)
        dropped += (cells.names[column],)
        notes.append(f"{first} has no name and counts the rows: it is left out")
    text = None
    with noting([*notes, cells.hint]):
        if len(chosen) > 1:
            values = _numeric_columns(cells, chosen)
        elif task == "regression":
            values = _numeric_columns(cells, chosen)[:, 0]
        else:
            values = _target_column(cells, chosen[0])
            text = tuple(cells.text[:, chosen[0]]) if values.dtype.kind == "f" else None
        names = tuple(cells.names[position] for position in chosen)
        return RawData(
            name=str(source),
            features=tuple(cells.names[position] for position in others),
            x=_numeric_columns(cells, others),
            target=values,
            outputs=names if len(chosen) > 1 else (),
            cells=text,
            target_name=",".join(names),
            header=cells.has_header,
            dropped=dropped,
            lines=cells.lines,
            notes=tuple(notes),
            hint=cells.hint,
        )


@contextmanager
def noting(notes: Sequence[str]) -> Iterator[None]:
    """Add to a DataError what may be its cause."""
    try:
        yield
    except DataError as error:
        said = [note for note in dict.fromkeys(notes) if note and note not in str(error)]
        if not said:
            raise
        raise DataError("; ".join([str(error), *said])) from None


def _read_cells(
    source: str | Path, *, header: bool | None = None, expected: Sequence[str] = ()
) -> _Cells:
    """Read a CSV as text.

    header: whether the first row names the columns; guessed unless given.
    expected: names that the columns may have.
    """
    _check_is_file(source)
    rows: list[tuple[int, list[str]]] = []
    try:
        with Path(source).open(encoding="utf-8-sig", newline="") as file:
            delimiter = guess_delimiter(file)
            file.seek(0)
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            line = 1
            for cells in reader:
                row = [cell.strip() for cell in cells]
                if any("\0" in cell for cell in row):  # which NumPy cuts off at a text's end
                    raise csv.Error(f"row {line} holds a NUL, as UTF-16 does")
                if any(row):
                    rows.append((line, row))
                line = reader.line_num + 1  # a quoted cell may go over several lines
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{source}: not a readable CSV ({error})") from None
    if not rows:
        raise DataError(f"{source}: the file is empty")
    _, first = rows[0]
    note = hint = ""
    if header is None:
        below = [row for _, row in rows[1 : LOOKED_AT + 1] if len(row) == len(first)]
        header, note = guess_header(first, below, expected)
        hint = "" if header else READ_AS_DATA
    names = tuple(first) if header else tuple(f"column {i}" for i in range(len(first)))
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise DataError(f"{source}: two columns are called {quoted(repeated)}")
    body = rows[1:] if header else rows
    if not body:
        raise DataError(f"{source}: a header and no rows")
    for line, row in body:
        if len(row) != len(names):
            raise DataError(
                f"{source}, row {line}: {counted(len(row), 'column')}, expected {len(names)}"
            )
    lines, text = zip(*body, strict=True)
    return _Cells(source, names, header, note, hint, lines, np.array(text, object))


def _position(cells: _Cells, target: str | int) -> int:
    """Find a column given by name or by position; a negative position counts from the end."""
    if isinstance(target, str):
        if target in cells.names:
            return cells.names.index(target)
        if not INTEGER.fullmatch(target):
            raise _no_such_column(cells, target)
    try:
        return range(len(cells.names))[int(target)]
    except IndexError:
        raise _no_such_column(cells, target) from None


def _target_positions(cells: _Cells, target: Target) -> list[int]:
    """Find the target's column, the last one unless given, or several with commas between."""
    if target is None:
        return [len(cells.names) - 1]
    names: str | int | tuple[str | int, ...] = target
    if isinstance(target, str) and target not in cells.names and "," in target:
        names = tuple(name.strip() for name in target.split(","))
    if not isinstance(names, tuple):
        return [_position(cells, names)]
    found = [_position(cells, each) for each in names]
    if len(set(found)) < len(found):
        raise DataError(f"target: got {target!r}, expected each column once")
    return found


def _positions(cells: _Cells, names: Sequence[str]) -> list[int]:
    absent = next((name for name in names if name not in cells.names), None)
    if absent is not None:
        raise _no_such_column(cells, absent)
    return [cells.names.index(name) for name in names]


def check_target(target: Any) -> None:
    """Raise DataError unless a target is None, a name, a whole number, or several of them."""
    if target is None or isinstance(target, str):
        return
    if isinstance(target, tuple) and target:
        for each in target:
            check_target(False if each is None or isinstance(each, tuple) else each)
        return
    try:
        operator.index(target)
    except TypeError:
        pass
    else:
        if not isinstance(target, bool | np.bool_):
            return
    raise DataError(f"target: got {target!r}, expected one name or position of a column")


def _no_such_column(cells: _Cells, wanted: str | int) -> DataError:
    near = get_close_matches(str(wanted), cells.names, n=1)
    hint = f"; did you mean {quoted(near[0])}?" if near else ""
    names = ", ".join(map(quoted, cells.names[:10])) + (", ..." if len(cells.names) > 10 else "")
    note = f"; {cells.note}" if cells.note else ""
    return DataError(
        f"{cells.source}: no column {quoted(wanted)}{hint} (the columns are {names}){note}"
    )


def _numeric_columns(cells: _Cells, columns: Sequence[int]) -> np.ndarray:
    """Read columns as float64.  Raises DataError that names the first cell float32 cannot hold."""
    text = cells.text[:, list(columns)]
    try:
        values = text.astype(np.float64)
        underscore = any("_" in cell for cell in text.flat)  # to NumPy, 1_0 is 10
        if not underscore and (np.abs(values) <= LARGEST_FLOAT32).all():
            return values
    except ValueError:
        pass  # the loop below finds the cell
    for line, row in zip(cells.lines, text, strict=True):
        for column, cell in zip(columns, row, strict=True):
            place = _place(cells, line, column)
            if cell.lower() in MISSING:
                raise DataError(f"{place}: missing value")
            if not is_number(cell):
                raise DataError(f"{place}: {quoted(cell)} where a number belongs")
            if not abs(float(cell)) <= LARGEST_FLOAT32:
                raise DataError(f"{place}: {cell} is not finite in float32")
    raise AssertionError("float() and numpy disagree about a number")


_MISSING_TARGET = {"", "na", "n/a", "nan", "?"}  # "none" can be the name of a class


def _check_no_target_is_missing(cells: _Cells, column: int) -> None:
    for line, cell in zip(cells.lines, cells.text[:, column], strict=True):
        if cell.lower() in _MISSING_TARGET:
            raise DataError(f"{_place(cells, line, column)}: missing value")


def _target_column(cells: _Cells, column: int) -> np.ndarray:
    """Read a column as integers or decimals if its cells are, else as text.

    Integers are written as Python writes them: 007 is a name that differs from 7.  Raises DataError
    that names the first missing cell.
    """
    _check_no_target_is_missing(cells, column)
    text = cells.text[:, column]
    if all(INTEGER.fullmatch(cell) and str(int(cell)) == cell for cell in text):
        with suppress(OverflowError):
            return text.astype(np.int64)
    if all(is_number(cell) and not _CODE.fullmatch(cell) for cell in text):
        return _numeric_columns(cells, [column])[:, 0]
    return text.astype(str)


_CODE = re.compile(r"[-+]?0\d+")  # an integer with leading zeros


def _place(cells: _Cells, line: int, column: int) -> str:
    return f"{cells.source}, row {line}, column {quoted(cells.names[column])}"
