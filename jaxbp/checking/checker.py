"""The checker: pose the problem, measure slopes, compare the claim, diagnose what failed."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxbp.checking.as_numpy import need_numpy_alone
from jaxbp.checking.comparing import norm
from jaxbp.checking.diagnosis import EXPLAINED, FailedGradient, common_mistake, diagnose
from jaxbp.checking.finite_differences import Leaves, Slopes, rounding_bar
from jaxbp.checking.jaxprs import UNTRACEABLE, coarsest_dtype, eps_of, first_axes
from jaxbp.checking.leaf_verdicts import (
    NEARBY,
    ClaimCheck,
    LeafVerdict,
    joint_verdict,
    leaf_verdict,
)
from jaxbp.checking.measurement import CLOSER, Measurement, arithmetic_of, measure
from jaxbp.checking.problem import (
    Claim,
    Held,
    NoDerivativeError,
    Problem,
    Purpose,
    claim,
    gradient_leaves,
    numpy_constants,
    pose,
    under_vmap,
)
from jaxbp.checking.report import Curve, GradientReport, Kink, LeafReport, overall
from jaxbp.checking.rounded_products import EXACT, Products, has_products, products_of
from jaxbp.checking.value import wrong_value
from jaxbp.checking.verdicts import Verdict, taylor_order, taylor_verdict, worst_verdict
from jaxbp.text import one_line

_BY_ROUNDING = 0.02  # relative errors below may be those of rounded products
_MAY_BE_ROUNDED = "if a GPU or TPU made it, precision= says how its products were rounded"


def gradcheck(
    f: Callable[..., Any],
    *args: Any,
    grads: Any = None,
    argnums: int | Sequence[int] = 0,
    cotangent: Any = None,
    key: Array | None = None,
    threshold: float | None = None,
    directions: int | None = None,
    order: int = 1,
    coordinates: int = 512,
    chunk: int | None = None,
    precision: str | None = None,
    max_evaluations: int | None = None,
) -> GradientReport:
    """Check a gradient of f at args against the values of f.

        φ(args) = ⟨cotangent, f(*args)⟩,   ⟨∇φ, d⟩ = lim (φ(args + t d) - φ(args - t d)) / 2t

    The slope is measured along random directions d of each leaf and of all leaves together, with an
    error bar (Ridders 1982; ``jaxbp.checking.finite_differences``), in float64 if f can be
    evaluated so, and compared with the claim (``jaxbp.checking.verdicts``).  A ``custom_jvp`` or
    ``custom_vjp`` rule gives f's value too: without grads, it must be that of f called plainly
    (``jaxbp.checking.value``).

    f: the function; its result is a number, an array or a tree of them.  If JAX cannot trace it,
        as one of PyTorch, or f and grads need NumPy alone, it is a *black box*: called one point at
        a time, with copies of the arguments, in float64 if it takes that
        (``jaxbp.checking.black_box``).
    args: the arguments, numbers, arrays (NumPy's, JAX's, PyTorch's or another's) or trees of them.
    grads: the claimed gradient: a tree like the argument (a tuple of them for several argnums), or
        a function of the same arguments that returns one.  Unless given it is that of
        ``jax.grad(f)``, by f's own ``custom_vjp`` or ``custom_jvp`` if it has one; of tensors that
        of ``torch.autograd.grad``; any other black box needs it.
    argnums: the position, or positions, of the arguments to differentiate by; 0 unless given.
        Integer leaves are held.
    cotangent: for an f whose result is not a scalar, a tree like the result; random unless given.
    key: a ``jax.random.key`` for directions and cotangent; always the same numbers unless given.
    threshold: the relative error from which a slope is wrong, a share of the size that slopes have
        in the leaf.  Unless given it is 1e-6, or 1e-4 if f or the claim has float32's precision
        only, 3e-2 in half precision, 0.5 in 8 bits; of rounded products a unit in the last place of
        their operands, 1e-3 in TF32.
    directions: how many directions of each leaf; 4 unless given, or 2 for a black box with several
        leaves.
    order: 2 also checks the claimed gradient's own gradient, as for Hessian-vector products; 1
        unless given.  Where that cannot be had, a note says why, ``second_order`` is None and no
        check passes.
    coordinates: how many entries of a failing leaf may be measured to find the wrong ones; 512
        unless given.
    chunk: how many evaluations of f are made at once; by memory unless given.
    precision: what the float32 products of the claimed values were computed in, as their rounding
        is no error of the claim: "tensorfloat32" or "bfloat16" for a gradient made on a GPU or a
        TPU, "float32" or "highest" for one without such rounding, "default" or "high" for what
        these mean on this device.  Unless given, values are taken to be made on this device, at the
        precision that JAX is set to.  f is always measured, and a function in grads evaluated, at
        "highest": name here what its products keep whatever JAX is told, as those of a kernel.
    max_evaluations: how often a black box may be called.  Unless given, a verdict takes as many
        calls as it needs (some 200 for one smooth leaf), and the search for wrong entries ends
        after a minute of calls, or 10,000 of them.

    An f under ``jax.jit`` is compiled once for any number of checks; another one each time.

    Raises TypeError or ValueError, naming argument and leaf, if f's result, the point or the
    cotangent is not finite, no floating point leaf has an entry, f returns something other than
    floating point numbers, JAX cannot differentiate f and no grads are given, the claimed tree is
    not like the arguments, a black box comes without a gradient or with order=2, max_evaluations is
    too low for a verdict, or precision has another name.  What is held may be infinite, as a mask
    is; an empty leaf beside others passes; and a claim that is not finite fails.  What f or the
    claim raise at the point is not caught.

    It checks one point, along random directions.  It cannot see an error that these do not show, as
    one in an entry of a large leaf that is below the error bar; it cannot see other points, or
    whether f is the function you meant.

    >>> import jax.numpy as jnp
    >>> gradcheck(jnp.sin, 1.0).verdict
    'pass'
    >>> gradcheck(lambda x: jnp.sum(x**2), jnp.arange(3.0), grads=jnp.arange(3.0)).diagnosis
    'off by a factor of 1/2'
    """
    _check_options(
        threshold,
        order,
        directions=directions,
        coordinates=coordinates,
        chunk=chunk,
        max_evaluations=max_evaluations,
    )
    if order == 2 and grads is not None and not callable(grads):
        raise ValueError("grads: got values, expected a function, for order=2")
    checked = partial(
        _checked, threshold=threshold, directions=directions, coordinates=coordinates, chunk=chunk
    )
    products = products_of(precision)  # before the precision of products is set
    with jax.default_matmul_precision("highest"):
        asked = order == 1 and grads is not None
        by_numpy = asked and need_numpy_alone(f, grads, args)
        problem = pose(f, args, argnums, cotangent, key, max_evaluations, traced=not by_numpy)
        if asked and problem.black_box is not None:
            problem.black_box.calls += 1  # by which that was found out
        if order == 2 and problem.black_box is not None:
            raise ValueError(f"order: got 2, expected 1 for {problem.black_box.name}")
        claimed = claim(problem, grads, random_cotangent=cotangent is None)
        report, measurement = checked(problem, claimed, products)
        if order == 1:
            return report
        second = _second_order(problem, claimed, measurement, checked, key)
    if isinstance(second, str):
        verdict = worst_verdict([report.verdict, "inconclusive"])
        return replace(report, notes=(*report.notes, f"second order: {second}"), verdict=verdict)
    verdict = worst_verdict([report.verdict, second.verdict])
    return replace(report, second_order=second, verdict=verdict)


def _check_options(threshold: float | None, order: int, **counts: int | None) -> None:
    if not isinstance(order, int) or order not in {1, 2}:
        raise ValueError(f"order: got {order!r}, expected 1 or 2")
    if threshold is not None and not (isinstance(threshold, Real) and 0 < threshold < 1):
        raise ValueError(f"threshold: got {threshold!r}, expected a share between 0 and 1")
    for name, count in counts.items():
        if count is not None and (not isinstance(count, int) or count is True or count < 1):
            raise ValueError(f"{name}: got {count!r}, expected a positive int")


def _checked(
    problem: Problem,
    claimed: Claim,
    products: Products,
    *,
    threshold: float | None,
    directions: int | None,
    coordinates: int,
    chunk: int | None,
) -> tuple[GradientReport, Measurement]:
    """The report on a claim, and the measurement that it rests on."""
    arithmetic = arithmetic_of(problem, numpy_constants=numpy_constants(problem, claimed))
    if directions is None:
        directions = 4 if problem.black_box is None or len(problem.leaves) == 1 else 2
    measurement = measure(arithmetic, directions, chunk=chunk)
    notes: tuple[str, ...] = ()
    with arithmetic.enabled():
        values = None
        if arithmetic.float64 and claimed.function is not None:
            try:
                values = claimed.values_at(arithmetic.problem.leaves, arithmetic.problem.held)
            except Exception as error:  # the claim may have anything against float64
                notes = (f"in float64 the claimed gradient raises {one_line(error)}",)
        own_problem = problem if values is None else arithmetic.problem
        claim_dtype = _coarsest_dtype_of(claimed, own_problem)
    check = ClaimCheck(problem, claimed, measurement, values, threshold, None, claim_dtype)
    # no claim fails by the first look alone
    for closer in CLOSER[: None if problem.black_box is None else 1]:  # more calls where in doubt
        if not check.agrees:
            check = replace(check, measurement=closer(check.measurement))
    if claim_dtype is not None and _is_coarser(claim_dtype, problem.leaves):
        notes = (*notes, f"the claimed gradient passes through {claim_dtype}")
    if claimed.function is None:
        check = check.in_own_dtype
    with check.measurement.arithmetic.enabled():
        if (problem.black_box is None or products.named) and products.may_round(
            claimed.values, needed=claimed.function is None and not check.agrees
        ):
            rounded = replace(check, claimed_products=products)
            check = rounded if rounded.in_own_dtype.rounds else check
        report = _report(check, coordinates, notes)
        if _like_rounded(check, products, report.leaves):
            report = replace(report, notes=(*report.notes, _MAY_BE_ROUNDED))
        return report, check.measurement


def _coarsest_dtype_of(claimed: Claim, problem: Problem) -> np.dtype[Any] | None:
    """The coarsest dtype that a claimed function passes through, custom rules included; if JAX
    cannot trace it, that of its values; None for a claim that is given as values."""
    if claimed.function is None:
        return None
    if claimed.tracing is None:
        values = claimed.function(problem.leaves, problem.held)
        coarsest: np.dtype[Any] = max((np.asarray(value).dtype for value in values), key=eps_of)
        return coarsest
    moving = len(problem.leaves)
    return coarsest_dtype(claimed.function, problem.leaves, problem.held, moving=moving)


def _is_coarser(dtype: np.dtype[Any], leaves: Leaves) -> bool:
    """Whether a dtype is coarser than those of all the leaves."""
    return eps_of(dtype) > max(eps_of(leaf.dtype) for leaf in leaves)


def _second_order(
    problem: Problem,
    claimed: Claim,
    measurement: Measurement,
    checked: Callable[..., tuple[GradientReport, Measurement]],
    key: Array | None,
) -> GradientReport | str:
    """The report on the gradient of the claimed gradient's slope, or why there is none."""
    if claimed.tracing is None:
        return "JAX cannot trace the claimed gradient"
    if not all(np.isfinite(value).all() for value in claimed.values):
        return "the claimed gradient is not finite"
    point = problem.leaves, problem.held
    try:
        slope = pose(_slope_of(claimed, measurement), point, 0, None, key)
        slope = replace(slope, paths=problem.paths)  # as the user knows them
        return checked(slope, claim(slope, None, random_cotangent=False), EXACT)[0]
    except NoDerivativeError as error:
        return error.reason
    except Exception as error:  # the user's rule need not have a derivative
        return one_line(error)


def _slope_of(claimed: Claim, measurement: Measurement) -> Callable[[Leaves, Held], Array]:
    """⟨∇φ, v⟩ for a random direction v, as a function of the point: its gradient is Hv."""
    function = claimed.function
    assert function is not None
    units = [d[0] / size for d, size in zip(measurement.directions, measurement.sizes, strict=True)]

    def slope(leaves: Leaves, held: Held) -> Array:
        pairs = zip(function(leaves, held), units, strict=True)
        terms = [jnp.sum(value * np.asarray(unit, value.dtype)) for value, unit in pairs]
        return sum(terms[1:], start=terms[0])

    return slope


def assert_gradients(f: Callable[..., Any], *args: Any, **options: Any) -> None:
    """Raise AssertionError, with the report as its message, unless ``gradcheck`` passes: for tests.

    f, args, options: as for ``gradcheck``.

    >>> import jax.numpy as jnp
    >>> assert_gradients(jnp.sin, 1.0)
    """
    report = gradcheck(f, *args, **options)
    if not report.ok:
        raise AssertionError(f"{getattr(f, '__name__', f)}: {report}")


def _report(check: ClaimCheck, coordinates: int, notes: tuple[str, ...]) -> GradientReport:
    paths, measurement = check.problem.paths, check.measurement
    verdicts = [leaf_verdict(check, index) for index in range(len(paths))]
    verdicts, failures_of_vmap = _under_vmap(check, verdicts)
    verdicts = _repeated(check, verdicts)
    verdicts = _diagnosed(check, verdicts, coordinates)
    leaves = [_leaf_report(check, index, found) for index, found in enumerate(verdicts)]
    joint = None
    if len(leaves) > 1:
        verdicts.append(joint_verdict(check, len(paths)))
        joint = _leaf_report(check, len(paths), verdicts[-1])
    not_differentiable = check.claim.not_differentiable
    leaves += [_held_report(path, check.problem.fixed[path]) for path in not_differentiable]
    overflow = ["in float32 f is not finite here"] if measurement.overflows else []
    held = [
        f"{path} is {dtype} and was held: it has no gradient"
        for path, dtype in check.problem.fixed.items()
        if path not in not_differentiable
    ]
    black_box = check.problem.black_box
    raised = [*measurement.notes, *notes, *(note for found in verdicts for note in found.notes)]
    raised += [] if black_box is None else black_box.notes()
    value_mistake = wrong_value(check)
    products = [] if check.claimed_products is None else [str(check.claimed_products)]
    products += check.in_own_dtype.product_rounding[1]
    return GradientReport(
        leaves=tuple(leaves),
        joint=joint,
        value=measurement.value,
        precision=measurement.arithmetic.precision,
        threshold=check.threshold,
        diagnosis=common_mistake([(leaf.path, leaf.verdict, leaf.diagnosis) for leaf in leaves]),
        notes=tuple(dict.fromkeys([*overflow, *held, *products, *raised, *failures_of_vmap])),
        verdict=overall(leaves, joint, value_mistake),
        value_mistake=value_mistake,
        black_box="" if black_box is None else black_box.name,
        evaluations=None if black_box is None else black_box.calls,
    )


def _like_rounded(check: ClaimCheck, products: Products, leaves: Sequence[LeafReport]) -> bool:
    """Whether values fail by so little that it may be the rounding of products, of which nothing is
    said, in an f that has products."""
    failed = [leaf for leaf in leaves if leaf.verdict == "fail"]
    by_values = check.claim.function is None and check.claimed_products is None
    in_float32 = all(value.dtype != np.float64 for value in check.claim.values)
    jaxpr = check.problem.tracing.jaxpr
    multiplies = jaxpr is not None and has_products(jaxpr)
    by_little = bool(failed) and all(leaf.relative_error < _BY_ROUNDING for leaf in failed)
    return by_values and not products.named and in_float32 and multiplies and by_little


def _repeated(check: ClaimCheck, verdicts: list[LeafVerdict]) -> list[LeafVerdict]:
    """A claim that is different each time fails; if f itself is, the verdict is inconclusive."""
    problem, claimed = check.measurement.arithmetic.problem, check.claim
    accepted = check.problem if check.float64_values is None else problem  # by the claim
    verdict: Verdict
    if not problem.tracing.deterministic and _varies(problem.objective, problem):
        verdict, mistake = "inconclusive", "non-deterministic: f has a different value each time"
    elif (
        claimed.gradient is not None
        and not (claimed.tracing is not None and claimed.tracing.deterministic)
        and _varies(claimed.gradient, accepted)
    ):
        verdict = "fail"
        mistake = "non-deterministic: the claimed gradient is different each time"
    else:
        return verdicts
    return [replace(found, verdict=verdict, diagnosis=mistake) for found in verdicts]


def _varies(function: Callable[..., Any], problem: Problem) -> bool:
    """Whether a function gives another result when it is traced, or run, a second time."""
    point = problem.leaves, problem.held
    called = problem.black_box is not None
    try:
        runs = [function if called else jax.jit(partial(function)) for _ in range(2)]
        results = [jax.tree.leaves(run(*point)) for run in runs]
    except UNTRACEABLE:  # NumPy inside
        results = [jax.tree.leaves(function(*point)) for _ in range(2)]
    return any(map(_differ, *results))


def _differ(first: Any, second: Any) -> bool:
    """Whether two arrays differ by more than the order of summation, which threads may change."""
    if not jnp.issubdtype(np.asarray(first).dtype, np.floating):  # float0 or 0, of an integer
        return False
    ours, theirs = (np.asarray(array, np.float64) for array in (first, second))
    eps = eps_of(np.asarray(first).dtype)
    return norm(ours - theirs) > 1000 * eps * norm(ours)


def _under_vmap(
    check: ClaimCheck, verdicts: list[LeafVerdict]
) -> tuple[list[LeafVerdict], list[str]]:
    """A claim whose ``vmap`` disagrees with a loop fails; with the exceptions that vmap raises."""
    if check.float64_values is None or check.claim.tracing is None:
        return verdicts, []
    points = [
        check.measurement.nearby_point(Purpose.POINTS_FOR_VMAP, index, NEARBY) for index in range(2)
    ]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *points)
    assert check.claim.gradient is not None  # it has been traced
    try:
        trees = under_vmap(check.claim.gradient, check.claim.tracing)(
            stacked, check.measurement.arithmetic.problem.held
        )
    except Exception as error:  # a callback, say, need not have a rule for vmap
        return verdicts, [f"vmap of the gradient raises {one_line(error)}"]
    judged = list(verdicts)
    for position, point in enumerate(points):
        tree = jax.tree.map(lambda leaf, i=position: np.asarray(leaf)[i], trees)
        batched = tree if check.claim.automatic else gradient_leaves(check.problem, tree, "")[0]
        for index, (one, other) in enumerate(zip(check.values_at(point), batched, strict=True)):
            if verdicts[index].verdict != "fail" and not _agree(check, index, one, other):
                mistake = "vmap of the gradient is not what a loop gives"
                judged[index] = replace(verdicts[index], verdict="fail", diagnosis=mistake)
    return judged, []


def _agree(check: ClaimCheck, index: int, one: np.ndarray, other: Any) -> bool:
    """Whether two values of a leaf agree within the threshold and the rounding in f's value."""
    if not np.isfinite(one).all():
        return True  # a loop is no better than vmap then
    rounding = 1e-10 * abs(check.measurement.value) / check.measurement.sizes[index]
    allowed = check.threshold * norm(one) + rounding
    return norm(np.asarray(other, np.float64) - one) <= allowed


def _diagnosed(
    check: ClaimCheck, verdicts: list[LeafVerdict], coordinates: int
) -> list[LeafVerdict]:
    """The verdicts with a diagnosis and the worst entries where they are fail."""
    failed = [
        index
        for index, found in enumerate(verdicts)
        if found.verdict == "fail" and not found.diagnosis.startswith("non-deterministic")
    ]
    if not failed:
        return verdicts
    slopes = check.measurement.slopes
    error = np.concatenate([check.resolution(index) for index in range(len(verdicts) + 1)])
    gradient = FailedGradient(
        claimed=[np.asarray(value, np.float64) for value in check.values],
        paths=check.problem.paths,
        measurement=replace(check.measurement, slopes=slopes._replace(error=error)),
        tolerance=EXPLAINED if check.products is None else 4 * check.products.eps,
        lengths=_first_axes(check.problem),
    )
    diagnosed = list(verdicts)
    for index, diagnosis in diagnose(gradient, failed, coordinates).items():
        found = verdicts[index]
        diagnosed[index] = replace(
            found,
            diagnosis=found.diagnosis or diagnosis.mistake,
            worst=diagnosis.worst,
            notes=(*found.notes, *diagnosis.notes),
        )
    return diagnosed


def _first_axes(problem: Problem) -> frozenset[int]:
    """The lengths of first axes: inside f or, of a black box, among its arguments."""
    if problem.black_box is None:
        return first_axes(problem.tracing.jaxpr)
    arrays = (*problem.leaves, *problem.held.arrays)
    return frozenset(leaf.shape[0] for leaf in arrays if leaf.shape)


def _leaf_report(check: ClaimCheck, index: int, found: LeafVerdict) -> LeafReport:
    """The report on one leaf, with the slopes along the direction in which the claim is furthest
    off."""
    measurement, problem = check.measurement, check.problem
    rows = measurement.rows(index)
    samples, slopes = measurement.samples.take(rows), measurement.slopes.take(rows)
    jointly = index == len(problem.paths)
    lengths = measurement.lengths[rows]
    claimed = check.claimed_slopes[rows]
    scale = check.scale(index)
    explained = found.agreement.explained
    discrepancy = found.agreement.discrepancy + np.abs(explained)
    line = int(np.argmax(np.where(np.isnan(discrepancy), np.inf, discrepancy)))
    size = lengths[line]
    orders = taylor_order(claimed - explained, samples, check.threshold * scale)
    kinked = found.agreement.kinked.any()
    leaf = None if jointly else np.asarray(problem.leaves[index])
    with np.errstate(all="ignore"):
        relative = np.array([discrepancy[line], np.max(check.resolution(index))]) / scale
    return LeafReport(
        path="(all at once)" if leaf is None else problem.paths[index],
        shape=() if leaf is None else leaf.shape,
        dtype="" if leaf is None else str(jax.dtypes.canonicalize_dtype(leaf.dtype)),
        verdict=found.verdict,
        claimed=claimed[line] / size,
        measured=slopes.value[line] / size,
        error=slopes.error[line] / size,
        relative_error=relative[0] if scale else 0.0,
        resolution=relative[1] if scale else 0.0,
        taylor="inconclusive" if kinked else taylor_verdict(orders),
        order=float(np.nan if np.isnan(orders.second).all() else np.nanmin(orders.second)),
        kink=_widest_kink(found, slopes, lengths) if kinked else None,
        diagnosis=found.diagnosis,
        worst=found.worst,
        curve=Curve(
            steps=samples.steps,
            slopes=samples.quotients[line] / size,
            rounding=rounding_bar(samples)[line] / size,
            chosen=slopes.step[line],
        ),
    )


def _widest_kink(found: LeafVerdict, slopes: Slopes, lengths: np.ndarray) -> Kink:
    line = int(np.argmax(np.where(found.agreement.kinked, np.abs(slopes.jump), 0)))
    half = abs(slopes.jump[line]) / 2
    return Kink(
        lower=float((slopes.value[line] - half) / lengths[line]),
        upper=float((slopes.value[line] + half) / lengths[line]),
        subgradient=found.verdict == "pass",
    )


def _held_report(path: str, dtype: str) -> LeafReport:
    """The report on a leaf that cannot move, for which a slope is claimed."""
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
