"""How fast are curvature products and Kronecker factors, against jvp, grad and vmap of JAX?

    python -m benchmarks.curvature [--output results.json] [--short | --quick]
    python -m benchmarks.curvature --table results.json

Time and temporary memory of one call, in float32, of networks with softmax cross-entropy: the
Hessian and Gauss-Newton products of ``jaxbp.curvature`` beside forward-over-reverse automatic
differentiation of the same objective and of an idiomatic ``jax.nn`` network, and its Kronecker
factors beside factors of deltas by automatic differentiation: gradients with respect to zeros that
are added to every pre-activation.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxbp
from benchmarks import protocol
from benchmarks.problems import CLASSES, name_of, problem
from jaxbp import activations, curvature

ACTIVATIONS = {
    "tanh": (activations.tanh, jnp.tanh),
    "relu": (activations.relu, jax.nn.relu),
}
SHAPES = [(width, rows) for width in (64, 256, 512) for rows in (32, 512, 4096)]
GRID = [(name, *shape) for name in ACTIVATIONS for shape in [*SHAPES, (2048, 32), (2048, 512)]]
SHORT = [(name, 512, 512) for name in ACTIVATIONS]
QUICK = [("tanh", 16, 32)]
SECONDS = 1.0  # for the rounds of contenders that are timed together

OURS, SAME, IDIOMATIC, TAPS = "jaxbp", "jvp(grad(objective))", "jax.nn", "vmap(grad) of taps"


# By autodiff: what one writes without this package


def network(activation, params, x):
    """The logits."""
    *hidden, output = params
    for layer in hidden:
        x = activation(x @ layer.weight.T + layer.bias)
    return x @ output.weight.T + output.bias


def mean_loss(logits, target):
    return optax.softmax_cross_entropy_with_integer_labels(logits, target).mean()


def forward_over_reverse(loss, params, vector):
    """The Hessian of a loss, times a vector."""
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
    """Kronecker factors, each δ being an example's gradient by a zero added to a pre-activation."""

    def tapped(taps, x, label):
        inputs = [x]
        for layer, tap in zip(params, taps, strict=True):
            a = layer.weight @ inputs[-1] + layer.bias + tap
            inputs.append(activation(a))
        return optax.softmax_cross_entropy_with_integer_labels(a, label), inputs[:-1]

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


def comparison(functions, arguments, case, seconds):
    """Time functions of the same arguments, ours first, and a gradient with them.

    They are timed once their answers agree.
    """

    def build():
        contenders = {name: protocol.compiled(f, *arguments) for name, f in functions.items()}
        gradient = partial(jaxbp.backprop, case.model)
        return contenders | {"backprop": protocol.compiled(gradient, case.params, case.batch)}

    contenders = protocol.agreeing(build, unlike=("backprop",))
    return protocol.timed(contenders, at_most_seconds=seconds)


def compare(name, width, rows, seconds):
    """One row of the table."""
    activation, idiomatic = ACTIVATIONS[name]
    case = problem((width, width, width, CLASSES), rows, activation)
    rng = np.random.default_rng(1)
    vector = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), case.params)
    given = case.params, case.batch
    hessian = {
        OURS: partial(curvature.hessian_vector_product, case.model),
        SAME: partial(hessian_of_objective, case.model),
        IDIOMATIC: partial(hessian_of_network, idiomatic),
    }
    gauss_newton = {
        OURS: partial(curvature.gauss_newton_vector_product, case.model),
        IDIOMATIC: partial(gauss_newton_of_network, idiomatic),
    }
    kronecker = {
        OURS: partial(curvature.kronecker_factors, case.model),
        TAPS: partial(factors_of_taps, idiomatic),
    }
    return {
        "network": f"{name}, {name_of(case.model.sizes)}, batch {rows}",
        "hessian": comparison(hessian, (*given, vector), case, seconds),
        "gauss_newton": comparison(gauss_newton, (*given, vector), case, seconds),
        "kronecker": comparison(kronecker, given, case, seconds),
    }


# Reading the result


def over(part, other):
    """Ours over another: time and temporary memory."""
    ours, theirs = part[OURS], part[other]
    time = f"{protocol.median(ours) / protocol.median(theirs):.2f}"
    if theirs["temporary_mib"] in (None, 0):
        return time
    return f"{time}, {ours['temporary_mib'] / theirs['temporary_mib']:.2f}"


def gradients_of(part):
    """The cost of ours, in gradients."""
    return f"{protocol.median(part[OURS]) / protocol.median(part['backprop']):.2f}"


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
apart; answers compared before. For relu the Hessian takes one product more than by `jax.jvp`, 19
instead of 18 in three layers: relu's h'' is zero, so JAX leaves out the first layer's Wᵀδ, which
ours multiplies by zero. Where the batch is smaller than the width, the Kronecker factors take more
memory and time, because ours puts the row and column of the bias around each finished factor, which
copies it, and JAX appends a 1 to each of the few rows."""


def row(cell):
    """Ratios first, then the time of a gradient."""
    hessian, gauss_newton, kronecker = cell["hessian"], cell["gauss_newton"], cell["kronecker"]
    return protocol.line(
        cell["network"],
        over(hessian, SAME),
        over(hessian, IDIOMATIC),
        over(gauss_newton, IDIOMATIC),
        over(kronecker, TAPS),
        gradients_of(hessian),
        gradients_of(gauss_newton),
        gradients_of(kronecker),
        f"{protocol.median(hessian['backprop']) * 1e3:.3g} ms",
    )


def markdown(result):
    """The table and its text."""
    return protocol.table(COLUMNS, map(row, result["cells"]), EXPLANATION)


def measure(run):
    """Every cell, printed as it is measured."""
    print(protocol.heading(*COLUMNS))
    seconds = 0.0 if run.quick else SECONDS
    grid = protocol.extent(run, GRID, SHORT, QUICK)
    cells = run.cells(grid, lambda cell: compare(*cell, seconds))
    return {"cells": run.kept(cells, lambda cell: print(row(cell), flush=True))}


if __name__ == "__main__":
    protocol.command(__doc__, measure, markdown)
