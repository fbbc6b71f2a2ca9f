"""The measurement: a problem's slopes along random directions of each leaf, and of all at once."""

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.checking.comparing import norm
from jaxbp.checking.finite_differences import (
    JOINTLY,
    RATIO,
    Float32,
    Leaves,
    Samples,
    Slopes,
    at_larger_steps,
    compared_with_float32,
    contradicted,
    extrapolate,
    joined,
    magnitude,
    pooled,
    rounding_at_each_step,
    sample_lines,
    step_sizes,
    steps_close_to,
    with_rounding,
)
from jaxbp.checking.jaxprs import coarsest_dtype, enable_float64, eps_of
from jaxbp.checking.problem import Problem, Purpose
from jaxbp.checking.verdicts import NEGLIGIBLE, TELLING, THRESHOLDS
from jaxbp.text import one_line

_STEPS_OF_BLACK_BOX = 19  # at first, down to 1.5e-11: each step costs calls
_ROUNDINGS = 64  # of the dtype that a black box computes in, at most in a value
_DTYPES: tuple[np.dtype[Any], ...] = (  # those that it may compute in unseen
    np.dtype(np.float32),
    np.dtype(np.float16),
    np.dtype(jnp.bfloat16),
)
_DIGITS = {8: 10, 4: 6, 2: 3, 1: 2}  # binary, of a direction's entries; by bytes of a number
_IN_FLOAT32 = RATIO ** -np.array([4.0, 6.0, 8.0])  # steps at which f is evaluated in float32 too


@dataclass(frozen=True)
class Arithmetic:
    """The arithmetic in which f is measured."""

    problem: Problem  # with arrays of that arithmetic
    float64: bool  # otherwise the arguments' own dtypes
    dtype: np.dtype[Any]  # the coarsest that the leaves pass through on their way to f's value
    numpy_constants: bool  # f or the claim closes over NumPy arrays
    notes: tuple[str, ...]  # the exception that f raised in float64
    reason: str = "f's own arithmetic"  # why it is another than float64

    def enabled(self) -> AbstractContextManager[Any]:
        """The context to evaluate in."""
        float64 = self.float64 or bool(jnp.result_type(float) == np.float64)
        return enable_float64(float64, numpy_constants=self.numpy_constants)

    @property
    def precision(self) -> str:
        """The arithmetic in words."""
        return "float64" if self.dtype == np.float64 else f"{self.dtype} ({self.reason})"

    @property
    def eps(self) -> float:
        """The relative spacing of that dtype's numbers."""
        return eps_of(self.dtype)


def arithmetic_of(problem: Problem, *, numpy_constants: bool) -> Arithmetic:
    """float64 if f can be evaluated so, whatever the dtypes of the arguments; else their own."""
    try:
        with enable_float64(True, numpy_constants=numpy_constants):
            wide = problem.in_float64()
            dtype = _coarsest(wide)
            return Arithmetic(wide, True, dtype, numpy_constants, notes=())
    except Exception as error:  # f may have anything against float64
        found = own_arithmetic(problem, "f does not accept float64", numpy_constants)
        return replace(found, notes=(f"in float64 f raises {one_line(error)}",))


def own_arithmetic(problem: Problem, reason: str, numpy_constants: bool) -> Arithmetic:
    """The arithmetic of the arguments' own dtypes, for a reason."""
    to_array = jnp.asarray if problem.black_box is None else np.asarray
    narrow = replace(problem, leaves=tuple(map(to_array, problem.leaves)))
    return Arithmetic(narrow, False, _coarsest(narrow), numpy_constants, notes=(), reason=reason)


def _coarsest(problem: Problem) -> np.dtype[Any]:
    """The coarsest dtype on the way to f's value: by f's jaxpr, or of a black box's results."""
    if problem.black_box is None:
        moving = len(problem.leaves)
        return coarsest_dtype(problem.objective, problem.leaves, problem.held, moving=moving)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the user has had them by the first call
        results = problem.black_box.results(problem.leaves, problem.held)
    dtypes = [leaf.dtype for leaf in (*problem.leaves, *jax.tree.leaves(results))]
    return max(dtypes, key=eps_of)


def _steps(problem: Problem, eps: float) -> np.ndarray:
    """The steps at which f is evaluated first."""
    return step_sizes(eps)[: None if problem.black_box is None else _STEPS_OF_BLACK_BOX]


def _require(problem: Problem, directions: int, *steps: np.ndarray, points: int = 1) -> None:
    """Raise ValueError where a black box may not be called often enough for such measurements."""
    if problem.black_box is not None:
        leaves = len(problem.leaves)
        lines = directions * (1 if leaves == 1 else leaves + 1)  # those of one leaf are all lines
        calls = points * sum(1 + 2 * lines * len(each) for each in steps)
        problem.black_box.require(calls + 1)  # one more is made by _in_float32


@dataclass(frozen=True)
class Measurement:
    """The slopes at a point, a row for each line: k of the first leaf, ..., k of all jointly."""

    arithmetic: Arithmetic
    sizes: tuple[float, ...]  # ‖x‖ of each leaf, to which its steps are relative
    directions: tuple[np.ndarray, ...]  # (k, *shape) each, of about the leaf's size
    samples: Samples
    slopes: Slopes
    in_float32: Float32  # what f's values in float32 tell about those in float64
    overflows: bool  # f is not finite in float32, though it is in float64
    chunk: int | None
    notes: tuple[str, ...]  # the exceptions that f raised in float64 or in float32
    closely: bool = False  # whether the rounding at each step is measured

    def rows(self, index: int) -> slice:
        """The lines of one leaf; those of all leaves moving jointly come last."""
        count = len(self.directions[0])
        return slice(index * count, (index + 1) * count)

    @property
    def value(self) -> float:
        """f at the point."""
        return float(self.samples.center[0])

    @property
    def lengths(self) -> np.ndarray:
        """The length of the direction of every line; 1 of an empty leaf."""
        squares = [np.sum(d.reshape(len(d), -1) ** 2, axis=1) for d in self.directions]
        lengths = np.sqrt(np.concatenate([*squares, np.sum(squares, axis=0)]))
        return np.where(lengths > 0, lengths, 1.0)

    def slopes_of(self, gradient: Leaves) -> np.ndarray:
        """⟨gradient, d⟩ of every line, for a gradient given leaf by leaf."""
        with np.errstate(invalid="ignore"):  # a gradient that is not finite is judged as such
            each = np.array(
                [
                    direction.reshape(len(direction), -1) @ np.asarray(value, np.float64).ravel()
                    for direction, value in zip(self.directions, gradient, strict=True)
                ]
            )
        return np.append(each.ravel(), each.sum(axis=0))

    def nearby_point(self, purpose: Purpose, index: int, distance: float) -> Leaves:
        """A random point at a distance from this one, relative to each leaf's size."""
        problem = self.arithmetic.problem
        moved = []
        for position, (leaf, size) in enumerate(zip(problem.leaves, self.sizes, strict=True)):
            direction = _unit(problem.generator(purpose, index, position), leaf.shape)
            moved.append(np.asarray(np.asarray(leaf) + direction * size * distance, leaf.dtype))
        return tuple(moved)

    def require(self, points: int) -> None:
        """Raise ValueError where f may not be called often enough to measure at more points."""
        count = len(self.directions[0])
        _require(self.arithmetic.problem, count, self.samples.steps, points=points)

    def at_all_steps(self) -> "Measurement":
        """The slopes by the smallest steps too, which a black box in float64 is spared at first."""
        left = step_sizes(self.arithmetic.eps)[len(self.samples.steps) :]
        if not len(left):
            return self
        smaller = self._sampled(left)
        samples = joined(self.samples, smaller, _groups(self.directions), self.in_float32.floor)
        return replace(self, samples=samples, slopes=extrapolate(samples))

    def at_close_steps(self) -> "Measurement":
        """The slopes with a rounding of each step's own."""
        problem = self.arithmetic.problem
        noisy = problem.black_box is not None and not problem.tracing.deterministic
        if self.closely or noisy:
            return self
        close = [self._sampled(steps) for steps in steps_close_to(self.samples.steps)]
        groups = _groups(self.directions)
        samples = rounding_at_each_step(self.samples, self.slopes, close, self.in_float32, groups)
        return replace(self, samples=samples, slopes=extrapolate(samples), closely=True)

    def _sampled(self, steps: np.ndarray) -> Samples:
        """Samples along the same lines at other steps."""
        arithmetic = self.arithmetic
        _require(arithmetic.problem, len(self.directions[0]), steps)
        with arithmetic.enabled():
            return _sample(arithmetic.problem, self.directions, steps, arithmetic.eps, self.chunk)

    def in_own_dtype(self, problem: Problem) -> "Measurement":
        """The slopes of f in its arguments' own dtypes, where it has another value."""
        numpy_constants = self.arithmetic.numpy_constants
        with enable_float64(False, numpy_constants=numpy_constants):
            own = own_arithmetic(problem, "f has another value in float64", numpy_constants)
            return measure(own, len(self.directions[0]), chunk=self.chunk)

    def at(self, leaves: Leaves) -> "Measurement":
        """The slopes along the same lines through another point, in the same arithmetic, which the
        caller enables."""
        problem, steps = replace(self.arithmetic.problem, leaves=leaves), self.samples.steps
        arithmetic = replace(self.arithmetic, problem=problem)
        samples = _sample(
            problem, self.directions, steps, arithmetic.eps, self.chunk, self.in_float32.floor
        )
        return replace(self, arithmetic=arithmetic, samples=samples, slopes=extrapolate(samples))


#: closer looks at what is doubtful, in this order: each evaluates f more often
CLOSER = (Measurement.at_all_steps, Measurement.at_close_steps)


def measure(
    arithmetic: Arithmetic,
    directions: int,
    *,
    chunk: int | None = None,
    direction: Leaves | None = None,
) -> Measurement:
    """Measure a problem's slopes along random directions of each leaf, or along a given one of all.

    Raises ValueError if f is not finite at the point, or if the given direction is zero.
    """
    problem, eps = arithmetic.problem, arithmetic.eps
    sizes = tuple(norm(np.asarray(leaf, np.float64)) or 1.0 for leaf in problem.leaves)
    if direction is None:
        drawn = _drawn(problem, sizes, directions, arithmetic.dtype)
    else:
        drawn = _scaled(direction, norm(np.array(sizes)))
    in_float64 = arithmetic.dtype == np.float64
    also = [_IN_FLOAT32] if in_float64 else []
    _require(problem, len(drawn[0]), _steps(problem, eps), *also)
    coarse, notes = _in_float32(arithmetic, drawn, chunk)
    with arithmetic.enabled():
        samples = _sample(problem, drawn, _steps(problem, eps), eps, chunk)
    if not np.isfinite(samples.center[0]):
        raise ValueError(f"f(...): got {samples.center[0]} at this point, expected a finite number")
    groups = _groups(drawn)
    nothing = in_float32 = Float32(np.zeros(len(samples.center)))
    if coarse is not None:
        in_float32 = compared_with_float32(samples, coarse, groups)
    inner = _dtype_inside(arithmetic, drawn, samples, in_float32)
    if inner != arithmetic.dtype:
        arithmetic, coarse, in_float32 = replace(arithmetic, dtype=inner), None, nothing
        samples = at_larger_steps(samples, groups, arithmetic.eps)
    samples = with_rounding(samples, in_float32.floor)
    measured = Measurement(
        arithmetic=arithmetic,
        sizes=sizes,
        directions=drawn,
        samples=samples,
        slopes=extrapolate(samples),
        in_float32=in_float32,
        overflows=coarse is not None and not np.isfinite(coarse.center[0]),
        chunk=chunk,
        notes=arithmetic.notes + notes,
    )
    for closer in CLOSER:
        measured = closer(measured) if _doubtful(measured) else measured
    return measured


def _dtype_inside(
    arithmetic: Arithmetic, directions: Leaves, samples: Samples, in_float32: Float32
) -> np.dtype[Any]:
    """The dtype in which a black box computes what it returns in a finer one.

    What is rounded to a coarse dtype stands still at small steps: there is another slope than at
    larger ones, not at this point alone, as by a kink, but everywhere.  And it is much the same of
    arguments in that dtype, where float64 with few digits left, which stands still too, has none.
    """
    if arithmetic.problem.black_box is None or in_float32.no_digit:
        return arithmetic.dtype
    quotients, groups = samples.quotients, _groups(directions)
    least = _nearest(samples.steps, samples.eps ** (2 / 3))
    small = np.nan_to_num(quotients[:, least], nan=np.inf)
    bar = np.maximum(samples.eps * magnitude(samples), in_float32.floor)
    bar = 4 * bar / samples.steps[least]
    for dtype in _DTYPES:
        eps = eps_of(dtype)
        if eps <= samples.eps:
            continue
        coarse = at_larger_steps(samples, groups, eps)
        larger = extrapolate(coarse)
        gap = larger.value - small
        there = quotients[:, _nearest(samples.steps, 16 * eps)] - small
        if eps > eps_of(np.float32):  # a kink far away has two slopes too, but does not stand still
            gap, apart = there, _still(samples, eps / 64) & (np.abs(there) > bar)
        else:
            apart = np.isfinite(gap) & (np.abs(gap) > larger.error + bar)
        apart &= coarse.sigma[:, 0] < _ROUNDINGS * eps * magnitude(samples)
        if apart.any() and np.median(there[apart] / gap[apart]) > 0.5:
            steps = np.array([np.sqrt(eps), samples.steps[least]])
            lines = np.argsort(np.where(apart, -np.abs(gap), 0))[: min(2, apart.sum())]
            size = np.minimum(np.abs(gap), np.abs(gap + small))[lines]
            found = _is_everywhere(arithmetic, directions, lines, size, steps)
            return dtype if found else arithmetic.dtype
    return arithmetic.dtype


def _still(samples: Samples, step: float) -> np.ndarray:
    """Whether f has one value at all smaller steps of each line, on one side at least.

    Where its slope is 0, float64 stands still as well, but at the smallest of them alone.
    """
    center, small = samples.center[:, None], samples.steps < step
    still = np.stack([samples.plus == center, samples.minus == center])[..., small]
    return np.asarray(np.any(np.all(still, axis=2), axis=0))


def _nearest(steps: np.ndarray, step: float) -> int:
    return int(np.argmin(np.abs(np.log(steps / step))))


def _is_everywhere(
    arithmetic: Arithmetic,
    directions: Leaves,
    lines: np.ndarray,
    size: np.ndarray,
    steps: np.ndarray,
) -> bool:
    """Whether slopes at a larger and at a smaller step are apart beside the point as they are at
    it, along some of the lines."""
    problem, beside = arithmetic.problem, 8 * steps[0] + np.outer([1, -1], steps).ravel()
    with arithmetic.enabled():
        samples = sample_lines(
            problem.objective,
            problem.leaves,
            problem.held,
            directions,
            _lines(directions)[lines],
            steps=beside,
            eps=arithmetic.eps,
        )
    values = np.hstack([samples.plus, samples.minus]).reshape(len(lines), 2, 2, len(steps))
    slopes = (values[:, :, 0] - values[:, :, 1]) / (2 * steps)
    apart = np.abs(slopes[..., 0] - slopes[..., 1])
    return bool(np.mean(apart > 0.1 * size[:, None]) >= 0.5)


def _doubtful(measured: Measurement) -> bool:
    """Whether some slope's error bar is too wide for a verdict, larger steps tell another, or few
    digits of f may be left."""
    if measured.in_float32.no_digit:
        return True
    samples, slopes = measured.samples, measured.slopes
    pooled_slopes = pooled(slopes.value[:, None], _groups(measured.directions))
    size = np.maximum(pooled_slopes, NEGLIGIBLE * magnitude(samples))
    coarse = slopes.error > TELLING * THRESHOLDS[measured.arithmetic.dtype.itemsize] * size
    return bool(np.any(coarse | contradicted(samples, slopes)))


def _drawn(
    problem: Problem, sizes: Sequence[float], count: int, dtype: np.dtype[Any]
) -> tuple[np.ndarray, ...]:
    """Random directions for each leaf, of about its size.

    Their entries have few digits, so that x + t d is exact down to small t: else all smaller steps
    might be off by the same share, of which no difference between them would tell.
    """
    drawn = []
    for position, (leaf, size) in enumerate(zip(problem.leaves, sizes, strict=True)):
        generator = problem.generator(Purpose.DIRECTIONS, leaf=position)
        directions = np.stack([_unit(generator, leaf.shape) * size for _ in range(count)])
        mantissa, exponent = np.frexp(directions)
        digits = 2.0 ** _DIGITS[dtype.itemsize]
        drawn.append(np.ldexp(np.round(mantissa * digits) / digits, exponent))
    return tuple(drawn)


def _unit(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """A random unit direction.  Each entry moves up or down by ½ to 1½ times the same: none is left
    out, so that a single wrong one shows in every direction, and no two cancel."""
    drawn = generator.choice([-1.0, 1.0], shape) * generator.uniform(0.5, 1.5, shape)
    result: np.ndarray = drawn / max(float(np.linalg.norm(drawn.ravel())), 0.5)
    return result


def _scaled(direction: Leaves, size: float) -> tuple[np.ndarray, ...]:
    """One direction through all leaves, with the size of all of them together."""
    length = norm(np.concatenate([np.ravel(leaf).astype(np.float64) for leaf in direction]))
    if not length or not np.isfinite(length):
        raise ValueError(f"direction: got one of length {length}, expected a nonzero direction")
    return tuple(np.asarray(leaf, np.float64)[None] * (size / length) for leaf in direction)


def _in_float32(
    arithmetic: Arithmetic, directions: Leaves, chunk: int | None
) -> tuple[Samples | None, tuple[str, ...]]:
    """Samples of every line in float32, if f is measured in float64 and accepts float32 as well; if
    not, a note of the exception that it raises."""
    if arithmetic.dtype != np.float64:
        return None, ()
    problem = arithmetic.problem
    leaves, held = jax.tree.map(_to_float32, (problem.leaves, problem.held))
    try:
        with enable_float64(False, numpy_constants=arithmetic.numpy_constants):
            narrow = replace(problem, leaves=leaves, held=held)
            if problem.black_box is not None:
                with warnings.catch_warnings(), np.errstate(all="ignore"):
                    warnings.simplefilter("ignore")  # the user did not ask for float32
                    problem.black_box(leaves, held)  # an exception is told, not taken for a pole
            return _sample(narrow, directions, _IN_FLOAT32, eps_of(np.float32), chunk), ()
    except Exception as error:  # f may have anything against float32
        return None, (f"in float32 f raises {one_line(error)}",)


def _to_float32(leaf: Any) -> Any:
    is_float = jnp.issubdtype(leaf.dtype, np.floating)
    return np.asarray(leaf).astype(np.float32) if is_float else leaf


def _lines(directions: Leaves) -> np.ndarray:
    """The leaf and the direction of every line."""
    moving = [*range(len(directions)), JOINTLY]
    return np.array([(leaf, line) for leaf in moving for line in range(len(directions[0]))])


def _groups(directions: Leaves) -> np.ndarray:
    """A number for every line that those of one leaf share: its rounding is pooled over them."""
    return _lines(directions)[:, 0]


def _sample(
    problem: Problem,
    directions: Leaves,
    steps: np.ndarray,
    eps: float,
    chunk: int | None,
    floor: np.ndarray | float = 0.0,
) -> Samples:
    return sample_lines(
        problem.objective,
        problem.leaves,
        problem.held,
        directions,
        _lines(directions),
        steps=steps,
        eps=eps,
        floor=floor,
        chunk=chunk,
    )
