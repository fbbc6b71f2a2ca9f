"""Training of many networks at once, each with its own seed, learning rate and L2: ``fit_many``.

Steps of small networks leave most of a machine idle.  So the networks are dealt into groups, one a
device (on a CPU that is a single device: one a core), which train side by side: ``dealing``.  What
a group's program does is in ``networks``.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh, SingleDeviceSharding
from jax.typing import ArrayLike, DTypeLike

from jaxbp.gradient import Batch, Gradient, backprop
from jaxbp.initialisation import schemes_of
from jaxbp.memory import memory_shortage_named
from jaxbp.model import MLP, Params
from jaxbp.parallel import check_same, checked_mesh, largest
from jaxbp.precision import mixed_precision
from jaxbp.training.checkpoints import Checkpoints
from jaxbp.training.checks import (
    check_arguments,
    check_concrete,
    check_full_batch,
    dtype_of,
    on_one_device,
)
from jaxbp.training.checks_of_many import (
    checked_count,
    checked_data_of_many,
    checked_rows,
    one_each,
    relative_to_own,
    warn_of_equals,
)
from jaxbp.training.constants import Lifted, MakeOptimizer, without_numbers
from jaxbp.training.dealing import (
    Dealt,
    Group,
    dealt_to,
    epochs_on_accelerator,
    epochs_on_host,
    orders_by_group,
)
from jaxbp.training.device import wait_for, without_a_mesh
from jaxbp.training.epoch import Program, draws_on_device, initial_params, is_random, shapes_of
from jaxbp.training.inputs import Inputs, check_inputs, data_of, inputs_of, network_of
from jaxbp.training.kernel_choice import with_kernel
from jaxbp.training.metrics import Evaluation, compiled_objective
from jaxbp.training.networks import (
    Networks,
    Start,
    block_of_epochs,
    networks_of,
    own_weights,
    started,
    weighted,
)
from jaxbp.training.pieces import are_the_packages, check_pieces
from jaxbp.training.progress import shown
from jaxbp.training.records import (
    Epoch,
    History,
    OnEpoch,
    ask_to_end,
    callbacks_of,
    carrying,
    history_of,
)
from jaxbp.training.run import Run, check_like, check_resumed, epochs_done, key_of, run_of
from jaxbp.training.saved import Folder, Saved, resumed
from jaxbp.trees import check_bools, shaped

_BLOCK = 64  # epochs of one call at most


@without_a_mesh
def fit_many(
    model: MLP,
    batch: Batch,
    *,
    keys: Array | None = None,
    learning_rate: ArrayLike | Sequence[float],
    l2: ArrayLike | Sequence[float] | None = None,
    optimizer: MakeOptimizer = optax.sgd,
    epochs: int,
    batch_size: int | None,
    rows: ArrayLike | None = None,
    resume: Run | Saved | Folder | None = None,
    checkpoint: Folder | None = None,
    checkpoint_every: int | timedelta = timedelta(minutes=1),
    checkpoint_keep: int = 3,
    validation: Batch | None = None,
    gradient: Gradient = backprop,
    compute_dtype: DTypeLike | None = None,
    precision: str | None = None,
    kernel: str = "auto",
    mesh: Mesh | None = None,
    on_epoch: OnEpoch = None,
    progress: bool = False,
    check: bool = True,
) -> tuple[Params, History]:
    """Train N networks in one call -> (params, History), with N in front of every shape.

    Network n is the one that ``fit`` trains with ``keys[n]``, ``optimizer(learning_rate[n])`` and
    ``model._replace(l2=l2[n])``, up to rounding.  A network that diverges keeps the parameters
    before the epoch that broke, whose loss is finite; from there on its record is NaN.

    model: the description that all networks share.
    batch: the rows to train on; example weights, (rows,) for all or (N, rows) with those of each
        network, count relative to their mean.  Rows of weight 0 are held out.
    keys: (N,), as ``jax.random.split(key, N)`` gives them; an accelerator draws other orders of
        the rows from them than a CPU, as for ``fit``.  A run that is resumed has its own.
    learning_rate: one number for all networks, or (N,).
    l2: one number for all, or (N,); the model's unless given.
    optimizer: makes an optax optimiser of a learning rate, ``optax.sgd`` unless given, such as
        ``lambda rate: optax.sgd(rate, momentum=0.9)``.
    epochs: passes over the rows, at least 1, those of a run that is resumed included.
    batch_size: rows a step; None: all.
    rows: (N, R) numbers of the rows that each network trains on; all unless given.  Network n is
        then the one that ``fit`` trains on these alone, and none costs time that is held out.
    resume: the ``Run`` to go on with, ``history.run`` or an epoch's ``run``, for the same data and
        arguments, or a folder of checkpoints, as for ``fit``; a network that had diverged is
        trained no further.
    checkpoint, checkpoint_every, checkpoint_keep: as for ``fit``; as with ``on_epoch``, each epoch
        is then a call of its own.
    validation: rows to evaluate after each epoch; none unless given.  Their weights may be
        (N, rows), too: 1 for the rows that a network has not seen, and 0 for the others.
    gradient: as for ``fit``.
    compute_dtype, precision, kernel: as for ``fit``.
    mesh: of the devices that the networks are dealt to, all its axes alike; those of this machine
        unless given.  Each device has all rows, and waits for no other one.  Where the devices are
        those of several processes (see ``jaxbp.processes``), each calls ``fit_many`` with the same
        arguments, and has all networks in the end.
    on_epoch: a function, or a list of them, called after each epoch with an ``Epoch`` of all
        networks, each field (N,).  If one returns True, training ends there.
    progress: as for ``fit``; the losses beside the bar are the networks' medians.
    check: as for ``fit``.

    A UserWarning says so where two networks have equal keys and settings, and so are one.
    Raises ValueError, TypeError and MemoryError as ``fit`` does, before any training, and
    TrainingInterrupt for Ctrl-C; on an accelerator, where up to 64 epochs are one program, its
    parameters may be up to 64 epochs later than its history.

    >>> from jaxbp import activations, best_of, heads
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
    check_bools(progress=progress, check=check)
    check_concrete(keys=keys, batch=batch, validation=validation, resume=resume)
    mesh = None if mesh is None else checked_mesh(mesh)
    checkpoints = Checkpoints.of(checkpoint, checkpoint_every, checkpoint_keep, resume, mesh)
    saved, run, keys = _resumed(resume, optimizer, keys, epochs, checkpoints, network_of(model))
    batch, validation = on_one_device({"batch": batch, "validation": validation})
    callbacks, count = callbacks_of(on_epoch), checked_count(keys)
    assert keys is not None
    rates = one_each("learning_rate", learning_rate, count)
    penalties = one_each("l2", model.l2 if l2 is None else l2, count)
    warn_of_equals(keys, rates, penalties, own_weights(batch), rows)
    first = optimizer(rates[0])
    check_arguments(model, first, epochs, batch_size, precision, kernel)
    random, dtype = is_random(gradient), dtype_of(batch)
    mixed = gradient if compute_dtype is None else mixed_precision(gradient, compute_dtype)
    shapes = shapes_of(model, dtype)
    lifted = without_numbers(optimizer, shapes, rated=True)
    check_full_batch(lifted.state, batch_size)
    if run is not None:
        check_like(run, *_stacked((shapes, lifted.state), count))
    batch, validation = checked_data_of_many(model, shapes, batch, validation, count)
    own_rows = None if rows is None else checked_rows(rows, count, len(batch.x))
    if own_rows is not None:
        batch = relative_to_own(batch, own_rows)
    visited = len(batch.x) if own_rows is None else own_rows.shape[1]
    batch_size = batch_size and min(batch_size, visited)
    seeds = np.asarray(jax.random.key_data(keys))  # on the host, which deals without a program
    penalised = l2 is not None or model.l2 != 0
    by_device = own_rows if batch_size is None or draws_on_device() else None
    each = seeds, rates.astype(dtype), penalties.astype(dtype) if penalised else None, by_device
    bare = model._replace(l2=0.0)
    program = Program(bare, lifted.optimizer, mixed, batch_size, precision=precision)
    start = Start(
        sizes=model.sizes,
        schemes=schemes_of(model),
        dtype=jnp.dtype(dtype),
        optimizer=lifted.optimizer,
        key=jax.random.key_impl(keys),
        keeps_keys=random or draws_on_device(),
    )
    dealt = dealt_to(mesh, count)
    check_same(
        dealt.mesh,
        model=repr(model.sizes),
        epochs=epochs,
        batch_size=batch_size,
        optimizer=lifted.numbers,
        networks=each,
        batch=batch,
        validation=validation,
    )
    work = _Work(start, run, keys, dealt, each, own_rows, lifted.numbers, batch, validation)
    if check and not are_the_packages(model, gradient):
        own = model, lambda: initial_params(keys[0], model, dtype=dtype), _of_network(work, 0)
        check_pieces(*own, batch_size, gradient, keys[0] if random else None, dtype)
    known = () if saved is None else saved.record
    if saved is not None or checkpoints is not None:
        of_one = lifted, shapes, keys[0] if random else None, compute_dtype
        _going_on(work, saved, checkpoints, model, program, *of_one)
    at_once = count
    if jax.default_backend() != "cpu":  # devices with a memory of their own
        at_once = -(-count // len(work.dealt.devices))
    with memory_shortage_named(shapes, lifted.state, networks=at_once):
        return _trained(
            program, first, work, epochs, kernel, callbacks, known, checkpoints, progress=progress
        )


class _Work(NamedTuple):
    """All that is to be trained, dealt to no device yet."""

    start: Start
    run: Run | None  # to go on with
    keys: Array  # (N,)
    dealt: Dealt
    each: Any  # seeds, learning rates, l2 and rows that the device draws from, (N, ...)
    rows: np.ndarray | None  # (N, R) numbers of those that each network trains on; None: all
    numbers: Any  # of the optimiser, which all networks share
    batch: Batch
    validation: Batch | None


def _resumed(
    resume: Any,
    optimizer: MakeOptimizer,
    keys: Array | None,
    epochs: int,
    checkpoints: Checkpoints | None,
    network: Inputs,
) -> tuple[Saved | None, Run | None, Array | None]:
    """The checkpoint and the run that are gone on with, and the keys, those of the run.

    resume, optimizer, keys, epochs: as for ``fit_many``.
    checkpoints: to be written.
    network: that is to be trained, among the inputs.
    """
    if not callable(optimizer):
        raise TypeError(f"optimizer: got {optimizer!r}, expected a function of the learning rate")
    begins = checkpoints is not None and checkpoints.begins
    saved, run = resumed(resume, optimizer, network, begins=begins)
    if run is not None:
        check_resumed(run, None, epochs)
        keys = key_of(run, keys, "keys")
    return saved, run, keys


def _going_on(
    work: _Work,
    saved: Saved | None,
    checkpoints: Checkpoints | None,
    model: MLP,
    program: Program,
    lifted: Lifted,
    shapes: Params,
    key: Array | None,
    compute_dtype: DTypeLike | None,
) -> None:
    """Make checkpoints ready to be written.

    work: all that is to be trained.
    saved: what it goes on with; refused with ValueError where it had other inputs.
    checkpoints: to be written.
    model, program, lifted: that of all networks, and of an epoch.
    shapes, key: of one network; key None unless the gradient draws at random.
    compute_dtype: as for ``fit``.
    """
    data = data_of(work.batch, work.validation), _of_network(work, 0)
    inputs = inputs_of(model, program, lifted, *data, shapes, key, compute_dtype)
    of_each = zip(
        ("learning rates", "l2 of each", "rows"), (*work.each[1:3], work.rows), strict=True
    )
    inputs |= {name: None if each is None else each.tolist() for name, each in of_each}
    if saved is not None:
        check_inputs(saved.folder, saved.inputs, inputs)
    if checkpoints is not None:
        checkpoints.begin(inputs, 0 if work.run is None else epochs_done(work.run))


def _trained(
    program: Program,
    optimizer: optax.GradientTransformation,
    work: _Work,
    epochs: int,
    kernel: str,
    callbacks: tuple[Callable[[Epoch], Any], ...],
    known: tuple[Epoch, ...],
    checkpoints: Checkpoints | None,
    *,
    progress: bool,
) -> tuple[Params, History]:
    """Train for some epochs, by arguments of ``fit_many`` that are checked already.

    program: without a kernel; kernel says which to take.
    optimizer: optax's, of the first learning rate.
    work: networks and data.
    epochs, kernel, progress: as for ``fit``.
    callbacks: those of on_epoch.
    known: the record of epochs done before.
    checkpoints: to write, or None.
    """
    _, run, keys, dealt, each, rows, numbers, batch, validation = work
    done = 0 if run is None else epochs_done(run)
    record = list(known)
    unknown = done - len(record)  # epochs before the first of the record

    def history() -> History:
        validated = validation is not None
        return history_of(record, networks=(dealt.total,), validated=validated, layers=None)

    def so_far() -> tuple[int, Params, History]:  # on the host: after Ctrl-C the cores are busy
        params = dealt.gather_here([group.networks.params for group in groups])
        return unknown + len(record) + 1, params, history()

    dealt_batches = dealt.deal_batch(batch), dealt.deal_batch(validation)
    groups = [
        Group(*jax.device_put((own, numbers, *batches), SingleDeviceSharding(device)))
        for own, *batches, device in zip(
            _dealt_networks(work), *dealt_batches, dealt.own_devices, strict=True
        )
    ]
    wait_for(groups)
    block = 1 if callbacks or checkpoints else _BLOCK
    program = with_kernel(
        kernel,
        program,
        optimizer,
        block_of_epochs,
        (*groups[0], None, np.int32(1), np.int32(1)),
        networks=len(groups[0].networks.finite),
        block=block,
    )
    if draws_on_device():
        all_epochs = epochs_on_accelerator(program, groups, done, epochs, block)
    else:
        orders = None
        if program.batch_size is not None:
            block = max(1, min(block, 2**22 // (dealt.total * len(batch.x))))  # 16 MiB, or one
            visited = len(batch.x) if rows is None else rows
            orders = partial(orders_by_group, dealt, each[0].tolist(), visited, block)
        all_epochs = epochs_on_host(program, groups, orders, done, epochs, block)
    with (
        carrying(so_far, done),
        shown(progress, done, epochs) as show,
        checkpoints or nullcontext(),
    ):
        for groups, outcomes in all_epochs:
            loss, validated = dealt.gather(outcomes)
            number = unknown + len(record) + 1
            evaluation = validated and Evaluation(*validated)
            record.append(Epoch(number, (), loss, evaluation))
            show(number, loss, evaluation)
            if not callbacks and checkpoints is None:
                continue
            params, state = _gathered(dealt, groups, "params", "state")
            epoch = record[-1]._replace(params=params, state=state, key=keys)
            if checkpoints is not None:
                checkpoints.after(epoch.run, record, None)
            if largest(np.float32(ask_to_end(callbacks, epoch)), dealt.mesh):
                break
    params, before, state = _gathered(dealt, groups, "params", "before", "state")
    model = program.model._replace(l2=0.0)
    params, ended = _stepped_back(model, work, before, params, history(), program.precision)
    diverged = np.isnan(ended.training_loss[:, -1])
    return params, ended._replace(run=run_of(params, state, unknown + len(record), keys, diverged))


def _dealt_networks(work: _Work) -> list[Networks]:
    """The networks at the start, or those of a run, by group."""
    start, run, keys, dealt, each, _, numbers, *_ = work
    if run is None:
        return [started(start)(*own, numbers) for own in dealt.deal(each)]
    kept = keys if start.keeps_keys else None
    networks = networks_of(jax.tree.map(np.asarray, run), kept, *each[1:])
    dealt_out: list[Networks] = dealt.deal(networks)
    return dealt_out


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
    _, _, penalties, _ = work.each
    for n in np.flatnonzero(np.isnan(history.training_loss[:, -1])):
        of_one = model if penalties is None else model._replace(l2=float(penalties[n]))
        own = jax.tree.map(itemgetter(n), params)
        if np.isfinite(compiled_objective(of_one, own, _of_network(work, n), precision)):
            continue
        params = jax.tree.map(lambda after, first: after.at[n].set(first[n]), params, before)  # noqa: B023
        last = np.flatnonzero(np.isfinite(history.training_loss[n]))[-1:]
        for curve in (history.training_loss, history.validation_loss, history.metric):
            if curve is not None:
                curve[n, last] = np.nan
    return params, history


def _gathered(dealt: Dealt, groups: list[Group], *fields: str) -> list[Any]:
    """Fields of all N networks, as JAX's arrays."""
    trees = [dealt.gather([getattr(group.networks, of) for group in groups]) for of in fields]
    return jax.tree.map(jnp.asarray, trees)  # type: ignore[no-any-return]


def _of_network(work: _Work, n: Any) -> Batch:
    """The rows that network n trains on, with its weights."""
    own, batch = own_weights(work.batch), work.batch
    alone: Batch = batch if own is None else weighted(batch, own[n])
    if work.rows is not None:
        alone = jax.tree.map(itemgetter(work.rows[n]), alone)
    return alone


def _stacked(shapes: Any, count: int) -> Any:
    """Shapes with N in front."""
    return jax.tree.map(lambda leaf: shaped((count, *leaf.shape), leaf.dtype), shapes)
