"""The nodes of a graph: a function's values with names, formulas and adjoints, as on paper."""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxbp.graph.closed import Closed
from jaxbp.graph.formulas import derivative_of
from jaxbp.graph.recording import Step, is_continuous, is_numeric
from jaxbp.graph.reverse import Received, Traced, rule_of, vjp_of_step
from jaxbp.graph.rules import NOTATIONS, RULES
from jaxbp.graph.symbols import Symbol, call, figures, symbol, total
from jaxbp.text import significant

_LETTERS = "abcdefhijkmnpqrstuvw"  # g marks adjoints; x, y and z are expected to be something
_OUTPUTS = ("y", "L", "J", "out")


@dataclass(frozen=True, eq=False)
class Contribution:
    """The part of a node's adjoint that comes from one node made of it."""

    consumer: str  # the name of that node
    formula: str  # "ge·(-a/b²)"
    derivative: str  # "-a/b²", the local derivative; "" where it is not entry by entry
    slope: Array | None  # its value
    value: Array


@dataclass(frozen=True, eq=False)
class Node:
    """A value on paper, name = operation = value, and its adjoint, the sum of contributions."""

    name: str
    operation: str  # "x·z"; "" for an argument or a constant
    numbers: str  # "2·3", the operation with its operands' values; "" where they are arrays
    value: Array
    parents: tuple[str, ...]  # the names of the nodes it is made of
    adjoint_name: str  # "ga"
    adjoint: Array | None = None  # of value's shape; None where there is no derivative
    contributions: tuple[Contribution, ...] = ()
    #: whose derivative it is: "" of a rule in the table, "custom" of the function's own rule
    #: (jax.custom_jvp, jax.custom_vjp), "jax" of JAX, where the table has no rule
    rule: str = ""
    inside: Any = None  # the jaxpr of the function that it is, None where there is none

    @property
    def formula(self) -> str:
        """The adjoint as the sum of its contributions; "" for the output."""
        if not self.contributions:
            return ""
        terms = [Symbol(part.formula) for part in self.contributions if part.formula != "0"]
        return str(total(terms)) if terms else "0"


class Edge(NamedTuple):
    """From a parent to the node made of it, by their positions among the nodes."""

    parent: int
    child: int
    derivative: str  # "-a/b²", ∂child/∂parent; "" where it is not entry by entry


def edges_of(nodes: Sequence[Node]) -> list[Edge]:
    """The edges of the graph, by child."""
    derivatives: dict[tuple[str, str], list[str]] = defaultdict(list)
    for node in nodes:
        for part in node.contributions:
            if part.derivative:
                derivatives[node.name, part.consumer].append(part.derivative)
    at = {node.name: position for position, node in enumerate(nodes)}
    return [
        Edge(at[parent], child, " + ".join(derivatives[parent, node.name]))
        for child, node in enumerate(nodes)
        for parent in node.parents
    ]


def nodes_of(
    steps: Sequence[Step],
    names: Sequence[str],
    found: Sequence[Array | None],
    received: Sequence[Sequence[Received]],
    terse_of: int | None = None,
) -> tuple[Node | None, ...]:
    """A node for each step, None for a number, which has no name and stands in formulas as it is.

    steps, names: the steps, and a name for each.
    found, received: the steps' adjoints and their parts, as ``adjoints`` has them.
    terse_of: the output, where its adjoint, which is 1, stands in no formula, and adjoints of 0
        are left out; None, where all is written, unless given.
    """
    adjoint_names = _adjoint_names(steps, names)
    symbols = [_symbol_of(step, name) for step, name in zip(steps, names, strict=True)]

    def contribution(part: Received) -> Contribution:
        step = steps[part.consumer]
        gy = Symbol(adjoint_names[part.consumer], shape=step.value.shape)
        if part.consumer == terse_of:
            gy = symbol(1)
        involved = (part.consumer, *step.operands)
        words, values = [symbols[i] for i in involved], [steps[i].value for i in involved]
        if rule_of(step, values[1:]) is None:
            wanted = [i for i, operand in enumerate(step.operands) if found[operand] is not None]
            place = wanted.index(part.operand)
            texts = _closed_formulas(step, wanted, place, gy, words, values)
        else:
            texts = (*_formulas(step, part.operand, gy, words), _slope(step, part.operand, values))
        return Contribution(names[part.consumer], *texts, part.value)

    nodes: list[Node | None] = []
    for position, (step, name) in enumerate(zip(steps, names, strict=True)):
        if not name:
            nodes.append(None)
            continue
        values = [steps[operand].value for operand in step.operands]
        are_numbers = all(not value.shape and is_numeric(value) for value in values)
        parents = dict.fromkeys(names[operand] for operand in step.operands if names[operand])
        node = Node(
            name=name,
            operation=_operation(step, [symbols[operand] for operand in step.operands]),
            numbers=_operation(step, values) if are_numbers else "",
            value=step.value,
            parents=tuple(parents),
            adjoint_name=adjoint_names[position],
            adjoint=found[position],
            contributions=tuple(map(contribution, received[position])),
            rule=_whose(step, [steps[operand].value for operand in step.operands]),
            inside=getattr(step.params.get("primitive"), "inside", None),
        )
        nodes.append(node if terse_of is None else _terse(node))
    return tuple(nodes)


def _terse(node: Node) -> Node:
    """The node without contributions of 0, and without an adjoint that is made of them alone."""
    passed = tuple(part for part in node.contributions if part.formula != "0")
    is_reached = bool(passed) or not (node.contributions and node.operation)
    return replace(node, contributions=passed, adjoint=node.adjoint if is_reached else None)


def names_of(traced: Traced) -> list[str]:
    """A name for each step, no two alike; "" for a number."""
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
        is_number = step.is_constant and step.value.size == 1 and is_numeric(step.value)
        needs_one = not given[position] and not is_number
        name = next(letters) if needs_one else given[position]
        given[position] = _unseen(name, seen)
        seen.add(given[position])
    return given


def _lettered() -> Iterator[str]:
    """a, b, ..., a₁, b₁, ..."""
    for index in count():
        small = str(index).translate(str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉"))
        yield from (letter + (small if index else "") for letter in _LETTERS)


def _unseen(name: str, seen: set[str]) -> str:
    """The name itself or, where it was seen, with a suffix: a_2."""
    if not name or name not in seen:
        return name
    return next(other for other in (f"{name}_{i}" for i in count(2)) if other not in seen)


def _adjoint_names(steps: Sequence[Step], names: Sequence[str]) -> list[str]:
    """A name for each adjoint: ga, or ∂a for all where a value is called ga."""
    seen = set(names)
    mark = "g" if not any("g" + name in seen for name in names if name) else "∂"
    adjoint_names = []
    for step, name in zip(steps, names, strict=True):
        adjoint_names.append(_unseen(step.adjoint_name or mark + name, seen))
        seen.add(adjoint_names[-1])
    return adjoint_names


def _symbol_of(step: Step, name: str) -> Any:
    """A value as it stands in formulas: its name, or the number that it is."""
    if not name and not step.value.shape and not jnp.iscomplexobj(step.value):
        return step.value.item()
    text = name or value_text(step.value.reshape(()))
    binds = 4 if name or not jnp.iscomplexobj(step.value) else 0  # a + bi
    return Symbol(text, binds=binds, shape=step.value.shape, value=step.value)


def _operation(step: Step, operands: Sequence[Any]) -> str:
    if not step.primitive or step.is_constant:
        return ""
    rule, primitive = RULES.get(step.primitive), step.params["primitive"]
    notation: Any = NOTATIONS.get(step.primitive, call(step.primitive))
    if rule is not None:
        notation = rule.notation
    elif isinstance(primitive, Closed):
        notation = primitive.notation
    formulas = [Symbol(value_text(o)) if isinstance(o, Array) else o for o in operands]
    return str(notation(*formulas, **step.params))


def _whose(step: Step, operands: Sequence[Array]) -> str:
    """Whose derivative a step has: of a rule in the table, "custom" or "jax"."""
    if not step.primitive or step.is_constant or not is_continuous(step.value):
        return ""
    if getattr(step.params["primitive"], "has_own_rule", False):
        return "custom"
    return "jax" if rule_of(step, operands) is None else ""


def _formulas(step: Step, i: int, gy: Symbol, symbols: Sequence[Any]) -> tuple[str, str]:
    """The formula of what operand i receives, and the local derivative in it; y comes first."""
    rule = RULES[step.primitive]
    try:
        formula = rule.pull(i, gy, *symbols, **step.params)
        slope = None if rule.slope is None else rule.slope(i, *symbols, **step.params)
    except (TypeError, AttributeError, ArithmeticError):  # a rule for arrays alone, or x/0
        slope = None if rule.slope is None else Symbol(f"∂{symbols[0]}/∂{symbols[1 + i]}")
        formula = Symbol(f"pull({gy})") if slope is None else gy * slope
    return str(formula), "" if slope is None else str(symbol(slope))


def _closed_formulas(
    step: Step,
    wanted: Sequence[int],
    place: int,
    gy: Symbol,
    words: Sequence[Any],
    values: Sequence[Array],
) -> tuple[str, str, Array | None]:
    """Those of a step whose derivative is JAX's or its own rule's, and the derivative's value.

    step: the step.
    wanted, place: the operands that vary, and which of these receives the share.
    gy: the formula of its adjoint.
    words, values: the formulas and the values of y and of the operands.
    """
    if step.group is not None:
        return f"pull({gy})", "", None
    y, *operands = words
    operand = operands[wanted[place]]

    def share(gy: Any, *operands: Any) -> tuple[Any, Any]:
        (y,), shares = vjp_of_step([step], [gy], operands, wanted)
        return y, shares[place]

    label = getattr(step.params["primitive"], "label", step.primitive)
    alone = len(operands) == 1 and "{" not in label
    text = f"{label}'({operand})" if alone else f"∂{y}/∂{operand}"
    unread = Symbol(text, shape=values[1].shape) if alone else None
    derivative = derivative_of(share, values[0], values[1:], words, unread)
    if derivative is None:
        if values[0].shape:
            return f"({text})ᵀ·{gy}", "", None
        derivative = Symbol(text, shape=operand.shape)
    _, slope = share(jnp.ones_like(values[0]), *values[1:])
    return str(gy * derivative), str(derivative), slope


def _slope(step: Step, i: int, values: Sequence[Array]) -> Array | None:
    """The local derivative's value, None where it is not entry by entry; y comes first."""
    slope = RULES[step.primitive].slope
    if slope is None:
        return None
    return jnp.asarray(slope(i, *values, **step.params), values[0].dtype)


# Values


def value_text(value: Any) -> str:
    """A number, the entries of a small array, or the shape and the norm of a large one."""
    if not is_numeric(value):
        return "a key"
    entries = np.asarray(value)
    if not entries.shape:
        return _entry_text(entries[()], 6) if np.iscomplexobj(entries) else figures(entries)
    if rows := rows_of(value):
        return f"[{'; '.join(map(' '.join, rows))}]"
    shape = "×".join(map(str, entries.shape))
    norm = math.sqrt(float(np.sum(np.square(np.abs(entries), dtype=np.float64))))
    return f"{shape}, norm {significant(norm, 4)}"


def rows_of(value: Any) -> list[list[str]]:
    """The entries of a small array, row by row; no rows for a number or a large array."""
    entries = np.asarray(value) if is_numeric(value) else np.zeros(())
    small = entries.size <= 6 or (entries.ndim == 2 and max(entries.shape) <= 4)
    if not small or not entries.size or entries.ndim not in {1, 2}:
        return []
    return [list(map(_entry_text, row)) for row in np.atleast_2d(entries)]


def _entry_text(entry: Any, digits: int = 4) -> str:
    if entry.dtype.kind == "b":
        return figures(entry)
    if entry.dtype.kind == "c":
        real, imaginary = (_entry_text(part, digits) for part in (entry.real, entry.imag))
        return f"{real}+{imaginary}i".replace("+-", "-")
    return significant(float(entry) + 0.0, digits)  # no -0
