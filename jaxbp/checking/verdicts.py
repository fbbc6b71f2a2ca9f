"""Verdicts: what a measured slope says of a claimed one.

Along each direction d a slope m with an error bar e was measured, and c = ⟨gradient, d⟩ is claimed.
With s, the size that such a slope has in this leaf, and the relative threshold τ:

    pass            |c - m| ≤ τ s, e ≤ 10 τ s   it is right, and were it wrong it would show
    fail            |c - m| - e > τ s           it is wrong by more than τ, whatever the error
    inconclusive    neither

Before it says fail, three excuses are heard.  A kink beside the point spoils large steps only: a
claim that any finer step bears out is not failed.  A kink at the point has a slope on either side:
a claim between the two is a subgradient.  And a measurement that has not converged, or that the
next finer step does not confirm, proves nothing.
"""

from typing import Literal, NamedTuple

import numpy as np

from jaxbp.checking.finite_differences import RATIO, Ladder, Slopes, rounding_bar

Verdict = Literal["pass", "fail", "inconclusive"]

#: τ by the coarser of two resolutions, the function's and the claim's, in bytes a number
THRESHOLDS = {8: 1e-6, 4: 1e-4, 2: 3e-2}
_TELLING = 10.0  # times τ: agreement is worth something up to such an error bar
_NEGLIGIBLE = 1e-6  # of |f|: a slope of zero is believed when it is known so well
_ORDER_RUNGS = 3  # a Taylor remainder's order is read off so many of its smallest rungs


class Judgement(NamedTuple):
    """Of each direction (N,)."""

    discrepancy: np.ndarray  # how far the claim is from the slope, or from the slopes of a kink
    passed: np.ndarray
    failed: np.ndarray
    kinked: np.ndarray  # the slopes to the right and to the left differ
    subgradient: np.ndarray  # the claim lies between them


def worst(verdicts: list[Verdict]) -> Verdict:
    """fail before inconclusive before pass; nothing at all has passed."""
    return next((v for v in ("fail", "inconclusive") if v in verdicts), "pass")


def judge(
    claimed: np.ndarray, ladder: Ladder, slopes: Slopes, scale: float, threshold: float
) -> Judgement:
    """Hold the claimed slopes (N,) of one leaf against the measured ones."""
    tolerance = threshold * scale
    kinked = (np.abs(slopes.jump) > 3 * slopes.jump_error) & (np.abs(slopes.jump) > tolerance)
    aside = np.abs(claimed - slopes.value)
    discrepancy = np.where(kinked, np.maximum(0, aside - np.abs(slopes.jump) / 2), aside)
    zero = (claimed == 0) & (slopes.value - slopes.error <= 0) & (slopes.value + slopes.error >= 0)
    negligible = zero & (slopes.error <= _NEGLIGIBLE * _magnitude(ladder))
    borne_out = _borne_out(claimed, ladder, discrepancy, tolerance)
    return Judgement(
        discrepancy=discrepancy,
        passed=negligible | (discrepancy <= tolerance) & (slopes.error <= _TELLING * tolerance),
        failed=(discrepancy - slopes.error > tolerance)
        & slopes.converged
        & (discrepancy > 4 * _bar_below(ladder, slopes))
        & ~borne_out,
        kinked=kinked,
        subgradient=kinked & (discrepancy <= slopes.error),
    )


def _bar_below(ladder: Ladder, slopes: Slopes) -> np.ndarray:
    """The rounding on the rung below the one chosen: what is wrong shows there as well."""
    below = np.minimum(np.searchsorted(-ladder.steps, -slopes.step) + 1, len(ladder.steps) - 1)
    return np.asarray(rounding_bar(ladder)[np.arange(len(below)), below])


def _magnitude(ladder: Ladder) -> np.ndarray:
    """What |f| is around the point: a minimum may be zero itself."""
    around = np.hstack([array[:, 1:3] for array in (ladder.plus, ladder.minus)])
    around = np.where(np.isfinite(around), np.abs(around), 0)
    return np.asarray(np.maximum(np.abs(ladder.center), np.max(around, axis=1)))


def _borne_out(
    claimed: np.ndarray, ladder: Ladder, discrepancy: np.ndarray, tolerance: float
) -> np.ndarray:
    """Whether on some rung, fine enough to tell, the difference is the claimed slope but for
    rounding: what larger steps say is then the work of a kink that they step over."""
    with np.errstate(all="ignore"):
        differences = (ladder.plus - ladder.minus) / (2 * ladder.steps)
        bar = rounding_bar(ladder)
        telling = bar < discrepancy[:, None] / 4
        agrees = np.abs(differences - claimed[:, None]) <= bar + tolerance
    return np.asarray(np.any(telling & agrees, axis=1))


class Order(NamedTuple):
    """How fast Taylor's remainders shrink with t along each direction (N,).

    nan where a remainder is nowhere above the floor of rounding: there it is as good as zero.
    """

    first: np.ndarray  # of |f(x + td) - f(x)|: 1 for any differentiable function
    second: np.ndarray  # of |f(x + td) - f(x) - t c|: 2 if the claimed slope c is right, 1 if not


def taylor_order(claimed: np.ndarray, ladder: Ladder, tolerance: float) -> Order:
    """The observed orders; what is below rounding, or below the tolerance times t, is floor."""
    t = ladder.steps
    with np.errstate(all="ignore"):
        right, left = ladder.plus - ladder.center[:, None], ladder.minus - ladder.center[:, None]
        linear = t * claimed[:, None]
        first = np.maximum(np.abs(right), np.abs(left))
        second = np.maximum(np.abs(right - linear), np.abs(left + linear))
    floor = 4 * t * rounding_bar(ladder)
    return Order(observed_order(first, floor), observed_order(second, floor + 2 * t * tolerance))


def observed_order(remainders: np.ndarray, floor: np.ndarray) -> np.ndarray:
    """The slope of log remainder against log t where it meets the floor, (N,) from (N, T).

    Of the last few rungs above the floor the steepest counts: a remainder that falls away faster
    still, as where a kink is left behind, is at least as good.
    """
    orders = np.full(len(remainders), np.nan)
    for line, (remainder, lowest) in enumerate(zip(remainders, floor, strict=True)):
        known = np.isfinite(remainder)
        above = np.flatnonzero(known & (remainder > lowest))
        if len(above):
            last = above[-1]
            clipped = np.maximum(remainder, lowest)[max(0, last - _ORDER_RUNGS + 1) : last + 2]
            orders[line] = np.max(np.log(clipped[:-1] / clipped[1:]), initial=0) / np.log(RATIO)
    return orders


def taylor_verdict(order: Order) -> Verdict:
    """Second order, or a remainder nowhere above the floor, bears the claim out."""
    second = order.second[~np.isnan(order.second)]
    if np.isnan(order.first).all() and not len(second):
        return "inconclusive"  # f does not visibly change
    if not len(second) or np.min(second) >= 1.7:
        return "pass"
    return "fail" if np.min(second) <= 1.3 else "inconclusive"
