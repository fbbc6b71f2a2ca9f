"""The objective of a batch and its gradient, twice: by hand and by ``jax.grad``.

    E(W) = Σₙ wₙ Lₙ / Σₙ wₙ + ½·l2·Σ‖W‖²

``backprop`` is the lecture's learning algorithm, ``autodiff`` what JAX makes of the same objective.
They share one signature, ``(model, params, batch) -> (loss, grads)``; either goes wherever a
gradient is wanted.  Each raises ValueError or TypeError, naming the argument that does not fit.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxbp.mlp import MLP, Deltas, Layer, Params, Residuals, backward, forward, gradients


class Batch(NamedTuple):
    """Examples, one a row; NumPy arrays will do as well."""

    x: Array  # (B, D)
    target: Array  # (B, K) values or (soft) labels; (B,) integer classes for softmax
    weight: Array | None = None  # (B,) example weights wₙ ≥ 0; None: all equal


def objective(model: MLP, params: Params, batch: Batch) -> Array:
    """E(W), a scalar: the weighted mean of the losses, and ½·l2·Σ‖W‖² over weights, not biases."""
    logits, _ = forward(model, params, batch.x)
    loss, _ = model.head.loss(logits, batch.target)
    return jnp.sum(shares(batch, loss) * loss) + penalty(model, params)


def backprop(model: MLP, params: Params, batch: Batch) -> tuple[Array, Params]:
    """E and ∇E by hand: steps 1 to 4 of error backpropagation (Bishop 2006, section 5.3.1)."""
    logits, residuals = forward(model, params, batch.x)  # 1. forward propagate, and store
    loss, error = model.head.loss(logits, batch.target)  # 2. δₖ = ∂Lₙ/∂aₖ
    share = shares(batch, loss)
    deltas = backward(params, residuals, share[..., None] * error)  # 3. δⱼ = h'(aⱼ) Σₖ δₖ wₖⱼ
    grads = gradients(residuals, deltas, loss.dtype)  # 4. δ × input
    return jnp.sum(share * loss) + penalty(model, params), with_penalty(model, params, grads)


def errors(model: MLP, params: Params, batch: Batch) -> tuple[Array, Residuals, Deltas]:
    """Steps 1 to 3, each example by itself: Lₙ (B,), residuals, and δₙ = ∂Lₙ/∂a of every layer."""
    logits, residuals = forward(model, params, batch.x)
    loss, error = model.head.loss(logits, batch.target)
    return loss, residuals, backward(params, residuals, error)


def autodiff(model: MLP, params: Params, batch: Batch) -> tuple[Array, Params]:
    """E and ∇E by ``jax.value_and_grad`` of ``objective``."""
    return jax.value_and_grad(objective, argnums=1)(model, params, batch)


def input_gradient(params: Params, deltas: Deltas) -> Array:
    """∂L/∂x = W⁽¹⁾ᵀ δ⁽¹⁾, (B, D): the recursion taken one layer further, to where h' is 1."""
    return deltas[0] @ params[0].weight


def shares(batch: Batch, loss: Array) -> Array:
    """wₙ / Σ wₙ, (B,): each example's share in the mean; all zero where every weight is zero."""
    if batch.weight is None:
        return jnp.full_like(loss, 1 / loss.size)
    weight = jnp.asarray(batch.weight, loss.dtype)
    if weight.shape != loss.shape:
        raise ValueError(f"weight: got shape {weight.shape}, expected {loss.shape}, one an example")
    total = jnp.sum(weight)
    return weight / jnp.where(total == 0, 1, total)


def penalty(model: MLP, params: Params) -> Array | float:
    """½·l2·Σ‖W‖²."""
    return model.l2 / 2 * sum(jnp.sum(w.weight**2) for w in params) if _penalised(model) else 0.0


def with_penalty(model: MLP, params: Params, grads: Params) -> Params:
    """The gradient with l2·W, the penalty's; also where grads have leading axes."""
    if not _penalised(model):
        return grads
    pairs = zip(grads, params, strict=True)
    return tuple(Layer(grad.weight + model.l2 * w.weight, grad.bias) for grad, w in pairs)


def _penalised(model: MLP) -> bool:
    return isinstance(model.l2, Array) or model.l2 != 0  # an array may be under trace
