"""Everything that can be combined, by name: activations, heads, optimisers, networks of them."""

from functools import cache, partial
from itertools import cycle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxbp
from benchmarks.problems import random_batch, random_params
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


def thinned(cases, every):
    """The cases, of which the default tests run one in so many, and the slow tests the others."""
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)),
            marks=() if i % every == 0 else pytest.mark.slow,
        )
        for i, case in enumerate(cases)
    ]


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


def network():
    """A small classifier, its parameters, and a weighted batch of 8 rows."""
    model = jaxbp.MLP((6, 5, 3), activations.tanh, heads.softmax_cross_entropy, l2=0.1)
    batch = random_batch(model, 8, 1, integer=True, dtype=np.float32)
    return model, random_params(model, 0, np.float32), batch


def one_step(optimizer):
    return lambda model, params, batch: jaxbp.make_step(model, optimizer)(
        (params, optimizer.init(params)), batch
    )


#: every contraction of (z, δ), as a function of model, params and batch
CONTRACTIONS = {
    "backprop": jaxbp.backprop,
    "mixed precision": jaxbp.mixed_precision(jaxbp.backprop),
    "a step": one_step(optax.adam(1e-2)),
    "a step of truncated Newton": one_step(jaxbp.batch_methods.truncated_newton(2)),
    "per example": jaxbp.per_example_gradients,
    "norms": partial(jaxbp.per_example_norms, per_layer=True),
    "clipped": partial(jaxbp.clipped_gradient, max_norm=(0.5, 1.0), per_layer=True),
    "noisy": lambda *arguments: jaxbp.noisy_clipped_gradient(
        *arguments, 1.0, noise_multiplier=0.1, key=jax.random.key(0)
    ),
    "moments": jaxbp.gradient_moments,
    "signal to noise": jaxbp.signal_to_noise,
    "noise scale": lambda *arguments: jaxbp.gradient_noise_scale(
        *arguments, key=jax.random.key(0), probes=2
    ),
    "Hessian": lambda model, params, batch: jaxbp.hessian_vector_product(
        model, params, batch, params
    ),
    "Gauss-Newton": lambda model, params, batch: jaxbp.gauss_newton_vector_product(
        model, params, batch, params
    ),
    "Kronecker factors": jaxbp.kronecker_factors,
    "health": lambda model, params, batch: jaxbp.diagnostics.layer_health(
        model, params, batch, params
    ),
}
