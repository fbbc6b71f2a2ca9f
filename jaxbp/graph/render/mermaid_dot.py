"""The graph for programs that draw: Mermaid, and DOT for Graphviz."""

from collections.abc import Sequence

from jaxbp.graph.nodes import Node, edges_of, value_text


def to_mermaid(nodes: Sequence[Node]) -> str:
    """A flowchart for Mermaid, which GitHub and many notebooks draw."""
    captions = ["<br>".join(map(_for_mermaid, _caption(node))) for node in nodes]
    boxes = [f'  n{position}["{text}"]' for position, text in enumerate(captions)]
    arrows = []
    for edge in edges_of(nodes):
        label = f'|"{_for_mermaid(edge.derivative)}"|' if edge.derivative else ""
        arrows.append(f"  n{edge.parent} -->{label} n{edge.child}")
    return "\n".join(["flowchart TB", *boxes, *arrows])


def to_dot(nodes: Sequence[Node]) -> str:
    """A digraph for Graphviz."""
    captions = ["\\n".join(map(_for_dot, _caption(node))) for node in nodes]
    boxes = [f'  n{position} [label="{text}"];' for position, text in enumerate(captions)]
    arrows = [
        f'  n{edge.parent} -> n{edge.child} [label="{_for_dot(edge.derivative)}"];'
        for edge in edges_of(nodes)
    ]
    return "\n".join(["digraph {", "  node [shape=box];", *boxes, *arrows, "}"])


def _caption(node: Node) -> list[str]:
    """The lines in a node's box: the value, and below it the adjoint."""
    operation = f" = {node.operation}" if node.operation else ""
    lines = [f"{node.name}{operation} = {value_text(node.value)}"]
    if node.adjoint is not None:
        lines.append(f"{node.adjoint_name} = {value_text(node.adjoint)}")
    return lines


def _for_mermaid(text: str) -> str:
    """The text with entities for the characters that Mermaid, or a page around it, would read."""
    return "".join(f"#{ord(c)};" if c in '"#<>&`*_' else c for c in text)


def _for_dot(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
