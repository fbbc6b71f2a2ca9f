"""Checking: whether a gradient is the gradient, what says so, and where it is not."""

from jaxbp.checking.checker import assert_gradients, gradcheck
from jaxbp.checking.comparing import Comparison, compare
from jaxbp.checking.finite_differences import central_difference
from jaxbp.checking.report import GradientReport, LeafReport
from jaxbp.checking.taylor import TaylorReport, taylor_test

__all__ = [
    "Comparison",
    "GradientReport",
    "LeafReport",
    "TaylorReport",
    "assert_gradients",
    "central_difference",
    "compare",
    "gradcheck",
    "taylor_test",
]
