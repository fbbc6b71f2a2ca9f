"""Training: step 5 of the lecture's algorithm, over minibatches, for as many epochs as wanted.

The data live on the device, and a whole epoch is one compiled ``lax.scan`` over its minibatches, so
that between two steps there is nothing but arithmetic.  Minibatch, full batch (``batch_size=None``)
and online learning (``batch_size=1``) are the same function.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import DTypeLike

from jaxbp.diagnostics import Health, layer_health
from jaxbp.gradient import Batch, backprop, objective, shares
from jaxbp.heads import Head
from jaxbp.inputs import check_arguments, floating, on_device
from jaxbp.mlp import MLP, Params, forward, init
from jaxbp.precision import Gradient, mixed_precision

Carry = tuple[Params, optax.OptState]


class Evaluation(NamedTuple):
    """How a network does on a batch."""

    loss: float  # the objective, L2 included
    metric: float  # accuracy in [0, 1] where the head decides, else R² ≤ 1


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


def make_step(
    model: MLP, optimizer: optax.GradientTransformation, gradient: Gradient = backprop
) -> Callable[[Carry, Batch], tuple[Carry, Array]]:
    """Step 5, update: ``(params, state), batch -> (params, state), loss``, a ``lax.scan``'s body.

    state starts as ``optimizer.init(params)``.  The plain rule is w ← w - η ∂L/∂w, which is
    ``optax.sgd``; any optax optimiser will do, and line searches (``optax.lbfgs``) are given the
    objective with the derivative that ``gradient`` claims; an ``update`` that names ``model`` and
    ``batch`` among its arguments is given those too.
    """
    wants_batch = "batch" in inspect.signature(optimizer.update).parameters
    update = optax.with_extra_args_support(optimizer).update

    def step(carry: Carry, batch: Batch) -> tuple[Carry, Array]:
        params, state = carry
        loss, grads = gradient(model, params, batch)
        value_fn = _differentiable(lambda params: gradient(model, params, batch))
        extra = {"value": loss, "grad": grads, "value_fn": value_fn}
        extra |= {"model": model, "batch": batch} if wants_batch else {}
        updates, state = update(grads, state, params, **extra)
        return (optax.apply_updates(params, updates), state), loss

    return step


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
    state = _initial_state(optimizer, params)
    seed = np.asarray(jax.random.key_data(key)).tolist()
    order_of = orders(seed, len(batch.x), batch_size)
    record: list[Epoch] = []
    order = jax.device_put(order_of(1))
    for number in range(1, epochs + 1):
        epoch_key = jax.random.fold_in(key, number) if random else None
        trained, state, loss, health = _run_epoch(
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
            evaluation = Evaluation(*map(float, _evaluate(model, params, validation)))
        health = jax.tree.map(np.asarray, health)
        epoch = Epoch(number, params, float(loss), evaluation, health)
        record.append(epoch._replace(params=()))  # parameters are the caller's to keep
        if on_epoch and on_epoch(epoch):
            break
    return params, history_of(record)


def evaluate(model: MLP, params: Params, batch: Batch) -> Evaluation:
    """The objective on a batch, and the accuracy or R² of its predictions.

    Accuracy where the head decides between classes: the share of rows (for sigmoid units: of
    outputs) whose decision is the target's.  Else R² = 1 - Σ(t - ŷ)² / Σ(t - t̄)², averaged over
    outputs; an output whose target never varies counts 1 if it is met exactly and 0 if not.  Both
    are weighted like the loss.  Raises ValueError where the batch does not fit the model.
    """
    batch = on_device(model, params, batch, "batch")
    return Evaluation(*map(float, _evaluate(model, params, batch)))


def metric_name(head: Head) -> str:
    """What ``evaluate`` measures for a head: "accuracy" or "r2"."""
    return "r2" if head.decide is None else "accuracy"


_SAMPLE = 256  # rows that the health of the layers is seen on: a small part of most epochs
jitted_init = jax.jit(init, static_argnames=("model", "dtype"))  # one program, not dozens


@partial(jax.jit, static_argnums=0)
def _initial_state(optimizer: optax.GradientTransformation, params: Params) -> optax.OptState:
    """The state, sharing no buffer with params or within itself, for it will be donated."""
    return jax.tree.map(jnp.copy, optimizer.init(params))


def one_epoch(
    model: MLP,
    optimizer: optax.GradientTransformation,
    gradient: Gradient,
    batch_size: int | None,
    diagnostics: bool,
    params: Params,  # not donated: they are what a diverging epoch falls back to
    state: optax.OptState,
    batch: Batch,
    order: Array | None,
    key: Array | None,
) -> tuple[Params, optax.OptState, Array, Health | None]:
    """One pass over the rows of batch; the mean loss is NaN where a new parameter is not finite."""
    step_on, before = _stepper(model, optimizer, gradient, batch, key), params
    if order is None or batch_size is None:
        (params, state), loss = step_on((params, state), _Rows(None, 0))
    else:
        left_over = order.size % batch_size  # the ragged last minibatch is a step of its own size
        if diagnostics and not left_over:
            left_over = batch_size  # the last step apart, to see its update
        full = order[: order.size - left_over].reshape(-1, batch_size)
        numbers = None if key is None else jnp.arange(len(full), dtype=jnp.int32)
        carry, losses = jax.lax.scan(step_on, (params, state), _Rows(full, numbers))
        total = batch_size * jnp.sum(losses)
        if left_over:
            before, _ = carry
            carry, last_loss = step_on(carry, _Rows(order[-left_over:], len(full)))
            total = total + left_over * last_loss
        (params, state), loss = carry, total / order.size
    health = _observed(model, before, params, batch) if diagnostics else None
    finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(params)]
    return params, state, jnp.where(jnp.all(jnp.array(finite)), loss, jnp.nan), health


_run_epoch = jax.jit(one_epoch, static_argnums=(0, 1, 2, 3, 4), donate_argnames="state")


class _Rows(NamedTuple):
    """A minibatch of the data on the device."""

    rows: Array | None  # None: all of them
    number: Any  # of the step in its epoch, where randomness asks for it


def _stepper(
    model: MLP,
    optimizer: optax.GradientTransformation,
    gradient: Gradient,
    batch: Batch,
    key: Array | None,
) -> Callable[[Carry, _Rows], tuple[Carry, Array]]:
    """A step on some rows of the data, with a key of its own where the gradient is random."""

    def step_on(carry: Carry, minibatch: _Rows) -> tuple[Carry, Array]:
        rows, number = minibatch
        drawn = gradient if key is None else partial(gradient, key=jax.random.fold_in(key, number))
        drawn = drawn if batch.weight is None else _unbiased(drawn)
        return make_step(model, optimizer, drawn)(carry, _taken(batch, rows))

    return step_on


def _observed(model: MLP, before: Params, params: Params, batch: Batch) -> Health:
    """The layers' health on a sample of the rows, with the last step's update."""
    every = -(-batch.x.shape[0] // _SAMPLE)
    sample: Batch = jax.tree.map(lambda array: array[::every], batch)
    return layer_health(model, params, sample, jax.tree.map(jnp.subtract, params, before))


def relative_weights(batch: Batch) -> Batch:
    """Example weights relative to their mean."""
    if batch.weight is None:
        return batch
    return batch._replace(weight=batch.weight / jnp.mean(batch.weight))


def _taken(batch: Batch, rows: Array | None) -> Batch:
    return batch if rows is None else jax.tree.map(lambda array: array[rows], batch)


def loss_and_metric(model: MLP, params: Params, batch: Batch) -> tuple[Array, Array]:
    """What ``evaluate`` measures, before it is compiled."""
    logits, _ = forward(model, params, batch.x)
    loss, _ = model.head.loss(logits, batch.target)
    score = _r2 if model.head.decide is None else partial(_accuracy, model.head.decide)
    metric = score(model.head.predict(logits), jnp.asarray(batch.target), shares(batch, loss))
    return objective(model, params, batch), metric


_evaluate = jax.jit(loss_and_metric, static_argnums=0)


def _accuracy(
    decide: Callable[[Array], Array], prediction: Array, target: Array, share: Array
) -> Array:
    decision = decide(prediction)
    correct = decision == (decide(target) if target.shape == prediction.shape else target)
    return jnp.sum(share * jnp.mean(correct, axis=range(share.ndim, correct.ndim)))


def _r2(prediction: Array, target: Array, share: Array) -> Array:
    share = share[:, None]
    varies = jnp.any((share > 0) & (target != target[jnp.argmax(share)]), axis=0)
    mean = jnp.sum(share * target, axis=0)
    total = jnp.sum(share * (target - mean) ** 2, axis=0)
    unexplained = jnp.sum(share * (target - prediction) ** 2, axis=0)
    explained = 1 - unexplained / jnp.where(varies, total, 1)
    return jnp.mean(jnp.where(varies, explained, unexplained == 0))


def _unbiased(gradient: Gradient) -> Gradient:
    """gradient times the minibatch's mean weight: so that minibatches average to the whole batch's,
    and a heavy example counts even when it is alone."""

    def scaled(model: MLP, params: Params, batch: Batch) -> tuple[Array, Params]:
        loss, grads = gradient(model, params, batch)
        weight = jnp.mean(jnp.asarray(batch.weight))
        return weight * loss, jax.tree.map(lambda grad: weight * grad, grads)

    return scaled


def _differentiable(
    gradient: Callable[[Params], tuple[Array, Params]],
) -> Callable[[Params], Array]:
    """The objective as a function whose derivative, wherever JAX asks for it, is gradient's."""

    @jax.custom_jvp
    def value(params: Params) -> Array:
        return gradient(params)[0]

    @value.defjvp
    def slope(primals: tuple[Params], tangents: tuple[Params]) -> tuple[Array, Array]:
        loss, grads = gradient(*primals)
        return loss, optax.tree.vdot(grads, tangents[0])

    return value


def orders(
    seed: list[int], rows: int, batch_size: int | None
) -> Callable[[int], np.ndarray | None]:
    """Every epoch's permutation of the rows, None for full batches; drawn on the host, for on a CPU
    ``jax.random``'s costs as much as many steps."""

    def order(epoch: int) -> np.ndarray | None:
        if batch_size is None:
            return None
        return np.random.default_rng([*seed, epoch]).permutation(rows).astype(np.int32)

    return order


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


def is_random(gradient: Gradient) -> bool:
    """Whether a gradient takes a key, which it must be given anew at every step."""
    if isinstance(gradient, partial) and "key" in gradient.keywords:
        raise ValueError(
            "gradient: its key is set, and every step would draw the same; expected one without, "
            "as fit gives it a key of its own at every step"
        )
    try:
        return "key" in inspect.signature(gradient, follow_wrapped=False).parameters
    except (TypeError, ValueError):  # a callable without a signature
        return False
