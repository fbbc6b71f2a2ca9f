"""Diagnostics: every planted fault is found at its layer, and nothing in a healthy network."""

import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from combinations import ACTIVATIONS, HEADS, thinned

import jaxbp
from benchmarks.problems import random_batch, random_params
from jaxbp import activations, diagnostics, heads

CLASSES = heads.softmax_cross_entropy
layer_health = jax.jit(diagnostics.layer_health, static_argnums=0)  # one program, not dozens


def batch_of(rows=200, inputs=20, outputs=5):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, inputs)).astype(np.float32)
    return jaxbp.Batch(x, rng.integers(outputs, size=rows))


def network(unit, hidden=(64, 64, 64), head=CLASSES, **options):
    """A model and its initial parameters, in NumPy, where to change them compiles nothing."""
    model = jaxbp.MLP((20, *hidden, 5), unit, head)
    return model, jax.tree.map(np.asarray, jaxbp.init(jax.random.key(0), model, **options))


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


def mixed(change=lambda params: params, **options):
    """One network for several faults, so that it is compiled once."""
    return of(MIXED, change, hidden=(64,) * 4, **options)


def everywhere(params, **options):
    """The same change in every layer."""
    return tuple(in_layer(params, n, **options)[n - 1] for n in range(1, len(params) + 1))


X, T, _ = batch_of()
RELU, TANH, ELU = activations.relu, activations.tanh, activations.elu
HALF = np.where(np.arange(64) % 2 == 0, np.float32(-100), np.float32(0))
MIXED = (TANH, TANH, partial(activations.leaky_relu, alpha=1e-5), ELU)
WRONG = jaxbp.Batch(X, np.zeros((200, 5), np.float32))


def with_input(value):
    """The batch with a number of it replaced."""
    x = X.copy()
    x[0, 0] = value
    return jaxbp.Batch(x, T)


def too_large_a_step():
    """A network, and an update that is a thousandth of its weights but for one layer."""
    model, params, batch = of(RELU)
    return model, params, batch, in_layer(everywhere(params, scale=1e-3), 2, scale=300)


#: one thing wrong each
PLANTED = {
    "ReLUs dead by a large negative bias": lambda: of(RELU, partial(in_layer, layer=2, shift=-99)),
    "half of the ReLUs dead": lambda: of(RELU, partial(in_layer, layer=3, shift=HALF)),
    "saturation by scaled inputs": lambda: mixed(batch=jaxbp.Batch(100 * X, T)),
    "saturation by large weights": lambda: mixed(partial(in_layer, layer=2, scale=30)),
    "saturation by a bias": lambda: mixed(partial(in_layer, layer=2, shift=10)),
    "ELUs on their flat side": lambda: mixed(partial(in_layer, layer=4, shift=-9)),
    "vanishing by depth": lambda: of(activations.sigmoid, hidden=(64,) * 6),
    "vanishing by small weights": lambda: of(RELU, partial(in_layer, layer=3, scale=1e-5)),
    "vanishing by flat slopes": lambda: mixed(partial(in_layer, layer=3, shift=-10)),
    "explosion by large weights": lambda: of(RELU, partial(in_layer, layer=3, scale=1e5)),
    "explosion by depth": lambda: of(RELU, partial(everywhere, scale=5), hidden=(64,) * 6),
    "a weight that is NaN": lambda: of(RELU, partial(in_layer, layer=2, scale=np.nan)),
    "an infinite input": lambda: of(RELU, batch=with_input(np.inf)),
    "a slope that is infinite": lambda: of((RELU, root_of_log), hidden=(64, 64)),
    "a learning rate too large": too_large_a_step,
    "squared error on saturated outputs": lambda: of(
        RELU,
        partial(in_layer, layer=2, shift=20),
        batch=WRONG,
        hidden=(64,),
        head=heads.sigmoid_squared_error,
    ),
}


def plant(name):
    return PLANTED[name]()


#: what is planted, the layer to be named, the verdict there, and a word of what is said
FAULTS = [
    ("ReLUs dead by a large negative bias", 2, "dead", "100% of its units have zero slope"),
    ("half of the ReLUs dead", 3, "dead", "zero slope"),
    ("saturation by scaled inputs", 1, "saturated", "of its units are flat"),
    ("saturation by large weights", 2, "saturated", "of its units are flat"),
    ("saturation by a bias", 2, "saturated", "100% of its units are flat"),
    ("ELUs on their flat side", 4, "saturated", "100% of its units are flat"),
    ("vanishing by depth", 2, "vanishing", "is multiplied by 0.2"),
    ("vanishing by small weights", 3, "healthy", "vanishing: its weights multiply"),
    ("vanishing by flat slopes", 3, "saturated", "of its units are flat"),
    ("explosion by large weights", 3, "healthy", "exploding: its weights multiply"),
    ("explosion by depth", 2, "exploding", "is multiplied by 4.6 a layer"),
    ("a weight that is NaN", 2, "not finite", "its weights are not finite"),
    ("an infinite input", 1, "not finite", "its outputs are not finite, though its weights are"),
    ("a slope that is infinite", 2, "not finite", "its δ is not finite"),
    ("a learning rate too large", 2, "healthy", "a step changes its weights by 30%"),
    ("squared error on saturated outputs", 2, "healthy", "the output is wrong, and its error"),
]


def test_every_planted_fault_is_looked_for():
    assert [name for name, *_ in FAULTS] == list(PLANTED)


@pytest.mark.parametrize(("name", "layer", "verdict", "said"), thinned(FAULTS, every=2))
def test_a_planted_fault_is_found_at_its_layer(name, layer, verdict, said):
    report = diagnostics.layer_report(*plant(name))
    assert not report
    first = report.findings[0]
    assert (first.layer, len(report.findings)) == (layer, 1)
    assert said in first.what
    assert report.layers[layer - 1].verdict == verdict
    assert f"layer {layer}: {first.what}" in str(report)
    assert first.advice in diagnostics.ADVICE.values()


HEALTHY = [name for name in ACTIVATIONS if "sigmoid" not in name]


@pytest.mark.parametrize(
    "activation",
    [pytest.param(name, marks=() if name == "relu" else pytest.mark.slow) for name in HEALTHY],
)
def test_nothing_is_found_in_a_healthy_network(activation):
    report = diagnostics.layer_report(*network(ACTIVATIONS[activation]), batch_of())
    assert report.ok, str(report)
    assert not report.findings


@pytest.mark.slow
def test_nothing_is_found_in_a_healthy_network_of_every_activation():
    units = tuple(ACTIVATIONS[name] for name in HEALTHY)
    report = diagnostics.layer_report(*network(units, (64,) * len(units)), batch_of())
    assert report.ok, str(report)
    assert not report.findings


@pytest.mark.parametrize(
    "head",
    ["softmax_cross_entropy", pytest.param("linear_squared_error", marks=pytest.mark.slow)],
)
def test_health_is_what_its_fields_say(head, x64):
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


def test_saturated_is_flat_on_most_of_the_batch():
    """tanh is flat beyond 2.18; a unit counts when it is there for three quarters of the rows."""
    model = jaxbp.MLP((1, 2, 1), activations.tanh, heads.linear_squared_error)
    params = (
        jaxbp.Layer(np.array([[1.0], [1.0]], np.float32), np.array([0.0, 2.2], np.float32)),
        jaxbp.Layer(np.ones((1, 2), np.float32), np.zeros(1, np.float32)),
    )
    for inputs, share in (
        ([0, 0, 0, 0], 0.5),
        ([2.1, 2.1, 2.1, 2.1], 0.5),
        ([9, 9, 9, 0], 1.0),
        ([9, 9, 0, 0], 0.5),
    ):
        batch = jaxbp.Batch(np.array(inputs, np.float32)[:, None], np.ones((4, 1), np.float32))
        assert layer_health(model, params, batch).saturated.tolist() == [share, 0.0]


@pytest.mark.parametrize(
    "batch_size",
    [
        32,  # of 106 rows: the last minibatch is ragged
        pytest.param(53, marks=pytest.mark.slow),
        pytest.param(None, marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_fit_records_the_health_of_every_epoch(batch_size):
    batch = batch_of(106)
    model = jaxbp.MLP((20, 8, 5), activations.tanh, CLASSES, l2=1e-3)
    told = []
    options = {"optimizer": optax.sgd(0.1), "epochs": 3, "key": jax.random.key(0)}
    fit = partial(jaxbp.fit, model, batch, batch_size=batch_size, **options)
    params, history = fit(diagnostics=True, on_epoch=told.append)
    plain, without = fit()
    assert without.health is None
    assert jaxbp.compare(params, plain).relative_error < 1e-6
    assert {values.shape for values in history.health} == {(3, 2)}
    last = layer_health(model, params, batch)
    for field, recorded, expected in zip(last._fields, history.health, last, strict=True):
        if field != "update_to_weight":
            np.testing.assert_allclose(recorded[-1], expected, rtol=1e-4, atol=1e-7)
    assert history.health.update_to_weight.min() > 1e-5
    np.testing.assert_array_equal(told[-1].health.delta, history.health.delta[-1])
    assert history.health.update_to_weight.max() < 0.3


@pytest.mark.slow
def test_the_update_is_the_last_steps():
    """Plain gradient descent on all rows: ΔW = -η W̄ before the step."""
    batch = batch_of(40)
    model, params = network(activations.tanh, (6,))
    _, grads = jax.jit(jaxbp.backprop, static_argnums=0)(model, params, batch)
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


@pytest.mark.slow
def test_health_costs_one_compilation_and_no_epoch_of_its_own():
    """Within the compiled epoch: the same number of programs run with it as without."""
    model, params = network(activations.tanh, (6,))
    batch = batch_of(40)
    runs = []
    for asked in (False, True):
        calls = []
        jaxbp.fit(
            model,
            batch,
            optimizer=optax.sgd(0.1),
            epochs=2,
            batch_size=10,
            key=jax.random.key(0),
            params=params,
            diagnostics=asked,
            gradient=lambda *given, calls=calls: calls.append(1) or jaxbp.backprop(*given),
            check=False,
        )
        runs.append(len(calls))
    assert runs == [2, 4]  # for the scan, and for the last step apart; each to be known again, too


@pytest.mark.parametrize(
    ("sign", "within", "beyond", "verdict"),
    [
        ("dead", 0.39, 0.41, "dead"),
        ("saturated", 0.49, 0.51, "saturated"),
        ("delta", 990, 1010, "exploding"),
        ("delta", 1.01e-3, 0.99e-3, "vanishing"),
        ("mean", 1e30, np.nan, "not finite"),
    ],
)
def test_verdicts_have_their_bounds(sign, within, beyond, verdict):
    assert judged(sign, within).layers[0].verdict == "healthy"
    assert judged(sign, beyond).layers[0].verdict == verdict


def test_an_update_has_its_bound():
    assert judged("update_to_weight", 0.09).ok
    assert [finding.layer for finding in judged("update_to_weight", 0.11).findings] == [1]
    model, health = healthy("update_to_weight", 9)
    assert diagnostics.judge(model, health, restless=np.inf).ok


def healthy(sign, value):
    """A model of two layers, and their health with one measure of the first layer replaced."""
    shares = dict.fromkeys(("dead", "saturated", "mean"), 0.0)
    signs = dict.fromkeys(diagnostics.Health._fields, 1.0) | shares | {"update_to_weight": 1e-3}
    health = {field: np.full(2, usual) for field, usual in signs.items()}
    health[sign][0] = value
    return jaxbp.MLP((2, 2, 2), TANH, CLASSES), diagnostics.Health(**health)


def judged(sign, value):
    return diagnostics.judge(*healthy(sign, value))


def test_an_error_is_unfelt_where_many_examples_are_wrong_and_flat():
    """Off by more than a half, and 2 σ' below a hundredth, so beyond 5.3, on more than a tenth."""
    model = jaxbp.MLP((1, 1), activations.identity, heads.sigmoid_squared_error)
    params = (jaxbp.Layer(np.ones((1, 1), np.float32), np.zeros(1, np.float32)),)
    for logit, label, rows, unfelt in (
        (5.5, 0, 3, True),
        (5.5, 0, 2, False),
        (5.1, 0, 20, False),
        (-5.5, 0, 20, False),
        (9, 0.45, 20, True),
        (9, 0.55, 20, False),
    ):
        x = np.where(np.arange(20) < rows, logit, 0).astype(np.float32)[:, None]
        batch = jaxbp.Batch(x, np.full((20, 1), label, np.float32))
        assert diagnostics.unfelt_errors(model, params, batch) == unfelt


def test_a_report_prints_itself_and_is_json():
    report = diagnostics.layer_report(*plant("half of the ReLUs dead"))
    assert not report
    assert "‖δ‖" in str(report)
    assert "recommended: small positive biases" in str(report)
    assert "<table>" in report._repr_html_()
    record = json.loads(json.dumps(report.to_dict()))
    assert record["layers"][2]["verdict"] == "dead"
    assert record["layers"][2]["update_to_weight"] is None
    assert np.isnan([row.update_to_weight for row in report.layers]).all()
    assert record["findings"][0]["layer"] == 3


def test_a_report_fits_the_width_it_is_given():
    report = diagnostics.layer_report(*plant("explosion by depth"))
    table = report.text(80).split("\nlayer 2:", maxsplit=1)[0].splitlines()
    assert len(table) == 8
    assert max(map(len, table)) <= 80
    assert len(report.text(40).splitlines()) > 7 * 8  # a line a cell


def test_a_report_prints_alike_in_every_terminal(monkeypatch):
    report = diagnostics.layer_report(*plant("half of the ReLUs dead"))
    for columns in ("40", "80", "200"):
        monkeypatch.setenv("COLUMNS", columns)
        assert str(report) == report.text(100)


def test_a_report_cannot_be_changed():
    report = judged("dead", 0.9)
    for part in (report, report.layers[0], report.findings[0]):
        with pytest.raises(dataclasses.FrozenInstanceError):
            part.layer = 2
    assert report.layers[0].dead == 0.9
    assert report == judged("dead", 0.9) != judged("dead", 0.8)


def test_every_layer_has_the_fields_of_health_by_name():
    names = [field.name for field in dataclasses.fields(diagnostics.LayerHealth)]
    assert names == ["layer", "verdict", *diagnostics.Health._fields]
    model, _ = healthy("mean", 0)
    values = {field: np.arange(n, n + 2.0) for n, field in enumerate(diagnostics.Health._fields)}
    rows = diagnostics.judge(model, diagnostics.Health(**values)).layers
    for number, row in enumerate(rows):
        for field, expected in values.items():
            assert getattr(row, field) == expected[number]


def test_what_does_not_fit_is_named():
    model, params = network(activations.relu)
    with pytest.raises(ValueError, match=r"x: got shape \(200, 3\), expected \(..., 20\)"):
        diagnostics.layer_report(model, params, batch_of()._replace(x=np.ones((200, 3))))
    with pytest.raises(ValueError, match=r"updates: got \(Layer\(weight=\(64, 20\)"):
        diagnostics.layer_report(model, params, batch_of(), params[:1])
    every_epoch = jax.tree.map(lambda values: np.asarray(values)[None], layer_health(*of(RELU)))
    with pytest.raises(ValueError, match=r"health: got fields of shape \(1, 4\), expected \(4,\)"):
        diagnostics.judge(model, every_epoch)


def test_rows_of_weight_zero_are_not_seen():
    model, params, _ = of(RELU, partial(in_layer, layer=1, shift=HALF), hidden=(64,))
    twice = jaxbp.Batch(*(np.tile(part[:100].T, 2).T for part in (X, T)), np.ones(200, np.float32))
    first = np.arange(200) < 100
    padded = jaxbp.Batch(np.where(first[:, None], X, np.float32(50)), T, first.astype(np.float32))
    for one, other in zip(*(layer_health(model, params, b) for b in (twice, padded)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_leaky_relus_that_are_off_for_most_are_not_saturated():
    """As ReLUs that are off for most are not dead: three quarters of the rows on the flat side."""
    model = jaxbp.MLP((1, 1, 1), activations.leaky_relu, heads.linear_squared_error)
    params = (jaxbp.Layer(np.ones((1, 1), np.float32), np.zeros(1, np.float32)),) * 2
    for inputs, share in (([-1, -1, -1, 1], 0.0), ([-1, -1, -1, -1], 1.0)):
        batch = jaxbp.Batch(np.array(inputs, np.float32)[:, None], np.ones((4, 1), np.float32))
        assert layer_health(model, params, batch).saturated.tolist() == [share, 0.0]


def test_what_float32_holds_but_not_its_square():
    """Weights of 1e-8 and of 1e25: small and large, but neither 0 nor infinite."""
    health = layer_health(*of(RELU, partial(everywhere, scale=1e-8)))
    assert 0 < health.delta[0] < 1e-22
    report = diagnostics.layer_report(*mixed(partial(in_layer, layer=1, scale=1e25)))
    assert report.layers[0].verdict == "saturated"


@pytest.mark.slow
def test_forty_sigmoid_layers_leave_what_float32_holds():
    model, params = network(activations.sigmoid, (64,) * 40)
    health = diagnostics.layer_health(model, params, batch_of())
    assert 0 < health.delta[0] < 1e-22


def test_a_gradient_that_is_not_finite_is_reported():
    """tanh hides an infinite input from everything but the gradient of its weights."""
    report = diagnostics.layer_report(*mixed(batch=with_input(np.inf)))
    assert [f.layer for f in report.findings] == [1]
    assert "its gradient is not finite" in report.findings[0].what
    model, params = network(RELU)
    lost = jax.tree.map(lambda leaf: leaf * np.nan, params)
    assert not diagnostics.layer_report(model, params, batch_of(), lost)


def test_distributions_are_quantiles():
    distributions = jax.jit(diagnostics.distributions, static_argnums=0)
    model, params = network(RELU)
    batch = batch_of()

    @jax.jit
    def parts(params):
        logits, residuals = jaxbp.forward(model, params, batch.x)
        return residuals[3].input, model.head.loss(logits, batch.target)[1]

    seen = distributions(model, params, batch)
    assert seen.output.shape == seen.delta.shape == (4, 5)
    output, error = map(np.asarray, parts(params))
    levels = [5, 25, 50, 75, 95]
    np.testing.assert_allclose(seen.output[2], np.percentile(output, levels), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(seen.delta[3], np.percentile(abs(error), levels), rtol=1e-4)
    dead = distributions(*plant("ReLUs dead by a large negative bias"))
    assert np.isnan(dead.delta[0]).all()


def test_a_report_is_of_what_an_activation_does_now():
    scale = [1.0]
    model = jaxbp.MLP((3, 2, 1), lambda a: (scale[0] * a, a), heads.linear_half_squared_error)
    params = jaxbp.init(jax.random.key(0), model)
    batch = jaxbp.Batch(np.ones((4, 3)), np.ones((4, 1), np.int64))  # int64, as NumPy has it
    first = diagnostics.layer_report(model, params, batch).layers[0].mean
    scale[0] = 3.0
    again = diagnostics.layer_report(model, params, batch).layers[0].mean
    assert again == pytest.approx(3 * first, rel=1e-5)
