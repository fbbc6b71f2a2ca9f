"""Training: what an epoch visits, what is compiled, what is recorded, and what is refused."""

import os
import threading
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from combinations import HEADS, adam, initial, sgd, thinned

import jaxbp
from benchmarks.problems import random_params
from jaxbp import Batch, activations, heads, memory
from jaxbp.memory import memory_shortage_named
from jaxbp.training import blocks, checks, pieces
from jaxbp.training.device import wait_for
from jaxbp.training.epoch import epoch_key, times_mean_weight

slow = pytest.mark.slow
KEY = jax.random.key(0)
MODEL = jaxbp.MLP((3, 8, 2), activations.tanh, heads.linear_half_squared_error)


def table(rows=10, seed=0):
    """A batch whose first input is the row's number."""
    rng = np.random.default_rng(seed)
    x = np.column_stack([np.arange(rows), rng.normal(size=(rows, 2))]).astype(np.float32)
    return Batch(x, rng.normal(size=(rows, 2)).astype(np.float32))


def fit(model=MODEL, batch=None, **options):
    defaults = {"optimizer": sgd(1e-3), "epochs": 2, "batch_size": 4, "key": KEY}
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
    fit(gradient=spy, check=False, **options)
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
            optimizer=optax.chain(optax.adam(1e-3), optax.scale(0.5)),  # not compiled before
            validation=table(6, seed=1),
            on_epoch=lambda epoch: at_epoch.append(len(compilations)),
        )
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert at_epoch[0] > 0
    assert at_epoch[1:] == at_epoch[:1] * 4


def test_each_gradient_is_traced_once_a_program():
    """To be compiled, and at each call to be known: for full minibatches and the ragged one."""
    traced = chex.assert_max_traces(jaxbp.backprop, n=6)
    for _ in range(2):
        fit(gradient=traced, epochs=4, check=False)


@pytest.mark.slow
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


def test_on_epoch_may_be_a_list_and_stops_on_true_alone():
    told = []
    first, second = (lambda epoch: told.append(epoch.number)), (lambda epoch: epoch.number == 2)
    _, history = fit(epochs=9, on_epoch=[first, second, first])
    assert told == [1, 1, 2, 2]
    assert len(history.training_loss) == 2
    for returned in (0.5, 1, {"loss": 0.5}, np.ones(1, bool), "yes"):
        with pytest.raises(TypeError, match=r"on_epoch: .* returned .*, expected True to end") as e:
            fit(epochs=9, on_epoch=[first, lambda epoch: returned])  # noqa: B023
        assert e.value.history.training_loss == history.training_loss[:1]
    told.clear()
    for wrong, message in [
        (1, "got 1, expected a function of an Epoch, or a list"),
        ([first, None], "expected a function of an Epoch, or a list"),
        (jaxbp.EarlyStopping, "got the class EarlyStopping, expected an object of it, or a func"),
    ]:
        with pytest.raises(TypeError, match=f"on_epoch: .*{message}"):
            fit(on_epoch=wrong)
    assert not told


def test_control_c_keeps_what_there_is():
    told = []

    def interrupt(epoch):
        told.append(epoch)
        if epoch.number == 2:
            raise KeyboardInterrupt

    with pytest.raises(
        KeyboardInterrupt, match=r"in epoch 3; .* after epoch 2. In a noteb"
    ) as error:
        fit(epochs=9, on_epoch=interrupt)
    assert type(error.value) is jaxbp.TrainingInterrupt
    assert error.value.epoch == 3
    assert jaxbp.compare(error.value.params, told[1].params).relative_error == 0
    expected = [epoch.training_loss for epoch in told]
    np.testing.assert_array_equal(error.value.history.training_loss, expected)


def test_a_callbacks_exception_keeps_what_there_is():
    """It stays what it is; one that carries something of that name keeps its own."""
    told = []

    def fail(epoch):
        told.append(epoch)
        if epoch.number == 2:
            raise error

    for error in (OSError("disk full"), SystemExit(3)):
        told.clear()
        with pytest.raises(type(error)) as caught:
            fit(epochs=9, on_epoch=fail)
        assert caught.value is error
        assert error.epoch == 3
        assert jaxbp.compare(error.params, told[1].params).relative_error == 0
        losses = [epoch.training_loss for epoch in told]
        np.testing.assert_array_equal(error.history.training_loss, losses)
        assert "in epoch 3; the exception's params" in error.__notes__[0]
    error = ValueError("mine")
    error.params, told[:] = "mine", []
    with pytest.raises(ValueError, match="mine"):
        fit(epochs=9, on_epoch=fail)
    assert vars(error).keys() == {"params"}


def test_control_c_is_heard_while_the_device_computes(sigint, monkeypatch):
    """By a wait in naps, which fit's first epoch ends with."""

    class Busy:
        asked = threading.Event()

        def is_ready(self):
            self.asked.set()
            return False

    def press():
        Busy.asked.wait()
        os.kill(os.getpid(), sigint)

    thread = threading.Thread(target=press)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        wait_for([Busy()])
    thread.join()

    def pressed(tree):
        if isinstance(tree, jax.Array):  # the loss
            raise KeyboardInterrupt

    monkeypatch.setattr(blocks, "wait_for", pressed)
    with pytest.raises(jaxbp.TrainingInterrupt, match="in epoch 1; ") as error:
        fit()
    assert jaxbp.compare(error.value.params, start()).relative_error == 0
    assert error.value.history.training_loss.shape == (0,)


def test_a_network_that_does_not_fit_ends_in_one_line():
    """Before anything is allocated; and where it is the device that says so."""
    huge = MODEL._replace(sizes=(3, 10**7, 10**7, 2))
    with pytest.raises(
        MemoryError, match=r"^out of memory: the weights alone need 4e\+05 GB, and t"
    ):
        fit(huge)
    wide = jaxbp.MLP((1, 100, 1), activations.tanh, heads.linear_half_squared_error)
    kept = memory.outputs_kept(wide, 10**11, np.float32)
    with (
        pytest.raises(MemoryError, match=r"need 1.2e-06 GB, with what is kept .* 4e.04 GB, and th"),
        memory_shortage_named(initial(KEY, wide), kept=kept),
    ):
        pass
    with pytest.raises(MemoryError, match=r"^out of memory: the weights alone need 5.88e"):
        jaxbp.gradient_flow((3,), width=7 * 10**6)
    with pytest.raises(TypeError, match=r"^depths: got 3, expected several, as in \(3,\)"):
        jaxbp.gradient_flow(3)
    with pytest.raises(TypeError, match=r"^schemes: got 'he', expected several"):
        jaxbp.gradient_flow((3,), schemes="he")
    keys = jax.random.split(jax.random.key(0), 2)
    with pytest.raises(MemoryError, match=r"^out of memory: the weights alone need 8e\+05 GB"):
        jaxbp.fit_many(huge, table(), keys=keys, learning_rate=0.1, epochs=1, batch_size=4)
    with (
        pytest.raises(MemoryError, match=r"alone need 2e-07 GB, and the whole did not fit$"),
        memory_shortage_named(start()),
    ):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")


@pytest.mark.parametrize("version", [1, 2])
def test_the_memory_is_that_of_the_group_of_processes(version, tmp_path):
    """The least of its own limit and those above it; "max" is none."""
    line, top, name = {
        1: ("4:memory:/a/b", "sys/fs/cgroup/memory", "memory.limit_in_bytes"),
        2: ("0::/a/b", "sys/fs/cgroup", "memory.max"),
    }[version]
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(f"3:cpuset:/c\n{line}\n")
    (tmp_path / top / "a/b").mkdir(parents=True)
    for folder, limit in (("a/b", "max"), ("a", "5000"), ("", "7000")):
        (tmp_path / top / folder / name).write_text(f"{limit}\n")
    assert min(memory.limits_of_groups(tmp_path)) == 5000
    assert min(memory.limits_of_groups(tmp_path / "none")) == np.inf


def test_no_key_is_drawn_from_twice():
    """Neither those of init, one a layer, nor what is folded into them, is a step's."""
    seen = []

    def noisy(model, params, batch, *, key):
        jax.debug.callback(lambda data: seen.append(tuple(data.tolist())), jax.random.key_data(key))
        return jaxbp.backprop(model, params, batch)

    key = jax.random.key(0)
    with jax.transfer_guard("disallow"):  # nor is a number moved that is not asked for
        fit(gradient=noisy, epochs=3, key=key)
    jax.effects_barrier()
    assert len(set(seen)) == 9
    layers = jax.random.split(key, 10)
    folded = jax.vmap(lambda key: jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(11)))(
        layers
    )
    orders = jax.vmap(lambda n: jax.random.fold_in(epoch_key(key, n), 10))(jnp.arange(1, 4))
    drawn = [
        np.asarray(jax.random.key_data(keys)).reshape(-1, 2) for keys in (layers, folded, orders)
    ]
    assert not set(seen) & {tuple(data.tolist()) for data in np.concatenate(drawn)}


def test_the_mean_weight_is_the_examples_alone():
    """The penalty counts once, whatever a minibatch weighs."""
    model = MODEL._replace(l2=0.5)
    params, batch = start(), table()._replace(weight=np.full(10, 3.0, "f4"))
    loss, grads = jax.jit(times_mean_weight(jaxbp.backprop), static_argnums=0)(model, params, batch)
    data, data_grads = by_hand(MODEL, params, batch)
    squares = sum(np.sum(np.square(layer.weight)) for layer in params)
    np.testing.assert_allclose(loss, 3 * data + 0.25 * squares, rtol=1e-6)
    for claimed, layer, of_data in zip(grads, params, data_grads, strict=True):
        expected = 3 * np.array(of_data.weight) + 0.5 * np.array(layer.weight)
        np.testing.assert_allclose(claimed.weight, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(claimed.bias, 3 * np.array(of_data.bias), rtol=1e-5)


def test_given_parameters_are_left_as_they_are():
    params = random_params(MODEL, 7, np.float32)
    copy = jax.tree.map(np.array, params)
    trained, _ = fit(params=list(params), optimizer=adam(0.01))
    assert jaxbp.compare(params, copy).relative_error == 0
    assert jaxbp.compare(trained, copy).relative_error > 0


def test_divergence_returns_the_last_good_parameters():
    kept = []
    with pytest.raises(
        jaxbp.NonFiniteLossError, match=r"epoch \d+: .* learning rate ten times"
    ) as e:
        fit(optimizer=sgd(10.0), epochs=50, on_epoch=lambda epoch: kept.append(epoch.params))
    error = e.value
    assert error.epoch == len(error.history.training_loss) + 1
    assert error.epoch in {len(kept), len(kept) + 1}  # its last steps broke it, or its first
    expected = [start(), *kept][error.epoch - 1]
    assert jaxbp.compare(error.params, expected).relative_error == 0
    assert np.isfinite(objective(MODEL, error.params, table()))


def test_divergence_in_the_first_epoch():
    """Its loss was finite, as it is that of steps before their update; what it led to is not."""
    kept = []
    with pytest.raises(jaxbp.NonFiniteLossError, match="epoch 1: ") as e:
        fit(
            optimizer=sgd(1e30),
            batch_size=None,
            epochs=9,
            validation=table(6, seed=1),
            on_epoch=kept.append,
            diagnostics=True,
        )
    assert [epoch.number for epoch in kept] == [1]
    assert not np.isfinite(objective(MODEL, kept[0].params, table()))
    assert jaxbp.compare(e.value.params, start()).relative_error == 0
    lengths = [len(each) for each in e.value.history[:3]]
    assert lengths == [0, 0, 0]
    assert e.value.history.health.delta.shape == (0, 2)


def test_a_step_that_only_spoils_the_parameters_is_noticed():
    """The loss of the last step is still finite when its update is not."""

    def gradient(model, params, batch):
        loss, grads = jaxbp.backprop(model, params, batch)
        return loss, jax.tree.map(lambda leaf: leaf * jnp.inf, grads)

    with pytest.raises(jaxbp.NonFiniteLossError, match="epoch 1") as error:
        fit(gradient=gradient, batch_size=None, epochs=1, check=False)
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


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_rows_in_half_precision_make_weights_in_float32(dtype):
    params, history = fit(batch=table()._replace(x=table().x.astype(dtype)), epochs=1)
    assert params[0].weight.dtype == jnp.float32
    assert np.isfinite(history.training_loss).all()


def test_half_precision_and_example_weights():
    params = random_params(MODEL, 0, jnp.bfloat16)
    trained, history = fit(batch=table()._replace(weight=np.arange(10.0)), params=params)
    assert trained[0].weight.dtype == jnp.bfloat16
    assert np.isfinite(history.training_loss).all()


@slow
def test_example_weights():
    _, history = fit(batch=table()._replace(weight=np.arange(10.0)))
    assert np.isfinite(history.training_loss).all()


#: of one output, whose predictions and targets are (B,)
ONE_OUTPUT = jaxbp.Head(lambda a: a[:, 0], lambda a, y: ((a[:, 0] - y) ** 2, 2 * (a - y[:, None])))


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
        (ONE_OUTPUT, [1.0, 2, 3], [[1.0], [2], [4]], 1 - 1 / 2),
    ],
)
def test_the_metric_is_what_the_head_calls_for(head, target, prediction, expected):
    """Through an identity network, so that x are the logits."""
    x, outputs = np.array(prediction), len(prediction[0])
    model = jaxbp.MLP((outputs, outputs), activations.identity, head)
    params = (jaxbp.Layer(np.eye(outputs, dtype="f4"), np.zeros(outputs, "f4")),)
    evaluation = jaxbp.evaluate(model, params, Batch(x, np.array(target)))
    np.testing.assert_allclose(evaluation.metric, expected, rtol=1e-6)


def test_an_accuracy_of_1_is_1():
    """Not 1.0000001, which 1000 times 1/1000 are in float32."""
    x = np.where(np.arange(1000)[:, None] % 2, 1.0, -1.0)
    model = jaxbp.MLP((1, 1), activations.identity, heads.sigmoid_logistic)
    params = (jaxbp.Layer(np.array([[9.0]], "f4"), np.zeros(1, "f4")),)
    for weight in (None, np.random.default_rng(0).uniform(size=1000)):
        assert jaxbp.evaluate(model, params, Batch(x, (x > 0), weight)).metric == 1
        assert jaxbp.evaluate(model, params, Batch(x, (x < 0), weight)).metric >= 0
    for right in (489, 500):  # a count is divided once
        target = np.where(np.random.default_rng(right).permutation(1000)[:, None] < right, x, -x)
        metric = jaxbp.evaluate(model, params, Batch(x, target > 0)).metric
        assert np.float32(metric) == np.float32(right) / np.float32(1000)
    with jax.enable_x64(True):  # 1 of 3 outputs, to the digits of float64
        params = (jaxbp.Layer(np.eye(3), np.zeros(3)),)
        batch = Batch(np.array([[1.0, -1.0, -1.0]]), np.ones((1, 3)))
        metric = jaxbp.evaluate(model._replace(sizes=(3, 3)), params, batch).metric
        assert metric == pytest.approx(1 / 3, rel=1e-14)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (
            heads.linear_squared_error._replace(predict=lambda a: a[:, 0]),
            r"predicts .* \(3,\), for",
        ),
        (heads.sigmoid_logistic._replace(decide=jnp.argmax), r"decides .* \(\), expected"),
    ],
)
def test_a_metric_of_another_shape_is_refused(head, message):
    batch = Batch(np.ones((3, 2), "f4"), np.ones((3, 1), "f4"))
    model = jaxbp.MLP((2, 1), activations.identity, head)
    params = (jaxbp.Layer(jnp.ones((1, 2)), jnp.ones(1)),)
    with pytest.raises(ValueError, match=rf"head: it {message} .*\(3, 1\) targets"):
        jaxbp.evaluate(model, params, batch)
    with pytest.raises(ValueError, match=f"head: it {message}"):  # before training
        fit(model, batch, validation=batch, on_epoch=pytest.fail)
    of_numpy = model._replace(head=head._replace(predict=np.asarray))
    with pytest.raises(TypeError, match="head: its predict or decide asks for the numbers of"):
        jaxbp.evaluate(of_numpy, params, batch)
    summed = model._replace(head=head._replace(loss=lambda a, y: (jnp.sum(a), a)))
    with pytest.raises(ValueError, match=r"loss: got shape \(\), expected \(3,\), one an example"):
        jaxbp.backprop(summed, params, batch)


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
        ({"epochs": True}, ValueError, "epochs: got True, expected a positive int"),
        ({"batch_size": 0}, ValueError, "batch_size: got 0, expected a positive int, or None"),
        ({"batch_size": True}, ValueError, "batch_size: got True, expected a positive int, or"),
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
            {"batch": table()._replace(weight=np.full(10, 1e38))},
            ValueError,
            r"weight: the sum is 1e\+39, out of the range of float32; weights are relative",
        ),
        (
            {"validation": table()._replace(weight=np.full(10, 1e-42))},
            ValueError,
            "validation.weight: the sum is 1e-41, out of the range of float32",
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
        (
            {"params": ({"weight": 1},)},
            TypeError,
            r"params: got .*, expected a tuple of jaxbp.Layer",
        ),
        ({"params": 0}, TypeError, r"params: got 0, expected a tuple of jaxbp.Layer"),
        ({"params": "x"}, TypeError, r"params: got 'x', expected a tuple of jaxbp.Layer"),
        ({"gradient": 5}, TypeError, "gradient: got 5, expected a function such as"),
        (
            {"gradient": lambda model, params, batch: (None, params)},
            TypeError,
            "gradient: got a loss that is NoneType, expected a number",
        ),
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
        ({"model": MODEL._replace(l2="1")}, ValueError, "l2: got '1', expected a finite number"),
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
        (
            {"batch": Batch(np.ma.masked_equal([[1.0]], 1), [[1.0]])},
            ValueError,
            "x: some .* masked",
        ),
        ({"batch": Batch(np.ones((0, 3)), np.ones((0, 2)))}, ValueError, r"x: got shape \(0, 3\)"),
        (
            {"batch": Batch(np.full((2, 3), 1e39), np.ones((2, 2))), "params": PARAMS},
            ValueError,
            r"x: \[0, 0\] is inf in float32",
        ),
        (
            {"model": CLASSES, "batch": table()._replace(target=np.ones(10))},
            TypeError,
            r"target: got float32 of shape \(10,\), expected integer classes there, as targ",
        ),
        (
            {"model": CLASSES, "batch": table()._replace(target=np.ones(10, bool))},
            TypeError,
            r"target: got bool of shape \(10,\), expected integer classes there, as targ",
        ),
        (
            {"model": CLASSES, "batch": table()._replace(target=np.full(10, 2**32))},
            ValueError,
            "target: class 4294967296 in row 0, expected classes 0 to 1",
        ),
        (
            {"model": CLASSES, "batch": table()._replace(target=np.ones(9, int))},
            ValueError,
            r"target: got shape \(9,\), expected \(10, 2\), .* or \(10,\) for integer classes",
        ),
    ],
)
def test_what_does_not_fit_is_named(options, error, message):
    with pytest.raises(error, match=message):
        fit(**options)


BINARY = MODEL._replace(head=heads.sigmoid_logistic)
COUNTS = MODEL._replace(head=heads.exp_poisson)
ROW = np.array([0.0, 1.0])


@pytest.mark.parametrize(
    ("model", "wrong", "message"),
    [
        (BINARY, [-1.0, 1], "target: -1.0 in row 3, expected probabilities from 0 to 1"),
        (
            BINARY._replace(head=heads.sigmoid_squared_error),
            [0, 1.5],
            "target: 1.5 in row 3, expec",
        ),
        (CLASSES, [-0.5, 1.5], "target: -0.5 in row 3, expected probabilities from 0 to 1"),
        (CLASSES, [0.5, 0.6], r"target: row 3 sums to 1.1, expected labels that sum to 1"),
        (COUNTS, [0, -1], "target: -1.0 in row 3, expected counts of at least 0"),
    ],
)
def test_targets_that_a_head_cannot_mean(model, wrong, message):
    """In training, in validation and in evaluation; what rounding does to labels is let through."""
    batch = table()._replace(target=np.tile(ROW, (10, 1)))
    batch.target[3] = wrong
    right = batch._replace(target=np.tile(ROW * np.float32(1 + 1e-7), (10, 1)))
    with pytest.raises(ValueError, match=f"^{message}"):
        fit(model, batch)
    with pytest.raises(ValueError, match=f"^validation.{message}"):
        fit(model, right, validation=batch)
    with pytest.raises(ValueError, match=f"^validation.{message}"):
        jaxbp.fit_many(
            model,
            right,
            validation=batch,
            keys=jax.random.split(jax.random.key(0), 2),
            learning_rate=0.1,
            epochs=1,
            batch_size=4,
        )
    with pytest.raises(ValueError, match=f"^{message}"):
        jaxbp.evaluate(model, PARAMS, batch)


def test_one_key_is_enough():
    for old in (jax.random.PRNGKey(0), 0):
        with pytest.raises(TypeError, match=r"key: got .*, expected one jax.random.key\(seed\)"):
            fit(key=old)
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


# Pieces of one's own


def squares(logits, target):
    return jnp.sum((logits - target) ** 2, axis=-1)


def head(loss):
    return MODEL._replace(head=jaxbp.Head(lambda logits: logits, loss))


def unit(function):
    return MODEL._replace(activation=function)


def changed(change):
    def gradient(model, params, batch):
        loss, grads = jaxbp.backprop(model, params, batch)
        return change(loss, grads)

    return gradient


WRONG = [
    (
        {"model": head(lambda a, y: (jnp.sum((a - y) ** 2), 2 * (a - y)))},
        r"head: the loss: got float32 of shape \(\), expected float32 of shape \(10,\)",
    ),
    (
        {"model": head(lambda a, y: (squares(a, y), 2 * (a - y)[:, :1]))},
        r"head: the error: got float32 of shape \(10, 1\), expected float32 of shape \(10, 2\)",
    ),
    (
        {"model": head(lambda a, y: (squares(a, y), jnp.sign(a - y).astype("i4")))},
        r"head: the error: got int32 of shape \(10, 2\), expected float32",
    ),
    (
        {"model": head(squares)},
        r"head: its loss gives an array of shape \(10,\), expected \(loss, er",
    ),
    (
        {"model": head(lambda a, y: (squares(a, y), a - y))},
        "head: the error of its loss is not the derivative .* error of 5.0e-01 by jax.grad, .*; c",
    ),
    (
        {"model": head(lambda a, y: (squares(a, y) + jnp.mean(a), 2 * (a - y) + 1 / 20))},
        "head: the error of its loss is not the derivative of the losses, row by row",
    ),
    (
        {"model": head(lambda a, y: (squares(a, y) / len(a), 2 * (a - y) / len(a)))},
        "head: the loss of a row depends on the other rows, or on how many .* by half the rows al",
    ),
    (
        {"model": unit(lambda a: (jnp.sin(a), jnp.sin(a)))},
        "activation: the slope of <lambda> is not the derivative of h, entry by entry.*; check=F",
    ),
    (
        {"model": unit(jaxbp.with_slope(jax.nn.softmax))},
        "activation: the slope of softmax is not the derivative of h, entry by entry",
    ),
    (
        {"model": unit(lambda a: (jnp.sin(a), jnp.cos(a)[:, :1]))},
        r"activation: slope of <lambda>: got float32 of shape \(10, 1\), expected .* \(10, 8\)",
    ),
    (
        {"model": unit(lambda a: (jnp.sum(a, axis=1), jnp.ones_like(a)))},
        r"activation: h of <lambda>: got float32 of shape \(10,\)",
    ),
    (
        {"model": unit(lambda a: (np.tanh(a), 1 - np.tanh(a) ** 2))},
        "activation: <lambda> asks for the numbers of an array, as NumPy, .* of jax.numpy alone",
    ),
    (
        {"model": head(lambda a, y: (squares(a, y), 2 * (a - y) if a[0, 0] > 0 else 0))},
        "head: its loss asks for the numbers of an array, as NumPy, float.. and if do",
    ),
    (
        {"gradient": changed(lambda loss, grads: (float(loss), grads))},
        "gradient: gradient asks for the numbers of an array",
    ),
    (
        {"gradient": changed(lambda loss, grads: (loss, jax.tree.map(jnp.sum, grads)))},
        r"gradient: grads\[0\].weight: got float32 of shape \(\), expected .* shape \(8, 3\)",
    ),
    (
        {"gradient": changed(lambda loss, grads: (loss, grads[:1]))},
        "gradient: got the tree .*, expected that of params",
    ),
    (
        {"gradient": changed(lambda loss, grads: (jnp.ones(3), grads))},
        r"gradient: got a loss of shape \(3,\), expected a number",
    ),
    (
        {"gradient": changed(lambda loss, grads: grads)},
        r"gradient: got grads alone, expected \(loss, grads\)",
    ),
    (
        {"gradient": changed(lambda loss, grads: loss)},
        r"gradient: got an array of shape \(\), expected \(loss, grads\)",
    ),
    (
        {"gradient": changed(lambda loss, grads: (loss, jax.tree.map(lambda g: 1.01 * g, grads)))},
        r"gradient: gradient is not the derivative .* error of 1.0e-02 .*gradcheck tells .*; che",
    ),
    (
        {"gradient": changed(lambda loss, grads: (4 * loss, grads))},  # a sum over the rows
        "gradient: the loss of gradient is not the objective .*, the mean .* of 3.0e.00 by .*; che",
    ),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_a_piece_that_is_not_what_it_claims_to_be(options, message):
    with pytest.raises((ValueError, TypeError), match=f"^{message}"):
        fit(**options)


def test_pieces_are_checked_for_many_networks_too():
    many = {"keys": jax.random.split(jax.random.key(0), 2), "learning_rate": 0.1}
    options, message = WRONG[-2]
    with pytest.raises(ValueError, match=message):
        jaxbp.fit_many(MODEL, table(), epochs=1, batch_size=4, **many, **options)


def test_a_wrong_piece_trains_if_it_must():
    options, _ = WRONG[-2]
    fit(**options, epochs=1, check=False)


def check(model=MODEL, gradient=jaxbp.backprop, key=None):
    params, batch = jax.tree.map(lambda array: jnp.asarray(array, float), (PARAMS, table()))
    with jax.transfer_guard("disallow"):
        pieces.check_pieces(model, params, batch, 4, gradient, key, batch.x.dtype)


def test_right_pieces_of_ones_own_pass(x64):
    """In float64 to 1e-8, and where JAX cannot differentiate in reverse, no value is compared."""
    loop = partial(jax.lax.while_loop, lambda on: on[0] < 3, lambda on: (on[0] + 1, 2 * on[1]))
    with_loop = lambda a, y: (squares(loop((0, a))[1], y), a)  # noqa: E731
    for options in (
        {"model": head(lambda a, y: (squares(a, y), 2 * (a - y)))},
        {"model": MODEL._replace(head=jaxbp.with_error(squares))},
        {"model": head(with_loop)},
        {"model": unit(jaxbp.with_slope(jnp.sin))},
        {"model": unit((lambda a: (jnp.maximum(a, 0), jnp.where(a > 0, 1.0, 0.0)),))},
        {"gradient": changed(lambda loss, grads: (loss, grads))},
        {"gradient": jaxbp.mixed_precision(changed(lambda loss, grads: (loss, grads)))},
    ):
        check(**options)


def test_pieces_of_the_package_are_not_compared(monkeypatch):
    """So nothing is compiled for them; nor is a gradient that differs at every draw."""
    monkeypatch.setattr(pieces, "_compare", None)
    units = [*activations.BY_NAME.values(), partial(activations.leaky_relu, alpha=0.1)]
    for one in units:
        check(unit(one))
    for each in [
        *HEADS.values(),
        heads.linear_huber._replace(loss=partial(heads.huber, threshold=2)),
    ]:
        check(MODEL._replace(head=each))
    clipped = partial(jaxbp.clipped_gradient, max_norm=1.0)
    for own in (jaxbp.autodiff, jaxbp.mixed_precision(jaxbp.backprop), clipped):
        check(gradient=own)
    key = jax.random.key(0)

    def drawn(*given, key):
        return jaxbp.backprop(*given)

    def grads_alone(*given, key):
        return jaxbp.backprop(*given)[1]

    check(gradient=drawn, key=key)
    with pytest.raises(TypeError, match=r"gradient: got grads alone, expected \(loss, grads\)"):
        check(gradient=grads_alone, key=key)


def test_training_is_not_to_be_traced():
    def trained(key):
        return fit(key=key)[0]

    with pytest.raises(TypeError, match=r"key: got an array under trace, .* fit_many trains many"):
        jax.vmap(trained)(jax.random.split(jax.random.key(0), 2))
    key = jax.random.key(0)
    with pytest.raises(TypeError, match="batch: got an array under trace"):
        jax.jit(lambda batch: fit(batch=batch, key=key)[0])(table())


@pytest.mark.slow
@pytest.mark.parametrize("rate", thinned([0.1, 3e3], every=2))
def test_epochs_in_one_call_are_those_that_are_watched_one_by_one(rate):
    """Also where training diverges within a call."""
    found = []
    for asked in (None, lambda epoch: None):
        try:
            params, history = fit(
                epochs=9, optimizer=optax.sgd(rate), diagnostics=True, on_epoch=asked
            )
        except jaxbp.NonFiniteLossError as error:
            params, history = error.params, error.history
        found.append((params, history))
    assert (len(found[0][1].training_loss) < 9) == (rate > 1)
    jax.tree.map(np.testing.assert_array_equal, *found)


@slow
def test_short_whole_numbers_stay_as_they_are_on_the_device():
    """Images of uint8 are a quarter of the memory; a gradient is given them in params' dtype."""
    images = np.random.default_rng(0).integers(0, 256, (10, 3), np.uint8)
    target, seen = np.eye(2)[np.arange(10) % 2], []

    def gradient(model, params, batch):
        seen.append(batch.x.dtype)
        return jaxbp.backprop(model, params, batch)

    held = checks.checked_batch(MODEL, jaxbp.init(KEY, MODEL), Batch(images, target), "batch")
    assert (held.x.dtype, held.target.dtype) == (np.uint8, np.float32)
    options = {"epochs": 2, "batch_size": 4, "validation": Batch(images, target)}
    options |= {"optimizer": optax.sgd(1e-5), "diagnostics": True, "gradient": gradient}
    short = fit(batch=Batch(images, target), **options)
    assert set(seen) == {np.dtype("float32")}
    wide = fit(batch=Batch(images.astype(np.float32), target), **options)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), short, wide)


def test_arrays_on_the_device_are_looked_at_once(monkeypatch):
    """They cannot change; for another question, and for NumPy's, which can, they are each time."""
    params, looked = jaxbp.init(KEY, MODEL), []
    as_numbers = checks._as_numbers
    monkeypatch.setattr(
        checks, "_as_numbers", lambda name, each: looked.append(name) or as_numbers(name, each)
    )

    def looks(batch, model=MODEL):
        looked.clear()
        held = checks.checked_batch(model, params, batch, "batch")
        np.testing.assert_array_equal(held.target, batch.target)
        return len(looked)

    rows = Batch(np.ones((4, 3), "f"), np.zeros((4, 2), "f"))
    batch = Batch(*map(jnp.asarray, rows[:2]))
    assert [looks(batch), looks(batch), looks(rows), looks(rows)] == [3, 0, 3, 3]
    assert looks(batch._replace(weight=jnp.ones(4))) == 3
    counts = MODEL._replace(head=heads.exp_poisson)
    assert [looks(batch, counts), looks(batch, counts)] == [3, 0]
    negative = batch._replace(target=batch.target - 1)
    with pytest.raises(ValueError, match=r"target: -1\.0 in row 0, expected counts"):
        looks(negative, counts)
    assert looks(negative) == 3
    assert len(checks._RIGHT) <= checks._MOST_KEPT


@pytest.mark.parametrize("dtype", [">f4", ">i4", np.longdouble])
def test_numbers_that_jax_does_not_hold_are_those_it_does(dtype):
    params, x = jaxbp.init(KEY, MODEL), np.arange(12).reshape(4, 3)
    batch = Batch(x.astype(dtype), np.zeros((4, 2), dtype))
    held = checks.checked_batch(MODEL, params, batch, "batch")
    np.testing.assert_array_equal(held.x, x)
    assert checks.dtype_of(batch) in {np.dtype("f4"), jnp.float32}


def test_parameters_that_are_not_finite_are_named():
    weight = np.where(np.arange(8) == 2, np.nan, PARAMS[1].weight)
    params = (PARAMS[0], PARAMS[1]._replace(weight=weight))
    with pytest.raises(ValueError, match=r"params: got nan in params\[1\].weight, expected finite"):
        fit(params=params, epochs=1)
