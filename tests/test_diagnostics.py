"""Diagnostics: every planted sickness is found at its layer, and the healthy are left in peace."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tables import ACTIVATIONS, HEADS, random_batch, random_params

import jaxbp
from jaxbp import activations, diagnostics, heads

CLASSES = heads.softmax_cross_entropy
layer_health = jax.jit(diagnostics.layer_health, static_argnums=0)  # one program, not dozens


def batch_of(rows=200, inputs=20, outputs=5):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(rows, inputs)), jnp.float32)
    return jaxbp.Batch(x, jnp.asarray(rng.integers(outputs, size=rows)))


def network(unit, hidden=(64, 64, 64), head=CLASSES, **options):
    model = jaxbp.MLP((20, *hidden, 5), unit, head)
    return model, jaxbp.init(jax.random.key(0), model, **options)


def in_layer(params, layer, *, scale=1.0, shift=0.0):
    """params with the weights of one layer (from 1) scaled and its biases shifted."""
    change = lambda old: jaxbp.Layer(old.weight * scale, old.bias + shift)  # noqa: E731
    return tuple(change(old) if n == layer else old for n, old in enumerate(params, start=1))


def root_of_log(a):
    """√ of the positive, with an infinite slope at 0, where it hides behind a finite value."""
    return jnp.where(a > 0, jnp.sqrt(jnp.abs(a)), 0.0), jnp.where(a > 0, 1.0, jnp.inf)


def of(unit, change=lambda params: params, *, batch=None, hidden=(64, 64, 64), **options):
    """A model, its parameters changed for the worse, and a batch."""
    model, params = network(unit, hidden, **options)
    return model, change(params), batch or batch_of()


def everywhere(params, **options):
    """The same change in every layer."""
    return tuple(in_layer(params, n, **options)[n - 1] for n in range(1, len(params) + 1))


X, T, _ = batch_of()
RELU, TANH, ELU = activations.relu, activations.tanh, activations.elu
HALF = jnp.where(jnp.arange(64) % 2 == 0, -100.0, 0.0)
NEARLY_FLAT = (TANH, partial(activations.leaky_relu, alpha=1e-5), TANH)
WRONG = jaxbp.Batch(X, jnp.zeros((200, 5)))
_, HE = network(RELU)

#: one thing wrong each
PLANTED = {
    "ReLUs dead by a large negative bias": lambda: of(RELU, partial(in_layer, layer=2, shift=-99)),
    "half of the ReLUs dead": lambda: of(RELU, partial(in_layer, layer=3, shift=HALF)),
    "saturation by scaled inputs": lambda: of(TANH, batch=jaxbp.Batch(100 * X, T)),
    "saturation by large weights": lambda: of(TANH, partial(in_layer, layer=2, scale=30)),
    "saturation by a bias": lambda: of(TANH, partial(in_layer, layer=3, shift=10)),
    "ELUs on their flat side": lambda: of(ELU, partial(in_layer, layer=1, shift=-9)),
    "vanishing by depth": lambda: of(activations.sigmoid, hidden=(64,) * 10),
    "vanishing by small weights": lambda: of(RELU, partial(in_layer, layer=3, scale=1e-5)),
    "vanishing by flat slopes": lambda: of(NEARLY_FLAT, partial(in_layer, layer=2, shift=-10)),
    "explosion by large weights": lambda: of(RELU, partial(in_layer, layer=3, scale=1e5)),
    "explosion by depth": lambda: of(RELU, partial(everywhere, scale=3), hidden=(64,) * 10),
    "a weight that is NaN": lambda: of(RELU, partial(in_layer, layer=2, scale=np.nan)),
    "an infinite input": lambda: of(RELU, batch=jaxbp.Batch(X.at[0, 0].set(np.inf), T)),
    "a slope that is infinite": lambda: of((RELU, root_of_log, RELU)),
    "a learning rate too large": lambda: (
        *of(RELU),
        in_layer(jax.tree.map(lambda w: 1e-3 * w, HE), 2, scale=300),
    ),
    "squared error on saturated outputs": lambda: of(
        RELU,
        partial(in_layer, layer=4, shift=20),
        batch=WRONG,
        head=heads.sigmoid_squared_error,
    ),
}


def plant(name):
    return PLANTED[name]()


#: what is planted, the layer to be named, the verdict there, and a word of what is said
SICKNESSES = [
    ("ReLUs dead by a large negative bias", 2, "dead", "100% of its units have zero slope"),
    ("half of the ReLUs dead", 3, "dead", "zero slope"),
    ("saturation by scaled inputs", 1, "saturated", "of its units are flat"),
    ("saturation by large weights", 2, "saturated", "of its units are flat"),
    ("saturation by a bias", 3, "saturated", "100% of its units are flat"),
    ("ELUs on their flat side", 1, "saturated", "100% of its units are flat"),
    ("vanishing by depth", 6, "vanishing", "is multiplied by 0.2"),
    ("vanishing by small weights", 3, "healthy", "vanishing: its weights multiply"),
    ("vanishing by flat slopes", 2, "saturated", "of its units are flat"),
    ("explosion by large weights", 3, "healthy", "exploding: its weights multiply"),
    ("explosion by depth", 4, "exploding", "is multiplied by 3 a layer"),
    ("a weight that is NaN", 2, "not finite", "its weights are not finite"),
    ("an infinite input", 1, "not finite", "its outputs are not finite, though its weights are"),
    ("a slope that is infinite", 2, "not finite", "its δ is not finite"),
    ("a learning rate too large", 2, "healthy", "a step changes its weights by 30%"),
    ("squared error on saturated outputs", 4, "healthy", "the output is wrong, and its error"),
]


def test_every_planted_sickness_is_looked_for():
    assert [name for name, *_ in SICKNESSES] == list(PLANTED)


@pytest.mark.parametrize(("name", "layer", "verdict", "said"), SICKNESSES)
def test_a_planted_sickness_is_found_at_its_layer(name, layer, verdict, said):
    report = diagnostics.layer_report(*plant(name))
    assert not report
    first = report.findings[0]
    assert (first.layer, len(report.findings)) == (layer, 1)
    assert said in first.what
    assert report.layers[layer - 1].verdict == verdict
    assert f"layer {layer}: {first.what}" in str(report)
    assert first.advice in diagnostics.ADVICE.values()


@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if "sigmoid" not in name])
def test_healthy_networks_are_left_in_peace(activation):
    report = diagnostics.layer_report(*network(ACTIVATIONS[activation]), batch_of())
    assert report.ok, str(report)
    assert not report.findings


@pytest.mark.parametrize("head", ["softmax_cross_entropy", "linear_squared_error"])
def test_the_vital_signs_are_what_they_are_said_to_be(head, x64):
    model = jaxbp.MLP((3, 6, 4, 2), ACTIVATIONS["relu"], HEADS[head], l2=0.1)
    params, batch = random_params(model, 1), random_batch(model, 9, 2)
    updates = random_params(model, 3)
    health = layer_health(model, params, batch, updates)

    @jax.jit
    def parts(params):
        logits, residuals = jaxbp.forward(model, params, batch.x)
        _, error = model.head.loss(logits, batch.target)
        _, grads = jaxbp.backprop(model, params, batch)
        return grads, logits, residuals, jaxbp.backward(params, residuals, error)

    grads, logits, residuals, deltas = jax.tree.map(np.asarray, parts(params))
    share = np.asarray(batch.weight / batch.weight.sum())
    norms = [np.sqrt(share @ np.sum(np.square(delta), axis=1)) for delta in deltas]
    np.testing.assert_allclose(health.delta, norms, rtol=1e-12)
    np.testing.assert_allclose(health.delta_ratio, np.divide(norms, [*norms[1:], norms[-1]]))
    sizes = np.array([np.linalg.norm(layer.weight) for layer in params])
    for ratio, tree in ((health.gradient_to_weight, grads), (health.update_to_weight, updates)):
        expected = [np.linalg.norm(layer.weight) for layer in tree]
        np.testing.assert_allclose(ratio, np.divide(expected, sizes), rtol=1e-12)
    outputs = [residuals[1].input, residuals[2].input, logits]
    means = [share @ np.mean(h, axis=1) for h in outputs]
    spreads = [
        np.sqrt(share @ np.mean((h - m) ** 2, axis=1)) for h, m in zip(outputs, means, strict=True)
    ]
    np.testing.assert_allclose(health.mean, means, rtol=1e-12)
    np.testing.assert_allclose(health.spread, spreads, rtol=1e-12)
    dead = [np.mean((np.asarray(h) == 0).all(axis=0)) for h in outputs[:2]]
    np.testing.assert_allclose(health.dead, [*dead, 0.0], rtol=1e-6)
    assert np.isnan(layer_health(model, params, batch).update_to_weight).all()


def test_saturated_is_flat_on_most_of_the_batch():
    """tanh is flat beyond 2.18; a unit counts when it is there for three quarters of the rows."""
    model = jaxbp.MLP((1, 2, 1), activations.tanh, heads.linear_squared_error)
    params = (
        jaxbp.Layer(jnp.array([[1.0], [1.0]]), jnp.array([0.0, 3.0])),
        jaxbp.Layer(jnp.ones((1, 2)), jnp.zeros(1)),
    )
    for inputs, share in (([0, 0, 0, 0], 0.5), ([9, 9, 9, 0], 1.0), ([9, 9, 0, 0], 0.5)):
        batch = jaxbp.Batch(jnp.array(inputs, jnp.float32)[:, None], jnp.ones((4, 1)))
        assert layer_health(model, params, batch).saturated.tolist() == [share, 0.0]


def test_fit_records_the_health_of_every_epoch():
    pytest.importorskip("sklearn")
    wine = jaxbp.data.load("wine").train
    model = jaxbp.MLP((13, 8, 3), activations.tanh, CLASSES, l2=1e-3)
    told = []
    options = {"optimizer": optax.sgd(0.1), "epochs": 3, "key": jax.random.key(0)}
    for batch_size in (32, 53, None):  # 106 rows: a ragged last minibatch, an even one, all
        fit = partial(jaxbp.fit, model, wine, batch_size=batch_size, **options)
        told.clear()
        params, history = fit(diagnostics=True, on_epoch=told.append)
        plain, _ = fit()
        assert jaxbp.compare(params, plain).relative_error < 1e-6
        assert {values.shape for values in history.health} == {(3, 2)}
        last = layer_health(model, params, wine)
        for field, recorded, expected in zip(last._fields, history.health, last, strict=True):
            if field != "update_to_weight":
                np.testing.assert_allclose(recorded[-1], expected, rtol=1e-4, atol=1e-7)
        assert history.health.update_to_weight.min() > 1e-5
        np.testing.assert_array_equal(told[-1].health.delta, history.health.delta[-1])
        assert history.health.update_to_weight.max() < 0.3
    assert fit()[1].health is None


def test_the_update_is_the_last_steps():
    """Plain gradient descent on all rows: ΔW = -η W̄ before the step."""
    batch = batch_of(40)
    model, params = network(activations.tanh, (6,))
    _, grads = jaxbp.backprop(model, params, batch)
    _, history = jaxbp.fit(
        model,
        batch,
        optimizer=optax.sgd(0.5),
        epochs=1,
        batch_size=None,
        key=jax.random.key(0),
        params=params,
        diagnostics=True,
    )
    sizes = [0.5 * np.linalg.norm(layer.weight) for layer in grads]
    expected = np.divide(sizes, history.health.weight[0])
    np.testing.assert_allclose(history.health.update_to_weight[0], expected, rtol=1e-3)


def test_health_costs_one_compilation_and_no_epoch_of_its_own():
    """Within the compiled epoch: the same number of programs run with it as without."""
    model, params = network(activations.relu, (8,))
    batch = batch_of(64)
    runs = []
    for asked in (False, True):
        calls = []
        jaxbp.fit(
            model,
            batch,
            optimizer=optax.sgd(0.1),
            epochs=2,
            batch_size=16,
            key=jax.random.key(0),
            params=params,
            diagnostics=asked,
            gradient=lambda *given, calls=calls: calls.append(1) or jaxbp.backprop(*given),
        )
        runs.append(len(calls))
    assert runs == [1, 2]  # traced once for the scan, and once for the last step apart


def test_a_report_prints_itself_and_is_json():
    report = diagnostics.layer_report(*plant("half of the ReLUs dead"))
    assert not report
    assert "‖δ‖" in str(report)
    assert "recommended: small positive biases" in str(report)
    assert "<table>" in report._repr_html_()
    record = json.loads(json.dumps(report.to_dict()))
    assert record["layers"][2]["verdict"] == "dead"
    assert record["layers"][2]["update_to_weight"] is None
    assert record["findings"][0]["layer"] == 3


def test_a_report_fits_a_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = str(diagnostics.layer_report(*plant("explosion by depth")))
    table = text.split("\nlayer 4:", maxsplit=1)[0].splitlines()
    assert len(table) == 12
    assert max(map(len, table)) <= 80


def test_what_does_not_fit_is_named():
    model, params = network(activations.relu)
    with pytest.raises(ValueError, match=r"x: got shape \(200, 3\), expected \(..., 20\)"):
        diagnostics.layer_report(model, params, batch_of()._replace(x=np.ones((200, 3))))
    with pytest.raises(ValueError, match=r"updates: got \(Layer\(weight=\(64, 20\)"):
        diagnostics.layer_report(model, params, batch_of(), params[:1])
    every_epoch = jax.tree.map(lambda values: values[None], layer_health(*of(RELU)))
    with pytest.raises(ValueError, match=r"health: got fields of shape \(1, 4\), expected \(4,\)"):
        diagnostics.judge(model, every_epoch)


def test_rows_of_weight_zero_are_not_seen():
    model, params, (x, target, _) = plant("half of the ReLUs dead")
    seen = layer_health(model, params, jaxbp.Batch(x[:100], target[:100]))
    padded = jaxbp.Batch(x.at[100:].set(50.0), target, (jnp.arange(200) < 100).astype(jnp.float32))
    for one, other in zip(seen, layer_health(model, params, padded), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_leaky_relus_that_are_off_for_most_are_not_saturated():
    """As ReLUs that are off for most are not dead: three quarters of the rows on the flat side."""
    model = jaxbp.MLP((1, 1, 1), activations.leaky_relu, heads.linear_squared_error)
    params = (jaxbp.Layer(jnp.ones((1, 1)), jnp.zeros(1)),) * 2
    for inputs, share in (([-1, -1, -1, 1], 0.0), ([-1, -1, -1, -1], 1.0)):
        batch = jaxbp.Batch(jnp.array(inputs, jnp.float32)[:, None], jnp.ones((4, 1)))
        assert layer_health(model, params, batch).saturated[0] == share


def test_what_float32_holds_but_not_its_square():
    """40 sigmoid layers, and weights of 1e25: small and large, but neither 0 nor infinite."""
    model, params = network(activations.sigmoid, (64,) * 40)
    health = diagnostics.layer_health(model, params, batch_of())
    assert 0 < health.delta[0] < 1e-22
    model, params = network(activations.tanh, (64,))
    report = diagnostics.layer_report(model, in_layer(params, 1, scale=1e25), batch_of())
    assert report.layers[0].verdict == "saturated"


def test_a_gradient_that_is_not_finite_is_told_of():
    """tanh hides an infinite input from everything but the gradient of its weights."""
    model, params = network(activations.tanh)
    infinite = jaxbp.Batch(X.at[0, 0].set(np.inf), T)
    report = diagnostics.layer_report(model, params, infinite)
    assert [f.layer for f in report.findings] == [1]
    assert "its gradient is not finite" in report.findings[0].what
    lost = jax.tree.map(lambda leaf: leaf * np.nan, params)
    assert not diagnostics.layer_report(model, params, batch_of(), lost)


def test_distributions_are_quantiles():
    model, params = network(activations.relu)
    batch = batch_of()
    seen = diagnostics.distributions(model, params, batch)
    assert seen.output.shape == seen.delta.shape == (4, 5)
    logits, residuals = jaxbp.forward(model, params, batch.x)
    levels = [5, 25, 50, 75, 95]
    np.testing.assert_allclose(
        seen.output[2], np.percentile(residuals[3].input, levels), rtol=1e-5, atol=1e-6
    )
    _, error = CLASSES.loss(logits, batch.target)
    np.testing.assert_allclose(seen.delta[3], np.percentile(abs(error), levels), rtol=1e-4)
    dead = diagnostics.distributions(*plant("ReLUs dead by a large negative bias"))
    assert np.isnan(dead.delta[0]).all()
