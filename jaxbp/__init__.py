"""Backpropagation for multilayer perceptrons, written out by hand and equal to ``jax.grad``.

Read ``activations``, ``heads``, ``mlp`` and ``gradient``, in this order.  ``__all__`` below is the
map of the rest: what to read, what proves a gradient, and what trains with one.
"""

import importlib
import sys

from jaxbp import (
    activations,
    curvature,
    data,
    diagnostics,
    graph,
    heads,
    interop,
    parallel,
    per_example,
    processes,
)
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
from jaxbp.curvature import (
    gauss_newton_vector_product,
    hessian_vector_product,
    kronecker_factors,
)
from jaxbp.data import class_weights
from jaxbp.diagnostics import LayerReport, gradient_flow, layer_report
from jaxbp.gradient import Batch, autodiff, backprop, input_gradient, objective
from jaxbp.heads import Head, with_error
from jaxbp.initialisation import init
from jaxbp.mlp import backward, forward, gradients, predict
from jaxbp.model import MLP, Layer, Residual
from jaxbp.per_example import (
    clipped_gradient,
    gradient_moments,
    gradient_noise_scale,
    noisy_clipped_gradient,
    per_example_gradients,
    per_example_norms,
    signal_to_noise,
)
from jaxbp.precision import mixed_precision
from jaxbp.targets import smooth_labels
from jaxbp.training import (
    Best,
    EarlyStopping,
    Epoch,
    Evaluation,
    History,
    NonFiniteLossError,
    Run,
    TrainingInterrupt,
    batch_methods,
    best_of,
    evaluate,
    fit,
    fit_many,
    load_run,
    make_step,
    random_gradient,
    with_dropout,
)

__version__ = "0.1.0"

sys.modules["jaxbp.batch_methods"] = batch_methods  # so that it can be imported by this name too

__all__ = [  # noqa: RUF022 (by door)
    # read: the lecture's algorithm
    "MLP",
    "Layer",
    "Residual",
    "Head",
    "Batch",
    "activations",
    "heads",
    "with_slope",
    "with_error",
    "smooth_labels",
    "init",
    "forward",
    "backward",
    "gradients",
    "predict",
    "objective",
    "backprop",
    "autodiff",
    "input_gradient",
    # read: other contractions of (z, δ)
    "per_example",
    "per_example_gradients",
    "per_example_norms",
    "clipped_gradient",
    "noisy_clipped_gradient",
    "gradient_moments",
    "gradient_noise_scale",
    "signal_to_noise",
    "curvature",
    "hessian_vector_product",
    "gauss_newton_vector_product",
    "kronecker_factors",
    "mixed_precision",
    # prove: is it the gradient?
    "gradcheck",
    "assert_gradients",
    "GradientReport",
    "taylor_test",
    "TaylorReport",
    "compare",
    "Comparison",
    "graph",
    # use: train, and look after it
    "data",
    "fit",
    "fit_many",
    "best_of",
    "Best",
    "make_step",
    "random_gradient",
    "with_dropout",
    "class_weights",
    "batch_methods",
    "parallel",
    "processes",
    "Epoch",
    "EarlyStopping",
    "History",
    "Run",
    "load_run",
    "NonFiniteLossError",
    "TrainingInterrupt",
    "evaluate",
    "Evaluation",
    "diagnostics",
    "layer_report",
    "LayerReport",
    "gradient_flow",
    "save",
    "load",
    "Checkpoint",
    "interop",
]


def __getattr__(name: str) -> object:
    """``jaxbp.estimators``, which needs scikit-learn, is imported when it is asked for."""
    if name == "estimators":
        return importlib.import_module("jaxbp.estimators")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
