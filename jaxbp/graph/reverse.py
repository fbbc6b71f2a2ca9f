"""Reverse mode by hand: from the output back, every step's adjoint is the sum of what it receives.

    gu = dy/du = Σ_j  gu_j · ∂u_j/∂u      over the steps u_j that u is an operand of

Values of the forward computation are reused, and so are adjoints: each is computed once (Linnainmaa
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
    """What a step's adjoint receives from one step that it is an operand of."""

    consumer: int  # that step's position
    operand: int  # which of its operands
    value: Array


class Traced(NamedTuple):
    """A recorded function, and what its arguments were."""

    recording: Recording
    names: tuple[str, ...]  # of the leaves, one an argument of the recording
    treedef: Any  # of the arguments
    float64: bool  # whether JAX kept float64 numbers then; what is added later must, too


def trace_arguments(
    f: Callable[..., Any], args: tuple[Any, ...], names: Sequence[str] | None = None
) -> Traced:
    """Record f at these arguments.  Raises TypeError for what is no function of real arrays."""
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
        raise ValueError(f"names: got {len(names)}, expected {len(leaves)}, one a leaf")
    return Traced(record(flat, values), tuple(names or leaves), treedef, jax.config.jax_enable_x64)


def adjoints(
    recording: Recording, cotangent: Array
) -> tuple[list[Array | None], list[list[Received]]]:
    """Every step's adjoint, None where it has none, and what it is the sum of.

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
        parts = [cotangent] * (position == output) + [part.value for part in received[position]]
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
    """Which steps vary with the real arguments, by way of real numbers."""
    varying: list[bool] = []
    for position, step in enumerate(recording.steps):
        moves = position < recording.arguments or any(varying[operand] for operand in step.operands)
        varying.append(moves and is_real(step.value))
    return varying


def check_steps(recording: Recording) -> None:
    """Raise TypeError where a value is complex, NoRuleError where one that varies has no rule."""
    for step, varies in zip(recording.steps, differentiable(recording), strict=True):
        if jnp.issubdtype(step.value.dtype, np.complexfloating):
            what = f"{step.primitive}(...)" if step.primitive else "a constant"
            raise TypeError(f"{what} is {step.value.dtype}, expected real numbers")
        if varies and step.primitive:
            rule_of(step, recording.steps)


def rule_of(step: Step, steps: Sequence[Step]) -> Rule:
    """The rule of a step's primitive; raises NoRuleError, with how to add one."""
    name = step.primitive
    if name not in RULES:
        shapes = ", ".join(_shape(steps[operand].value) for operand in step.operands)
        letters = ", ".join("abcdefgh"[: len(step.operands)])
        define = f"jaxbp.graph.define_rule({name!r}"
        raise NoRuleError(
            f"{name}: no derivative rule for this primitive ({shapes} -> {_shape(step.value)}); "
            "one line adds it,\n"
            f"  {define}, lambda y, {letters}: ...)  # ∂y/∂a, one function an operand\n"
            "where it works entry by entry, and otherwise\n"
            f"  {define}, pull=lambda i, gy, y, {letters}, **params: ...)  # what operand i gets"
        )
    return RULES[name]


def grad(f: Callable[..., Any], argnums: int | Sequence[int] = 0) -> Callable[..., Any]:
    """A function of f's arguments that gives ∇f with respect to argnums, as ``jax.grad`` does.

    f returns one real number.  Reverse mode on its graph, through ``graph.RULES``; it may be jitted
    and taken again.  Custom derivative rules are looked through: where one claims another slope
    than that of what its function computes, ``jax.grad`` follows it and this does not.  Raises
    TypeError where f's output is no real number or an argument has no derivative, ``NoRuleError``
    for a primitive outside the table.

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
                raise TypeError(f"args[{position}]: expected real numbers alone, to vary")
        picked = tuple(grads[position] for position in positions)
        return picked[0] if isinstance(argnums, int) else picked

    return gradient


def gradient_trees(traced: Traced, found: Sequence[Array | None]) -> tuple[Any, ...]:
    """One tree an argument of f; None in place of a leaf of whole numbers."""
    trees: tuple[Any, ...] = jax.tree.unflatten(traced.treedef, found[: traced.recording.arguments])
    return trees


def _as_array(name: str, leaf: Any) -> Array:
    """A number or an array; a Python int is the real number that a reader takes it for."""
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
