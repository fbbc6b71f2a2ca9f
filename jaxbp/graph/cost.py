"""The cost of reverse mode: operations counted, forward and backward, by one and the same counter.

An entry of a sum, a product or a function is one operation, an entry of a matrix product of I terms
2I - 1, a sum of N entries N - 1; a move of entries costs nothing, and neither whole numbers nor
comparisons count.  A function with a rule of its own, such as relu, is one operation an entry,
forward and backward, and so is a primitive whose derivative is JAX's.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from jaxbp.graph.recording import Recording, Step, is_continuous, is_real
from jaxbp.graph.reverse import adjoints
from jaxbp.graph.rules_of_moves import MOVES
from jaxbp.text import counted
from jaxbp.trees import opened, subjaxprs

#: primitives that compute nothing
_FREE = {*MOVES, "convert_element_type", "copy", "stop_gradient", "identity"}


@dataclass(frozen=True)
class Cost:
    """The operations of a function, and those of reverse mode after it."""

    forward: int  # operations of the function
    backward: int  # operations of reverse mode
    inputs: int  # real numbers in the function's arguments

    @property
    def ratio(self) -> float:
        """Backward over forward: a small constant, however many inputs there are."""
        return self.backward / max(self.forward, 1)

    @property
    def differences(self) -> int:
        """Operations of two evaluations an input, for central differences."""
        return 2 * self.inputs * self.forward

    def __str__(self) -> str:
        times = f", {self.ratio:.1f} times as many" if self.forward else ""
        return (
            f"{counted(self.forward, 'operation')} forward, {self.backward} backward{times}; "
            f"central differences: 2·{self.inputs}·{self.forward} = {self.differences}"
        )


def cost_of(recording: Recording) -> Cost:
    """Count the operations of a recording, and those of its reverse mode in the jaxpr of it."""
    values = [step.value for step in recording.steps]
    inputs = sum(int(value.size) for value in values[: recording.arguments] if is_real(value))
    output = values[recording.output]

    of_jax: list[int] = []

    def by_jax(_: Any, gys: Any, operands: Any, wanted: Any) -> tuple[Any, list[Any]]:
        of_jax.extend(int(operands[i].size) for i in wanted)
        return gys, [jnp.zeros_like(operands[i]) for i in wanted]

    def backward(values: list[Any], cotangent: Any) -> Any:
        steps = (s._replace(value=v) for s, v in zip(recording.steps, values, strict=True))
        found, _ = adjoints(recording._replace(steps=tuple(steps)), cotangent, by_jax)
        return found

    forward = sum(_cost_of_step(step, values) for step in recording.steps)
    jaxpr = jax.make_jaxpr(backward)(values, output).jaxpr
    return Cost(forward, _cost_of_jaxpr(jaxpr) + sum(of_jax), inputs)


def _cost_of_step(step: Step, values: list[Any]) -> int:
    if not step.primitive:
        return 0
    operands = [values[operand] for operand in step.operands]
    if step.primitive == "add":
        return int(step.value.size) * (len(operands) - 1)
    if step.primitive == "affine":
        product = _operations("dot_general", operands, [step.value], step.params)
        return product + int(step.value.size) * (len(operands) - 2)
    return _operations(step.primitive, operands, [step.value], step.params)


def _cost_of_jaxpr(jaxpr: Any, are_numbers: Sequence[bool] = ()) -> int:
    """The operations that a jaxpr's outputs depend on.

    are_numbers: whether each of its arguments is a number in the text of a rule, as ½ is.
    """
    numbers = _numbers(jaxpr, are_numbers)

    def is_number(variable: Any) -> bool:
        return isinstance(variable, Literal) or id(variable) in numbers

    needed, count = {id(variable) for variable in jaxpr.outvars}, 0
    for equation in reversed(jaxpr.eqns):
        if not needed & {id(variable) for variable in equation.outvars}:
            continue
        needed |= {id(variable) for variable in equation.invars}
        name, inner = equation.primitive.name, list(subjaxprs(equation))
        if all(map(is_number, equation.outvars)):
            continue
        if inner and not name.startswith("scatter"):  # whose jaxpr is that of a single entry
            given = list(map(is_number, equation.invars)) if len(inner) == 1 else []
            count += sum(_cost_of_jaxpr(opened(jaxpr), given) for jaxpr in inner)
            continue
        operands = [variable.aval for variable in equation.invars]
        outputs = [variable.aval for variable in equation.outvars]
        count += _operations(name, operands, outputs, equation.params)
    return count


def _numbers(jaxpr: Any, are_numbers: Sequence[bool]) -> set[int]:
    """The variables of a jaxpr that are made of numbers alone, or chosen among them: ½ where a = b.

    are_numbers: whether each of its arguments is one.
    """
    numbers = {id(v) for v, is_one in zip(jaxpr.invars, are_numbers, strict=False) if is_one}

    def is_number(variable: Any) -> bool:
        return isinstance(variable, Literal) or id(variable) in numbers

    for equation in jaxpr.eqns:
        inner, given = list(subjaxprs(equation)), list(map(is_number, equation.invars))
        if len(inner) == 1 and len(opened(inner[0]).invars) == len(given):
            made, of_inner = opened(inner[0]).outvars, _numbers(opened(inner[0]), given)
            are_made = [isinstance(v, Literal) or id(v) in of_inner for v in made]
        else:
            chosen = given[1:] if equation.primitive.name == "select_n" else given
            are_made = [all(chosen)] * len(equation.outvars)
        numbers |= {id(v) for v, is_one in zip(equation.outvars, are_made, strict=False) if is_one}
    return numbers


def _operations(name: str, operands: list[Any], outputs: list[Any], params: Any) -> int:
    entries = sum(int(output.size) for output in outputs)
    if name in _FREE or not any(map(is_continuous, outputs)):
        return 0
    if name == "dot_general":
        (summed, _), _ = params["dimension_numbers"]
        terms: int = math.prod(operands[0].shape[axis] for axis in summed)
        return entries * (2 * terms - 1)
    if name.startswith("reduce_") and name != "reduce_precision":
        return int(operands[0].size) - entries
    if name == "scatter-add":  # entries that meet in one place are added up
        return max(0, int(operands[2].size - operands[0].size))
    return entries
