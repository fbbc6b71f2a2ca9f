"""Preparation: how raw rows become the input of a network, and a target its classes."""

from typing import NamedTuple

import numpy as np

from jaxbp.data.sources import LARGEST, DataError, RawTable, Task, brief, sklearn

_MOST_CLASSES = 20  # an integer target of more different values than this is taken for a quantity


class Preparation(NamedTuple):
    """How raw rows become the network's input, and its output the table's words and units."""

    features: tuple[str, ...]  # the D input columns, in order
    mean: np.ndarray  # (D,) of the training rows
    scale: np.ndarray  # (D,) their standard deviation; 1 for a constant column
    labels: tuple[str, ...] | None  # the classes' names; None for regression
    target_mean: np.ndarray  # (K,) of a regression's target; 0 and 1 where it is left as it is
    target_scale: np.ndarray  # (K,)


def transform(preparation: Preparation, x: np.ndarray) -> np.ndarray:
    """Raw rows (N, D) -> the network's input, (x - mean) / scale, in float32.

    Raises DataError for a value that is out of float32's range, before or after.
    """
    scaled: np.ndarray = (np.asarray(x) - preparation.mean) / preparation.scale
    beyond = np.argwhere(~(np.abs(scaled) <= LARGEST))
    if len(beyond):
        row, column = beyond[0]
        name = preparation.features[column]
        raise DataError(f"x, row {row}, column {name!r}: {x[row, column]:g} is out of range")
    return np.asarray(scaled, np.float32)


def encode_target(table: RawTable, task: Task | None) -> tuple[tuple[str, ...] | None, np.ndarray]:
    """Class names and integer classes (N,), or None and quantities (N, K)."""
    target = table.target
    if task is None:
        task = "classification" if table.labels or _looks_like_classes(target) else "regression"
    if task == "regression":
        if target.dtype.kind not in "biuf":
            first = brief(target.ravel()[0])
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


def moments(values: np.ndarray | None, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (divided by N; 1 if constant) by column; None: 0 and 1."""
    if values is None:
        return np.zeros(columns), np.ones(columns)
    scaler = sklearn("preprocessing").StandardScaler().fit(values)
    return scaler.mean_, scaler.scale_
