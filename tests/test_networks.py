"""The graph of a network: the lectures' page of backpropagation, in their names."""

import re

import jax
import numpy as np
import pytest
from combinations import ACTIVATIONS, HEADS, ONE_OF_EACH, thinned

import jaxbp
from benchmarks.problems import random_batch, random_params
from jaxbp.graph import trace_network

ERRORS = {
    "linear_squared_error": "2·(ŷ - y)",
    "linear_half_squared_error": "ŷ - y",
    "linear_huber": "min(1, max(-1, ŷ - y))",
    "linear_absolute_error": "sign(ŷ - y)",
    "sigmoid_logistic": "ŷ - y",
    "sigmoid_squared_error": "2·(ŷ - y) ⊙ ŷ ⊙ (1 - ŷ)",
    "softmax_cross_entropy": "ŷ - y",
    "exp_poisson": "ŷ - y",
}


def drawn(activation, head, sizes=(3, 4, 5, 2)):
    """A network at one example, and its graph."""
    model = jaxbp.MLP(sizes, ACTIVATIONS[activation], HEADS[head])
    params = random_params(model, 0, np.float64)
    batch = random_batch(model, 1, 1, dtype=np.float64)
    target = batch.target / (batch.target.sum() if head.startswith("softmax") else 1)
    batch = batch._replace(target=target)
    return model, params, batch, trace_network(model, params, batch.x[0], target[0])


@pytest.mark.parametrize(("activation", "head"), thinned(ONE_OF_EACH, every=9))
def test_it_is_the_gradient_with_a_node_an_activation_and_two_a_head(activation, head, x64):
    model, params, batch, graph = drawn(activation, head)
    _, grads = jaxbp.autodiff(model, params, batch)
    assert jaxbp.compare(graph.gradients[0], grads).relative_error < 1e-12
    names = "W⁽¹⁾ b⁽¹⁾ W⁽²⁾ b⁽²⁾ W⁽³⁾ b⁽³⁾ x a⁽¹⁾ z⁽¹⁾ a⁽²⁾ z⁽²⁾ a⁽³⁾ y ŷ L"
    assert [node.name for node in graph.nodes] == names.split()
    assert graph["a⁽³⁾"].formula == ERRORS[head]
    np.testing.assert_allclose(graph["ŷ"].value, model.head.predict(graph["a⁽³⁾"].value))
    assert graph["a⁽²⁾"].adjoint_name == "δ⁽²⁾"


def test_every_head_has_its_error_written():
    assert ERRORS.keys() == HEADS.keys()


def test_the_lecture_on_classification(x64):
    """Ng, softmax regression's gradient and Bishop, eq. 5.54: δ = ŷ - y, layer by layer."""
    *_, graph = drawn("relu", "softmax_cross_entropy", (2, 3, 3))
    assert graph["ŷ"].operation == "softmax(a⁽²⁾)"
    assert graph["L"].operation == "-Σ y·ln ŷ"
    assert graph["z⁽¹⁾"].operation == "relu(a⁽¹⁾)"
    written = {node.adjoint_name: node.formula for node in graph.nodes if node.adjoint is not None}
    assert written == {
        "gL": "",
        "δ⁽²⁾": "ŷ - y",
        "gW⁽²⁾": "δ⁽²⁾·z⁽¹⁾ᵀ",
        "gb⁽²⁾": "δ⁽²⁾",
        "gz⁽¹⁾": "W⁽²⁾ᵀ·δ⁽²⁾",
        "δ⁽¹⁾": "gz⁽¹⁾ ⊙ [z⁽¹⁾ > 0]",
        "gW⁽¹⁾": "δ⁽¹⁾·xᵀ",
        "gb⁽¹⁾": "δ⁽¹⁾",
    }


def test_what_passes_nothing_on_is_not_written(x64):
    """Also where it is broadcast: sign inside of the absolute error of one output."""
    *_, graph = drawn("identity", "linear_absolute_error", (2, 1))
    assert graph.opened("L")["a"].formula == "gc ⊙ b"


@pytest.mark.slow
def test_a_formula_that_is_not_the_heads_error_is_not_shown(x64):
    """ŷ - y is the error of labels that sum to 1; of others it is the head's own."""
    model = jaxbp.MLP((2, 3), (), HEADS["softmax_cross_entropy"])
    params, x, y = random_params(model, 0, np.float64), np.ones(2), np.array([1.0, 1.0, 0.5])
    graph = trace_network(model, params, x, y)
    _, grads = jaxbp.autodiff(model, params, jaxbp.Batch(x[None], y[None]))
    assert jaxbp.compare(graph.gradients[0], grads).relative_error < 1e-12
    assert "ŷ" not in graph["a⁽¹⁾"].formula
    by_class = trace_network(model, params, x, 2)
    np.testing.assert_array_equal(by_class["y"].value, [0, 0, 1])
    own = jaxbp.with_error(lambda a, y: ((a - y) ** 4).sum(axis=-1))
    graph = trace_network(model._replace(head=own), params, x, y)
    assert re.fullmatch(r"loss\(a⁽¹⁾, y\)", graph["L"].operation)


def test_what_does_not_fit_is_named():
    model = jaxbp.MLP((2, 3), (), HEADS["softmax_cross_entropy"])
    params = jaxbp.init(jax.random.key(0), model)
    with pytest.raises(ValueError, match=r"x: got shape \(3,\), expected \(\.\.\., 2\)"):
        trace_network(model, params, np.ones(3), 0)
    with pytest.raises(ValueError, match=r"x: got shape \(1, 2\), expected one example, \(2,\)"):
        trace_network(model, params, np.ones((1, 2)), 0)
    with pytest.raises(ValueError, match="target: got 3, expected a class from 0 to 2"):
        trace_network(model, params, np.ones(2), 3)
    with pytest.raises(ValueError, match=r"target: got shape \(2,\), expected \(3,\)"):
        trace_network(model, params, np.ones(2), np.ones(2))
