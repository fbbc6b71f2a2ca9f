"""The graph for programs that draw: Mermaid, and DOT for Graphviz."""

from collections.abc import Iterator, Sequence

from jaxbp.graph.nodes import Node, shown


def edges(nodes: Sequence[Node]) -> Iterator[tuple[int, int, str]]:
    """From parent to child, by position, with the local derivative, "" where there is none."""
    at = {node.name: position for position, node in enumerate(nodes)}
    for position, node in enumerate(nodes):
        for parent in node.parents:
            parts = [p for p in nodes[at[parent]].contributions if p.consumer == node.name]
            yield at[parent], position, " + ".join(p.derivative for p in parts if p.derivative)


def caption(node: Node) -> list[str]:
    """What stands in a node's box: the value, and below it the adjoint."""
    operation = f" = {node.operation}" if node.operation else ""
    lines = [f"{node.name}{operation} = {shown(node.value)}"]
    if node.adjoint is not None:
        lines.append(f"{node.adjoint_name} = {shown(node.adjoint)}")
    return lines


def to_mermaid(nodes: Sequence[Node]) -> str:
    """A flowchart for Mermaid, which GitHub and many notebooks draw."""
    captions = ["<br>".join(map(_for_mermaid, caption(node))) for node in nodes]
    boxes = [f'  n{position}["{text}"]' for position, text in enumerate(captions)]
    arrows = [
        f"  n{parent} -->" + f'|"{_for_mermaid(label)}"|' * bool(label) + f" n{child}"
        for parent, child, label in edges(nodes)
    ]
    return "\n".join(["flowchart TB", *boxes, *arrows])


def to_dot(nodes: Sequence[Node]) -> str:
    """A digraph for Graphviz."""
    captions = ["\\n".join(map(_for_dot, caption(node))) for node in nodes]
    boxes = [f'  n{position} [label="{text}"];' for position, text in enumerate(captions)]
    arrows = [
        f'  n{parent} -> n{child} [label="{_for_dot(label)}"];'
        for parent, child, label in edges(nodes)
    ]
    return "\n".join(["digraph {", "  node [shape=box];", *boxes, *arrows, "}"])


def _for_mermaid(text: str) -> str:
    """Its characters as entities where Mermaid, or the page around it, would read them."""
    return "".join(f"#{ord(c)};" if c in '"#<>&`*_' else c for c in text)


def _for_dot(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
