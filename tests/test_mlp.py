"""The network: its description, its parameters, and what it says when they do not fit."""

import copy
import pickle
from functools import partial, wraps

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from combinations import initial, sgd

import jaxbp
from benchmarks.problems import random_batch, random_params
from jaxbp import MLP, activations, heads
from jaxbp.mlp import logits_in_parts
from jaxbp.trees import opened, subjaxprs

predict = jax.jit(jaxbp.predict, static_argnums=0)
WIDE = (300, 500, 400, 10)
FAMILY = ["relu", "leaky_relu", "elu", "softplus", "gelu", "silu"]


def variances(activation, **options):
    """Each layer's weight variance, times its number of inputs."""
    model = MLP(WIDE, activation, heads.softmax_cross_entropy)
    params = jaxbp.init(jax.random.key(0), model, **options)
    return [float(np.var(layer.weight)) * layer.weight.shape[1] for layer in params]


@pytest.mark.parametrize("name", FAMILY)
def test_the_relu_family_starts_by_he(name):
    np.testing.assert_allclose(variances(getattr(activations, name)), [2, 2, 1], rtol=0.06)


def test_the_scheme_sees_through_a_wrapper_and_knows_jaxs_own():
    @wraps(activations.relu)
    def watched(a):
        return activations.relu(a)

    for unit in (watched, jaxbp.with_slope(jax.nn.relu)):
        np.testing.assert_allclose(variances(unit), [2, 2, 1], rtol=0.06)


@pytest.mark.parametrize("activation", [activations.sigmoid, activations.tanh])
def test_sigmoid_and_tanh_start_by_glorot(activation):
    expected = [2 * 300 / 800, 2 * 500 / 900, 1]
    np.testing.assert_allclose(variances(activation), expected, rtol=0.06)


@pytest.mark.parametrize("activation", [activations.identity, jaxbp.with_slope(jnp.sin)])
def test_everything_else_starts_by_lecun(activation):
    np.testing.assert_allclose(variances(activation), [1, 1, 1], rtol=0.06)


def test_a_scheme_can_be_named():
    np.testing.assert_allclose(variances(activations.tanh, scheme="he"), [2, 2, 2], rtol=0.06)


def test_the_scheme_sees_through_a_partial():
    leaky = partial(activations.leaky_relu, alpha=0.2)
    np.testing.assert_allclose(variances(leaky), [2, 2, 1], rtol=0.06)


def test_init_takes_bias_and_dtype():
    model = MLP((3, 4, 2), activations.relu, heads.softmax_cross_entropy)
    params = initial(jax.random.key(0), model, bias=0.1, dtype=jnp.bfloat16)
    assert all(np.all(layer.bias == jnp.bfloat16(0.1)) for layer in params)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}


def test_layers_start_differently():
    model = MLP((4, 4, 4), activations.relu, heads.softmax_cross_entropy)
    first, second = initial(jax.random.key(0), model)
    assert not np.allclose(np.asarray(first.weight) / second.weight, np.sqrt(2.0))


@pytest.mark.slow
def test_init_maps_over_keys():
    model = MLP((4, 4, 4), activations.relu, heads.softmax_cross_entropy)
    keys = jax.random.split(jax.random.key(0), 3)
    of_all = jax.vmap(lambda key: jaxbp.init(key, model))(keys)
    alone = jaxbp.init(keys[2], model)
    assert jaxbp.compare(jax.tree.map(lambda leaf: leaf[2], of_all), alone).relative_error < 1e-6


def softsign(a):
    return a / (1 + jnp.abs(a))


def test_equal_models_are_equal_and_picklable():
    def model(alpha, threshold):
        return MLP(
            (2, 3, 3, 3, 1),
            (
                partial(activations.leaky_relu, alpha=alpha),
                jaxbp.with_slope(softsign),
                activations.elu,
            ),
            heads.linear_huber._replace(loss=partial(heads.huber, threshold=threshold)),
            l2=0.1,
        )

    one = model(0.2, 2.0)
    assert one == model(0.2, 2.0)
    assert not one != model(0.2, 2.0)  # noqa: SIM202 (a tuple has its own)
    assert hash(one) == hash(model(0.2, 2.0))
    assert one not in (model(0.3, 2.0), model(0.2, 1.0), one._replace(l2=0.0), tuple(one))
    learned = partial(activations.leaky_relu, alpha=jnp.array(0.2))
    assert len({MLP((2, 3, 1), learned, heads.linear_huber) for _ in range(2)}) == 1
    for head in heads.BY_NAME.values():
        again = pickle.loads(pickle.dumps(one._replace(head=head)))
        assert again == one._replace(head=head)
    for jitted in (jnp.sin, jax.nn.relu, jax.nn.gelu):  # which cannot be pickled themselves
        of_jax = one._replace(activation=jaxbp.with_slope(jitted))
        for again in (pickle.loads(pickle.dumps(of_jax)), copy.deepcopy(of_jax)):
            assert again == of_jax
            assert hash(again) == hash(of_jax)
    nameless = jaxbp.with_slope(jax.jit(lambda a: 2 * a))
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        pickle.dumps(nameless)


def test_a_model_is_a_static_argument():
    model = MLP((2, 3, 1), (activations.tanh,), heads.linear_huber, l2=0.1)
    assert hash(model) == hash(MLP((2, 3, 1), (activations.tanh,), heads.linear_huber, l2=0.1))
    params, x = random_params(model, 0, np.float32), np.ones(2, "f4")
    expected = jaxbp.predict(model, params, x)
    np.testing.assert_allclose(predict(model, params, x), expected, rtol=1e-6)


def test_one_activation_a_hidden_layer(x64):
    units = (activations.tanh, activations.relu)
    model = MLP((3, 4, 5, 2), units, heads.linear_squared_error)
    params = random_params(model, 0)
    (w1, b1), (w2, b2), (w3, b3) = jax.tree.map(np.asarray, params)
    x = np.array([0.3, -1.2, 0.7])
    expected = w3 @ np.maximum(w2 @ np.tanh(w1 @ x + b1) + b2, 0) + b3
    np.testing.assert_allclose(predict(model, params, x), expected, rtol=1e-13)


@pytest.mark.parametrize(
    ("head", "unit"),
    [
        (heads.linear_squared_error, lambda a: a),
        (heads.sigmoid_logistic, jax.nn.sigmoid),
        (heads.softmax_cross_entropy, jax.nn.softmax),
        (heads.exp_poisson, jnp.exp),
    ],
)
def test_no_hidden_layer_is_a_generalised_linear_model(head, unit, x64):
    """Linear, logistic, softmax and Poisson regression."""
    model = MLP((3, 2), activations.relu, head)
    (layer,) = params = random_params(model, 1)
    x = random_batch(model, 5, 1).x
    expected = unit(np.asarray(x) @ np.transpose(layer.weight) + layer.bias)
    np.testing.assert_allclose(predict(model, params, x), expected, rtol=1e-13)


def test_plain_numpy_and_integer_inputs_are_taken():
    model = MLP((2, 3, 1), activations.relu, heads.linear_squared_error)
    params = random_params(model, 0, np.float32)
    as_numpy = jaxbp.Batch(np.array([[1, 2]], np.uint8), np.array([[3]]))
    as_jax = jaxbp.Batch(jnp.array([[1.0, 2.0]]), jnp.array([[3.0]]))

    @jax.jit
    def of_both(params):
        return [jaxbp.backprop(model, params, batch) for batch in (as_numpy, as_jax)]

    claimed, expected = of_both(params)
    for left, right in zip(jax.tree.leaves(claimed), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"sizes": [2, 1]}, TypeError, r"sizes: got \[2, 1\], expected a tuple of ints"),
        ({"sizes": (2, 1.5)}, TypeError, r"sizes: got \(2, 1.5\), expected a tuple of ints"),
        (
            {"activation": [activations.relu, activations.leaky_relu]},
            TypeError,
            r"activation: got \[relu, leaky_relu\], expected a function .*, or a tuple of them",
        ),
        ({"sizes": (2,)}, ValueError, r"sizes: got \(2,\), expected at least \(D, K\)"),
        ({"sizes": (2, 0, 1)}, ValueError, r"sizes: got .*, every size positive"),
        (
            {"sizes": (2, 3, 3, 1), "activation": (activations.tanh,)},
            ValueError,
            r"activation: got 1, expected one, or 2 for \(2, 3, 3, 1\)",
        ),
    ],
)
def test_what_is_no_model_is_named(change, error, message):
    model = MLP((2, 3, 1), activations.tanh, heads.linear_squared_error)._replace(**change)
    params = (jaxbp.Layer(np.ones((3, 2)), np.ones(3)), jaxbp.Layer(np.ones((1, 3)), np.ones(1)))
    batch = jaxbp.Batch(np.ones((4, 2)), np.ones((4, 1)))
    fit = partial(jaxbp.fit, optimizer=sgd(0.1), epochs=1, batch_size=2, key=jax.random.key(0))
    for refusing in (
        lambda: jaxbp.init(jax.random.key(0), model),
        lambda: fit(model, batch),
        lambda: fit(model, batch, params=params),
        lambda: jaxbp.evaluate(model, params, batch),
        lambda: jaxbp.backprop(model, params, batch),
        lambda: jaxbp.layer_report(model, params, batch),
    ):
        with pytest.raises(error, match=message):
            refusing()


def test_params_that_are_no_layers_are_named():
    model = MLP((2, 1), activations.tanh, heads.linear_squared_error)
    for params in (None, ((np.ones((1, 2)), np.ones(1)),)):
        with pytest.raises(TypeError, match=r"params: got .*, expected a tuple of jaxbp\.Layer"):
            jaxbp.predict(model, params, np.ones(2))


@pytest.mark.parametrize("key", [0, np.zeros(2, np.uint32), jax.random.split(jax.random.key(0))])
def test_what_is_no_key_is_named(key):
    model = MLP((2, 1), activations.tanh, heads.linear_squared_error)
    with pytest.raises(TypeError, match=r"(?s)key: got .*, expected one jax\.random\.key\(seed\)"):
        jaxbp.init(key, model)


def test_weights_of_whole_numbers_are_refused():
    model = MLP((2, 1), activations.tanh, heads.linear_squared_error)
    with pytest.raises(TypeError, match="dtype: got int64, expected a floating point one"):
        jaxbp.init(jax.random.key(0), model, dtype=int)


def test_an_unknown_scheme_is_answered_with_the_known_ones():
    model = MLP((2, 1), activations.tanh, heads.linear_squared_error)
    with pytest.raises(ValueError, match="scheme: got 'xavier', expected one of he, glorot, lecun"):
        jaxbp.init(jax.random.key(0), model, scheme="xavier")


def test_many_rows_are_predicted_in_parts(monkeypatch):
    model = jaxbp.MLP((2, 3, 1), activations.tanh, heads.sigmoid_logistic)
    params, x = jaxbp.init(jax.random.key(0), model), np.linspace(-1, 1, 14).reshape(7, 2)
    whole = jaxbp.predict(model, params, x)
    monkeypatch.setattr("jaxbp.mlp._AT_ONCE", 9)  # of 3 rows
    np.testing.assert_allclose(jaxbp.predict(model, params, x), whole, rtol=1e-6)
    in_parts = jax.make_jaxpr(lambda x: logits_in_parts(model, params, x))(x)
    activation_sizes = [
        variable.aval.shape
        for equation in in_parts.eqns
        for inner in subjaxprs(equation)
        for each in opened(inner).eqns
        for variable in each.outvars
    ]
    assert activation_sizes
    assert max(shape[0] for shape in activation_sizes if shape) <= 3
