"""The graph as a page for a browser: one file on which the reader steps through the computation."""

import json
from collections.abc import Iterator, Sequence
from html import escape
from importlib.resources import files
from itertools import accumulate, pairwise
from string import Template
from typing import NamedTuple

import numpy as np

from jaxbp.graph.nodes import Contribution, Edge, Node, edges_of, value_text
from jaxbp.graph.render.layout import layout
from jaxbp.graph.render.text import (
    Equation,
    adjoint_equation,
    backward_order,
    forward_equations,
)

_CHARACTER, _LONGEST = 7.8, 24  # of the text in boxes: a character's pixels, a line's characters


class Frame(NamedTuple):
    """The state of the page at one step of the reader."""

    backward: bool
    node: int  # the box that is filled in
    edges: tuple[int, ...]  # those that light up
    says: tuple[str, ...]  # the equation, the local derivative, the running sum
    adjoint: str  # the sum so far, in the box of the adjoint
    row: int  # of the table of its direction
    term: int  # of the row's sum, -1 where it is not a sum
    done: bool  # whether the row is complete


def to_html(nodes: Sequence[Node], remarks: Sequence[str], title: str) -> str:
    """A self-contained page without network or libraries; without JavaScript it shows all."""
    edges = edges_of(nodes)
    frames = [*forward_frames(nodes, edges), *backward_frames(nodes, edges)]
    backward = [(adjoint_equation(node), _terms(node)) for node in backward_order(nodes)]
    template = Template((files("jaxbp.graph.render") / "page.html").read_text(encoding="utf-8"))
    return template.substitute(
        title=escape(title),
        drawing=_drawing(nodes, edges, frames),
        forward=_rows("f", [(each, [each.formula]) for each in forward_equations(nodes)]),
        backward=_rows("b", backward),
        remarks="".join(f"<p>{escape(remark)}</p>" for remark in remarks),
        frames=json.dumps([frame._asdict() for frame in frames]).replace("<", "\\u003c"),
    )


def forward_frames(nodes: Sequence[Node], edges: Sequence[Edge]) -> Iterator[Frame]:
    """A frame for each value, in the order of computation."""
    into: list[list[int]] = [[] for _ in nodes]
    for index, edge in enumerate(edges):
        into[edge.child].append(index)
    for position, node in enumerate(nodes):
        sides = [text for text in (node.operation, node.numbers, value_text(node.value)) if text]
        yield Frame(
            backward=False,
            node=position,
            edges=tuple(into[position]),
            says=(f"{node.name} = {sides[0]}", *(f"= {text}" for text in sides[1:])),
            adjoint="",
            row=position,
            term=-1,
            done=True,
        )


def backward_frames(nodes: Sequence[Node], edges: Sequence[Edge]) -> Iterator[Frame]:
    """A frame for each contribution, from the output back, with the sum so far."""
    position_of = {node.name: position for position, node in enumerate(nodes)}
    index_of = {(edge.parent, edge.child): index for index, edge in enumerate(edges)}
    for row, node in enumerate(backward_order(nodes)):
        position = position_of[node.name]
        frame = Frame(
            backward=True,
            node=position,
            edges=(),
            says=(f"{node.adjoint_name} = {value_text(node.adjoint)}",),
            adjoint=_shortened(f"{node.adjoint_name} = {value_text(node.adjoint)}"),
            row=row,
            term=-1,
            done=True,
        )
        if not node.contributions:
            yield frame
        sums = accumulate(np.asarray(part.value) for part in node.contributions)
        for term, (part, so_far) in enumerate(zip(node.contributions, sums, strict=True)):
            done = term == len(node.contributions) - 1
            running = f"{node.adjoint_name} = {value_text(so_far)}"
            consumer = position_of[part.consumer]
            says = _lines_of(node, part, nodes[consumer], "=" if term == 0 else "+=")
            if not done:
                says.append(f"{running}, so far")
            elif term > 0:
                says.append(running)
            yield frame._replace(
                edges=(index_of[position, consumer],),
                says=tuple(says),
                adjoint=_shortened(running),
                term=term,
                done=done,
            )


def _lines_of(node: Node, part: Contribution, consumer: Node, equals: str) -> list[str]:
    """The equation of a contribution: its formula, its numbers, and the local derivative in it."""
    lines, value = [f"{node.adjoint_name} {equals} {part.formula}"], value_text(part.value)
    if not part.derivative:
        return [*lines, f"= {value}"]
    slope = value_text(part.slope)
    derivative = slope if part.derivative == slope else f"{part.derivative} = {slope}"
    factors = [text for text in (value_text(consumer.adjoint), slope) if text != "1"] or ["1"]
    if len(factors) > 1:
        factors = [f"({text})" if text.startswith("-") else text for text in factors]
    product = " × ".join(factors)
    if part.value.shape != consumer.value.shape:
        product = f"sum({product})"
    lines.append(f"= {value}" if product == value else f"= {product} = {value}")
    return [*lines, f"local derivative ∂{consumer.name}/∂{node.name} = {derivative}"]


def _terms(node: Node) -> list[str]:
    """The terms of a node's adjoint with their signs."""
    terms = [part.formula for part in node.contributions]
    return terms[:1] + [f" - {t[1:]}" if t.startswith("-") else f" + {t}" for t in terms[1:]]


def _rows(prefix: str, rows: Sequence[tuple[Equation, Sequence[str]]]) -> str:
    """The rows of a table; each term is a span of its own, which a frame lights up."""
    texts = []
    for index, (equation, terms) in enumerate(rows):
        spans = "".join(f"<span>{escape(term)}</span>" for term in terms)
        texts.append(
            f'<tr id="{prefix}{index}"><th scope="row">{escape(equation.name)}</th>'
            f"<td>{f'= {spans}' if equation.formula else ''}</td>"
            f'<td class="value">= {escape(equation.value)}</td></tr>'
        )
    return "".join(texts)


# The drawing


def _drawing(nodes: Sequence[Node], edges: Sequence[Edge], frames: Sequence[Frame]) -> str:
    """The graph as SVG; frames light up boxes and edges by their ids, n0, n1, ..., e0, e1, ..."""
    texts = [_box_lines(node) for node in nodes]
    longest = [max(map(len, lines)) for lines in texts]
    for frame in frames:  # a sum so far may be longer than the whole sum
        longest[frame.node] = max(longest[frame.node], len(frame.adjoint))
    widths = [max(length * _CHARACTER + 20, 64) for length in longest]
    placed = layout(widths, [(edge.parent, edge.child) for edge in edges])
    parts = [
        _edge(index, course, edge.derivative)
        for index, (course, edge) in enumerate(zip(placed.courses, edges, strict=True))
    ]
    parts += [
        _box(index, centre, width, lines)
        for index, (centre, width, lines) in enumerate(
            zip(placed.centres, widths, texts, strict=True)
        )
    ]
    size = f'viewBox="0 0 {placed.width:.0f} {placed.height:.0f}" width="{placed.width:.0f}"'
    least = f'style="min-width: {0.6 * placed.width:.0f}px"'  # else a phone makes it too small
    return f'<svg {size} {least} role="img" aria-label="the graph">{"".join(parts)}</svg>'


def _box_lines(node: Node) -> list[str]:
    equation = f"{node.name} = {node.operation}" if node.operation else node.name
    adjoint = "" if node.adjoint is None else f"{node.adjoint_name} = {value_text(node.adjoint)}"
    return [_shortened(text) for text in (equation, value_text(node.value), adjoint)]


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _box(index: int, centre: tuple[float, float], width: float, lines: Sequence[str]) -> str:
    x, y = centre
    kinds = ("name", "value", "adjoint")
    texts = "".join(
        f'<text class="{kind}" y="{offset}">{escape(line)}</text>'
        for kind, line, offset in zip(kinds, lines, (-14, 4, 22), strict=True)
    )
    box = f'<rect x="{-width / 2:.0f}" y="-32" width="{width:.0f}" height="62" rx="8"/>'
    return f'<g class="node" id="n{index}" transform="translate({x:.0f} {y:.0f})">{box}{texts}</g>'


def _edge(index: int, course: Sequence[tuple[float, float]], label: str) -> str:
    """A smooth curve through the joints, from below the parent to above the child."""
    (x, y), *joints, (to_x, to_y) = course
    points = [(x, y + 30), *joints, (to_x, to_y - 36)]
    path = f"M{points[0][0]:.0f} {points[0][1]:.0f}"
    for (x1, y1), (x2, y2) in pairwise(points):
        middle = (y1 + y2) / 2
        path += f"C{x1:.0f} {middle:.0f} {x2:.0f} {middle:.0f} {x2:.0f} {y2:.0f}"
    (x1, y1), (x2, y2) = points[-2:]
    place = f'x="{(x1 + x2) / 2:.0f}" y="{(y1 + y2) / 2 + 4:.0f}"'
    text = f"<text {place}>{escape(_shortened(label))}</text>"
    return f'<g class="edge" id="e{index}"><path d="{path}"/>{text}</g>'
