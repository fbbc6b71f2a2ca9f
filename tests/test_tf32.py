"""A device whose default products are TF32: nothing right fails there, and what is wrong does."""

from functools import cache, partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from combinations import (
    ACTIVATIONS,
    HEADS,
    ONE_OF_EACH,
    any_model,
    cpu_compiler,
    numbers,
    thinned,
)

import jaxbp
from benchmarks.problems import random_batch, random_params
from jaxbp import activations, gradcheck, heads
from jaxbp.checking.rounded_products import digits_multiplied, with_rounded_products
from jaxbp.cli import check
from jaxbp.cli.gradient_check import TRUSTED, cross_check

pytestmark = pytest.mark.usefixtures("tf32_products")
SMALL = (6, 5, 5, 3)


def sized(sizes):
    return jaxbp.MLP(sizes, activations.tanh, heads.softmax_cross_entropy)


@partial(jax.jit, static_argnums=0)
def loss(sizes, params, batch, which):
    return jaxbp.objective(any_model(sizes, *which), params, batch)


@partial(jax.jit, static_argnums=0)
def by_hand(sizes, params, batch, which):
    return jaxbp.backprop(any_model(sizes, *which), params, batch)[1]


@partial(jax.jit, static_argnums=0)
def regrouped(sizes, params, batch, which):
    """The same by another program, each of whose products has operands of other digits."""
    inner = params[0]._replace(weight=params[0].weight / 3)
    grads = by_hand(sizes, (inner, *params[1:]), batch._replace(x=3 * batch.x), which)
    first = grads[0]._replace(weight=grads[0].weight / 3)
    return (first, *grads[1:])


def case(sizes, activation, head, seed, rows=16):
    params = random_params(sized(sizes), seed, np.float32)
    batch = random_batch(sized(sizes), rows, seed, dtype=np.float32)
    return params, batch, np.array(numbers(activation, head), np.int32)


def checked(sizes, args, grads, **options):
    return gradcheck(of_size(loss, sizes), *args, grads=grads, **options)


@cache
def of_size(function, sizes):
    """A function of the other arguments, always the same one, so that it compiles once."""
    return jax.jit(partial(function, sizes))


def test_default_products_are_tf32_here_and_highest_ones_are_not():
    assert digits_multiplied() == digits_multiplied("high") == 10
    assert digits_multiplied("highest") == 23


@pytest.mark.slow
@cpu_compiler
def test_the_whole_process_computes_as_one_rewritten_function_does():
    args = case(SMALL, "gelu", "softmax_cross_entropy", 0)
    function = partial(by_hand, SMALL)
    with jax.default_matmul_precision("highest"):
        exact = function(*args)
    rewritten = with_rounded_products(function, 10)(*args)
    assert jaxbp.compare(function(*args), rewritten).ulps == 0
    assert jaxbp.compare(exact, rewritten).relative_error > 1e-5


@pytest.mark.parametrize(
    ("make", "pairs"),
    [
        (by_hand, ONE_OF_EACH[::3]),
        pytest.param(by_hand, ONE_OF_EACH, marks=pytest.mark.slow),
        pytest.param(regrouped, ONE_OF_EACH, marks=pytest.mark.slow),
    ],
    ids=["by hand, one in three", "by hand", "regrouped"],
)
def test_no_right_gradient_fails(make, pairs):
    for activation, head in pairs:
        args = case(SMALL, activation, head, 0)
        report = checked(SMALL, args, make(SMALL, *args))
        assert report.verdict != "fail", (activation, head, str(report))
        assert report.ok or activation in {"relu", "leaky_relu"}, (activation, head, str(report))
        assert report.ok or make is not by_hand
    assert any("this device's default products" in note for note in report.notes)


@pytest.mark.slow
def test_a_function_is_held_to_float32s_threshold():
    """Its products are not rounded when it is checked, whatever they are by default."""
    args = case(SMALL, "tanh", "softmax_cross_entropy", 0)
    report = checked(SMALL, args, of_size(by_hand, SMALL))
    assert report.ok
    assert report.threshold == 1e-6
    assert report.notes == ()
    assert checked(SMALL, args, None).ok


def test_an_f_of_float32_alone_is_measured_by_exact_products():
    """In jits and branches, too, which are traced anew for it."""
    x, w = (np.random.default_rng(0).normal(size=(2, 8, 8)) / 2).astype(np.float32)

    @jax.jit
    def inner(x, w):
        return jax.lax.cond(x[0, 0] < 9, lambda: jnp.tanh(x @ w), lambda: x)

    @jax.jit
    def f(x, w):
        assert x.dtype == jnp.float32
        return jnp.sum(inner(inner(x, w), w))

    f(x, w)  # compiled with default products before
    report = gradcheck(f, x, w)
    assert report.ok
    assert report.precision == "float32 (f does not accept float64)"
    assert gradcheck(f, x, w, grads=jax.jit(jax.grad(f))(x, w)).verdict != "fail"


BUGS = {
    "scaled up": lambda grads: change(grads, 1, lambda w: 1.01 * w),
    "scaled down": lambda grads: change(grads, 0, lambda w: 0.99 * w),
    "a row": lambda grads: change(grads, 1, row_off),
    "a sign": lambda grads: change(grads, 2, jnp.negative),
    "a transpose": lambda grads: change(grads, 1, jnp.transpose),
}


def change(grads, layer, by):
    changed = grads[layer]._replace(weight=by(grads[layer].weight))
    return (*grads[:layer], changed, *grads[layer + 1 :])


def row_off(weight):
    """The largest row is off by 1 % of the leaf's size."""
    row = jnp.argmax(jnp.linalg.norm(weight, axis=1))
    factor = 1 + 0.01 * jnp.linalg.norm(weight) / jnp.linalg.norm(weight[row])
    return weight.at[row].multiply(factor)


@pytest.mark.parametrize("bug", thinned(BUGS, every=len(BUGS)))
def test_a_bug_of_one_percent_fails(bug):
    for seed, activation in enumerate(("tanh", "relu", "softplus")):
        args = case(SMALL, activation, "softmax_cross_entropy", seed)
        report = checked(SMALL, args, BUGS[bug](by_hand(SMALL, *args)))
        assert report.verdict == "fail", (seed, str(report))


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [SMALL, (20, 30, 30, 5), (20, 100, 5)], ids=str)
def test_of_many_networks_no_right_gradient_fails_and_most_wrong_ones_do(sizes):
    passed, caught, count = 0, 0, 0
    for activation, head in product(ACTIVATIONS, HEADS) if sizes == SMALL else ONE_OF_EACH:
        args = case(sizes, activation, head, seed=0, rows=32)
        for make in (by_hand, regrouped):
            report = checked(sizes, args, make(sizes, *args))
            assert report.verdict != "fail", (activation, head, str(report))
            passed += report.ok
        wrong = change(by_hand(sizes, *args), 0, lambda w: 1.01 * w)
        caught += checked(sizes, args, wrong).verdict == "fail"
        count += 1
    assert passed >= 0.8 * 2 * count
    assert caught >= 0.7 * count  # units at their kinks hide the others


@pytest.mark.slow
def test_the_check_before_training_holds():
    for activation, head in ONE_OF_EACH:
        model = jaxbp.MLP((6, 8, 8, 3), ACTIVATIONS[activation], HEADS[head])
        params, batch, _ = case(model.sizes, activation, head, 1)
        assert max(cross_check(model, params, batch).values()) < TRUSTED / 100


@pytest.mark.slow
def test_the_command_that_checks_holds():
    for result in check.check_depth(check.Check(), 1, on_each=lambda: None):
        assert result.verdict == "pass", str(result.report)


@pytest.mark.slow
def test_two_ways_to_a_gradient_differ_by_what_the_pages_say():
    """docs/proving.md: of float32 about 1e-7, of TF32 about 1e-3."""
    args = case(SMALL, "tanh", "softmax_cross_entropy", 0)
    with jax.default_matmul_precision("highest"):
        exact = by_hand(SMALL, *args)
        assert jaxbp.compare(regrouped(SMALL, *args), exact).relative_error < 1e-6
    for make in (by_hand, regrouped):
        assert 1e-5 < jaxbp.compare(make(SMALL, *args), exact).relative_error < 3e-3
