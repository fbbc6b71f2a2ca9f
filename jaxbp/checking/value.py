"""The value: whether f has the same value under differentiation as when it is called plainly.

A rule of ``jax.custom_jvp`` or ``jax.custom_vjp`` gives f's value as well as its slope.  JAX calls
the rule only where it differentiates.  So a wrong value is seen neither in plain calls of f nor in
``jax.grad`` of f, but in ``jax.value_and_grad``, and in the gradient of everything that uses f.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import jax
import numpy as np

from jaxbp.checking.comparing import norm
from jaxbp.checking.finite_differences import Leaves, magnitude
from jaxbp.checking.jaxprs import eps_of, has_custom_rules
from jaxbp.checking.leaf_verdicts import ClaimCheck
from jaxbp.checking.problem import Held, Objective, Purpose
from jaxbp.checking.verdicts import THRESHOLDS
from jaxbp.text import significant
from jaxbp.trees import named_leaves

_POINTS = 4  # a few units in the last place away, to see f's own rounding
_DIGITS, _MANY_DIGITS = 4, 12  # of the values; many if a few do not show the difference
_ROUNDINGS = 2**10  # that a value computed in another order may be off by


def wrong_value(check: ClaimCheck) -> str:
    """Say where f's value under differentiation is off by more than f's rounding, and both values.

    Empty if it is right, if f has no rule, or if the claim does not come from it.
    """
    problem = check.measurement.arithmetic.problem
    jaxpr = check.problem.tracing.jaxpr
    if not check.claim.automatic or jaxpr is None or not has_custom_rules(jaxpr):
        return ""
    both, samples = _both(problem.objective), check.measurement.samples
    plain, ruled = both(problem.leaves, problem.held)
    beside = []
    for index in range(_POINTS):
        point = check.measurement.nearby_point(Purpose.POINTS_FOR_VALUE, index, 8 * samples.eps)
        beside.append(named_leaves(both(point, problem.held)[0], "f"))
    # each leaf may be off by the rounding of all of φ, which is measured
    sigma = np.max(samples.sigma[:, 0], where=np.isfinite(samples.sigma[:, 0]), initial=0.0)
    of_phi = 16 * samples.eps * np.max(magnitude(samples)) + 4 * sigma
    share = _tolerance(check)
    under_differentiation = named_leaves(ruled, "f")
    for path, leaf in named_leaves(plain, "f").items():
        value, other = _float64(leaf), _float64(under_differentiation[path])
        gaps = [norm(_float64(each[path]) - value) for each in beside]
        rounding = max((gap for gap in gaps if np.isfinite(gap)), default=0.0)
        if not norm(other - value) <= share * norm(value) + 2 * rounding + of_phi:
            return _described(path, value, other)
    return ""


def _tolerance(check: ClaimCheck) -> float:
    """The share of a value that the same formula in another order may be off by, in the coarsest
    dtype of f and the claim; at most τ."""
    if check.given_threshold is not None:
        return check.given_threshold
    own = [value.dtype for value in check.claim.values]
    dtype = max([check.measurement.arithmetic.dtype, *own], key=eps_of)
    return float(min(THRESHOLDS[dtype.itemsize], _ROUNDINGS * eps_of(dtype)))


@lru_cache(maxsize=32)  # so that a function checked again is not compiled again
def _both(objective: Objective) -> Callable[[Leaves, Held], tuple[Any, Any]]:
    """f's value called plainly, and under differentiation."""

    @jax.jit
    def both(leaves: Leaves, held: Held) -> tuple[Any, Any]:
        results = partial(objective.results, held=held)
        return results(leaves), jax.vjp(results, leaves)[0]

    return both


def _float64(array: Any) -> np.ndarray:
    return np.asarray(array, np.float64)


def _described(path: str, plain: np.ndarray, ruled: np.ndarray) -> str:
    """Both values, at the entry where they differ most."""
    gap = np.abs(ruled - plain)
    at = np.unravel_index(np.argmax(np.where(np.isnan(gap), np.inf, gap)), gap.shape)
    place = str(list(map(int, at))) if at else ""
    texts = [
        (significant(float(ruled[at]), digits), significant(float(plain[at]), digits))
        for digits in (_DIGITS, _MANY_DIGITS)
    ]
    ours, called = texts[0] if texts[0][0] != texts[0][1] else texts[1]
    return f"under differentiation {path}{place} is {ours}, called plainly {called}"
