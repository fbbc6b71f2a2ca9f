"""The graph of a network at one example: the lectures' page of backpropagation, layer by layer.

    a⁽ˡ⁾ = W⁽ˡ⁾ z⁽ˡ⁻¹⁾ + b⁽ˡ⁾,  z⁽ˡ⁾ = h(a⁽ˡ⁾),  ŷ and L of the last a      forward
    δ⁽ᴸ⁾ = ∂L/∂a⁽ᴸ⁾, such as ŷ - y,  δ⁽ˡ⁾ = h'(a⁽ˡ⁾) ⊙ W⁽ˡ⁺¹⁾ᵀ δ⁽ˡ⁺¹⁾       backward

An activation is one node, whose derivative is its own slope, and the head's loss is one, whose
derivative is the error δ.  The page has that as the lectures write it, in ŷ and y: the formula is
what is computed, and it is taken only where it gives the head's own error.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxbp.activations import Activation
from jaxbp.graph.closed import operation
from jaxbp.graph.graph import Graph, graph_of
from jaxbp.graph.recording import named
from jaxbp.graph.reverse import trace_arguments
from jaxbp.graph.symbols import SUPERSCRIPTS
from jaxbp.heads import Head
from jaxbp.mlp import forward
from jaxbp.model import MLP, Params, units_of
from jaxbp.reprs import short
from jaxbp.targets import label_rows, values


class _Written(NamedTuple):
    """A head as the lectures write it."""

    prediction: str  # ŷ of the logits {0}
    loss: str  # L of the logits {0}, the prediction {1} and the target {2}
    error: Callable[[Any, Any], Any]  # δ of ŷ and y


def _difference(prediction: Array, y: Array) -> Array:
    return prediction - y


_WRITTEN = {
    "linear_squared_error": _Written("{0}", "Σ({1} - {2})²", lambda p, y: 2 * (p - y)),
    "linear_half_squared_error": _Written("{0}", "½·Σ({1} - {2})²", _difference),
    "linear_huber": _Written("{0}", "huber({1} - {2})", lambda p, y: jnp.clip(p - y, -1, 1)),
    "linear_absolute_error": _Written("{0}", "Σ|{1} - {2}|", lambda p, y: jnp.sign(p - y)),
    "sigmoid_logistic": _Written("σ({0})", "-Σ({2}·ln {1} + (1 - {2})·ln(1 - {1}))", _difference),
    "sigmoid_squared_error": _Written(
        "σ({0})", "Σ({1} - {2})²", lambda p, y: 2 * (p - y) * (p * (1 - p))
    ),
    "softmax_cross_entropy": _Written("softmax({0})", "-Σ {2}·ln {1}", _difference),
    "exp_poisson": _Written("exp({0})", "Σ({1} - {2}·{0})", _difference),
}


def trace_network(model: MLP, params: Params, x: ArrayLike, target: ArrayLike) -> Graph:
    """The graph of the loss L of one example, by the parameters, in the lectures' names.

    model: the network; its penalty is no part of an example's loss.
    params: of the model; they are named W⁽¹⁾, b⁽¹⁾, ...
    x: (D,) the example.
    target: (K,) y, or the number of its class.

    ``graph.gradients[0]`` is ∂L/∂params.  Raises ValueError and TypeError as ``forward`` does.

    >>> import jaxbp
    >>> model = MLP((2, 3, 3), jaxbp.activations.relu, jaxbp.heads.softmax_cross_entropy)
    >>> params = jaxbp.init(jax.random.key(0), model)
    >>> graph = trace_network(model, params, [1.0, -1.0], 2)
    >>> graph["a⁽²⁾"].formula, graph["a⁽¹⁾"].formula
    ('ŷ - y', 'gz⁽¹⁾ ⊙ [z⁽¹⁾ > 0]')
    """
    depth, head = len(model.sizes) - 1, model.head
    logits, _ = forward(model, params, x)
    if logits.ndim > 1:
        raise ValueError(f"x: got shape {jnp.shape(x)}, expected one example, {model.sizes[:1]}")
    y = (label_rows if head.target == "classes" else values)(logits, target)
    if jnp.isnan(y).any():
        raise ValueError(f"target: got {target}, expected a class from 0 to {model.sizes[-1] - 1}")
    written = _written(head, logits, y)
    units = [
        partial(_unit, unit, layer) for layer, unit in enumerate(units_of(model)[:-1], start=1)
    ]
    drawn, dtype = model._replace(activation=tuple(units)), logits.dtype

    def loss(params: Params) -> Array:
        logits, _ = forward(drawn, params, named(jnp.asarray(x, dtype), "x"))
        logits = named(logits, _of_layer("a", depth), adjoint=_of_layer("δ", depth))
        return named(_loss(head, written, logits, named(y, "y")), "L")

    names = [_of_layer(letter, layer) for layer in range(1, depth + 1) for letter in "Wb"]
    return graph_of(trace_arguments(loss, (params,), names), terse=True)


def _of_layer(letter: str, layer: int) -> str:
    """A letter with its layer, as in "W⁽²⁾"."""
    return f"{letter}⁽{str(layer).translate(SUPERSCRIPTS)}⁾"


def _unit(unit: Activation, layer: int, a: Array) -> tuple[Array, Array]:
    """An activation as one node, z = h(a), whose derivative is its slope."""
    a = named(a, _of_layer("a", layer), adjoint=_of_layer("δ", layer))
    output: Any = lambda a: unit(a)[0]  # noqa: E731
    output.__name__ = short(unit)
    h = jax.custom_vjp(output)
    h.defvjp(unit, lambda slope, gz: (gz * slope,))  # which is read in terms of z where it is so
    z = named(h(a), _of_layer("z", layer))
    return z, jnp.zeros_like(z)  # a slope that nobody asks for


def _loss(head: Head, written: _Written, logits: Array, y: Array) -> Array:
    """The prediction and the loss as a node each; the loss passes the error to the logits."""
    predict = operation(
        head.predict, notation=written.prediction, pull=lambda gp, p, a: jnp.zeros_like(a)
    )
    loss = operation(
        lambda a, p, y: head.loss(a, y)[0],
        notation=written.loss,
        pull=lambda gy, _, a, p, y: (gy * written.error(p, y), None, None),
    )
    return cast(Array, loss(logits, named(predict(logits), "ŷ"), y))


def _written(head: Head, logits: Array, y: Array) -> _Written:
    """A head as the lectures write it, if that is its error; else by its name and its error."""
    name = str(head)
    _, error = head.loss(logits, y)
    if name in _WRITTEN:
        written = _WRITTEN[name]
        by_formula = written.error(head.predict(logits), y)
        if jnp.allclose(by_formula, error, rtol=1e-6, atol=1e-6):
            return written
    name = name if name in _WRITTEN else "loss"
    return _Written("prediction({0})", f"{name}({{0}}, {{2}})", lambda prediction, y: error)
