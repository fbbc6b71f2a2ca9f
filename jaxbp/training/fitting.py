"""Training: step 5 of the lecture's algorithm, over minibatches, for as many epochs as wanted.

The data live on the device, and a whole epoch is one compiled ``lax.scan`` over its minibatches, so
that between two steps there is nothing but arithmetic.  Minibatch, full batch (``batch_size=None``)
and online learning (``batch_size=1``) are the same function.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax import Array
from jax.typing import DTypeLike

from jaxbp.diagnostics.health import Health
from jaxbp.gradient import Batch, backprop
from jaxbp.mlp import MLP, Params
from jaxbp.precision import Gradient, mixed_precision
from jaxbp.training.checks import check_arguments, floating, on_device
from jaxbp.training.epoch import (
    initial_state,
    is_random,
    jitted_init,
    orders,
    relative_weights,
    run_epoch,
)
from jaxbp.training.metrics import Evaluation, jitted_evaluate


class History(NamedTuple):
    """A run's record, one entry an epoch."""

    training_loss: (
        np.ndarray
    )  # (epochs,) mean objective of the epoch's steps, each before its update
    validation_loss: np.ndarray | None  # (epochs,) after the epoch; None without validation data
    metric: np.ndarray | None  # (epochs,) accuracy or R² on the validation data, likewise
    health: Health | None = None  # (epochs, L) a field, after the epoch; None without diagnostics


class Epoch(NamedTuple):
    """What ``on_epoch`` is told."""

    number: int  # from 1
    params: Params  # after the epoch; they stay valid and may be kept
    training_loss: float
    validation: Evaluation | None
    health: Health | None = None  # (L,) a field, with diagnostics


class NonFiniteLossError(ArithmeticError):
    """Training met a loss or a parameter that is not finite.

    ``epoch`` is where, ``params`` are those after the last epoch that was finite throughout (the
    initial ones, if that is none) and ``history`` is the record up to there.
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
    diagnostics: bool = False,
    on_epoch: Callable[[Epoch], Any] | None = None,
) -> tuple[Params, History]:
    """Train by (stochastic) gradient descent (Bishop 2006, section 5.2.4) -> (params, History).

    Every epoch visits every row of batch once, in an order that depends on key and the epoch's
    number alone; the last minibatch holds the rows that are left.  ``batch_size=None`` takes all
    rows at once.  Training starts from params, which are left as they are, or from ``init(key,
    model)`` in x's floating dtype.  Example weights count relative to their mean over the batch.
    ``gradient`` is ``backprop``, ``autodiff`` or your own with their signature; one that draws at
    random also takes a ``key``, and is given another one at every step.  With
    ``compute_dtype=jnp.bfloat16`` it runs in ``mixed_precision``.  With diagnostics the
    compiled epoch ends with the health of every layer, on up to 256 rows spread over the batch and
    with the last step's update.  After each epoch ``on_epoch`` is called with an ``Epoch``;
    if it returns True, training ends there.

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
    check_arguments(model, optimizer, epochs, batch_size, key)
    random = is_random(gradient)
    if compute_dtype is not None:
        gradient = mixed_precision(gradient, compute_dtype)
    if params is None:
        params = jitted_init(key, model, dtype=floating(batch))
    batch = relative_weights(on_device(model, params, batch, "batch"))
    if validation is not None:
        validation = on_device(model, params, validation, "validation")
    batch_size = batch_size and min(batch_size, len(batch.x))
    state = initial_state(optimizer, params)
    seed = np.asarray(jax.random.key_data(key)).tolist()
    order_of = orders(seed, len(batch.x), batch_size)
    record: list[Epoch] = []
    order = jax.device_put(order_of(1))
    for number in range(1, epochs + 1):
        epoch_key = jax.random.fold_in(key, number) if random else None
        trained, state, loss, health = run_epoch(
            model,
            optimizer,
            gradient,
            batch_size,
            diagnostics,
            params,
            state,
            batch,
            order,
            epoch_key,
        )
        order = jax.device_put(order_of(number + 1))  # while the device is at work
        if not np.isfinite(loss):
            raise NonFiniteLossError(number, params, history_of(record))
        params, evaluation = trained, None
        if validation is not None:
            evaluation = Evaluation(*map(float, jitted_evaluate(model, params, validation)))
        health = jax.tree.map(np.asarray, health)
        epoch = Epoch(number, params, float(loss), evaluation, health)
        record.append(epoch._replace(params=()))  # parameters are the caller's to keep
        if on_epoch and on_epoch(epoch):
            break
    return params, history_of(record)


def history_of(record: list[Epoch]) -> History:
    """The record of a run, or of many at once: epochs are the last axis."""
    evaluations = [epoch.validation for epoch in record if epoch.validation]
    health = [epoch.health for epoch in record if epoch.health]
    return History(
        training_loss=np.array([epoch.training_loss for epoch in record]).T,
        validation_loss=np.array([each.loss for each in evaluations]).T if evaluations else None,
        metric=np.array([each.metric for each in evaluations]).T if evaluations else None,
        health=jax.tree.map(lambda *epochs: np.stack(epochs), *health) if health else None,
    )
