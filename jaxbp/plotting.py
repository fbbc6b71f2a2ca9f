"""Pictures, by matplotlib and without a display."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxbp.checking import GradientReport, LeafReport
from jaxbp.training import History

_TRAINING, _VALIDATION = "#8c8c8c", "#1f5fa8"
_PASS, _FAIL, _INCONCLUSIVE = "#2e8b57", "#c0392b", "#c98a00"
_LOG_FROM = 30  # a loss that falls further than this is drawn by its logarithm


def learning_curve(
    path: str | Path, history: History, *, metric: str, title: str, training: str = "training"
) -> None:
    """Draw loss and metric by epoch to a file: is it still learning, and is it overfitting?

    metric names what was measured on the validation data, "accuracy" or "R²", and training the
    curve of the training loss.
    """
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    figure.suptitle(title, fontsize=11)
    losses, metrics = figure.subplots(1, 2)
    _curve(losses, history.training_loss, training, _TRAINING)
    _curve(losses, history.validation_loss, "validation", _VALIDATION)
    _curve(metrics, history.metric, "validation", _VALIDATION)
    if 0 < _LOG_FROM * min(history.training_loss) < max(history.training_loss):
        losses.set_yscale("log")
    for axes, name in ((losses, "loss"), (metrics, metric)):
        axes.set(xlabel="epoch", ylabel=name)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def _curve(axes: Axes, values: np.ndarray | None, label: str, color: str) -> None:
    if values is not None:
        marker = "o" if len(values) == 1 else ""  # one epoch is a point, not an invisible line
        axes.plot(range(1, len(values) + 1), values, marker=marker, label=label, color=color)


def step_curves(path: str | Path, report: GradientReport) -> None:
    """Draw to a file, for each leaf, how far the difference quotient is from the claimed slope at
    each step: a V where the claim is right, a floor that does not fall where it is wrong.

    The rounding in f rises to the left, and the remainder of the quotient to the right; marked is
    the step that the measured slope was read off, with its error bar.
    """
    leaves = [leaf for leaf in report.leaves if leaf.curve is not None]
    columns = min(3 if len(leaves) > 4 else 2, max(1, len(leaves)))
    rows = -(-len(leaves) // columns) or 1
    figure = Figure(figsize=(4.2 * columns, 3.0 * rows + 0.4), layout="constrained")
    figure.suptitle(f"{report.verdict}: difference quotients in {report.precision}", fontsize=11)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, leaf in zip(grid, leaves, strict=False):
        _step_curve(axes, leaf)
    for axes in grid[len(leaves) :]:
        axes.set_visible(False)
    grid[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


def _step_curve(axes: Axes, leaf: LeafReport) -> None:
    curve = leaf.curve
    assert curve is not None
    error = np.abs(curve.slopes - leaf.claimed)
    shown = np.isfinite(error) & (error > 0)
    color = {"pass": _PASS, "fail": _FAIL, "inconclusive": _INCONCLUSIVE}[leaf.verdict]
    axes.loglog(curve.steps[shown], error[shown], color=color, marker=".", label="|D(t) - claimed|")
    axes.loglog(curve.steps, curve.rounding, color=_TRAINING, ls=":", label="rounding")
    apart = max(abs(leaf.measured - leaf.claimed), leaf.error / 10)
    axes.errorbar(
        curve.chosen,
        apart,
        yerr=[[min(leaf.error, 0.9 * apart)], [leaf.error]],
        color="black",
        marker="o",
        capsize=4,
        label="measured slope, error bar",
    )
    axes.set(xlabel="step, relative to the leaf's size", ylabel="error of the slope")
    axes.set_title(f"{leaf.path}: {leaf.verdict}", fontsize=9)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
