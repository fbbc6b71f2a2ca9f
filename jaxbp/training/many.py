"""Training of many networks at once, each with its own seed, learning rate and L2: ``fit_many``.

Steps of small networks leave most of a machine idle.  So the networks are dealt into groups, one a
device (on a CPU that is a single device: one a core), which train side by side.  Within a group a
CPU takes one network after another (``jax.lax.map``), because batched products gain nothing there,
except when they are tiny; an accelerator takes them together (``jax.vmap``), as it needs the width.
``python -m benchmarks.scaling`` measures these ways against one another.
"""

import os
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
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
from jax.sharding import SingleDeviceSharding
from jax.typing import ArrayLike, DTypeLike

from jaxbp.gradient import Batch, Gradient, backprop
from jaxbp.initialisation import draw, schemes_of
from jaxbp.memory import memory_shortage_named
from jaxbp.model import MLP, Params
from jaxbp.precision import mixed_precision
from jaxbp.reprs import short
from jaxbp.training.checks import (
    check_arguments,
    check_concrete,
    check_full_batch,
    checked_data,
    dtype_of,
    on_one_device,
)
from jaxbp.training.constants import Constants, MakeOptimizer, Optimizer, without_numbers
from jaxbp.training.device import epochs_at_once, wait_for, without_a_mesh
from jaxbp.training.epoch import (
    Program,
    drawn_rows,
    draws_on_device,
    epoch_key,
    initial_params,
    is_random,
    mapped,
    one_epoch,
    repeated,
    shapes_of,
    shuffled_rows,
)
from jaxbp.training.kernel_choice import with_kernel
from jaxbp.training.metrics import Evaluation, compiled_objective, loss_and_metric
from jaxbp.training.pieces import check_pieces, looked_up
from jaxbp.training.records import (
    Epoch,
    History,
    OnEpoch,
    ask_to_end,
    callbacks_of,
    carrying,
    history_of,
)
from jaxbp.training.same_program import compiled_ahead, compiled_for_each
from jaxbp.trees import check_bools


class Best(NamedTuple):
    """The network that ``best_of`` picked."""

    n: int  # its number among those that were trained, from 0
    params: Params
    history: History  # each field (epochs,), as fit's

    def __repr__(self) -> str:
        return short(self)


@without_a_mesh
def fit_many(
    model: MLP,
    batch: Batch,
    *,
    keys: Array,
    learning_rate: ArrayLike | Sequence[float],
    l2: ArrayLike | Sequence[float] | None = None,
    optimizer: MakeOptimizer = optax.sgd,
    epochs: int,
    batch_size: int | None,
    validation: Batch | None = None,
    gradient: Gradient = backprop,
    compute_dtype: DTypeLike | None = None,
    precision: str | None = None,
    kernel: str = "auto",
    on_epoch: OnEpoch = None,
    check: bool = True,
) -> tuple[Params, History]:
    """Train N networks in one call -> (params, History), with N in front of every shape.

    Network n is the one that ``fit`` trains with ``keys[n]``, ``optimizer(learning_rate[n])`` and
    ``model._replace(l2=l2[n])``, up to rounding.  A network that diverges keeps the parameters
    before the epoch that broke, whose loss is finite; from there on its record is NaN.

    model: the description that all networks share.
    batch: the rows to train on; example weights count relative to their mean.
    keys: (N,), as ``jax.random.split(key, N)`` gives them; an accelerator draws other orders of
        the rows from them than a CPU, as for ``fit``.
    learning_rate: one number for all networks, or (N,).
    l2: one number for all, or (N,); the model's unless given.
    optimizer: makes an optax optimiser of a learning rate, ``optax.sgd`` unless given, such as
        ``lambda rate: optax.sgd(rate, momentum=0.9)``.
    epochs: passes over the rows, at least 1.
    batch_size: rows a step; None: all.
    validation: rows to evaluate after each epoch; none unless given.
    gradient: as for ``fit``.
    compute_dtype, precision, kernel: as for ``fit``.
    on_epoch: a function, or a list of them, called after each epoch with an ``Epoch`` of all
        networks, each field (N,).  If one returns True, training ends there.
    check: as for ``fit``.

    A UserWarning says so where two networks have equal keys and settings, and so are one.
    Raises ValueError, TypeError and MemoryError as ``fit`` does, before any training, and
    TrainingInterrupt for Ctrl-C; on an accelerator, where up to 64 epochs are one program, its
    parameters may be up to 64 epochs later than its history.

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
    check_bools(check=check)
    check_concrete(keys=keys, batch=batch, validation=validation)
    batch, validation = on_one_device({"batch": batch, "validation": validation})
    callbacks, count = callbacks_of(on_epoch), _checked_count(keys)
    rates = _one_each("learning_rate", learning_rate, count)
    penalties = _one_each("l2", model.l2 if l2 is None else l2, count)
    _warn_of_equals(keys, rates, penalties)
    if not callable(optimizer):
        raise TypeError(f"optimizer: got {optimizer!r}, expected a function of the learning rate")
    first = optimizer(rates[0])
    check_arguments(model, first, epochs, batch_size, precision, kernel)
    random, dtype = is_random(gradient), dtype_of(batch)
    mixed = gradient if compute_dtype is None else mixed_precision(gradient, compute_dtype)
    shapes = shapes_of(model, dtype)
    lifted = without_numbers(optimizer, shapes, rated=True)
    check_full_batch(lifted.state, batch_size)
    batch, validation = checked_data(model, shapes, batch, validation)
    batch_size = batch_size and min(batch_size, len(batch.x))
    seeds = np.asarray(jax.random.key_data(keys))  # on the host, which deals without a program
    penalised = l2 is not None or model.l2 != 0
    each = seeds, rates.astype(dtype), penalties.astype(dtype) if penalised else None
    bare = model._replace(l2=0.0)
    program = Program(bare, lifted.optimizer, mixed, batch_size, precision=precision)
    start = _Start(
        sizes=model.sizes,
        schemes=schemes_of(model),
        dtype=jnp.dtype(dtype),
        optimizer=lifted.optimizer,
        key=jax.random.key_impl(keys),
        keeps_keys=random or draws_on_device(),
    )
    work = _Work(start, _Dealt(count, _workers()[:count]), each, lifted.numbers, batch, validation)
    if check:
        key = keys[0]
        params = partial(initial_params, key, model, dtype=dtype)
        own = model, params, batch, batch_size, gradient
        check_pieces(*own, key if random else None, dtype)
    at_once = count
    if jax.default_backend() != "cpu":  # devices with a memory of their own
        at_once = -(-count // len(work.dealt.devices))
    with memory_shortage_named(shapes, lifted.state, networks=at_once):
        return _trained(program, first, work, epochs, kernel, callbacks)


class _Work(NamedTuple):
    """All that is to be trained, dealt to no device yet."""

    start: "_Start"
    dealt: "_Dealt"
    each: Any  # seeds, learning rates and l2, (N, ...), by the host
    numbers: Any  # of the optimiser, which all networks share
    batch: Batch
    validation: Batch | None


def _trained(
    program: Program,
    optimizer: optax.GradientTransformation,
    work: _Work,
    epochs: int,
    kernel: str,
    callbacks: tuple[Callable[[Epoch], Any], ...],
) -> tuple[Params, History]:
    """Train for some epochs, by arguments of ``fit_many`` that are checked already.

    program: without a kernel; kernel says which to take.
    optimizer: optax's, of the first learning rate.
    work: networks and data.
    epochs, kernel: as for ``fit``.
    callbacks: those of on_epoch.
    """
    _, dealt, each, numbers, batch, validation = work
    record: list[Epoch] = []

    def history() -> History:
        validated = validation is not None
        return history_of(record, networks=(dealt.total,), validated=validated, layers=None)

    def so_far() -> tuple[int, Params, History]:  # on the host: after Ctrl-C the cores are busy
        params = dealt.gather([group.networks.params for group in groups])
        return len(record) + 1, params, history()

    started = [_networks(work.start)(*own, numbers) for own in dealt.deal(each)]
    groups = [
        _Group(*jax.device_put((own, numbers, batch, validation), SingleDeviceSharding(device)))
        for own, device in zip(started, dealt.devices, strict=True)
    ]
    wait_for(groups)
    block = 1 if callbacks else _BLOCK
    program = with_kernel(
        kernel,
        program,
        optimizer,
        _block_of_epochs,
        (*groups[0], None, np.int32(1), np.int32(1)),
        networks=len(started[0].finite),
        block=block,
    )
    if draws_on_device():
        all_epochs = _epochs_on_accelerator(program, groups, epochs, block)
    else:
        orders = None
        if program.batch_size is not None:
            block = max(1, min(block, 2**22 // (dealt.total * len(batch.x))))  # 16 MiB, or one
            orders = partial(_orders, dealt, each[0].tolist(), len(batch.x), block)
        all_epochs = _epochs_on_host(program, groups, orders, epochs, block)
    with carrying(so_far):
        for groups, outcomes in all_epochs:
            loss, validated = dealt.gather(outcomes)
            record.append(Epoch(len(record) + 1, (), loss, validated and Evaluation(*validated)))
            if callbacks and ask_to_end(
                callbacks, record[-1]._replace(params=_params(dealt, groups))
            ):
                break
    before = dealt.gather([group.networks.before for group in groups])
    model = program.model._replace(l2=0.0)
    return _stepped_back(model, work, before, _params(dealt, groups), history(), program.precision)


def _stepped_back(
    model: MLP,
    work: _Work,
    before: Params,
    params: Params,
    history: History,
    precision: str | None,
) -> tuple[Params, History]:
    """Take back the last epoch of a network that diverged, if it led to a loss that is not finite.

    model: without l2.
    work: the data, and the networks' l2.
    before, params: before and after the last epoch of each network in which every loss was finite.
    history: of all networks.
    precision: of products.

    The losses of an epoch are those before each update: that the last one led astray shows in the
    next epoch.
    """
    *_, penalties = work.each
    for n in np.flatnonzero(np.isnan(history.training_loss[:, -1])):
        of_one = model if penalties is None else model._replace(l2=float(penalties[n]))
        own = jax.tree.map(itemgetter(n), params)
        if np.isfinite(compiled_objective(of_one, own, work.batch, precision)):
            continue
        params = jax.tree.map(lambda after, first: after.at[n].set(first[n]), params, before)  # noqa: B023
        last = np.flatnonzero(np.isfinite(history.training_loss[n]))[-1:]
        for curve in (history.training_loss, history.validation_loss, history.metric):
            if curve is not None:
                curve[n, last] = np.nan
    return params, history


def best_of(params: Params, history: History, *, by: str | None = None) -> Best:
    """The best of N networks -> (n, params, history), the latter two without N in front.

    by: "validation_loss" or "training_loss", the smallest after the last epoch, or "metric", the
    largest; without it the validation loss, or the training loss where nothing was validated.
    A network that diverged is not chosen.  Raises ValueError for a measure that history does not
    hold, and where every network diverged.
    """
    if by is None:
        by = "training_loss" if history.validation_loss is None else "validation_loss"
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


class _Networks(NamedTuple):
    """Networks in training, n in front of every shape."""

    params: Params
    before: Params  # what the last finite epoch started from
    state: optax.OptState
    finite: Array  # (n,) until now
    learning_rate: Array
    l2: Array | None  # None: 0 for all
    key: Array | None  # None: nothing is drawn from it


class _Group(NamedTuple):
    """The work of one device, or one core."""

    networks: _Networks
    numbers: Any  # of the optimiser, which all networks share
    batch: Batch
    validation: Batch | None


class _Dealt(NamedTuple):
    """N networks dealt to groups of one size, one group a device.

    Groups that would be smaller are filled up with the first networks once more, which cost no time
    beside their neighbours.
    """

    total: int  # N
    devices: list[jax.Device]

    def deal(self, networks: Any) -> list[Any]:
        """A tree of all N networks as one tree a group."""
        groups = len(self.devices)
        members = np.resize(np.arange(self.total), (groups, -(-self.total // groups)))
        return [jax.tree.map(itemgetter(each), networks) for each in members]

    def gather(self, groups: list[Any]) -> Any:
        """One tree a group as a tree of all N networks, on the host where there are several."""
        if len(groups) == 1:
            return groups[0]
        return jax.tree.map(lambda *leaves: np.concatenate(leaves)[: self.total], *groups)


def _params(dealt: _Dealt, groups: list[_Group]) -> Params:
    gathered = dealt.gather([group.networks.params for group in groups])
    params: Params = jax.tree.map(jnp.asarray, gathered)
    return params


class _Start(NamedTuple):
    """All that the program is compiled for that draws the initial parameters."""

    sizes: tuple[int, ...]
    schemes: tuple[str, ...]  # of each layer
    dtype: Any
    optimizer: Optimizer
    key: Any  # the kind of keys
    keeps_keys: bool


def _started(
    start: _Start, seeds: Array, rates: Array, penalties: Array | None, numbers: Any
) -> _Networks:
    """Networks with initial parameters, and with the initial states of their optimisers."""
    keys = jax.random.wrap_key_data(seeds, impl=start.key)
    params = mapped(keys)(lambda key: draw(start.sizes, start.schemes, start.dtype, key, 0.0), keys)
    state = jax.vmap(
        lambda params, rate: start.optimizer(Constants(None, rate, numbers)).init(params)
    )(params, rates)
    finite = jnp.ones(rates.shape, bool)
    kept = keys if start.keeps_keys else None
    return _Networks(params, params, state, finite, rates, penalties, kept)


_networks = compiled_for_each(_started, runs_once=True)


def _orders(
    dealt: _Dealt, seeds: list[list[int]], rows: int, block: int, first: int, count: int
) -> list[np.ndarray]:
    """The orders of some epochs, at most a block, of each network (block, n, rows), by group.

    seeds are the keys' data.
    """
    orders = np.zeros((len(seeds), block, rows), np.int32)
    for n, seed in enumerate(seeds):
        for place in range(count):
            orders[n, place] = shuffled_rows(seed, first + place, rows)
    return [np.swapaxes(each, 0, 1) for each in dealt.deal(orders)]


def _epochs_on_host(
    program: Program,
    groups: list[_Group],
    orders_of: Callable[[int, int], Sequence[np.ndarray]] | None,
    epochs: int,
    block: int,
) -> Iterator[tuple[list[_Group], list[Any]]]:
    """Train the groups side by side on the cores -> after each epoch, the groups and their records.

    It is compiled here and called in threads: a thread would compile without the caller's
    ``jax.enable_x64`` and its like, which hold for one thread.  With blocks of more than one epoch,
    the groups are those after the block.

    orders_of: gives the orders from an epoch on, of so many, by group; None for full batches.
    """

    def orders_from(first: int, count: int) -> Sequence[np.ndarray | None]:
        if orders_of is None or not count:
            return [None] * len(groups)
        return orders_of(first, count)

    first, count = 1, 1
    orders = orders_from(first, count)
    numbers = np.int32(first), np.int32(count)
    given = *groups[0], orders[0], *numbers
    jitted = _block_of_epochs(looked_up(program, partial(_epochs, block=block), *given))
    compiled = [
        compiled_ahead(jitted, *group, order, *numbers, block=block)
        for group, order in zip(groups, orders, strict=True)
    ]

    def run(each: Any, group: _Group, order: Any, *numbers: Any) -> tuple[_Group, Any]:
        networks, record = each(*group, order, *numbers)
        return group._replace(networks=networks), jax.device_get(record)  # waits

    pool, seconds = ThreadPoolExecutor(len(groups)), float("inf")
    try:
        while count:
            started = time.perf_counter()
            numbers = np.int32(first), np.int32(count)
            running = [
                pool.submit(run, each, group, order, *numbers)
                for each, group, order in zip(compiled, groups, orders, strict=True)
            ]
            upcoming = epochs_at_once(block, epochs + 1 - first - count, seconds)
            orders = orders_from(first + count, upcoming)  # while the cores are at work
            results = [future.result() for future in running]
            seconds = (time.perf_counter() - started) / count
            groups = [group for group, _ in results]
            for place in range(count):
                yield groups, [jax.tree.map(itemgetter(place), record) for _, record in results]
            first, count = first + count, upcoming
    finally:
        pool.shutdown(wait=False)  # after Ctrl-C the cores may be busy for long


def _epochs_on_accelerator(
    program: Program, groups: list[_Group], epochs: int, block: int
) -> Iterator[tuple[list[_Group], list[Any]]]:
    """Train the groups on a device each -> after each epoch, the groups and their records.

    Epochs are so short that a device would wait for the host after each: a block of them is one
    program, and the next block is started before the records of the last are read.  With blocks of
    more than one, the groups are those after the block.
    """
    started: deque[tuple[list[_Group], list[Any], int]] = deque()
    given = *groups[0], None, np.int32(1), np.int32(1)
    run = _block_of_epochs(looked_up(program, partial(_epochs, block=block), *given))

    def finished() -> Iterator[tuple[list[_Group], list[Any]]]:
        groups, records, count = started.popleft()
        wait_for(records)
        on_host = jax.device_get(records)
        for place in range(count):
            yield groups, jax.tree.map(itemgetter(place), on_host)

    for first in range(1, epochs + 1, block):
        count = min(block, epochs + 1 - first)
        results = [
            run(*group, None, np.int32(first), np.int32(count), block=block) for group in groups
        ]
        groups = [
            group._replace(networks=networks)
            for group, (networks, _) in zip(groups, results, strict=True)
        ]
        started.append((groups, [record for _, record in results], count))
        if len(started) > 1:
            yield from finished()
    yield from finished()


def _epochs(
    program: Program,
    networks: _Networks,
    numbers: Any,
    batch: Batch,
    validation: Batch | None,
    orders: Array | None,
    first: Array,
    count: Array,
    *,
    block: int,
) -> tuple[_Networks, Any]:
    """Count epochs of every network, at most a block -> the networks, and records (block, n).

    orders: (block, n, rows); None where they are drawn on the device, and for full batches.
    """
    each = jnp.zeros((block, *networks.finite.shape), jax.tree.leaves(networks.params)[0].dtype)

    def epoch(place: Array, networks: _Networks) -> tuple[_Networks, Any]:
        order = None if orders is None else orders[place]
        return _one_epoch_each(program, networks, numbers, batch, validation, order, first + place)

    return repeated(epoch, networks, (each, None if validation is None else (each, each)), count)


_block_of_epochs = compiled_for_each(_epochs, static_argnames="block")


def _one_epoch_each(
    program: Program,
    networks: _Networks,
    numbers: Any,
    batch: Batch,
    validation: Batch | None,
    order: Array | None,
    number: Array,
) -> tuple[_Networks, Any]:
    """An epoch of every network -> the networks, and their training loss, loss and metric."""

    def train(network: _Networks, order: Array | None) -> tuple[_Networks, Any]:
        one = program.given(Constants(network.l2, network.learning_rate, numbers))
        key = None
        if network.key is not None and is_random(program.gradient):
            key = epoch_key(network.key, number)
        *after, loss, _ = one_epoch(one, network.params, network.state, batch, order, key)
        finite = network.finite & jnp.isfinite(loss)
        held = (network.params, network.state, network.before)
        after_it = (*after, network.params)
        params, state, before = jax.tree.map(partial(jnp.where, finite), after_it, held)
        validated = None
        if validation is not None:
            validated = loss_and_metric(one.model, params, validation, program.precision)
        record = jax.tree.map(lambda value: jnp.where(finite, value, jnp.nan), (loss, validated))
        network = network._replace(params=params, before=before, state=state, finite=finite)
        return network, record

    if order is None and program.batch_size is not None and networks.key is not None:
        order = mapped(networks.key)(  # on the device
            lambda key: drawn_rows(key, number, len(batch.x)), networks.key
        )
    if _together(program, batch):
        return jax.vmap(train)(networks, order)
    after: tuple[_Networks, Any] = jax.lax.map(lambda each: train(*each), (networks, order))
    return after


def _together(program: Program, batch: Batch) -> bool:
    """Whether a group's networks are worth a batched product: on an accelerator, and on a CPU where
    a step is so small that starting its products takes longer than computing them."""
    rows = len(batch.x) if program.batch_size is None else program.batch_size
    weights = sum(i * o for i, o in pairwise(program.model.sizes))
    return jax.default_backend() != "cpu" or rows * weights < _SMALL


_BLOCK = 64  # epochs of one call at most
_SMALL = 2**17  # multiplications: 32-64-10 at batch 32 is below, 64-128-10 above


def _workers() -> list[jax.Device]:
    """The devices, or a CPU that is only one, once for each core."""
    devices: list[jax.Device] = jax.local_devices()
    if len(devices) > 1 or devices[0].platform != "cpu":
        return devices
    if hasattr(os, "sched_getaffinity"):
        return devices * len(os.sched_getaffinity(0))
    return devices * (os.cpu_count() or 1)


def _checked_count(keys: Array) -> int:
    dtype = getattr(keys, "dtype", int)
    if not jnp.issubdtype(dtype, jax.dtypes.prng_key) or keys.ndim != 1:
        raise TypeError(
            f"keys: got {keys!r}, expected (N,) of them, as jax.random.split(key, N) gives"
        )
    if not len(keys):
        raise ValueError("keys: got none, expected one a network")
    return len(keys)


def _warn_of_equals(keys: Array, *settings: np.ndarray | None) -> None:
    """Warn where two networks have one key and the same settings, and so will be equal."""
    given = [each for each in settings if each is not None]
    columns = np.column_stack([np.asarray(jax.random.key_data(keys)), *given])
    different = len(np.unique(columns, axis=0))
    if different < len(keys):
        warnings.warn(
            f"keys: {different} of {len(keys)} networks differ; jax.random.split(key, N) gives N "
            "keys that do",
            stacklevel=4,
        )


def _one_each(name: str, values: ArrayLike | Sequence[float], count: int) -> np.ndarray:
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
