"""One kernel for all minibatches of an epoch, by Pallas on an NVIDIA GPU.

XLA launches a dozen kernels and more a step, and for a small network launching them takes longer
than their arithmetic.  Here the step of an epoch (forward, the head's loss, backward, gradients and
update, the same functions) is traced into the body of one kernel, which goes through all
minibatches while parameters and optimiser state stay in one multiprocessor.  Under ``jax.vmap``
every network has a multiprocessor of its own.  ``python -m benchmarks.one_kernel`` measures it.

Padding.  The arrays of a kernel have powers of two as sizes, those of products 16 and more.  What
is added to the network and its minibatches changes nothing, as it is 0 and stays 0:

    input     x and the weights from it are 0
    unit      h and h' are set to 0, whatever the activation: z = 0 goes forward, δ = 0 back
    output    the head is given a logit there for which, at a target of 0, loss and error are 0:
              0 where the prediction is the logit itself, -1e30 where it is e^a, σ(a) or softmax
    example   it is the last of its minibatch once more, with a weight of 0; the others' weights
              are multiplied by (all examples) / (examples before), so that their mean stays
    gradient  W̄ = Σ δ zᵀ and b̄ = Σ δ: one of the zeros above is a factor of each term
    update    ``keeps_zeros`` follows the optimiser's program: from zeros come zeros, nothing else
              is summed over a leaf (so a global norm stays), and no leaf's size is a number in it
              (that of a mean would not stay); where it cannot tell, XLA trains the network

JAX calls Pallas's Triton backend deprecated since 0.11.  What would replace it is this body under
Pallas's Mosaic GPU backend, or a Triton kernel called through jax-triton; the rest of the package
does without it, and then XLA trains every network.
"""

import math
from collections.abc import Iterable, Iterator
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas
from jax.experimental.pallas import triton
from jax.extend.core import Literal

from jaxbp import activations, heads
from jaxbp.activations import Activation
from jaxbp.gradient import Batch, backprop
from jaxbp.model import Layer, units_of
from jaxbp.precision import matmul_precision
from jaxbp.training.epoch import Carry, Program, make_step, times_mean_weight
from jaxbp.trees import opened, subjaxprs

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


class OneKernel(NamedTuple):
    """The minibatches of an epoch in one kernel: a ``Program``'s ``kernel``."""

    warps: int  # of 32 threads each
    interpret: bool = False  # by Pallas's interpreter, on any device

    def __call__(
        self, program: Program, carry: Carry, batch: Batch, order: Array
    ) -> tuple[Carry, Array]:
        """Take the rows of batch in this order -> (carry, mean loss of the steps)."""
        wide = _padded(program)
        shapes, data = _carry(wide, batch.x.dtype), _padded_data(wide, batch)
        start = jax.tree.map(lambda leaf, of: _grown(leaf, *of.shape), carry, shapes)
        size = program.batch_size
        assert size is not None  # a full batch has no order
        whole = order.size - order.size % size
        minibatches = [  # all of one size, and the ragged last one
            part.reshape(-1, count)
            for part, count in ((order[:whole], size), (order[whole:], order.size - whole))
            if part.size
        ]
        steps = [_traced_step(wide, shapes, data, rows.shape[1]) for rows in minibatches]
        orders = list(map(_padded_rows, minibatches))

        def kernel(constants: Any, orders: Any, data: Any, start: Any, end: Any, mean: Any) -> None:
            def take(part: int, held: list[Array]) -> Any:
                count = minibatches[part].shape[1]
                fixed = [ref[...] for ref in constants[part]]

                def minibatch_step(number: Array, held: list[Array]) -> list[Array]:
                    *leaves, total = held
                    examples = _examples(data, orders[part][number, :], count)
                    *leaves, loss = _evaluated(
                        steps[part], fixed, [*leaves, *jax.tree.leaves(examples)]
                    )
                    return [*leaves, total + count * loss]

                return jax.lax.fori_loop(0, len(minibatches[part]), minibatch_step, held)

            held = [*(ref[...] for ref in jax.tree.leaves(start)), jnp.zeros((), mean.dtype)]
            for part in range(len(minibatches)):
                held = take(part, held)
            for ref, leaf in zip(jax.tree.leaves(end), held, strict=False):
                ref[...] = leaf
            mean[...] = held[-1] / order.size

        end, mean = pallas.pallas_call(
            kernel,
            out_shape=(shapes, _shaped((), batch.x.dtype)),
            compiler_params=triton.CompilerParams(num_warps=self.warps, num_stages=1),
            interpret=self.interpret,
        )([step.consts for step in steps], orders, data, start)
        return jax.tree.map(lambda leaf, of: leaf[tuple(map(slice, of.shape))], end, carry), mean


def _examples(data: Batch, rows: Array, count: int) -> Batch:
    """The examples of a minibatch, the first count of these rows; the others weigh nothing."""
    target = data.target[rows, :] if data.target.ndim == 2 else data.target[rows]
    weight = None if data.weight is None else data.weight[rows]
    if count < rows.size:
        share = jnp.where(jnp.arange(rows.size) < count, rows.size / count, 0.0)
        share = share.astype(data.x.dtype)
        weight = share if weight is None else share * weight
    return Batch(data.x[rows, :], target, weight)


def _traced_step(program: Program, carry: Carry, data: Batch, count: int) -> Any:
    """The jaxpr of a step on count examples: the leaves of (carry, examples) -> (carry, loss).

    What the step closes over, such as a learning rate under ``jax.vmap``, are its constants.
    """
    rows = _shaped((_power_of_two(count),), jnp.int32)
    examples = jax.eval_shape(partial(_examples, count=count), data, rows)
    weighted = examples.weight is not None
    gradient = times_mean_weight(program.gradient) if weighted else program.gradient
    step = make_step(program.model, program.optimizer, gradient)
    with matmul_precision(program.precision):
        return jax.make_jaxpr(step)(carry, examples)


_CALLS = {"jit", "pjit", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call"}
_COPIES = {"copy", "copy_p"}  # without a lowering, and without a use


def _evaluated(jaxpr: Any, constants: Iterable[Any], arguments: list[Any]) -> list[Any]:
    """The results of a jaxpr, with its calls inlined and its copies left out."""
    inner = opened(jaxpr)
    values = dict(zip((*inner.constvars, *inner.invars), (*constants, *arguments), strict=True))

    def value(operand: Any) -> Any:
        return operand.val if isinstance(operand, Literal) else values[operand]

    for equation in inner.eqns:
        results = list(map(value, equation.invars))
        if equation.primitive.name in _CALLS:
            called = next(subjaxprs(equation))
            results = _evaluated(called, getattr(called, "consts", ()), results)
        elif equation.primitive.name not in _COPIES:
            results = equation.primitive.bind(*results, **equation.params)
            results = results if equation.primitive.multiple_results else [results]
        values.update(zip(equation.outvars, results, strict=True))
    return list(map(value, inner.outvars))


# Padding


def _padded(program: Program) -> Program:
    """The program of a network with sizes that are powers of two."""
    model = program.model
    hidden = zip(units_of(model), model.sizes[1:-1], strict=False)  # without the linear unit
    wide = model._replace(
        sizes=tuple(map(_power_of_two, model.sizes)),
        activation=tuple(partial(_padded_unit, unit, width) for unit, width in hidden),
        head=model.head._replace(loss=partial(padded_loss, model.head.loss, model.sizes[-1])),
    )
    return program._replace(model=wide)


def _padded_unit(unit: Activation, width: int, a: Array) -> tuple[Array, Array]:
    """h and h', 0 in the units that were added."""
    h, slope = (gelu_by_exponentials if unit is activations.gelu else unit)(a)
    return _first(width, h, 0), _first(width, slope, 0)


def padded_loss(loss: Any, outputs: int, logits: Array, target: Array) -> tuple[Array, Array]:
    """The head's loss and error, both without the outputs that were added."""
    both: tuple[Array, Array] = loss(_first(outputs, logits, _neutral_logit(loss)), target)
    return both


def _neutral_logit(loss: Any) -> float | None:
    return _NEUTRAL_LOGIT.get(loss.func if isinstance(loss, partial) else loss)


def _padded_data(program: Program, batch: Batch) -> Batch:
    """All rows, with zeros for the inputs and targets that were added."""
    (rows, _), (inputs, *_, outputs) = batch.x.shape, program.model.sizes
    x, target = _grown(batch.x, rows, inputs), batch.target
    return Batch(x, _grown(target, rows, outputs) if target.ndim == 2 else target, batch.weight)


def _padded_rows(rows: Array) -> Array:
    """The rows of minibatches, the last of each once more for the examples that were added."""
    count = rows.shape[1]
    return jnp.pad(rows, ((0, 0), (0, _power_of_two(count) - count)), mode="edge")


def _carry(program: Program, dtype: Any) -> Any:
    """The shapes of parameters and optimiser state."""
    params: Any = tuple(
        Layer(_shaped((o, i), dtype), _shaped((o,), dtype))
        for i, o in pairwise(program.model.sizes)
    )
    return params, jax.eval_shape(program.optimizer.init, params)


def _shaped(shape: tuple[int, ...], dtype: Any) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)  # type: ignore[no-untyped-call]


def _power_of_two(size: int) -> int:
    """The smallest power of two from 16 on that holds a size."""
    return max(16, 1 << (size - 1).bit_length())


def _grown(array: Array, *shape: int) -> Array:
    """The array with zeros after its entries along each axis."""
    added = [(0, to - of, 0) for of, to in zip(array.shape, shape, strict=True)]
    return jax.lax.pad(array, jnp.zeros((), array.dtype), added)


def _first(count: int, array: Array, otherwise: Any) -> Array:
    """The first entries of each row as they are, and a number in place of the others."""
    if array.shape[-1] == count:
        return array
    column = jax.lax.broadcasted_iota(jnp.int32, array.shape, array.ndim - 1)
    return jnp.where(column < count, array, otherwise)


def gelu_by_exponentials(a: Array) -> tuple[Array, Array]:
    """``activations.gelu`` by exponentials, because erf has no lowering.

    Φ(a) = 1 - φ(a) √(2π) (a₁t + ... + a₅t⁵) / 2 for a > 0, where t = 1 / (1 + 0.3275911 a/√2), with
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


# Whether it can be, and whether zeros stay


def obstacle(program: Program, dtype: Any) -> str | None:
    """The reason why a network cannot be trained in one kernel; None if there is none."""
    loss = program.model.head.loss
    obstacles = (
        (program.batch_size is None, "a full batch is a single step"),
        (program.diagnostics, "diagnostics take the last step of an epoch apart"),
        (program.gradient is not backprop, f"gradient is {program.gradient}, not backprop"),
        (_neutral_logit(loss) is None, f"it is not known how to pad the logits of {loss}"),
        (dtype != jnp.float32, f"the parameters are {jnp.dtype(dtype)}, not float32"),
    )
    reason = next((reason for is_met, reason in obstacles if is_met), None)
    if reason is None and not zeros_stay(program):
        return f"it is not known that {program.optimizer} leaves alone what pads a layer"
    return reason


def is_faster(program: Program, precision: str) -> bool:
    """Whether one kernel is known to be faster than XLA, as ``benchmarks.one_kernel`` measured it.

    precision: of the products, by JAX's name.

    A multiprocessor has 2¹⁶ registers for parameters and state, and shared memory for a few layers
    of a minibatch; where it has not enough, the kernel does not compile.  Exact products, which the
    tensor cores do not make, leave less to gain: there the smallest networks alone are faster.
    """
    wide, size = _padded(program), program.batch_size
    assert size is not None
    numbers = 2**16 if precision in {"default", "high", "tensorfloat32"} else 2**12
    return _held(wide) <= numbers and _power_of_two(size) * max(wide.model.sizes) <= 2**14


def warps_for(program: Program, networks: int) -> int:
    """The number of warps, 1 to 8, that was measured to be fastest.

    A network that has a multiprocessor for itself is spread over more warps than those that share
    one.
    """
    alone = networks <= getattr(jax.devices()[0], "core_count", networks)
    fewest, numbers = (2, 2**11) if alone else (1, 2**12)  # numbers that a warp holds
    needed = max(fewest, _held(_padded(program)) / numbers)
    return min(8, 1 << math.ceil(math.log2(needed)))


def _held(program: Program) -> int:
    """The number of all numbers in the parameters and the optimiser's state."""
    return sum(leaf.size for leaf in jax.tree.leaves(_carry(program, jnp.float32)))


@lru_cache(maxsize=64)
def zeros_stay(program: Program) -> bool:
    """Whether what is added to the layers stays 0 under the optimiser, and changes nothing else.

    It does where the update makes 0 of entries that are 0 in the parameters, the gradient and the
    state, where nothing but such entries is summed over, and where the size of a layer is no number
    in its program.  Where that cannot be told from the program's jaxpr, the answer is no.
    """
    programs = program, _padded(program)
    try:
        exact, wide = map(_update, programs)
    except (TypeError, ValueError):  # it has arrays of the layers' shapes from elsewhere
        return False
    if list(_numbers(exact)) != list(_numbers(wide)):
        return False
    leaves = 2 * (len(program.model.sizes) - 1)
    entries = [0.0 if _is_array(v) else None for v in opened(wide).invars]
    carry = len(entries) - 1 - leaves  # the leaves before the loss and the gradient
    try:
        while (kept := _kept(entries[:carry], _in_padding(wide, entries))) != entries[:carry]:
            entries[:carry] = kept
    except _UnknownError:
        return False
    return None not in entries[:leaves]


def _update(program: Program) -> Any:
    """The jaxpr of the update: the leaves of carry, loss and gradient -> those of carry, loss."""
    carry = _carry(program, jnp.float32)
    given = _shaped((), jnp.float32), carry[0]
    step = make_step(program.model, program.optimizer, lambda model, params, given: given)
    return jax.make_jaxpr(step)(carry, given)


def _numbers(jaxpr: Any) -> Iterator[Any]:
    """The primitives of a program in their order, with the numbers that are written into it."""
    for equation in opened(jaxpr).eqns:
        literals = [v for v in equation.invars if isinstance(v, Literal)]
        yield equation.primitive.name, [str(literal.val) for literal in literals]
        for inner in subjaxprs(equation):
            yield from _numbers(inner)


class _UnknownError(Exception):
    """An equation does more than work entry by entry, or sum up zeros."""


_KEPT = {"convert_element_type", "reduce_precision", "stop_gradient", *_COPIES}  # f(a) = a
_OF_ZERO_ZERO = {  # f(0) = 0
    *("abs", "cbrt", "expm1", "log1p", "neg", "sign", "sin", "sqrt", "square", "tanh"),
}
_FINITE = {"and", "cos", "eq", "exp", "ge", "gt", "is_finite", "le", "logistic", "lt", "ne", "not"}
_ARITHMETIC: dict[str, Any] = {
    "add": sum,
    "add_any": sum,
    "max": max,
    "min": min,
    "sub": lambda v: v[0] - v[1],
}


def _in_padding(jaxpr: Any, arguments: list[float | None]) -> list[float | None]:
    """The results in the padding, where all entries are one number; None where it is not known.

    Raises _UnknownError for an equation that does more than work entry by entry, or sum up zeros.
    """
    known = dict(zip(opened(jaxpr).invars, arguments, strict=True))

    def value(operand: Any) -> float | None:
        return float(operand.val) if isinstance(operand, Literal) else known.get(operand)

    for equation in opened(jaxpr).eqns:
        values = list(map(value, equation.invars))
        if equation.primitive.name in _CALLS:
            results = _in_padding(next(subjaxprs(equation)), values)
        elif any(map(_is_array, (*equation.invars, *equation.outvars))):
            results = [_entry(equation, values)]
        else:  # of numbers alone
            known_number = equation.primitive.name in _KEPT
            results = values if known_number else [None] * len(equation.outvars)
        known.update(zip(equation.outvars, results, strict=True))
    return list(map(value, opened(jaxpr).outvars))


def _entry(equation: Any, values: list[float | None]) -> float | None:
    """The result of an equation, from its operands' values.  Raises _UnknownError."""
    name, first = equation.primitive.name, values[0]
    result = None
    if name in _KEPT or (name == "broadcast_in_dim" and not _is_array(equation.invars[0])):
        result = first
    elif name == "select_n":
        result = values[1] if len(set(values[1:])) == 1 else None
    elif name in _ARITHMETIC:
        result = None if None in values else float(_ARITHMETIC[name](values))
    elif name == "mul":
        result = 0.0 if 0 in values else None
    elif name in _OF_ZERO_ZERO or _is_power(equation) or (name == "div" and values[1] != 0):
        result = 0.0 if first == 0 else None
    elif name == "reduce_sum":
        if first != 0 or _is_array(equation.outvars[0]):
            raise _UnknownError
    elif name not in _FINITE and (name != "rsqrt" or first == 0):
        raise _UnknownError
    return result


def _is_power(equation: Any) -> bool:
    return bool(equation.primitive.name == "integer_pow" and equation.params["y"] > 0)


def _is_array(operand: Any) -> bool:
    return bool(operand.aval.size > 1)  # what is padded has 16 entries and more


def _kept(before: list[float | None], after: list[float | None]) -> list[float | None]:
    """Each entry that is known both before and after."""
    return [new if new == old else None for old, new in zip(before, after, strict=False)]
