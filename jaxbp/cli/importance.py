"""Importance of a table's columns: how much worse the predictions are where one is permuted.

Breiman (2001), Random forests, section 10; the permuting is scikit-learn's.
"""

from typing import Any

import numpy as np

from jaxbp.checkpoint import Checkpoint
from jaxbp.cli.scores import outputs
from jaxbp.data.errors import scikit_learn
from jaxbp.data.preparation import in_units
from jaxbp.gradient import Batch

_ROWS = 2000  # at most, that are permuted
_REPEATS = 5

#: columns that are permuted at most: each is five passes over the rows
MOST_COLUMNS = 100


def permuted(trained: Checkpoint, batch: Batch, seed: int) -> np.ndarray:
    """By how much accuracy or R² falls where a column is permuted, (D, 5): five times each.

    All inputs that a column has become, as the categories of a text, are permuted together.

    trained: a network with the preparation of its table.
    batch: the rows, with integer classes or scaled values, as ``jaxbp.data.load`` gives them.
    seed: of the permutations.
    """
    preparation = trained.preparation
    assert preparation is not None
    x, target = np.asarray(batch.x)[:_ROWS], np.asarray(batch.target)[:_ROWS]
    weight = None if batch.weight is None else np.asarray(batch.weight)[:_ROWS]
    widths = [len(column.inputs) for column in preparation.columns or ()]
    groups = np.split(np.arange(x.shape[1]), np.cumsum(widths)[:-1])
    metrics = scikit_learn("metrics")

    own = np.arange(len(x))[:, None]

    def score(estimator: Any, rows: np.ndarray, y: np.ndarray) -> float:
        """The score of the rows whose column d is that of row ``rows[:, d]``."""
        mixed = x.copy()
        for d in np.flatnonzero((rows != own).any(axis=0)):
            mixed[:, groups[d]] = x[rows[:, [d]], groups[d]]
        found = outputs(trained, mixed)
        if preparation.labels is None:
            return float(metrics.r2_score(in_units(preparation, y), found, sample_weight=weight))
        right = (found > 0.5) == y if y.ndim > 1 else found.argmax(1) == y
        return float(np.average(right.reshape(len(y), -1).mean(1), weights=weight))

    found = scikit_learn("inspection").permutation_importance(
        _Trained(),
        np.repeat(own, len(groups), axis=1),
        target,
        scoring=score,
        n_repeats=_REPEATS,
        random_state=seed,
    )
    drops: np.ndarray = found.importances
    return drops


class _Trained:
    """An estimator, as scikit-learn asks for one: ``score`` above has the network."""

    def fit(self, x: np.ndarray, y: np.ndarray) -> "_Trained":
        """Do nothing: it is trained."""
        return self
