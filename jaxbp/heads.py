"""Heads: an output unit with its loss, and the error that the backward pass starts from.

A head's loss is ``(logits, target) -> (loss, error)``: each example's loss L, summed over the K
outputs, and the output error δₖ = ∂L/∂aₖ.  Both come from the logits a, the last pre-activations,
in closed form: the exponential of the output unit and the logarithm of the loss cancel on paper,
so nothing overflows and no logarithm of a rounded 0 is taken (Bishop 2006, section 5.2).

    head                        prediction ŷ   loss L (target y)             error ∂L/∂a
    linear_squared_error        a              Σ (ŷ - y)²                    2 (ŷ - y)
    linear_half_squared_error   a              ½ Σ (ŷ - y)²                  ŷ - y
    linear_huber                a              Σ ½r² or |r| - ½, r = ŷ - y   clip(r, -1, 1)
    linear_absolute_error       a              Σ |ŷ - y|                     sign(ŷ - y), 0 at 0
    sigmoid_logistic            σ(a)           -Σ [y ln ŷ + (1-y) ln(1-ŷ)]   ŷ - y
    sigmoid_squared_error       σ(a)           Σ (ŷ - y)²                    2 (ŷ - y) ŷ (1 - ŷ)
    softmax_cross_entropy       softmax(a)     -Σ y ln ŷ                     ŷ Σy - y
    exp_poisson                 eᵃ             Σ (ŷ - y a)                   ŷ - y
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from jaxbp.reprs import short
from jaxbp.targets import label_rows, values


class Head(NamedTuple):
    """An output unit, its loss and, for classification, how a prediction becomes a class."""

    predict: Callable[[Array], Array]  # logits (B, K) -> prediction (B, K)
    loss: Callable[[Array, ArrayLike], tuple[Array, Array]]  # logits, target -> (B,), error (B, K)
    decide: Callable[[Array], Array] | None = None  # prediction or soft labels -> class labels
    gauss_newton: Callable[[Array, Array], Array] | None = None  # the Hessian's part ≥ 0 · tangent
    target: Literal["values", "labels", "classes", "counts"] = "values"  # (B, K) numbers; labels in
    # [0, 1] of independent outputs; (B,) integer classes or label rows of sum 1; numbers ≥ 0

    def __repr__(self) -> str:
        return short(self)

    def __str__(self) -> str:
        return next((name for name, head in BY_NAME.items() if head == self), repr(self))


def squared_error(logits: Array, target: ArrayLike) -> tuple[Array, Array]:
    """‖a - y‖² without a ½: the least squares of the lectures' table; target (B, K)."""
    residual = logits - values(logits, target)
    return jnp.sum(residual**2, axis=-1), 2 * residual


def half_squared_error(logits: Array, target: ArrayLike) -> tuple[Array, Array]:
    """½‖a - y‖², so that the error is a - y without a 2 (Bishop 2006, eq. 5.11); target (B, K)."""
    residual = logits - values(logits, target)
    return jnp.sum(residual**2, axis=-1) / 2, residual


def huber(logits: Array, target: ArrayLike, *, threshold: float = 1.0) -> tuple[Array, Array]:
    """Σ ½r² where |r| ≤ c, else c|r| - ½c²; error clip(r, -c, c) (Huber 1964); target (B, K).

    Another c > 0: ``linear_huber._replace(loss=functools.partial(huber, threshold=2.0))``.
    """
    if not threshold > 0:
        raise ValueError(f"threshold: got {threshold}, expected more than 0")
    residual = logits - values(logits, target)
    error = jnp.clip(residual, -threshold, threshold)
    return jnp.sum(error * (residual - error / 2), axis=-1), error


def absolute_error(logits: Array, target: ArrayLike) -> tuple[Array, Array]:
    """Σ |a - y|, whose minimum is the median; error sign(a - y), 0 at a = y; target (B, K)."""
    residual = logits - values(logits, target)
    error = jnp.sign(residual)
    return jnp.sum(error * residual, axis=-1), error


def logistic(logits: Array, target: ArrayLike) -> tuple[Array, Array]:
    """-Σ [y ln σ(a) + (1-y) ln σ(-a)], where -ln σ(a) = ln(1 + e⁻ᵃ) is finite for every finite a.

    The target: labels (B, K) of independent outputs, in [0, 1] (Bishop 2006, eq. 5.23).
    """
    y = values(logits, target)
    loss = _times(y, jnp.logaddexp(-logits, 0)) + _times(1 - y, jnp.logaddexp(logits, 0))
    return jnp.sum(loss, axis=-1), jax.nn.sigmoid(logits) - y


def sigmoid_squared(logits: Array, target: ArrayLike) -> tuple[Array, Array]:
    """‖σ(a) - y‖², included to show its flaw; labels (B, K).

    Where σ saturates the error vanishes, whether or not the prediction is right.
    """
    prediction = jax.nn.sigmoid(logits)
    residual = prediction - values(logits, target)
    return jnp.sum(residual**2, axis=-1), 2 * residual * prediction * (1 - prediction)


def cross_entropy(logits: Array, target: ArrayLike) -> tuple[Array, Array]:
    """-Σ yₖ ln softmax(a)ₖ; error ŷ Σy - y, that is ŷ - y for labels that sum to 1.

    The target: (soft) label rows (B, K), or integer classes (B,); a class outside [0, K) makes
    loss and error NaN (Bishop 2006, eq. 5.24).
    """
    y = label_rows(logits, target)
    log_prediction = jax.nn.log_softmax(logits)
    error = jnp.exp(log_prediction) * jnp.sum(y, axis=-1, keepdims=True) - y
    return -jnp.sum(_times(y, log_prediction), axis=-1), error


def poisson(logits: Array, target: ArrayLike) -> tuple[Array, Array]:
    """Σ (eᵃ - y a) for counts y ≥ 0 (B, K), the constant ln y! left out.

    It is infinite where the rate eᵃ is: above a = 88 in float32, 709 in float64.
    """
    rate, y = jnp.exp(logits), values(logits, target)
    return jnp.sum(rate - _times(y, logits), axis=-1), rate - y


def _linear(logits: Array) -> Array:
    return logits


def _sigmoid(logits: Array) -> Array:  # jax.nn.sigmoid itself cannot be pickled
    return jax.nn.sigmoid(logits)


def _softmax(logits: Array) -> Array:
    return jax.nn.softmax(logits)


def _exponential(logits: Array) -> Array:
    return jnp.exp(logits)


def _above_half(probability: Array) -> Array:
    return probability > 0.5


def _most_probable(probability: Array) -> Array:
    return jnp.argmax(probability, axis=-1)


def _squared_slope(logits: Array, tangent: Array) -> Array:
    prediction = jax.nn.sigmoid(logits)
    return 2 * (prediction * (1 - prediction)) ** 2 * tangent


linear_squared_error = Head(_linear, squared_error)
linear_half_squared_error = Head(_linear, half_squared_error)
linear_huber = Head(_linear, huber)
linear_absolute_error = Head(_linear, absolute_error)
sigmoid_logistic = Head(_sigmoid, logistic, _above_half, target="labels")
sigmoid_squared_error = Head(_sigmoid, sigmoid_squared, _above_half, _squared_slope, "labels")
softmax_cross_entropy = Head(_softmax, cross_entropy, _most_probable, target="classes")
exp_poisson = Head(_exponential, poisson, target="counts")

#: the heads that a file or a command line can name
BY_NAME: dict[str, Head] = {
    "linear_squared_error": linear_squared_error,
    "linear_half_squared_error": linear_half_squared_error,
    "linear_huber": linear_huber,
    "linear_absolute_error": linear_absolute_error,
    "sigmoid_logistic": sigmoid_logistic,
    "sigmoid_squared_error": sigmoid_squared_error,
    "softmax_cross_entropy": softmax_cross_entropy,
    "exp_poisson": exp_poisson,
}


@cache  # the same loss gives the same head
def with_error(loss: Callable[[Array, Array], Array]) -> Head:
    """Make a head of a loss alone, (logits (B, K), target) -> (B,): its error is by ``jax.vjp``.

    The prediction is the logits, ``with_error(loss)._replace(predict=jax.nn.sigmoid)`` has another.
    An example's loss must depend on its own logits alone.  Raises ValueError for another shape.

    >>> head = with_error(lambda a, y: jnp.sum((a - y) ** 4, axis=-1))
    >>> loss, error = head.loss(jnp.array([[3.0]]), jnp.array([[1.0]]))
    >>> loss.tolist(), error.tolist()
    ([16.0], [[32.0]])
    """
    return Head(_linear, partial(_with_error, loss))


def _with_error(
    loss: Callable[[Array, Array], Array], logits: Array, target: ArrayLike
) -> tuple[Array, Array]:
    value, pull = jax.vjp(lambda a: loss(a, jnp.asarray(target)), logits)
    if value.shape != logits.shape[:-1]:
        expected = f"{logits.shape[:-1]}, one an example"
        raise ValueError(f"loss: got shape {value.shape}, expected {expected}")
    return value, pull(jnp.ones_like(value))[0]


def _times(y: Array, factor: Array) -> Array:
    """y · factor, 0 where y is 0: a masked class, whose logit is -∞, leaves the loss finite."""
    return y * jnp.where(y == 0, 0, factor)
