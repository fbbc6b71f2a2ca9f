"""Gradients that public projects had wrong (benchmarks/reported_bugs.py), and others of their kind:
each fails, and the right one beside it passes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from combinations import thinned

from benchmarks.gradient_bugs import bfloat16_product, softplus
from benchmarks.reported_bugs import REPORTED
from jaxbp import gradcheck

#: one of each kind; the slow tests have the others
QUICK = {
    "arcsin's rule returns arccos",
    "absolute value: slope 2 at 0",
    "softplus at a zero logit",
    "second derivative of sinc at 0",
    "backward pass in bfloat16",
    "tiny gradient, 1 % off",
}


@pytest.mark.parametrize(
    "dtype",
    [np.float32, pytest.param(np.float64, marks=pytest.mark.slow)],
    ids=["float32", "float64"],
)
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in REPORTED],
)
def test_what_was_reported_fails_and_what_is_right_passes(name, dtype):
    verdicts = []
    with jax.enable_x64(dtype == np.float64):
        for make in (REPORTED[name].right, REPORTED[name].wrong):
            case = make(dtype)
            report = gradcheck(case.f, *case.args, grads=case.grads, **case.options)
            verdicts.append(report.verdict)
    assert verdicts == ["pass", "fail"]


# The value is part of the claim


def test_a_rule_with_another_value_fails_and_both_values_are_told():
    rule = jax.custom_jvp(jnp.arcsin)
    rule.defjvp(lambda x, t: (jnp.arccos(*x), t[0] / jnp.sqrt(1 - x[0] ** 2)))
    report = gradcheck(rule, 0.5)
    assert [leaf.verdict for leaf in report.leaves] == ["pass"]
    assert report.verdict == "fail"
    assert report.value_mistake == "under differentiation f is 1.047, called plainly 0.5236"
    assert report.value_mistake in str(report)


def test_the_value_of_each_leaf_counts():
    square = jax.custom_vjp(lambda x: x**2)
    square.defvjp(lambda x: (x**2 + jnp.array([0, 1e-3]), x), lambda x, c: (2 * x * c,))
    report = gradcheck(lambda x: {"large": 1e6 * jnp.sin(x), "y": square(x)}, jnp.array([0.5, 2]))
    assert report.value_mistake == "under differentiation f['y'][1] is 4.001, called plainly 4"


def test_a_value_that_is_nan_under_differentiation_fails():
    rule = jax.custom_jvp(jnp.sin)
    rule.defjvp(lambda x, t: (0 * x[0] / 0, jnp.cos(x[0]) * t[0]))
    assert gradcheck(rule, 0.5).value_mistake.startswith("under differentiation f is nan")


@pytest.mark.parametrize("by", [1e-3, 1e-11])
def test_a_value_may_be_off_by_the_threshold(by):
    rule = jax.custom_jvp(lambda x: (1e6 + x) - 1e6)  # to 1e-10, in float64
    rule.defjvp(lambda x, t: (x[0] + by, t[0]))
    assert bool(gradcheck(rule, 1e-3).value_mistake) == (by == 1e-3)


# Wrong at one exact point


@pytest.mark.slow
@pytest.mark.parametrize(
    ("f", "at"),
    thinned(
        [
            (lambda x: softplus(x - 1), 1.0),
            (lambda x: jnp.sum(jnp.where(x == 1, 1.0, x**2)), np.array([1.0, 2.0])),
            (lambda x: jnp.where(x > 1, x, 1.0) + jnp.where(x < 1, x, 1.0), 1.0),
        ],
        every=3,
    ),
    ids=["absolute value", "where", "branches"],
)
def test_a_claim_that_is_wrong_at_this_point_alone_fails(f, at):
    for claim in (None, jax.grad(f)(at)):  # as a function, and as a value
        assert gradcheck(f, at, grads=claim).verdict == "fail"
    leaf = gradcheck(f, at).leaves[0]
    assert leaf.diagnosis.startswith("wrong at this point alone (claimed ")


@pytest.mark.parametrize("at", thinned([1.0, 0.0], every=2))
@pytest.mark.parametrize(
    ("slope", "verdict"),
    thinned([(0.3, "pass"), (1.0, "pass"), (2.0, "fail"), (-1.5, "fail")], every=2),
)
def test_at_a_single_kink_a_claim_outside_its_two_slopes_fails(at, slope, verdict):
    rule = jax.custom_jvp(jnp.abs)
    rule.defjvp(lambda x, t: (jnp.abs(*x), jnp.where(x[0] == 0, slope, jnp.sign(x[0])) * t[0]))
    assert gradcheck(lambda x: rule(x - at), at).verdict == verdict
    assert gradcheck(lambda x: jnp.abs(x - at), at, grads=np.float32(slope)).verdict == verdict


def relu_and_sine(x):
    """As many kinks as x has zeros."""
    return jnp.sum(jax.nn.relu(x) + jnp.sin(x))


@pytest.mark.parametrize(
    ("slope", "passes"), thinned([(0.5, True), (1, True), (1.2, False), (-1, False)], every=2)
)
def test_where_kinks_meet_no_entry_lies_outside_those_beside_them(slope, passes):
    rule = jax.jit(lambda x: jnp.where(x == 0, slope, x > 0) + jnp.cos(x))
    assert gradcheck(relu_and_sine, jnp.zeros(3), grads=rule).ok == passes
    values = gradcheck(relu_and_sine, jnp.zeros(3), grads=jnp.full(3, slope + 1.0))
    assert values.verdict != ("fail" if passes else "pass")


def test_one_kink_excuses_no_other_entry():
    x = np.random.default_rng(0).normal(size=6)
    x[2] = 0

    def f(x):
        return float(np.sum(np.abs(x) + np.sin(x)))

    def traced(x):
        return jnp.sum(jnp.abs(x) + jnp.sin(x))

    right = np.sign(x) + np.cos(x)
    assert gradcheck(f, x, grads=right).ok
    assert gradcheck(f, x, grads=1.01 * right).verdict != "pass"
    assert gradcheck(traced, x, grads=np.float32(1.01 * right)).verdict != "pass"
    wrong = jax.jit(lambda x: 1.01 * jax.grad(traced)(x))
    assert gradcheck(traced, x, grads=wrong).verdict == "fail"


def test_where_kinks_meet_that_no_line_shows_a_limit_of_gradients_does_not_fail():
    assert gradcheck(jnp.median, jnp.zeros(4)).verdict != "fail"
    assert gradcheck(jnp.median, jnp.zeros(4), grads=jnp.full(4, 0.3)).verdict != "pass"


@pytest.mark.slow
def test_a_switch_that_rounding_throws_excuses_no_error_elsewhere():
    """At |x| = 1 ndtr changes its formula, whose slopes differ where one of them is wrong."""

    def f(x):
        return 5 * jax.scipy.special.ndtr(x[0]) + jnp.sum(jax.scipy.special.ndtr(x[1:]))

    at = jnp.array([1.0, 0.4, 1.3])
    assert gradcheck(f, at).ok
    wrong = jax.jit(lambda x: jax.grad(f)(x) * (jnp.abs(x) >= 1))
    assert gradcheck(f, at, grads=wrong).verdict == "fail"


# Differences of a numerator that cancels


def quotient(numerator, power, limit):
    def f(x):
        divisor = jnp.where(x == 0, 1, x)
        return jnp.where(x == 0, limit, numerator(x) / divisor**power)

    return f


@pytest.mark.parametrize(
    ("f", "slope"),
    thinned(
        [
            (quotient(lambda x: jnp.exp(x) - 1, 1, 1.0), 1 / 2),
            (quotient(lambda x: jnp.exp(x) - 1 - x, 2, 0.5), 1 / 6),
            (quotient(lambda x: 1 - jnp.cos(x) + x**3, 2, 0.5), 1.0),
            (lambda x: 100 * x + quotient(lambda x: jnp.exp(x) - 1, 1, 1.0)(x), 100.5),
        ],
        every=4,
    ),
    ids=["first order", "second order", "cosine", "beside a line"],
)
def test_a_quotient_whose_numerator_cancels_is_measured_above_its_rounding(f, slope):
    for claimed, verdict in ((slope, "pass"), (slope + 0.01, "fail"), (0.0, "fail")):
        report = gradcheck(f, 0.0, grads=jax.jit(lambda x, claimed=claimed: claimed + 0 * x))
        assert report.verdict == verdict
        assert abs(report.leaves[0].measured - slope) <= report.leaves[0].error


def test_what_the_frozen_digits_tell_does_not_pass():
    """Below t = 1e-8 the quotient is 1, and leaves the slope 100 to the line beside it."""

    def f(x):
        return 100 * x + quotient(lambda x: jnp.exp(x) - 1, 1, 1.0)(x)

    assert gradcheck(f, 0.0, grads=np.float32(100)).verdict == "fail"


@pytest.mark.parametrize("at", [2.7825305e-07, 5.3e-8])
def test_runs_that_contradict_each_other_are_both_held(at):
    """Where the numerator stands still beside 0, the slope of what is left, -f/x, is no slope."""
    with jax.enable_x64(True):

        def f(x):
            return (jnp.exp(x) - 1) / x

        assert gradcheck(f, at, grads=np.float64(0.5)).verdict != "fail"
        assert gradcheck(f, at, grads=np.float64(-1 / at)).verdict != "pass"


@pytest.mark.parametrize(
    ("f", "at", "slope"),
    [
        (lambda x: (1 - np.cos(x)) / x**2, 1.07699124e-07, 0.0),
        (lambda x: (1 - np.cos(x)) / x**2, -1.64006263e-08, 0.0),
        (lambda x: (np.exp(x) - 1 - x) / x**2, 2.99729957e-07, 1 / 6),
    ],
    ids=["some digits", "one digit", "none in float32"],
)
def test_a_numerator_of_few_digits_is_no_evidence(f, at, slope):
    """At the smaller steps it stands still, and at the larger ones there are no two alike."""
    assert gradcheck(f, at, grads=slope).verdict == "inconclusive"
    assert gradcheck(f, at, grads=-2 * float(f(at)) / at).verdict == "inconclusive"


@pytest.mark.parametrize(
    ("f", "gradient", "at"),
    [
        (lambda x: np.sum(np.sin(1e4 * x)), lambda x: 1e4 * np.cos(1e4 * x), [0.3, 0.7, -1.1]),
        (lambda x: np.sum(np.tanh(x)), lambda x: 1 - np.tanh(x) ** 2, [1e6, 0.1, 0.7, -1.1]),
        (lambda x: np.sum(x**-2.0), lambda x: -2 * x**-3.0, [1e-3, 0.4, 1.3]),
    ],
    ids=["oscillation", "scales", "pole"],
)
def test_larger_steps_that_agree_where_f_is_another_are_no_evidence(f, gradient, at):
    at = np.array(at)
    assert gradcheck(f, at, grads=gradient(at)).ok
    assert gradcheck(f, at, grads=1.01 * gradient(at)).verdict == "fail"


@pytest.mark.parametrize(
    ("f", "verdict", "values"),
    [
        (lambda x: np.where(x == 1, 5.0, x).sum(), "fail", "5.5 at it, beside it 1.5"),
        (lambda x: np.floor(x).sum(), "inconclusive", "1 at it, beside it 0 and 1"),
        (lambda x: np.heaviside(x - 1, 0.5).sum(), "inconclusive", "0.5 at it, beside it 0 and 1"),
    ],
    ids=["a point alone", "floor", "step"],
)
def test_a_jump_of_f_at_the_point_is_told(f, verdict, values):
    report = gradcheck(f, np.array([1.0, 0.5]), grads=np.array([0.0, 1.0]))
    assert report.verdict == verdict
    assert report.leaves[0].diagnosis == f"f jumps at this point ({values})"


def test_stairs_of_f_itself_are_not_taken_for_rounding():
    """Larger steps agree on the slope 1, smaller ones are 0, which is right."""
    at = jnp.array([30, 0.4, 1.3])
    assert gradcheck(lambda x: jnp.sum(jnp.round(x)), at).verdict != "fail"


def test_steps_that_x_rounds_all_alike_are_not_taken():
    def f(x):  # in float32, at x = 2 + a little: t x, of all digits, is not
        return jnp.tanh(10 * (x.astype(jnp.float32) - 2)).astype(x.dtype)

    assert gradcheck(f, jnp.float32(2.0003411)).ok


def test_a_function_that_is_flat_beside_the_point_is_no_such_quotient():
    """Larger steps agree on ½, and the slope is 0: f has a kink, no rounding that grows."""
    report = gradcheck(lambda x: jnp.maximum(x, 1e-5) + x**2, 0.0)
    assert report.ok
    assert report.leaves[0].measured == 0


# The claim's own arithmetic


@pytest.mark.parametrize("dtype", thinned([jnp.float32, jnp.bfloat16], every=2))
@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "pass"), (1.3, "fail")])
def test_the_coarsest_dtype_on_the_claims_way_bounds_what_it_can_know(dtype, factor, verdict):
    rng = np.random.default_rng(0)
    x, w = (jnp.asarray(rng.normal(size=shape), dtype) for shape in ((8, 6), (6, 4)))
    report = gradcheck(bfloat16_product(factor), x, w)
    assert report.verdict == verdict
    assert report.threshold == 3e-2
    told = "the claimed gradient passes through bfloat16" in report.notes
    assert told == (dtype == jnp.float32)


# Two answers are not rounding


@pytest.mark.parametrize(("seed", "x64"), thinned([(10, True), (15, True), (10, False)], every=3))
def test_an_eigenvector_of_the_other_sign_in_float32_excuses_nothing(seed, x64):
    rng = np.random.default_rng(seed)
    matrix, c, d = (rng.normal(size=shape) for shape in ((6, 6), 6, (6, 6)))
    with jax.enable_x64(x64):
        matrix = jnp.asarray(matrix)

        @jax.jit
        def f(a):
            values, vectors = jnp.linalg.eigh(a)
            return values @ c.astype(a.dtype) + jnp.sum(vectors * d.astype(a.dtype))

        right = jax.grad(f)(matrix)
        verdicts = [gradcheck(f, matrix, grads=by * right).verdict for by in (1, 1.01, 2, 0)]
    assert verdicts[0] == "pass" if x64 else verdicts[0] != "fail"
    assert verdicts[1:] == ["fail"] * 3


# Slopes that are not finite


def test_an_infinite_slope_passes_nothing():
    """x log x has no value to the left of 0, and to the right the slope -inf."""

    def f(x):
        return jnp.sum(jax.scipy.special.xlogy(x, x) + jnp.where(x < 0, jnp.inf, 0))

    at = jnp.array([0.0, 1.3])
    assert gradcheck(f, at, grads=jnp.array([5.0, 5.0])).verdict != "pass"
