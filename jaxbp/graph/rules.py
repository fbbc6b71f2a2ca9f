"""The table of local derivatives: all that reverse mode knows of a primitive, one line each.

A primitive that works entry by entry is a line of ``_ENTRY_BY_ENTRY``: how y is written, and ∂y/∂a
for each of its operands; an operand's adjoint then receives  gy · ∂y/∂a.  Sums, matrix products and
what moves entries about have a *pull* instead, from gy to what an operand receives: the local
derivative transposed (Griewank and Walther 2008, section 3.2).  Everything is written once, for
numbers and for formulas alike; see ``symbols``.

Where there is no derivative the conventions are JAX's: max and min share gy between equals.  But
the slope of |a| at 0 is 0, the middle of its slopes, where JAX has 1, so that
max(a, 0) + log(1 + exp(-|a|)), which is how JAX writes softplus, has its slope of ½ at 0.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from string import ascii_lowercase
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.scipy import special

from jaxbp.graph.symbols import Function, Symbol, atom, symbol, total


class Rule(NamedTuple):
    """What a primitive with output y looks like, and how an adjoint passes it.

    ``params`` are those of the equation in the jaxpr and, as ``primitive``, the primitive itself.
    """

    notation: Callable[..., Any]  # (*operands, **params) -> formula
    pull: Callable[..., Any]  # (i, gy, y, *operands, **params) -> what operand i receives
    slope: Callable[..., Any] | None = None  # (i, y, *operands, **params) -> ∂y/∂operand i


def entry_by_entry(notation: Callable[..., Any], slope: Callable[..., Any]) -> Rule:
    """The rule of a primitive that works entry by entry, from slope(i, y, *operands, **params)."""

    def pull(i: int, gy: Any, y: Any, /, *operands: Any, **params: Any) -> Any:
        return _summed(_times(gy, slope(i, y, *operands, **params)), operands[i])

    return Rule(notation, pull, slope)


def of_slopes(notation: Callable[..., Any], *slopes: Callable[..., Any]) -> Rule:
    """The same from one function (y, *operands) -> ∂y/∂operand for each operand."""

    def slope(i: int, y: Any, /, *operands: Any, **params: Any) -> Any:
        if len(slopes) != len(operands):
            got = f"{params['primitive'].name}: got {len(slopes)} slopes"
            raise ValueError(f"{got}, expected {len(operands)}, one an operand")
        return slopes[i](y, *operands)

    return entry_by_entry(lambda *operands, **_: notation(*operands), slope)


def _times(gy: Any, slope: Any) -> Any:
    """gy · slope; nothing comes of 0 times an infinite gy where the 0 means that nothing passes."""
    if isinstance(gy, Symbol):
        return gy * slope
    if isinstance(slope, int):
        return {1: gy, -1: -gy}[slope] if slope else jnp.zeros_like(gy)
    if slope.dtype == bool:
        return jnp.where(slope, gy, 0)
    return gy * slope


def _summed(received: Any, operand: Any) -> Any:
    """Σ over the entries of y that one entry of the operand was used for."""
    if received.shape == operand.shape:
        return received
    if isinstance(received, Symbol):
        return Symbol(f"sum({received})", shape=operand.shape)
    missing = received.ndim - operand.ndim
    sizes = ((1,) * missing + operand.shape, received.shape)
    repeated = [axis for axis, (one, size) in enumerate(zip(*sizes, strict=True)) if one != size]
    return jnp.sum(received, axis=repeated).reshape(operand.shape)


def call(name: str) -> Callable[..., str]:
    """The notation name(a, b, ...)."""
    return lambda *operands, **_: f"{name}({', '.join(str(symbol(o)) for o in operands)})"


# What derivatives are made of

exp, log = Function("exp({})", jnp.exp), Function("log({})", jnp.log)
sin, cos = Function("sin({})", jnp.sin), Function("cos({})", jnp.cos)
sinh, cosh = Function("sinh({})", jnp.sinh), Function("cosh({})", jnp.cosh)
sqrt, sign = Function("√({})", jnp.sqrt), Function("sign({})", jnp.sign)
digamma = Function("digamma({})", special.digamma)
trigamma = Function("trigamma({})", lambda a: special.polygamma(1, a))
_trunc = Function("trunc({})", jnp.trunc)

#: 1 where the first is larger, ½ where they are equal
_wins = Function("[{} > {}]", lambda a, b: jnp.where(a == b, 0.5, jnp.where(a > b, 1.0, 0.0)))
_below = Function("[{} < {}]", lambda a, b: a < b)
_inside = Function("[{} < {} < {}]", lambda a, b, c: (a < b) & (b < c))

# at 0: a⁰ has slope 0 in a, and 0ᵇ slope 0 in b
_less_one = Function("({} - 1)", lambda b: jnp.where(b == 0, 1, b - 1))
_log_or_zero = Function("log({})", lambda a: jnp.log(jnp.where(a == 0, 1, a)))


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
    "max":      (call("max"),            lambda y, a, b: _wins(a, b), lambda y, a, b: _wins(b, a)),
    "min":      (call("min"),            lambda y, a, b: _wins(b, a), lambda y, a, b: _wins(a, b)),
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
    "abs":      (lambda a: f"|{a}|",     lambda y, a: sign(a)),
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
    return jnp.asarray(which) == i - 1


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
        return Symbol(f"{atom(gy)}·[{a} = {y}]")
    extreme = a == jnp.expand_dims(y, axes)
    return jnp.expand_dims(gy, axes) * extreme / jnp.sum(extreme, axis=axes, keepdims=True)


def _pull_product(i: int, gy: Any, y: Any, a: Any, *, axes: tuple[int, ...], **_: Any) -> Any:
    """gy times the product of the others, those before and those after: 0 divides nothing."""
    if isinstance(gy, Symbol):
        return Symbol(f"{atom(gy)}·(product of the others)")
    last = range(-len(axes), 0)
    rows = jnp.moveaxis(a, axes, last)
    flat = rows.reshape(*rows.shape[: -len(axes)], -1)
    one = jnp.ones_like(flat[..., :1])
    before = jnp.cumprod(jnp.concatenate([one, flat[..., :-1]], axis=-1), axis=-1)
    after = jnp.cumprod(jnp.concatenate([one, flat[..., :0:-1]], axis=-1), axis=-1)[..., ::-1]
    others = jnp.moveaxis((before * after).reshape(rows.shape), last, axes)
    return jnp.expand_dims(gy, axes) * others


def _pull_cumsum(i: int, gy: Any, y: Any, a: Any, *, axis: int, reverse: bool, **_: Any) -> Any:
    if isinstance(gy, Symbol):
        return Symbol(f"cumsum({gy}, from the {'start' if reverse else 'end'})")
    return jax.lax.cumsum(gy, axis=axis, reverse=not reverse)


class Own(NamedTuple):
    """A primitive that only recordings have: what reads better as one operation."""

    name: str


IDENTITY = Own("identity")  # a second name for a value that has one
AFFINE = Own("affine")  # W·z + b + ..., so that gW = δ·zᵀ as the lectures have it


# Products of vectors and matrices


def _subscripts(a: Any, b: Any, dimension_numbers: Any) -> tuple[str, str, str]:
    """The index letters of a, b and y = Σ a b: y has those that are not summed over."""
    (summed_a, summed_b), (batch_a, batch_b) = dimension_numbers
    of_a = list(ascii_lowercase[: a.ndim])
    of_b = list(ascii_lowercase[a.ndim : a.ndim + b.ndim])
    for axis_a, axis_b in zip((*summed_a, *batch_a), (*summed_b, *batch_b), strict=True):
        of_b[axis_b] = of_a[axis_a]
    batch = [of_a[axis] for axis in batch_a]
    free = [letter for letter in of_a if letter not in of_b]
    free += [letter for letter in of_b if letter not in of_a]
    return "".join(of_a), "".join(of_b), "".join(batch + free)


def _product(left: Any, right: Any, a: str, b: str, y: str, precision: Any = None) -> Any:
    """Σ left right over the letters that y has not."""
    if not isinstance(left, Symbol):
        return jnp.einsum(f"{a},{b}->{y}", left, right, precision=precision)
    return Symbol(_product_text(left, right, a, b, y))


def _product_text(left: Symbol, right: Symbol, a: str, b: str, y: str) -> str:
    """A·b, a·bᵀ, Aᵀ·B of two matrices or vectors; of arrays with more axes, their indices."""
    summed = set(a) & set(b) - set(y)
    free = [letter for letter in a + b if letter not in summed]
    if max(len(a), len(b), len(y)) > 2 or len(summed) > 1 or sorted(free) != sorted(y):
        return f"Σ {atom(left)}·{atom(right)} ({a},{b}→{y})"
    if not (a and b):  # a number times something
        turned = "ᵀ" if a + b != y else ""
        return f"{atom(left)}{turned * bool(a)}·{atom(right)}{turned * bool(b)}"
    if "".join(free) != y or len(a) < len(b):
        left, right, a, b = right, left, b, a
    turned_left = "ᵀ" if len(a) == 2 and a[1] not in summed else ""
    turned_right = "ᵀ" if b[0] not in summed else ""
    return f"{atom(left)}{turned_left}·{atom(right)}{turned_right}"


def _dot(a: Any, b: Any, *, dimension_numbers: Any, **_: Any) -> Any:
    return _product(a, b, *_subscripts(a, b, dimension_numbers))


def _pull_dot(
    i: int, gy: Any, y: Any, a: Any, b: Any, *, dimension_numbers: Any, **params: Any
) -> Any:
    """The same kind of sum, over what gy shares with the other operand: gy·bᵀ, aᵀ·gy."""
    of_a, of_b, of_y = _subscripts(a, b, dimension_numbers)
    factors = (gy, b, of_y, of_b, of_a) if i == 0 else (a, gy, of_a, of_y, of_b)
    return _product(*factors, params.get("precision"))


def _affine(a: Any, b: Any, *terms: Any, **params: Any) -> Any:
    return total([_dot(a, b, **params), *terms])


def _pull_affine(i: int, gy: Any, y: Any, a: Any, b: Any, *terms: Any, **params: Any) -> Any:
    return _pull_dot(i, gy, y, a, b, **params) if i < 2 else _summed(gy, terms[i - 2])


# What moves entries about


def moving(count: int | None, notation: Callable[..., Any], back: Callable[..., str]) -> Rule:
    """The rule of a primitive that makes y of the entries of its first ``count`` operands.

    The same move, made with the entries' numbers, tells where each entry of gy belongs.
    """

    def pull(i: int, gy: Any, y: Any, /, *operands: Any, **params: Any) -> Any:
        if isinstance(gy, Symbol):
            return Symbol(back(atom(gy), operands[i], **params))
        primitive = params.pop("primitive")
        if "fill_value" in params:
            params["fill_value"] = 0
        moved, others = operands[:count], operands[len(operands[:count]) :]
        origin = primitive.bind(*_numbered(moved), *others, **params)
        return _put_back(gy, origin, moved, i)

    return Rule(notation, pull)


def _ends(operands: Any) -> Any:
    """Where the numbers of each operand's entries begin and end; 0 is nowhere."""
    return np.cumsum([1, *(operand.size for operand in operands)])


def _numbered(operands: Any) -> list[Array]:
    return [
        jnp.arange(start, end, dtype=jnp.int32).reshape(operand.shape)
        for operand, (start, end) in zip(operands, pairwise(_ends(operands)), strict=True)
    ]


def _put_back(gy: Array, origin: Array, operands: Any, i: int) -> Array:
    ends = _ends(operands)
    received = jnp.zeros(ends[-1], gy.dtype).at[jnp.maximum(origin, 0)].add(gy)
    return received[ends[i] : ends[i + 1]].reshape(operands[i].shape)


class _Index:
    """x[0] as one primitive: a slice, and those of its axes taken away that have length one."""

    name = "index"

    @staticmethod
    def bind(
        a: Array, *, start_indices: Any, limit_indices: Any, strides: Any, squeezed: Any
    ) -> Array:
        if strides is None:  # in a program that serves every start
            sizes = np.subtract(limit_indices, start_indices)
            rows = jax.lax.dynamic_slice(a, np.asarray(start_indices, np.int32), sizes)
        else:
            rows = jax.lax.slice(a, start_indices, limit_indices, strides)
        return jax.lax.squeeze(rows, squeezed)


INDEX = _Index()


def _brackets(
    *, start_indices: Any, limit_indices: Any, strides: Any, squeezed: Any = (), **_: Any
) -> str:
    strides = strides or (1,) * len(start_indices)
    ranges = zip(start_indices, limit_indices, strides, strict=True)
    texts = [
        str(start) if axis in squeezed else f"{start}:{stop}" + f":{step}" * (step != 1)
        for axis, (start, stop, step) in enumerate(ranges)
    ]
    return f"[{', '.join(texts)}]"


def _sliced(a: Any, **limits: Any) -> str:
    return atom(a) + _brackets(**limits)


def _transposed(a: Any, *, permutation: tuple[int, ...], **_: Any) -> str:
    return f"{atom(a)}ᵀ" if len(permutation) == 2 else f"transpose({a}, {permutation})"


def _shaped(name: str, key: str) -> Callable[..., str]:
    return lambda a, **params: f"{name}({a}, {'×'.join(map(str, params[key])) or 'a number'})"


def _broadcast_back(gy: str, a: Any, *, shape: Any, broadcast_dimensions: Any, **_: Any) -> str:
    if math.prod(a.shape) == math.prod(shape):
        return f"reshape({gy})"
    kept = dict(zip(broadcast_dimensions, a.shape, strict=True))
    axes = [str(axis) for axis, size in enumerate(shape) if kept.get(axis, 1) != size]
    return f"sum({gy}, axis={', '.join(axes)})" if a.ndim else f"sum({gy})"


_MOVES: dict[str, tuple[int | None, Callable[..., Any], Callable[..., str]]] = {
    # primitive: operands whose entries it moves (None: all), y, what the operand receives
    "reshape": (1, _shaped("reshape", "new_sizes"), lambda gy, a, **_: f"reshape({gy})"),
    "squeeze": (1, call("squeeze"), lambda gy, a, **_: f"reshape({gy})"),
    "broadcast_in_dim": (1, _shaped("broadcast", "shape"), _broadcast_back),
    "transpose": (1, _transposed, lambda gy, a, **_: f"{gy}ᵀ"),
    "rev": (1, call("reverse"), lambda gy, a, **_: f"reverse({gy})"),
    "slice": (1, _sliced, lambda gy, a, **limits: f"{gy} at {_brackets(**limits)}"),
    "index": (1, _sliced, lambda gy, a, **limits: f"{gy} at {_brackets(**limits)}"),
    "dynamic_slice": (1, call("dynamic_slice"), lambda gy, a, **_: f"{gy} at its place"),
    "gather": (1, lambda a, i, **_: f"{atom(a)}[{i}]", lambda gy, a, **_: f"{gy} at its place"),
    "concatenate": (None, call("concatenate"), lambda gy, a, **_: f"part of {gy}"),
    "stack": (None, call("stack"), lambda gy, a, **_: f"part of {gy}"),
    "pad": (2, call("pad"), lambda gy, a, **_: f"part of {gy}"),
}


RULES: dict[str, Rule] = {
    **{name: of_slopes(*line) for name, line in _ENTRY_BY_ENTRY.items()},
    **{name: moving(*line) for name, line in _MOVES.items()},
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
    "dot_general": Rule(_dot, _pull_dot),
    "affine": Rule(_affine, _pull_affine),
}


def _relation(sign: str) -> Callable[..., str]:
    return lambda a, b, **_: f"{symbol(a)} {sign} {symbol(b)}"


#: what has no derivative, but a notation
NOTATIONS: dict[str, Callable[..., str]] = {
    "gt": _relation(">"),
    "lt": _relation("<"),
    "ge": _relation("≥"),
    "le": _relation("≤"),
    "eq": _relation("="),
    "ne": _relation("≠"),
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
    """Teach the graph the derivative of one more primitive, by the name it has in a jaxpr.

    Of one that works entry by entry: a function (y, *operands) -> ∂y/∂operand for each operand.
    Of any other: pull(i, gy, y, *operands, **params), what operand i receives where y's adjoint is
    gy.  Both are written with jax.numpy.  The notation, (*operands, **params) -> str, is
    "primitive(a, b)" unless given.  Raises ValueError where the primitive has a rule already,
    unless ``overwrite=True``, and TypeError without exactly one of slopes and pull.

    >>> define_rule("bessel_i1e", lambda y, a: jax.scipy.special.i0e(a) - y * (jnp.sign(a) + 1 / a))
    >>> del RULES["bessel_i1e"]
    """
    if not isinstance(primitive, str) or not primitive:
        raise TypeError(f"primitive: got {primitive!r}, expected its name, such as 'sin'")
    if notation is not None and not callable(notation):
        raise TypeError(f"notation: got {notation!r}, expected a function (*operands, **params)")
    if bool(slopes) == bool(pull) or not all(map(callable, (*slopes, *filter(None, [pull])))):
        raise TypeError(
            f"{primitive}: expected a function (y, *operands) for each operand, or pull=, a "
            "function (i, gy, y, *operands, **params)"
        )
    if primitive in RULES and not overwrite:
        raise ValueError(f"{primitive}: has a rule already; overwrite=True replaces it")
    notation = notation or call(primitive)
    RULES[primitive] = Rule(notation, pull) if pull else of_slopes(notation, *slopes)
