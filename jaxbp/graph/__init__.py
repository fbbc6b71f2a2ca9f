"""Computation graphs: forward and backward as on paper, for any function.  Read ``rules``, the
table of local derivatives (with ``rules_of_products`` and ``rules_of_moves``), and ``reverse``,
which is all of reverse mode; then ``recording``, where a function becomes a list of steps, and
``closed``, for functions with a derivative rule of their own and primitives without one of ours;
``symbols``, where a rule becomes a formula, ``formulas``, where a closed step does, ``nodes``,
where steps get names and formulas, and ``graph``, which puts them together; ``networks`` is
the page of a network in the lectures' names; last ``cost``, ``domain`` for errors and notes, and
``render`` for pictures.
"""

from jaxbp.graph.closed import operation
from jaxbp.graph.cost import Cost
from jaxbp.graph.domain import DomainError
from jaxbp.graph.graph import Graph, trace
from jaxbp.graph.networks import trace_network
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
    "operation",
    "trace",
    "trace_network",
]
