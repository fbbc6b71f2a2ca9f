"""The survey: a problem measured along random directions of each leaf, and of all leaves at once."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.checking.comparing import norm
from jaxbp.checking.measuring import (
    JOINTLY,
    RATIO,
    Ladder,
    Slopes,
    climb,
    half_the_digits,
    rungs,
    slopes,
)
from jaxbp.checking.problem import Leaves, Problem
from jaxbp.checking.tracing import resolution


class Arena(NamedTuple):
    """The arithmetic in which f is measured."""

    problem: Problem  # with arrays of that arithmetic
    wide: bool  # float64; otherwise the arguments' own dtypes
    dtype: np.dtype[Any]  # the coarsest that the leaves pass through on their way to f's value

    def arithmetic(self) -> AbstractContextManager[Any]:
        """The context to evaluate in."""
        return jax.enable_x64(True) if self.wide else nullcontext()

    def narrow(self) -> "Arena":
        """The same in float32."""
        leaves, held = jax.tree.map(_to_float32, (self.problem.leaves, self.problem.held))
        problem = self.problem._replace(leaves=leaves, held=held)
        return Arena(problem, False, np.dtype(np.float32))

    @property
    def eps(self) -> float:
        """The resolution of that dtype."""
        return float(jnp.finfo(self.dtype).eps)


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
        with self.arena.arithmetic():
            return tuple(
                jnp.asarray(np.asarray(leaf) + _unit(rng, leaf.shape) * size * distance, leaf.dtype)
                for leaf, size in zip(leaves, self.sizes, strict=True)
            )

    @property
    def lines(self) -> np.ndarray:
        """Leaf and direction of every line."""
        moving = [*range(len(self.sizes)), JOINTLY]
        return np.array([(leaf, i) for leaf in moving for i in range(len(self.directions[0]))])

    def at(self, leaves: Leaves) -> "Survey":
        """The same lines through another point."""
        ladder = self._climb(self.arena.problem, leaves, rungs(self.arena.eps))
        return self._replace(ladder=ladder, slopes=slopes(ladder))

    def _climb(self, problem: Problem, leaves: Leaves, steps: np.ndarray) -> Ladder:
        with self.arena.arithmetic():
            return climb(
                problem.objective,
                leaves,
                problem.held,
                self.directions,
                self.lines,
                steps=steps,
                floor=self.floor,
                chunk=self.chunk,
            )

    def with_floor(self) -> "Survey":
        """With the rounding inside f that only half the digits show, where f can do with them."""
        if self.arena.dtype != np.float64:
            return self
        try:
            with jax.enable_x64(False):
                narrow = self._replace(arena=self.arena.narrow(), floor=0.0)
                problem = narrow.arena.problem
                coarse = narrow._climb(problem, problem.leaves, RATIO ** -_COARSE)
        except Exception:  # whatever f has against float32
            return self
        floor = half_the_digits(self.ladder, coarse, self.lines[:, 0])
        ladder = self.ladder._replace(sigma=np.maximum(self.ladder.sigma, floor))
        overflows = not np.isfinite(coarse.center[0])
        return self._replace(
            floor=floor, ladder=ladder, slopes=slopes(ladder), overflows=overflows
        )


def survey(
    problem: Problem, rng: np.random.Generator, directions: int, chunk: int | None
) -> Survey:
    """Measure a problem.  Raises ValueError where f is not finite at the point."""
    arena = _arena(problem)
    leaves = arena.problem.leaves
    sizes = tuple(norm(np.asarray(leaf, np.float64)) or 1.0 for leaf in leaves)
    drawn = tuple(
        np.stack([_unit(rng, leaf.shape) * size for _ in range(directions)])
        for leaf, size in zip(leaves, sizes, strict=True)
    )
    result = Survey(arena, sizes, drawn, None, None, 0.0, False, chunk).at(leaves)  # type: ignore[arg-type]
    if not np.isfinite(result.value):
        raise ValueError(f"f(...): got {result.value} at this point, expected a finite number")
    return result.with_floor()


def _unit(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """A random unit direction.  Each entry moves by ½ to 1½ times the same, up or down: none is
    left out, so that a single wrong one shows in every direction, and no two cancel."""
    drawn = rng.choice([-1.0, 1.0], shape) * rng.uniform(0.5, 1.5, shape)
    result: np.ndarray = drawn / max(float(np.linalg.norm(drawn.ravel())), 0.5)
    return result


def _to_float32(leaf: Any) -> Any:
    is_float = jax.dtypes.issubdtype(leaf.dtype, np.floating)
    return np.asarray(leaf).astype(np.float32) if is_float else leaf


def _arena(problem: Problem) -> Arena:
    moving = len(problem.leaves)
    try:
        with jax.enable_x64(True):
            wide = problem.in_float64()
            dtype = resolution(problem.objective, wide.leaves, wide.held, moving=moving)
            return Arena(wide, True, dtype)
    except Exception:  # whatever f has against float64: its own arithmetic will do
        narrow = problem._replace(leaves=tuple(map(jnp.asarray, problem.leaves)))
        dtype = resolution(problem.objective, narrow.leaves, narrow.held, moving=moving)
        return Arena(narrow, False, dtype)
