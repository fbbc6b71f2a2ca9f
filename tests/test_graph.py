"""Computation graphs: reverse mode on a graph, as matrices and by jax.grad are three answers."""

import math
from functools import partial
from html import escape
from itertools import combinations, pairwise

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from combinations import HEADS, lecture, thinned
from hypothesis import assume, given, settings
from jax import lax

import jaxbp
from benchmarks.problems import random_batch, random_params
from jaxbp import activations, graph
from jaxbp.cli.expressions import ExpressionError, parse
from jaxbp.graph import rules
from jaxbp.graph.cost import cost_of
from jaxbp.graph.nodes import edges_of
from jaxbp.graph.recording import Composite
from jaxbp.graph.render import web
from jaxbp.graph.render.layout import count_crossings, layout

pytestmark = pytest.mark.usefixtures("x64")


@jax.custom_vjp
def custom(x):
    return jnp.sin(x) * x


custom.defvjp(lambda x: (custom(x), x), lambda x, g: (g * (jnp.cos(x) * x + jnp.sin(x)),))

A = np.array([[0.5, -1.2, 0.3], [0.8, 0.1, -0.7]])
V = np.array([0.3, -0.4, 1.1])
W = np.array([0.9, -0.6])

#: name -> (function, its arguments)
FUNCTIONS = {
    "the lecture's": (lecture, (2.0, 3.0)),
    "add": (lambda x, z: x + z + x, (2.0, 3.0)),
    "sub": (lambda x, z: 1 - x - z, (2.0, 3.0)),
    "mul": (lambda x, z: x * z * x, (2.0, 3.0)),
    "div": (lambda x, z: x / z + 2 / x, (2.0, 3.0)),
    "neg": (lambda x: -x * x, (2.0,)),
    "rem": (lambda x, z: lax.rem(x, z) * x, (7.5, 2.0)),
    "mod": (lambda x, z: x % z, (-7.5, 2.0)),
    "pow": (lambda x, z: x**z, (2.0, 3.5)),
    "pow of zero": (lambda x, z: x**z, (0.0, 2.0)),
    "power zero": (lambda x, z: x**z + z, (2.0, 0.0)),
    "integer_pow": (lambda x: x**5 + x**-2 + x**1 + x**0, (1.7,)),
    "square": (jnp.square, (1.7,)),
    "sqrt": (jnp.sqrt, (2.0,)),
    "rsqrt": (lax.rsqrt, (2.0,)),
    "cbrt": (jnp.cbrt, (2.0,)),
    "exp": (jnp.exp, (0.7,)),
    "exp2": (jnp.exp2, (0.7,)),
    "expm1": (jnp.expm1, (0.7,)),
    "log": (jnp.log, (0.7,)),
    "log2": (jnp.log2, (0.7,)),
    "log1p": (jnp.log1p, (0.7,)),
    "sin": (jnp.sin, (0.7,)),
    "cos": (jnp.cos, (0.7,)),
    "tan": (jnp.tan, (0.7,)),
    "asin": (jnp.arcsin, (0.7,)),
    "acos": (jnp.arccos, (0.7,)),
    "atan": (jnp.arctan, (0.7,)),
    "atan2": (jnp.arctan2, (0.7, -0.2)),
    "sinh": (jnp.sinh, (0.7,)),
    "cosh": (jnp.cosh, (0.7,)),
    "tanh": (jnp.tanh, (0.7,)),
    "asinh": (jnp.arcsinh, (0.7,)),
    "acosh": (jnp.arccosh, (1.7,)),
    "atanh": (jnp.arctanh, (0.7,)),
    "logistic": (jax.nn.sigmoid, (0.7,)),
    "erf": (lax.erf, (0.7,)),
    "erfc": (lax.erfc, (0.7,)),
    "erf_inv": (lax.erf_inv, (0.7,)),
    "lgamma": (lax.lgamma, (2.7,)),
    "digamma": (lax.digamma, (2.7,)),
    "abs": (lambda x, z: abs(x) * abs(z), (0.7, -0.2)),
    "steps": (lambda x: x * (jnp.floor(x) + jnp.ceil(x) + jnp.round(x) + jnp.sign(x)), (1.7,)),
    "max and min": (lambda x, z: jnp.maximum(x, z) * jnp.minimum(x, 3 * z), (0.7, 0.2)),
    "equals share": (lambda x, z: 3 * jnp.maximum(x, z) + jnp.minimum(z, x), (0.7, 0.7)),
    "clamp": (lambda x: lax.clamp(-1.0, x, 0.5) * x + lax.clamp(-1.0, 3 * x, 0.5), (0.4,)),
    "clamp to": (lambda a, x, b: lax.clamp(a, x, b) * x, (0.1, 0.7, 0.5)),
    "where": (lambda x, z: jnp.where(x > z, x * z, x - z), (0.7, 0.2)),
    "select_n": (lambda x: lax.select_n(np.int32(2), x, 2 * x, x * x), (0.7,)),
    "where guards": (lambda v: jnp.sqrt(jnp.where(W > 0, v, 0.0)) @ W, (W**2,)),
    "clamp guards": (lambda x: jnp.sqrt(lax.clamp(0.0, x, 1.0)) + x, (-0.5,)),
    "steps guard": (
        lambda x: jnp.sqrt(jnp.floor(x)) + jnp.sqrt(lax.stop_gradient(x) - 0.5) + x,
        (0.5,),
    ),
    "polynomial at zero": (lambda x: sum(c * x**k for k, c in enumerate((1.0, 2.0, 3.0))), (0.0,)),
    "stop_gradient": (lambda x: x * lax.stop_gradient(x), (0.7,)),
    "reduce_precision": (lambda x: lax.reduce_precision(x, 5, 3) * x, (2.7,)),
    "convert": (lambda x: x.astype(jnp.float32) * 2.0, (0.75,)),
    "sum": (lambda v: jnp.sum(v * v), (V,)),
    "sum of an axis": (lambda a: jnp.sum(jnp.sum(a, axis=0) ** 2), (A,)),
    "mean and variance": (lambda v: jnp.mean(v) * jnp.var(v), (V,)),
    "largest": (lambda a: jnp.sum(a.max(axis=1) * a.min(axis=1)) + a.max(), (A,)),
    "largest of equals": (lambda v: jnp.max(jnp.round(v) * v), (np.array([2.0, 2.0, 1.0]),)),
    "prod": (lambda a: jnp.prod(a) + jnp.sum(jnp.prod(a, axis=0) ** 2), (A,)),
    "prod with a zero": (jnp.prod, (np.array([2.0, 0.0, 3.0]),)),
    "cumsum": (lambda v: jnp.sum(jnp.cumsum(v) ** 2), (V,)),
    "argmax": (lambda v: v[jnp.argmax(v)] ** 2, (V,)),
    "reshape": (lambda a: jnp.sum(a.reshape(3, 2) @ W), (A,)),
    "transpose": (lambda a: jnp.sum(a.T * a.reshape(3, 2)), (A,)),
    "more axes": (lambda a: jnp.sum(jnp.moveaxis(a[None], 0, 2) ** 3), (A,)),
    "broadcast": (lambda v: jnp.sum(jnp.broadcast_to(v, (2, 3)) * A), (V,)),
    "a number for all": (lambda x, v: jnp.sum(x * v - v / x), (0.7, V)),
    "a column for all": (lambda w, a: jnp.sum((w[:, None] * a) ** 2), (W, A)),
    "concatenate": (lambda v, w: jnp.prod(jnp.concatenate([v, w, v])), (V, W)),
    "stack": (lambda v: jnp.sum(jnp.stack([v, v**2]).T @ W), (V,)),
    "slice": (lambda v: v[0] * v[-1] + jnp.sum(v[1:] ** 2) + jnp.sum(v[::2]), (V,)),
    "split": (lambda a: jnp.prod(jnp.split(a, 3, axis=1)[1]), (A,)),
    "dynamic_slice": (lambda v: jnp.sum(lax.dynamic_slice(v, (np.int32(1),), (2,)) ** 2), (V,)),
    "gather": (lambda v: jnp.sum(v[np.array([0, 2, 0])] ** 2), (V,)),
    "gather outside": (
        lambda v: jnp.sum(v.at[np.array([0, 9])].get(mode="fill", fill_value=1)),
        (V,),
    ),
    "rev": (lambda v: v[::-1] @ (v * V), (V,)),
    "squeeze": (lambda v: jnp.sum(jnp.squeeze(v[None] ** 2)), (V,)),
    "pad": (lambda v, x: jnp.prod(lax.pad(v, x, [(1, 0, 1)])), (V, 0.7)),
    "inner": (lambda v: v @ v, (V,)),
    "outer": (lambda v, w: jnp.sum(jnp.outer(v, w) ** 2), (V, W)),
    "matrix, vector": (lambda a, v: jnp.sum(jnp.tanh(a @ v + W) ** 2), (A, V)),
    "vector, matrix": (lambda w, a: jnp.sum((w @ a) ** 2), (W, A)),
    "matrix, matrix": (lambda a: jnp.sum((a @ a.T) ** 2), (A,)),
    "batch of matrices": (lambda a: jnp.sum(jnp.einsum("bij,bkj->bik", a[None], A[None])), (A,)),
    "two axes": (lambda a: jnp.tensordot(a, a), (A,)),
    "norm": (jnp.linalg.norm, (V,)),
    "logsumexp": (jax.nn.logsumexp, (V,)),
    "softmax": (lambda v: jax.nn.softmax(v) @ V**2, (V,)),
    "softplus at zero": (jax.nn.softplus, (0.0,)),
    "gelu": (lambda v: jnp.sum(jax.nn.gelu(v)), (V,)),
    "custom_vjp": (custom, (0.7,)),
    "jit in jit": (jax.jit(lambda x: jax.jit(jnp.sin)(x) * x), (0.7,)),
    "checkpoint": (jax.checkpoint(lambda x: jnp.sin(jnp.sin(x))), (0.7,)),
    "cond": (lambda x: lax.cond(x > 0, jnp.sin, jnp.cos, x), (0.7,)),
    "scan": (lambda v: lax.scan(lambda c, x: (c * x, c + x), 1.0, v)[1] @ V, (V,)),
    "scan back": (lambda v: lax.scan(lambda c, x: (c * x, c), 1.0, v, reverse=True)[1] @ V, (V,)),
    "fori_loop": (lambda x: lax.fori_loop(0, 4, lambda i, r: (r + x / r) / 2, 1.0), (2.0,)),
    "vmap": (lambda v: jnp.sum(jax.vmap(lambda x: x**x)(v)), (V**2,)),
    "a tree": (lambda tree: tree["w"] @ tree["v"][:2] * tree["x"], ({"v": V, "w": W, "x": 2.0},)),
    "a tree with a gap": (lambda tree: tree[0] ** 2, ((2.0, None),)),
    "named twice": (lambda x: graph.named(graph.named(x * 2, "s"), "t") * x, (2.0,)),
    "itself": (lambda x: x, (2.0,)),
    "nothing of it": (lambda x, z: 3.0 * z, (2.0, 3.0)),
}


def assert_same(got, expected, scale=1.0, name=""):
    got, expected = jax.tree.leaves(got), jax.tree.leaves(expected)
    assert len(got) == len(expected), name
    for a, b in zip(got, expected, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype), name
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12 * scale, err_msg=name)


#: what only a trace meets: numbers to branch on, formulas to write, arguments of every kind
TRACED = {
    "the lecture's",
    "pow of zero",
    "atan2",
    "equals share",
    "convert",
    "a number for all",
} | {*("cond", "fori_loop", "a tree with a gap", "named twice", "itself", "nothing of it")}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in TRACED else pytest.mark.slow) for name in FUNCTIONS],
)
def test_equals_jax_grad(name):
    f, args = FUNCTIONS[name]
    args = jax.tree.map(jnp.asarray, args)
    traced = graph.trace(f, *args)
    everything = tuple(range(len(args)))
    expected = jax.jit(jax.grad(f, everything))(*args)
    assert_same(traced.gradients, expected)
    assert_same(graph.grad(f, everything)(*args), expected)
    assert traced[traced.output].value == f(*args)
    assert traced.cost.ratio <= 12  # whatever the function: atan2 is the dearest
    assert str(traced)


def test_every_function_equals_jax_grad_in_one_program():
    """Compiled together, as tracing each operation by itself compiles each operation by itself."""
    functions = {name: case for name, case in FUNCTIONS.items() if name != "cond"}

    @jax.jit
    def gradients(arguments):
        for name, (f, _) in functions.items():
            args = arguments[name]
            of = [grad(f, tuple(range(len(args)))) for grad in (graph.grad, jax.grad)]
            arguments[name] = [gradient(*args) for gradient in of]
        return arguments

    arguments = {name: jax.tree.map(jnp.asarray, args) for name, (_, args) in functions.items()}
    for name, (got, expected) in gradients(arguments).items():
        assert_same(got, expected, name=name)


def test_there_are_enough_of_them():
    assert len(FUNCTIONS) >= 60


def by_shapes(measure, f, *args):
    """A measure of f's recording for arguments that have shapes but no values: nothing compiles."""
    said = []

    def note(*args):
        said.append(measure(graph.reverse.trace_arguments(f, args).recording))

    jax.eval_shape(note, *args)
    return said[0]


def test_every_rule_is_tried():
    used = set()
    for name, (f, args) in FUNCTIONS.items():
        if name != "cond":  # whose branch depends on numbers
            used |= by_shapes(lambda recording: {s.primitive for s in recording.steps}, f, *args)
    newer = {"log2", "one_minus_square", "polynomial", "copy"}  # than the oldest jax supported
    assert set(rules.RULES) - used <= newer


def test_a_rule_that_is_wrong_by_a_thousandth_is_noticed(monkeypatch):
    wrong = rules.of_slopes(rules.sin, lambda y, a: 1.001 * rules.cos(a))
    monkeypatch.setitem(rules.RULES, "sin", wrong)
    with pytest.raises(AssertionError):
        test_equals_jax_grad("the lecture's")


def expressions():
    """Random expressions in x and z, as text."""
    leaves = st.sampled_from(["x", "z", "2", "0.5", "3"])
    unary = st.sampled_from(["exp", "sin", "cos", "tanh", "atan", "sigmoid", "erf", "abs", "-"])

    def grown(inner):
        return st.one_of(
            st.builds("{}({})".format, unary, inner),
            st.builds("({} {} {})".format, inner, st.sampled_from(["+", "-", "*", "/"]), inner),
            st.builds("({})**{}".format, inner, st.sampled_from(["2", "3", "-1"])),
            st.builds("max({}, {})".format, inner, inner),
            st.builds("log(1 + ({})**2)".format, inner),
        )

    return st.recursive(leaves, grown, max_leaves=12)


def check_an_expression(text, x, z):
    try:
        expression = parse(text)
        assume(expression.names)
        f = expression.function()
        point = [jnp.asarray({"x": x, "z": z}[name]) for name in expression.names]
        traced = graph.trace(f, *point)
    except (ExpressionError, graph.DomainError):  # 1/0, exp(exp(exp(3)))
        assume(False)
    sizes = [np.max(np.abs(p.value)) for node in traced.nodes for p in node.contributions]
    scale = max([1.0, *map(float, sizes)])
    assume(scale < 1e6)
    assert_same(traced.gradients, jax.grad(f, range(len(point)))(*point), scale)


some = given(expressions(), st.floats(0.2, 2), st.floats(-2, -0.2))
test_random_expressions_equal_jax_grad = settings(max_examples=10)(some(check_an_expression))
test_many_random_expressions_equal_jax_grad = pytest.mark.slow(
    settings(max_examples=200)(some(check_an_expression))
)


@pytest.mark.parametrize(
    "head",
    [
        pytest.param(head, marks=() if head == "softmax_cross_entropy" else pytest.mark.slow)
        for head in HEADS
    ],
)
def test_backprop_as_a_graph_as_matrices_and_by_jax(head):
    """The full objective, with example weights and L2: three independent answers."""
    units = (activations.tanh, activations.elu)
    model = jaxbp.MLP((3, 4, 4, 2), units, HEADS[head], l2=0.1)
    params, batch = random_params(model, 1), random_batch(model, 5, 2)

    @jax.jit
    def all_three(params, batch):
        by_graph = graph.grad(partial(jaxbp.objective, model))(params, batch)
        return by_graph, *(of(model, params, batch)[1] for of in (jaxbp.backprop, jaxbp.autodiff))

    by_graph, by_hand, by_jax = all_three(params, batch)
    assert_same(by_graph, by_hand)
    assert_same(by_graph, by_jax)


def test_it_may_be_jitted_and_taken_again():
    f = lambda x: jnp.exp(x) * jnp.sin(x)  # noqa: E731
    seconds = jax.jit(lambda x: [grad(grad(f))(x) for grad in (graph.grad, jax.grad)])
    np.testing.assert_allclose(*seconds(1.0), rtol=1e-13)


def test_argnums_are_those_of_jax():
    f = lambda x, z: x**2 * z  # noqa: E731
    for argnums in (0, 1, -1, (1, 0)):
        assert_same(graph.grad(f, argnums)(2.0, 3.0), jax.grad(f, argnums)(2.0, 3.0))


# What the graph is


def test_what_is_computed_twice_is_one_node():
    traced = graph.trace(lecture, 2.0, 3.0)
    assert [node.operation for node in traced.nodes].count("x·z") == 1
    assert [node.operation for node in traced.nodes].count("log(x)") == 1
    a = traced["a"]
    assert a.parents == ("x", "z")
    assert [part.consumer for part in a.contributions] == ["b", "d", "f"]
    np.testing.assert_allclose(sum(part.value for part in a.contributions), a.adjoint)
    commuted = graph.trace(lambda x, z: x * z + jnp.sin(z * x), 2.0, 3.0)
    assert [node.operation for node in commuted.nodes] == ["", "", "x·z", "sin(a)", "a + b"]


def test_what_is_not_needed_is_left_out():
    traced = graph.trace(lambda x: (x * jnp.log(3.0), jnp.sin(x))[0], 2.0)
    assert [node.name for node in traced.nodes] == ["x", "y"]


def test_nodes_are_named():
    def f(x):
        s = graph.named(x**2, "s")
        return graph.named(jnp.sin(s) + s, "L")

    traced = graph.trace(f, 2.0)
    assert [node.name for node in traced.nodes] == ["x", "s", "a", "L"]
    assert traced["s"].adjoint_name == "gs"
    with pytest.raises(KeyError, match="'q': expected one of x, s, a, L"):
        traced["q"]
    with pytest.raises(TypeError, match="name: got 3"):
        graph.named(2.0, 3)


def test_a_composite_operation_computes_what_its_step_holds():
    def f(a, v, w):
        return jnp.sum(jnp.tanh(a @ v + w)) * graph.named(v, "u")[0]

    steps = graph.trace(f, A, V, W).traced.recording.steps
    composites = [step for step in steps if isinstance(step.params.get("primitive"), Composite)]
    assert {step.primitive for step in composites} == {"affine", "identity", "index"}
    for step in composites:
        operands = [steps[operand].value for operand in step.operands]
        params = {key: value for key, value in step.params.items() if key != "primitive"}
        np.testing.assert_allclose(step.params["primitive"].bind(*operands, **params), step.value)


def test_names_are_never_shared():
    def f(gx, x, a):
        return graph.named(jnp.sin(gx), "x") * x * jnp.cos(a)

    names = [node.name for node in graph.trace(f, 1.0, 2.0, 3.0).nodes]
    assert len(set(names)) == len(names)
    assert graph.trace(f, 1.0, 2.0, 3.0)["x"].adjoint_name == "∂x"  # gx is taken
    many = graph.trace(lambda x: sum(jnp.sin(x * k) ** 2 for k in range(2, 20)), 0.3)
    assert len({node.name for node in many.nodes}) == len(many.nodes)


def test_another_cotangent():
    traced = graph.trace(lambda v: jnp.sin(v) * 2, V)
    assert "graph.backward(cotangent)" in str(traced)
    with pytest.raises(ValueError, match=r"y has shape \(3,\): backward needs its adjoint"):
        _ = traced.gradients
    with pytest.raises(ValueError, match=r"cotangent: got shape \(\), expected \(3,\), y's"):
        traced.backward()
    cotangent = jnp.array([1.0, -2.0, 0.5])
    (expected,) = jax.vjp(lambda v: jnp.sin(v) * 2, V)[1](cotangent)
    assert_same(traced.backward(cotangent).gradients, (expected,))
    scalar = graph.trace(lecture, 2.0, 3.0)
    assert scalar.backward().gradients == scalar.gradients
    assert_same(scalar.backward(2).gradients, [2 * g for g in scalar.gradients])


def test_what_it_is_not_differentiated_by_stays_as_it_is():
    def f(x, parts, name):
        return sum(getattr(jnp, name)(part).sum() ** 2 for part in jnp.split(x, parts))

    np.testing.assert_allclose(graph.grad(f)(W, 2, "sin"), jax.grad(f)(W, 2, "sin"))


@pytest.mark.parametrize(
    "f",
    [lambda x: x if x > 0 else -x, math.sin],
)
def test_what_python_asks_for_is_refused_by_name(f):
    with pytest.raises(TypeError, match=r"f: asks in Python for the value .* jax\.lax\.cond or"):
        graph.grad(f)(0.5)


@pytest.mark.parametrize("f", [np.sin, lambda x: x * np.ones(3)[x.astype(int)]])
def test_what_numpy_computes_is_refused_by_name(f):
    with pytest.raises(TypeError, match=r"^f: computes in NumPy, .*: write jnp\.sin for np\.sin"):
        graph.grad(f)(0.5)


def test_whole_numbers_are_real_unless_in_arrays():
    traced = graph.trace(lambda x, v, k: x * v[k], 2, V, np.array(1))
    x, v, k = traced.gradients
    np.testing.assert_allclose(x, V[1])
    np.testing.assert_allclose(v, [0, 2, 0])
    assert k is None
    with pytest.raises(
        TypeError, match=r"args\[2\]: expected only real numbers, to differentiate by"
    ):
        graph.grad(lambda x, v, k: x * v[k], 2)(2, V, np.array(1))


def test_a_name_is_given_once():
    """Arguments keep theirs, numbers stay numbers, and two names are two nodes."""
    swapped = graph.trace(lambda x, z: graph.named(x, "z") * z, 2.0, 3.0)
    assert [(node.name, node.operation) for node in swapped.nodes] == [
        ("x", ""),
        ("z", ""),
        ("z_2", "x"),
        ("y", "z_2·z"),
    ]
    twice = graph.trace(parse("b = x*z; c = x*z; b*c").function(), 2.0, 3.0)
    assert [node.operation for node in twice.nodes[2:]] == ["x·z", "b", "b·c"]
    constant = graph.trace(parse("k = 1; 1/x + k*x").function(), 2.0)
    assert [node.operation for node in constant.nodes] == ["", "", "1/x", "k·x", "a + b"]
    again = graph.trace(lambda x: graph.named(jnp.sin(x), "a", adjoint="δ") * again_of(x), 2.0)
    assert len({node.adjoint_name for node in again.nodes}) == len(again.nodes)
    called = graph.trace(lambda tree: tree[0] * tree[1], (2.0, 3.0), names=("w⁽¹⁾", "b⁽¹⁾"))
    assert called["y"].operation == "w⁽¹⁾·b⁽¹⁾"
    with pytest.raises(ValueError, match="names: got 1, expected 2, one for each leaf"):
        graph.trace(lambda x, z: x * z, 2.0, 3.0, names=["x"])
    with pytest.raises(TypeError, match=r"names: got \(1, 'b'\), expected text"):
        graph.trace(lambda x, z: x * z, 2.0, 3.0, names=(1, "b"))
    for adjoint in (3, "a\nb"):
        with pytest.raises(TypeError, match="adjoint: got"):
            graph.named(2.0, "a", adjoint=adjoint)


def again_of(x):
    return graph.named(jnp.cos(x), "b", adjoint="δ")


# The text and the pictures

TEXT = """\
forward
x = 2
z = 3
a = x·z       = 6
b = log(x)    = 0.693147
c = sin(b)    = 0.638961
d = exp(a)    = 403.429
e = a/b       = 8.65617
f = c/a       = 0.106494
y = d + e + f = 412.191

backward
gy = 1
gf = gy                           = 1
ge = gy                           = 1
gd = gy                           = 1
gc = gf·(1/a)                     = 0.166667
gb = gc·cos(b) + ge·(-a/b²)       = -12.36
ga = gd·d + ge·(1/b) + gf·(-c/a²) = 404.854
gx = ga·z + gb·(1/x)              = 1208.38
gz = ga·x                         = 809.707

8 operations forward, 23 backward, 2.9 times as many; central differences: 2·2·8 = 32; in float64"""
BOARD = "a = x*z; b = log(x); c = sin(b); d = exp(a); e = a/b; f = c/a; d + e + f"


@pytest.mark.parametrize("columns", ["40", "100"])
def test_the_text_is_the_lecturers_in_any_terminal(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", columns)
    assert str(graph.trace(parse(BOARD).function(), 2, 3)) == TEXT


@pytest.mark.parametrize("width", [24, 40, 60])
def test_the_text_fits_the_width(width):
    lines = graph.trace(lecture, 2.0, 3.0).text(width).splitlines()
    assert max(map(len, lines)) <= width
    text = " ".join(" ".join(lines).split())
    assert "ga = gb·b + gd·(1/c) + gf·(-e/a²) = 404.854" in text


def test_in_an_interpreter_and_a_notebook():
    traced = graph.trace(lecture, 2.0, 3.0)
    assert repr(traced) == "<Graph of y by x, z, 9 nodes>"
    assert "<td>x·z</td><td>6</td>" in traced._repr_html_()


def test_vectors_and_matrices_in_the_text():
    text = graph.trace(lambda w, x, b: jnp.sum(jnp.tanh(w @ x + b) ** 2), A, V, W).text(120)
    for line in (
        "a = w·x + b = [1.86 -1.17]",
        "gc = gd ⊙ 2·c",
        "ga = gc ⊙ (1 - c²)",
        "gw = ga·xᵀ",
        "gx = wᵀ·ga",
        "gb = ga ",
    ):
        assert line in text, text
    assert "64×8, norm" in str(graph.trace(jnp.sum, np.ones((64, 8))))


@pytest.mark.parametrize(
    ("f", "args", "formulas"),
    thinned(
        [
            (lambda a, b: jnp.sum(a * b.T), (A, A.T), ["c = bᵀ", "gd ⊙ c", "gb = gcᵀ"]),
            (lambda a, b: jnp.einsum("ij,ij->", a, b), (A, A), ["gy·b", "a·gy"]),
            (lambda v, a: jnp.sum(jnp.tensordot(v, a, 0)), (W, A), ["Σ v·a (a,bc→abc)"]),
            (lambda v, w: jnp.sum(jnp.tensordot(v, w, 0)), (V, W), ["v·wᵀ", "ga·w", "gaᵀ·v"]),
            (lambda v: jnp.sum(v[:, None] * A.T), (V,), ["gv = reshape(gb)", "gb = sum(gc ⊙ a)"]),
            (lambda v: jnp.sum(jnp.stack([v, v]) * jnp.broadcast_to(v, (2, 3))), (V,), ["axis=0)"]),
            (lambda x: x * 1.0000001, (2.0,), ["x·1.0000001"]),
            (lambda x: x - 0.9999999, (2.0,), ["x - 0.9999999"]),
            (lambda x: x.reshape(()), (np.ones((1, 1)),), ["reshape(x, a number)"]),
            (lambda x: x % 0.7, (-1.5,), [" ∧ ", " ≠ "]),
        ],
        every=2,
    ),
)
def test_formulas_are_true(f, args, formulas):
    text = str(graph.trace(f, *args))
    for formula in formulas:
        assert formula in text, text


def test_mermaid_and_dot():
    traced = graph.trace(lambda x, z: x / z, 1.0, 2.0)
    assert traced.to_mermaid().splitlines() == [
        "flowchart TB",
        '  n0["x = 1<br>gx = 0.5"]',
        '  n1["z = 2<br>gz = -0.25"]',
        '  n2["y = x/z = 0.5<br>gy = 1"]',
        '  n0 -->|"1/z"| n2',
        '  n1 -->|"-x/z²"| n2',
    ]
    dot = traced.to_dot()
    assert 'n2 [label="y = x/z = 0.5\\ngy = 1"];' in dot
    assert 'n1 -> n2 [label="-x/z²"];' in dot
    quoted = graph.trace(lambda x: graph.named(x * 2, 'a"<b>\\') + 1, 1.0)
    assert 'a\\"<b>\\\\' in quoted.to_dot()
    assert "a#34;#60;b#62;" in quoted.to_mermaid()


def test_the_page_for_a_browser_says_each_step():
    """The frames that test_page steps through in a real browser."""
    nodes = graph.trace(lecture, 2.0, 3.0).nodes
    edges = edges_of(nodes)
    forward = [frame.says for frame in web.forward_frames(nodes, edges)]
    backward = [frame.says for frame in web.backward_frames(nodes, edges)]
    assert forward[:3] == [("x = 2",), ("z = 3",), ("a = x·z", "= 2·3", "= 6")]
    assert len(forward) + len(backward) == 22
    (first, *_, last) = [says for says in backward if says[0].startswith("ga")]
    local = "local derivative ∂b/∂a = b = 403.429"
    assert first == ("ga = gb·b", "= 403.429", local, "ga = 403.429, so far")
    assert last[:2] == ("ga += gf·(-e/a²)", "= -0.0177489")
    assert last[-1] == "ga = 404.854"


def test_few_edges_cross_and_boxes_of_a_layer_are_apart():
    """Two inputs, each into the far one of two nodes: placed as given, their edges cross."""
    crossed = layout([60.0] * 5, [(0, 3), (1, 2), (2, 4), (3, 4)])
    (left, _), (right, _) = crossed.centres[:2]
    (below_right, _), (below_left, _) = crossed.centres[2:4]
    assert (left < right) == (below_left < below_right)
    assert abs(left - right) >= 80 <= abs(below_left - below_right)


def test_crossings_are_counted_as_each_pair_of_edges_says():
    rng = np.random.default_rng(0)
    places = dict(enumerate(rng.integers(0, 6, 20).astype(float)))  # with equal ones
    below = {upper: list(rng.integers(10, 20, 4)) for upper in range(10)}
    edges = [(places[upper], places[lower]) for upper in below for lower in below[upper]]
    crossing = sum((a - c) * (b - d) < 0 for (a, b), (c, d) in combinations(edges, 2))
    assert count_crossings([list(below)], places, below) == crossing > 0


def test_a_page_is_written_once_and_names_are_text_in_it(tmp_path):
    path, name = tmp_path / "page.html", "</script><script>document.title='broken'</script>&\"'"
    path.write_text("mine")
    traced = graph.trace(lambda x: graph.named(x * x, name) + 1, 2.0)
    with pytest.raises(FileExistsError):
        traced.to_html(path)
    assert path.read_text() == "mine"
    traced.to_html(path, title=name, overwrite=True)
    page = path.read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert f"<title>{escape(name)}</title>" in page
    assert "<script>document" not in page


def test_operations_backward_are_a_small_multiple_of_those_forward():
    """O(W) where numerical differentiation is O(W²), as two of the lectures say."""
    costs = []
    for width in (8, 16):
        model = jaxbp.MLP((width, width, 1), activations.tanh, HEADS["linear_half_squared_error"])
        args = random_params(model, 0), random_batch(model, 4, 0)
        costs.append(by_shapes(cost_of, partial(jaxbp.objective, model), *args))
    assert all(1 < cost.ratio < 2.2 for cost in costs)
    for small, large in pairwise(costs):
        weights = large.inputs / small.inputs
        assert large.backward / small.backward == pytest.approx(weights, rel=0.4)
        assert large.differences / small.differences > 0.6 * weights**2
    cost = graph.trace(lambda v: v @ v, V).cost
    assert (cost.forward, cost.backward) == (5, 9)  # 3 products, 2 sums; 2·3 and 3


# What is wrong is explained at the node where it happens


@pytest.mark.parametrize(
    ("f", "args", "message"),
    [
        (lambda x: jnp.log(x) + 1, (-2,), "a = log(x) is nan for x = -2: log needs a positive"),
        (lambda x: x * jnp.log(x), (0,), "a = log(x) is -inf for x = 0: log needs a positive"),
        (lambda x, z: 1 / (x - z), (2, 2), "y = 1/a is inf for a = 0: the denominator must not"),
        (jnp.exp, (1e4,), "y = exp(x) is inf for x = 10000: it is more than float64"),
        (lambda x: x**0.5, (-1,), "y = x^0.5 is nan for x = -1: a negative base needs a whole"),
        (lambda x: x**-3, (0,), "y = x⁻³ is inf for x = 0: 0 needs a positive exponent"),
        (lambda x: x**300, (1e4,), "y = x³⁰⁰ is inf for x = 10000: it is more than float64 holds"),
        (lambda v: jnp.sum(jnp.sqrt(v)), (V,), "a = √(v) is nan at [1] for v = -0.4: √ needs a"),
        (jnp.arcsin, (2,), "is nan for x = 2: asin needs a number from -1 to 1"),
        (lambda x: x + 1, (np.nan,), "x: got nan, expected finite numbers"),
        (lambda x: x + np.nan, (1,), "a constant: got nan, expected finite numbers"),
        (lambda x: x / 0.0, (1,), "y = x/0 is inf for x = 1: the denominator must not be 0"),
        (
            lambda x: jnp.where(x < 0, jnp.log(x), np.inf),
            (-1,),
            "log(x) is nan for x = -1: log needs a positive number",
        ),
        (
            lambda v: jnp.sum(jnp.where(v < 0, jnp.log(v), 1 / (v - v))),
            (-(V**2),),
            "log(v) is nan at [0] for v = -0.09: log needs a positive number",
        ),
    ],
)
def test_outside_its_domain(f, args, message):
    with pytest.raises(graph.DomainError) as caught:
        graph.trace(f, *args)
    assert message in str(caught.value)


def test_a_value_outside_the_domain_that_is_not_used_is_no_error():
    safe = lambda x: jnp.where(x > 0, jnp.log(x), x)  # noqa: E731
    assert_same(graph.trace(safe, -2.0).gradients, (jnp.asarray(1.0),))


@pytest.mark.parametrize(
    ("f", "at", "note", "gradient"),
    [
        (jnp.abs, 0.0, "y = |x| has a kink at 0; its slope there is taken to be 1", 1.0),
        (lambda x: jnp.maximum(x, 0), 0.0, "y = max(x, 0) has a kink where both are equal", 0.5),
        (jnp.max, np.ones(2), "y = max(a) has equal entries; they share", 0.5),
        (lambda x: lax.clamp(0.0, x, 1.0), 1.0, "clamp(0, x, 1) has a kink at its bounds", 0.0),
        (
            lambda v: jnp.sort(v)[1],
            np.ones(2),
            "the derivatives of sort(v) are JAX's",
            np.arange(2),
        ),
        (jnp.floor, 1.5, "y = floor(x) is made of steps: its slope is 0", 0.0),
        (jnp.sqrt, 0.0, "y = √(x) has no finite slope at this x", np.inf),
        (
            lambda x: jnp.where(x > 0, 1.0, 2.0),
            1.0,
            "depends only on integers or booleans",
            0,
        ),
    ],
)
def test_less_than_smooth(f, at, note, gradient):
    traced = graph.trace(f, at)
    assert any(note in line for line in traced.notes)
    assert note.split()[0] in str(traced)
    assert np.all(traced.gradients[0] == gradient)
    assert not graph.trace(lambda x: jnp.maximum(x, 0) + abs(x), 1.0).notes


def test_a_primitive_outside_the_table(monkeypatch):
    monkeypatch.setattr(rules, "RULES", dict(rules.RULES))
    monkeypatch.setattr(graph.reverse, "RULES", rules.RULES)
    monkeypatch.setattr(graph.nodes, "RULES", rules.RULES)
    monkeypatch.setattr(graph.recording, "RULES", rules.RULES)
    f = lambda v: jnp.sum(jnp.sort(v) * jnp.arange(3.0))  # noqa: E731
    assert graph.trace(f, V)["a"].rule == "jax"  # until there is a rule
    called = lambda x: jax.pure_callback(np.sin, jax.typeof(x), x)  # noqa: E731
    for attempt in (partial(graph.trace, called), graph.grad(called)):
        with pytest.raises(graph.NoRuleError) as caught:
            attempt(jnp.asarray(0.5))
        said = str(caught.value)
        assert said.startswith("pure_callback: no derivative rule for this primitive (float64[]")
        assert "jaxbp.graph.define_rule('pure_callback', pull=lambda i, gy, y, a, **par" in said
    graph.define_rule("sort", pull=lambda i, gy, y, a, **params: gy[jnp.argsort(jnp.argsort(a))])
    assert_same(graph.grad(f)(V), jax.grad(f)(jnp.asarray(V)))
    assert "sort(v)" in str(graph.trace(f, V))
    assert graph.trace(f, V)["a"].rule == ""
    slope = lambda y, a: jax.scipy.special.i0e(a) - y * (jnp.sign(a) + 1 / a)  # noqa: E731
    graph.define_rule("bessel_i1e", slope)
    traced = graph.trace(lax.bessel_i1e, 2.0)
    np.testing.assert_allclose(traced.gradients[0], jax.grad(lax.bessel_i1e)(2.0), rtol=1e-6)
    assert "gx = gy·∂y/∂x" in str(traced)
    with pytest.raises(ValueError, match="sin: has a rule already; overwrite=True replaces it"):
        graph.define_rule("sin", slope)
    graph.define_rule("sin", lambda y, a: rules.cos(a), overwrite=True)
    graph.define_rule("sort", pull=lambda i, gy, y, a, **_: jnp.sum(gy), overwrite=True)
    with pytest.raises(ValueError, match=r"sort: its rule gives \(\), expected \(3,\)"):
        graph.grad(f)(V)
    graph.define_rule("igamma", slope)
    with pytest.raises(ValueError, match="igamma: got 1 slopes, expected 2, one for each operand"):
        graph.trace(lax.igamma, 2.0, 3.0)
    with pytest.raises(TypeError, match="notation: got 'lu'"):
        graph.define_rule("lu", slope, notation="lu")
    with pytest.raises(TypeError, match="lu: expected a function"):
        graph.define_rule("lu")
    with pytest.raises(TypeError, match="primitive: got <"):
        graph.define_rule(jnp.sin, slope)


@pytest.mark.parametrize(
    ("f", "args", "message"),
    [
        (3, (1.0,), "f: got int, expected a function"),
        (jnp.sin, (), "args: got none, expected the arguments of f"),
        (lambda x: (x, x), (1.0,), "f: returned tuple, expected one array"),
        (lambda x: "y", (1.0,), "f: returned str, expected one array"),
        (jnp.argmax, (V,), "y = argmax(...) is int64: whole numbers have no derivative"),
        (lambda x: x > 0, (1.0,), "y = gt(...) is bool: truth values have no derivative"),
        (lambda x: x, ("two",), "x: got str, expected numbers"),
        (lambda x: x, (1j,), "x: got complex128, expected real numbers"),
        (lambda x: x * 1j, (1.0,), "is complex128: complex numbers have no derivative"),
        (lambda x: x, (10**400,), "x: got int, expected numbers"),
    ],
)
def test_what_has_no_derivative(f, args, message):
    if args:
        with pytest.raises(TypeError):
            graph.grad(f)(*args)
    with pytest.raises((TypeError, ValueError)) as caught:
        graph.trace(f, *args)
    assert message in str(caught.value)


def test_a_graph_shows_numbers():
    with pytest.raises(TypeError, match="x: got a traced value, expected numbers"):
        jax.jit(lambda x: graph.trace(jnp.sin, x).gradients)(1.0)
    branching = lambda x: lax.cond(x > 0, jnp.sin, jnp.cos, x)  # noqa: E731
    np.testing.assert_allclose(jax.jit(graph.grad(branching))(1.0), np.cos(1))
    looping = lambda x: lax.while_loop(lambda x: x < 10, lambda x: 2 * x, x)  # noqa: E731
    message = "while: got a traced condition, expected a number"
    with pytest.raises(jax.errors.ConcretizationTypeError, match=message):
        jax.jit(graph.grad(looping))(1.0)
    with pytest.raises(TypeError, match=r"f: returned float64\[3\], expected one real number"):
        graph.grad(jnp.sin)(V)
