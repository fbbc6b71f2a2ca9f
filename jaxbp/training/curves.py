"""The curves of a history, as a table of pandas and as a picture of matplotlib."""

import importlib
from typing import Any

import numpy as np

TRAINING, VALIDATION = "#8c8c8c", "#1f5fa8"  # their colours
LOG_FROM = 30  # a loss that falls further than this is drawn by its logarithm
_CURVES = ("training_loss", "validation_loss", "metric")


def table_of(history: Any) -> Any:
    """A ``pandas.DataFrame`` with a row an epoch; of many networks, a row a network and epoch.

    Raises ModuleNotFoundError where pandas is not installed.
    """
    pandas = _imported("pandas", "history.to_frame() needs pandas: pip install pandas")
    epochs, shape = _epochs(history), history.training_loss.shape
    columns = {"epoch": np.broadcast_to(epochs, shape).ravel()}
    if len(shape) == 2:
        columns = {"network": np.repeat(np.arange(shape[0]), shape[1])} | columns
    curves = {name: getattr(history, name) for name in _CURVES}
    columns |= {name: curve.ravel() for name, curve in curves.items() if curve is not None}
    return pandas.DataFrame(columns)


def plotted(history: Any, axes: Any) -> Any:
    """Draw losses by epoch, and the metric on an axis of its own at the right -> the Axes.

    axes are matplotlib's to draw on; a new figure's where they are None.  Raises
    ModuleNotFoundError where matplotlib is not installed.
    """
    if axes is None:
        message = "history.plot() needs matplotlib: pip install matplotlib"
        axes = _imported("matplotlib.pyplot", message).figure(layout="constrained").gca()
    draw_losses(axes, history)
    axes.set(xlabel="epoch", ylabel="loss")
    lines = [*axes.get_lines()]
    if history.metric is not None:
        right = axes.twinx()
        right.set_ylabel("metric")
        draw_curve(right, _epochs(history), history.metric, "metric", VALIDATION, linestyle=":")
        lines += right.get_lines()
    labelled = [line for line in lines if not line.get_label().startswith("_")]
    labels = [line.get_label() for line in labelled]
    axes.legend(labelled, labels, frameon=False, loc="center right")  # losses fall, metrics rise
    return axes


def draw_losses(axes: Any, history: Any) -> None:
    """Draw training and validation loss, by their logarithm where one falls far."""
    epochs, losses = _epochs(history), history.training_loss
    draw_curve(axes, epochs, losses, "training", TRAINING)
    if history.validation_loss is not None:
        draw_curve(axes, epochs, history.validation_loss, "validation", VALIDATION)
    finite = losses[np.isfinite(losses)]
    if finite.size and 0 < LOG_FROM * finite.min() < finite.max():
        axes.set_yscale("log")
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)


def draw_curve(
    axes: Any, epochs: np.ndarray, values: np.ndarray, label: str, color: str, linestyle: str = "-"
) -> None:
    """Draw a curve by epoch, or a thin one for each of many networks.

    axes: to draw on.
    epochs: (epochs,) numbers.
    values: (epochs,) or (N, epochs).
    label: of the curve.
    color, linestyle: of matplotlib's; a solid line unless given.
    """
    marker = "o" if len(epochs) == 1 else ""  # a single value would be an invisible line
    width = 0.7 if values.ndim == 2 else None
    style = {"marker": marker, "color": color, "linestyle": linestyle, "linewidth": width}
    first, *others = axes.plot(epochs, values.T, **style)
    first.set_label(label)
    for line in others:
        line.set_label("_")


def _epochs(history: Any) -> np.ndarray:
    """The numbers of the epochs, from 1, or from where a run was resumed."""
    count = history.training_loss.shape[-1]
    done = count if history.run is None else int(np.max(history.run.epochs))
    return np.arange(done - count + 1, done + 1)


def _imported(module: str, message: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(message, name=module) from error
