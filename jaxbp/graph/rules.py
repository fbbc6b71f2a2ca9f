"""The table of local derivatives: all that reverse mode knows of a primitive, one line each.

A primitive that works entry by entry is a line of ``_ENTRY_BY_ENTRY``: how y is written, and ∂y/∂a
for each of its operands; an operand's adjoint then receives  gy · ∂y/∂a.  Sums, products
(``rules_of_products``) and moves (``rules_of_moves``) have a *pull* instead, from gy to the adjoint
that an operand receives: the local derivative transposed (Griewank and Walther 2008, section 3.2).
Everything is written once, for numbers and for formulas alike; see ``symbols``.

Where there is no derivative the conventions are JAX's: max and min share gy between equals, the
slope of |a| at 0 is 1, that of 0ᵇ in b is 0.  At such a point the formula is the one computed.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy import special

from jaxbp.graph.rules_of_moves import MOVES, pull_of_move, unbroadcast
from jaxbp.graph.rules_of_products import affine, dot, pull_affine, pull_dot
from jaxbp.graph.symbols import Function, Symbol, atom, call, symbol, total


class Rule(NamedTuple):
    """The notation of a primitive with output y, and how y's adjoint passes to an operand.

    ``params`` are those of the equation in the jaxpr and, as ``primitive``, the primitive itself.
    """

    notation: Callable[..., Any]  # (*operands, **params) -> formula
    #: (i, gy, y, *operands, **params) -> the adjoint that operand i receives, None where nothing is
    pull: Callable[..., Any]
    slope: Callable[..., Any] | None = None  # (i, y, *operands, **params) -> ∂y/∂operand i


def entry_by_entry(notation: Callable[..., Any], slope: Callable[..., Any]) -> Rule:
    """The rule of a primitive that works entry by entry, from slope(i, y, *operands, **params)."""

    def pull(i: int, gy: Any, y: Any, /, *operands: Any, **params: Any) -> Any:
        share = _times(gy, slope(i, y, *operands, **params))
        return None if share is None else unbroadcast(share, operands[i])

    return Rule(notation, pull, slope)


def of_slopes(notation: Callable[..., Any], *slopes: Callable[..., Any]) -> Rule:
    """The rule of a primitive that works entry by entry and has no parameters.

    There is one slope for each operand, a function (y, *operands) -> ∂y/∂operand.
    """

    def slope(i: int, y: Any, /, *operands: Any, **params: Any) -> Any:
        if len(slopes) != len(operands):
            got = f"{params['primitive'].name}: got {len(slopes)} slopes"
            raise ValueError(f"{got}, expected {len(operands)}, one for each operand")
        return slopes[i](y, *operands)

    return entry_by_entry(lambda *operands, **_: notation(*operands), slope)


def _times(gy: Any, slope: Any) -> Any:
    """gy · slope; None, nothing, where the slope is 0 whatever the operands are.

    An infinite gy is no reason for 0·∞ then, nor where a truth value keeps gy out.
    """
    if isinstance(gy, Symbol):
        return gy * slope
    if isinstance(slope, int):
        return {1: gy, -1: -gy}[slope] if slope else None
    if slope.dtype == bool:
        return jnp.where(slope, gy, 0)
    return gy * slope


# Functions that derivatives are made of

exp, log = Function("exp({})", jnp.exp), Function("log({})", jnp.log)
sin, cos = Function("sin({})", jnp.sin), Function("cos({})", jnp.cos)
sinh, cosh = Function("sinh({})", jnp.sinh), Function("cosh({})", jnp.cosh)
sqrt, sign = Function("√({})", jnp.sqrt), Function("sign({})", jnp.sign)
digamma = Function("digamma({})", special.digamma)
trigamma = Function("trigamma({})", lambda a: special.polygamma(1, a))
_trunc = Function("trunc({})", jnp.trunc)

_below = Function("[{} < {}]", lambda a, b: a < b)
_inside = Function("[{} < {} < {}]", lambda a, b, c: (a < b) & (b < c))


def at_kinks(is_kink: Callable[..., Any], *operands: Any) -> str:
    """Whether a condition on the operands' values holds for "all" entries, "some" or "none"."""
    values = [getattr(operand, "value", operand) for operand in operands]
    if any(value is None or isinstance(value, jax.core.Tracer) for value in values):
        return "none"
    holds = np.asarray(is_kink(*values))
    return "all" if np.all(holds) else "some" if np.any(holds) else "none"


def _greater(a: Any, b: Any) -> Any:
    """1 where a is greater, ½ where they are equal."""
    if not (isinstance(a, Symbol) or isinstance(b, Symbol)):
        return jnp.where(a == b, 0.5, jnp.where(a > b, 1.0, 0.0))
    shape = np.broadcast_shapes(*(symbol(operand).shape for operand in (a, b)))
    greater = f"[{symbol(a)} > {symbol(b)}]"
    shared = {"none": greater, "all": "½", "some": f"({greater} + ½·[{symbol(a)} = {symbol(b)}])"}
    return Symbol(shared[at_kinks(lambda a, b: a == b, a, b)], shape=shape)


def _slope_of_abs(a: Any) -> Any:
    """The sign of a, 1 at 0."""
    if not isinstance(a, Symbol):
        return jnp.where(a >= 0, 1.0, -1.0)
    signs = {"none": f"sign({a})", "all": "1", "some": f"([{a} ≥ 0] - [{a} < 0])"}
    return Symbol(signs[at_kinks(lambda a: a == 0, a)], shape=a.shape)


def _less_one(b: Any) -> Any:
    """b - 1; of whole numbers 1 for b = 0, so that b·aᵇ⁻¹ is 0 even for a = 0."""
    is_whole = jnp.issubdtype(getattr(b, "dtype", float), jnp.integer)
    return jnp.where(b == 0, 1, b - 1) if is_whole else b - 1


def _log_or_zero(a: Any) -> Any:
    """log(a), and 0 for a = 0, as what it is multiplied by is 0 as well there."""
    if not isinstance(a, Symbol):
        return jnp.log(jnp.where(a == 0, 1, a))
    logs = {"none": f"log({a})", "all": "0", "some": f"log(where({a} = 0, 1, {a}))"}
    return Symbol(logs[at_kinks(lambda a: a == 0, a)], shape=a.shape)


# fmt: off
_ENTRY_BY_ENTRY: dict[str, tuple[Callable[..., Any], ...]] = {
    # primitive: y,                      ∂y/∂a,                       ∂y/∂b
    "sub":      (lambda a, b: a - b,     lambda y, a, b: 1,           lambda y, a, b: -1),
    "mul":      (lambda a, b: a * b,     lambda y, a, b: b,           lambda y, a, b: a),
    "div":      (lambda a, b: a / b,     lambda y, a, b: 1 / b,       lambda y, a, b: -a / b**2),
    "rem":      (call("rem"),            lambda y, a, b: 1,
                 lambda y, a, b: -_trunc(a / b)),
    "pow":      (lambda a, b: a**b,      lambda y, a, b: b * a**_less_one(b),
                 lambda y, a, b: y * _log_or_zero(a)),
    "atan2":    (call("atan2"),          lambda y, a, b: b / (a**2 + b**2),
                 lambda y, a, b: -a / (a**2 + b**2)),
    "max":      (call("max"),            lambda y, a, b: _greater(a, b),
                 lambda y, a, b: _greater(b, a)),
    "min":      (call("min"),            lambda y, a, b: _greater(b, a),
                 lambda y, a, b: _greater(a, b)),
    "neg":      (lambda a: -a,           lambda y, a: -1),
    "square":   (lambda a: a**2,         lambda y, a: 2 * a),
    "one_minus_square": (lambda a: 1 - a**2, lambda y, a: -2 * a),
    "sqrt":     (sqrt,                   lambda y, a: 1 / (2 * y)),
    "rsqrt":    (lambda a: 1 / sqrt(a),  lambda y, a: -y / (2 * a)),
    "cbrt":     (call("cbrt"),           lambda y, a: 1 / (3 * y**2)),
    "exp":      (exp,                    lambda y, a: y),
    "exp2":     (lambda a: 2**a,         lambda y, a: math.log(2) * y),
    "expm1":    (lambda a: exp(a) - 1,   lambda y, a: y + 1),
    "log":      (log,                    lambda y, a: 1 / a),
    "log2":     (call("log2"),           lambda y, a: 1 / (math.log(2) * a)),
    "log1p":    (lambda a: log(1 + a),   lambda y, a: 1 / (1 + a)),
    "sin":      (sin,                    lambda y, a: cos(a)),
    "cos":      (cos,                    lambda y, a: -sin(a)),
    "tan":      (call("tan"),            lambda y, a: 1 + y**2),
    "asin":     (call("asin"),           lambda y, a: 1 / sqrt(1 - a**2)),
    "acos":     (call("acos"),           lambda y, a: -1 / sqrt(1 - a**2)),
    "atan":     (call("atan"),           lambda y, a: 1 / (1 + a**2)),
    "sinh":     (sinh,                   lambda y, a: cosh(a)),
    "cosh":     (cosh,                   lambda y, a: sinh(a)),
    "tanh":     (call("tanh"),           lambda y, a: 1 - y**2),
    "asinh":    (call("asinh"),          lambda y, a: 1 / sqrt(a**2 + 1)),
    "acosh":    (call("acosh"),          lambda y, a: 1 / sqrt(a**2 - 1)),
    "atanh":    (call("atanh"),          lambda y, a: 1 / (1 - a**2)),
    "logistic": (call("σ"),              lambda y, a: y * (1 - y)),
    "erf":      (call("erf"),            lambda y, a: 2 / math.sqrt(math.pi) * exp(-(a**2))),
    "erfc":     (call("erfc"),           lambda y, a: -2 / math.sqrt(math.pi) * exp(-(a**2))),
    "erf_inv":  (call("erf⁻¹"),          lambda y, a: math.sqrt(math.pi) / 2 * exp(y**2)),
    "lgamma":   (call("lgamma"),         lambda y, a: digamma(a)),
    "digamma":  (digamma,                lambda y, a: trigamma(a)),
    "abs":      (lambda a: f"|{a}|",     lambda y, a: _slope_of_abs(a)),
    "sign":     (sign,                   lambda y, a: 0),
    "floor":    (call("floor"),          lambda y, a: 0),
    "ceil":     (call("ceil"),           lambda y, a: 0),
    "round":    (call("round"),          lambda y, a: 0),
    "stop_gradient":    (call("stop"),   lambda y, a: 0),
    "clamp":    (call("clamp"),          lambda y, low, a, high: _below(a, low),
                 lambda y, low, a, high: _inside(low, a, high),
                 lambda y, low, a, high: _below(high, a)),
}
# fmt: on


# A parameter, or any number of operands


def _add(*terms: Any, **_: Any) -> Any:
    return total(terms)


def _integer_pow(a: Any, /, *, y: int, **_: Any) -> Any:
    return a**y


def _slope_of_integer_pow(i: int, power: Any, a: Any, /, *, y: int, **_: Any) -> Any:
    return y * a ** (y - 1) if y else 0


def _polynomial(a: Any, *coefficients: Any, **_: Any) -> Any:
    return total(c * a**k for k, c in enumerate(coefficients))


def _slope_of_polynomial(i: int, y: Any, a: Any, *coefficients: Any, **_: Any) -> Any:
    if i:
        return a ** (i - 1)
    return total([0 * a, *(k * c * a ** (k - 1) for k, c in enumerate(coefficients) if k)])


def _select(which: Any, *cases: Any, **_: Any) -> str:
    if len(cases) > 2:
        return call("select")(which, *cases)
    return call("where")(which, *reversed(cases))


def _slope_of_select(i: int, y: Any, which: Any, *cases: Any, **_: Any) -> Any:
    if isinstance(which, Symbol):
        two = {1: f"[not {which}]", 2: f"[{which}]"}
        return Symbol(two[i] if len(cases) == 2 else f"[{which} = {i - 1}]", shape=which.shape)
    if isinstance(which, int):  # a number in a formula
        return int(which == i - 1)
    return which == i - 1


def _pull_reduced_precision(i: int, gy: Any, y: Any, a: Any, *, primitive: Any, **bits: Any) -> Any:
    """gy as coarse as y: JAX rounds both."""
    return Symbol(f"round({gy})") if isinstance(gy, Symbol) else primitive.bind(gy, **bits)


def _convert(a: Any, *, new_dtype: Any, **_: Any) -> str:
    return f"{np.dtype(new_dtype).name}({a})"


# Sums


def _reduction(name: str) -> Callable[..., str]:
    def notation(a: Any, *, axes: tuple[int, ...], **_: Any) -> str:
        axis = "" if len(axes) == a.ndim else f", axis={', '.join(map(str, axes))}"
        return f"{name}({a}{axis})"

    return notation


def _pull_sum(i: int, gy: Any, y: Any, a: Any, *, axes: tuple[int, ...], **_: Any) -> Any:
    """gy again along the axes that were summed away."""
    if isinstance(gy, Symbol):
        return Symbol(f"{atom(gy)}·ones")
    return jnp.broadcast_to(jnp.expand_dims(gy, axes), a.shape)


def _pull_extreme(i: int, gy: Any, y: Any, a: Any, *, axes: tuple[int, ...], **_: Any) -> Any:
    """gy to the extreme entry; equals share it."""
    if isinstance(gy, Symbol):
        return Symbol(f"{atom(gy)}·[{a} = {y}]{_equals(a, y, axes)}")
    extreme = a == jnp.expand_dims(y, axes)
    return jnp.expand_dims(gy, axes) * extreme / jnp.sum(extreme, axis=axes, keepdims=True)


def _equals(a: Symbol, y: Symbol, axes: tuple[int, ...]) -> str:
    """The number that the equals share gy by: "/3" where there are three."""
    if a.value is None or isinstance(a.value, jax.core.Tracer):
        return ""
    counts = np.sum(np.asarray(a.value) == np.expand_dims(y.value, axes), axis=axes)
    if np.all(counts == np.min(counts)):
        return f"/{np.min(counts)}" if np.min(counts) > 1 else ""
    return "/(number of equals)"


def _pull_product(i: int, gy: Any, y: Any, a: Any, *, axes: tuple[int, ...], **_: Any) -> Any:
    """gy times the product of the others, those before and those after: 0 divides nothing."""
    if isinstance(gy, Symbol):
        return Symbol(f"{atom(gy)}·(product of the others)")
    last = range(-len(axes), 0)
    rows = jnp.moveaxis(a, axes, last)
    flat = rows.reshape(*rows.shape[: rows.ndim - len(axes)], -1)
    one = jnp.ones_like(flat[..., :1])
    before = jnp.cumprod(jnp.concatenate([one, flat[..., :-1]], axis=-1), axis=-1)
    after = jnp.cumprod(jnp.concatenate([one, flat[..., :0:-1]], axis=-1), axis=-1)[..., ::-1]
    others = jnp.moveaxis((before * after).reshape(rows.shape), last, axes)
    return jnp.expand_dims(gy, axes) * others


def _pull_cumsum(i: int, gy: Any, y: Any, a: Any, *, axis: int, reverse: bool, **_: Any) -> Any:
    if isinstance(gy, Symbol):
        return Symbol(f"cumsum({gy}, from the {'start' if reverse else 'end'})")
    return jax.lax.cumsum(gy, axis=axis, reverse=not reverse)


RULES: dict[str, Rule] = {
    **{name: of_slopes(*line) for name, line in _ENTRY_BY_ENTRY.items()},
    **{
        name: Rule(notation, pull_of_move(count, formula))
        for name, (count, notation, formula) in MOVES.items()
    },
    "add": entry_by_entry(_add, lambda i, y, *terms, **_: 1),
    "identity": entry_by_entry(lambda a, **_: a, lambda i, y, a, **_: 1),
    "integer_pow": entry_by_entry(_integer_pow, _slope_of_integer_pow),
    "polynomial": entry_by_entry(_polynomial, _slope_of_polynomial),
    "select_n": entry_by_entry(_select, _slope_of_select),
    "convert_element_type": entry_by_entry(_convert, lambda i, y, a, **_: 1),
    "reduce_precision": Rule(call("round"), _pull_reduced_precision),
    "reduce_sum": Rule(_reduction("sum"), _pull_sum),
    "reduce_max": Rule(_reduction("max"), _pull_extreme),
    "reduce_min": Rule(_reduction("min"), _pull_extreme),
    "reduce_prod": Rule(_reduction("prod"), _pull_product),
    "cumsum": Rule(call("cumsum"), _pull_cumsum),
    "dot_general": Rule(dot, pull_dot),
    "affine": Rule(affine, pull_affine),
}


def _relation(sign: str) -> Callable[..., str]:
    return lambda a, b, **_: f"{symbol(a)} {sign} {symbol(b)}"


#: the notation of primitives without a derivative
NOTATIONS: dict[str, Callable[..., str]] = {
    "gt": _relation(">"),
    "lt": _relation("<"),
    "ge": _relation("≥"),
    "le": _relation("≤"),
    "eq": _relation("="),
    "ne": _relation("≠"),
    "and": _relation("∧"),
    "or": _relation("∨"),
    "not": lambda a, **_: f"¬{atom(symbol(a))}",
    "argmax": call("argmax"),
    "argmin": call("argmin"),
}


def define_rule(
    primitive: str,
    *slopes: Callable[..., Any],
    pull: Callable[..., Any] | None = None,
    notation: Callable[..., Any] | None = None,
    overwrite: bool = False,
) -> None:
    """Add the rule of one more primitive to the table.

    A rule says how the adjoint of an operand follows from gy, the adjoint of the output y.  It is
    written with ``jax.numpy``, for the arrays gy, y and the operands.  Give slopes where y is
    computed entry by entry, and a pull otherwise.

    primitive: the name in a jaxpr; ``print(jax.make_jaxpr(f)(x))`` shows it with its parameters.
    slopes: one function (y, *operands) -> ∂y/∂operand for each operand, entry by entry; the graph
        multiplies it by gy, and sums over the entries that the operand was broadcast to.
    pull: a function (i, gy, y, *operands, **params) -> the adjoint that operand i receives, of that
        operand's shape; params are the primitive's parameters.  i counts from 0.
    notation: a function (*operands, **params) -> str that gets the operands' names; it writes
        "primitive(a, b)" unless given.
    overwrite: whether to replace a rule that there is already; False unless given.

    Formulas come by themselves: a slope or a pull that cannot compute with names instead of arrays
    is written ∂y/∂a or pull(gy).

    Raises ValueError if the primitive has a rule already, unless ``overwrite=True``, and TypeError
    unless exactly one of slopes and pull is given.

    The Bessel function I₁(a)·exp(-|a|) works entry by entry:

    >>> define_rule("bessel_i1e", lambda y, a: jax.scipy.special.i0e(a) - y * (jnp.sign(a) + 1 / a))

    A sort moves entries along an axis.  Entry a[k] goes to place rank[k] of y, so that it receives
    gy[rank[k]]:

    >>> def pull_sort(i, gy, y, a, *, dimension, **params):
    ...     rank = jnp.argsort(jnp.argsort(a, dimension), dimension)
    ...     return jnp.take_along_axis(gy, rank, dimension)
    >>> define_rule("sort", pull=pull_sort)

    >>> import jaxbp
    >>> def weighted(v):
    ...     return jnp.sort(v) @ jnp.array([1.0, 10.0, 100.0])
    >>> v = jnp.array([3.0, 1.0, 2.0])
    >>> jaxbp.graph.grad(weighted)(v).tolist(), jax.grad(weighted)(v).tolist()
    ([100.0, 1.0, 10.0], [100.0, 1.0, 10.0])
    >>> graph = jaxbp.graph.trace(weighted, v)
    >>> graph["b"].operation, graph["v"].formula
    ('sort(v)', 'pull(gb)')

    >>> del RULES["sort"], RULES["bessel_i1e"]
    """
    if not isinstance(primitive, str) or not primitive:
        raise TypeError(f"primitive: got {primitive!r}, expected its name, such as 'sin'")
    if notation is not None and not callable(notation):
        raise TypeError(f"notation: got {notation!r}, expected a function (*operands, **params)")
    given = slopes if pull is None else (*slopes, pull)
    if bool(slopes) == (pull is not None) or not all(map(callable, given)):
        raise TypeError(
            f"{primitive}: expected a function (y, *operands) for each operand, or pull=, a "
            "function (i, gy, y, *operands, **params)"
        )
    if primitive in RULES and not overwrite:
        raise ValueError(f"{primitive}: has a rule already; overwrite=True replaces it")
    notation = call(primitive) if notation is None else notation
    RULES[primitive] = of_slopes(notation, *slopes) if pull is None else Rule(notation, pull)
