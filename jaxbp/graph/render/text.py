"""The page in a terminal: name = operation = value, and adjoint = sum of contributions = value."""

import shutil
import textwrap
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from jaxbp.graph.nodes import Node, shown


class Line(NamedTuple):
    """One equation of the page; the formula is empty where a value is given."""

    name: str
    formula: str
    value: str


def forward_lines(nodes: Sequence[Node]) -> list[Line]:
    """The arguments and what is made of them, in the order of computation."""
    return [Line(node.name, node.operation, shown(node.value)) for node in nodes]


def backwards(nodes: Sequence[Node]) -> list[Node]:
    """The nodes that have an adjoint, from the output back, the arguments last."""
    made = [node for node in reversed(nodes) if node.operation]
    given = [node for node in nodes if not node.operation]
    return [node for node in (*made, *given) if node.adjoint is not None]


def backward_line(node: Node) -> Line:
    """A node's adjoint as the sum that it is."""
    return Line(node.adjoint_name, node.formula, shown(node.adjoint))


def backward_lines(nodes: Sequence[Node]) -> list[Line]:
    """The adjoints, in the order in which they are known."""
    return [backward_line(node) for node in backwards(nodes)]


def page(nodes: Sequence[Node], remarks: Iterable[str], width: int | None = None) -> str:
    """Both tables and the remarks, in lines that fit the terminal's width."""
    width = max(width or shutil.get_terminal_size().columns, 24)
    parts = ["forward", *equations(forward_lines(nodes), width)]
    backward = equations(backward_lines(nodes), width)
    if backward:
        parts += ["", "backward", *backward]
    for remark in remarks:
        parts += ["", *textwrap.wrap(remark, width)]
    return "\n".join(parts)


def equations(lines: Sequence[Line], width: int) -> list[str]:
    """name = formula = value, one under the other; a formula too long goes on below its own."""
    left = max((len(line.name) for line in lines), default=0)
    room = width - left - 3
    longest = max((len(line.value) for line in lines if line.formula), default=0) + 3
    fitting = [len(line.formula) for line in lines if len(line.formula) + longest <= room]
    middle = max(fitting, default=0)
    return [text for line in lines for text in _equation(line, left, middle, room)]


def _equation(line: Line, left: int, middle: int, room: int) -> list[str]:
    start = f"{line.name:<{left}} = "
    if not line.formula:
        return _continued(start, textwrap.wrap(line.value, room))
    if len(line.formula) <= middle:
        return [f"{start}{line.formula:<{middle}} = {line.value}"]
    return _continued(start, [*textwrap.wrap(line.formula, room), f"= {line.value}"])


def _continued(start: str, texts: Sequence[str]) -> list[str]:
    first, *others = texts
    return [start + first, *(" " * len(start) + text for text in others)]
