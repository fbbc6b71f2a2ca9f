"""The problem: which scalar function of which leaves is checked, and which gradient is claimed.

Any f becomes a scalar function of the leaves that can move:

    φ(leaves) = ⟨cotangent, f(*args)⟩

The leaves are the floating point arrays in the arguments that ``argnums`` names.  Everything else,
integers and random keys among it, is held as it is.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxbp.checking.jaxprs import Habits, habits
from jaxbp.trees import argument_names, named_leaves, positions_of

Leaves = tuple[Any, ...]


class Held(NamedTuple):
    """What does not move: arrays, and the cotangent that makes a scalar of f's result."""

    arrays: tuple[Any, ...]
    cotangent: tuple[Any, ...] | None  # one for each leaf of f's result; None where it is a scalar


@dataclass(frozen=True)
class Objective:
    """φ as a function of (leaves, held).  Equal for equal f, so that it need not compile twice."""

    f: Callable[..., Any]
    treedef: Any  # of all arguments
    roles: str  # of their leaves, a letter each: m moves, h held, c constant
    constants: tuple[Any, ...] = field(compare=False)  # Python values and functions: never traced
    keys: tuple[Any, ...]  # what stands for the constants in comparisons

    def arguments(self, leaves: Leaves, held: Held) -> Any:
        """The arguments of f, put together again."""
        sources = {"m": iter(leaves), "h": iter(held.arrays), "c": iter(self.constants)}
        return jax.tree.unflatten(self.treedef, [next(sources[role]) for role in self.roles])

    def __call__(self, leaves: Leaves, held: Held) -> Array:
        """φ."""
        results = jax.tree.leaves(self.f(*self.arguments(leaves, held)))
        if held.cotangent is None:
            return jnp.asarray(results[0])
        terms = [jnp.sum(c * result) for c, result in zip(held.cotangent, results, strict=True)]
        return sum(terms[1:], start=terms[0])


class Problem(NamedTuple):
    """A function at a point."""

    objective: Objective
    leaves: Leaves  # as the user gave them
    paths: tuple[str, ...]  # of these leaves, as in params[0].weight
    fixed: dict[str, str]  # what is no floating point leaf among argnums: path -> dtype
    held: Held
    roots: tuple[str, ...]  # the names of the arguments that argnums names
    single: bool  # whether argnums is one number, so that the gradient is no tuple

    def in_float64(self) -> "Problem":
        """The same with float64 for every floating point array; to be used inside enable_x64."""
        leaves, held = jax.tree.map(_to_float64, (self.leaves, self.held))
        return self._replace(leaves=leaves, held=held)


def generator(key: Array | None) -> np.random.Generator:
    """Numbers drawn on the host: to compile a generator takes longer than a whole check."""
    if key is None:
        return np.random.default_rng(0)
    if not (isinstance(key, Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
        raise TypeError(f"key: got {key!r}, expected a jax.random.key")
    return np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())


def pose(
    f: Callable[..., Any],
    args: tuple[Any, ...],
    argnums: int | Sequence[int],
    cotangent: Any,
    rng: np.random.Generator,
) -> Problem:
    """Sort the arguments' leaves into those that move and those that do not.

    Raises TypeError or ValueError, naming argument and leaf, for whatever cannot be checked.
    """
    if not callable(f):
        raise TypeError(f"f: got {type(f).__name__}, expected a function")
    positions = positions_of(argnums, len(args))
    names = argument_names(f, len(args))
    paths, leaves, arrays, constants = [], [], [], []
    fixed, roles = {}, ""
    for position, (name, arg) in enumerate(zip(names, args, strict=True)):
        for path, leaf in named_leaves(arg, name).items():
            if position in positions and _is_float(path, leaf):
                _check_finite(path, leaf)
                role = "m"
                paths.append(path)
                leaves.append(leaf if isinstance(leaf, Array) else np.asarray(leaf))
            elif isinstance(leaf, Array | np.ndarray | np.generic):
                role = "h"
                arrays.append(leaf)
            else:
                role = "c"
                constants.append(leaf)
            if position in positions and role != "m":
                fixed[path] = str(getattr(leaf, "dtype", type(leaf).__name__))
            roles += role
    roots = tuple(names[position] for position in positions)
    if not leaves:
        found = "; ".join(f"{path} is {dtype}" for path, dtype in fixed.items()) or "no leaf at all"
        raise ValueError(f"{', '.join(roots)}: got {found}, expected a floating point leaf")
    objective = Objective(
        f=f if hasattr(f, "lower") else partial(f),  # what is not jitted may change: never reused
        treedef=jax.tree.structure(args),
        roles=roles,
        constants=tuple(constants),
        keys=tuple(map(_key, constants)),
    )
    held = Held(tuple(arrays), None)
    single = isinstance(argnums, int)
    problem = Problem(objective, tuple(leaves), tuple(paths), fixed, held, roots, single)
    return problem._replace(held=held._replace(cotangent=_cotangent(problem, cotangent, rng)))


def _is_float(path: str, leaf: Any) -> bool:
    if not isinstance(leaf, float | complex | Array | np.ndarray | np.generic):
        return False
    dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
    if jnp.issubdtype(dtype, np.complexfloating):
        raise TypeError(f"{path}: got {dtype}, expected real numbers")
    return bool(jnp.issubdtype(dtype, np.floating))


def _check_finite(name: str, leaf: Any) -> None:
    values = np.asarray(leaf).astype(np.float64)
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        index = tuple(map(int, bad[0]))
        where = f"{values[index]} at {list(index)}" if index else str(values[index])
        raise ValueError(
            f"{name}: got {where}, expected finite numbers ({len(bad)} of {values.size} are not)"
        )


def _key(value: Any) -> Any:
    try:
        hash(value)
    except TypeError:
        return id(value)
    return type(value), value


def _cotangent(problem: Problem, given: Any, rng: np.random.Generator) -> tuple[Any, ...] | None:
    """A number for each of f's: given or random, for errors that cancel hide from an all-ones one.

    None for a scalar, which needs none.
    """

    def results(leaves: Leaves, held: Held) -> Any:
        return problem.objective.f(*problem.objective.arguments(leaves, held))

    try:
        shapes = jax.eval_shape(results, problem.leaves, problem.held)
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
        raise TypeError(
            f"f: got a function that JAX cannot trace, expected one of JAX arrays ({error})"
        ) from error
    expected = named_leaves(shapes, "f(...)")
    for path, result in expected.items():
        if not jnp.issubdtype(result.dtype, np.floating):
            raise TypeError(f"{path}: got {result.dtype}, expected floating point numbers")
    if not expected:
        raise TypeError("f(...): got no result, expected floating point numbers")
    if given is None:
        if [result.shape for result in expected.values()] == [()]:
            return None
        return tuple(rng.normal(size=result.shape) for result in expected.values())
    got = named_leaves(given, "f(...)")
    wrong = [
        path for path in expected if path not in got or np.shape(got[path]) != expected[path].shape
    ]
    if wrong or len(got) > len(expected):
        got_shapes = {path: np.shape(leaf) for path, leaf in got.items()}
        shapes = {path: result.shape for path, result in expected.items()}
        raise ValueError(f"cotangent: got {got_shapes}, expected {shapes}")
    return tuple(np.asarray(got[path], np.float64) for path in expected)


def _to_float64(leaf: Any) -> Any:
    is_float = jnp.issubdtype(jnp.result_type(leaf), np.floating)
    return jnp.asarray(leaf, np.float64) if is_float else leaf


# The claim


@dataclass(frozen=True)
class Claimed:
    """A claimed gradient as a function of (leaves, held): ∇φ by ``jax.grad``, or the user's."""

    objective: Objective
    grads: Callable[..., Any] | None

    @property
    def reused(self) -> bool:
        """Whether it is compiled once and for all, as what is under jit may be."""
        return self.grads is None or hasattr(self.grads, "lower")

    def __call__(self, leaves: Leaves, held: Held) -> Any:
        """A tree like the arguments that argnums names, or the leaves that move if by jax.grad."""
        if self.grads is None:
            return jax.grad(self.objective)(leaves, held)
        return self.grads(*self.objective.arguments(leaves, held))


class Claim(NamedTuple):
    """A gradient to be checked, leaf by leaf in the problem's order."""

    values: tuple[np.ndarray, ...]  # as the user has them, in the leaves' own dtypes
    function: Callable[[Leaves, Held], Leaves] | None = None  # none where only values were given
    formula: Claimed | None = None  # the same, neither compiled nor checked
    stray: tuple[str, ...] = ()  # leaves that cannot move, and yet a slope is claimed for them
    automatic: bool = False  # whether it is jax.grad's


def claim(problem: Problem, grads: Any, *, random_cotangent: bool) -> Claim:
    """The claimed gradient: ``jax.grad``'s without grads, else that of the function or the tree.

    Raises ValueError or TypeError, naming the leaf, for a tree that is not like the arguments.
    """
    if grads is not None and random_cotangent and problem.held.cotangent is not None:
        raise ValueError(
            "cotangent: got none, but f's result is no scalar: expected the one with which grads "
            "is made"
        )
    if grads is not None and not callable(grads):
        values, stray = gradient_leaves(problem, grads, "grads: ")
        _check_dtypes(problem, values)
        return Claim(tuple(map(np.asarray, values)), stray=stray)
    formula = Claimed(problem.objective, grads)
    tree_of = compiled(formula, problem)

    def function(leaves: Leaves, held: Held) -> Leaves:
        tree = tree_of(leaves, held)
        return tree if grads is None else gradient_leaves(problem, tree, "grads(...): ")[0]

    tree = tree_of(problem.leaves, problem.held)
    if grads is None:
        return Claim(tuple(map(np.asarray, tree)), function, formula, automatic=True)
    values, stray = gradient_leaves(problem, tree, "grads(...): ")
    _check_dtypes(problem, values)
    return Claim(tuple(map(np.asarray, values)), function, formula, stray)


def compiled(claimed: Claimed, problem: Problem) -> Callable[[Leaves, Held], Any]:
    """The claim under jit, where it is not already or JAX cannot trace it: NumPy homework, say."""
    if hasattr(claimed.grads, "lower"):
        return claimed
    try:
        jax.eval_shape(claimed, problem.leaves, problem.held)
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError):
        return claimed
    return _jitted(claimed) if claimed.reused else jax.jit(partial(claimed))


def under_vmap(claimed: Claimed) -> Callable[[Leaves, Held], Any]:
    """The claim at many points at once: leaves with a leading axis."""
    return _vmapped(claimed) if claimed.reused else _vmapped.__wrapped__(claimed)


@lru_cache(maxsize=32)
def _jitted(claimed: Claimed) -> Callable[[Leaves, Held], Any]:
    return jax.jit(claimed)


@lru_cache(maxsize=32)
def _vmapped(claimed: Claimed) -> Callable[[Leaves, Held], Any]:
    return jax.jit(jax.vmap(partial(claimed), in_axes=(0, None)))


def habits_of(problem: Problem, claimed: Claim) -> tuple[Habits, Habits]:
    """Those of f and of the claimed gradient, one of values having the best there are."""
    point = problem.leaves, problem.held
    of_f = habits(problem.objective, *point)
    if claimed.formula is None:
        return of_f, Habits(repeats=True, numpy_constants=False)
    return of_f, habits(claimed.formula, *point)


def gradient_leaves(problem: Problem, tree: Any, title: str) -> tuple[Leaves, tuple[str, ...]]:
    """A gradient's leaves in the problem's order, and the fixed leaves that get one all the same.

    For what cannot move, None, zeros and JAX's float0 are all right.
    """
    parts = (tree,) if problem.single else tree
    if not isinstance(parts, tuple | list) or len(parts) != len(problem.roots):
        raise ValueError(f"{title}got {type(tree).__name__}, expected a tuple, one an argument")
    found: dict[str, Any] = {}
    for root, part in zip(problem.roots, parts, strict=True):
        found |= named_leaves(part, root, none=True)
    missing = [path for path in problem.paths if found.get(path) is None]
    extra = [path for path in found if path not in {*problem.paths, *problem.fixed}]
    if missing or extra:
        lists = [", ".join(paths) or "none" for paths in (found, problem.paths)]
        raise ValueError(f"{title}got leaves {lists[0]}, expected {lists[1]}")
    for path, leaf in zip(problem.paths, problem.leaves, strict=True):
        if np.shape(found[path]) != np.shape(leaf):
            raise ValueError(
                f"{title}{path}: got shape {np.shape(found[path])}, expected {np.shape(leaf)}"
            )
    stray = tuple(path for path in problem.fixed if _claims_something(found.get(path)))
    return tuple(found[path] for path in problem.paths), stray


def _claims_something(leaf: Any) -> bool:
    if leaf is None or isinstance(leaf, jax.core.Tracer):
        return False
    return np.asarray(leaf).dtype != jax.dtypes.float0 and bool(np.any(np.asarray(leaf)))


def _check_dtypes(problem: Problem, values: Leaves) -> None:
    for path, leaf, value in zip(problem.paths, problem.leaves, values, strict=True):
        expected = jax.dtypes.canonicalize_dtype(np.asarray(leaf).dtype)
        got = jax.dtypes.canonicalize_dtype(np.asarray(value).dtype)
        if got != expected:
            raise TypeError(f"grads: {path}: got {got}, expected {expected}, as the argument's")
