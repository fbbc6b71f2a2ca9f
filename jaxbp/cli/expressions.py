"""Expressions such as ``exp(x*z) + x*z/log(x)``, read without ever running them as Python.

The text is parsed by Python's own parser and walked over a list of what is allowed: numbers, names,
arithmetic, the functions below, and ``a = x*z; exp(a)`` to name a value.  An error points at the
character.
"""

import ast
import inspect
import math
import operator
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from functools import reduce
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.graph.recording import named

_LONGEST = 10_000  # characters
_TYPESET = str.maketrans("·⋅×÷−", "***/-")


class ExpressionError(ValueError):
    """What is wrong with an expression, and a mark below the character."""


class Expression(NamedTuple):
    """A parsed expression: the names that need a value, and what it is made of."""

    text: str
    names: tuple[str, ...]  # in the order of their first use
    statements: tuple[ast.stmt, ...]

    def check_values(self, given: Iterable[str]) -> None:
        """Raise ExpressionError where a name has no value, or a value no name."""
        given = set(given)
        for name in self.names:
            if name not in given:
                _fail(self.text, self._first(name), f"{name} has no value: add {name}=2, say")
        for name in sorted(given - set(self.names)):
            if name in CONSTANTS:
                raise ExpressionError(f"{name} is {CONSTANTS[name]:.6g} here: call yours otherwise")
            known = ", ".join(self.names) or "no names"
            raise ExpressionError(f"{name}: got a value for it, but the expression has {known}")

    def _first(self, name: str) -> int:
        nodes = (node for statement in self.statements for node in ast.walk(statement))
        return min(_at(self.text, n) for n in nodes if isinstance(n, ast.Name) and n.id == name)

    def function(self) -> Callable[..., Any]:
        """The function of the names that the expression is."""

        def evaluate(*values: Any) -> Any:
            try:
                return _run(self, dict(zip(self.names, values, strict=True)))
            except RecursionError:
                raise ExpressionError(_TOO_DEEP) from None

        parameters = [
            inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in self.names
        ]
        evaluate.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return evaluate


def _of_several(two: Callable[..., Any], entries: Callable[..., Any]) -> Callable[..., Any]:
    """max(a, b, ...) of several operands, and of the entries of a single one."""
    return lambda *operands: reduce(two, operands) if len(operands) > 1 else entries(*operands)


_ANY, _ONE, _TWO = range(1, 100), range(1, 2), range(2, 3)  # operands
_AS_IN_NUMPY = (
    *("exp", "exp2", "expm1", "log", "log1p", "log2", "log10", "sqrt", "cbrt", "abs", "sign"),
    *("sin", "cos", "tan", "sinh", "cosh", "tanh", "floor", "ceil", "round", "sum", "mean"),
)
_INVERSES = ("asin", "acos", "atan", "asinh", "acosh", "atanh")  # arcsin, ... in NumPy
FUNCTIONS: dict[str, tuple[Callable[..., Any], range]] = {
    **{name: (getattr(jnp, name), _ONE) for name in _AS_IN_NUMPY},
    **{name: (getattr(jnp, f"arc{name[1:]}"), _ONE) for name in _INVERSES},
    "ln": (jnp.log, _ONE),
    "atan2": (jnp.arctan2, _TWO),
    "erf": (jax.lax.erf, _ONE),
    "sigmoid": (jax.nn.sigmoid, _ONE),
    "softplus": (lambda a: jnp.log1p(jnp.exp(a)), _ONE),
    "relu": (lambda a: jnp.maximum(a, 0), _ONE),
    "dot": (jnp.dot, _TWO),
    "max": (_of_several(jnp.maximum, jnp.max), _ANY),
    "min": (_of_several(jnp.minimum, jnp.min), _ANY),
}
CONSTANTS = {"pi": math.pi, "e": math.e}

_TOO_DEEP = "the expression is too long, or nested too deeply"
_EXPECTED = "expected numbers, names, + - * / ** and functions"
_BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.Mod: operator.mod,
    ast.MatMult: operator.matmul,
}


def parse(text: str) -> Expression:
    """Read an expression.  Raises ExpressionError, pointing at the character, for what is none.

    >>> parse("exp(x*z) + x").names
    ('x', 'z')
    >>> float(parse("s = x**2; s + 1").function()(3.0))
    10.0
    """
    text = " ".join(text.split()).translate(_TYPESET)
    if not text:
        raise ExpressionError("the expression is empty")
    if len(text) > _LONGEST:
        raise ExpressionError(f"the expression has {len(text)} characters, at most {_LONGEST}")
    if "#" in text:
        _fail(text, text.index("#"), "expected an expression here")
    try:
        with warnings.catch_warnings(action="ignore"):
            statements = ast.parse(text).body
    except SyntaxError as error:
        _fail(text, (error.offset or 1) - 1, _hint(error.msg))
    except (RecursionError, MemoryError, ValueError) as error:
        raise ExpressionError(f"the expression cannot be read: {error or 'too deep'}") from None
    try:
        return Expression(text, tuple(_free_names(text, statements)), tuple(statements))
    except RecursionError:
        raise ExpressionError(_TOO_DEEP) from None


def numbers(text: str) -> np.ndarray:
    """A value on the command line: 2, -1/3, pi/2, a vector 1,2,3 or a matrix 1,2;3,4.

    Raises ExpressionError for what is none of them.

    >>> numbers("1,2;3,pi").round(2).tolist()
    [[1.0, 2.0], [3.0, 3.14]]
    """
    rows = [[_number(entry) for entry in row.split(",")] for row in text.split(";")]
    if len({len(row) for row in rows}) > 1:
        lengths = ", ".join(str(len(row)) for row in rows)
        raise ExpressionError(f"{text!r} has rows of {lengths} numbers, expected equal ones")
    if ";" in text:
        return np.array(rows)
    return np.array(rows[0] if "," in text else rows[0][0])


def _number(text: str) -> float:
    expression = parse(text)
    if expression.names:
        raise ExpressionError(f"{text!r} is no number")
    return float(expression.function()())


# Walking


def _free_names(text: str, statements: list[ast.stmt]) -> Iterator[str]:
    """The names without a value, after looking at every part of the expression."""
    known: set[str] = set()
    seen: set[str] = set()
    for statement in statements:
        value = _value_of(text, statement, last=statement is statements[-1])
        for name in _names(text, value):
            if name not in known | seen and name not in CONSTANTS:
                seen.add(name)
                yield name
        if isinstance(statement, ast.Assign):
            known.add(_target(text, statement))


def _value_of(text: str, statement: ast.stmt, *, last: bool) -> ast.expr:
    if not isinstance(statement, ast.Expr | ast.Assign):
        _refuse(text, statement, "expected an expression")
    if isinstance(statement, ast.Expr) and not last:
        _refuse(text, statement, "only the last part may be without a name, as in a = x*z")
    return statement.value


def _target(text: str, statement: ast.Assign) -> str:
    (target, *others) = statement.targets
    if others or not isinstance(target, ast.Name):
        _refuse(text, statement, "expected one name before the =")
    if target.id in FUNCTIONS:
        _refuse(text, target, f"{target.id} is a function already")
    return target.id


def _names(text: str, node: ast.expr) -> Iterator[str]:
    """The names in an expression, in reading order; fails for what is not allowed."""
    match node:
        case ast.Constant(value=value):
            if isinstance(value, bool) or not isinstance(value, int | float):
                _refuse(text, node, f"{ast.unparse(node)} is no real number")
            if abs(value) > sys.float_info.max:
                _refuse(text, node, "the number is too large")
        case ast.Name(id=name) if name in FUNCTIONS:
            _refuse(text, node, f"{name} is a function: write {name}(...)")
        case ast.Name(id=name):
            yield name
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=operand):
            yield from _names(text, operand)
        case ast.BinOp(left=left, op=op, right=right):
            if type(op) not in _BINARY:
                _fail(text, _between(text, left, right), _instead(op))
            yield from _names(text, left)
            yield from _names(text, right)
        case ast.Call():
            yield from _names_of_call(text, node)
        case _:
            _refuse(text, node, _EXPECTED)


def _names_of_call(text: str, node: ast.Call) -> Iterator[str]:
    if isinstance(node.func, ast.Constant | ast.BinOp | ast.UnaryOp | ast.Call):
        _refuse(text, node, "write the multiplication: 2*(x + 1)")
    if not isinstance(node.func, ast.Name):
        _refuse(text, node, _EXPECTED)
    name = node.func.id
    if name not in FUNCTIONS:
        close = get_close_matches(name, FUNCTIONS, n=1)
        meant = f"; did you mean {close[0]}?" if close else f", which are {', '.join(FUNCTIONS)}"
        times = f" (a multiplication is written {name}*(...))" if len(name) == 1 else ""
        _refuse(text, node, f"{name} is none of the functions{times}{meant}")
    if node.keywords or any(isinstance(operand, ast.Starred) for operand in node.args):
        _refuse(text, node, f"{name} takes plain operands")
    expected = FUNCTIONS[name][1]
    if len(node.args) not in expected:
        count = "at least one operand" if expected is _ANY else f"{expected[0]} operand(s)"
        _refuse(text, node, f"{name} got {len(node.args)}, expected {count}")
    for operand in node.args:
        yield from _names(text, operand)


# Computing


def _run(expression: Expression, values: dict[str, Any]) -> Any:
    known: dict[str, Any] = {**CONSTANTS, **values}
    for statement in expression.statements:
        value = _compute(expression.text, _value_of(expression.text, statement, last=True), known)
        if isinstance(statement, ast.Assign):
            name = _target(expression.text, statement)
            value = known[name] = named(jnp.asarray(value, float), name)
    return value


def _compute(text: str, node: ast.expr, known: Mapping[str, Any]) -> Any:
    """The value of a part that has been found to be allowed."""
    if isinstance(node, ast.Constant):
        assert isinstance(node.value, int | float)
        return node.value if abs(node.value) < 2**31 else float(node.value)
    if isinstance(node, ast.Name):
        return known[node.id]
    function, parts = _applied(node)
    operands = [_compute(text, part, known) for part in parts]
    if all(isinstance(operand, int | float) for operand in operands):
        return _of_numbers(text, node, function, operands)
    try:
        return function(*operands)
    except (TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        _refuse(text, node, f"{ast.unparse(node)} cannot be computed: {reason}")


def _applied(node: ast.expr) -> tuple[Callable[..., Any], list[ast.expr]]:
    """What is done, and to what."""
    if isinstance(node, ast.UnaryOp):
        return (operator.neg if isinstance(node.op, ast.USub) else operator.pos), [node.operand]
    if isinstance(node, ast.BinOp):
        return _BINARY[type(node.op)], [node.left, node.right]
    assert isinstance(node, ast.Call)
    assert isinstance(node.func, ast.Name)
    return FUNCTIONS[node.func.id][0], node.args


def _of_numbers(
    text: str, node: ast.expr, function: Callable[..., Any], operands: list[float]
) -> float:
    """A number made of numbers, whole where it is whole: x**(1 + 1) is x²."""
    try:
        with jax.ensure_compile_time_eval():
            value = function(*map(float, operands))
            value = value if isinstance(value, complex) else float(value)
    except ZeroDivisionError:
        _refuse(text, node, f"{ast.unparse(node)} divides by 0")
    except TypeError:
        _refuse(text, node, f"{ast.unparse(node)} cannot be computed of numbers")
    except OverflowError:
        value = math.inf
    if isinstance(value, complex) or math.isnan(value):
        _refuse(text, node, f"{ast.unparse(node)} is no real number")
    if math.isinf(value):
        _refuse(text, node, f"{ast.unparse(node)} is no finite number")
    return int(value) if value == round(value) and abs(value) < 2**31 else value


# Pointing


def _fail(text: str, at: int, message: str) -> NoReturn:
    """Raise with the text and a mark below the character; of a long text, what is around it."""
    start = max(0, at - 50)
    shown = text[start : start + 76]
    raise ExpressionError(f"{message}\n  {shown}\n  {' ' * (at - start)}^") from None


def _refuse(text: str, part: ast.expr | ast.stmt, message: str) -> NoReturn:
    """Raise with a mark where a part begins."""
    _fail(text, _at(text, part), message)


def _at(text: str, node: ast.expr | ast.stmt) -> int:
    """Where a part begins, in characters: the parser counts bytes."""
    return len(text.encode()[: node.col_offset].decode())


def _between(text: str, left: ast.expr, right: ast.expr) -> int:
    """Where the operator stands."""
    end = len(text.encode()[: left.end_col_offset].decode())
    return next((i for i in range(end, _at(text, right)) if text[i] not in " )("), _at(text, right))


def _instead(op: ast.operator) -> str:
    if isinstance(op, ast.BitXor):
        return "a power is written **"
    return "expected one of + - * / % ** @"


def _hint(message: str) -> str:
    if message == "invalid decimal literal":
        return "write the multiplication: 2*x"
    if message.startswith(("invalid syntax", "unexpected EOF")):
        return "expected an expression here"
    return message
