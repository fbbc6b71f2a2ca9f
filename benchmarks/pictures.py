"""The pictures of the committed results.

    python -m benchmarks.pictures [DEVICE]

Draws docs/manual_vs_auto.png, peers.png, efficiency.png and differentiation.png from
benchmarks/results/NAME-DEVICE.json, by default those of the CPU; of another device, if there is
such a result, docs/manual_vs_auto-DEVICE.png and so on.
"""

import argparse
import json
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks import limit, manual_vs_auto, protocol, scaling, training
from benchmarks.peers import OURS

ROOT = Path(__file__).parent.parent
BLUE, RED, GREY = "#1f5fa8", "#c0392b", "#8c8c8c"


def manual(path, result):
    """Time and memory of backprop over a jax.nn network's, by activation, on a wide batch."""
    wide = [cell for cell in result["cells"] if cell["depth"] == 8 and cell["batch"] == 2048]
    cells = {cell["activation"]: cell for cell in wide if cell["width"] == 256}
    names = list(cells)
    figure = Figure(figsize=(8, 3), layout="constrained")
    figure.suptitle("backprop over jax.grad of a jax.nn network: 8 × 256, batch 2048", fontsize=11)
    other = manual_vs_auto.NN
    ratios = {
        "time": [protocol.ratio(cells[name][other]) for name in names],
        "temporary memory": [
            manual_vs_auto.over(cells[name], other, "temporary_mib") for name in names
        ],
    }
    both = figure.subplots(1, 2, sharey=True)
    for axes, (measure, values) in zip(both, ratios.items(), strict=True):
        bars = axes.barh(names, values, color=BLUE)
        axes.bar_label(bars, fmt="%.2f ", fontsize=8, label_type="center", color="white")
        axes.axvline(1, color=GREY, lw=0.8, ls="--")
        axes.set(xlabel=f"{measure}, theirs = 1", xlim=(0, 1.2))
        quiet(axes)
    axes.invert_yaxis()  # of both, as they share it
    figure.savefig(path, dpi=150)


def peers(path, result):
    """Samples a second of every contender, a panel for each network."""
    cells = result["cells"]
    figure = Figure(figsize=(3.4 * len(cells), 2.8), layout="constrained")
    figure.suptitle("Samples a second in training, more is better", fontsize=11)
    names = training.named(cells)
    for axes, cell in zip(figure.subplots(1, len(cells), sharey=True), cells, strict=True):
        found = cell["contenders"]  # one that failed or was left out has none
        rates = [found[name]["samples_per_second"] if name in found else 0 for name in names]
        colors = [BLUE if name == OURS else GREY for name in names]
        bars = axes.barh(names, rates, color=colors)
        labels = [f" {rate:,.0f}" if rate else " –" for rate in rates]
        axes.bar_label(bars, labels, fontsize=8)
        axes.set(xlim=(0, 1.3 * max(rates)), xticks=[])
        axes.set_title(cell["network"], fontsize=9)
        axes.spines["bottom"].set_visible(False)
        quiet(axes)
    axes.invert_yaxis()  # of all, as they share it
    figure.savefig(path, dpi=150)


def efficiency(path, result):
    """The floor over the step, by width."""
    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    cells = [cell for cell in limit.in_order(result["cells"]) if cell["batch"] == 512]
    for mode in result["peaks"]:
        of_mode = {cell["width"]: limit.efficiency(cell) for cell in cells if cell["mode"] == mode}
        axes.plot(of_mode.keys(), of_mode.values(), marker="o", label=mode)
    widths = sorted({cell["width"] for cell in cells})
    axes.axhline(1, color=GREY, lw=0.8)
    axes.set_xscale("log", base=2)
    axes.set(
        xlabel="width of three layers, batch 512",
        ylabel="share of a step",
        ylim=(0, 1.1),
        title="The matrix products' share of a training step",
    )
    axes.title.set_fontsize(11)
    axes.set_xticks(widths, [str(width) for width in widths])
    axes.minorticks_off()
    axes.legend(frameon=False, fontsize=9)
    quiet(axes)
    figure.savefig(path, dpi=150)


def differentiation(path, result):
    """Seconds of a gradient by the number of weights, numerically and by backpropagation."""
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    for name, title, color in (
        ("differences", "central differences", RED),
        ("backprop", "backpropagation", BLUE),
    ):
        weights, seconds = scaling.of_weights(result, name)
        label = f"{title}: W to the {scaling.exponent(weights, seconds):.1f}"
        axes.loglog(weights, seconds, marker="o", color=color, label=label)
    axes.set(xlabel="weights W", ylabel="seconds a gradient", title="The cost of a gradient")
    axes.title.set_fontsize(11)
    axes.legend(frameon=False, fontsize=9, loc="center right")
    quiet(axes)
    figure.savefig(path, dpi=150)


def quiet(axes):
    """Remove the upper and right line of the frame."""
    axes.spines[["top", "right"]].set_visible(False)


PICTURES = {  # name: (the benchmark, how to draw its result)
    "manual_vs_auto": ("manual_vs_auto", manual),
    "peers": ("training", peers),
    "efficiency": ("limit", efficiency),
    "differentiation": ("scaling", differentiation),
}


def draw(device, folder, results=ROOT / "benchmarks" / "results"):
    """Draw the pictures of a device's results into a folder."""
    of_device = "" if device == "cpu" else f"-{device}"
    for picture, (name, draw_result) in PICTURES.items():
        path = results / f"{name}-{device}.json"
        if path.exists():
            draw_result(folder / f"{picture}{of_device}.png", json.loads(path.read_text()))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("device", nargs="?", default="cpu", help="as in the results' names")
    draw(parser.parse_args().device, ROOT / "docs")


if __name__ == "__main__":
    main()
