"""The checker of gradients: whether a gradient is right, how that is known, and where it is wrong.

To be read in this order; each file answers one question:

1. ``problem``: which scalar function of which leaves is checked, and which gradient is claimed
2. ``black_box``: how a function is called that JAX cannot trace
3. ``finite_differences``: how a slope is measured by values alone, with an error bar
4. ``measurement``: which slopes are measured, at a point, and in which arithmetic
5. ``verdicts``: when a claimed slope agrees with a measured one
6. ``jaxprs``: what a traced function shows: its dtypes, constants and rules, and whether it varies
7. ``rounded_products``: what a gradient becomes where float32 products keep fewer digits
8. ``comparing``: how far two gradient trees are apart (``compare``)
9. ``leaf_verdicts``: what else could explain a difference: rounding, a kink, an insensitive leaf
10. ``value``: whether f has another value under differentiation, by a rule of its own
11. ``diagnosis``: where a failing gradient is wrong, and which simple mistake looks like it
12. ``checker``: all of this in order (``gradcheck``, ``assert_gradients``)
13. ``report``: the result, and how it prints itself
14. ``taylor``: a second opinion, by the order of Taylor's remainders (``taylor_test``)
"""

from jaxbp.checking.checker import assert_gradients, gradcheck
from jaxbp.checking.comparing import Comparison, compare
from jaxbp.checking.finite_differences import central_difference
from jaxbp.checking.report import GradientReport, LeafReport
from jaxbp.checking.rounded_products import with_rounded_products
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
    "with_rounded_products",
]
