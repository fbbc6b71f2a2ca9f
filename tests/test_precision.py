"""Precision: what is rounded, what is summed in float32, and what it costs in accuracy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from combinations import ACTIVATIONS, initial, sgd

import jaxbp
from benchmarks.problems import random_batch, random_params
from jaxbp import Batch, activations, heads, mixed_precision
from jaxbp.training.epoch import Program, one_epoch
from jaxbp.trees import opened, subjaxprs

MODEL = jaxbp.MLP((6, 16, 16, 3), activations.relu, heads.softmax_cross_entropy)


def problem(model=MODEL, rows=24):
    params = random_params(model, 0, np.float32)
    batch = random_batch(model, rows, 0, dtype=np.float32)
    return params, batch._replace(target=batch.target / np.sum(batch.target, axis=1, keepdims=True))


@partial(jax.jit, static_argnums=(0, 1))
def compiled(gradient, model, params, batch):
    return gradient(model, params, batch)


def rounded(array):
    return np.asarray(array, jnp.bfloat16).astype(np.float32)


def by_numpy(params, batch):
    """The same pass in NumPy's float32, every operand of a product rounded by hand."""
    zs, slopes, z = [], [], rounded(batch.x)
    for weight, bias in params:
        a = z @ rounded(weight).T + np.asarray(bias)
        zs.append(z)
        slopes.append(rounded(a) > 0)
        z = rounded(np.maximum(rounded(a), 0))
    prediction = np.exp(a) / np.exp(a).sum(1, keepdims=True)
    target, share = np.asarray(batch.target), np.asarray(batch.weight / np.sum(batch.weight))
    error = share[:, None] * (prediction * target.sum(1, keepdims=True) - target)
    delta, grads = rounded(error), []
    for layer in (2, 1, 0):
        grads.append(jaxbp.Layer(delta.T @ zs[layer], delta.sum(0)))
        if layer:
            delta = rounded(delta @ rounded(params[layer].weight)) * slopes[layer - 1]
    return tuple(reversed(grads))


def test_it_rounds_the_operands_and_nothing_else(strict):
    """Op by op, for a compiler may leave a rounding out; summed in another order than NumPy's."""
    params, batch = problem()
    _, grads = mixed_precision(jaxbp.backprop)(MODEL, params, batch)
    by_hand = jaxbp.compare(grads, by_numpy(params, batch)).relative_error
    _, exact = compiled(jaxbp.backprop, MODEL, params, batch)
    assert by_hand < 2e-3 < jaxbp.compare(grads, exact).relative_error < 3e-2


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_what_is_kept_is_small_and_what_is_returned_is_not(name, strict):
    model = MODEL._replace(activation=ACTIVATIONS[name])
    params, batch = problem(model)
    low = tuple(jaxbp.Layer(layer.weight.astype(jnp.bfloat16), layer.bias) for layer in params)

    def passes(params, x):
        logits, residuals = jaxbp.forward(model, params, x)
        deltas = jaxbp.backward(params, residuals, logits)
        return (residuals, deltas), (logits, jaxbp.gradients(residuals, deltas, logits.dtype))

    kept, returned = jax.eval_shape(passes, low, batch.x)
    assert {leaf.dtype for leaf in jax.tree.leaves(kept)} == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in jax.tree.leaves(returned)} == {jnp.dtype(jnp.float32)}


def test_sums_over_the_batch_are_in_float32():
    """In bfloat16 a sum of equal numbers ends at 256 of them."""
    model = jaxbp.MLP((1, 1), (), heads.linear_half_squared_error)
    params = (jaxbp.Layer(np.zeros((1, 1), "f4"), np.zeros(1, "f4")),)
    batch = Batch(np.ones((4096, 1), "f4"), -np.ones((4096, 1), "f4"))
    _, grads = compiled(mixed_precision(jaxbp.backprop), model, params, batch)
    assert grads[0].weight.item() == grads[0].bias.item() == 1


@pytest.mark.parametrize(
    "gradient", [jaxbp.backprop, pytest.param(jaxbp.autodiff, marks=pytest.mark.slow)]
)
def test_the_penalty_is_of_the_weights_as_they_are(gradient):
    params, batch = problem()
    low = mixed_precision(gradient)
    plain_loss, plain = compiled(low, MODEL, params, batch)
    loss, grads = compiled(low, MODEL._replace(l2=10.0), params, batch)
    assert {leaf.dtype for leaf in jax.tree.leaves((loss, grads))} == {jnp.dtype(jnp.float32)}
    squares = sum(np.sum(np.square(layer.weight)) for layer in params)
    np.testing.assert_allclose(loss, plain_loss + 5 * squares, 1e-6)
    for with_penalty, without, layer in zip(grads, plain, params, strict=True):
        expected = without.weight + 10 * np.asarray(layer.weight)
        np.testing.assert_allclose(with_penalty.weight, expected, 1e-6)


def test_both_gradients_agree():
    params, batch = problem()
    _, by_hand = compiled(mixed_precision(jaxbp.backprop), MODEL, params, batch)
    _, by_jax = compiled(mixed_precision(jaxbp.autodiff), MODEL, params, batch)
    assert jaxbp.compare(by_hand, by_jax).relative_error < 1e-2


@pytest.mark.slow
def test_digits_are_learned_as_well():
    digits = jaxbp.data.load("digits")
    model = jaxbp.MLP((64, 128, 10), activations.relu, heads.softmax_cross_entropy)
    keys, how = jax.random.split(jax.random.key(0), 4), {"epochs": 20, "batch_size": 32}
    accuracies = []
    for dtype in (None, jnp.bfloat16):
        _, history = jaxbp.fit_many(
            model,
            digits.train,
            keys=keys,
            learning_rate=0.2,
            validation=digits.test,
            compute_dtype=dtype,
            **how,
        )
        accuracies.append(history.metric[:, -1].mean())
    assert accuracies[0] > 0.95
    assert abs(accuracies[1] - accuracies[0]) < 0.005
    params = initial(keys[0], model)
    _, exact = compiled(jaxbp.backprop, model, params, digits.train)
    _, low = compiled(mixed_precision(jaxbp.backprop), model, params, digits.train)
    assert 1e-3 < jaxbp.compare(low, exact).relative_error < 2e-2


@pytest.mark.slow
def test_fit_trains_by_it_and_compiles_once():
    assert mixed_precision(jaxbp.backprop) is mixed_precision(jaxbp.backprop, "bfloat16")
    _, batch = problem()
    batch = batch._replace(target=np.argmax(batch.target, axis=1))
    options = {"optimizer": sgd(0.1), "epochs": 2, "batch_size": 8, "key": jax.random.key(0)}
    low, _ = jaxbp.fit(MODEL, batch, compute_dtype="bfloat16", **options)
    same, _ = jaxbp.fit(MODEL, batch, gradient=mixed_precision(jaxbp.backprop), **options)
    exact, _ = jaxbp.fit(MODEL, batch, **options)
    assert jaxbp.compare(low, same).ulps == 0
    assert 1e-5 < jaxbp.compare(low, exact).relative_error < 1e-2
    assert low[0].weight.dtype == jnp.float32


@pytest.mark.parametrize("dtype", [jnp.float16, "float64", "half a byte"])
def test_another_dtype_is_refused(dtype):
    with pytest.raises(ValueError, match=r"compute_dtype: got .*, expected bfloat16 or float32"):
        mixed_precision(jaxbp.backprop, dtype)


def test_a_wider_dtype_than_the_parameters_is_refused():
    params, batch = problem()
    half = jax.tree.map(lambda leaf: np.asarray(leaf, jnp.bfloat16), params)
    with pytest.raises(ValueError, match="compute_dtype: got float32, expected none wider than"):
        compiled(mixed_precision(jaxbp.backprop, "float32"), MODEL, half, batch)


# The precision of float32 products, by JAX's names


def products(jaxpr):
    """The precision of every matrix product in a jaxpr, and in those inside it."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation.params["precision"]
        for inner in subjaxprs(equation):
            yield from products(opened(inner))


@pytest.mark.parametrize("precision", ["default", "highest"])
def test_every_product_of_an_epoch_has_the_precision_of_the_run(precision):
    params, batch = problem(rows=6)
    optimizer, order = sgd(0.1), np.arange(6, dtype=np.int32)
    program = Program(MODEL, optimizer, jaxbp.backprop, 4, diagnostics=True, precision=precision)
    epoch = jax.make_jaxpr(partial(one_epoch, program))
    found = list(products(epoch(params, optimizer.init(params), batch, order, None).jaxpr))
    assert len(found) > 16  # two steps, 3 + 2 + 3 products each, and the health of the layers
    assert {each.name.lower() for pair in found for each in pair} == {precision}


@pytest.mark.slow
def test_precision_is_heard_by_fit_fit_many_and_evaluation():
    heard, between = [], []

    def precision_now(told):
        told.append(jax.config.jax_default_matmul_precision)

    def relu(a):  # the last that calls it is an evaluation
        precision_now(heard)
        return activations.relu(a)

    def gradient(model, params, batch):
        precision_now(heard)
        assert heard[-1] == "highest"
        return jaxbp.backprop(model, params, batch)

    model, (params, batch) = MODEL._replace(activation=relu), problem(rows=6)
    keys = jax.random.split(jax.random.key(0), 2)
    how = {"epochs": 1, "batch_size": None, "validation": batch, "gradient": gradient}
    how["check"] = False  # which has a precision of its own
    how |= {"precision": "highest", "on_epoch": lambda epoch: precision_now(between)}
    jaxbp.fit(model, batch, optimizer=sgd(0.1), key=keys[0], **how)
    assert heard[-1] == "highest"
    jaxbp.fit_many(model, batch, keys=keys, learning_rate=0.1, **how)
    assert heard[-1] == "highest"
    jaxbp.evaluate(model, params, batch, precision="high")
    assert heard[-1] == "high"
    assert between == [None, None]  # what the user does there is the user's own


def test_an_unknown_precision_is_named():
    _, batch = problem(rows=6)
    options = {"epochs": 1, "batch_size": 2, "precision": "exact"}
    message = "precision: got 'exact', expected a name of jax.default_matmul_precision"
    with pytest.raises(ValueError, match=message):
        jaxbp.fit(MODEL, batch, optimizer=sgd(0.1), key=jax.random.key(0), **options)
    keys = jax.random.split(jax.random.key(0), 2)
    with pytest.raises(ValueError, match=message):
        jaxbp.fit_many(MODEL, batch, keys=keys, learning_rate=0.1, **options)
