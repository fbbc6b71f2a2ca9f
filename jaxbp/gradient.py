"""The objective of a batch and its gradient, twice: by hand and by ``jax.grad``.

    E(W) = Σₙ wₙ Lₙ / Σₙ wₙ + ½·l2·Σ‖W‖²

``backprop`` is the lecture's learning algorithm, ``autodiff`` is JAX's derivative of the objective.
They share one signature, ``(model, params, batch) -> (loss, grads)``; either goes wherever a
gradient is wanted.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxbp.mlp import backward, forward, gradients
from jaxbp.model import MLP, Deltas, Params, Residuals, Rows, penalty, with_penalty
from jaxbp.products import mesh_of, product
from jaxbp.reprs import short
from jaxbp.targets import numbers


class Batch(NamedTuple):
    """Examples, one a row, as arrays of JAX or NumPy."""

    x: Rows  # (B, D)
    target: Rows  # (B, K) values or (soft) labels; (B,) integer classes for softmax
    weight: Rows | None = None  # (B,) example weights wₙ ≥ 0; None: all equal

    def __repr__(self) -> str:
        return short(self)


Gradient = Callable[..., tuple[Array, Params]]  # model, params, batch -> loss, grads


def objective(model: MLP, params: Params, batch: Batch) -> Array:
    """E(W), a scalar: the weighted mean of the losses, and ½·l2·Σ‖W‖² over weights, not biases."""
    logits, _ = forward(model, params, batch.x)
    loss, _ = model.head.loss(logits, batch.target)
    return jnp.sum(example_shares(batch, loss) * loss) + penalty(model, params)


def backprop(model: MLP, params: Params, batch: Batch) -> tuple[Array, Params]:
    """E and ∇E by hand: steps 1 to 4 of error backpropagation (Bishop 2006, section 5.3.1).

    Raises ValueError or TypeError, naming the argument that does not fit.
    """
    logits, residuals = forward(model, params, batch.x)  # 1. forward propagate, and store
    loss, error = model.head.loss(logits, batch.target)  # 2. δₖ = ∂Lₙ/∂aₖ
    share = example_shares(batch, loss)
    deltas = backward(params, residuals, share[..., None] * error)  # 3. δⱼ = h'(aⱼ) Σₖ δₖ wₖⱼ
    grads = gradients(residuals, deltas, loss.dtype)  # 4. δ × input
    return jnp.sum(share * loss) + penalty(model, params), with_penalty(model, params, grads)


def per_example_pass(model: MLP, params: Params, batch: Batch) -> tuple[Array, Residuals, Deltas]:
    """Steps 1 to 3 without a mean: Lₙ (B,), residuals, and δₙ = ∂Lₙ/∂a (B, O) of every layer."""
    logits, residuals = forward(model, params, batch.x)
    loss, error = model.head.loss(logits, batch.target)
    return loss, residuals, backward(params, residuals, error)


def autodiff(model: MLP, params: Params, batch: Batch) -> tuple[Array, Params]:
    """E and ∇E by ``jax.value_and_grad`` of ``objective``."""
    with mesh_of(params, batch):
        return jax.value_and_grad(objective, argnums=1)(model, params, batch)


def input_gradient(params: Params, deltas: Deltas) -> Array:
    """∂L/∂x = W⁽¹⁾ᵀ δ⁽¹⁾, (B, D): the recursion taken one layer further, where h' is 1."""
    return product(deltas[0], params[0].weight, deltas[0])


def example_shares(batch: Batch, loss: Array) -> Array:
    """wₙ / Σ wₙ, (B,): each example's share of the mean; all zero where every weight is zero.

    Raises ValueError for a batch without examples, which has no mean, and for losses of which there
    is not one an example.
    """
    rows = jnp.shape(batch.x)[:-1]
    if loss.shape != rows:
        raise ValueError(f"head: the loss: got shape {loss.shape}, expected {rows}, one an example")
    if not loss.size:
        raise ValueError(f"x: got shape {jnp.shape(batch.x)}, expected at least one example")
    if batch.weight is None:
        return jnp.full_like(loss, 1 / loss.size)
    weight = numbers("weight", batch.weight).astype(loss.dtype)
    if weight.shape != loss.shape:
        raise ValueError(f"weight: got shape {weight.shape}, expected {loss.shape}, one an example")
    total = jnp.sum(weight)
    return weight / jnp.where(total == 0, 1, total)
