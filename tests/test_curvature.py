"""Curvature: the hand-written R-operator against jax.jvp of jax.grad, and what it is good for."""

import importlib.util
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from combinations import ACTIVATIONS, HEADS, ONE_OF_EACH, any_model, made, numbers, sgd, thinned
from jax.flatten_util import ravel_pytree

import jaxbp
from benchmarks.problems import random_batch, random_params
from jaxbp import batch_methods, curvature

slow = pytest.mark.slow
SIZES = (3, 5, 4, 2)
compiled = partial(jax.jit, static_argnums=0)  # outside jit each operation is compiled by itself
by_hand = compiled(jaxbp.backprop)
objective = compiled(jaxbp.objective)
gauss_newton_vector_product = compiled(curvature.gauss_newton_vector_product)
kronecker_factors = compiled(curvature.kronecker_factors)
CONVEX = [head for head in HEADS if head != "sigmoid_squared_error"]


def problem(activation="tanh", head="softmax_cross_entropy", l2=0.3):
    model = jaxbp.MLP(SIZES, ACTIVATIONS[activation], HEADS[head], l2)
    return model, random_params(model, 1), random_batch(model, 6, 2)


def two_vectors(model, dtype=np.float64):
    """Two trees like params in one: each leaf with an axis in front."""
    return jax.tree.map(lambda *v: np.stack(v), *(random_params(model, n, dtype) for n in (7, 8)))


def rows_of(tree):
    """Leaves with an axis in front, as one matrix."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    return np.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)


def hessian_products(model, params, batch, vectors):
    """Of every vector, by hand and by jax.jvp of jax.grad."""
    gradient = lambda p: jax.grad(jaxbp.objective, argnums=1)(model, p, batch)  # noqa: E731
    by_r_operator = lambda v: curvature.hessian_vector_product(model, params, batch, v)  # noqa: E731
    by_autodiff = lambda v: jax.jvp(gradient, (params,), (v,))[1]  # noqa: E731
    return jax.vmap(by_r_operator)(vectors), jax.vmap(by_autodiff)(vectors)


@partial(jax.jit, static_argnums=0)
def any_hessian_products(above, activation, head, *args):
    """One program for all combinations; with another activation above, or the same."""
    model = any_model(SIZES, (activation, above or activation), head, l2=0.3)
    return hessian_products(model, *args)


@pytest.mark.parametrize("above", [ACTIVATIONS["tanh"], pytest.param(None, marks=slow)])
@pytest.mark.parametrize(("activation", "head"), thinned(ONE_OF_EACH, every=4))
def test_the_r_operator_is_the_derivative_of_the_gradient(activation, head, above, x64):
    model, params, batch = problem(activation, head)
    vectors = two_vectors(model)
    with jax.numpy_dtype_promotion("strict"):
        claimed, reference = any_hessian_products(
            above, *numbers(activation, head), params, batch, vectors
        )
    assert jaxbp.compare(claimed, reference).relative_error < 1e-12
    (of_u, of_v), (u, v) = map(rows_of, (claimed, vectors))
    np.testing.assert_allclose(v @ of_u, u @ of_v, rtol=1e-10)  # the matrix is symmetric


@slow
def test_the_r_operator_is_the_slope_of_backprop(x64):
    """Against differences of the hand-written gradient, which know nothing of jax.jvp."""
    model, params, batch = problem("gelu", "exp_poisson")
    model = model._replace(activation=(ACTIVATIONS["gelu"], ACTIVATIONS["tanh"]))
    vectors = two_vectors(model)

    def gradient_at(by):
        moved = jax.tree.map(lambda leaf, v: np.asarray(leaf) + by * v[0], params, vectors)
        _, grads = by_hand(model, moved, batch)
        return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(grads)])

    measured = (gradient_at(1e-5) - gradient_at(-1e-5)) / 2e-5
    claimed, _ = any_hessian_products(
        ACTIVATIONS["tanh"], *numbers("gelu", "exp_poisson"), params, batch, vectors
    )
    assert jaxbp.compare(rows_of(claimed)[0], measured).relative_error < 1e-7


def logits_curvature(model, params, batch, vector):
    """Jᵀ H J v by autodiff: the network linearised, the loss's Hessian by jax.hessian."""
    logits, vjp = jax.vjp(lambda p: jaxbp.forward(model, p, batch.x)[0], params)
    _, tangent = jax.jvp(lambda p: jaxbp.forward(model, p, batch.x)[0], (params,), (vector,))
    of_one = lambda a, t: model.head.loss(a[None], t[None])[0][0]  # noqa: E731
    hessians = jax.vmap(jax.hessian(of_one))(logits, batch.target)
    share = batch.weight / jnp.sum(batch.weight)
    (product,) = vjp(share[:, None] * jnp.einsum("nij,nj->ni", hessians, tangent))
    return jaxbp.gradient.with_penalty(model, vector, product)


def gauss_newton_products(model, params, batch, vectors):
    """Of every row of a matrix, by hand and by autodiff."""
    _, unravel = ravel_pytree(params)
    return tuple(
        jax.vmap(lambda row: ravel_pytree(product(model, params, batch, unravel(row)))[0])(vectors)  # noqa: B023
        for product in (curvature.gauss_newton_vector_product, logits_curvature)
    )


@jax.jit
def any_gauss_newton_products(head, *args):
    """One program for all heads that have no product of their own."""
    return gauss_newton_products(any_model(SIZES, ACTIVATIONS["silu"], head, l2=0.3), *args)


@pytest.mark.parametrize("head", thinned(HEADS, every=2))
def test_gauss_newton_is_symmetric_positive_semidefinite_and_right(head, x64):
    model, params, batch = problem("silu", head)
    decays = np.concatenate([np.ravel(leaf) for layer in params for leaf in penalty_of(layer)])
    u, v = vectors = np.random.default_rng(0).normal(size=(2, decays.size))
    arguments = params, batch, np.vstack([vectors, np.eye(decays.size)])
    claimed, reference = (
        any_gauss_newton_products(list(HEADS).index(head), *arguments)
        if HEADS[head].gauss_newton is None
        else compiled(gauss_newton_products)(model, *arguments)
    )
    of_u, of_v, *matrix = np.asarray(claimed)
    np.testing.assert_allclose(v @ of_u, u @ of_v, rtol=1e-10)
    if head in CONVEX:
        assert jaxbp.compare(claimed, reference).relative_error < 1e-12
    eigenvalues = np.linalg.eigvalsh(matrix - np.diag(decays))
    assert eigenvalues.min() > -1e-10 * max(eigenvalues.max(), 1)
    assert head == "linear_absolute_error" or eigenvalues.max() > 1e-3


def penalty_of(layer):
    """What the penalty adds to the diagonal."""
    return np.full(np.shape(layer.weight), 0.3), np.zeros(np.shape(layer.bias))


def test_gauss_newton_of_a_squared_sigmoid_is_that_of_least_squares(x64):
    """Not convex in its logits, it is linearised at the prediction: Σ 2 JᵀJ, J of ŷ."""
    model, params, batch = problem("tanh", "sigmoid_squared_error", l2=0.0)
    v = random_params(model, 7)
    predicted = lambda p: jaxbp.predict(model, p, batch.x)  # noqa: E731
    share = batch.weight / jnp.sum(batch.weight)

    @jax.jit
    def least_squares(params, v):
        _, tangent = jax.jvp(predicted, (params,), (v,))
        return jax.vjp(predicted, params)[1](2 * share[:, None] * tangent)

    (expected,) = least_squares(params, v)
    claimed = gauss_newton_vector_product(model, params, batch, v)
    assert jaxbp.compare(claimed, expected).relative_error < 1e-13


def test_kronecker_factors_are_the_means_they_are_said_to_be(x64):
    """Against δ from jax.grad with respect to pre-activations, by adding zeros to them."""
    model, params, batch = problem("elu", l2=0.0)

    def loss(taps, x, target):
        z = x
        inputs = []
        for number, (layer, tap) in enumerate(zip(params, taps, strict=True)):
            inputs.append(jnp.append(z, 1.0))
            a = layer.weight @ z + layer.bias + tap
            z, _ = ACTIVATIONS["elu"](a) if number < 2 else (a, None)
        return model.head.loss(z, target)[0], inputs

    taps = tuple(np.zeros(size) for size in model.sizes[1:])
    of_rows = jax.jit(jax.vmap(jax.grad(loss, has_aux=True), (None, 0, 0)))
    deltas, inputs = jax.tree.map(np.asarray, of_rows(taps, batch.x, batch.target))
    share = np.asarray(batch.weight) / np.sum(batch.weight)
    factors = kronecker_factors(model, params, batch)
    for factor, z, delta in zip(factors, inputs, deltas, strict=True):
        np.testing.assert_allclose(factor.input, (z.T * share) @ z, rtol=1e-12)
        np.testing.assert_allclose(factor.delta, (delta.T * share) @ delta, rtol=1e-10, atol=1e-16)


def test_of_one_example_the_factors_are_its_gradients_outer_product(x64):
    """The approximation of Martens and Grosse is exact there: F = ggᵀ = input ⊗ delta."""
    model, params, batch = problem("tanh", l2=0.0)
    one = jax.tree.map(lambda leaf: leaf[:1], batch)
    _, grads = by_hand(model, params, one)
    factors = kronecker_factors(model, params, one)
    for layer, factor in zip(grads, factors, strict=True):
        columns = np.column_stack([layer.weight, layer.bias]).T.reshape(-1)  # vec, by column
        fisher = np.kron(factor.input, factor.delta)
        np.testing.assert_allclose(np.outer(columns, columns), fisher, rtol=1e-10, atol=1e-16)


@pytest.mark.slow
def test_float32_as_users_run_it():
    model = jaxbp.MLP((20, 30, 30, 5), ACTIVATIONS["tanh"], HEADS["softmax_cross_entropy"], 1e-3)
    params = random_params(model, 3, np.float32)
    vectors = two_vectors(model, np.float32)
    batch = random_batch(model, 64, 5, dtype=np.float32)
    with jax.default_matmul_precision("highest"):
        claimed, reference = compiled(hessian_products)(model, params, batch, vectors)
    assert jaxbp.compare(claimed, reference).relative_error < 1e-5


@pytest.mark.parametrize(
    "product", [curvature.hessian_vector_product, curvature.gauss_newton_vector_product]
)
def test_a_vector_that_does_not_fit_is_named(product, x64):
    model, params, batch = problem()
    with pytest.raises(ValueError, match=r"vector: got .*, expected the shapes of params, "):
        jax.eval_shape(partial(product, model), params, batch, params[:2])
    whole = tuple(jaxbp.Layer(*(np.ones(leaf.shape, int) for leaf in layer)) for layer in params)
    jax.eval_shape(partial(product, model), params, batch, whole)  # in the dtype of params
    turned = tuple(jaxbp.Layer(np.transpose(layer.weight), layer.bias) for layer in params)
    with pytest.raises(ValueError, match=r"vector: got \(Layer\(weight=\(3, 5\), bias=\(5,\)\)"):
        jax.eval_shape(partial(product, model), params, batch, turned)


# The lectures' batch methods, by counting what they cost

EVALUATIONS = 60
METHODS = {
    "nonlinear_cg": (batch_methods.nonlinear_cg, 1),
    "bfgs": (batch_methods.bfgs, 1),
    "truncated_newton": (partial(batch_methods.truncated_newton, 5), 1 + 5 + 1),
    "lbfgs": (partial(optax.lbfgs, linesearch=optax.scale_by_zoom_linesearch(15)), 2),
}


class Counted:
    """backprop, and how often it was really run."""

    def __init__(self):
        self.number = 0

    def __call__(self, model, params, batch):
        loss, grads = jaxbp.backprop(model, params, batch)
        jax.debug.callback(self.count, loss)
        return loss, grads

    def count(self, _):
        self.number += 1


def full_batch(optimizer, epochs, gradient=jaxbp.backprop):
    """The loss on all rows after training, and the record of it; one network for all methods."""
    diabetes = jaxbp.data.load("diabetes").train
    model = jaxbp.MLP((10, 16, 1), ACTIVATIONS["tanh"], HEADS["linear_squared_error"], l2=1e-4)
    params, history = jaxbp.fit(
        model,
        diabetes,
        optimizer=optimizer,
        epochs=epochs,
        batch_size=None,
        key=jax.random.key(0),
        gradient=gradient,
    )
    return float(objective(model, params, diabetes)), history.training_loss


@pytest.fixture(scope="module")
def gradient_descent():
    """The best that plain gradient descent does in so many evaluations, its rate tuned."""
    pytest.importorskip("sklearn")
    results = []
    for rate in (0.1, 0.3, 0.5):
        try:
            results.append(full_batch(sgd(rate), EVALUATIONS)[0])
        except jaxbp.NonFiniteLossError:
            continue
    assert len(results) >= 2
    return min(results)


@slow
@pytest.mark.parametrize("name", METHODS)
def test_batch_methods_beat_gradient_descent(name, gradient_descent):
    """ "Batch methods: conjugate gradient descent and quasi-Newton methods are more robust and
    faster than batch gradient descent, and decrease the error function at each iteration"
    (the slides "Training Neural Networks"): for the same number of gradient evaluations, counted
    where they are made; a product with the Gauss-Newton matrix counts as one."""
    if name in {"nonlinear_cg", "bfgs"} and not importlib.util.find_spec("optimistix"):
        pytest.skip("optimistix is not installed")
    make, cost = METHODS[name]
    optimizer, counted = make(), Counted()
    epochs = EVALUATIONS // cost
    loss, record = full_batch(optimizer, epochs, counted)
    jax.effects_barrier()
    products = 5 * epochs if name == "truncated_newton" else 0
    evaluations = counted.number + products
    if evaluations > EVALUATIONS:  # line searches cost what they cost: so many fewer steps
        counted.number = 0
        epochs = epochs * EVALUATIONS // evaluations
        loss, record = full_batch(optimizer, epochs, counted)
        jax.effects_barrier()
        evaluations = counted.number + products
    assert evaluations <= EVALUATIONS
    assert loss < gradient_descent
    assert np.all(np.diff(record) <= 1e-6)


def test_a_missing_optimistix_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optimistix", None)
    with pytest.raises(ModuleNotFoundError, match=r"need optimistix: pip install 'jaxbp\[batch\]'"):
        batch_methods.bfgs()
    with pytest.raises(ValueError, match="iterations, damping: got 0 and 1"):
        batch_methods.truncated_newton(0)
    with pytest.raises(ValueError, match="method: got 'newton', expected one of fletcher_reeves"):
        batch_methods.nonlinear_cg("newton")


@slow
@pytest.mark.parametrize("start", [1e-30, 1e30])
def test_trust_is_neither_lost_nor_blind_for_ever(start):
    """However far the damping has gone, it comes back; and who has converged stays there."""
    optimizer = batch_methods.truncated_newton(damping=start)
    loss, record = full_batch(optimizer, 60)
    assert loss < record[0]
    model = jaxbp.MLP((1, 1), (), HEADS["linear_half_squared_error"])
    there = (jaxbp.Layer(jnp.ones((1, 1)), jnp.zeros(1)),)
    batch = jaxbp.Batch(jnp.ones((2, 1)), jnp.ones((2, 1)))
    options = {"epochs": 90, "key": jax.random.key(0), "params": there}
    params, _ = jaxbp.fit(model, batch, optimizer=optimizer, batch_size=None, **options)
    assert jaxbp.compare(params, there).relative_error == 0


NEWTON = partial(batch_methods.truncated_newton, 5)


@compiled
def newton_step(model, damping, params, batch):
    step = jaxbp.make_step(model, made(NEWTON, 1.0))
    (moved, state), _ = step((params, batch_methods.TruncatedNewtonState(damping)), batch)
    return moved, state.damping


@pytest.mark.parametrize(
    ("surprise", "damping", "factor"),
    [
        (0.5, 1e-3, 1 / 3),  # 0.81 of the promise is kept
        (1.0, 1e-3, 1),  # 0.56
        (1.5, 1e-3, 4),  # 0.24
        (1e3, 1e-3, 4),  # the objective overflows there
        (0.5, 1.0, 1 / 3),  # a shorter step
        (0.0, 1e-3, 1 / 3),  # converged
        (0.5, 1e30, 1e-22),  # damping from beyond what comes back in time
        (0.5, 1e-30, 1e22),
    ],
)
def test_truncated_newton_steps_as_far_as_it_trusts_the_quadratic(surprise, damping, factor, x64):
    """For E = eᵃ - y a, a = w + b at 0, the gradient is 1 - y in both and G is of ones: the step is
    (y - 1) / (2 + μ) in both; it is not made where E does not fall."""
    model = jaxbp.MLP((1, 1), (), HEADS["exp_poisson"])
    params = (jaxbp.Layer(np.zeros((1, 1)), np.zeros(1)),)
    batch = jaxbp.Batch(np.ones((1, 1)), np.array([[1 + surprise]]))
    (moved,), after = newton_step(model, damping, params, batch)
    expected = surprise / (2 + damping) if surprise < 2 else 0
    np.testing.assert_allclose([moved.weight.item(), moved.bias.item()], expected, 1e-12, 1e-20)
    np.testing.assert_allclose(after, damping * factor, rtol=1e-12)


@pytest.mark.slow
def test_bfgs_meets_the_minimum_of_a_quadratic(x64):
    pytest.importorskip("optimistix")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, 2))
    batch = jaxbp.Batch(x, x @ [[2.0], [-1.0]] + 0.5)
    model = jaxbp.MLP((2, 1), (), HEADS["linear_half_squared_error"])
    (fitted,), history = jaxbp.fit(
        model,
        batch,
        optimizer=batch_methods.bfgs(),
        epochs=30,
        batch_size=None,
        key=jax.random.key(0),
        params=random_params(model, 3),
    )
    np.testing.assert_allclose([*np.ravel(fitted.weight), *fitted.bias], [2, -1, 0.5], rtol=1e-6)
    assert np.all(np.diff(history.training_loss) <= 1e-15)


def test_a_batch_method_takes_the_whole_batch():
    model = jaxbp.MLP((1, 1), (), HEADS["linear_half_squared_error"])
    batch = jaxbp.Batch(np.ones((2, 1)), np.ones((2, 1)))
    options = {"optimizer": made(NEWTON, 1.0), "epochs": 1, "key": jax.random.key(0)}
    refused = pytest.raises(
        ValueError, match="batch_size: got 1, expected None: the optimizer is a full-batch"
    )
    with refused:
        jaxbp.fit(model, batch, batch_size=1, **options)
    for method in (NEWTON(1.0), batch_methods.nonlinear_cg(), optax.lbfgs()):
        options["optimizer"] = optax.chain(optax.clip_by_global_norm(1.0), method)
        with refused:
            jaxbp.fit(model, batch, batch_size=1, **options)
    with refused:
        jaxbp.fit_many(
            model,
            batch,
            keys=jax.random.split(jax.random.key(0), 2),
            learning_rate=0.1,
            optimizer=lambda rate: batch_methods.truncated_newton(),
            epochs=1,
            batch_size=1,
        )


@pytest.mark.slow
def test_a_batch_method_works_in_a_chain():
    model = jaxbp.MLP((1, 1), (), HEADS["linear_half_squared_error"])
    batch = jaxbp.Batch(np.ones((2, 1), np.float32), np.ones((2, 1), np.float32))
    alone, chained = (
        jaxbp.fit(model, batch, optimizer=each, epochs=3, batch_size=None, key=jax.random.key(0))[0]
        for each in (made(NEWTON, 1.0), optax.chain(made(NEWTON, 1.0), optax.scale(1.0)))
    )
    assert jaxbp.compare(alone, chained).relative_error == 0
