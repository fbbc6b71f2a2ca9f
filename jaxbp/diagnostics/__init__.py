"""Diagnostics: the health of every layer, read off (z, δ), and what the lectures recommend.

Read ``health``, which measures on the device; then ``report``, which turns the measures into
verdicts, findings and advice; and ``flow``, the lectures' experiment on vanishing gradients.
"""

from jaxbp.diagnostics.flow import (
    LECTURE_ACTIVATIONS,
    QUANTILES,
    Distributions,
    Flow,
    distributions,
    gradient_flow,
)
from jaxbp.diagnostics.health import Health, layer_health
from jaxbp.diagnostics.report import (
    ADVICE,
    Finding,
    LayerHealth,
    LayerReport,
    judge,
    layer_report,
    unfelt_errors,
)

__all__ = [
    "ADVICE",
    "LECTURE_ACTIVATIONS",
    "QUANTILES",
    "Distributions",
    "Finding",
    "Flow",
    "Health",
    "LayerHealth",
    "LayerReport",
    "distributions",
    "gradient_flow",
    "judge",
    "layer_health",
    "layer_report",
    "unfelt_errors",
]
