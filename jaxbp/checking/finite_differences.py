"""Finite differences: the slope of a function along a direction, measured by its values alone.

    D(t) = (f(x + t d) - f(x - t d)) / 2t = f'(x; d) + c₂ t² + c₄ t⁴ + ...  ± rounding / t

The step sizes t, each a quarter of the one before, reach from the size of x down to its last
digits.  For large t the remainder t² spoils D, for small t the rounding of f; in between,
extrapolation to t → 0 cancels one power after another, and how far an entry of its table disagrees
with its neighbours, and with all differences at smaller steps, is the entry's error bar (Ridders
1982; Press et al. 2007, section 5.7).  The rounding is not guessed from a dtype but measured: at
the smallest steps by the remainder of second differences (Moré and Wild 2011), and by evaluating f
in float32 as well, which shows the rounding inside f that does not change over small steps.  A kink
at x shows as a second difference that shrinks like t instead of t².
"""

from collections.abc import Callable, Hashable, Sequence
from functools import lru_cache, partial
from itertools import chain
from math import comb
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxbp.checking.black_box import BlackBox

RATIO = 4.0  # between neighbouring step sizes
JOINTLY = -1  # in place of a leaf's index: all leaves move at once
_COLUMNS = 3  # of the extrapolation table, beyond the differences themselves
_ROUNDING_STEPS = 4  # at the smallest steps a smooth function changes far less than its rounding
_CURVATURE_STEPS = slice(2, 6)  # at some of these steps the second difference is the curvature
_WINDOW_STEPS = 6
EVALUATIONS_OF_A_WINDOW = 2 * _WINDOW_STEPS  # beside the one at x
_CLOSE = 6  # more values close to each step, whose last differences are rounding
_LASTING = 3  # steps in which differences stay that are rounding
_ANOTHER_ANSWER = 0.01, 10.0  # of a value, by which it differs in float32: rounding is smaller
_ALIKE = 0.1  # of such differences, by which those differ that are alike
_NO_DIGIT = 0.1  # of a value, by which it differs in float32 where none of its digits is right
_GRADUAL = 7  # powers of the ratio by which high differences fall at most from step to step
_SHARE_ALIKE = 0.6  # of such differences are alike where f has another answer
_SIGMAS = 4.0  # standard deviations of rounding in an error bar
_MOST_SIGMAS = 10.0  # of rounding in a single value
_FINER = float(np.finfo(np.float64).eps / np.finfo(np.float32).eps)
_ENTRIES_AT_ONCE = 2**23  # of shifted leaves in memory: 64 MiB of float64

Leaves = tuple[Any, ...]
Tree = TypeVar("Tree")


class Samples(NamedTuple):
    """A function's values along N lines through one point, at T steps in either direction."""

    steps: np.ndarray  # (T,) t, from large to small
    eps: float  # the relative spacing of numbers in f's arithmetic
    center: np.ndarray  # (N,) f(x)
    plus: np.ndarray  # (N, T) f(x + t d)
    minus: np.ndarray  # (N, T) f(x - t d)
    sigma: np.ndarray  # (N, T) standard deviation of the rounding in a value at each step

    @property
    def quotients(self) -> np.ndarray:
        """The central difference D(t) of each line at each step, (N, T)."""
        with np.errstate(all="ignore"):  # f may be infinite at some steps, or NaN
            return np.asarray((self.plus - self.minus) / (2 * self.steps))

    def take(self, rows: slice) -> "Samples":
        """The samples of some of the lines."""
        return self._replace(
            center=self.center[rows],
            plus=self.plus[rows],
            minus=self.minus[rows],
            sigma=self.sigma[rows],
        )


class Slopes(NamedTuple):
    """The measured derivative f'(x; d) of each line, with all that is known of its error."""

    value: np.ndarray  # (N,); 0 where nothing could be measured
    error: np.ndarray  # (N,) the error bar; inf where nothing could be measured
    converged: np.ndarray  # (N,) whether the error bar is rounding, or far below the value
    step: np.ndarray  # (N,) the smallest step that the value was made of
    jump: np.ndarray  # (N,) how far the slopes to the right and to the left differ
    jump_error: np.ndarray  # (N,)

    def take(self, rows: slice) -> "Slopes":
        """The slopes of some of the lines."""
        return Slopes(**{name: array[rows] for name, array in self._asdict().items()})


def central_difference(
    f: Callable[[Tree], Array], at: Tree, direction: Tree, step: float = 1e-6
) -> Array:
    """(f(at + ε d) - f(at - ε d)) / 2ε along a direction d: the slope ⟨∇f, d⟩ up to O(ε²).

    The best ε balances that against rounding in f, about the cube root of the dtype's epsilon
    (Press et al. 2007, section 5.7): the default is for float64.  ``gradcheck`` chooses its steps
    itself, and gives each slope an error bar.

    >>> print(central_difference(jnp.sin, jnp.float32(0.0), jnp.float32(1.0), step=1e-2).round(4))
    1.0
    """

    def shifted(by: float) -> Array:
        return f(jax.tree.map(lambda leaf, d: leaf + by * d, at, direction))

    return jnp.asarray((shifted(step) - shifted(-step)) / (2 * step))


def step_sizes(eps: float) -> np.ndarray:
    """Steps relative to the size of x: 1, ¼, 1/16, ... down to a few units in the last place."""
    return RATIO ** -np.arange(1 + np.floor(-np.log(2 * eps) / np.log(RATIO)))


def sample_lines(
    f: Hashable,
    leaves: Leaves,
    held: Any,
    directions: Leaves,
    lines: np.ndarray,
    *,
    steps: np.ndarray,
    eps: float,
    floor: np.ndarray | float = 0.0,
    chunk: int | None = None,
) -> Samples:
    """Evaluate f at every step along every line, in one compiled call.

    f: maps (leaves, held) to a scalar; a ``BlackBox`` is called one point at a time.
    leaves: the point.
    held: the other arguments of f, which do not move.
    directions: (k, *shape) for each leaf, k directions of the leaf's own size.
    lines: (N, 2) which leaf moves (or JOINTLY) and along which of its directions.
    steps: (T,) t, from large to small, relative to the directions.
    eps: the relative spacing of numbers in f's arithmetic.
    floor: (N,) or a scalar, a lower bound of σ that is known beforehand.
    chunk: how many evaluations are made at once; by memory unless given.
    """
    moving = (lines[:, :1] == np.arange(len(leaves))) | (lines[:, :1] == JOINTLY)
    fixed = leaves, held, directions
    values = _evaluate(f, _along_line, fixed, lines[:, 1:], moving, steps, chunk)
    samples = _samples(values, steps, eps, np.zeros(len(lines)))
    return with_rounding(samples, np.maximum(_rounding(samples, lines[:, 0]), floor))


def with_rounding(samples: Samples, sigma: np.ndarray) -> Samples:
    """Samples with a larger σ, (N,) or (N, T), where theirs is smaller."""
    return samples._replace(sigma=np.maximum(samples.sigma, sigma.reshape(len(sigma), -1)))


def joined(larger: Samples, smaller: Samples, groups: np.ndarray, floor: np.ndarray) -> Samples:
    """Samples at larger and at smaller steps along the same lines, with the rounding of all."""
    steps = np.append(larger.steps, smaller.steps)
    plus = np.hstack([larger.plus, smaller.plus])
    minus = np.hstack([larger.minus, smaller.minus])
    both = larger._replace(steps=steps, plus=plus, minus=minus, sigma=np.zeros_like(plus))
    return with_rounding(both, np.maximum(_rounding(both, groups), floor))


def at_larger_steps(samples: Samples, groups: np.ndarray, eps: float) -> Samples:
    """The samples at the steps that a coarser dtype tells apart, with the rounding seen there."""
    steps = slice(len(step_sizes(eps)))
    coarse = samples._replace(
        steps=samples.steps[steps],
        eps=eps,
        plus=samples.plus[:, steps],
        minus=samples.minus[:, steps],
        sigma=np.zeros_like(samples.plus[:, steps]),
    )
    return with_rounding(coarse, _rounding(coarse, groups))


class Float32(NamedTuple):
    """The rounding of values in float64, as those in float32 tell it."""

    floor: np.ndarray  # (N,) the least σ of those in float64
    two_answers: bool = False  # f has another value altogether at the point
    no_digit: bool = False  # no digit in float32 is right: in float64 σ may be of any size

    @property
    def most(self) -> np.ndarray:
        """The rounding (N,) of values in float32, which is larger than that in float64."""
        known = (self.floor > 0) & (not self.no_digit)
        return np.where(known, _MOST_SIGMAS * self.floor / _FINER, np.inf)


def compared_with_float32(samples: Samples, coarse: Samples, groups: np.ndarray) -> Float32:
    """Compare values in float64 with those in float32, which are given for some of the steps:
    rounding is smaller in proportion to eps.  Pooled over each group of lines.

    A difference of f's own order that is alike wherever it is met, and changes smoothly, is no
    rounding but another answer, an eigenvector of the other sign, say.
    """
    shared = np.isin(samples.steps, coarse.steps)
    with np.errstate(invalid="ignore"):  # f may be infinite
        gaps = [coarse.plus - samples.plus[:, shared], coarse.minus - samples.minus[:, shared]]
        gap = np.hstack([(coarse.center - samples.center)[:, None], *gaps])
    finite = np.isfinite(gap)
    share = np.abs(gap) / np.maximum(magnitude(samples), np.finfo(np.float64).tiny)[:, None]
    least, most = _ANOTHER_ANSWER
    large = finite & (least < share) & (share < most)
    another = large & (_is_smooth(coarse) and _are_alike(gap[large]))
    sigma = pooled(np.where(finite & ~another, gap * _FINER, 0.0)[:, 1:], groups)
    no_digit = finite.any() and not another.any() and np.median(share[finite]) > _NO_DIGIT
    return Float32(sigma, two_answers=bool(another[:, 0].all()), no_digit=bool(no_digit))


def _are_alike(gaps: np.ndarray) -> bool:
    """Whether most of some differences are the same."""
    if not gaps.size:
        return False
    usual = np.median(gaps)
    return bool(np.mean(np.abs(gaps - usual) <= _ALIKE * np.abs(usual)) > _SHARE_ALIKE)


def _is_smooth(coarse: Samples) -> bool:
    """Whether f in float32 changes in proportion to small steps: what is all rounding does not."""
    central = coarse.quotients
    with np.errstate(all="ignore"):
        change = np.linalg.norm(central[:, 1] - central[:, 2])
        return bool(change < np.linalg.norm(central[:, 1]) / 2)


def magnitude(samples: Samples) -> np.ndarray:
    """The size (N,) of |f| around the point: at the point itself, a minimum say, f may be zero."""
    around = np.hstack([array[:, 1:3] for array in (samples.plus, samples.minus)])
    around = np.where(np.isfinite(around), np.abs(around), 0)
    return np.asarray(np.maximum(np.abs(samples.center), np.max(around, axis=1)))


def sample_windows(
    f: Hashable,
    leaves: Leaves,
    held: Any,
    reach: tuple[float, ...],
    windows: np.ndarray,
    *,
    eps: float,
    sigma: np.ndarray,
    chunk: int | None = None,
) -> Samples:
    """Evaluate f where parts of one leaf move, at few steps: single entries, rows, columns, blocks.

    The entries of a window all move by the same, along a unit direction.

    f, leaves, held, eps, chunk: as for ``sample_lines``.
    reach: for each leaf, the largest step.
    windows: (N, 5) the index of a leaf, and the rows [r, r') and columns [c, c') of it as a matrix.
    sigma: (N,) the rounding that ``sample_lines`` measured.
    """
    steps = RATIO ** -np.arange(_WINDOW_STEPS)
    moving = np.ones((len(windows), 1))
    fixed = leaves, held, reach
    values = _evaluate(f, _along_window, fixed, windows, moving, steps, chunk)
    return _samples(values, steps, eps, sigma)


def as_matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """A leaf's rows and columns: its first axis by all the others."""
    rows = shape[0] if shape else 1
    return rows, int(np.prod(shape[1:], dtype=int))


def _along_line(leaves: Leaves, directions: Leaves, line: Array, steps: Array) -> Leaves:
    """x + t d, with a step for each leaf: 0 for those that do not move."""
    return tuple(
        leaf + (steps[index] * direction[line[0]]).astype(leaf.dtype)
        for index, (leaf, direction) in enumerate(zip(leaves, directions, strict=True))
    )


def _along_window(leaves: Leaves, reach: Leaves, window: Array, steps: Array) -> Leaves:
    """x + t d, where d is zero outside a window of one leaf."""
    numpy = np if isinstance(steps, np.ndarray) else jnp
    which, top, bottom, left, right = window
    length = steps[0] / numpy.sqrt((bottom - top) * (right - left)).astype(steps.dtype)
    moved = []
    for index, leaf in enumerate(leaves):
        rows, columns = as_matrix(leaf.shape)
        row, column = numpy.arange(rows), numpy.arange(columns)
        across = numpy.where((left <= column) & (column < right), length * reach[index], 0)
        here = (top <= row) & (row < bottom) & (which == index)
        down = numpy.where(here, across.dtype.type(1), 0)
        shift = down[:, None] * across
        moved.append(leaf + shift.reshape(leaf.shape).astype(leaf.dtype))
    return tuple(moved)


@lru_cache(maxsize=32)  # so that a function checked again is not compiled again
def _evaluator(f: Any, move: Callable[..., Leaves]) -> Callable[..., Any]:
    """f at every (direction, step) of a table (blocks, chunk), a block at a time."""

    @jax.jit
    def evaluate(leaves: Leaves, held: Any, directions: Any, which: Array, steps: Array) -> Any:
        def one(pair: tuple[Array, Array]) -> Array:
            value: Array = f(move(leaves, directions, *pair), held)
            return value

        try:
            block = jax.vmap(one)
            return jax.lax.map(block, (which, steps))
        except Exception:  # no vmap, as with a callback: one by one, where f raises its own errors
            return jax.lax.map(partial(jax.lax.map, one), (which, steps))

    return evaluate


def _evaluate(
    f: Any,
    move: Callable[..., Leaves],
    fixed: tuple[Any, ...],
    which: np.ndarray,
    moving: np.ndarray,
    steps: np.ndarray,
    chunk: int | None,
) -> np.ndarray:
    """f at x, at every x + t d and at every x - t d: (N, 1 + 2T), a row for each direction."""
    signed = np.concatenate([[0.0], steps, -steps])
    if isinstance(f, BlackBox):
        return _one_by_one(f, move, fixed, which, moving, signed)
    count = len(which) * len(signed)
    padded = 2 ** int(np.ceil(np.log2(count)))  # few different shapes: each is compiled anew
    if chunk is None:
        chunk = max(1, _ENTRIES_AT_ONCE // sum(leaf.size for leaf in fixed[0]))
    chunk = min(chunk, padded)
    blocks = -(-count // chunk)
    rows = np.resize(np.arange(count), (blocks, chunk))  # the last block is filled up
    line, step = np.divmod(rows, len(signed))
    evaluator = _evaluator(f, move)
    values = evaluator(*fixed, np.asarray(which, np.int32)[line], moving[line] * signed[step, None])
    return np.asarray(values, np.float64).ravel()[:count].reshape(len(which), len(signed))


def _one_by_one(
    f: BlackBox,
    move: Callable[..., Leaves],
    fixed: tuple[Any, ...],
    which: np.ndarray,
    moving: np.ndarray,
    signed: np.ndarray,
) -> np.ndarray:
    """The values of a black box, once at x, which all directions share, and once along directions
    that are the same: those of a single leaf are those of all leaves."""
    leaves, held, along = fixed
    different, row = np.unique(np.hstack([which, moving]), axis=0, return_inverse=True)
    own, factors = np.split(different, [which.shape[1]], axis=1)
    points = (
        move(leaves, along, line, step * factor)
        for line, factor in zip(own.astype(int), factors, strict=True)
        for step in signed[1:]
    )
    values = f.values(chain([leaves], points), held)
    table = values[1:].reshape(len(different), -1)[row.ravel()]
    return np.hstack([np.full((len(which), 1), values[0]), table])


def _samples(values: np.ndarray, steps: np.ndarray, eps: float, sigma: np.ndarray) -> Samples:
    center, plus, minus = np.split(values, [1, 1 + len(steps)], axis=1)
    sigma = np.broadcast_to(sigma[:, None], plus.shape)
    return Samples(steps, eps, center[:, 0], plus, minus, sigma)


@np.errstate(invalid="ignore")  # f may be infinite
def _rounding(samples: Samples, groups: np.ndarray) -> np.ndarray:
    """σ (N,) at the smallest steps, where f is as good as linear: f(x+td) - 2f(x) + f(x-td) then
    has √6 σ, and half of f(x+td) - f(x-td), less 4 times the same at the next step, √(17/2) σ."""
    smallest = slice(-_ROUNDING_STEPS, None)
    even = (samples.plus - 2 * samples.center[:, None] + samples.minus)[:, smallest]
    odd = (samples.plus - samples.minus)[:, smallest] / 2
    left = odd[:, :-1] - RATIO * odd[:, 1:]
    sigma = np.maximum(pooled(even, groups) / 6**0.5, pooled(left, groups) / 8.5**0.5)
    return np.asarray(np.maximum(sigma, samples.eps / 2 * np.abs(samples.center)))


def pooled(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The root mean square of all rows (N, ·) of a group, for each row."""
    result = np.empty(len(values))
    for group in np.unique(groups):
        own = values[groups == group]
        largest = np.max(np.abs(own), initial=0.0)  # whose square may overflow
        scale = largest if 0 < largest < np.inf else 1.0
        result[groups == group] = scale * np.sqrt(np.mean((own / scale) ** 2))
    return result


# Rounding that depends on the step


def contradicted(samples: Samples, slopes: Slopes) -> np.ndarray:
    """Whether differences at larger steps agree on another slope than that measured (N,).

    A kink near the point makes them do so, and then the smaller steps are right.  A quotient whose
    numerator cancels, like (eˣ - 1)/x, does so as well: its rounding grows like 1/t, down to a step
    below which the numerator is 0 or does not change, and then the larger steps are right.
    """
    return np.asarray(_larger_steps(samples, slopes)[0] > 0)


def _larger_steps(samples: Samples, slopes: Slopes) -> tuple[np.ndarray, np.ndarray]:
    """How far (N,) differences at larger steps that agree are from the slopes measured, 0 where
    there are none; and whether those at the steps between are beyond both, as no kink makes them.
    """
    with np.errstate(all="ignore"):
        gap = samples.quotients - slopes.value[:, None]
        runs = np.stack([gap[:, :-2], gap[:, 1:-1], gap[:, 2:]])
        apart = np.min(np.abs(runs), axis=0)
        agree = np.ptp(runs, axis=0) <= 0.05 * apart
    above = samples.steps[2:] > RATIO * slopes.step[:, None]
    agree &= above & (apart > 4 * slopes.error[:, None])
    last = np.max(np.where(agree, np.arange(2, gap.shape[1]), -1), axis=1)
    size = np.where(last < 0, 0.0, np.take_along_axis(gap, last[:, None], axis=1)[:, 0])
    position = np.arange(gap.shape[1])
    between = (position > last[:, None]) & (samples.steps > slopes.step[:, None])
    with np.errstate(all="ignore"):
        share = gap / size[:, None]
    beyond = between & ((share < -0.1) | (share > 1.1))
    return np.abs(size), np.any(beyond, axis=1) & (size != 0)


def steps_close_to(steps: np.ndarray) -> list[np.ndarray]:
    """Steps a little larger than each of these."""
    return [steps * (1 + j / 16) for j in range(1, _CLOSE + 1)]


def rounding_at_each_step(
    samples: Samples,
    slopes: Slopes,
    close: Sequence[Samples],
    in_float32: Float32,
    groups: np.ndarray,
) -> Samples:
    """Samples with a σ for each step, along the lines where this tells more.

    Differences that do not change at all are no evidence against those at larger steps.  Others
    are: then σ is so large that the error bar holds both slopes.

    samples: the samples, with one σ for all steps.
    slopes: the slopes measured by them.
    close: samples at each of ``steps_close_to``.
    in_float32: what the values in float32 tell.
    groups: (N,) σ is pooled over the lines that share a number here.
    """
    known = np.maximum(in_float32.floor, samples.eps / 2 * np.abs(samples.center))
    by_step, resolved = _sigma_by_step(
        [samples, *close], groups, lasting=0 if in_float32.no_digit else _LASTING
    )
    by_step = np.maximum(by_step, known[:, None])
    anew = extrapolate(samples._replace(sigma=by_step))
    chosen = np.argmin(np.abs(samples.steps - slopes.step[:, None]), axis=1)[:, None]
    there = [np.take_along_axis(sigma, chosen, axis=1)[:, 0] for sigma in (by_step, samples.sigma)]
    rounds = there[0] > 2 * _SIGMAS * there[1]
    gap, erratic = _larger_steps(samples, slopes)
    erratic &= ~resolved & (gap * slopes.step <= in_float32.most)
    better = rounds | (gap == 0) & (anew.error < slopes.error)
    apart = np.abs(anew.value - slopes.value)
    disputed = better & (apart > anew.error + slopes.error) & ~_is_frozen(samples, slopes)
    both = np.maximum(np.where(disputed, apart, 0.0), np.where(erratic & ~rounds, gap, 0.0))
    sigma = np.where(better[:, None], by_step, samples.sigma)
    return samples._replace(sigma=np.maximum(sigma, both[:, None] * samples.steps / _SIGMAS))


def _is_frozen(samples: Samples, slopes: Slopes) -> np.ndarray:
    """Whether the differences (N,) at the steps measured by, and all smaller ones, are the same to
    the last bit, most of them 0: at steps so small that cancelling digits may do it, where the
    stairs of a function that rounds its argument are larger."""
    central = samples.quotients
    smaller = samples.steps <= slopes.step[:, None]
    frozen = np.all(~smaller | (central == central[:, -1:]), axis=1)
    return np.asarray(frozen & (slopes.step < 4 * np.cbrt(samples.eps)))


def _sigma_by_step(
    close: Sequence[Samples], groups: np.ndarray, *, lasting: int
) -> tuple[np.ndarray, np.ndarray]:
    """σ (N, T) by the values close to each step: high differences of equidistant values, in which a
    smooth f leaves less from order to order, and rounding more.  Pooled over groups of lines.

    What then stays, or grows, from one step to the next is rounding, once it has done so as often
    as ``lasting``: it holds at all smaller steps as well, though there f may not change at all.  A
    sudden rise is a kink; kinks leave less at smaller steps.  What falls gradually, as the powers
    of a smooth f do, was f itself: the second value is along which lines (N,) all of it was.
    """
    lower, found = (_rounding_in(close, order, groups) for order in (_CLOSE - 1, _CLOSE))
    found = np.where(found > 0.4 * lower, found, 0.0)
    visible = lower > 8 * close[0].sigma  # the rounding of the smallest steps
    sigma, stays = np.zeros_like(found), np.zeros(found.shape, int)
    sigma[:, 0] = 0.0 if lasting else found[:, 0]
    falls = np.zeros(len(found), int)  # gradual ones in a row; -1 after a sudden one
    for step in range(1, found.shape[1]):
        here, last = found[:, step], sigma[:, step - 1]
        sudden = here > RATIO**4 * np.maximum(lower[:, step - 1], found[:, step - 1])
        steady = ~sudden & (here > 0.4 * found[:, step - 1]) & (found[:, step - 1] > 0)
        stays[:, step] = np.where(steady, stays[:, step - 1] + 1, 0)
        gradual = lower[:, step] > RATIO**-_GRADUAL * lower[:, step - 1]
        fallen = np.where(gradual & (falls >= 0), falls + 1, -1)
        rises = (here > 0) | (lower[:, step] > lower[:, step - 1])
        falls = np.where(visible[:, step], np.where(rises, 0, fallen), falls)
        stays[falls >= 2, : step + 1] = -1
        lasts = np.max(stays[:, : step + 1], axis=1) >= lasting
        gone = (lower[:, step] > 0) & (lower[:, step] < last / 8) & ~lasts
        sigma[:, step] = np.where(sudden, last, np.where(gone, here, np.maximum(here, last)))
    return np.hstack([sigma[:, 1:], sigma[:, -1:]]), falls >= 2  # to be safe: few values make each


def _rounding_in(close: Sequence[Samples], order: int, groups: np.ndarray) -> np.ndarray:
    """σ (N, T) that would leave what is left in differences of an order of the close values."""
    with np.errstate(all="ignore"):
        sides = ([each.plus for each in close], [each.minus for each in close])
        left = np.concatenate([np.diff(side, order, axis=0) for side in sides])  # (·, N, T)
    left = np.where(np.isfinite(left), left, 0.0) / np.sqrt(comb(2 * order, order))
    return np.stack([pooled(left[..., step].T, groups) for step in range(left.shape[2])], axis=1)


# The limit


def extrapolate(samples: Samples) -> Slopes:
    """Extrapolate every line's differences to t → 0, with an error bar."""
    t = samples.steps
    with np.errstate(all="ignore"):  # beyond a pole f is inf or NaN: such steps count for nothing
        change = (samples.plus - 2 * samples.center[:, None] + samples.minus) / t  # of the slope
        rounding = rounding_bar(samples)
        value, error, converged, step = _limit(samples.quotients, rounding, t, first=2)
        jump, jump_error, *_ = _limit(change, 4 * rounding, t, first=1)
    return Slopes(value, error, converged, step, jump, jump_error)


def rounding_bar(samples: Samples) -> np.ndarray:
    """The error bar (N, T) of each central difference by rounding: in f's value, 4σ/t, and in x,
    its curvature times a few units in the last place of x."""
    with np.errstate(all="ignore"):  # f may be inf or NaN at some steps, or next to it
        second = samples.plus - 2 * samples.center[:, None] + samples.minus
        second = np.abs(second) / samples.steps**2
        second = np.where(np.isfinite(second), second, np.inf)[:, _CURVATURE_STEPS]
        curvature = np.min(second, axis=1)
        of_x = _SIGMAS * samples.eps * np.where(np.isfinite(curvature), curvature, 0)
        of_f = _SIGMAS * samples.sigma / samples.steps
    return np.asarray(of_f + of_x[:, None])


def _limit(
    differences: np.ndarray, rounding: np.ndarray, t: np.ndarray, *, first: int
) -> tuple[np.ndarray, ...]:
    """The limit at t → 0 of differences (N, T) whose error is c t^first + c' t^(first+2) + ..., its
    error bar, whether it converged, and the smallest step that it was made of, (N,) each.

    The error of an entry of the extrapolation table is its disagreement with the entry it was made
    of, with the entry at the next smaller step, and with every difference at smaller steps, less
    their rounding: a kink between two steps shows in one of these.
    """
    column, entries, spreads, bars, steps = differences, [], [], [], []
    position = np.arange(differences.shape[1])
    previous = None
    for order in range(_COLUMNS + 1):
        if order:
            weight = RATIO ** (first + 2 * (order - 1))
            previous = column
            column = (weight * column[:, 1:] - column[:, :-1]) / (weight - 1)
        if column.shape[1] < 2:
            break
        spread = np.abs(column[:, :-1] - column[:, 1:])
        if previous is not None:
            spread = np.maximum(spread, np.abs(column[:, :-1] - previous[:, 1:-1]))
        beyond = np.abs(differences[:, None, :] - column[:, :-1, None]) - rounding[:, None, :]
        smaller = position > position[: column.shape[1] - 1, None] + order
        spread = np.maximum(spread, np.max(np.where(smaller, np.nan_to_num(beyond), 0), axis=2))
        entries.append(column[:, :-1])
        spreads.append(spread)
        bars.append(rounding[:, order:-1])
        steps.append(np.broadcast_to(t[order:-1], spread.shape))
    entry, spread, bar, step = map(np.hstack, (entries, spreads, bars, steps))
    error = 2 * spread + bar
    error = np.where(np.isfinite(error) & np.isfinite(entry), error, np.inf)
    best = np.argmin(error, axis=1)[:, None]
    value, error, spread, bar, step = (
        np.take_along_axis(array, best, axis=1)[:, 0] for array in (entry, error, spread, bar, step)
    )
    value = np.where(np.isfinite(error), value, 0.0)
    converged = np.isfinite(error) & ((spread <= 4 * bar) | (spread <= 0.01 * np.abs(value)))
    return value, error, converged, step
