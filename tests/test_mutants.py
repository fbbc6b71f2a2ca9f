"""Tests of the tests: a gradient with a planted bug must not pass for the gradient."""

import jax
import jax.numpy as jnp
import pytest
from tables import random_batch, random_params

import jaxbp
from jaxbp import activations, heads
from jaxbp.checking import central_difference, relative_error

MODEL = jaxbp.MLP((4, 4, 4, 4), activations.tanh, heads.softmax_cross_entropy, l2=0.1)


def edited(edit):
    """A gradient that backprop's result is edited into."""

    def gradient(model, params, batch):
        loss, grads = jaxbp.backprop(model, params, batch)
        return loss, tuple(edit(layer, params, batch) for layer in grads)

    return gradient


def rewritten(step):
    """Backprop with its own recursion: step(upper delta, upper layer, lower slope) -> delta."""

    def gradient(model, params, batch):
        logits, residuals = jaxbp.forward(model, params, batch.x)
        loss, error = model.head.loss(logits, batch.target)
        share = batch.weight / batch.weight.sum()
        deltas = [share[:, None] * error]
        for above, below in zip(params[:0:-1], residuals[-2::-1], strict=True):
            deltas.insert(0, step(deltas[0], above.weight, below.slope))
        grads = jaxbp.gradients(residuals, tuple(deltas))
        penalized = (
            jaxbp.Layer(grad.weight + model.l2 * layer.weight, grad.bias)
            for grad, layer in zip(grads, params, strict=True)
        )
        return loss.sum(), tuple(penalized)

    return gradient


MUTANTS = {
    "slope wrong by 0.1 %": rewritten(lambda delta, w, slope: (delta @ w) * slope * 1.001),
    "untransposed weight": rewritten(lambda delta, w, slope: (delta @ w.T) * slope),
    "wrong sign": rewritten(lambda delta, w, slope: -(delta @ w) * slope),
    "slope forgotten": rewritten(lambda delta, w, slope: delta @ w),
    "bias dropped": edited(lambda layer, *_: layer._replace(bias=0 * layer.bias)),
    "1/B missing": edited(lambda layer, _, b: jax.tree.map(lambda g: g * len(b.x), layer)),
    "weight transposed": edited(lambda layer, *_: layer._replace(weight=layer.weight.T)),
    "L2 forgotten": edited(lambda layer, params, _: layer._replace(weight=layer.weight * 0.999)),
}


def errors(gradient):
    """How far a claimed gradient is from jax.grad, and from numerical differentiation."""
    params, batch = random_params(MODEL, 1), random_batch(MODEL, 6, 2)
    _, claimed = gradient(MODEL, params, batch)
    _, reference = jaxbp.autodiff(MODEL, params, batch)
    direction = random_params(MODEL, 3)
    slope = sum(map(jnp.vdot, jax.tree.leaves(claimed), jax.tree.leaves(direction)))
    measured = central_difference(
        lambda p: jaxbp.objective(MODEL, p, batch), params, direction, step=1e-5
    )
    return float(relative_error(claimed, reference)), float(abs(slope / measured - 1))


@pytest.mark.parametrize("name", MUTANTS)
def test_a_planted_bug_is_caught_twice(name, x64):
    by_autodiff, by_differences = errors(MUTANTS[name])
    assert by_autodiff > 1e-4
    assert by_differences > 1e-6


def test_the_scaffold_without_a_bug_is_not(x64):
    for gradient in (rewritten(lambda delta, w, slope: (delta @ w) * slope), jaxbp.backprop):
        by_autodiff, by_differences = errors(gradient)
        assert by_autodiff < 1e-13
        assert by_differences < 1e-8
