"""Many networks at once: each the one that fit trains, however they are spread."""

import json
from functools import partial
from operator import itemgetter

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from combinations import initial, made

import jaxbp
from jaxbp import Batch, activations, heads
from jaxbp.training import dealing, epoch, many

slow = pytest.mark.slow
MODEL = jaxbp.MLP((3, 8, 2), activations.tanh, heads.linear_half_squared_error, l2=0.01)
RATES = [0.01, 0.1, 0.05]
MOMENTUM = partial(optax.sgd, momentum=0.9)


def three_keys():
    return jax.random.split(jax.random.key(0), 3)


def table(rows, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    x, target = rng.normal(size=(rows, 3)), rng.normal(size=(rows, 2))
    return Batch(x.astype(dtype), target.astype(dtype), rng.uniform(0.5, 2, rows).astype(dtype))


def fit_many(batch=None, **options):
    defaults = {"keys": three_keys(), "learning_rate": RATES, "epochs": 3, "batch_size": 4}
    return jaxbp.fit_many(MODEL, table(10) if batch is None else batch, **defaults | options)


def of_network(batch, n, rows=None):
    """A batch whose weights may be (N, rows), for network n, and its rows of it."""
    if batch is not None and np.ndim(batch.weight) == 2:
        batch = batch._replace(weight=batch.weight[n])
    return batch if rows is None else jax.tree.map(itemgetter(rows[n]), batch)


def differences(
    trained,
    networks,
    *,
    batch=None,
    l2=None,
    optimizer=optax.sgd,
    validation=None,
    rows=None,
    **options,
):
    """How far networks of these numbers, and their records, are from fit's."""
    params, history = jax.tree.map(np.asarray, trained)
    keys = three_keys()
    for n in networks:
        model = MODEL if l2 is None else MODEL._replace(l2=l2[n])
        alone, record = jaxbp.fit(
            model,
            of_network(table(10) if batch is None else batch, n, rows),
            validation=of_network(validation, n),
            key=keys[n],
            optimizer=made(optimizer, RATES[n]),
            **{"epochs": 3, "batch_size": 4} | options,
        )
        of_many, recorded = jax.tree.map(itemgetter(n), (params, history))
        yield jaxbp.compare(of_many, alone).relative_error
        for ours, theirs in zip(recorded[:3], record[:3], strict=True):
            assert (ours is None) == (theirs is None)
            if theirs is not None:
                yield np.max(np.abs(ours - theirs) / np.abs(theirs))


def noisy(model, params, batch, *, key):
    loss, grads = jaxbp.backprop(model, params, batch)
    noise = jax.random.normal(key)
    return loss, jax.tree.map(lambda leaf: leaf + noise, grads)


def folds(rows, networks=3):
    """A table of which each network holds out a third of the rows."""
    held_out = np.arange(rows) % networks == np.arange(networks)[:, None]
    weight = np.where(held_out, 0, table(rows).weight).astype("f")
    return table(rows)._replace(weight=weight), table(rows)._replace(weight=held_out.astype("f"))


ROWS = np.array([[0, 3, 4, 8, 9], [1, 2, 3, 3, 7], [9, 8, 5, 4, 0]])
FOLDS = dict(zip(("batch", "validation"), folds(12), strict=True))

#: one network costs fit a program of its own, for its rate: by default the last is compared
ONE, ALL = [2], [0, 1, 2]
L2 = [0.0, 0.1, 1.0]


@pytest.mark.parametrize(
    ("options", "networks"),
    [
        ({"l2": L2, "optimizer": optax.adam, "validation": table(7, 1), "batch_size": None}, ONE),
        ({"gradient": noisy, "batch_size": 5, "compute_dtype": jnp.bfloat16}, ONE),
        *(
            pytest.param(options, ALL, marks=slow)
            for options in (
                {"rows": ROWS, "batch_size": 2, "optimizer": optax.adam, "l2": L2} | FOLDS,
                {"l2": L2, "optimizer": MOMENTUM, "validation": table(7, 1)},
                {"batch_size": None, "optimizer": optax.adam},
                {"gradient": noisy, "batch_size": 5},
                {"compute_dtype": jnp.bfloat16, "gradient": jaxbp.autodiff},
                {"batch_size": 2, "optimizer": optax.adam, "l2": L2} | FOLDS,
                {"batch_size": None} | FOLDS,
                {"kernel": "interpret"} | FOLDS,
                {"rows": ROWS, "batch_size": 2, "validation": table(7, 1)},
                {"rows": ROWS, "batch_size": None, "optimizer": optax.adam} | FOLDS,
            )
        ),
    ],
    ids=[
        "l2, validation, full batch",
        "random gradient, mixed precision",
        "own rows, of which some are held out",
        "l2 and validation",
        "full batch",
        "random gradient",
        "mixed precision",
        "held-out rows, all",
        "held-out rows, full batch",
        "held-out rows, one kernel",
        "own rows, all",
        "own rows, full batch",
    ],
)
def test_each_network_is_the_one_that_fit_trains(options, networks):
    with jax.default_matmul_precision("highest"):  # GPUs round float32's products otherwise
        assert max(differences(fit_many(**options), networks, **options)) < 1e-5


@pytest.mark.parametrize(
    ("workers", "networks"),
    [(2, ONE), *(pytest.param(workers, ALL, marks=slow) for workers in (1, 2, 5))],
)
@pytest.mark.slow
def test_however_they_are_dealt(workers, networks, monkeypatch, x64):
    """In float64, also in the threads that the groups are trained in; 3 networks on 2 workers
    leave one place to fill."""
    monkeypatch.setattr(dealing, "workers", lambda: jax.local_devices()[:1] * workers)
    batch = table(10, dtype=np.float64)
    trained = fit_many(batch)
    assert trained[0][0].weight.dtype == np.float64
    assert max(differences(trained, networks, batch=batch)) < 1e-12


@pytest.mark.parametrize(
    ("multiplications", "batch_size", "networks"),
    [(0, 3, ONE), pytest.param(0, 3, ALL, marks=slow), pytest.param(10**9, 6, ALL, marks=slow)],
    ids=["one after another", "one after another, all", "together, all"],
)
@pytest.mark.slow
def test_together_and_one_after_another(multiplications, batch_size, networks, monkeypatch):
    monkeypatch.setattr("jaxbp.training.networks._SMALL", multiplications)
    with jax.default_matmul_precision("highest"):
        trained = fit_many(batch_size=batch_size)
        assert max(differences(trained, networks, batch_size=batch_size)) < 1e-5


@slow
def test_an_accelerator_draws_the_orders_and_trains_blocks_of_epochs(monkeypatch):
    """Here a CPU in its place: the orders are fit's, and the record is that of single epochs."""
    for module in (epoch, many):
        monkeypatch.setattr(module, "draws_on_device", lambda: True)
    monkeypatch.setattr(many, "_BLOCK", 2)
    validation = table(6, seed=1)
    with jax.default_matmul_precision("highest"):
        trained = fit_many(epochs=5, validation=validation)  # blocks of 2, 2 and 1
        assert max(differences(trained, [2], epochs=5, validation=validation)) < 1e-5
        own = {"rows": ROWS, "batch_size": 2}
        assert max(differences(fit_many(**own), [1], **own)) < 1e-5
        seen = []

        def stop(epoch):
            seen.append(epoch)
            return epoch.number == 3

        params, history = fit_many(epochs=5, validation=validation, on_epoch=stop)
    assert [each.number for each in seen] == [1, 2, 3]
    np.testing.assert_allclose(history.training_loss, trained[1].training_loss[:, :3], rtol=1e-6)
    np.testing.assert_array_equal(seen[-1].params[0].weight, params[0].weight)


@slow
@pytest.mark.parametrize("on_device", [False, True])
def test_keys_of_another_kind_draw_as_they_do_in_fit(monkeypatch, on_device):
    """Those of "rbg" draw other numbers under vmap."""
    for module in (epoch, many):
        monkeypatch.setattr(module, "draws_on_device", lambda: on_device)
    keys = jax.random.split(jax.random.key(0, impl="rbg"), 3)
    with jax.default_matmul_precision("highest"):
        params, _ = fit_many(keys=keys, epochs=1)
        optimizer = made(optax.sgd, RATES[1])
        alone, _ = jaxbp.fit(
            MODEL, table(10), key=keys[1], optimizer=optimizer, epochs=1, batch_size=4
        )
    assert jaxbp.compare(jax.tree.map(itemgetter(1), params), alone).relative_error < 1e-5


def test_a_minibatch_without_a_row_of_its_own_is_no_step():
    """But one of the penalty: no loss, no number that is not one."""
    weight = np.zeros((3, 10), "f")
    weight[np.arange(3), np.arange(3)] = 1
    batch = table(10)._replace(weight=weight)
    params, history = fit_many(batch, batch_size=1, epochs=1, l2=0.0)
    assert np.isfinite(history.training_loss).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "as_blocks"),
    [
        ({"optimizer": optax.adam}, False),
        *(
            pytest.param(options, True, marks=slow)
            for options in (
                {"optimizer": optax.adam, "gradient": noisy} | FOLDS,
                {"learning_rate": [RATES[0], 1e30, RATES[2]]},
                {"optimizer": MOMENTUM, "batch_size": None},
                {"l2": L2},
            )
        ),
    ],
)
def test_some_epochs_and_some_more_are_all_of_them(options, as_blocks):
    """To the last bit, from the end of a training and from an epoch in its midst; a network that
    diverged stays as it was."""
    runs = []
    if not as_blocks:  # then a program for single epochs is all that is compiled
        options["on_epoch"] = lambda epoch: None
    watched = options | {"on_epoch": lambda epoch: runs.append(epoch.run)}
    params, history = fit_many(epochs=4, **watched)
    _, first = fit_many(epochs=1, **options)
    assert first.run.epochs.tolist() == [1, 1, 1]
    for run in (first.run, runs[2]):
        again, rest = fit_many(epochs=4, keys=None, resume=run, **options)
        equal(again, params)
        equal(rest.run, history.run)
        np.testing.assert_array_equal(rest.training_loss, history.training_loss[:, run.epochs[0] :])
    assert history.run.diverged.tolist() == np.isnan(history.training_loss[:, -1]).tolist()


@slow
def test_a_folder_is_gone_on_with(tmp_path):
    """To the last bit, and with a network that diverges; another search is refused."""
    pytest.importorskip("orbax.checkpoint")
    folder = {"checkpoint": tmp_path / "run", "resume": tmp_path / "run", "checkpoint_every": 1}
    options = {"validation": table(6, seed=1), "learning_rate": [0.01, 1e30, 0.1]}
    whole = fit_many(epochs=4, **options)
    fit_many(epochs=2, **options, **folder)
    gone_on = fit_many(epochs=4, **options, **folder)
    run = jaxbp.load_run(tmp_path / "run", optax.sgd)
    assert run.diverged.tolist() == [False, True, False]
    for one, other in zip(*map(jax.tree.leaves, (whole, gone_on)), strict=True):
        np.testing.assert_array_equal(one, other)
    for other, differs in [
        ({"learning_rate": 0.1}, "one of the learning rates was 0.0"),
        ({"rows": [[0, 1]] * 3}, "rows"),
        ({"validation": table(5)}, "validation was 6 rows"),
    ]:
        with pytest.raises(ValueError, match=f"is of another run: .*{differs}"):
            fit_many(epochs=9, **options | other, **folder)
    with pytest.raises(ValueError, match="epochs: got 4, and the run is complete"):
        fit_many(epochs=4, **options, **folder)


@slow
def test_fit_goes_on_with_the_best():
    best = jaxbp.best_of(*fit_many())
    optimizer = made(optax.sgd, RATES[best.n])
    options = {"optimizer": optimizer, "epochs": 5, "batch_size": 4}
    params, _ = jaxbp.fit(MODEL, table(10), resume=best.history.run, **options)
    assert max(differences(fit_many(epochs=5), [best.n], epochs=5)) < 1e-5
    alone = jax.tree.map(itemgetter(best.n), fit_many(epochs=5)[0])
    assert jaxbp.compare(params, alone).relative_error < 1e-5


def equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


TWO_DEVICES = """
import jax, json
jax.config.update("jax_num_cpu_devices", 2)
import numpy as np
import jaxbp
from jaxbp import Batch, activations, heads
model = jaxbp.MLP((3, 8, 2), activations.tanh, heads.linear_half_squared_error)
rng = np.random.default_rng(0)
batch = Batch(rng.normal(size=(10, 3)).astype("f"), rng.normal(size=(10, 2)).astype("f"))
keys = jax.random.split(jax.random.key(0), 3)
params, history = jaxbp.fit_many(
    model, batch, keys=keys, learning_rate=0.1, epochs=3, batch_size=4, validation=batch
)
print(json.dumps([len(jax.devices()), params[1].bias.tolist(), history.metric.tolist()]))
"""


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="of a CPU alone two devices can be made")
@pytest.mark.slow
def test_on_two_devices(python):
    out, _ = python("-W", "error", "-c", TWO_DEVICES).ended()
    devices, bias, metric = json.loads(out.splitlines()[-1])
    assert devices == 2
    rng = np.random.default_rng(0)
    batch = Batch(rng.normal(size=(10, 3)).astype("f"), rng.normal(size=(10, 2)).astype("f"))
    params, history = jaxbp.fit_many(
        MODEL._replace(l2=0.0),
        batch,
        keys=three_keys(),
        learning_rate=0.1,
        epochs=3,
        batch_size=4,
        validation=batch,
    )
    np.testing.assert_allclose(bias, params[1].bias, rtol=1e-5)
    np.testing.assert_allclose(metric, history.metric, rtol=1e-5)


@slow
def test_a_network_that_diverges_leaves_the_others_alone():
    alone, _ = fit_many()
    params, history = fit_many(learning_rate=[RATES[0], 1e30, RATES[2]])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    assert np.isnan(history.training_loss[1]).all()
    assert np.isfinite(history.training_loss[[0, 2]]).all()
    first, start = (jax.tree.map(lambda leaf: leaf[1], each) for each in (params, alone))
    assert jaxbp.compare(first, initial(three_keys()[1], MODEL)).ulps <= 8  # another program's
    assert jaxbp.compare(first, start).relative_error > 0
    assert jaxbp.best_of(params, history).n in {0, 2}
    late, record = fit_many(learning_rate=[RATES[0], 10.0, RATES[2]], epochs=12)
    lasted = np.isfinite(record.training_loss).sum(axis=1)
    assert lasted[1] not in {0, 12}
    assert lasted[[0, 2]].tolist() == [12, 12]
    last = jax.tree.map(itemgetter(1), late)
    assert np.isfinite(jax.jit(jaxbp.objective, static_argnums=0)(MODEL, last, table(10)))
    with pytest.raises(ValueError, match="history: each of the 3 networks diverged"):
        jaxbp.best_of(*fit_many(learning_rate=1e30))


@slow
def test_a_network_that_diverges_goes_back_as_in_fit():
    """Where its last updates led to a loss that is not finite, though those before them were."""
    rates, epochs, back = [30.0, 100.0, 1e3], 12, 0
    params, history = fit_many(learning_rate=rates, epochs=epochs, validation=table(7, 1))
    for n, (key, rate) in enumerate(zip(three_keys(), rates, strict=True)):
        told = []
        with pytest.raises(jaxbp.NonFiniteLossError) as error:
            jaxbp.fit(
                MODEL,
                table(10),
                key=key,
                optimizer=optax.sgd(rate),
                epochs=epochs,
                batch_size=4,
                validation=table(7, 1),
                on_epoch=told.append,
            )
        own = jax.tree.map(itemgetter(n), params)
        assert jaxbp.compare(own, error.value.params).relative_error < 1e-3
        lasted = error.value.epoch - 1
        back += len(told) - lasted
        for curve in history[:3]:
            assert np.isfinite(curve[n]).tolist() == [True] * lasted + [False] * (epochs - lasted)
    assert back


def test_the_best_is_picked_by_what_is_asked_for():
    params, history = fit_many(validation=table(7, 1))
    for by, of in [
        ("training_loss", np.argmin),
        ("validation_loss", np.argmin),
        ("metric", np.argmax),
    ]:
        best = jaxbp.best_of(params, history, by=by)
        assert best.n == of(getattr(history, by)[:, -1])
        assert jaxbp.compare(best.params[0].weight, params[0].weight[best.n]).ulps == 0
        assert best.history.metric.tolist() == history.metric[best.n].tolist()
    assert (
        jaxbp.best_of(params, history).n == jaxbp.best_of(params, history, by="validation_loss").n
    )
    with pytest.raises(ValueError, match="by: got 'accuracy', expected one of training_loss"):
        jaxbp.best_of(params, history, by="accuracy")
    with pytest.raises(ValueError, match="by: got 'metric', expected one of training_loss, which"):
        jaxbp.best_of(*fit_many(), by="metric")
    with pytest.raises(ValueError, match=r"history: got training_loss of shape \(3,\)"):
        jaxbp.best_of(best.params, best.history, by="training_loss")
    of_two = jax.tree.map(lambda leaf: leaf[:2], params)
    for others in (of_two, best.params):
        with pytest.raises(ValueError, match=r"params: got biases .*, expected those of the 3"):
            jaxbp.best_of(others, history)
    with pytest.raises(TypeError, match="history: got tuple, expected that of"):
        jaxbp.best_of(history, params)


def test_on_epoch_is_told_of_all_and_can_stop():
    seen = []
    params, history = fit_many(
        validation=table(7, 1), on_epoch=lambda epoch: seen.append(epoch) or epoch.number == 2
    )
    assert [epoch.number for epoch in seen] == [1, 2]
    assert history.training_loss.shape == history.metric.shape == (3, 2)
    assert seen[1].training_loss.tolist() == history.training_loss[:, 1].tolist()
    assert seen[1].validation.loss.shape == (3,)
    assert jaxbp.compare(seen[1].params, params).ulps == 0
    assert jaxbp.compare(seen[0].params, params).relative_error > 0


def test_control_c_keeps_what_there_is():
    seen = []

    def interrupt(epoch):
        seen.append(epoch)
        if epoch.number == 2:
            raise KeyboardInterrupt

    def write():
        raise OSError("disk full")

    with pytest.raises(jaxbp.TrainingInterrupt, match="in epoch 3; ") as error:
        fit_many(validation=table(7, 1), on_epoch=[interrupt])
    assert jaxbp.compare(error.value.params, seen[1].params).ulps == 0
    assert error.value.history.training_loss.shape == error.value.history.metric.shape == (3, 2)
    with pytest.raises(OSError, match="disk full") as error:
        fit_many(validation=table(7, 1), on_epoch=[lambda epoch: write()])
    assert error.value.epoch == 2
    assert jaxbp.compare(error.value.params, seen[0].params).ulps == 0


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"on_epoch": 7}, TypeError, "on_epoch: got 7, expected a function of an Epoch, or a list"),
        ({"keys": 7}, TypeError, "keys: got 7"),
        (
            {"learning_rate": [0.1, 0.2]},
            ValueError,
            r"learning_rate: got shape \(2,\), expected a number or \(3,\)",
        ),
        ({"learning_rate": -1.0}, ValueError, "learning_rate: got -1.0, expected finite"),
        ({"learning_rate": "fast"}, TypeError, "learning_rate: got .*, expected real numbers"),
        ({"l2": [0.1, np.nan, 0.1]}, ValueError, "l2: got .*, expected finite numbers"),
        ({"optimizer": optax.sgd(0.1)}, TypeError, "optimizer: got .*, expected a function of the"),
        ({"epochs": 0}, ValueError, "epochs: got 0"),
        (
            {"batch": table(10)._replace(weight=np.ones((2, 10)))},
            ValueError,
            r"weight: got shape \(2, 10\), expected \(10,\) or \(3, 10\)",
        ),
        (
            {
                "batch": table(10)._replace(
                    weight=np.eye(3, 10)[[0, 0, 1]] - np.eye(3, 10)[[0, 1, 1]]
                )
            },
            ValueError,
            "weight: network 0: expected finite weights ≥ 0, not all zero",
        ),
        (
            {"validation": table(7)._replace(weight=np.ones((3, 6)))},
            ValueError,
            r"validation.weight: got shape \(3, 6\), expected \(7,\) or",
        ),
        ({"rows": [[0, 1], [2, 10], [3, 4]]}, ValueError, "rows: got 0 to 10, expected .* 0 to 9"),
        ({"rows": np.ones((3, 2))}, TypeError, "rows: got float64, expected whole numbers"),
        ({"rows": [0, 1, 2]}, ValueError, r"rows: got shape \(3,\), expected \(3, R\), as keys"),
        ({"resume": 3}, TypeError, "resume: got 3, expected a jaxbp.Run"),
        ({"batch": table(10)._replace(target=np.ones(10))}, ValueError, "target: got shape"),
        ({"validation": "none"}, TypeError, "validation: got str"),
        ({"compute_dtype": "float16"}, ValueError, "compute_dtype: got 'float16'"),
    ],
)
def test_what_does_not_fit_is_named(wrong, error, message):
    with pytest.raises(error, match=message):
        fit_many(**wrong)


def test_keys_are_one_a_network():
    """And where two networks are one, it is said, before they train."""
    one = three_keys()[:1]
    for wrong in ([one[0], one[0]], "ab", None):
        with pytest.raises(TypeError, match=r"(?s)keys: got .*, expected \(N,\) of them"):
            fit_many(keys=wrong)
    twice = one[np.zeros(2, int)]
    with (
        pytest.warns(UserWarning, match="keys: 1 of 2 networks differ"),
        pytest.raises(ValueError, match="epochs: got 0"),
    ):
        fit_many(keys=twice, learning_rate=0.1, epochs=0)
    with pytest.raises(ValueError, match="epochs: got 0"):  # without a warning
        fit_many(keys=twice, learning_rate=[0.1, 0.2], epochs=0)
    with pytest.raises(TypeError, match=r"(?s)keys: got .*, expected \(N,\) of them"):
        fit_many(keys=jax.random.key(0))
    with pytest.raises(ValueError, match="keys: got none, expected one a network"):
        fit_many(keys=three_keys()[:0])
