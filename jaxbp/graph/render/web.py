"""The graph as a page for a browser: one file on which the reader steps through the computation."""

import json
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import suppress
from html import escape
from importlib.resources import files
from itertools import accumulate, pairwise
from string import Template
from typing import Any, NamedTuple, Protocol

import numpy as np

from jaxbp.graph.nodes import Contribution, Edge, Node, edges_of, rows_of, value_text
from jaxbp.graph.render.layout import Run, layout
from jaxbp.graph.render.text import (
    Equation,
    adjoint_equation,
    backward_order,
    forward_equations,
)

_CHARACTER, _LINE = 7.9, 17  # of the text in boxes: a character's width, a line's height, in pixels
_LONGEST = 30  # characters in a line of a box, where it is not a row of a matrix
_SHORT = 20  # characters in a cell of a table that is kept in one line
_MARKS = {"custom": "its derivative: the function's own rule", "jax": "its derivative: JAX's own"}
_LEAST = (420, 300)  # pixels of the drawing, so that a small graph is not blown up


class Frame(NamedTuple):
    """The state of the page at one step of the reader."""

    backward: bool
    node: int  # the box that is filled in
    edges: tuple[int, ...]  # those that light up
    says: tuple[str, ...]  # the equation, the local derivative, the running sum
    adjoint: tuple[str, ...]  # the sum so far, in lines, in the box
    row: int  # of the table of its direction
    term: int  # of the row's sum, -1 where it is not a sum
    done: bool  # whether the row is complete


class Drawn(Protocol):
    """A graph, as far as the page needs it."""

    @property
    def nodes(self) -> Sequence[Node]:
        """The nodes in the order of computation."""

    @property
    def remarks(self) -> Sequence[str]:
        """The lines below the tables."""

    def opened(self, name: str) -> "Drawn":
        """The graph of the operations inside a node."""


def to_html(graph: Drawn, title: str) -> str:
    """A self-contained page without network or libraries; without JavaScript it shows all."""
    nodes, edges = graph.nodes, edges_of(graph.nodes)
    insides = [_inside(graph, node) for node in nodes]
    frames = [*forward_frames(nodes, edges), *backward_frames(nodes, edges)]
    template = Template((files("jaxbp.graph.render") / "page.html").read_text(encoding="utf-8"))
    opened = [
        _opened(node, graph, inside, f' id="i{index}"')
        for index, (node, inside) in enumerate(zip(nodes, insides, strict=True))
    ]
    return template.substitute(
        title=escape(title),
        drawing=_drawing(nodes, edges, frames, [inside is not None for inside in insides]),
        forward=_forward_rows(nodes, "f"),
        backward=_backward_rows(nodes, "b"),
        insides="".join(opened),
        remarks="".join(f"<p>{escape(remark)}</p>" for remark in graph.remarks),
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
            says=(
                f"{node.name} = {sides[0]}",
                *(f"= {text}" for text in sides[1:]),
                *([mark_of(node)] if mark_of(node) else []),
            ),
            adjoint=(),
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
            adjoint=_adjoint_lines(node, node.adjoint),
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
                adjoint=_adjoint_lines(node, so_far),
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


def _forward_rows(nodes: Sequence[Node], ids: str = "") -> str:
    return _rows([(each, [each.formula]) for each in forward_equations(nodes)], ids)


def _backward_rows(nodes: Sequence[Node], ids: str = "") -> str:
    return _rows([(adjoint_equation(node), _terms(node)) for node in backward_order(nodes)], ids)


def _rows(rows: Sequence[tuple[Equation, Sequence[str]]], ids: str) -> str:
    """The rows of a table; each term is a span of its own, which a frame lights up."""
    texts = []
    for index, (equation, terms) in enumerate(rows):
        spans = "".join(f"<span>{escape(term)}</span>" for term in terms)
        place = f' id="{ids}{index}"' if ids else ""
        short = [" short" * (len(part) <= _SHORT) for part in equation[1:]]
        texts.append(
            f'<tr{place}><th scope="row">{escape(equation.name)}</th>'
            f'<td class="formula{short[0]}">{f"= {spans}" if equation.formula else ""}</td>'
            f'<td class="value{short[1]}">= {escape(equation.value)}</td></tr>'
        )
    return "".join(texts)


def mark_of(node: Node) -> str:
    """Whose rule a node's derivative is, where it is none of the table."""
    return _MARKS.get(node.rule, "")


def _inside(graph: Drawn, node: Node) -> Drawn | None:
    """The graph of what is inside a node, None where that is nothing, or not defined."""
    if node.inside is None:
        return None
    with suppress(TypeError, ValueError):  # outside of its domain, though its rule may not be
        return graph.opened(node.name)
    return None


def _opened(node: Node, graph: Drawn, inside: Drawn | None, place: str = "") -> str:
    """The two tables of a node's inside, to open, and those of the nodes in it.

    Forward alone where the function's own rule gives other adjoints than the operations inside.
    """
    if inside is None:
        return ""
    equation = escape(f"{node.name} = {node.operation}")
    backward = _backward_rows(inside.nodes)
    if not _agrees(node, graph, inside):
        backward = "<tr><td>its own rule has other adjoints than the operations inside</td></tr>"
    tables = "".join(
        f"<h3>{title}</h3><table>{rows}</table>"
        for title, rows in (("forward", _forward_rows(inside.nodes)), ("backward", backward))
        if rows
    )
    more = "".join(_opened(each, inside, _inside(inside, each)) for each in inside.nodes)
    return f"<details{place}><summary>inside {equation}</summary>{tables}{more}</details>"


def _agrees(node: Node, graph: Drawn, inside: Drawn) -> bool:
    """Whether the adjoints at the arguments of a node's inside are what the node passes on."""
    shares: dict[str, list[Any]] = {each.name: [] for each in graph.nodes}
    for parent in graph.nodes:
        shares[parent.name] += [p.value for p in parent.contributions if p.consumer == node.name]
    arguments = [each for each in inside.nodes if shares.get(each.name) and not each.operation]
    return all(
        each.adjoint is not None
        and np.allclose(sum(shares[each.name]), each.adjoint, rtol=1e-5, atol=1e-7)
        for each in arguments
    )


# The drawing


class Box(NamedTuple):
    """The lines of a node's box, and its size."""

    lines: dict[str, tuple[str, ...]]  # by what they say: name, value, adjoint
    width: float
    height: float
    rims: tuple[int, ...]  # how far each outline is inside the box


def _drawing(
    nodes: Sequence[Node], edges: Sequence[Edge], frames: Sequence[Frame], opens: Sequence[bool]
) -> str:
    """The graph as SVG; frames light up boxes and edges by their ids, n0, n1, ..., e0, e1, ..."""
    sums: list[list[tuple[str, ...]]] = [[()] for _ in nodes]
    for frame in frames:
        sums[frame.node].append(frame.adjoint)
    boxes = list(map(_box, nodes, sums, opens))
    labels = [_shortened(edge.derivative) for edge in edges]
    placed = layout(
        [box.width for box in boxes],
        [(edge.parent, edge.child) for edge in edges],
        [box.height for box in boxes],
        [len(label) * _CHARACTER + 8 if label else 0 for label in labels],
    )
    parts = [
        _edge(index, *parts)
        for index, parts in enumerate(zip(placed.courses, placed.labels, labels, strict=True))
    ]
    parts += [
        _drawn(index, *parts)
        for index, parts in enumerate(zip(nodes, boxes, placed.centres, strict=True))
    ]
    width, height = max(placed.width, _LEAST[0]), max(placed.height, _LEAST[1])
    left, top = (placed.width - width) / 2, (placed.height - height) / 2
    given = ", ".join(node.name for node in nodes if not node.operation)
    says = f"graph of {len(nodes)} nodes, made of {given}; the tables say the same"
    return (
        f'<svg viewBox="{left:.0f} {top:.0f} {width:.0f} {height:.0f}" role="img" '
        f'aria-label="{escape(says)}">{"".join(parts)}</svg>'
    )


def _box(node: Node, sums: Sequence[tuple[str, ...]], opens: bool) -> Box:
    """A node's box, with room for each of the sums, the last of which is the whole adjoint.

    It has two outlines where something is inside, or the derivative is of no rule of the table.
    """
    name = f"{node.name} = {node.operation}" if node.operation else node.name
    rows = max(map(len, sums))
    lines = {
        "name": (_shortened(name),),
        "value": _value_lines("", node.value),
        "adjoint": (*sums[-1], *[""] * (rows - len(sums[-1]))),
    }
    longest = max(len(line) for each in (*lines.values(), *sums) for line in each)
    rims = (0, 4) if opens or mark_of(node) else (0,)
    width = max(longest * _CHARACTER + 20, 64) + 2 * rims[-1]
    return Box(lines, width, sum(map(len, lines.values())) * _LINE + 12 + 2 * rims[-1], rims)


def _adjoint_lines(node: Node, adjoint: Any) -> tuple[str, ...]:
    return _value_lines(f"{node.adjoint_name} = ", adjoint)


def _value_lines(name: str, value: Any) -> tuple[str, ...]:
    """name = value in lines, one for each row of a small matrix."""
    rows = rows_of(value)
    if len(rows) < 2:
        return tuple(textwrap.wrap(name + value_text(value), _LONGEST, subsequent_indent="  "))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [" ".join(map(str.rjust, row, widths)) for row in rows]
    return (*([name.rstrip()] if name else []), *(f"[{line}]" for line in lines))


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def _drawn(index: int, node: Node, box: Box, centre: tuple[float, float]) -> str:
    """A box; its outer outline is broken where the derivative is of no rule of the table."""
    x, y = centre
    texts, top = "", 16 + box.rims[-1] - box.height / 2
    for kind, lines in box.lines.items():
        spans = "".join(
            f'<tspan x="0" y="{top + row * _LINE:.0f}">{escape(line)}</tspan>'
            for row, line in enumerate(lines)
        )
        texts += f'<text class="{kind}">{spans}</text>'
        top += len(lines) * _LINE
    outlines = "".join(
        f'<rect x="{rim - box.width / 2:.1f}" y="{rim - box.height / 2:.1f}" '
        f'width="{box.width - 2 * rim:.1f}" height="{box.height - 2 * rim:.1f}" rx="8"/>'
        for rim in box.rims
    )
    marked = " marked" if mark_of(node) else ""
    place = f'transform="translate({x:.1f} {y:.1f})"'
    return f'<g class="node{marked}" id="n{index}" {place}>{outlines}{texts}</g>'


def _edge(index: int, course: Sequence[Run], place: tuple[float, float], label: str) -> str:
    """Straight runs and the curves between them, with a head at the child."""
    path = f"M{course[0].x:.1f} {course[0].top:.1f}"
    for run, then in pairwise(course):
        middle = (run.bottom + then.top) / 2
        curve = f"C{run.x:.1f} {middle:.1f} {then.x:.1f} {middle:.1f} {then.x:.1f} {then.top:.1f}"
        path += f"V{run.bottom:.1f}{curve}"
    x, y = course[-1].x, course[-1].bottom
    head = f'<path class="head" d="M{x:.1f} {y:.1f}l-4 -9h8z"/>'
    text = f'<text x="{place[0]:.1f}" y="{place[1] + 4.5:.1f}">{escape(label)}</text>'
    return (
        f'<g class="edge" id="e{index}"><path d="{path}V{y - 5:.1f}"/>{head}'
        f"{text if label else ''}</g>"
    )
