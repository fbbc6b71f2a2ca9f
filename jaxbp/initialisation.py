"""Initialisation: weights to start from, by He, Glorot or LeCun, and biases."""

import inspect
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, nn
from jax.typing import ArrayLike, DTypeLike

from jaxbp.activations import (
    Activation,
    elu,
    gelu,
    leaky_relu,
    relu,
    sigmoid,
    silu,
    softplus,
    tanh,
)
from jaxbp.model import MLP, Layer, Params, units_of

SCHEMES = {
    "he": jax.nn.initializers.he_normal(in_axis=1, out_axis=0),
    "glorot": jax.nn.initializers.glorot_normal(in_axis=1, out_axis=0),
    "lecun": jax.nn.initializers.lecun_normal(in_axis=1, out_axis=0),
}
#: the scheme of each activation, ours or JAX's own by ``with_slope``; that of any other, and of the
#: linear last layer, is lecun
SCHEME_OF: dict[Callable[..., Any], str] = {
    **dict.fromkeys((relu, leaky_relu, elu, softplus, gelu, silu), "he"),
    **dict.fromkeys((nn.relu, nn.leaky_relu, nn.elu, nn.softplus, nn.gelu, nn.silu), "he"),
    **dict.fromkeys((sigmoid, tanh, nn.sigmoid, jnp.tanh), "glorot"),
}


def init(
    key: Array,
    model: MLP,
    *,
    scheme: str | None = None,
    bias: float = 0.0,
    dtype: DTypeLike = jnp.float32,
) -> Params:
    """Draw weights of variance 2/I (he), 2/(I+O) (glorot) or 1/I (lecun), all biases equal.

    key: one ``jax.random.key(seed)``.
    model: the network; its sizes and activations count.
    scheme: "he", "glorot" or "lecun" for all layers; unless given, each layer takes that of its
        activation: He for the ReLU family, Glorot for tanh and sigmoid, LeCun otherwise and for
        the last layer.
    bias: the value of every bias, 0 unless given; 0.1 keeps ReLUs from being born dead.
    dtype: of weights and biases, float32 unless given.

    Raises TypeError or ValueError for an invalid model, TypeError for what is no key and for a
    dtype that is not floating, ValueError for an unknown scheme.  After He et al. (2015), eq. 10;
    Glorot and Bengio (2010), eq. 12; LeCun et al. (1998), section 4.6.
    """
    check_key(key)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"dtype: got {jnp.dtype(dtype)}, expected a floating point one")
    return draw(model.sizes, schemes_of(model, scheme), dtype, key, bias)


def schemes_of(model: MLP, scheme: str | None = None) -> tuple[str, ...]:
    """The scheme of each layer: the one given, or that of its activation."""
    if scheme not in {None, *SCHEMES}:
        raise ValueError(f"scheme: got {scheme!r}, expected one of {', '.join(SCHEMES)}, or None")
    return tuple(scheme or _scheme_of(unit) for unit in units_of(model))


def draw(
    sizes: tuple[int, ...], schemes: tuple[str, ...], dtype: DTypeLike, key: Array, bias: ArrayLike
) -> Params:
    """Draw the layers of these sizes, each by its scheme, as ``init`` does."""
    keys = jax.random.split(key, len(schemes))
    return tuple(
        Layer(SCHEMES[scheme](layer_key, (o, i), dtype), jnp.full(o, bias, dtype))
        for scheme, layer_key, (i, o) in zip(schemes, keys, pairwise(sizes), strict=True)
    )


def check_key(key: Any) -> None:
    """Raise TypeError for anything but one key, traced or not."""
    dtype = getattr(key, "dtype", int)
    if not jnp.issubdtype(dtype, jax.dtypes.prng_key) or key.shape != ():
        raise TypeError(f"key: got {key!r}, expected one jax.random.key(seed)")


def _scheme_of(unit: Activation) -> str:
    """The scheme of an activation, also where keywords are set, or another function wraps it."""
    known = inspect.unwrap(unit, stop=lambda function: function in SCHEME_OF)
    if isinstance(known, partial):
        known = known.func
    return SCHEME_OF.get(known, "lecun")
