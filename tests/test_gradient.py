"""The proof: the hand-written gradient is the gradient."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from tables import ACTIVATIONS, HEADS, cases, random_batch, random_params

import jaxbp
from jaxbp import activations, heads
from jaxbp.checking import central_difference

pytestmark = pytest.mark.usefixtures("strict")
seeds = st.integers(0, 2**31)
#: every activation with one head, every head with one activation
ONE_OF_EACH = [(activation, "softmax_cross_entropy") for activation in ACTIVATIONS] + [
    ("tanh", head) for head in HEADS
]


def case_number(*names):
    """Differs from case to case, and not from run to run."""
    return zlib.crc32("/".join(map(str, names)).encode())


def reproducibly(number, examples):
    """So many examples; hypothesis makes the first of them of the first of each choice."""

    def decorate(check):
        return settings(max_examples=examples, derandomize=False, database=None)(
            seed(number)(check)
        )

    return decorate


@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize(("activation", "head"), cases())
def test_backprop_is_jax_grad(activation, head, depth):
    """Every activation × head × depth, over shapes, values, weights, soft labels and L2."""

    case = case_number(activation, head, depth)

    @reproducibly(case, examples=3 if depth == 1 else 1)
    @given(
        number=seeds,
        rows=st.sampled_from([4, 1]),
        outputs=st.sampled_from([3, 1]),
        l2=st.sampled_from([0.3, 0.0]),
        weighted=st.sampled_from([True, False]),
    )
    def check(number, rows, outputs, l2, weighted):
        number += case
        sizes = (3, *(4,) * depth, outputs)
        model = jaxbp.MLP(sizes, ACTIVATIONS[activation], HEADS[head], l2)
        params = random_params(model, number)
        batch = random_batch(model, rows, number, weighted=weighted)
        loss, grads = jaxbp.backprop(model, params, batch)
        reference_loss, reference = jaxbp.autodiff(model, params, batch)
        assert jaxbp.compare(grads, reference).relative_error < 1e-12
        np.testing.assert_allclose(loss, reference_loss, rtol=1e-13)

    with jax.enable_x64(True):
        check()


@pytest.mark.parametrize("depth", [0, 2])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_backprop_is_jax_grad_for_integer_labels(activation, depth, x64):
    case = case_number(activation, depth)

    @reproducibly(case, examples=4 if depth == 2 else 1)
    @given(number=seeds, outputs=st.sampled_from([5, 2, 1]), l2=st.sampled_from([0.3, 0.0]))
    def check(number, outputs, l2):
        number += case
        sizes = (3, *(4,) * depth, outputs)
        model = jaxbp.MLP(sizes, ACTIVATIONS[activation], heads.softmax_cross_entropy, l2)
        params = random_params(model, number)
        batch = random_batch(model, 4, number, integer=True)
        _, grads = jaxbp.backprop(model, params, batch)
        _, reference = jaxbp.autodiff(model, params, batch)
        assert jaxbp.compare(grads, reference).relative_error < 1e-12

    check()


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
        _, grads = jaxbp.backprop(model, params, batch)
        _, reference = jaxbp.autodiff(model, params, batch)
        assert jaxbp.compare(grads, reference).relative_error < 1e-12


@pytest.mark.parametrize("leading", [(), (5,), (2, 1, 3)], ids=str)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_backward_pass_is_the_vjp_of_the_forward_pass(activation, leading, x64):
    """For any cotangent of the logits, not only a loss's, and any leading batch axes."""
    model = jaxbp.MLP((3, 6, 4, 2), ACTIVATIONS[activation], heads.linear_squared_error)
    params = random_params(model, seed=1)
    rng = np.random.default_rng(2)
    x, cotangent = rng.normal(size=(*leading, 3)), rng.normal(size=(*leading, 2))
    logits, vjp = jax.vjp(lambda p, x: jaxbp.forward(model, p, x)[0], params, jnp.asarray(x))
    ours, residuals = jaxbp.forward(model, params, x)
    deltas = jaxbp.backward(params, residuals, jnp.asarray(cotangent))
    claimed = (jaxbp.gradients(residuals, deltas), jaxbp.input_gradient(params, deltas))
    assert jaxbp.compare(claimed, vjp(jnp.asarray(cotangent))).relative_error < 1e-13
    np.testing.assert_array_equal(ours, logits)


@pytest.mark.parametrize(("activation", "head"), ONE_OF_EACH)
def test_float32_as_users_run_it(activation, head):
    model = jaxbp.MLP((20, 30, 30, 5), ACTIVATIONS[activation], HEADS[head], l2=1e-3)
    params = random_params(model, 3, np.float32)
    batch = random_batch(model, 64, 4, dtype=np.float32)
    with jax.default_matmul_precision("highest"):
        loss, grads = jax.jit(jaxbp.backprop, static_argnums=0)(model, params, batch)
        _, reference = jax.jit(jaxbp.autodiff, static_argnums=0)(model, params, batch)
    assert jaxbp.compare(grads, reference).relative_error < 1e-5
    assert {leaf.dtype for leaf in jax.tree.leaves((loss, grads))} == {jnp.dtype("float32")}


@pytest.mark.parametrize(("activation", "head"), ONE_OF_EACH)
def test_backprop_is_the_slope_of_the_objective(activation, head, x64):
    """Against numerical differentiation, which shares nothing with either derivation."""
    model = jaxbp.MLP((3, 5, 4, 2), ACTIVATIONS[activation], HEADS[head], l2=0.1)
    params, batch = random_params(model, 5), random_batch(model, 7, 6)
    _, grads = jaxbp.backprop(model, params, batch)
    direction = random_params(model, 7)
    measured = central_difference(
        lambda p: jaxbp.objective(model, p, batch), params, direction, step=1e-5
    )
    claimed = sum(map(jnp.vdot, jax.tree.leaves(grads), jax.tree.leaves(direction)))
    np.testing.assert_allclose(claimed, measured, rtol=1e-7)


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
