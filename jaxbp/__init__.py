"""Backpropagation for multilayer perceptrons, written out by hand and equal to ``jax.grad``.

Read ``activations``, ``heads``, ``mlp`` and ``gradient``, in this order.
"""

from jaxbp import activations, data, heads
from jaxbp.activations import with_slope
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
    "Epoch",
    "Evaluation",
    "Head",
    "History",
    "Layer",
    "NonFiniteLossError",
    "Residual",
    "activations",
    "autodiff",
    "backprop",
    "backward",
    "data",
    "evaluate",
    "fit",
    "forward",
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
    "with_slope",
]
