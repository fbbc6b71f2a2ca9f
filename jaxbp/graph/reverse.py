"""Reverse mode by hand: from the output back, each step's adjoint is the sum of its contributions.

    gu = dy/du = Σ_j  gu_j · ∂u_j/∂u      over the steps u_j that u is an operand of

The values of the forward computation are reused, and each adjoint is computed once (Linnainmaa
1970; Griewank and Walther 2008, section 3.2).
"""

from collections.abc import Callable, Sequence
from functools import reduce
from operator import add
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxbp.graph.recording import Recording, Step, is_real, record
from jaxbp.graph.rules import RULES, Rule
from jaxbp.trees import argument_names, named_leaves, positions_of


class NoRuleError(NotImplementedError):
    """A primitive outside the table of local derivatives."""


class Received(NamedTuple):
    """A contribution to a step's adjoint, from a step that it is an operand of."""

    consumer: int  # the position of the step that it comes from
    operand: int  # which of that step's operands receives it
    value: Array


class Traced(NamedTuple):
    """A recorded function, and the names and the structure of its arguments."""

    recording: Recording
    names: tuple[str, ...]  # of the leaves, one for each argument of the recording
    treedef: Any  # of the arguments
    float64: bool  # whether JAX kept float64 numbers; later computations must as well


def trace_arguments(
    f: Callable[..., Any], args: tuple[Any, ...], names: Sequence[str] | None = None
) -> Traced:
    """Record f at these arguments.

    Raises TypeError if f is not a function of real arrays that returns an array, ValueError if
    there are no arguments or another number of names than of leaves.
    """
    if not callable(f):
        raise TypeError(f"f: got {type(f).__name__}, expected a function")
    if not args:
        raise ValueError("args: got none, expected the arguments of f")
    leaves: dict[str, Any] = {}
    for name, arg in zip(argument_names(f, len(args)), args, strict=True):
        leaves |= named_leaves(arg, name)
    treedef = jax.tree.structure(args)
    values = [_as_array(name, leaf) for name, leaf in leaves.items()]

    def flat(*values: Array) -> Array:
        result = f(*jax.tree.unflatten(treedef, values))
        if not isinstance(result, Array | np.ndarray | np.generic | float | int):
            raise TypeError(f"f: returned {type(result).__name__}, expected one array")
        return jnp.asarray(result)

    if names is not None and len(names) != len(leaves):
        raise ValueError(f"names: got {len(names)}, expected {len(leaves)}, one for each leaf")
    return Traced(
        recording=record(flat, values),
        names=tuple(leaves if names is None else names),
        treedef=treedef,
        float64=bool(jnp.result_type(float) == np.float64),
    )


def adjoints(
    recording: Recording, cotangent: Array
) -> tuple[list[Array | None], list[list[Received]]]:
    """Every step's adjoint, None where it has none, and the contributions it is the sum of.

    Raises NoRuleError for a primitive outside the table.
    """
    steps, output = recording.steps, recording.output
    varying = differentiable(recording)
    received: list[list[Received]] = [[] for _ in steps]
    found: list[Array | None] = [None] * len(steps)
    for position in range(len(steps) - 1, -1, -1):
        if not varying[position]:
            continue
        step = steps[position]
        parts = [part.value for part in received[position]]
        if position == output:
            parts.insert(0, cotangent)
        gy = found[position] = reduce(add, parts) if parts else jnp.zeros_like(step.value)
        if not step.primitive or not parts:
            continue
        rule = rule_of(step, steps)
        operands = [steps[operand].value for operand in step.operands]
        for i, operand in enumerate(step.operands):
            if varying[operand]:
                value = rule.pull(i, gy, step.value, *operands, **step.params)
                if value is None or value.shape != operands[i].shape:
                    got = getattr(value, "shape", value)
                    expected = f"{operands[i].shape}, the shape of operand {i}"
                    raise ValueError(f"{step.primitive}: its rule gives {got}, expected {expected}")
                value = jnp.asarray(value, operands[i].dtype)
                received[operand].insert(0, Received(position, i, value))
    return found, received


def differentiable(recording: Recording) -> list[bool]:
    """Whether each step varies with the real arguments, by way of real numbers."""
    varying: list[bool] = []
    for position, step in enumerate(recording.steps):
        is_argument = position < recording.arguments
        depends = is_argument or any(varying[operand] for operand in step.operands)
        varying.append(depends and is_real(step.value))
    return varying


def check_steps(recording: Recording) -> None:
    """Raise TypeError if a value is complex, NoRuleError if a step that varies has no rule."""
    for step, varies in zip(recording.steps, differentiable(recording), strict=True):
        if jnp.issubdtype(step.value.dtype, np.complexfloating):
            what = f"{step.primitive}(...)" if step.primitive else "a constant"
            raise TypeError(f"{what} is {step.value.dtype}, expected real numbers")
        if varies and step.primitive:
            rule_of(step, recording.steps)


def rule_of(step: Step, steps: Sequence[Step]) -> Rule:
    """The rule of a step's primitive; raises NoRuleError, which says how to add it."""
    name = step.primitive
    if name not in RULES:
        shapes = ", ".join(_shape(steps[operand].value) for operand in step.operands)
        letters = ", ".join("abcdefgh"[: len(step.operands)])
        define = f"jaxbp.graph.define_rule({name!r}"
        raise NoRuleError(
            f"{name}: no derivative rule for this primitive ({shapes} -> {_shape(step.value)}); "
            "one line adds it,\n"
            f"  {define}, lambda y, {letters}: ...)  # ∂y/∂a, a function for each operand\n"
            "where it works entry by entry, and otherwise\n"
            f"  {define}, pull=lambda i, gy, y, {letters}, **params: ...)  # what operand i gets"
        )
    return RULES[name]


def grad(f: Callable[..., Any], argnums: int | Sequence[int] = 0) -> Callable[..., Any]:
    """The function that gives ∇f with respect to argnums, as ``jax.grad`` does.

    f returns one real number.  Its gradient comes from reverse mode on its graph, by
    ``graph.RULES``; it may be jitted and differentiated again.  Custom derivative rules are not
    used: the operations of the function are differentiated, and where its rule claims another
    slope, only ``jax.grad`` follows the rule.

    Raises TypeError if f's output is not a real number or an argument has no derivative,
    ``NoRuleError`` for a primitive outside the table.

    >>> float(grad(lambda x, z: x**2 * z, argnums=1)(3.0, 2.0))
    9.0
    """

    def gradient(*args: Any) -> Any:
        positions = positions_of(argnums, len(args))
        traced = trace_arguments(f, args)
        recording = traced.recording
        y = recording.steps[recording.output].value
        if y.shape or not is_real(y):
            raise TypeError(f"f: returned {_shape(y)}, expected one real number")
        check_steps(recording)
        found, _ = adjoints(recording, jnp.ones_like(y))
        grads = gradient_trees(traced, found)
        for position in positions:
            given, kept = (len(jax.tree.leaves(trees[position])) for trees in (args, grads))
            if kept < given:
                raise TypeError(
                    f"args[{position}]: expected only real numbers, to differentiate by"
                )
        picked = tuple(grads[position] for position in positions)
        return picked if isinstance(argnums, Sequence) else picked[0]

    return gradient


def gradient_trees(traced: Traced, found: Sequence[Array | None]) -> tuple[Any, ...]:
    """A tree for each argument of f, with None for a leaf of whole numbers."""
    trees: tuple[Any, ...] = jax.tree.unflatten(traced.treedef, found[: traced.recording.arguments])
    return trees


def _as_array(name: str, leaf: Any) -> Array:
    """The array of a number or an array; a Python int becomes a real number."""
    try:
        whole = isinstance(leaf, int) and not isinstance(leaf, bool)
        value = jnp.asarray(float(leaf) if whole else leaf)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"{name}: got {type(leaf).__name__}, expected numbers") from None
    if jnp.issubdtype(value.dtype, np.complexfloating):
        raise TypeError(f"{name}: got {value.dtype}, expected real numbers")
    return value


def _shape(value: Array) -> str:
    return f"{value.dtype}{list(value.shape)}"
