"""The formulas of closed steps: how an adjoint passes back through one, read off the program of it.

JAX makes the program, a jaxpr, of the step's derivative rule.  Where it is gy times a short formula
in the operands and the output, that is the local derivative: of relu(a) it is [a > 0].  A longer
one is only named: relu'(a).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.extend.core import Literal

from jaxbp.graph.rules import NOTATIONS, RULES
from jaxbp.graph.symbols import Symbol, symbol
from jaxbp.trees import opened, subjaxprs

_LONGEST = 5  # operations of a formula that is written out; a longer one is only named

_CALLS = {"jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call", "checkpoint"}
#: moves that a formula entry by entry does not show
_SILENT = {"broadcast_in_dim", "reshape", "convert_element_type", "copy", "copy_p", "squeeze"}


class _Known(NamedTuple):
    """A value in the program, and its formula if it has one."""

    text: Any  # its formula, a Symbol or a number; None if it has none
    operations: int = 0  # how many are in the formula
    factor: Any = None  # the formula f where the value is gy·f, entry by entry
    shape: Any = ()  # of the value


class _UnreadableError(Exception):
    """A program that is no short formula."""


def derivative_of(
    pull: Callable[..., Any],
    gy: Any,
    operands: Sequence[Any],
    words: Sequence[Any],
    unread: Symbol | None = None,
) -> Symbol | None:
    """The local derivative f of an operand's share gy·f, entry by entry; None if it has no short
    formula.

    pull: (gy, *operands) -> (y, the share).
    gy, operands: their values, of which the shapes are used.
    words: the formulas of y and of the operands.
    unread: how a factor is written that has no short formula, such as relu'(a); None unless given.
    """
    try:
        jaxpr = jax.make_jaxpr(pull)(gy, *operands)
        inner = opened(jaxpr)
        given = [_Known(None, factor=symbol(1), shape=gy.shape)]
        given += [
            _Known(word, shape=operand.shape)
            for word, operand in zip(words[1:], operands, strict=True)
        ]
        consts = [_constant(value) for value in getattr(jaxpr, "consts", ())]
        _, share = _Reader(inner.outvars[0], words[0], [unread] if unread else []).run(
            inner, consts, given
        )
    except (_UnreadableError, jax.errors.JAXTypeError):
        return None
    return symbol(0) if _is_zero(share) else share.factor


def _is_zero(known: "_Known") -> bool:
    return not isinstance(known.text, Symbol) and known.text is not None and known.text == 0


def _constant(value: Any) -> _Known:
    """A number, or an array of equal ones, as it stands in a formula."""
    entries = np.asarray(value)
    if entries.dtype.kind in "biuf" and entries.size and np.all(entries == entries.flat[0]):
        return _Known(entries.flat[0].item(), shape=entries.shape)
    return _Known(None, shape=entries.shape)


class _Reader:
    """Reads a jaxpr, from what is known of its arguments to what is known of its results."""

    def __init__(self, output: Any, word: Any, unread: list[Symbol]) -> None:
        self.output, self.word = output, word  # the variable that is y, and its name
        self.unread = unread  # what a factor is called that has no short formula, if it is one

    def run(self, jaxpr: Any, consts: Sequence[_Known], given: Sequence[_Known]) -> list[_Known]:
        known = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *given), strict=True))

        def look(variable: Any) -> _Known:
            return _constant(variable.val) if isinstance(variable, Literal) else known[variable]

        for equation in jaxpr.eqns:
            operands = [look(variable) for variable in equation.invars]
            if equation.primitive.name in _CALLS:
                (called,) = subjaxprs(equation)
                consts = [_constant(value) for value in getattr(called, "consts", ())]
                results = self.run(opened(called), consts, operands)
            else:
                shapes = [variable.aval.shape for variable in equation.outvars]
                results = [_read(equation, operands, shape, self.unread) for shape in shapes]
            known.update(zip(equation.outvars, results, strict=True))
            if self.output in equation.outvars:
                known[self.output] = _Known(self.word, shape=self.output.aval.shape)
        return [look(variable) for variable in jaxpr.outvars]


def _read(equation: Any, operands: list[_Known], shape: Any, unread: list[Symbol]) -> _Known:
    """An equation's output, and its formula if it has a short one."""
    name = equation.primitive.name
    if name == "name":
        text, _, _ = equation.params["name"].partition("\n")
        return operands[0]._replace(text=Symbol(text, shape=shape), operations=0)
    if name in _SILENT:
        known = _reshaped(operands[0], shape)
        if equation.invars[0].aval.dtype == bool and isinstance(known.text, Symbol):
            return known._replace(text=Symbol(f"[{known.text}]", shape=shape))  # 1 where it holds
        return known
    if any(operand.factor is not None for operand in operands):
        return _times_gy(name, operands, shape, unread)
    operations = 1 + sum(operand.operations for operand in operands)
    text = None
    if operations <= _LONGEST and all(operand.text is not None for operand in operands):
        text = _written(equation, [operand.text for operand in operands], shape)
    return _Known(text, operations, shape=shape)


def _written(equation: Any, texts: Sequence[Any], shape: Any) -> Any:
    """An operation on formulas; None where it has no notation, or none of numbers, such as 1/0."""
    name = equation.primitive.name
    notation = RULES[name].notation if name in RULES else NOTATIONS.get(name)
    if notation is None:
        return None
    try:
        text = notation(*texts, **equation.params)
    except (TypeError, AttributeError, ArithmeticError):
        return None
    if isinstance(text, str):  # of a comparison, or a call
        return Symbol(text, shape=shape, binds=0 if name in NOTATIONS else 4)
    return text


def _reshaped(operand: _Known, shape: Any) -> _Known:
    """A number for all entries, or the entries in the same order; nothing else has a formula."""
    if operand.shape == shape or not operand.shape:
        return operand._replace(shape=shape)
    return _Known(None, shape=shape)


def _times_gy(name: str, operands: list[_Known], shape: Any, unread: list[Symbol]) -> _Known:
    """An operation on gy·f: the product, sum or selection in which it is gy·(another f)."""
    of_gy = [operand for operand in operands if operand.factor is not None]
    others = [operand for operand in operands if operand.factor is None]
    factor: Any = None
    if name == "neg":
        factor = -of_gy[0].factor
    elif name in {"add", "add_any", "sub"} and not others:
        left, right = (operand.factor for operand in operands)
        factor = left - right if name == "sub" else left + right
    elif name == "mul" and len(of_gy) == 1 and others[0].text is None and unread:
        if others[0].shape != shape:
            raise _UnreadableError
        factor = of_gy[0].factor * unread.pop()  # once: of two factors neither is the derivative
        return _Known(None, 0, factor, shape)
    elif name in {"mul", "div"} and len(of_gy) == 1 and others[0].text is not None:
        factor = of_gy[0].factor
        if name == "mul":
            factor = factor * others[0].text
        elif operands[0] is of_gy[0]:
            factor = factor / others[0].text
        else:
            factor = None
    elif name == "select_n" and len(operands) == 3 and len(of_gy) == 1:
        which, *cases = operands
        other = cases[0] if cases[1] is of_gy[0] else cases[1]
        if _is_zero(other) and which.text is not None and which.factor is None:
            holds = f"[{which.text}]" if cases[1] is of_gy[0] else f"[not {which.text}]"
            factor = of_gy[0].factor * Symbol(holds, shape=which.shape)
    operations = 1 + sum(operand.operations for operand in operands)
    if factor is None or operations > _LONGEST + 1:
        raise _UnreadableError
    return _Known(None, operations, factor, shape)
