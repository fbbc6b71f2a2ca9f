"""The model: a network's description, the checks of it, its parameters and their penalty.

The letters of every shape: B batch, D inputs, I and O the inputs and outputs of a layer, K outputs
of the network.  For B, no axis or several may stand as well.
"""

from contextlib import suppress
from functools import partial
from itertools import pairwise
from numbers import Integral
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from numpy.typing import NDArray

from jaxbp.activations import Activation, identity
from jaxbp.heads import Head
from jaxbp.reprs import short
from jaxbp.targets import numbers


class MLP(NamedTuple):
    """The network's description: no arrays, hashable, a static argument under ``jit``.

    Two models are equal where their parts are, and partials are where they hold the same.
    """

    sizes: tuple[int, ...]  # (D, hidden..., K)
    activation: Activation | tuple[Activation, ...]  # of all hidden layers, or one each
    head: Head  # the output unit and its loss
    l2: float = 0.0  # adds ½·l2·Σ‖W‖² to the objective: weights, not biases

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MLP) and _comparable(self) == _comparable(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        try:
            return hash(_comparable(self))
        except TypeError:
            units_of(self)  # raises one that names the list
            raise

    def __repr__(self) -> str:
        return short(self)


class Layer(NamedTuple):
    """The parameters of one layer; a network's are a tuple of them."""

    weight: Array  # (O, I): row k holds the weights into unit k
    bias: Array  # (O,)


class Residual(NamedTuple):
    """All that the backward pass needs of one layer."""

    input: Array  # (B, I) z, what the layer's weights were multiplied with
    slope: Array  # (B, O) h'(a)


Rows = Array | NDArray[Any]  # one an example
Params = tuple[Layer, ...]
Residuals = tuple[Residual, ...]
Deltas = tuple[Array, ...]  # (B, O) of every layer


def units_of(model: MLP) -> tuple[Activation, ...]:
    """One activation a layer; the last is linear, because the output unit belongs to the head."""
    if not isinstance(model, MLP):
        raise TypeError(f"model: got {type(model).__name__}, expected a jaxbp.MLP")
    sizes, activation = model.sizes, model.activation
    if not isinstance(model.head, Head):
        raise TypeError(f"head: got {model.head!r}, expected one of jaxbp.heads, or a jaxbp.Head")
    if not isinstance(sizes, tuple) or not all(isinstance(size, Integral) for size in sizes):
        raise TypeError(f"sizes: got {sizes!r}, expected a tuple of ints (D, hidden..., K)")
    if len(sizes) < 2 or min(sizes) < 1:
        raise ValueError(f"sizes: got {sizes}, expected at least (D, K), every size positive")
    hidden = len(sizes) - 2
    units = activation if isinstance(activation, tuple) else (activation,) * hidden
    if isinstance(activation, list) or not all(map(callable, units)):
        raise TypeError(
            f"activation: got {short(activation)}, expected a function a -> (h, slope), or a tuple "
            "of them"
        )
    if len(units) != hidden:
        raise ValueError(f"activation: got {len(units)}, expected one, or {hidden} for {sizes}")
    return (*units, identity)


def checked_input(model: MLP, params: Params, x: ArrayLike) -> Array:
    """x as an array.

    Raises ValueError where x or params do not fit the sizes of the model, TypeError where params
    are no layers and where x is no numbers.
    """
    units_of(model)
    check_layers(params)
    expected = [((o, i), (o,)) for i, o in pairwise(model.sizes)]
    shapes = [(jnp.shape(layer.weight), jnp.shape(layer.bias)) for layer in params]
    if shapes != expected:
        raise ValueError(f"params: got weights and biases {shapes}, expected {expected}")
    z = numbers("x", x)
    if z.shape[-1:] != model.sizes[:1]:
        raise ValueError(f"x: got shape {z.shape}, expected (..., {model.sizes[0]})")
    return z


def check_layers(params: Any) -> None:
    """Raise TypeError where params are no layers."""
    if not isinstance(params, tuple | list) or not all(isinstance(each, Layer) for each in params):
        raise TypeError(f"params: got {short(params)}, expected a tuple of jaxbp.Layer")


def penalty(model: MLP, params: Params) -> Array | float:
    """The penalty ½·l2·Σ‖W‖² on the weights, 0 without one."""
    return model.l2 / 2 * sum(jnp.sum(w.weight**2) for w in params) if penalised(model) else 0.0


def with_penalty(model: MLP, params: Params, grads: Params) -> Params:
    """∇E = grads + l2·W: the penalty's gradient added; grads may have leading axes."""
    if not penalised(model):
        return grads
    leading = range(grads[0].bias.ndim - 1)
    return tuple(
        Layer(grad.weight + model.l2 * jnp.expand_dims(w.weight, leading), grad.bias)
        for grad, w in zip(grads, params, strict=True)
    )


def penalised(model: MLP) -> bool:
    """Whether the objective has a penalty: l2 is not 0, or is an array, maybe under trace."""
    return isinstance(model.l2, Array) or model.l2 != 0


def _comparable(part: Any) -> Any:
    """A part of a model; a partial, which ``functools`` compares by identity, as what it holds."""
    if isinstance(part, tuple):
        return tuple(map(_comparable, part))
    if isinstance(part, partial):
        held = (part.func, _comparable(part.args), *sorted(part.keywords.items()))
        with suppress(TypeError):  # of one that holds an array, which cannot be hashed
            hash(held)
            return held
    return part
