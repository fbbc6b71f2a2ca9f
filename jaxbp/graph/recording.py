"""Recording: a function run once, operation by operation, from its jaxpr.

Nested jit, custom rules, conditionals and loops are looked through; what is computed twice is
recorded once, as on the page, where xz is one node; what depends on no argument is a constant; what
the output does not need is left out.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, chain, pairwise
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import Literal

from jaxbp.graph.rules import AFFINE, IDENTITY, INDEX


class Step(NamedTuple):
    """One value: an argument, a constant, or what a primitive makes of earlier steps."""

    value: Array
    params: Mapping[str, Any] = MappingProxyType({})  # of the equation, its primitive among them
    operands: tuple[int, ...] = ()  # positions of earlier steps
    is_constant: bool = False  # depends on no argument
    name: str = ""  # if it was given one
    adjoint_name: str = ""

    @property
    def primitive(self) -> str:
        """The primitive's name, "" for an argument or a constant."""
        return self.params["primitive"].name if self.params else ""


class Recording(NamedTuple):
    """Steps in the order of computation, the arguments first, and where the output is."""

    steps: tuple[Step, ...]
    arguments: int
    output: int
    custom: tuple[str, ...] = ()  # functions whose own derivative rules were looked through


def record(function: Callable[..., Any], values: Sequence[Array]) -> Recording:
    """Run function(*values), which returns one array, and keep what was computed from what."""
    recorder = _Recorder()
    arguments = [recorder.add(Step(value)) for value in values]
    (output,) = recorder.run(jax.make_jaxpr(function)(*values), arguments)
    whole = Recording(tuple(recorder.steps), len(arguments), output, tuple(recorder.custom))
    return _pruned(_with_long_sums(_pruned(whole)))


def named(value: Array, name: str, *, adjoint: str = "") -> Array:
    """The same value; in a function that is traced, a name for its node, and for its adjoint.

    >>> import jaxbp
    >>> graph = jaxbp.graph.trace(lambda x: jaxbp.graph.named(3 * x, "s") + 1, 2.0)
    >>> graph["s"].operation
    '3·x'
    """
    for title, text in (("name", name), ("adjoint", adjoint)):
        if not isinstance(text, str) or "\n" in text or not (text or title == "adjoint"):
            raise TypeError(f"{title}: got {text!r}, expected a line of text")
    same: Array = checkpoint_name(value, f"{name}\n{adjoint}")  # type: ignore[no-untyped-call]
    return same


class _Recorder:
    """Steps so far, and where to find what is computed already."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.constants: dict[Any, int] = {}
        self.shared: dict[Any, list[int]] = {}
        self.custom: dict[str, None] = {}  # rules that were looked through

    def add(self, step: Step) -> int:
        self.steps.append(step)
        return len(self.steps) - 1

    def constant(self, value: Any) -> int:
        key = object()
        if value.size == 1 and is_numeric(value) and not isinstance(value, jax.core.Tracer):
            key = (value.dtype, value.shape, np.asarray(value).tobytes())
        if key not in self.constants:
            self.constants[key] = self.add(Step(value, is_constant=True))
        return self.constants[key]

    def run(self, program: Any, operands: Sequence[int]) -> list[int]:
        """Record a whole program that is applied to earlier steps."""
        jaxpr, constants = getattr(program, "jaxpr", program), getattr(program, "consts", ())
        at = dict(zip(jaxpr.invars, operands, strict=True))
        for variable, constant in zip(jaxpr.constvars, constants, strict=True):
            at[variable] = self.constant(jnp.asarray(constant))

        def position_of(variable: Any) -> int:
            if isinstance(variable, Literal):
                dtype = getattr(variable.aval, "dtype", None)
                return self.constant(jnp.asarray(variable.val, dtype))
            position: int = at[variable]
            return position

        for equation in jaxpr.eqns:
            inputs = [position_of(variable) for variable in equation.invars]
            outputs = self.apply(equation, inputs)
            at |= zip(equation.outvars, outputs, strict=True)
        return [position_of(variable) for variable in jaxpr.outvars]

    def run_function(self, function: Callable[..., Any], operands: Sequence[int]) -> list[int]:
        values = [self.steps[operand].value for operand in operands]
        return self.run(jax.make_jaxpr(function)(*values), operands)

    def apply(self, equation: Any, operands: Sequence[int]) -> list[int]:
        """Record one equation: the positions of its outputs."""
        primitive, params = equation.primitive, equation.params
        name = primitive.name
        if name in _LOOKED_THROUGH:
            return _LOOKED_THROUGH[name](self, equation, operands)
        if name == "convert_element_type" and self.is_of(operands[0], params["new_dtype"]):
            return list(operands)
        if name in _SIMPLER:
            primitive, params, operands = _SIMPLER[name](self, primitive, params, operands)
        key = _key(primitive, params, operands)
        if key not in self.shared:
            self.shared[key] = self.compute(primitive, params, operands)
        return self.shared[key]

    def compute(self, primitive: Any, params: dict[str, Any], operands: Sequence[int]) -> list[int]:
        inputs = [self.steps[operand] for operand in operands]
        values = primitive.bind(*(step.value for step in inputs), **params)
        if not getattr(primitive, "multiple_results", False):
            values = [values]
        if all(step.is_constant for step in inputs):
            return [self.constant(value) for value in values]
        known = {**params, "primitive": primitive}
        if len(values) == 1:
            return [self.add(Step(values[0], known, tuple(operands)))]
        return [
            self.add(Step(value, known | {"output": number}, tuple(operands)))
            for number, value in enumerate(values)
        ]

    def is_of(self, position: int, dtype: Any) -> bool:
        return bool(self.steps[position].value.dtype == dtype)


def is_numeric(value: Any) -> bool:
    """Whether it is made of numbers or truth values; a key for random numbers is not."""
    return not jnp.issubdtype(value.dtype, jax.dtypes.extended)


def is_real(value: Any) -> bool:
    """Whether it is made of real numbers, which have derivatives."""
    return bool(jnp.issubdtype(value.dtype, jnp.floating))


def _key(primitive: Any, params: dict[str, Any], operands: Sequence[int]) -> Any:
    """Equal for two equations that compute the same."""
    operands = sorted(operands) if primitive.name in {"add", "mul", "max", "min"} else operands
    key = (primitive.name, tuple(operands), tuple(params.items()))
    try:
        hash(key)
    except TypeError:  # a parameter that cannot be told equal to another
        return object()
    return key


# Looked through: what is made of other equations


def _call(recorder: _Recorder, equation: Any, operands: Sequence[int]) -> list[int]:
    """jit, checkpoint and custom rules: what is inside."""
    keys = ("call_jaxpr", "jaxpr", "fun_jaxpr")
    inner = next(equation.params[key] for key in keys if key in equation.params)
    if equation.primitive.name.startswith("custom_"):
        told = getattr(getattr(inner, "jaxpr", inner), "debug_info", None)
        recorder.custom[getattr(told, "func_name", equation.primitive.name)] = None
    return recorder.run(inner, operands)


def _name(recorder: _Recorder, equation: Any, operands: Sequence[int]) -> list[int]:
    """A value without a name gets one; of others, and of shared numbers, a copy does."""
    (position,) = operands
    name, _, adjoint = equation.params["name"].partition("\n")
    step = recorder.steps[position]
    named = step._replace(name=name, adjoint_name=adjoint)
    if step.primitive and not step.name:
        recorder.steps[position] = named
        return [position]
    if step.is_constant:
        return [recorder.add(named)]
    return [recorder.add(named._replace(params={"primitive": IDENTITY}, operands=(position,)))]


def _cond(recorder: _Recorder, equation: Any, operands: Sequence[int]) -> list[int]:
    """The branch that is taken."""
    which, *others = operands
    branches = equation.params["branches"]
    taken = np.clip(int(_concrete(equation, recorder, which)), 0, len(branches) - 1)
    return recorder.run(branches[taken], others)


def _while(recorder: _Recorder, equation: Any, operands: Sequence[int]) -> list[int]:
    """One turn after another."""
    condition, body = equation.params["cond_jaxpr"], equation.params["body_jaxpr"]
    first = equation.params["cond_nconsts"]
    second = first + equation.params["body_nconsts"]
    carry = list(operands[second:])
    while True:
        (goes_on,) = recorder.run(condition, [*operands[:first], *carry])
        if not _concrete(equation, recorder, goes_on):
            return carry
        carry = recorder.run(body, [*operands[first:second], *carry])


def _concrete(equation: Any, recorder: _Recorder, position: int) -> Array:
    value = recorder.steps[position].value
    if isinstance(value, jax.core.Tracer):
        raise TypeError(
            f"{equation.primitive.name}: got a traced condition, expected a number: what is "
            "computed depends on it, so call this outside of jit and vmap"
        )
    return value


def _scan(recorder: _Recorder, equation: Any, operands: Sequence[int]) -> list[int]:
    """One turn after another; the shapes tell what is scanned over and what is stacked up."""
    body, length = equation.params["jaxpr"], equation.params["length"]
    inner = getattr(body, "jaxpr", body)
    scanned = [
        a.aval.ndim > b.aval.ndim for a, b in zip(equation.invars, inner.invars, strict=True)
    ]
    carries = [
        a.aval.ndim == b.aval.ndim for a, b in zip(equation.outvars, inner.outvars, strict=True)
    ].count(True)
    over = operands[len(operands) - scanned.count(True) :]
    start = len(operands) - len(over) - carries
    constants, carry = operands[:start], list(operands[start : start + carries])
    stacks: list[list[int]] = [[] for _ in inner.outvars[carries:]]
    turns = range(length)
    for turn in reversed(turns) if equation.params["reverse"] else turns:
        rows = [_row(recorder, xs, turn) for xs in over]
        outputs = recorder.run(body, [*constants, *carry, *rows])
        carry = outputs[:carries]
        for stack, output in zip(stacks, outputs[carries:], strict=True):
            stack.insert(0, output) if equation.params["reverse"] else stack.append(output)
    avals = [variable.aval for variable in equation.outvars[carries:]]
    return [*carry, *(_stacked(recorder, *pair) for pair in zip(stacks, avals, strict=True))]


def _row(recorder: _Recorder, position: int, row: int) -> int:
    shape = recorder.steps[position].value.shape
    limits = {
        "start_indices": (row, *(0 for _ in shape[1:])),
        "limit_indices": (row + 1, *shape[1:]),
        "strides": None,
        "squeezed": (0,),
    }
    return recorder.compute(INDEX, limits, [position])[0]


def _stacked(recorder: _Recorder, rows: Sequence[int], aval: Any) -> int:
    if not rows:
        return recorder.constant(jnp.zeros(aval.shape, aval.dtype))
    return recorder.run_function(lambda *values: jnp.stack(values), rows)[0]


def _split(recorder: _Recorder, equation: Any, operands: Sequence[int]) -> list[int]:
    axis, sizes = equation.params["axis"], map(int, equation.params["sizes"])
    ends = list(pairwise(accumulate(sizes, initial=0)))
    return recorder.run_function(
        lambda a: [jax.lax.slice_in_dim(a, *end, axis=axis) for end in ends], operands
    )


def _unstack(recorder: _Recorder, equation: Any, operands: Sequence[int]) -> list[int]:
    axis, count = equation.params["axis"], len(equation.outvars)
    return recorder.run_function(
        lambda a: [jax.lax.index_in_dim(a, i, axis, keepdims=False) for i in range(count)], operands
    )


def _same(recorder: _Recorder, equation: Any, operands: Sequence[int]) -> list[int]:
    return list(operands)


_CALLS = ("jit", "pjit", "closed_call", "core_call", "checkpoint", "remat2", "custom_jvp_call")
_LOOKED_THROUGH: dict[str, Callable[..., list[int]]] = {
    **dict.fromkeys((*_CALLS, "custom_vjp_call", "custom_vjp_call_jaxpr"), _call),
    **dict.fromkeys(("copy", "copy_p", "optimization_barrier"), _same),
    "name": _name,
    "cond": _cond,
    "while": _while,
    "scan": _scan,
    "split": _split,
    "unstack": _unstack,
}


# Simpler: what reads better as one equation


def _indexed(
    recorder: _Recorder, primitive: Any, params: dict[str, Any], operands: Sequence[int]
) -> tuple[Any, dict[str, Any], Sequence[int]]:
    """x[0], which JAX writes as a slice and a squeeze."""
    step = recorder.steps[operands[0]]
    if step.primitive != "slice":
        return primitive, params, operands
    return INDEX, _limits(step) | {"squeezed": params["dimensions"]}, step.operands


def _limits(step: Step) -> dict[str, Any]:
    return {key: value for key, value in step.params.items() if key != "primitive"}


def _untransposed(
    recorder: _Recorder, primitive: Any, params: dict[str, Any], operands: Sequence[int]
) -> tuple[Any, dict[str, Any], Sequence[int]]:
    """z·Wᵀ read from W: a product that sums over the other axis of what was transposed."""
    (summed, batch), operands = params["dimension_numbers"], list(operands)
    summed = list(map(list, summed))
    for i, step in enumerate([recorder.steps[operand] for operand in operands]):
        turned = step.primitive == "transpose"
        if turned and step.value.ndim == 2 and len(summed[i]) == 1 and not batch[i]:
            summed[i] = [1 - summed[i][0]]
            operands[i] = step.operands[0]
    numbers = (tuple(map(tuple, summed)), batch)
    return primitive, {**params, "dimension_numbers": numbers}, operands


_SIMPLER = {"squeeze": _indexed, "dot_general": _untransposed}


# What the page does not need


def _pruned(recording: Recording) -> Recording:
    """Without the steps that the output is not made of; arguments stay."""
    steps, arguments, output, _ = recording
    needed = {output}
    for position in range(len(steps) - 1, -1, -1):
        if position in needed:
            needed.update(steps[position].operands)
    kept = [p for p in range(len(steps)) if p in needed or p < arguments]
    to = {position: new for new, position in enumerate(kept)}
    moved = (
        steps[p]._replace(operands=tuple(to[operand] for operand in steps[p].operands))
        for p in kept
    )
    return recording._replace(steps=tuple(moved), output=to[output])


def _with_long_sums(recording: Recording) -> Recording:
    """(d + e) + f as one sum of three, where d + e is of no other use; likewise W·z + b."""
    steps = list(recording.steps)
    uses = Counter(operand for step in steps for operand in step.operands)

    def within(operand: int, primitive: str) -> bool:
        step = steps[operand]
        return uses[operand] == 1 and step.primitive == primitive and not step.name

    def is_product(operand: int, shape: tuple[int, ...]) -> bool:
        return within(operand, "dot_general") and steps[operand].value.shape == shape

    for position, step in enumerate(steps):
        if step.primitive != "add":
            continue
        terms = list(
            chain.from_iterable(
                steps[operand].operands if within(operand, "add") else (operand,)
                for operand in step.operands
            )
        )
        product = next((term for term in terms if is_product(term, step.value.shape)), None)
        if product is None:
            steps[position] = step._replace(operands=tuple(terms))
        else:
            terms.remove(product)
            params = {**steps[product].params, "primitive": AFFINE}
            operands = (*steps[product].operands, *terms)
            steps[position] = step._replace(params=params, operands=operands)
    return recording._replace(steps=tuple(steps))
