"""Training of one network: ``fit``, and the record that it leaves."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import repeat
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import DTypeLike

from jaxbp.diagnostics.health import Health
from jaxbp.gradient import Batch, Gradient, autodiff, backprop
from jaxbp.initialisation import check_key
from jaxbp.memory import memory_shortage_named, outputs_kept
from jaxbp.model import MLP, Params, check_layers
from jaxbp.precision import mixed_precision
from jaxbp.reprs import short
from jaxbp.text import Table, fields, html, significant
from jaxbp.training.checks import (
    check_arguments,
    check_concrete,
    check_full_batch,
    checked_data,
    dtype_of,
    on_one_device,
)
from jaxbp.training.constants import Constants, Given, with_l2, without_l2, without_numbers
from jaxbp.training.device import PATIENCE, wait_for
from jaxbp.training.epoch import (
    Program,
    epoch_key,
    epoch_of,
    initial_params,
    initial_state,
    is_random,
    orders_of,
    run_epoch,
    shapes_of,
)
from jaxbp.training.kernel_choice import with_kernel
from jaxbp.training.metrics import (
    Evaluation,
    check_metric,
    compiled_evaluation,
    compiled_objective,
    evaluation_of,
)
from jaxbp.training.pieces import are_the_packages, check_pieces
from jaxbp.training.same_program import first_program
from jaxbp.trees import check_bools, shaped


class History(NamedTuple):
    """The record of a run, one entry an epoch."""

    training_loss: np.ndarray  # (epochs,) mean objective of the steps, each before its update
    validation_loss: np.ndarray | None  # (epochs,) after the epoch; None without validation data
    metric: np.ndarray | None  # (epochs,) accuracy or R² on the validation data, likewise
    health: Health | None = None  # each field (epochs, L); None without diagnostics

    def __repr__(self) -> str:
        return short(self)

    def _repr_html_(self) -> str:
        return html(_table(self) if self.training_loss.ndim == 1 else fields(self))


class Epoch(NamedTuple):
    """The argument of ``on_epoch``: an epoch that has just ended."""

    number: int  # from 1
    params: Params  # after the epoch; they stay valid and may be kept
    training_loss: float
    validation: Evaluation | None
    health: Health | None = None  # each field (L,), with diagnostics

    def __repr__(self) -> str:
        return short(self)

    def _repr_html_(self) -> str:
        return html(fields(self))


class NonFiniteLossError(ArithmeticError):
    """Training met a loss or a parameter that is not finite.

    ``epoch`` is the number of the epoch that broke, ``params`` are those before it (the initial
    ones, if it was the first), whose loss is finite, and ``history`` is the record up to there.
    That the last steps of an epoch broke is known in the next one, so ``on_epoch`` may have been
    called for ``epoch`` already.
    """

    def __init__(self, epoch: int, params: Params, history: History) -> None:
        super().__init__(
            f"epoch {epoch}: the loss or a parameter is no longer finite; the exception's params "
            f"are those after epoch {epoch - 1}. Try a learning rate ten times smaller, "
            "standardised inputs, or optax.clip_by_global_norm before the optimiser"
        )
        self.epoch, self.params, self.history = epoch, params, history


class TrainingInterrupt(KeyboardInterrupt):
    """Ctrl-C ended the training; what there is so far is not lost.

    ``epoch`` is the number of the epoch that it ended, ``params`` are those before it and
    ``history`` is the record up to there.
    """

    def __init__(self, epoch: int, params: Params, history: History) -> None:
        super().__init__(
            f"training ended by Ctrl-C in epoch {epoch}; the exception's params and history are "
            f"those after epoch {epoch - 1}. In a notebook they are sys.last_value.params and "
            "sys.last_value.history (import sys); in a program, catch jaxbp.TrainingInterrupt"
        )
        self.epoch, self.params, self.history = epoch, params, history


OnEpoch = Callable[[Epoch], Any] | Sequence[Callable[[Epoch], Any]] | None


def fit(
    model: MLP,
    batch: Batch,
    *,
    optimizer: optax.GradientTransformation,
    epochs: int,
    batch_size: int | None,
    key: Array,
    params: Params | None = None,
    validation: Batch | None = None,
    gradient: Gradient = backprop,
    compute_dtype: DTypeLike | None = None,
    precision: str | None = None,
    kernel: str = "auto",
    diagnostics: bool = False,
    on_epoch: OnEpoch = None,
    check: bool = True,
) -> tuple[Params, History]:
    """Train by (stochastic) gradient descent (Bishop 2006, section 5.2.4) -> (params, History).

    model: the network's description.
    batch: the N rows to train on; example weights count relative to their mean.  Arrays of JAX's
        stay on their device; from several devices they are brought to one, with a UserWarning.
    optimizer: optax's, such as ``optax.sgd(0.1)``.  It may be written inline: another one that does
        the same, or has other numbers, is no reason to compile (see ``jaxbp.training.constants``).
    epochs: passes over the rows, at least 1.  Each visits every row once, in an order that depends
        on key and the number of the epoch alone; an accelerator draws another one than a CPU.
    batch_size: rows a step; the last step of an epoch takes the rows that are left.  None: all.
    key: one ``jax.random.key(seed)``, for the initial weights, the orders and random gradients.
    params: to start from, left as they are; else ``init(key, model)`` in x's floating dtype, or in
        float32 where x is in half precision or whole numbers.
    validation: rows to evaluate after each epoch; none unless given.
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
    diagnostics: whether each epoch ends with the health of every layer, measured on up to 256 rows
        spread over the batch, with the last step's update.
    on_epoch: a function, or a list of them, called with an ``Epoch`` after each.  If one returns
        True, training ends there; else they return False or nothing.
    check: whether a head, an activation or a gradient that is not of this package is compared with
        ``jax.grad`` before training (see ``jaxbp.training.pieces``), True unless given.  A gradient
        that draws at random is not compared, and shapes and dtypes are checked in any case.

    Raises ValueError or TypeError for arguments that do not fit, targets that the head cannot mean
    among them, and MemoryError for a network that is too large, all before any training; and two
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
    check_bools(diagnostics=diagnostics, check=check)
    check_concrete(key=key, params=params, batch=batch, validation=validation)
    check_key(key)
    check_arguments(model, optimizer, epochs, batch_size, precision, kernel)
    batch, params, validation = on_one_device(
        {"batch": batch, "params": params, "validation": validation}
    )
    callbacks, random = callbacks_of(on_epoch), is_random(gradient)
    mixed = gradient if compute_dtype is None else mixed_precision(gradient, compute_dtype)
    if params is None:
        dtype = dtype_of(batch)
        shapes = shapes_of(model, dtype)
        with memory_shortage_named(shapes, jax.eval_shape(optimizer.init, shapes)):
            params = initial_params(key, model, dtype=dtype)
            wait_for(params)
    check_layers(params)
    params = tuple(params)
    check_full_batch(optimizer, params, batch_size)
    batch, validation = checked_data(model, params, batch, validation)
    batch_size = batch_size and min(batch_size, len(batch.x))
    bare, l2 = without_l2(model, params)
    made, numbers = without_numbers(Given(optimizer), params)
    program = Program(bare, made, mixed, batch_size, diagnostics, precision)
    constants = jax.device_put(Constants(l2, None, numbers))
    program = _first_alike(program, constants, params, batch, validation, random=random)
    model = program.model._replace(l2=model.l2)
    if validation is not None:
        check_metric(model, params, validation, precision)
    if check:
        check_pieces(model, params, batch, batch_size, program.gradient, key if random else None)
    return _trained(
        program,
        optimizer,
        constants,
        params,
        batch,
        validation,
        epochs,
        key,
        kernel,
        callbacks,
        random=random,
    )


def _first_alike(
    program: Program,
    constants: Constants,
    params: Params,
    batch: Batch,
    validation: Batch | None,
    *,
    random: bool,
) -> Program:
    """The first program that does the same with arrays of these shapes."""
    if are_the_packages(program.model, program.gradient) and program.optimizer.lifted:
        return program  # it is made of the same objects at every call
    order = None if program.batch_size is None else shaped((len(batch.x),), jnp.int32)
    key = jax.eval_shape(partial(jax.random.key, 0)) if random else None
    state = jax.eval_shape(program.optimizer(constants).init, params)
    calls: list[Any] = [(epoch_of, (params, state, batch, order, key, constants))]
    if validation is not None:
        calls.append((_evaluation_after, (constants.l2, params, validation)))
    return first_program(program, *calls)


def _evaluation_after(program: Program, *arguments: Any) -> Any:
    return evaluation_of((program.model, program.precision), *arguments)


def _trained(
    program: Program,
    optimizer: optax.GradientTransformation,
    constants: Constants,
    params: Params,
    batch: Batch,
    validation: Batch | None,
    epochs: int,
    key: Array,
    kernel: str,
    callbacks: tuple[Callable[[Epoch], Any], ...],
    *,
    random: bool,
) -> tuple[Params, History]:
    """Train for some epochs, by arguments of ``fit`` that are checked already.

    program: without a kernel; kernel says which to take.
    optimizer: optax's.
    constants: the numbers of model and optimiser.
    params: to start from.
    batch, validation: on the device.
    epochs, key, kernel: as for ``fit``.
    callbacks: those of on_epoch.
    random: whether the gradient is given a key.
    """
    model, precision = with_l2(program.model, constants.l2), program.precision
    orders = repeat(None) if program.batch_size is None else orders_of(key, len(batch.x))
    record: list[Epoch] = []
    before, seconds = params, float("inf")  # of the last epoch: what it started from, and took

    def history() -> History:
        layers = len(params) if program.diagnostics else None
        return history_of(record, validated=validation is not None, layers=layers)

    state_shapes = jax.eval_shape(optimizer.init, params)
    kept = ()
    if program.gradient in {backprop, autodiff}:  # another one may keep less
        kept = outputs_kept(model, program.batch_size or len(batch.x), batch.x.dtype)
    with (
        carrying(lambda: (len(record) + 1, params, history())),
        memory_shortage_named(params, state_shapes, kept),
    ):
        state = initial_state(program.optimizer)(params, constants)
        wait_for(state)
        order = next(orders)
        program = with_kernel(
            kernel,
            program,
            optimizer,
            run_epoch,
            (params, state, batch, order, None, constants),
        )
        for number in range(1, epochs + 1):
            started = time.perf_counter()
            step_key = epoch_key(key, number) if random else None
            trained, state, loss, health = run_epoch(program)(
                params, state, batch, order, step_key, constants
            )
            if number < epochs:
                order = next(orders)  # while the device is at work
            if seconds > PATIENCE:
                wait_for(loss)
            if not np.isfinite(loss):
                if record and not _is_finite(record[-1], model, params, batch, precision):
                    params = before
                    record.pop()
                raise NonFiniteLossError(len(record) + 1, params, history())
            evaluation = None
            if validation is not None:
                evaluation = compiled_evaluation(model, trained, validation, precision)
            epoch = Epoch(
                number, trained, float(loss), evaluation, jax.tree.map(np.asarray, health)
            )
            record.append(epoch._replace(params=()))  # parameters are the caller's to keep
            before, params, seconds = params, trained, time.perf_counter() - started
            if ask_to_end(callbacks, epoch):
                break
    return params, history()


@contextmanager
def carrying(so_far: Callable[[], tuple[int, Params, History]]) -> Iterator[None]:
    """Give what ends the training early what there is: epoch, params and history.

    Ctrl-C becomes a ``TrainingInterrupt``.  After the first epoch any other exception, such as a
    callback's, is given the three as attributes, unless it has one of that name.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise TrainingInterrupt(*so_far()) from None
    except (Exception, SystemExit) as error:
        epoch, params, history = so_far()
        given = {"epoch": epoch, "params": params, "history": history}
        if epoch > 1 and not any(hasattr(error, name) for name in given):
            vars(error).update(given)
            error.add_note(
                f"It ended the training in epoch {epoch}; the exception's params and history are "
                f"those after epoch {epoch - 1}"
            )
        raise


def callbacks_of(on_epoch: OnEpoch) -> tuple[Callable[[Epoch], Any], ...]:
    """The functions that on_epoch names.  Raises TypeError for what cannot be called."""
    if on_epoch is None:
        return ()
    callbacks = tuple(on_epoch) if isinstance(on_epoch, list | tuple) else (on_epoch,)
    if not all(map(callable, callbacks)):
        raise TypeError(f"on_epoch: got {on_epoch!r}, expected a function of an Epoch, or a list")
    return callbacks


def ask_to_end(callbacks: tuple[Callable[[Epoch], Any], ...], epoch: Epoch) -> bool:
    """Call all functions; whether one of them returned True.

    Raises TypeError where one returns anything but True, False and None, such as a number that was
    not meant to end the training.
    """
    asked = False
    for callback in callbacks:
        answer = callback(epoch)
        if answer is None:
            continue
        if np.shape(answer) != () or getattr(answer, "dtype", np.dtype(type(answer))) != np.bool_:
            raise TypeError(
                f"on_epoch: {callback!r} returned {answer!r}, expected True to end the training, "
                "or else False or nothing"
            )
        asked |= bool(answer)
    return asked


def _is_finite(
    last: Epoch, model: MLP, params: Params, batch: Batch, precision: str | None
) -> bool:
    """Whether an epoch ended with finite losses, in training and in validation."""
    validated = last.validation is None or np.isfinite(last.validation.loss)
    return bool(validated and np.isfinite(compiled_objective(model, params, batch, precision)))


def history_of(
    record: list[Epoch], *, networks: tuple[int, ...] = (), validated: bool, layers: int | None
) -> History:
    """The record of a run, or of many at once: epochs are the last axis.

    record: one entry an epoch, maybe none.
    networks: (N,) of many at once.
    validated: whether there are validation data.
    layers: of the network, with diagnostics; else None.
    """

    def column(values: list[Any]) -> np.ndarray:
        return np.array(values).reshape(len(values), *networks).T

    evaluations = [epoch.validation for epoch in record if epoch.validation is not None]
    health = None
    if layers is not None:
        columns = zip(*(epoch.health for epoch in record if epoch.health is not None), strict=True)
        stacked = (
            map(np.stack, columns) if record else [np.zeros((0, layers))] * len(Health._fields)
        )
        health = Health(*stacked)
    return History(
        training_loss=column([epoch.training_loss for epoch in record]),
        validation_loss=column([each.loss for each in evaluations]) if validated else None,
        metric=column([each.metric for each in evaluations]) if validated else None,
        health=health,
    )


def _table(history: History) -> Table:
    """A row an epoch, of ten epochs at most, the first and the last among them."""
    curves = {
        name: each for name, each in history._asdict().items() if isinstance(each, np.ndarray)
    }
    epochs = len(history.training_loss)
    shown = np.unique(np.linspace(0, epochs - 1, min(epochs, 10)).astype(int))
    rows = [(row + 1, *(curve[row] for curve in curves.values())) for row in shown]
    return Table(("epoch", *curves), [[significant(cell, 4) for cell in row] for row in rows])
