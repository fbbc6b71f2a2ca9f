"""Targets: how a head reads them, and smoothed labels."""

from contextlib import suppress

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike


def values(logits: Array, target: ArrayLike) -> Array:
    """A target of numbers, (B, K) as the logits and in their dtype.

    Raises ValueError for another shape, as (B,) would broadcast against (B, 1).
    """
    y = jnp.asarray(target)
    if y.shape != logits.shape:
        hint = ", such as target[:, None]" if (*y.shape, 1) == logits.shape else ""
        raise ValueError(f"target: got shape {y.shape}, expected {logits.shape}, the logits'{hint}")
    return y.astype(logits.dtype)


def label_rows(logits: Array, target: ArrayLike) -> Array:
    """Label rows (B, K), of integer classes (B,) too; the row of a class outside [0, K) is NaN.

    Raises ValueError for another shape, TypeError for classes that are no integers.
    """
    y, (*rows, count) = jnp.asarray(target), logits.shape
    if y.shape == logits.shape:
        return y.astype(logits.dtype)
    if y.shape != tuple(rows):
        raise ValueError(
            f"target: got shape {y.shape}, expected {logits.shape}, the logits', or {tuple(rows)} "
            "for integer classes"
        )
    if not jnp.issubdtype(y.dtype, jnp.integer):
        raise TypeError(
            f"target: got {y.dtype} of shape {y.shape}, expected integer classes there, as "
            "target.astype(int) makes them"
        )
    label = y.astype(y.dtype if y.dtype.itemsize > 4 else jnp.int32)[..., None]
    classes = jax.lax.broadcasted_iota(label.dtype, logits.shape, logits.ndim - 1)
    labels = (label == classes).astype(logits.dtype)
    return jnp.where((label >= 0) & (label < count), labels, jnp.nan)


def smooth_labels(target: ArrayLike, amount: float, num_classes: int | None = None) -> Array:
    """(1 - amount) y + amount / C: labels a network can reach (Szegedy et al. 2016, section 7).

    Without num_classes: 0/1 labels of sigmoid units, C = 2.  With it: integer classes or label rows
    for softmax, C = num_classes.  Raises ValueError for another amount, for rows of another width
    and for classes and labels that are none, such as classes without num_classes.

    >>> print(smooth_labels([0, 1], 0.1), smooth_labels([1], 0.15, num_classes=3).round(2))
    [0.05 0.95] [[0.05 0.9  0.05]]
    """
    if not 0 <= amount <= 1:
        raise ValueError(f"amount: got {amount}, expected a share of the label in [0, 1]")
    y = jnp.asarray(target)
    expected = "labels from 0 to 1; classes need num_classes"
    if num_classes is not None:
        expected = f"classes 0 to {num_classes - 1}, or labels from 0 to 1"
        y = label_rows(jnp.zeros((*y.shape[:1], num_classes)), y)
    y = y if jnp.issubdtype(y.dtype, jnp.floating) else y.astype(float)
    with suppress(jax.errors.ConcretizationTypeError):  # under trace there is no value to look at
        wrong = jnp.any(~((y >= 0) & (y <= 1)), axis=range(1, y.ndim))
        if bool(jnp.any(wrong)):
            row = int(jnp.argmax(wrong))
            got = jnp.asarray(target)[row] if y.ndim else target
            raise ValueError(f"target: got {got} in row {row}, expected {expected}")
    return (1 - amount) * y + amount / (2 if num_classes is None else num_classes)
