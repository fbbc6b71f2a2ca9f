"""Pictures, by matplotlib and without a display."""

from collections.abc import Mapping, Sequence, Sized
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps, font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from jaxbp.checking import GradientReport, LeafReport
from jaxbp.cli.files import naming
from jaxbp.data.errors import scikit_learn
from jaxbp.diagnostics.flow import Distributions, Flow
from jaxbp.diagnostics.health import Health
from jaxbp.diagnostics.report import LayerReport
from jaxbp.text import cut, printable
from jaxbp.training.curves import LOG_FROM, TRAINING, VALIDATION, draw_curve, draw_losses
from jaxbp.training.records import History

_PASS, _FAIL, _INCONCLUSIVE = "#2e8b57", "#c0392b", "#c98a00"


def write(figure: Figure, path: str | Path) -> None:
    """Write a figure to a new file, whose suffix says of which kind."""
    with naming(path):
        figure.savefig(path, dpi=150)


def learning_curve(
    history: History,
    *,
    metric: str,
    title: str,
    training_metric: np.ndarray | None = None,
) -> Figure:
    """Draw loss and metric by epoch: is it still learning, and is it overfitting?

    history: of the run, at least one epoch.
    metric: name of the metric, "accuracy" or "R²".
    title: heading of the picture.
    training_metric: (epochs,) the metric on training rows; none unless given.
    """
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    figure.suptitle(_drawable(title), family=_fonts(), fontsize=11)
    losses, metrics = figure.subplots(1, 2)
    draw_losses(losses, history)
    for values, label, color in (
        (training_metric, "training", TRAINING),
        (history.metric, "validation", VALIDATION),
    ):
        if values is not None:
            draw_curve(metrics, np.arange(1, len(values) + 1), values, label, color)
    for axes, name in ((losses, "loss"), (metrics, metric)):
        axes.set(xlabel="epoch", ylabel=name)
        _grid_without_frame(axes)
        _whole_numbers(axes)
        axes.legend(frameon=False)
    return figure


def learning_curves(curves: Mapping[str, np.ndarray], *, metric: str) -> Figure:
    """Draw the validation loss and metric of several runs by epoch.

    curves: (2, epochs) loss and metric of each run, by its name; at most 20.
    metric: name of the metric.
    """
    figure = Figure(figsize=(8, 3.4 + 0.2 * -(-len(curves) // 3)), layout="constrained")
    losses, metrics = figure.subplots(1, 2)
    for number, (name, values) in enumerate(curves.items()):
        style = {"color": f"C{number % 10}", "linestyle": "-" if number < 10 else "--"}
        epochs = np.arange(1, values.shape[1] + 1)
        for axes, curve in zip((losses, metrics), values, strict=True):
            label = _drawable(cut(name, 30))
            axes.plot(epochs, curve, label=label, marker=_marker(epochs), **style)
    finite = np.concatenate([values[0][np.isfinite(values[0])] for values in curves.values()])
    if finite.size and 0 < LOG_FROM * finite.min() < finite.max():
        losses.set_yscale("log")
    for axes, name in ((losses, "validation loss"), (metrics, f"validation {metric}")):
        axes.set(xlabel="epoch", ylabel=name)
        _grid_without_frame(axes)
        _whole_numbers(axes)
    lines = losses.get_lines()
    labels = [str(line.get_label()) for line in lines]
    fonts = {"family": list(_fonts()), "size": 8}
    figure.legend(lines, labels, loc="outside lower center", ncols=3, frameon=False, prop=fonts)
    return figure


def confusion_matrix(matrix: list[list[int]], labels: Sequence[str], *, title: str) -> Figure:
    """Draw how many rows of each class are taken for each.

    matrix: (K, K) rows by class and by decision.
    labels: names of the classes.
    title: heading of the picture.
    """
    size = 2.4 + 0.5 * len(labels)
    figure = Figure(figsize=(size + 1.2, size), layout="constrained")
    axes = figure.subplots()
    names = _drawable_names(labels, 20)
    display = scikit_learn("metrics").ConfusionMatrixDisplay(np.array(matrix), display_labels=names)
    turned = "vertical" if max(map(len, names)) > 4 else "horizontal"
    display.plot(ax=axes, cmap="Blues", colorbar=False, xticks_rotation=turned)
    axes.set(xlabel="taken for", ylabel="class")
    for text in (*axes.get_xticklabels(), *axes.get_yticklabels()):
        text.set_fontfamily(_fonts())
    figure.suptitle(_drawable(title), family=_fonts(), fontsize=10)
    return figure


_MOST_FEATURES = 20  # that the picture of importance has


def importance(names: Sequence[str], drops: np.ndarray, *, metric: str, title: str) -> Figure:
    """Draw how much a metric falls where a column is permuted: the largest falls first.

    names: of the columns.
    drops: (columns, repeats) by how much the metric fell each time.
    metric: its name, "accuracy" or "R²".
    title: heading of the picture.
    """
    mean = drops.mean(axis=1)
    shown = np.argsort(-mean, kind="stable")[:_MOST_FEATURES][::-1]
    figure = Figure(figsize=(7, 1.3 + 0.3 * len(shown)), layout="constrained")
    axes = figure.subplots()
    axes.barh(range(len(shown)), mean[shown], xerr=drops[shown].std(axis=1), color=VALIDATION)
    drawn = _drawable_names(names, 30)
    axes.set_yticks(range(len(shown)), [drawn[each] for each in shown], family=_fonts())
    left_out = len(names) - len(shown)
    of_all = f" (the first {len(shown)} of {len(names)} columns)" if left_out else ""
    axes.set(xlabel=f"{metric} lost on test rows where the column is permuted{of_all}")
    _grid_without_frame(axes)
    figure.suptitle(_drawable(title), family=_fonts(), fontsize=10)
    return figure


_MOST_POINTS = 2000  # of a picture of residuals: more would hide each other


def residuals(names: Sequence[str], target: np.ndarray, found: np.ndarray) -> Figure:
    """Draw predictions beside the targets that they are for, and how the residuals, target minus
    prediction, are distributed; a line of pictures for each quantity.

    names: of the quantities.
    target: (N, K) in their units; of more than 2000 rows, evenly spaced ones are drawn.
    found: (N, K) the predictions.
    """
    figure = Figure(figsize=(8, 3 * len(names)), layout="constrained")
    grid = figure.subplots(len(names), 2, squeeze=False)
    every = -(-len(target) // _MOST_POINTS)
    for (beside, spread), name, t, y in zip(grid, names, target.T, found.T, strict=True):
        beside.plot(t[::every], y[::every], ".", color=VALIDATION, alpha=0.5, markersize=4)
        ends = [min(t.min(), y.min()), max(t.max(), y.max())]
        beside.plot(ends, ends, color="black", ls=":", lw=1)
        beside.set(xlabel="target", ylabel=_drawable(cut(name, 30)))
        spread.hist(t - y, bins=30, color=VALIDATION)
        spread.axvline(0, color="black", ls=":", lw=1)
        spread.set(xlabel="target - prediction", ylabel="rows")
        for axes in (beside, spread):
            _grid_without_frame(axes)
            axes.xaxis.label.set_family(_fonts())
            axes.yaxis.label.set_family(_fonts())
    return figure


def health_of_layers(health: Health) -> Figure:
    """Draw by epoch, for each layer, ‖δ‖, ‖ΔW‖ / ‖W‖, and the shares of dead and saturated units.

    Each field of health is (epochs, L).
    """
    figure = Figure(figsize=(8, 5.6), layout="constrained")
    grid = figure.subplots(2, 2)
    numbers = np.arange(1, len(health.delta) + 1)
    parts = (health.delta, health.update_to_weight, health.dead, health.saturated)
    names = ("‖δ‖", "‖ΔW‖ / ‖W‖", "dead units, %", "saturated units, %")
    for axes, values, name in zip(grid.ravel(), map(np.asarray, parts), names, strict=True):
        layers, is_share = values.shape[1], "%" in name
        for layer in range(layers):
            curve = 100 * values[:, layer] if is_share else values[:, layer]
            color = _LAYERS(0.3 + 0.45 * layer / max(1, layers - 1))  # in light and dark themes
            label, marker = f"layer {layer + 1}", _marker(numbers)
            axes.plot(numbers, curve, color=color, marker=marker, label=label)
        axes.set(xlabel="epoch", ylabel=name)
        if is_share:
            axes.set_ylim(-4, 104)
        elif (values > 0).any():
            axes.set_yscale("log")
        _grid_without_frame(axes)
        _whole_numbers(axes)
    grid[0, 0].legend(frameon=False, fontsize=8, ncols=-(-health.delta.shape[1] // 8))
    return figure


def step_curves(report: GradientReport) -> Figure:
    """Draw how far each leaf's difference quotient is from the claimed slope, by step.

    The curve is a V where the claim is right, and has a floor that does not fall where it is wrong.

    The rounding in f rises to the left, and the remainder of the quotient to the right; a mark with
    an error bar stands at the step that gave the measured slope.
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
    return figure


def _step_curve(axes: Axes, leaf: LeafReport) -> None:
    curve = leaf.curve
    assert curve is not None
    error = np.abs(curve.slopes - leaf.claimed)
    shown = np.isfinite(error) & (error > 0)
    color = {"pass": _PASS, "fail": _FAIL, "inconclusive": _INCONCLUSIVE}[leaf.verdict]
    axes.loglog(curve.steps[shown], error[shown], color=color, marker=".", label="|D(t) - claimed|")
    axes.loglog(curve.steps, curve.rounding, color=TRAINING, ls=":", label="rounding")
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
    title = _drawable(f"{leaf.path}: {leaf.verdict}")
    axes.set_title(title, family=_fonts(), fontsize=9)
    _grid_without_frame(axes)


# The health of layers

_MOST_SHOWN = 6  # layers whose distributions are drawn, when a network has more
_LAYERS = colormaps["viridis"]


def health_by_epoch(
    *,
    title: str,
    seen: Distributions,
    start: LayerReport,
    health: Health | None,
) -> Figure:
    """Draw how every layer fared in training, from the start on (epoch 0).

    Above, for up to six layers spread over the depth, how their outputs h and their errors |δ| are
    distributed: the median and the middle 50 and 90 %.  Below, the shares of dead and of saturated
    units by epoch, and the gradient flow: ‖δ‖ by layer relative to the last, before and after,
    beside the (¼)ᵏ that is left where all slopes are a sigmoid's steepest.

    title: heading of the picture.
    seen: the distributions before training and after each epoch, each field (E + 1, L, 5).
    start: the report on the layers before training.
    health: that after each epoch, each field (E, L); None without a finished epoch.
    """
    layers = len(start.layers)
    shown = np.unique(np.linspace(0, layers - 1, min(layers, _MOST_SHOWN)).round().astype(int))
    figure = Figure(figsize=(max(8.0, 1.9 * len(shown)), 8.2), layout="constrained")
    figure.suptitle(_drawable(title), family=_fonts(), fontsize=12)
    above, below = np.asarray(figure.subfigures(2, 1, height_ratios=[1.5, 1]))
    grid = above.subplots(2, len(shown), sharex=True, squeeze=False)
    for row, last in ((0, -1), (1, None)):  # the logits are of another size than hidden outputs
        for axes in grid[row, 1:last]:
            axes.sharey(grid[row, 0])
            axes.tick_params(labelleft=False)
    for column, layer in enumerate(shown):
        name = "output layer" if layer == layers - 1 else f"layer {layer + 1}"
        grid[0, column].set_title(name, fontsize=10, color=_layer_color(layer, layers))
        lost = np.isnan(seen.output[:, layer]).all()
        for axes, quantiles in zip(grid[:, column], seen, strict=True):
            nothing = "not finite" if lost else "all 0"
            _bands(axes, np.asarray(quantiles)[:, layer], _layer_color(layer, layers), nothing)
        grid[1, column].set_xlabel("epoch")
    grid[1, 0].set_yscale("log" if np.nanmax(np.asarray(seen.delta), initial=0) > 0 else "linear")
    grid[0, 0].set_ylabel("output h")
    grid[1, 0].set_ylabel("|δ|, where not 0")
    shares, flow = below.subplots(1, 2)
    _shares(shares, start, health)
    _flow_before_and_after(flow, start, health)
    for axes in (*grid.ravel(), shares, flow):
        _grid_without_frame(axes)
        _whole_numbers(axes)
    return figure


def _bands(axes: Axes, quantiles: np.ndarray, color: Any, nothing: str) -> None:
    """Draw the median, the middle half and the middle 90 % by epoch; quantiles (E + 1, 5).

    nothing is the text where all are NaN.
    """
    epochs = np.arange(len(quantiles))
    if np.isnan(quantiles).all():
        axes.text(0.5, 0.5, nothing, transform=axes.transAxes, ha="center", color=color)
    lowest, low, median, high, highest = quantiles.T
    axes.fill_between(epochs, lowest, highest, color=color, alpha=0.2, lw=0)
    axes.fill_between(epochs, low, high, color=color, alpha=0.4, lw=0)
    axes.plot(epochs, median, color=color, marker=_marker(epochs))


def _shares(axes: Axes, start: LayerReport, health: Health | None) -> None:
    layers = len(start.layers)
    for layer, row in enumerate(start.layers):
        color = _layer_color(layer, layers)
        for first, share, style in ((row.dead, "dead", "-"), (row.saturated, "saturated", "--")):
            later = [] if health is None else getattr(health, share)[:, layer]
            values = 100 * np.array([first, *later])
            axes.plot(values, color=color, ls=style, marker=_marker(values))
    axes.plot([], [], color="black", ls="-", label="dead")
    axes.plot([], [], color="black", ls="--", label="saturated")
    axes.set(xlabel="epoch", ylabel="units, %", ylim=(-4, 104), title="dead and saturated units")
    axes.legend(frameon=False, fontsize=8, title="colour: the layer", title_fontsize=8)


def _flow_before_and_after(axes: Axes, start: LayerReport, health: Health | None) -> None:
    before = np.array([row.delta for row in start.layers])
    numbers = np.arange(1, len(before) + 1)
    axes.plot(numbers, 0.25 ** (len(before) - numbers), color="black", ls=":", label="(¼)ᵏ")
    curves = [("before training", TRAINING, before)]
    curves += [] if health is None else [("after", VALIDATION, np.asarray(health.delta[-1]))]
    for label, color, delta in curves:
        none = delta == 0
        relative = np.where(none, np.nan, delta) / (delta[-1] or 1.0)
        axes.plot(numbers, relative, color=color, marker="o", label=label)
        foot = axes.get_xaxis_transform()
        axes.plot(numbers[none], 0 * numbers[none] + 0.02, "v", color=color, transform=foot)
    axes.set(xlabel="layer", ylabel="‖δ‖ / ‖δ‖ of the last layer", title="gradient flow")
    axes.set_yscale("log")
    axes.legend(frameon=False, fontsize=8)


def flow_by_depth(flows: tuple[Flow, ...]) -> Figure:
    """Draw how much of the error is left, layer by layer below the output, beside (¼)ᵏ.

    The networks are the deepest of these flows; each initialisation has a panel, and each
    activation a line.
    """
    schemes = list(dict.fromkeys(flow.scheme for flow in flows))
    depths = sorted({flow.depth for flow in flows})
    figure = Figure(figsize=(4.2 * len(schemes), 4.4), layout="constrained")
    figure.suptitle("What is left of the error k layers below the output", fontsize=13)
    panels = figure.subplots(1, len(schemes), sharey=True, squeeze=False)[0]
    for axes, scheme in zip(panels, schemes, strict=True):
        below = np.arange(depths[-1] + 1)
        axes.plot(below, 0.25**below, color="black", ls=":", label="(¼)ᵏ, by slopes of ¼ alone")
        for flow in flows:
            if (flow.scheme, flow.depth) == (scheme, depths[-1]):
                on_relu = flow.activation == "leaky_relu"  # whose line is all but ReLU's
                style = "--" if on_relu else "-"
                axes.plot(below, flow.relative[::-1], label=flow.activation, ls=style, lw=2)
        axes.set(xlabel="k, layers below the output", title=f"{scheme} initialisation")
        axes.set_yscale("log")
        _grid_without_frame(axes)
    panels[0].set_ylabel("‖δ‖ / ‖δ‖ of the output")
    panels[0].legend(frameon=False, fontsize=9)
    return figure


def _layer_color(layer: int, layers: int) -> Any:
    return _LAYERS(0.1 + 0.8 * layer / max(1, layers - 1))


def _grid_without_frame(axes: Axes) -> None:
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _whole_numbers(axes: Axes) -> None:
    """Mark the x axis at whole numbers alone: epochs, layers."""
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))


#: what has the characters that matplotlib's own font lacks, on Linux, Windows and macOS
_WIDER = (
    *("Noto Sans CJK JP", "Noto Sans CJK SC", "Source Han Sans SC", "WenQuanYi Zen Hei"),
    *("Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "Arial Unicode MS", "Hiragino Sans"),
)


@cache
def _fonts() -> tuple[str, ...]:
    """matplotlib's own font, and those of ``_WIDER`` that are installed."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return ("DejaVu Sans", *(name for name in _WIDER if name in installed))


def _drawable(text: str) -> str:
    """The text in one line, with a question mark for each character that no font has, and with
    dollar signs that do not begin a formula."""
    paths = map(font_manager.findfont, _fonts())
    known = set().union(*(font_manager.get_font(path).get_charmap() for path in paths))
    drawn = "".join(character if ord(character) in known else "?" for character in printable(text))
    return drawn.replace("$", r"\$")


def _drawable_names(names: Sequence[str], length: int) -> list[str]:
    """Names of classes or columns cut to a length; they are numbered in their order where some
    cannot be drawn, so that they can be told apart."""
    short = [cut(name, length) for name in names]
    drawn = list(map(_drawable, short))
    if all(each == name.replace("$", r"\$") for each, name in zip(drawn, short, strict=True)):
        return drawn
    return [f"{number}: {each}" for number, each in enumerate(drawn, 1)]


def _marker(values: Sized) -> str:
    """A point for a single value, which would be an invisible line."""
    return "o" if len(values) == 1 else ""
