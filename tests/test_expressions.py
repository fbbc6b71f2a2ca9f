"""Expressions are read, never run as Python, and an error points at the character."""

import re
import string
from contextlib import suppress

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxbp import graph
from jaxbp.cli.expressions import CONSTANTS, FUNCTIONS, ExpressionError, numbers, parse

pytestmark = pytest.mark.usefixtures("x64")


def value(text, **values):
    expression = parse(text)
    return float(expression.function()(*(values[name] for name in expression.names)))


def at_two(text):
    """An expression's value where every name is 2."""
    expression = parse(text)
    return expression.function()(*[2.0] * len(expression.names))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1 + 2*3 - 4/8", 6.5),
        ("99999999999999999999 - 1e20", 0.0),
        ("-2**2", -4.0),
        ("2**-1", 0.5),
        ("2·3 − 1 × 4 ÷ 2", 4.0),
        ("7.5 % 2", 1.5),
        ("e**2 - exp(2) + sin(pi/2)", 1.0),
        ("ln(e**3) + log10(100) + log2(8)", 8.0),
        ("max(1, 2, 3) - min(4, 2)", 1.0),
        ("a = 2; b = a*a; a + b", 6.0),
        ("relu(-1) + softplus(0) - log(2) + sigmoid(0)", 0.5),
        ("atan2(1, 1)*4 - pi", 0.0),
        ("silu(0) + gelu(0) + elu(0, 2) + leaky_relu(-1, 0.2)", -0.2),
        ("where(2 > 1, 3, 4) + where(2 == 1, 3, 4) + 7.5 % -2", 6.5),
    ],
)
def test_values(text, expected):
    assert value(text) == pytest.approx(expected, abs=1e-15)


def test_names_and_arrays():
    assert parse("z*x + exp(w)*z").names == ("z", "x", "w")
    assert value("pi*r", pi=3.0, r=2.0) == pytest.approx(2 * np.pi)
    assert value("sum(v@A) + max(v) + mean(v)", v=V, A=np.eye(2)) == 3 + 2 + 1.5
    assert value("e = x + 1; e*2", x=1.0) == 4.0
    assert parse("x**(1 + 1)").function()(3.0) == 9.0
    squared = graph.trace(parse("x**(1 + 1)").function(), 3.0)
    assert squared["y"].operation == "x²"
    entries = "v[0] + A[0, -1]*10 + sum(A[:, 1])*100 + (A.T@v)[1]*1e3 + sum(v[::-1][1:])*1e4"
    assert value(entries, v=V, A=np.array([[1.0, 2.0], [3.0, 4.0]])) == 1 + 20 + 600 + 1e4 + 1e4
    assert value("norm(v) + sum(transpose(A)[1])", v=np.array([3.0, 4.0]), A=np.eye(2)) == 6


V = np.array([1.0, 2.0])


#: functions whose operands are no two numbers, or not these: the text, and the function of JAX
OTHERS = {
    "acosh(x + 1)": lambda x, z: jnp.arccosh(x + 1),
    "where(x > z, x, z*z)": lambda x, z: jnp.where(x > z, x, z * z),
    "transpose(x)*z": lambda x, z: x * z,
    "sum(softmax(x*A)*A)": lambda x, z: jnp.sum(jax.nn.softmax(x * MATRIX) * MATRIX),
    "logsumexp(z*A)": lambda x, z: jax.nn.logsumexp(z * MATRIX),
    "norm(x*A + z)": lambda x, z: jnp.linalg.norm(x * MATRIX + z),
    "x%z + z%x": lambda x, z: x % z + z % x,
    "relu(x - z) + relu(2*z - x) + relu(x - 0.3)": lambda x, z: (
        jax.nn.relu(x - z) + jax.nn.relu(2 * z - x) + jax.nn.relu(x - 0.3)  # whose slope is 0
    ),
    "leaky_relu(-x) + leaky_relu(x*z) + leaky_relu(x - 9, z)": lambda x, z: (
        jax.nn.leaky_relu(-x) + jax.nn.leaky_relu(x * z) + jax.nn.leaky_relu(x - 9, z)
    ),
    "elu(-x) + elu(x*z) + elu(x - 9, z) + elu(1000*x)": lambda x, z: (
        jax.nn.elu(-x) + jax.nn.elu(x * z) + jax.nn.elu(x - 9, z) + jax.nn.elu(1000 * x)
    ),
    "gelu(x) + gelu(-z)": lambda x, z: (
        jax.nn.gelu(x, approximate=False) + jax.nn.gelu(-z, approximate=False)
    ),
    "silu(x) + silu(-z)": lambda x, z: jax.nn.silu(x) + jax.nn.silu(-z),
}
MATRIX = np.array([[1.0, -2.0, 0.5], [3.0, 0.1, -1.0]])


@pytest.mark.slow
def test_every_function_has_a_derivative():
    """All in one program, as each would take a compilation or two by itself."""
    here = set(re.findall(r"\w+(?=\()", " ".join(OTHERS)))
    plain = {
        f"{name}({', '.join('xz'[: 1 + (max(counts) > 1)])})": function
        for name, (function, counts) in FUNCTIONS.items()
        if name not in here
    }

    @jax.jit
    def derivatives(x, z):
        found = {}
        for text, function in (plain | OTHERS).items():
            read = parse(text)
            point = [{"x": x, "z": z, "A": MATRIX}[name] for name in read.names]
            by = [number for number, name in enumerate(read.names) if name != "A"]
            mine = graph.grad(read.function(), by)(*point)
            names = "xz" if text in OTHERS else read.names
            theirs = jax.grad(function, tuple(range(len(names))))(*(x, z)[: len(names)])
            found[text] = mine, [theirs[names.index(read.names[number])] for number in by]
        return found

    for text, (got, expected) in derivatives(0.3, 0.7).items():
        np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-14, err_msg=text)


@pytest.mark.slow
def test_a_function_that_is_one_node_can_be_opened():
    """Inside are its operations, and their adjoints are those that the node passes on."""
    text = "s = softmax(v); n = norm(v); l = logsumexp(v); u = elu(v); r = leaky_relu(v); "
    traced = graph.trace(parse(f"{text}s@u + n*l + r@s").function(), V)
    for name in "snlur":
        inside = traced.opened(name)
        assert len(inside.nodes) > 1
        np.testing.assert_allclose(inside[inside.output].value, traced[name].value, rtol=1e-14)
        np.testing.assert_array_equal(inside[inside.output].adjoint, traced[name].adjoint)
        (part,) = [p.value for p in traced["v"].contributions if p.consumer == name]
        np.testing.assert_allclose(inside["v"].adjoint, part, atol=1e-14)


def test_a_function_without_a_name_of_that_kind_gets_a_helpful_word():
    """The suggestion is a slip of the keyboard away, or another name of the same."""
    meant_by = {
        "exq": "exp", "softmx": "softmax", "sigmoidd": "sigmoid", "lgo": "log", "lop": "log",
        "arcsin": "asin", "swish": "silu", "matmul": "dot", "logsumexpp": "logsumexp",
    }  # fmt: skip
    for name, function in meant_by.items():
        with pytest.raises(ExpressionError, match=rf"{name} is none .* did you mean {function}\?"):
            parse(f"{name}(x)")
    for name in ("mish", "selu", "softsign", "swiglu", "var", "prod", "hypot", "foo", "sort"):
        with pytest.raises(
            ExpressionError, match=f"{name} is none of the functions, which are exp"
        ):
            parse(f"{name}(x)")


@pytest.mark.parametrize(
    ("text", "message", "at"),
    [
        ("x + ", "expected an expression here", 3),
        ("2x", "write the multiplication: 2*x", 0),
        ("2(x + 1)", "write the multiplication: 2*(x + 1)", 0),
        ("x^2", "a power is written **", 1),
        ("héé + x^2", "a power is written **", 7),
        ("1 + sin", "sin is a function: write sin(...)", 4),
        ("x*foo(x)", "foo is none of the functions", 2),
        ("x(2)", "x is none of the functions (a multiplication is written x*(...))", 0),
        ("exp(x, z)", "exp got 2, expected 1 operand", 0),
        ("exp(*x)", "exp takes plain operands", 0),
        ("x + y.real", "expected numbers, names", 4),
        ("().__class__", "expected numbers, names", 0),
        ("__import__('os').system('true')", "expected numbers, names", 0),
        ("[x for x in z]", "expected numbers, names", 0),
        ("(lambda: x)()", "expected numbers, names", 0),
        ("x if x else 1", "expected numbers, names", 0),
        ("x > 1", "expected numbers, names", 0),
        ("x + 'a'", "'a' is not a real number", 4),
        ("x*1j", "1j is not a real number", 2),
        ("True", "True is not a real number", 0),
        ("x + 1/0", "1 / 0 divides by 0", 4),
        ("x + log(-1)", "log(-1) is not a real number", 4),
        ("elu()", "elu got 0, expected 1 or 2 operands", 0),
        ("max()", "max got 0, expected at least one operand", 0),
        ("x + where(x, 1, 2)", "where expects a comparison first, as in where(x > 0, x, 0)", 10),
        ("where(0 < x < 1, x, 2)", "where expects a comparison first", 6),
        ("x[0.5]", "index 0.5: expected whole numbers, as in x[0] or W[:, 1]", 2),
        ("x[y]", "index y: expected whole numbers", 2),
        ("x[True]", "index True: expected whole numbers", 2),
        ("(x*[1])[0]", "expected numbers, names", 3),
        ("1 + x[0]", "x[0]: it is a number, expected an index within it", 4),
        ("(-8)**(1/3)*x", "(-8) ** (1 / 3) is not a real number", 0),
        ("x + 9**9**9**9", "9 ** 9 ** 9 is not a finite number", 7),
        ("x; z", "only the last part may be without a name", 0),
        ("a = b = x", "expected one name before the =", 0),
        ("sin = x", "sin is a function already", 0),
        ("import os", "expected an expression", 0),
        ("exp(x", "'(' was never closed", 3),
        ("x + 2@3", "2 @ 3 cannot be computed of numbers", 4),
        ("x # the input", "expected an expression here", 2),
        ("x + 1e999", "the number is too large", 4),
    ],
)
def test_errors_point_at_the_character(text, message, at):
    with pytest.raises(ExpressionError) as caught:
        at_two(text)
    said, shown, mark = str(caught.value).split("\n")
    assert message in said
    assert shown.strip() == text.strip()
    assert mark == " " * (at + 2) + "^"


@pytest.mark.parametrize(
    "text", ["", " ", "x" * 20_000, "(" * 5000, "-" * 5000 + "x", "x\0", "9" * 5000]
)
def test_what_is_too_much_is_refused(text):
    with pytest.raises(ExpressionError):
        at_two(text)


def test_a_long_line_is_shown_where_it_is_wrong():
    with pytest.raises(ExpressionError) as caught:
        parse("x + " * 100 + "foo(x)")
    _, shown, mark = str(caught.value).split("\n")
    assert len(shown) < 80
    assert shown[mark.index("^") :].startswith("foo(x)")


def check_that_it_is_read_or_refused(text):
    with suppress(ExpressionError):
        at_two(text)


#: what expressions are made of, and a little of what they are not
CHARACTERS = string.printable + "·−×÷√²éßΣ字🙂\0\x7f\u00a0\u200b\u2028\ufeff\ud800"


@given(st.text(st.sampled_from(CHARACTERS), max_size=30))
def test_text_much_like_an_expression_is_read_or_refused(text):
    check_that_it_is_read_or_refused(text)


@pytest.mark.slow  # Hypothesis makes a table of all Unicode first
@given(st.text(max_size=30))
def test_any_text_is_read_or_refused(text):
    check_that_it_is_read_or_refused(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2", 2.0),
        ("-1/3", -1 / 3),
        ("pi", CONSTANTS["pi"]),
        ("1,2", [1, 2]),
        ("1,2;3,4", [[1, 2], [3, 4]]),
        ("[2, pi/2]", [2, np.pi / 2]),
        ("[[1,-2],[3,4]]", [[1, -2], [3, 4]]),
        ("[[1],[2]]", [[1], [2]]),
        ("[[1,2]]", [[1, 2]]),
    ],
)
def test_numbers(text, expected):
    np.testing.assert_array_equal(numbers(text), expected)


@pytest.mark.parametrize("text", ["", "x", "1,", "1,2;3", "1;;2", "#", "2#3", "1" + "0" * 400,
    "[]", "[[]]", "[1,[2]]", "[[1,2],[3]]", "[x]", "[1", "[1]; [2]", "[[[1]]]"])  # fmt: skip
def test_what_is_no_number(text):
    with pytest.raises(ExpressionError):
        numbers(text)
