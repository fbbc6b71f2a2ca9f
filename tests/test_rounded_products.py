"""Rounded products: the transformation that makes them, and the checker told what a claim's are."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax

import jaxbp
from benchmarks.problems import random_batch, random_params
from jaxbp import activations, gradcheck, heads, taylor_test
from jaxbp.checking.rounded_products import (
    digits_multiplied,
    products_of,
    rounded,
    with_rounded_products,
)

HIGHEST = lax.Precision.HIGHEST
rng = np.random.default_rng(0)
X = rng.normal(size=(4, 4)).astype(np.float32)  # square: both operands of a product are alike
W = rng.normal(size=(4, 4)).astype(np.float32)

exact_products = pytest.mark.skipif(
    jax.default_backend() != "cpu", reason="of a device whose default products are exact"
)


# The transformation


def by_numpy(x, digits, toward_zero):
    """x with so many binary digits after the first, in whole numbers of its last place."""
    fraction, exponent = np.frexp(np.float64(x))
    scaled = fraction * 2 ** (digits + 1)
    return np.ldexp(np.trunc(scaled) if toward_zero else np.rint(scaled), exponent - digits - 1)


@given(
    number=st.floats(2**-100, 2**100, width=32),
    sign=st.sampled_from([1, -1]),
    digits=st.sampled_from([7, 10]),
    toward_zero=st.booleans(),
)
def test_a_number_is_rounded_to_its_digits(number, sign, digits, toward_zero):
    got = rounded(np.float32(sign * number), digits=digits, toward_zero=toward_zero)
    assert float(got) == by_numpy(sign * number, digits, toward_zero)


def test_ties_are_rounded_to_even():
    ties = np.float32([1 + 2**-11, 1 + 3 * 2**-11])
    np.testing.assert_array_equal(rounded(ties, digits=10), [1, 1 + 2**-9])


def cut(a, b):
    """A product written with its roundings."""
    operands = (lax.reduce_precision(each, 8, 10) for each in (a, b))
    return jnp.matmul(*operands, precision=HIGHEST)


def sines(dot, x, w):
    return jnp.sum(jnp.sin(dot(x, w)))


def with_rule(dot, wrap):
    """A function with a derivative rule of its own, in which there is a product, too."""

    def slopes(x, w):
        return dot(jnp.cos(dot(x, w)), w.T), dot(x.T, jnp.cos(dot(x, w)))

    function = wrap(partial(sines, dot))
    if wrap is jax.custom_vjp:
        function.defvjp(
            lambda x, w: (function(x, w), (x, w)),
            lambda residuals, cotangent: tuple(cotangent * s for s in slopes(*residuals)),
        )
    else:
        function.defjvp(
            lambda point, tangents: (
                function(*point),
                sum(jnp.sum(s * t) for s, t in zip(slopes(*point), tangents, strict=True)),
            )
        )
    return function


FUNCTIONS = {
    "jit": lambda dot: jax.jit(lambda x, w: jax.jit(dot)(dot(x, w), w)),
    "scan": lambda dot: lambda x, w: lax.scan(lambda c, _: (dot(c, w), c[0]), x, None, length=2),
    "loop": lambda dot: lambda x, w: lax.fori_loop(0, 2, lambda _, c: dot(c, w), x),
    "while": lambda dot: (
        lambda x, w: lax.while_loop(lambda c: c[0, 0] < 9, lambda c: dot(c, w) + c[0, 0] + 5, x)
    ),
    "cond": lambda dot: lambda x, w: lax.cond(x[0, 0] < 9, lambda: dot(x, w), lambda: x),
    "switch": lambda dot: lambda x, w: lax.switch(1, [lambda: x, lambda: dot(x, w)]),
    "vmap": lambda dot: lambda x, w: jax.vmap(dot, (None, 0))(x, jnp.stack([w, 2 * w])),
    "vmap of the other": jax.vmap,
    "custom_vjp": lambda dot: with_rule(dot, jax.custom_vjp),
    "its gradient": lambda dot: jax.grad(with_rule(dot, jax.custom_vjp), (0, 1)),
    "custom_jvp": lambda dot: with_rule(dot, jax.custom_jvp),
    "its slope": lambda dot: lambda x, w: jax.jvp(with_rule(dot, jax.custom_jvp), (x, w), (w, x)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_product_inside_is_rounded(name):
    """As in the function written with the roundings, at the same places."""
    function = FUNCTIONS[name]
    got = with_rounded_products(function(jnp.matmul), 10)(X, W)
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, 1e-5, 1e-6),
        got,
        function(cut)(X, W),
    )


def gradient_by_hand(x, w):
    return cut(jnp.cos(cut(x, w)), w.T)


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.checkpoint])
def test_a_gradient_is_rounded_as_a_device_does(wrap):
    """The gradient is taken first."""
    gradient = jax.grad(wrap(partial(sines, jnp.matmul)))
    np.testing.assert_allclose(
        jax.jit(with_rounded_products(gradient, 10))(X, W), gradient_by_hand(X, W), 1e-5
    )


def test_convolutions_are_products():
    convolve = partial(lax.conv, window_strides=(1, 1), padding="SAME")
    x, w = X[None, None], W[None, None]
    operands = (lax.reduce_precision(each, 8, 10) for each in (x, w))
    got = with_rounded_products(convolve, 10)(x, w)
    np.testing.assert_allclose(got, convolve(*operands, precision=HIGHEST), 1e-5)


def test_what_is_highest_or_not_float32_is_left_alone():
    exact = partial(jnp.matmul, precision="highest")
    np.testing.assert_array_equal(with_rounded_products(exact, 10)(X, W), exact(X, W))
    coarse = with_rounded_products(jnp.matmul, 10)
    for precision, same in (("highest", True), ("tensorfloat32", False), ("default", False)):
        with jax.default_matmul_precision(precision):
            assert np.array_equal(coarse(X, W), exact(X, W)) == same
    with jax.enable_x64(True):
        wide = X.astype(np.float64), W.astype(np.float64)
        np.testing.assert_array_equal(coarse(*wide), jnp.matmul(*wide))


@exact_products
def test_the_digits_of_products_are_found_by_multiplying():
    assert digits_multiplied() == digits_multiplied("high") == 23
    assert digits_multiplied("highest") == 23


# A claim of other products


MODEL = jaxbp.MLP((6, 5, 5, 3), activations.tanh, heads.softmax_cross_entropy)
PARAMS = random_params(MODEL, 0, np.float32)
BATCH = random_batch(MODEL, 16, 0, dtype=np.float32)


@jax.jit
def loss(params):
    return jaxbp.objective(MODEL, params, BATCH)


def by_hand(params):
    return jaxbp.backprop(MODEL, params, BATCH)[1]


def made_with(digits, **how):
    return jax.jit(with_rounded_products(by_hand, digits, **how))(PARAMS)


def scaled(grads, factor):
    """With one leaf off by a factor."""
    return (grads[0], grads[1]._replace(weight=factor * grads[1].weight), grads[2])


@pytest.mark.parametrize("toward_zero", [False, True])
@pytest.mark.slow
def test_a_gradient_of_tf32_is_right_once_that_is_said(toward_zero):
    grads = made_with(10, toward_zero=toward_zero)
    for exact in ("float32", "highest"):
        assert gradcheck(loss, PARAMS, grads=grads, precision=exact).verdict == "fail"
    report = gradcheck(loss, PARAMS, grads=grads, precision="tensorfloat32")
    assert report.ok
    assert report.threshold == 2**-10
    assert report.notes == (
        "grads is judged as made with a device's tensorfloat32 products, of 10 binary digits, "
        "not 23",
    )
    assert all(1e-3 < leaf.resolution < 1e-2 for leaf in report.leaves)
    for precision in ("float32", None, "tensorfloat32"):
        wrong = gradcheck(loss, PARAMS, grads=scaled(grads, 1.01), precision=precision)
        assert wrong.leaves[2].verdict == "fail"
    assert re.fullmatch(r"p.*: off by a factor of 1\.0\d+", wrong.diagnosis)


@exact_products
@pytest.mark.slow
def test_a_failing_gradient_that_rounding_may_explain_is_told_of_precision():
    hint = "if a GPU or TPU made it, precision= says how its products were rounded"
    grads = made_with(10)
    silent = gradcheck(loss, PARAMS, grads=grads)
    assert silent.verdict == "fail"
    assert hint in silent.notes
    assert hint not in gradcheck(loss, PARAMS, grads=scaled(grads, 2)).notes
    for precision in ("tensorfloat32", "highest"):
        told = gradcheck(loss, PARAMS, grads=scaled(grads, 1.01), precision=precision)
        assert hint not in told.notes
    without_products = gradcheck(lambda x: jnp.sum(jnp.sin(x)), X, grads=1.01 * np.cos(X))
    assert without_products.verdict == "fail"
    assert hint not in without_products.notes


@pytest.mark.parametrize("digits", [-1, 24, 10.0, "10"])
def test_digits_that_float32_has_not_are_refused(digits):
    with pytest.raises(ValueError, match=f"digits: got {digits!r}, expected a whole number from 0"):
        with_rounded_products(jnp.matmul, digits)


@pytest.mark.slow
def test_a_gradient_of_bfloat16_products_too():
    grads = made_with(7)
    assert gradcheck(loss, PARAMS, grads=grads, precision="tensorfloat32").verdict == "fail"
    assert gradcheck(loss, PARAMS, grads=grads, precision="bfloat16").verdict != "fail"
    wrong = gradcheck(loss, PARAMS, grads=scaled(grads, 2), precision="bfloat16")
    assert wrong.diagnosis == "params[1].weight: off by a factor of 2"


@pytest.mark.slow
def test_an_exact_gradient_is_right_whatever_is_said_of_its_products():
    exact = jax.jit(by_hand)(PARAMS)
    for precision in (None, "default", "high", "tensorfloat32", "bfloat16"):
        assert gradcheck(loss, PARAMS, grads=exact, precision=precision).ok


@pytest.mark.slow
def test_a_function_is_evaluated_here_whatever_is_said_of_its_products():
    """In float64, so nothing is allowed for; but a function that cannot, as a kernel, is judged by
    its values."""
    wrong = jax.jit(lambda params: scaled(by_hand(params), 1.001))
    assert gradcheck(loss, PARAMS, grads=wrong, precision="tensorfloat32").verdict == "fail"
    program = jax.jit(with_rounded_products(by_hand, 10)).lower(PARAMS).compile()

    def kernel(params):
        return program(jax.tree.map(np.asarray, params))

    assert gradcheck(loss, PARAMS, grads=kernel).verdict == "fail"
    assert gradcheck(loss, PARAMS, grads=kernel, precision="tensorfloat32").ok


def test_float64_has_no_rounded_products():
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: jnp.asarray(leaf, np.float64), PARAMS)
        grads = scaled(jax.jit(by_hand)(wide), 1 + 1e-5)
        report = gradcheck(loss, wide, grads=grads, precision="tensorfloat32")
    assert report.verdict == "fail"
    assert report.threshold == 1e-6


def test_what_has_no_products_is_held_to_float32s_threshold():
    def f(x):
        return jnp.sum(jnp.sin(x))

    for precision in (None, "tensorfloat32"):
        report = gradcheck(f, X, grads=1.0003 * np.cos(X), precision=precision)
        assert report.verdict == "fail"
        assert report.threshold == 1e-4


def test_an_f_without_a_gradient_says_that_rounding_is_unknown():
    @jax.custom_vjp
    def f(x):
        return jnp.sum(x**2)

    def backward(residual, cotangent):
        raise RuntimeError("no backward pass")

    f.defvjp(lambda x: (f(x), None), backward)
    report = gradcheck(f, X, grads=2 * X, precision="tensorfloat32")
    assert report.ok
    assert "how products round is unknown: RuntimeError: no backward pass" in report.notes


@pytest.mark.slow
def test_taylors_remainder_has_a_floor_of_rounded_products():
    grads = made_with(10)
    assert taylor_test(loss, grads, (PARAMS,), precision="float32").verdict == "fail"
    report = taylor_test(loss, grads, (PARAMS,), precision="tensorfloat32")
    assert report.ok
    assert report.notes == (str(products_of("tensorfloat32")),)
    assert report.notes[0] in str(report)
    wrong = jax.tree.map(lambda leaf: 1.1 * leaf, grads)
    assert taylor_test(loss, wrong, (PARAMS,), precision="tensorfloat32").verdict == "fail"


@pytest.mark.parametrize(
    "check", [gradcheck, lambda f, x, **how: taylor_test(f, None, (x,), **how)]
)
def test_a_precision_of_another_name_is_refused(check):
    message = (
        'precision: got \'fastest\', expected "highest", "float32", "tensorfloat32", "bfloat16", '
        '"default", "high" or None'
    )
    with pytest.raises(ValueError, match=message):
        check(loss, PARAMS, precision="fastest")


def looped(w, x):
    """Three layers in a ``while_loop``, which JAX does not differentiate backward."""
    state = lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, jnp.tanh(s[1] @ w)), (0, x))
    return jnp.sum(state[1])


def unrolled(w, x):
    for _ in range(3):
        x = jnp.tanh(x @ w)
    return jnp.sum(x)


@jax.custom_vjp
def with_a_wrong_rule(w, x):
    return unrolled(w, x)


with_a_wrong_rule.defvjp(
    lambda w, x: (unrolled(w, x), (w, x)), lambda kept, g: (0 * kept[0], 0 * kept[1])
)


@pytest.mark.parametrize("f", [looped, with_a_wrong_rule])
@pytest.mark.slow
def test_where_jax_has_no_gradient_of_f_a_rounded_one_does_not_fail(f):
    for seed in range(3):
        generator = np.random.default_rng(seed)
        w, x = (generator.normal(size=(8, 8)).astype(np.float32) for _ in range(2))
        grads = jax.jit(with_rounded_products(jax.grad(unrolled, (0, 1)), 10))(w, x)
        options = {"argnums": (0, 1), "precision": "tensorfloat32"}
        right = gradcheck(f, w, x, grads=grads, **options)
        assert right.verdict != "fail", str(right)
        wrong = gradcheck(f, w, x, grads=(2 * grads[0], grads[1]), **options)
        assert wrong.verdict == "fail", str(wrong)
