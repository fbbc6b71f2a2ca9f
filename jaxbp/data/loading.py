"""Loading: the whole way from a table to batches to train, validate and test on.

Standardising uses the statistics of the training rows alone; the ``Preparation`` that ``load``
returns scales new rows in the same way.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxbp.data.cells import Decimal
from jaxbp.data.columns import Missing, fitted
from jaxbp.data.errors import DataError, DataWarning, noting
from jaxbp.data.facts import facts_of, not_trained, warn_of_unknown
from jaxbp.data.preparation import (
    Preparation,
    alike,
    check_counts,
    encode_for,
    encode_target,
    encoded,
    guess_task,
    moments,
    prepared,
    scaled,
    scaled_target,
    transform,
    transformed,
)
from jaxbp.data.sources import (
    RawData,
    Reading,
    Target,
    Task,
    check_inputs,
    check_target,
    read_inputs,
    read_labelled,
    read_source,
)
from jaxbp.data.split import split_rows
from jaxbp.data.tables import is_frame
from jaxbp.gradient import Batch
from jaxbp.reprs import short
from jaxbp.text import fields, html
from jaxbp.trees import check_bools

VALIDATION, TEST = 0.15, 0.2  # shares of the rows, unless given


@dataclass(frozen=True)
class Decisions:
    """How ``load`` read a source: what it was told, and what it decided by itself."""

    target: str  # name of the column or array; empty for a bundled set
    task: Task
    reason: str  # for this task, and how to ask for the other; empty where there was no choice
    header: bool | None  # whether a CSV's first row names its columns; None for no CSV
    dropped: tuple[str, ...]  # names of the columns that are neither input nor target
    notes: tuple[str, ...]  # what may have been read otherwise than it is meant
    columns: tuple[str, ...] = ()  # what became of each column that is not plainly numbers
    weights: str = ""  # name of the column of example weights


class Dataset(NamedTuple):
    """Three batches, ready for ``fit``, and how they were prepared.

    A target is integer classes (B,) in classification, and values (B, K) in regression; 0 or 1
    (B, K) where each of several columns is a label of its own.
    """

    name: str
    train: Batch
    validation: Batch
    test: Batch
    preparation: Preparation
    decisions: Decisions | None = None  # None where ``load`` did not make it

    def __repr__(self) -> str:
        return short(self)

    def _repr_html_(self) -> str:
        return html(fields(self))


def load(
    source: Any,
    *,
    target: Target = None,
    task: Task | None = None,
    validation: float = VALIDATION,
    test: float = TEST,
    seed: int = 0,
    standardize: bool = True,
    standardize_target: bool = True,
    stratify: bool = True,
    header: bool | None = None,
    counts: bool = False,
    drop: str | int | Sequence[str | int] = (),
    categorical: str | int | Sequence[str | int] = (),
    missing: Missing = "impute",
    weights: str | int | None = None,
    encoding: str | None = None,
    decimal: Decimal | None = None,
) -> Dataset:
    """Read, split and standardise a data set.

    source: a name in ``BUNDLED``; a file of columns: delimited text (``.csv``, ``.tsv``, ``.txt``,
        ``.data``; also ``.gz`` and ``.zst``), Parquet, Arrow (Feather), Excel or ``.npy``; a
        DataFrame or a dict of arrays; or an ``.npz`` with arrays x (N, ...) and y (N,) or (N, K).
    target: the target column by name or, where none is called so, by position; several in a tuple
        or with commas between, the last one unless given; or the name of the ``.npz``'s target
        array, y unless given.
    task: "classification" or "regression".  Unless given, a target of text, of booleans, of at
        most 20 different integers or of several columns of 0 and 1 is classification, anything
        else regression.
    validation: share of the rows to validate on; 0.15 unless given.
    test: share of the rows to test on; 0.2 unless given.
    seed: fixes which rows go where, 0 to 2³² - 1; 0 unless given.
    standardize: whether each input is scaled to mean 0 and standard deviation 1 over the training
        rows, but for those of categories and of missing cells, which stay 0 or 1.
    standardize_target: whether the target of a regression is scaled in the same way.
    stratify: whether every class keeps its proportion in each of the three batches.
    header: whether a CSV's first row names the columns.  Unless given, it does if none of its
        cells is a number, or if they are unlike the cells below.
    counts: whether a regression's target is counts, of which none is negative; False unless given.
    drop: columns to leave out, by name or position; none unless given.
    categorical: columns of numbers that are categories; none unless given, as text is anyhow.
    missing: "impute", unless given, replaces missing cells as ``jaxbp.data.columns`` says, and
        leaves out rows without a target; "error" refuses both.
    weights: the column of the examples' weights, at least 0; all are equal unless given.
    encoding: of a CSV, by Python's name; UTF-8 unless given, or as a byte order mark says.
    decimal: the sign before a number's fraction, "." or ","; unless given, the one by which all
        numbers of a column can be read.

    A class is called by its cell's text, so that 01 and 1 are two.  A first column without a name
    that counts the rows, as pandas writes it, is left out.  ``decisions`` tells what was decided.

    Raises DataError for an argument out of range, and for anything wrong with the source; a
    DataWarning says what may have been read otherwise than it is meant.

    >>> data = load("iris")
    >>> data.train.x.shape, data.preparation.labels
    ((97, 4), ('setosa', 'versicolor', 'virginica'))
    """
    check_bools(
        standardize=standardize,
        standardize_target=standardize_target,
        stratify=stratify,
        counts=counts,
        header=False if header is None else header,
    )
    reading = checked_reading(header, drop, categorical, missing, weights, encoding, decimal)
    _check_source(source)
    if not isinstance(seed, Integral) or not 0 <= int(seed) < 2**32:
        raise DataError(f"seed: got {seed!r}, expected a whole number from 0 to 2³² - 1")
    shares = validation, test
    if not (all(isinstance(each, Real) and each > 0 for each in shares) and sum(shares) < 1):
        raise DataError(
            f"validation, test: got {validation!r} and {test!r}, expected positive shares of the "
            "rows that leave some to train on"
        )
    if task not in {None, "classification", "regression"}:
        raise DataError(f"task: got {task!r}, expected classification or regression")
    check_target(target)
    raw = read_source(source, target, task, reading)
    check_inputs(raw)
    reason = ""
    if task is None:
        task, reason = guess_task(raw)
    guess = [f"the target has {reason}"] if reason else []
    with noting([*raw.notes, *guess, raw.hint]):
        if counts:
            check_counts(raw)
        labels, values, (train_rows, validation_rows, test_rows) = dealt(
            raw, task, validation, test, seed, stratify=stratify
        )
    notes = (*raw.notes, *alike(labels or ()))
    if labels is not None and values.ndim == 1:
        weight = None if raw.weight is None else raw.weight[train_rows]
        notes += not_trained(labels, values[train_rows], weight)
    for note in notes:
        warnings.warn(f"{raw.name}: {note}", DataWarning, stacklevel=2)
    count = 1 if values.ndim == 1 else values.shape[1]
    target_mean, target_scale = np.zeros(count), np.ones(count)
    if labels is None:
        target_mean, target_scale = moments(values[train_rows], standardize_target)
    targets = raw.outputs or None
    if targets is None and raw.table is not None:
        targets = (raw.target_name,)
    preparation = Preparation(
        raw.features,
        np.zeros(0),
        np.ones(0),
        labels,
        target_mean,
        target_scale,
        targets,
        image_shape=raw.image_shape,
    )
    preparation, x = _inputs(preparation, raw, train_rows, standardize, missing)
    if labels is None:
        values = scaled_target(preparation, raw, values)
    parts = {
        part: Batch(x[rows], values[rows], None if raw.weight is None else raw.weight[rows])
        for part, rows in zip(
            ("train", "validation", "test"), (train_rows, validation_rows, test_rows), strict=True
        )
    }
    for part, batch in parts.items():
        if batch.weight is not None and not np.any(batch.weight):
            raise DataError(f"weights: all {part} rows have the weight 0; another seed splits them")
    columns = preparation.columns or ()
    return Dataset(
        name=Path(raw.name).stem,
        **parts,
        preparation=preparation,
        decisions=Decisions(
            raw.target_name,
            task,
            reason,
            raw.header,
            raw.dropped,
            notes,
            facts_of(columns, [each.values for each in raw.inputs]),
            raw.weight_name,
        ),
    )


def dealt(
    raw: RawData,
    task: Task,
    validation: float = VALIDATION,
    test: float = TEST,
    seed: int = 0,
    *,
    stratify: bool = True,
) -> tuple[tuple[str, ...] | None, np.ndarray, tuple[np.ndarray, ...]]:
    """The names of the classes, if there are any, the encoded target, and the rows to train,
    validate and test on.

    raw: the source.
    task: decided.
    validation, test, seed, stratify: as ``load`` takes them.

    Raises DataError for a target that is the same in every row, and for shares that cannot be.
    """
    labels, values = encode_target(raw, task)
    if labels is None and (values == values[0]).all():
        raise DataError(f"{raw.name}: every row has the same target, expected two values")
    classes = labels if stratify and values.ndim == 1 else None
    return labels, values, split_rows(raw.name, values, classes, validation, test, seed)


def _inputs(
    preparation: Preparation,
    raw: RawData,
    train_rows: np.ndarray,
    standardize: bool,
    missing: Missing,
) -> tuple[Preparation, np.ndarray]:
    """Learn from the training rows how inputs are prepared -> that, and all rows' inputs (N, I)."""
    if raw.x is not None:
        mean, scale = moments(raw.x[train_rows], standardize)
        preparation = preparation._replace(mean=mean, scale=scale)
        return preparation, transform(preparation, raw.x)
    columns = tuple(fitted(each, train_rows, missing) for each in raw.inputs)
    widths = [len(column.inputs) for column in columns]
    x = np.empty((len(raw.target), sum(widths)), np.float32)
    mean, scale = np.zeros(x.shape[1]), np.ones(x.shape[1])
    last = np.cumsum(widths)
    for start in range(0, len(columns), _AT_ONCE):
        block = slice(start, start + _AT_ONCE)
        rows = encoded(columns[block], [each.values for each in raw.inputs[block]])
        place = slice(last[block][-1] - rows.shape[1], last[block][-1])
        is_scaled = np.array([each for column in columns[block] for each in column.is_scaled])
        of_mean, of_scale = moments(rows[train_rows], standardize)
        mean[place], scale[place] = np.where(is_scaled, [of_mean, of_scale], [[0.0], [1.0]])
        names = [name for column in columns[block] for name in column.inputs]
        x[:, place] = scaled(rows, mean[place], scale[place], names)
    return preparation._replace(mean=mean, scale=scale, columns=columns), x


_AT_ONCE = 16  # columns, so that their float64 numbers take little memory beside the inputs


def checked_reading(
    header: bool | None,
    drop: Any,
    categorical: Any,
    missing: Any,
    weights: Any,
    encoding: Any,
    decimal: Any,
) -> Reading:
    """How a table is to be read, as ``load`` takes it.  Raises DataError for what it cannot mean.

    header: whether a CSV's first row names the columns, or None.
    drop: columns to leave out.
    categorical: columns of categories.
    missing: "impute" or "error".
    weights: the column of example weights, or None.
    encoding: of a CSV, or None.
    decimal: "." or ",", or None.
    """
    if missing not in {"impute", "error"}:
        raise DataError(f"missing: got {missing!r}, expected impute or error")
    if decimal not in {None, ".", ","}:
        raise DataError(f"decimal: got {decimal!r}, expected '.' or ','")
    if not isinstance(encoding, str | None):
        raise DataError(f"encoding: got {encoding!r}, expected a name such as latin-1")
    lists = []
    for name, value in (("drop", drop), ("categorical", categorical), ("weights", weights)):
        each = (value,) if isinstance(value, str | Integral) else tuple(value or ())
        wrong = [
            one for one in each if isinstance(one, bool) or not isinstance(one, str | Integral)
        ]
        if wrong or (name == "weights" and len(each) > 1):
            raise DataError(f"{name}: got {value!r}, expected a column's name or position")
        lists.append(each)
    dropped, categories, weight = lists
    return Reading(
        header, dropped, categories, missing, weight[0] if weight else None, encoding, decimal
    )


def _check_source(source: Any) -> None:
    if not (isinstance(source, str | Path) or is_frame(source)):
        raise DataError(
            f"source: got {type(source).__name__}, expected a name or a file's path, a DataFrame "
            "or a dict of arrays; arrays that are there already are jaxbp.Batch(x, target)"
        )


def load_for(
    preparation: Preparation,
    source: Any,
    *,
    target: Target = None,
    counts: bool = False,
    weights: str | int | None = None,
    encoding: str | None = None,
    decimal: Decimal | None = None,
) -> Batch:
    """Read all rows of a source, prepared as a network's training rows were -> a batch.

    preparation: of the network.
    source: as ``load`` takes it; a table with names is read by them.
    target: as ``load`` takes it; unless given, the columns that the network learnt.
    counts: whether it is counts, of which none is negative; False unless given.
    weights: the column of the examples' weights; all are equal unless given.
    encoding: of a CSV, by Python's name; UTF-8 unless given.
    decimal: the sign before a number's fraction; unless given, that of the training rows for inputs
        and, for target and weights, the one that is found by their cells.

    Raises DataError; a DataWarning tells of categories that no training row has.

    >>> iris = load("iris")
    >>> load_for(iris.preparation, "iris").x.shape
    (150, 4)
    """
    batch, told = load_labelled(
        preparation,
        source,
        target=target,
        counts=counts,
        weights=weights,
        encoding=encoding,
        decimal=decimal,
    )
    warn_of_unknown(source if isinstance(source, str | Path) else "table", told)
    return batch


def load_labelled(
    preparation: Preparation,
    source: Any,
    *,
    target: Target,
    counts: bool,
    weights: str | int | None = None,
    encoding: str | None = None,
    decimal: Decimal | None = None,
) -> tuple[Batch, list[str]]:
    """``load_for``, and all that is worth telling of the rows, which it does not warn of.

    preparation: of the network.
    source: as ``load`` takes it.
    target: as ``load`` takes it.
    counts: whether it is counts.
    weights: the column of the examples' weights; all are equal unless given.
    encoding: of a CSV; UTF-8 unless given.
    decimal: as for ``load_for``.
    """
    check_bools(counts=counts)
    check_target(target)
    _check_source(source)
    is_text = preparation.labels is not None and not preparation.several_labels
    reading = checked_reading(None, (), (), "impute", weights, encoding, decimal)
    reading = reading._replace(image_shape=preparation.image_shape)
    known = preparation.targets
    raw = read_labelled(source, preparation.features, target, is_text, reading, known)
    if counts:
        check_counts(raw)
    told: list[str] = []
    if raw.table is None:
        x, told = transformed(preparation, raw.x)
    else:
        x, told = prepared(preparation, raw.table, decimal)
    return Batch(x, encode_for(preparation, raw), raw.weight), [*raw.notes, *told]


def load_rows(
    preparation: Preparation,
    source: Any,
    *,
    encoding: str | None = None,
    decimal: Decimal | None = None,
) -> tuple[np.ndarray, list[str]]:
    """Read rows without a target, prepared as a network's training rows were -> (N, I).

    preparation: of the network.
    source: as ``load`` takes it; a table with names is read by them.
    encoding: of a CSV, by Python's name; UTF-8 unless given.
    decimal: the sign before a number's fraction; that of the training rows unless given.

    The second result tells of missing cells that were filled, and of unknown categories.  Raises
    DataError.
    """
    if not isinstance(preparation, Preparation):
        raise TypeError(
            f"preparation: got {type(preparation).__name__}, expected a Preparation, such as that "
            "of jaxbp.data.load(...)"
        )
    _check_source(source)
    reading = checked_reading(None, (), (), "impute", None, encoding, decimal)
    reading = reading._replace(image_shape=preparation.image_shape)
    rows = read_inputs(source, preparation.features, reading)
    if isinstance(rows, np.ndarray):
        return transformed(preparation, rows)
    return prepared(preparation, rows, decimal)
