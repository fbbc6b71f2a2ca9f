"""Padding of a network to sizes that a kernel can have, and the proof that it changes nothing.

The arrays of a kernel have powers of two as sizes, those of products 16 and more.  What is added to
the network and its minibatches changes nothing:

    input     x and the weights from it are 0
    unit      h and h' are set to 0, whatever the activation, which works entry by entry: z = 0
              goes forward, δ = 0 back
    output    the head is given a logit there for which, at a target of 0, loss and error are 0:
              0 where the prediction is the logit itself, -1e30 where it is e^a, σ(a) or softmax
    example   it is the last of its minibatch once more, with a weight of 0; the others' weights
              are multiplied by (rows with padding) / (rows without), so that their mean stays
    gradient  W̄ = Σ δ zᵀ + l2 W and b̄ = Σ δ: a factor of each term is one of the zeros above
    update    new parameters and states are set to 0 there; and ``ignores_padding`` follows the
              optimiser's program: nothing but zeros is summed over an array (so a global norm
              stays), and no size is a number in it (in a mean it is, which would not stay)
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.core import Literal

from jaxbp import activations, heads
from jaxbp.activations import Activation
from jaxbp.gradient import Batch
from jaxbp.model import units_of
from jaxbp.training.epoch import Program, make_step, shapes_of
from jaxbp.trees import CALLS, COPIES, opened, shaped, subjaxprs

_NONE = -1e30  # a logit whose share is 0; finite, because 0 times it must be 0

#: by a head's loss, the logit of a padded output
_NEUTRAL_LOGIT = {
    heads.squared_error: 0.0,
    heads.half_squared_error: 0.0,
    heads.huber: 0.0,
    heads.absolute_error: 0.0,
    heads.logistic: _NONE,
    heads.sigmoid_squared: _NONE,
    heads.cross_entropy: _NONE,
    heads.poisson: _NONE,
}


def padded_program(program: Program) -> Program:
    """The program of a network with sizes that are powers of two."""
    model = program.model
    hidden = zip(units_of(model), model.sizes[1:-1], strict=False)  # without the linear unit
    wide = model._replace(
        sizes=tuple(map(power_of_two, model.sizes)),
        activation=tuple(partial(padded_unit, unit, width) for unit, width in hidden),
        head=model.head._replace(loss=partial(padded_loss, model.head.loss, model.sizes[-1])),
    )
    return program._replace(model=wide)


def padded_unit(unit: Activation, width: int, a: Array) -> tuple[Array, Array]:
    """h and h', 0 in the units that were added."""
    h, slope = (rational_gelu if unit is activations.gelu else unit)(a)
    return without_padding(h, width), without_padding(slope, width)


def padded_loss(loss: Any, outputs: int, logits: Array, target: Array) -> tuple[Array, Array]:
    """The head's loss and error, both without the outputs that were added."""
    logits = without_padding(logits, outputs, otherwise=neutral_logit(loss))
    both: tuple[Array, Array] = loss(logits, target)
    return both


def neutral_logit(loss: Any) -> float | None:
    """The logit of a padded output; None for a loss that is none of ``jaxbp.heads``."""
    return _NEUTRAL_LOGIT.get(loss.func if isinstance(loss, partial) else loss)


def padded_data(program: Program, batch: Batch, dtype: Any) -> Batch:
    """All rows in a dtype, with zeros for the inputs and targets that were added."""
    (rows, _), (inputs, *_, outputs) = batch.x.shape, program.model.sizes
    x, target = grown(jnp.asarray(batch.x, dtype), rows, inputs), jnp.asarray(batch.target)
    return Batch(x, grown(target, rows, outputs) if target.ndim == 2 else target, batch.weight)


def padded_rows(rows: Array) -> Array:
    """The rows of minibatches, the last of each once more for the examples that were added."""
    count = rows.shape[1]
    return jnp.pad(rows, ((0, 0), (0, power_of_two(count) - count)), mode="edge")


def carry_shapes(program: Program, dtype: Any) -> Any:
    """The shapes of parameters and optimiser state."""
    params = shapes_of(program.model, dtype)
    return params, jax.eval_shape(program.optimizer.init, params)


def power_of_two(size: int) -> int:
    """The smallest power of two from 16 on that holds a size."""
    return max(16, 1 << (size - 1).bit_length())


def without_padding(array: Array, *shape: int, otherwise: Any = 0) -> Array:
    """An array with a number, 0 unless given, after its entries of this shape along its last axes,
    whatever stood there."""
    for axis, kept in enumerate(shape, array.ndim - len(shape)):
        if kept < array.shape[axis]:
            place = jax.lax.broadcasted_iota(jnp.int32, array.shape, axis)
            array = jnp.where(place < kept, array, otherwise)
    return array


def grown(array: Array, *shape: int) -> Array:
    """The array with zeros after its entries along each axis."""
    added = [(0, to - of, 0) for of, to in zip(array.shape, shape, strict=True)]
    return jax.lax.pad(array, jnp.zeros((), array.dtype), added)


def rational_gelu(a: Array) -> tuple[Array, Array]:
    """``activations.gelu`` by a rational approximation, because erf has no lowering.

    Φ(a) = 1 - e^(-a²/2) (c₁t + ... + c₅t⁵) / 2 for a > 0, where t = 1 / (1 + 0.3275911 a/√2), with
    an error of at most 7.5e-8 (Abramowitz and Stegun 1964, eq. 7.1.26).
    """
    density = jnp.exp(-a * a / 2)
    t = 1 / (1 + 0.3275911 * 0.5**0.5 * jnp.abs(a))
    tail = 1.061405429 * t - 1.453152027
    for coefficient in (1.421413741, -0.284496736, 0.254829592, 0.0):
        tail = tail * t + coefficient
    tail = tail * density / 2
    cdf = jnp.where(a > 0, 1 - tail, tail)
    return a * cdf, cdf + a * density * (2 * jnp.pi) ** -0.5


# What the optimiser makes of padding


def ignores_padding(program: Program) -> bool:
    """Whether the optimiser does the same to a network with padding as to one without.

    It does where nothing is summed over an array, or combined between its entries in another way,
    but what is 0 in the padding, and where no size of a layer is a number in its program.  Where
    that does not follow from the program's jaxpr, the answer is no.
    """
    try:
        exact, wide = (_update(each) for each in (program, padded_program(program)))
        same = list(_operations(exact)) == list(_operations(wide)) and _same_constants(exact, wide)
        return same and _in_padding(wide, _arguments(wide)) is not None
    except Exception:  # of the optimiser, in sizes that it was not made for
        return False


def _update(program: Program) -> Any:
    """The jaxpr of the update: the leaves of (carry, loss and gradient, batch) -> new ones."""
    carry = carry_shapes(program, jnp.float32)
    given = shaped((), jnp.float32), carry[0]
    inputs, *_, outputs = program.model.sizes
    batch = Batch(shaped((16, inputs), jnp.float32), shaped((16, outputs), jnp.float32))

    def update(carry: Any, given: Any, batch: Batch) -> Any:
        return make_step(program.model, program.optimizer, lambda *_: given)(carry, batch)

    return jax.make_jaxpr(update)(carry, given, batch)


_SETTINGS = (int, float, str, np.dtype)  # of an equation, besides shapes


def _operations(jaxpr: Any) -> Iterator[Any]:
    """The primitives of a program in their order, each with its operands, by their numbers or
    places, and its settings but for shapes."""
    variables = (*opened(jaxpr).constvars, *opened(jaxpr).invars)
    place = {variable: number for number, variable in enumerate(variables)}
    for equation in opened(jaxpr).eqns:
        operands = [str(v.val) if isinstance(v, Literal) else place[v] for v in equation.invars]
        settings = [v for v in equation.params.values() if isinstance(v, _SETTINGS)]
        yield equation.primitive.name, operands, settings
        place |= {variable: len(place) + n for n, variable in enumerate(equation.outvars)}
        for inner in subjaxprs(equation):
            yield from _operations(inner)


def _same_constants(exact: Any, wide: Any) -> bool:
    """Whether two programs hold equal arrays."""
    return len(exact.consts) == len(wide.consts) and all(
        map(np.array_equal, exact.consts, wide.consts)
    )


ALIKE, UNKNOWN = "one number everywhere", "unknown"  # besides the numbers that are known
_Entry = float | str  # of an array's padding

_OF_ZERO_ZERO = {  # f(0) = 0
    *("abs", "cbrt", "expm1", "log1p", "neg", "reduce_precision", "sign", "sin", "sqrt", "square"),
    *("stop_gradient", "tanh", *COPIES),
}
_ENTRY_BY_ENTRY = {
    *("acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan", "atan2", "atanh", "ceil"),
    *("clamp", "convert_element_type", "cos", "cosh", "div", "eq", "erf", "exp", "exp2", "floor"),
    *("ge", "gt", "integer_pow", "iota", "is_finite", "le", "log", "logistic", "lt", "max", "min"),
    *("mul", "ne", "nextafter", "not", "or", "pow", "rem", "round", "rsqrt", "select_n", "sinh"),
    *("sub", "tan", "xor", *_OF_ZERO_ZERO),
}
_ARITHMETIC: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "add_any": np.add,
    "max": np.maximum,
    "min": np.minimum,
    "sub": np.subtract,
}


def _arguments(wide: Any) -> list[_Entry]:
    """Parameters, state and gradient are 0 in the padding, the batch (x, target) is not."""
    variables, batch = opened(wide).invars[:-2], [UNKNOWN, UNKNOWN]
    return [*(0.0 if _is_array(variable) else ALIKE for variable in variables), *batch]


def _in_padding(jaxpr: Any, arguments: list[_Entry]) -> list[_Entry] | None:
    """The results in the padding, from the arguments there; None where entries are combined that
    are not known to be 0."""
    known: dict[Any, _Entry] = dict(zip(opened(jaxpr).invars, arguments, strict=True))

    def entry(operand: Any) -> _Entry:
        if isinstance(operand, Literal):
            return float(operand.val)
        otherwise: _Entry = UNKNOWN if _is_array(operand) else ALIKE
        return known.get(operand, otherwise)

    for equation in opened(jaxpr).eqns:
        entries = list(map(entry, equation.invars))
        name, arrays = equation.primitive.name, [*equation.invars, *equation.outvars]
        results: list[_Entry] | None
        if name in CALLS:
            results = _in_padding(next(subjaxprs(equation)), entries)
        elif not any(map(_is_array, arrays)):
            results = [ALIKE] * len(equation.outvars)
            if name == "convert_element_type":  # a setting on its way into a function
                results = entries
        elif name in _ENTRY_BY_ENTRY:
            results = [_result(equation, entries)]
        elif name == "broadcast_in_dim" and not _is_array(equation.invars[0]):
            results = entries
        elif name == "reduce_sum" and entries == [0.0] and not _is_array(equation.outvars[0]):
            results = [ALIKE]
        else:
            results = None
        if results is None:
            return None
        known.update(zip(equation.outvars, results, strict=True))
    return list(map(entry, opened(jaxpr).outvars))


def _result(equation: Any, entries: list[_Entry]) -> _Entry:
    """The padding of the result of an equation that works entry by entry."""
    name = equation.primitive.name
    numbers = [each for each in entries if not isinstance(each, str)]
    result: _Entry = UNKNOWN
    if name in _OF_ZERO_ZERO or (name == "integer_pow" and equation.params["y"] > 0):
        result = 0.0 if entries == [0.0] else UNKNOWN
    elif name in _ARITHMETIC and len(numbers) == len(entries):
        result = float(_ARITHMETIC[name](*map(np.float32, numbers)))
    elif name == "convert_element_type" and numbers:
        result = float(np.asarray(numbers[0]).astype(equation.params["new_dtype"]))
    elif name == "mul":
        result = 0.0 if 0.0 in entries and UNKNOWN not in entries else UNKNOWN
    elif name == "div":
        result = 0.0 if entries[0] == 0.0 and entries[1] not in {0.0, UNKNOWN} else UNKNOWN
    elif name == "select_n" and len(set(entries[1:])) == 1:
        result = entries[1]
    return result


def _is_array(operand: Any) -> bool:
    return bool(operand.aval.size > 1)  # what is padded has 16 entries and more
