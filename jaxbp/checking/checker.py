"""The checker: pose the problem, measure slopes, judge the claim, explain what failed."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxbp.checking import symptoms
from jaxbp.checking.comparing import Entry, norm
from jaxbp.checking.measuring import Slopes, rounding_bar
from jaxbp.checking.problem import (
    Claim,
    Claimed,
    Held,
    Leaves,
    Problem,
    claim,
    compiled,
    generator,
    gradient_leaves,
    habits_of,
    pose,
    under_vmap,
)
from jaxbp.checking.report import Curve, GradientReport, Kink, LeafReport, overall
from jaxbp.checking.survey import Survey, arena_of, survey
from jaxbp.checking.tracing import Habits, arithmetic, eps_of, first_axes, largest_of
from jaxbp.checking.verdicts import (
    THRESHOLDS,
    Judgement,
    Verdict,
    judge,
    taylor_order,
    taylor_verdict,
    worst,
)

_BESIDE = 1e-4  # relative to a leaf's size: so far beside the point a kink at the point is judged
_POINTS_BESIDE = 6
_PERTURBATIONS = 16  # of the arguments by a few units in the last place, to see what they do


def gradcheck(
    f: Callable[..., Any],
    *args: Any,
    grads: Any = None,
    argnums: int | Sequence[int] = 0,
    cotangent: Any = None,
    key: Array | None = None,
    threshold: float | None = None,
    directions: int = 4,
    order: int = 1,
    coordinates: int = 512,
    chunk: int | None = None,
) -> GradientReport:
    """Check a gradient of f at args against what f's values say.

        φ(args) = ⟨cotangent, f(*args)⟩,   ⟨∇φ, d⟩ = lim (φ(args + t d) - φ(args - t d)) / 2t

    The slope is measured along random directions d of each leaf and of all leaves together, with an
    error bar (Ridders 1982; ``jaxbp.checking.measuring``), in float64 wherever f can be evaluated
    so, and held against the claim (``jaxbp.checking.verdicts``).

    - grads: the claimed gradient: a tree like the argument (a tuple of them for several argnums),
      or a function of the same arguments that returns one.  Without it ``jax.grad(f)``, by f's own
      ``custom_vjp`` or ``custom_jvp`` where it has one.
    - argnums: the argument, or arguments, to differentiate by.  Integer leaves are held.
    - cotangent: for an f that returns no scalar, a tree like its result; random without it.
    - key: a ``jax.random.key`` for directions and cotangent; the same one each time without it.
    - threshold: how wrong counts as wrong, relative to the size of a slope in the leaf; 1e-6, 1e-4
      where f or the claim has float32's resolution only, 3e-2 in half precision.
    - directions: how many for each leaf.
    - order: 2 also checks the claimed gradient's own gradient, as for Hessian-vector products.
    - coordinates: how many entries of a failing leaf may be measured to find the wrong ones.
    - chunk: how many evaluations of f are made at once (default: by memory).

    An f under ``jax.jit`` is compiled once for any number of checks; another one each time.

    Raises TypeError or ValueError, naming argument and leaf, where f's result or the point is not
    finite, an argument has no floating point leaf, f returns something other than floating point
    numbers, or the claimed tree is not like the arguments.

    What it cannot see: what the directions it draws do not show (an error in one entry of a large
    leaf that is below the resolution), other points than this one, and, as f's own values are the
    judge, whether f is the function you meant.

    >>> import jax.numpy as jnp
    >>> gradcheck(jnp.sin, 1.0).verdict
    'pass'
    >>> gradcheck(lambda x: jnp.sum(x**2), jnp.arange(3.0), grads=jnp.arange(3.0)).diagnosis
    'off by a factor of 1/2'
    """
    _check_options(threshold, order, directions=directions, coordinates=coordinates, chunk=chunk)
    rng = generator(key)
    problem = pose(f, args, argnums, cotangent, rng)
    with jax.default_matmul_precision("highest"):
        claimed = claim(problem, grads, random_cotangent=cotangent is None)
        known = habits_of(problem, claimed)
        arena = arena_of(problem, numpy_constants=any(h.numpy_constants for h in known))
        measured = survey(arena, rng, directions, chunk=chunk)
        with arena.arithmetic():
            formula = _formula(claimed, measured)
            check = _Check(problem, claimed, measured, formula, known, rng, threshold)
            report = _report(check, coordinates)
    if order == 1:
        return report
    second = gradcheck(
        _slope_of(claimed, measured),
        problem.leaves,
        problem.held,
        key=key,
        threshold=threshold,
        directions=directions,
        coordinates=coordinates,
        chunk=chunk,
    )
    pairs = zip(second.leaves, problem.paths, strict=True)
    second = second._replace(leaves=tuple(leaf._replace(path=path) for leaf, path in pairs))
    return report._replace(second_order=second, verdict=worst([report.verdict, second.verdict]))


def _slope_of(claimed: Claim, measured: Survey) -> Callable[[Leaves, Held], Array]:
    """⟨∇φ, v⟩ for a random direction v, as a function of the point: its gradient is Hv."""
    function = claimed.function
    if function is None:
        raise ValueError("grads: got values, expected a function, for order=2")
    units = [d[0] / size for d, size in zip(measured.directions, measured.sizes, strict=True)]

    def slope(leaves: Leaves, held: Held) -> Array:
        pairs = zip(function(leaves, held), units, strict=True)
        terms = [jnp.sum(value * np.asarray(unit, value.dtype)) for value, unit in pairs]
        return sum(terms[1:], start=terms[0])

    return slope


def assert_gradients(f: Callable[..., Any], *args: Any, **options: Any) -> None:
    """Raise AssertionError, its message the table, unless ``gradcheck`` with the same arguments
    passes: for tests.

    >>> import jax.numpy as jnp
    >>> assert_gradients(jnp.sin, 1.0)
    """
    report = gradcheck(f, *args, **options)
    if not report.ok:
        raise AssertionError(f"{getattr(f, '__name__', f)}: {report}")


def _check_options(threshold: float | None, order: int, **counts: int | None) -> None:
    if order not in {1, 2}:
        raise ValueError(f"order: got {order!r}, expected 1 or 2")
    if threshold is not None and not 0 < threshold < 1:
        raise ValueError(f"threshold: got {threshold!r}, expected a share between 0 and 1")
    for name, count in counts.items():
        if count is not None and (not isinstance(count, int) or count < 1):
            raise ValueError(f"{name}: got {count!r}, expected a positive int")


class _Check(NamedTuple):
    """A claim, and what it is held against."""

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

    def threshold(self, values: Leaves) -> float:
        """τ for a claim given in some dtype."""
        if self.asked is not None:
            return self.asked
        dtypes = [np.asarray(value).dtype for value in values]
        return THRESHOLDS[min(d.itemsize for d in [*dtypes, self.survey.arena.dtype])]

    def judge(self, number: int, values: Leaves) -> Judgement:
        """One leaf of a claim, or all of them moving jointly, along its lines."""
        rows = self.survey.rows(number)
        return judge(
            self.survey.along(values)[rows],
            self.survey.ladder.of(rows),
            self.survey.slopes.of(rows),
            self.scale(number, values),
            self.threshold(values),
        )

    def scale(self, number: int, values: Leaves) -> float:
        """The size that a slope along these lines has, by the claim or by the measurement."""
        measured = self.survey.slopes.value[self.survey.rows(number)]
        typical = [
            norm(np.asarray(value, np.float64)) * size / np.sqrt(max(1, np.size(value)))
            for value, size in zip(values, self.survey.sizes, strict=True)
        ]
        claimed = norm(np.array(typical)) if number == len(values) else typical[number]
        return float(max(claimed, norm(measured) / np.sqrt(len(measured))))


def _formula(claimed: Claim, measured: Survey) -> Leaves | None:
    arena = measured.arena
    if claimed.function is None or not arena.wide:
        return None
    try:
        return _values(claimed, arena.problem.leaves, measured)
    except Exception:  # whatever the claim has against float64
        return None


def _values(claimed: Claim, leaves: Leaves, measured: Survey) -> Leaves:
    """The claimed gradient at another point, in the arithmetic of the survey."""
    assert claimed.function is not None
    values = claimed.function(leaves, measured.arena.problem.held)
    return tuple(np.asarray(value, np.float64) for value in values)


# One leaf


class _Finding(NamedTuple):
    """What is found of one leaf."""

    verdict: Verdict
    judgement: Judgement
    diagnosis: str = ""
    worst: tuple[Entry, ...] = ()


def _find(check: _Check, number: int) -> _Finding:
    """The verdict on one leaf, all excuses heard."""
    found = _find_claimed(check, number, check.judged)
    if check.formula is None or found.verdict == "fail" or _overflows(check, number):
        return found
    own = _find_claimed(check, number, check.claim.values)
    if own.verdict != "fail" or own.judgement.kinked.any():
        return found
    dtype = np.asarray(check.claim.values[number]).dtype
    return own._replace(diagnosis=f"wrong in {dtype} only; in float64 the same claim is right")


def _overflows(check: _Check, number: int) -> bool:
    """Whether f, or this leaf of its gradient, is too large for the arguments' own dtype."""
    largest = float(np.max(np.abs(check.judged[number]), initial=0.0))
    return check.survey.overflows or largest > largest_of(check.claim.values[number].dtype)


def _find_claimed(check: _Check, number: int, values: Leaves) -> _Finding:
    """The same for values of one dtype."""
    judgement = check.judge(number, values)
    finding = _Finding(_verdict(judgement), judgement)
    if not np.isfinite(values[number]).all():
        return finding._replace(verdict="fail")
    if judgement.kinked.any():
        if values is check.judged:
            finding = finding._replace(verdict=_verdict_at_kink(check, number, judgement))
    elif finding.verdict == "inconclusive" and _nothing_but_rounding(check, number):
        finding = finding._replace(verdict="pass")
    elif finding.verdict == "pass" and _zero_unseen(check, number):
        finding = finding._replace(verdict="inconclusive")
    return _excused(check, number, finding, values)


def _find_jointly(check: _Check, number: int) -> _Finding:
    """All leaves at once: they can be wrong together where each alone is inconclusive."""
    judgement = check.judge(number, check.judged)
    if judgement.kinked.any():
        return _Finding("inconclusive", judgement)
    return _excused(check, number, _Finding(_verdict(judgement), judgement), check.judged)


def _verdict(judgement: Judgement) -> Verdict:
    if judgement.failed.any():
        return "fail"
    return "pass" if judgement.passed.all() else "inconclusive"


def _excused(check: _Check, number: int, found: _Finding, values: Leaves) -> _Finding:
    """A claim whose dtype's own rounding may be what is wrong with it is not failed."""
    if found.verdict != "fail":
        return found
    judgement, rows = found.judgement, check.survey.rows(number)
    excess = (
        judgement.discrepancy - check.survey.slopes.error[rows] - _rounding(check, values)[rows]
    )
    tolerance = check.threshold(values) * check.scale(number, values)
    certain = (judgement.failed & (excess > tolerance)).any()
    return found if certain else found._replace(verdict="inconclusive")


def _rounding(check: _Check, values: Leaves) -> np.ndarray:
    """What the arithmetic of the claim's own dtype does to slopes: ten times what it does to
    ``jax.grad``'s, and what a few units in the last place of the arguments do, for a ReLU that they
    switch is no error of the claim."""
    arena, rng = check.survey.arena, check.rng
    eps = max(eps_of(np.asarray(value).dtype) for value in values)

    def perturbed(leaf: Any) -> Any:
        if not jnp.issubdtype(leaf.dtype, np.floating):
            return leaf
        shift = 1 + 8 * eps * rng.uniform(-1, 1, leaf.shape)
        return np.asarray(np.asarray(leaf) * shift, leaf.dtype)

    point = arena.problem.leaves, arena.problem.held
    along = check.survey.along
    try:
        automatic = _jax_grad(check)
        function = check.claim.function or automatic
        there = along(tuple(function(*point)))
        spread = [
            np.abs(along(tuple(function(*jax.tree.map(perturbed, point)))) - there)
            for _ in range(_PERTURBATIONS)
        ]
        rounded = np.zeros(1)
        if values is check.claim.values and arena.wide:
            with arithmetic(float64=False, numpy_constants=arena.numpy_constants):
                own = along(tuple(automatic(check.problem.leaves, check.problem.held)))
            rounded = 10 * np.abs(own - along(tuple(automatic(*point))))
    except Exception:  # no gradient to be had
        spread, rounded = [np.zeros(1)], np.zeros(1)
    return np.asarray(16 * eps * abs(check.survey.value) + rounded + 2 * np.max(spread, axis=0))


def _jax_grad(check: _Check) -> Callable[[Leaves, Held], Any]:
    return compiled(Claimed(check.problem.objective, None), check.problem)


def _verdict_at_kink(check: _Check, number: int, judgement: Judgement) -> Verdict:
    """At a kink the claim must lie among the slopes beside it and, beside it, be right."""
    if (judgement.failed & ~judgement.kinked).any():
        return "fail"
    rows = check.survey.rows(number)
    beside = []
    for _ in range(_POINTS_BESIDE):
        point = check.survey.beside(check.rng, _BESIDE)
        there = check.survey.at(point)
        beside.append(there.slopes.value[rows])
        if check.formula is not None:
            values = _values(check.claim, point, there)
            if _verdict(check._replace(survey=there).judge(number, values)) == "fail":
                return "fail"
    if np.all(judgement.passed | judgement.subgradient):
        return "pass"
    among = _among(check.survey, rows, check.survey.along(check.judged)[rows], np.array(beside))
    if np.all(judgement.passed | judgement.subgradient | among):
        return "inconclusive" if check.formula is None else "pass"
    return "fail" if check.formula is None else "inconclusive"


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


def _nothing_but_rounding(check: _Check, number: int) -> bool:
    """Whether the claim is zero but for rounding (it is all different a little beside the point),
    and no other slope is measured."""
    rows = check.survey.rows(number)
    slopes, claimed = check.survey.slopes.of(rows), check.survey.along(check.judged)[rows]
    small = np.abs(claimed) + np.abs(slopes.value) + slopes.error <= 1e-10 * abs(check.survey.value)
    if check.formula is None or not small.all():
        return False
    point = check.survey.beside(check.rng, _BESIDE)
    there = check.survey.along(_values(check.claim, point, check.survey))[rows]
    return bool(np.all(np.abs(there - claimed) >= np.abs(claimed) / 2))


def _zero_unseen(check: _Check, number: int) -> bool:
    """Whether zero is claimed, and f's rounding hides the other slope that jax.grad has."""
    if check.claim.automatic or check.judged[number].any():
        return False
    arena = check.survey.arena
    try:
        values = _jax_grad(check)(arena.problem.leaves, arena.problem.held)
    except Exception:  # f has no gradient of its own
        return False
    return bool(np.any(np.asarray(values[number])))


# All leaves


def _report(check: _Check, coordinates: int) -> GradientReport:
    findings = [_find(check, number) for number in range(len(check.problem.paths))]
    findings, notes = _under_vmap(check, findings)
    findings = _repeatable(check, findings)
    findings = _explained(check, findings, coordinates)
    leaves = [_leaf_report(check, number, finding) for number, finding in enumerate(findings)]
    joint = None
    if len(leaves) > 1:
        number = len(leaves)
        joint = _leaf_report(check, number, _find_jointly(check, number))
    leaves += [_stray_report(path, check.problem.fixed[path]) for path in check.claim.stray]
    return GradientReport(
        leaves=tuple(leaves),
        joint=joint,
        value=check.survey.value,
        precision=check.survey.arena.precision,
        threshold=check.threshold(check.judged),
        diagnosis=symptoms.summary([(leaf.path, leaf.verdict, leaf.diagnosis) for leaf in leaves]),
        notes=(*_notes(check), *notes),
        verdict=overall(leaves, joint),
    )


def _notes(check: _Check) -> list[str]:
    overflow = ["in float32 f is not finite here"] if check.survey.overflows else []
    strayed = check.claim.stray
    return overflow + [
        f"{path} is {dtype} and was held: there is no gradient by it"
        for path, dtype in check.problem.fixed.items()
        if path not in strayed
    ]


def _repeatable(check: _Check, findings: list[_Finding]) -> list[_Finding]:
    """A claim that is another one each time fails; where f itself is, nothing can be said."""
    problem = check.survey.arena.problem
    of_f, of_claim = check.habits
    if not of_f.repeats and _varies(problem.objective, problem):
        why = "non-deterministic: f has another value each time"
        return [finding._replace(verdict="inconclusive", diagnosis=why) for finding in findings]
    if not of_claim.repeats and check.claim.formula and _varies(check.claim.formula, problem):
        why = "non-deterministic: the claimed gradient is another one each time"
        return [finding._replace(verdict="fail", diagnosis=why) for finding in findings]
    return findings


def _varies(function: Callable[..., Any], problem: Problem) -> bool:
    """Whether a function gives something else when it is traced, or run, a second time."""
    point = problem.leaves, problem.held
    try:
        results = [jax.tree.leaves(jax.jit(partial(function))(*point)) for _ in range(2)]
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError):
        results = [jax.tree.leaves(function(*point)) for _ in range(2)]  # NumPy inside
    return any(map(_differ, *results))


def _differ(first: Any, second: Any) -> bool:
    """By more than the order of summation, which several threads need not keep."""
    ours, theirs = (np.asarray(array, np.float64) for array in (first, second))
    eps = eps_of(np.asarray(first).dtype)
    return norm(ours - theirs) > 1000 * eps * norm(ours)


def _under_vmap(check: _Check, findings: list[_Finding]) -> tuple[list[_Finding], list[str]]:
    """``vmap`` of the claimed gradient must agree with a loop."""
    if check.formula is None or check.claim.formula is None:
        return findings, []
    points = [check.survey.beside(check.rng, _BESIDE) for _ in range(2)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *points)
    try:
        trees = under_vmap(check.claim.formula)(stacked, check.survey.arena.problem.held)
    except Exception as error:
        return findings, [f"vmap of the gradient raises {type(error).__name__}"]
    judged = list(findings)
    for index, point in enumerate(points):
        tree = jax.tree.map(lambda leaf, i=index: np.asarray(leaf)[i], trees)
        batched = tree if check.claim.automatic else gradient_leaves(check.problem, tree, "")[0]
        looped = _values(check.claim, point, check.survey)
        for number, (one, other) in enumerate(zip(looped, batched, strict=True)):
            if findings[number].verdict != "fail" and not _agree(check, number, one, other):
                why = "vmap of the gradient is not what a loop gives"
                judged[number] = findings[number]._replace(verdict="fail", diagnosis=why)
    return judged, []


def _agree(check: _Check, number: int, one: np.ndarray, other: Any) -> bool:
    """Within the threshold, and what rounding in f's value amounts to."""
    if not np.isfinite(one).all():
        return True  # what is not finite is not for vmap to answer for
    rounding = 1e-10 * abs(check.survey.value) / check.survey.sizes[number]
    allowed = check.threshold(check.judged) * norm(one) + rounding
    return norm(np.asarray(other, np.float64) - one) <= allowed


def _explained(check: _Check, findings: list[_Finding], coordinates: int) -> list[_Finding]:
    """With a diagnosis and the worst entries where they failed."""
    failed = [
        number
        for number, finding in enumerate(findings)
        if finding.verdict == "fail" and not finding.diagnosis.startswith("non-deterministic")
    ]
    if not failed:
        return findings
    scene = symptoms.Scene(
        claimed=[np.asarray(value, np.float64) for value in check.judged],
        paths=check.problem.paths,
        survey=check.survey,
        lengths=first_axes(check.problem.objective, check.problem.leaves, check.problem.held),
    )
    explained = list(findings)
    for number, symptom in symptoms.explain(scene, failed, coordinates).items():
        why = findings[number].diagnosis or symptom.diagnosis
        explained[number] = findings[number]._replace(diagnosis=why, worst=symptom.worst)
    return explained


def _leaf_report(check: _Check, number: int, finding: _Finding) -> LeafReport:
    """One leaf as it is reported: slopes along the direction in which the claim is furthest off."""
    survey, problem = check.survey, check.problem
    rows = survey.rows(number)
    ladder, slopes = survey.ladder.of(rows), survey.slopes.of(rows)
    jointly = number == len(problem.paths)
    size = norm(np.array(survey.sizes)) if jointly else survey.sizes[number]
    claimed = survey.along(check.judged)[rows]
    scale = check.scale(number, check.judged)
    discrepancy = finding.judgement.discrepancy
    line = int(np.argmax(np.where(np.isnan(discrepancy), np.inf, discrepancy)))
    order = taylor_order(claimed, ladder, check.threshold(check.judged) * scale)
    taylor = "inconclusive" if finding.judgement.kinked.any() else taylor_verdict(order)
    leaf = None if jointly else np.asarray(problem.leaves[number])
    with np.errstate(all="ignore"):
        quotients = (ladder.plus - ladder.minus)[line] / (2 * ladder.steps)
        relative = np.array([discrepancy[line], np.max(slopes.error)]) / scale
    return LeafReport(
        path="(all at once)" if leaf is None else problem.paths[number],
        shape=() if leaf is None else leaf.shape,
        dtype="" if leaf is None else str(jax.dtypes.canonicalize_dtype(leaf.dtype)),
        verdict=finding.verdict,
        claimed=claimed[line] / size,
        measured=slopes.value[line] / size,
        error=slopes.error[line] / size,
        relative_error=relative[0] if scale else 0.0,
        resolution=relative[1] if scale else 0.0,
        taylor=taylor,
        order=_lowest(order.second),
        kink=_kink(finding, slopes, size),
        diagnosis=finding.diagnosis,
        worst=finding.worst,
        curve=Curve(
            ladder.steps, quotients / size, rounding_bar(ladder)[line] / size, slopes.step[line]
        ),
    )


def _lowest(orders: np.ndarray) -> float:
    return float(np.nan if np.isnan(orders).all() else np.nanmin(orders))


def _kink(finding: _Finding, slopes: Slopes, size: float) -> Kink | None:
    """The kink that is widest."""
    kinked = finding.judgement.kinked
    if not kinked.any():
        return None
    line = int(np.argmax(np.where(kinked, np.abs(slopes.jump), 0)))
    half = abs(slopes.jump[line]) / 2
    return Kink(
        lower=float(slopes.value[line] - half) / size,
        upper=float(slopes.value[line] + half) / size,
        subgradient=finding.verdict == "pass",
    )


def _stray_report(path: str, dtype: str) -> LeafReport:
    """A leaf that cannot move, for which a slope is claimed."""
    nothing = float("nan")
    return LeafReport(
        path=path,
        shape=(),
        dtype=dtype,
        verdict="fail",
        claimed=nothing,
        measured=nothing,
        error=nothing,
        relative_error=nothing,
        resolution=nothing,
        taylor="inconclusive",
        order=nothing,
        kink=None,
        diagnosis=f"not differentiable: it is {dtype}, and yet a gradient is claimed for it",
        worst=(),
        curve=None,
    )
