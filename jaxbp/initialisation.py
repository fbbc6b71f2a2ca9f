"""Initialisation: weights to start from, by He, Glorot or LeCun."""

from itertools import pairwise

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from jaxbp.mlp import MLP, Layer, Params, units_of

_SCHEMES = {
    "he": jax.nn.initializers.he_normal(in_axis=1, out_axis=0),
    "glorot": jax.nn.initializers.glorot_normal(in_axis=1, out_axis=0),
    "lecun": jax.nn.initializers.lecun_normal(in_axis=1, out_axis=0),
}


_RELU_FAMILY = ("relu", "leaky_relu", "elu", "softplus", "gelu", "silu")


_SCHEME_OF = dict.fromkeys(_RELU_FAMILY, "he") | dict.fromkeys(("sigmoid", "tanh"), "glorot")


def init(
    key: Array,
    model: MLP,
    *,
    scheme: str | None = None,
    bias: float = 0.0,
    dtype: DTypeLike = jnp.float32,
) -> Params:
    """Draw weights of variance 2/I (he), 2/(I+O) (glorot) or 1/I (lecun); every bias is the same.

    Without a scheme each layer takes its activation's: He for the ReLU family, Glorot for tanh and
    sigmoid, LeCun otherwise and for the last layer (He et al. 2015, eq. 10; Glorot and Bengio 2010,
    eq. 12; LeCun et al. 1998, section 4.6).  ``bias=0.1`` keeps ReLUs from being born dead.
    Raises TypeError or ValueError for what is no model, ValueError for an unknown scheme.
    """
    if scheme not in {None, *_SCHEMES}:
        raise ValueError(f"scheme: got {scheme!r}, expected one of {', '.join(_SCHEMES)}, or None")
    layers, units = [], units_of(model)
    keys = jax.random.split(key, len(units))
    for unit, unit_key, (i, o) in zip(units, keys, pairwise(model.sizes), strict=True):
        name = getattr(getattr(unit, "func", unit), "__name__", "")  # func: of functools.partial
        weight = _SCHEMES[scheme or _SCHEME_OF.get(name, "lecun")](unit_key, (o, i), dtype)
        layers.append(Layer(weight, bias=jnp.full(o, bias, dtype)))
    return tuple(layers)
