"""Rounded products: float32 products as devices compute them that multiply fewer digits.

    A B  ->  fl(A) fl(B), summed in float32

fl keeps some of the 23 binary digits that a float32 number has after its first: 10 in TF32, as
NVIDIA GPUs from 2020 on multiply by default, 7 in bfloat16, as TPUs do.  Which of the two
neighbours it takes is the device's choice: the nearest, ties to even, or the one towards zero, as
the tensor cores do with operands that no instruction has rounded before.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.extend.core import jaxpr_as_fun

from jaxbp.checking.verdicts import Rounding
from jaxbp.precision import default_precision
from jaxbp.trees import opened, subjaxprs

DIGITS = 23  # of a float32 number, after the first
_DIGITS_OF = {"highest": DIGITS, "float32": DIGITS, "tensorfloat32": 10, "bfloat16": 7}
_HERE = ("default", "high")  # names of what each device does in its own way
_SIGMAS = 3.0  # standard deviations beyond all errors that were met
_USUAL_SIGMAS = 4.0  # beyond their median
_NORMAL_MEDIAN = 0.6745  # |x| of half of all normal numbers, in standard deviations
_PRODUCTS = (lax.dot_general_p, lax.conv_general_dilated_p)
_INEXACT = (None, lax.Precision.DEFAULT, lax.Precision.HIGH)  # GPUs take "high" for TF32, too


def with_rounded_products(
    function: Callable[..., Any], digits: int, *, toward_zero: bool = False
) -> Callable[..., Any]:
    """The function with the operands of its float32 products rounded, and summed in float32.

    Products of the precision "highest" stay as they are, those in jit, loops, branches and custom
    rules are rounded like the others.  Take the gradient first and round then: that is what a
    device does.

    function: of arrays and trees of them, that JAX can trace.
    digits: binary digits of an operand that are kept, after its first.
    toward_zero: other digits are cut off; else operands are rounded to nearest.

    Raises ValueError for other digits than 0 to 23.

    >>> x = jnp.float32([[1.0 + 2**-11]])
    >>> exact = jnp.matmul(x, x, precision="highest")
    >>> print(exact > 1, with_rounded_products(jnp.matmul, 10)(x, x))
    [[ True]] [[1.]]
    """
    if not isinstance(digits, int) or not 0 <= digits <= DIGITS:
        raise ValueError(f"digits: got {digits!r}, expected a whole number from 0 to {DIGITS}")
    rounding = partial(rounded, digits=digits, toward_zero=toward_zero)

    def coarse(*args: Any) -> Any:
        jaxpr, result = jax.make_jaxpr(function, return_shape=True)(*args)
        values = jaxpr_as_fun(_rewritten(jaxpr, rounding))(*jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(result), values)

    return coarse


def has_products(jaxpr: Any) -> bool:
    """Whether a program has products of arrays, at whatever precision."""
    return any(
        equation.primitive in _PRODUCTS or any(map(has_products, subjaxprs(equation)))
        for equation in opened(jaxpr).eqns
    )


def rounded(x: Array, *, digits: int, toward_zero: bool = False) -> Array:
    """A float32 array with some of its 23 binary digits; arrays of other dtypes as they are."""
    if x.dtype != jnp.float32:
        return x
    if not toward_zero:
        return lax.reduce_precision(x, exponent_bits=8, mantissa_bits=digits)
    mask = np.uint32(2**32 - 2 ** (DIGITS - digits))
    return lax.bitcast_convert_type(lax.bitcast_convert_type(x, jnp.uint32) & mask, jnp.float32)


def is_rounded(params: dict[str, Any]) -> bool:
    """Whether a product rounds its operands where default products do; from its parameters."""
    precision = params["precision"]
    pair = precision if isinstance(precision, tuple) else (precision,)
    return all(each in _INEXACT for each in pair)


def _rewritten(jaxpr: Any, rounding: Callable[[Array], Array]) -> Any:
    """A jaxpr, closed or open, in which the operands of products are rounded."""
    inner = opened(jaxpr)
    if inner is not jaxpr:
        return jaxpr.replace(jaxpr=_rewritten(inner, rounding))
    equations = [new for each in jaxpr.eqns for new in _equations_for(each, rounding)]
    return jaxpr.replace(eqns=equations)


def _equations_for(equation: Any, rounding: Callable[[Array], Array]) -> Iterator[Any]:
    """The equations in place of one: for a product, those that round its operands, and itself."""
    if equation.primitive in _PRODUCTS and is_rounded(equation.params):
        operands = []
        for variable in equation.invars:
            before, operand = _rounding_equations(variable, rounding)
            yield from before
            operands.append(operand)
        params = equation.params | {"precision": (lax.Precision.HIGHEST,) * 2}
        yield equation.replace(invars=operands, params=params)
    elif any(True for _ in subjaxprs(equation)):
        params = {name: _within(value, rounding) for name, value in equation.params.items()}
        yield equation.replace(params=params)
    else:
        yield equation


def _rounding_equations(variable: Any, rounding: Callable[[Array], Array]) -> tuple[list[Any], Any]:
    """The equations that round a variable, and the variable for the result."""
    operand = jax.eval_shape(partial(jnp.zeros, variable.aval.shape, variable.aval.dtype))
    # JAX remembers what it has traced: another function each time, so that variables are others
    jaxpr = opened(jax.make_jaxpr(partial(rounding))(operand))
    (given,), (result,) = jaxpr.invars, jaxpr.outvars
    equations = [
        each.replace(invars=[variable if v is given else v for v in each.invars])
        for each in jaxpr.eqns
    ]
    return equations, variable if result is given else result


def _within(value: Any, rounding: Callable[[Array], Array]) -> Any:
    """A parameter of an equation with the jaxprs in it, if any, rewritten."""
    if hasattr(value, "eqns"):
        return _rewritten(value, rounding)
    if isinstance(value, list | tuple):
        parts = [_within(each, rounding) for each in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


# The products of a claim


@dataclass(frozen=True)
class Products:
    """The float32 products that a claim was made with."""

    precision: str  # by JAX's name
    here: bool  # on this device, which is asked; else known by the name
    named: bool = True  # by the user; else assumed

    @cached_property
    def digits(self) -> int:
        """How many binary digits of an operand, after its first, they keep."""
        return digits_multiplied(self.precision) if self.here else _DIGITS_OF[self.precision]

    @property
    def eps(self) -> float:
        """The relative spacing of their operands."""
        return float(2.0**-self.digits)

    def may_round(self, values: Iterable[np.ndarray], needed: bool) -> bool:
        """Whether they may have rounded values, none of which is float64.

        What this device's products do is asked only if needed, or if the user names them.
        """
        if any(value.dtype == np.float64 for value in values):
            return False
        return (self.named or needed) and self.digits < DIGITS

    def rounding(self, gradient: Callable[..., Any]) -> list[Callable[..., Any]]:
        """A gradient made with them: on this device, or in either way to round."""
        if self.here:
            return [_under(self.precision, gradient)]
        ways = [_rounded(gradient, self.digits, toward_zero) for toward_zero in (False, True)]
        return [_under("default", way) for way in ways]

    def __str__(self) -> str:
        whose = f"{'this device' if self.here else 'a device'}'s {self.precision} products"
        otherwise = "" if self.named else "; precision= names others"
        return (
            f"grads is judged as made with {whose}, of {self.digits} binary digits, not {DIGITS}"
            f"{otherwise}"
        )


@lru_cache(maxsize=32)  # so that a function checked again is not compiled again
def _rounded(gradient: Callable[..., Any], digits: int, toward_zero: bool) -> Callable[..., Any]:
    return jax.jit(with_rounded_products(gradient, digits, toward_zero=toward_zero))


EXACT = Products("highest", here=False)


def products_of(precision: str | None) -> Products:
    """The products that ``gradcheck``'s argument names, or those of this device by default.

    Raises ValueError for another name.
    """
    if precision is None:
        return Products(default_precision(), here=True, named=False)
    if precision not in (*_HERE, *_DIGITS_OF):
        names = ", ".join(f'"{name}"' for name in (*_DIGITS_OF, *_HERE))
        raise ValueError(f"precision: got {precision!r}, expected {names} or None")
    return Products(precision, here=precision in _HERE)


def digits_multiplied(precision: str = "default") -> int:
    """How many binary digits after the first a float32 product keeps here, at JAX's precision.

    Found by multiplying 1 + 2⁻ⁿ by one, for every n, in matrices that are large enough for the
    device's own routine: 23 where float32 is float32, 10 for TF32, 7 for bfloat16.

    >>> digits_multiplied("highest")
    23
    """
    powers = np.arange(128) % DIGITS + 1
    numbers = np.diag(1 + np.float32(2.0) ** -powers).astype(np.float32)
    product = np.asarray(_under(precision, _matmul)(numbers, np.eye(128, dtype=np.float32)))
    return int(np.max(powers, initial=0, where=np.diag(product) == np.diag(numbers)))


_matmul = jax.jit(jnp.matmul)


def _under(precision: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def called(*args: Any) -> Any:
        with jax.default_matmul_precision(precision):
            return function(*args)

    return called


def rounding_of_slopes(
    gradient: Callable[..., Any],
    products: Products,
    at: Any,
    pairs: Iterable[tuple[Any, Any]],
    slopes_of: Callable[[Any], np.ndarray],
    groups: np.ndarray,
) -> tuple[Rounding, np.ndarray]:
    """How much too large such products make the slopes (N,) of a gradient, and its exact slopes.

    Rounded and exact products differ by b₀ in the slopes at the point and, with the roundings drawn
    anew, by b₁, b₂, ... at points beside it.  Of these usual ones b is the median of each slope and
    σ their spread, that of a normal distribution with the same median deviation.  Now and then a
    unit at its kink switches, as rounding may make it do: what that changes is met in some of the
    bᵢ, whose standard deviation is ς, and in s = g(x + h) + g(x - h) - 2 g(x), in which a smooth
    change cancels.

        usually           min(0, b₀, b) - 4σ          to  max(0, b₀, b) + 4σ
        at the utmost     min(0, bᵢ) - 3ς - max|s|    to  max(0, bᵢ) + 3ς + max|s|

    0 is within the bounds, as a program may make some products in one way and some in another.
    Spreads are pooled over the slopes of a group.

    gradient: compiled, of the arguments at.
    products: those that the gradient in question was made with.
    at: the point, a tuple of arguments.
    pairs: of points on either side of it, x + h and x - h, at the distance of the rounding.
    slopes_of: the slopes (N,) of a gradient.
    groups: (N,) numbers that slopes of the same leaf share.
    """
    rounding = products.rounding(gradient)
    exact = slopes_of(gradient(*at))
    errors = [[slopes_of(each(*at)) - exact] for each in rounding]
    switched = np.zeros_like(exact)
    for pair in pairs:
        beside = [slopes_of(gradient(*point)) for point in pair]
        switched = np.maximum(switched, np.abs(beside[0] + beside[1] - 2 * exact))
        for own, each in zip(errors, rounding, strict=True):
            own += [slopes_of(each(*p)) - there for p, there in zip(pair, beside, strict=True)]
    bounds = [_bounds(np.array(own), switched, groups) for own in errors]
    lower, upper, lowest, highest = zip(*bounds, strict=True)
    widest = Rounding(
        lower=np.min(lower, axis=0),
        upper=np.max(upper, axis=0),
        lowest=np.min(lowest, axis=0),
        highest=np.max(highest, axis=0),
    )
    return widest, exact


def _bounds(errors: np.ndarray, switched: np.ndarray, groups: np.ndarray) -> Rounding:
    """The bounds by errors (draws, N) of products that are rounded in one way."""
    median, usual, reach = np.median(errors, axis=0), *np.empty((2, len(groups)))
    for group in np.unique(groups):
        own = groups == group
        spread = np.median(np.abs(errors - median)[:, own]) / _NORMAL_MEDIAN
        usual[own] = _USUAL_SIGMAS * spread
        reach[own] = _SIGMAS * np.sqrt(np.mean(np.var(errors[:, own], axis=0, ddof=1)))
    reach = np.maximum(reach + switched, usual)
    return Rounding(
        lower=np.minimum(0, np.minimum(errors[0], median)) - usual,
        upper=np.maximum(0, np.maximum(errors[0], median)) + usual,
        lowest=np.minimum(0, np.min(errors, axis=0)) - reach,
        highest=np.maximum(0, np.max(errors, axis=0)) + reach,
    )
