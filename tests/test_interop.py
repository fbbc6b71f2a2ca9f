"""Networks to and from other libraries: the same outputs there, or a refusal that says why."""

import importlib.util
import json
import re
import sys
import warnings
from functools import partial
from itertools import pairwise

import jax
import numpy as np
import optax
import pytest

import jaxbp
from benchmarks.problems import random_params
from jaxbp import activations, heads, interop
from jaxbp.checkpoint import Checkpoint
from jaxbp.data import DataWarning
from jaxbp.data.columns import Column
from jaxbp.data.preparation import transform
from jaxbp.interop.exported import exported, plain_preparation

UNITS = (
    *activations.BY_NAME.values(),
    partial(activations.leaky_relu, alpha=0.2),
    partial(activations.elu, k=0.5),
)
DEEP = jaxbp.MLP((3, *[5] * len(UNITS), 4), UNITS, heads.softmax_cross_entropy)
X = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)


def of_head(head, outputs=3):
    return DEEP._replace(sizes=(*DEEP.sizes[:-1], outputs), head=head)


def logits(model, params, x=X):
    return np.asarray(jaxbp.forward(model, params, x)[0])


def assert_same(network, other):
    (model, params), (right, right_params) = network, other
    assert model == right
    assert jaxbp.compare(params, right_params).relative_error == 0


def assert_same_preparation(preparation, right):
    for part, other in zip(preparation, right, strict=True):
        assert np.array_equal(part, other) if isinstance(other, np.ndarray) else part == other


# scikit-learn


def fitted(kind, sizes, out, **parameters):
    """An estimator with random coefficients, as if it were trained."""
    estimator = kind(hidden_layer_sizes=sizes[1:-1], **parameters)
    rng = np.random.default_rng(1)
    estimator.coefs_ = [rng.normal(size=shape) for shape in pairwise(sizes)]
    estimator.intercepts_ = [rng.normal(size=size) for size in sizes[1:]]
    estimator.out_activation_ = out
    return estimator


@pytest.mark.slow
def test_estimators_of_scikit_learn():
    neural_network = pytest.importorskip("sklearn.neural_network")
    from sklearn.exceptions import ConvergenceWarning

    rng = np.random.default_rng(0)
    x, score = rng.normal(size=(30, 3)), rng.normal(size=30)
    classifier, regressor = neural_network.MLPClassifier, neural_network.MLPRegressor
    for kind, unit, target, head in [
        (classifier, "identity", score > 0, heads.sigmoid_logistic),
        (classifier, "logistic", np.digitize(score, [-0.5, 0.5]), heads.softmax_cross_entropy),
        (classifier, "tanh", rng.random((30, 2)) > 0.5, heads.sigmoid_logistic),
        (regressor, "relu", score, heads.linear_half_squared_error),
        (regressor, "tanh", np.stack([score, -score], 1), heads.linear_half_squared_error),
    ]:
        estimator = kind(hidden_layer_sizes=(4, 5), activation=unit, max_iter=2, random_state=0)
        with pytest.warns(ConvergenceWarning):
            estimator.fit(x, target)
        model, params = interop.from_sklearn(estimator)
        right = getattr(estimator, "predict_proba", estimator.predict)(x).reshape(30, -1)
        predicted = np.asarray(jaxbp.predict(model, params, x.astype(np.float32)))
        right = right[:, -1:] if predicted.shape[1] == 1 else right
        np.testing.assert_allclose(predicted, right, atol=1e-6)
        assert model.head is head


def test_estimators_of_this_package():
    pytest.importorskip("sklearn")
    from jaxbp.estimators import MLPRegressor

    own = jaxbp.with_slope(jax.numpy.sin)
    for loss, out, unit, head in [
        ("huber", "identity", "gelu", heads.linear_huber),
        ("poisson", "exp", own, heads.exp_poisson),
        (heads.sigmoid_logistic, "identity", "softplus", heads.sigmoid_logistic),
    ]:
        estimator = fitted(MLPRegressor, (3, 4, 2), out, activation=unit, loss=loss)
        model, params = interop.from_sklearn(estimator)
        assert model.head is head
        assert model.activation is (activations.BY_NAME[unit] if isinstance(unit, str) else own)
        np.testing.assert_array_equal(params[0].weight, estimator.coefs_[0].T.astype(np.float32))
    search = type("Search", (), {"best_estimator_": estimator})()
    for estimator, message in [
        (MLPRegressor(), "is not fitted, expected"),
        (3, "is a int, expec"),
        (search, "is a Search, of which best_estimator_ is one, expected"),
    ]:
        with pytest.raises(TypeError, match=f"estimator: got one that {message}"):
            interop.from_sklearn(estimator)
    with pytest.raises(ValueError, match="head: loss='squared_error' with tanh output units has"):
        interop.from_sklearn(fitted(MLPRegressor, (3, 2), "tanh"))


# Weights by their names, without PyTorch

WEIGHTS = {
    "body.0.weight": np.ones((4, 3), np.float32),
    "body.0.bias": np.ones(4, np.float32),
    "body.2.weight": np.ones((2, 4), np.float32),
    "body.2.bias": np.ones(2, np.float32),
}
TOLD = {"activation": activations.relu, "head": heads.softmax_cross_entropy}


def test_weights_by_name():
    model, params = interop.from_torch(WEIGHTS, **TOLD)
    assert model == jaxbp.MLP((3, 4, 2), activations.relu, heads.softmax_cross_entropy)
    np.testing.assert_array_equal(jaxbp.forward(model, params, X[0] * 0)[0], [5, 5])
    WEIGHTS["body.0.bias"][:] = 2  # params are copies
    assert params[0].bias[0] == 1
    WEIGHTS["body.0.bias"][:] = 1
    model, _ = interop.from_torch(dict(list(WEIGHTS.items())[:2]), head=heads.linear_huber)
    assert model == jaxbp.MLP((3, 4), (), heads.linear_huber)


def test_a_state_dict_that_is_no_perceptron_is_refused():
    without = {name: array for name, array in WEIGHTS.items() if name != "body.2.bias"}
    for source, told, message in [
        (WEIGHTS, {"head": TOLD["head"]}, "^activation: got none, and the source does not tell it"),
        (
            WEIGHTS,
            {"activation": activations.relu},
            "^head: got none, and the network of PyTorch en",
        ),
        (WEIGHTS, TOLD | {"activation": UNITS}, "^activation: got 11, expected one, or 1$"),
        (WEIGHTS | {"bn.running_mean": 1}, TOLD, "^source: 'bn.running_mean' is no weight or bias"),
        (
            WEIGHTS | {"bn.weight": np.ones(3)},
            TOLD,
            r"'bn.weight' has shape \(3,\), expected a matr",
        ),
        (without, TOLD, "^source: layer 'body.2' has weight alone, expected a weight and a bias"),
        (WEIGHTS | {"body.2.weight": np.ones((2, 5))}, TOLD, r"^params: got weights and biases \["),
        (
            WEIGHTS,
            TOLD | {"activation": partial(activations.leaky_relu, alpha=-1)},
            "^alpha: got -1, expected at least 0",
        ),
        ({}, TOLD, "^PyTorch: no layer, expected at least one"),
    ]:
        with pytest.raises(ValueError, match=message):
            interop.from_torch(source, **told)
    with pytest.raises(TypeError, match=r"^head: got 'softmax', expected one of jaxbp.heads"):
        interop.from_torch(WEIGHTS, **TOLD | {"head": "softmax"})


def test_weights_in_safetensors(tmp_path):
    numpy = pytest.importorskip("safetensors.numpy")
    params = random_params(DEEP, 0, np.float32)
    tensors = {
        f"layers.{number}.{name}": np.asarray(part)
        for number, layer in enumerate(params)
        for name, part in layer._asdict().items()
    }
    path = tmp_path / "weights.safetensors"
    numpy.save_file(tensors, path)
    read = interop.from_torch(str(path), activation=UNITS, head=DEEP.head)  # 10 comes after 9
    assert_same(read, (DEEP, params))
    numpy.save_file({"first.weight": np.ones((2, 3)), "last.weight": np.ones((2, 2))}, path)
    with pytest.raises(ValueError, match="do not tell the order of the layers; give a state_dict"):
        interop.from_torch(path, **TOLD)
    path.write_bytes(b"no")
    with pytest.raises(ValueError, match=r"weights\.safetensors: not a complete safetensors file"):
        interop.from_torch(path, **TOLD)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"weights\.safetensors: no such file"):
        interop.from_torch(path, **TOLD)
    with pytest.raises(ValueError, match=r"weights\.onnx: expected a name in \.safetensors, \.pt"):
        interop.from_torch(tmp_path / "weights.onnx", **TOLD)
    jaxbp.save(path, DEEP, params)
    with pytest.raises(ValueError, match=r"a network of jaxbp\.save; jaxbp\.load reads it"):
        interop.from_torch(path, **TOLD)


def test_what_is_not_installed_is_said(monkeypatch):
    params = random_params(DEEP, 0, np.float32)
    for name, write in [
        ("torch", interop.to_torch),
        ("flax.nnx", interop.to_nnx),
        ("flax.linen", interop.to_linen),
        ("equinox", interop.to_equinox),
        ("keras", interop.to_keras),
    ]:
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(
            ImportError, match=f"{name}.*; it is needed here: pip install {name[:4]}"
        ):
            write(DEEP, params)


# Libraries


def to_torch(model, params):
    torch = pytest.importorskip("torch")
    network = interop.to_torch(model, params)
    back = partial(interop.from_torch, network)
    return lambda x: network(torch.from_numpy(x)).detach().numpy(), back


def to_nnx(model, params):
    pytest.importorskip("flax")
    network = interop.to_nnx(model, params)
    return network, partial(interop.from_nnx, network)


def to_linen(model, params):
    pytest.importorskip("flax")
    module, variables = interop.to_linen(model, params)
    return partial(module.apply, variables), partial(interop.from_linen, module, variables)


def to_equinox(model, params):
    pytest.importorskip("equinox")
    network = interop.to_equinox(model, params)
    return jax.vmap(network), partial(interop.from_equinox, network)


def to_keras(model, params):
    pytest.importorskip("keras")
    network = interop.to_keras(model, params)
    return lambda x: np.asarray(network(x)), partial(interop.from_keras, network)


@pytest.fixture
def keras_on_jax(monkeypatch):
    if importlib.util.find_spec("keras"):
        monkeypatch.setenv("KERAS_BACKEND", "jax")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.usefixtures("keras_on_jax")
@pytest.mark.parametrize("to", [to_torch, to_nnx, to_linen, to_equinox, to_keras])
def test_every_activation_there_and_back(to):
    for unit in UNITS:
        for head in (heads.softmax_cross_entropy, heads.exp_poisson, heads.linear_huber):
            for sizes, activation in [((3, 6, 6, 2), unit), ((3, 1), ())]:
                model = jaxbp.MLP(sizes, activation, head)
                params = random_params(model, 1, np.float32)
                there, back = to(model, params)
                np.testing.assert_allclose(
                    there(3 * X), logits(model, params, 3 * X), atol=1e-6, rtol=1e-6
                )
                assert_same(back(head=head), (model, params))
                with pytest.raises(ValueError, match=r"^head: got none, and the network of"):
                    back()
    model = jaxbp.MLP((3, 4, 2), jaxbp.with_slope(jax.numpy.sin), heads.linear_huber)
    with pytest.raises(
        ValueError, match=r"^activation: sin has no counterpart in (PyTorch|Flax|Equinox|Keras)$"
    ):
        to(model, random_params(model, 1, np.float32))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.usefixtures("keras_on_jax")
@pytest.mark.parametrize("to", [to_torch, to_nnx, to_linen, to_keras])
def test_layers_of_every_width_and_training_goes_on(to):
    model = jaxbp.MLP((3, 6, 4, 2), (activations.relu, activations.tanh), heads.linear_huber)
    params = random_params(model, 1, np.float32)
    there, back = to(model, params)
    np.testing.assert_allclose(there(X), logits(model, params), atol=1e-6)
    read, start = back(head=model.head)
    assert_same((read, start), (model, params))
    batch = jaxbp.Batch(X, X[:, :2])
    options = {"key": jax.random.key(0), "epochs": 3, "batch_size": 7}
    options["optimizer"] = optax.sgd(0.01)
    trained, _ = jaxbp.fit(read, batch, params=start, **options)
    right, _ = jaxbp.fit(model, batch, params=params, **options)
    assert jaxbp.compare(trained, right).relative_error == 0


@pytest.mark.slow
def test_torch_modules_that_differ(tmp_path):
    torch = pytest.importorskip("torch")
    nn, head = torch.nn, heads.linear_huber

    def stack(*between, last=()):
        return nn.Sequential(nn.Linear(3, 4), *between, nn.Linear(4, 2), *last)

    for unit, expected in [
        (nn.LeakyReLU(0.25), partial(activations.leaky_relu, alpha=0.25)),
        (nn.ELU(2.0), partial(activations.elu, k=2.0)),
        (nn.Sequential(nn.ReLU()), activations.relu),
    ]:
        network = stack(unit)
        model, params = interop.from_torch(network, head=head)
        assert model.activation == expected or model == model._replace(activation=expected)
        np.testing.assert_allclose(
            logits(model, params), network(torch.from_numpy(X)).detach(), atol=1e-6
        )
    hooked = stack(nn.ReLU())
    hooked[1].register_forward_hook(lambda module, inputs, output: 2 * output)
    for network, message in [
        (hooked, r"^source, step 1: ReLU\(\) has a forward hook, expected none"),
        (
            stack(nn.GELU("tanh")),
            r"^activation: GELU\(approximate='tanh'\) of PyTorch has no count",
        ),
        (stack(nn.Softplus(beta=2)), r"^activation: Softplus\(beta=2.* has no counterpart"),
        (stack(nn.Dropout(0.1)), r"^source, step 1: Dropout\(p=0.1.* has no counterpart"),
        (stack(nn.BatchNorm1d(4)), "^source, step 1: BatchNorm1d"),
        (stack(nn.PReLU()), r"^source, step 1: PReLU.* has no counterpart in a jaxbp.MLP"),
        (stack(nn.ReLU(), nn.Tanh()), r"step 2: Tanh\(\) stands right after ReLU\(\)"),
        (nn.Sequential(nn.ReLU(), nn.Linear(3, 2)), r"ReLU\(\) stands before the first layer"),
        (stack(last=[nn.ReLU()]), r"^head: ReLU\(\) of PyTorch after the last layer is no output"),
        (
            stack(last=[nn.Softmax(-1)]),
            "^head: got linear_huber, but PyTorch has the output unit so",
        ),
        (nn.Sequential(nn.Linear(3, 2, bias=False)), "has no bias, expected one"),
    ]:
        with pytest.raises(ValueError, match=message):
            interop.from_torch(network, head=head)
    assert interop.from_torch(stack(last=[nn.Softmax(-1)]))[0].head is heads.softmax_cross_entropy
    with pytest.raises(
        ValueError, match="sigmoid of PyTorch is that of sigmoid_logistic and of sig"
    ):
        interop.from_torch(stack(last=[nn.Sigmoid()]))
    with pytest.raises(ValueError, match=r"activation: got tanh, but PyTorch has relu there"):
        interop.from_torch(stack(nn.ReLU()), head=head, activation=activations.tanh)
    with pytest.raises(TypeError, match=r"source: got Linear, expected a torch.nn.Sequential"):
        interop.from_torch(nn.Linear(3, 2), head=head)


@pytest.mark.slow
def test_torch_files(tmp_path):
    torch = pytest.importorskip("torch")
    network = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    right = interop.from_torch(network, head=TOLD["head"])
    for dtype in (torch.float32, torch.bfloat16):
        torch.save(network.to(dtype).state_dict(), path := tmp_path / f"{dtype}.pt")
        model, params = interop.from_torch(path, **TOLD)
        assert model == right[0]
        assert jaxbp.compare(params, right[1]).relative_error < 0.01
    torch.save(network, path := tmp_path / "whole.pt")  # a pickled module, which would run code
    with pytest.raises(
        ValueError, match=r"whole.pt: no weights alone, as torch.save\(network.stat"
    ):
        interop.from_torch(path, **TOLD)
    torch.save([1], path := tmp_path / "list.pt")
    with pytest.raises(ValueError, match=r"list.pt: holds a list, expected a state_dict"):
        interop.from_torch(path, **TOLD)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_stacks_of_jax_that_differ():
    pytest.importorskip("flax")
    eqx = pytest.importorskip("equinox")
    from flax import linen, nnx

    key, rngs, head = jax.random.key(0), nnx.Rngs(0), heads.linear_huber
    dense = [nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)]
    stack = nnx.Sequential(dense[0], nnx.gelu, dense[1])
    with pytest.raises(
        ValueError, match=r"^activation: gelu\(approximate=True\) of Flax has no cou"
    ):
        interop.from_nnx(stack, head=head)
    model, params = interop.from_nnx(
        nnx.Sequential(dense[0], jax.numpy.sin, dense[1], nnx.softmax),
        activation=(own := jaxbp.with_slope(jax.numpy.sin)),
    )
    assert model == jaxbp.MLP((3, 4, 2), own, heads.softmax_cross_entropy)
    with pytest.raises(ValueError, match=r"^network, step 1: Dropout has no counterpart"):
        interop.from_nnx(nnx.Sequential(dense[0], nnx.Dropout(0.1, rngs=rngs)), head=head)
    with pytest.raises(ValueError, match=r"^network, step 0: Linear has no bias"):
        interop.from_nnx(nnx.Sequential(nnx.Linear(3, 2, use_bias=False, rngs=rngs)), head=head)
    half = nnx.Sequential(nnx.Linear(3, 2, param_dtype="bfloat16", rngs=rngs))
    model, params = interop.from_nnx(half, head=head)  # computes in float32, as its rows are
    np.testing.assert_allclose(logits(model, params), half(X), rtol=1e-6, atol=1e-6)
    own = nnx.Sequential(nnx.Linear(3, 2, rngs=nnx.Rngs(0), dot_general=lambda *a, **k: None))
    with pytest.raises(ValueError, match=r"^network, step 0: has a dot_general of its own"):
        interop.from_nnx(own, head=head)
    with pytest.raises(ValueError, match=r"^module, step 0: computes in bfloat16, expect"):
        interop.from_linen(linen.Sequential([linen.Dense(2, dtype="bfloat16")]), {}, head=head)
    module = linen.Sequential([linen.Dense(4), partial(linen.leaky_relu, negative_slope=0.5)])
    with pytest.raises(ValueError, match=r"^head: leaky_relu of Flax after the last layer is no"):
        interop.from_linen(module, module.init(key, X), head=head)
    with pytest.raises(ValueError, match=r"^variables: got \[\] for layers_0, expected kernel and"):
        interop.from_linen(module, {}, head=head)
    for wrong in (interop.from_nnx, interop.from_equinox):
        with pytest.raises(TypeError, match=r"^network: got Sequential, expected a"):
            wrong(module, head=head)
    network = eqx.nn.MLP(3, 2, 4, 2, final_activation=jax.numpy.exp, key=key)
    model, params = interop.from_equinox(network)
    assert model == jaxbp.MLP((3, 4, 4, 2), activations.relu, heads.exp_poisson)
    np.testing.assert_allclose(
        jaxbp.predict(model, params, X), jax.vmap(network)(X), atol=1e-6, rtol=1e-6
    )
    for change, message in [
        ({"sizes": (3, 4, 5, 2)}, "^sizes: got hidden layers of 4, 5, expected one width"),
        (
            {"activation": (activations.relu, activations.tanh)},
            "^activation: got relu, tanh, expected one for all hidden layers",
        ),
    ]:
        other = model._replace(**change)
        with pytest.raises(ValueError, match=message):
            interop.to_equinox(other, random_params(other, 0, np.float32))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.usefixtures("keras_on_jax")
def test_layers_of_keras_that_differ():
    keras = pytest.importorskip("keras")
    layers, head = keras.layers, heads.linear_huber

    def stack(*steps):
        return keras.Sequential([keras.Input((3,)), *steps])

    for steps, expected in [
        ([layers.Dense(4, "leaky_relu")], partial(activations.leaky_relu, alpha=0.2)),
        ([layers.Dense(4), layers.ReLU()], activations.relu),
        ([layers.Dense(4), layers.LeakyReLU()], partial(activations.leaky_relu, alpha=0.3)),
        ([layers.Dense(4), layers.Activation("silu")], activations.silu),
    ]:
        network = stack(*steps, layers.Dense(2))
        model, params = interop.from_keras(network, head=head)
        assert model == jaxbp.MLP((3, 4, 2), expected, head)
        np.testing.assert_allclose(logits(model, params), np.asarray(network(X)), atol=1e-6)
    for steps, message in [
        ([layers.Dense(4, "relu6"), layers.Dense(2)], "^activation: relu6 of Keras has no counter"),
        (
            [layers.Dense(4), layers.Dropout(0.1)],
            r"^network: Dropout \(dropout.*\) has no counterp",
        ),
        (
            [layers.Dense(2, dtype="mixed_bfloat16")],
            "^network: dense.* computes in bfloat16, expect",
        ),
        ([layers.Dense(2, use_bias=False)], "^network: dense.* has no bias, expected one"),
        ([layers.Dense(4), layers.ReLU(6.0), layers.Dense(2)], "^activation: ReLU .* has no count"),
    ]:
        with pytest.raises(ValueError, match=message):
            interop.from_keras(stack(*steps), head=head)
    model, _ = interop.from_keras(stack(layers.Dense(2, "softmax")))
    assert model == jaxbp.MLP((3, 2), (), heads.softmax_cross_entropy)
    with pytest.raises(ValueError, match="has no weights yet; call the network, or build it"):
        interop.from_keras(keras.Sequential([layers.Dense(2)]), head=head)


# Files that need no jaxbp

#: of one sigmoid unit, several classes, several labels, quantities
KINDS = [
    of_head(heads.sigmoid_logistic, 1),
    of_head(heads.softmax_cross_entropy),
    of_head(heads.sigmoid_squared_error, 3),
    of_head(heads.linear_huber, 2),
    of_head(heads.exp_poisson, 1),
]
ROWS = (X * [3, 2, 0.5] + [1, 1000, -4]).astype(np.float32)
ROWS[1, 0] = ROWS[2, 1] = np.nan  # gaps, which are filled
HOSTILE = ('"""\n', "<b>", "größe \\")


def trained(model, **change):
    """A network of random parameters, with a preparation that does not leave rows as they are."""
    preparation = plain_preparation(model)._replace(
        features=HOSTILE,
        columns=tuple(map(Column, HOSTILE, ("number", "boolean", "number"), (7.0, 1.0, 2.0))),
        mean=np.array([1.0, 1000.0, -4.0]),
        scale=np.array([3, 2, 0.5]),
    )
    if preparation.labels is None:
        quantities = model.sizes[-1]
        change |= {
            "target_mean": np.full(quantities, 9.0),
            "target_scale": np.full(quantities, 2.0),
        }
    else:
        change |= {"labels": (*HOSTILE,)[: len(preparation.labels)]}
    return Checkpoint(model, random_params(model, 2, np.float32), preparation._replace(**change))


def with_a_flag():
    """A network of numbers one of which has an input beside it that is 1 where it is missing."""
    first, second, third = map(Column, HOSTILE)
    columns = (first, second._replace(fill=7.0, indicator=True), third)
    model = KINDS[1]._replace(sizes=(4, *KINDS[1].sizes[1:]))
    network = trained(model, columns=columns, mean=np.arange(4.0), scale=np.full(4, 2.0))
    return network._replace(preparation=network.preparation._replace(features=HOSTILE))


def right_outputs(network):
    """Probabilities, or quantities, as ``jaxbp predict`` has them, and labels."""
    scores = pytest.importorskip("jaxbp.cli.scores")
    with warnings.catch_warnings(action="ignore", category=DataWarning):  # no truth values
        rows = transform(network.preparation, ROWS)
    found = scores.outputs(network, rows)
    labels = network.preparation.labels
    if labels is None:
        return found, None
    if network.preparation.several_labels:
        return found, found > 0.5
    return found, np.array(labels)[found.argmax(1)]


def written(folder, files, name="network"):
    for suffix, content in files.items():
        (folder / f"{name}{suffix}").write_bytes(content)
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_numpy_has_every_activation_and_output_unit(tmp_path):
    numpy_source = pytest.importorskip("jaxbp.interop.numpy_source")
    for number, network in enumerate([*map(trained, KINDS), with_a_flag()]):
        files = numpy_source.numpy_files(exported(network))
        lines = files[".py"].decode().splitlines()
        assert len(lines) <= 60
        assert max(map(len, lines)) <= 100
        module = written(tmp_path, files, f"network{number}")
        found, labels = right_outputs(network)
        if labels is None:
            np.testing.assert_allclose(module.predict(ROWS), found, rtol=2e-6)
        else:
            np.testing.assert_allclose(module.predict_proba(ROWS), found, atol=1e-6)
            np.testing.assert_array_equal(module.predict(ROWS), labels)
        assert list(HOSTILE) == module.FEATURES
        with np.load(tmp_path / f"network{number}.npz") as file:
            back = numpy_source.network_of_npz(dict(file))
        assert_same(back[:2], network[:2])
        assert_same_preparation(back.preparation, network.preparation)
    mixed = {name: ROWS[:, HOSTILE.index(name)] for name in sorted(HOSTILE)}
    np.testing.assert_array_equal(module.predict(mixed), module.predict(ROWS))
    with pytest.raises(ValueError, match=r"x: got shape \(7, 1\), expected \(N, 3\)"):
        module.predict(ROWS[:, :1])
    with pytest.raises(ValueError, match="x: a number is missing, or infinite"):
        module.predict(ROWS * np.inf)


def test_what_cannot_be_exported_is_refused():
    own = jaxbp.with_slope(jax.numpy.sin)
    model = jaxbp.MLP((3, 2, 2), own, heads.linear_huber)
    plain = model._replace(activation=activations.relu)
    head = jaxbp.with_error(lambda a, y: jax.numpy.sum((a - y) ** 4, -1))
    head = head._replace(predict=jax.numpy.tanh)
    for network, message in [
        (trained(model), "^activation: sin has no counterpart in the files of exports"),
        (trained(plain._replace(head=head)), "^head: the output unit"),
    ]:
        with pytest.raises(ValueError, match=message):
            exported(network)


def a_table(rows, *, dates=True):
    """A table with columns of every kind, called as nothing else should be, and with gaps."""
    rng = np.random.default_rng(rows)
    numbers = rng.normal(1500, 3000, rows)
    table = {
        "label": rng.choice(["oak", "pine", "ash", "NA"], rows),  # also an output's name
        "gap": np.where(rng.random(rows) < 0.2, np.nan, rng.normal(20, 5, rows)),
        HOSTILE[0]: np.array([f"{each:_.2f}" for each in numbers], object),
        HOSTILE[1]: rng.choice(["yes", "No", ""], rows),
        "kind": rng.choice([1.0, 2.0, 3.0], rows),
        "tall": rng.choice(["a", "b", "c"], rows),
    }
    for row, cell in enumerate(table[HOSTILE[0]]):
        table[HOSTILE[0]][row] = cell.replace(".", ",").replace("_", ".")
    if dates:
        days = rng.integers(10, 28, (rows, 2))
        table["when"] = np.array([f"2020-{m % 9 + 1}-{d} 12:30" for m, d in days], object)
    return table


def of_a_table(*, dates=True):
    """A network of such a table, and other rows with cells that no training row has."""
    data = jaxbp.data.load(a_table(200, dates=dates), target="tall", categorical="kind")
    model = of_head(heads.softmax_cross_entropy)
    model = model._replace(sizes=(len(data.preparation.inputs), 4, 3), activation=activations.relu)
    network = Checkpoint(model, random_params(model, 2, np.float32), data.preparation)
    new = a_table(30, dates=dates)
    new["label"] = new["label"].astype(object)
    new["label"][:4] = ["elm", "nUlL", "", " oak "]
    with pytest.warns(UserWarning, match="that no training row has"):
        x = transform(data.preparation, new)
    scores = pytest.importorskip("jaxbp.cli.scores")
    return network, new, x, scores.outputs(network, x)


def test_numpy_reads_a_table_as_this_package_does(tmp_path):
    numpy_source = pytest.importorskip("jaxbp.interop.numpy_source")
    network, new, _, right = of_a_table()
    module = written(tmp_path, numpy_source.numpy_files(exported(network)), "of_a_table")
    with pytest.warns(UserWarning, match=r"column 'label': no training row has \['elm'\]"):
        np.testing.assert_allclose(module.predict_proba(new), right, atol=1e-6)
    new["label"][0] = "ash"
    labels = np.array(network.preparation.labels)
    probable = module.predict_proba(new)
    np.testing.assert_array_equal(module.predict(new), labels[probable.argmax(1)])
    with np.load(tmp_path / "of_a_table.npz") as file:
        back = numpy_source.network_of_npz(dict(file))
    assert back.preparation.columns == network.preparation.columns
    for name, cell, kind in [
        ("when", "1.2.2020", "date"),
        (HOSTILE[1], "perhaps", "boolean"),
        (HOSTILE[0], "1.5", "number"),
    ]:
        message = f"column {name!r}: got {cell!r}, not a {kind}"
        with pytest.raises(ValueError, match=re.escape(message)):
            module.predict(new | {name: [cell] * 30})
    with pytest.warns(UserWarning, match=r"no training row has \[0.5, 2.0\]"):
        module.predict(new | {HOSTILE[1]: ["2", "0.5", "", *new[HOSTILE[1]][3:]]})
    del new["when"]
    with pytest.raises(ValueError, match="column 'when': got 'no such column', not a date"):
        module.predict(new)
    new["when"] = a_table(30)["when"]
    files = numpy_source.numpy_files(exported(of_a_table(dates=False)[0]))
    assert len(files[".py"].decode().splitlines()) <= 60
    columns = tuple(
        each._replace(
            missing="error",
            categories=tuple(
                f"{name}.0" if each.name == "kind" else name for name in each.categories
            ),
        )
        for each in network.preparation.columns
    )
    network = network._replace(preparation=network.preparation._replace(columns=columns))
    module = written(tmp_path, numpy_source.numpy_files(exported(network)), "complete")
    with pytest.raises(ValueError, match="column 'label': got 'nUlL', not a category"):
        module.predict(new)
    impute = [each._replace(missing="impute") for each in columns]  # with '1.0' for a category
    network = network._replace(preparation=network.preparation._replace(columns=tuple(impute)))
    module = written(tmp_path, numpy_source.numpy_files(exported(network)), "with_fractions")
    np.testing.assert_allclose(module.predict_proba(new), probable, atol=1e-6)
    same = transform(back.preparation, new)
    np.testing.assert_array_equal(transform(network.preparation, new), same)


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """``jaxbp`` in a folder with a network: (status, standard output, standard error)."""
    cli = pytest.importorskip("jaxbp.cli")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    network = trained(KINDS[1], features=("a", "b", "c"))
    jaxbp.save(tmp_path / "run" / "model.safetensors", *network)
    np.savez(tmp_path / "rows.npz", x=np.nan_to_num(ROWS))

    def run(*arguments):
        capsys.readouterr()
        status = cli.main([*map(str, arguments)])
        return status, *capsys.readouterr()

    return run


def test_export_and_import_in_numpy(command, tmp_path):
    status, said, _ = command("export", "run", "--to", "numpy", "--output", "new/net.py")
    assert status == 0
    assert said == (
        "A network of 3 columns, 11 hidden layers and 3 classes, in new/net.py and new/net.npz\n"
        "truth values are 1 and 0: '<b>'\n"
    )
    assert command("import", "new/net.npz", "--to", "back")[0] == 0
    right, predicted = (command("predict", run, "rows.npz") for run in ("run", "back"))
    assert right == predicted
    assert right[0] == 0
    before = (tmp_path / "new" / "net.npz").read_bytes()
    (tmp_path / "new" / "net.py").unlink()
    (tmp_path / "some.txt").write_text("some")
    (tmp_path / "some.npz").write_text("some")
    for arguments, message in [
        (
            ["export", "run", "--to", "numpy", "--output", "new/net.py"],
            "new/net.npz exists, and no",
        ),
        (
            ["export", "run", "--to", "numpy", "--output", "n.txt"],
            "got n.txt, expected a name in .py",
        ),
        (["export", "run", "--to", "onnx", "--output", "some.txt"], "some.txt exists, and nothing"),
        (["export", "no", "--to", "onnx", "--output", "n.onnx"], "no: no such file"),
        (
            ["import", "new/net.npz", "--to", "back"],
            "--to: back exists, and nothing is overwritten",
        ),
        (["import", "some.npz", "--to", "b"], "some.npz: not a whole .npz file"),
        (["import", "rows.npz", "--to", "b"], "rows.npz: not the parameters of jaxbp export"),
        (["import", "some.txt", "--to", "b"], "FILE: got some.txt, expected a name in .npz, .saf"),
        (["import", "no.npz", "--to", "b"], "no.npz: No such file or directory"),
        (["import", "no.py", "--to", "b"], "no.npz and no.safetensors are not there"),
        (
            ["import", "new/net.npz", "--to", "b", "--head", "linear_huber"],
            "--activation, --head: the file tells both",
        ),
    ]:
        status, _, said = command(*arguments)
        assert status == 2
        assert message in said
        assert said.startswith("jaxbp: ")
        assert said.count("\n") == 1
    assert (tmp_path / "new" / "net.npz").read_bytes() == before
    assert not (tmp_path / "new" / "net.py").exists()
    assert not (tmp_path / "b").exists()


def test_import_of_weights_alone(command, tmp_path):
    numpy = pytest.importorskip("safetensors.numpy")
    numpy.save_file(WEIGHTS, tmp_path / "theirs.safetensors")
    told = ["--activation", "relu", "--head", "softmax_cross_entropy"]
    status, said, _ = command("import", "theirs.safetensors", "--to", "back", *told)
    assert status == 0
    assert "no preparation of rows is known: they are taken as they are, columns x0" in said
    (tmp_path / "theirs.py").touch()
    by_program = command("import", "theirs.py", "--to", "back2", *told)
    assert by_program[:2] == (0, said.replace("back", "back2"))
    status, predicted, _ = command("predict", "back", "rows.npz")
    assert status == 0
    assert predicted.startswith("label,probability_0,probability_1\n0,0.5,0.5\n")
    for options, message in [
        (told[:2], "--head: theirs.safe"),
        (told[2:], "--activation: theirs.s"),
    ]:
        status, _, said = command("import", "theirs.safetensors", "--to", "b", *options)
        assert status == 2
        assert message in said


def test_export_without_the_library(command, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnx", None)
    status, _, said = command("export", "run", "--to", "onnx", "--output", "net.onnx")
    assert status == 2
    assert said.endswith("; it is needed here: pip install onnx\n")
    assert not (tmp_path / "net.onnx").exists()


@pytest.mark.slow
def test_onnx():
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    from jaxbp.interop.onnx_file import to_onnx

    for network in [*map(trained, KINDS), with_a_flag()]:
        proto = to_onnx(exported(network))
        session = onnxruntime.InferenceSession(proto.SerializeToString())
        names = [output.name for output in session.get_outputs()]
        outputs = dict(zip(names, session.run(None, {"X": ROWS}), strict=True))
        found, labels = right_outputs(network)
        if labels is None:
            assert names == ["variable"]
            np.testing.assert_allclose(outputs["variable"], found, rtol=2e-6)
        else:
            assert names == ["label", "probabilities"]
            np.testing.assert_allclose(outputs["probabilities"], found, atol=1e-6)
            np.testing.assert_array_equal(outputs["label"], labels)
        held = session.get_modelmeta().custom_metadata_map
        assert json.loads(held["features"]) == list(HOSTILE)


@pytest.mark.slow
def test_onnx_takes_the_columns_of_a_table():
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    from jaxbp.interop.onnx_file import input_names, to_onnx

    network, new, _, right = of_a_table(dates=False)
    parts = exported(network)
    session = onnxruntime.InferenceSession(to_onnx(parts).SerializeToString())
    names = input_names(parts)
    assert [each.name for each in session.get_inputs()] == names
    assert names == ["label_", *network.preparation.features[1:]]
    cells = new | {
        "label": [cell.strip() for cell in new["label"]],
        HOSTILE[0]: [cell.replace(".", "").replace(",", ".") for cell in new[HOSTILE[0]]],
        HOSTILE[1]: [{"yes": 1, "No": 0, "": np.nan}[cell] for cell in new[HOSTILE[1]]],
        "kind": [str(int(cell)) for cell in new["kind"]],
    }
    feeds = {
        name: np.array(cells[each.name], object if each.kind == "category" else np.float32)[:, None]
        for name, each in zip(names, parts.columns, strict=True)
    }
    label, probabilities = session.run(None, feeds)
    np.testing.assert_allclose(probabilities, right, atol=1e-6)
    labels = np.array(network.preparation.labels)
    np.testing.assert_array_equal(label, labels[right.argmax(1)])
    with pytest.raises(ValueError, match=r"^column 'when' is a date, and ONNX reads none"):
        to_onnx(exported(of_a_table()[0]))


def test_what_an_export_of_a_table_says(command):
    network, *_ = of_a_table()
    jaxbp.save("table.safetensors", *network)
    status, said, _ = command("export", "table.safetensors", "--to", "numpy", "--output", "t.py")
    assert status == 0
    assert "rows are a DataFrame or a dict of columns, with text as it comes\n" in said
    if importlib.util.find_spec("onnx"):
        status, _, said = command("export", "table.safetensors", "--to", "onnx", "--output", "t.o")
        assert status == 2
        assert said.startswith("jaxbp: column 'when' is a date, and ONNX reads none")
        assert said.count("\n") == 1


@pytest.mark.slow
def test_prepared_rows_and_flags_in_stablehlo_and_torch(command, tmp_path):
    """A table of text is prepared before; gaps that have flags are filled there."""
    torch = pytest.importorskip("torch")
    from jax import export

    from jaxbp.interop.torch_source import torch_files

    network, _, x, right = of_a_table()
    gaps = with_a_flag()
    for name, each, rows, found in [
        ("table", network, x, right),
        ("gaps", gaps, ROWS, right_outputs(gaps)[0]),
    ]:
        jaxbp.save(f"{name}.safetensors", *each)
        arguments = ["export", f"{name}.safetensors", "--to", "stablehlo", "--output", name]
        status, said, _ = command(*arguments)
        assert status == 0
        assert ("rows have to be prepared as jaxbp.data.transform" in said) == (name == "table")
        program = export.deserialize(bytearray((tmp_path / name).read_bytes()))
        np.testing.assert_allclose(program.call(rows), found, atol=1e-6)
        module = written(tmp_path, torch_files(exported(each)), f"torch_{name}")
        np.testing.assert_allclose(module.predict_proba(torch.tensor(rows)), found, atol=1e-6)


@pytest.mark.slow
def test_stablehlo_in_a_process_without_jaxbp(command, python, tmp_path):
    np.savez(tmp_path / "gaps.npz", x=ROWS)
    for name, model in zip("abcde", KINDS, strict=True):
        network = trained(model, features=("a", "b", "c"))
        jaxbp.save(tmp_path / f"{name}.safetensors", *network)
        arguments = [
            "export",
            f"{name}.safetensors",
            "--to",
            "stablehlo",
            "--output",
            f"{name}.hlo",
        ]
        status, said, _ = command(*arguments)
        assert status == 0
        assert "columns: 'a', 'b', 'c'\n" in said
        code = (
            "import sys; sys.modules['jaxbp'] = None; import numpy as np; from jax import export\n"
            f"program = export.deserialize(bytearray(open({f'{name}.hlo'!r}, 'rb').read()))\n"
            f"x = np.load('gaps.npz')['x']; np.save('{name}.npy', program.call(x))\n"
            f"np.testing.assert_allclose(program.call(x[:2]), np.load('{name}.npy')[:2], rtol=1e-5)"
        )
        python("-c", code).ended()
        found, _ = right_outputs(network)
        np.testing.assert_allclose(np.load(tmp_path / f"{name}.npy"), found, atol=1e-6, rtol=2e-6)


@pytest.mark.slow
def test_source_for_torch(command, tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    from jaxbp.interop.torch_source import torch_files

    for number, model in enumerate(KINDS):
        network = trained(model)
        module = written(tmp_path, torch_files(exported(network)), f"torch{number}")
        path = tmp_path / f"torch{number}.safetensors"
        found, labels = right_outputs(network)
        if labels is None:
            np.testing.assert_allclose(module.predict(ROWS), found, rtol=2e-6)
        else:
            np.testing.assert_allclose(module.predict_proba(ROWS), found, atol=1e-6)
            np.testing.assert_array_equal(np.asarray(module.predict(torch.tensor(ROWS))), labels)
        assert_same(interop.from_torch(path), network[:2])
        interop.to_torch(*network[:2]).load_state_dict(load_file(path))
        assert command("import", path, "--to", f"back{number}")[0] == 0
        back = jaxbp.load(tmp_path / f"back{number}")
        assert_same_preparation(back.preparation, network.preparation)
