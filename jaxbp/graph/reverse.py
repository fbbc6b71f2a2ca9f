"""Reverse mode by hand: from the output back, each step's adjoint is the sum of its contributions.

    gu = dy/du = Σ_j  gu_j · ∂u_j/∂u      over the steps u_j that u is an operand of

The values of the forward computation are reused, and each adjoint is computed once (Linnainmaa
1970; Griewank and Walther 2008, section 3.2).
"""

from collections.abc import Callable, Sequence
from functools import partial, reduce
from itertools import product
from operator import add
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxbp.graph.closed import vjp_by_jax
from jaxbp.graph.recording import Recording, Step, is_continuous, is_real, record
from jaxbp.graph.rules import RULES, Rule
from jaxbp.trees import argument_names, named_leaves, positions_of

#: primitives that make real numbers of bits
_FROM_BITS = ("bitcast_convert_type", "convert_element_type")


#: JAX's errors where Python asks for the value of a traced array
_NOT_CONCRETE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)
_IN_NUMPY = (
    "f: computes in NumPy, or in another library, with an argument, and a graph is of JAX's "
    "operations: write jnp.sin for np.sin, and jnp.asarray(table)[i] for table[i]"
)
_ASKS = (
    "f: asks in Python for the value of an argument (if, while, range, an index), and a graph has "
    "no place for that: write jax.lax.cond or jnp.where, or hold the argument as it is, by "
    "functools.partial or, for grad, by argnums"
)


class NoRuleError(NotImplementedError):
    """A primitive outside the table of local derivatives of which JAX has no derivative either."""


class Received(NamedTuple):
    """A contribution to a step's adjoint, from a step that it is an operand of."""

    consumer: int  # the position of the step that it comes from
    operand: int  # which of that step's operands receives it
    value: Array
    passes: bool = True  # whether anything does; of floor(a), say, nothing, as its slope is 0


class Traced(NamedTuple):
    """A recorded function, and the names and the structure of its arguments."""

    recording: Recording
    names: tuple[str, ...]  # of the leaves, one for each argument of the recording
    treedef: Any  # of the arguments
    float64: bool  # whether JAX kept float64 numbers; later computations must as well


def trace_arguments(
    f: Callable[..., Any],
    args: tuple[Any, ...],
    names: Sequence[str] | None = None,
    positions: Sequence[int] | None = None,
) -> Traced:
    """Record f at these arguments, as a function of those at positions, all unless given.

    The others are held as they are, as ``jax.grad`` holds them: a whole number may be an index.

    Raises TypeError if f is not a function of real arrays that returns an array, or asks in Python
    for a value of them, ValueError if there are no arguments or another number of names than of
    leaves.
    """
    if not callable(f):
        raise TypeError(f"f: got {type(f).__name__}, expected a function")
    if not args:
        raise ValueError("args: got none, expected the arguments of f")
    positions = range(len(args)) if positions is None else positions
    called = argument_names(f, len(args))
    leaves: dict[str, Any] = {}
    for position in positions:
        leaves |= named_leaves(args[position], called[position])
    treedef = jax.tree.structure(tuple(args[position] for position in positions))
    values = [_as_array(name, leaf) for name, leaf in leaves.items()]

    def flat(*values: Array) -> Array:
        given = list(args)
        for position, arg in zip(positions, jax.tree.unflatten(treedef, values), strict=True):
            given[position] = arg
        try:
            result = f(*given)
        except _NOT_CONCRETE as error:
            of_numpy = isinstance(error, jax.errors.TracerArrayConversionError)
            raise TypeError(_IN_NUMPY if of_numpy else _ASKS) from error
        if not isinstance(result, Array | np.ndarray | np.generic | float | int):
            raise TypeError(f"f: returned {type(result).__name__}, expected one array")
        return jnp.asarray(result)

    if names is not None and len(names) != len(leaves):
        raise ValueError(f"names: got {len(names)}, expected {len(leaves)}, one for each leaf")
    if names is not None and not all(isinstance(each, str) for each in names):
        raise TypeError(f"names: got {names!r}, expected text")
    return Traced(
        recording=record(flat, values),
        names=tuple(leaves if names is None else names),
        treedef=treedef,
        float64=bool(jnp.result_type(float) == np.float64),
    )


def adjoints(
    recording: Recording, cotangent: Array, by_jax: Callable[..., Any] | None = None
) -> tuple[list[Array | None], list[list[Received]]]:
    """Every step's adjoint, None where it has none, and the contributions it is the sum of.

    by_jax: the pull of steps without a rule; ``vjp_of_step`` unless given.

    Raises NoRuleError for a primitive that has no derivative in JAX either.
    """
    steps, output = recording.steps, recording.output
    varying, outputs = differentiable(recording), _outputs(steps)
    received: list[list[Received]] = [[] for _ in steps]
    found: list[Array | None] = [None] * len(steps)
    reached = [False] * len(steps)
    for position in range(len(steps) - 1, -1, -1):
        step = steps[position]
        if varying[position]:
            parts = [part.value for part in received[position] if part.passes]
            if position == output:
                parts.insert(0, cotangent)
            found[position] = reduce(add, parts) if parts else jnp.zeros_like(step.value)
            reached[position] = bool(parts)
        if step.primitive and position == outputs[position][0]:  # all its outputs are done
            made = [place for place in outputs[position] if reached[place]]
            for part in pulled(steps, made, found, varying, by_jax) if made else ():
                received[step.operands[part.operand]].insert(0, part)
    return found, received


def _outputs(steps: Sequence[Step]) -> list[list[int]]:
    """For each step, the positions of all outputs of its equation."""
    of_group: dict[Any, list[int]] = {}
    for position, step in enumerate(steps):
        of_group.setdefault(position if step.group is None else step.group, []).append(position)
    return [of_group[position if s.group is None else s.group] for position, s in enumerate(steps)]


def pulled(
    steps: Sequence[Step],
    outputs: Sequence[int],
    found: Sequence[Array | None],
    varying: Sequence[bool],
    by_jax: Callable[..., Any] | None = None,
) -> list[Received]:
    """The adjoints that the operands of an equation receive, from those of its outputs.

    steps: all steps.
    outputs: the positions of the equation's outputs that have an adjoint.
    found: the steps' adjoints; those of the outputs are there.
    varying: whether each step varies.
    by_jax: the pull of steps without a rule; ``vjp_of_step`` unless given.
    """
    first = steps[outputs[0]]
    operands = [steps[operand].value for operand in first.operands]
    wanted = [i for i, operand in enumerate(first.operands) if varying[operand]]
    rule = rule_of(first, operands)
    if rule is None:
        made = [steps[place] for place in outputs]
        gys = [gy for gy in map(found.__getitem__, outputs) if gy is not None]
        _, shares = (by_jax or vjp_of_step)(made, gys, operands, wanted)
        return [Received(outputs[0], i, share) for i, share in zip(wanted, shares, strict=True)]
    parts = []
    for place, i in product(outputs, wanted):
        step = steps[place]
        value = rule.pull(i, found[place], step.value, *operands, **step.params)
        passes = value is not None
        if value is None:
            value = jnp.zeros_like(operands[i])
        if getattr(value, "shape", None) != operands[i].shape:
            got = getattr(value, "shape", value)
            expected = f"{operands[i].shape}, the shape of operand {i}"
            raise ValueError(f"{step.primitive}: its rule gives {got}, expected {expected}")
        parts.append(Received(place, i, jnp.asarray(value, operands[i].dtype), passes))
    return parts


def rule_of(step: Step, operands: Sequence[Array]) -> Rule | None:
    """The rule of a step's primitive; None where its derivative is JAX's, as of complex numbers."""
    is_complex = any(jnp.iscomplexobj(value) for value in (step.value, *operands))
    return None if is_complex else RULES.get(step.primitive)


def vjp_of_step(
    outputs: Sequence[Step],
    cotangents: Sequence[Array],
    operands: Sequence[Array],
    wanted: Sequence[int],
) -> tuple[list[Array], list[Array]]:
    """The outputs of an equation, and the adjoints that the wanted operands receive, by JAX.

    Raises NoRuleError where JAX has none.

    outputs: those of the equation's outputs that have an adjoint.
    cotangents: their adjoints.
    operands: the operands' values.
    wanted: the positions of the operands that vary.
    """
    first, primitive = outputs[0], outputs[0].params["primitive"]
    params = {key: first.params[key] for key in first.params.keys() - {"primitive", "output"}}
    places = [step.params.get("output", 0) for step in outputs]
    function = partial(primitive.bind, **params)
    try:
        return vjp_by_jax(function, places, cotangents, operands, wanted)
    except (NotImplementedError, ValueError, TypeError) as error:
        if getattr(primitive, "has_own_rule", False):
            raise  # it is in the rule
        shapes = ", ".join(map(_shape, operands))
        letters = ", ".join("abcdefgh"[: len(operands)])
        define = f"jaxbp.graph.define_rule({first.primitive!r}"
        raise NoRuleError(
            f"{first.primitive}: no derivative rule for this primitive ({shapes} -> "
            f"{_shape(first.value)}), and none in JAX: {error}\n"
            "One line adds a rule,\n"
            f"  {define}, lambda y, {letters}: ...)  # ∂y/∂a, a function for each operand\n"
            "where it works entry by entry, and otherwise\n"
            f"  {define}, pull=lambda i, gy, y, {letters}, **params: ...)  # what operand i gets"
        ) from error


def differentiable(recording: Recording) -> list[bool]:
    """Whether each step varies with the real arguments, by way of real or complex numbers."""
    varying: list[bool] = []
    for position, step in enumerate(recording.steps):
        is_argument = position < recording.arguments
        depends = is_argument or any(varying[operand] for operand in step.operands)
        varying.append(depends and is_continuous(step.value))
    return varying


def check_steps(recording: Recording) -> None:
    """Raise NoRuleError where a real number is made of the bits of one that varies.

    JAX takes its derivative for 0, but it is not: of two numbers whose bits differ by 1, one is
    larger.  A truth value made of bits, as the sign of a number is, is as good as a comparison.
    """
    steps, varying = recording.steps, differentiable(recording)
    of_bits: list[bool] = []
    for step in steps:
        is_cast = step.primitive == "bitcast_convert_type"
        made_of_bits = any(of_bits[operand] for operand in step.operands)
        made_of_bits |= is_cast and any(varying[operand] for operand in step.operands)
        if made_of_bits and is_continuous(step.value) and step.primitive in _FROM_BITS:
            raise NoRuleError(
                f"{step.primitive}: {_shape(step.value)} is made of the bits of a real number "
                "that varies (bitcast_convert_type); such a function has no derivative rule. Give "
                "it one by jax.custom_jvp or jax.custom_vjp"
            )
        of_bits.append(made_of_bits and jnp.issubdtype(step.value.dtype, jnp.integer))


def grad(f: Callable[..., Any], argnums: int | Sequence[int] = 0) -> Callable[..., Any]:
    """The function that gives ∇f with respect to argnums, as ``jax.grad`` does.

    f returns one real number.  Its gradient comes from reverse mode on its graph, by
    ``graph.RULES``; it may be jitted and differentiated again.  A function with a derivative rule
    of its own (``jax.custom_jvp``, ``jax.custom_vjp``) is followed by that rule, and a primitive
    outside the table by JAX's derivative of it.

    Raises TypeError if f's output is not a real number or an argument has no derivative,
    ``NoRuleError`` for a primitive that has no derivative in JAX either, and for numbers made of
    the bits of one that varies.

    >>> float(grad(lambda x, z: x**2 * z, argnums=1)(3.0, 2.0))
    9.0
    """

    def gradient(*args: Any, **held: Any) -> Any:
        positions = positions_of(argnums, len(args))
        for position in positions:
            values = map(partial(_as_array, f"args[{position}]"), jax.tree.leaves(args[position]))
            if not all(map(is_real, values)):
                raise TypeError(
                    f"args[{position}]: expected only real numbers, to differentiate by"
                )
        traced = trace_arguments(partial(f, **held) if held else f, args, positions=positions)
        recording = traced.recording
        y = recording.steps[recording.output].value
        if y.shape or not is_real(y):
            raise TypeError(f"f: returned {_shape(y)}, expected one real number")
        check_steps(recording)
        found, _ = adjoints(recording, jnp.ones_like(y))
        grads = gradient_trees(traced, found)
        return grads if isinstance(argnums, Sequence) else grads[0]

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
