"""Verdicts on slopes: whether a claimed slope agrees with the measured one.

Along each direction d a slope m with an error bar e was measured, and c = ⟨gradient, d⟩ is claimed.
With s, the size that such a slope has in this leaf, and the relative threshold τ:

    pass            |c - m| ≤ τ s, e ≤ 10 τ s   it is right, and were it wrong it would show
    fail            |c - m| - e > τ s           it is wrong by more than τ, whatever the error
    inconclusive    neither

Before the verdict is fail, three other explanations are ruled out.  A kink beside the point spoils
large steps only: a claim that some smaller step confirms does not fail.  A kink at the point has a
slope on either side: a claim between the two is a subgradient.  And a measurement that has not
converged, or that the next smaller step does not confirm, proves nothing.

A claim made with rounded products (``jaxbp.checking.rounded_products``) is off by something between
two bounds, l ≤ 0 ≤ u.  Then c is the slope nearest to m of those between c - u and c - l: to pass,
by what the bounds usually are, and e + (u - l)/2 must be at most 10 τ s; to fail, by what they may
be at the utmost.
"""

from typing import Literal, NamedTuple

import numpy as np

from jaxbp.checking.finite_differences import RATIO, Samples, Slopes, magnitude, rounding_bar

Verdict = Literal["pass", "fail", "inconclusive"]

#: τ by the coarser of two dtypes, that of the function and that of the claim, in bytes a number
THRESHOLDS = {8: 1e-6, 4: 1e-4, 2: 3e-2, 1: 0.5}
TELLING = 10.0  # times τ: up to such an error bar, agreement counts as evidence
NEGLIGIBLE = 1e-6  # of |f|: a slope of zero counts as measured with such an error bar
_ORDER_STEPS = 3  # from which the order of a Taylor remainder is read, its smallest


class Rounding(NamedTuple):
    """How much too large rounded products may make claimed slopes (N,); nothing unless given."""

    lower: np.ndarray | float = 0.0  # usually between this, negative,
    upper: np.ndarray | float = 0.0  # and this
    lowest: np.ndarray | float = 0.0  # at the utmost, where units at their kinks switch as well
    highest: np.ndarray | float = 0.0

    def take(self, rows: slice) -> "Rounding":
        """The bounds of some of the slopes."""
        return Rounding(*(np.asarray(bound)[rows] for bound in self))

    @property
    def half_width(self) -> np.ndarray | float:
        """How far slopes may be off unseen."""
        return (self.upper - self.lower) / 2


NO_ROUNDING = Rounding()


class Agreement(NamedTuple):
    """Claimed and measured slope compared along each direction (N,)."""

    explained: np.ndarray  # the part of c - m that may be the rounding of the claim's products
    discrepancy: np.ndarray  # how far the rest is from the slope, or from the slopes of a kink
    passed: np.ndarray
    failed: np.ndarray
    kinked: np.ndarray  # the slopes to the right and to the left differ
    subgradient: np.ndarray  # the claim lies between them


def worst_verdict(verdicts: list[Verdict]) -> Verdict:
    """The worst of some verdicts: fail, else inconclusive, else pass; of none at all, pass."""
    return next((v for v in ("fail", "inconclusive") if v in verdicts), "pass")


def agreement(
    claimed: np.ndarray,
    samples: Samples,
    slopes: Slopes,
    scale: float,
    threshold: float,
    rounding: Rounding = NO_ROUNDING,
) -> Agreement:
    """Compare the claimed slopes of one leaf with the measured ones.

    claimed: (N,) c along each direction.
    samples: the values of f along these directions.
    slopes: the slopes m and error bars e that were extrapolated from them.
    scale: s, the size that such a slope has in this leaf.
    threshold: τ, relative to that size.
    rounding: l and u, by which the rounding of products makes c too large; none unless given.
    """
    tolerance = threshold * scale
    zero = (claimed == 0) & (slopes.value - slopes.error <= 0) & (slopes.value + slopes.error >= 0)
    kinked = (np.abs(slopes.jump) > 3 * slopes.jump_error) & (np.abs(slopes.jump) > tolerance)
    half_jump = np.where(kinked, np.abs(slopes.jump) / 2, 0.0)
    _, usual = _aside(claimed, slopes.value, half_jump, rounding.lower, rounding.upper)
    explained, discrepancy = _aside(
        claimed, slopes.value, half_jump, rounding.lowest, rounding.highest
    )
    resolution = slopes.error + rounding.half_width
    negligible = zero & (slopes.error <= NEGLIGIBLE * magnitude(samples))
    with np.errstate(invalid="ignore"):  # ∞ - ∞ = nan, more than nothing: no fail
        beyond = discrepancy - slopes.error
    return Agreement(
        explained=explained,
        discrepancy=discrepancy,
        passed=negligible | (usual <= tolerance) & (resolution <= TELLING * tolerance),
        failed=(beyond > tolerance)
        & slopes.converged
        & (discrepancy > 4 * _bar_at_next_step(samples, slopes))
        & ~_confirmed(claimed - explained, samples, slopes, discrepancy, tolerance),
        kinked=kinked,
        subgradient=kinked & (discrepancy <= slopes.error),
    )


def _aside(
    claimed: np.ndarray,
    measured: np.ndarray,
    half_jump: np.ndarray,
    lower: np.ndarray | float,
    upper: np.ndarray | float,
) -> tuple[np.ndarray, np.ndarray]:
    """The part of c - m between two bounds, and how far the rest is beyond the slopes of a kink."""
    explained = np.nan_to_num(np.clip(claimed - measured, lower, upper))
    aside = np.abs(claimed - explained - measured)
    return explained, np.where(half_jump > 0, np.maximum(0, aside - half_jump), aside)


def _bar_at_next_step(samples: Samples, slopes: Slopes) -> np.ndarray:
    """The rounding at the step below the one chosen: a wrong slope shows there as well."""
    steps = samples.steps
    below = np.minimum(np.searchsorted(-steps, -slopes.step) + 1, len(steps) - 1)
    return np.asarray(rounding_bar(samples)[np.arange(len(below)), below])


def _confirmed(
    claimed: np.ndarray,
    samples: Samples,
    slopes: Slopes,
    discrepancy: np.ndarray,
    tolerance: float,
) -> np.ndarray:
    """Whether at some step smaller than those measured by, and with an error bar small enough, the
    difference quotient is the claimed slope up to rounding: a kink between made these differ."""
    with np.errstate(all="ignore"):
        bar = rounding_bar(samples)
        telling = bar < discrepancy[:, None] / 4
        agrees = np.abs(samples.quotients - claimed[:, None]) <= bar + tolerance
    smaller = samples.steps < slopes.step[:, None]
    return np.asarray(np.any(smaller & telling & agrees, axis=1))


class Order(NamedTuple):
    """How fast Taylor's remainders shrink with t along each direction (N,).

    nan means that a remainder is nowhere above the floor of rounding: it is as good as zero.
    """

    first: np.ndarray  # of |f(x + td) - f(x)|: 1 for any differentiable function
    second: np.ndarray  # of |f(x + td) - f(x) - t c|: 2 if the claimed slope c is right, 1 if not


def taylor_order(claimed: np.ndarray, samples: Samples, tolerance: float) -> Order:
    """The observed orders, down to a floor: rounding, and for the second the tolerance times t."""
    t = samples.steps
    with np.errstate(all="ignore"):
        center = samples.center[:, None]
        right, left = samples.plus - center, samples.minus - center
        linear = t * claimed[:, None]
        first = np.maximum(np.abs(right), np.abs(left))
        second = np.maximum(np.abs(right - linear), np.abs(left + linear))
    floor = 4 * t * rounding_bar(samples)
    return Order(observed_order(first, floor), observed_order(second, floor + 2 * t * tolerance))


def observed_order(remainders: np.ndarray, floor: np.ndarray) -> np.ndarray:
    """The slope of log remainder against log t where it meets the floor, (N,) from (N, T).

    Among the last few steps above the floor the steepest slope counts: a remainder that shrinks
    faster still, as when the steps no longer reach a kink, is at least as good.
    """
    orders = np.full(len(remainders), np.nan)
    for line, (remainder, lowest) in enumerate(zip(remainders, floor, strict=True)):
        known = np.isfinite(remainder)
        above = np.flatnonzero(known & (remainder > lowest))
        if len(above):
            last = above[-1]
            clipped = np.maximum(remainder, lowest)[max(0, last - _ORDER_STEPS + 1) : last + 2]
            with np.errstate(divide="ignore"):  # by a remainder of 0, beyond a kink
                fall = np.log(clipped[:-1] / clipped[1:])
            orders[line] = np.max(fall, initial=0) / np.log(RATIO)
    return orders


def taylor_verdict(order: Order) -> Verdict:
    """The verdict by order: pass for second order, or for a remainder nowhere above the floor."""
    second = order.second[~np.isnan(order.second)]
    if np.isnan(order.first).all() and not len(second):
        return "inconclusive"  # f does not visibly change
    if not len(second) or np.min(second) >= 1.7:
        return "pass"
    return "fail" if np.min(second) <= 1.3 else "inconclusive"
