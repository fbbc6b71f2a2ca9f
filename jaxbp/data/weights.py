"""Weights of examples by their classes."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from jaxbp.data.preparation import is_one_hot
from jaxbp.trees import check_no_mask


def class_weights(
    target: Any,
    weights: Literal["balanced"] | Mapping[Any, float] = "balanced",
    example_weight: Any = None,
) -> np.ndarray:
    """Weights of examples by their classes, (N,), for ``Batch.weight``; scikit-learn's definition.

    target is (N,) classes, numbers or names, or (N, K) one-hot rows.  "balanced" gives each class
    the same part of the objective: N / (C N_c) for an example of class c, of which there are N_c,
    where C classes occur.  A mapping gives each class its weight, which is 1 where it names none.
    example_weight is (N,) weights that the examples have already: the result is multiplied by them,
    and N and N_c are their sums.  Raises ValueError for other weights, for a class that no example
    has, and for other targets.

    >>> class_weights([0, 0, 0, 1]).round(2).tolist(), class_weights(["a", "b"], {"b": 3}).tolist()
    ([0.67, 0.67, 0.67, 2.0], [1.0, 3.0])
    """
    check_no_mask("target", target)
    classes = np.asarray(target)
    if classes.ndim == 2 and classes.shape[1] > 1:
        classes = classes.argmax(1) if is_one_hot(classes) else classes
    if classes.ndim != 1 or (classes.dtype.kind == "f" and (classes != classes.round()).any()):
        got = f"{classes.dtype} of shape {classes.shape}"
        raise ValueError(f"target: got {got}, expected a class an example, or one-hot rows")
    own = np.ones(len(classes)) if example_weight is None else np.asarray(example_weight, float)
    if own.shape != classes.shape or not ((own >= 0) & (own < np.inf)).all():
        got = f"shape {own.shape}" if own.shape != classes.shape else f"{own.min()} to {own.max()}"
        raise ValueError(f"example_weight: got {got}, expected {classes.shape} of at least 0")
    try:
        names, of_each = np.unique(classes, return_inverse=True)
    except TypeError as error:  # such as None among text
        raise ValueError(f"target: got labels of several types, expected one: {error}") from None
    if isinstance(weights, Mapping):
        absent = [name for name in weights if name not in names.tolist()]
        wrong = [name for name, weight in weights.items() if not 0 <= weight < np.inf]
        if absent or wrong:
            name = (absent or wrong)[0]
            said = "which no example has" if absent else f"expected ≥ 0, got {weights[name]}"
            raise ValueError(f"weights: of the class {name!r}, {said}")
        each = np.array([float(weights.get(name, 1)) for name in names.tolist()])
    elif isinstance(weights, str) and weights == "balanced":
        totals = np.bincount(of_each, own, len(names))
        each = own.sum() / (np.count_nonzero(totals) * np.where(totals, totals, 1))
    else:
        raise ValueError(f'weights: got {weights!r}, expected "balanced" or a weight by class')
    found: np.ndarray = own * each[of_each]
    return found
