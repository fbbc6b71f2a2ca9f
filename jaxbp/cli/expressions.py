"""Expressions such as ``exp(x*z) + x*z/log(x)``, read without ever running them as Python.

The text is parsed by Python's own parser, and only what is listed here is accepted: numbers, names,
arithmetic, indices, the functions below, and ``a = x*z; exp(a)`` to name a value.  An error points
at the character.
"""

import ast
import inspect
import math
import operator
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from jaxbp.cli.functions import CONSTANTS, FUNCTIONS, count, meant
from jaxbp.graph.recording import named

_LONGEST = 10_000  # characters
_TYPESET = str.maketrans("·⋅×÷−", "***/-")


class ExpressionError(ValueError):
    """An expression that is refused: why, and where, by a mark below the character."""


class Expression(NamedTuple):
    """A parsed expression: its text, the names that need a value, and its statements."""

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
                raise ExpressionError(f"{name} is {CONSTANTS[name]:.6g} here: use another name")
            known = ", ".join(self.names) or "no names"
            raise ExpressionError(f"{name}: got a value for it, but the expression has {known}")

    def _first(self, name: str) -> int:
        nodes = (node for statement in self.statements for node in ast.walk(statement))
        return min(_start(self.text, n) for n in nodes if isinstance(n, ast.Name) and n.id == name)

    def function(self) -> Callable[..., Any]:
        """Return the expression as a function of its names, in their order."""

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


_TOO_DEEP = "the expression is too long, or nested too deeply"
_COMPARISONS: dict[type, Callable[[Any, Any], Any]] = {
    ast.Gt: operator.gt,
    ast.Lt: operator.lt,
    ast.GtE: operator.ge,
    ast.LtE: operator.le,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_EXPECTED = "expected numbers, names, + - * / ** and functions"
_BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.Mod: lambda a, b: a - b * jnp.floor(a / b),
    ast.MatMult: operator.matmul,
}


def parse(text: str) -> Expression:
    """Read an expression.  Raises ExpressionError, pointing at the character, for anything else.

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
    """Read a value of the command line: 2, -1/3, pi/2, a vector 1,2,3, a matrix 1,2;3,4 or lists
    as in Python, [[1,2],[3,4]].

    Raises ExpressionError for anything else.

    >>> numbers("1,2;3,pi").round(2).tolist()
    [[1.0, 2.0], [3.0, 3.14]]
    """
    if text.startswith("["):
        return _of_lists(text)
    return _of_rows(text, [[_number(part) for part in row.split(",")] for row in text.split(";")])


def _of_lists(text: str) -> np.ndarray:
    try:
        (statement,) = ast.parse(text.translate(_TYPESET)).body
        parts = getattr(getattr(statement, "value", None), "elts", [])
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        parts = []
    nested = [part.elts for part in parts if isinstance(part, ast.List)]
    if not parts or not all(nested) or (nested and len(nested) < len(parts)):
        raise ExpressionError(f"{text!r}: expected a list of numbers or of rows, as [[1,2],[3,4]]")
    rows = [[_number(ast.unparse(entry)) for entry in row] for row in nested or [parts]]
    return _of_rows(text, rows) if len(rows) > 1 or not nested else np.array(rows)


def _of_rows(text: str, rows: list[list[float]]) -> np.ndarray:
    if len({len(row) for row in rows}) > 1:
        lengths = ", ".join(str(len(row)) for row in rows)
        raise ExpressionError(f"{text!r} has rows of {lengths} numbers, expected equal ones")
    if len(rows) > 1 or ";" in text:
        return np.array(rows)
    return np.array(rows[0] if "," in text or "[" in text else rows[0][0])


def _number(text: str) -> float:
    expression = parse(text)
    if expression.names:
        expected = "2, pi/2, a vector 1,2,3 or a matrix [[1,2],[3,4]]"
        raise ExpressionError(f"{text!r} is not a number: expected {expected}")
    return float(expression.function()())


# Walking


def _free_names(text: str, statements: list[ast.stmt]) -> Iterator[str]:
    """The names without a value, after checking every part of the expression."""
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
    """The names in an expression, in reading order; fails for a part that is not allowed."""
    match node:
        case ast.Constant(value=value):
            if isinstance(value, bool) or not isinstance(value, int | float):
                _refuse(text, node, f"{ast.unparse(node)} is not a real number")
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
                is_power = isinstance(op, ast.BitXor)
                expected = "a power is written **" if is_power else "expected one of + - * / % ** @"
                _fail(text, _between(text, left, right), expected)
            yield from _names(text, left)
            yield from _names(text, right)
        case ast.Call():
            yield from _names_of_call(text, node)
        case ast.Subscript(value=value, slice=index):
            yield from _names(text, value)
            _index(text, index)
        case ast.Attribute(value=value, attr="T"):
            yield from _names(text, value)
        case _:
            _refuse(text, node, _EXPECTED)


def _names_of_call(text: str, node: ast.Call) -> Iterator[str]:
    if isinstance(node.func, ast.Constant | ast.BinOp | ast.UnaryOp | ast.Call):
        _refuse(text, node, "write the multiplication: 2*(x + 1)")
    if not isinstance(node.func, ast.Name):
        _refuse(text, node, _EXPECTED)
    name = node.func.id
    if name not in FUNCTIONS:
        times = f" (a multiplication is written {name}*(...))" if len(name) == 1 else ""
        _refuse(text, node, f"{name} is none of the functions{times}{meant(name)}")
    if node.keywords or any(isinstance(operand, ast.Starred) for operand in node.args):
        _refuse(text, node, f"{name} takes plain operands")
    expected = FUNCTIONS[name][1]
    if len(node.args) not in expected:
        _refuse(text, node, f"{name} got {len(node.args)}, expected {count(expected)}")
    for operand in node.args:
        if name == "where" and operand is node.args[0]:
            yield from _names_of_comparison(text, operand)
        else:
            yield from _names(text, operand)


def _names_of_comparison(text: str, node: ast.expr) -> Iterator[str]:
    match node:
        case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in _COMPARISONS:
            yield from _names(text, left)
            yield from _names(text, right)
        case _:
            _refuse(text, node, "where expects a comparison first, as in where(x > 0, x, 0)")


def _index(text: str, node: ast.expr) -> Any:
    """The index that is written: whole numbers and ranges of them, as 0, -1, 1:3 or :, 0."""
    match node:
        case ast.Tuple(elts=parts):
            return tuple(_index(text, part) for part in parts)
        case ast.Slice(lower=lower, upper=upper, step=step):
            ends = (lower, upper, step)
            return slice(*(None if end is None else _whole(text, end) for end in ends))
        case _:
            return _whole(text, node)


def _whole(text: str, node: ast.expr) -> int:
    negative = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub)
    number = node.operand if isinstance(node, ast.UnaryOp) and negative else node
    if not isinstance(number, ast.Constant) or type(number.value) is not int:
        index = ast.unparse(node)
        _refuse(text, node, f"index {index}: expected whole numbers, as in x[0] or W[:, 1]")
    return -number.value if negative else number.value


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
    """The value of a part that has been checked."""
    if isinstance(node, ast.Constant):
        assert isinstance(node.value, int | float)
        return node.value if abs(node.value) < 2**31 else float(node.value)
    if isinstance(node, ast.Name):
        return known[node.id]
    if isinstance(node, ast.Subscript):
        return _entries(text, node, _compute(text, node.value, known))
    function, parts = _function_and_operands(node)
    operands = [_compute(text, part, known) for part in parts]
    if all(isinstance(operand, int | float) for operand in operands):
        return _compute_number(text, node, function, operands)
    try:
        return function(*operands)
    except (TypeError, ValueError) as error:
        shapes = " and ".join(str(jnp.shape(operand)) for operand in operands)
        reason = f"got shapes {shapes}, expected ones that fit ({str(error).splitlines()[0]})"
        _refuse(text, node, f"{ast.unparse(node)} cannot be computed: {reason}")


def _entries(text: str, node: ast.Subscript, value: Any) -> Any:
    """The entries at an index.  JAX itself would take the nearest entry for one that is not."""
    index, shape = _index(text, node.slice), jnp.shape(value)
    try:
        np.empty(shape)[index]
    except (IndexError, ValueError):
        what = f"{ast.unparse(node.value)} has shape {shape}" if shape else "it is a number"
        _refuse(text, node, f"{ast.unparse(node)}: {what}, expected an index within it")
    return jnp.asarray(value)[index]


def _function_and_operands(node: ast.expr) -> tuple[Callable[..., Any], list[ast.expr]]:
    if isinstance(node, ast.UnaryOp):
        return (operator.neg if isinstance(node.op, ast.USub) else operator.pos), [node.operand]
    if isinstance(node, ast.BinOp):
        return _BINARY[type(node.op)], [node.left, node.right]
    if isinstance(node, ast.Compare):
        return _COMPARISONS[type(node.ops[0])], [node.left, node.comparators[0]]
    if isinstance(node, ast.Attribute):
        return jnp.transpose, [node.value]
    assert isinstance(node, ast.Call)
    assert isinstance(node.func, ast.Name)
    return FUNCTIONS[node.func.id][0], node.args


def _compute_number(
    text: str, node: ast.expr, function: Callable[..., Any], operands: list[float]
) -> float:
    """The number that numbers make, an int where it is whole: x**(1 + 1) is x²."""
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
        _refuse(text, node, f"{ast.unparse(node)} is not a real number")
    if math.isinf(value):
        _refuse(text, node, f"{ast.unparse(node)} is not a finite number")
    return int(value) if value == round(value) and abs(value) < 2**31 else value


# Pointing


def _fail(text: str, at: int, message: str) -> NoReturn:
    """Raise with the text and a mark below the character; a long text is cut around it."""
    start = max(0, at - 50)
    shown = text[start : start + 76]
    raise ExpressionError(f"{message}\n  {shown}\n  {' ' * (at - start)}^") from None


def _refuse(text: str, part: ast.expr | ast.stmt, message: str) -> NoReturn:
    """Raise with a mark where a part begins."""
    _fail(text, _start(text, part), message)


def _start(text: str, node: ast.expr | ast.stmt) -> int:
    """The position of a part's first character: the parser counts bytes."""
    return len(text.encode()[: node.col_offset].decode())


def _between(text: str, left: ast.expr, right: ast.expr) -> int:
    """The position of the operator between two operands."""
    begin = len(text.encode()[: left.end_col_offset].decode())
    end = _start(text, right)
    return next((i for i in range(begin, end) if text[i] not in " )("), end)


def _hint(message: str) -> str:
    if message == "invalid decimal literal":
        return "write the multiplication: 2*x"
    if message.startswith(("invalid syntax", "unexpected EOF")):
        return "expected an expression here"
    return message
