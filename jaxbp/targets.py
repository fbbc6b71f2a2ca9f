"""Targets: how a head reads them, as numbers and as labels, and smoothed labels."""

from contextlib import suppress
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxbp.reprs import short

LABEL_SUMS = 1e-3  # how far from 1 rounded labels may sum


def numbers(name: str, given: Any) -> Array:
    """An argument as an array.

    Raises TypeError for what are no real numbers, and ValueError for integers that JAX would wrap.
    """
    own: Any = getattr(given, "dtype", None)
    if getattr(own, "kind", "") in {"i", "u", "f"} and native(own) != own:
        given = given.astype(native(own))
    try:
        array = jnp.asarray(given)
    except OverflowError as error:
        raise ValueError(f"{name}: {error}") from error
    except (TypeError, ValueError) as error:
        why = str(error).partition("\n")[0]
        raise TypeError(
            f"{name}: got {short(given)}, expected an array of real numbers: {why}"
        ) from error
    dtype = getattr(given, "dtype", array.dtype)
    if not any(jnp.issubdtype(array.dtype, kind) for kind in (bool, jnp.integer, jnp.floating)):
        raise TypeError(f"{name}: got {dtype}, expected real numbers")
    if array.size and array.dtype.kind in "iu" and dtype.itemsize > array.dtype.itemsize:
        held = jnp.iinfo(array.dtype)  # type: ignore[no-untyped-call]
        for value in map(int, (given.min(), given.max())):
            if not held.min <= value <= held.max:
                raise ValueError(
                    f"{name}: got {value}, out of the range of {array.dtype}, which JAX makes of "
                    f"{dtype} without jax_enable_x64"
                )
    return array


def native(dtype: Any) -> Any:
    """The dtype in the machine's order of bytes, and float64 for longer floats, as JAX has none."""
    is_longer = dtype.kind == "f" and dtype.itemsize > 8
    return jnp.dtype(float) if is_longer else dtype.newbyteorder("=")


def values(logits: Array, target: ArrayLike) -> Array:
    """A target of numbers, (B, K) as the logits and in their dtype.

    Raises ValueError for another shape, as (B,) would broadcast against (B, 1).
    """
    y = numbers("target", target)
    if y.shape != logits.shape:
        hint = ", such as target[:, None]" if (*y.shape, 1) == logits.shape else ""
        raise ValueError(f"target: got shape {y.shape}, expected {logits.shape}, the logits'{hint}")
    return y.astype(logits.dtype)


def label_rows(logits: Array, target: ArrayLike) -> Array:
    """Label rows (B, K), of integer classes (B,) too; the row of a class outside [0, K) is NaN.

    Raises ValueError for another shape, TypeError for classes that are no integers.
    """
    y, (*rows, count) = numbers("target", target), logits.shape
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
    y = numbers("target", target)
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
        sums = jnp.sum(y, axis=-1) if num_classes is not None else jnp.ones(1)
        if bool(jnp.any(jnp.abs(sums - 1) > LABEL_SUMS)):
            row = int(jnp.argmax(jnp.abs(sums - 1)))
            raise ValueError(
                f"target: row {row} sums to {sums[row]:.4g}, expected labels that sum to 1; those "
                "of independent outputs have no num_classes"
            )
    return (1 - amount) * y + amount / (2 if num_classes is None else num_classes)
