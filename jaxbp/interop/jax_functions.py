"""Activations as JAX has them: the functions that Flax and Equinox put between their layers.

Two of JAX's differ from this package's in what they do by default, and two at one point:
``jax.nn.gelu`` is the approximation by tanh unless ``approximate=False``, and the derivatives of
``jax.nn.leaky_relu`` and ``jax.nn.elu`` at 0 are 1, where this package has α and k.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxbp import activations
from jaxbp.interop.stack import Unit, activation_of, named


def _leaky_relu(alpha: float) -> Any:
    return jax.nn.leaky_relu if alpha == 0.01 else partial(jax.nn.leaky_relu, negative_slope=alpha)


def _elu(k: float) -> Any:
    return jax.nn.elu if k == 1 else partial(jax.nn.elu, alpha=k)


#: what makes JAX's function of an activation's keywords, by the activation's name
TO_JAX: dict[str, Callable[..., Any]] = {
    "identity": lambda: jax.nn.identity,
    "sigmoid": lambda: jax.nn.sigmoid,
    "tanh": lambda: jnp.tanh,
    "relu": lambda: jax.nn.relu,
    "leaky_relu": _leaky_relu,
    "elu": _elu,
    "softplus": lambda: jax.nn.softplus,
    "gelu": lambda: partial(jax.nn.gelu, approximate=False),
    "silu": lambda: jax.nn.silu,
}
#: JAX's functions, with their keywords as they must be given, and what each is here
_FROM_JAX: dict[Any, Callable[..., Unit]] = {
    jax.nn.identity: lambda: Unit("identity", activations.identity, "linear"),
    jax.nn.sigmoid: lambda: Unit("sigmoid", activations.sigmoid, "sigmoid"),
    jnp.tanh: lambda: Unit("tanh", activations.tanh),
    jax.nn.relu: lambda: Unit("relu", activations.relu),
    jax.nn.leaky_relu: lambda negative_slope=0.01: Unit(
        "leaky_relu", activation_of("leaky_relu", alpha=negative_slope)
    ),
    jax.nn.elu: lambda alpha=1.0: Unit("elu", activation_of("elu", k=alpha)),
    jax.nn.softplus: lambda: Unit("softplus", activations.softplus),
    jax.nn.gelu: lambda approximate=True: Unit(
        f"gelu(approximate={approximate})", None if approximate else activations.gelu
    ),
    jax.nn.silu: lambda: Unit("silu", activations.silu),
    jax.nn.softmax: lambda: Unit("softmax", output="softmax"),
    jnp.exp: lambda: Unit("exp", output="exponential"),
}


def unit_of(function: Any) -> Unit:
    """A function of JAX, maybe with keywords by ``functools.partial``, as a unit of a stack."""
    keywords: dict[str, Any] = {}
    known = function
    if isinstance(function, partial) and not function.args:
        known, keywords = function.func, function.keywords
    try:
        return _FROM_JAX[known](**keywords)
    except (KeyError, TypeError):  # another function, or a keyword that changes it
        return Unit(named(function))
