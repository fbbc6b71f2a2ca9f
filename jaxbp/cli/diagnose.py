"""``jaxbp diagnose``: train briefly, report the health of every layer, and draw how it went."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import jax
import numpy as np
from rich.console import Console
from tyro.conf import arg

from jaxbp.cli.files import PICTURES, new_file, next_free
from jaxbp.cli.interrupts import Interrupts
from jaxbp.cli.options import L2, Design, Epochs, Hidden, OptimizerOption, fixed
from jaxbp.cli.pictures import flow_by_depth, health_by_epoch, write
from jaxbp.cli.plan import SAMPLE, decide, fit_plan, health_after, initial, tell_of_columns
from jaxbp.diagnostics.flow import Distributions, Flow, distributions, gradient_flow
from jaxbp.diagnostics.health import sample
from jaxbp.diagnostics.report import layer_report
from jaxbp.text import Table, align, counted
from jaxbp.training.records import Epoch


@dataclass(frozen=True)
class Diagnose(Design):
    """Train briefly and tell how every layer fares: vanishing, exploding, dead, saturated, healthy.

    DATA comes first: jaxbp diagnose digits --hidden 64 64 64 64 64 64 --activation sigmoid
    """

    hidden: Hidden = (64, 64, 64, 64)
    optimizer: OptimizerOption = "sgd"
    epochs: Epochs = 10
    l2: L2 = 0.0
    lecture: Annotated[
        bool,
        arg(
            help="instead, the lectures' experiment: how errors vanish with depth in untrained "
            "networks of every activation and initialisation; no data"
        ),
    ] = False
    output: Annotated[
        Path | None,
        arg(
            metavar="FILE",
            help="the picture, a new .png, .svg or .pdf",
            help_behavior_hint="(default: diagnosis-NUMBER.png, or gradient_flow-NUMBER.png, the "
            "next free)",
        ),
    ] = None
    schedule: str = fixed("constant")
    label_smoothing: float = fixed(0.0)
    class_weight: Literal["none"] = fixed("none")
    dropout: float = fixed(0.0)
    patience: int = fixed(0)
    gradient: str = fixed("backprop")
    compute_dtype: Literal["float32"] = fixed("float32")
    precision: Literal["auto"] = fixed("auto")
    stream: bool = fixed(False)
    epoch_rows: int = fixed(Design.epoch_rows)
    diagnostics: bool = fixed(True)


def run(options: Diagnose, console: Console) -> int:
    """Carry out the command; the exit status."""
    stem = "gradient_flow" if options.lecture else "diagnosis"
    path = options.output or next_free(stem, ".png")
    new_file("--output", path, PICTURES)
    if options.lecture:
        flows = gradient_flow(key=jax.random.key(options.seed))
        console.print(align(flow_table(flows), console.width), soft_wrap=True)
        write(flow_by_depth(flows), path)
        status = 0
    else:
        status = train_and_report(options, path, console)
    console.print(f"drawn in {path}", soft_wrap=True)
    return status


def train_and_report(options: Diagnose, path: Path, console: Console) -> int:
    """Train and watch; print the reports, draw the picture; the exit status."""
    with Interrupts(console) as interrupts:
        plan = decide(options)
        params = initial(plan)
        rows = sample(plan.to_fit, SAMPLE)
        at_start = layer_report(plan.model, params, rows)
        seen = [jitted_distributions(plan.model, params, rows)]

        def watch(epoch: Epoch) -> bool:
            seen.append(jitted_distributions(plan.model, epoch.params, rows))
            return bool(interrupts.asked)

        interrupts.begin()
        trained = fit_plan(plan, params, watch)
        ended = bool(interrupts.asked)
        interrupts.write("the picture is drawn")
        for note in plan.decisions.notes:
            console.print(f"note: {note}", soft_wrap=True)
        tell_of_columns(plan, console)
        console.print(_COLUMNS, end="\n\n")
        console.print("before training", at_start.text(console.width), sep="\n", soft_wrap=True)
        report, losses = at_start, trained.history.training_loss
        if len(losses):
            report = health_after(plan, trained.params, trained.history, len(losses))
            heading = f"\nafter {counted(len(losses), 'epoch')}, training loss {losses[-1]:.4g}"
            console.print(heading, report.text(console.width), sep="\n", soft_wrap=True)
        if ended:
            console.print(f"interrupted: training ended with epoch {len(seen) - 1}")
        end = "every layer is healthy" if report.ok else ""
        if trained.diverged is not None:
            end = (
                f"diverged in epoch {trained.diverged}: the loss or a parameter is no longer "
                "finite. Try a smaller --learning-rate"
            )
        console.print(end, soft_wrap=True)
        drawn = health_by_epoch(
            title=plan.title,
            seen=jax.tree.map(lambda *epochs: np.stack(epochs), *seen[: len(losses) + 1]),
            start=at_start,
            health=trained.history.health if len(losses) else None,
        )
        write(drawn, path)
    return interrupts.asked if trained.diverged is None else 1


_COLUMNS = (
    "‖δ‖ is the size of a layer's error, and ratio that over the next layer's; ∇W/W and ΔW/W are "
    "the sizes of the gradient and of the last update over the weights'; dead are the units whose "
    "slope is 0 on all rows, saturated those that are flat on most; output is the mean of h ± its "
    "standard deviation."
)

jitted_distributions: Callable[..., Distributions] = jax.jit(distributions, static_argnums=0)


def flow_table(flows: tuple[Flow, ...]) -> Table:
    """‖δ‖ of the first layer over that of the last, by network and depth."""
    depths = sorted({flow.depth for flow in flows})
    by_network = itertools.groupby(flows, key=lambda flow: (flow.activation, flow.scheme))
    rows = [
        (*network, *(f"{flow.relative[0]:.0e}" for flow in of_depth))
        for network, of_depth in by_network
    ]
    bound = ("slopes of ¼ alone", "", *(f"{0.25**depth:.0e}" for depth in depths))
    return Table(("activation", "scheme", *(f"{n} layers" for n in depths)), [*rows, bound])
