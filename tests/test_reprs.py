"""A record says in a line what it is, and a notebook shows its table."""

from functools import partial
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from combinations import network

import jaxbp
from jaxbp import activations, heads
from jaxbp.data.loading import Dataset
from jaxbp.data.preparation import Preparation
from jaxbp.diagnostics import Health

MODEL, PARAMS, BATCH = network()
HEALTH = Health(*np.ones((10, 2)))
CURVE = np.linspace(2, 1 / 3, 40)
HISTORY = jaxbp.History(CURVE, CURVE + 1, 1 - CURVE / 2)
EPOCH = jaxbp.Epoch(3, PARAMS, 1 / 3, jaxbp.Evaluation(0.25, 1.0))
LAYERS = (
    "(Layer(weight=float32[5,6], bias=float32[5]), Layer(weight=float32[3,5], bias=float32[3]))"
)
ROWS = "Batch(x=float32[8,6], target=int32[8], weight=float32[8])"
PREPARATION = Preparation(
    tuple("abcdefg"), *np.zeros((2, 7)), ("no", "yes"), np.zeros(1), np.ones(1)
)
PREPARED = (
    "Preparation(features=('a', 'b', ..., 'g'), mean=float64[7], scale=float64[7], "
    "labels=('no', 'yes'), target_mean=float64[1], target_scale=float64[1])"
)


@pytest.mark.parametrize(
    ("record", "line"),
    [
        (MODEL, "MLP(sizes=(6, 5, 3), activation=tanh, head=softmax_cross_entropy, l2=0.1)"),
        (
            jaxbp.MLP(
                (2, 3, 3, 1),
                (partial(activations.leaky_relu, alpha=0.2), jaxbp.with_slope(jnp.sin)),
                heads.Head(jnp.negative, heads.huber),
            ),
            "MLP(sizes=(2, 3, 3, 1), activation=(leaky_relu(alpha=0.2), sin), "
            "head=Head(predict=negative, loss=huber, target='values'), l2=0)",
        ),
        (
            MODEL._replace(sizes=(9, 8, 7, 6, 5, 4, 3)),
            "MLP(sizes=(9, 8, ..., 3), activation=tanh, ",
        ),
        (BATCH, ROWS),
        (
            jaxbp.Batch(dict(zip("abcdef", BATCH * 2, strict=True)), None),
            "Batch(x={'a': float32[8,6], 'b': int32[8], ..., 'f': float32[8]})",
        ),
        (
            EPOCH,
            f"Epoch(number=3, params={LAYERS}, training_loss=0.333333, "
            "validation=Evaluation(loss=0.25, metric=1))",
        ),
        (
            HISTORY,
            "History(training_loss=float64[40], validation_loss=float64[40], metric=float64[40])",
        ),
        (HISTORY._replace(health=HEALTH), "History(training_loss=float64[40], "),
        (
            jaxbp.Batch(SimpleNamespace(shape=(5, 2), columns="ab"), np.zeros(5)),
            "Batch(x=SimpleNamespace[5,2], target=float64[5])",
        ),
        (jaxbp.Best(0, PARAMS, HISTORY), f"Best(n=0, params={LAYERS}, history=History(training_"),
        (jaxbp.Checkpoint(MODEL, PARAMS, None), f"Checkpoint(model={MODEL}, params={LAYERS})"),
        (
            Dataset("iris", BATCH, BATCH, BATCH, PREPARATION),
            f"Dataset(name='iris', train={ROWS}, validation={ROWS}, test={ROWS}, "
            f"preparation={PREPARED})",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_record_is_a_line(record, line):
    assert repr(record).startswith(line)
    assert repr(record) == line or not line.endswith(")")
    assert "\n" not in repr(record)


def test_a_notebook_shows_a_table():
    """Of a history the epochs, at most ten of them; of the others their fields."""
    shown = HISTORY._repr_html_()
    assert shown.count("<tr>") == 11
    assert "<td>1</td><td>2</td><td>3</td><td>0</td>" in shown
    assert "<td>40</td><td>0.3333</td><td>1.333</td><td>0.8333</td>" in shown
    of_many = HISTORY._replace(training_loss=np.ones((2, 40)))._repr_html_()
    assert "<td>training_loss</td><td>float64[2,40]</td>" in of_many
    assert f"<td>params</td><td>{LAYERS}</td>" in EPOCH._repr_html_()
    dataset = Dataset("<iris>", BATCH, BATCH, BATCH, PREPARATION)._repr_html_()
    assert "<td>name</td><td>&#x27;&lt;iris&gt;&#x27;</td>" in dataset
    assert f"<td>test</td><td>{ROWS}</td>" in dataset
