"""The survey: a problem measured along random directions of each leaf, and of all at once."""

from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.checking.comparing import norm
from jaxbp.checking.finite_differences import (
    JOINTLY,
    RATIO,
    Ladder,
    Slopes,
    climb,
    half_the_digits,
    rungs,
    slopes,
)
from jaxbp.checking.jaxprs import arithmetic, eps_of, resolution
from jaxbp.checking.problem import Leaves, Problem


class Arena(NamedTuple):
    """The arithmetic in which f is measured."""

    problem: Problem  # with arrays of that arithmetic
    wide: bool  # float64; otherwise the arguments' own dtypes
    dtype: np.dtype[Any]  # the coarsest that the leaves pass through on their way to f's value
    numpy_constants: bool  # f or the claim closes over NumPy arrays

    def arithmetic(self) -> AbstractContextManager[Any]:
        """The context to evaluate in."""
        wide = self.wide or jax.config.jax_enable_x64
        return arithmetic(float64=wide, numpy_constants=self.numpy_constants)

    @property
    def precision(self) -> str:
        """In words."""
        if self.dtype == np.float64:
            return "float64"
        return f"{self.dtype}, {'in which f works' if self.wide else 'as f takes no float64'}"

    @property
    def eps(self) -> float:
        """The resolution of that dtype."""
        return eps_of(self.dtype)


_COARSE = np.array([4.0, 6.0, 8.0])  # rungs on which f is evaluated with half the digits


class Survey(NamedTuple):
    """What was measured at a point, a row for each line: k of the first leaf, ..., k of all."""

    arena: Arena
    sizes: tuple[float, ...]  # ‖x‖ of each leaf, what its steps are relative to
    directions: tuple[np.ndarray, ...]  # (k, *shape) each, of the leaf's size
    ladder: Ladder
    slopes: Slopes
    floor: np.ndarray | float  # of the rounding, found with half the digits
    overflows: bool  # f is not finite in float32, though it is in float64
    chunk: int | None

    def rows(self, number: int) -> slice:
        """The lines of one leaf; those of all leaves moving jointly come last."""
        count = len(self.directions[0])
        return slice(number * count, (number + 1) * count)

    @property
    def value(self) -> float:
        """f at the point."""
        return float(self.ladder.center[0])

    def along(self, values: Leaves) -> np.ndarray:
        """⟨gradient, d⟩ of every line, for a gradient given leaf by leaf."""
        with np.errstate(invalid="ignore"):  # what is not finite stays so, and is judged as such
            each = np.array(
                [
                    direction.reshape(len(direction), -1) @ np.asarray(value, np.float64).ravel()
                    for direction, value in zip(self.directions, values, strict=True)
                ]
            )
        return np.append(each.ravel(), each.sum(axis=0))

    def beside(self, rng: np.random.Generator, distance: float) -> Leaves:
        """A point beside this one, so far from it relative to each leaf's size."""
        leaves = self.arena.problem.leaves
        return tuple(
            np.asarray(np.asarray(leaf) + _unit(rng, leaf.shape) * size * distance, leaf.dtype)
            for leaf, size in zip(leaves, self.sizes, strict=True)
        )

    @property
    def lines(self) -> np.ndarray:
        """Leaf and direction of every line."""
        moving = [*range(len(self.sizes)), JOINTLY]
        return np.array([(leaf, i) for leaf in moving for i in range(len(self.directions[0]))])

    def at(self, leaves: Leaves) -> "Survey":
        """The same lines through another point; to be called in the arena's arithmetic."""
        problem = self.arena.problem._replace(leaves=leaves)
        ladder = self.climb(problem, rungs(self.arena.eps), self.arena.eps)
        return self._replace(ladder=ladder, slopes=slopes(ladder))

    def climb(self, problem: Problem, steps: np.ndarray, eps: float) -> Ladder:
        """The ladder of every line."""
        return climb(
            problem.objective,
            problem.leaves,
            problem.held,
            self.directions,
            self.lines,
            steps=steps,
            eps=eps,
            floor=self.floor,
            chunk=self.chunk,
        )


def survey(
    arena: Arena,
    rng: np.random.Generator,
    directions: int,
    *,
    chunk: int | None = None,
    along: Leaves | None = None,
) -> Survey:
    """Measure a problem along random directions, or one that is given.

    Raises ValueError where f is not finite at the point.
    """
    leaves = arena.problem.leaves
    sizes = tuple(norm(np.asarray(leaf, np.float64)) or 1.0 for leaf in leaves)
    drawn = tuple(
        np.stack([_unit(rng, leaf.shape) * size for _ in range(directions)])
        for leaf, size in zip(leaves, sizes, strict=True)
    )
    if along is not None:
        drawn = _scaled(along, norm(np.array(sizes)))
    empty = Survey(arena, sizes, drawn, None, None, 0.0, False, chunk)  # type: ignore[arg-type]
    coarse = _with_half_the_digits(empty)
    with arena.arithmetic():
        result = empty.at(leaves)
    if not np.isfinite(result.value):
        raise ValueError(f"f(...): got {result.value} at this point, expected a finite number")
    return result if coarse is None else _with_floor(result, coarse)


def _with_half_the_digits(survey: Survey) -> Ladder | None:
    """Every line in float32, where that is less than f is measured in and f can do with it."""
    arena = survey.arena
    if arena.dtype != np.float64:
        return None
    leaves, held = jax.tree.map(_to_float32, (arena.problem.leaves, arena.problem.held))
    try:
        with arithmetic(float64=False, numpy_constants=arena.numpy_constants):
            problem = arena.problem._replace(leaves=leaves, held=held)
            return survey.climb(problem, RATIO**-_COARSE, eps_of(np.float32))
    except Exception:  # whatever f has against float32
        return None


def _with_floor(survey: Survey, coarse: Ladder) -> Survey:
    """With the rounding inside f that only half the digits show."""
    floor = half_the_digits(survey.ladder, coarse, survey.lines[:, 0])
    ladder = survey.ladder._replace(sigma=np.maximum(survey.ladder.sigma, floor))
    return survey._replace(
        floor=floor,
        ladder=ladder,
        slopes=slopes(ladder),
        overflows=not np.isfinite(coarse.center[0]),
    )


def _scaled(along: Leaves, size: float) -> tuple[np.ndarray, ...]:
    """One direction through all leaves, of the size of all of them together."""
    length = norm(np.concatenate([np.ravel(leaf).astype(np.float64) for leaf in along]))
    if not length or not np.isfinite(length):
        raise ValueError(f"direction: got one of length {length}, expected one that leads on")
    return tuple(np.asarray(leaf, np.float64)[None] * (size / length) for leaf in along)


def _unit(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """A random unit direction.  Each entry moves by ½ to 1½ times the same, up or down: none is
    left out, so that a single wrong one shows in every direction, and no two cancel."""
    drawn = rng.choice([-1.0, 1.0], shape) * rng.uniform(0.5, 1.5, shape)
    result: np.ndarray = drawn / max(float(np.linalg.norm(drawn.ravel())), 0.5)
    return result


def _to_float32(leaf: Any) -> Any:
    is_float = jnp.issubdtype(leaf.dtype, np.floating)
    return np.asarray(leaf).astype(np.float32) if is_float else leaf


def arena_of(problem: Problem, *, numpy_constants: bool) -> Arena:
    """float64 where f lets itself be evaluated so, whatever the dtypes of the arguments."""
    moving = len(problem.leaves)
    try:
        with arithmetic(float64=True, numpy_constants=numpy_constants):
            wide = problem.in_float64()
            dtype = resolution(problem.objective, wide.leaves, wide.held, moving=moving)
            return Arena(wide, True, dtype, numpy_constants)
    except Exception:  # whatever f has against float64: its own arithmetic will do
        narrow = problem._replace(leaves=tuple(map(jnp.asarray, problem.leaves)))
        dtype = resolution(problem.objective, narrow.leaves, narrow.held, moving=moving)
        return Arena(narrow, False, dtype, numpy_constants)
