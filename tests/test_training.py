"""Training: what an epoch visits, what is compiled, what is recorded, and what is refused."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from combinations import adam, initial, sgd

import jaxbp
from benchmarks.problems import random_params
from jaxbp import Batch, activations, heads

slow = pytest.mark.slow
MODEL = jaxbp.MLP((3, 8, 2), activations.tanh, heads.linear_half_squared_error)


def table(rows=10, seed=0):
    """A batch whose first input is the row's number."""
    rng = np.random.default_rng(seed)
    x = np.column_stack([np.arange(rows), rng.normal(size=(rows, 2))]).astype(np.float32)
    return Batch(x, rng.normal(size=(rows, 2)).astype(np.float32))


def fit(model=MODEL, batch=None, **options):
    key = jax.random.key(0)
    defaults = {"optimizer": sgd(1e-3), "epochs": 2, "batch_size": 4, "key": key}
    return jaxbp.fit(model, table() if batch is None else batch, **defaults | options)


objective = jax.jit(jaxbp.objective, static_argnums=0)
by_hand = jax.jit(jaxbp.backprop, static_argnums=0)


def start():
    """The parameters that fit starts from."""
    return initial(jax.random.key(0), MODEL)


SEEN = []


def spy(model, params, batch):
    """backprop, which tells of the rows it is given; one function, so that it is compiled once."""
    jax.debug.callback(lambda x: SEEN.append(x[:, 0].astype(int).tolist()), batch.x, ordered=True)
    return jaxbp.backprop(model, params, batch)


def minibatches(**options):
    """The rows of every step, in order."""
    SEEN.clear()
    fit(gradient=spy, **options)
    jax.effects_barrier()
    return list(SEEN)


@pytest.mark.parametrize(
    ("batch_size", "sizes"),
    [
        (4, [4, 4, 2]),
        (5, [5, 5]),
        (None, [10]),
        pytest.param(1, [1] * 10, marks=slow),
        pytest.param(64, [10], marks=slow),
    ],
)
def test_an_epoch_visits_every_row_once(batch_size, sizes):
    steps = minibatches(batch_size=batch_size, epochs=1)
    assert [len(rows) for rows in steps] == sizes
    assert sorted(row for rows in steps for row in rows) == list(range(10))


def test_the_order_is_a_function_of_key_and_epoch():
    first = minibatches(epochs=3)
    assert minibatches(epochs=3, optimizer=adam(0.01)) == first
    assert minibatches(epochs=3, key=jax.random.key(1)) != first
    epochs = [first[0:3], first[3:6], first[6:9]]
    assert epochs[0] != epochs[1] != epochs[2]


def test_fit_is_the_loop_written_out():
    """Against a Python loop over the same minibatches, with the ragged last one as it is."""
    batch, optimizer = table(), adam(0.01)
    trained, history = fit(batch=batch, optimizer=optimizer, epochs=2, precision="highest")

    @jax.jit
    @jax.default_matmul_precision("highest")
    def step(params, state, part):
        loss, grads = jaxbp.autodiff(MODEL, params, part)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    params = start()
    state = jax.jit(optimizer.init)(params)
    losses = []
    for rows in minibatches(epochs=2):
        part = jax.tree.map(lambda array: array[np.array(rows)], batch)  # noqa: B023
        params, state, loss = step(params, state, part)
        losses += [float(loss)] * len(rows)
    assert jaxbp.compare(trained, params).relative_error < 1e-5
    np.testing.assert_allclose(
        history.training_loss, np.reshape(losses, (2, 10)).mean(1), rtol=1e-5
    )


def test_nothing_recompiles_after_the_first_epoch():
    compilations, at_epoch = [], []

    def listen(event, *_, **__):
        if "backend_compile" in event:
            compilations.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        fit(
            epochs=5,
            optimizer=optax.adam(1e-3),  # a new one, for which nothing has been compiled before
            validation=table(6, seed=1),
            on_epoch=lambda epoch: at_epoch.append(len(compilations)),
        )
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert at_epoch[0] > 0
    assert at_epoch[1:] == at_epoch[:1] * 4


def test_each_gradient_is_traced_once_a_program():
    traced = chex.assert_max_traces(jaxbp.backprop, n=2)  # full minibatches and the ragged one
    fit(gradient=traced, epochs=4)


def test_backprop_and_autodiff_train_alike():
    options = {"epochs": 20, "optimizer": adam(0.01), "precision": "highest"}
    by_hand, _ = fit(**options)
    by_jax, _ = fit(**options, gradient=jaxbp.autodiff)
    assert jaxbp.compare(by_hand, by_jax).relative_error < 1e-4


def test_history_and_evaluation():
    validation = table(6, seed=1)
    params, history = fit(epochs=3, validation=validation)
    loss, metric = jaxbp.evaluate(MODEL, params, validation)
    assert (
        history.training_loss.shape == history.validation_loss.shape == history.metric.shape == (3,)
    )
    assert (history.validation_loss[-1], history.metric[-1]) == (loss, metric)
    np.testing.assert_allclose(loss, objective(MODEL, params, validation), rtol=1e-6)
    _, without = fit()
    assert without.validation_loss is None
    assert without.metric is None


def test_on_epoch_is_told_and_can_stop():
    told = []

    def on_epoch(epoch):
        told.append(epoch)
        return np.bool_(epoch.number == 3)

    params, history = fit(epochs=10, validation=table(6, seed=1), on_epoch=on_epoch)
    assert [epoch.number for epoch in told] == [1, 2, 3]
    assert len(history.training_loss) == 3
    assert jaxbp.compare(params, told[-1].params).relative_error == 0
    np.testing.assert_array_equal(history.training_loss, [e.training_loss for e in told])
    np.testing.assert_array_equal(history.metric, [e.validation.metric for e in told])
    assert (
        jaxbp.compare(told[0].params, told[1].params).relative_error > 0
    )  # earlier ones are still there


def test_given_parameters_are_left_as_they_are():
    params = random_params(MODEL, 7, np.float32)
    copy = jax.tree.map(np.array, params)
    trained, _ = fit(params=params, optimizer=adam(0.01))
    assert jaxbp.compare(params, copy).relative_error == 0
    assert jaxbp.compare(trained, copy).relative_error > 0


def test_divergence_returns_the_last_good_parameters():
    kept = []
    with pytest.raises(
        jaxbp.NonFiniteLossError, match=r"epoch \d+: .* learning rate ten times"
    ) as e:
        fit(optimizer=sgd(10.0), epochs=50, on_epoch=lambda epoch: kept.append(epoch.params))
    error = e.value
    assert error.epoch == len(kept) + 1 == len(error.history.training_loss) + 1
    assert all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(error.params))
    expected = kept[-1] if kept else start()
    assert jaxbp.compare(error.params, expected).relative_error == 0


def test_a_step_that_only_spoils_the_parameters_is_noticed():
    """The loss of the last step is still finite when its update is not."""

    def gradient(model, params, batch):
        loss, grads = jaxbp.backprop(model, params, batch)
        return loss, jax.tree.map(lambda leaf: leaf * jnp.inf, grads)

    with pytest.raises(jaxbp.NonFiniteLossError, match="epoch 1") as error:
        fit(gradient=gradient, batch_size=None, epochs=1)
    assert all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(error.value.params))


def test_make_step_is_the_body_of_a_scan_and_maps_over_seeds():
    optimizer = adam(0.01)
    step = jaxbp.make_step(MODEL, optimizer)
    batches = jax.tree.map(lambda array: array[:9].reshape(3, 3, -1), table())

    def train(params):
        (params, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), batches)
        return params, losses

    starts = [random_params(MODEL, seed, np.float32) for seed in range(4)]
    with jax.default_matmul_precision("highest"):  # GPUs round float32's products otherwise
        params, losses = jax.jit(jax.vmap(train))(jax.tree.map(lambda *p: np.stack(p), *starts))
        alone, _ = jax.jit(train)(starts[2])
    assert losses.shape == (4, 3)
    third = jax.tree.map(lambda leaf: np.asarray(leaf)[2], params)
    assert jaxbp.compare(third, alone).relative_error < 1e-5


def test_a_line_search_is_given_the_slope_that_gradient_claims():
    """Here twice what it is, so that jax.grad of the objective would be told from it."""

    def doubled(model, params, batch):
        loss, grads = jaxbp.backprop(model, params, batch)
        return loss, jax.tree.map(lambda leaf: 2 * leaf, grads)

    def update(grads, state, params, *, value_fn, value, grad, **_):
        loss, slope = jax.value_and_grad(value_fn)(params)
        return jax.tree.map(jnp.zeros_like, params), (loss, slope, value, grad)

    optimizer = optax.GradientTransformationExtraArgs(lambda params: None, update)
    params = random_params(MODEL, 0, np.float32)
    step = jax.jit(jaxbp.make_step(MODEL, optimizer, doubled))
    (_, (loss, slope, value, grad)), _ = step((params, None), table())
    np.testing.assert_allclose(loss, value, rtol=1e-6)
    assert jaxbp.compare(slope, grad).relative_error < 1e-6
    _, exact = by_hand(MODEL, params, table())
    twice = jax.tree.map(lambda leaf: 2 * np.asarray(leaf), exact)
    assert jaxbp.compare(slope, twice).relative_error < 1e-6


def test_sam_is_given_the_one_keyword_that_it_takes():
    """Sharpness-aware minimisation steps by the gradient at p + ρ∇E; in two steps, or in one."""
    params, rate, radius = random_params(MODEL, 0, np.float32), 0.1, 0.05

    def step(opaque):
        optimizer = optax.contrib.sam(optax.sgd(rate), optax.sgd(radius), opaque_mode=opaque)
        take = jaxbp.make_step(MODEL, optimizer)
        return lambda params: take((params, optimizer.init(params)), table())[0][0]

    jax.eval_shape(step(opaque=False), params)
    _, grads = by_hand(MODEL, params, table())
    _, there = by_hand(MODEL, jax.tree.map(lambda p, g: p + radius * g, params, grads), table())
    expected = jax.tree.map(lambda p, g: np.asarray(p) - rate * np.asarray(g), params, there)
    assert jaxbp.compare(jax.jit(step(opaque=True))(params), expected).relative_error < 1e-6


def test_lbfgs_takes_what_a_step_gives_it():
    params, optimizer = random_params(MODEL, 0, np.float32), optax.lbfgs()
    step = jaxbp.make_step(MODEL, optimizer)
    jax.eval_shape(lambda params: step((params, optimizer.init(params)), table()), params)


@slow
def test_lbfgs_searches_along_the_gradient_it_is_given():
    """Its line search differentiates the objective: with backprop too, not with jax.grad."""
    calls = []

    def counted(model, params, batch):
        calls.append(1)
        return jaxbp.backprop(model, params, batch)

    _, history = fit(optimizer=optax.lbfgs(), batch_size=None, epochs=15, gradient=counted)
    assert len(calls) >= 2  # traced for the step and again inside the search
    assert np.all(np.diff(history.training_loss) <= 1e-6)
    _, by_sgd = fit(optimizer=sgd(0.01), batch_size=None, epochs=15)
    assert history.training_loss[-1] < by_sgd.training_loss[-1]


@pytest.mark.parametrize("batch_size", [1, 3, pytest.param(10, marks=slow)])
def test_minibatches_of_weighted_examples_average_to_the_whole(batch_size):
    """So small a step that all of an epoch's gradients are taken at the same point; in float64,
    for x is."""
    with jax.enable_x64(True):
        weighted = jax.tree.map(np.float64, table()._replace(weight=np.arange(10.0) ** 3))
        params = initial(jax.random.key(0), MODEL, dtype=float)
        options = {"batch_size": batch_size, "epochs": 1}
        trained, history = fit(batch=weighted, optimizer=sgd(1e-9), **options)
        assert trained[0].weight.dtype == np.float64
        loss, grads = by_hand(MODEL, params, weighted)
        steps = 10 / batch_size
        moved = jax.tree.map(lambda new, old: (np.array(old) - new) / 1e-9, trained, params)
        if batch_size != 3:  # a ragged last minibatch is a step as long as the others
            assert (
                jaxbp.compare(
                    moved, jax.tree.map(lambda grad: steps * np.array(grad), grads)
                ).relative_error
                < 1e-5
            )
        np.testing.assert_allclose(history.training_loss, [loss], rtol=1e-6)


def test_lists_will_do():
    params, _ = fit(batch=Batch([[1, 2, 3], [4, 5, 6]], [[0.0, 1], [1, 0]]))
    assert params[0].weight.dtype == jnp.float32


def test_half_precision_and_example_weights():
    params = random_params(MODEL, 0, jnp.bfloat16)
    trained, history = fit(batch=table()._replace(weight=np.arange(10.0)), params=params)
    assert trained[0].weight.dtype == jnp.bfloat16
    assert np.isfinite(history.training_loss).all()


@slow
def test_example_weights():
    _, history = fit(batch=table()._replace(weight=np.arange(10.0)))
    assert np.isfinite(history.training_loss).all()


@pytest.mark.parametrize(
    ("head", "target", "prediction", "expected"),
    [
        (heads.softmax_cross_entropy, [0, 1, 1], [[2.0, 1], [0, 1], [1, 0]], 2 / 3),
        (heads.softmax_cross_entropy, [[0.9, 0.1], [0.2, 0.8]], [[2.0, 1], [1, 0]], 1 / 2),
        (heads.sigmoid_logistic, [[1.0, 0], [1, 1]], [[3.0, 3], [3, 3]], 3 / 4),
        (heads.linear_squared_error, [[1.0], [2], [3]], [[1.0], [2], [4]], 1 - 1 / 2),
        (heads.linear_squared_error, [[2.0], [2]], [[2.0], [2]], 1),
        (heads.linear_squared_error, [[2.0], [2]], [[2.0], [3]], 0),
        (heads.linear_squared_error, [[0.1]] * 11, [[0.0]] * 11, 0),
    ],
)
def test_the_metric_is_what_the_head_calls_for(head, target, prediction, expected):
    """Through an identity network, so that x are the logits."""
    x, outputs = np.array(prediction), len(prediction[0])
    model = jaxbp.MLP((outputs, outputs), activations.identity, head)
    params = (jaxbp.Layer(np.eye(outputs, dtype="f4"), np.zeros(outputs, "f4")),)
    evaluation = jaxbp.evaluate(model, params, Batch(x, np.array(target)))
    np.testing.assert_allclose(evaluation.metric, expected, rtol=1e-6)


def test_the_metric_is_weighted():
    model = jaxbp.MLP((2, 2), activations.identity, heads.softmax_cross_entropy)
    params = (jaxbp.Layer(np.eye(2, dtype="f4"), np.zeros(2, "f4")),)
    batch = Batch(np.eye(2), np.array([0, 0]), np.array([3.0, 1.0]))
    np.testing.assert_allclose(jaxbp.evaluate(model, params, batch).metric, 0.75)


def with_nan(batch):
    batch.x[3, 1] = np.nan
    return batch


PARAMS = tuple(
    jaxbp.Layer(np.ones((o, i), "f4"), np.ones(o, "f4"))
    for i, o in zip(MODEL.sizes[:-1], MODEL.sizes[1:], strict=True)
)
CLASSES = MODEL._replace(head=heads.softmax_cross_entropy)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"batch": (1, 2)}, TypeError, r"batch: got tuple, expected jaxbp.Batch\(x, target\)"),
        ({"optimizer": 0.1}, TypeError, r"optimizer: got 0.1, expected optax's"),
        ({"epochs": 0}, ValueError, "epochs: got 0, expected a positive int"),
        ({"epochs": 1.5}, ValueError, "epochs: got 1.5, expected a positive int"),
        ({"batch_size": 0}, ValueError, "batch_size: got 0, expected a positive int, or None"),
        ({"key": 0}, TypeError, r"key: got 0, expected one jax.random.key\(seed\)"),
        (
            {"batch": table()._replace(target=np.ones(10))},
            ValueError,
            r"target: got shape \(10,\), expected \(10, 2\)",
        ),
        (
            {"validation": table()._replace(x=np.ones((10, 4)))},
            ValueError,
            r"validation.x: got shape \(10, 4\), expected \(..., 3\)",
        ),
        (
            {"batch": with_nan(table())},
            ValueError,
            r"x: \[3, 1\] is nan in float32, expected finite",
        ),
        (
            {"batch": table()._replace(weight=np.zeros(10))},
            ValueError,
            "weight: expected weights ≥ 0, not all zero",
        ),
        (
            {"model": CLASSES, "batch": table()._replace(target=np.arange(10) % 3)},
            ValueError,
            "target: class 2 in row 2, expected classes 0 to 1",
        ),
        (
            {"batch": Batch(np.ones(3), np.ones(2))},
            ValueError,
            r"x: got shape \(3,\), expected at least one row, \(B, D\)",
        ),
        ({"params": ({"weight": 1},)}, TypeError, r"params: expected a tuple of jaxbp.Layer"),
        (
            {"params": PARAMS[:1]},
            ValueError,
            r"params: got weights and biases \[\(\(8, 3\), \(8,\)\)\], expected",
        ),
        (
            {"params": tuple(layer._replace(bias=np.zeros(1, "f4")) for layer in PARAMS)},
            ValueError,
            "params: got weights and biases",
        ),
        (
            {"params": jax.tree.map(lambda leaf: leaf.astype("i4"), PARAMS)},
            TypeError,
            "params: got int32, expected one floating dtype",
        ),
        ({"model": (3, 2)}, TypeError, "model: got tuple, expected a jaxbp.MLP"),
        ({"model": MODEL._replace(l2=-1)}, ValueError, "l2: got -1, expected a finite number"),
        (
            {"model": MODEL._replace(activation=jnp.tanh)},
            TypeError,
            r"activation: .*tanh.* gives no \(h, slope\); jaxbp.with_slope makes one",
        ),
        (
            {"model": MODEL._replace(activation="tanh")},
            TypeError,
            "activation: got 'tanh', expected",
        ),
        (
            {"model": MODEL._replace(head="logistic")},
            TypeError,
            "head: got 'logistic', expected one",
        ),
        ({"validation": (1, 2)}, TypeError, r"validation: got tuple, expected jaxbp.Batch"),
        ({"batch": Batch([["a"]], [[1.0]])}, TypeError, "x: got <U1, expected real numbers"),
        ({"batch": Batch(np.ones((0, 3)), np.ones((0, 2)))}, ValueError, r"x: got shape \(0, 3\)"),
        (
            {"batch": Batch(np.full((2, 3), 1e39), np.ones((2, 2))), "params": PARAMS},
            ValueError,
            r"x: \[0, 0\] is inf in float32",
        ),
        (
            {"model": CLASSES, "batch": table()._replace(target=np.ones(10))},
            TypeError,
            r"target: got float32 of shape \(10,\), expected integer classes",
        ),
    ],
)
def test_what_does_not_fit_is_named(options, error, message):
    with pytest.raises(error, match=message):
        fit(**options)


def test_one_key_is_enough():
    with pytest.raises(TypeError, match=r"(?s)key: got .* expected one"):
        fit(key=jax.random.split(jax.random.key(0)))


@pytest.mark.parametrize(
    "head",
    [
        "linear_huber",
        *(pytest.param(h, marks=slow) for h in ("linear_absolute_error", "exp_poisson")),
    ],
)
def test_every_regression_head_learns_a_line(head):
    """y = 2x + 1, as a rate e^y for Poisson; outliers move neither robust head."""
    head = getattr(heads, head)
    x = np.linspace(-1, 1, 41)[:, None]
    y = np.array(head.predict(2 * x + 1))
    if head is not heads.exp_poisson:
        y[::10] += 30
    model = jaxbp.MLP((1, 1), activations.identity, head)
    (layer,), _ = jaxbp.fit(
        model,
        Batch(x, y),
        optimizer=optax.adam(optax.cosine_decay_schedule(0.1, 800)),
        epochs=800,
        batch_size=None,
        key=jax.random.key(0),
    )
    np.testing.assert_allclose([layer.weight.item(), layer.bias.item()], [2, 1], atol=0.2)
