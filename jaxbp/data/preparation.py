"""Preparation: raw columns become a network's input, and a target becomes classes or values."""

import unicodedata
from collections.abc import Sequence
from decimal import Decimal as Exact
from typing import Any, NamedTuple

import numpy as np

from jaxbp.data.cells import Decimal, is_date, is_number, quoted
from jaxbp.data.columns import (
    LARGEST_FLOAT32,
    Column,
    Values,
    check_complete,
    encode,
    read,
)
from jaxbp.data.errors import DataError, scikit_learn
from jaxbp.data.facts import told_of, warn_of_unknown
from jaxbp.data.sources import RawData, Task
from jaxbp.data.tables import Table, frame_table, is_frame
from jaxbp.text import counted


class Preparation(NamedTuple):
    """How rows become a network's inputs, and the names or units of its output.

    The I inputs are the D columns themselves, unless ``columns`` says what they become.
    """

    features: tuple[str, ...]  # the D input columns, in order
    mean: np.ndarray  # (I,) of the training rows
    scale: np.ndarray  # (I,) their standard deviation; 1 for a constant input
    labels: tuple[str, ...] | None  # names of the classes or of several labels; None for regression
    target_mean: np.ndarray  # (K,) of a regression's target; 0 and 1 where it is left as it is
    target_scale: np.ndarray  # (K,)
    targets: tuple[str, ...] | None = None  # names of the target's columns, where it has some
    columns: tuple[Column, ...] | None = None  # (D,) of a table; None: each is a number
    image_shape: tuple[int, ...] | None = None  # of an image that a row was; None: rows were rows

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the I inputs."""
        if self.columns is None:
            return self.features
        return tuple(name for column in self.columns for name in column.inputs)

    @property
    def several_labels(self) -> bool:
        """Whether a row may have any of the labels, none or all, rather than be of one class."""
        return self.labels is not None and len(self.target_mean) == len(self.labels)


def transform(preparation: Preparation, x: Any) -> np.ndarray:
    """Turn raw rows (N, D) into a network's input: (x - mean) / scale, in float32.

    Columns of a DataFrame or of a dict are taken by name, those of an array as they stand, images
    (N, H, W) of the shape trained on as rows; text and missing cells become what
    ``preparation.columns`` says.  Raises DataError for a column that is not there, for a row of
    another width, for an image of another shape, for a cell that cannot be read, and for a value
    that is out of float32's range, before or after.  A DataWarning tells of categories that no
    training row has.
    """
    rows, told = transformed(preparation, x)
    warn_of_unknown("x", told)
    return rows


def transformed(preparation: Preparation, x: Any) -> tuple[np.ndarray, list[str]]:
    """``transform``, and what is worth telling of the rows, of which it does not warn."""
    features = preparation.features
    if is_frame(x):
        table = frame_table(x, "x")
        absent = next((name for name in features if name not in table.names), None)
        if absent is not None:
            raise DataError(
                f"x: no column {quoted(absent)}, which the network was trained on (the columns "
                f"are {', '.join(map(quoted, table.names))}; an array of them is taken in order)"
            )
        columns = [table.columns[table.names.index(name)] for name in features]
        return prepared(preparation, table._replace(names=features, columns=columns))
    if np.ma.is_masked(x):
        raise DataError("x: some values are masked, expected an array without a mask")
    if np.asarray(x).dtype.kind in "cmM":  # complex numbers, durations, dates
        raise DataError(f"x: got {np.asarray(x).dtype}, expected rows of numbers")
    if preparation.columns is not None:
        rows = np.asarray(x)
        if rows.dtype.kind not in "biuf":
            rows = np.asarray(x, object)
        rows = _as_rows(preparation, rows)
        flat = rows.reshape(-1, len(features))
        table = frame_table(dict(enumerate(flat.T)), "x")._replace(names=features)
        inputs, told = prepared(preparation, table)
        return inputs.reshape(*rows.shape[:-1], -1), told
    try:
        rows = np.asarray(x, np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"x: expected rows of numbers ({error})") from None
    return _scaled(preparation, _as_rows(preparation, rows)), []


def _as_rows(preparation: Preparation, x: np.ndarray) -> np.ndarray:
    """Take images of the shape trained on as rows (N, D).  Raises DataError for another shape."""
    width, image_shape = len(preparation.features), preparation.image_shape
    if image_shape is not None and x.shape[1:] == image_shape:
        return x.reshape(len(x), width)
    if x.shape[-1:] != (width,) or (image_shape is not None and x.ndim > 2):
        images = "" if image_shape is None else f", or images of shape {image_shape}"
        raise DataError(
            f"x: got shape {x.shape}, expected rows of {counted(width, 'column')}{images}"
        )
    return x


def prepared(
    preparation: Preparation, table: Table, decimal: Decimal | None = None
) -> tuple[np.ndarray, list[str]]:
    """The inputs (N, I) of new rows, and what is worth telling of them.

    table has the columns of ``preparation.features``, in order, and decimal is the sign before a
    number's fraction, that of the training rows unless given.  Raises DataError.
    """
    columns = preparation.columns or [
        Column(name, missing="error") for name in preparation.features
    ]
    parts, told = [], []
    for position, column in enumerate(columns):
        values = read(table, position, column, decimal)
        if column.missing == "error":
            check_complete(table, position, values)
        told += told_of(column, values)
        parts.append(encode(column, values))
    return _scaled(preparation, np.hstack(parts)), told


def encoded(columns: Sequence[Column], values: Sequence[Values]) -> np.ndarray:
    """The inputs (N, I) of the columns of a table, unscaled."""
    return np.hstack(list(map(encode, columns, values)))


def _scaled(preparation: Preparation, rows: np.ndarray) -> np.ndarray:
    return scaled(rows, preparation.mean, preparation.scale, preparation.inputs)


def scaled(
    rows: np.ndarray, mean: np.ndarray, scale: np.ndarray, names: Sequence[str]
) -> np.ndarray:
    """Scale inputs (..., I), which have these names, in float32: (rows - mean) / scale.

    Raises DataError for a value that float32 cannot hold.
    """
    numbers = (rows - mean) / scale
    if numbers.size and not np.abs(numbers).max() <= LARGEST_FLOAT32:
        place = tuple(np.argwhere(~(np.abs(numbers) <= LARGEST_FLOAT32))[0])
        row = f", row {place[-2]}" if len(place) > 1 else ""
        raise DataError(f"x{row}, column {names[place[-1]]!r}: {rows[place]:g} is out of range")
    return np.asarray(numbers, np.float32)


_MOST_CLASSES = 20  # an integer target with more different values than this is regression


def guess_task(raw: RawData) -> tuple[Task, str]:
    """Take text, booleans and few different integers for classes, anything else for quantities.

    The second result says why, and which option says otherwise; it is empty where the source leaves
    no choice.
    """
    target = raw.target
    by_type = raw.table is not None and raw.target_name in raw.table.categorical
    if raw.labels is not None or target.dtype.kind not in "iuf" or by_type:
        return "classification", "" if by_type else _told_of_dates(target)
    if target.ndim > 1:
        return _guess_of_columns(target)
    found = np.unique(target)
    count = len(found if raw.cells is None else set(raw.cells))  # 1 and 1.0 are two classes
    integers = counted(len(found), "different integer")
    integers += f", written in {count} ways" if count > len(found) else ""
    if not raw.target_name or not (found == found.round()).all():  # bundled, or no integers
        return "regression", ""
    if count > _MOST_CLASSES:
        as_classes = "task='classification' (--task classification) for classes"
        return "regression", f"{integers}: taken for quantities; {as_classes}"
    if count == 2:
        return "classification", integers
    return "classification", f"{integers}: taken for classes; {_AS_QUANTITIES}"


def _told_of_dates(target: np.ndarray) -> str:
    """Tell of a target of dates, each of which becomes a class; nothing of others."""
    if target.dtype.kind != "U" or not is_date(str(target[0])):
        return ""
    different = np.unique(target).tolist()
    if not all(map(is_date, different)):
        return ""
    return f"{counted(len(different), 'different date')}: taken for classes, as they are no numbers"


_AS_QUANTITIES = "task='regression' (--task regression) for quantities"


def _guess_of_columns(target: np.ndarray) -> tuple[Task, str]:
    """``guess_task`` for a target (N, K)."""
    columns = f"{target.shape[1]} columns"
    if is_one_hot(target):
        what = "one of them 1 in each row: taken for classes"
    elif _is_0_or_1(target):
        what = "each 0 or 1: taken for labels, of which a row may have several"
    else:
        return "regression", f"{columns} of numbers"
    return "classification", f"{columns}, {what}; {_AS_QUANTITIES}"


def is_one_hot(target: np.ndarray) -> bool:
    """Whether each row (K,) of a target (N, K) is the number 1 in one place and 0 elsewhere."""
    return _is_0_or_1(target) and bool((target.sum(1) == 1).all())


def _is_0_or_1(target: np.ndarray) -> bool:
    return target.dtype.kind in "biuf" and bool(((target == 0) | (target == 1)).all())


def encode_target(raw: RawData, task: Task) -> tuple[tuple[str, ...] | None, np.ndarray]:
    """Encode the target: (class names, integer classes (N,)), or (None, values (N, K)).

    One-hot rows are classes, called as the target's columns.  Other columns of 0 and 1 are labels
    of their own: (their names, values (N, K)).  Raises DataError for a target that does not suit
    the task.
    """
    target = raw.target
    if task == "regression":
        if target.dtype.kind not in "biuf":
            first = quoted(target.ravel()[0])
            raise DataError(f"{raw.name}: the target {first} is text; regression needs numbers")
        return None, target.reshape(len(target), -1).astype(np.float64)
    if target.ndim > 1:
        if not _is_0_or_1(target):
            raise DataError(
                f"{raw.name}: classification needs one target column, or several of 0 and 1, got "
                f"{target.shape}"
            )
        if not is_one_hot(target):
            return raw.outputs, target.astype(np.float32)
        target = target.argmax(1)
        text = np.array(raw.outputs)[target]
    else:
        text = np.array(_text_of(raw.cells if raw.cells is not None else target))
    _, first_rows = np.unique(text, return_index=True)
    names = tuple(text[np.array(sorted(first_rows, key=lambda row: (target[row], text[row])))])
    if len(names) < 2:
        raise DataError(f"{raw.name}: every row has the target {names[0]}, expected two classes")
    labels = tuple(map(str, names)) if raw.labels is None else raw.labels
    position = {name: index for index, name in enumerate(names)}
    classes = np.array([position[name] for name in text])
    return labels, classes.astype(np.int32)


def alike(labels: Sequence[str]) -> list[str]:
    """Tell of the first two names of classes that are one number, or look alike: by capitals, or by
    how Unicode writes a letter or a blank."""
    first: dict[str | Exact, str] = {}
    for label in labels:
        other = first.setdefault(Exact(label) if is_number(label) else _look(label), label)
        if other != label:
            return [f"the classes {quoted(other)} and {quoted(label)} differ by their text alone"]
    return []


def _look(label: str) -> str:
    return unicodedata.normalize("NFKC", label).casefold()


def _text_of(target: Any) -> list[str]:
    """The names of classes: a cell's text, and the text of an array's entries, 2 for 2.0."""
    target = np.asarray(target)
    if target.dtype.kind == "f" and bool((target == target.round()).all()):
        target = target.astype(object)
        return [str(int(value)) for value in target]
    return [str(value) for value in target]


def encode_for(preparation: Preparation, raw: RawData) -> np.ndarray:
    """Encode a target as a network was trained on it: classes (N,), or scaled values (N, K).

    Raises DataError for a name that is none of its classes, and for another number of values.
    """
    raw, labels = _in_order(preparation, raw), preparation.labels
    target = raw.target
    if labels is None:
        _, values = encode_target(raw, "regression")
        if values.shape[1] != len(preparation.target_mean):
            raise DataError(
                f"{raw.name}: {counted(values.shape[1], 'target column')}, expected "
                f"{len(preparation.target_mean)}"
            )
        return scaled_target(preparation, raw, values)
    if preparation.several_labels:
        values = target.reshape(len(target), -1)
        if values.shape[1] != len(labels) or values.dtype.kind not in "biuf":
            raise DataError(
                f"{raw.name}: expected {len(labels)} target columns of 0 and 1, one for each label "
                f"({', '.join(map(quoted, labels[:10]))}{', ...' if len(labels) > 10 else ''})"
            )
        _check_each(raw, values, (values == 0) | (values == 1), "0 or 1")
        return values.astype(np.float32)
    if target.ndim > 1:
        target = _names_of_ones(raw, target)
    if raw.labels is not None:
        target = np.array(raw.labels)[target]
    position = {name: index for index, name in enumerate(labels)}
    classes = [position.get(name, -1) for name in _text_of(target)]
    if -1 in classes:
        row = classes.index(-1)
        raise DataError(
            f"{raw.place(row)}: the target {quoted(target[row])} is none of the network's "
            f"classes ({', '.join(map(quoted, labels[:10]))}{', ...' if len(labels) > 10 else ''})"
        )
    return np.array(classes, np.int32)


def _names_of_ones(raw: RawData, target: np.ndarray) -> np.ndarray:
    """The names of the columns that are 1 in one-hot rows.  Raises DataError for the first row that
    is none."""
    right = ((target == 0) | (target == 1)).all(1) & (target.sum(1) == 1)
    if not right.all():
        row = int(right.argmin())
        cells = ", ".join(f"{cell:g}" for cell in target[row].tolist())
        names = ", ".join(raw.outputs)
        raise DataError(f"{raw.place(row)}: {names} are {cells}, expected one 1, and else 0")
    named: np.ndarray = np.array(raw.outputs)[target.argmax(1)]
    return named


def _in_order(preparation: Preparation, raw: RawData) -> RawData:
    """The target's columns in the order of the network's outputs, where they have their names."""
    names = preparation.labels if preparation.several_labels else preparation.targets
    if names is None or len(names) != len(raw.outputs) or {*names} != {*raw.outputs}:
        return raw
    places = [raw.outputs.index(name) for name in names]
    return raw._replace(target=raw.target[:, places], outputs=tuple(names))


def scaled_target(preparation: Preparation, raw: RawData, values: np.ndarray) -> np.ndarray:
    """Scale a regression's values (N, K), in float32: (values - target_mean) / target_scale.

    Raises DataError for the first row with one that is then out of float32's range.
    """
    scaled: np.ndarray = (values - preparation.target_mean) / preparation.target_scale
    _check_each(raw, values, np.abs(scaled) <= LARGEST_FLOAT32, "a number near those trained on")
    return scaled.astype(np.float32)


def in_units(preparation: Preparation, values: Any) -> np.ndarray:
    """Scaled values y of a target (N, K) in its own units: target_mean + target_scale · y.

    preparation: of the data.
    values: what a network of a regression predicts, or a batch's targets.

    Raises ValueError for values of another number of targets.

    >>> import jaxbp
    >>> data = jaxbp.data.load("diabetes")
    >>> print(jaxbp.data.in_units(data.preparation, data.train.target[:2]).round(3).tolist())
    [[262.0], [60.0]]
    """
    scaled, count = np.asarray(values, np.float64), len(preparation.target_mean)
    if count > 1 and scaled.shape[-1:] != (count,):
        raise ValueError(f"values: got shape {scaled.shape}, expected (N, {count})")
    units: np.ndarray = scaled * preparation.target_scale + preparation.target_mean
    return units


def check_counts(raw: RawData) -> None:
    """Raise DataError for the first row whose target, of numbers, is negative."""
    target = raw.target.reshape(len(raw.target), -1)
    _check_each(raw, target, target >= 0, "a count of at least 0")


def _check_each(raw: RawData, values: np.ndarray, right: np.ndarray, expected: str) -> None:
    """Raise DataError for the first of a target's values (N, K) that is not right."""
    if not right.all():
        row, column = np.argwhere(~right)[0]
        value = values[row, column]
        raise DataError(f"{raw.place(row)}: the target is {value:g}, expected {expected}")


def moments(values: np.ndarray, standardize: bool) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of every column, (K,) each, to subtract and to divide by.

    The deviation is divided by N, and is 1 for a constant column.  Both leave the column as it is,
    0 and 1, unless standardize.
    """
    if not standardize:
        return np.zeros(values.shape[1]), np.ones(values.shape[1])
    scaler = scikit_learn("preprocessing").StandardScaler().fit(values)
    return scaler.mean_, scaler.scale_
