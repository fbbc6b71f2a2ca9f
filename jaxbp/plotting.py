"""Pictures, by matplotlib and without a display."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxbp.training import History

_TRAINING, _VALIDATION = "#8c8c8c", "#1f5fa8"
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
