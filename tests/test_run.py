"""Going on with a run: so many epochs and as many more are all of them, to the last bit."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxbp
from benchmarks.problems import random_batch
from jaxbp import activations, heads

MODEL = jaxbp.MLP((3, 8, 2), activations.tanh, heads.linear_squared_error, l2=0.01)
BATCH = random_batch(MODEL, 22, 0, dtype=np.float32)
KEY = jax.random.key(4)
fit = partial(jaxbp.fit, MODEL, BATCH, batch_size=5)

OPTIMIZERS = {
    "momentum": lambda: optax.sgd(0.1, momentum=0.9),
    "adam": lambda: optax.adam(0.01),
    "schedule": lambda: optax.adamw(optax.cosine_decay_schedule(0.1, 6 * 5)),
}


def equal(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize(
    "name",
    ["adam", *(pytest.param(each, marks=pytest.mark.slow) for each in ("momentum", "schedule"))],
)
def test_ten_epochs_and_ten_more_are_twenty(name):
    options = {"optimizer": OPTIMIZERS[name](), "key": KEY}
    params, history = fit(epochs=6, **options)
    _, first = fit(epochs=2, **options)
    assert first.run.epochs == 2
    held = jax.tree.map(np.asarray, first.run)
    again, rest = fit(epochs=6, resume=first.run, optimizer=OPTIMIZERS[name]())
    equal(again, params)
    equal(rest.run, history.run)
    np.testing.assert_array_equal(rest.training_loss, history.training_loss[2:])
    equal(first.run, held)  # the run is left as it is
    anew, _ = fit(epochs=4, params=first.run.params, **options)
    assert jaxbp.compare(anew, params).relative_error > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [5, None])
def test_a_random_gradient_and_an_epoch_of_on_epoch_go_on(batch_size):
    """With validation, dropout and diagnostics; from the run of an epoch in the midst."""
    runs = []
    options = {
        "optimizer": optax.adam(0.01),
        "gradient": jaxbp.with_dropout(0.3)(jaxbp.backprop),
        "batch_size": batch_size,
        "validation": BATCH,
        "diagnostics": True,
        "on_epoch": lambda epoch: runs.append((epoch, epoch.run)),
    }
    params, history = fit(epochs=5, key=KEY, **options)
    assert [run.epochs for _, run in runs] == [1, 2, 3, 4, 5]
    again, rest = fit(epochs=5, resume=runs[2][1], **options)
    equal(again, params)
    equal(rest.health, jax.tree.map(lambda values: values[3:], history.health))
    assert [run.epochs for _, run in runs[5:]] == [4, 5]
    with pytest.raises(RuntimeError, match="epoch 2: its run is there while on_epoch is called"):
        runs[1][0].run  # noqa: B018


def run_of(**changes):
    params = jaxbp.init(KEY, MODEL)
    run = jaxbp.Run(params, optax.adam(0.1).init(params), 3, np.asarray(jax.random.key_data(KEY)))
    return run._replace(**changes)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"resume": 3}, TypeError, "resume: got 3, expected a jaxbp.Run, such as history.run, or"),
        ({"resume": "gone"}, FileNotFoundError, "resume: gone holds no checkpoint"),
        ({"epochs": 3}, ValueError, "epochs: got 3, and the run is complete: it has done 3"),
        ({"params": ()}, ValueError, "params: got params beside resume, expected one of them"),
        ({"key": jax.random.key(5)}, ValueError, "key: got another one than the run's"),
        ({"optimizer": optax.sgd(0.1)}, ValueError, "resume: the run's optimizer had the state"),
        ({"resume": run_of(key=np.zeros(4, np.uint32))}, ValueError, "which is no threefry key"),
        (
            {"resume": run_of(params=jaxbp.init(KEY, MODEL._replace(sizes=(3, 7, 2))))},
            ValueError,
            "resume: the run's optimizer had the state|params: got weights and biases",
        ),
    ],
)
def test_what_cannot_go_on_is_named(options, error, message):
    options = {"resume": run_of(), "epochs": 9, "optimizer": optax.adam(0.1)} | options
    with pytest.raises(error, match=message):
        fit(**options)


def test_a_run_is_short_to_read():
    assert repr(run_of()).startswith("Run(params=(Layer(weight=float32[8,3], bias=float32[8]), ")
    record = jaxbp.History(np.zeros(2), None, None, run=run_of())
    assert repr(record) == "History(training_loss=float64[2])"
    assert "state" not in repr(jaxbp.Epoch(1, (), 0.5, None, state=jnp.zeros(2), key=KEY))
