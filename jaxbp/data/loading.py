"""Loading: the whole way from a file to batches to train, validate and test on.

Standardising uses the statistics of the training rows alone; the ``Preparation`` that ``load``
returns scales new rows in the same way.
"""

import warnings
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxbp.data.preparation import (
    Preparation,
    alike,
    check_counts,
    encode_for,
    encode_target,
    guess_task,
    moments,
    scaled_target,
    transform,
)
from jaxbp.data.sources import (
    DataError,
    DataWarning,
    Target,
    Task,
    check_target,
    noting,
    read_labelled,
    read_source,
)
from jaxbp.data.split import split_rows
from jaxbp.gradient import Batch
from jaxbp.reprs import short
from jaxbp.text import fields, html
from jaxbp.trees import check_bools


@dataclass(frozen=True)
class Decisions:
    """How ``load`` read a source: what it was told, and what it decided by itself."""

    target: str  # name of the column or array; empty for a bundled set
    task: Task
    reason: str  # for this task, and how to ask for the other; empty where there was no choice
    header: bool | None  # whether a CSV's first row names its columns; None for no CSV
    dropped: tuple[str, ...]  # names of the columns that are neither input nor target
    notes: tuple[str, ...]  # what may have been read otherwise than it is meant


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
    source: str | Path,
    *,
    target: Target = None,
    task: Task | None = None,
    validation: float = 0.15,
    test: float = 0.2,
    seed: int = 0,
    standardize: bool = True,
    standardize_target: bool = True,
    stratify: bool = True,
    header: bool | None = None,
    counts: bool = False,
) -> Dataset:
    """Read, split and standardise a data set.

    source: a name in ``BUNDLED``; a ``.csv`` with commas, semicolons or tabs; or an ``.npz`` with
        arrays x (N, ...) and y (N,) or (N, K).
    target: the CSV's target column by name or position, several in a tuple or with commas between,
        the last one unless given; or the name of the ``.npz``'s target array, y unless given.
    task: "classification" or "regression".  Unless given, a target of text, of booleans, of at
        most 20 different integers or of several columns of 0 and 1 is classification, anything
        else regression.
    validation: share of the rows to validate on; 0.15 unless given.
    test: share of the rows to test on; 0.2 unless given.
    seed: fixes which rows go where, 0 to 2³² - 1; 0 unless given.
    standardize: whether each input column is scaled to mean 0 and standard deviation 1 over the
        training rows.
    standardize_target: whether the target of a regression is scaled in the same way.
    stratify: whether every class keeps its proportion in each of the three batches.
    header: whether a CSV's first row names the columns.  Unless given, it does if none of its
        cells is a number, or if they are unlike the cells below.
    counts: whether a regression's target is counts, of which none is negative; False unless given.

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
    if not isinstance(source, str | Path):
        raise DataError(
            f"source: got {type(source).__name__}, expected a name or a file's path; arrays that "
            "are there already are jaxbp.Batch(x, target)"
        )
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
    raw = read_source(source, target, task, header)
    reason = ""
    if task is None:
        task, reason = guess_task(raw)
    guess = [f"the target has {reason}"] if reason else []
    with noting([*raw.notes, *guess, raw.hint]):
        labels, values = encode_target(raw, task)
        if labels is None and (values == values[0]).all():
            raise DataError(f"{raw.name}: every row has the same target, expected two values")
        if counts:
            check_counts(raw)
        classes = labels if stratify and values.ndim == 1 else None
        train_rows, validation_rows, test_rows = split_rows(
            raw.name, values, classes, validation, test, seed
        )
    notes = (*raw.notes, *alike(labels or ()))
    for note in notes:
        warnings.warn(f"{raw.name}: {note}", DataWarning, stacklevel=2)
    mean, scale = moments(raw.x[train_rows], standardize)
    count = 1 if values.ndim == 1 else values.shape[1]
    target_mean, target_scale = np.zeros(count), np.ones(count)
    if labels is None:
        target_mean, target_scale = moments(values[train_rows], standardize_target)
    targets = (raw.outputs or None) if labels is None else None
    preparation = Preparation(raw.features, mean, scale, labels, target_mean, target_scale, targets)
    if labels is None:
        values = scaled_target(preparation, raw, values)
    x = transform(preparation, raw.x)
    return Dataset(
        name=Path(raw.name).stem,
        train=Batch(x[train_rows], values[train_rows]),
        validation=Batch(x[validation_rows], values[validation_rows]),
        test=Batch(x[test_rows], values[test_rows]),
        preparation=preparation,
        decisions=Decisions(raw.target_name, task, reason, raw.header, raw.dropped, notes),
    )


def load_for(
    preparation: Preparation,
    source: str | Path,
    *,
    target: Target = None,
    counts: bool = False,
) -> Batch:
    """Read all rows of a source, prepared as a network's training rows were -> a batch.

    A CSV with a header is read by name.  target is as ``load`` takes it.  counts says whether it is
    counts, of which none is negative.  Raises DataError.

    >>> iris = load("iris")
    >>> load_for(iris.preparation, "iris").x.shape
    (150, 4)
    """
    check_bools(counts=counts)
    check_target(target)
    is_text = preparation.labels is not None and not preparation.several_labels
    raw = read_labelled(source, preparation.features, target, is_text)
    if counts:
        check_counts(raw)
    x: Any = transform(preparation, raw.x)
    values: Any = encode_for(preparation, raw)
    return Batch(x, values)
