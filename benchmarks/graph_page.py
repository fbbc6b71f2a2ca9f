"""How long does a graph's page take to draw, and is that linear in the number of its nodes?

    python -m benchmarks.graph_page [--output results.json] [--short | --quick]
    python -m benchmarks.graph_page --table results.json

Seconds of ``Graph.to_html``, and of ``graph.trace``: of a chain of four nodes a link, whose
arguments are used in every link, and of one sum of many terms.
"""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import protocol
from jaxbp import graph

NODES = (300, 600, 1200)


def chain(nodes: int) -> Callable[..., Any]:
    """A chain of tanh(w·x + k·w), four nodes a link."""

    def f(x: Any, w: Any) -> Any:
        for k in range(nodes // 4):
            x = jnp.tanh(w * x + (k + 2) * w)
        return x

    return f


def wide(nodes: int) -> Callable[..., Any]:
    """A sum of w·sin(k·x), four nodes a term."""
    return lambda x, w: sum(w * jnp.sin(k * x) for k in range(2, 2 + nodes // 4))


SHAPES = {"chain": chain, "sum": wide}


def measured(cell: tuple[str, int]) -> dict[str, Any]:
    """The seconds of one graph."""
    shape, nodes = cell
    f = SHAPES[shape](nodes)
    with jax.enable_x64(True):
        traced = graph.trace(f, 0.3, 0.9)
        with tempfile.TemporaryDirectory() as folder:
            page = Path(folder, "page.html")
            contenders = {
                "page": protocol.Contender(lambda: traced.to_html(page, overwrite=True)),
                "trace": protocol.Contender(lambda: graph.trace(f, 0.3, 0.9)),
            }
            entries = protocol.timed(contenders, rounds=9, at_most_seconds=30)
    seconds = {name: entry["seconds"]["median"] for name, entry in entries.items()}
    return {"shape": shape, "nodes": len(traced.nodes), "seconds": seconds}


COLUMNS = ("graph", "nodes", "page", "page, a node", "trace")
EXPLANATION = """\
Seconds in the median of interleaved calls. Tracing computes the function and its gradient operation
by operation."""


def markdown(result: Mapping[str, Any]) -> str:
    """A line a graph."""
    lines = []
    for cell in result["cells"]:
        page, trace = cell["seconds"]["page"], cell["seconds"]["trace"]
        texts = f"{page:.2f} s", f"{1e3 * page / cell['nodes']:.2f} ms", f"{trace:.2f} s"
        lines.append(protocol.line(cell["shape"], f"{cell['nodes']:,}", *texts))
    return protocol.table(COLUMNS, lines, EXPLANATION)


def measure(run: protocol.Run) -> dict[str, Any]:
    """Draw the graphs, and print the table."""
    sizes = protocol.extent(run, NODES, NODES[::2], (24,))
    wanted = [(shape, nodes) for shape in SHAPES for nodes in sizes]
    result = {"cells": run.kept(run.cells(wanted, measured))}
    protocol.show(markdown(result))
    return result


if __name__ == "__main__":
    protocol.command(__doc__, measure, markdown)
