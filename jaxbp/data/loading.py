"""Data: real tables and images as batches, split and standardised, and the errors they deserve.

``load`` reads one of scikit-learn's bundled real sets, a ``.csv`` or an ``.npz``, splits it at
random into training, validation and test rows, and standardises with the statistics of the training
rows alone.  A ``Preparation`` remembers what was done, so that new rows are treated the same way.
Whatever is wrong with a file is a ``DataError`` of one line, naming file, row and column; a CSV's
row is the file's line number, as an editor shows it, an array's row counts from 0.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxbp.data.preparation import Preparation, encode_target, moments, transform
from jaxbp.data.sources import DataError, Task, read_table
from jaxbp.data.split import split_rows
from jaxbp.gradient import Batch


class Dataset(NamedTuple):
    """Real data, ready for ``fit``: classes are integers (B,), quantities are values (B, K)."""

    name: str
    train: Batch
    validation: Batch
    test: Batch
    preparation: Preparation


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
    table = read_table(source, target, task, header)
    labels, values = encode_target(table, task)
    parts = split_rows(table.name, values, labels if stratify else None, validation, test, seed)
    quantity = None if labels else values[parts[0]]
    preparation = Preparation(
        table.features,
        *moments(table.x[parts[0]] if standardize else None, table.x.shape[1]),
        labels,
        *moments(quantity if standardize_target else None, values.shape[-1] if not labels else 1),
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


# Reading a source


# Targets, splits and scales
