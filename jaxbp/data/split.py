"""Split: random rows for training, validation and test, each class in proportion."""

from typing import Any

import numpy as np

from jaxbp.data.cells import quoted
from jaxbp.data.errors import DataError, scikit_learn
from jaxbp.text import counted


def split_rows(
    name: str,
    target: np.ndarray,
    labels: tuple[str, ...] | None,
    validation: float,
    test: float,
    seed: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Deal out row numbers at random -> those of training, validation and test.

    name: the source, for messages.
    target: (N,) integer classes, or (N, K) values.
    labels: the classes' names, if each part is to hold them in proportion; else None.
    validation: share of the rows for validation.
    test: share of the rows for test.
    seed: fixes which rows go where.

    Raises DataError if a part would be empty, or miss a class that it is to hold.
    """
    if labels is not None:
        counts = np.bincount(target)
        if counts.min() < 3:
            raise DataError(
                f"{name}: class {quoted(labels[counts.argmin()])} has "
                f"{counted(int(counts.min()), 'row')}, and a "
                "stratified split in three needs 3 of each; use stratify=False (--no-stratify) to "
                "allow it"
            )
    train_test_split = scikit_learn("model_selection").train_test_split

    def split(rows: np.ndarray, share: float) -> Any:
        classes = None if labels is None else target[rows]
        return train_test_split(rows, test_size=share, random_state=seed, stratify=classes)

    try:
        rest, test_rows = split(np.arange(len(target)), test)
        train_rows, validation_rows = split(rest, validation / (1 - test))
    except ValueError as error:
        reason = str(error).split(", the resulting")[0]
        more = "" if labels is None else "; stratify=False (--no-stratify) splits them anyhow"
        raise DataError(
            f"{name}: {counted(len(target), 'row')} cannot be split into these shares "
            f"({reason}){more}"
        ) from None
    return train_rows, validation_rows, test_rows
