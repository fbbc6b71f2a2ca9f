"""The proof: the hand-written gradient is the gradient."""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tables import ACTIVATIONS, HEADS, chosen, random_batch, random_params

import jaxbp
from jaxbp import activations, heads
from jaxbp.checking import central_difference

pytestmark = pytest.mark.usefixtures("strict")
seeds = st.integers(0, 2**31)
by_hand = jax.jit(jaxbp.backprop, static_argnums=0)
by_jax = jax.jit(jaxbp.autodiff, static_argnums=0)
#: every activation with one head, every head with one activation
ONE_OF_EACH = [(activation, "softmax_cross_entropy") for activation in ACTIVATIONS] + [
    ("tanh", head) for head in HEADS
]


@partial(jax.jit, static_argnums=0)
def both_gradients(sizes, activation, head, params, batch):
    """By hand and by jax.grad, of any activation and head: one program for all combinations."""
    loss = chosen(head, [each.loss for each in HEADS.values()])
    unit = chosen(activation, list(ACTIVATIONS.values()))
    model = jaxbp.MLP(sizes, unit, heads.Head(lambda logits: logits, loss), l2=0.3)
    return jaxbp.backprop(model, params, batch), jaxbp.autodiff(model, params, batch)


#: thrice every activation with every head, by their numbers
POINTS = 3 * list(product(range(len(ACTIVATIONS)), range(len(HEADS))))


@pytest.mark.parametrize("sizes", [(3, 2), (3, 4, 1), (3, 4, 3), (3, 4, 5, 4, 2)], ids=str)
def test_backprop_is_jax_grad(sizes, x64):
    """Every activation × head at every depth, with weights, soft labels and L2, at many points."""
    for number, (unit, head) in enumerate(POINTS):
        model = jaxbp.MLP(sizes, activations.tanh, heads.linear_squared_error)  # for its sizes
        params, batch = random_params(model, number), random_batch(model, 4, number)
        (loss, grads), (expected, reference) = both_gradients(sizes, unit, head, params, batch)
        names = list(ACTIVATIONS)[unit], list(HEADS)[head], number
        assert jaxbp.compare(grads, reference).relative_error < 1e-12, names
        np.testing.assert_allclose(loss, expected, rtol=1e-13)


@partial(jax.jit, static_argnums=(0, 1))
def both_gradients_of_classes(sizes, l2, activation, params, batch):
    unit = chosen(activation, list(ACTIVATIONS.values()))
    model = jaxbp.MLP(sizes, unit, heads.softmax_cross_entropy, l2)
    return jaxbp.backprop(model, params, batch), jaxbp.autodiff(model, params, batch)


@pytest.mark.parametrize("sizes", [(3, 5), (3, 4, 4, 2), (3, 4, 1)], ids=str)
def test_backprop_is_jax_grad_for_integer_labels(sizes, x64):
    """And without weights, and with or without a penalty."""
    for number in range(4 * len(ACTIVATIONS)):
        model = jaxbp.MLP(sizes, activations.tanh, heads.softmax_cross_entropy)  # for its sizes
        params = random_params(model, number)
        batch = random_batch(model, 4, number, integer=True, weighted=False)
        l2 = 0.3 * (number // len(ACTIVATIONS) % 2)
        (_, grads), (_, reference) = both_gradients_of_classes(
            sizes, l2, number % len(ACTIVATIONS), params, batch
        )
        assert jaxbp.compare(grads, reference).relative_error < 1e-12, number


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
    unit = chosen(activation, list(ACTIVATIONS.values()))
    model = jaxbp.MLP((3, 6, 4, 2), unit, heads.linear_squared_error)
    logits, vjp = jax.vjp(lambda p, x: jaxbp.forward(model, p, x)[0], params, x)
    ours, residuals = jaxbp.forward(model, params, x)
    deltas = jaxbp.backward(params, residuals, cotangent)
    claimed = (jaxbp.gradients(residuals, deltas), jaxbp.input_gradient(params, deltas))
    return (ours, claimed), (logits, vjp(cotangent))


@pytest.mark.parametrize("leading", [(), (5,), (2, 1, 3)], ids=str)
def test_the_backward_pass_is_the_vjp_of_the_forward_pass(leading, x64):
    """For any cotangent of the logits, not only a loss's, and any leading batch axes."""
    model = jaxbp.MLP((3, 6, 4, 2), activations.tanh, heads.linear_squared_error)
    for number, activation in enumerate(ACTIVATIONS):
        params, rng = random_params(model, number), np.random.default_rng(number)
        x, cotangent = rng.normal(size=(*leading, 3)), rng.normal(size=(*leading, 2))
        ours, theirs = both_pullbacks(number, params, jnp.asarray(x), jnp.asarray(cotangent))
        assert jaxbp.compare(ours, theirs).relative_error < 1e-13, activation


@pytest.mark.parametrize(("activation", "head"), ONE_OF_EACH)
def test_float32_as_users_run_it(activation, head):
    model = jaxbp.MLP((20, 30, 30, 5), ACTIVATIONS[activation], HEADS[head], l2=1e-3)
    params = random_params(model, 3, np.float32)
    batch = random_batch(model, 64, 4, dtype=np.float32)
    with jax.default_matmul_precision("highest"):
        loss, grads = by_hand(model, params, batch)
        _, reference = by_jax(model, params, batch)
    assert jaxbp.compare(grads, reference).relative_error < 1e-5
    assert {leaf.dtype for leaf in jax.tree.leaves((loss, grads))} == {jnp.dtype("float32")}


@partial(jax.jit, static_argnums=0)
def claimed_and_measured(sizes, activation, head, params, batch, direction):
    loss = chosen(head, [each.loss for each in HEADS.values()])
    unit = chosen(activation, list(ACTIVATIONS.values()))
    model = jaxbp.MLP(sizes, unit, heads.Head(lambda logits: logits, loss), l2=0.1)
    _, grads = jaxbp.backprop(model, params, batch)
    measured = central_difference(
        lambda p: jaxbp.objective(model, p, batch), params, direction, step=1e-5
    )
    return sum(map(jnp.vdot, jax.tree.leaves(grads), jax.tree.leaves(direction))), measured


def test_backprop_is_the_slope_of_the_objective(x64):
    """Against numerical differentiation, which shares nothing with either derivation."""
    sizes = (3, 5, 4, 2)
    model = jaxbp.MLP(sizes, activations.tanh, heads.linear_squared_error)
    params, direction = random_params(model, 5), random_params(model, 7)
    batch = random_batch(model, 7, 6)
    for unit, head in POINTS[: len(ACTIVATIONS) * len(HEADS)]:
        claimed, measured = claimed_and_measured(sizes, unit, head, params, batch, direction)
        np.testing.assert_allclose(claimed, measured, rtol=1e-7, err_msg=f"{unit}, {head}")


def small_problem(dtype=np.float64):
    model = jaxbp.MLP((3, 5, 2), activations.tanh, heads.linear_squared_error)
    return model, random_params(model, 8, dtype), random_batch(model, 6, 9, dtype=dtype)


def test_a_row_of_weight_two_is_two_rows(x64):
    model, params, (x, target, _) = small_problem()
    twice = jaxbp.Batch(jnp.vstack([x, x[:1]]), jnp.vstack([target, target[:1]]))
    weighted = jaxbp.Batch(x, target, jnp.ones(6).at[0].set(2))
    claimed, reference = (jaxbp.backprop(model, params, batch) for batch in (weighted, twice))
    assert jaxbp.compare(claimed, reference).relative_error < 1e-14


def test_rows_of_weight_zero_do_not_count(x64):
    model, params, (x, target, _) = small_problem()
    weighted = jaxbp.Batch(x, target, jnp.arange(6.0) % 2)
    rest = jaxbp.Batch(x[1::2], target[1::2])
    claimed, reference = (jaxbp.backprop(model, params, batch) for batch in (weighted, rest))
    assert jaxbp.compare(claimed, reference).relative_error < 1e-14
    loss, grads = jaxbp.backprop(model, params, rest._replace(weight=jnp.zeros(3)))
    assert loss == 0
    assert all(not leaf.any() for leaf in jax.tree.leaves(grads))


def test_l2_decays_weights_and_not_biases(x64):
    model, params, batch = small_problem()
    _, plain = jaxbp.backprop(model, params, batch)
    loss, decayed = jaxbp.backprop(model._replace(l2=0.5), params, batch)
    for layer, before, after in zip(params, plain, decayed, strict=True):
        np.testing.assert_allclose(after.weight, before.weight + 0.5 * layer.weight)
        np.testing.assert_array_equal(after.bias, before.bias)
    squares = sum(float(jnp.sum(layer.weight**2)) for layer in params)
    np.testing.assert_allclose(loss, jaxbp.objective(model, params, batch) + 0.25 * squares)


def test_the_gradient_is_the_sum_of_the_examples_gradients(x64):
    """DSC 190, lecture 14: the gradient has one term for each training example."""
    model, params, batch = small_problem()
    batch = batch._replace(weight=None)
    _, grads = jaxbp.backprop(model, params, batch)
    each = jax.vmap(lambda x, t: jaxbp.backprop(model, params, jaxbp.Batch(x, t))[1])
    terms = each(batch.x, batch.target)
    assert (
        jaxbp.compare(jax.tree.map(lambda leaf: leaf.mean(0), terms), grads).relative_error < 1e-14
    )


def test_input_gradient(x64):
    model, params, batch = small_problem()
    logits, residuals = jaxbp.forward(model, params, batch.x)
    _, error = model.head.loss(logits, batch.target)
    claimed = jaxbp.input_gradient(params, jaxbp.backward(params, residuals, error))
    total = lambda x: model.head.loss(jaxbp.forward(model, params, x)[0], batch.target)[0].sum()  # noqa: E731
    assert jaxbp.compare(claimed, jax.grad(total)(batch.x)).relative_error < 1e-14


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
        (batch._replace(weight=jnp.ones((6, 1))), r"weight: got shape \(6, 1\), expected \(6,\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            gradient(model, params, wrong)
    with pytest.raises(
        ValueError, match=r"params: got weights and biases \[\(\(5, 3\), \(5,\)\)\]"
    ):
        gradient(model, params[:1], batch)
