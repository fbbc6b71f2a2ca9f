"""The functions and constants of expressions, and what an unknown name may stand for."""

import math
from collections.abc import Callable
from difflib import get_close_matches
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp


def _extremum(two: Callable[..., Any], entries: Callable[..., Any]) -> Callable[..., Any]:
    """Make max(a, b, ...) for several operands, max(a) for the entries of a single one."""
    return lambda *operands: reduce(two, operands) if len(operands) > 1 else entries(*operands)


# Functions that are one node of a graph: their rules say the derivative as it is on paper


@jax.custom_jvp
def leaky_relu(a: Any, slope: Any = 0.01) -> Any:
    """a, or slope·a where a is not positive."""
    return jnp.where(a > 0, a, slope * a)


@jax.custom_jvp
def elu(a: Any, alpha: Any = 1.0) -> Any:
    """a, or alpha (eᵃ - 1) where a is not positive, with no exponential of a large a."""
    return jnp.where(a > 0, a, alpha * jnp.expm1(jnp.where(a > 0, 0.0, a)))


@jax.custom_jvp
def softmax(a: Any) -> Any:
    """exp(aₖ) / Σ exp(aⱼ) of a vector, or of each row of a matrix."""
    return jax.nn.softmax(a)


@jax.custom_jvp
def logsumexp(a: Any) -> Any:
    """log Σ exp(aᵢ) over all entries."""
    return jax.nn.logsumexp(a)


@jax.custom_jvp
def norm(a: Any) -> Any:
    """√(Σ aᵢ²) over all entries."""
    return jnp.sqrt(jnp.sum(a * a))


leaky_relu.defjvps(
    lambda tangent, y, a, slope: jnp.where(a > 0, 1.0, slope) * tangent,
    lambda tangent, y, a, slope: jnp.where(a > 0, 0.0, a) * tangent,
)
elu.defjvps(
    lambda tangent, y, a, alpha: jnp.where(a > 0, 1.0, y + alpha) * tangent,
    lambda tangent, y, a, alpha: jnp.expm1(jnp.minimum(a, 0.0)) * tangent,
)
softmax.defjvps(lambda tangent, y, a: y * (tangent - jnp.sum(y * tangent, axis=-1, keepdims=True)))
logsumexp.defjvps(lambda tangent, y, a: jnp.sum(jnp.exp(a - y) * tangent))
norm.defjvps(lambda tangent, y, a: jnp.sum(a / y * tangent))


ANY, _ONE, _TWO, _THREE = range(1, 100), range(1, 2), range(2, 3), range(3, 4)  # operands
_ONE_OR_TWO = range(1, 3)
_AS_IN_NUMPY = (
    *("exp", "exp2", "expm1", "log", "log1p", "log2", "log10", "sqrt", "cbrt", "abs", "sign"),
    *("sin", "cos", "tan", "sinh", "cosh", "tanh", "floor", "ceil", "round", "sum", "mean"),
)
_INVERSES = ("asin", "acos", "atan", "asinh", "acosh", "atanh")  # arcsin, ... in NumPy
FUNCTIONS: dict[str, tuple[Callable[..., Any], range]] = {
    **{name: (getattr(jnp, name), _ONE) for name in _AS_IN_NUMPY},
    **{name: (getattr(jnp, f"arc{name[1:]}"), _ONE) for name in _INVERSES},
    "ln": (jnp.log, _ONE),
    "atan2": (jnp.arctan2, _TWO),
    "erf": (jax.lax.erf, _ONE),
    "sigmoid": (jax.nn.sigmoid, _ONE),
    "softplus": (lambda a: jnp.log1p(jnp.exp(a)), _ONE),
    "relu": (jax.nn.relu, _ONE),  # whose slope at 0 is 0
    "leaky_relu": (leaky_relu, _ONE_OR_TWO),
    "elu": (elu, _ONE_OR_TWO),
    "gelu": (lambda a: a * (1 + jax.lax.erf(a / math.sqrt(2))) / 2, _ONE),
    "silu": (lambda a: a * jax.nn.sigmoid(a), _ONE),
    "softmax": (softmax, _ONE),
    "logsumexp": (logsumexp, _ONE),
    "norm": (norm, _ONE),
    "dot": (jnp.dot, _TWO),
    "transpose": (jnp.transpose, _ONE),
    "where": (jnp.where, _THREE),
    "max": (_extremum(jnp.maximum, jnp.max), ANY),
    "min": (_extremum(jnp.minimum, jnp.min), ANY),
}
CONSTANTS = {"pi": math.pi, "e": math.e}
#: what others call the functions above
_OTHER_NAMES = {
    **{f"arc{name[1:]}": name for name in _INVERSES},
    **{"arctan2": "atan2", "swish": "silu", "logistic": "sigmoid", "absolute": "abs"},
    **{"maximum": "max", "minimum": "min", "amax": "max", "amin": "min", "matmul": "dot"},
}


def meant(name: str) -> str:
    """A function that the name may stand for, or else all of them."""
    if name in _OTHER_NAMES:
        return f"; did you mean {_OTHER_NAMES[name]}?"
    alike = [f for f in FUNCTIONS if f[0] == name[0] and abs(len(f) - len(name)) < 2]
    is_known = hasattr(jnp, name) or hasattr(jax.nn, name)  # and no slip of the keyboard
    close = [] if is_known else get_close_matches(name, alike, n=1, cutoff=0.66)
    return f"; did you mean {close[0]}?" if close else f", which are {', '.join(FUNCTIONS)}"


def count(expected: range) -> str:
    """How many operands a function takes, in words."""
    if expected is ANY:
        return "at least one operand"
    counts = " or ".join(map(str, expected))
    return f"{counts} operand{'s' * (counts != '1')}"
