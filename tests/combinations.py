"""Everything that can be combined, by name: activations, heads, optimisers, networks of them."""

from functools import cache, partial
from itertools import cycle

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxbp
from jaxbp import activations, heads

ACTIVATIONS = activations.BY_NAME | {"with_slope(sin)": jaxbp.with_slope(jnp.sin)}
HEADS = heads.BY_NAME

#: marks claims about XLA's compiler for CPUs alone, such as results equal to the last bit
cpu_compiler = pytest.mark.skipif(
    jax.default_backend() != "cpu", reason="a claim about XLA's compiler for CPUs"
)

#: every head and every activation at least once: how they combine is up to the backward pass
ONE_OF_EACH = list(zip(ACTIVATIONS, cycle(HEADS), strict=False))

#: the activations as JAX's own library writes them
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

#: init as one program: outside jit each operation is compiled by itself
initial = jax.jit(jaxbp.init, static_argnums=1, static_argnames=("scheme", "dtype"))


@cache
def made(make, rate):
    """make(rate), one object for all calls: fit compiles an epoch for each new optimiser, even for
    an equal one."""
    return make(rate)


adam, sgd = partial(made, optax.adam), partial(made, optax.sgd)


def chosen(which, functions):
    """One of the functions, by a number that is known only when the program runs."""
    return lambda *args: jax.lax.switch(which, functions, *args)


def any_model(sizes, activation, head, l2=0.0):
    """A network whose loss and activation are chosen by number, so one program does for all.

    activation: a number, a traced one too, or a tuple with one for each hidden layer; an activation
        itself may stand for its number.
    head: a number.
    """

    def unit(which):
        return which if callable(which) else chosen(which, list(ACTIVATIONS.values()))

    units = tuple(map(unit, activation)) if isinstance(activation, tuple) else unit(activation)
    loss = chosen(head, [each.loss for each in HEADS.values()])
    return jaxbp.MLP(sizes, units, jaxbp.Head(lambda logits: logits, loss), l2)


def numbers(activation, head):
    """The numbers of an activation and a head, for any_model."""
    return list(ACTIVATIONS).index(activation), list(HEADS).index(head)


def lecture(x, z):
    """The function that two of the lectures work out on a computation graph."""
    return jnp.exp(x * z) + x * z / jnp.log(x) + jnp.sin(jnp.log(x)) / (x * z)
