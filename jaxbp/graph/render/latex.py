"""The graph as LaTeX: the equations of both tables, aligned, for a document that uses amsmath.

A formula is text (``symbols``), and is read here word by word: a⁽²⁾ becomes a^{(2)}, wᵀ w^{\\top},
√(a) \\sqrt{a} and a/b a fraction.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxbp.graph.nodes import Node, rows_of, value_text
from jaxbp.graph.render.text import backward_order

_WIDEST = 100  # characters of a formula's LaTeX in one line

_SUPERSCRIPTS = dict(zip("⁻⁰¹²³⁴⁵⁶⁷⁸⁹⁽⁾", "-0123456789()", strict=True)) | {"ᵀ": r"\top"}
_SUBSCRIPTS = dict(zip("₀₁₂₃₄₅₆₇₈₉", "0123456789", strict=True))
_RAISED, _LOWERED = "".join(_SUPERSCRIPTS), "".join(_SUBSCRIPTS)
_ACCENTS = {"\u0302": "hat", "\u0303": "tilde", "\u0304": "bar", "\u0307": "dot"}
_LETTER = rf"(?:(?![{_RAISED}{_LOWERED}])[^\W\d_])"
_GREEK = {  # α is alpha, Γ is Gamma
    letter: name if letter.islower() else name.capitalize()
    for letter in "αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΦΨΩ"
    for name in [unicodedata.name(letter).split()[-1].lower().replace("lamda", "lambda")]
}
_SIGNS = {
    **{"·": r"\cdot", "⊙": r"\odot", "×": r"\times", "→": r"\to", "Σ": r"\sum"},
    **{"≥": r"\ge", "≤": r"\le", "≠": r"\ne", "'": "{}'", "∞": r"\infty"},
}
_BRACKETS = {"(": ")", "[": "]", "|": "|"}
_SEPARATORS = set("+-=,;<>≥≤≠")
_WORDS = {"ones": r"\mathbf{1}", "ln": r"\ln", "Σ": r"\sum", "inf": r"\infty", "½": r"\tfrac{1}{2}"}
_FUNCTIONS = {
    **{name: rf"\{name}" for name in ("exp", "log", "sin", "cos", "tan", "sinh", "cosh", "tanh")},
    **{name: rf"\{name}" for name in ("max", "min", "sum")},
    **{"asin": r"\arcsin", "acos": r"\arccos", "atan": r"\arctan", "σ": r"\sigma"},
    **{"log2": r"\log_{2}", "log10": r"\log_{10}"},
}
_ESCAPED = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}


def to_latex(nodes: Sequence[Node]) -> str:
    """Two ``align*`` of amsmath, forward and backward: name = formula = value."""
    names = {node.name: name_of(node.name) for node in nodes}
    adjoints = {
        node.adjoint_name: (f"g_{{{_joined(names[node.name])}}}", "")
        if node.adjoint_name == f"g{node.name}"
        else name_of(node.adjoint_name)
        for node in nodes
    }
    formula = Translator({**adjoints, **names})
    forward: list[tuple[Any, ...]] = [
        (names[node.name], node.operation, node.value) for node in nodes
    ]
    backward: list[tuple[Any, ...]] = [
        (adjoints[node.adjoint_name], node.formula, node.adjoint) for node in backward_order(nodes)
    ]
    parts = []
    for title, equations in (("forward", forward), ("backward", backward)):
        lines = [_equation(formula, _joined(name), *rest) for name, *rest in equations]
        if lines:
            rows = " \\\\\n".join(lines)
            parts.append(f"% {title}\n\\begin{{align*}}\n{rows}\n\\end{{align*}}")
    return "\n".join(parts)


def _equation(formula: "Translator", name: str, text: str, value: Any) -> str:
    """name &= formula = value, in several lines where the formula is a long sum."""
    if not text:
        return f"{name} &= {formula.of_value(value)}"
    lines = [""]
    for term in formula.terms(text):
        if len(lines[-1]) + len(term) > _WIDEST and lines[-1]:
            lines.append("")
        lines[-1] += term
    return f"{name} &= " + " \\\\\n&\\quad ".join(lines) + f" = {formula.of_value(value)}"


def name_of(name: str) -> tuple[str, str]:
    """A name in LaTeX, and what is raised above it: ŷ⁽²⁾ is \\hat{y} and (2)."""
    match = re.fullmatch(rf"(.*?)([{_LOWERED}]*)([{_RAISED}]*)", name, re.DOTALL)
    assert match
    base, below, above = match.groups()
    if numbered := re.fullmatch(rf"({_LETTER}+)_?(\d+)", base):
        base, digits = numbered.groups()
        below = digits + below
    parts = unicodedata.normalize("NFD", base)
    if base in _GREEK:
        text = rf"\{_GREEK[base]}"
    elif len(parts) == 2 and parts[1] in _ACCENTS:
        text = rf"\{_ACCENTS[parts[1]]}{{{parts[0]}}}"
    elif len(base) == 1 and base.isascii() and base.isalpha():
        text = base
    else:
        text = rf"\text{{{''.join(map(_plain, base))}}}"
    lowered = "".join(_SUBSCRIPTS.get(c, c) for c in below)
    return text + (f"_{{{lowered}}}" if lowered else ""), _raised(above)


def _joined(name: tuple[str, str]) -> str:
    base, above = name
    return f"{base}^{{{above}}}" if above else base


def _raised(text: str) -> str:
    return "".join(map(_SUPERSCRIPTS.__getitem__, text))


def _plain(character: str) -> str:
    """A character of a text, not of mathematics."""
    if character in "#$%&_{}":
        return f"\\{character}"
    latin = character.isprintable() and ord(character) < 0x180
    return _ESCAPED.get(character, character if latin else f"U+{ord(character):04X}")


class Translator:
    """From formulas in text to LaTeX; names are those of a graph, as ``name_of`` gives them."""

    def __init__(self, names: Mapping[str, tuple[str, str]]) -> None:
        self.names = names
        end = rf"(?![^\W{_RAISED}]|[{_LOWERED}])"
        longest_first = sorted(names, key=len, reverse=True)
        known = "|".join(re.escape(name) + end * name[-1].isalnum() for name in longest_first)
        self.pattern = re.compile(
            rf"(?P<known>{known})|(?P<number>\d+(\.\d+)?(e[-+]?\d+)?)|(?P<raised>[{_RAISED}]+)"
            rf"|(?P<word>(?:{_LETTER}|_)(?:{_LETTER}|[\d_])*)|(?P<sign>\S)"
        )
        self.tokens: list[tuple[str, str]] = []  # those to come, the next one last

    def of_value(self, value: Any) -> str:
        """A number, the entries of a small array, or the shape and the norm of a large one."""
        rows = [["".join(self.terms(entry)) for entry in row] for row in rows_of(value)]
        if not rows:
            return "".join(self.terms(value_text(value)))
        if np.ndim(value) == 1:  # a vector is a column, as it is in W·x
            rows = [[entry] for entry in rows[0]]
        entries = r" \\ ".join(map(" & ".join, rows))
        return rf"\begin{{bmatrix}} {entries} \end{{bmatrix}}"

    def terms(self, text: str) -> list[str]:
        """The terms of a sum, each with its sign; a formula that is no sum has one."""
        tokens = [(match.lastgroup or "", match.group()) for match in self.pattern.finditer(text)]
        self.tokens = tokens[::-1]
        return self._until("")

    def _next(self) -> str:
        return self.tokens[-1][1] if self.tokens else ""

    def _raises(self) -> bool:
        return bool(self.tokens) and self.tokens[-1][0] == "raised"

    def _until(self, end: str) -> list[str]:
        """The terms up to a closing sign, which is taken as well."""
        terms, lead, factors = [], "", list[tuple[str, str]]()
        while self.tokens and self._next() != end:
            if (sign := self._next()) in _SEPARATORS:
                self.tokens.pop()
                if factors:
                    terms.append(lead + _product(factors))
                    lead, factors = "", []
                spaced = f"{sign} " if sign in ",;" else f" {_SIGNS.get(sign, sign)} "
                lead += spaced if terms or lead else _SIGNS.get(sign, sign)
            elif self._next() == "/" and factors:
                self.tokens.pop()
                above = factors[0][1] if len(factors) == 1 else _product(factors)
                factors = [(rf"\frac{{{above}}}{{{self._factor()[1]}}}",) * 2]
            else:
                factors.append(self._factor())
        if self.tokens:
            self.tokens.pop()
        return [*terms, lead + _product(factors)]

    def _factor(self) -> tuple[str, str]:
        """A factor with what is raised above it; and the same without parentheses around it."""
        if not self.tokens:
            return "", ""
        kind, token = self.tokens.pop()
        above = inner = ""
        if kind == "known":
            text, above = self.names[token]
        elif kind == "number":
            digits, _, power = token.partition("e")
            text = rf"{digits} \cdot 10^{{{int(power)}}}" if power else digits
        elif token in _BRACKETS:
            inner = "".join(self._until(_BRACKETS[token]))
            sized = (r"\left", r"\right") if r"\frac" in inner else ("", "")
            text = f"{sized[0]}{token}{inner}{sized[1]}{_BRACKETS[token]}"
            inner = inner if token == "(" else text
        elif token == "√":
            text = rf"\sqrt{{{self._factor()[1]}}}"
        elif token == "∂":
            text = rf"\partial {self._factor()[0]}"
        elif kind == "word":
            is_called = self._next() in {"(", "'"} or self._raises()
            text = _word(token, is_called=is_called)
            while self._next() == "'":
                text += self.tokens.pop()[1]
            text += self._factor()[0] if self._next() == "(" else ""
        else:
            text = "" if kind == "raised" else _SIGNS.get(token, _plain(token))
            above = _raised(token) if kind == "raised" else ""
        if kind == "known" and self._next() == "[":
            text, above = _joined((text, above)) + self._factor()[0], ""
        while self._raises() or self._next() == "^":
            kind, token = self.tokens.pop()
            above += _raised(token) if kind == "raised" else self._factor()[1]
            inner = ""
        text = _joined((text or "{}", above))
        return text, inner or text


def _product(factors: Sequence[tuple[str, str]]) -> str:
    return " ".join(text for text, _ in factors)


def _word(word: str, *, is_called: bool) -> str:
    """A word that is no name of a node: a function, or a word of a sentence."""
    if word in _WORDS:
        return _WORDS[word]
    plain = "".join(map(_plain, word))
    if is_called:
        return _FUNCTIONS.get(word, rf"\operatorname{{{plain}}}")
    return rf"\{_GREEK[word]}" if word in _GREEK else rf"\;\text{{{plain}}}\;"
