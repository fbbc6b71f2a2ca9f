"""Checks of what is to be trained on what: on the host, before any device work."""

import warnings
import weakref
from functools import partial
from itertools import chain
from numbers import Integral, Real
from operator import attrgetter, is_
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh, SingleDeviceSharding
from jax.typing import DTypeLike

from jaxbp.gradient import Batch, objective
from jaxbp.heads import Head
from jaxbp.model import MLP, Params, check_layers, units_of
from jaxbp.parallel import is_readable, rows_here
from jaxbp.precision import matmul_precision
from jaxbp.reprs import short
from jaxbp.same_program import compiled_for_each
from jaxbp.targets import LABEL_SUMS, native
from jaxbp.training.batch_methods import FULL_BATCH_STATES
from jaxbp.training.kernel_choice import KERNELS
from jaxbp.training.pieces import held_to_shapes
from jaxbp.trees import check_no_mask, named_leaves


def _objective(model: MLP, params: Params, batch: Batch) -> Array:
    return objective(held_to_shapes(model), params, batch)


_traced_objective = compiled_for_each(_objective)  # for its shapes; it is never run


def check_concrete(**given: Any) -> None:
    """Raise TypeError for an argument that holds arrays under trace, as in ``jax.jit``."""
    for name, tree in given.items():
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree)):
            raise TypeError(
                f"{name}: got an array under trace, but training compiles and reads its data by "
                "itself, and cannot be called in jax.jit, jax.vmap or jax.grad; fit_many trains "
                "many networks at once, and jaxbp.make_step is for a loop of your own"
            )


def check_arguments(
    model: MLP,
    optimizer: optax.GradientTransformation,
    epochs: int,
    batch_size: int | None,
    precision: str | None,
    kernel: str,
) -> None:
    """Raise ValueError or TypeError for the argument that does not fit.

    model: a jaxbp.MLP with a finite l2 ≥ 0.
    optimizer: of optax.
    epochs: a positive int.
    batch_size: a positive int, or None.
    precision: a name that JAX has for it, or None.
    kernel: a name of ``kernel_choice.KERNELS``.
    """
    units_of(model)  # raises, where it is no model
    if not isinstance(model.l2, Real) or not 0 <= model.l2 < np.inf:
        raise ValueError(f"l2: got {model.l2!r}, expected a finite number of at least 0")
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise TypeError(f"optimizer: got {optimizer!r}, expected optax's, such as optax.sgd(0.1)")
    if not _is_count(epochs):
        raise ValueError(f"epochs: got {epochs!r}, expected a positive int")
    if batch_size is not None and not _is_count(batch_size):
        raise ValueError(
            f"batch_size: got {batch_size!r}, expected a positive int, or None for all"
        )
    matmul_precision(precision)  # raises, where there is none of that name
    if kernel not in KERNELS:
        raise ValueError(f"kernel: got {kernel!r}, expected one of {', '.join(KERNELS)}")


def _is_count(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1


def check_full_batch(state: Any, batch_size: int | None, *, streamed: bool = False) -> None:
    """Raise ValueError where a method for full batches, alone or in a chain, gets minibatches.

    state: of the optimiser, or its shapes.
    batch_size: of the minibatches; None for full batches.
    streamed: whether they are those of a stream; False unless given.
    """
    if batch_size is None and not streamed:
        return
    parts = jax.tree.leaves(state, is_leaf=lambda part: isinstance(part, FULL_BATCH_STATES))
    if any(isinstance(part, FULL_BATCH_STATES) for part in parts):
        got = (
            "batch: got a stream, expected all rows in a jaxbp.Batch"
            if streamed
            else (f"batch_size: got {batch_size}, expected None")
        )
        raise ValueError(f"{got}: the optimizer is a full-batch method")


def dtype_of(batch: Batch) -> DTypeLike:
    """The dtype of weights for a batch: x's, as JAX would hold it, where that is a float of 32 bits
    or more; else float32.

    Rows in half precision save memory; weights in it would lose their updates (``precision``).
    """
    held = native(np.dtype(getattr(getattr(batch, "x", None), "dtype", np.float32)))
    dtype: np.dtype = jax.dtypes.canonicalize_dtype(held)
    wide = jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize > 2
    return dtype if wide else jnp.float32


def check_finite(params: Params) -> None:
    """Raise ValueError for parameters that are not finite, with which no training can begin."""
    for name, leaf in named_leaves(params, "params").items():
        values = np.asarray(leaf)
        if not np.isfinite(values).all():
            value = values[~np.isfinite(values)][0]
            raise ValueError(f"params: got {value} in {name}, expected finite numbers")


def on_one_device(given: dict[str, Any], mesh: Mesh | None = None) -> tuple[Any, ...]:
    """Return the trees as they are or, with a UserWarning, on one device if they are on several and
    no mesh of devices trains."""
    if mesh is not None:
        return tuple(given.values())
    devices = {name: sorted(_devices(tree), key=attrgetter("id")) for name, tree in given.items()}
    every = list(dict.fromkeys(chain(*devices.values())))
    for name, those in devices.items():
        if len(those) > 1:
            warnings.warn(
                f"{name}: on {len(those)} devices, but a network trains on one; it is brought to "
                f"{every[0]}",
                stacklevel=4,
            )
    on_meshes = any(
        not isinstance(leaf.sharding, SingleDeviceSharding)
        for leaf in jax.tree.leaves(tuple(given.values()))
        if isinstance(leaf, jax.Array)
    )
    if len(every) < 2 and not on_meshes:
        return tuple(given.values())
    move = partial(jax.device_put, device=SingleDeviceSharding(every[0]))
    return tuple(
        jax.tree.map(lambda leaf: move(leaf) if isinstance(leaf, jax.Array) else leaf, tree)
        for tree in given.values()
    )


def _devices(tree: Any) -> set[jax.Device]:
    arrays = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]
    return set().union(*(array.devices() for array in arrays))


def checked_data(
    model: MLP, params: Params, batch: Batch, validation: Batch | None
) -> tuple[Batch, Batch | None]:
    """Both batches, checked, on the device; weights to train with are relative to their mean."""
    batch = checked_batch(model, params, batch, "batch")
    if batch.weight is not None:
        batch = batch._replace(weight=batch.weight / jnp.mean(batch.weight))
    if validation is not None:
        validation = checked_batch(model, params, validation, "validation")
    return batch, validation


def checked_batch(model: MLP, params: Params, batch: Batch, name: str) -> Batch:
    """The batch on the device, in the dtype of params; x of up to 16 bits a number, such as an
    image's, as it is, because a network converts what it is given.

    params may be shapes.  Raises ValueError or TypeError, naming what of the batch does not fit
    the model, before anything is put there.
    """
    units_of(model)
    if not isinstance(batch, Batch):
        raise TypeError(f"{name}: got {type(batch).__name__}, expected jaxbp.Batch(x, target)")
    if not all(map(is_readable, batch)):  # each process checks its own rows
        here: Batch = jax.tree.map(rows_here, batch)
        checked = checked_batch(model, params, here, name)
        return jax.tree.map(lambda array, own: array.astype(own.dtype), batch, checked)  # type: ignore[no-any-return]
    prefix = "" if name == "batch" else f"{name}."
    check_layers(params)
    dtypes = {jnp.result_type(leaf) for leaf in jax.tree.leaves(params)}
    if len(dtypes) > 1 or not all(jnp.issubdtype(dtype, jnp.floating) for dtype in dtypes):
        raise TypeError(f"params: got {', '.join(map(str, dtypes))}, expected one floating dtype")
    (dtype,) = dtypes
    question = model.head.target, model.sizes[-1], dtype  # what the values must be right for
    numbers: Any = batch
    if not (known := is_known(batch, question)):  # else they need not leave the device
        numbers = numbers_of(batch, prefix)
    check_fit(model, params, numbers, prefix)
    numbers = in_dtype(numbers, dtype, copy=True)  # of the user's arrays, which he may change
    if not known:
        check_values(model, numbers, prefix)
        _check_sum(numbers, prefix)
        remember(batch, question)
    return Batch(*map(_on_device, batch, numbers))


def numbers_of(batch: Batch, prefix: str) -> Any:
    """The batch as arrays of NumPy.  Raises TypeError, with a prefix, for what are no numbers."""
    return Batch(*(_as_numbers(prefix + of, each) for of, each in batch._asdict().items()))


def check_fit(model: MLP, params: Params, numbers: Any, prefix: str, *, least: int = 1) -> None:
    """Raise ValueError or TypeError, with a prefix, for shapes and dtypes that do not fit, and for
    fewer rows than the least number."""
    x = numbers.x
    if x.ndim != 2 or len(x) < least or not x.shape[1]:
        raise ValueError(f"{prefix}x: got shape {x.shape}, expected at least one row, (B, D)")
    try:
        _traced_objective(model).eval_shape(params, numbers)
    except (TypeError, ValueError) as error:
        if not prefix or type(error) not in {TypeError, ValueError}:  # JAX's own, of user's code
            raise
        raise type(error)(f"{prefix}{error}") from None


def in_dtype(numbers: Any, dtype: DTypeLike, *, copy: bool) -> Any:
    """A batch of numbers in the dtype of params, but for classes, and x of up to 16 bits a number;
    where it has that dtype already, a copy or not."""
    x, target, weight = numbers
    classes = target.ndim < x.ndim and target.dtype.kind in "iu"
    with np.errstate(over="ignore"):  # what overflows becomes infinite, and is refused later
        return Batch(
            x=x if _is_short(x) else x.astype(dtype, copy=copy),
            target=target if classes else target.astype(dtype, copy=copy),
            weight=None if weight is None else weight.astype(dtype, copy=copy),
        )


#: batches of JAX's arrays, which nobody can change, whose values were right
_RIGHT: dict[Any, list[Any]] = {}
_MOST_KEPT = 64


def is_known(batch: Batch, question: Any) -> bool:
    """Whether the values of a batch have been right already."""
    seen = _RIGHT.get((*map(id, batch), question), [])
    return bool(seen) and all(map(is_, (each() for each in seen), batch))


def remember(batch: Batch, question: Any) -> None:
    """Note that the values of a batch are right, if all its arrays are JAX's."""
    arrays = [array for array in batch if array is not None]
    if all(isinstance(array, jax.Array) for array in arrays):
        _RIGHT[(*map(id, batch), question)] = [weakref.ref(array) for array in arrays]
        while len(_RIGHT) > _MOST_KEPT:
            del _RIGHT[next(iter(_RIGHT))]


def checked_weights(weight: Any, name: str, shape: tuple[int, int], dtype: DTypeLike) -> np.ndarray:
    """Example weights (N, rows) of many networks, in a dtype.  Raises ValueError for others.

    weight: as it came.
    name: of the argument.
    shape: (N, rows) that it must have.
    dtype: of params.
    """
    array: np.ndarray = _as_numbers(name, weight).astype(dtype)
    if array.shape != shape:
        rows = shape[1]
        raise ValueError(f"{name}: got shape {array.shape}, expected ({rows},) or {shape}")
    wrong = ~((np.isfinite(array) & (array >= 0)).all(axis=1) & array.any(axis=1))
    if wrong.any():
        raise ValueError(
            f"{name}: network {wrong.argmax()}: expected finite weights ≥ 0, not all zero"
        )
    return array


def _is_short(x: Any) -> bool:
    """Whether x is whole numbers that are smaller on the device, and as exact, as they are."""
    return x.dtype.kind in "biu" and x.dtype.itemsize <= 2


def _on_device(given: Any, checked: Any) -> Any:
    """The checked values; what is on a device already does not leave it."""
    if checked is None or isinstance(checked, jax.Array):
        return checked
    if isinstance(given, jax.Array):
        return given.astype(checked.dtype)
    return jax.device_put(checked)


def check_target(head: Head, outputs: int, target: Any, name: str) -> None:
    """Raise ValueError for the first row with a target that the head cannot mean.

    head, outputs: of the network, and how many it has.
    target: (B, K), or classes (B,).
    name: of the argument.
    """
    kind = head.target
    eps = 0.0 if target.dtype.kind in "iu" else float(jnp.finfo(target.dtype).eps)  # type: ignore[no-untyped-call]
    if target.ndim == 1 and target.dtype.kind in "iu":
        strange, expected = (target < 0) | (target >= outputs), f"classes 0 to {outputs - 1}"
    elif kind == "values" or target.ndim < 2:
        return
    elif kind == "counts":
        strange, expected = target < 0, "counts of at least 0"
    else:
        strange = (target < -8 * eps) | (target > 1 + 8 * eps)
        expected = "probabilities from 0 to 1"
    if strange.any():
        row, value = np.argwhere(strange)[0][0], target[strange][0]
        what = f"class {value}" if target.ndim == 1 else value
        raise ValueError(f"{name}: {what} in row {row}, expected {expected}")
    if kind == "classes" and target.ndim == 2:
        sums = target.sum(axis=1, dtype=float)
        strange = np.abs(sums - 1) > max(LABEL_SUMS, outputs * eps)
        if strange.any():
            row = strange.argmax()
            raise ValueError(
                f"{name}: row {row} sums to {sums[row]:.4g}, expected labels that sum to 1"
            )


def _as_numbers(name: str, values: Any) -> Any:
    if values is None and name.endswith("weight"):
        return None
    check_no_mask(name, values)
    try:
        array = np.asarray(jax.device_get(values) if isinstance(values, jax.Array) else values)
    except (TypeError, ValueError) as error:
        expected = "expected an array of real numbers"
        raise TypeError(f"{name}: got {short(values)}, {expected}") from error
    if not (jnp.issubdtype(array.dtype, jnp.floating) or array.dtype.kind in "biuf"):
        got = type(values).__name__ if array.dtype == object and not array.ndim else array.dtype
        raise TypeError(f"{name}: got {got}, expected real numbers")
    return array.astype(native(array.dtype), copy=False)


def check_values(model: MLP, batch: Any, prefix: str) -> None:
    """Raise ValueError, with a prefix, for numbers that are not finite, targets that the head
    cannot mean, and negative weights."""
    for field, array in batch._asdict().items():
        if array is not None and array.dtype.kind not in "biu" and not np.isfinite(array).all():
            where = np.argwhere(~np.isfinite(array))[0].tolist()
            value, dtype = array[tuple(where)], array.dtype
            raise ValueError(
                f"{prefix}{field}: {where} is {value} in {dtype}, expected finite values"
            )
    check_target(model.head, model.sizes[-1], batch.target, f"{prefix}target")
    if batch.weight is not None and (batch.weight < 0).any():
        row = (batch.weight < 0).argmax()
        raise ValueError(f"{prefix}weight: {batch.weight[row]} in row {row}, {_WEIGHTS}")


_WEIGHTS = "expected weights ≥ 0, not all zero"


def _check_sum(batch: Any, prefix: str) -> None:
    """Raise ValueError for weights without a mean to be relative to."""
    if batch.weight is None:
        return
    if not batch.weight.any():
        raise ValueError(f"{prefix}weight: {_WEIGHTS}")
    total, limits = batch.weight.sum(dtype=np.longdouble), jnp.finfo(batch.weight.dtype)  # type: ignore[no-untyped-call]
    if not float(limits.tiny) * len(batch.x) <= total <= float(limits.max):
        raise ValueError(
            f"{prefix}weight: the sum is {total:.3g}, out of the range of {batch.weight.dtype}; "
            "weights are relative, so that a mean of 1 will do"
        )
