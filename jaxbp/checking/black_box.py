"""Black boxes: functions that JAX cannot trace, such as NumPy's, PyTorch's, or C's.

A black box is called as it is, one point at a time, with arrays of the kind that the user gave.  It
may be slow, unsafe in threads, and write into its arguments: each call gets copies, and what it
returns is copied.  Calls are counted, as each may be expensive.
"""

import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxbp.checking.jaxprs import UNTRACEABLE
from jaxbp.text import one_line

_SECONDS = 60.0  # of calls, after which the search for wrong entries ends
_FEWEST, _MOST = 200, 10_000  # calls, between which that many seconds are converted


class NoGradientError(TypeError):
    """A black box is asked for a gradient of its own."""


def is_tensor(leaf: Any) -> bool:
    """Whether this is a tensor of PyTorch, which is not imported for the question."""
    return isinstance(leaf, getattr(sys.modules.get("torch"), "Tensor", ()))


def is_foreign(leaf: Any) -> bool:
    """Whether this is an array of another library than NumPy and JAX."""
    ours = Array | np.ndarray | np.generic
    return is_tensor(leaf) or (hasattr(leaf, "__array__") and not isinstance(leaf, ours | type))


def to_numpy(leaf: Any) -> np.ndarray:
    """A copy as a NumPy array, of the same dtype where NumPy or JAX has it."""
    if is_tensor(leaf):
        if str(leaf.dtype) == "torch.bfloat16":  # NumPy knows it by JAX alone
            return np.asarray(leaf.float().numpy(force=True), jnp.bfloat16)
        return np.array(leaf.numpy(force=True))
    try:
        return np.array(leaf)
    except TypeError:
        if not hasattr(leaf, "get"):
            raise
        return np.array(leaf.get())  # as CuPy copies to the host only when told to


def in_numpy(leaf: Any) -> Any:
    """A leaf as a NumPy array, not copied; a random key, which is no array of numbers, stays."""
    is_key = isinstance(leaf, Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.extended)
    return leaf if is_key else np.asarray(leaf)


def _to_result(leaf: Any) -> np.ndarray:
    """A result as a NumPy array, an int as a float: Python's max(0, x) may be the integer 0."""
    return np.asarray(float(leaf)) if type(leaf) is int else to_numpy(leaf)


def _maker(leaf: Any) -> Callable[[Any], Any]:
    """The function that makes an argument of a leaf's kind from a NumPy array."""
    if is_tensor(leaf):
        return lambda values: _tensor(values, leaf.device)
    if type(leaf) is float:  # Python has no other precision: in another, it is one of NumPy's
        return lambda values: float(values) if values.dtype == np.float64 else values[()]
    if isinstance(leaf, np.generic):
        return lambda values: values[()]
    if isinstance(leaf, Array):
        return lambda values: jnp.asarray(values) if isinstance(values, np.ndarray) else values
    if is_foreign(leaf) and hasattr(leaf, "__array_namespace__"):
        return lambda values: leaf.__array_namespace__().asarray(np.array(values))
    return np.array


def _tensor(values: np.ndarray, device: Any) -> Any:
    torch = sys.modules["torch"]
    exact = np.array(values, np.float32 if values.dtype == jnp.bfloat16 else None)
    return torch.from_numpy(exact).to(device, getattr(torch, values.dtype.name))


def _numpy_maker(leaf: Any) -> Callable[[Any], Any]:
    """How a NumPy array is made in place of JAX's; of a random key there is none."""
    return _maker(in_numpy(leaf))


@dataclass(eq=False)
class BlackBox:
    """φ as a function of (leaves, held), NumPy arrays, without JAX; it counts its calls."""

    objective: Any  # a ``problem.Objective``: f, and how its arguments are put together
    moving: tuple[Callable[[Any], Any], ...]  # what makes f's own arguments from the leaves
    fixed: tuple[Callable[[Any], Any], ...]  # and from the arrays that are held
    differentiable: bool  # by PyTorch: all leaves are its tensors
    limit: int | None  # calls that the user allows; None: any number
    library: str = ""  # whose arrays f computes with, as far as its arguments and results tell
    calls: int = 0
    seconds: float = 0.0  # that the calls took
    raised: list[str] = field(default_factory=list)  # the exceptions that f raised, in a line each

    @property
    def name(self) -> str:
        """The kind of function, in the words of a report."""
        return f"a black box: {self.library}" if self.library else "a black box"

    @property
    def left(self) -> int:
        """How many calls a search may still make: those that the user allows, or a minute's."""
        if self.limit is not None:
            return self.limit - self.calls
        affordable = _SECONDS * self.calls / max(self.seconds, 1e-9)
        return int(min(max(affordable, _FEWEST), _MOST)) - self.calls

    def arguments(self, leaves: Any, held: Any) -> Any:
        """Copies of the arguments, as f takes them."""
        return self.objective.arguments(*self._made(leaves, held))

    def _made(self, leaves: Any, held: Any) -> tuple[tuple[Any, ...], Any]:
        """Copies of the leaves and the held arrays, as f takes them."""
        moved = tuple(make(leaf) for make, leaf in zip(self.moving, leaves, strict=True))
        fixed = tuple(make(leaf) for make, leaf in zip(self.fixed, held.arrays, strict=True))
        return moved, held._replace(arrays=fixed)

    def results(self, leaves: Any, held: Any) -> Any:
        """The value of f, a tree of NumPy arrays."""
        arguments = self.arguments(leaves, held)
        self.calls += 1
        start = perf_counter()
        try:
            results = self.objective.f(*arguments)
        finally:
            self.seconds += perf_counter() - start
        self.library = self.library or _library((arguments, results))
        return jax.tree.map(_to_result, results)

    def __call__(self, leaves: Any, held: Any) -> np.ndarray:
        """φ at the leaves, a scalar."""
        return _product(jax.tree.leaves(self.results(leaves, held)), held.cotangent)

    def require(self, count: int) -> None:
        """Raise ValueError where that many more calls are more than the user allows."""
        needed = self.calls + count
        if self.limit is not None and needed > self.limit:
            raise ValueError(
                f"max_evaluations: got {self.limit}, expected at least {needed} for a verdict"
            )

    def values(self, points: Iterable[Any], held: Any) -> np.ndarray:
        """φ at some points; nan where f raises an exception, as beyond the end of its domain."""
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # of points that the user never asked for
            return np.array([self._value(point, held) for point in points])

    def _value(self, leaves: Any, held: Any) -> float:
        try:
            return float(self(leaves, held))
        except Exception as error:  # math.log of a negative number, say
            self.raised.append(one_line(error))
            return float("nan")

    def notes(self) -> list[str]:
        """A note on the exceptions that f raised, if any: the first one, and how many."""
        count = len(self.raised)
        return [f"f raised {self.raised[0]} at {count} of the points"] if count else []

    def gradient(self, leaves: Any, held: Any) -> tuple[Any, ...]:
        """∇φ by ``torch.autograd.grad``; raises NoGradientError where a leaf is no tensor."""
        if not self.differentiable:
            raise NoGradientError("f: got a black box, which has no gradient of its own")
        torch = sys.modules["torch"]
        moved, made = self._made(leaves, held)
        with torch.enable_grad():
            for tensor in moved:
                tensor.requires_grad_(True)
            results = jax.tree.leaves(self.objective.results(moved, made))
            weights = [1.0] if held.cotangent is None else held.cotangent
            terms = [
                (result * torch.as_tensor(weight, dtype=result.dtype, device=result.device)).sum()
                for weight, result in zip(weights, results, strict=True)
                if is_tensor(result) and result.requires_grad
            ]
            if not terms:  # f does not depend on any of the tensors
                return tuple(np.zeros(leaf.shape, leaf.dtype) for leaf in leaves)
            found = torch.autograd.grad(sum(terms), moved, allow_unused=True)
        return tuple(
            np.zeros(leaf.shape, leaf.dtype) if slope is None else to_numpy(slope)
            for slope, leaf in zip(found, leaves, strict=True)
        )


def _product(results: list[np.ndarray], cotangent: Any) -> np.ndarray:
    """⟨cotangent, f⟩ in float64, so that it adds no rounding."""
    if cotangent is None:
        return np.asarray(results[0], np.float64).reshape(())
    terms = [np.sum(c * np.asarray(r)) for c, r in zip(cotangent, results, strict=True)]
    return np.asarray(sum(terms), np.float64)


def _library(tree: Any) -> str:
    """PyTorch or NumPy, if a tree has its arrays; empty for any other, and for Python's numbers."""
    leaves = jax.tree.leaves(tree)
    if any(map(is_tensor, leaves)):
        return "PyTorch"
    if any(map(is_foreign, leaves)) or any(isinstance(leaf, Array) for leaf in leaves):
        return ""
    return "NumPy" if any(isinstance(leaf, np.ndarray | np.generic) for leaf in leaves) else ""


def called_plainly(
    objective: Any,
    given: tuple[Sequence[Any], Sequence[Any]],
    at: tuple[Any, Any],
    limit: int | None,
    error: Exception | None,
) -> tuple[BlackBox, Any]:
    """The black box that calls f with arrays of the kinds that the user gave or, if f takes none of
    JAX's, with NumPy's; and f's value at the point.

    Where every call raises an exception, raises that of the first call if JAX's was about tracers,
    and else JAX's.

    objective: f, and how its arguments are put together.
    given: the leaves that move and the arrays that are held, as the user gave them.
    at: the same as NumPy arrays, (leaves, held).
    limit: how many calls the user allows; any number if None.
    error: what JAX raised when it traced f; None if it was not tried.
    """
    makers = [tuple(tuple(map(_maker, leaves)) for leaves in given)]
    if any(isinstance(leaf, Array) for leaves in given for leaf in leaves):
        makers.append(tuple(tuple(map(_numpy_maker, leaves)) for leaves in given))
    raised: list[Exception] = []
    for moving, fixed in makers:
        box = BlackBox(objective, moving, fixed, all(map(is_tensor, given[0])), limit)
        try:
            return box, box.results(*at)
        except Exception as own:
            raised.append(own)
    met_tracers = isinstance(error, UNTRACEABLE) or "Tracer" in str(error)
    raise raised[0] if error is None or met_tracers else error
