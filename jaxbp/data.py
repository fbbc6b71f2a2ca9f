"""Data: real tables and images as batches, split and standardised, and the errors they deserve.

``load`` reads one of scikit-learn's bundled real sets, a ``.csv`` or an ``.npz``, splits it at
random into training, validation and test rows, and standardises with the statistics of the training
rows alone.  A ``Preparation`` remembers what was done, so that new rows are treated the same way.
Whatever is wrong with a file is a ``DataError`` of one line, naming file, row and column; a CSV's
row is the file's line number, as an editor shows it, an array's row counts from 0.
"""

import csv
import importlib
import zipfile
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from jaxbp.gradient import Batch

Task = Literal["classification", "regression"]

BUNDLED = ("digits", "breast_cancer", "wine", "iris", "diabetes")
_MISSING = {"", "na", "n/a", "nan", "null", "none", "?"}
_MISSING_LABEL = {"", "na", "n/a", "nan", "?"}  # "none" can be the name of a class
_MOST_CLASSES = 20  # an integer target of more different values than this is taken for a quantity
_LARGEST = float(np.finfo(np.float32).max)


class DataError(ValueError):
    """Something is wrong with the data; the message says where."""


class Preparation(NamedTuple):
    """How raw rows become the network's input, and its output the table's words and units."""

    features: tuple[str, ...]  # the D input columns, in order
    mean: np.ndarray  # (D,) of the training rows
    scale: np.ndarray  # (D,) their standard deviation; 1 for a constant column
    labels: tuple[str, ...] | None  # the classes' names; None for regression
    target_mean: np.ndarray  # (K,) of a regression's target; 0 and 1 where it is left as it is
    target_scale: np.ndarray  # (K,)


class Dataset(NamedTuple):
    """Real data, ready for ``fit``: classes are integers (B,), quantities are values (B, K)."""

    name: str
    train: Batch
    validation: Batch
    test: Batch
    preparation: Preparation


class _Table(NamedTuple):
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


def load(
    source: str | Path,
    *,
    target: str | int | None = None,
    task: Task | None = None,
    validation: float = 0.15,
    test: float = 0.2,
    seed: int = 0,
    standardize: bool = True,
    standardize_target: bool = True,
    stratify: bool = True,
    header: bool | None = None,
) -> Dataset:
    """Read, split and standardise a data set.

    source is a name in ``BUNDLED``, a ``.csv`` (comma, semicolon or tab; a first row without a
    number is its header, unless header says) or an ``.npz`` with arrays ``x`` (N, ...) and ``y``.
    target is the CSV's column by name or position, the last one by default, or the name of the
    array.  Unless task says, a target of text, of booleans or of at most 20 different integers is
    classification, anything else regression.  validation and test are shares of the rows, drawn by
    seed; every class keeps its proportion if stratify.  Raises DataError.

    >>> data = load("iris")
    >>> data.train.x.shape, data.preparation.labels
    ((97, 4), ('setosa', 'versicolor', 'virginica'))
    """
    if not 0 <= seed < 2**32:
        raise DataError(f"seed: got {seed}, expected 0 to 2³² - 1")
    if not (validation > 0 and test > 0 and validation + test < 1):
        raise DataError(
            f"validation, test: got {validation} and {test}, expected positive shares of the rows "
            "that leave some to train on"
        )
    if task not in {None, "classification", "regression"}:
        raise DataError(f"task: got {task!r}, expected classification or regression")
    table = _read_table(source, target, task, header)
    labels, values = _encode_target(table, task)
    parts = _split(table.name, values, labels if stratify else None, validation, test, seed)
    quantity = None if labels else values[parts[0]]
    preparation = Preparation(
        table.features,
        *_moments(table.x[parts[0]] if standardize else None, table.x.shape[1]),
        labels,
        *_moments(quantity if standardize_target else None, values.shape[-1] if not labels else 1),
    )
    if labels is None:
        values = (values - preparation.target_mean) / preparation.target_scale
        values = values.astype(np.float32)
    x = transform(preparation, table.x)
    train_rows, validation_rows, test_rows = parts
    return Dataset(
        name=Path(table.name).stem,
        train=Batch(x[train_rows], values[train_rows]),
        validation=Batch(x[validation_rows], values[validation_rows]),
        test=Batch(x[test_rows], values[test_rows]),
        preparation=preparation,
    )


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


def transform(preparation: Preparation, x: np.ndarray) -> np.ndarray:
    """Raw rows (N, D) -> the network's input, (x - mean) / scale, in float32.

    Raises DataError for a value that is out of float32's range, before or after.
    """
    scaled: np.ndarray = (np.asarray(x) - preparation.mean) / preparation.scale
    beyond = np.argwhere(~(np.abs(scaled) <= _LARGEST))
    if len(beyond):
        row, column = beyond[0]
        name = preparation.features[column]
        raise DataError(f"x, row {row}, column {name!r}: {x[row, column]:g} is out of range")
    return np.asarray(scaled, np.float32)


# Reading a source


def _read_table(
    source: str | Path, target: str | int | None, task: Task | None, header: bool | None
) -> _Table:
    if _is_csv(source):
        return _read_csv(source, target, task, header)
    if _is_npz(source):
        return _read_npz(source, "y" if target is None else str(target))
    table = _read_bundled(str(source))
    if target is not None:
        raise DataError(f"target: got {target!r}, but {source} has its own target")
    return table


def _read_bundled(name: str) -> _Table:
    if name not in BUNDLED:
        near = get_close_matches(name, BUNDLED, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise DataError(
            f"{name}: no such data{hint} (there are {', '.join(BUNDLED)}, and .csv and .npz files)"
        )
    bunch = getattr(_sklearn("datasets"), f"load_{name}")()
    features = tuple(map(str, bunch.feature_names))
    labels = None if name == "diabetes" else tuple(map(str, bunch.target_names))
    return _Table(name, features, bunch.data, bunch.target, labels)


def _read_npz(source: str | Path, target: str) -> _Table:
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
    return _Table(str(source), tuple(f"x{i}" for i in range(x.shape[1])), x, y)


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
) -> _Table:
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
    return _Table(str(source), names, _numbers(cells, others), values)


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
        raise DataError(f"{source}: two columns are called {_brief(repeated)}")
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
    hint = f"; did you mean {_brief(near[0])}?" if near else ""
    names = ", ".join(map(_brief, cells.names[:10])) + (", ..." if len(cells.names) > 10 else "")
    return DataError(f"{cells.source}: no column {_brief(wanted)}{hint} (the columns are {names})")


def _numbers(cells: _Cells, columns: Sequence[int]) -> np.ndarray:
    """Columns as float64, or an error that names the first cell that is none."""
    text = cells.text[:, list(columns)]
    try:
        values = text.astype(np.float64)
        if (np.abs(values) <= _LARGEST).all():
            return values
    except ValueError:
        pass
    for line, row in zip(cells.lines, text, strict=True):
        for column, cell in zip(columns, row, strict=True):
            where = _where(cells, line, column)
            if cell.lower() in _MISSING:
                raise DataError(f"{where}: missing value")
            if not _is_number(cell):
                raise DataError(f"{where}: {_brief(cell)} where a number belongs")
            if not abs(float(cell)) <= _LARGEST:
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
    return f"{cells.source}, row {line}, column {_brief(cells.names[column])}"


def _brief(value: object) -> str:
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
    beyond = np.argwhere(~(np.abs(array) <= _LARGEST))
    if len(beyond):
        where = beyond[0]
        row, column = where[0], f", column {where[1]}" if array.ndim > 1 else ""
        value = array[tuple(where)]
        raise DataError(f"{source}: {name}, row {row}{column}: {value:g} is not finite in float32")


def _check_width(source: str | Path, width: int, features: Sequence[str]) -> None:
    if width != len(features):
        raise DataError(
            f"{source}: {width} columns, expected the {len(features)} the network was trained on, "
            f"without the target ({', '.join(features[:5])}{', ...' if len(features) > 5 else ''})"
        )


# Targets, splits and scales


def _encode_target(table: _Table, task: Task | None) -> tuple[tuple[str, ...] | None, np.ndarray]:
    """Class names and integer classes (N,), or None and quantities (N, K)."""
    target = table.target
    if task is None:
        task = "classification" if table.labels or _looks_like_classes(target) else "regression"
    if task == "regression":
        if target.dtype.kind not in "biuf":
            first = _brief(target.ravel()[0])
            raise DataError(f"{table.name}: the target {first} is text; regression needs numbers")
        return None, target.reshape(len(target), -1).astype(np.float64)
    if target.ndim > 1:
        raise DataError(f"{table.name}: classification needs one target column, got {target.shape}")
    found, classes = np.unique(target, return_inverse=True)
    whole = found.dtype.kind == "f" and bool((found == found.round()).all())
    names = tuple(str(int(value)) if whole else str(value) for value in found)
    if len(names) < 2:
        raise DataError(f"{table.name}: every row has the target {names[0]}, expected two classes")
    return table.labels or names, classes.astype(np.int32)


def _looks_like_classes(target: np.ndarray) -> bool:
    if target.ndim > 1:
        return False
    if target.dtype.kind not in "iuf":
        return True
    found = np.unique(target)
    return len(found) <= _MOST_CLASSES and bool((found == found.round()).all())


def _split(
    name: str,
    values: np.ndarray,
    labels: tuple[str, ...] | None,
    validation: float,
    test: float,
    seed: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row numbers for training, validation and test; labels given: in the classes' proportions."""
    if labels:
        counts = np.bincount(values)
        if counts.min() < 3:
            raise DataError(
                f"{name}: class {_brief(labels[counts.argmin()])} has {counts.min()} row(s), and a "
                "stratified split in three needs 3 of each; without stratifying any will do"
            )
    split = _sklearn("model_selection").train_test_split
    rows = np.arange(len(values))

    def part(rows: np.ndarray, share: float) -> Any:
        by = values[rows] if labels else None
        return split(rows, test_size=share, random_state=seed, stratify=by)

    try:
        rest, test_rows = part(rows, test)
        train_rows, validation_rows = part(rest, validation / (1 - test))
    except ValueError as error:
        reason = str(error).split(", the resulting")[0]
        raise DataError(f"{name}: {len(values)} rows cannot be split so ({reason})") from None
    return train_rows, validation_rows, test_rows


def _moments(values: np.ndarray | None, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (divided by N; 1 if constant) by column; None: 0 and 1."""
    if values is None:
        return np.zeros(columns), np.ones(columns)
    scaler = _sklearn("preprocessing").StandardScaler().fit(values)
    return scaler.mean_, scaler.scale_


def _is_csv(source: str | Path) -> bool:
    return Path(source).suffix.lower() == ".csv"


def _is_npz(source: str | Path) -> bool:
    return Path(source).suffix.lower() == ".npz"


def _sklearn(module: str) -> Any:
    try:
        return importlib.import_module(f"sklearn.{module}")
    except ImportError as error:
        raise ImportError("jaxbp.data needs scikit-learn: pip install 'jaxbp[cli]'") from error
