"""Jaxprs: the dtypes, shapes, constants and rules in a traced function, and whether it varies."""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.trees import opened, subjaxprs

#: raised where a function needs numbers and is given tracers, as NumPy does
UNTRACEABLE = (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError)

#: how primitives begin that call such functions; call_hi_primitive where jax_custom_vjp3 is on
_CUSTOM_RULES = ("custom_jvp", "custom_vjp", "call_hi_primitive")


@dataclass(frozen=True)
class Tracing:
    """A function traced twice at one point."""

    jaxpr: Any  # of the first time, closed; None if JAX cannot trace the function
    result: Any  # a tree of jax.ShapeDtypeStruct; None if JAX cannot trace the function
    deterministic: bool  # both jaxprs are equal, and call nothing outside of JAX
    numpy_constants: bool  # both hold the same NumPy arrays, which come from outside
    program: Callable[..., Any] | None = None  # the function under jit, of the first time


def trace_twice(function: Callable[..., Any], *args: Any) -> Tracing:
    """Trace a function and compare the jaxprs.  Raises one of UNTRACEABLE if JAX cannot trace it,
    and whatever the function raises."""
    programs = [jax.jit(partial(function)) for _ in range(2)]
    (first, result), (second, _) = (
        jax.make_jaxpr(program, return_shape=True)(*args) for program in programs
    )
    shared = set(map(id, _numpy_constants(first))) & set(map(id, _numpy_constants(second)))
    return Tracing(first, result, _equal(first, second), bool(shared), programs[0])


def _numpy_constants(jaxpr: Any) -> Iterator[np.ndarray]:
    """The NumPy arrays among the constants of a jaxpr and of those nested in it."""
    constants = getattr(jaxpr, "consts", ())
    yield from (constant for constant in constants if isinstance(constant, np.ndarray))
    for equation in jaxpr.eqns:
        for inner in subjaxprs(equation):
            yield from _numpy_constants(inner)


def _equal(first: Any, second: Any) -> bool:
    """Whether two jaxprs are equal up to the names of their variables, and without callbacks."""
    if first is second:
        return not _calls_back(first)
    constants = [getattr(jaxpr, "consts", ()) for jaxpr in (first, second)]
    return (
        len(first.eqns) == len(second.eqns)
        and len(constants[0]) == len(constants[1])
        and all(map(np.array_equal, *constants))
        and all(map(_equal_equations, first.eqns, second.eqns))
    )


def _equal_equations(first: Any, second: Any) -> bool:
    if first.primitive is not second.primitive or "callback" in first.primitive.name:
        return False
    literals = ([getattr(v, "val", None) for v in equation.invars] for equation in (first, second))
    inner = [list(subjaxprs(equation)) for equation in (first, second)]
    return (
        all(map(np.array_equal, *literals))
        and len(inner[0]) == len(inner[1])
        and all(map(_equal, *inner))
    )


def has_custom_rules(jaxpr: Any) -> bool:
    """Whether a program calls a function with a derivative rule of its own."""
    return any(
        equation.primitive.name.startswith(_CUSTOM_RULES)
        or any(map(has_custom_rules, subjaxprs(equation)))
        for equation in opened(jaxpr).eqns
    )


def _calls_back(jaxpr: Any) -> bool:
    return any(
        "callback" in equation.primitive.name or any(map(_calls_back, subjaxprs(equation)))
        for equation in jaxpr.eqns
    )


@contextmanager
def enable_float64(enabled: bool, *, numpy_constants: bool) -> Iterator[None]:
    """``jax.enable_x64`` for functions that may close over NumPy arrays.

    Without ``constants_in_each_width`` JAX's caches are cleared on the way in and on the way out,
    and all functions are compiled again.
    """
    switches = numpy_constants and enabled != (jnp.result_type(float) == np.float64)
    clears = switches and not constants_in_each_width()
    if clears:
        jax.clear_caches()  # type: ignore[no-untyped-call]
    try:
        with jax.enable_x64(enabled):
            yield
    finally:
        if clears:
            jax.clear_caches()  # type: ignore[no-untyped-call]


@cache
def constants_in_each_width() -> bool:
    """Let JAX have each NumPy constant in either width; False for a JAX where it is not known how.

    JAX 0.10 to 0.12 makes an array of its own, in the width of that time, from a NumPy array that a
    function closes over, and takes the same one again while any program holds it, even in the
    other width, where it fails to compile.  Here is what makes one for each width in its place.
    """
    made: dict[tuple[int, Any], tuple[Any, Any]] = {}  # weak: the NumPy array, and JAX's of it

    def typed(array: np.ndarray) -> Any:
        dtype = jax.dtypes.canonicalize_dtype(array.dtype)
        key = id(array), dtype
        entry = made.get(key)
        known = None if entry is None else entry[1]()
        if known is None:
            known = literals.TypedNdArray(np.asarray(array, dtype))
            made[key] = weakref.ref(array, lambda _: made.pop(key, None)), weakref.ref(known)
        return known

    if jax.__version_info__ >= (0, 13):
        return False
    try:  # not JAX's public interface, and so no later version's
        from jax._src import dtypes, literals  # noqa: PLC0415

        dtypes.register_canonicalize_value_handler(np.ndarray, typed)
    except (ImportError, AttributeError):
        return False
    return True


def coarsest_dtype(function: Callable[..., Any], *args: Any, moving: int) -> np.dtype[Any]:
    """The coarsest floating point dtype that the first ``moving`` leaves of args pass through.

    A float32 intermediate makes a staircase of a function of float64 numbers: for steps smaller
    than its stairs every difference quotient is 0, or nonsense.
    """
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    moved = jaxpr.invars[:moving]
    variables = [*moved, *_dependent(jaxpr, set(map(id, moved)))]
    dtypes = [variable.aval.dtype for variable in variables if hasattr(variable.aval, "dtype")]
    floating = [dtype for dtype in dtypes if jnp.issubdtype(dtype, np.floating)]
    return max(floating, key=eps_of)


def _dependent(jaxpr: Any, moved: set[int]) -> Iterator[Any]:
    """The variables of a jaxpr that depend on the moved ones, which are given by identity."""
    for equation in jaxpr.eqns:
        inputs = [id(variable) in moved for variable in equation.invars]
        if not any(inputs):
            continue
        moved |= set(map(id, equation.outvars))
        yield from equation.outvars
        for inner in map(opened, subjaxprs(equation)):
            one_to_one = len(inner.invars) == len(inputs)
            within = [v for i, v in enumerate(inner.invars) if not one_to_one or inputs[i]]
            yield from _dependent(inner, set(map(id, within)))


def first_axes(jaxpr: Any) -> frozenset[int]:
    """The lengths of the first axes of all arrays in a jaxpr: one of them is the batch's."""
    jaxpr = opened(jaxpr)
    variables = [*jaxpr.invars, *jaxpr.constvars]
    variables += [variable for equation in jaxpr.eqns for variable in equation.outvars]
    shapes = [getattr(variable.aval, "shape", ()) for variable in variables]
    nested = [first_axes(inner) for equation in jaxpr.eqns for inner in subjaxprs(equation)]
    return frozenset(shape[0] for shape in shapes if shape).union(*nested)


def eps_of(dtype: Any) -> float:
    """The relative spacing of a dtype's numbers."""
    return float(jnp.finfo(dtype).eps)  # type: ignore[no-untyped-call]


def largest_of(dtype: Any) -> float:
    """The largest of a dtype's numbers."""
    return float(jnp.finfo(dtype).max)  # type: ignore[no-untyped-call]
