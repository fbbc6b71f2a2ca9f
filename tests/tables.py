"""Everything that can be combined, by name, and random batches for it."""

from itertools import cycle

import jax
import jax.numpy as jnp
import numpy as np

import jaxbp
from jaxbp import checkpoint

ACTIVATIONS = checkpoint.ACTIVATIONS | {"with_slope(sin)": jaxbp.with_slope(jnp.sin)}
HEADS = checkpoint.HEADS

#: every head and every activation; how one is combined with the other is the backward pass's matter
ONE_OF_EACH = list(zip(ACTIVATIONS, cycle(HEADS), strict=False))

#: the same functions as JAX's own library writes them
REFERENCES = {
    "identity": lambda a: a,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "leaky_relu": jax.nn.leaky_relu,
    "elu": jax.nn.elu,
    "softplus": jax.nn.softplus,
    "gelu": lambda a: jax.nn.gelu(a, approximate=False),
    "silu": jax.nn.silu,
    "with_slope(sin)": jnp.sin,
}


def chosen(which, functions):
    """One of some functions, by a number that is known only when the program runs."""
    return lambda *args: jax.lax.switch(which, functions, *args)


def random_params(model, seed, dtype=np.float64):
    """Weights and biases of order one, so that no unit is dead and none is saturated."""
    rng = np.random.default_rng(seed)
    return tuple(
        jaxbp.Layer(
            jnp.asarray(rng.normal(size=(o, i)) / np.sqrt(i), dtype),
            jnp.asarray(rng.normal(size=o) / 2, dtype),
        )
        for i, o in zip(model.sizes[:-1], model.sizes[1:], strict=True)
    )


def random_batch(model, rows, seed, *, weighted=True, integer=False, dtype=np.float64):
    """Inputs, soft labels (or counts, or integer classes) and example weights."""
    rng = np.random.default_rng([seed, 1])
    inputs, outputs = model.sizes[0], model.sizes[-1]
    if integer:
        target = jnp.asarray(rng.integers(outputs, size=rows), jnp.int32)
    else:
        target = jnp.asarray(rng.uniform(size=(rows, outputs)), dtype)
    weight = jnp.asarray(rng.uniform(0.1, 2, size=rows), dtype) if weighted else None
    return jaxbp.Batch(jnp.asarray(rng.normal(size=(rows, inputs)), dtype), target, weight)


def lecture(x, z):
    """The function that two of the lectures work out on a computation graph."""
    return jnp.exp(x * z) + x * z / jnp.log(x) + jnp.sin(jnp.log(x)) / (x * z)
