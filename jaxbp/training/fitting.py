"""Training of one network: ``fit``."""

from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from operator import itemgetter
from types import EllipsisType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.sharding import Mesh
from jax.typing import DTypeLike

from jaxbp.gradient import Batch, Gradient, autodiff, backprop
from jaxbp.initialisation import check_key
from jaxbp.memory import memory_shortage_named, outputs_kept
from jaxbp.model import MLP, Params, check_layers
from jaxbp.parallel import check_same, checked_mesh, largest, spread, whole_here
from jaxbp.precision import mixed_precision
from jaxbp.training.blocks import Blocks, most_epochs
from jaxbp.training.checkpoints import Checkpoints
from jaxbp.training.checks import (
    check_arguments,
    check_concrete,
    check_finite,
    check_full_batch,
    dtype_of,
    on_one_device,
)
from jaxbp.training.constants import (
    Constants,
    Given,
    with_l2,
    without_l2,
    without_numbers,
)
from jaxbp.training.device import copied, wait_for, without_a_mesh
from jaxbp.training.early_stopping import EarlyStopping, stopping_in
from jaxbp.training.epoch import (
    Program,
    initial_params,
    initial_state,
    is_random,
    shapes_of,
)
from jaxbp.training.inputs import Inputs, check_inputs, data_of, inputs_of, network_of
from jaxbp.training.metrics import compiled_objective
from jaxbp.training.pieces import check_pieces
from jaxbp.training.progress import shown
from jaxbp.training.records import (
    Epoch,
    History,
    NonFiniteLossError,
    OnEpoch,
    ask_to_end,
    callbacks_of,
    carrying,
    history_of,
)
from jaxbp.training.run import Run, check_resumed, check_state, key_of
from jaxbp.training.saved import Folder, Saved, resumed
from jaxbp.training.source import Source, check_source
from jaxbp.training.streamed import Streamed
from jaxbp.training.streams import Stream, rows_of_a_step
from jaxbp.trees import check_bools


@without_a_mesh
def fit(
    model: MLP,
    batch: Batch | Stream,
    *,
    optimizer: optax.GradientTransformation,
    epochs: int,
    batch_size: int | EllipsisType | None = ...,
    key: Array | None = None,
    params: Params | None = None,
    resume: Run | Saved | Folder | None = None,
    checkpoint: Folder | None = None,
    checkpoint_every: int | timedelta = timedelta(minutes=1),
    checkpoint_keep: int = 3,
    validation: Batch | Stream | None = None,
    keep_best: bool = False,
    gradient: Gradient = backprop,
    compute_dtype: DTypeLike | None = None,
    precision: str | None = None,
    kernel: str = "auto",
    mesh: Mesh | None = None,
    diagnostics: bool = False,
    on_epoch: OnEpoch = None,
    progress: bool = False,
    check: bool = True,
) -> tuple[Params, History]:
    """Train by (stochastic) gradient descent (Bishop 2006, section 5.2.4) -> (params, History).

    model: the network's description.
    batch: the N rows to train on; example weights count relative to their mean.  Arrays of JAX's
        stay on their device; from several devices they are brought to one, with a UserWarning.  Or
        a stream of batches, which memory need not hold together (see ``jaxbp.training.streams``):
        each is a step, in the stream's own order, and weights count as they are.
    optimizer: optax's, such as ``optax.sgd(0.1)``.  It may be written inline: another one that does
        the same, or has other numbers, is no reason to compile (see ``jaxbp.training.constants``).
    epochs: passes over the rows, at least 1, those of a run that is resumed included.  Each visits
        every row once, in an order that depends on key and the number of the epoch alone; an
        accelerator draws another one than a CPU.
    batch_size: rows a step; the last step of an epoch takes the rows that are left.  None: all.
        A stream has none.
    key: one ``jax.random.key(seed)``, for the initial weights, the orders and random gradients; a
        run that is resumed has its own.
    params: to start from, left as they are, with a new order of rows and a new optimiser; else
        ``init(key, model)`` in x's floating dtype, or in float32 where x is in half precision or
        whole numbers.
    resume: the ``Run`` to go on with, ``history.run`` or an epoch's ``run``, for the same data and
        arguments; history is that of the epochs to come.  On one device 10 epochs and 10 more are
        20, to the last bit.  Or a folder of checkpoints: the newest that is whole is gone on with,
        one of other inputs is refused (rows of a stream are not compared), and history is that of
        all epochs; where they are done, nothing is trained.  Where ``checkpoint`` is the same
        folder, and holds none yet, a new run begins.
    checkpoint: a folder, new or empty, to write checkpoints to (see ``jaxbp.training.checkpoints``)
        while training goes on, and at its end, SIGTERM and Ctrl-C included; none unless given.
    checkpoint_every: epochs, or ``datetime.timedelta``, from one to the next; a minute unless
        given.
    checkpoint_keep: how many of the newest stay; 3 unless given.
    validation: rows to evaluate after each epoch, or a stream of them; none unless given.
    keep_best: whether params are those of the epoch with the lowest validation loss, or with the
        one that an ``EarlyStopping`` of on_epoch calls best, instead of the last; False unless
        given.  ``history.run`` is that of the last in any case.  After ``resume=run`` the epochs
        before are not known, and after ``resume=folder`` they are.
    gradient: ``backprop``, ``autodiff``, or your own of their signature; one that draws at random
        (see ``random_gradient``) is given another key at every step.
    compute_dtype: of the products, such as ``jnp.bfloat16``: see ``mixed_precision``; else that of
        params.
    precision: of products of float32 arrays, by JAX's names ("default", "high", "highest", ...):
        see ``jaxbp.precision``; that of ``jax.default_matmul_precision`` unless given.
    kernel: "auto" unless given: one GPU kernel for all minibatches of an epoch where that is known
        to be possible and faster (see ``jaxbp.training.one_kernel``), else XLA's programs, with
        equal results up to rounding.  "xla": never one kernel; "fused": nothing else; "interpret":
        the kernel by Pallas's interpreter, slowly, on any device.
    mesh: of the devices that train together, as ``jax.make_mesh((d, m), ("data", "model"))`` makes
        one: each minibatch's rows are split over "data", the layers over "model" (see
        ``jaxbp.parallel``), with equal results up to rounding; arrays that lie on it stay.  Where
        its devices are those of several processes (see ``jaxbp.processes``), each calls ``fit``
        with the same arguments, a stream of its own rows of every batch excepted, training ends
        where one of them asks, and the first alone writes checkpoints.  One device unless given.
    diagnostics: whether each epoch ends with the health of every layer, measured on up to 256 rows
        spread over the batch, with the last step's update.
    on_epoch: a function, or a list of them, called with an ``Epoch`` after each.  If one returns
        True, training ends there; else they return False or nothing.
    progress: whether a bar is shown, in a terminal or a notebook, by rich; False unless given.
    check: whether a head, an activation or a gradient that is not of this package is compared with
        ``jax.grad`` before training (see ``jaxbp.training.pieces``), True unless given.  A gradient
        that draws at random is not compared, and shapes and dtypes are checked in any case.

    Raises ValueError or TypeError for arguments that do not fit, targets that the head cannot mean
    among them, MemoryError for a network that is too large, and OSError for a folder that holds
    something else or cannot be written, all before any training; OSError for a full disk; and two
    exceptions that carry parameters and history: NonFiniteLossError when training diverges, and
    TrainingInterrupt, a KeyboardInterrupt, for Ctrl-C.  Any other exception after the first epoch,
    such as a callback's own, is given the same attributes, epoch, params and history.

    >>> import jax.numpy as jnp
    >>> from jaxbp import activations, heads
    >>> model = MLP((1, 1), activations.identity, heads.linear_squared_error)
    >>> x = jnp.linspace(-1, 1, 9)[:, None]
    >>> params, history = fit(model, Batch(x, 3 * x + 1), optimizer=optax.sgd(0.1), epochs=50,
    ...                       batch_size=3, key=jax.random.key(0))
    >>> print(f"{params[0].weight.item():.2f} {params[0].bias.item():.2f}")
    3.00 1.00
    """
    check_bools(diagnostics=diagnostics, progress=progress, check=check, keep_best=keep_best)
    check_concrete(key=key, params=params, resume=resume)
    streamed = check_source(batch, validation, keep_best=keep_best)
    size = rows_of_a_step(batch_size, kernel, streamed=streamed, diagnostics=diagnostics)
    check_arguments(model, optimizer, epochs, size, precision, kernel)
    mesh = None if mesh is None else checked_mesh(mesh)
    checkpoints = Checkpoints.of(checkpoint, checkpoint_every, checkpoint_keep, resume, mesh)
    begins = checkpoints is not None and checkpoints.begins
    saved, run = resumed(resume, optimizer, network_of(model), begins=begins)
    if run is not None:
        check_resumed(run, params, epochs, may_be_complete=saved is not None)
        key, params = key_of(run, key), run.params
    check_key(key)
    assert key is not None
    state, done = (None, 0) if run is None else (run.state, run.epochs)
    source = Source.of(batch, validation, done, epochs, mesh)
    rows, params, state, held = on_one_device(
        {"batch": source.rows, "params": params, "resume": state, "validation": source.validation},
        mesh,
    )
    source = Source(rows, source.stream, held)
    callbacks, random = callbacks_of(on_epoch), is_random(gradient)
    if validation is not None and (keep_best or checkpoints) and not stopping_in(callbacks):
        callbacks = EarlyStopping(patience=epochs), *callbacks  # ends nothing, and knows the best
    mixed = gradient if compute_dtype is None else mixed_precision(gradient, compute_dtype)
    shapes = shapes_of(model, dtype_of(rows)) if params is None else params
    check_layers(shapes)
    lifted = without_numbers(Given(optimizer), tuple(shapes))
    check_full_batch(lifted.state, size, streamed=streamed)
    if run is not None:
        check_state(run, lifted.state)
    if params is None:
        with memory_shortage_named(shapes, lifted.state):
            params = initial_params(key, model, dtype=dtype_of(rows))
            wait_for(params)
    params = tuple(params)
    source = source.checked(model, params, precision)
    bare, l2 = without_l2(model, params)
    size = size and min(size, len(source.rows.x))
    program = Program(bare, lifted.optimizer, mixed, size, diagnostics, precision, mesh=mesh)
    constants = Constants(l2, None, lifted.numbers)
    drawn_with = key if random else None
    if check:
        own = model, params, source.rows, size, gradient
        check_pieces(*own, drawn_with, params[0].weight.dtype)
    params, state, source, key = _spread(program, constants, epochs, params, state, source, key)
    start = _Start(params, state, done)
    if saved is not None or checkpoints is not None:
        data = data_of(source.data, source.validation), source.rows
        inputs = inputs_of(model, program, lifted, *data, params, drawn_with, compute_dtype)
        start = _going_on(start, saved, checkpoints, inputs, callbacks)
    return _trained(
        program,
        optimizer,
        constants,
        start,
        source,
        epochs,
        key,
        kernel,
        callbacks,
        checkpoints,
        random=random,
        progress=progress,
        keep_best=keep_best,
    )


def _spread(
    program: Program,
    constants: Constants,
    epochs: int,
    params: Params,
    state: Any,
    source: Source,
    key: Array,
) -> tuple[Params, Any, Source, Array]:
    """Parameters, state, source and key on the devices of the program's mesh; as they are without
    one.

    program, constants: of the training.
    epochs: in all.
    params, state: to start from; state None: the initial one.
    source, key: of the training.

    Raises ValueError where the processes of the mesh have been given different arguments.
    """
    if program.mesh is None:
        return params, state, source, key
    held = source.validation if isinstance(source.validation, Batch) else None
    check_same(
        program.mesh,
        model=repr(program.model.sizes),
        l2=constants.l2,
        optimizer=constants.numbers,
        epochs=epochs,
        batch_size=program.batch_size,
        key=key,
        params=params,
        batch=None if source.stream else source.rows,
        validation=held,
    )
    source = source.first_over(program.mesh)
    if state is None:
        state = initial_state(program.optimizer)(params, constants)
    params, (state, rows, held, key) = spread(
        program.model, program.mesh, params, (state, source.rows, held, key)
    )
    source = source._replace(rows=rows, validation=held or source.validation)
    return params, state, source, key


class _Start(NamedTuple):
    """The parameters and the optimiser's state that training starts from."""

    params: Params
    state: optax.OptState | None  # of the optimiser; None: its initial one
    epochs: int  # done before
    record: tuple[Epoch, ...] = ()  # of the last of them, where it is known


def _going_on(
    start: _Start,
    saved: Saved | None,
    checkpoints: Checkpoints | None,
    inputs: Inputs,
    callbacks: tuple[Callable[[Epoch], Any], ...],
) -> _Start:
    """The start with the record that was saved, and checkpoints ready to be written.

    start: of the training.
    saved: what it goes on with; refused with ValueError where it had other inputs.
    checkpoints: to be written.
    inputs: of the run.
    callbacks: among them, early stopping is told of the best epoch.
    """
    if saved is not None:
        check_inputs(saved.folder, saved.inputs, inputs)
        start = start._replace(record=saved.record)
        stopping = stopping_in(callbacks)
        if stopping is not None:
            stopping.go_on(saved.best, start.epochs)
    if checkpoints is not None:
        checkpoints.begin(inputs, start.epochs)
    return start


def _trained(
    program: Program,
    optimizer: optax.GradientTransformation,
    constants: Constants,
    start: _Start,
    source: Source,
    epochs: int,
    key: Array,
    kernel: str,
    callbacks: tuple[Callable[[Epoch], Any], ...],
    checkpoints: Checkpoints | None,
    *,
    random: bool,
    progress: bool,
    keep_best: bool,
) -> tuple[Params, History]:
    """Train for some epochs, by arguments of ``fit`` that are checked already.

    program: without a kernel; kernel says which to take.
    optimizer: optax's.
    constants: the numbers of model and optimiser.
    start: parameters and state to start from.
    source: of the rows, which are on the device.
    epochs, key, kernel: as for ``fit``.
    callbacks: those of on_epoch.
    checkpoints: to write, or None.
    random: whether the gradient is given a key.
    progress: as for ``fit``.
    keep_best: as for ``fit``.
    """
    model, precision = with_l2(program.model, constants.l2), program.precision
    one_by_one = bool(callbacks) or source.validation is not None
    params, state, done, known = start
    record = list(known)
    unknown = done - len(record)  # epochs before the first of the record
    before = params  # what the last epoch started from
    stopping, key_data = stopping_in(callbacks), np.asarray(jax.random.key_data(key))
    epochs = done if known and stopping and stopping.stopped else epochs  # it may have ended before

    def history() -> History:
        layers = len(params) if program.diagnostics else None
        return history_of(record, validated=source.validation is not None, layers=layers)

    evaluated = source.evaluation(model, params, precision, program.mesh)
    with (
        carrying(lambda: (unknown + len(record) + 1, params, history()), done),
        shown(progress, done, epochs) as show,
        memory_shortage_named(
            params,
            jax.eval_shape(optimizer.init, params),
            _outputs_kept(program, model, params, source.rows),
        ),
        checkpoints or nullcontext(),
    ):
        if state is None:
            state = initial_state(program.optimizer)(params, constants)
        else:
            state = copied(state)  # it will be donated
        wait_for(state)
        training = _epochs_over(
            source,
            (key, random, constants, done, epochs),
            at_most=1 if one_by_one else most_epochs(len(source.rows.x), params),
            kernel=kernel,
            optimizer=optimizer,
            every=None if checkpoints is None else checkpoints.epochs,
            show=show,
        )
        for ended in training.run(program, params, state):
            evaluation = None
            if ended.losses.size:
                params, before, state = ended.params, ended.before, ended.state
                evaluation = evaluated and evaluated(params)
            for place, loss in enumerate(ended.losses):
                health = jax.tree.map(itemgetter(place), ended.healths)
                number = unknown + len(record) + 1
                record.append(Epoch(number, (), float(loss), evaluation, health))
            if ended.broke:
                trained = len(record) > len(known)
                if trained and not _is_finite(record[-1], model, params, source.rows, precision):
                    params = before
                    record.pop()
                if len(record) == len(known):
                    check_finite(params)
                raise NonFiniteLossError(unknown + len(record) + 1, params, history())
            epoch = record[-1]._replace(params=params, state=state, key=key)
            show(epoch.number, epoch.training_loss, epoch.validation)
            asked = ask_to_end(callbacks, epoch)
            asked = bool(largest(np.float32(asked), program.mesh if callbacks else None))
            if checkpoints is not None:
                run = Run(params, copied(state), epoch.number, key_data)
                best = None if stopping is None else stopping.best
                checkpoints.after(whole_here(run, program.mesh), record, best)
            if asked:
                break
    run = Run(params, state, unknown + len(record), key_data)
    if keep_best and stopping is not None:
        params = stopping.best.params
    return params, history()._replace(run=run)


def _epochs_over(
    source: Source, common: tuple[Array, bool, Constants, int, int], *, show: Any, **in_memory: Any
) -> Blocks | Streamed:
    """The epochs of a training, in memory or over a stream.

    source: of the rows.
    common: what both kinds of epochs need.
    show: how far an epoch over a stream is.
    in_memory: what those in memory need.
    """
    if source.stream is None:
        return Blocks(source.rows, *common, **in_memory)
    return Streamed(source.stream, *common, show=show)


def _outputs_kept(program: Program, model: MLP, params: Params, batch: Batch) -> Any:
    """The arrays that a step keeps of every layer, as far as it is known."""
    if program.gradient not in {backprop, autodiff}:  # another one may keep less
        return ()
    rows = program.batch_size or len(batch.x)
    return outputs_kept(model, rows, jnp.result_type(params[0].weight))


def _is_finite(
    last: Epoch, model: MLP, params: Params, batch: Batch, precision: str | None
) -> bool:
    """Whether an epoch ended with finite losses, in training and in validation."""
    validated = last.validation is None or np.isfinite(last.validation.loss)
    return bool(validated and np.isfinite(compiled_objective(model, params, batch, precision)))
