"""Split: rows for training, validation and test."""

from typing import Any

import numpy as np

from jaxbp.data.sources import DataError, brief, sklearn


def split_rows(
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
                f"{name}: class {brief(labels[counts.argmin()])} has {counts.min()} row(s), and a "
                "stratified split in three needs 3 of each; without stratifying any will do"
            )
    split = sklearn("model_selection").train_test_split
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
