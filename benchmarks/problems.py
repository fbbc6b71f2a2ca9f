"""Problems: networks with parameters and a batch, to measure and to test on."""

from itertools import pairwise
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxbp import MLP, Batch, Layer, activations, heads

CLASSES = 10


class Problem(NamedTuple):
    """A network, its parameters, and a batch for it."""

    model: MLP
    params: tuple[Layer, ...]
    batch: Batch


def name_of(sizes):
    """Sizes as the tables print them: (64, 128, 10) -> "64-128-10"."""
    return "-".join(map(str, sizes))


def problem(sizes, rows, activation=activations.relu):
    """A classifier in float32: weights of size √(2/I), zero biases, normal inputs, random classes.

    sizes: (D, hidden..., K).
    rows: B, the batch's number of examples.
    activation: one for all hidden layers; relu unless given.
    """
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    params = tuple(
        Layer(jnp.asarray(normal(o, i) * np.float32((2 / i) ** 0.5)), jnp.zeros(o, jnp.float32))
        for i, o in pairwise(sizes)
    )
    target = jnp.asarray(rng.integers(sizes[-1], size=rows), jnp.int32)
    model = MLP(sizes, activation, heads.softmax_cross_entropy)
    return Problem(model, params, Batch(jnp.asarray(normal(rows, sizes[0])), target))


def random_params(model, seed, dtype=np.float64):
    """Weights and biases of order one, so that no unit is dead and none is saturated."""
    rng = np.random.default_rng(seed)
    return tuple(
        Layer(
            jnp.asarray(rng.normal(size=(o, i)) / np.sqrt(i), dtype),
            jnp.asarray(rng.normal(size=o) / 2, dtype),
        )
        for i, o in pairwise(model.sizes)
    )


def random_batch(model, rows, seed, *, weighted=True, integer=False, dtype=np.float64):
    """Normal inputs, targets that any head takes, and example weights.

    rows: B, the number of examples.
    seed: whole number; another one gives another batch.
    weighted: with example weights from 0.1 to 2; yes unless given.
    integer: with classes (B,) as targets, instead of (B, K) numbers from 0 to 1; no unless given.
    dtype: float64 unless given.
    """
    rng = np.random.default_rng([seed, 1])
    inputs, outputs = model.sizes[0], model.sizes[-1]
    if integer:
        target = jnp.asarray(rng.integers(outputs, size=rows), jnp.int32)
    else:
        target = jnp.asarray(rng.uniform(size=(rows, outputs)), dtype)
    weight = jnp.asarray(rng.uniform(0.1, 2, size=rows), dtype) if weighted else None
    return Batch(jnp.asarray(rng.normal(size=(rows, inputs)), dtype), target, weight)
