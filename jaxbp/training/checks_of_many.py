"""Checks of the keys, rates, weights and rows of each network, for ``fit_many``."""

import warnings
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from jaxbp.gradient import Batch
from jaxbp.model import MLP, Params
from jaxbp.reprs import short
from jaxbp.training.checks import checked_data, checked_weights
from jaxbp.training.networks import own_weights


def checked_data_of_many(
    model: MLP, shapes: Params, batch: Batch, validation: Batch | None, count: int
) -> tuple[Batch, Batch | None]:
    """Both batches, checked, as by ``checked_data``; weights may be (N, rows).

    model, shapes: of one network.
    batch, validation: as they came.
    count: N.
    """
    own, of_validation = own_weights(batch), own_weights(validation)
    if own is not None:
        batch = batch._replace(weight=None)
    if validation is not None and of_validation is not None:
        validation = validation._replace(weight=None)
    batch, validation = checked_data(model, shapes, batch, validation)
    dtype = shapes[0].weight.dtype
    if own is not None:
        weight = checked_weights(own, "weight", (count, len(batch.x)), dtype)
        batch = batch._replace(weight=weight / weight.mean(axis=1, keepdims=True))
    if validation is not None and of_validation is not None:
        shape = count, len(validation.x)
        weight = checked_weights(of_validation, "validation.weight", shape, dtype)
        validation = validation._replace(weight=weight)
    return batch, validation


def checked_count(keys: Array | None) -> int:
    """N, the number of keys."""
    dtype = getattr(keys, "dtype", int)
    if keys is None or not jnp.issubdtype(dtype, jax.dtypes.prng_key) or keys.ndim != 1:
        raise TypeError(
            f"keys: got {short(keys)}, expected (N,) of them, as jax.random.split(key, N) gives"
        )
    if not len(keys):
        raise ValueError("keys: got none, expected one a network")
    return len(keys)


def checked_rows(rows: ArrayLike, count: int, total: int) -> np.ndarray:
    """(N, R) int32 numbers of rows, from 0 to total - 1."""
    array = np.asarray(rows)
    if array.dtype.kind not in "iu":
        raise TypeError(f"rows: got {array.dtype}, expected whole numbers")
    if array.ndim != 2 or len(array) != count or not array.size:
        raise ValueError(f"rows: got shape {array.shape}, expected ({count}, R), as keys")
    if array.min() < 0 or array.max() >= total:
        raise ValueError(
            f"rows: got {array.min()} to {array.max()}, expected numbers from 0 to {total - 1}"
        )
    return array.astype(np.int32)


def warn_of_equals(keys: Array, *settings: Any) -> None:
    """Warn where two networks have one key and the same settings, and so will be equal."""
    given = [np.asarray(each) for each in settings if np.shape(each)[:1] == keys.shape]
    columns = np.column_stack([np.asarray(jax.random.key_data(keys)), *given])
    different = len(np.unique(columns, axis=0))
    if different < len(keys):
        warnings.warn(
            f"keys: {different} of {len(keys)} networks differ; jax.random.split(key, N) gives N "
            "keys that do",
            stacklevel=4,
        )


def one_each(name: str, values: ArrayLike | Sequence[float], count: int) -> np.ndarray:
    """(count,) numbers, finite and at least 0."""
    array = np.asarray(values)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name}: got {array.dtype}, expected real numbers")
    if array.shape not in {(), (count,)}:
        raise ValueError(
            f"{name}: got shape {array.shape}, expected a number or ({count},), as keys"
        )
    if not (np.isfinite(array) & (array >= 0)).all():
        raise ValueError(f"{name}: got {values}, expected finite numbers of at least 0")
    return np.broadcast_to(array, (count,))


def relative_to_own(batch: Batch, rows: np.ndarray) -> Batch:
    """The batch with weights, if it has some, (N, rows) relative to their mean over own rows."""
    if batch.weight is None:
        return batch
    weight = np.broadcast_to(np.asarray(batch.weight), (len(rows), len(batch.x)))
    mean = np.take_along_axis(weight, rows, axis=1).mean(axis=1, keepdims=True)
    if not mean.all():
        raise ValueError(f"weight: network {mean.argmin()}: all of its rows have weight 0")
    return batch._replace(weight=weight / mean)
