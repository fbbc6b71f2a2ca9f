"""Computation graphs: forward and backward on paper, for any function.

Read ``rules``, the table of local derivatives, and ``reverse``, which is all of reverse mode; a
function becomes a list of operations in ``recording``, and ``computation`` has the graph.
"""

from jaxbp.graph.cost import Cost
from jaxbp.graph.domain import DomainError
from jaxbp.graph.graph import Graph, trace
from jaxbp.graph.nodes import Contribution, Node
from jaxbp.graph.recording import named
from jaxbp.graph.reverse import NoRuleError, grad
from jaxbp.graph.rules import RULES, define_rule

__all__ = [
    "RULES",
    "Contribution",
    "Cost",
    "DomainError",
    "Graph",
    "NoRuleError",
    "Node",
    "define_rule",
    "grad",
    "named",
    "trace",
]
