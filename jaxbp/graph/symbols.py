"""Formulas: a rule written once gives its value when called with numbers and its notation when
called with symbols, so that the formula on paper and the value computed cannot disagree.

>>> slope = lambda a, b: -a / b**2
>>> slope(3.0, 2.0), str(slope(Symbol("a"), Symbol("b")))
(-0.75, '-a/b²')
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from jaxbp.text import significant

_SUM, _QUOTIENT, _PRODUCT, _POWER, _ATOM = range(5)  # how tightly the outermost operation binds
_RAISED = "⁻⁰¹²³⁴⁵⁶⁷⁸⁹⁽⁾ᵀ"
SUPERSCRIPTS = str.maketrans("-0123456789", _RAISED[:11])


class Symbol:
    """A formula: its text, how tightly it binds, its value's shape and, if known, its value.

    Products of arrays are entry by entry (⊙).
    """

    __array_ufunc__ = None  # NumPy's numbers leave arithmetic with a formula to the formula

    def __init__(
        self, text: str, *, binds: int = _ATOM, shape: Any = (), value: Any = None
    ) -> None:
        self.text, self.binds, self.shape, self.ndim = text, binds, shape, len(shape)
        self.value = value  # by which a formula tells that it is at a kink

    def __str__(self) -> str:
        return self.text

    def __add__(self, other: Any) -> "Symbol":
        other = symbol(other)
        sign, term = (" - ", -other) if other.text.startswith("-") else (" + ", other)
        return self._with(other, within(self, _SUM) + sign + within(term, _SUM), _SUM)

    def __radd__(self, other: Any) -> "Symbol":
        return symbol(other) + self

    def __sub__(self, other: Any) -> "Symbol":
        other = symbol(other)
        sign, term = (" + ", -other) if other.text.startswith("-") else (" - ", other)
        return self._with(other, within(self, _SUM) + sign + within(term, _QUOTIENT), _SUM)

    def __rsub__(self, other: Any) -> "Symbol":
        return symbol(other) - self

    def __mul__(self, other: Any) -> "Symbol":
        other = symbol(other)
        for factor, rest in ((self, other), (other, self)):
            if factor.text in {"1", "-1", "0"}:
                return {"1": rest, "-1": -rest, "0": factor}[factor.text]
        sign = " ⊙ " if self.ndim and other.ndim else "·"
        right = f"({other})" if other.text.startswith("-") else within(other, _PRODUCT)
        return self._with(other, within(self, _PRODUCT) + sign + right, _PRODUCT)

    def __rmul__(self, other: Any) -> "Symbol":
        return symbol(other) * self

    def __truediv__(self, other: Any) -> "Symbol":
        other = symbol(other)
        text = f"{within(self, _PRODUCT)}/{within(other, _POWER)}"
        return self if other.text == "1" else self._with(other, text, _QUOTIENT)

    def __rtruediv__(self, other: Any) -> "Symbol":
        return symbol(other) / self

    def __pow__(self, exponent: Any) -> "Symbol":
        exponent = symbol(exponent)
        if exponent.text in {"0", "1"}:
            return self if exponent.text == "1" else symbol(1)
        small = exponent.text.translate(SUPERSCRIPTS)
        whole = not set(small) & set(exponent.text)  # x², but x^0.5
        above = small if whole else "^" + within(exponent, _ATOM)
        raised = self.text[-1] in _RAISED  # as z⁽¹⁾ is, of which (z⁽¹⁾)² is the square
        base = f"({self})" if raised else within(self, _ATOM)
        return self._with(exponent, base + above, _POWER)

    def __rpow__(self, base: Any) -> "Symbol":
        return symbol(base) ** self

    def __neg__(self) -> "Symbol":
        if self.text.startswith("-") and self.binds > _SUM:
            return Symbol(self.text[1:], binds=self.binds, shape=self.shape)
        binds = min(max(self.binds, _QUOTIENT), _PRODUCT)
        return Symbol("-" + within(self, binds), binds=binds, shape=self.shape)

    def _with(self, other: "Symbol", text: str, binds: int) -> "Symbol":
        return Symbol(text, binds=binds, shape=_broadcast(self, other))


class Function:
    """A function of numbers, with the notation ``"exp({})"`` that it gives of symbols."""

    def __init__(self, notation: str, numeric: Callable[..., Any]) -> None:
        self.notation, self.numeric = notation, numeric

    def __call__(self, *operands: Any) -> Any:
        """The function's value of numbers, or its formula of symbols."""
        if not any(isinstance(operand, Symbol) for operand in operands):
            return self.numeric(*operands)
        symbols = [symbol(operand) for operand in operands]
        return Symbol(self.notation.format(*symbols), shape=_broadcast(*symbols))


def call(name: str) -> Callable[..., str]:
    """The notation name(a, b, ...)."""
    return lambda *operands, **_: f"{name}({', '.join(str(symbol(o)) for o in operands)})"


def symbol(value: Any) -> Symbol:
    """A formula as it is, or the formula of a number, which is its figures."""
    if isinstance(value, Symbol):
        return value
    text = figures(value)
    return Symbol(text, binds=_PRODUCT if text.startswith("-") else _ATOM)


def figures(value: Any) -> str:
    """The text of a number in at most six significant figures, more where it is nearly whole, or
    of a truth value."""
    if np.asarray(value).dtype.kind == "b":
        return str(bool(value))
    value = float(value) + 0.0  # no -0
    text = significant(value, 6)
    nearly_whole = math.isfinite(value) and value and float(text) == round(value)
    return significant(value, 12) if nearly_whole else text  # 1.0000001


def within(formula: Symbol, binds: int) -> str:
    """The formula's text, in parentheses where it binds less tightly than its surroundings."""
    return formula.text if formula.binds >= binds else f"({formula})"


def atom(formula: Symbol) -> str:
    """The formula's text, in parentheses unless it is a name, a number or a call."""
    return within(formula, _ATOM)


def _broadcast(*symbols: Symbol) -> tuple[int, ...]:
    return np.broadcast_shapes(*(each.shape for each in symbols))


def total(terms: Iterable[Any]) -> Any:
    """The sum of formulas or of numbers."""
    first, *others = terms
    for term in others:
        first = first + term
    return first
