"""Backpropagation for multilayer perceptrons, written out by hand and equal to ``jax.grad``.

Read ``activations``, ``heads``, ``mlp`` and ``gradient``, in this order.
"""

from jaxbp import activations, data, heads
from jaxbp.activations import with_slope
from jaxbp.checking import (
    Comparison,
    GradientReport,
    TaylorReport,
    assert_gradients,
    compare,
    gradcheck,
    taylor_test,
)
from jaxbp.checkpoint import Checkpoint, load, save
from jaxbp.gradient import Batch, autodiff, backprop, input_gradient, objective
from jaxbp.heads import Head, smooth_labels
from jaxbp.mlp import MLP, Layer, Residual, backward, forward, gradients, init, predict
from jaxbp.training import (
    Epoch,
    Evaluation,
    History,
    NonFiniteLossError,
    evaluate,
    fit,
    make_step,
)

__version__ = "0.1.0"

__all__ = [
    "MLP",
    "Batch",
    "Checkpoint",
    "Comparison",
    "Epoch",
    "Evaluation",
    "GradientReport",
    "Head",
    "History",
    "Layer",
    "NonFiniteLossError",
    "Residual",
    "TaylorReport",
    "activations",
    "assert_gradients",
    "autodiff",
    "backprop",
    "backward",
    "compare",
    "data",
    "evaluate",
    "fit",
    "forward",
    "gradcheck",
    "gradients",
    "heads",
    "init",
    "input_gradient",
    "load",
    "make_step",
    "objective",
    "predict",
    "save",
    "smooth_labels",
    "taylor_test",
    "with_slope",
]
