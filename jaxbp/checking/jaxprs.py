"""Tracing: what a traced function works with, whatever its arguments and results look like."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


def resolution(function: Callable[..., Any], *args: Any, moving: int) -> np.dtype[Any]:
    """The coarsest floating point dtype that the first ``moving`` leaves of args pass through.

    A float32 intermediate makes a staircase of a function of float64 numbers: on steps smaller than
    its stairs every difference quotient is 0, or nonsense.
    """
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    moved = jaxpr.invars[:moving]
    variables = [*moved, *_dependent(jaxpr, set(map(id, moved)))]
    dtypes = [variable.aval.dtype for variable in variables if hasattr(variable.aval, "dtype")]
    floating = [dtype for dtype in dtypes if jnp.issubdtype(dtype, np.floating)]
    return max(floating, key=eps_of)


def eps_of(dtype: Any) -> float:
    """The relative spacing of a dtype's numbers."""
    return float(jnp.finfo(dtype).eps)  # type: ignore[no-untyped-call]


def largest_of(dtype: Any) -> float:
    """The largest of a dtype's numbers."""
    return float(jnp.finfo(dtype).max)  # type: ignore[no-untyped-call]


class Habits(NamedTuple):
    """How a function behaves when it is traced twice."""

    repeats: bool  # into the same program, one without callbacks: it is deterministic
    numpy_constants: bool  # with NumPy arrays from outside as constants


def habits(function: Callable[..., Any], *args: Any) -> Habits:
    """Trace a function twice.  Of one that cannot be traced nothing is known, and it has no
    constants."""
    try:
        first, second = (jax.make_jaxpr(partial(function))(*args) for _ in range(2))
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError):
        return Habits(repeats=False, numpy_constants=False)
    lasting = set(map(id, _constants(first))) & set(map(id, _constants(second)))
    return Habits(repeats=_same(first, second), numpy_constants=bool(lasting))


@contextmanager
def arithmetic(*, float64: bool, numpy_constants: bool) -> Iterator[None]:
    """float64 or not, for what is traced and run inside.

    JAX remembers each NumPy array that it has met as a constant in the width of that time, and then
    fails to compile it in the other (jax 0.10 to 0.12).  So where there are such constants its
    caches are cleared on the way in and on the way out: what was compiled before is compiled again.
    """
    switches = numpy_constants and float64 != jax.config.jax_enable_x64
    if switches:
        jax.clear_caches()  # type: ignore[no-untyped-call]
    try:
        with jax.enable_x64(float64):
            yield
    finally:
        if switches:
            jax.clear_caches()  # type: ignore[no-untyped-call]


def _same(first: Any, second: Any) -> bool:
    """Whether two traced functions are the same but for the names of their variables."""
    if first is second:
        return not _calls_back(first)
    ours, theirs = (getattr(program, "consts", ()) for program in (first, second))
    pairs = zip(first.eqns, second.eqns, strict=False)
    return (
        len(first.eqns) == len(second.eqns)
        and len(ours) == len(theirs)
        and all(map(np.array_equal, ours, theirs))
        and all(_same_equation(*pair) for pair in pairs)
    )


def _same_equation(first: Any, second: Any) -> bool:
    if first.primitive is not second.primitive or "callback" in first.primitive.name:
        return False
    values = ([getattr(v, "val", None) for v in equation.invars] for equation in (first, second))
    inner = (list(_inner(equation.params.values())) for equation in (first, second))
    return all(map(np.array_equal, *values)) and all(
        _same(*pair) for pair in zip(*inner, strict=True)
    )


def _calls_back(program: Any) -> bool:
    return any(
        "callback" in equation.primitive.name
        or any(map(_calls_back, _inner(equation.params.values())))
        for equation in program.eqns
    )


def first_axes(function: Callable[..., Any], *args: Any) -> frozenset[int]:
    """The first axes of all arrays that a function computes with: one of them is the batch's."""
    return frozenset(_first_axes(jax.make_jaxpr(function)(*args).jaxpr))


def _dependent(jaxpr: Any, moved: set[int]) -> Iterator[Any]:
    """Every value in a jaxpr that depends on the moved variables, given by identity."""
    for equation in jaxpr.eqns:
        inputs = [id(variable) in moved for variable in equation.invars]
        if not any(inputs):
            continue
        moved |= set(map(id, equation.outvars))
        yield from equation.outvars
        for inner in map(_opened, _inner(equation.params.values())):
            one_to_one = len(inner.invars) == len(inputs)
            within = [v for i, v in enumerate(inner.invars) if not one_to_one or inputs[i]]
            yield from _dependent(inner, set(map(id, within)))


def _first_axes(jaxpr: Any) -> Iterator[int]:
    variables = [*jaxpr.invars, *jaxpr.constvars]
    for equation in jaxpr.eqns:
        variables += equation.outvars
        for inner in map(_opened, _inner(equation.params.values())):
            yield from _first_axes(inner)
    shapes = (getattr(variable.aval, "shape", ()) for variable in variables)
    yield from (shape[0] for shape in shapes if shape)


def _constants(program: Any) -> Iterator[np.ndarray]:
    """The NumPy arrays among the constants of a traced function and of those in it."""
    constants = getattr(program, "consts", ())
    yield from (constant for constant in constants if isinstance(constant, np.ndarray))
    for equation in program.eqns:
        for inner in _inner(equation.params.values()):
            yield from _constants(inner)


def _inner(values: Iterable[Any]) -> Iterator[Any]:
    """The jaxprs among an equation's parameters, of jit, cond, scan, custom rules: most of them
    closed, with their constants, some open, as that of ``jax.checkpoint``."""
    for value in values:
        if isinstance(value, list | tuple):
            yield from _inner(value)
        elif hasattr(value, "eqns"):
            yield value


def _opened(program: Any) -> Any:
    return getattr(program, "jaxpr", program)
