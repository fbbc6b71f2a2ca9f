"""Findings: the verdict on one leaf, once every excuse has been heard.

``verdicts`` judges slopes; here it is asked again where the claim's own rounding, a kink at the
point or a function that does not feel the leaf could be what is wrong instead of the claim.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.checking.comparing import Entry, norm
from jaxbp.checking.jaxprs import Habits, arithmetic, eps_of, largest_of
from jaxbp.checking.measurement import Survey
from jaxbp.checking.problem import Claim, Claimed, Held, Leaves, Problem, compiled
from jaxbp.checking.verdicts import THRESHOLDS, Judgement, Verdict, judge

BESIDE = 1e-4  # relative to a leaf's size: so far beside the point other points are tried
_POINTS_BESIDE = 6
_PERTURBATIONS = 16  # of the arguments by a few units in the last place, to see what they do


@dataclass(frozen=True)
class Check:
    """A claim, and what it is held against; what all leaves share is worked out once."""

    problem: Problem
    claim: Claim
    survey: Survey
    formula: Leaves | None  # the claim in the arithmetic of the survey, where its function can
    habits: tuple[Habits, Habits]  # of f and of the claim
    rng: np.random.Generator
    asked: float | None  # the user's threshold

    @property
    def judged(self) -> Leaves:
        """The claimed gradient: as a formula if possible, free of the rounding of its dtype."""
        return self.claim.values if self.formula is None else self.formula

    @property
    def threshold(self) -> float:
        """τ for a claim of these dtypes."""
        if self.asked is not None:
            return self.asked
        dtypes = [np.asarray(value).dtype for value in self.judged]
        return THRESHOLDS[min(d.itemsize for d in [*dtypes, self.survey.arena.dtype])]

    def judge(self, number: int) -> Judgement:
        """One leaf of the claim, or all of them moving jointly, along its lines."""
        rows = self.survey.rows(number)
        ladder, slopes = self.survey.ladder.of(rows), self.survey.slopes.of(rows)
        return judge(self.along[rows], ladder, slopes, self.scale(number), self.threshold)

    def scale(self, number: int) -> float:
        """The size that a slope along these lines has, by the claim or by the measurement."""
        measured = self.survey.slopes.value[self.survey.rows(number)]
        claimed = norm(self.sizes) if number == len(self.sizes) else self.sizes[number]
        return float(max(claimed, norm(measured) / np.sqrt(len(measured))))

    @cached_property
    def along(self) -> np.ndarray:
        """The claimed slope of every line."""
        return self.survey.along(self.judged)

    @cached_property
    def sizes(self) -> np.ndarray:
        """The size that a slope in each leaf has by the claim."""
        values = [np.asarray(value, np.float64) for value in self.judged]
        means = [norm(value) / np.sqrt(max(1, value.size)) for value in values]
        return np.array(means) * self.survey.sizes

    @cached_property
    def own(self) -> "Check":
        """The claim in its own dtype."""
        return replace(self, formula=None)

    @cached_property
    def beside(self) -> list["Check"]:
        """The same at points beside this one; the claim there is known by its formula alone."""
        found = []
        for _ in range(_POINTS_BESIDE):
            point = self.survey.beside(self.rng, BESIDE)
            formula = None if self.formula is None else values_at(self.claim, point, self.survey)
            found.append(replace(self, survey=self.survey.at(point), formula=formula))
        return found

    @cached_property
    def rounding(self) -> np.ndarray:
        """What the arithmetic of the claim's own dtype does to slopes: ten times what it does to
        ``jax.grad``'s, and what a few units in the last place of the arguments do, for a ReLU that
        they switch is no error of the claim."""
        arena, along = self.survey.arena, self.survey.along
        point = arena.problem.leaves, arena.problem.held
        eps = max(eps_of(value.dtype) for value in self.judged)

        def perturbed(leaf: Any) -> Any:
            is_float = jnp.issubdtype(leaf.dtype, np.floating)
            shift = 1 + 8 * eps * self.rng.uniform(-1, 1, leaf.shape)
            return np.asarray(np.asarray(leaf) * shift, leaf.dtype) if is_float else leaf

        rounded, spread = np.zeros_like(self.along), [np.zeros_like(self.along)]
        with suppress(Exception):  # there may be no gradient to be had
            function = self.claim.function or _jax_grad(self)
            there = along(tuple(function(*point)))
            for _ in range(_PERTURBATIONS):
                moved = function(*jax.tree.map(perturbed, point))
                spread.append(np.abs(along(tuple(moved)) - there))
            if self.formula is None and arena.wide:
                automatic = _jax_grad(self)
                with arithmetic(float64=False, numpy_constants=arena.numpy_constants):
                    own = along(tuple(automatic(self.problem.leaves, self.problem.held)))
                rounded = 10 * np.abs(own - along(tuple(automatic(*point))))
        return np.asarray(16 * eps * abs(self.survey.value) + rounded + 2 * np.max(spread, axis=0))


def formula_of(claimed: Claim, measured: Survey) -> Leaves | None:
    """The claim in float64, if that is how f is measured and its function can do it as well."""
    arena = measured.arena
    if claimed.function is None or not arena.wide:
        return None
    try:
        return values_at(claimed, arena.problem.leaves, measured)
    except Exception:  # whatever the claim has against float64
        return None


def values_at(claimed: Claim, leaves: Leaves, measured: Survey) -> Leaves:
    """The claimed gradient at another point, in the arithmetic of the survey."""
    assert claimed.function is not None
    values = claimed.function(leaves, measured.arena.problem.held)
    return tuple(np.asarray(value, np.float64) for value in values)


class Finding(NamedTuple):
    """What is found of one leaf."""

    verdict: Verdict
    judgement: Judgement
    diagnosis: str = ""
    worst: tuple[Entry, ...] = ()


def find(check: Check, number: int) -> Finding:
    """The verdict on one leaf, all excuses heard."""
    found = _find_claimed(check, number)
    if check.formula is None or found.verdict == "fail" or _overflows(check, number):
        return found
    if check.own.judge(number).kinked.any():
        return found
    own = _find_claimed(check.own, number)
    if own.verdict != "fail":
        return found
    dtype = np.asarray(check.claim.values[number]).dtype
    return own._replace(diagnosis=f"wrong in {dtype} only; in float64 the same claim is right")


def _overflows(check: Check, number: int) -> bool:
    """Whether f, or this leaf of its gradient, is too large for the arguments' own dtype."""
    largest = float(np.max(np.abs(check.judged[number]), initial=0.0))
    return check.survey.overflows or largest > largest_of(check.claim.values[number].dtype)


def _find_claimed(check: Check, number: int) -> Finding:
    """The same for values of one dtype."""
    judgement = check.judge(number)
    finding = Finding(_verdict(judgement), judgement)
    if not np.isfinite(check.judged[number]).all():
        return finding._replace(verdict="fail")
    if judgement.kinked.any():
        finding = finding._replace(verdict=_verdict_at_kink(check, number, judgement))
    elif finding.verdict == "inconclusive" and _nothing_but_rounding(check, number):
        finding = finding._replace(verdict="pass")
    elif finding.verdict == "pass" and _zero_unseen(check, number):
        finding = finding._replace(verdict="inconclusive")
    return _excused(check, number, finding)


def find_jointly(check: Check, number: int) -> Finding:
    """All leaves at once: they can be wrong together where each alone is inconclusive."""
    judgement = check.judge(number)
    if judgement.kinked.any():
        return Finding("inconclusive", judgement)
    return _excused(check, number, Finding(_verdict(judgement), judgement))


def _verdict(judgement: Judgement) -> Verdict:
    if judgement.failed.any():
        return "fail"
    return "pass" if judgement.passed.all() else "inconclusive"


def _excused(check: Check, number: int, found: Finding) -> Finding:
    """A claim whose dtype's own rounding may be what is wrong with it is not failed."""
    if found.verdict != "fail":
        return found
    judgement, rows = found.judgement, check.survey.rows(number)
    excess = judgement.discrepancy - check.survey.slopes.error[rows] - check.rounding[rows]
    certain = (judgement.failed & (excess > check.threshold * check.scale(number))).any()
    return found if certain else found._replace(verdict="inconclusive")


def _jax_grad(check: Check) -> Callable[[Leaves, Held], Any]:
    return compiled(Claimed(check.problem.objective, None), check.problem)


def _verdict_at_kink(check: Check, number: int, judgement: Judgement) -> Verdict:
    """At a kink the claim must lie among the slopes beside it and, beside it, be right."""
    if (judgement.failed & ~judgement.kinked).any():
        return "fail"
    formula = check.formula is not None
    if formula and any(_verdict(there.judge(number)) == "fail" for there in check.beside):
        return "fail"
    if np.all(judgement.passed | judgement.subgradient):
        return "pass"
    rows = check.survey.rows(number)
    beside = np.array([there.survey.slopes.value[rows] for there in check.beside])
    among = _among(check.survey, rows, check.along[rows], beside)
    if np.all(judgement.passed | judgement.subgradient | among):
        return "pass" if formula else "inconclusive"
    return "inconclusive" if formula else "fail"


def _among(survey: Survey, rows: slice, claimed: np.ndarray, beside: np.ndarray) -> np.ndarray:
    """Whether claimed slopes (N,) may lie among those beside the point, of which some (P, N) are
    known.  One kink has two slopes; where there are others, several kinks meet, and the extremes
    of their combinations need not be among the few that were met."""
    slopes = survey.slopes.of(rows)
    ends = slopes.value + np.array([[-0.5], [0.5]]) * slopes.jump
    aside = np.min(np.abs(beside[:, None] - ends), axis=1)
    several = np.any(aside > 1e-3 * np.abs(slopes.jump) + slopes.error, axis=0)
    lower, upper = np.min(beside, axis=0), np.max(beside, axis=0)
    reach = 2 * (upper - lower) + slopes.error
    return np.asarray(several & (lower - reach <= claimed) & (claimed <= upper + reach))


def _nothing_but_rounding(check: Check, number: int) -> bool:
    """Whether the claim is zero but for rounding (it is all different a little beside the point),
    and no other slope is measured."""
    rows = check.survey.rows(number)
    slopes, claimed = check.survey.slopes.of(rows), check.along[rows]
    small = np.abs(claimed) + np.abs(slopes.value) + slopes.error <= 1e-10 * abs(check.survey.value)
    if check.formula is None or not small.all():
        return False
    point = check.survey.beside(check.rng, BESIDE)
    there = check.survey.along(values_at(check.claim, point, check.survey))[rows]
    return bool(np.all(np.abs(there - claimed) >= np.abs(claimed) / 2))


def _zero_unseen(check: Check, number: int) -> bool:
    """Whether zero is claimed, and f's rounding hides the other slope that jax.grad has."""
    if check.claim.automatic or check.judged[number].any():
        return False
    arena = check.survey.arena
    try:
        values = _jax_grad(check)(arena.problem.leaves, arena.problem.held)
    except Exception:  # f has no gradient of its own
        return False
    return bool(np.any(np.asarray(values[number])))
