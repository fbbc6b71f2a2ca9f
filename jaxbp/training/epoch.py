"""An epoch: every row once, as one compiled scan over minibatches."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxbp.diagnostics.health import Health, layer_health
from jaxbp.gradient import Batch, backprop
from jaxbp.initialisation import init
from jaxbp.mlp import MLP, Params
from jaxbp.precision import Gradient

Carry = tuple[Params, optax.OptState]


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


_SAMPLE = 256  # rows that the health of the layers is seen on: a small part of most epochs


jitted_init = jax.jit(init, static_argnames=("model", "dtype"))  # one program, not dozens


@partial(jax.jit, static_argnums=0)
def initial_state(optimizer: optax.GradientTransformation, params: Params) -> optax.OptState:
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


run_epoch = jax.jit(one_epoch, static_argnums=(0, 1, 2, 3, 4), donate_argnames="state")


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
