"""The proof: the hand-written gradient is the gradient."""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from combinations import ACTIVATIONS, HEADS, any_model, chosen, numbers, thinned
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxbp
from benchmarks.problems import random_batch, random_params
from jaxbp import activations, heads
from jaxbp.checking import central_difference

pytestmark = pytest.mark.usefixtures("strict")
slow = pytest.mark.slow
seeds = st.integers(0, 2**31)
by_hand = jax.jit(jaxbp.backprop, static_argnums=0)
by_jax = jax.jit(jaxbp.autodiff, static_argnums=0)
#: every activation with every head, by their numbers
COMBINATIONS = list(product(range(len(ACTIVATIONS)), range(len(HEADS))))
#: every activation with one head, every head with one activation
ONE_OF_EACH = [(activation, "softmax_cross_entropy") for activation in ACTIVATIONS] + [
    ("tanh", head) for head in HEADS
]
DEEP = (3, 4, 5, 4, 2)


def sized(*sizes):
    """A network for its sizes: to draw parameters and batches for."""
    return jaxbp.MLP(sizes, activations.tanh, heads.softmax_cross_entropy)


@partial(jax.jit, static_argnums=(0, 1))
def both_gradients(sizes, l2, activation, head, params, batch):
    """By hand and by jax.grad, of any activations and head: one program for all combinations."""
    model = any_model(sizes, activation, head, l2)
    return jaxbp.backprop(model, params, batch), jaxbp.autodiff(model, params, batch)


@pytest.mark.parametrize(
    "sizes",
    [(3, 1), DEEP, *(pytest.param(each, marks=slow) for each in [(3, 2), (3, 4, 1), (3, 4, 3)])],
    ids=str,
)
def test_backprop_is_jax_grad(sizes, x64):
    """Every activation × head at every depth, with weights, soft labels and L2, at many points:
    first with one activation, then with other ones in the layers above."""
    for shift, (unit, head) in product(range(3), COMBINATIONS):
        units = tuple((unit + shift * layer) % len(ACTIVATIONS) for layer in range(len(sizes) - 2))
        number = len(COMBINATIONS) * shift + len(HEADS) * unit + head
        params = random_params(sized(*sizes), number)
        batch = random_batch(sized(*sizes), 4, number)
        (loss, grads), (expected, reference) = both_gradients(
            sizes, 0.3, units, head, params, batch
        )
        names = units, list(HEADS)[head], number
        assert jaxbp.compare(grads, reference).relative_error < 1e-12, names
        np.testing.assert_allclose(loss, expected, rtol=1e-13)


@partial(jax.jit, static_argnums=(0, 1))
def both_gradients_of_classes(sizes, l2, activation, params, batch):
    unit = chosen(activation, list(ACTIVATIONS.values()))
    model = jaxbp.MLP(sizes, unit, heads.softmax_cross_entropy, l2)
    return jaxbp.backprop(model, params, batch), jaxbp.autodiff(model, params, batch)


@pytest.mark.parametrize(
    "sizes",
    [(3, 5), pytest.param((3, 4, 4, 2), marks=slow), pytest.param((3, 4, 1), marks=slow)],
    ids=str,
)
@pytest.mark.parametrize("l2", [0.0, 0.3])
def test_backprop_is_jax_grad_for_integer_labels(sizes, l2, x64):
    """And without weights, and with or without a penalty."""
    for number in range(2 * len(ACTIVATIONS)):
        params = random_params(sized(*sizes), number)
        batch = random_batch(sized(*sizes), 4, number, integer=True, weighted=False)
        (_, grads), (_, reference) = both_gradients_of_classes(
            sizes, l2, number % len(ACTIVATIONS), params, batch
        )
        assert jaxbp.compare(grads, reference).relative_error < 1e-12, number


@slow
@given(
    number=seeds,
    hidden=st.lists(st.tuples(st.integers(1, 5), st.sampled_from(sorted(ACTIVATIONS))), max_size=3),
    inputs=st.integers(1, 5),
    outputs=st.integers(1, 5),
    rows=st.integers(1, 6),
)
@settings(max_examples=3)
def test_any_architecture(number, hidden, inputs, outputs, rows):
    """A different activation and a different width in every hidden layer."""
    with jax.enable_x64(True):
        sizes = (inputs, *(size for size, _ in hidden), outputs)
        units = tuple(ACTIVATIONS[name] for _, name in hidden)
        model = jaxbp.MLP(sizes, units, heads.softmax_cross_entropy, l2=0.1)
        params, batch = random_params(model, number), random_batch(model, rows, number)
        _, grads = by_hand(model, params, batch)
        _, reference = by_jax(model, params, batch)
        assert jaxbp.compare(grads, reference).relative_error < 1e-12


@jax.jit
def both_pullbacks(activation, params, x, cotangent):
    """Of any cotangent of the logits, by hand and by jax.vjp; and the logits of both."""
    model = any_model((3, 6, 4, 2), activation, 0)
    logits, vjp = jax.vjp(lambda p, x: jaxbp.forward(model, p, x)[0], params, x)
    ours, residuals = jaxbp.forward(model, params, x)
    deltas = jaxbp.backward(params, residuals, cotangent)
    claimed = (jaxbp.gradients(residuals, deltas), jaxbp.input_gradient(params, deltas))
    return (ours, claimed), (logits, vjp(cotangent))


@pytest.mark.parametrize(
    "leading", [pytest.param((), marks=slow), pytest.param((5,), marks=slow), (2, 1, 3)], ids=str
)
def test_the_backward_pass_is_the_vjp_of_the_forward_pass(leading, x64):
    """For any cotangent of the logits, not only a loss's, and any leading batch axes."""
    for number, activation in enumerate(ACTIVATIONS):
        params, rng = random_params(sized(3, 6, 4, 2), number), np.random.default_rng(number)
        x, cotangent = rng.normal(size=(*leading, 3)), rng.normal(size=(*leading, 2))
        ours, theirs = both_pullbacks(number, params, jnp.asarray(x), jnp.asarray(cotangent))
        assert jaxbp.compare(ours, theirs).relative_error < 1e-13, activation


@pytest.mark.parametrize(("activation", "head"), thinned(ONE_OF_EACH, every=4))
def test_float32_as_users_run_it(activation, head):
    sizes = (20, 30, 30, 5)
    params = random_params(sized(*sizes), 3, np.float32)
    batch = random_batch(sized(*sizes), 64, 4, dtype=np.float32)
    with jax.default_matmul_precision("highest"):
        (loss, grads), (_, reference) = both_gradients(
            sizes, 1e-3, *numbers(activation, head), params, batch
        )
    assert jaxbp.compare(grads, reference).relative_error < 1e-5
    assert {leaf.dtype for leaf in jax.tree.leaves((loss, grads))} == {jnp.dtype("float32")}


def test_backprop_is_the_slope_of_the_objective(x64):
    """Against numerical differentiation, which shares nothing with either derivation."""
    params, direction = (
        jax.tree.map(np.asarray, random_params(sized(*DEEP), seed)) for seed in (5, 7)
    )
    batch = random_batch(sized(*DEEP), 4, 6)
    for unit, head in COMBINATIONS:
        both = partial(both_gradients, DEEP, 0.3, (unit,) * 3, head)
        (_, grads), _ = both(params, batch)
        measured = central_difference(lambda p: both(p, batch)[1][0], params, direction, step=1e-5)  # noqa: B023
        claimed = sum(map(np.vdot, jax.tree.leaves(grads), jax.tree.leaves(direction)))
        np.testing.assert_allclose(claimed, measured, rtol=1e-7, err_msg=f"{unit}, {head}")


def small_problem(dtype=np.float64):
    model = jaxbp.MLP((3, 5, 2), activations.tanh, heads.linear_squared_error)
    return model, random_params(model, 8, dtype), random_batch(model, 6, 9, dtype=dtype)


def test_a_row_of_weight_two_is_two_rows(x64):
    model, params, (x, target, _) = small_problem()
    twice = jaxbp.Batch(np.vstack([x, x[:1]]), np.vstack([target, target[:1]]))
    weighted = jaxbp.Batch(x, target, np.array([2.0, 1, 1, 1, 1, 1]))
    claimed, reference = (by_hand(model, params, batch) for batch in (weighted, twice))
    assert jaxbp.compare(claimed, reference).relative_error < 1e-14


def test_rows_of_weight_zero_do_not_count(x64):
    model, params, (x, target, _) = small_problem()
    weighted = jaxbp.Batch(x, target, np.arange(6) % 2 == 1)
    rest = jaxbp.Batch(x[1::2], target[1::2])
    claimed, reference = (by_hand(model, params, batch) for batch in (weighted, rest))
    assert jaxbp.compare(claimed, reference).relative_error < 1e-14
    loss, grads = by_hand(model, params, weighted._replace(weight=np.zeros(6)))
    assert loss == 0
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(grads))


def test_l2_decays_weights_and_not_biases(x64):
    model, params, batch = small_problem()

    @jax.jit  # one program, so that what is the same comes out the same to the last bit
    def without_and_with(params, batch):
        (_, plain), (loss, decayed) = (
            jaxbp.backprop(model._replace(l2=l2), params, batch) for l2 in (0.0, 0.5)
        )
        return plain, decayed, loss, jaxbp.objective(model, params, batch)

    plain, decayed, loss, data_loss = without_and_with(params, batch)
    for layer, before, after in zip(params, plain, decayed, strict=True):
        np.testing.assert_allclose(after.weight, before.weight + 0.5 * np.asarray(layer.weight))
        np.testing.assert_array_equal(after.bias, before.bias)
    squares = sum(np.sum(np.asarray(layer.weight) ** 2) for layer in params)
    np.testing.assert_allclose(loss, data_loss + 0.25 * squares)


def test_the_gradient_is_the_sum_of_the_examples_gradients(x64):
    """DSC 190, lecture 14: the gradient has one term for each training example."""
    model, params, batch = small_problem()

    @jax.jit
    def whole_and_terms(x, target):
        one = lambda x, target: jaxbp.backprop(model, params, jaxbp.Batch(x, target))[1]  # noqa: E731
        return one(x, target), jax.vmap(one)(x, target)

    grads, terms = whole_and_terms(batch.x, batch.target)
    mean = jax.tree.map(lambda leaf: np.mean(leaf, axis=0), terms)
    assert jaxbp.compare(mean, grads).relative_error < 1e-14


def test_input_gradient(x64):
    model, params, batch = small_problem()

    @jax.jit
    def by_hand_and_by_jax(x):
        logits, residuals = jaxbp.forward(model, params, x)
        _, error = model.head.loss(logits, batch.target)
        total = lambda x: model.head.loss(jaxbp.forward(model, params, x)[0], batch.target)[0].sum()  # noqa: E731
        return (
            jaxbp.input_gradient(params, jaxbp.backward(params, residuals, error)),
            jax.grad(total)(x),
        )

    assert jaxbp.compare(*by_hand_and_by_jax(batch.x)).relative_error < 1e-14


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_stays_what_it_is(dtype):
    model = jaxbp.MLP((4, 8, 3), activations.gelu, heads.softmax_cross_entropy, l2=0.1)
    params, batch = random_params(model, 0, dtype), random_batch(model, 5, 0, dtype=dtype)
    loss, grads = jax.eval_shape(lambda p: jaxbp.backprop(model, p, batch), params)
    assert {leaf.dtype for leaf in jax.tree.leaves((loss, grads))} == {jnp.dtype(dtype)}


@pytest.mark.parametrize("gradient", [jaxbp.backprop, jaxbp.autodiff, jaxbp.objective])
def test_what_does_not_fit_is_named(gradient):
    model, params, batch = small_problem(np.float32)
    for wrong, message in [
        (batch._replace(x=batch.x[:, :2]), r"x: got shape \(6, 2\), expected \(..., 3\)"),
        (batch._replace(target=batch.target[:, 0]), r"target: got shape \(6,\), expected \(6, 2\)"),
        (batch._replace(target=batch.target[:4]), r"target: got shape \(4, 2\), expected \(6, 2\)"),
        (batch._replace(weight=np.ones((6, 1))), r"weight: got shape \(6, 1\), expected \(6,\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(partial(gradient, model), params, wrong)
    with pytest.raises(
        ValueError, match=r"params: got weights and biases \[\(\(5, 3\), \(5,\)\)\]"
    ):
        gradient(model, params[:1], batch)
