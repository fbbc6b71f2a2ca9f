"""Tracing: what a traced function works with, whatever its arguments and results look like."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
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
    floating = [dtype for dtype in dtypes if jax.dtypes.issubdtype(dtype, np.floating)]
    return max(floating, key=lambda dtype: float(jax.numpy.finfo(dtype).eps))


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
        for inner in _inner(equation.params.values()):
            one_to_one = len(inner.invars) == len(inputs)
            within = [v for i, v in enumerate(inner.invars) if not one_to_one or inputs[i]]
            yield from _dependent(inner, set(map(id, within)))


def _first_axes(jaxpr: Any) -> Iterator[int]:
    variables = [*jaxpr.invars, *jaxpr.constvars]
    for equation in jaxpr.eqns:
        variables += equation.outvars
        for inner in _inner(equation.params.values()):
            yield from _first_axes(inner)
    shapes = (getattr(variable.aval, "shape", ()) for variable in variables)
    yield from (shape[0] for shape in shapes if shape)


def _inner(values: Iterable[Any]) -> Iterator[Any]:
    """The jaxprs among an equation's parameters: of jit, cond, scan, custom rules."""
    for value in values:
        if isinstance(value, list | tuple):
            yield from _inner(value)
        elif hasattr(value, "eqns"):
            yield value.jaxpr if hasattr(value, "jaxpr") else value
