"""A recording: the steps of a function, run once from its jaxpr, operation by operation.

Nested jit, conditionals and loops are replaced by the operations inside them; a function with a
derivative rule of its own stays one step (``closed``).  A step that is computed twice is recorded
once, as on paper, where xz is one node; a step that depends on no argument is a constant; a step
that the output does not need is left out.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, pairwise
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.ad_checkpoint import checkpoint_name
from jax.extend.core import Literal

from jaxbp.graph.closed import closed, is_custom, may_be_nonlinear, value_of
from jaxbp.graph.rules import NOTATIONS, RULES
from jaxbp.trees import subjaxprs


class Step(NamedTuple):
    """One value: an argument, a constant, or the output of a primitive applied to earlier steps."""

    value: Array
    params: Mapping[str, Any] = MappingProxyType({})  # of the equation, and "primitive"
    operands: tuple[int, ...] = ()  # positions of earlier steps
    is_constant: bool = False  # depends on no argument
    name: str = ""  # as given by ``named``
    adjoint_name: str = ""  # as given by ``named``
    group: Any = None  # the same for all outputs of an equation that has several

    @property
    def primitive(self) -> str:
        """The primitive's name, "" for an argument or a constant."""
        return self.params["primitive"].name if self.params else ""


class Recording(NamedTuple):
    """The steps in the order of computation, the arguments first."""

    steps: tuple[Step, ...]
    arguments: int  # how many there are
    output: int  # the output's position


class Composite(NamedTuple):
    """An operation made of several primitives, which recordings show as one."""

    name: str
    bind: Callable[..., Any]  # (*operands, **params) -> value, as a primitive has it


def _index(
    a: Array, *, start_indices: Any, limit_indices: Any, strides: Any, squeezed: Any
) -> Array:
    """A slice, without those of its axes that are squeezed."""
    if strides is None:  # one compiled program serves every start
        sizes = np.subtract(limit_indices, start_indices)
        rows = jax.lax.dynamic_slice(a, np.asarray(start_indices, np.int32), sizes)
    else:
        rows = jax.lax.slice(a, start_indices, limit_indices, strides)
    return jax.lax.squeeze(rows, squeezed)


def _affine(a: Array, b: Array, *terms: Array, **params: Any) -> Array:
    """A product, and terms added to it."""
    return sum(terms, jax.lax.dot_general(a, b, **params))


IDENTITY = Composite("identity", lambda a: a)  # a second name for a value that has one
INDEX = Composite("index", _index)  # x[0]
ADD = Composite("add", lambda *terms: sum(terms[1:], terms[0]))  # of more than two
AFFINE = Composite("affine", _affine)  # W·z + b + ..., so that gW = δ·zᵀ as the lectures have it


def record(function: Callable[..., Any], values: Sequence[Array]) -> Recording:
    """Run function(*values), which returns one array, and keep every step."""
    recorder = _Recorder()
    arguments = [recorder.add(Step(value)) for value in values]
    (output,) = recorder.run(jax.make_jaxpr(function)(*values), arguments)
    whole = Recording(tuple(recorder.steps), len(arguments), output)
    return _pruned(_with_long_sums(_pruned(whole)))


def named(value: Array, name: str, *, adjoint: str = "") -> Array:
    """Name the node of a value in the graph of a function, and its adjoint; returns the value.

    Raises TypeError where a name is not one line of text.

    >>> import jaxbp
    >>> graph = jaxbp.graph.trace(lambda x: jaxbp.graph.named(3 * x, "s") + 1, 2.0)
    >>> graph["s"].operation
    '3·x'
    """
    for parameter, text in (("name", name), ("adjoint", adjoint)):
        if not isinstance(text, str) or "\n" in text or not (text or parameter == "adjoint"):
            raise TypeError(f"{parameter}: got {text!r}, expected a line of text")
    labelled: Array = checkpoint_name(value, f"{name}\n{adjoint}")  # type: ignore[no-untyped-call]
    return labelled


class _Recorder:
    """The steps so far, and where to find those that are computed already."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.varies: list[bool] = []  # whether each does, with the arguments
        self.constants: dict[Any, int] = {}  # by value
        self.computed: dict[Any, list[int]] = {}  # by primitive, operands and parameters

    def add(self, step: Step) -> int:
        position = len(self.steps)
        depends = any(self.varies[operand] for operand in step.operands)
        is_argument = not step.primitive and not step.is_constant
        self.varies.append((depends or is_argument) and is_continuous(step.value))
        self.steps.append(step)
        return position

    def constant(self, value: Any) -> int:
        key = object()
        if value.size == 1 and is_numeric(value) and not isinstance(value, jax.core.Tracer):
            key = (value.dtype, value.shape, np.asarray(value).tobytes())
        if key not in self.constants:
            self.constants[key] = self.add(Step(value, is_constant=True))
        return self.constants[key]

    def run(self, jaxpr: Any, operands: Sequence[int]) -> list[int]:
        """Record a jaxpr applied to earlier steps, and return the positions of its outputs."""
        jaxpr, constants = getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ())
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
        """Record one equation, and return the positions of its outputs."""
        primitive, params = equation.primitive, equation.params
        name = primitive.name
        if name in _REPLACED and not is_custom(equation):
            return _REPLACED[name](self, equation, operands)
        if name == "convert_element_type":
            (position,) = operands
            if self.steps[position].value.dtype == params["new_dtype"]:
                return [position]
        if name in _SIMPLER:
            primitive, params, operands = _SIMPLER[name](self, primitive, params, operands)
        key = object() if may_be_nonlinear(equation) else _key(primitive, params, operands)
        if key not in self.computed:
            if primitive.name not in RULES and name not in NOTATIONS:
                primitive = closed(equation)
            self.computed[key] = self.compute(primitive, params, operands)
        return self.computed[key]

    def compute(self, primitive: Any, params: dict[str, Any], operands: Sequence[int]) -> list[int]:
        inputs = [self.steps[operand] for operand in operands]
        wanted = [i for i, operand in enumerate(operands) if self.varies[operand]]
        values = value_of(primitive, params, [step.value for step in inputs], wanted)
        if not getattr(primitive, "multiple_results", False):
            values = [values]
        if all(step.is_constant for step in inputs):
            return [self.constant(value) for value in values]
        known = {**params, "primitive": primitive}
        if len(values) == 1:
            return [self.add(Step(values[0], known, tuple(operands)))]
        group = object()
        return [
            self.add(Step(value, known | {"output": output}, tuple(operands), group=group))
            for output, value in enumerate(values)
        ]


def is_numeric(value: Any) -> bool:
    """Whether a value is made of numbers or truth values, as a key for random numbers is not."""
    return not jnp.issubdtype(value.dtype, jax.dtypes.extended)


def is_real(value: Any) -> bool:
    """Whether a value is made of real numbers, which have derivatives."""
    return bool(jnp.issubdtype(value.dtype, jnp.floating))


def is_continuous(value: Any) -> bool:
    """Whether a value is made of real or complex numbers, by way of which others vary."""
    return bool(jnp.issubdtype(value.dtype, jnp.inexact))


def _key(primitive: Any, params: dict[str, Any], operands: Sequence[int]) -> Any:
    """A key that is equal for two equations that compute the same value."""
    operands = sorted(operands) if primitive.name in {"add", "mul", "max", "min"} else operands
    key = (primitive.name, tuple(operands), tuple(params.items()))
    try:
        hash(key)
    except TypeError:  # a parameter that cannot be told equal to another
        return object()
    return key


# Equations that are replaced by the operations inside them


def _call(recorder: _Recorder, equation: Any, operands: Sequence[int]) -> list[int]:
    """The function that jit or checkpoint is applied to."""
    (jaxpr,) = subjaxprs(equation)
    return recorder.run(jaxpr, operands)


def _name(recorder: _Recorder, equation: Any, operands: Sequence[int]) -> list[int]:
    """The name goes to the step; to a copy where it is a constant, an argument or has a name."""
    (position,) = operands
    name, _, adjoint = equation.params["name"].partition("\n")
    step = recorder.steps[position]
    with_name = step._replace(name=name, adjoint_name=adjoint)
    if step.primitive and not step.name:
        recorder.steps[position] = with_name
        return [position]
    if step.is_constant:
        return [recorder.add(with_name)]
    return [recorder.add(with_name._replace(params={"primitive": IDENTITY}, operands=(position,)))]


def _cond(recorder: _Recorder, equation: Any, operands: Sequence[int]) -> list[int]:
    """The branch that is taken; all of it is one step where that is not known, as under jit."""
    which, *others = operands
    branches, value = equation.params["branches"], recorder.steps[which].value
    if isinstance(value, jax.core.Tracer):
        return recorder.compute(closed(equation), equation.params, operands)
    return recorder.run(branches[np.clip(int(value), 0, len(branches) - 1)], others)


def _while(recorder: _Recorder, equation: Any, operands: Sequence[int]) -> list[int]:
    """The body, again and again while the condition holds.

    Under vmap there is a condition for each row: the loop goes on while any holds, and a row whose
    own does not keeps its values.
    """
    condition, body = equation.params["cond_jaxpr"], equation.params["body_jaxpr"]
    of_condition = equation.params["cond_nconsts"]
    of_both = of_condition + equation.params["body_nconsts"]
    carry = list(operands[of_both:])
    while True:
        (holds,) = recorder.run(condition, [*operands[:of_condition], *carry])
        value = recorder.steps[holds].value
        if isinstance(value, jax.core.Tracer):
            return _while_unknown(recorder, equation, operands, value)
        if not np.any(value):
            return carry
        new = recorder.run(body, [*operands[of_condition:of_both], *carry])
        if not np.all(value):
            new = [
                recorder.run_function(_where_it_holds, [holds, *pair])[0]
                for pair in zip(new, carry, strict=True)
            ]
        carry = new


def _where_it_holds(holds: Array, new: Array, old: Array) -> Array:
    """The new rows where the condition of the row holds, and else the old ones."""
    return jnp.where(jnp.expand_dims(holds, tuple(range(holds.ndim, new.ndim))), new, old)


def _while_unknown(
    recorder: _Recorder, equation: Any, operands: Sequence[int], holds: Any
) -> list[int]:
    """A loop under jit, whose length is not known: one step, if nothing is differentiated."""
    step, params = closed(equation), equation.params
    if not any(map(is_continuous, (variable.aval for variable in equation.outvars))) or all(
        recorder.steps[operand].is_constant for operand in operands
    ):
        return recorder.compute(step, params, operands)
    raise jax.errors.ConcretizationTypeError(  # after which gradcheck does not trace
        holds,
        "while: got a traced condition, expected a number: what is computed depends on it, so call "
        "this outside of jit and vmap",
    )


def _scan(recorder: _Recorder, equation: Any, operands: Sequence[int]) -> list[int]:
    """The body, once for each row of the arrays that are scanned.

    The shapes say which arrays are scanned and which outputs are stacked: they have one axis more
    than inside.  (JAX 0.10 says so in num_consts and num_carry, JAX 0.12 in trees, ft_in, ft_out.)
    """
    body, reverse = equation.params["jaxpr"], equation.params["reverse"]
    scanned = _more_axes(equation.invars, body.in_avals)
    stacked = _more_axes(equation.outvars, body.out_avals)
    carried = len(equation.outvars) - stacked
    constants = operands[: len(operands) - carried - scanned]
    carry = list(operands[len(constants) : len(constants) + carried])
    arrays = operands[len(constants) + carried :]
    stacks: list[list[int]] = [[] for _ in range(stacked)]
    rows = range(equation.params["length"])
    for row in reversed(rows) if reverse else rows:
        inputs = [_row(recorder, array, row) for array in arrays]
        outputs = recorder.run(body, [*constants, *carry, *inputs])
        carry = outputs[:carried]
        for stack, output in zip(stacks, outputs[carried:], strict=True):
            stack.insert(0 if reverse else len(stack), output)
    avals = [variable.aval for variable in equation.outvars[carried:]]
    return [*carry, *(_stacked(recorder, *pair) for pair in zip(stacks, avals, strict=True))]


def _more_axes(variables: Sequence[Any], avals: Sequence[Any]) -> int:
    """How many variables of a scan have more axes than their rows inside have."""
    pairs = zip(variables, avals, strict=True)
    return sum(variable.aval.ndim > inside.ndim for variable, inside in pairs)


def _row(recorder: _Recorder, position: int, row: int) -> int:
    """A step for one row of an array: x[row]."""
    shape = recorder.steps[position].value.shape
    limits = {
        "start_indices": (row, *(0 for _ in shape[1:])),
        "limit_indices": (row + 1, *shape[1:]),
        "strides": None,
        "squeezed": (0,),
    }
    return recorder.compute(INDEX, limits, [position])[0]


def _stacked(recorder: _Recorder, rows: Sequence[int], aval: Any) -> int:
    """A step for rows stacked to an array, of this type where there are none."""
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


def _operands(recorder: _Recorder, equation: Any, operands: Sequence[int]) -> list[int]:
    """The operands as they are: an operation that changes no value."""
    return list(operands)


_CALLS = ("jit", "pjit", "closed_call", "core_call", "checkpoint", "remat2")
_REPLACED: dict[str, Callable[..., list[int]]] = {
    **dict.fromkeys(_CALLS, _call),
    **dict.fromkeys(("copy", "copy_p", "optimization_barrier"), _operands),
    "name": _name,
    "cond": _cond,
    "while": _while,
    "scan": _scan,
    "split": _split,
    "unstack": _unstack,
}


# Equations that read better as another one


def _indexed(
    recorder: _Recorder, primitive: Any, params: dict[str, Any], operands: Sequence[int]
) -> tuple[Any, dict[str, Any], Sequence[int]]:
    """x[0], which JAX writes as a slice and a squeeze."""
    step = recorder.steps[operands[0]]
    if step.primitive != "slice":
        return primitive, params, operands
    limits = {key: value for key, value in step.params.items() if key != "primitive"}
    return INDEX, limits | {"squeezed": params["dimensions"]}, step.operands


def _untransposed(
    recorder: _Recorder, primitive: Any, params: dict[str, Any], operands: Sequence[int]
) -> tuple[Any, dict[str, Any], Sequence[int]]:
    """z·Wᵀ, which JAX writes as a transpose and a product: a sum over the other axis of W."""
    (summed, batch), operands = params["dimension_numbers"], list(operands)
    summed = list(map(list, summed))
    for i, step in enumerate([recorder.steps[operand] for operand in operands]):
        turned = step.primitive == "transpose"
        if turned and step.value.ndim == 2 and len(summed[i]) == 1 and not batch[i]:
            summed[i] = [1 - summed[i][0]]
            operands[i] = step.operands[0]
    numbers = (tuple(map(tuple, summed)), batch)
    return primitive, {**params, "dimension_numbers": numbers}, operands


def _added(
    recorder: _Recorder, primitive: Any, params: dict[str, Any], operands: Sequence[int]
) -> tuple[Any, dict[str, Any], Sequence[int]]:
    """a + b, for which JAX has a second primitive in what it differentiates."""
    return jax.lax.add_p, params, operands


_SIMPLER = {"squeeze": _indexed, "dot_general": _untransposed, "add_any": _added}


# Steps that a reader does not need


def _pruned(recording: Recording) -> Recording:
    """Leave out the steps that the output does not depend on; arguments stay."""
    steps = recording.steps
    needed = {recording.output, *range(recording.arguments)}
    for position in range(len(steps) - 1, -1, -1):
        if position in needed:
            needed.update(steps[position].operands)
    new = {position: place for place, position in enumerate(sorted(needed))}
    kept = (
        steps[position]._replace(operands=tuple(new[o] for o in steps[position].operands))
        for position in new
    )
    return recording._replace(steps=tuple(kept), output=new[recording.output])


def _with_long_sums(recording: Recording) -> Recording:
    """Write (d + e) + f as one sum of three where d + e is not used elsewhere; likewise W·z + b."""
    steps = list(recording.steps)
    uses = Counter(operand for step in steps for operand in step.operands)

    def is_part(operand: int, primitive: str) -> bool:
        step = steps[operand]
        return uses[operand] == 1 and step.primitive == primitive and not step.name

    for position, step in enumerate(steps):
        if step.primitive != "add":
            continue
        terms: list[int] = []
        for operand in step.operands:
            terms += steps[operand].operands if is_part(operand, "add") else [operand]
        products = [
            term
            for term in terms
            if is_part(term, "dot_general") and steps[term].value.shape == step.value.shape
        ]
        if not products:
            if len(terms) > 2:
                steps[position] = step._replace(params={"primitive": ADD}, operands=tuple(terms))
            continue
        product = products[0]
        terms.remove(product)
        params = {**steps[product].params, "primitive": AFFINE}
        operands = (*steps[product].operands, *terms)
        steps[position] = step._replace(params=params, operands=operands)
    return recording._replace(steps=tuple(steps))
