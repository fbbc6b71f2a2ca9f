"""Many networks at once: each with its own seed, learning rate and L2, on every core or device.

Steps of small networks leave most of a machine idle.  So the networks are dealt into groups, one a
device (on a CPU that is a single device: one a core), which train side by side.  Within a group a
CPU takes one network after another (``jax.lax.map``), for batched products gain nothing there,
but where they are tiny; an accelerator takes them together (``jax.vmap``), as it needs the width.
``python -m benchmarks.scaling`` measures these ways against one another.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from jaxbp.gradient import Batch, backprop
from jaxbp.mlp import MLP, Params
from jaxbp.precision import Gradient, mixed_precision
from jaxbp.training.checks import check_arguments, floating, on_device
from jaxbp.training.epoch import is_random, jitted_init, one_epoch, orders, relative_weights
from jaxbp.training.fitting import Epoch, History, history_of
from jaxbp.training.metrics import Evaluation, loss_and_metric

MakeOptimizer = Callable[[Any], optax.GradientTransformation]  # of a learning rate


class Best(NamedTuple):
    """The network that ``best_of`` picked."""

    n: int  # its number among those that were trained, from 0
    params: Params
    history: History  # (epochs,) a field, as fit's


def fit_many(
    model: MLP,
    batch: Batch,
    *,
    keys: Array,
    learning_rate: ArrayLike,
    l2: ArrayLike | None = None,
    optimizer: MakeOptimizer = optax.sgd,
    epochs: int,
    batch_size: int | None,
    validation: Batch | None = None,
    gradient: Gradient = backprop,
    compute_dtype: DTypeLike | None = None,
    on_epoch: Callable[[Epoch], Any] | None = None,
) -> tuple[Params, History]:
    """Train N networks in one call -> (params, History), with N in front of every shape.

    Network n is the one that ``fit`` trains with ``keys[n]``, ``optimizer(learning_rate[n])`` and
    ``model._replace(l2=l2[n])``, up to rounding.  keys: (N,), as ``jax.random.split(key, N)`` gives
    them; learning_rate and l2: one number for all, or (N,); without l2 it is the model's.
    ``optimizer`` makes an optax optimiser of a learning rate; for one with other settings, pass a
    function made once, such as ``momentum = partial(optax.sgd, momentum=0.9)``.  A network that
    diverges keeps the parameters of its last finite epoch; from there on its record is NaN.
    ``on_epoch`` is told of all networks at once, (N,) a field; if it returns True, training ends.

    Raises ValueError or TypeError for arguments that do not fit, before any training.

    >>> from jaxbp import activations, heads
    >>> model = MLP((1, 4, 1), activations.tanh, heads.linear_half_squared_error)
    >>> x = jnp.linspace(-1, 1, 16)[:, None]
    >>> keys = jax.random.split(jax.random.key(0), 3)
    >>> params, history = fit_many(model, Batch(x, x**2), keys=keys, learning_rate=[0.01, 0.1, 0.3],
    ...                            epochs=20, batch_size=4)
    >>> params[0].weight.shape, history.training_loss.shape
    ((3, 4, 1), (3, 20))
    >>> best_of(params, history).n
    1
    """
    count = _checked_count(keys)
    rates = _one_each("learning_rate", learning_rate, count)
    penalties = None if l2 is None else _one_each("l2", l2, count)
    if not callable(optimizer):
        raise TypeError(f"optimizer: got {optimizer!r}, expected a function of the learning rate")
    check_arguments(model, optimizer(rates[0]), epochs, batch_size, keys[0])
    random, dtype = is_random(gradient), floating(batch)
    if compute_dtype is not None:
        gradient = mixed_precision(gradient, compute_dtype)
    shapes = jitted_init.eval_shape(keys[0], model, dtype=dtype)  # type: ignore[no-untyped-call]
    batch = relative_weights(on_device(model, shapes, batch, "batch"))
    if validation is not None:
        validation = on_device(model, shapes, validation, "validation")
    batch_size = batch_size and min(batch_size, len(batch.x))

    plan = _Plan(model, optimizer, gradient, batch_size, random)
    drawn = [jitted_init(key, model, dtype=dtype) for key in keys]
    params = jax.tree.map(lambda *leaves: np.stack(leaves), *drawn)
    rates, penalties = jax.tree.map(lambda each: each.astype(dtype), (rates, penalties))
    start = [
        _Group(*jax.device_put((_started(optimizer, *dealt), batch, validation), device))
        for device, dealt in _dealt(params, rates, penalties, keys)
    ]
    order_of = _shuffles(keys, len(batch.x), batch_size, len(start))
    record: list[Epoch] = []
    for groups, outcomes in _epochs(plan, start, order_of, epochs):
        loss, validated = _gathered(outcomes, count)
        record.append(Epoch(len(record) + 1, (), loss, validated and Evaluation(*validated)))
        if on_epoch and on_epoch(record[-1]._replace(params=_parameters(groups, count))):
            break
    return _parameters(groups, count), history_of(record)


def best_of(params: Params, history: History, *, by: str | None = None) -> Best:
    """The best of N networks -> (n, params, history), the latter two without N in front.

    by: "validation_loss" or "training_loss", of which the last is to be small, or "metric", to be
    large; without it the validation loss, or the training loss where nothing was validated.
    A network that diverged is not chosen.  Raises ValueError for what history does not hold, and
    where every network diverged.
    """
    by = by or ("training_loss" if history.validation_loss is None else "validation_loss")
    record = getattr(history, by, None) if by in _MEASURES else None
    if record is None:
        held = [name for name in _MEASURES if getattr(history, name) is not None]
        raise ValueError(f"by: got {by!r}, expected one of {', '.join(held)}, which history holds")
    if record.ndim != 2:
        raise ValueError(f"history: got {by} of shape {record.shape}, expected (N, epochs)")
    last = np.where(np.isfinite(history.training_loss[:, -1]), record[:, -1], np.nan)
    if np.isnan(last).all():
        raise ValueError(f"history: each of the {len(last)} networks diverged")
    n = int(np.nanargmax(last) if by == "metric" else np.nanargmin(last))
    return Best(n, *jax.tree.map(lambda leaf: leaf[n], (params, history)))


_MEASURES = ("training_loss", "validation_loss", "metric")


class _Plan(NamedTuple):
    """What all networks share and the program is compiled for."""

    model: MLP
    optimizer: MakeOptimizer
    gradient: Gradient
    batch_size: int | None
    random: bool  # the gradient draws, and is given keys


class _Networks(NamedTuple):
    """Networks in training, n in front of every shape."""

    params: Params
    state: optax.OptState
    finite: Array  # (n,) until now
    learning_rate: Array
    l2: Array | None  # None: the model's
    key: Array


class _Group(NamedTuple):
    """What one device, or one core, works on."""

    networks: _Networks
    batch: Batch
    validation: Batch | None


@partial(jax.jit, static_argnums=0)
def _started(
    optimizer: MakeOptimizer, params: Params, rates: Array, penalties: Array | None, keys: Array
) -> _Networks:
    """Networks with the state of their optimisers."""
    state = jax.vmap(lambda params, rate: optimizer(rate).init(params))(params, rates)
    return _Networks(params, state, jnp.ones(rates.shape, bool), rates, penalties, keys)


@partial(jax.jit, static_argnums=0)
def _one_epoch_each(
    plan: _Plan,
    networks: _Networks,
    batch: Batch,
    validation: Batch | None,
    order: Array | None,
    number: Array,
) -> tuple[_Networks, Any]:
    """An epoch of every network -> the networks, and their training loss, loss and metric."""

    def train(network: _Networks, order: Array | None) -> tuple[_Networks, Any]:
        params, state, finite, rate, l2, key = network
        model = plan.model if l2 is None else plan.model._replace(l2=l2)  # type: ignore[arg-type]
        step = (model, plan.optimizer(rate), plan.gradient, plan.batch_size, False)
        epoch_key = jax.random.fold_in(key, number) if plan.random else None
        *after, loss, _ = one_epoch(*step, params, state, batch, order, epoch_key)
        finite &= jnp.isfinite(loss)
        params, state = jax.tree.map(partial(jnp.where, finite), tuple(after), (params, state))
        record = loss, validation and loss_and_metric(model, params, validation)
        record = jax.tree.map(lambda value: jnp.where(finite, value, jnp.nan), record)
        return network._replace(params=params, state=state, finite=finite), record

    if _together(plan, batch):
        return jax.vmap(train)(networks, order)
    after: tuple[_Networks, Any] = jax.lax.map(lambda each: train(*each), (networks, order))
    return after


def _together(plan: _Plan, batch: Batch) -> bool:
    """Whether a group's networks are worth a batched product: on an accelerator, and on a CPU where
    a step is so small that starting its products takes longer than computing them."""
    rows = plan.batch_size or batch.x.shape[0]
    weights = sum(i * o for i, o in pairwise(plan.model.sizes))
    return jax.default_backend() != "cpu" or rows * weights < _SMALL


_SMALL = 2**17  # multiplications: 32-64-10 at batch 32 is below, 64-128-10 above


def _epochs(
    plan: _Plan,
    groups: list[_Group],
    order_of: Callable[[int], list[np.ndarray | None]],
    epochs: int,
) -> Iterator[tuple[list[_Group], list[Any]]]:
    """Train the groups side by side -> after each epoch, the groups and their records.

    Compiled here and called in threads: what a thread would compile, it would compile without the
    caller's ``jax.enable_x64`` and its like, which hold for one thread.
    """
    order = order_of(1)
    programs = [
        _one_epoch_each.lower(plan, *group, rows, np.int32(1)).compile()
        for group, rows in zip(groups, order, strict=True)
    ]
    with ThreadPoolExecutor(len(groups)) as pool:
        for number in range(1, epochs + 1):
            running = [
                pool.submit(_finished, program, group, rows, number)
                for program, group, rows in zip(programs, groups, order, strict=True)
            ]
            order = order_of(number + 1)  # while the devices are at work
            results = [each.result() for each in running]
            groups = [group for group, _ in results]
            yield groups, [record for _, record in results]


def _finished(
    program: Callable[..., Any], group: _Group, order: np.ndarray | None, number: int
) -> tuple[_Group, Any]:
    """The group after an epoch, and its record."""
    networks, record = program(*group, order, np.int32(number))
    return group._replace(networks=networks), jax.device_get(record)  # waits


def _dealt(
    params: Params, rates: np.ndarray, *others: Any
) -> Iterator[tuple[jax.Device, tuple[Any, ...]]]:
    """A device for each group, and what its networks have of their own.

    Groups are of one size, filled up with the first networks once more, which cost no time beside
    their neighbours.
    """
    devices = _workers()[: len(rates)]
    for device, members in zip(devices, _members(len(rates), len(devices)), strict=True):
        yield device, jax.tree.map(itemgetter(members), (params, rates, *others))


def _members(count: int, groups: int) -> np.ndarray:
    """(groups, n) numbers of networks."""
    return np.resize(np.arange(count), (groups, -(-count // groups)))


def _workers() -> list[jax.Device]:
    """The devices, or a CPU that is only one, once for each core."""
    devices: list[jax.Device] = jax.local_devices()
    if len(devices) > 1 or devices[0].platform != "cpu":
        return devices
    if hasattr(os, "sched_getaffinity"):
        return devices * len(os.sched_getaffinity(0))
    return devices * (os.cpu_count() or 1)


def _shuffles(
    keys: Array, rows: int, batch_size: int | None, groups: int
) -> Callable[[int], list[np.ndarray | None]]:
    """An epoch's order of the rows for every network (n, rows), by group as they were dealt."""
    seeds = np.asarray(jax.random.key_data(keys)).tolist()
    order_of = [orders(seed, rows, batch_size) for seed in seeds]

    def order(epoch: int) -> list[np.ndarray | None]:
        drawn = np.array([of(epoch) for of in order_of])
        dealt = drawn[_members(len(keys), groups)]
        return [None if batch_size is None else each for each in dealt]

    return order


def _gathered(parts: Any, count: int) -> Any:
    """The groups' results as one, on the host, without those that filled up."""
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:count], *parts)


def _parameters(groups: list[_Group], count: int) -> Params:
    on_host = _gathered([group.networks.params for group in groups], count)
    params: Params = jax.tree.map(jnp.asarray, on_host)
    return params


def _checked_count(keys: Array) -> int:
    if not jnp.issubdtype(jnp.result_type(keys), jax.dtypes.prng_key) or keys.ndim != 1:
        raise TypeError(
            f"keys: got {keys!r}, expected (N,) of them, as jax.random.split(key, N) gives"
        )
    if not len(keys):
        raise ValueError("keys: got none, expected one a network")
    return len(keys)


def _one_each(name: str, values: ArrayLike, count: int) -> np.ndarray:
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
