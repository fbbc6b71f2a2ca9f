"""What goes wrong, or is less than smooth, explained at the node where it happens."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxbp.graph.nodes import Node
from jaxbp.graph.recording import Recording, Step, is_real
from jaxbp.graph.reverse import Received, differentiable
from jaxbp.graph.symbols import figures

#: what a primitive asks of its operands
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


def _ties(a: Array, *, axes: tuple[int, ...], largest: bool, **_: Any) -> Array:
    extreme = (jnp.max if largest else jnp.min)(a, axis=axes, keepdims=True)
    return jnp.sum(a == extreme, axis=axes) > 1


#: where a primitive has no derivative, and what is taken in its place
_KINKS: dict[str, tuple[Callable[..., Any], str]] = {
    "abs": (lambda a, **_: a == 0, "has a kink at 0; its slope there is taken to be 0"),
    "max": (lambda a, b, **_: a == b, _EQUALS),
    "min": (lambda a, b, **_: a == b, _EQUALS),
    "reduce_max": (partial(_ties, largest=True), "has equal entries; they share the adjoint"),
    "reduce_min": (partial(_ties, largest=False), "has equal entries; they share the adjoint"),
    "clamp": (
        lambda low, a, high, **_: (a == low) | (a == high),
        "has a kink at its bounds; its slope there is taken to be 0",
    ),
}

#: what is made of steps: its slope is 0 wherever it has one
_STEPS = frozenset(("sign", "floor", "ceil", "round"))


class DomainError(ValueError):
    """A value that a function has not at its operands, such as the logarithm of a negative one."""


def check_output(recording: Recording, names: Sequence[str]) -> None:
    """Raise TypeError where the output is of a kind without a derivative."""
    y, name = recording.steps[recording.output], names[recording.output]
    if not is_real(y.value):
        kind = "truth values" if y.value.dtype == bool else "whole numbers"
        what = f"{name} = {y.primitive}(...)" if y.primitive else name
        raise TypeError(f"{what} is {y.value.dtype}: {kind} have no derivative")


def check_domain(recording: Recording, nodes: Sequence[Node | None]) -> None:
    """Raise DomainError, at the first node to blame, where the output is not finite."""
    steps, at = recording.steps, recording.output
    if _finite(steps[at]):
        return
    while sources := _sources(steps[at], steps):
        at = sources[0]
    step, node = steps[at], nodes[at]
    value = np.asarray(step.value)
    index = tuple(map(int, np.argwhere(~np.isfinite(value))[0]))
    where = f" at {list(index)}" if index else ""
    if not step.primitive or node is None:
        name = node.name if node else "a constant"
        raise DomainError(f"{name}: got {value[index]}{where}, expected finite numbers")
    operands = [np.asarray(steps[operand].value) for operand in step.operands]
    entries = [values[index] if values.shape == value.shape else values for values in operands]
    named = zip([nodes[operand] for operand in step.operands], entries, strict=True)
    met = [f"{parent.name} = {figures(x)}" for parent, x in named if parent and not x.shape]
    raise DomainError(
        f"{node.name} = {node.operation} is {value[index]}{where}"
        + f" for {', '.join(dict.fromkeys(met))}" * bool(met)
        + f": {_reason(step.primitive, value[index], entries)}"
    )


def _sources(step: Step, steps: Sequence[Step]) -> list[int]:
    """The operands to blame, those that were computed first: of a select, the one selected."""
    operands = list(step.operands)
    if step.primitive == "select_n":
        which, *cases = operands
        number = int(np.asarray(steps[which].value).ravel()[0])
        if steps[which].value.shape:
            index = np.argwhere(~np.isfinite(np.asarray(step.value)))[0]
            number = int(np.asarray(steps[which].value)[tuple(index)])
        operands = [cases[number]]
    blamed = [operand for operand in operands if not _finite(steps[operand])]
    return sorted(blamed, key=lambda operand: steps[operand].is_constant)


def _finite(step: Step) -> bool:
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
    """A line a node at which the derivative is not what a reader might expect."""
    steps, output = recording.steps, recording.output
    lines = []
    if recording.custom:
        custom = ", ".join(recording.custom)
        lines.append(f"the derivative rules of {custom} are looked through; jax.grad follows them")
    if not differentiable(recording)[output] and steps[output].primitive:
        lines.append(
            _opening(nodes[output]) + "is made of truth values or whole numbers alone: "
            "nothing of gy gets through"
        )
    for position, (step, node, gy) in enumerate(zip(steps, nodes, found, strict=True)):
        if node is None or gy is None:
            continue
        lines += [_opening(node) + line for line in _of_step(step, steps, np.asarray(gy))]
        for part in received[position]:
            consumer = nodes[part.consumer]
            if consumer and not np.all(np.isfinite(part.value)) and _calm(found[part.consumer]):
                lines.append(_opening(consumer) + f"has no finite slope at this {node.name}")
    return tuple(dict.fromkeys(lines))


def _of_step(step: Step, steps: Sequence[Step], gy: Any) -> Iterator[str]:
    if step.primitive in _STEPS and np.any(gy != 0):
        yield "is made of steps: its slope is 0 wherever it has one"
    if step.primitive in _KINKS:
        at_kink, line = _KINKS[step.primitive]
        kinked = at_kink(*(steps[operand].value for operand in step.operands), **step.params)
        if np.any(np.asarray(kinked) & (gy != 0)):
            yield line


def _calm(adjoint: Array | None) -> bool:
    return adjoint is not None and bool(np.all(np.isfinite(adjoint)))


def _opening(node: Node | None) -> str:
    return f"{node.name} = {node.operation} " if node else ""
