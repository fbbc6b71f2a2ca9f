"""Each head's error against differentiation of its loss, its loss against another formula."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from combinations import HEADS, chosen, cpu_compiler, thinned
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import special

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


@jax.jit
def of_any(head, logits, target):
    """A head's loss and error, and the loss's derivative: one program for all heads."""
    loss_of = chosen(head, [each.loss for each in HEADS.values()])
    return *loss_of(logits, target), jax.grad(lambda a: loss_of(a, target)[0].sum())(logits)


@partial(jax.jit, static_argnums=0)
def loss_and_error(head, logits, target):
    return head.loss(logits, target)


@pytest.mark.parametrize("name", HEADS)
def test_error_is_the_derivative_of_the_loss(name):
    @given(logits=logit_rows, target=label_rows)
    def check(logits, target):
        loss, error, derivative = of_any(list(HEADS).index(name), logits, target)
        assert loss.shape == (2,)
        np.testing.assert_allclose(
            loss, FORMULAS[name](logits, target).sum(-1), rtol=1e-11, atol=1e-13
        )
        np.testing.assert_allclose(error, derivative, rtol=1e-11, atol=1e-14)

    with jax.enable_x64(True):
        check()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", thinned(sorted(set(HEADS) - {"exp_poisson"}), every=2))
def test_finite_and_right_at_extreme_logits(name, dtype):
    with jax.enable_x64(dtype == "float64"):
        logits = np.array([[1e4, -1e4], [-1e4, 1e4], [1e4, 1e4], [0.0, -1e4]], dtype)
        for target in ([0.0, 1.0], [1.0, 0.0], [0.3, 0.7]):
            y = np.broadcast_to(np.array(target, dtype), logits.shape)
            loss, error, _ = of_any(list(HEADS).index(name), logits, y)
            assert loss.dtype == error.dtype == dtype
            assert np.isfinite(loss).all()
            assert np.isfinite(error).all()
            expected = FORMULAS[name](np.float64(logits), np.float64(y)).sum(-1)
            np.testing.assert_allclose(loss, expected, rtol=4 * np.finfo(dtype).eps)


def test_a_certain_and_right_sigmoid_has_the_loss_it_has():
    """ln(1 + e⁻³⁰) = 9.4e-14 survives in float32, although 1 + e⁻³⁰ is 1 there."""
    loss, _ = loss_and_error(heads.sigmoid_logistic, jnp.array([[30.0]]), jnp.array([[1.0]]))
    np.testing.assert_allclose(loss, np.exp(-30), rtol=1e-6)


def test_poisson_is_the_likelihood_of_counts(x64):
    rates, counts = np.array([[0.5], [3.0]]), np.array([[2.0], [0.0]])
    loss, _ = loss_and_error(heads.exp_poisson, np.log(rates), counts)
    factorials = special.factorial(counts)
    likelihood = rates**counts * np.exp(-rates) / factorials
    np.testing.assert_allclose(loss[:, None] + np.log(factorials), -np.log(likelihood), rtol=1e-13)


@jax.jit
def by_class_and_by_label(logits, classes, one_hot):
    loss = heads.softmax_cross_entropy.loss
    return loss(logits, classes), loss(logits, one_hot)


@cpu_compiler  # two computations of a program, equal to the last bit
@given(logits=logit_rows, classes=hnp.arrays(np.int32, 2, elements=st.integers(0, 2)))
def test_integer_classes_are_one_hot_labels(logits, classes):
    with jax.enable_x64(True):
        by_class, by_label = by_class_and_by_label(logits, classes, np.eye(3)[classes])
        for claimed, expected in zip(by_class, by_label, strict=True):
            np.testing.assert_array_equal(claimed, expected)


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int8, jnp.int32])
def test_small_integers_hold_classes_of_many(dtype):
    logits = np.zeros((1, 300), "f4")
    _, error = loss_and_error(heads.softmax_cross_entropy, logits, np.array([5], dtype))
    assert np.flatnonzero(error[0] < 0).tolist() == [5]


@pytest.mark.parametrize("dtype", ["i4", "i8"])
def test_a_class_that_is_none_makes_the_loss_nan(dtype, x64):
    """2³² is none either, though its last 32 bits are those of class 0."""
    large = 2**32 if dtype == "i8" else 2
    logits, classes = np.zeros((3, 2), "f4"), np.array([1, large, -1], dtype)
    loss, error = loss_and_error(heads.softmax_cross_entropy, logits, classes)
    assert np.isnan(loss).tolist() == [False, True, True]
    assert np.isnan(error).any(axis=1).tolist() == [False, True, True]


def test_what_are_no_numbers_is_named():
    """And integers that JAX would hold in 32 bits, where 2³² + 1 is 1."""
    model = jaxbp.MLP((2, 2), (), heads.softmax_cross_entropy)
    params = (jaxbp.Layer(np.zeros((2, 2), "f4"), np.zeros(2, "f4")),)
    logits = np.zeros((2, 2), "f4")
    for wrong, error, message in [
        ("abc", TypeError, "got 'abc', expected an array of real numbers"),
        (None, TypeError, "got None, expected an array of real numbers"),
        ([[1, 2], [3]], TypeError, r"got \[\[1, 2\], \[3\]\], expected an array of real numbers"),
        (np.array([["a", "b"]]), TypeError, r"got <U1\[1,2\], expected an array of real numbers"),
        (np.array([1j, 2]), TypeError, "got complex128, expected real numbers"),
        (np.array([0, 2**32 + 1]), ValueError, "got 4294967297, out of the range of int32, which"),
        ([0, 2**32 + 1], ValueError, "Python int"),
    ]:
        with pytest.raises(error, match=f"^x: {message}"):
            jaxbp.predict(model, params, wrong)
        for loss in (heads.cross_entropy, heads.squared_error):
            with pytest.raises(error, match=f"^target: {message}"):
                loss(logits, wrong)


@pytest.mark.slow
def test_a_masked_output_leaves_the_loss_finite_and_right(x64):
    """Its logit is -∞ and its label 0; the other outputs have the loss they have without it."""
    logits, target = np.array([[1.0, 2.0, -np.inf]]), np.array([[1.0, 0.0, 0.0]])
    for name in ("softmax_cross_entropy", "sigmoid_logistic", "exp_poisson"):
        loss, error, derivative = of_any(list(HEADS).index(name), logits, target)
        expected, without, _ = of_any(list(HEADS).index(name), logits[:, :2], target[:, :2])
        np.testing.assert_allclose(loss, expected, rtol=1e-14)
        np.testing.assert_allclose(error, np.append(without, [[0.0]], axis=1), rtol=1e-14)
        np.testing.assert_allclose(derivative, error, rtol=1e-13)
    loss, _ = loss_and_error(heads.softmax_cross_entropy, logits, np.array([0]))
    np.testing.assert_allclose(loss, special.logsumexp([1, 2]) - 1, rtol=1e-14)
    far = np.array([[0, 3e38, -3e38]], "f4")
    loss, _ = loss_and_error(heads.softmax_cross_entropy, far, np.array([1]))
    assert loss.tolist() == [0.0]


def test_a_head_of_a_loss_alone():
    """It is as one with its error by hand, and one loss gives one head."""

    def squared(logits, target):
        return jnp.sum((logits - target) ** 2, axis=-1)

    logits, target = np.array([[1.0, 2.0], [0.0, 4.0]], "f4"), np.ones((2, 2), "f4")
    head = jaxbp.with_error(squared)
    assert head is jaxbp.with_error(squared)
    by_hand = loss_and_error(heads.linear_squared_error, logits, target)
    for ours, theirs in zip(loss_and_error(head, logits, target), by_hand, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    whole = jaxbp.with_error(lambda logits, target: squared(logits, target).sum())
    with pytest.raises(ValueError, match=r"loss: got shape \(\), expected \(2,\), one an example"):
        loss_and_error(whole, logits, target)


@pytest.mark.parametrize("threshold", [0, float("nan")])
def test_huber_needs_a_threshold(threshold):
    head = heads.linear_huber._replace(loss=partial(heads.huber, threshold=threshold))
    with pytest.raises(ValueError, match=f"threshold: got {threshold}, expected more than 0"):
        head.loss(jnp.zeros((1, 1)), jnp.zeros((1, 1)))


@pytest.mark.parametrize("threshold", [0.5, 2.0])
def test_huber_with_another_threshold(threshold, x64):
    head = heads.linear_huber._replace(loss=partial(heads.huber, threshold=threshold))
    a = np.linspace(-5, 5, 41)[:, None]
    loss, error = loss_and_error(head, a, np.zeros_like(a))
    np.testing.assert_allclose(loss[:, None], special.huber(threshold, a), rtol=1e-14)
    np.testing.assert_allclose(error, np.clip(a, -threshold, threshold))


def test_decisions():
    assert heads.softmax_cross_entropy.decide(jnp.array([[0.2, 0.5, 0.3]])).tolist() == [1]
    assert heads.sigmoid_logistic.decide(jnp.array([[0.6, 0.4]])).tolist() == [[True, False]]
    assert heads.linear_squared_error.decide is None


def test_class_weights_are_scikit_learns():
    class_weight = pytest.importorskip("sklearn.utils.class_weight")
    classes = np.array([2, 0, 2, 2, 0, 5])
    for target in (classes, classes.astype(str), classes.astype(float)):
        expected = class_weight.compute_sample_weight("balanced", target)
        np.testing.assert_allclose(jaxbp.class_weights(target), expected)
    one_hot = (classes[:, None] == np.arange(6)).astype("f")
    np.testing.assert_allclose(jaxbp.class_weights(one_hot), jaxbp.class_weights(classes))
    assert jaxbp.class_weights(classes, {5: 4, 0: 0}).tolist() == [1, 0, 1, 1, 0, 4]
    counts = [1, 2, 3, 1, 2, 5]  # an example of weight 3 counts as three
    repeated = jaxbp.class_weights(np.repeat(classes, counts))[np.cumsum(counts) - 1]
    weights = jaxbp.class_weights(classes, example_weight=counts)
    np.testing.assert_allclose(weights, counts * repeated)
    assert jaxbp.class_weights([0, 1, 1], example_weight=[0, 2, 4]).tolist() == [0, 2, 4]


@pytest.mark.parametrize(
    ("weight", "got"),
    [([1], r"shape \(1,\)"), ([-1, 1], "-1.0 to 1.0"), ([1, np.nan], "nan to nan")],
)
def test_example_weights_that_can_be_none_are_refused(weight, got):
    with pytest.raises(
        ValueError, match=rf"example_weight: got {got}, expected \(2,\) of at least"
    ):
        jaxbp.class_weights([0, 1], example_weight=weight)


@pytest.mark.parametrize(
    ("target", "weights", "message"),
    [
        ([0, 1], "even", "weights: got 'even', expected \"balanced\" or a weight by class"),
        ([0, 1], {2: 1.0}, "weights: of the class 2, which no example has"),
        ([0, 1], {1: -1.0}, "weights: of the class 1, expected ≥ 0, got -1.0"),
        (["a", None], "balanced", "target: got labels of several types, expected one"),
        (np.ma.masked_equal([0, 1], 1), "balanced", "target: some values are masked, expected an"),
        ([0.5, 1], "balanced", r"target: got float64 of shape \(2,\), expected a class an example"),
        ([[1, 1], [0, 1]], "balanced", r"target: got int64 of shape \(2, 2\), expected a class"),
    ],
)
def test_class_weights_of_what_has_none_are_refused(target, weights, message):
    with pytest.raises(ValueError, match=message):
        jaxbp.class_weights(target, weights)


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
    for target, classes, message in [
        ([0, 3, 7], None, "target: got 3 in row 1, expected labels from 0 to 1; classes need num"),
        ([0, 3], 3, "target: got 3 in row 1, expected classes 0 to 2, or labels"),
        ([[0.0, 1, 2]], 3, r"target: got \[0. 1. 2.\] in row 0, expected classes 0 to 2, or"),
        ([[1.0, 1, 0]], 3, "target: row 0 sums to 2, expected labels that sum to 1; those of"),
        ([1.0, 0.0], 3, r"target: got float32 of shape \(2,\), expected integer classes there"),
    ]:
        with pytest.raises((ValueError, TypeError), match=message):
            jaxbp.smooth_labels(np.array(target), 0.1, classes)
    assert jax.jit(lambda y: jaxbp.smooth_labels(y, 0.1))(np.array([[3.0]])).shape == (
        1,
        1,
    )  # not looked at


@pytest.mark.parametrize("name", HEADS)
def test_shapes_that_would_broadcast_are_refused(name):
    shape = (
        r"target: got shape \(4,\), expected \(4, 1\), the logits', such as target\[:, None\]|"
        r"target: got float32 of shape \(4,\), expected integer"
    )
    with pytest.raises((ValueError, TypeError), match=shape):
        HEADS[name].loss(jnp.zeros((4, 1)), jnp.zeros(4))
    if name != "softmax_cross_entropy":
        with pytest.raises(ValueError, match=r"the logits', such as target\[:, None\]"):
            HEADS[name].loss(jnp.zeros((4, 1)), jnp.zeros(4))


def test_too_few_labels_are_counted_as_labels():
    message = r"target: got shape \(3,\), expected \(4, 2\), the logits', or \(4,\) for integer"
    with pytest.raises(ValueError, match=message):
        heads.softmax_cross_entropy.loss(np.zeros((4, 2)), np.zeros(3, int))
