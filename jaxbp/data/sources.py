"""Sources: a CSV, an .npz or a bundled set, as names and numbers."""

import csv
import importlib
import zipfile
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

Task = Literal["classification", "regression"]


BUNDLED = ("digits", "breast_cancer", "wine", "iris", "diabetes")


_MISSING = {"", "na", "n/a", "nan", "null", "none", "?"}


_MISSING_LABEL = {"", "na", "n/a", "nan", "?"}  # "none" can be the name of a class


LARGEST = float(np.finfo(np.float32).max)


class DataError(ValueError):
    """Something is wrong with the data; the message says where."""


class RawTable(NamedTuple):
    """What a source holds, before it is split."""

    name: str  # as the user gave it
    features: tuple[str, ...]
    x: np.ndarray  # (N, D)
    target: np.ndarray  # (N,) text or numbers, or (N, K) numbers
    labels: tuple[str, ...] | None = None  # of classes 0, 1, ... where the source names them


class _Cells(NamedTuple):
    """A CSV as text."""

    source: str | Path
    names: tuple[str, ...]
    has_header: bool
    lines: tuple[int, ...]  # (N,) each row's line number in the file
    text: np.ndarray  # (N, columns)


def read_table(
    source: str | Path, target: str | int | None, task: Task | None, header: bool | None
) -> RawTable:
    """A CSV, an .npz or a bundled set, as it is.  Raises DataError."""
    if _is_csv(source):
        return _read_csv(source, target, task, header)
    if _is_npz(source):
        return _read_npz(source, "y" if target is None else str(target))
    table = _read_bundled(str(source))
    if target is not None:
        raise DataError(f"target: got {target!r}, but {source} has its own target")
    return table


def _read_bundled(name: str) -> RawTable:
    if name not in BUNDLED:
        near = get_close_matches(name, BUNDLED, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise DataError(
            f"{name}: no such data{hint} (there are {', '.join(BUNDLED)}, and .csv and .npz files)"
        )
    bunch = getattr(sklearn("datasets"), f"load_{name}")()
    features = tuple(map(str, bunch.feature_names))
    labels = None if name == "diabetes" else tuple(map(str, bunch.target_names))
    return RawTable(name, features, bunch.data, bunch.target, labels)


def _read_npz(source: str | Path, target: str) -> RawTable:
    arrays = _arrays(source)
    x = _rows(source, arrays)
    y = _array(source, arrays, target)
    if y.ndim not in {1, 2} or len(y) != len(x) or not y.size or y.dtype.kind not in "biufU":
        raise DataError(
            f"{source}: {target} is {y.dtype} of shape {y.shape}, expected text or numbers for "
            f"each of x's {len(x)} rows"
        )
    if y.dtype.kind == "f":
        _check_finite(source, target, y)
    y = y[:, 0] if y.shape[1:] == (1,) else y
    return RawTable(str(source), tuple(f"x{i}" for i in range(x.shape[1])), x, y)


def _rows(source: str | Path, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """The array x, images flattened, as (N, D) numbers."""
    x = _array(source, arrays, "x")
    if x.dtype.kind not in "biuf" or x.ndim < 2 or not x.size:
        raise DataError(f"{source}: x is {x.dtype} of shape {x.shape}, expected rows of numbers")
    x = x.reshape(len(x), -1).astype(np.float64)
    _check_finite(source, "x", x)
    return x


def _arrays(source: str | Path) -> dict[str, np.ndarray]:
    _check_is_file(source)
    if not zipfile.is_zipfile(source):
        raise DataError(f"{source}: not a complete .npz")
    try:
        with Path(source).open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except Exception as error:  # a damaged archive fails in every way numpy and zlib know
        pickled = "pickle" in str(error)
        reason = "it holds pickled objects, which are never read" if pickled else error
        raise DataError(f"{source}: not an .npz of plain arrays ({reason})") from None
    return {name: array for name, array in arrays.items() if isinstance(array, np.ndarray)}


def _array(source: str | Path, arrays: dict[str, np.ndarray], name: str) -> np.ndarray:
    if name not in arrays:
        raise DataError(f"{source}: no array {name!r}; it holds {', '.join(arrays) or 'nothing'}")
    return arrays[name]


def _read_csv(
    source: str | Path, target: str | int | None, task: Task | None, header: bool | None
) -> RawTable:
    cells = _read_cells(source, header=header)
    if len(cells.names) < 2:
        raise DataError(
            f"{source}: one column, expected features and a target with a comma, semicolon or tab "
            "between"
        )
    chosen = _column(cells, -1 if target is None else target)
    others = [column for column in range(len(cells.names)) if column != chosen]
    values = _numbers(cells, [chosen])[:, 0] if task == "regression" else _target(cells, chosen)
    names = tuple(cells.names[column] for column in others)
    return RawTable(str(source), names, _numbers(cells, others), values)


def _read_cells(
    source: str | Path, *, header: bool | None = None, names: Sequence[str] = ()
) -> _Cells:
    """A CSV's text; the first row is a header if header says so, if it has names, or no number."""
    _check_is_file(source)
    rows: list[tuple[int, list[str]]] = []
    try:
        with Path(source).open(encoding="utf-8-sig", newline="") as file:
            delimiter = max(",;\t", key=file.readline().count)
            file.seek(0)
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            line = 1
            for row in reader:
                cells = [cell.strip() for cell in row]
                if any(cells):
                    rows.append((line, cells))
                line = reader.line_num + 1
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{source}: not a readable CSV ({error})") from None
    if not rows:
        raise DataError(f"{source}: the file is empty")
    first = rows[0][1]
    if header is None:
        header = (bool(names) and set(names) <= set(first)) or not any(map(_is_number, first))
    columns = tuple(first) if header else tuple(f"column {i}" for i in range(len(first)))
    repeated = next((name for name in columns if columns.count(name) > 1), None)
    if repeated is not None:
        raise DataError(f"{source}: two columns are called {brief(repeated)}")
    body = rows[header:]
    if not body:
        raise DataError(f"{source}: a header and no rows")
    for line, row in body:
        if len(row) != len(columns):
            raise DataError(f"{source}, row {line}: {len(row)} columns, expected {len(columns)}")
    lines, text = zip(*body, strict=True)
    return _Cells(source, columns, header, lines, np.array(text, object))


def _column(cells: _Cells, target: str | int) -> int:
    """The position of a column given by name or position."""
    if target in cells.names:
        return cells.names.index(str(target))
    try:
        return range(len(cells.names))[int(target)]
    except (ValueError, IndexError):
        raise _no_column(cells, target) from None


def _no_column(cells: _Cells, wanted: str | int) -> DataError:
    near = get_close_matches(str(wanted), cells.names, n=1)
    hint = f"; did you mean {brief(near[0])}?" if near else ""
    names = ", ".join(map(brief, cells.names[:10])) + (", ..." if len(cells.names) > 10 else "")
    return DataError(f"{cells.source}: no column {brief(wanted)}{hint} (the columns are {names})")


def _numbers(cells: _Cells, columns: Sequence[int]) -> np.ndarray:
    """Columns as float64, or an error that names the first cell that is none."""
    text = cells.text[:, list(columns)]
    try:
        values = text.astype(np.float64)
        if (np.abs(values) <= LARGEST).all():
            return values
    except ValueError:
        pass
    for line, row in zip(cells.lines, text, strict=True):
        for column, cell in zip(columns, row, strict=True):
            where = _where(cells, line, column)
            if cell.lower() in _MISSING:
                raise DataError(f"{where}: missing value")
            if not _is_number(cell):
                raise DataError(f"{where}: {brief(cell)} where a number belongs")
            if not abs(float(cell)) <= LARGEST:
                raise DataError(f"{where}: {cell} is not finite in float32")
    raise AssertionError("float() and numpy disagree about a number")


def _target(cells: _Cells, column: int) -> np.ndarray:
    """A column as integers or numbers, where all of it is, or else as text."""
    text = cells.text[:, column]
    for line, cell in zip(cells.lines, text, strict=True):
        if cell.lower() in _MISSING_LABEL:
            raise DataError(f"{_where(cells, line, column)}: missing value")
    try:
        return text.astype(np.int64)
    except (ValueError, OverflowError):
        return _numbers(cells, [column])[:, 0] if all(map(_is_number, text)) else text.astype(str)


def _where(cells: _Cells, line: int, column: int) -> str:
    return f"{cells.source}, row {line}, column {brief(cells.names[column])}"


def brief(value: object) -> str:
    """A quoted name or cell on one line, however long it is."""
    text = str(value)
    return repr(text if len(text) <= 40 else f"{text[:37]}...")


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _check_is_file(source: str | Path) -> None:
    if not Path(source).is_file():
        raise DataError(f"{source}: no such file")


def _check_finite(source: str | Path, name: str, array: np.ndarray) -> None:
    beyond = np.argwhere(~(np.abs(array) <= LARGEST))
    if len(beyond):
        where = beyond[0]
        row, column = where[0], f", column {where[1]}" if array.ndim > 1 else ""
        value = array[tuple(where)]
        raise DataError(f"{source}: {name}, row {row}{column}: {value:g} is not finite in float32")


def _is_csv(source: str | Path) -> bool:
    return Path(source).suffix.lower() == ".csv"


def _is_npz(source: str | Path) -> bool:
    return Path(source).suffix.lower() == ".npz"


def sklearn(module: str) -> Any:
    """A module of scikit-learn, which is an extra."""
    try:
        return importlib.import_module(f"sklearn.{module}")
    except ImportError as error:
        raise ImportError(
            "jaxbp.data.loading needs scikit-learn: pip install 'jaxbp[cli]'"
        ) from error


def read_features(source: str | Path, features: Sequence[str]) -> np.ndarray:
    """The named columns of a source as raw numbers (N, D): rows to predict; a target is not needed.

    A CSV with a header is read by name; one without, and an ``.npz``, must hold just these columns
    in this order.  Raises DataError.
    """
    if _is_csv(source):
        cells = _read_cells(source, names=features)
        if cells.has_header:
            absent = next((name for name in features if name not in cells.names), None)
            if absent is not None:
                raise _no_column(cells, absent)
            return _numbers(cells, [cells.names.index(name) for name in features])
        _check_width(source, len(cells.names), features)
        return _numbers(cells, range(len(features)))
    x = _rows(source, _arrays(source)) if _is_npz(source) else _read_bundled(str(source)).x
    _check_width(source, x.shape[1], features)
    return x


def _check_width(source: str | Path, width: int, features: Sequence[str]) -> None:
    if width != len(features):
        raise DataError(
            f"{source}: {width} columns, expected the {len(features)} the network was trained on, "
            f"without the target ({', '.join(features[:5])}{', ...' if len(features) > 5 else ''})"
        )
