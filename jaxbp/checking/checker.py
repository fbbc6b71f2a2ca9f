"""The checker: pose the problem, measure slopes, judge the claim, explain what failed."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxbp.checking import diagnosis
from jaxbp.checking.comparing import norm
from jaxbp.checking.finite_differences import Slopes, rounding_bar
from jaxbp.checking.jaxprs import eps_of, first_axes
from jaxbp.checking.leaf_verdicts import (
    BESIDE,
    Check,
    Finding,
    find,
    find_jointly,
    formula_of,
    values_at,
)
from jaxbp.checking.measurement import Survey, arena_of, survey
from jaxbp.checking.problem import (
    Claim,
    Held,
    Leaves,
    Problem,
    claim,
    generator,
    gradient_leaves,
    habits_of,
    pose,
    under_vmap,
)
from jaxbp.checking.report import Curve, GradientReport, Kink, LeafReport, overall
from jaxbp.checking.verdicts import taylor_order, taylor_verdict, worst


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

    An f under ``jax.jit`` is compiled once for any number of checks; another one each time.  Where
    f closes over NumPy arrays JAX's caches are cleared before and after (why:
    ``jaxbp.checking.jaxprs.arithmetic``); jax.numpy arrays, or arguments, spare you that.

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
    checked = partial(
        _checked, threshold=threshold, directions=directions, coordinates=coordinates, chunk=chunk
    )
    with jax.default_matmul_precision("highest"):
        claimed = claim(problem, grads, random_cotangent=cotangent is None)
        report, measured = checked(problem, claimed, rng)
        if order == 1:
            return report
        rng = generator(key)
        slope = pose(_slope_of(claimed, measured), (problem.leaves, problem.held), 0, None, rng)
        slope = slope._replace(paths=problem.paths)  # as the user knows them
        second, _ = checked(slope, claim(slope, None, random_cotangent=False), rng)
    return replace(report, second_order=second, verdict=worst([report.verdict, second.verdict]))


def _checked(
    problem: Problem,
    claimed: Claim,
    rng: np.random.Generator,
    *,
    threshold: float | None,
    directions: int,
    coordinates: int,
    chunk: int | None,
) -> tuple[GradientReport, Survey]:
    """The report on a claim, and what was measured for it."""
    known = habits_of(problem, claimed)
    arena = arena_of(problem, numpy_constants=any(h.numpy_constants for h in known))
    measured = survey(arena, rng, directions, chunk=chunk)
    with arena.arithmetic():
        formula = formula_of(claimed, measured)
        check = Check(problem, claimed, measured, formula, known, rng, threshold)
        return _report(check, coordinates), measured


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


def _report(check: Check, coordinates: int) -> GradientReport:
    findings = [find(check, number) for number in range(len(check.problem.paths))]
    findings, notes = _under_vmap(check, findings)
    findings = _repeatable(check, findings)
    findings = _explained(check, findings, coordinates)
    leaves = [_leaf_report(check, number, finding) for number, finding in enumerate(findings)]
    joint = None
    if len(leaves) > 1:
        number = len(leaves)
        joint = _leaf_report(check, number, find_jointly(check, number))
    leaves += [_stray_report(path, check.problem.fixed[path]) for path in check.claim.stray]
    return GradientReport(
        leaves=tuple(leaves),
        joint=joint,
        value=check.survey.value,
        precision=check.survey.arena.precision,
        threshold=check.threshold,
        diagnosis=diagnosis.summary([(leaf.path, leaf.verdict, leaf.diagnosis) for leaf in leaves]),
        notes=(*_notes(check), *notes),
        verdict=overall(leaves, joint),
    )


def _notes(check: Check) -> list[str]:
    overflow = ["in float32 f is not finite here"] if check.survey.overflows else []
    strayed = check.claim.stray
    return overflow + [
        f"{path} is {dtype} and was held: there is no gradient by it"
        for path, dtype in check.problem.fixed.items()
        if path not in strayed
    ]


def _repeatable(check: Check, findings: list[Finding]) -> list[Finding]:
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


def _under_vmap(check: Check, findings: list[Finding]) -> tuple[list[Finding], list[str]]:
    """``vmap`` of the claimed gradient must agree with a loop."""
    if check.formula is None or check.claim.formula is None:
        return findings, []
    points = [check.survey.beside(check.rng, BESIDE) for _ in range(2)]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *points)
    try:
        trees = under_vmap(check.claim.formula)(stacked, check.survey.arena.problem.held)
    except Exception as error:
        return findings, [f"vmap of the gradient raises {type(error).__name__}"]
    judged = list(findings)
    for index, point in enumerate(points):
        tree = jax.tree.map(lambda leaf, i=index: np.asarray(leaf)[i], trees)
        batched = tree if check.claim.automatic else gradient_leaves(check.problem, tree, "")[0]
        looped = values_at(check.claim, point, check.survey)
        for number, (one, other) in enumerate(zip(looped, batched, strict=True)):
            if findings[number].verdict != "fail" and not _agree(check, number, one, other):
                why = "vmap of the gradient is not what a loop gives"
                judged[number] = findings[number]._replace(verdict="fail", diagnosis=why)
    return judged, []


def _agree(check: Check, number: int, one: np.ndarray, other: Any) -> bool:
    """Within the threshold, and what rounding in f's value amounts to."""
    if not np.isfinite(one).all():
        return True  # what is not finite is not for vmap to answer for
    rounding = 1e-10 * abs(check.survey.value) / check.survey.sizes[number]
    allowed = check.threshold * norm(one) + rounding
    return norm(np.asarray(other, np.float64) - one) <= allowed


def _explained(check: Check, findings: list[Finding], coordinates: int) -> list[Finding]:
    """With a diagnosis and the worst entries where they failed."""
    failed = [
        number
        for number, finding in enumerate(findings)
        if finding.verdict == "fail" and not finding.diagnosis.startswith("non-deterministic")
    ]
    if not failed:
        return findings
    scene = diagnosis.Scene(
        claimed=[np.asarray(value, np.float64) for value in check.judged],
        paths=check.problem.paths,
        survey=check.survey,
        lengths=first_axes(check.problem.objective, check.problem.leaves, check.problem.held),
    )
    explained = list(findings)
    for number, symptom in diagnosis.explain(scene, failed, coordinates).items():
        why = findings[number].diagnosis or symptom.diagnosis
        explained[number] = findings[number]._replace(diagnosis=why, worst=symptom.worst)
    return explained


def _leaf_report(check: Check, number: int, finding: Finding) -> LeafReport:
    """One leaf as it is reported: slopes along the direction in which the claim is furthest off."""
    survey, problem = check.survey, check.problem
    rows = survey.rows(number)
    ladder, slopes = survey.ladder.of(rows), survey.slopes.of(rows)
    jointly = number == len(problem.paths)
    size = norm(np.array(survey.sizes)) if jointly else survey.sizes[number]
    claimed = check.along[rows]
    scale = check.scale(number)
    discrepancy = finding.judgement.discrepancy
    line = int(np.argmax(np.where(np.isnan(discrepancy), np.inf, discrepancy)))
    order = taylor_order(claimed, ladder, check.threshold * scale)
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


def _kink(finding: Finding, slopes: Slopes, size: float) -> Kink | None:
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
