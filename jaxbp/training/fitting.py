"""Training of one network: ``fit``, and the record that it leaves."""

from collections.abc import Callable
from itertools import repeat
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax import Array
from jax.typing import DTypeLike

from jaxbp.diagnostics.health import Health
from jaxbp.gradient import Batch, Gradient, backprop
from jaxbp.model import MLP, Params
from jaxbp.precision import mixed_precision
from jaxbp.reprs import short
from jaxbp.text import Table, fields, html, significant
from jaxbp.training.checks import (
    check_arguments,
    check_full_batch,
    checked_data,
    dtype_of,
    on_one_device,
)
from jaxbp.training.epoch import (
    Program,
    initial_state,
    is_random,
    jitted_init,
    orders_of,
    run_epoch,
)
from jaxbp.training.kernel_choice import with_kernel
from jaxbp.training.metrics import Evaluation, compiled_evaluation


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

    ``epoch`` is the number of that epoch, ``params`` are those after the last epoch that was finite
    throughout (the initial ones, if there was none) and ``history`` is the record up to there.
    """

    def __init__(self, epoch: int, params: Params, history: History) -> None:
        super().__init__(
            f"epoch {epoch}: the loss or a parameter is no longer finite; the exception's params "
            f"are those after epoch {epoch - 1}. Try a learning rate ten times smaller, "
            "standardised inputs, or optax.clip_by_global_norm before the optimiser"
        )
        self.epoch, self.params, self.history = epoch, params, history


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
    on_epoch: Callable[[Epoch], Any] | None = None,
) -> tuple[Params, History]:
    """Train by (stochastic) gradient descent (Bishop 2006, section 5.2.4) -> (params, History).

    model: the network's description.
    batch: the N rows to train on; example weights count relative to their mean.  Arrays of JAX's
        stay on their device; from several devices they are brought to one, with a UserWarning.
    optimizer: optax's, such as ``optax.sgd(0.1)``.
    epochs: passes over the rows, at least 1.  Each visits every row once, in an order that depends
        on key and the number of the epoch alone; an accelerator draws another one than a CPU.
    batch_size: rows a step; the last step of an epoch takes the rows that are left.  None: all.
    key: one ``jax.random.key(seed)``, for the initial weights, the orders and random gradients.
    params: to start from, left as they are; else ``init(key, model)`` in x's floating dtype.
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
    on_epoch: called with an ``Epoch`` after each; if it returns True, training ends there.

    Raises ValueError or TypeError for arguments that do not fit, before any training, and
    NonFiniteLossError, which carries the last good parameters, when training diverges.

    >>> import jax.numpy as jnp
    >>> from jaxbp import activations, heads
    >>> model = MLP((1, 1), activations.identity, heads.linear_squared_error)
    >>> x = jnp.linspace(-1, 1, 9)[:, None]
    >>> params, history = fit(model, Batch(x, 3 * x + 1), optimizer=optax.sgd(0.1), epochs=50,
    ...                       batch_size=3, key=jax.random.key(0))
    >>> print(f"{params[0].weight.item():.2f} {params[0].bias.item():.2f}")
    3.00 1.00
    """
    check_arguments(model, optimizer, epochs, batch_size, key, precision, kernel)
    batch, params, validation = on_one_device(
        {"batch": batch, "params": params, "validation": validation}
    )
    random = is_random(gradient)
    if compute_dtype is not None:
        gradient = mixed_precision(gradient, compute_dtype)
    if params is None:
        params = jitted_init(key, model, dtype=dtype_of(batch))
    params = tuple(params)
    check_full_batch(optimizer, params, batch_size)
    batch, validation = checked_data(model, params, batch, validation)
    state = initial_state(optimizer, params)
    rows = len(batch.x)
    if batch_size is not None:
        batch_size = min(batch_size, rows)
    program = Program(model, optimizer, gradient, batch_size, diagnostics, precision)
    orders = repeat(None) if batch_size is None else orders_of(key, rows)
    record: list[Epoch] = []
    order = next(orders)
    program = with_kernel(kernel, program, run_epoch, (params, state, batch, order, None))
    for number in range(1, epochs + 1):
        epoch_key = jax.random.fold_in(key, number) if random else None
        trained, state, loss, health = run_epoch(program, params, state, batch, order, epoch_key)
        if number < epochs:
            order = next(orders)  # while the device is at work
        if not np.isfinite(loss):
            raise NonFiniteLossError(number, params, history_of(record))
        params, evaluation = trained, None
        if validation is not None:
            evaluation = compiled_evaluation(model, params, validation, precision)
        health = jax.tree.map(np.asarray, health)
        epoch = Epoch(number, params, float(loss), evaluation, health)
        record.append(epoch._replace(params=()))  # parameters are the caller's to keep
        if on_epoch is not None and on_epoch(epoch):
            break
    return params, history_of(record)


def _table(history: History) -> Table:
    """A row an epoch, of ten epochs at most, the first and the last among them."""
    curves = {
        name: each for name, each in history._asdict().items() if isinstance(each, np.ndarray)
    }
    epochs = len(history.training_loss)
    shown = np.unique(np.linspace(0, epochs - 1, min(epochs, 10)).astype(int))
    rows = [(row + 1, *(curve[row] for curve in curves.values())) for row in shown]
    return Table(("epoch", *curves), [[significant(cell, 4) for cell in row] for row in rows])


def history_of(record: list[Epoch]) -> History:
    """The record of a run, or of many at once: epochs are the last axis."""
    evaluations = [epoch.validation for epoch in record if epoch.validation is not None]
    health = [epoch.health for epoch in record if epoch.health is not None]
    return History(
        training_loss=np.array([epoch.training_loss for epoch in record]).T,
        validation_loss=np.array([each.loss for each in evaluations]).T if evaluations else None,
        metric=np.array([each.metric for each in evaluations]).T if evaluations else None,
        health=jax.tree.map(lambda *epochs: np.stack(epochs), *health) if health else None,
    )
