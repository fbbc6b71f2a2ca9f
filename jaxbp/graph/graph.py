"""The computation graph of a function at a point: forward and backward, as on paper."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.core import jaxpr_as_fun
from jax.typing import ArrayLike

from jaxbp.graph.cost import Cost, cost_of
from jaxbp.graph.domain import check_domain, check_is_real, notes
from jaxbp.graph.nodes import Node, names_of, nodes_of
from jaxbp.graph.render import latex, mermaid_dot, web
from jaxbp.graph.render.text import backward_equations, forward_equations, to_text
from jaxbp.graph.reverse import (
    Received,
    Traced,
    adjoints,
    check_steps,
    gradient_trees,
    trace_arguments,
)
from jaxbp.text import Table, html


@dataclass(frozen=True, eq=False, repr=False)
class Graph:
    """A function's values at a point, and their adjoints; ``graph["a"]`` is the node named a.

    ``print(graph)`` shows two tables, forward (name = operation = value) and backward (adjoint =
    sum of adjoint × local derivative = value), the cost, and notes where a derivative is not the
    one a reader might expect.
    """

    nodes: tuple[Node, ...]  # in the order of computation, arguments first
    output: str  # the name of the node that the function returns
    notes: tuple[str, ...]
    traced: Traced
    names: tuple[str, ...]  # of the recording's steps, "" for a number
    found: tuple[Array | None, ...] | None  # every step's adjoint

    def __getitem__(self, name: str) -> Node:
        """The node of that name; raises KeyError with the names there are."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(f"{name!r}: expected one of {', '.join(node.name for node in self.nodes)}")

    def backward(self, cotangent: ArrayLike = 1) -> "Graph":
        """This graph with the adjoints for another cotangent, the adjoint of the output.

        The cotangent has the output's shape; a graph whose output is one number has the adjoints
        for the cotangent 1 already.  Raises ValueError if the shape is another.

        >>> trace(lambda x, z: x * z, 2.0, 3.0).backward(10)["x"].adjoint.item()
        30.0
        """
        y = self[self.output].value
        if np.shape(cotangent) != y.shape:
            got = np.shape(cotangent)
            raise ValueError(f"cotangent: got shape {got}, expected {y.shape}, {self.output}'s")
        with jax.enable_x64(self.traced.float64):
            return graph_of(self.traced, jnp.asarray(cotangent, y.dtype))

    def opened(self, name: str) -> "Graph":
        """The graph of what is inside the node of that name: of a function with a rule of its own.

        Its arguments are the node's operands, and its output has the node's adjoint.  Where the
        rule contradicts the function, the operands' adjoints are not those of the closed node.
        Raises KeyError for a name that there is not, ValueError for a node with nothing inside.

        >>> print(trace(jax.nn.relu, 0.5).opened("y").nodes[-1].operation)
        max(x, 0)
        """
        node = self[name]
        if node.inside is None:
            raise ValueError(f"{name} = {node.operation}: has nothing inside")
        steps, names = self.traced.recording.steps, self.names
        step = steps[names.index(name)]
        inside, output = jaxpr_as_fun(node.inside), step.params.get("output", 0)
        values = [steps[operand].value for operand in step.operands]
        given = [i for i, operand in enumerate(step.operands) if names[operand]]

        def function(*operands: Any) -> Any:
            inputs = list(values)
            for i, operand in zip(given, operands, strict=True):
                inputs[i] = operand
            return inside(*inputs)[output]

        with jax.enable_x64(self.traced.float64):
            called = [names[step.operands[i]] for i in given]
            traced = trace_arguments(function, tuple(values[i] for i in given), called)
            return graph_of(traced, node.adjoint)

    @property
    def gradients(self) -> tuple[Any, ...]:
        """The adjoints of f's arguments: a tree for each, with None for a leaf of whole numbers.

        Raises ValueError where ``backward`` has to be given the adjoint of the output first.
        """
        if self.found is None:
            raise ValueError(_needs_cotangent(self[self.output]))
        return gradient_trees(self.traced, self.found)

    @cached_property
    def cost(self) -> Cost:
        """The operations forward and backward, counted."""
        with jax.enable_x64(self.traced.float64):
            return cost_of(self.traced.recording)

    def text(self, width: int = 100) -> str:
        """Both tables, the cost and the notes, in lines of at most width columns (24 at least)."""
        return to_text(self.nodes, self.remarks, width)

    def __str__(self) -> str:
        return self.text()

    def __repr__(self) -> str:
        arguments = ", ".join(self.traced.names)
        return f"<Graph of {self.output} by {arguments}, {len(self.nodes)} nodes>"

    def _repr_html_(self) -> str:
        tables = [
            Table(("forward", "=", "="), forward_equations(self.nodes)),
            Table(("backward", "=", "="), backward_equations(self.nodes)),
        ]
        return "".join(html(table) for table in tables if table.rows)

    @property
    def remarks(self) -> tuple[str, ...]:
        """The lines below the tables: the cost and the dtype of the output, and the notes."""
        dtype = f"in {self[self.output].value.dtype}"
        if self.found is None:
            return (f"{_needs_cotangent(self[self.output])}; {dtype}", *self.notes)
        return (f"{self.cost}; {dtype}", *self.notes)

    def to_mermaid(self) -> str:
        """A flowchart for Mermaid, with the local derivatives on its edges."""
        return mermaid_dot.to_mermaid(self.nodes)

    def to_dot(self) -> str:
        """A digraph for Graphviz, with the local derivatives on its edges."""
        return mermaid_dot.to_dot(self.nodes)

    def to_latex(self) -> str:
        """The equations, forward and backward, each an ``align*`` for a document with amsmath."""
        return latex.to_latex(self.nodes)

    def to_html(
        self,
        path: str | os.PathLike[str],
        *,
        title: str = "Computation graph",
        overwrite: bool = False,
    ) -> None:
        """Write one self-contained page on which the reader steps forward and backward.

        The arrow keys, Home and End work as its buttons do.  Raises FileExistsError rather than
        overwrite a file, unless ``overwrite=True``.
        """
        with jax.enable_x64(self.traced.float64):
            page = web.to_html(self, title).encode()
        with Path(path).open("wb" if overwrite else "xb") as file:
            file.write(page)


def trace(f: Callable[..., Any], *args: Any, names: Sequence[str] | None = None) -> Graph:
    """The computation graph of f at these arguments.

    f is any JAX function of real numbers, vectors, matrices, or trees of them, that returns one
    array; a Python int is taken as a real number, and integer arrays have no adjoint.  Nested jit,
    conditionals and loops are replaced by the operations inside them; a function with a derivative
    rule of its own is one node, and its rule is followed; a value that is computed twice is one
    node.  ``named`` names a node, and ``names`` the arguments' leaves, which otherwise have the
    names that f gives them.

    Raises TypeError if f is not a function, or its output or an argument is not real;
    ``DomainError`` if the output is not finite, at the node where that happens; and ``NoRuleError``
    for a primitive that has no derivative in JAX either (``define_rule`` gives it one), and for
    numbers made of the bits of one that varies.

    >>> graph = trace(lambda x, z: jnp.exp(x * z) + x * z, 2.0, 0.5)
    >>> [(node.name, node.operation, round(node.value.item(), 3)) for node in graph.nodes[2:]]
    [('a', 'x·z', 1.0), ('b', 'exp(a)', 2.718), ('y', 'b + a', 3.718)]
    >>> graph["a"].adjoint_name, graph["a"].formula, round(graph["a"].adjoint.item(), 3)
    ('ga', 'gb·b + gy', 3.718)
    """
    traced = trace_arguments(f, args, names)
    for name, step in zip(traced.names, traced.recording.steps, strict=False):
        if isinstance(step.value, jax.core.Tracer):
            raise TypeError(
                f"{name}: got a traced value, expected numbers: a graph shows them, so it is made "
                "outside of jit, vmap and grad (jaxbp.graph.grad works inside)"
            )
    y = traced.recording.steps[traced.recording.output].value
    return graph_of(traced, None if y.shape else 1)


def graph_of(traced: Traced, cotangent: ArrayLike | None = 1, *, terse: bool = False) -> Graph:
    """The graph of a recorded function.

    traced: the function.
    cotangent: the adjoint of its output; 1 unless given, None where it is not known.
    terse: whether formulas leave out the output's adjoint, which is 1, and adjoints of 0 are not
        written; False unless given.
    """
    recording = traced.recording
    check_steps(recording)
    names = names_of(traced)
    check_is_real(recording, names)
    found: list[Array | None] = [None] * len(recording.steps)
    received: list[list[Received]] = [[] for _ in recording.steps]
    if cotangent is not None:
        y = recording.steps[recording.output].value
        found, received = adjoints(recording, jnp.full_like(y, cotangent))
    terse_of = recording.output if terse else None
    nodes = nodes_of(recording.steps, names, found, received, terse_of)
    check_domain(recording, nodes)
    return Graph(
        nodes=tuple(node for node in nodes if node),
        output=names[recording.output],
        notes=notes(recording, nodes, found, received),
        traced=traced,
        names=tuple(names),
        found=None if cotangent is None else tuple(found),
    )


def _needs_cotangent(output: Node) -> str:
    return (
        f"{output.name} has shape {output.value.shape}: backward needs its adjoint, an array of "
        "that shape, as in graph.backward(cotangent)"
    )
