"""Hessian and Gauss-Newton products and Kronecker factors against jvp, grad and vmap of JAX.

    python -m benchmarks.curvature [--output results.json] [--short | --quick]
    python -m benchmarks.curvature --table results.json

Time and temporary memory of one call, in float32, of networks with softmax cross-entropy: the
functions of ``jaxbp.curvature`` beside forward-over-reverse automatic differentiation of the same
objective and of an idiomatic ``jax.nn`` network, and Kronecker factors beside those of deltas that
are gradients with respect to zeros, added to every pre-activation.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxbp
from benchmarks.per_example import CLASSES, problem
from benchmarks.protocol import (
    agreeing,
    command,
    compiled,
    entry,
    extent,
    heading,
    interleaved,
    line,
    median,
)
from jaxbp import activations, curvature

ACTIVATIONS = {
    "tanh": (activations.tanh, jnp.tanh),
    "relu": (activations.relu, jax.nn.relu),
}
SHAPES = [(width, rows) for width in (64, 256, 512) for rows in (32, 512, 4096)]
GRID = [(name, *shape) for name in ACTIVATIONS for shape in [*SHAPES, (2048, 32), (2048, 512)]]
SHORT = [(name, 512, 512) for name in ACTIVATIONS]
QUICK = [("tanh", 16, 32)]
SECONDS = 1.0  # of the rounds of contenders that are interleaved

OURS, SAME, IDIOMATIC, TAPS = "jaxbp", "jvp(grad(objective))", "jax.nn", "vmap(grad) of taps"

# By autodiff: what one writes without this package


def network(activation, params, x):
    *hidden, output = params
    for layer in hidden:
        x = activation(x @ layer.weight.T + layer.bias)
    return x @ output.weight.T + output.bias


def mean_loss(logits, target):
    return optax.softmax_cross_entropy_with_integer_labels(logits, target).mean()


def forward_over_reverse(loss, params, vector):
    _, product = jax.jvp(jax.grad(loss), (params,), (vector,))
    return product


def hessian_of_objective(model, params, batch, vector):
    def loss(params):
        return jaxbp.objective(model, params, batch)

    return forward_over_reverse(loss, params, vector)


def hessian_of_network(activation, params, batch, vector):
    def loss(params):
        return mean_loss(network(activation, params, batch.x), batch.target)

    return forward_over_reverse(loss, params, vector)


def gauss_newton_of_network(activation, params, batch, vector):
    def logits_of(params):
        return network(activation, params, batch.x)

    def loss(logits):
        return mean_loss(logits, batch.target)

    logits, tangent = jax.jvp(logits_of, (params,), (vector,))
    curved = forward_over_reverse(loss, logits, tangent)
    _, pull_back = jax.vjp(logits_of, params)
    return pull_back(curved)[0]


def factors_of_taps(activation, params, batch):
    """Every example's gradient by zeros added to its pre-activations is its δ."""

    def tapped(taps, x, label):
        inputs, a = [], x
        for number, (layer, tap) in enumerate(zip(params, taps, strict=True)):
            inputs.append(activation(a) if number else a)
            a = layer.weight @ inputs[-1] + layer.bias + tap
        return optax.softmax_cross_entropy_with_integer_labels(a, label), inputs

    def mean_outer(rows):
        return jnp.einsum("ni,nj->ij", rows, rows) / len(rows)

    def with_one(z):
        return jnp.concatenate([z, jnp.ones_like(z[:, :1])], axis=1)

    taps = [jnp.zeros_like(layer.bias) for layer in params]
    of_each = jax.vmap(jax.grad(tapped, has_aux=True), in_axes=(None, 0, 0))
    deltas, inputs = of_each(taps, batch.x, batch.target)
    return tuple(
        curvature.KroneckerFactors(input=mean_outer(with_one(z)), delta=mean_outer(delta))
        for z, delta in zip(inputs, deltas, strict=True)
    )


# Comparing


def comparison(build, gradient, seconds):
    """Time the contenders whose answers agree, ours first, and the gradient with them."""

    def with_gradient():
        return build() | {"backprop": compiled(*gradient)}

    contenders = agreeing(with_gradient, unlike=("backprop",))
    timings = interleaved(contenders, at_most_seconds=seconds)
    return {name: entry(contenders[name], timings[name]) for name in contenders}


def compare(name, width, rows, seconds):
    """One row of the table."""
    activation, idiomatic = ACTIVATIONS[name]
    model, params, batch = problem((width, width, width, CLASSES), rows, activation)
    rng = np.random.default_rng(1)
    vector = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), params)
    arguments = (params, batch, vector)

    def hessian():
        return {
            OURS: compiled(partial(curvature.hessian_vector_product, model), *arguments),
            SAME: compiled(partial(hessian_of_objective, model), *arguments),
            IDIOMATIC: compiled(partial(hessian_of_network, idiomatic), *arguments),
        }

    def gauss_newton():
        return {
            OURS: compiled(partial(curvature.gauss_newton_vector_product, model), *arguments),
            IDIOMATIC: compiled(partial(gauss_newton_of_network, idiomatic), *arguments),
        }

    def kronecker():
        return {
            OURS: compiled(partial(curvature.kronecker_factors, model), params, batch),
            TAPS: compiled(partial(factors_of_taps, idiomatic), params, batch),
        }

    gradient = (partial(jaxbp.backprop, model), params, batch)
    return {
        "network": f"{name}, {'-'.join(map(str, model.sizes))}, batch {rows}",
        "hessian": comparison(hessian, gradient, seconds),
        "gauss_newton": comparison(gauss_newton, gradient, seconds),
        "kronecker": comparison(kronecker, gradient, seconds),
    }


# Reading the result


def over(part, other):
    """Ours over another: time and temporary memory."""
    ours, theirs = part[OURS], part[other]
    memory = ours["temporary_mib"] / theirs["temporary_mib"] if theirs["temporary_mib"] else None
    time = f"{median(ours) / median(theirs):.2f}"
    return time if memory is None else f"{time}, {memory:.2f}"


def gradients_of(part):
    """How many gradients ours costs."""
    return f"{median(part[OURS]) / median(part['backprop']):.2f}"


COLUMNS = (
    "network, batch",
    "Hessian: over jvp(grad) of the same objective",
    "Hessian: over jvp(grad) of jax.nn",
    "Gauss-Newton: over jax.nn",
    "Kronecker: over vmap(grad) of taps",
    "cost in gradients: Hessian",
    "Gauss-Newton",
    "Kronecker",
    "a gradient",
)
EXPLANATION = """\
Time and temporary memory of `hessian_vector_product`, `gauss_newton_vector_product` and
`kronecker_factors` over automatic differentiation's: below 1 ours takes less. The Hessian by
`jax.jvp` of `jax.grad`, of our own `objective` and of an idiomatic `jax.nn` network; the
Gauss-Newton product by `jax.jvp` of that network, `jax.jvp` of the loss's `jax.grad` and `jax.vjp`;
the factors by `jax.vmap` of `jax.grad` with respect to zeros added to every pre-activation. The
cost in gradients is the time over that of `backprop`. Medians of interleaved calls, compilation
apart; answers compared before."""


def row(cell):
    """Ratios first, then what they are ratios of."""
    hessian, gauss_newton, kronecker = (
        cell[part] for part in ("hessian", "gauss_newton", "kronecker")
    )
    return line(
        cell["network"],
        over(hessian, SAME),
        over(hessian, IDIOMATIC),
        over(gauss_newton, IDIOMATIC),
        over(kronecker, TAPS),
        gradients_of(hessian),
        gradients_of(gauss_newton),
        gradients_of(kronecker),
        f"{median(hessian['backprop']) * 1e3:.3g} ms",
    )


def markdown(result):
    """The table, and what it says."""
    rows = [row(cell) for cell in result["cells"]]
    return "\n".join([heading(*COLUMNS), *rows, "", EXPLANATION.replace("\n", " ")])


def measure(options):
    """Every cell, printed as it is measured."""
    print(heading(*COLUMNS))
    seconds = 0.0 if options.quick else SECONDS
    cells = []
    for cell in extent(options, GRID, SHORT, QUICK):
        cells.append(compare(*cell, seconds))
        print(row(cells[-1]), flush=True)
    return {"cells": cells}


if __name__ == "__main__":
    command(__doc__, measure, markdown)
