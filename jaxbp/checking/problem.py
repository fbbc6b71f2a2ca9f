"""The problem: which scalar function of which leaves is checked, and which gradient is claimed.

Any f becomes a scalar function of the leaves that can move:

    φ(leaves) = ⟨cotangent, f(*args)⟩

The leaves are the floating point arrays in the arguments that ``argnums`` names.  Everything else,
integers and random keys among it, is held as it is.  An f that JAX cannot trace is called instead,
as a black box (``jaxbp.checking.black_box``).
"""

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import IntEnum
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxbp.checking.black_box import (
    BlackBox,
    called_plainly,
    in_numpy,
    is_foreign,
    is_tensor,
    to_numpy,
)
from jaxbp.checking.finite_differences import Leaves
from jaxbp.checking.jaxprs import UNTRACEABLE, Tracing, trace_twice
from jaxbp.reprs import short
from jaxbp.text import one_line
from jaxbp.trees import argument_names, named_leaves, positions_of


class Held(NamedTuple):
    """The arguments that do not move, and the cotangent that makes a scalar of f's result."""

    arrays: tuple[Any, ...]
    cotangent: tuple[Any, ...] | None  # one for each leaf of f's result; None where it is a scalar


@dataclass(frozen=True)
class Objective:
    """φ as a function of (leaves, held).  Equal for equal f, so that it need not compile twice."""

    f: Callable[..., Any]
    treedef: Any  # of all arguments
    roles: str  # of their leaves, a letter each: m moves, h held, c constant
    constants: tuple[Any, ...] = field(compare=False)  # Python values and functions: never traced
    keys: tuple[Any, ...]  # stand for the constants in comparisons
    #: its results under jit, without a cotangent, so that a plain f is traced once in each width
    program: Callable[[Leaves, Held], Any] | None = field(default=None, compare=False)

    def arguments(self, leaves: Leaves, held: Held) -> Any:
        """The arguments of f, put together again."""
        sources = {"m": iter(leaves), "h": iter(held.arrays), "c": iter(self.constants)}
        return jax.tree.unflatten(self.treedef, [next(sources[role]) for role in self.roles])

    def results(self, leaves: Leaves, held: Held) -> Any:
        """The value of f, a tree."""
        if self.program is not None:
            return self.program(leaves, held._replace(cotangent=None))
        return self.f(*self.arguments(leaves, held))

    def __call__(self, leaves: Leaves, held: Held) -> Array:
        """φ at the leaves, a scalar."""
        results = jax.tree.leaves(self.results(leaves, held))
        if held.cotangent is None:
            return jnp.asarray(results[0])
        terms = [jnp.sum(c * result) for c, result in zip(held.cotangent, results, strict=True)]
        return sum(terms[1:], start=terms[0])

    def gradient(self, leaves: Leaves, held: Held) -> Leaves:
        """∇φ by ``jax.grad``."""
        slopes: Leaves = jax.grad(self)(leaves, held)
        return slopes


class Purpose(IntEnum):
    """The purposes that random numbers are drawn for, each with a generator of its own."""

    COTANGENT = 0
    DIRECTIONS = 1
    POINTS_AT_KINK = 2
    POINT_AT_ZERO = 3
    POINTS_FOR_VMAP = 4
    ROUNDING = 5
    PRODUCTS = 6
    POINTS_BESIDE = 7
    POINTS_FOR_VALUE = 8


@dataclass(frozen=True)
class Problem:
    """A function at a point."""

    objective: Objective | BlackBox
    leaves: Leaves  # as the user gave them; of a black box as NumPy arrays
    paths: tuple[str, ...]  # of these leaves, as in params[0].weight
    fixed: dict[str, str]  # path -> dtype of the other leaves among argnums, which cannot move
    held: Held
    roots: tuple[str, ...]  # the names of the arguments that argnums names
    single: bool  # whether argnums is one number, so that the gradient is not a tuple
    tracing: Tracing  # of f
    seed: tuple[int, ...]
    refusal: str  # why a black box has no gradient of its own

    @property
    def black_box(self) -> BlackBox | None:
        """f, where it is not traced but called."""
        return self.objective if isinstance(self.objective, BlackBox) else None

    def in_float64(self) -> "Problem":
        """This problem with float64 for every floating point array; to be used in enable_x64."""
        convert = _to_float64 if self.black_box is None else _to_numpy_float64
        leaves, held = jax.tree.map(convert, (self.leaves, self.held))
        return replace(self, leaves=leaves, held=held)

    def generator(self, purpose: Purpose, point: int = 0, leaf: int = 0) -> np.random.Generator:
        """The random numbers for a purpose and, of several points or leaves, for one of them."""
        return _generator(self.seed, purpose, point, leaf)


def _generator(seed: tuple[int, ...], purpose: Purpose, *which: int) -> np.random.Generator:
    """A generator whose numbers depend on its arguments alone, whatever else is drawn.

    It draws on the host: to compile a generator takes longer than a whole check.
    """
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(purpose, *which)))


def _to_float64(leaf: Any) -> Any:
    is_float = jnp.issubdtype(jnp.result_type(leaf), np.floating)
    return jnp.asarray(leaf, np.float64) if is_float else leaf


def _to_numpy_float64(leaf: Any) -> Any:
    return leaf.astype(np.float64) if jnp.issubdtype(leaf.dtype, np.floating) else leaf


def pose(
    f: Callable[..., Any],
    args: tuple[Any, ...],
    argnums: int | Sequence[int],
    cotangent: Any,
    key: Array | None,
    max_evaluations: int | None = None,
    *,
    traced: bool = True,
) -> Problem:
    """Sort the arguments' leaves into those that move and those that do not; trace f, or call it if
    JAX cannot trace it.

    Raises TypeError or ValueError, naming argument and leaf, for whatever cannot be checked, and
    what f itself raises.

    f: the function.
    args: its arguments.
    argnums: the positions of those to differentiate by.
    cotangent: a tree like f's result; random if f's result is not a scalar and none is given.
    key: a ``jax.random.key`` for all that is random; always the same numbers if None.
    max_evaluations: how often a black box may be called; as often as needed unless given.
    traced: whether JAX is to trace f, where it can; True unless given.
    """
    if key is not None and not (
        isinstance(key, Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    ):
        raise TypeError(f"key: got {key!r}, expected a jax.random.key")
    if not callable(f):
        raise TypeError(f"f: got {type(f).__name__}, expected a function")
    positions = _different_positions(argnums, len(args))
    names = argument_names(f, len(args))
    paths, leaves, arrays, constants = [], [], [], []
    given: tuple[list[Any], list[Any]] = ([], [])  # what moves, what is held, as the user has it
    fixed, roles = {}, ""
    for position, (name, arg) in enumerate(zip(names, args, strict=True)):
        for path, own in named_leaves(arg, name).items():
            if isinstance(own, np.ndarray) and type(own) not in {np.ndarray, np.memmap}:
                raise TypeError(
                    f"{path}: got {type(own).__name__}, expected a plain array: the copies that f "
                    "is given would lose its mask, or its own products"
                )
            moves = position in positions and is_foreign(own)
            leaf = to_numpy(own) if moves or is_tensor(own) else own
            if position in positions and _is_float(path, leaf):
                _check_finite(path, leaf)
                role = "m"
                paths.append(path)
                leaves.append(leaf if isinstance(leaf, Array) else np.asarray(leaf))
                given[0].append(own)
            elif isinstance(leaf, Array | np.ndarray | np.generic):
                role = "h"
                arrays.append(leaf)
                given[1].append(own)
            else:
                role = "c"
                constants.append(leaf)
            if position in positions and role != "m":
                fixed[path] = str(getattr(leaf, "dtype", type(leaf).__name__))
            roles += role
    roots = tuple(names[position] for position in positions)
    if not any(leaf.size for leaf in leaves):
        raise ValueError(f"{', '.join(roots)}: {_nothing_moves(paths, leaves, fixed)}")
    objective = Objective(
        f=f if hasattr(f, "lower") else partial(f),  # a plain function may change: never reused
        treedef=jax.tree.structure(args),
        roles=roles,
        constants=tuple(constants),
        keys=tuple(map(_key, constants)),
    )
    point = tuple(leaves), Held(tuple(arrays), None)
    posed: Objective | BlackBox = objective
    untraced = not traced or any(map(is_tensor, (*given[0], *given[1])))
    tracing, refusal = _traced(objective, point, untraced)
    if tracing is None:
        point = tuple(map(in_numpy, leaves)), Held(tuple(map(in_numpy, arrays)), None)
        posed, tracing = _called(objective, given, point, max_evaluations, refusal, cotangent)
    elif tracing.deterministic and objective.f is not f:
        posed = replace(objective, program=tracing.program)
    seed = (0,) if key is None else tuple(map(int, np.ravel(jax.random.key_data(key))))
    return Problem(
        objective=posed,
        leaves=point[0],
        paths=tuple(paths),
        fixed=fixed,
        held=point[1]._replace(cotangent=_cotangent(cotangent, tracing.result, seed)),
        roots=roots,
        single=not isinstance(argnums, Sequence),
        tracing=tracing,
        seed=seed,
        refusal=(
            "not all arguments are tensors"
            if refusal is None
            else f"JAX cannot trace f ({one_line(refusal)})"
        ),
    )


def _different_positions(argnums: int | Sequence[int], count: int) -> tuple[int, ...]:
    positions = positions_of(argnums, count)
    if len(set(positions)) < len(positions):
        raise ValueError(f"argnums: got {argnums!r}, expected each position once")
    return positions


def _nothing_moves(paths: list[str], leaves: list[Any], fixed: dict[str, str]) -> str:
    """Say what came and what was expected, where no argument has an entry that can move."""
    if leaves:
        pairs = zip(paths, leaves, strict=True)
        shapes = "; ".join(f"{path} of shape {leaf.shape}" for path, leaf in pairs)
        return f"got {shapes}, expected at least one entry"
    found = "; ".join(f"{path} is {dtype}" for path, dtype in fixed.items()) or "no leaf at all"
    return f"got {found}, expected a floating point leaf, such as 3.0"


def _traced(
    objective: Objective, point: tuple[Leaves, Held], untraced: bool
) -> tuple[Tracing | None, Exception | None]:
    """The tracing of f, or else the exception that this raises; neither where it is not traced."""
    try:
        return (None if untraced else trace_twice(objective.results, *point)), None
    except Exception as error:  # another library may raise anything when it is given tracers
        return None, error


def _called(
    objective: Objective,
    given: tuple[list[Any], list[Any]],
    point: tuple[Leaves, Held],
    max_evaluations: int | None,
    refusal: Exception | None,
    cotangent: Any,
) -> tuple[BlackBox, Tracing]:
    """f as a black box, and what two calls tell of it; raises f's own exception."""
    box, result = called_plainly(objective, given, point, max_evaluations, refusal)
    first, again = map(jax.tree.leaves, (result, box.results(*point)))
    same = all(map(np.array_equal, first, again))
    if cotangent is None and [leaf.size for leaf in first] == [1]:
        result = first[0].reshape(())  # of shape (1, 1), say
    return box, Tracing(None, result, deterministic=same, numpy_constants=False)


def _is_float(path: str, leaf: Any) -> bool:
    if not isinstance(leaf, float | complex | Array | np.ndarray | np.generic):
        return False
    dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
    if jnp.issubdtype(dtype, np.complexfloating):
        raise TypeError(f"{path}: got {dtype}, expected real numbers")
    if jnp.issubdtype(dtype, np.floating) and dtype.itemsize > np.dtype(np.float64).itemsize:
        raise TypeError(f"{path}: got {dtype}, expected float64 at most")
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


def _cotangent(given: Any, result: Any, seed: tuple[int, ...]) -> tuple[Any, ...] | None:
    """The weights of f's results in φ: given or random, as errors that cancel out would hide from
    equal ones.  None for a scalar, which needs none."""
    expected = named_leaves(result, "f(...)")
    for path, leaf in expected.items():
        if not jnp.issubdtype(leaf.dtype, np.floating):
            raise TypeError(f"{path}: got {leaf.dtype}, expected floating point numbers")
    if not any(map(np.size, expected.values())):
        raise TypeError("f(...): got no result, expected floating point numbers")
    if given is None:
        if [leaf.shape for leaf in expected.values()] == [()]:
            return None
        generator = _generator(seed, Purpose.COTANGENT)
        return tuple(generator.normal(size=leaf.shape) for leaf in expected.values())
    got = named_leaves(given, "f(...)")
    wrong = [
        path for path in expected if path not in got or np.shape(got[path]) != expected[path].shape
    ]
    if wrong or len(got) > len(expected):
        got_shapes = {path: np.shape(leaf) for path, leaf in got.items()}
        shapes = {path: leaf.shape for path, leaf in expected.items()}
        raise ValueError(f"cotangent: got {got_shapes}, expected {shapes}")
    for path, leaf in got.items():
        if np.iscomplexobj(leaf):
            raise TypeError(f"cotangent: {path}: got complex numbers, expected real ones")
        _check_finite(f"cotangent: {path}", leaf)
    if not any(np.any(leaf) for leaf in got.values()):
        raise ValueError("cotangent: got zeros alone, with which every gradient is zero")
    return tuple(np.asarray(got[path], np.float64) for path in expected)


# The claim


class NoDerivativeError(TypeError):
    """A function that JAX cannot differentiate; the reason is by the exception that JAX raises.

    >>> missing = NotImplementedError("Differentiation rule for 'igamma_grad_a' not implemented")
    >>> NoDerivativeError(missing).reason
    'JAX has no derivative of igamma_grad_a'
    """

    def __init__(self, error: Exception) -> None:
        missing = re.match(r"(?:Differentiation|Transpose) rule .*for '(\w+)' not", str(error))
        self.reason = f"JAX has no derivative of {missing[1]}" if missing else one_line(error)
        super().__init__(
            "f: got a function that JAX cannot differentiate, expected grads or one that it can "
            f"({self.reason})"
        )


@dataclass(frozen=True)
class GradientFunction:
    """A claimed gradient as a function of (leaves, held): ∇φ by ``jax.grad``, or the user's."""

    objective: Objective | BlackBox
    grads: Callable[..., Any] | None  # the user's; None: the objective's own
    after_f: bool = False  # whether it answers by what f has left, and f is to be called before

    @property
    def reused(self) -> bool:
        """Whether it is compiled once and for all, as a function under jit may be."""
        return self.grads is None or hasattr(self.grads, "lower")

    def __call__(self, leaves: Leaves, held: Held) -> Any:
        """A tree like the arguments that argnums names or, by jax.grad, the leaves that move."""
        if self.grads is None:
            return self.objective.gradient(leaves, held)
        if self.after_f:
            self.objective.results(leaves, held)
        tree = self.grads(*self.objective.arguments(leaves, held))
        return jax.tree.map(to_numpy, tree) if isinstance(self.objective, BlackBox) else tree


@dataclass(frozen=True)
class Claim:
    """A gradient to be checked, leaf by leaf in the problem's order."""

    values: tuple[np.ndarray, ...]  # as the user has them, in the leaves' own dtypes
    function: Callable[[Leaves, Held], Leaves] | None = None  # compiled; None for values alone
    gradient: GradientFunction | None = None  # that function as the user wrote it
    tracing: Tracing | None = None  # of it; None for values, and where JAX cannot trace it
    not_differentiable: tuple[str, ...] = ()  # leaves with a claimed slope that cannot move

    @property
    def automatic(self) -> bool:
        """Whether it is ``jax.grad``'s."""
        return self.gradient is not None and self.gradient.grads is None

    def values_at(self, leaves: Leaves, held: Held) -> Leaves:
        """The claimed gradient at another point, by its function."""
        assert self.function is not None
        return tuple(np.asarray(value, np.float64) for value in self.function(leaves, held))


def claim(problem: Problem, grads: Any, *, random_cotangent: bool) -> Claim:
    """The claimed gradient: ``jax.grad``'s without grads, else that of the function or the tree.

    Raises ValueError or TypeError, naming the leaf, for a tree that is not like the arguments, and
    NoDerivativeError where JAX cannot differentiate f.
    """
    if grads is not None and random_cotangent and problem.held.cotangent is not None:
        result = ", ".join(short(leaf) for leaf in jax.tree.leaves(problem.held.cotangent))
        raise ValueError(
            f"cotangent: got none, but f's result is not a scalar but {result}: a loss is one "
            "number, as sum() or float() makes it; of other results expected the cotangent with "
            "which grads is made"
        )
    black_box = problem.black_box
    if grads is None and black_box is not None and not black_box.differentiable:
        raise ValueError(
            "grads: got None, expected the gradient, a tree of arrays or a function, as "
            f"{problem.refusal}"
        )
    if grads is not None and not callable(grads):
        tree = grads if black_box is None else jax.tree.map(to_numpy, grads)
        values, extra = gradient_leaves(problem, tree, "grads: ")
        _check_dtypes(problem, values)
        return Claim(tuple(map(np.asarray, values)), not_differentiable=extra)
    gradient = GradientFunction(problem.objective, grads)
    try:
        traced = black_box is None
        tracing = trace_twice(gradient, problem.leaves, problem.held) if traced else None
    except UNTRACEABLE:  # NumPy homework, say
        tracing = None
    except (NotImplementedError, TypeError, ValueError) as error:  # as JAX has them
        if grads is not None:
            raise
        raise NoDerivativeError(error) from error
    if black_box is not None and grads is not None:
        gradient = replace(gradient, after_f=_answers_by_what_is_left(problem, gradient))
    tree_of: Callable[[Leaves, Held], Any] = gradient
    if tracing is not None and tracing.program is not None:
        tree_of = compiled(gradient) if gradient.reused else tracing.program
    tree = tree_of(problem.leaves, problem.held)
    if grads is None:
        return Claim(tuple(map(np.asarray, tree)), tree_of, gradient, tracing)
    values, extra = gradient_leaves(problem, tree, "grads(...): ")
    _check_dtypes(problem, values)

    def function(leaves: Leaves, held: Held) -> Leaves:
        return gradient_leaves(problem, tree_of(leaves, held), "grads(...): ")[0]

    return Claim(tuple(map(np.asarray, values)), function, gradient, tracing, extra)


def _answers_by_what_is_left(problem: Problem, gradient: GradientFunction) -> bool:
    """Whether a claim at the point is another one after f at another point, as that of a network
    whose backward pass uses what its forward pass has kept."""
    near = tuple(leaf + 2.0**-10 * (1 + np.abs(leaf)) for leaf in problem.leaves)
    far = tuple(-leaf - 0.5 for leaf in problem.leaves)
    point, claims = (problem.leaves, problem.held), []
    for other in (None, near, far):  # f was called at the point just now
        if other is not None:
            with suppress(Exception):  # beyond the end of f's domain
                gradient.objective.results(other, problem.held)
        try:
            claims.append(jax.tree.leaves(gradient(*point)))
        except Exception:
            return bool(claims)  # where the first raises it, the user is told
    return not all(_alike(claims[0], each) for each in claims[1:])


def _alike(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> bool:
    """Whether two lists of arrays are equal, a NaN to a NaN."""
    return len(ours) == len(theirs) and all(
        np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
        for a, b in zip(ours, theirs, strict=True)
    )


def numpy_constants(problem: Problem, claimed: Claim) -> bool:
    """Whether f or the claimed gradient closes over NumPy arrays."""
    tracings = (problem.tracing, claimed.tracing)
    return any(tracing is not None and tracing.numpy_constants for tracing in tracings)


def compiled(gradient: GradientFunction) -> Callable[[Leaves, Held], Any]:
    """A gradient that is reused, under jit where it is not already."""
    return _jitted(gradient) if gradient.grads is None else gradient


def under_vmap(gradient: GradientFunction, tracing: Tracing) -> Callable[[Leaves, Held], Any]:
    """The gradient at many points at once: leaves with a leading axis."""
    if gradient.reused:
        return _vmapped(gradient)
    return _vmapped.__wrapped__(tracing.program)  # which no other check has: not kept


@lru_cache(maxsize=32)
def _jitted(gradient: GradientFunction) -> Callable[[Leaves, Held], Any]:
    return jax.jit(gradient)


@lru_cache(maxsize=32)
def _vmapped(gradient: Callable[[Leaves, Held], Any]) -> Callable[[Leaves, Held], Any]:
    return jax.jit(jax.vmap(partial(gradient), in_axes=(0, None)))


def gradient_leaves(problem: Problem, tree: Any, title: str) -> tuple[Leaves, tuple[str, ...]]:
    """A gradient's leaves in the problem's order, and the paths of leaves that cannot move but get
    a slope all the same.  None, zeros and JAX's float0 do not count as a slope."""
    parts = (tree,) if problem.single else tree
    if not isinstance(parts, tuple | list) or len(parts) != len(problem.roots):
        raise ValueError(
            f"{title}got {short(tree)}, expected a tuple of {len(problem.roots)}, a gradient of "
            f"each of {', '.join(problem.roots)}"
        )
    found: dict[str, Any] = {}
    for root, part in zip(problem.roots, parts, strict=True):
        found |= named_leaves(part, root, none=True)
    missing = [path for path in problem.paths if found.get(path) is None]
    known = {*problem.paths, *problem.fixed}
    extra = [path for path, leaf in found.items() if leaf is not None and path not in known]
    if missing or extra:
        named = [path if leaf is not None else f"{path} (None)" for path, leaf in found.items()]
        lists = [", ".join(paths) or "none" for paths in (named, problem.paths)]
        raise ValueError(f"{title}got leaves {lists[0]}, expected {lists[1]}")
    for path, leaf in zip(problem.paths, problem.leaves, strict=True):
        if np.shape(found[path]) != np.shape(leaf):
            raise ValueError(
                f"{title}{path}: got shape {np.shape(found[path])}, expected {np.shape(leaf)}"
            )
    not_differentiable = tuple(path for path in problem.fixed if _is_slope(found.get(path)))
    return tuple(found[path] for path in problem.paths), not_differentiable


def _is_slope(leaf: Any) -> bool:
    if leaf is None or isinstance(leaf, jax.core.Tracer):
        return False
    return np.asarray(leaf).dtype != jax.dtypes.float0 and bool(np.any(np.asarray(leaf)))


def _check_dtypes(problem: Problem, values: Leaves) -> None:
    for path, leaf, value in zip(problem.paths, problem.leaves, values, strict=True):
        expected = jax.dtypes.canonicalize_dtype(np.asarray(leaf).dtype)
        came = np.asarray(value).dtype
        got = jax.dtypes.canonicalize_dtype(came)
        taken = problem.black_box is not None and jnp.issubdtype(got, np.floating)
        if got != expected and not taken:
            own = np.asarray(leaf).dtype
            raise TypeError(f"grads: {path}: got {came}, expected {own}, as the argument's")
