"""The functions and constants of expressions, and what an unknown name may stand for."""

import math
import operator
from collections.abc import Callable
from difflib import get_close_matches
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp


def _extremum(two: Callable[..., Any], entries: Callable[..., Any]) -> Callable[..., Any]:
    """Make max(a, b, ...) for several operands, max(a) for the entries of a single one."""
    return lambda *operands: reduce(two, operands) if len(operands) > 1 else entries(*operands)


def _elu(a: Any, *alpha: Any) -> Any:
    """a, or alpha (eᵃ - 1) below 0, where no exponential of a large a is taken."""
    below = jnp.expm1(jnp.where(a > 0, 0.0, a))
    return jnp.where(a > 0, a, reduce(operator.mul, alpha, below))


@jax.custom_jvp
def logsumexp(a: Any) -> Any:
    """log Σ exp(aᵢ) over all entries, one node of a graph."""
    return jax.nn.logsumexp(a)


@logsumexp.defjvp
def _tangent_of_logsumexp(primals: tuple[Any], tangents: tuple[Any]) -> tuple[Any, Any]:
    (a,), (tangent,) = primals, tangents
    y = logsumexp(a)
    return y, jnp.sum(jnp.exp(a - y) * tangent)


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
    "leaky_relu": (lambda a, slope=0.01: jnp.where(a > 0, a, slope * a), _ONE_OR_TWO),
    "elu": (_elu, _ONE_OR_TWO),
    "gelu": (lambda a: a * (1 + jax.lax.erf(a / math.sqrt(2))) / 2, _ONE),
    "silu": (lambda a: a * jax.nn.sigmoid(a), _ONE),
    "softmax": (jax.nn.softmax, _ONE),  # of a vector, or of each row of a matrix
    "logsumexp": (logsumexp, _ONE),  # of all entries
    "norm": (lambda a: jnp.sqrt(jnp.sum(a * a)), _ONE),
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
