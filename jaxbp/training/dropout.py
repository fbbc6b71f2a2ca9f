"""Dropout: hidden units left out at random while training, as a transformation of a gradient.

    h̃(a) = m ⊙ h(a) / (1 - p),  h̃'(a) = m ⊙ h'(a) / (1 - p),   m = 0 with probability p, else 1

The mask m is part of the activation, and so of its slope: forward and backward pass are as they
are.  Each entry of h̃ has the mean h, so that a network predicts without masks (Srivastava et al.
2014, section 10, inverted as all libraries do it).
"""

import inspect
from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxbp.activations import Activation
from jaxbp.gradient import Batch, Gradient
from jaxbp.model import MLP, Params, units_of
from jaxbp.training.epoch import is_random


def with_dropout(rate: float) -> Callable[[Gradient], Gradient]:
    """The transformation of a gradient like ``backprop`` into one with dropout, drawn by its key.

    rate is p, the share of hidden units that are left out, at least 0 and less than 1; inputs and
    outputs stay.  ``fit`` and ``fit_many`` give a key of its own to every step; ``predict`` and
    ``evaluate`` know nothing of it.  Raises ValueError for another rate.

    >>> import jaxbp
    >>> model = MLP((2, 4, 1), jaxbp.activations.tanh, jaxbp.heads.linear_squared_error)
    >>> params = jaxbp.init(jax.random.key(0), model)
    >>> batch = Batch(jnp.ones((1, 2)), jnp.ones((1, 1)))
    >>> gradient = with_dropout(0.5)(jaxbp.backprop)
    >>> _, grads = gradient(model, params, batch, key=jax.random.key(1))
    >>> (grads[1].weight == 0).sum().item()  # a unit that is left out teaches nothing
    2
    """
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < 1:
        raise ValueError(f"rate: got {rate!r}, expected at least 0 and less than 1")
    return lambda gradient: _dropping(gradient, float(rate))


@lru_cache(maxsize=64)  # the same gradient gives the same function, and jit compiles a model once
def _dropping(gradient: Gradient, rate: float) -> Gradient:
    draws_too = is_random(gradient)

    @wraps(gradient)
    def dropping(
        model: MLP, params: Params, batch: Batch, *, key: Array, **keywords: Any
    ) -> tuple[Array, Params]:
        hidden = units_of(model)[:-1]
        if draws_too:
            keywords["key"] = jax.random.fold_in(key, len(hidden))
        units = tuple(
            _masked(unit, rate, jax.random.fold_in(key, layer)) for layer, unit in enumerate(hidden)
        )
        return gradient(model._replace(activation=units), params, batch, **keywords)

    signature = inspect.signature(dropping, follow_wrapped=False)  # takes a key, as fit asks for
    dropping.__signature__ = signature  # type: ignore[attr-defined]
    return dropping


def _masked(unit: Activation, rate: float, key: Array) -> Activation:
    """The activation, and its slope, times a mask drawn for every unit and example."""

    def masked(a: Array) -> tuple[Array, Array]:
        h, slope = unit(a)
        kept = jax.random.bernoulli(key, 1 - rate, jnp.shape(a))
        return jnp.where(kept, h / (1 - rate), 0), jnp.where(kept, slope / (1 - rate), 0)

    return masked
