"""Gradient bugs: wrong gradients for a checker to catch, and right ones that it must not fail.

MUTANTS holds gradients with one planted bug each.  They are mistakes that people really make: one
line of a correct backward pass gone wrong, or one rule of a custom derivative.  CORRECT holds right
gradients that are hard to check: at kinks, at extreme scales, where f is flat, in low precision.
``tests/test_mutants.py`` holds ``jaxbp.gradcheck`` to both, ``benchmarks/checkers.py`` compares it
with other checkers on them.

The file reads from top to bottom: a network's backward pass in replaceable parts, other functions
with a wrong rule, the mutants, and the right gradients.
"""

from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient

import jaxbp
from benchmarks.problems import random_batch, random_params
from jaxbp import activations, heads
from jaxbp.model import units_of


class Case(NamedTuple):
    """A call of gradcheck: gradcheck(f, *args, grads=grads, **options)."""

    f: Callable[..., Any]
    args: tuple[Any, ...]
    grads: Any = None
    options: Mapping[str, Any] = MappingProxyType({})
    plain: Callable[..., Any] | None = None  # f without a wrong rule, where it has one


# A network's backward pass, in parts


class Parts(NamedTuple):
    """The lines of a backward pass, each of which a mutant may replace."""

    share: Callable = lambda weight: weight / weight.sum()  # each example's part of the mean
    error: Callable = lambda model, logits, target: model.head.loss(logits, target)[1]
    slope: Callable = lambda unit, a, z, slope: slope  # h'(a) of a layer, a and z = h(a) known
    step: Callable = lambda delta, above, slope: (delta @ above) * slope  # δ = h'(a) Wᵀδ
    weight: Callable = lambda delta, z: delta.T @ z  # W̄ = Σₙ δₙ zₙᵀ
    bias: Callable = lambda delta: delta.sum(0)  # b̄ = Σₙ δₙ
    penalty: Callable = lambda l2, layer: (l2 * layer.weight, 0)  # its share of W̄ and b̄
    # the arguments of the lines above, and the result
    batch: Callable = lambda batch: batch
    params: Callable = lambda params: params
    deltas: Callable = lambda deltas: deltas
    slopes: Callable = lambda slopes: slopes
    inputs: Callable = lambda inputs: inputs
    grads: Callable = lambda grads: grads


def backward_with(parts, model):
    """The gradient of a batch's objective, put together from its parts."""

    def gradient(params, batch, l2):
        batch, above = parts.batch(batch), parts.params(params)
        logits, residuals = jaxbp.forward(model, params, batch.x)
        inputs = [residual.input for residual in residuals]
        slopes, units = [], units_of(model)
        for unit, layer, residual, z in zip(units, params, residuals, inputs[1:], strict=False):
            a = residual.input @ layer.weight.T + layer.bias
            slopes.append(parts.slope(unit, a, z, residual.slope))
        slopes, inputs = parts.slopes(slopes), parts.inputs(inputs)
        share = parts.share(batch.weight)[:, None]
        deltas = [share * parts.error(model, logits, batch.target)]
        for layer, slope in zip(above[:0:-1], slopes[::-1], strict=True):
            deltas.insert(0, parts.step(deltas[0], layer.weight, slope))
        grads = []
        for layer, delta, z in zip(params, parts.deltas(deltas), inputs, strict=True):
            of_weight, of_bias = parts.penalty(l2, layer)
            grads.append(
                jaxbp.Layer(parts.weight(delta, z) + of_weight, parts.bias(delta) + of_bias)
            )
        return tuple(parts.grads(grads))

    return gradient


@cache  # so that all mutants of a network share one program
def objective_of(model):
    """A network's objective as a compiled function of parameters, batch and l2."""
    return jax.jit(lambda params, batch, l2: jaxbp.objective(model._replace(l2=l2), params, batch))


def network(
    *,
    sizes=(4, 4, 4, 4),
    activation=activations.tanh,
    head=heads.softmax_cross_entropy,
    l2=0.1,
    rows=6,
    weighted=False,
    smooth=False,
    dtype=np.float64,
    scale=1.0,
    **parts,
):
    """A network's objective, and its gradient with some of its parts replaced.

    sizes: (D, hidden..., K); three layers of 4 unless given.
    activation: one for all hidden layers, or a tuple; tanh unless given.
    head: softmax_cross_entropy unless given.
    l2: strength of the penalty; 0.1 unless given.
    rows: B, the batch's number of examples; 6 unless given.
    weighted: with random example weights instead of equal ones.
    smooth: with smoothed labels as targets.
    dtype: float64 unless given.
    scale: factor on all initial parameters; 1 unless given.
    parts: fields of Parts to replace, by name.
    """
    model = jaxbp.MLP(sizes, activation, head)
    params = jax.tree.map(lambda leaf: leaf * scale, random_params(model, 1, dtype))
    batch = random_batch(model, rows, 2, weighted=weighted, dtype=dtype)
    if not weighted:
        batch = batch._replace(weight=jnp.asarray(np.ones(rows), dtype))
    if smooth:
        labels = jaxbp.smooth_labels(np.arange(rows) % sizes[-1], 0.1, num_classes=sizes[-1])
        batch = batch._replace(target=labels)
    args = params, batch, jnp.asarray(l2, dtype)
    return Case(objective_of(model), args, backward_with(Parts(**parts), model))


def slope_of(activation, wrong):
    """A network with four activations, and the slope of one of them replaced by wrong(a, h)."""
    units = (activations.sigmoid, activations.softplus, activations.leaky_relu, activations.elu)
    return network(
        sizes=(4,) * 6,
        activation=units,
        slope=lambda unit, a, h, slope: wrong(a, h) if unit is activation else slope,
    )


def edit(number, name, change):
    """The change of one leaf of one layer's gradient, as a part ``grads``."""

    def edited(grads):
        layer = grads[number]
        layer = layer._replace(**{name: change(getattr(layer, name))})
        return [*grads[:number], layer, *grads[number + 1 :]]

    return edited


def wide_entry(dtype, factor):
    """784-300-10 with one entry of the first weight's gradient multiplied by a factor."""
    change = edit(0, "weight", lambda w: w.at[17, 123].multiply(factor))
    return network(
        sizes=(784, 300, 10), activation=activations.relu, rows=8, l2=0.0, dtype=dtype, grads=change
    )


def softmax_over_the_batch(model, logits, target):
    return jax.nn.softmax(logits, axis=0) * target.sum(-1, keepdims=True) - target


def diagonal_only(model, logits, target):
    return target * (jax.nn.softmax(logits) - 1)


def unsmoothed(batch):
    likeliest = jnp.argmax(batch.target, axis=1)
    return batch._replace(target=jax.nn.one_hot(likeliest, batch.target.shape[1]))


def bf16(delta, z):
    product = delta.astype(jnp.bfloat16).T @ z.astype(jnp.bfloat16)
    return product.astype(z.dtype)


def round_to(digits):
    return lambda grads: jax.tree.map(lambda leaf: jnp.round(leaf, digits), grads)


def non_deterministic():
    """A gradient that is off by another factor at every call."""
    case, calls = network(), []

    def varying(*args):
        calls.append(1)
        return jax.tree.map(lambda leaf: leaf * (1 + 1e-3 * len(calls)), case.grads(*args))

    return case._replace(grads=varying)


# Other functions with a wrong rule


X = np.linspace(0.3, 2.0, 6)


def custom_vjp(forward, backward):
    """A function of X with a rule of its own: backward(x, cotangent)."""

    @jax.custom_vjp
    def function(x):
        return forward(x)

    function.defvjp(lambda x: (forward(x), x), lambda x, cotangent: (backward(x, cotangent),))

    def use(h):
        return lambda x: 3.0 * jnp.sum(h(x) ** 2)

    return Case(use(function), (jnp.asarray(X),), plain=use(forward))


def custom_jvp(forward, tangent):
    """A function of X with a rule of its own: tangent(x, t)."""
    function = jax.custom_jvp(forward)
    function.defjvp(lambda primals, tangents: (forward(*primals), tangent(*primals, *tangents)))

    def use(h):
        return lambda x: jnp.sum(jnp.sin(h(x)))

    return Case(use(function), (jnp.asarray(X),), plain=use(forward))


def integer_claim():
    """A slope for an integer leaf, which has none."""
    return Case(
        lambda p: jnp.sum(p["w"] ** 2) * p["n"],
        ({"w": jnp.asarray(X), "n": 3},),
        {"w": jnp.asarray(6 * X), "n": np.float32(1.0)},
    )


def batching_rule():
    """A gradient that is right in a loop and wrong under vmap."""

    @jax.custom_batching.custom_vmap
    def slope(x):
        return 2 * x

    @slope.def_vmap
    def _(axis_size, in_batched, x):
        return jnp.broadcast_to(2 * x.sum(0), x.shape), True

    return Case(lambda x: jnp.sum(x**2), (jnp.asarray(X),), slope)


def float32_only():
    """A gradient that is wrong only in the dtype that users run."""
    x = jnp.asarray(X, jnp.float32)
    return Case(
        lambda x: jnp.sum(jnp.exp(x)),
        (x,),
        lambda x: jnp.exp(x) * (1.01 if x.dtype == jnp.float32 else 1.0),
    )


# The mutants


class Mutant(NamedTuple):
    """A planted bug, made when it is asked for, and the diagnosis that names it.

    The diagnosis is a regular expression; it is empty where nothing simple explains the damage.
    """

    make: Callable[[], Case]
    diagnosis: str


#: the diagnosis where the leaves above are right, and where no leaf is
PASSED_BACK = r"every leaf up to params\[\d\].bias: right above; look at what is passed back"
AT_THE_OUTPUT = "every leaf: look at the error at the output"

# networks that several mutants share
SMALL = {"sizes": (4, 4, 4)}
SQUARED = {**SMALL, "head": heads.linear_squared_error, "l2": 0.0}
DEEP = {"sizes": (4, 4, 4, 4, 4, 4), "l2": 0.0}
RELU = {"activation": activations.relu, "l2": 0.0}
ONE_EXAMPLE = {"rows": 1, "l2": 0.0, "sizes": (4, 6, 4)}

MUTANTS: dict[str, Mutant] = {
    # the recursion δ = h'(a) Wᵀδ
    "weight untransposed": Mutant(lambda: network(step=lambda d, w, s: (d @ w.T) * s), PASSED_BACK),
    "slope forgotten": Mutant(lambda: network(step=lambda d, w, s: d @ w), PASSED_BACK),
    "slope forgotten, one example": Mutant(
        lambda: network(**ONE_EXAMPLE, step=lambda d, w, s: d @ w),
        r"slope h'\(a\) is missing",
    ),
    "slope squared": Mutant(lambda: network(step=lambda d, w, s: (d @ w) * s**2), PASSED_BACK),
    "slope of the wrong layer": Mutant(lambda: network(slopes=lambda s: s[::-1]), PASSED_BACK),
    "sign of the recursion": Mutant(
        lambda: network(l2=0.0, sizes=(4, 4, 4), step=lambda d, w, s: -(d @ w) * s),
        r"factor of -1",
    ),
    "0.1 % in one activation": Mutant(
        lambda: network(l2=0.0, sizes=(4, 4, 4), step=lambda d, w, s: (d @ w) * s * 1.001),
        r"factor of 1\.001",
    ),
    "deltas off by one layer": Mutant(lambda: network(deltas=lambda d: [*d[1:], d[0]]), ""),
    "deltas reversed": Mutant(
        lambda: network(l2=0.0, grads=lambda grads: grads[::-1]),
        r"permuted: what is claimed for params\[2\]",
    ),
    "stopped gradient": Mutant(
        lambda: network(l2=0.0, step=lambda d, w, s: stop_gradient(d) * 0 @ w * s),
        "zero everywhere",
    ),
    "hidden error clipped": Mutant(
        lambda: network(**DEEP, step=lambda d, w, s: jnp.clip((d @ w) * s, -0.02, 0.02)),
        PASSED_BACK,
    ),
    "upper weights already updated": Mutant(
        lambda: network(params=lambda p: jax.tree.map(lambda w: w * 0.99, p)),
        PASSED_BACK,
    ),
    # slopes
    "slope from a instead of h": Mutant(
        lambda: slope_of(activations.sigmoid, lambda a, h: a * (1 - a)),
        PASSED_BACK,
    ),
    "tanh's slope without its square": Mutant(
        lambda: network(slope=lambda unit, a, h, s: 1 - h),
        PASSED_BACK,
    ),
    "sigmoid's slope with a plus": Mutant(
        lambda: slope_of(activations.sigmoid, lambda a, h: h * (1 + h)),
        PASSED_BACK,
    ),
    "softplus's slope is its value": Mutant(
        lambda: slope_of(activations.softplus, lambda a, h: h),
        PASSED_BACK,
    ),
    "ReLU's slope by h >= 0": Mutant(
        lambda: network(**RELU, rows=1, slope=lambda unit, a, h, s: (h >= 0) * 1.0),
        "right only where the slope is 1",
    ),
    "leaky slope on the wrong side": Mutant(
        lambda: slope_of(activations.leaky_relu, lambda a, h: jnp.where(a > 0, 0.01, 1.0)),
        PASSED_BACK,
    ),
    "ELU's slope as the lecture prints it": Mutant(
        lambda: slope_of(activations.elu, lambda a, h: jnp.where(a > 0, 1, h - 1)),
        PASSED_BACK,
    ),
    # the contraction δ zᵀ
    "weight gradient transposed": Mutant(
        lambda: network(l2=0.0, weight=lambda d, z: z.T @ d),
        "transposed",
    ),
    "weight gradient transposed and reshaped": Mutant(
        lambda: network(
            sizes=(5, 3), l2=0.0, weight=lambda d, z: (z.T @ d).reshape(d.shape[1], z.shape[1])
        ),
        "transposed, then reshaped",
    ),
    "bias gradient dropped": Mutant(
        lambda: network(bias=lambda d: 0 * d.sum(0)),
        "every bias: zero everywhere",
    ),
    "bias gradient averaged": Mutant(
        lambda: network(bias=lambda d: d.mean(0)),
        r"every bias: off by a factor of 1/6 \(the length",
    ),
    "bias gradient twice": Mutant(
        lambda: network(bias=lambda d: 2 * d.sum(0)),
        "every bias: off by a factor of 2",
    ),
    "bias gradient of one example": Mutant(lambda: network(bias=lambda d: d[0]), ""),
    "rows of z and delta misaligned": Mutant(
        lambda: network(l2=0.0, weight=lambda d, z: d.T @ z[::-1]),
        "",
    ),
    "stale residual": Mutant(
        lambda: network(inputs=lambda z: [1.01 * z[0], *z[1:]], l2=0.0),
        r"params\[0\].weight: off by a factor of 1.01",
    ),
    "bfloat16 accumulation": Mutant(lambda: network(weight=bf16), ""),
    # the error and the mean
    "wrong sign": Mutant(
        lambda: network(grads=lambda g: jax.tree.map(jnp.negative, g)),
        "every leaf: off by a factor of -1",
    ),
    "1/B dropped": Mutant(
        lambda: network(l2=0.0, share=lambda w: w),
        r"every leaf: off by a factor of 6 \(the length",
    ),
    "1/B twice": Mutant(
        lambda: network(l2=0.0, share=lambda w: w / w.sum() ** 2),
        r"every leaf: off by a factor of 1/6 \(the length",
    ),
    "mean over outputs too": Mutant(
        lambda: network(l2=0.0, error=lambda m, a, t: m.head.loss(a, t)[1] / 4),
        "every leaf: off by a factor of 1/4",
    ),
    "2 of the squared error forgotten": Mutant(
        lambda: network(**SQUARED, error=lambda m, a, t: a - t),
        "every leaf: off by a factor of 1/2",
    ),
    "softmax's Jacobian diagonal only": Mutant(lambda: network(error=diagonal_only), AT_THE_OUTPUT),
    "softmax over the batch": Mutant(lambda: network(error=softmax_over_the_batch), AT_THE_OUTPUT),
    "Huber's error unclipped": Mutant(
        lambda: network(**SMALL, head=heads.linear_huber, scale=3.0, error=lambda m, a, t: a - t),
        AT_THE_OUTPUT,
    ),
    "absolute error without its sign": Mutant(
        lambda: network(**SMALL, head=heads.linear_absolute_error, error=lambda m, a, t: a - t),
        AT_THE_OUTPUT,
    ),
    "Poisson's error without its target": Mutant(
        lambda: network(**SMALL, head=heads.exp_poisson, error=lambda m, a, t: jnp.exp(a)),
        AT_THE_OUTPUT,
    ),
    "label smoothing forgotten": Mutant(
        lambda: network(**SMALL, smooth=True, batch=unsmoothed),
        AT_THE_OUTPUT,
    ),
    "example weight squared": Mutant(
        lambda: network(**SMALL, weighted=True, share=lambda w: w**2 / (w**2).sum()),
        AT_THE_OUTPUT,
    ),
    "example weight forgotten": Mutant(
        lambda: network(**SMALL, weighted=True, share=lambda w: jnp.ones_like(w) / len(w)),
        AT_THE_OUTPUT,
    ),
    # L2
    "L2 forgotten": Mutant(
        lambda: network(penalty=lambda l2, p: (0, 0)),
        r"0\.1 times the argument itself is missing",
    ),
    "L2 doubled": Mutant(
        lambda: network(penalty=lambda l2, p: (2 * l2 * p.weight, 0)),
        r"0\.1 times the argument itself is too much",
    ),
    "L2's sign": Mutant(
        lambda: network(penalty=lambda l2, p: (-l2 * p.weight, 0)),
        r"0\.2 times the argument itself is missing",
    ),
    "L2 on the bias": Mutant(
        lambda: network(penalty=lambda l2, p: (l2 * p.weight, l2 * p.bias)),
        r"every bias: 0\.1 times the argument itself is too much",
    ),
    "L2 as lasso": Mutant(lambda: network(penalty=lambda l2, p: (l2 * jnp.sign(p.weight), 0)), ""),
    # in one place
    "one entry of 784×300 off by 1 %": Mutant(
        lambda: wide_entry(np.float64, 1.01), "one entry is wrong"
    ),
    "one entry of 784×300 off by its size, float32": Mutant(
        lambda: wide_entry(np.float32, 2.0),
        "one entry is wrong",
    ),
    "one entry zero": Mutant(
        lambda: network(grads=edit(1, "weight", lambda w: w.at[2, 3].set(0))),
        "one entry is wrong",
    ),
    "one row zero": Mutant(
        lambda: network(grads=edit(1, "weight", lambda w: w.at[2].set(0))),
        "row 2 is wrong",
    ),
    "one column doubled": Mutant(
        lambda: network(grads=edit(1, "weight", lambda w: w.at[:, 1].multiply(2))),
        "column 1 is wrong",
    ),
    "rows shifted": Mutant(
        lambda: network(grads=edit(1, "weight", lambda w: jnp.roll(w, 1, 0))),
        "shifted by one",
    ),
    "NaN in one entry": Mutant(
        lambda: network(grads=edit(1, "bias", lambda b: b.at[3].set(jnp.nan))),
        r"not finite at 1 of 4 entries: \[3\]",
    ),
    "rounded to two decimals": Mutant(lambda: network(grads=round_to(2)), ""),
    # custom rules, and other functions than ours
    "times the cotangent for divided by it": Mutant(
        lambda: custom_vjp(jnp.log, lambda x, c: 1 / (x * c)),
        "",
    ),
    "custom_vjp that ignores its cotangent": Mutant(
        lambda: custom_vjp(jnp.sin, lambda x, c: jnp.cos(x)),
        "",
    ),
    "custom_vjp with half the slope": Mutant(
        lambda: custom_vjp(lambda x: x**2, lambda x, c: x * c),
        "factor of 1/2",
    ),
    "batching rule that sums over the batch": Mutant(batching_rule, "vmap of the gradient"),
    "custom_jvp of another power": Mutant(
        lambda: custom_jvp(lambda x: x**2, lambda x, t: 3 * x * t),
        "factor of 3/2",
    ),
    "non-deterministic": Mutant(non_deterministic, "non-deterministic"),
    "a slope for an integer": Mutant(integer_claim, "not differentiable: it is int"),
    "wrong in float32 only": Mutant(float32_only, "wrong in float32 only"),
}


# Right gradients that are hard to check


class Correct(NamedTuple):
    """A compiled function, and a way to draw its arguments at many points."""

    f: Callable[..., Any]
    draw: Callable[[np.random.Generator], tuple[Any, ...]]
    options: Mapping[str, Any] = MappingProxyType({})
    draws: int = 20  # of the slow tests


def vector(*shape, scale=1.0, shift=0.0, dtype=np.float32):
    """Draws one array of normal numbers."""
    return lambda rng: (np.asarray(shift + scale * rng.normal(size=shape), dtype),)


@cache  # so that all points of a network share one program
def objective_and_gradient(model):
    """Compiled functions of parameters and batch."""
    return (
        jax.jit(lambda params, batch: jaxbp.objective(model, params, batch)),
        jax.jit(lambda params, batch: jaxbp.backprop(model, params, batch)[1]),
    )


def of_network(sizes, activation, head, rows, dtype=np.float32, bias=None, sparse=False):
    """A network's objective and our gradient of it, at random points.

    sizes, activation, head: the network.
    rows: B, the batch's number of examples.
    dtype: float32 unless given.
    bias: value of every bias; random unless given.
    sparse: with every other row of inputs zero; where biases are zero too, those rows put every
        hidden unit on its kink.
    """
    model = jaxbp.MLP(sizes, activation, head, 0.01)
    f, grads = objective_and_gradient(model)

    def draw(rng):
        number = int(rng.integers(2**31))
        with jax.enable_x64(True):
            params = random_params(model, number, dtype)
            batch = random_batch(model, rows, number, dtype=dtype)
            if bias is not None:
                params = tuple(p._replace(bias=jnp.full_like(p.bias, bias)) for p in params)
            if sparse:
                batch = batch._replace(x=batch.x.at[::2].set(0))
        return jax.tree.map(np.asarray, (params, batch))

    return Correct(f, draw, {"grads": grads}, draws=3)


def relu_network(*sizes, rows=16, dtype=np.float32, **options):
    return of_network(sizes, activations.relu, heads.softmax_cross_entropy, rows, dtype, **options)


def on_a_kink(rng):
    """Draws a vector with some entries exactly 0 and some next to it."""
    x = rng.normal(size=8) * 10.0 ** rng.uniform(-12, 0, size=8)
    return (np.where(rng.uniform(size=8) < 0.4, 0, x).astype(np.float32),)


def ties(rng):
    return (rng.integers(0, 3, size=7).astype(np.float32),)


def exactly(*values):
    """Draws a vector of which about every other entry is one of these values."""

    def draw(rng):
        x = np.where(rng.uniform(size=8) < 0.5, rng.choice(values, size=8), rng.normal(size=8))
        return (x.astype(np.float32),)

    return draw


def quotient(fn, *series):
    """A quotient whose numerator cancels near 0, and there its Taylor series instead."""

    def fraction(x):
        near = jnp.abs(x) < 0.02
        powers = sum(c * x**n for n, c in enumerate(series))
        return jnp.sum(jnp.where(near, powers, fn(jnp.where(near, 1, x))))

    return fraction


def softplus(x):
    """log(1 + exp(x)), smooth, though its two terms are not."""
    return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


softplus_by_parts = jax.custom_jvp(softplus)
softplus_by_parts.defjvp(
    lambda primals, tangents: (softplus(*primals), jax.nn.sigmoid(*primals) * tangents[0])
)


def bfloat16_product(factor=1.0, dtype=jnp.bfloat16):
    """x w, with a backward pass for x in bfloat16 or, if dtype is None, its own; times a factor."""
    rule = jax.custom_vjp(jnp.matmul)

    def backward(kept, cotangent):
        x, w = kept
        of_x = factor * (cotangent.astype(dtype or x.dtype) @ w.T.astype(dtype or x.dtype))
        return of_x.astype(x.dtype), (x.T @ cotangent).astype(w.dtype)

    rule.defvjp(lambda x, w: (x @ w, (x, w)), backward)
    return lambda x, w: jnp.sum(jnp.sin(rule(x, w)))


@jax.custom_vjp
def clipped_log(x):
    return jnp.log(x)


clipped_log.defvjp(lambda x: (jnp.log(x), x), lambda x, cotangent: (cotangent / x,))


def f32(fn):
    """A function in float32 whatever comes in: nothing finer can be measured."""
    return lambda x: fn(x.astype(jnp.float32))


def jitted(fn, draw, **options):
    return Correct(jax.jit(fn), draw, options)


CORRECT: dict[str, Correct] = {
    # kinks
    "ReLU network, float32": relu_network(6, 16, 16, 3),
    "ReLU network, float64": relu_network(6, 16, 16, 3, dtype=np.float64),
    "wide ReLU network": relu_network(20, 300, 10, rows=32),
    "deep ReLU network": relu_network(4, *(8,) * 8, 3),
    "narrow ReLU network": relu_network(3, 2, 2, 2, rows=4),
    "ReLU units on their kinks": relu_network(6, 16, 16, 3, bias=0.0, sparse=True),
    "ReLU and absolute error": of_network(
        (4, 12, 2), activations.relu, heads.linear_absolute_error, 8
    ),
    "leaky ReLU network": of_network((4, 12, 3), activations.leaky_relu, heads.linear_huber, 8),
    "ReLU": jitted(lambda x: jnp.sum(jax.nn.relu(x)), on_a_kink),
    "absolute value": jitted(lambda x: jnp.sum(jnp.abs(x)), on_a_kink),
    "maximum of two": jitted(lambda x: jnp.sum(jnp.maximum(x, x**2)), on_a_kink),
    "maximum with ties": jitted(jnp.max, ties),
    "sum of the largest three": jitted(lambda x: jnp.sum(jax.lax.top_k(x, 3)[0]), vector(9)),
    "sorted": jitted(lambda x: jnp.sum(jnp.sort(x) * jnp.arange(9.0)), vector(9)),
    "clip": jitted(lambda x: jnp.sum(jnp.clip(x, -0.5, 0.5) ** 2), vector(9)),
    "hinge": jitted(lambda x: jnp.mean(jnp.maximum(0, 1 - x)), vector(40)),
    "ELU": jitted(lambda x: jnp.sum(jax.nn.elu(x)), on_a_kink),
    "median": jitted(jnp.median, vector(9)),
    "largest singular value": jitted(lambda x: jnp.linalg.norm(x, 2), vector(4, 3)),
    "piecewise linear": jitted(
        lambda x: jnp.sum(jnp.interp(x, jnp.linspace(-3, 3, 30), jnp.sin(jnp.arange(30.0)))),
        vector(6),
    ),
    # smooth, though written with a choice, at the very point of it
    "softplus": jitted(lambda x: jnp.sum(jax.nn.softplus(x)), exactly(0)),
    "softplus by parts, with a rule": jitted(lambda x: jnp.sum(softplus_by_parts(x)), exactly(0)),
    "logarithm of two exponentials": jitted(
        lambda x: jnp.sum(jnp.logaddexp(x, x[::-1]) * jnp.arange(7.0)), ties
    ),
    "x|x|": jitted(lambda x: jnp.sum(x * jnp.abs(x)), exactly(0)),
    "squared hinge": jitted(lambda x: jnp.sum(jnp.maximum(0, 1 - x) ** 2), exactly(1)),
    "Huber at its threshold": jitted(
        lambda x: jnp.sum(jnp.where(jnp.abs(x) <= 1, x**2 / 2, jnp.abs(x) - 0.5)), exactly(-1, 1)
    ),
    "smooth step": jitted(
        lambda x: jnp.sum(jnp.clip(x, 0, 1) ** 2 * (3 - 2 * jnp.clip(x, 0, 1))), exactly(0, 1)
    ),
    "powers at 0 and 1": jitted(lambda x: jnp.sum(x**2 - x**3 + x), exactly(0, 1)),
    # quotients that cancel
    "sinc": jitted(lambda x: jnp.sum(jnp.sinc(x)), exactly(0, 1)),
    "(exp(x) - 1)/x": jitted(
        quotient(lambda x: jnp.expm1(x) / x, 1, 1 / 2, 1 / 6, 1 / 24, 1 / 120), exactly(0)
    ),
    "(1 - cos(x))/x²": jitted(
        quotient(lambda x: (1 - jnp.cos(x)) / x**2, 1 / 2, 0, -1 / 24, 0, 1 / 720), exactly(0)
    ),
    # vectors with a sign to choose
    "eigenvector": jitted(
        lambda x: jnp.linalg.eigh(x + x.T)[1][:, 0] @ jnp.arange(1.0, 5), vector(4, 4)
    ),
    "singular vector": jitted(
        lambda x: jnp.linalg.svd(x, full_matrices=False)[0][:, 0] @ jnp.arange(1.0, 5), vector(4, 3)
    ),
    # scales
    "tiny argument": jitted(lambda x: jnp.sum((x / 1e-12) ** 3), vector(5, scale=1e-12)),
    "huge argument": jitted(lambda x: jnp.sum(jnp.sin(x / 1e12)), vector(5, scale=1e12)),
    "tiny value": jitted(lambda x: 1e-12 * jnp.sum(jnp.exp(x)), vector(5)),
    "huge value": jitted(lambda x: 1e12 * jnp.sum(jnp.exp(x)), vector(5)),
    "large offset": jitted(lambda x: 1e6 + jnp.sum(x**2), vector(5)),
    "swamped by an offset": jitted(lambda x: 1e20 + jnp.sum(x), vector(5)),
    "leaves of all sizes": jitted(
        lambda p: jnp.sum(p[0] * 1e6) + jnp.sum(jnp.sin(p[1])) + jnp.sum(jnp.exp(p[2] / 1e6)),
        lambda rng: (
            tuple(
                np.asarray(scale * rng.normal(size=n), np.float32)
                for scale, n in [(1e-6, 3), (1, 50), (1e6, 2)]
            ),
        ),
    ),
    "one entry far from the others": jitted(
        lambda x: jnp.sum(jnp.tanh(x)), lambda rng: (np.array([1e6, *rng.normal(size=4)], "f4"),)
    ),
    "zeros": jitted(lambda x: jnp.sum(jnp.sin(1e12 * x)), lambda rng: (np.zeros(3, "f4"),)),
    # flat and stiff
    "no effect": jitted(
        lambda p: jnp.sum(p["used"] ** 2) + 0 * jnp.sum(p["unused"]),
        lambda rng: ({"used": rng.normal(size=3), "unused": rng.normal(size=3)},),
    ),
    "not in f at all": jitted(
        lambda p: jnp.sum(p["used"] ** 2),
        lambda rng: ({"used": rng.normal(size=3), "unused": rng.normal(size=3)},),
    ),
    "constant": jitted(lambda x: 0.0 * jnp.sum(x) + 3.0, vector(4)),
    "no effect but for rounding": jitted(
        lambda p: jax.nn.logsumexp(p[0] + p[1]) - p[1],
        lambda rng: ((rng.normal(size=5), rng.normal()),),
    ),
    "saturated": jitted(lambda x: jnp.sum(jnp.tanh(x)), vector(5, shift=20.0)),
    "half saturated": jitted(lambda x: jnp.sum(jnp.tanh(x)), vector(5, scale=10.0)),
    "dead ReLUs": relu_network(6, 16, 16, 3, bias=-100.0),
    "stiff": jitted(lambda x: jnp.sum(jnp.exp(30 * x)), vector(6)),
    "very stiff": jitted(lambda x: jnp.sum(jnp.exp(300 * x)), vector(3, scale=0.1)),
    "fast oscillation": jitted(lambda x: jnp.sum(jnp.sin(1e4 * x)), vector(5)),
    "cancellation": jitted(lambda x: jnp.sum(jnp.cos(x) - 1 + x**2 / 2), vector(5, scale=0.01)),
    "at a minimum": jitted(lambda x: jnp.sum((x - 1) ** 2), lambda rng: (np.ones(4, "f4"),)),
    "near a minimum": jitted(lambda x: jnp.sum((x - 1) ** 4), vector(4, shift=1, scale=1e-3)),
    "large logits": of_network(
        (3, 4, 5), activations.gelu, heads.softmax_cross_entropy, 4, bias=50.0
    ),
    "deep sigmoid network": of_network(
        (3, *(4,) * 12, 2), activations.sigmoid, heads.sigmoid_logistic, 5
    ),
    "tanh network, Poisson": of_network((3, 8, 2), activations.tanh, heads.exp_poisson, 6),
    "near a pole": jitted(lambda x: jnp.sum(1 / x), vector(4, shift=1e-3, scale=1e-4)),
    "logarithm near zero": jitted(
        lambda x: jnp.sum(jnp.log(x)), lambda rng: (np.exp(rng.uniform(-20, 0, 5)).astype("f4"),)
    ),
    "square root near zero": jitted(
        lambda x: jnp.sum(jnp.sqrt(x)), lambda rng: (np.exp(rng.uniform(-20, 0, 5)).astype("f4"),)
    ),
    # precision
    "half precision argument": jitted(lambda x: jnp.sum(jnp.sin(x)), vector(5, dtype=np.float16)),
    "bfloat16 argument": jitted(lambda x: jnp.sum(x**2), vector(5, dtype=jnp.bfloat16)),
    "bfloat16 rule": jitted(
        bfloat16_product(dtype=None),
        lambda rng: tuple(rng.normal(size=s).astype(jnp.bfloat16) for s in [(8, 6), (6, 4)]),
    ),
    "float32 inside": jitted(f32(lambda x: jnp.sum(jnp.sin(x))), vector(6)),
    "float32 inside, ReLU": jitted(f32(lambda x: jnp.sum(jax.nn.relu(x) * x[::-1])), vector(50)),
    "bfloat16 inside": jitted(
        lambda x: jnp.sum(jnp.sin(x.astype(jnp.bfloat16)).astype(jnp.float32)), vector(6)
    ),
    # kinds of functions and arguments
    "integer argument beside": jitted(
        lambda x, n: jnp.sum(x[n] ** 2),
        lambda rng: (rng.normal(size=6).astype("f4"), rng.integers(6, size=3)),
    ),
    "integer leaf": jitted(
        lambda p: jnp.sum(p["w"] ** p["n"]),
        lambda rng: ({"w": rng.normal(size=4), "n": np.array(3)},),
    ),
    "both arguments": jitted(
        lambda x, y: jnp.sum(x @ y),
        lambda rng: (rng.normal(size=(2, 3)), rng.normal(size=(3, 4))),
        argnums=(0, 1),
    ),
    "vector function": jitted(lambda x: jnp.cumsum(jnp.sin(x)), vector(6)),
    "tree function": jitted(lambda x: {"a": x**2, "b": (jnp.sum(x), x[::2])}, vector(6)),
    "scalar": jitted(lambda x: jnp.exp(-x * x), lambda rng: (float(rng.normal()),)),
    "one entry": jitted(lambda x: jnp.sum(x**3), vector(1)),
    "empty leaf": jitted(
        lambda p: jnp.sum(p[0] ** 2) + jnp.sum(p[1]),
        lambda rng: ((rng.normal(size=3), np.zeros((0, 4))),),
    ),
    "custom_vjp": jitted(
        lambda x: jnp.sum(clipped_log(x)), lambda rng: (rng.uniform(0.5, 3, size=4).astype("f4"),)
    ),
    "scan": jitted(
        lambda x: jax.lax.scan(lambda c, y: (jnp.tanh(c + y), c * y), 0.0 * x[0], x)[1], vector(9)
    ),
    "determinant": jitted(jnp.linalg.det, vector(4, 4)),
    "Cholesky factor": jitted(lambda x: jnp.linalg.cholesky(x @ x.T + jnp.eye(4)), vector(4, 5)),
    "Fourier transform": jitted(
        lambda x: jnp.sum(jnp.abs(jnp.fft.rfft(x)) ** 2 * jnp.arange(5.0)), vector(8)
    ),
    "random key held": jitted(
        lambda x, key: jnp.sum(x * jax.random.normal(key, x.shape)),
        lambda rng: (rng.normal(size=5).astype("f4"), jax.random.key(int(rng.integers(99)))),
    ),
}
