"""Curvature: the objective's second derivative, times a vector, and factors of it.

    R{a⁽ˡ⁾} = W⁽ˡ⁾ R{z⁽ˡ⁻¹⁾} + V⁽ˡ⁾ z⁽ˡ⁻¹⁾ + v⁽ˡ⁾,  R{z⁽ˡ⁾} = h'(a⁽ˡ⁾) R{a⁽ˡ⁾}        R-forward
    R{δ⁽ˡ⁾} = h'(a⁽ˡ⁾) ⊙ R{e⁽ˡ⁾} + h''(a⁽ˡ⁾) R{a⁽ˡ⁾} ⊙ e⁽ˡ⁾,  e⁽ˡ⁾ = W⁽ˡ⁺¹⁾ᵀ δ⁽ˡ⁺¹⁾      R-backward

R{·} is the derivative along a direction of the parameters, which has weights V and biases v: each
line of the lecture's two recursions is differentiated once more.  No Hessian is ever formed: a
product costs about as much as two gradients.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxbp.gradient import Batch, example_shares, per_example_pass
from jaxbp.mlp import backward, forward, gradients
from jaxbp.model import MLP, Layer, Params, Residual, Residuals, units_of, with_penalty
from jaxbp.products import affine, mesh_of, product, sum_of_outer_products, whole
from jaxbp.trees import check_like, wide_enough


def hessian_vector_product(model: MLP, params: Params, batch: Batch, vector: Params) -> Params:
    """H v = R{∇E}, the Hessian of the objective, penalty included, times a tree like params.

    R{W̄⁽ˡ⁾} = Σₙ R{δₙ⁽ˡ⁾} zₙ⁽ˡ⁻¹⁾ᵀ + δₙ⁽ˡ⁾ R{zₙ⁽ˡ⁻¹⁾}ᵀ + l2·V⁽ˡ⁾ and R{b̄⁽ˡ⁾} = Σₙ R{δₙ⁽ˡ⁾}: the
    R-operator (Pearlmutter 1994, section 4).  Where an activation or a loss has a kink, the
    curvature of the kink itself is left out, as ``jax.jvp`` of ``jax.grad`` leaves it out.  Raises
    ValueError where vector, or another argument, does not fit.

    >>> from jaxbp import activations, heads
    >>> model = MLP((1, 1), activations.identity, heads.linear_half_squared_error)
    >>> params = (Layer(weight=jnp.array([[0.1]]), bias=jnp.array([0.0])),)
    >>> batch = Batch(x=jnp.array([[3.0]]), target=jnp.array([[1.0]]))  # E = ½ (3w + b - 1)²
    >>> (product,) = hessian_vector_product(model, params, batch, params)
    >>> print(f"{product.weight.item():.1f} {product.bias.item():.1f}")
    0.9 0.3
    """
    vector = _like("vector", vector, params)
    logits, residuals = forward(model, params, batch.x)

    def error_at(logits: Array) -> Array:
        loss, error = model.head.loss(logits, batch.target)
        return example_shares(batch, loss)[..., None] * error

    with mesh_of(params, batch, vector):
        r_logits, r_residuals = r_forward(model, params, residuals, vector)
        error, r_error = jax.jvp(error_at, (logits,), (r_logits,))
    deltas, r_deltas = r_backward(params, vector, residuals, r_residuals, error, r_error)
    first, *rest = with_penalty(model, vector, gradients(residuals, r_deltas))
    through_inputs = gradients(r_residuals[1:], deltas[1:])  # the first layer's are given
    pairs = zip(rest, through_inputs, strict=True)
    return (first, *(Layer(layer.weight + more.weight, layer.bias) for layer, more in pairs))


def gauss_newton_vector_product(model: MLP, params: Params, batch: Batch, vector: Params) -> Params:
    """G v = Σₙ shareₙ Jₙᵀ Hₙ Jₙ v + l2·V: tangent forward, the loss's own curvature, backward.

    J is the logits' Jacobian and H the Hessian of a loss with respect to its logits, such as
    diag(p) - ppᵀ for softmax (Schraudolph 2002, section 3).  G is what is left of the Hessian when
    the network is taken to be linear in its parameters; it is symmetric and, H being so for every
    head, positive semidefinite.  sigmoid_squared_error, which is not convex in the logits, has the
    classical 2 σ'² there.  A head of your own whose loss is not convex in its logits needs a
    ``gauss_newton`` as well.  Raises ValueError where vector, or another argument, does not fit.
    """
    vector = _like("vector", vector, params)
    logits, residuals = forward(model, params, batch.x)
    loss, _ = model.head.loss(logits, batch.target)
    with mesh_of(params, batch, vector):
        tangent, _ = r_forward(model, params, residuals, vector)
        share = example_shares(batch, loss)
        curved = share[..., None] * _loss_curvature(model, logits, batch, tangent)
    return with_penalty(model, vector, gradients(residuals, backward(params, residuals, curved)))


class KroneckerFactors(NamedTuple):
    """The two factors of one layer: input ⊗ delta stands for its block of the Fisher matrix."""

    input: Array  # (I + 1, I + 1) Σₙ shareₙ z̄ₙ z̄ₙᵀ, z̄ the layer's input and a 1 for the bias
    delta: Array  # (O, O) Σₙ shareₙ δₙ δₙᵀ


def kronecker_factors(model: MLP, params: Params, batch: Batch) -> tuple[KroneckerFactors, ...]:
    """Both factors of every layer, from (z, δ) as they are (Martens and Grosse 2015, section 3).

    δ is of each example's own loss, the penalty left out.  With the batch's own targets they belong
    to what is called the empirical Fisher matrix; for the Fisher matrix itself, draw the targets
    from ``predict`` (Kunstner et al. 2019).  For a single example input ⊗ delta is exactly the
    outer product of its gradient with itself.
    """
    loss, residuals, deltas = per_example_pass(model, params, batch)
    share = example_shares(batch, loss)
    weight = None if batch.weight is None else share
    return tuple(
        KroneckerFactors(
            input=_with_one(
                _mean_outer(weight, r.input), _mean_row(weight, r.input), jnp.sum(share)
            ),
            delta=_mean_outer(weight, delta),
        )
        for r, delta in zip(residuals, deltas, strict=True)
    )


def r_forward(
    model: MLP, params: Params, residuals: Residuals, vector: Params
) -> tuple[Array, Residuals]:
    """R-forward: R{logits} and, for each layer, R{z} (B, I) and R{h'(a)} = h''(a) R{a} (B, O).

    It is the derivative of ``forward`` along vector.  a is computed once more, as the residuals
    hold h'(a) alone.
    """
    r_z = jnp.zeros_like(residuals[0].input)  # the network's input does not depend on params
    r_residuals: list[Residual] = []
    for unit, layer, v, residual in zip(units_of(model), params, vector, residuals, strict=True):
        z = residual.input
        a, r_a = affine(layer, z), affine(v, z)
        if r_residuals:  # below the first layer there is nothing to pass on
            r_a = r_a + product(r_z, layer.weight.T, r_a)
        _, (_, r_slope) = jax.jvp(unit, (a,), (r_a,))
        r_residuals.append(Residual(input=r_z, slope=r_slope))
        r_z = residual.slope * r_a
    return r_z, tuple(r_residuals)


def r_backward(
    params: Params,
    vector: Params,
    residuals: Residuals,
    r_residuals: Residuals,
    error: Array,
    r_error: Array,
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """R-backward: δ (B, O) and R{δ} of every layer, the latter the derivative along vector.

    params, vector: of the network, and the direction.
    residuals, r_residuals: of ``forward``, and of ``r_forward``.
    error, r_error: (B, K) ∂L/∂logits and its derivative along vector.
    """
    deltas, r_deltas = [], []
    layers = zip(params, vector, residuals, r_residuals, strict=True)
    for layer, v, residual, r_residual in reversed(list(layers)):
        deltas.append(error * residual.slope)
        r_deltas.append(r_error * residual.slope + error * r_residual.slope)
        through_layer = product(r_deltas[-1], layer.weight, error)
        r_error = through_layer + product(deltas[-1], v.weight, error)
        error = product(deltas[-1], layer.weight, error)
    return tuple(reversed(deltas)), tuple(reversed(r_deltas))


def _loss_curvature(model: MLP, logits: Array, batch: Batch, tangent: Array) -> Array:
    """Hₙ times each example's tangent (B, K): the derivative of the head's own error."""
    if model.head.gauss_newton is not None:
        return model.head.gauss_newton(logits, tangent)
    curved: Array
    _, curved = jax.jvp(lambda a: model.head.loss(a, batch.target)[1], (logits,), (tangent,))
    return curved


def _with_one(outer: Array, mean: Array, total: Array) -> Array:
    """The mean of z̄z̄ᵀ from those of zzᵀ and z, for z̄ = (z, 1): no row is copied to append a 1."""
    outer, mean = whole(outer), whole(mean)
    return jnp.block([[outer, mean[:, None]], [mean[None, :], total[None, None]]])


def _mean_outer(share: Array | None, rows: Array) -> Array:
    """Σₙ shareₙ rₙ rₙᵀ, (I, I); where shares are equal no weighted copy of the rows is made."""
    weighted = rows if share is None else share[..., None] * rows
    outer = sum_of_outer_products(weighted, rows, wide_enough(rows))
    mean = outer / (rows.size // rows.shape[-1]) if share is None else outer
    return mean.astype(rows.dtype)


def _mean_row(share: Array | None, rows: Array) -> Array:
    axes = range(rows.ndim - 1)
    return jnp.mean(rows, axes) if share is None else jnp.sum(share[..., None] * rows, axes)


def _like(name: str, vector: Params, params: Params) -> Params:
    """A tree in the dtypes of params.  Raises ValueError, naming it, where it has other shapes."""
    check_like(name, vector, params)
    converted: Params = jax.tree.map(
        lambda given, own: jnp.asarray(given, jnp.result_type(own)), vector, params
    )
    return converted
