"""The page in a browser: one file on which the reader steps through the computation."""

import json
from collections.abc import Iterator, Sequence
from html import escape
from importlib.resources import files
from itertools import accumulate, pairwise
from string import Template
from typing import NamedTuple

import numpy as np

from jaxbp.graph.nodes import Contribution, Node, shown
from jaxbp.graph.render.layout import layout
from jaxbp.graph.render.mermaid_dot import edges
from jaxbp.graph.render.text import Line, backward_line, backwards, forward_lines

_CHARACTER, _LONGEST = 7.8, 24  # of the text in boxes: a character's pixels, a line's characters


class Step(NamedTuple):
    """What the reader sees at once."""

    backward: bool
    node: int  # the box that is filled in
    edge: tuple[int, ...]  # those that light up
    says: tuple[str, ...]  # the equation, the local derivative, the running sum
    adjoint: str  # what is in the box of the adjoint so far
    row: int  # of the table of its direction
    term: int  # of the row's sum
    done: bool  # whether the row is complete


def document(nodes: Sequence[Node], remarks: Sequence[str], title: str) -> str:
    """A self-contained page: no network, no libraries; without JavaScript, the whole at once."""
    arrows = list(edges(nodes))
    between = {arrow[:2]: number for number, arrow in enumerate(arrows)}
    steps = [*forward_steps(nodes, between), *backward_steps(nodes, between)]
    template = Template((files("jaxbp.graph.render") / "page.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=escape(title),
        drawing=_drawing(nodes, arrows, steps),
        forward=_table("f", [(line, [line.formula]) for line in forward_lines(nodes)]),
        backward=_table("b", [(backward_line(node), _terms(node)) for node in backwards(nodes)]),
        remarks="".join(f"<p>{escape(remark)}</p>" for remark in remarks),
        steps=json.dumps([step._asdict() for step in steps]).replace("<", "\\u003c"),
    )


def forward_steps(nodes: Sequence[Node], between: dict[tuple[int, int], int]) -> Iterator[Step]:
    """A step a value, in the order of computation."""
    at = {node.name: position for position, node in enumerate(nodes)}
    for position, node in enumerate(nodes):
        chain = [text for text in (node.operation, node.numbers, shown(node.value)) if text]
        says = [f"{node.name} = {chain[0]}", *(f"= {text}" for text in chain[1:])]
        lit = tuple(between[at[parent], position] for parent in node.parents)
        yield Step(False, position, lit, tuple(says), "", position, -1, True)


def backward_steps(nodes: Sequence[Node], between: dict[tuple[int, int], int]) -> Iterator[Step]:
    """A step a contribution, from the output back, with the sum that it makes."""
    at = {node.name: position for position, node in enumerate(nodes)}
    for row, node in enumerate(backwards(nodes)):
        position = at[node.name]
        if not node.contributions:
            says = f"{node.adjoint_name} = {shown(node.adjoint)}"
            yield Step(True, position, (), (says,), _shortened(says), row, -1, True)
        sums = accumulate(np.asarray(part.value) for part in node.contributions)
        for number, (part, so_far) in enumerate(zip(node.contributions, sums, strict=True)):
            done = number == len(node.contributions) - 1
            says = f"{node.adjoint_name} = {shown(so_far)}"
            lines = _said(node, part, nodes[at[part.consumer]], "+=" if number else "=")
            if number or not done:
                lines.append(says + ", so far" * (not done))
            lit = (between[position, at[part.consumer]],)
            yield Step(True, position, lit, tuple(lines), _shortened(says), row, number, done)


def _said(node: Node, part: Contribution, consumer: Node, equals: str) -> list[str]:
    """A contribution: its formula, the local derivative in it, and the numbers."""
    lines, value = [f"{node.adjoint_name} {equals} {part.formula}"], shown(part.value)
    if not part.derivative:
        return [*lines, f"= {value}"]
    slope = shown(part.slope)
    derivative = slope if part.derivative == slope else f"{part.derivative} = {slope}"
    factors = [text for text in (shown(consumer.adjoint), slope) if text != "1"] or ["1"]
    product = factors[0] if len(factors) == 1 else " × ".join(map(_factor, factors))
    if part.value.shape != consumer.value.shape:
        product = f"sum({product})"
    lines.append(f"= {value}" if product == value else f"= {product} = {value}")
    return [*lines, f"local derivative ∂{consumer.name}/∂{node.name} = {derivative}"]


def _factor(text: str) -> str:
    return f"({text})" if text.startswith("-") else text


def _terms(node: Node) -> list[str]:
    """The terms of a node's adjoint with their signs."""
    terms = [part.formula for part in node.contributions]
    return terms[:1] + [f" - {t[1:]}" if t.startswith("-") else f" + {t}" for t in terms[1:]]


def _table(prefix: str, rows: Sequence[tuple[Line, Sequence[str]]]) -> str:
    return "".join(
        f'<tr id="{prefix}{number}"><th scope="row">{escape(line.name)}</th><td>'
        + "= " * bool(line.formula)
        + "".join(f"<span>{escape(term)}</span>" for term in terms if line.formula)
        + f'</td><td class="value">= {escape(line.value)}</td></tr>'
        for number, (line, terms) in enumerate(rows)
    )


# The drawing


def _drawing(
    nodes: Sequence[Node], arrows: Sequence[tuple[int, int, str]], steps: Sequence[Step]
) -> str:
    """The graph as SVG: what the steps light up has an id, n0, n1, ... and e0, e1, ..."""
    texts = [_box_lines(node) for node in nodes]
    longest = [max(map(len, lines)) for lines in texts]
    for step in steps:  # a sum may be longer on its way than in the end
        longest[step.node] = max(longest[step.node], len(step.adjoint))
    widths = [max(length * _CHARACTER + 20, 64) for length in longest]
    placed = layout(widths, [(parent, child) for parent, child, _ in arrows])
    parts = [
        _edge(number, course, label)
        for number, (course, (*_, label)) in enumerate(zip(placed.courses, arrows, strict=True))
    ]
    parts += [
        _box(number, centre, width, lines)
        for number, (centre, width, lines) in enumerate(
            zip(placed.centres, widths, texts, strict=True)
        )
    ]
    size = f'viewBox="0 0 {placed.width:.0f} {placed.height:.0f}" width="{placed.width:.0f}"'
    least = f'style="min-width: {0.6 * placed.width:.0f}px"'  # else a phone makes it too small
    return f'<svg {size} {least} role="img" aria-label="the graph">{"".join(parts)}</svg>'


def _box_lines(node: Node) -> list[str]:
    made = f"{node.name} = {node.operation}" if node.operation else node.name
    adjoint = "" if node.adjoint is None else f"{node.adjoint_name} = {shown(node.adjoint)}"
    return [_shortened(text) for text in (made, shown(node.value), adjoint)]


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _box(number: int, centre: tuple[float, float], width: float, lines: Sequence[str]) -> str:
    x, y = centre
    kinds = ("name", "value", "adjoint")
    written = "".join(
        f'<text class="{kind}" y="{offset}">{escape(line)}</text>'
        for kind, line, offset in zip(kinds, lines, (-14, 4, 22), strict=True)
    )
    box = f'<rect x="{-width / 2:.0f}" y="-32" width="{width:.0f}" height="62" rx="8"/>'
    return (
        f'<g class="node" id="n{number}" transform="translate({x:.0f} {y:.0f})">{box}{written}</g>'
    )


def _edge(number: int, course: Sequence[tuple[float, float]], label: str) -> str:
    """A smooth line through the joints, from below the parent to above the child."""
    (x, y), *joints, (to_x, to_y) = course
    points = [(x, y + 30), *joints, (to_x, to_y - 36)]
    path = f"M{points[0][0]:.0f} {points[0][1]:.0f}"
    for (x1, y1), (x2, y2) in pairwise(points):
        middle = (y1 + y2) / 2
        path += f"C{x1:.0f} {middle:.0f} {x2:.0f} {middle:.0f} {x2:.0f} {y2:.0f}"
    (x1, y1), (x2, y2) = points[-2:]
    place = f'x="{(x1 + x2) / 2:.0f}" y="{(y1 + y2) / 2 + 4:.0f}"'
    text = f"<text {place}>{escape(_shortened(label))}</text>"
    return f'<g class="edge" id="e{number}"><path d="{path}"/>{text}</g>'
