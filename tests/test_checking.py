"""The checker: verdicts, kinks, what it says and what it refuses."""

import copy
import dataclasses
import json
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from combinations import thinned
from hypothesis import given
from hypothesis import strategies as st
from jax import lax

import jaxbp
from benchmarks.problems import random_params
from jaxbp import assert_gradients, compare, gradcheck, taylor_test
from jaxbp.checking import jaxprs
from jaxbp.checking.comparing import Entry
from jaxbp.checking.diagnosis import common_mistake
from jaxbp.checking.finite_differences import Samples, Slopes, extrapolate, sample_lines, step_sizes
from jaxbp.checking.measurement import Measurement
from jaxbp.checking.problem import Purpose, pose
from jaxbp.checking.verdicts import agreement, worst_verdict

X = np.linspace(0.3, 2.0, 6).astype(np.float32)
seeds = st.integers(0, 2**31)


@jax.custom_vjp
def cube(x):
    return x**3


cube.defvjp(lambda x: (x**3, x), lambda x, cotangent: (3 * x**2 * cotangent,))


@jax.custom_vjp
def careless_cube(x):
    return x**3


careless_cube.defvjp(lambda x: (x**3, x), lambda x, cotangent: (2 * x**2 * cotangent,))

# What several tests ask about is under jit: it is compiled once for all of them.


@jax.jit
def sum_of_cubes(x):
    return jnp.sum(cube(x))


@jax.jit
def sum_of_careless_cubes(x):
    return jnp.sum(careless_cube(x))


@jax.jit
def square(x):
    return jnp.sum(x**2)


@jax.jit
def sum_of_sines(x, factor):
    return jnp.sum(jnp.sin(x))


@jax.jit
def cosines(x, factor):
    return factor * jnp.cos(x)


@jax.jit
def length(x):
    return jnp.sum(jnp.abs(x))


@jax.jit
def weighted_product(x, y):
    return jnp.sum(x * y)


# Verdicts


def test_a_custom_vjp_is_checked_in_one_line():
    assert gradcheck(sum_of_cubes, X).ok
    report = gradcheck(sum_of_careless_cubes, X)
    assert report.verdict == "fail"
    assert not report
    assert report.diagnosis == "off by a factor of 2/3"


def weighted_sum(leaves, held):
    (x,), (weights, scale) = leaves, held
    z = x / scale
    return jnp.sum(weights[0] * jnp.sin(3 * z) + weights[1] * jnp.exp(z) + weights[2] * z**3)


def errors_and_bars(number, scale):
    """Of a random sum of sines, exponentials and powers in float64, along six lines: how far the
    slopes are off, and how far they may be, both relative to the weights."""
    rng = np.random.default_rng(number)
    weights, z, along = rng.normal(size=(3, 5)), rng.normal(size=5), rng.normal(size=(6, 5))
    point, held = (z * scale,), (weights, np.float64(scale))
    lines, eps = np.array([(0, line) for line in range(6)]), np.finfo(np.float64).eps
    with jax.enable_x64(True):
        samples = sample_lines(
            weighted_sum, point, held, (along * scale,), lines, steps=step_sizes(eps), eps=eps
        )
    measured = extrapolate(samples)
    slope = weights[0] * 3 * np.cos(3 * z) + weights[1] * np.exp(z) + weights[2] * 3 * z**2
    size = np.abs(weights).sum()
    return np.abs(measured.value - along @ slope) / size, measured.error / size


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1.0, 1e3, 1e12])
def test_the_error_bar_holds_what_it_promises_at_any_scale(scale):
    errors, bars = errors_and_bars(1, scale)
    ulps = 1 if jax.default_backend() == "cpu" else 2  # a GPU's sines are off by more than a CPU's
    assert np.all(errors <= ulps * bars)
    assert np.all(bars <= 1e-8)


def test_the_error_bar_is_rarely_too_short_and_not_too_long():
    """It is made of a rounding that is itself measured: of 600 slopes a few are off by more."""
    errors, bars = np.array([errors_and_bars(number, 1.0) for number in range(100)]).swapaxes(0, 1)
    assert np.mean(errors > bars) <= 0.02
    assert 0.5 <= np.max(errors / bars) <= 3
    assert np.all(bars <= 1e-8)


def samples_of(f):
    """A function's values on both sides of 0, as if they were rounded to float64."""
    eps = np.finfo(np.float64).eps
    t = step_sizes(eps)
    return Samples(
        t, eps, np.array([f(0.0)]), f(t)[None], f(-t)[None], sigma=np.full((1, len(t)), eps)
    )


def test_a_slope_that_does_not_settle_has_not_converged():
    noise = np.random.default_rng(0)
    assert extrapolate(samples_of(np.exp)).converged
    assert not extrapolate(samples_of(lambda t: t * noise.uniform(1, 2, np.shape(t)))).converged


def test_the_jump_at_a_kink_is_extrapolated_from_first_order():
    measured = extrapolate(samples_of(lambda t: np.abs(t) + t**2 + t))
    assert measured.jump == pytest.approx(2, abs=1e-9)
    assert measured.jump_error <= 1e-7


def test_each_extrapolation_takes_away_a_power_of_the_step():
    """Of the differences 1 + t² + t⁴, at four large steps, two of them leave the slope alone."""
    samples = samples_of(lambda t: t + t**3 + t**5)
    coarse = samples._replace(
        steps=samples.steps[:4],
        plus=samples.plus[:, :4],
        minus=samples.minus[:, :4],
        sigma=samples.sigma[:, :4],
    )
    assert extrapolate(coarse).value == pytest.approx(1, abs=1e-13)


def test_the_worst_verdict_decides():
    assert worst_verdict(["pass", "inconclusive", "fail"]) == "fail"
    assert worst_verdict(["inconclusive", "pass"]) == "inconclusive"
    assert worst_verdict(["pass", "pass"]) == worst_verdict([]) == "pass"


@pytest.mark.parametrize(
    ("claimed", "error", "passed", "failed"),
    [
        (1 + 0.9e-6, 9e-6, True, False),
        (1, 11e-6, False, False),  # right, but were it wrong it would not show
        (1 + 1.1e-6, 0, False, True),
        (1 + 2.9e-6, 2e-6, False, False),
        (1 + 3.1e-6, 2e-6, False, True),
    ],
)
def test_agreement_and_error_bar_make_the_verdict(claimed, error, passed, failed):
    one, zero = np.ones(1), np.zeros(1)
    samples = samples_of(lambda t: 1 + t)._replace(sigma=zero[:, None])
    measured = Slopes(one, np.array([error]), one > 0, samples.steps[-1:], zero, zero)
    compared = agreement(np.array([claimed]), samples, measured, scale=1.0, threshold=1e-6)
    assert compared.passed == passed
    assert compared.failed == failed
    doubtful = measured._replace(converged=one < 0)
    assert not agreement(np.array([claimed]), samples, doubtful, scale=1.0, threshold=1e-6).failed


def test_what_a_small_step_confirms_does_not_fail():
    one, zero = np.ones(1), np.zeros(1)
    samples = samples_of(lambda t: 1.1 * t)._replace(sigma=zero[:, None])
    measured = Slopes(one, zero, one > 0, samples.steps[:1], zero, zero)
    for claimed, failed in ((1.1, False), (1.2, True)):
        compared = agreement(np.array([claimed]), samples, measured, scale=1.0, threshold=1e-6)
        assert compared.failed == failed


@pytest.mark.parametrize("factor", [1 + 1e-4, 1 + 2e-6, 0.5, -1, 0])
def test_an_error_above_the_threshold_fails(factor):
    assert gradcheck(sum_of_sines, X, np.float64(factor), grads=cosines).verdict == "fail"


def test_an_error_below_the_threshold_passes():
    assert gradcheck(sum_of_sines, X, np.float64(1 + 2e-7), grads=cosines).ok
    assert gradcheck(sum_of_sines, X, np.float64(1.004), grads=cosines, threshold=0.01).ok


@pytest.mark.parametrize(
    ("dtype", "threshold", "above"),
    [
        (np.float64, 1e-6, "fail"),
        (np.float32, 1e-4, "fail"),
        (np.float16, 3e-2, "inconclusive"),  # it may be the rounding of so coarse a claim
    ],
)
def test_the_threshold_is_that_of_the_claims_resolution(dtype, threshold, above):
    x = X.astype(dtype)
    for share, verdict in ((0.7, "pass"), (1.4, above)):
        claimed = (1 + share * threshold) * np.cos(x.astype(np.float64))
        with jax.enable_x64(dtype == np.float64):
            report = gradcheck(sum_of_sines, x, np.float64(0), grads=claimed.astype(dtype))
        assert report.verdict == verdict
        assert report.threshold == threshold


def test_a_small_leaf_is_not_drowned_by_a_large_one():
    params = {"large": 1e6 * X, "small": 1e-6 * X}

    def grads(params):
        return {"large": 2 * params["large"], "small": 1.01 * jnp.cos(params["small"])}

    report = gradcheck(
        lambda p: jnp.sum(p["large"] ** 2) + jnp.sum(jnp.sin(p["small"])), params, grads=grads
    )
    verdicts = {leaf.path: leaf.verdict for leaf in report.leaves}
    assert verdicts["params['large']" if "params['large']" in verdicts else "p['large']"] == "pass"
    assert verdicts["p['small']"] in {"fail", "inconclusive"}


def test_what_rounding_hides_is_inconclusive():
    """1e20 + Σx: no difference of values can tell a slope of 1 from one of 2."""
    f = jax.jit(lambda x: 1e20 + jnp.sum(x))
    for grads in (None, jnp.ones_like, jnp.zeros_like, lambda x: 2 * jnp.ones_like(x)):
        assert gradcheck(f, X, grads=grads).verdict == "inconclusive"


def test_values_are_checked_like_functions():
    values = 2 * X
    assert gradcheck(square, X, grads=values).ok
    wrong = values.copy()
    wrong[2] *= 1.01
    report = gradcheck(square, X, grads=wrong)
    assert report.diagnosis == "one entry is wrong, the others are right"
    (entry,) = report.leaves[0].worst
    assert entry.place == (2,)
    assert entry.claimed == pytest.approx(float(wrong[2]))
    assert entry.expected == pytest.approx(float(values[2]))


def test_a_missing_slope_is_found_in_either_layout_of_the_weights():
    """A factor of each row where W has shape (O, I), of each column where it has shape (I, O)."""
    w, x = np.linspace(-1, 1, 12).reshape(4, 3), np.array([0.5, -1.0, 2.0])
    for line, weight, f in [
        ("row", w, lambda w: np.sum(np.tanh(w @ x) ** 2)),
        ("column", w.T, lambda w: np.sum(np.tanh(x @ w) ** 2)),
    ]:
        claimed = np.outer(2 * np.tanh(w @ x), x)
        report = gradcheck(f, weight, grads=claimed if line == "row" else claimed.T)
        assert report.diagnosis.startswith(f"each {line} is off by a factor of its own, 1")
        assert report.diagnosis.endswith("a slope h'(a) is missing")


def test_one_wrong_entry_of_a_large_leaf_is_found():
    """Of 1,200, more than are measured one by one."""
    x = np.linspace(0.3, 2.0, 1200, dtype=np.float32).reshape(40, 30)
    wrong = 2 * x
    wrong[17, 23] *= 1.5
    (leaf,) = gradcheck(square, x, grads=wrong).leaves
    assert leaf.verdict == "fail"
    assert leaf.diagnosis == "one entry is wrong; the others that were measured are right"
    (entry,) = leaf.worst
    assert entry.place == (17, 23)
    assert entry.expected == pytest.approx(2 * x[17, 23])


def test_several_arguments_trees_and_integers():
    def f(params, x, labels, scale):
        logits = x @ params["w"] * scale
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(4), labels])

    rng = np.random.default_rng(0)
    params = {"w": rng.normal(size=(3, 2)).astype("f4"), "steps": np.int32(7)}
    x, labels = rng.normal(size=(4, 3)).astype("f4"), np.array([0, 1, 1, 0])
    report = gradcheck(f, params, x, labels, 2.0, argnums=(0, 1, 3))
    assert report.ok
    assert [leaf.path for leaf in report.leaves] == ["params['w']", "x", "scale"]
    assert report.notes == ("params['steps'] is int32 and was held: it has no gradient",)


def test_a_python_number_is_held_at_its_value():
    f = jax.jit(lambda x, factor: factor * jnp.sum(x**2))
    for factor in (2.0, 3.0):  # the second check must not be of the program of the first
        assert gradcheck(f, X, factor, grads=np.float32(2 * factor) * X).ok


def test_a_result_that_is_no_scalar_gets_a_cotangent():
    """All ones would hide an error that sums to zero: here the softmax's whole gradient."""

    @jax.custom_vjp
    def softmax(x):
        return jax.nn.softmax(x)

    softmax.defvjp(lambda x: (softmax(x), None), lambda _, cotangent: (0 * cotangent,))
    f = jax.jit(softmax)
    assert gradcheck(lambda x: softmax(x).sum(), X).ok
    assert gradcheck(f, X).verdict == "fail"
    cotangent = np.arange(6.0)
    assert gradcheck(f, X, cotangent=cotangent).verdict == "fail"
    y = np.exp(X) / np.exp(X).sum()
    assert gradcheck(f, X, cotangent=cotangent, grads=y * (cotangent - y @ cotangent)).ok


def test_an_f_that_refuses_float64_is_measured_in_its_own():
    def f(x):
        assert x.dtype == jnp.float32
        return jnp.sum(jnp.sin(x))

    report = gradcheck(f, X)
    assert report.ok
    assert report.precision == "float32 (f does not accept float64)"
    assert gradcheck(f, X, grads=lambda x: 1.01 * jnp.cos(x)).verdict == "fail"


def test_what_f_or_the_claim_raises_in_other_arithmetic_is_noted():
    tables = {jnp.dtype(jnp.float32): jnp.sin}

    def f(x):
        return jnp.sum(tables[x.dtype](x))

    def grads(x):
        if x.dtype != jnp.float32:
            raise ValueError("float32 alone\nand more lines")
        return jnp.cos(x)

    report = gradcheck(f, X)
    assert report.ok
    assert report.notes == ("in float64 f raises KeyError: dtype('float64')",)
    assert report.notes[0] in str(report).splitlines()
    report = gradcheck(lambda x: jnp.sum(jnp.sin(x)), X, grads=grads)
    assert report.ok
    assert report.notes == ("in float64 the claimed gradient raises ValueError: float32 alone",)
    tables = {jnp.dtype(jnp.float64): jnp.sin}
    with jax.enable_x64(True):
        report = gradcheck(f, X.astype(np.float64))
    assert report.ok
    assert report.notes == ("in float32 f raises KeyError: dtype('float32')",)


def test_what_vmap_of_the_claim_raises_is_noted():
    @jax.custom_batching.custom_vmap
    def cosine(x):
        return jnp.cos(x)

    @cosine.def_vmap
    def rule(axis_size, in_batched, x):
        raise RuntimeError("no rule")

    report = gradcheck(lambda x: jnp.sum(jnp.sin(x)), X, grads=cosine)
    assert report.ok
    assert report.notes == ("vmap of the gradient raises RuntimeError: no rule",)


def test_a_missing_second_opinion_is_noted():
    """A claim of zero would be compared with jax.grad's, which this f does not have."""

    @jax.custom_vjp
    def constant(x):
        return 0 * jnp.sum(x) + 1

    def backward(residual, cotangent):
        raise RuntimeError("no backward pass")

    constant.defvjp(lambda x: (constant(x), None), backward)
    report = gradcheck(constant, X, grads=jnp.zeros_like)
    assert report.ok
    assert report.notes == ("jax.grad of f raises RuntimeError: no backward pass",)


@pytest.mark.slow
def test_what_is_drawn_for_a_leaf_does_not_depend_on_another():
    """Of a wrong claim the same line is the worst one, whatever the rounding of the device."""

    def f(x, y):
        return square(x) + jnp.sum(y**3)

    alone = gradcheck(square, X, grads=lambda x: 2.2 * x)
    beside = gradcheck(f, X, X[:2], argnums=(0, 1), grads=lambda x, y: (2.2 * x, 3 * y**2))
    assert beside.leaves[0].measured == pytest.approx(alone.leaves[0].measured, rel=1e-9)
    other = gradcheck(square, X, grads=lambda x: 2.2 * x, key=jax.random.key(1))
    assert other.leaves[0].measured != pytest.approx(alone.leaves[0].measured, rel=1e-3)


def test_what_is_drawn_for_a_purpose_does_not_depend_on_another():
    problem = pose(square, (X,), 0, None, None)
    for purpose in Purpose:
        first, again = (problem.generator(purpose, 1).uniform() for _ in range(2))
        assert first == again
    drawn = {problem.generator(p, i, j).uniform() for p in Purpose for i in (0, 1) for j in (0, 1)}
    assert len(drawn) == 4 * len(Purpose)


@pytest.mark.slow
def test_an_f_without_batches_is_measured_one_by_one():
    def squares(x):
        shape = jax.ShapeDtypeStruct((), x.dtype)
        return jax.pure_callback(lambda x: np.sum(np.asarray(x) ** 2), shape, x)

    @jax.jit
    def f(x, y):
        return squares(x) + squares(y)

    assert gradcheck(f, X, X, argnums=(0, 1), grads=lambda x, y: (2 * x, 2 * y)).ok
    report = gradcheck(f, X, X, argnums=(0, 1), grads=(2 * X, 3 * X))
    assert [leaf.verdict for leaf in report.leaves] == ["pass", "fail"]


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit, jax.checkpoint])
def test_what_changes_each_time_is_said(wrap):
    numbers = np.random.default_rng(0)

    def f(x):
        return wrap(lambda x: jnp.sum(x) * numbers.normal())(x)

    report = gradcheck(f, X)
    assert report.verdict == "inconclusive"
    assert "non-deterministic: f has a different value each time" in report.diagnosis + str(report)


@pytest.mark.parametrize("grads", [None, lambda x: 2 * x, lambda x: 3 * x])
@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit])
def test_f_is_traced_twice_and_once_in_float64(wrap, grads):
    """And so is a claim."""
    traced = []

    def f(x):
        traced.append("f" * isinstance(x, jax.core.Tracer))
        return jnp.sum(x**2)

    def claim(x):
        traced.append("claim" * isinstance(x, jax.core.Tracer))
        return grads(x)

    gradcheck(wrap(f), X, grads=grads and wrap(claim))
    assert traced.count("f") <= 3
    assert traced.count("claim") <= 3


def test_memory_is_bounded_by_chunk_and_nothing_changes():
    reports = [gradcheck(square, X, chunk=chunk) for chunk in (None, 1, 7)]
    for report in reports[1:]:
        assert report.leaves[0].measured == pytest.approx(reports[0].leaves[0].measured, rel=1e-9)
        assert report.ok


@pytest.mark.slow
@pytest.mark.parametrize(
    ("width", "dtype"),
    [
        (3, np.float32),
        pytest.param(300, np.float32, marks=pytest.mark.slow),
        pytest.param(30, np.float64, marks=pytest.mark.slow),
    ],
)
def test_relu_networks_of_any_width_pass(width, dtype):
    rng = np.random.default_rng(width)
    model = jaxbp.MLP((20, width, 5), jaxbp.activations.relu, jaxbp.heads.softmax_cross_entropy)
    with jax.enable_x64(dtype == np.float64):
        params = random_params(model, width, dtype)
        classes = jnp.asarray(rng.integers(5, size=32), jnp.int32)
        batch = jaxbp.Batch(jnp.asarray(rng.normal(size=(32, 20)), dtype), classes)
        f = jax.jit(lambda params: jaxbp.objective(model, params, batch))
        _, by_hand = jax.jit(jaxbp.backprop, static_argnums=0)(model, params, batch)
        assert gradcheck(f, params).ok
        assert gradcheck(f, params, grads=by_hand).verdict in {"pass", "inconclusive"}


# Kinks


@pytest.mark.parametrize("slope", [-1.0, -0.3, 0.0, 1.0])
def test_at_a_kink_a_subgradient_passes(slope):
    report = gradcheck(length, np.zeros(1), grads=np.full(1, slope, "f4"))
    (leaf,) = report.leaves
    assert leaf.verdict == "pass"
    assert leaf.kink.subgradient
    assert (leaf.kink.lower, leaf.kink.upper) == (pytest.approx(-1), pytest.approx(1))
    assert "kink at the point, slopes from -1 to 1; claimed: a subgradient" in str(report)


@pytest.mark.parametrize("slope", [-1.5, 1.01, 3.0])
def test_at_a_kink_anything_else_does_not(slope):
    report = gradcheck(length, np.zeros(1), grads=np.full(1, slope, "f4"))
    assert report.verdict == "fail"
    assert not report.leaves[0].kink.subgradient


def test_at_a_kink_a_rule_must_be_right_beside_it():
    """relu'(0) = 0 passes, and a wrong slope elsewhere is not excused by a kink at the point."""
    x = np.array([0.0, 0.0, 1.0], np.float32)
    f = jax.jit(lambda x: jnp.sum(jax.nn.relu(x)))
    assert gradcheck(f, x).ok
    wrong = gradcheck(f, x, grads=lambda x: 0.9 * (x > 0))
    assert wrong.verdict == "fail"


def test_the_points_beside_a_kink_serve_all_leaves(monkeypatch):
    points, at = [], Measurement.at

    def counting(measurement, leaves):
        points.append(len(leaves))
        return at(measurement, leaves)

    monkeypatch.setattr(Measurement, "at", counting)
    for count in (1, 3):
        leaves = [np.zeros(2, np.float32)] * count
        report = gradcheck(lambda leaves: sum(jnp.sum(jnp.abs(leaf)) for leaf in leaves), leaves)
        assert report.ok
        assert all(leaf.kink for leaf in report.leaves)
    assert points.count(3) == points.count(1)


@jax.jit
def weighted_lengths(x):
    return jnp.sum(jnp.abs(x) * jnp.arange(1.0, 4))


@jax.jit
def wrong_signs(x):
    return 1.1 * jnp.sign(x) * jnp.arange(1.0, 4)


@pytest.mark.parametrize("distance", [1e-2, 1e-4, 1e-6, 1e-8])
def test_the_steps_shrink_past_a_kink_nearby(distance):
    x = np.array([distance, -distance, 1.0])
    with jax.enable_x64(True):
        report = gradcheck(weighted_lengths, x)
        assert report.verdict != "fail"
        assert distance < 1e-7 or report.ok
        wrong = gradcheck(weighted_lengths, x, grads=wrong_signs)
        assert wrong.verdict == "fail"


# Taylor


def test_taylor_orders():
    right = taylor_test(jnp.sin, jnp.cos, (1.0,))
    assert right.ok
    assert right.orders == (pytest.approx(1, abs=0.1), pytest.approx(2, abs=0.1))
    wrong = taylor_test(jnp.sin, lambda x: 1.001 * jnp.cos(x), (1.0,))
    assert wrong.verdict == "fail"
    assert wrong.orders[1] == pytest.approx(1, abs=0.1)


def test_taylor_of_third_order_checks_the_hessian():
    def f(x):
        return jnp.sum(jnp.exp(x) * x[::-1])

    report = taylor_test(f, None, (X,), np.ones(6, "f4"), order=3)
    assert report.ok
    assert report.orders[2] == pytest.approx(3, abs=0.1)

    @jax.custom_jvp
    def slope(x):
        return jnp.exp(x)

    slope.defjvp(lambda primals, tangents: (slope(*primals), 0.5 * slope(*primals) * tangents[0]))
    report = taylor_test(lambda x: jnp.sum(jnp.exp(x)), slope, (X,), order=3)
    assert report.verdict == "fail"
    assert report.orders[2] == pytest.approx(2, abs=0.1)


def test_a_linear_function_has_no_remainder():
    report = taylor_test(lambda x: 3 * jnp.sum(x), lambda x: jnp.full_like(x, 3), (X,))
    assert report.ok
    assert np.isnan(report.orders[1])
    assert "R2 below rounding" in str(report)


def test_second_order():
    @jax.custom_vjp
    def g(x):
        return x**3

    frozen = jax.lax.stop_gradient
    g.defvjp(lambda x: (g(x), x), lambda x, cotangent: (3 * frozen(x) ** 2 * cotangent,))
    report = gradcheck(sum_of_cubes, X, order=2)
    assert report.ok
    assert [leaf.path for leaf in report.second_order.leaves] == ["x"]
    params = {"right": X, "wrong": X}
    report = gradcheck(lambda p: jnp.sum(cube(p["right"]) + g(p["wrong"])), params, order=2)
    assert {leaf.verdict for leaf in report.leaves} == {"pass"}
    assert not report.ok
    assert report.second_order.verdict == "fail"
    assert [leaf.path for leaf in report.second_order.leaves] == ["p['right']", "p['wrong']"]
    assert report.second_order.diagnosis == "p['wrong']: zero everywhere"
    record = json.loads(json.dumps(report.to_dict()))["second_order"]
    assert record["verdict"] == "fail"
    assert not record["ok"]
    assert [leaf["path"] for leaf in record["leaves"]] == ["p['right']", "p['wrong']"]


def test_a_second_order_that_cannot_be_had_is_noted():
    """The first order's report is kept, and a check of both does not pass."""
    gamma = jax.jit(lambda a: jax.scipy.special.gammainc(a, 2.0))
    report = gradcheck(gamma, 1.4, order=2)
    assert report.leaves[0].verdict == "pass"
    assert (report.verdict, report.second_order) == ("inconclusive", None)
    assert report.notes == ("second order: JAX has no derivative of igamma_grad_a",)
    assert json.loads(json.dumps(report.to_dict()))["second_order"] is None
    report = gradcheck(gamma, 1.4, grads=lambda a: 2 * jax.grad(gamma)(a), order=2)
    assert report.verdict == "fail"
    report = gradcheck(square, X, grads=lambda x: 2 * np.asarray(x), order=2)
    assert report.verdict == "inconclusive"
    assert report.notes == ("second order: JAX cannot trace the claimed gradient",)
    report = gradcheck(square, X, grads=lambda x: x / 0, order=2)
    assert report.verdict == "fail"
    assert report.notes[-1] == "second order: the claimed gradient is not finite"


def test_what_the_second_order_raises_is_noted():
    @jax.custom_jvp
    def slope(x):
        return 3 * x**2

    @slope.defjvp
    def _(primals, tangents):
        raise KeyError("no rule")

    report = gradcheck(sum_of_cubes, X, grads=slope, order=2)
    assert report.verdict == "inconclusive"
    assert report.notes == ("second order: KeyError: 'no rule'",)


# Reports


@jax.jit
def quadratic(params):
    return jnp.sum(params["w"] ** 2) + jnp.sum(params["b"])


@jax.jit
def twice_its_slope(params):
    return {"w": 4 * params["w"], "b": jnp.ones_like(params["b"])}


def failing():
    params = {"w": X.reshape(2, 3), "b": np.ones(2, np.float32)}
    return gradcheck(quadratic, params, grads=twice_its_slope)


def test_a_report_is_a_table_where_it_fits_and_a_list_where_it_does_not():
    report = failing()
    wide = str(report).splitlines()
    assert wide[0].startswith("fail: measured in float64")
    assert wide[1].split() == [
        "leaf",
        "shape",
        "claimed",
        "measured",
        "error",
        "resolution",
        "verdict",
    ]
    assert "diagnosis: params['w']: off by a factor of 2" in wide
    assert max(map(len, wide)) <= 100
    narrow = report.text(40).splitlines()
    assert "params['w']" in narrow
    assert any(line.split() == ["verdict", "fail"] for line in narrow)


@pytest.mark.parametrize(
    "report",
    [
        failing,
        lambda: gradcheck(sum_of_cubes, X, order=2),
        lambda: taylor_test(jnp.sin, jnp.cos, (1.0,)),
        lambda: compare([X], [2 * X]),
    ],
    ids=["fail", "second order", "taylor", "compare"],
)
def test_a_report_does_not_depend_on_the_terminal_and_is_data(report, monkeypatch):
    report = report()
    texts = []
    for columns in ("40", "100"):
        monkeypatch.setenv("COLUMNS", columns)
        texts.append(str(report))
    assert texts[0] == texts[1] == report.text(100) != report.text(20)
    for same in (copy.copy(report), copy.deepcopy(report), pickle.loads(pickle.dumps(report))):
        assert type(same) is type(report)
        assert str(same) == str(report)
        assert same.to_dict() == report.to_dict()
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.verdict = "pass"


def test_a_report_for_a_notebook_and_as_json():
    report = failing()
    assert report._repr_html_().count("<tr>") == 1 + 2 + 1  # header, leaves, all at once
    record = json.loads(json.dumps(report.to_dict()))
    assert record["verdict"] == "fail"
    assert not record["ok"]
    assert [leaf["path"] for leaf in record["leaves"]] == ["params['b']", "params['w']"]
    assert json.loads(json.dumps(taylor_test(jnp.sin, jnp.cos, (1.0,)).to_dict()))["ok"]


def test_assert_gradients_raises_the_table():
    assert_gradients(sum_of_cubes, X)
    with pytest.raises(AssertionError, match="off by a factor of 2/3"):
        assert_gradients(sum_of_careless_cubes, X)


def test_printing_and_asserting_are_the_callers(capsys):
    failing()
    assert capsys.readouterr() == ("", "")


# compare


def test_compare_measures_each_leaf_by_itself():
    reference = {"large": np.full(3, 1e6), "small": np.full(2, 1e-6)}
    claimed = {"large": np.full(3, 1e6), "small": np.array([1e-6, 2e-6])}
    comparison = compare(claimed, reference)
    assert [leaf.path for leaf in comparison.leaves] == ["['large']", "['small']"]
    assert comparison.leaves[0].relative_error == 0
    assert comparison.relative_error == pytest.approx(1 / np.sqrt(2))
    assert comparison.leaves[1].worst == Entry((1,), 2e-6, 1e-6)
    assert comparison.leaves[1].cosine == pytest.approx(3 / np.sqrt(10))
    assert json.loads(json.dumps(comparison.to_dict()))["leaves"][0]["ulps"] == 0


@given(
    value=st.floats(1e-6, 1e6),
    steps=st.integers(1, 1000),
    dtype=st.sampled_from([np.float32, np.float64]),
)
def test_ulps_count_the_numbers_between(value, steps, dtype):
    """Up to a factor of 2, where a power of two lies between."""
    value = dtype(value)
    other = value
    for _ in range(min(steps, 50)):
        other = np.nextafter(other, dtype(np.inf))
    counted = compare([value], [other]).ulps
    assert min(steps, 50) / 2 <= counted <= min(steps, 50)


def test_compare_keeps_a_nan_and_names_what_does_not_fit():
    assert np.isnan(compare([np.array([np.nan])], [np.ones(1)]).relative_error)
    infinite = np.array([np.inf, 1.0])
    assert compare([infinite], [infinite]).relative_error == 0  # and no warning of NumPy's
    assert compare([infinite], [infinite]).leaves[0].cosine == 1
    assert np.isnan(compare([infinite], [-infinite]).relative_error)
    assert compare([jnp.ones(2, jnp.bfloat16)], [jnp.ones(2)]).ulps == 0
    with pytest.raises(ValueError, match=r"claimed\['w'\]: got shape \(3,\), expected \(2,\)"):
        compare({"w": np.ones(3)}, {"w": np.ones(2)})
    with pytest.raises(ValueError, match=r"claimed: got leaves \['v'\], expected \['w'\]"):
        compare({"v": np.ones(3)}, {"w": np.ones(3)})
    with pytest.raises(TypeError, match=r"reference.*: got int64, expected floating point"):
        compare(np.ones(3), np.arange(3))


# What cannot be checked


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: gradcheck(3, X), TypeError, "f: got int, expected a function"),
        (lambda: gradcheck(square), ValueError, "args: got none"),
        (lambda: gradcheck(square, X, argnums=2), ValueError, "argnums: got 2, expected positions"),
        (
            lambda: gradcheck(square, X, argnums=True),
            ValueError,
            "argnums: got True, expected pos",
        ),
        (lambda: gradcheck(square, X, argnums=()), ValueError, r"argnums: got \(\), expected pos"),
        (lambda: gradcheck(square, X, argnums=0.0), ValueError, "argnums: got 0.0, expected pos"),
        (
            lambda: gradcheck(weighted_product, X, X, argnums=(1, -1)),
            ValueError,
            r"argnums: got \(1, -1\), expected each position once",
        ),
        (lambda: gradcheck(square, np.arange(3)), ValueError, r"x: got x is int64, expected a fl"),
        (lambda: gradcheck(square, 3), ValueError, r"x: got x is int, expected a f.*, such as 3.0"),
        (lambda: gradcheck(square, np.bool_(1)), ValueError, "x: got x is bool, expected a floati"),
        (lambda: gradcheck(square, "3"), ValueError, "x: got x is str, expected a floating point"),
        (lambda: gradcheck(square, {}), ValueError, "x: got no leaf at all, expected a floating"),
        (
            lambda: gradcheck(square, X[:0]),
            ValueError,
            r"x: got x of shape \(0,\), expected at least one entry",
        ),
        (
            lambda: gradcheck(square, X.astype(np.longdouble)),
            TypeError,
            "x: got float128, expected float64 at most",
        ),
        (lambda: gradcheck(square, X + 0j), TypeError, "x: got complex64, expected real numbers"),
        (
            lambda: gradcheck(square, np.array([1, np.nan], "f4")),
            ValueError,
            r"x: got nan at \[1\], expected finite numbers \(1 of 2 are not\)",
        ),
        (lambda: gradcheck(jnp.argmax, X), TypeError, r"f\(...\): got int32, expected floating"),
        (lambda: gradcheck(lambda x: None, X), TypeError, r"f\(...\): got no result"),
        (lambda: gradcheck(lambda x: x[:0], X), TypeError, r"f\(...\): got no result"),
        (lambda: gradcheck(lambda x: 3, X), TypeError, r"f\(...\): got int32, expected floating"),
        (
            lambda: gradcheck(lambda x: (jnp.sum(x), 3), X),
            TypeError,
            r"f\(...\)\[1\]: got int32, expected floating",
        ),
        (
            lambda: gradcheck(lambda x: jnp.sum(x) / 0, X),
            ValueError,
            r"f\(...\): got inf at this point, expected a finite number",
        ),
        (
            lambda: gradcheck(weighted_product, X, np.nan * X),
            ValueError,
            r"f\(...\): got nan at this point, expected a finite number",
        ),
        (
            lambda: gradcheck(lambda x: jnp.sum(jnp.log(x - 5)), X),
            ValueError,
            r"f\(...\): got nan at this point, expected a finite number",
        ),
        (
            lambda: gradcheck(lambda x: np.sum(np.asarray(x)), X),
            ValueError,
            "grads: got None, expected the gradient, .* as JAX cannot trace f .TracerArrayConv",
        ),
        (
            lambda: gradcheck(square, X, grads=np.ones(5, "f4")),
            ValueError,
            r"grads: x: got shape \(5,\), expected \(6,\)",
        ),
        (
            lambda: gradcheck(square, X, grads=(np.ones(6, "f4"),)),
            ValueError,
            r"grads: got leaves x\[0\], expected x",
        ),
        (
            lambda: gradcheck(square, X, grads=lambda x: None),
            ValueError,
            r"grads\(...\): got leaves x \(None\), expected x",
        ),
        (
            lambda: gradcheck(square, X, grads=np.ones(6, np.float16)),
            TypeError,
            "grads: x: got float16, expected float32",
        ),
        (
            lambda: gradcheck(lambda x, y: x @ y, X, X, argnums=(0, 1), grads=X),
            ValueError,
            r"grads: got float\d+\[6\], expected a tuple of 2, a gradient of each of x, y",
        ),
        (
            lambda: gradcheck(square, np.ma.masked_equal(X, 0), grads=X),
            TypeError,
            "x: got MaskedArray, expected a plain array: the copies that f is given would",
        ),
        (
            lambda: gradcheck(jnp.sin, X, grads=jnp.cos),
            ValueError,
            r"cotangent: got none, but f's result is not a scalar but float\d+\[6\]: a loss is one",
        ),
        (
            lambda: gradcheck(jnp.sin, X, cotangent=np.array([1, 1, 1, np.inf, 1, 1])),
            ValueError,
            r"cotangent: f\(...\): got inf at \[3\], expected finite numbers",
        ),
        (
            lambda: gradcheck(jnp.sin, X, cotangent=1j * X),
            TypeError,
            r"cotangent: f\(...\): got complex numbers, expected real ones",
        ),
        (
            lambda: gradcheck(jnp.sin, X, cotangent=np.zeros(6)),
            ValueError,
            "cotangent: got zeros alone, with which every gradient is zero",
        ),
        (
            lambda: gradcheck(jnp.sin, X, cotangent=np.ones(3)),
            ValueError,
            r"cotangent: got .*\(3,\).*, expected .*\(6,\)",
        ),
        (
            lambda: gradcheck(lambda a: lax.igamma_grad_a(a, 2.0), 1.4),
            TypeError,
            r"f: got a function that JAX cannot differentiate, expected grads .*has no derivative"
            " of igamma_grad_a",
        ),
        (
            lambda: gradcheck(lambda x: lax.while_loop(lambda y: y < 9, lambda y: y * y, x), 2.0),
            TypeError,
            r"f: got a function that JAX cannot diff.*\(ValueError: Reverse-mode differentiation",
        ),
        (
            lambda: gradcheck(
                square,
                X,
                grads=lambda x: lax.igamma_grad_a(x, x) + jax.grad(lax.igamma_grad_a)(1.4, 2.0),
            ),
            NotImplementedError,
            "igamma_grad_a",
        ),
        (lambda: gradcheck(square, X, threshold=2), ValueError, "threshold: got 2, expected a sha"),
        (
            lambda: gradcheck(square, X, threshold=np.nan),
            ValueError,
            "threshold: got nan, expected",
        ),
        (lambda: gradcheck(square, X, threshold="1"), ValueError, "threshold: got '1', expected a"),
        (
            lambda: gradcheck(square, X, directions=0),
            ValueError,
            "directions: got 0, expected a po",
        ),
        (
            lambda: gradcheck(square, X, directions=True),
            ValueError,
            "directions: got True, expected a positive int",
        ),
        (
            lambda: gradcheck(square, X, chunk=0),
            ValueError,
            "chunk: got 0, expected a pos",
        ),
        (lambda: gradcheck(square, X, order=3), ValueError, "order: got 3, expected 1 or 2"),
        (lambda: gradcheck(square, X, key=0), TypeError, "key: got 0, expected a jax.random.key"),
        (
            lambda: gradcheck(square, X, grads=2 * X, order=2),
            ValueError,
            "grads: got values, expected a function, for order=2",
        ),
        (
            lambda: taylor_test(square, None, (X,), np.zeros(6, "f4")),
            ValueError,
            "direction: got one of length 0",
        ),
        (lambda: taylor_test(square, None, X), TypeError, "args: got ndarray, expected the tuple"),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_a_claim_that_is_not_finite_fails(number):
    wrong = 2 * X
    wrong[2] = number
    report = gradcheck(square, X, grads=wrong)
    assert report.verdict == "fail"
    assert report.diagnosis == "not finite at 1 of 6 entries: [2]"
    json.dumps(report.to_dict(), allow_nan=False)


def test_an_infinite_slope_fails_without_a_warning():
    report = gradcheck(lambda x: jnp.sum(jnp.sqrt(x)), np.array([0.0, 1.0], "f4"))
    assert (report.verdict, report.diagnosis) == ("fail", "not finite at 1 of 2 entries: [0]")


def test_what_is_held_may_be_infinite():
    """As the mask of an attention is."""
    mask = np.array([0, 0, -np.inf, 0, 0, -np.inf], np.float32)
    assert gradcheck(lambda x, mask: jnp.sum(jax.nn.softmax(x + mask) ** 2), X, mask).ok


def test_an_empty_leaf_beside_others_passes():
    params = {"a": X, "b": X[:0]}

    def f(params):
        return square(params["a"]) + jnp.sum(params["b"])

    report = gradcheck(f, params, order=2)
    assert report.ok
    assert [leaf.path for leaf in report.leaves] == ["params['a']", "params['b']"]
    assert gradcheck(f, params, grads={"a": 3 * X, "b": X[:0]}).verdict == "fail"


def test_an_interruption_is_no_objection_to_float64():
    def f(x):
        if x.dtype != jnp.float32:
            raise KeyboardInterrupt
        return jnp.sum(x)

    with pytest.raises(KeyboardInterrupt):
        gradcheck(f, X)


# Beside other libraries


@pytest.mark.parametrize(
    "f",
    thinned(
        [
            lambda x: lax.cond(x > 0, jnp.sin, jnp.cos, x),
            jax.jit(lambda x: lax.switch(jnp.int32(x > 0), [jnp.cos, jnp.sin], x)),
            lambda x: lax.while_loop(lambda y: y > 1e-2, lambda y: y * jnp.sin(y), x),
        ],
        every=3,
    ),
    ids=["cond", "switch in jit", "while"],
)
def test_the_gradient_of_a_graph_with_branches_is_a_claim(f):
    """It cannot be traced, as the graph has the branch that is taken: it is called as it is."""
    gradient = jaxbp.graph.grad(f)
    report = gradcheck(f, 0.5, grads=gradient)
    assert report.ok
    assert report.notes == ()
    assert gradcheck(f, 0.5, grads=lambda x: 2 * gradient(x)).diagnosis == "off by a factor of 2"


@pytest.mark.slow
def test_it_needs_jax_alone(python):
    """No rich, no matplotlib: for other people's tests."""
    code = (
        "import sys; sys.modules |= dict.fromkeys(['rich', 'matplotlib', 'tyro', 'sklearn'])\n"
        "import jaxbp, jax.numpy as jnp; print(jaxbp.gradcheck(jnp.sin, 1.0).verdict)"
    )
    out, _ = python("-c", code).ended()
    assert out == "pass\n"


INPUTS, LABELS = np.random.default_rng(0).normal(size=(5, 6)), np.arange(5) % 2


def homework(w):
    """A NumPy power is what JAX compiles in one width alone, if it remembers the array."""
    return jnp.mean((jnp.sum(w**INPUTS, axis=1) - LABELS) ** 2)


def gradient_of_homework(w):
    residual = np.sum(np.asarray(w) ** INPUTS, axis=1) - LABELS
    return 2 / 5 * residual @ (INPUTS * np.asarray(w) ** (INPUTS - 1))


def test_numpy_homework_is_checked_too():
    """The claim may be plain NumPy; f may close over 64-bit arrays, and works as before after."""

    def grads(w):
        return np.asarray(gradient_of_homework(w), np.float32)

    before = jax.jit(jax.grad(homework))(X)
    assert gradcheck(homework, X, grads=grads).ok
    wrong = gradcheck(homework, X, grads=lambda w: 2 * grads(w))
    assert wrong.diagnosis == "off by a factor of 2"
    assert gradcheck(jax.jit(homework), X).ok
    np.testing.assert_array_equal(jax.jit(jax.grad(homework))(X), before)
    assert jax.grad(homework)(X).dtype == jnp.float32


def test_a_check_leaves_what_is_compiled_alone():
    """f closes over a NumPy array, and so does the caller's own function: it is not compiled again
    after a check, and can be in the other width."""
    traced = []

    @jax.jit
    def other(w):
        traced.append(w.dtype.name)
        return homework(w)

    before = other(X)
    assert gradcheck(homework, X).ok
    wide = X.astype(np.float64)
    with jax.enable_x64(True):
        np.testing.assert_allclose(
            other(wide), np.mean((np.sum(wide**INPUTS, axis=1) - LABELS) ** 2), rtol=1e-12
        )
    assert other(X) == before
    assert traced == ["float32", "float64"]


def test_caches_are_cleared_where_jax_has_no_constants_in_each_width(monkeypatch):
    cleared = []
    monkeypatch.setattr(jax, "clear_caches", lambda: cleared.append(True))
    monkeypatch.setattr(jaxprs, "constants_in_each_width", lambda: False)
    for numpy_constants, times in ((False, 0), (True, 2)):
        with jaxprs.enable_float64(True, numpy_constants=numpy_constants):
            pass
        assert len(cleared) == times


def test_where_to_look_if_all_leaves_are_wrong():
    """A layer alone has none above it that could be right."""
    wrong = [("w", "fail", "off by a factor"), ("b", "fail", "wrong")]
    assert common_mistake(wrong).startswith("every leaf: look at the error at the output")
    above = [*wrong, ("v", "pass", ""), ("c", "pass", "")]
    assert common_mistake(above).startswith("every leaf up to b: right above; look at what is")


@pytest.mark.parametrize(
    ("paths", "wrong", "said"),
    [
        (["W1", "W2", "b1", "b2"], ["W1", "b1"], "every leaf up to b1: right above"),
        (["W1", "W2", "b1", "b2"], ["W1", "W2"], "every W"),  # δ is right, as the biases tell
        (["[0].weight", "[0].bias", "[1].weight"], ["[0].weight", "[0].bias"], "every leaf up to"),
        (
            ["[0].weight", "[0].bias", "[1].weight", "[1].bias"],
            ["[0].bias", "[1].bias"],
            "every bias",
        ),
    ],
)
def test_what_is_right_above_is_told_by_the_numbers_of_layers(paths, wrong, said):
    found = common_mistake([(p, "fail" if p in wrong else "pass", p) for p in paths])
    assert found.startswith(said)
    assert ("right above" in found) == ("up to" in said)
