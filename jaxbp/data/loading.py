"""Loading: the whole way from a file to batches to train, validate and test on.

Standardising uses the statistics of the training rows alone; the ``Preparation`` that ``load``
returns scales new rows in the same way.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxbp.data.preparation import Preparation, encode_target, guess_task, moments, transform
from jaxbp.data.sources import DataError, Task, read_source
from jaxbp.data.split import split_rows
from jaxbp.gradient import Batch
from jaxbp.reprs import short
from jaxbp.text import fields, html


class Dataset(NamedTuple):
    """Three batches, ready for ``fit``, and how they were prepared.

    A target is integer classes (B,) in classification, and values (B, K) in regression.
    """

    name: str
    train: Batch
    validation: Batch
    test: Batch
    preparation: Preparation

    def __repr__(self) -> str:
        return short(self)

    def _repr_html_(self) -> str:
        return html(fields(self))


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

    source: a name in ``BUNDLED``; a ``.csv`` with commas, semicolons or tabs; or an ``.npz`` with
        arrays x (N, ...) and y (N,) or (N, K).
    target: the CSV's target column by name or position, the last one unless given; or the name of
        the ``.npz``'s target array, y unless given.
    task: "classification" or "regression".  Unless given, a target of text, of booleans or of at
        most 20 different integers is classification, and anything else regression.
    validation: share of the rows to validate on; 0.15 unless given.
    test: share of the rows to test on; 0.2 unless given.
    seed: fixes which rows go where, 0 to 2³² - 1; 0 unless given.
    standardize: whether each input column is scaled to mean 0 and standard deviation 1 over the
        training rows.
    standardize_target: whether the target of a regression is scaled in the same way.
    stratify: whether every class keeps its proportion in each of the three batches.
    header: whether a CSV's first row names the columns.  Unless given, it does if none of its
        cells is a number.

    Raises DataError for an argument out of range, and for anything wrong with the source.

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
    raw = read_source(source, target, task, header)
    labels, values = encode_target(raw, guess_task(raw) if task is None else task)
    train_rows, validation_rows, test_rows = split_rows(
        raw.name, values, labels if stratify else None, validation, test, seed
    )
    mean, scale = moments(raw.x[train_rows], standardize)
    target_mean, target_scale = np.zeros(1), np.ones(1)
    if labels is None:
        target_mean, target_scale = moments(values[train_rows], standardize_target)
        values = ((values - target_mean) / target_scale).astype(np.float32)
    preparation = Preparation(raw.features, mean, scale, labels, target_mean, target_scale)
    x = transform(preparation, raw.x)
    return Dataset(
        name=Path(raw.name).stem,
        train=Batch(x[train_rows], values[train_rows]),
        validation=Batch(x[validation_rows], values[validation_rows]),
        test=Batch(x[test_rows], values[test_rows]),
        preparation=preparation,
    )
