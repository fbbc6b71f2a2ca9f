"""Functions that JAX cannot trace are called, a point at a time, and judged like any other."""

import numpy as np

from jaxbp import gradcheck

X = np.random.default_rng(0).normal(size=(10, 4))
LABELS = np.arange(10) % 3
W = np.random.default_rng(1).normal(size=(4, 3))


def probabilities(w):
    a = X @ w
    a -= a.max(axis=1, keepdims=True)
    p = np.exp(a)
    return p / p.sum(axis=1, keepdims=True)


def loss(w):
    """A student's softmax regression."""
    return -np.mean(np.log(probabilities(w)[np.arange(10), LABELS]))


def loss_grad(w):
    error = probabilities(w)
    error[np.arange(10), LABELS] -= 1
    return X.T @ error / 10


def test_numpy_homework_is_checked_by_a_few_calls():
    report = gradcheck(loss, W, grads=loss_grad)
    assert report.ok
    assert report.headline().startswith("pass: measured in float64, a black box: NumPy, wrong me")
    assert report.evaluations <= 200
    assert f"{report.evaluations} evaluations of f" in str(report).splitlines()
    assert report.to_dict()["evaluations"] == report.evaluations
    assert gradcheck(loss, W, grads=lambda w: 1.5 * loss_grad(w)).diagnosis == (
        "off by a factor of 3/2"
    )
