"""Initialisation: weights to start from, by He, Glorot or LeCun, and biases."""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

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
#: the scheme of each activation; that of any other, and of the linear last layer, is lecun
SCHEME_OF: dict[Activation, str] = {
    **dict.fromkeys((relu, leaky_relu, elu, softplus, gelu, silu), "he"),
    **dict.fromkeys((sigmoid, tanh), "glorot"),
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

    Raises TypeError or ValueError for an invalid model, ValueError for an unknown scheme.  After He
    et al. (2015), eq. 10; Glorot and Bengio (2010), eq. 12; LeCun et al. (1998), section 4.6.
    """
    if scheme not in {None, *SCHEMES}:
        raise ValueError(f"scheme: got {scheme!r}, expected one of {', '.join(SCHEMES)}, or None")
    layers, units = [], units_of(model)
    keys = jax.random.split(key, len(units))
    for unit, layer_key, (i, o) in zip(units, keys, pairwise(model.sizes), strict=True):
        function = unit.func if isinstance(unit, partial) else unit
        initializer = SCHEMES[scheme or SCHEME_OF.get(function, "lecun")]
        layers.append(Layer(initializer(layer_key, (o, i), dtype), bias=jnp.full(o, bias, dtype)))
    return tuple(layers)
