"""Checking: whether a gradient is the gradient, what says so, and where it is not."""

from jaxbp.checking.checker import assert_gradients, gradcheck
from jaxbp.checking.comparing import Comparison, compare
from jaxbp.checking.report import GradientReport, LeafReport

__all__ = [
    "Comparison",
    "GradientReport",
    "LeafReport",
    "assert_gradients",
    "compare",
    "gradcheck",
]
