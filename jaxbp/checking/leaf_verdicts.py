"""Leaf verdicts: the verdict on one leaf, from the agreement of its slopes and other explanations.

``verdicts`` compares slopes; here its verdict is reconsidered where rounding, a kink at the point,
or a function insensitive to the leaf could explain the difference.  Two kinds of other points are
tried: those *beside* the point are a few units in the last place away, those *nearby* 1e-4 of a
leaf's size.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.checking.black_box import NoGradientError
from jaxbp.checking.comparing import Entry, norm
from jaxbp.checking.finite_differences import Leaves, Slopes
from jaxbp.checking.jaxprs import UNTRACEABLE, enable_float64, eps_of, largest_of
from jaxbp.checking.measurement import Measurement
from jaxbp.checking.problem import Claim, GradientFunction, Held, Problem, Purpose, compiled
from jaxbp.checking.rounded_products import Products, rounding_of_slopes
from jaxbp.checking.verdicts import (
    TELLING,
    THRESHOLDS,
    Agreement,
    Rounding,
    Verdict,
    agreement,
)
from jaxbp.text import one_line, significant

NEARBY = 1e-4  # the distance of other points that are tried, relative to a leaf's size
_POINTS_AT_KINK = 6
_BENT = 0.05  # of a slope's size, by which slopes beside a hidden kink differ
_PERTURBATIONS = 16  # of the arguments by a few units in the last place, to see their effect
_UNKNOWN_ROUNDING = 100.0  # roundings of operands that a slope may be off by where none are known
_STEPS_OF_JUMP = 3  # the smallest, at which f stays away from its value at the point
_JUMP_CHANGES = 0.05  # of a jump at most, over these steps
_LEAST_JUMP = 2.0**10  # units in f's last place: less may be rounding
_PAIRS = 8  # of perturbations by a unit in the last place of a product's operands


@dataclass(frozen=True)
class LeafVerdict:
    """The verdict on one leaf, and what led to it."""

    verdict: Verdict
    agreement: Agreement
    diagnosis: str = ""
    worst: tuple[Entry, ...] = ()  # the entries that are furthest off
    notes: tuple[str, ...] = ()  # exceptions that were met on the way


@dataclass(frozen=True)
class ClaimCheck:
    """A claim and the measurement it is compared with; what all leaves share is computed once."""

    problem: Problem
    claim: Claim
    measurement: Measurement
    float64_values: Leaves | None  # the claim in float64, if f is measured so and its function can
    given_threshold: float | None  # the user's
    claimed_products: Products | None  # that the claim's values were made with, if they round
    claim_dtype: np.dtype[Any] | None = None  # the coarsest on its way; None of values alone

    @property
    def values(self) -> Leaves:
        """The claimed gradient, in float64 if possible, free of the rounding of its own dtype."""
        return self.claim.values if self.float64_values is None else self.float64_values

    @property
    def threshold(self) -> float:
        """τ for a claim of these dtypes."""
        if self.given_threshold is not None:
            return self.given_threshold
        dtypes = self.dtypes | {self.measurement.arithmetic.dtype}
        dtypes |= set() if self.claim_dtype is None else {self.claim_dtype}
        usual = THRESHOLDS[min(dtype.itemsize for dtype in dtypes)]
        return usual if self.products is None else max(usual, self.products.eps)

    @property
    def dtypes(self) -> set[np.dtype[Any]]:
        """The dtypes of the claimed values."""
        return {np.asarray(value).dtype for value in self.values}

    @property
    def eps(self) -> float:
        """The spacing of arguments whose rounding may change the claim: eight times that of its
        values' dtype, or once that of the coarsest dtype on its way."""
        own = 8 * max(map(eps_of, self.dtypes))
        return own if self.claim_dtype is None else max(own, eps_of(self.claim_dtype))

    @property
    def products(self) -> Products | None:
        """The rounding products that these values were made with: of float64 there are none."""
        return self.claimed_products if self.float64_values is None else None

    def agreement(self, index: int) -> Agreement:
        """The agreement of one leaf of the claim, or of all moving jointly, along its lines."""
        rows = self.measurement.rows(index)
        samples, slopes = self.measurement.samples.take(rows), self.measurement.slopes.take(rows)
        return agreement(
            claimed=self.claimed_slopes[rows],
            samples=samples,
            slopes=slopes,
            scale=self.scale(index),
            threshold=self.threshold,
            rounding=self.product_rounding[0].take(rows),
        )

    @property
    def agrees(self) -> bool:
        """Whether every slope agrees, of every leaf and of all moving jointly."""
        return all(
            self.agreement(index).passed.all() for index in range(len(self.problem.paths) + 1)
        )

    @property
    def rounds(self) -> bool:
        """Whether the rounding of products matters, or is unknown: there may be none in f."""
        rounding, unknown = self.product_rounding
        usual = replace(self, claimed_products=None).threshold
        largest = np.max(np.abs(np.array(rounding)), axis=0)
        return bool(unknown) or any(
            np.any(largest[self.measurement.rows(index)] > 0.1 * usual * self.scale(index))
            for index in range(len(self.problem.paths) + 1)
        )

    def resolution(self, index: int) -> np.ndarray:
        """How far the slopes along the lines of a leaf may be off unseen, by the measurement and by
        the rounding of the claim's products."""
        error = self.measurement.slopes.error + self.product_rounding[0].half_width
        return np.asarray(error[self.measurement.rows(index)])

    def scale(self, index: int) -> float:
        """The size of a slope along the lines of a leaf, by the claim or by the measurement."""
        measured = self.measurement.slopes.value[self.measurement.rows(index)]
        claimed = norm(self.sizes) if index == len(self.sizes) else self.sizes[index]
        return float(max(claimed, norm(measured) / np.sqrt(len(measured))))

    @cached_property
    def claimed_slopes(self) -> np.ndarray:
        """The claimed slope of every line."""
        return self.measurement.slopes_of(self.values)

    @cached_property
    def sizes(self) -> np.ndarray:
        """The size of a slope in each leaf, by the claim."""
        values = [np.asarray(value, np.float64) for value in self.values]
        means = [norm(value) / np.sqrt(max(1, value.size)) for value in values]
        return np.array(means) * self.measurement.sizes

    @cached_property
    def in_own_dtype(self) -> "ClaimCheck":
        """The check of the claim in its own dtype, and by f in that dtype if f differs there."""
        own = self if self.float64_values is None else replace(self, float64_values=None)
        if not (self.measurement.in_float32.two_answers and own.is_float32_of_float64):
            return own
        return replace(own, measurement=self.measurement.in_own_dtype(self.problem))

    @cached_property
    def nearby(self) -> list["ClaimCheck"]:
        """The check at points nearby, for kinks; the claim there is known by its function alone."""
        found = []
        self.measurement.require(_POINTS_AT_KINK)
        for index in range(_POINTS_AT_KINK):
            point = self.measurement.nearby_point(Purpose.POINTS_AT_KINK, index, NEARBY)
            values = None if self.float64_values is None else self.values_at(point)
            found.append(
                replace(self, measurement=self.measurement.at(point), float64_values=values)
            )
        return found

    def values_at(self, leaves: Leaves) -> Leaves:
        """The claimed gradient at another point, in the arithmetic of the measurement."""
        return self.claim.values_at(leaves, self.measurement.arithmetic.problem.held)

    def jax_grad(self) -> Callable[[Leaves, Held], Any]:
        """``jax.grad`` of f, under jit if JAX can trace it; PyTorch's of a black box."""
        gradient = GradientFunction(self.problem.objective, None)
        if self.problem.black_box is not None:
            return gradient
        try:
            jax.eval_shape(gradient, self.problem.leaves, self.problem.held)
        except UNTRACEABLE:  # f's own derivative rule may be in NumPy
            return gradient
        return compiled(gradient)

    @cached_property
    def product_rounding(self) -> tuple[Rounding, tuple[str, ...]]:
        """How much too large the rounding of the claim's products may make its slopes.

        The second value is a note of the reason, where there is no gradient to find this by; slopes
        may then be off by ``_UNKNOWN_ROUNDING`` operands' roundings.
        """
        count = len(self.claimed_slopes)
        if self.products is None:
            return Rounding(*np.zeros((4, count))), ()
        unknown = self._unknown_rounding(self.products.eps)
        numpy_constants = self.measurement.arithmetic.numpy_constants
        point = self.problem.leaves, self.problem.held
        generator = self.problem.generator(Purpose.PRODUCTS)
        shifts = [_shifts(point, self.products.eps, generator) for _ in range(_PAIRS)]
        try:
            with enable_float64(False, numpy_constants=numpy_constants):
                bounds, exact = rounding_of_slopes(
                    gradient=self.jax_grad(),
                    products=self.products,
                    at=point,
                    pairs=[(_moved(point, each), _moved(point, each, -1)) for each in shifts],
                    slopes_of=lambda gradient: self.measurement.slopes_of(tuple(gradient)),
                    groups=np.arange(count) // len(self.measurement.directions[0]),
                )
        except Exception as error:  # f need not have a gradient of its own
            return unknown, (f"how products round is unknown: {one_line(error)}",)
        if np.any(np.abs(exact - self.measurement.slopes.value) > unknown.highest):
            note = "how products round is unknown: jax.grad(f) is not the measured gradient"
            return unknown, (note,)
        return bounds, ()

    def _unknown_rounding(self, eps: float) -> Rounding:
        """The bounds of products whose rounding is unknown, by the spacing of their operands."""
        none, utmost = np.zeros((2, len(self.claimed_slopes)))
        for index in range(len(self.problem.paths) + 1):
            utmost[self.measurement.rows(index)] = _UNKNOWN_ROUNDING * eps * self.scale(index)
        return Rounding(none, none, -utmost, utmost)

    @cached_property
    def values_beside(self) -> list[Leaves] | None:
        """The claimed gradient at points a few units in the last place away, by the claim's
        function or else by ``jax.grad``; None if there is no gradient to find it by."""
        held = self.measurement.arithmetic.problem.held
        found = []
        try:
            function = self.claim.function or self.jax_grad()
            for index in range(_PERTURBATIONS):
                point = self.measurement.nearby_point(Purpose.POINTS_BESIDE, index, self.eps)
                values = function(point, held)
                found.append(tuple(np.asarray(value, np.float64) for value in values))
        except Exception:  # of which ``rounding`` makes a note
            return None
        return found

    @cached_property
    def beside(self) -> np.ndarray | None:
        """The claimed slopes (P, N) at these points."""
        found = self.values_beside
        return None if found is None else np.array(list(map(self.measurement.slopes_of, found)))

    def off_beside(self, index: int, compared: Agreement) -> np.ndarray:
        """How far claimed slopes beside the point are at most from the measured slope, along each
        line of a leaf or, at a kink, from the range of its two slopes; inf if they are unknown."""
        rows = self.measurement.rows(index)
        slopes = self.measurement.slopes.take(rows)
        if self.beside is None:
            return np.full(len(slopes.value), np.inf)
        half_jump = np.where(compared.kinked, np.abs(slopes.jump) / 2, 0.0)
        off = np.abs(self.beside[:, rows] - slopes.value) - half_jump
        return np.asarray(np.maximum(0, np.nan_to_num(off, nan=np.inf).max(axis=0)))

    @cached_property
    def rounding(self) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
        """Rounding errors (N,) of the claimed slopes in the claim's own dtype, ten times those of
        ``jax.grad``'s; and the changes (P, N) of the claimed slopes by a few units in the last
        place of the arguments, because a ReLU that these switch is not an error of the claim.

        The third value is a note of the exception, if there is no gradient to find these by.
        """
        arithmetic, slopes_of = self.measurement.arithmetic, self.measurement.slopes_of
        point = arithmetic.problem.leaves, arithmetic.problem.held
        generator = self.problem.generator(Purpose.ROUNDING)

        rounded, changes = np.zeros_like(self.claimed_slopes), [np.zeros_like(self.claimed_slopes)]
        notes: tuple[str, ...] = ()
        try:
            function = self.claim.function or self.jax_grad()
            there = slopes_of(tuple(function(*point)))
            for _ in range(_PERTURBATIONS):
                moved = function(*_moved(point, _shifts(point, self.eps, generator)))
                changes.append(slopes_of(tuple(moved)) - there)
            if self.is_float32_of_float64 and not self.measurement.in_float32.two_answers:
                automatic = self.jax_grad()
                with enable_float64(False, numpy_constants=arithmetic.numpy_constants):
                    own = slopes_of(tuple(automatic(self.problem.leaves, self.problem.held)))
                rounded = 10 * np.abs(own - slopes_of(tuple(automatic(*point))))
        except NoGradientError:  # of a black box, whose value in float32 shows how it rounds
            if self.is_float32_of_float64:
                rounded = 2 * self.eps / eps_of(np.float64) * self.measurement.in_float32.floor
        except Exception as error:  # f or the claim may have no gradient in this arithmetic
            notes = (f"how the gradient is rounded is unknown: {one_line(error)}",)
        total = 2 * self.eps * abs(self.measurement.value) + rounded
        return np.asarray(total), np.array(changes), notes

    @property
    def is_float32_of_float64(self) -> bool:
        """Whether the claim's values have fewer digits than the arithmetic of the measurement."""
        return self.dtypes != {np.dtype(np.float64)} and self.measurement.arithmetic.float64


def _shifts(point: Any, distance: float, generator: np.random.Generator) -> Any:
    """A random share of each number in a tree, at most the distance."""
    return jax.tree.map(lambda leaf: generator.uniform(-distance, distance, leaf.shape), point)


def _moved(point: Any, shifts: Any, sign: int = 1) -> Any:
    """A tree whose floating point numbers are shifted by such shares of their own."""

    def moved(leaf: Any, shift: np.ndarray) -> Any:
        is_float = jnp.issubdtype(leaf.dtype, np.floating)
        return np.asarray(np.asarray(leaf) * (1 + sign * shift), leaf.dtype) if is_float else leaf

    return jax.tree.map(moved, point, shifts)


def leaf_verdict(check: ClaimCheck, index: int) -> LeafVerdict:
    """The verdict on one leaf, with the reason where there is none."""
    found = _verdict_in_both_dtypes(check, index)
    jump = "" if found.verdict == "pass" else _jump(check, index)
    undecided = _undecided(check, index, found) if found.verdict == "inconclusive" else ""
    return replace(found, diagnosis=jump or found.diagnosis or undecided)


def _jump(check: ClaimCheck, index: int) -> str:
    """Say that f jumps at the point, if it does along some line of a leaf."""
    samples = check.measurement.samples.take(check.measurement.rows(index))
    center = samples.center[:, None]
    with np.errstate(invalid="ignore"):  # f may be infinite beside the point
        beside = np.stack([samples.minus, samples.plus])[..., -_STEPS_OF_JUMP:] - center
        size = np.min(np.abs(beside), axis=2)
        stays = np.ptp(beside, axis=2) < _JUMP_CHANGES * size
    jumps = stays & (size > _LEAST_JUMP * samples.eps * np.abs(samples.center))
    if not jumps.any():
        return ""
    line = int(np.argmax(np.max(np.where(jumps, size, 0), axis=0)))
    values = samples.center[line], *sorted((samples.minus[line, -1], samples.plus[line, -1]))
    at, *sides = (significant(float(value), 4) for value in values)
    return f"f jumps at this point ({at} at it, beside it {' and '.join(dict.fromkeys(sides))})"


def _undecided(check: ClaimCheck, index: int, found: LeafVerdict) -> str:
    """The reason for no verdict by the slopes."""
    compared, rows = found.agreement, check.measurement.rows(index)
    if compared.kinked.any():
        return "undecided: several slopes meet at this kink, and the claim may be one of them"
    wide = check.resolution(index) > TELLING * check.threshold * check.scale(index)
    if wide.any():
        return "undecided: the error bar is too wide to tell right from wrong"
    if not check.measurement.slopes.converged[rows].all():
        return "undecided: the difference quotients do not converge"
    return "undecided: quotients at some smaller step confirm the claim, others do not"


def _verdict_in_both_dtypes(check: ClaimCheck, index: int) -> LeafVerdict:
    """The verdict on one leaf, in float64 and in the claim's own dtype."""
    found = _verdict_in_one_dtype(check, index)
    if check.float64_values is None or found.verdict == "fail" or _overflows(check, index):
        return found
    if check.in_own_dtype.agreement(index).kinked.any():
        return found
    own = _verdict_in_one_dtype(check.in_own_dtype, index)
    if own.verdict != "fail":
        return found
    dtype = np.asarray(check.claim.values[index]).dtype
    return replace(own, diagnosis=f"wrong in {dtype} only; in float64 the same claim is right")


def _overflows(check: ClaimCheck, index: int) -> bool:
    """Whether f, or this leaf of its gradient, is too large for the arguments' own dtype."""
    largest = float(np.max(np.abs(check.values[index]), initial=0.0))
    return check.measurement.overflows or largest > largest_of(check.claim.values[index].dtype)


def _verdict_in_one_dtype(check: ClaimCheck, index: int) -> LeafVerdict:
    compared = check.agreement(index)
    found = LeafVerdict(_verdict(compared), compared)
    if not np.isfinite(check.values[index]).all():
        return replace(found, verdict="fail")
    hidden = _hidden_kink(check, index, compared)
    if compared.kinked.any() or hidden.any():
        if _is_wrong_nearby(check, index):
            return replace(found, verdict="fail")
        found = replace(found, verdict=_verdict_at_kink(check, index, compared, hidden))
    elif found.verdict == "inconclusive" and _is_zero_up_to_rounding(check, index):
        found = replace(found, verdict="pass")
    elif found.verdict == "pass":
        found = _unless_rounding_hides_a_slope(check, index, found)
    return _unless_rounding_explains_it(check, index, found)


def joint_verdict(check: ClaimCheck, index: int) -> LeafVerdict:
    """The verdict on all leaves moving at once, whose index is their number: they can be wrong
    jointly where each alone is inconclusive."""
    compared = check.agreement(index)
    if compared.kinked.any() or _hidden_kink(check, index, compared).any():
        return LeafVerdict("inconclusive", compared)
    return _unless_rounding_explains_it(check, index, LeafVerdict(_verdict(compared), compared))


def _verdict(compared: Agreement) -> Verdict:
    if compared.failed.any():
        return "fail"
    return "pass" if compared.passed.all() else "inconclusive"


def _unless_rounding_explains_it(check: ClaimCheck, index: int, found: LeafVerdict) -> LeafVerdict:
    """A claim does not fail if rounding in its own dtype may explain the difference.

    Rounding may turn a switch, a ReLU's say, so that claims beside the point are of two kinds, and
    one of them is right.  It explains nothing where all of them are right, nor where none is.
    """
    if found.verdict != "fail":
        return found
    rounded, changes, notes = check.rounding
    rows = check.measurement.rows(index)
    slopes, discrepancy = check.measurement.slopes.take(rows), found.agreement.discrepancy
    off_beside = check.off_beside(index, found.agreement)
    tolerance = check.threshold * check.scale(index)
    lowest, highest = np.min(changes[:, rows], axis=0), np.max(changes[:, rows], axis=0)
    reach = (highest - lowest) / 2 + slopes.error + tolerance
    needed = slopes.value - check.claimed_slopes[rows]
    turned = (lowest - reach <= needed) & (needed <= highest + reach)
    switch = np.where(turned, 2 * np.maximum(highest, -lowest), 0.0)
    rounding = rounded[rows] + np.minimum(switch, 2 * off_beside)
    certain = found.agreement.failed & (discrepancy - slopes.error - rounding > tolerance)
    if not certain.any():
        undecided = "undecided: rounding in the claim's own dtype may explain the difference"
        notes = found.notes + notes
        return replace(found, verdict="inconclusive", diagnosis=undecided, notes=notes)
    alone = certain & (off_beside <= slopes.error + tolerance)
    if check.claim.function is not None and np.array_equal(alone, certain):
        line = int(np.argmax(np.where(alone, discrepancy, 0)))
        found = replace(found, diagnosis=_wrong_alone(check, index, line))
    return replace(found, notes=found.notes + notes)


def _wrong_alone(check: ClaimCheck, index: int, line: int) -> str:
    """Say what is claimed at this point alone along a line, and what beside it."""
    assert check.beside is not None
    row = check.measurement.rows(index).start + line
    size = check.measurement.lengths[row]
    claimed, beside = check.claimed_slopes[row] / size, check.beside[:, row] / size
    ends = dict.fromkeys(significant(float(end), 4) for end in (beside.min(), beside.max()))
    return (
        f"wrong at this point alone (claimed {significant(claimed, 4)}, beside it "
        f"{' to '.join(ends)})"
    )


def _verdict_at_kink(
    check: ClaimCheck, index: int, compared: Agreement, hidden: np.ndarray
) -> Verdict:
    """At a kink, which some lines (N,) may hide, the claim must lie among the slopes nearby."""
    if (compared.failed & ~compared.kinked & ~hidden).any():
        return "fail"
    known_nearby = check.float64_values is not None
    rows = check.measurement.rows(index)
    fits = compared.passed | compared.subgradient
    if not fits.all():
        slopes = check.measurement.slopes.take(rows)
        nearby = np.array([near.measurement.slopes.value[rows] for near in check.nearby])
        known = nearby if check.beside is None else np.vstack([nearby, check.beside[:, rows]])
        least = 1e-3 * np.abs(slopes.jump) + slopes.error
        least = np.where(hidden, _bent(check, index, compared), least)
        several = _several_kinks(slopes, nearby if hidden.any() else known, least)
        if (compared.failed & ~several).any():
            return "fail"
        among = several & _among(check.measurement, rows, check.claimed_slopes[rows], nearby)
        if not np.all(fits | among):
            return "inconclusive" if known_nearby else "fail"
    if not _combines_slopes_beside(check, index, compared):
        return "inconclusive"
    return "pass" if known_nearby or fits.all() else "inconclusive"


def _is_wrong_nearby(check: ClaimCheck, index: int) -> bool:
    """Whether the claim is wrong at a point near a kink, where its function tells it."""
    if check.float64_values is None:
        return False
    for near in check.nearby:
        compared = near.agreement(index)
        found = LeafVerdict(_verdict(compared), compared)
        if _unless_rounding_explains_it(near, index, found).verdict == "fail":
            return True
    return False


def _combines_slopes_beside(check: ClaimCheck, index: int, compared: Agreement) -> bool:
    """Whether a claim may be a combination of the gradients beside a kink: each of its entries lies
    among theirs or, where these are different nearly everywhere, not far away.

    Where no gradient is known beside the point, c - m must be that of one kink: as c is a share of
    the slopes on both sides, and the share one and the same along all lines.
    """
    if check.values_beside is not None:
        beside = np.array([values[index] for values in check.values_beside])
        claimed = np.asarray(check.values[index], np.float64)
        size = norm(claimed) / np.sqrt(max(1, claimed.size))
        allowed = 10 * check.threshold * np.maximum(size, np.abs(claimed))
        lower, upper = np.min(beside, axis=0), np.max(beside, axis=0)
        ordered = np.sort(beside, axis=0)
        kinds = 1 + np.sum(np.diff(ordered, axis=0) > allowed, axis=0)
        reach = np.where(kinds > len(beside) / 2, 2 * (upper - lower), 0) + allowed
        return bool(np.all((lower - reach <= claimed) & (claimed <= upper + reach)))
    rows = check.measurement.rows(index)
    slopes = check.measurement.slopes.take(rows)
    half_jump = np.where(compared.kinked, np.abs(slopes.jump) / 2, 0.0)
    aside = np.abs(check.claimed_slopes[rows] - slopes.value)
    share = float(aside @ half_jump / (half_jump @ half_jump))
    allowed = check.resolution(index) + slopes.jump_error + check.threshold * check.scale(index)
    return bool(np.all(np.abs(aside - share * half_jump) <= allowed))


def _bent(check: ClaimCheck, index: int, compared: Agreement) -> np.ndarray:
    """How far (N,) slopes are at least apart at a kink that would explain the discrepancy."""
    return np.asarray(np.minimum(_BENT * check.scale(index), compared.discrepancy / 2))


def _hidden_kink(check: ClaimCheck, index: int, compared: Agreement) -> np.ndarray:
    """Along which lines (N,) a failing claim may be at kinks that the line does not show, as f has
    the same slope on both sides of it: claims beside the point differ from one another."""
    if check.beside is None or not compared.failed.any():
        return np.zeros_like(compared.failed)
    apart = np.ptp(check.beside[:, check.measurement.rows(index)], axis=0)
    return np.asarray(compared.failed & ~compared.kinked & (apart > _bent(check, index, compared)))


def _several_kinks(slopes: Slopes, nearby: np.ndarray, least: np.ndarray) -> np.ndarray:
    """Whether several kinks meet along each line (N,).  One kink has two slopes; several have more,
    among those near the point (P, N), at least so far (N,) from the two."""
    ends = slopes.value + np.array([[-0.5], [0.5]]) * slopes.jump
    aside = np.min(np.abs(nearby[:, None] - ends), axis=1)
    return np.asarray(np.any(aside > least, axis=0))


def _among(
    measurement: Measurement, rows: slice, claimed: np.ndarray, nearby: np.ndarray
) -> np.ndarray:
    """Whether claimed slopes (N,) may lie among those near the point, of which some (P, N) are
    known: the extremes of several kinks' combinations need not be among the few that were met."""
    lower, upper = np.min(nearby, axis=0), np.max(nearby, axis=0)
    reach = 2 * (upper - lower) + measurement.slopes.error[rows]
    return np.asarray((lower - reach <= claimed) & (claimed <= upper + reach))


def _is_zero_up_to_rounding(check: ClaimCheck, index: int) -> bool:
    """Whether the claim is zero up to rounding, as it is quite different at a point nearby, and no
    other slope is measured."""
    measurement = check.measurement
    rows = measurement.rows(index)
    slopes, claimed = measurement.slopes.take(rows), check.claimed_slopes[rows]
    small = np.abs(claimed) + np.abs(slopes.value) + slopes.error <= 1e-10 * abs(measurement.value)
    if check.float64_values is None or not small.all():
        return False
    point = measurement.nearby_point(Purpose.POINT_AT_ZERO, 0, NEARBY)
    there = measurement.slopes_of(check.values_at(point))[rows]
    return bool(np.all(np.abs(there - claimed) >= np.abs(claimed) / 2))


def _unless_rounding_hides_a_slope(
    check: ClaimCheck, index: int, found: LeafVerdict
) -> LeafVerdict:
    """A claim of zero does not pass if f's rounding may hide the other slope that jax.grad has."""
    if check.claim.automatic or check.values[index].any():
        return found
    problem = check.measurement.arithmetic.problem
    try:
        values = check.jax_grad()(problem.leaves, problem.held)
    except NoGradientError:
        return found
    except Exception as error:  # f need not have a gradient of its own
        return replace(found, notes=(f"jax.grad of f raises {one_line(error)}",))
    if not np.any(np.asarray(values[index])):
        return found
    undecided = "undecided: f's rounding may hide the slope that jax.grad(f) has"
    return replace(found, verdict="inconclusive", diagnosis=undecided)
