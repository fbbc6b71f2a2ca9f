"""Domains and kinks: errors and notes at the node where a value or a derivative is not defined."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxbp.graph.nodes import Node
from jaxbp.graph.recording import Recording, Step, is_real
from jaxbp.graph.reverse import Received, differentiable
from jaxbp.graph.symbols import figures

#: the condition that a primitive puts on its operands
_DOMAINS: dict[str, str] = {
    "log": "log needs a positive number",
    "log1p": "log needs a positive number",
    "sqrt": "√ needs a number that is not negative",
    "rsqrt": "√ needs a number that is not negative, its inverse a positive one",
    "div": "the denominator must not be 0",
    "rem": "the divisor must not be 0",
    "pow": "a negative base needs a whole exponent, and 0 a positive one",
    "integer_pow": "0 needs a positive exponent",
    "asin": "asin needs a number from -1 to 1",
    "acos": "acos needs a number from -1 to 1",
    "acosh": "acosh needs a number that is at least 1",
    "atanh": "atanh needs a number between -1 and 1",
    "erf_inv": "erf⁻¹ needs a number between -1 and 1",
    "lgamma": "lgamma has poles at 0, -1, -2, ...",
    "digamma": "digamma has poles at 0, -1, -2, ...",
}

_EQUALS = "has a kink where both are equal; they share the adjoint"


def _has_equals(extreme: Callable[..., Array]) -> Callable[..., Array]:
    """A test for several entries along the axes that are the extreme one."""
    return lambda a, *, axes, **_: jnp.sum(a == extreme(a, axis=axes, keepdims=True), axis=axes) > 1


#: where a primitive has no derivative, and the value taken in its place
_KINKS: dict[str, tuple[Callable[..., Any], str]] = {
    "abs": (lambda a, **_: a == 0, "has a kink at 0; its slope there is taken to be 1"),
    "max": (lambda a, b, **_: a == b, _EQUALS),
    "min": (lambda a, b, **_: a == b, _EQUALS),
    "reduce_max": (_has_equals(jnp.max), "has equal entries; they share the adjoint"),
    "reduce_min": (_has_equals(jnp.min), "has equal entries; they share the adjoint"),
    "clamp": (
        lambda low, a, high, **_: (a == low) | (a == high),
        "has a kink at its bounds; its slope there is taken to be 0",
    ),
}

#: primitives whose slope is 0 wherever they have one
_PIECEWISE_CONSTANT = frozenset(("sign", "floor", "ceil", "round"))


class DomainError(ValueError):
    """A value outside a function's domain, such as the logarithm of a negative number."""


def check_is_real(recording: Recording, names: Sequence[str]) -> None:
    """Raise TypeError if the output is not made of real numbers, which alone have derivatives."""
    y, name = recording.steps[recording.output], names[recording.output]
    if not is_real(y.value):
        kind = "truth values" if y.value.dtype == bool else "whole numbers"
        kind = "complex numbers" if jnp.iscomplexobj(y.value) else kind
        output = f"{name} = {y.primitive}(...)" if y.primitive else name
        raise TypeError(f"{output} is {y.value.dtype}: {kind} have no derivative")


def check_domain(recording: Recording, nodes: Sequence[Node | None]) -> None:
    """Raise DomainError at the first value that is not finite, if the output depends on one."""
    steps, position = recording.steps, recording.output
    if _is_finite(steps[position]):
        return
    while sources := _sources(steps[position], steps):
        position = sources[0]
    step, node = steps[position], nodes[position]
    value = np.asarray(step.value)
    index = tuple(map(int, np.argwhere(~np.isfinite(value))[0]))
    where = f" at {list(index)}" if index else ""
    if not step.primitive or node is None:
        name = "a constant" if node is None else node.name
        raise DomainError(f"{name}: got {value[index]}{where}, expected finite numbers")
    operands = [np.asarray(steps[operand].value) for operand in step.operands]
    entries = [values[index] if values.shape == value.shape else values for values in operands]
    named = zip([nodes[operand] for operand in step.operands], entries, strict=True)
    texts = [
        f"{parent.name} = {figures(x)}" for parent, x in named if parent is not None and not x.shape
    ]
    operand_values = f" for {', '.join(dict.fromkeys(texts))}" if texts else ""
    reason = _reason(step.primitive, value[index], entries)
    raise DomainError(
        f"{node.name} = {node.operation} is {value[index]}{where}{operand_values}: {reason}"
    )


def _sources(step: Step, steps: Sequence[Step]) -> list[int]:
    """The operands that are not finite, constants last; of a select, only the case selected."""
    operands = list(step.operands)
    if step.primitive == "select_n":
        which, *cases = operands
        selected = np.asarray(steps[which].value)
        if selected.shape:
            index = np.argwhere(~np.isfinite(np.asarray(step.value)))[0]
            selected = selected[tuple(index)]
        operands = [cases[int(selected)]]
    sources = [operand for operand in operands if not _is_finite(steps[operand])]
    return sorted(sources, key=lambda operand: steps[operand].is_constant)


def _is_finite(step: Step) -> bool:
    return not is_real(step.value) or bool(np.all(np.isfinite(step.value)))


def _reason(primitive: str, result: Any, operands: Sequence[Any]) -> str:
    may_overflow = primitive in {"div", "pow", "integer_pow"} or primitive not in _DOMAINS
    if np.isinf(result) and may_overflow and not any(np.any(x == 0) for x in operands):
        return f"it is more than {result.dtype} holds"
    return _DOMAINS.get(primitive, "it is not defined there")


def notes(
    recording: Recording,
    nodes: Sequence[Node | None],
    found: Sequence[Array | None],
    received: Sequence[Sequence[Received]],
) -> tuple[str, ...]:
    """A sentence for each node at which the derivative is not the one a reader might expect."""
    steps, output = recording.steps, recording.output
    sentences = []
    whole = {node.operation: None for node in nodes if node is not None and node.rule == "jax"}
    if whole:
        sentences.append(f"the derivatives of {', '.join(whole)} are JAX's: the table has no rule")
    if not differentiable(recording)[output] and steps[output].primitive:
        sentences.append(
            f"{_equation(nodes[output])} depends only on integers or booleans: its gradient is zero"
        )
    for position, (step, node, gy) in enumerate(zip(steps, nodes, found, strict=True)):
        if node is None or gy is None:
            continue
        sentences += [f"{_equation(node)} {kink}" for kink in _kinks(step, steps, np.asarray(gy))]
        for part in received[position]:
            consumer, adjoint = nodes[part.consumer], found[part.consumer]
            is_infinite = not np.all(np.isfinite(part.value))
            if (
                consumer is not None
                and is_infinite
                and adjoint is not None
                and np.all(np.isfinite(adjoint))
            ):
                sentences.append(f"{_equation(consumer)} has no finite slope at this {node.name}")
    return tuple(dict.fromkeys(sentences))


def _kinks(step: Step, steps: Sequence[Step], gy: Any) -> Iterator[str]:
    """The sentences on a step's slope, where gy is not 0."""
    if step.primitive in _PIECEWISE_CONSTANT and np.any(gy != 0):
        yield "is made of steps: its slope is 0 wherever it has one"
    if step.primitive in _KINKS:
        is_kink, sentence = _KINKS[step.primitive]
        at_kink = is_kink(*(steps[operand].value for operand in step.operands), **step.params)
        if np.any(np.asarray(at_kink) & (gy != 0)):
            yield sentence


def _equation(node: Node | None) -> str:
    return "" if node is None else f"{node.name} = {node.operation}"
