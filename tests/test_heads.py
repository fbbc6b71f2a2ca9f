"""Each head's error against differentiation of its loss, its loss against another formula."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import special, stats
from tables import HEADS

import jaxbp
from jaxbp import heads

pytestmark = pytest.mark.usefixtures("strict")

logit_rows = hnp.arrays(np.float64, (2, 3), elements=st.floats(-30, 30, allow_subnormal=False))
label_rows = hnp.arrays(np.float64, (2, 3), elements=st.floats(0, 1, allow_subnormal=False))

#: the loss of each head in numpy and scipy, from the prediction
FORMULAS = {
    "linear_squared_error": lambda a, y: (a - y) ** 2,
    "linear_half_squared_error": lambda a, y: (a - y) ** 2 / 2,
    "linear_huber": lambda a, y: special.huber(1.0, a - y),
    "linear_absolute_error": lambda a, y: abs(a - y),
    "sigmoid_logistic": lambda a, y: -(y * special.log_expit(a) + (1 - y) * special.log_expit(-a)),
    "sigmoid_squared_error": lambda a, y: (special.expit(a) - y) ** 2,
    "softmax_cross_entropy": lambda a, y: -y * special.log_softmax(a, axis=-1),
    "exp_poisson": lambda a, y: np.exp(a) - y * a,
}


@pytest.mark.parametrize("name", HEADS)
def test_error_is_the_derivative_of_the_loss(name):
    head = HEADS[name]

    @given(logits=logit_rows, target=label_rows)
    def check(logits, target):
        loss, error = head.loss(jnp.asarray(logits), jnp.asarray(target))
        derivative = jax.grad(lambda a: head.loss(a, jnp.asarray(target))[0].sum())(logits)
        assert loss.shape == (2,)
        np.testing.assert_allclose(
            loss, FORMULAS[name](logits, target).sum(-1), rtol=1e-11, atol=1e-13
        )
        np.testing.assert_allclose(error, derivative, rtol=1e-11, atol=1e-14)

    with jax.enable_x64(True):
        check()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", sorted(set(HEADS) - {"exp_poisson"}))
def test_finite_and_right_at_extreme_logits(name, dtype):
    with jax.enable_x64(dtype == "float64"):
        logits = jnp.array([[1e4, -1e4], [-1e4, 1e4], [1e4, 1e4], [0.0, -1e4]], dtype)
        for target in ([0.0, 1.0], [1.0, 0.0], [0.3, 0.7]):
            y = jnp.broadcast_to(jnp.array(target, dtype), logits.shape)
            loss, error = HEADS[name].loss(logits, y)
            assert loss.dtype == error.dtype == dtype
            assert jnp.all(jnp.isfinite(loss))
            assert jnp.all(jnp.isfinite(error))
            expected = FORMULAS[name](np.float64(logits), np.float64(y)).sum(-1)
            np.testing.assert_allclose(loss, expected, rtol=4 * np.finfo(dtype).eps)


def test_a_certain_and_right_sigmoid_has_the_loss_it_has():
    """ln(1 + e⁻³⁰) = 9.4e-14 survives in float32, although 1 + e⁻³⁰ is 1 there."""
    loss, _ = heads.sigmoid_logistic.loss(jnp.array([[30.0]]), jnp.array([[1.0]]))
    np.testing.assert_allclose(loss, np.exp(-30), rtol=1e-6)


def test_poisson_is_the_likelihood_of_counts(x64):
    rates, counts = np.array([[0.5], [3.0]]), np.array([[2.0], [0.0]])
    loss, _ = heads.exp_poisson.loss(jnp.log(rates), jnp.asarray(counts))
    constant = special.gammaln(counts + 1)
    np.testing.assert_allclose(
        loss[:, None] + constant, -stats.poisson.logpmf(counts, rates), rtol=1e-13
    )


@given(logits=logit_rows, classes=hnp.arrays(np.int32, 2, elements=st.integers(0, 2)))
def test_integer_classes_are_one_hot_labels(logits, classes):
    with jax.enable_x64(True):
        one_hot = jnp.eye(3)[classes]
        by_class = heads.softmax_cross_entropy.loss(jnp.asarray(logits), jnp.asarray(classes))
        by_label = heads.softmax_cross_entropy.loss(jnp.asarray(logits), one_hot)
        for claimed, expected in zip(by_class, by_label, strict=True):
            np.testing.assert_array_equal(claimed, expected)


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int8, jnp.int32])
def test_small_integers_hold_classes_of_many(dtype):
    logits = jnp.zeros((1, 300))
    _, error = heads.softmax_cross_entropy.loss(logits, jnp.array([5], dtype))
    assert jnp.flatnonzero(error[0] < 0).tolist() == [5]


def test_a_class_that_is_none_makes_the_loss_nan():
    loss, error = heads.softmax_cross_entropy.loss(jnp.zeros((3, 2)), jnp.array([1, 2, -1]))
    assert jnp.isnan(loss).tolist() == [False, True, True]
    assert jnp.isnan(error).any(axis=1).tolist() == [False, True, True]


@pytest.mark.parametrize("threshold", [0.5, 2.0])
def test_huber_with_another_threshold(threshold, x64):
    head = heads.linear_huber._replace(loss=partial(heads.huber, threshold=threshold))
    a = jnp.linspace(-5, 5, 41)[:, None]
    loss, error = head.loss(a, jnp.zeros_like(a))
    np.testing.assert_allclose(loss[:, None], special.huber(threshold, a), rtol=1e-14)
    np.testing.assert_allclose(error, jnp.clip(a, -threshold, threshold))


def test_decisions():
    assert heads.softmax_cross_entropy.decide(jnp.array([[0.2, 0.5, 0.3]])).tolist() == [1]
    assert heads.sigmoid_logistic.decide(jnp.array([[0.6, 0.4]])).tolist() == [[True, False]]
    assert heads.linear_squared_error.decide is None


def test_smooth_labels():
    np.testing.assert_allclose(jaxbp.smooth_labels(np.array([[0], [1]]), 0.1), [[0.05], [0.95]])
    three = [[0.05, 0.9, 0.05], [0.9, 0.05, 0.05]]
    np.testing.assert_allclose(jaxbp.smooth_labels(np.array([1, 0]), 0.15, 3), three, rtol=1e-6)
    one_hot = np.array([[0.0, 1, 0], [1, 0, 0]])
    np.testing.assert_allclose(jaxbp.smooth_labels(one_hot, 0.15, 3), three, rtol=1e-6)
    np.testing.assert_allclose(jaxbp.smooth_labels(one_hot.astype(int), 0.15, 3), three, rtol=1e-6)
    with pytest.raises(ValueError, match=r"target: got shape \(2, 3\), expected \(2, 4\)"):
        jaxbp.smooth_labels(one_hot, 0.1, num_classes=4)
    with pytest.raises(ValueError, match="amount: got 2, expected a share"):
        jaxbp.smooth_labels(one_hot, 2)


@pytest.mark.parametrize("name", HEADS)
def test_shapes_that_would_broadcast_are_refused(name):
    shape = (
        r"target: got shape \(4,\), expected \(4, 1\)|got float32 of shape \(4,\), expected integer"
    )
    with pytest.raises((ValueError, TypeError), match=shape):
        HEADS[name].loss(jnp.zeros((4, 1)), jnp.zeros(4))
