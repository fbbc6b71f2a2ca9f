"""Preparation: raw columns become a network's input, and a target becomes classes or values."""

from typing import NamedTuple

import numpy as np

from jaxbp.data.sources import LARGEST_FLOAT32, DataError, RawData, Task, quoted, scikit_learn


class Preparation(NamedTuple):
    """The scaling of a network's inputs, and the names or units of its output."""

    features: tuple[str, ...]  # the D input columns, in order
    mean: np.ndarray  # (D,) of the training rows
    scale: np.ndarray  # (D,) their standard deviation; 1 for a constant column
    labels: tuple[str, ...] | None  # the classes' names; None for regression
    target_mean: np.ndarray  # (K,) of a regression's target; 0 and 1 where it is left as it is
    target_scale: np.ndarray  # (K,)


def transform(preparation: Preparation, x: np.ndarray) -> np.ndarray:
    """Scale raw rows (N, D) to a network's input: (x - mean) / scale, in float32.

    Raises DataError for a value that is out of float32's range, before or after.
    """
    scaled: np.ndarray = (np.asarray(x) - preparation.mean) / preparation.scale
    beyond = np.argwhere(~(np.abs(scaled) <= LARGEST_FLOAT32))
    if len(beyond):
        row, column = beyond[0]
        name = preparation.features[column]
        raise DataError(f"x, row {row}, column {name!r}: {x[row, column]:g} is out of range")
    return np.asarray(scaled, np.float32)


_MOST_CLASSES = 20  # an integer target with more different values than this is regression


def guess_task(raw: RawData) -> Task:
    """Take text, booleans and few different integers for classes, anything else for regression."""
    if raw.target.ndim > 1:
        return "regression"
    if raw.labels is not None or raw.target.dtype.kind not in "iuf":
        return "classification"
    found = np.unique(raw.target)
    few = len(found) <= _MOST_CLASSES and bool((found == found.round()).all())
    return "classification" if few else "regression"


def encode_target(raw: RawData, task: Task) -> tuple[tuple[str, ...] | None, np.ndarray]:
    """Encode the target: (class names, integer classes (N,)), or (None, values (N, K)).

    Raises DataError for a target that does not suit the task.
    """
    target = raw.target
    if task == "regression":
        if target.dtype.kind not in "biuf":
            first = quoted(target.ravel()[0])
            raise DataError(f"{raw.name}: the target {first} is text; regression needs numbers")
        return None, target.reshape(len(target), -1).astype(np.float64)
    if target.ndim > 1:
        raise DataError(f"{raw.name}: classification needs one target column, got {target.shape}")
    found, classes = np.unique(target, return_inverse=True)
    whole = found.dtype.kind == "f" and bool((found == found.round()).all())
    names = tuple(str(int(value)) if whole else str(value) for value in found)
    if len(names) < 2:
        raise DataError(f"{raw.name}: every row has the target {names[0]}, expected two classes")
    labels = names if raw.labels is None else raw.labels
    return labels, classes.astype(np.int32)


def moments(values: np.ndarray, standardize: bool) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of every column, (K,) each, to subtract and to divide by.

    The deviation is divided by N, and is 1 for a constant column.  Both leave the column as it is,
    0 and 1, unless standardize.
    """
    if not standardize:
        return np.zeros(values.shape[1]), np.ones(values.shape[1])
    scaler = scikit_learn("preprocessing").StandardScaler().fit(values)
    return scaler.mean_, scaler.scale_
