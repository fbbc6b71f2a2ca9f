"""Every formula, number and claim of the five lectures that can be computed, one small test each.

The lectures, and the prefix of their tests:

    dsc190     DSC 190, Machine Learning: Representations, lecture 14 part 1: Basic Backpropagation
    muzaffar   S. I. Muzaffar, Deep Learning: Training Neural Networks, Forward and Backward
    chapter17  Chapter 17: Vanishing Gradients; ReLUs; Output Units and Losses; Neurobiology
    nets       Backpropagation in Neural Nets
    notes      Lecture notes: activations, losses, computation graphs, SGD

Where a lecture is wrong, or differs from this package's convention, its test says so.
"""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxbp
from benchmarks import problems
from benchmarks.problems import random_batch
from jaxbp import Batch, Layer, activations, heads
from jaxbp.checking import central_difference
from jaxbp.cli.expressions import parse
from jaxbp.diagnostics.flow import LECTURE_ACTIVATIONS

pytestmark = pytest.mark.usefixtures("x64")

GRID = np.arange(-120, 121) / 20  # holds 0 exactly


def compiled(function):
    """Compiled as one, for each first argument, and with results to go on with in NumPy: what JAX
    does outside jit is compiled by itself, operation by operation."""
    jitted = jax.jit(function, static_argnums=0)
    return lambda *args: jax.tree.map(np.asarray, jitted(*args))


backprop, objective, predict = map(compiled, (jaxbp.backprop, jaxbp.objective, jaxbp.predict))
smooth_labels = compiled(lambda options, target: jaxbp.smooth_labels(target, *options))


@compiled
def unit(activation, a):
    return activation(a)


def slope_of(activation, a):
    return unit(activation, np.asarray(a, float))[1]


@compiled
def loss_of(head, logits, target):
    return head.loss(logits, target)


@compiled
def deltas_of(model, params, x, target):
    logits, residuals = jaxbp.forward(model, params, x)
    _, error = model.head.loss(logits, target)
    return residuals, jaxbp.backward(params, residuals, error)


def random_params(model, seed, dtype=np.float64):
    """Those of the other tests, in NumPy."""
    return jax.tree.map(np.asarray, problems.random_params(model, seed, dtype))


# Backpropagation in Neural Nets


def test_nets_worked_example():
    """w = 0.1, x = 3, y = 1, identity, squared error, η = 1: loss 0.49, gradient -4.2, w 4.3."""
    model = jaxbp.MLP((1, 1), activations.identity, heads.linear_squared_error)
    params = (Layer(jnp.array([[0.1]]), jnp.array([0.0])),)
    loss, (grad,) = backprop(model, params, Batch(jnp.array([[3.0]]), jnp.array([[1.0]])))
    np.testing.assert_allclose(loss, 0.49)
    np.testing.assert_allclose(grad.weight, [[-4.2]])
    np.testing.assert_allclose(params[0].weight - 1.0 * grad.weight, [[4.3]])


def test_nets_punchline():
    """∂J/∂W⁽³⁾ = (ŷ-y) a⁽³⁾, ∂J/∂W⁽²⁾ = (ŷ-y) W⁽³⁾ σ'(z⁽³⁾) a⁽²⁾, and a pair of factors more below.

    Its z⁽ˡ⁾ are pre-activations and its a⁽ˡ⁾ outputs; the products are matrix products here.
    """
    model = jaxbp.MLP((3, 4, 5, 1), activations.sigmoid, heads.linear_half_squared_error)
    params = random_params(model, 0)
    (w1, b1), (w2, b2), (w3, b3) = params
    x, y = np.array([0.5, -1.0, 2.0]), np.array([0.3])
    sigma = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731
    slope = lambda z: sigma(z) * (1 - sigma(z))  # noqa: E731
    z2 = w1 @ x + b1
    z3 = w2 @ sigma(z2) + b2
    error = w3 @ sigma(z3) + b3 - y
    third = np.outer(error, sigma(z3))
    second = np.outer((error @ w3) * slope(z3), sigma(z2))
    first = np.outer(((error @ w3) * slope(z3)) @ w2 * slope(z2), x)
    _, grads = backprop(model, params, Batch(x, y))
    for claimed, expected in zip(grads, (first, second, third), strict=True):
        np.testing.assert_allclose(claimed.weight, expected, rtol=1e-13)


def test_nets_five_steps_lower_the_loss():
    """Predict, calculate the loss, calculate the gradient, step the opposite way, iterate."""
    model = jaxbp.MLP((2, 4, 1), activations.tanh, heads.linear_squared_error)
    params, batch = random_params(model, 1), random_batch(model, 8, 2)
    losses = []
    for _ in range(20):
        loss, grads = backprop(model, params, batch)
        params = jax.tree.map(lambda w, g: w - 0.05 * g, params, grads)
        losses.append(float(loss))
    assert all(after < before for before, after in pairwise(losses))


def test_nets_slope_of_the_sigmoid_is_at_most_a_quarter():
    h, slope = unit(activations.sigmoid, GRID)
    np.testing.assert_allclose(slope, h * (1 - h))
    assert slope.max() == slope_of(activations.sigmoid, 0.0) == 0.25


def test_nets_tanh():
    """tanh z = sinh z / cosh z = (e²ᶻ - 1) / (e²ᶻ + 1), with 0 at 0 and ±1 at ±∞."""
    h, _ = unit(activations.tanh, GRID)
    np.testing.assert_allclose(h, np.sinh(GRID) / np.cosh(GRID), atol=1e-15)
    np.testing.assert_allclose(h, (np.exp(2 * GRID) - 1) / (np.exp(2 * GRID) + 1), atol=1e-15)
    h, _ = unit(activations.tanh, np.array([0.0, np.inf, -np.inf]))
    assert h.tolist() == [0.0, 1.0, -1.0]


def test_nets_relu_and_leaky_relu():
    """ReLU(z) = max(0, z), LReLU(z) = max(αz, z) for α < 1; both 0 at 0 and z for large z."""
    np.testing.assert_array_equal(unit(activations.relu, GRID)[0], np.maximum(0, GRID))
    h, _ = unit(partial(activations.leaky_relu, alpha=0.2), GRID)
    np.testing.assert_array_equal(h, np.maximum(0.2 * GRID, GRID))


def test_nets_early_layers_of_a_deep_sigmoid_network_get_small_gradients():
    model = jaxbp.MLP((8,) * 9, activations.sigmoid, heads.linear_squared_error)
    _, grads = backprop(model, random_params(model, 0), random_batch(model, 16, 0))
    norms = [float(np.linalg.norm(grad.weight)) for grad in grads]
    assert all(early < late / 2 for early, late in pairwise(norms))


# S. I. Muzaffar: Training Neural Networks


def test_muzaffar_forward_in_two_stages():
    """z = h(W⁽¹⁾x), prepend 1 to z, y = f(W⁽²⁾z), with the bias as column 0 of each W."""
    model = jaxbp.MLP((3, 4, 2), activations.tanh, heads.sigmoid_logistic)
    params = random_params(model, 3)
    w1, w2 = (np.column_stack([layer.bias, layer.weight]) for layer in params)
    x = np.array([0.2, -0.4, 1.0])
    z = np.tanh(w1 @ np.r_[1.0, x])
    y = 1 / (1 + np.exp(-(w2 @ np.r_[1.0, z])))
    np.testing.assert_allclose(predict(model, params, x), y, rtol=1e-14)


def test_muzaffar_simple_example():
    """Two layers, tanh, linear outputs, half-SSE: δₖ = yₖ - tₖ, δⱼ = (1 - zⱼ²) Σ wₖⱼ δₖ, index by
    index, and the derivatives δⱼxᵢ and δₖzⱼ."""
    model = jaxbp.MLP((3, 4, 2), activations.tanh, heads.linear_half_squared_error)
    (w1, b1), (w2, b2) = params = random_params(model, 4)
    x, t = np.array([1.0, -2.0, 0.5]), np.array([0.7, -0.1])
    z = [np.tanh(sum(w1[j, i] * x[i] for i in range(3)) + b1[j]) for j in range(4)]
    y = [sum(w2[k, j] * z[j] for j in range(4)) + b2[k] for k in range(2)]
    delta_k = [y[k] - t[k] for k in range(2)]
    delta_j = [(1 - z[j] ** 2) * sum(w2[k, j] * delta_k[k] for k in range(2)) for j in range(4)]

    loss, grads = backprop(model, params, Batch(x, t))
    np.testing.assert_allclose(loss, sum(d**2 for d in delta_k) / 2, rtol=1e-14)
    for k in range(2):
        np.testing.assert_allclose(grads[1].bias[k], delta_k[k], rtol=1e-13)
        for j in range(4):
            np.testing.assert_allclose(grads[1].weight[k, j], delta_k[k] * z[j], rtol=1e-13)
    for j in range(4):
        np.testing.assert_allclose(grads[0].bias[j], delta_j[j], rtol=1e-13)
        for i in range(3):
            np.testing.assert_allclose(grads[0].weight[j, i], delta_j[j] * x[i], rtol=1e-13)


def test_muzaffar_hidden_error_is_backpropagated():
    """δⱼ = h'(aⱼ) Σₖ δₖ wₖⱼ at every hidden layer, and δ = ∂L/∂a."""
    model = jaxbp.MLP((3, 4, 5, 2), activations.sigmoid, heads.linear_squared_error)
    params, batch = random_params(model, 5), random_batch(model, 1, 6)
    residuals, deltas = deltas_of(model, params, batch.x, batch.target)
    for lower, upper, layer, residual in zip(
        deltas[:-1], deltas[1:], params[1:], residuals[:-1], strict=True
    ):
        for j in range(lower.shape[-1]):
            total = sum(upper[0, k] * layer.weight[k, j] for k in range(upper.shape[-1]))
            np.testing.assert_allclose(lower[0, j], residual.slope[0, j] * total, rtol=1e-13)

    def loss(shift):  # added to the first layer's pre-activations, through its bias
        moved = (params[0]._replace(bias=params[0].bias + shift), *params[1:])
        return model.head.loss(jaxbp.forward(model, moved, batch.x)[0], batch.target)[0].sum()

    np.testing.assert_allclose(deltas[0][0], jax.jit(jax.grad(loss))(np.zeros(4)), rtol=1e-13)


def test_muzaffar_learning_algorithm():
    """Steps 1 to 5 by hand, w ← w - η ∂Lₙ/∂w example by example, are what ``fit`` does online."""
    model = jaxbp.MLP((2, 3, 1), activations.tanh, heads.linear_half_squared_error)
    params, batch = random_params(model, 7), random_batch(model, 5, 8, weighted=False)
    orders = []

    def spy(model, params, batch):
        jax.debug.callback(orders.append, batch.x)
        return jaxbp.backprop(model, params, batch)

    trained, _ = jaxbp.fit(
        model,
        batch,
        optimizer=optax.sgd(0.1),
        epochs=1,
        batch_size=1,
        key=jax.random.key(0),
        params=params,
        gradient=spy,
        check=False,  # which would call it once more
    )
    jax.effects_barrier()
    inputs, targets = np.asarray(batch.x), np.asarray(batch.target)
    for x in orders:
        n = int(np.argmin(np.abs(inputs - x).sum(axis=1)))  # a callback's thread has float32
        residuals, deltas = deltas_of(model, params, inputs[n], targets[n])
        grads = jax.jit(jaxbp.gradients)(residuals, deltas)
        params = jax.tree.map(lambda w, g: w - 0.1 * np.asarray(g), params, grads)
    assert len(orders) == 5
    assert jaxbp.compare(trained, params).relative_error < 1e-13


def test_muzaffar_tanh_is_a_rescaled_sigmoid():
    """tanh a = 2σ(2a) - 1, and its derivative is 1 - tanh² a."""
    h, slope = unit(activations.tanh, GRID)
    sigmoid, _ = unit(activations.sigmoid, 2 * GRID)
    np.testing.assert_allclose(h, 2 * sigmoid - 1, atol=1e-15)
    np.testing.assert_allclose(slope, jax.jit(jax.vmap(jax.grad(jnp.tanh)))(GRID), atol=1e-15)


@pytest.mark.parametrize(
    ("activation", "largest"),
    [(activations.sigmoid, 0.25), (activations.tanh, 1.0), (activations.elu, 1.0)],
)
def test_muzaffar_maximum_magnitude_of_the_derivative(activation, largest):
    assert np.abs(slope_of(activation, GRID)).max() == largest


def test_muzaffar_vanishing_gradients_are_bounded():
    """Every sigmoid layer multiplies δ by at most ¼: ‖δ⁽¹⁾‖ ≤ (¼)ᴸ ∏‖W‖ ‖δ⁽ᴸ⁺¹⁾‖."""
    depth = 10
    model = jaxbp.MLP((6,) * (depth + 2), activations.sigmoid, heads.linear_squared_error)
    params, batch = random_params(model, 9), random_batch(model, 3, 10)
    _, deltas = deltas_of(model, params, batch.x, batch.target)
    norms = [float(np.linalg.norm(delta)) for delta in deltas]
    spectral = [float(np.linalg.norm(layer.weight, 2)) for layer in params]
    for lower, upper, weight in zip(norms[:-1], norms[1:], spectral[1:], strict=True):
        assert lower <= weight * upper / 4
    assert norms[0] <= 0.25**depth * np.prod(spectral[1:]) * norms[-1]


#: as many rows as units: layers of one shape, of which each operation is compiled once
WIDTH = 16


def classes(model, seed):
    return random_batch(model, WIDTH, seed, weighted=False, integer=True, dtype=np.float32)


@pytest.mark.slow
@pytest.mark.parametrize(
    "names",
    [
        ("sigmoid", "relu"),
        pytest.param(tuple(LECTURE_ACTIVATIONS), marks=pytest.mark.slow),
    ],
)
def test_muzaffar_learning_will_not_be_deep(names):
    """ "While the network might be deep, learning will not be deep": ‖δ‖ falls like (¼)ᵏ with
    sigmoids, at any depth; the ReLU family is spared."""
    units = {name: LECTURE_ACTIVATIONS[name] for name in names}
    flows = jaxbp.gradient_flow((4, 8), units, ("glorot", "he"), width=WIDTH, rows=WIDTH)
    assert len(flows) == 2 * 2 * len(names)
    for flow in flows:
        left = flow.relative[0]
        if flow.activation == "sigmoid":
            fall = 0.25**flow.depth
            assert fall / 4 < left < 2 ** (flow.depth / 2 + 1) * fall  # He doubles ‖W‖²
        elif flow.scheme == "he":
            assert left > 0.1


def test_muzaffar_a_report_says_where_learning_ends():
    """From which layer down a deep sigmoid network's errors have vanished, and what helps."""
    deep = jaxbp.MLP((WIDTH, *(WIDTH,) * 6, 10), activations.sigmoid, heads.softmax_cross_entropy)
    params = random_params(deep, 0, np.float32)
    report = jaxbp.layer_report(deep, params, classes(deep, 0))
    verdicts = [row.verdict for row in report.layers]
    last = verdicts.index("healthy")
    assert set(verdicts[:last]) == {"vanishing"}
    assert set(verdicts[last:]) == {"healthy"}
    assert report.findings[0].layer == last
    assert "ReLU family" in report.findings[0].advice


def test_muzaffar_relu_avoids_vanishing_gradients():
    """Its slope is 1 where it is active, so δ passes an active layer undamped."""
    a = [0.1, 1.0, 50.0]
    assert slope_of(activations.relu, a).tolist() == [1.0, 1.0, 1.0]
    assert slope_of(activations.sigmoid, a)[-1] < 1e-20


def test_muzaffar_derivative_of_relu_at_zero():
    """Its table gives h'(a) = 0 for a ≤ 0, which is our convention too."""
    assert slope_of(activations.relu, [-1.0, 0.0, 1.0]).tolist() == [0.0, 0.0, 1.0]


def test_muzaffar_leaky_relu_is_always_learning():
    slope = slope_of(activations.leaky_relu, GRID)
    assert slope.min() == 0.01
    assert slope_of(activations.leaky_relu, [-1.0, 0.0, 1.0]).tolist() == [0.01, 0.01, 1.0]


@pytest.mark.parametrize("k", [0.5, 1.0, 2.0])
def test_muzaffar_elu_slope_has_its_sign_wrong_in_one_table(k):
    """The lecture's page on ELU has h' = h + k for a ≤ 0; its closing table of "Better Activation
    Functions" has f(a) - k.  The page is right and the table wrong: f(a) - k is even negative."""
    a = GRID[GRID <= 0]
    h, slope = unit(partial(activations.elu, k=k), a)
    true = np.asarray(jax.jit(jax.vmap(jax.grad(lambda a: k * (jnp.exp(a) - 1))))(a))
    np.testing.assert_allclose(h, k * (np.exp(a) - 1), atol=1e-15)
    np.testing.assert_allclose(slope, true, atol=1e-15)
    np.testing.assert_allclose(h + k, true, atol=1e-15)
    assert np.all(np.abs((h - k) - true) >= 2 * k * (1 - 1e-12))


def test_muzaffar_saturated_sigmoids_stop_learning():
    assert np.all(slope_of(activations.sigmoid, [-40.0, 40.0]) < 1e-16)


def test_muzaffar_unsaturated_sigmoids_are_almost_linear():
    a = np.linspace(-0.5, 0.5, 11)
    h, _ = unit(activations.sigmoid, a)
    np.testing.assert_allclose(h, 0.5 + a / 4, atol=0.003)


def test_muzaffar_central_differences():
    """(L(w+ε) - L(w-ε)) / 2ε agrees with backpropagation up to O(ε²): a tenth of ε, 1/100."""
    model = jaxbp.MLP((3, 4, 2), activations.tanh, heads.linear_half_squared_error)
    params, batch = random_params(model, 11), random_batch(model, 4, 12)
    _, grads = backprop(model, params, batch)
    direction = random_params(model, 13)
    claimed = sum(map(np.vdot, jax.tree.leaves(grads), jax.tree.leaves(direction)))

    def error(step):
        f = lambda params: objective(model, params, batch)  # noqa: E731
        return abs(float(central_difference(f, params, direction, step=step)) - claimed)

    assert 95 < error(1e-2) / error(1e-3) < 105


def multiplications(function, *args):
    """Multiply-adds in the matrix products of a function, counted in its jaxpr."""
    total = 0
    for equation in jax.make_jaxpr(function)(*args).jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            inner = np.prod([shape[axis] for axis in contracted], dtype=int)
            total += int(inner * np.prod(equation.outvars[0].aval.shape, dtype=int))
    return total


def test_muzaffar_cost_is_linear_in_the_weights():
    """Backpropagation costs O(W), numerical differentiation, with two passes a weight, O(W²)."""
    weights, backward_cost, numerical_cost = [], [], []
    for width in (8, 16, 32, 64):
        model = jaxbp.MLP((width,) * 4, activations.tanh, heads.linear_squared_error)
        params, batch = random_params(model, 0), random_batch(model, 1, 0)
        count = sum(layer.weight.size for layer in params)
        forward_cost = multiplications(lambda p: jaxbp.objective(model, p, batch), params)  # noqa: B023
        weights.append(count)
        backward_cost.append(multiplications(lambda p: jaxbp.backprop(model, p, batch), params))  # noqa: B023
        numerical_cost.append(2 * count * forward_cost)
    orders = [
        np.polyfit(np.log(weights), np.log(cost), 1)[0] for cost in (backward_cost, numerical_cost)
    ]
    np.testing.assert_allclose(orders, [1, 2], atol=1e-9)
    assert backward_cost[-1] <= 3 * weights[-1]  # forward, deltas, δ × input: one each


@pytest.mark.parametrize(
    ("method", "options"),
    [
        pytest.param("nonlinear_cg", {"method": "polak_ribiere"}, marks=pytest.mark.slow),
        pytest.param("bfgs", {}, marks=pytest.mark.slow),
        pytest.param("truncated_newton", {}, marks=pytest.mark.slow),
    ],
)
def test_muzaffar_batch_methods_decrease_the_error_at_each_iteration(method, options):
    """ "... decrease the error function at each iteration until arriving at a minimum", where the
    gradient is zero; that they beat gradient descent is in test_curvature."""
    if method != "truncated_newton":
        pytest.importorskip("optimistix")
    model = jaxbp.MLP((2, 3, 1), activations.tanh, heads.linear_squared_error, l2=0.01)
    batch = random_batch(model, 12, 3)
    params, history = jaxbp.fit(
        model,
        batch,
        optimizer=getattr(jaxbp.training.batch_methods, method)(**options),
        epochs=400,
        batch_size=None,
        key=jax.random.key(0),
        params=random_params(model, 3),
    )
    assert np.all(np.diff(history.training_loss) <= 1e-15)
    _, grads = backprop(model, params, batch)
    assert float(optax.tree.norm(grads)) < 1e-3


def test_muzaffar_equivalent_minima_by_symmetry():
    """Renumbering the hidden units changes the weights and not the network."""
    model = jaxbp.MLP((3, 5, 2), activations.tanh, heads.linear_squared_error)
    first, second = params = random_params(model, 14)
    order = np.array([3, 0, 4, 1, 2])
    renumbered = (
        Layer(first.weight[order], first.bias[order]),
        second._replace(weight=second.weight[:, order]),
    )
    batch = random_batch(model, 4, 15)
    losses = [objective(model, p, batch) for p in (params, renumbered)]
    np.testing.assert_allclose(*losses, rtol=1e-14)


def test_muzaffar_a_stationary_point_may_be_a_saddle():
    """At all-zero weights the gradient vanishes; one direction leads down, another up."""
    model = jaxbp.MLP((1, 2, 1), activations.tanh, heads.linear_squared_error)
    zero = jax.tree.map(np.zeros_like, random_params(model, 0))
    x = np.array([[-1.0], [1.0]])
    batch = Batch(x, x)
    loss, grads = backprop(model, zero, batch)
    assert all(not leaf.any() for leaf in jax.tree.leaves(grads))
    first, second = zero
    along = first._replace(weight=first.weight + 0.3)
    down, up = (second._replace(weight=second.weight + step) for step in (0.3, -0.3))
    assert objective(model, (along, down), batch) < loss
    assert objective(model, (along, up), batch) > loss


@pytest.mark.parametrize("batch_size", [1, 4, None])
def test_muzaffar_online_minibatch_and_batch(batch_size):
    """Online, minibatch and batch gradient descent, all by ``fit``; online updates most often."""
    model = jaxbp.MLP((2, 8, 1), activations.tanh, heads.linear_squared_error)
    params, batch = random_params(model, 16), random_batch(model, 16, 17, weighted=False)
    before = objective(model, params, batch)
    trained, history = jaxbp.fit(
        model,
        batch,
        optimizer=optax.sgd(0.02),
        epochs=5,
        batch_size=batch_size,
        key=jax.random.key(1),
        params=params,
    )
    assert objective(model, trained, batch) < before
    if batch_size is None:  # a small enough full-batch step never goes uphill
        assert all(np.diff(history.training_loss) < 0)


# Chapter 17


def test_chapter17_curvature_of_the_sigmoid_is_largest_at_a_fifth_and_four_fifths():
    """The points of largest |σ''|, where s ≐ 0.21 and s ≐ 0.79."""
    a = np.linspace(-6, 6, 120001)
    h, _ = unit(activations.sigmoid, a)
    curvature = jax.jit(jax.vmap(jax.grad(lambda a: activations.sigmoid(a)[1])))(a)
    values = sorted([float(h[curvature.argmin()]), float(h[curvature.argmax()])])
    np.testing.assert_allclose(values, [0.21, 0.79], atol=0.005)


def test_chapter17_ramp_derivative_at_zero_differs():
    """The chapter sets r'(0) = 1, "we just pretend"; here, as in JAX, relu'(0) = 0.  Either is a
    subgradient; everywhere else the two agree."""
    assert slope_of(activations.relu, 0.0) == jax.grad(jax.nn.relu)(0.0) == 0
    a = GRID[GRID != 0]
    np.testing.assert_array_equal(slope_of(activations.relu, a), np.where(a >= 0, 1.0, 0.0))


XOR = Batch(np.array([[0.0, 0], [0, 1], [1, 0], [1, 1]]), np.array([[0.0], [1], [1], [0]]))


def test_chapter17_relus_compute_xor():
    """Two ReLUs and a linear output are enough: r(x₁ + x₂) - 2 r(x₁ + x₂ - 1)."""
    model = jaxbp.MLP((2, 2, 1), activations.relu, heads.linear_squared_error)
    params = (
        Layer(np.ones((2, 2)), np.array([0.0, -1.0])),
        Layer(np.array([[1.0, -2.0]]), np.zeros(1)),
    )
    prediction = predict(model, params, XOR.x)
    np.testing.assert_array_equal(prediction, XOR.target)


def test_chapter17_xor_is_learned_and_a_linear_network_cannot():
    def accuracy(activation):
        model = jaxbp.MLP((2, 8, 1), activation, heads.sigmoid_logistic)
        params, _ = jaxbp.fit(
            model,
            XOR,
            optimizer=optax.adam(0.05),
            epochs=300,
            batch_size=None,
            key=jax.random.key(2),
            params=random_params(model, 0),
        )
        return jaxbp.evaluate(model, params, XOR).metric

    assert accuracy(activations.relu) == 1
    assert accuracy(activations.identity) < 1


OUTPUTS = {
    "linear_squared_error": (lambda a: a, lambda p, y: np.sum((p - y) ** 2), 2),
    "sigmoid_logistic": (
        lambda a: 1 / (1 + np.exp(-a)),
        lambda p, y: -np.sum(y * np.log(p) + (1 - y) * np.log(1 - p)),
        1,
    ),
    "softmax_cross_entropy": (
        lambda a: np.exp(a) / np.sum(np.exp(a)),
        lambda p, y: -np.sum(y * np.log(p)),
        1,
    ),
}


@pytest.mark.parametrize("name", OUTPUTS)
def test_chapter17_table_of_output_units(name):
    """Each column: ŷ, L(ŷ, y), ∇_W L = c (ŷ - y) hᵀ and ∇_h L = c Wᵀ(ŷ - y), with c = 2 for the
    squared error and 1 for the other two."""
    output, cost, factor = OUTPUTS[name]
    model = jaxbp.MLP((4, 3), activations.identity, getattr(heads, name))
    (layer,) = params = random_params(model, 18)
    h, y = np.array([0.3, -0.8, 1.2, 0.1]), np.array([0.2, 0.7, 0.1])
    prediction = output(layer.weight @ h + layer.bias)
    loss, (grad,) = backprop(model, params, Batch(h, y))
    _, deltas = deltas_of(model, params, h, y)
    error = factor * (prediction - y)
    np.testing.assert_allclose(predict(model, params, h), prediction, rtol=1e-13)
    np.testing.assert_allclose(loss, cost(prediction, y), rtol=1e-13)
    np.testing.assert_allclose(grad.weight, np.outer(error, h), rtol=1e-12)
    np.testing.assert_allclose(jaxbp.input_gradient(params, deltas), layer.weight.T @ error)


def test_chapter17_linear_output_is_least_squares():
    """The final layer of edges solves a linear regression."""
    model = jaxbp.MLP((3, 1), activations.identity, heads.linear_squared_error)
    batch = random_batch(model, 20, 19, weighted=False)
    design = np.column_stack([batch.x, np.ones(20)])
    solution, *_ = np.linalg.lstsq(design, batch.target)
    params = (Layer(solution[:3].T, solution[3]),)
    _, grads = backprop(model, params, batch)
    assert max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(grads)) < 1e-13


def test_chapter17_softmax_is_a_distribution():
    softmax = jax.jit(heads.softmax_cross_entropy.predict)
    prediction = np.asarray(softmax(np.array([[1.0, -2.0, 30.0]])))
    assert np.all((prediction > 0) & (prediction < 1))
    np.testing.assert_allclose(prediction.sum(), 1)


def test_chapter17_soft_targets_can_be_met_exactly():
    """0.05 / 0.95 for sigmoids and 0.9 / 0.05 / 0.05 for softmax: the error vanishes at finite
    logits, which it never does for 0, 1 and one-hot labels."""
    y = smooth_labels((0.1,), np.array([[0.0, 1.0]]))
    np.testing.assert_allclose(y, [[0.05, 0.95]])
    _, error = loss_of(heads.sigmoid_logistic, np.log(y / (1 - y)), y)
    np.testing.assert_allclose(error, 0, atol=1e-15)
    y = smooth_labels((0.15, 3), np.array([0]))
    np.testing.assert_allclose(y, [[0.9, 0.05, 0.05]])
    _, error = loss_of(heads.softmax_cross_entropy, np.log(y), y)
    np.testing.assert_allclose(error, 0, atol=1e-15)
    _, error = loss_of(heads.sigmoid_logistic, np.array([[20.0]]), np.array([[1.0]]))
    assert error < 0


def test_chapter17_logistic_loss_from_the_pre_activation():
    """L = Σ (1 - yᵢ) aᵢ + ln(1 + e^-aᵢ), the last line of its derivation."""
    a, y = np.array([[0.3, -2.0, 1.0]]), np.array([[0.1, 1.0, 0.0]])
    loss, _ = loss_of(heads.sigmoid_logistic, a, y)
    np.testing.assert_allclose(loss, np.sum((1 - y) * a + np.log(1 + np.exp(-a)), axis=1))


def test_chapter17_softmax_loss_from_the_pre_activation():
    """L = -Σ yᵢ aᵢ + ln Σ e^aⱼ, assuming Σ yᵢ = 1; without it the second term gains a factor Σy and
    the error is ŷ Σy - y."""
    a, y = np.array([[0.3, -2.0, 1.0]]), np.array([[0.2, 0.5, 0.3]])
    loss, _ = loss_of(heads.softmax_cross_entropy, a, y)
    np.testing.assert_allclose(loss, -np.sum(y * a) + np.log(np.sum(np.exp(a))))
    loss, error = loss_of(heads.softmax_cross_entropy, a, 2 * y)
    np.testing.assert_allclose(loss, -np.sum(2 * y * a) + 2 * np.log(np.sum(np.exp(a))))
    np.testing.assert_allclose(error, 2 * np.exp(a) / np.sum(np.exp(a)) - 2 * y)


def test_chapter17_two_relu_layers_softmax_and_l2():
    """Its worked network: two hidden layers of ReLUs, k-class softmax, cross-entropy, ℓ₂."""
    model = jaxbp.MLP((3, 5, 4, 3), activations.relu, heads.softmax_cross_entropy, l2=0.2)
    (u, bu), (v, bv), (w, bw) = params = random_params(model, 20)
    x, y = np.array([0.5, -0.3, 0.9]), np.array([0.0, 1.0, 0.0])
    ramp = lambda g: np.maximum(g, 0)  # noqa: E731
    on = lambda g: np.where(g > 0, 1.0, 0.0)  # noqa: E731
    g, h = ramp(u @ x + bu), ramp(v @ ramp(u @ x + bu) + bv)
    error = np.exp(w @ h + bw) / np.sum(np.exp(w @ h + bw)) - y
    grad_h = w.T @ error * on(v @ g + bv)
    grad_g = v.T @ grad_h * on(u @ x + bu)
    expected = (
        Layer(np.outer(grad_g, x) + 0.2 * u, grad_g),
        Layer(np.outer(grad_h, g) + 0.2 * v, grad_h),
        Layer(np.outer(error, h) + 0.2 * w, error),
    )
    _, grads = backprop(model, params, Batch(x, y))
    assert jaxbp.compare(grads, expected).relative_error < 1e-13


@pytest.mark.slow
def test_chapter17_relus_explode_where_sigmoids_saturate():
    """ "The fact that ReLUs don't saturate like sigmoids do leaves them vulnerable to a related
    problem called the exploding gradient problem": weights far too large, in both."""
    said = {}
    for activation in (activations.relu, activations.sigmoid):
        model = jaxbp.MLP((WIDTH, WIDTH, WIDTH, 10), activation, heads.softmax_cross_entropy)
        params = random_params(model, 1, np.float32)
        large = tuple(Layer(100 * layer.weight, layer.bias) for layer in params)
        report = jaxbp.layer_report(model, large, classes(model, 2))
        said[activation] = report.layers[0].verdict
    assert said == {activations.relu: "exploding", activations.sigmoid: "saturated"}


def test_chapter17_logistic_loss_undoes_the_sigmoids_saturation():
    """A unit that is confidently wrong: the squared error's gradient is gone, the logistic loss's
    is ŷ - y, nearly 1."""
    a, y = np.array([[20.0]]), np.array([[0.0]])
    _, squared = loss_of(heads.sigmoid_squared_error, a, y)
    _, logistic = loss_of(heads.sigmoid_logistic, a, y)
    assert abs(squared) < 1e-8
    np.testing.assert_allclose(logistic, 1, atol=1e-8)


# DSC 190, lecture 14


def test_dsc190_chain_rule():
    """d/dx f(g(x)) = f'(g(x)) g'(x), for activations put one into another."""
    g, g_slope = unit(activations.tanh, GRID)
    _, f_slope = unit(activations.softplus, g)
    both = lambda a: activations.softplus(activations.tanh(a)[0])[0]  # noqa: E731
    chained = jax.jit(jax.vmap(jax.grad(both)))(GRID)
    np.testing.assert_allclose(f_slope * g_slope, chained, atol=1e-15)


def test_dsc190_derivatives_are_defined_recursively():
    """∂f/∂a⁽¹⁾ from ∂f/∂a⁽²⁾: with the later layers' derivatives the earlier ones' are easy."""
    model = jaxbp.MLP((3, 4, 5, 2), activations.softplus, heads.linear_squared_error)
    params, batch = random_params(model, 21), random_batch(model, 3, 22)
    residuals, deltas = deltas_of(model, params, batch.x, batch.target)
    later = jax.jit(jaxbp.backward)(params[1:], residuals[1:], deltas[-1])
    assert jaxbp.compare(deltas[1:], later).relative_error == 0
    first = (np.asarray(later[0]) @ params[1].weight) * residuals[0].slope
    assert jaxbp.compare(deltas[0], first).relative_error < 1e-15


def test_dsc190_linear_layers_combined_are_linear():
    model = jaxbp.MLP((3, 6, 5, 2), activations.identity, heads.linear_squared_error)
    (w1, b1), (w2, b2), (w3, b3) = params = random_params(model, 23)
    x = np.asarray(random_batch(model, 4, 24).x)
    once = x @ (w3 @ w2 @ w1).T + (w3 @ (w2 @ b1 + b2) + b3)
    np.testing.assert_allclose(predict(model, params, x), once, rtol=1e-12)


def test_dsc190_relu_passes_no_gradient_back_where_inactive():
    model = jaxbp.MLP((1, 1, 1), activations.relu, heads.linear_squared_error)
    params = (Layer(np.array([[1.0]]), np.array([-5.0])), Layer(np.ones((1, 1)), np.ones(1)))
    _, grads = backprop(model, params, Batch(np.array([[1.0]]), np.array([[9.0]])))
    assert grads[0] == Layer(np.array([[0.0]]), np.array([0.0]))
    assert grads[1].bias != 0


def test_dsc190_small_positive_biases_keep_relus_alive():
    """Initialising all biases to small positive numbers makes most units active to begin with."""
    model = jaxbp.MLP((20, 2000, 1), activations.relu, heads.linear_squared_error)
    x = np.random.default_rng(0).normal(size=20) / 20  # inputs of a modest size

    @jax.jit
    def active_share(bias):
        params = jaxbp.init(jax.random.key(0), model, bias=bias, dtype=float)
        return jnp.mean(jaxbp.forward(model, params, x)[1][0].slope)

    assert abs(active_share(0.0) - 0.5) < 0.05
    assert active_share(0.1) > 0.9


def test_dsc190_leaky_relu_revives_dead_units():
    """Units that start dead stay so as ReLUs, and learn as leaky ones."""
    batch = Batch(np.array([[0.5], [1.0], [1.5]]), np.array([[1.0], [2.0], [3.0]]))

    def loss_after(activation):
        model = jaxbp.MLP((1, 4, 1), activation, heads.linear_squared_error)
        dead = Layer(weight=np.ones((4, 1)), bias=np.full(4, -4.0))  # a < 0 on every row
        params = (dead, random_params(model, 0)[1])
        return jaxbp.fit(
            model,
            batch,
            optimizer=optax.adam(0.02),
            epochs=3000,
            batch_size=None,
            key=jax.random.key(0),
            params=params,
        )[1].training_loss[-1]

    assert loss_after(activations.leaky_relu) < 0.01
    np.testing.assert_allclose(loss_after(activations.relu), np.var([1, 2, 3]))  # only the mean


def test_dsc190_average_cross_entropy():
    """-1/n Σ log f(x⁽ⁱ⁾) where y⁽ⁱ⁾ = 1 and log(1 - f(x⁽ⁱ⁾)) where y⁽ⁱ⁾ = 0."""
    model = jaxbp.MLP((2, 1), activations.identity, heads.sigmoid_logistic)
    params = random_params(model, 25)
    x = np.array([[0.1, 1.0], [-2.0, 0.3], [0.7, 0.7]])
    y = np.array([[1.0], [0.0], [1.0]])
    f = predict(model, params, x)
    expected = -np.mean(np.where(y == 1, np.log(f), np.log(1 - f)))
    np.testing.assert_allclose(objective(model, params, Batch(x, y)), expected, rtol=1e-13)


def test_dsc190_square_loss_penalises_the_too_correct():
    """Label 1: beyond a = 1 the square loss of a linear output grows, the cross-entropy falls."""
    a, y = np.array([[1.0], [2.0], [5.0]]), np.ones((3, 1))
    square, _ = loss_of(heads.linear_squared_error, a, y)
    cross_entropy, _ = loss_of(heads.sigmoid_logistic, a, y)
    assert np.all(np.diff(square) > 0)
    assert np.all(np.diff(cross_entropy) < 0)


# Lecture notes


def test_notes_softplus_is_the_soft_relu():
    """log(exp(x) + 1), never below max(0, x) and at most ln 2 above it."""
    h, _ = unit(activations.softplus, GRID)
    np.testing.assert_allclose(h, np.log(np.exp(GRID) + 1), atol=1e-15)
    gap = h - np.maximum(0, GRID)
    assert gap.min() > 0
    np.testing.assert_allclose(gap.max(), np.log(2))


def test_notes_cross_entropy_lacks_its_minus_sign():
    """The notes' J = y* log y + (1-y*) log(1-y), with dJ/dy = y*/y + (1-y*)/(y-1), is the log
    likelihood: the loss to minimise, and its derivative, are the negatives."""
    y, target = 0.3, 0.8
    likelihood = lambda y: target * jnp.log(y) + (1 - target) * jnp.log(1 - y)  # noqa: E731
    np.testing.assert_allclose(
        jax.jit(jax.grad(likelihood))(y), target / y + (1 - target) / (y - 1), rtol=1e-14
    )
    loss, _ = loss_of(heads.sigmoid_logistic, np.log([y / (1 - y)]), np.array([target]))
    np.testing.assert_allclose(loss, -likelihood(y), rtol=1e-14)


def test_notes_cross_entropy_is_steeper_than_quadratic():
    """In the prediction y, for a wrong answer: |1/(1-y)| against |2y|."""
    y = np.linspace(0.5, 0.99, 50)
    cross_entropy = jax.jit(jax.vmap(jax.grad(lambda y: -jnp.log(1 - y))))(y)
    quadratic = jax.jit(jax.vmap(jax.grad(lambda y: y**2)))(y)
    assert np.all(np.asarray(cross_entropy) > np.asarray(quadratic))


def test_notes_chain_rule_over_several_paths():
    """dyᵢ/dxₖ = Σⱼ dyᵢ/duⱼ · duⱼ/dxₖ, for all i and k: Jacobians multiply."""
    model = jaxbp.MLP((3, 4, 2), activations.tanh, heads.linear_squared_error)
    params, x = random_params(model, 26), np.array([0.1, 0.5, -0.7])
    lower = lambda x: activations.tanh(params[0].weight @ x + params[0].bias)[0]  # noqa: E731
    upper = lambda u: params[1].weight @ u + params[1].bias  # noqa: E731

    @jax.jit
    def both(x):
        _, residuals = jaxbp.forward(model, params, x)
        rows = [
            jaxbp.input_gradient(params, jaxbp.backward(params, residuals, basis))
            for basis in jnp.eye(2)
        ]
        return jnp.stack(rows), jax.jacobian(upper)(lower(x)) @ jax.jacobian(lower)(x)

    np.testing.assert_allclose(*both(x), rtol=1e-13)


def test_notes_backprop_example_2():
    """ŷ = σ(α⁽³⁾ᵀ σ(α⁽²⁾ᵀ σ(α⁽¹⁾ᵀ x))) with cross-entropy: sigmoids all the way, the last of them
    the head's; its α⁽ˡ⁾ are transposes of our weights."""
    model = jaxbp.MLP((3, 4, 2, 1), activations.sigmoid, heads.sigmoid_logistic)
    params = tuple(layer._replace(bias=0 * layer.bias) for layer in random_params(model, 27))
    x, y = np.array([0.4, -0.2, 1.1]), np.array([1.0])
    sigma = lambda u: 1 / (1 + jnp.exp(-u))  # noqa: E731

    def loss(alphas):
        z = x
        for alpha in alphas:
            z = sigma(alpha.T @ z)
        return -jnp.sum(y * jnp.log(z) + (1 - y) * jnp.log(1 - z))

    alphas = [layer.weight.T for layer in params]
    _, grads = backprop(model, params, Batch(x, y))
    for expected in (jax.jit(jax.grad(loss))(alphas), jax.jit(jaxbp.graph.grad(loss))(alphas)):
        assert jaxbp.compare([grad.weight.T for grad in grads], expected).relative_error < 1e-13


def test_notes_sgd_steps_opposite_the_gradient_of_one_example():
    """Sample i, compute the gradient by backprop, α ← α - γ gα, with plain ``optax.sgd``."""
    model = jaxbp.MLP((2, 3, 3, 1), activations.sigmoid, heads.sigmoid_logistic)
    params = random_params(model, 28)
    example = Batch(np.array([0.3, -1.0]), np.array([1.0]))
    _, grads = backprop(model, params, example)
    step = jax.jit(jaxbp.make_step(model, optax.sgd(0.5)))
    (stepped, _), _ = step((params, optax.sgd(0.5).init(params)), example)
    expected = jax.tree.map(lambda alpha, g: alpha - 0.5 * g, params, grads)
    assert jaxbp.compare(stepped, expected).relative_error < 1e-15


def test_notes_backward_reuses_the_forward_computation():
    """The backward pass calls no activation: what it needs was stored on the way forward."""
    calls = []

    def counted(a):
        calls.append(a.shape)
        return activations.tanh(a)

    model = jaxbp.MLP((2, 3, 4, 1), counted, heads.linear_squared_error)
    backprop(model, random_params(model, 29), random_batch(model, 5, 30))
    assert calls == [(5, 3), (5, 4)]


# Computation graphs


def test_notes_backprop_example_1():
    """y = exp(xz) + xz/log(x) + sin(log(x))/(xz) at x = 2, z = 3, line by line.

    The notes write de for ge and dy/dc for dy/de in one line; the derivation is meant.
    """
    board = "a = x*z; b = log(x); c = sin(b); d = exp(a); e = a/b; f = c/a; d + e + f"
    graph = jaxbp.graph.trace(parse(board).function(), 2, 3)
    forward = [(node.name, node.operation) for node in graph.nodes[2:]]
    assert [f"{name} = {operation}" for name, operation in forward] == [
        *("a = x·z", "b = log(x)", "c = sin(b)", "d = exp(a)", "e = a/b", "f = c/a"),
        "y = d + e + f",
    ]
    backward = {node.adjoint_name: node.formula for node in graph.nodes}
    assert backward == {
        "gy": "",
        "gf": "gy",
        "ge": "gy",
        "gd": "gy",
        "gc": "gf·(1/a)",
        "gb": "gc·cos(b) + ge·(-a/b²)",
        "ga": "gd·d + ge·(1/b) + gf·(-c/a²)",
        "gx": "ga·z + gb·(1/x)",
        "gz": "ga·x",
    }
    a, b = 6.0, np.log(2)
    ga = np.exp(a) + 1 / b - np.sin(b) / a**2
    gb = -a / b**2 + np.cos(b) / a
    np.testing.assert_allclose(graph.gradients, (ga * 3 + gb / 2, ga * 2), rtol=1e-14)


def test_notes_chain_rule():
    """One path multiplies (definition 1), several are summed (2 and 3)."""
    one = jaxbp.graph.trace(lambda x: jnp.sin(jnp.exp(x)), 0.5)
    assert one["x"].formula == "ga·a"
    assert one["a"].formula == "gy·cos(a)"
    two = jaxbp.graph.trace(lambda x: jnp.sin(x) * jnp.exp(x), 0.5)
    assert two["x"].formula == "ga·cos(x) + gb·b"
    many = jaxbp.graph.trace(lambda v: sum(jnp.sum(v) ** k for k in range(2, 7)), np.ones(3))
    assert len(many["a"].contributions) == 5


def test_notes_reuse():
    """Forward values and adjoints are each computed once: ten doublings cost 10, not 2¹⁰."""

    def doubled(x):
        for _ in range(10):
            x = x + jnp.sin(x)
        return x

    cost = jaxbp.graph.trace(doubled, 0.1).cost
    assert cost.forward == 20
    assert cost.backward <= 3 * 20


def test_dsc190_general_formulas():
    """∂f/∂w of an early layer is easy once those of later layers are known: the graph's δ are the
    recursion's."""
    model = jaxbp.MLP((3, 4, 2), activations.tanh, heads.linear_half_squared_error)
    params, x, y = random_params(model, 0), jnp.array([0.5, -1.0, 2.0]), jnp.array([1.0, 0.0])

    def loss(params):
        a = jaxbp.graph.named(params[0].weight @ x + params[0].bias, "a⁽¹⁾", adjoint="δ⁽¹⁾")
        logits = params[1].weight @ jnp.tanh(a) + params[1].bias
        logits = jaxbp.graph.named(logits, "a⁽²⁾", adjoint="δ⁽²⁾")
        return jnp.sum((logits - y) ** 2) / 2

    graph = jaxbp.graph.trace(loss, params)
    _, deltas = deltas_of(model, params, x, y)
    for name, delta in zip(("a⁽¹⁾", "a⁽²⁾"), deltas, strict=True):
        np.testing.assert_allclose(graph[name].adjoint, delta, rtol=1e-13)
    assert graph["params[1].bias"].formula == "δ⁽²⁾"
