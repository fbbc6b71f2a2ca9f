"""The graph as text: name = operation = value, and adjoint = sum of contributions = value."""

import textwrap
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from jaxbp.graph.nodes import Node, value_text


class Equation(NamedTuple):
    """name = formula = value; the formula is empty where a value is given."""

    name: str
    formula: str
    value: str


def forward_equations(nodes: Sequence[Node]) -> list[Equation]:
    """The arguments and the values made of them, in the order of computation."""
    return [Equation(node.name, node.operation, value_text(node.value)) for node in nodes]


def backward_equations(nodes: Sequence[Node]) -> list[Equation]:
    """The adjoints, from the output back."""
    return [adjoint_equation(node) for node in backward_order(nodes)]


def backward_order(nodes: Sequence[Node]) -> list[Node]:
    """The nodes that have an adjoint, from the output back, an argument as soon as it is complete.

    So the gradients of layer 2 follow δ⁽²⁾, before the page turns to layer 1.
    """
    first_use: dict[str, str] = {}  # by the name of an argument, or of a constant
    for node in nodes:
        for parent in node.parents:
            first_use.setdefault(parent, node.name)
    given: dict[str | None, list[Node]] = defaultdict(list)
    for node in nodes:
        if not node.operation:
            given[first_use.get(node.name)].append(node)
    made = [node for node in reversed(nodes) if node.operation]
    ordered = [each for node in made for each in (node, *given[node.name])]
    return [node for node in (*ordered, *given[None]) if node.adjoint is not None]


def adjoint_equation(node: Node) -> Equation:
    """A node's adjoint as the sum of its contributions."""
    return Equation(node.adjoint_name, node.formula, value_text(node.adjoint))


def to_text(nodes: Sequence[Node], remarks: Iterable[str], width: int) -> str:
    """Both tables and the remarks, in lines of at most width columns (24 at least)."""
    width = max(width, 24)
    lines = ["forward", *_aligned(forward_equations(nodes), width)]
    backward = _aligned(backward_equations(nodes), width)
    if backward:
        lines += ["", "backward", *backward]
    for remark in remarks:
        lines += ["", *textwrap.wrap(remark, width)]
    return "\n".join(lines)


def _aligned(equations: Sequence[Equation], width: int) -> list[str]:
    """The equations with their signs below each other; what is long goes on in lines below."""
    left = max((len(equation.name) for equation in equations), default=0)
    room = width - left - 3
    short = [each for each in equations if each.formula and len(each.value) <= room // 2]
    right = 3 + max((len(each.value) for each in short), default=0)
    fitting = [len(each.formula) for each in equations if len(each.formula) + right <= room]
    middle = max(fitting, default=0)
    lines = []
    for name, formula, value in equations:
        line = f"{formula:<{middle}} = {value}" if formula else value
        texts = [line]
        if formula and (len(formula) > middle or len(line) > room):
            texts = [*textwrap.wrap(formula, room), *_hanging(f"= {value}", room)]
        elif len(line) > room:
            texts = _hanging(value, room)
        lines.append(f"{name:<{left}} = {texts[0]}")
        lines += [" " * (left + 3) + text for text in texts[1:]]
    return lines


def _hanging(value: str, room: int) -> list[str]:
    """A value in lines, a matrix row by row."""
    if len(value) <= room:
        return [value]
    below = " " * (value.find("[") + 1)
    first, *others = value.replace("; ", ";\n").splitlines()
    lines = textwrap.wrap(first, room, subsequent_indent=below)
    for row in others:
        lines += textwrap.wrap(row, room, initial_indent=below, subsequent_indent=below)
    return lines
