"""Backpropagation for multilayer perceptrons, written out by hand and equal to ``jax.grad``.

Read ``activations``, ``heads``, ``mlp`` and ``gradient``, in this order.
"""

from jaxbp import (
    activations,
    batch_methods,
    curvature,
    data,
    diagnostics,
    graph,
    heads,
    per_example,
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
from jaxbp.diagnostics import LayerReport, gradient_flow, layer_report
from jaxbp.gradient import Batch, autodiff, backprop, input_gradient, objective
from jaxbp.heads import Head, smooth_labels
from jaxbp.mlp import MLP, Layer, Residual, backward, forward, gradients, init, predict
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
from jaxbp.sweeps import Best, best_of, fit_many
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
    "Best",
    "Checkpoint",
    "Comparison",
    "Epoch",
    "Evaluation",
    "GradientReport",
    "Head",
    "History",
    "Layer",
    "LayerReport",
    "NonFiniteLossError",
    "Residual",
    "TaylorReport",
    "activations",
    "assert_gradients",
    "autodiff",
    "backprop",
    "backward",
    "batch_methods",
    "best_of",
    "clipped_gradient",
    "compare",
    "curvature",
    "data",
    "diagnostics",
    "evaluate",
    "fit",
    "fit_many",
    "forward",
    "gauss_newton_vector_product",
    "gradcheck",
    "gradient_flow",
    "gradient_moments",
    "gradient_noise_scale",
    "gradients",
    "graph",
    "heads",
    "hessian_vector_product",
    "init",
    "input_gradient",
    "kronecker_factors",
    "layer_report",
    "load",
    "make_step",
    "mixed_precision",
    "noisy_clipped_gradient",
    "objective",
    "per_example",
    "per_example_gradients",
    "per_example_norms",
    "predict",
    "save",
    "signal_to_noise",
    "smooth_labels",
    "taylor_test",
    "with_slope",
]
