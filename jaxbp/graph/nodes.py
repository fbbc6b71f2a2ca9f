"""Nodes: the values of a recorded function with names, formulas and adjoints, as on the page."""

import math
from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxbp.graph.recording import Step, is_numeric
from jaxbp.graph.reverse import Received, Traced
from jaxbp.graph.rules import NOTATIONS, RULES
from jaxbp.graph.symbols import Symbol, call, figures, symbol, total
from jaxbp.text import number

_LETTERS = "abcdefhijkmnpqrstuvw"  # g marks adjoints; x, y and z are expected to be something
_OUTPUTS = ("y", "L", "J", "out")


class Contribution(NamedTuple):
    """What a node's adjoint receives from one node that is made of it."""

    consumer: str  # that node
    formula: str  # "ge·(-a/b²)"
    derivative: str  # "-a/b²", the local derivative; "" where it is no product entry by entry
    slope: Array | None  # its value
    value: Array


class Node(NamedTuple):
    """A value on the page, name = operation = value, and its adjoint, the sum of contributions."""

    name: str
    operation: str  # "x·z"; "" of an argument or a constant
    numbers: str  # the same with its operands' values, "2·3"; "" where they are arrays
    value: Array
    parents: tuple[str, ...]  # the names of the nodes it is made of
    adjoint_name: str  # "ga"
    adjoint: Array | None = None  # of value's shape; None where there is no derivative
    contributions: tuple[Contribution, ...] = ()

    @property
    def formula(self) -> str:
        """The adjoint as the sum of its contributions; "" of the output."""
        written = [Symbol(part.formula) for part in self.contributions if part.formula != "0"]
        return str(total(written)) if written else "0" * bool(self.contributions)


def nodes_of(
    steps: Sequence[Step],
    names: Sequence[str],
    found: Sequence[Array | None],
    received: Sequence[Sequence[Received]],
) -> tuple[Node | None, ...]:
    """A node a step; None for a number, which has no name and stands in formulas as it is."""
    taken = set(names)
    mark = "g" if not any("g" + name in taken for name in names if name) else "∂"
    marks = []
    for step, name in zip(steps, names, strict=True):
        marks.append(_unseen(step.adjoint_name or mark + name, taken))
        taken.add(marks[-1])
    signs = [_sign(name, step.value) for step, name in zip(steps, names, strict=True)]

    def contribution(part: Received) -> Contribution:
        step = steps[part.consumer]
        formula, derivative, slope = _local(
            step,
            part.operand,
            Symbol(marks[part.consumer], shape=step.value.shape),
            (signs[part.consumer], *(signs[operand] for operand in step.operands)),
            (step.value, *(steps[operand].value for operand in step.operands)),
        )
        return Contribution(names[part.consumer], formula, derivative, slope, part.value)

    def node(position: int) -> Node | None:
        step, name = steps[position], names[position]
        if not name:
            return None
        parents = dict.fromkeys(names[operand] for operand in step.operands if names[operand])
        parts = tuple(contribution(part) for part in received[position])
        operands = [steps[operand].value for operand in step.operands]
        return Node(
            name=name,
            operation=_operation(step, [signs[operand] for operand in step.operands]),
            numbers=_operation(step, operands) if all(map(_is_number, operands)) else "",
            value=step.value,
            parents=tuple(parents),
            adjoint_name=marks[position],
            adjoint=found[position],
            contributions=parts,
        )

    return tuple(node(position) for position in range(len(steps)))


def _sign(name: str, value: Array) -> Any:
    """What stands for a value in formulas."""
    if not name and not value.shape:
        return value.item()
    return Symbol(name or figures(value.item()), shape=value.shape)


def _is_number(value: Array) -> bool:
    return not value.shape and is_numeric(value)


def names_of(traced: Traced) -> list[str]:
    """A name a step, each its own; "" for a number."""
    steps, output = traced.recording.steps, traced.recording.output
    given = [step.name for step in steps]
    given[: len(traced.names)] = traced.names
    taken = set(given)
    if not given[output]:
        given[output] = next(name for name in (*_OUTPUTS, "") if name not in taken)
    used = {*taken, given[output]} | {step.name[0] for step in steps if step.name}
    letters = (name for name in _lettered() if name not in used)
    seen: set[str] = set()
    for position, step in enumerate(steps):
        a_number = step.is_constant and step.value.size == 1 and is_numeric(step.value)
        nameless = not given[position] and not a_number
        name = next(letters) if nameless else given[position]
        given[position] = _unseen(name, seen)
        seen.add(given[position])
    return given


def _lettered() -> Iterator[str]:
    """a, b, ..., a₁, b₁, ..."""
    for turn in count():
        below = str(turn).translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")) if turn else ""
        yield from (letter + below for letter in _LETTERS)


def _unseen(name: str, seen: set[str]) -> str:
    """The name, or where it is taken the name with a number."""
    if not name or name not in seen:
        return name
    return next(other for other in (f"{name}_{i}" for i in count(2)) if other not in seen)


def _operation(step: Step, operands: Sequence[Any]) -> str:
    if not step.primitive or step.is_constant:
        return ""
    rule = RULES.get(step.primitive)
    notation = rule.notation if rule else NOTATIONS.get(step.primitive, call(step.primitive))
    formulas = [symbol(o.item()) if isinstance(o, Array) else o for o in operands]
    return str(notation(*formulas, **step.params))


def _local(
    step: Step, i: int, gy: Symbol, symbols: Sequence[Any], values: Sequence[Array]
) -> tuple[str, str, Array | None]:
    """A contribution's formula, the local derivative in it, and that one's value."""
    rule = RULES[step.primitive]
    try:
        formula = rule.pull(i, gy, *symbols, **step.params)
        slope = rule.slope and rule.slope(i, *symbols, **step.params)
    except (TypeError, AttributeError, ArithmeticError):  # a rule for numbers, or x/0
        slope = Symbol(f"∂{symbols[0]}/∂{symbols[1 + i]}") if rule.slope else None
        formula = gy * slope if slope else Symbol(f"pull({gy})")
    if rule.slope is None:
        return str(formula), "", None
    value = jnp.asarray(rule.slope(i, *values, **step.params), values[0].dtype)
    return str(formula), str(symbol(slope)), value


# Values


def shown(value: Any) -> str:
    """A number, the entries of a small array, or the shape and the norm of a large one."""
    if not is_numeric(value):
        return "a key"
    entries = np.asarray(value)
    if not entries.shape:
        return figures(entries)
    if 0 < entries.size <= 6 and entries.ndim <= 2:
        rows = entries.reshape(-1, entries.shape[-1])
        return f"[{'; '.join(' '.join(_short(entry) for entry in row) for row in rows)}]"
    shape = "×".join(map(str, entries.shape))
    norm = math.sqrt(float(np.sum(np.square(entries, dtype=np.float64))))
    return f"{shape}, norm {number(norm, 4)}"


def _short(entry: Any) -> str:
    return figures(entry) if entry.dtype.kind == "b" else number(float(entry) + 0.0, 4)
