"""Closed steps: custom derivative rules are followed, and JAX differentiates what has no rule."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from combinations import thinned
from jax import lax
from test_graph import A, V, assert_same

from jaxbp import graph

pytestmark = pytest.mark.usefixtures("x64")

S = np.array([[2.0, 0.3, 0.1], [0.3, 1.5, -0.2], [0.1, -0.2, 3.0]])
T = np.array([0.4, 0.4, -0.3])  # with a tie

# Functions whose rule contradicts them, so that it shows whether it is followed


@jax.custom_jvp
def rounded(x):
    return jnp.round(x)


rounded.defjvp(lambda p, t: (jnp.round(p[0]), t[0]))  # a straight-through estimator


@jax.custom_vjp
def clipped(x):
    """Itself, with a gradient that is clipped: not linear in gy."""
    return x


clipped.defvjp(lambda x: (x, None), lambda _, gy: (jnp.clip(gy, -1, 1),))


@jax.custom_vjp
def both(x, z):
    """Two outputs whose adjoints meet in a product."""
    return x * z, jnp.sin(x)


both.defvjp(
    lambda x, z: (both(x, z), (x, z)),
    lambda kept, g: (g[0] * g[1] * kept[1], jnp.tanh(g[0] + g[1])),
)


@jax.custom_jvp
def two(x, z):
    return x * z, x + z


two.defjvp(lambda p, t: (two(*p), (5 * t[0], 3 * t[1] * p[0])))


@jax.custom_vjp
def another_value(x):
    return x


another_value.defvjp(lambda x: (x + 1, x), lambda x, gy: (gy * x,))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def sevenfold(f, x):
    return f(x)


sevenfold.defvjp(lambda f, x: (f(x), x), lambda f, x, gy: (7 * gy,))


@jax.custom_vjp
def with_an_index(x):
    return 2 * x, jnp.argmax(x)


with_an_index.defvjp(lambda x: (with_an_index(x), None), lambda _, g: (11 * g[0],))


@jax.custom_vjp
def of_a_tree(tree):
    return {"product": tree["x"] * tree["z"]}


of_a_tree.defvjp(
    lambda tree: (of_a_tree(tree), tree),
    lambda tree, g: ({"x": 100 * g["product"], "z": g["product"]},),
)


def capturing(x):
    """A rule that is made anew, around a value that varies."""

    @jax.custom_jvp
    def tripled(z):
        return 3 * z * x

    tripled.defjvp(lambda p, t: (3 * p[0], 9 * t[0]))
    return tripled(2.0 * x) * x


def bisected(g, _):
    def halve(_, ends):
        middle = (ends[0] + ends[1]) / 2
        return lax.cond(g(middle) > 0, lambda: (ends[0], middle), lambda: (middle, ends[1]))

    return lax.fori_loop(0, 40, halve, (0.0, 10.0))[0]


def cube_root(a):
    return lax.custom_root(lambda x: x**3 - a, 1.0, bisected, lambda g, y: y / g(1.0))


def used_twice(v):
    c = clipped(v)
    return jnp.sum(0.8 * c + 0.7 * c)


def both_used(x, z):
    a, b = both(x, z)
    return a * b + a


CUSTOM = {
    "a straight-through estimator": (lambda x: rounded(x) * x, (1.3,)),
    "a clipped gradient": (lambda v: jnp.sum(clipped(3 * v) ** 2 + 5 * clipped(3 * v)), (V,)),
    "each call is one": (lambda v: jnp.sum(0.8 * clipped(v) + 0.7 * clipped(v)), (V,)),
    "one call used twice": (used_twice, (V,)),
    "outputs together": (both_used, (0.3, 0.7)),
    "one of two outputs": (lambda x, z: both(x, z)[1] ** 2, (0.3, 0.7)),
    "two outputs": (lambda x, z: jnp.sin(two(x, z)[0]) * two(x, z)[1], (0.4, 0.9)),
    "the rule's value": (lambda x: another_value(x) ** 2, (0.3,)),
    "an argument that is a function": (lambda x: sevenfold(jnp.sin, x) * x, (0.4,)),
    "a whole number as well": (lambda v: v[with_an_index(v)[1]] * with_an_index(v)[0][0], (V,)),
    "a tree": (lambda x, z: of_a_tree({"x": x, "z": z})["product"] * x, (0.3, 0.7)),
    "a closure": (capturing, (0.3,)),
    "in vmap": (lambda v: jnp.sum(jax.vmap(lambda x: clipped(3 * x) * rounded(x))(v)), (V,)),
    "in scan": (lambda v: lax.scan(lambda c, x: (clipped(c * x + 1), 0.0), v[0], v)[0], (V,)),
    "in cond": (lambda x: lax.cond(x > 0, lambda x: clipped(5 * x) * x, jnp.sin, x), (0.4,)),
    "in checkpoint": (jax.checkpoint(lambda x: clipped(5 * x) * rounded(x)), (0.4,)),
    "in a gradient": (lambda x: jax.vjp(clipped, x * 3)[1](x)[0] * x, (0.4,)),
    "implicit differentiation": (cube_root, (8.0,)),
    "bits with a rule": (lambda x: jnp.ldexp(x, 2) * x, (1.5,)),
    **{
        f"{f.__name__} at {x}": (lambda x, f=f: 3 * f(x), (x,))
        for f in (jax.nn.relu, jax.nn.relu6, jax.nn.softplus, jax.nn.silu)
        for x in (-0.0, 0.0, 6.0)
    },
}

#: a function of each kind of primitive without a rule of ours, and of conventions that are JAX's
OTHERS = {
    "the slope of |x| at 0": (lambda x: 3 * jnp.abs(x), (0.0,)),
    "0ᵇ": (lambda x, z: x**z, (0.0, 1.0)),
    "a⁰": (lambda x: x ** jnp.arange(3), (0.0,)),
    "nothing passes": (lambda x: jnp.floor(jnp.sqrt(x)) * x, (0.0,)),
    "add_any": (jax.hessian(lambda u: jnp.prod(u) * (u @ u)), (V,)),
    "sort": (lambda v: jnp.sort(v) ** 2, (T,)),
    "median": (jnp.median, (T,)),
    "top_k": (lambda v: lax.top_k(v, 2)[0] ** 2, (T,)),
    "argsort and take": (lambda v: v[jnp.argsort(v)] * v, (V,)),
    "largest of three": (lambda v: jnp.max(v) + jnp.min(v), (np.ones(3),)),
    "scatter": (lambda v: v.at[1].set(v[0] * v[2]).at[2].add(3.0).at[0].max(v[1]) ** 2, (V,)),
    "segments": (lambda v: jax.ops.segment_sum(v, np.array([0, 0, 1]), 2) ** 2, (V,)),
    "tile": (lambda v: jnp.tile(v, 2), (V,)),
    "dynamic_update_slice": (lambda v: lax.dynamic_update_slice(v, v[:1] ** 2, (1,)) ** 2, (V,)),
    "cumprod": (jnp.cumprod, (np.array([2.0, 0.0, 3.0]),)),
    "cummax": (lax.cummax, (T,)),
    "convolution": (lambda v: jnp.convolve(v, v), (V,)),
    "pooling": (
        lambda a: lax.reduce_window(a, -jnp.inf, lax.max, (2, 2), (1, 1), "VALID"),
        (A,),
    ),
    "product over no axes": (lambda v: jnp.prod(v, axis=()), (np.array([2.0, 3.0, 5.0]),)),
    "cholesky": (jnp.linalg.cholesky, (S,)),
    "solve": (lambda s: jnp.linalg.solve(s, V), (S,)),
    "log det": (lambda s: jnp.linalg.slogdet(s)[1], (S,)),
    "eigenvalues": (lambda s: jnp.linalg.eigh(s)[0] ** 2, (S,)),
    "singular values": (lambda s: jnp.linalg.svd(s)[1] ** 2, (S,)),
    "igamma": (lambda x: lax.igamma(2.0, x), (0.7,)),
    "fft": (lambda v: jnp.abs(jnp.fft.fft(v)) ** 3, (V,)),
    "complex inside": (lambda x: jnp.real(jnp.exp(1j * x) * jnp.conj(x + 2j)), (0.4,)),
    "complex sums": (lambda v: jnp.abs(jnp.sum(v * jnp.exp(1j * v)) + 1j + v[0]), (V,)),
    "exponential integral": (lambda v: jax.scipy.special.expi(v * v), (V,)),
    "print": (lambda x: jax.debug.print("") or x**2, (0.3,)),
    "callback of a constant": (
        lambda x: x * jax.pure_callback(np.sin, jax.typeof(jnp.zeros(())), 2.0),
        (0.3,),
    ),
    "a sign by its bit": (lambda x: jnp.copysign(x, -2 * x) * x, (0.3,)),
}
ALL = CUSTOM | OTHERS
#: what depends on numbers, by a while
EAGER = {"exponential integral", "in cond", "implicit differentiation"}


def summed(f):
    """A function of one number: the sum of f's entries with unequal weights."""

    def weighted(*args):
        y = f(*args)
        return jnp.sum(y * jnp.cos(1.0 + jnp.arange(y.size)).reshape(y.shape))

    return weighted


@pytest.mark.slow
def test_custom_rules_and_jax_where_there_is_no_rule():
    """In one program, as compiling each operation by itself takes long."""

    @jax.jit
    def gradients(arguments):
        for name, args in arguments.items():
            f, every = summed(ALL[name][0]), tuple(range(len(args)))
            arguments[name] = [of(f, every)(*args) for of in (graph.grad, jax.grad)]
        return arguments

    chosen = {name: jax.tree.map(jnp.asarray, ALL[name][1]) for name in ALL.keys() - EAGER}
    for name, (got, expected) in gradients(chosen).items():
        assert np.all(np.isfinite(jax.tree.leaves(expected)[0])), name
        assert_same(got, expected, scale=100.0, name=name)


def check(f, args):
    args = jax.tree.map(jnp.asarray, args)
    every = tuple(range(len(args)))
    expected = jax.grad(f, every)(*args)
    assert_same(graph.grad(f, every)(*args), expected)
    traced = graph.trace(f, *args)
    assert_same(traced.gradients, expected)
    return traced


TRACED = ("implicit differentiation", "outputs together", "the rule's value", "in cond")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in TRACED else pytest.mark.slow) for name in ALL],
)
def test_a_trace_has_them_too(name):
    f, args = ALL[name]
    check(summed(f), args)


def test_a_while_under_vmap():
    """Rows go on while their own condition holds."""
    double = lambda x: lax.while_loop(lambda c: c < 10.0, lambda c: c * 2.0, x)  # noqa: E731
    f = lambda v: jnp.sum(jax.vmap(double)(v) ** 2)  # noqa: E731
    v = jnp.array([1.0, 3.0, 20.0])
    forward = jax.jacfwd(f)(v)  # jax.grad has none
    np.testing.assert_allclose(forward, [2 * 16 * 16, 2 * 12 * 4, 40])
    assert_same(graph.grad(f)(v), forward)
    assert_same(graph.trace(f, v).gradients, (forward,))


@pytest.mark.slow
def test_second_derivatives_are_those_of_the_rules():
    """A rule's values are differentiated, not those of the function it stands for."""
    for f, x in (
        (lambda x: rounded(x) * x, 1.3),
        (lambda x: sevenfold(jnp.sin, x) ** 2, 0.4),
        (jax.nn.softplus, 0.0),
        (lambda x: jnp.real(jnp.exp(1j * x) * (x + 2j) + 1j * x + 1j), 0.4),
    ):
        assert_same(graph.grad(graph.grad(f))(x), jax.grad(jax.grad(f))(x))


def test_an_argument_that_is_not_asked_for_is_a_constant():
    called = lambda x, k: x * jax.pure_callback(np.sin, jax.typeof(k), k)  # noqa: E731
    x, k = jnp.asarray(2.0), jnp.asarray(0.5)
    np.testing.assert_allclose(graph.grad(called)(x, k), np.sin(0.5))
    with pytest.raises(graph.NoRuleError, match="pure_callback"):
        graph.grad(called, 1)(x, k)


def test_what_jax_differentiates_by_a_flag_to_come():
    jax.config.update("jax_custom_vjp3", True)
    try:
        x = jnp.asarray(0.4)
        expected = jax.grad(lambda x: clipped(5 * x) * x)(x)
        assert_same(graph.grad(lambda x: clipped(5 * x) * x)(x), expected)
        assert graph.trace(lambda x: clipped(5 * x) * x, x)["b"].operation == "clipped(a)"
    finally:
        jax.config.update("jax_custom_vjp3", False)


# What is refused


@pytest.mark.parametrize(
    ("f", "error", "message"),
    [
        (
            lambda x: lax.bitcast_convert_type(lax.bitcast_convert_type(x, np.int64) + 1, float),
            graph.NoRuleError,
            "bitcast_convert_type: float64[] is made of the bits of a real number",
        ),
        (
            lambda x: x * lax.bitcast_convert_type(x, np.int64).astype(float),
            graph.NoRuleError,
            "convert_element_type: float64[] is made of the bits of a real number",
        ),
        (
            lambda x: jax.experimental.io_callback(np.sin, jax.typeof(x), x),
            graph.NoRuleError,
            "io_callback: no derivative rule for this primitive (float64[] -> float64[]), and none",
        ),
        (lambda x: x * 1j, TypeError, "complex128"),
    ],
)
def test_what_is_refused_by_name(f, error, message):
    for attempt in (graph.grad(f), partial(graph.trace, f)):
        with pytest.raises(error) as caught:
            attempt(jnp.asarray(0.3))
        assert message in str(caught.value)


# How they are written


@jax.custom_vjp
def cross_entropy(a, t):
    return jax.nn.logsumexp(a) - a @ t


def cross_entropy_and_error(a, t):
    return cross_entropy(a, t), (graph.named(jax.nn.softmax(a), "ŷ"), t)


cross_entropy.defvjp(cross_entropy_and_error, lambda kept, g: (g * (kept[0] - kept[1]), None))


@jax.custom_vjp
def sigmoid(a):
    return 1 / (1 + jnp.exp(-a))


sigmoid.defvjp(lambda a: (sigmoid(a),) * 2, lambda y, gy: (gy * y * (1 - y),))


@pytest.mark.parametrize(
    ("f", "args", "lines"),
    thinned(
        [
            (jax.nn.relu, (0.3,), ["y = relu(x) = 0.3", "gx = gy·[x > 0] = 1"]),
            (jax.nn.relu, (0.0,), ["y = relu(x) = 0", "gx = gy·[x > 0] = 0"]),
            (lambda v: jax.nn.relu(v) @ V, (V,), ["gv = gb ⊙ [v > 0]"]),
            (jax.nn.softplus, (0.3,), ["y = softplus(x) ", "gx = gy·softplus'(x) = 0.574443"]),
            (lambda x: jax.nn.softplus(x) + jax.nn.softplus(x), (0.3,), ["y = a + a "]),
            (sigmoid, (0.3,), ["y = sigmoid(a) ", "ga = gy·y·(1 - y) = 0.244458"]),
            (cross_entropy, (V, T), ["y = cross_entropy(a, t)", "ga = gy·(ŷ - t)", "gt = 0 "]),
            (lambda x: lax.igamma(2.0, x), (0.3,), ["y = igamma(2, x)", "gx = gy·∂y/∂x"]),
            (lambda v: jnp.sort(v) @ V, (V,), ["b = sort(v)", "gv = (sort'(v))ᵀ·gb"]),
            (lambda s: jnp.linalg.eigh(s)[0] @ V, (S,), ["= eigh(", ")[1]", "pull(g"]),
            (lambda x: jnp.real(1j * jnp.exp(1j * x)), (0.0,), ["= exp(", "= 1+0i", "(0+1i)·"]),
            (jnp.maximum, (1.0, 1.0), ["= gy·½ = 0.5"]),
            (lambda v: jnp.maximum(v, 0.4) @ V, (T,), ["gv = gb ⊙ ([v > 0.4] + ½·[v = 0.4])"]),
            (jnp.abs, (0.0,), ["gx = gy = 1"]),
            (lambda v: jnp.abs(v) @ V, (T - 0.4,), ["gb ⊙ ([v ≥ 0] - [v < 0])"]),
            (jnp.max, (T,), ["ga = gy·[a = y]/2"]),
            (lambda x, z: x**z, (0.0, 2.0), ["gz = 0 "]),
            (lambda v: jnp.sum(jax.grad(lambda u: u @ v)(np.ones(2)) ** 2), (V[:2],), ["gv = "]),
        ],
        every=4,
    ),
)
def test_formulas_are_those_computed(f, args, lines):
    text = str(check(f, args))
    for line in lines:
        assert line in text, text


def test_whose_derivative_it_is():
    def f(v):
        return jnp.sum(jax.nn.relu(jnp.sort(v)) ** 2)

    traced = graph.trace(f, V)
    assert [(node.operation, node.rule) for node in traced.nodes] == [
        ("", ""),
        ("sort(v)", "jax"),
        ("relu(a)", "custom"),
        ("b²", ""),
        ("sum(c)", ""),
    ]
    assert "max" in str(traced["b"].inside)
    assert traced["a"].inside is None


@pytest.mark.slow
def test_a_function_is_made_one_node_and_opened():
    def loss(a, t):
        return jax.nn.logsumexp(a) - a @ t

    def pull(gy, y, a, t):
        return gy * (graph.named(jax.nn.softmax(a), "ŷ") - t), None

    head = graph.operation(loss, notation="-Σ {1}·log(softmax({0}))", pull=pull)
    unit = graph.operation(jnp.tanh, notation="h", pull=lambda gy, y, a: gy * (1 - y**2))

    def network(w, x, t):
        a = graph.named(w @ unit(x), "a", adjoint="δ")
        return graph.named(head(a, t), "L")

    args = jnp.asarray(S), jnp.asarray(V), jnp.asarray([0.0, 1.0, 0.0])
    traced = graph.trace(network, *args)
    text = str(traced)
    for line in (
        "b = h(x)",
        "a = w·b ",
        "L = -Σ t·log(softmax(a)) = ",
        "δ  = gL·(ŷ - t) ",
        "gw = δ·bᵀ ",
        "gb = wᵀ·δ ",
        "gx = gb ⊙ (1 - b²) ",
    ):
        assert line in text, text
    plain = lambda w, x, t: loss(w @ jnp.tanh(x), jax.lax.stop_gradient(t))  # noqa: E731
    assert_same(traced.gradients, jax.grad(plain, (0, 1, 2))(*args))
    inside = traced.opened("L")
    assert inside.nodes[-1].adjoint == 1
    assert_same(inside.gradients[0], traced["a"].adjoint)
    assert "max(a)" in str(inside)
    with pytest.raises(ValueError, match="a = w·b: has nothing inside"):
        traced.opened("a")
    scaled = graph.trace(lambda x: jax.nn.softplus(x) * 3, 0.5).opened("a")
    assert (scaled.nodes[-1].operation, scaled.nodes[-1].adjoint) == ("logaddexp(x, 0)", 3)


@pytest.mark.parametrize(
    ("f", "counts"),
    [(jax.nn.relu, (1, 1)), (jax.nn.softplus, (1, 1)), (lambda x: jnp.maximum(x, 0.1), (1, 1))],
)
def test_operations_are_counted_as_a_person_would(f, counts):
    cost = graph.trace(f, 0.3).cost
    assert (cost.forward, cost.backward) == counts
