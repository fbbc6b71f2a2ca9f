"""Measuring: what the slope of a function along a direction is when only its values are asked.

    D(t) = (f(x + t d) - f(x - t d)) / 2t = f'(x; d) + c₂ t² + c₄ t⁴ + ...  ± noise / t

A ladder of steps t, each a quarter of the one above, reaches from the size of x down to its last
digits.  At the top the remainder t² spoils D, at the bottom the rounding of f; in between
extrapolation to t → 0 cancels one power after another, and how far neighbours in its table, and all
the differences below, disagree with an entry is its error bar (Ridders 1982; Press et al. 2007,
section 5.7).  The rounding is not guessed from a dtype but measured: on the lowest rungs by what
is left of second differences (Moré and Wild 2011), and by working with half the digits, which shows
the rounding inside f that small steps leave frozen.  A kink at x shows as a second difference that
shrinks like t instead of t².
"""

from collections.abc import Callable, Hashable
from functools import lru_cache, partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

RATIO = 4.0  # between neighbouring rungs
JOINTLY = -1  # in place of a leaf's number: all leaves move at once
_COLUMNS = 3  # of the table beyond the differences themselves
_NOISE_RUNGS = 4  # on the lowest ones a smooth function's own change is far below its rounding
_CURVED_RUNGS = slice(2, 6)  # on some of these the second difference is the curvature
_WINDOW_RUNGS = 6
_SIGMAS = 4.0  # so many standard deviations of rounding are an error bar
_ENTRIES_AT_ONCE = 2**23  # of shifted leaves in memory: 64 MiB of float64

Leaves = tuple[Any, ...]
Tree = TypeVar("Tree")


class Ladder(NamedTuple):
    """A function's values along several lines through one point, each line a row."""

    steps: np.ndarray  # (T,) t, from large to small
    eps: float  # the resolution of the arithmetic in f
    center: np.ndarray  # (N,) f(x)
    plus: np.ndarray  # (N, T) f(x + t d)
    minus: np.ndarray  # (N, T) f(x - t d)
    sigma: np.ndarray  # (N,) standard deviation of the rounding in a value

    def of(self, rows: slice) -> "Ladder":
        """Some of the lines."""
        return Ladder(self.steps, self.eps, *(array[rows] for array in self[2:]))


class Slopes(NamedTuple):
    """The measured derivative f'(x; d) of each line, with all that is known of its error."""

    value: np.ndarray  # (N,)
    error: np.ndarray  # (N,) the error bar; inf where nothing could be measured
    converged: np.ndarray  # (N,) whether the error bar is rounding, or far below the value
    step: np.ndarray  # (N,) the smallest step that the value was made of
    jump: np.ndarray  # (N,) how far the slopes to the right and to the left differ
    jump_error: np.ndarray  # (N,)

    def of(self, rows: slice) -> "Slopes":
        """Some of the lines."""
        return Slopes(*(array[rows] for array in self))


def central_difference(
    f: Callable[[Tree], Array], at: Tree, direction: Tree, step: float = 1e-6
) -> Array:
    """(f(at + ε d) - f(at - ε d)) / 2ε along a direction d: the slope ⟨∇f, d⟩ up to O(ε²).

    The best ε balances that against rounding in f, about the cube root of the dtype's resolution
    (Press et al. 2007, section 5.7): the default is for float64.  ``gradcheck`` chooses its steps
    itself, and says how far its slopes can be trusted.

    >>> print(central_difference(jnp.sin, jnp.float32(0.0), jnp.float32(1.0), step=1e-2).round(4))
    1.0
    """

    def shifted(by: float) -> Array:
        return f(jax.tree.map(lambda leaf, d: leaf + by * d, at, direction))

    return jnp.asarray((shifted(step) - shifted(-step)) / (2 * step))


def rungs(eps: float) -> np.ndarray:
    """Steps relative to the size of x: 1, ¼, 1/16, ... down to a few units in the last place."""
    return RATIO ** -np.arange(1 + np.floor(-np.log(2 * eps) / np.log(RATIO)))


def climb(
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
) -> Ladder:
    """Evaluate f on the ladder of every line, all of it in one compiled call.

    f maps (leaves, held) to a scalar.  directions hold for each leaf k directions (k, *shape), of
    the leaf's own size; lines (N, 2) say which leaf moves (or JOINTLY) and along which of its
    directions.  eps is the resolution of the arithmetic in f, floor what is known of σ beforehand,
    and chunk how many evaluations are made at once (default: by memory).
    """
    moving = (lines[:, :1] == np.arange(len(leaves))) | (lines[:, :1] == JOINTLY)
    evaluator = _evaluator(f, _along_line)
    values = _on_rungs(evaluator, (leaves, held, directions), lines, moving, steps, chunk)
    ladder = _ladder(values, steps, eps, np.zeros(len(lines)))
    return ladder._replace(sigma=np.maximum(_rounding(ladder, lines[:, 0]), floor))


def half_the_digits(ladder: Ladder, coarse: Ladder, groups: np.ndarray) -> np.ndarray:
    """σ (N,) by the same lines in float32, on some of the rungs: rounding in float64 is as much
    smaller as its resolution is finer.  Pooled over each group of lines."""
    shared = np.isin(ladder.steps, coarse.steps)
    gaps = [coarse.plus - ladder.plus[:, shared], coarse.minus - ladder.minus[:, shared]]
    gap = np.hstack(gaps) * (np.finfo(np.float64).eps / np.finfo(np.float32).eps)
    return _pooled(np.where(np.isfinite(gap), gap, 0.0), groups)


def climb_windows(
    f: Hashable,
    leaves: Leaves,
    held: Any,
    reach: tuple[float, ...],
    windows: np.ndarray,
    *,
    eps: float,
    sigma: np.ndarray,
    chunk: int | None = None,
) -> Ladder:
    """The same for parts of leaves, on few rungs: single entries, rows, columns, blocks.

    windows (N, 5) say in which leaf, and which rows [r, r') and columns [c, c') of it as a matrix,
    entries move, up all of them, along a unit direction times the leaf's reach, the top rung.
    sigma (N,) is what ``climb`` measured there.
    """
    steps = RATIO ** -np.arange(_WINDOW_RUNGS)
    moving = np.ones((len(windows), 1))
    evaluator = _evaluator(f, _along_window)
    values = _on_rungs(evaluator, (leaves, held, reach), windows, moving, steps, chunk)
    return _ladder(values, steps, eps, sigma)


def as_matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """A leaf's rows and columns: its first axis by all the others."""
    rows = shape[0] if shape else 1
    return rows, int(np.prod(shape[1:], dtype=int))


def _along_line(leaves: Leaves, directions: Leaves, line: Array, steps: Array) -> Leaves:
    """x + t d, with a step for each leaf: 0 for those that do not move."""
    return tuple(
        leaf + (steps[number] * direction[line[1]]).astype(leaf.dtype)
        for number, (leaf, direction) in enumerate(zip(leaves, directions, strict=True))
    )


def _along_window(leaves: Leaves, reach: Leaves, window: Array, steps: Array) -> Leaves:
    """x + t d, where d is zero outside a window of one leaf."""
    which, top, bottom, left, right = window
    length = steps[0] / jnp.sqrt((bottom - top) * (right - left)).astype(steps.dtype)
    moved = []
    for number, leaf in enumerate(leaves):
        rows, columns = as_matrix(leaf.shape)
        row, column = jnp.arange(rows), jnp.arange(columns)
        across = jnp.where((left <= column) & (column < right), length * reach[number], 0)
        down = jnp.where((top <= row) & (row < bottom) & (which == number), across.dtype.type(1), 0)
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
        except Exception:  # f does not know batches, as with a callback: one after another
            return jax.lax.map(partial(jax.lax.map, one), (which, steps))

    return evaluate


def _on_rungs(
    evaluator: Callable[..., Any],
    fixed: tuple[Any, ...],
    which: np.ndarray,
    moving: np.ndarray,
    steps: np.ndarray,
    chunk: int | None,
) -> np.ndarray:
    """f at x, at every x + t d and at every x - t d: (N, 1 + 2T), a row for each direction."""
    signed = np.concatenate([[0.0], steps, -steps])
    count = len(which) * len(signed)
    padded = 2 ** int(np.ceil(np.log2(count)))  # few shapes, so that little is compiled
    if chunk is None:
        chunk = max(1, _ENTRIES_AT_ONCE // sum(leaf.size for leaf in fixed[0]))
    chunk = min(chunk, padded)
    blocks = -(-count // chunk)
    rows = np.resize(np.arange(count), (blocks, chunk))  # the last block is filled up
    line, rung = np.divmod(rows, len(signed))
    values = evaluator(*fixed, np.asarray(which, np.int32)[line], moving[line] * signed[rung, None])
    return np.asarray(values, np.float64).ravel()[:count].reshape(len(which), len(signed))


def _ladder(values: np.ndarray, steps: np.ndarray, eps: float, sigma: np.ndarray) -> Ladder:
    center, plus, minus = np.split(values, [1, 1 + len(steps)], axis=1)
    return Ladder(steps, eps, center[:, 0], plus, minus, sigma)


def _rounding(ladder: Ladder, groups: np.ndarray) -> np.ndarray:
    """σ (N,) from the lowest rungs, where f is as good as linear: of f(x+td) - 2f(x) + f(x-td),
    which has √6 σ, and of half f(x+td) - f(x-td) less 4 times that a rung below: √(17/2) σ."""
    lowest = slice(-_NOISE_RUNGS, None)
    even = (ladder.plus - 2 * ladder.center[:, None] + ladder.minus)[:, lowest]
    odd = (ladder.plus - ladder.minus)[:, lowest] / 2
    left = odd[:, :-1] - RATIO * odd[:, 1:]
    sigma = np.maximum(_pooled(even, groups) / 6**0.5, _pooled(left, groups) / 8.5**0.5)
    return np.asarray(np.maximum(sigma, ladder.eps / 2 * np.abs(ladder.center)))


def _pooled(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The root mean square of all rows (N, ·) of a group, for each row."""
    result = np.empty(len(values))
    for group in np.unique(groups):
        result[groups == group] = np.sqrt(np.mean(values[groups == group] ** 2))
    return result


def slopes(ladder: Ladder) -> Slopes:
    """Extrapolate every line's differences to t → 0, with an error bar."""
    t = ladder.steps
    with np.errstate(all="ignore"):  # beyond a pole f is inf or NaN: such rungs count for nothing
        central = (ladder.plus - ladder.minus) / (2 * t)
        bend = (ladder.plus - 2 * ladder.center[:, None] + ladder.minus) / t
        noise = rounding_bar(ladder)
        value, error, converged, step = _extrapolated(central, noise, t, first=2)
        jump, jump_error, *_ = _extrapolated(bend, 4 * noise, t, first=1)
    return Slopes(value, error, converged, step, jump, jump_error)


def rounding_bar(ladder: Ladder) -> np.ndarray:
    """What rounding can do to the central difference on each rung, (N, T): that of f's value by
    4σ/t, and that of x by its curvature times a few units in the last place of x."""
    second = np.abs(ladder.plus - 2 * ladder.center[:, None] + ladder.minus) / ladder.steps**2
    curvature = np.min(np.where(np.isfinite(second), second, np.inf)[:, _CURVED_RUNGS], axis=1)
    of_x = _SIGMAS * ladder.eps * np.where(np.isfinite(curvature), curvature, 0)
    return np.asarray(_SIGMAS * ladder.sigma[:, None] / ladder.steps + of_x[:, None])


def _extrapolated(
    differences: np.ndarray, noise: np.ndarray, t: np.ndarray, *, first: int
) -> tuple[np.ndarray, ...]:
    """The limit at t → 0 of differences whose error is c t^first + c' t^(first+2) + ...

    An entry of the table is as good as its disagreement with the entry it was made of, with the
    next one down the ladder, and with every difference further down, less that one's rounding: a
    kink between two rungs shows in one of them.
    """
    column, entries, spreads, noises, steps = differences, [], [], [], []
    lowest = np.arange(differences.shape[1])
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
        beyond = np.abs(differences[:, None, :] - column[:, :-1, None]) - noise[:, None, :]
        below = lowest > lowest[: column.shape[1] - 1, None] + order
        spread = np.maximum(spread, np.max(np.where(below, np.nan_to_num(beyond), 0), axis=2))
        entries.append(column[:, :-1])
        spreads.append(spread)
        noises.append(noise[:, order:-1])
        steps.append(np.broadcast_to(t[order:-1], spread.shape))
    entry, spread, bar, step = map(np.hstack, (entries, spreads, noises, steps))
    error = 2 * spread + bar
    error = np.where(np.isfinite(error) & np.isfinite(entry), error, np.inf)
    best = np.argmin(error, axis=1)[:, None]
    value, error, spread, bar, step = (
        np.take_along_axis(array, best, axis=1)[:, 0] for array in (entry, error, spread, bar, step)
    )
    converged = np.isfinite(error) & ((spread <= 4 * bar) | (spread <= 0.01 * np.abs(value)))
    return value, error, converged, step
