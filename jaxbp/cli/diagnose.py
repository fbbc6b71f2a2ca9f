"""``jaxbp diagnose``: train briefly, tell the health of every layer, and draw how it went."""

import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import numpy as np
from rich.console import Console
from tyro.conf import arg

from jaxbp.cli.options import (
    L2,
    Activations,
    BatchSize,
    DataName,
    HeadChoice,
    Hidden,
    LearningRate,
    OptimizerChoice,
    OptionError,
    Plan,
    Seed,
    Target,
    Train,
    check_output,
    make_plan,
    restless,
)
from jaxbp.cli.pictures import diagnosis, flow_by_depth
from jaxbp.cli.train import Interrupts, describe_network
from jaxbp.diagnostics.flow import Distributions, Flow, distributions, gradient_flow
from jaxbp.diagnostics.report import judge, layer_report, unfelt_errors
from jaxbp.gradient import Batch
from jaxbp.model import Params
from jaxbp.text import Table, align
from jaxbp.training.epoch import jitted_init
from jaxbp.training.fitting import Epoch, History, NonFiniteLossError, fit

_SAMPLE = 512  # rows that distributions are taken over
_PICTURES = (".png", ".svg", ".pdf")


@dataclass(frozen=True)
class Diagnose:
    """Train briefly and tell how every layer fares: vanishing, exploding, dead, saturated, healthy.

    DATA comes first: jaxbp diagnose digits --hidden 64 64 64 64 64 64 --activation sigmoid
    """

    data: DataName = "digits"
    target: Target = None
    hidden: Hidden = (64, 64, 64, 64)
    activation: Activations = ("relu",)
    head: HeadChoice = "auto"
    scheme: Annotated[
        Literal["auto", "he", "glorot", "lecun"],
        arg(
            help="of the initial weights",
            help_behavior_hint="(default: auto, which is he for the ReLU family, glorot for tanh "
            "and sigmoid, lecun otherwise)",
        ),
    ] = "auto"
    bias: Annotated[float, arg(help="every bias to start from; 0.1 keeps ReLUs alive")] = 0.0
    optimizer: OptimizerChoice = "sgd"
    learning_rate: LearningRate = "auto"
    batch_size: BatchSize = "auto"
    epochs: Annotated[int, arg(metavar="N", help="passes over the training rows")] = 10
    l2: L2 = 0.0
    seed: Seed = 0
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


def run(options: Diagnose, console: Console) -> int:
    """Carry out the command; the exit status."""
    _check_picture(options.output)
    if not math.isfinite(options.bias):
        raise OptionError(f"--bias: got {options.bias}, expected a finite number")
    if options.lecture:
        flows = gradient_flow(key=jax.random.key(options.seed))
        console.print(align(flow_table(flows)), soft_wrap=True)
        path = options.output or _free("gradient_flow")
        flow_by_depth(path, flows)
        status = 0
    else:
        path = options.output or _free("diagnosis")
        status = diagnose(options, path, console)
    console.print(f"drawn in {path}", soft_wrap=True)
    return status


def diagnose(options: Diagnose, path: Path, console: Console) -> int:
    """Train and watch; print the reports, draw the picture; 1 where training diverged."""
    with Interrupts(console) as interrupts:
        plan = make_plan(_as_train(options))
        scheme = None if options.scheme == "auto" else options.scheme
        params = jitted_init(
            jax.random.key(options.seed), plan.model, scheme=scheme, bias=options.bias
        )
        sample = _sample(plan.to_fit)
        at_start = layer_report(plan.model, params, sample)
        seen = [_distributions(plan, params, sample)]

        def watch(epoch: Epoch) -> bool:
            seen.append(_distributions(plan, epoch.params, sample))
            return interrupts.asked

        params, history, ended = _trained(options, plan, params, watch)
        interrupts.ignore()
        console.print("before training", at_start.text(console.width), sep="\n", soft_wrap=True)
        report = at_start
        if history.health:
            health = jax.tree.map(lambda values: values[-1], history.health)
            unfelt = unfelt_errors(plan.model, params, sample)
            report = judge(plan.model, health, unfelt=unfelt, restless=restless(options))
            epochs = len(history.training_loss)
            heading = f"\nafter {epochs} epochs, training loss {history.training_loss[-1]:.4g}"
            console.print(heading, report.text(console.width), sep="\n", soft_wrap=True)
        if interrupts.asked:
            console.print(f"interrupted: training ended with epoch {len(seen) - 1}")
        console.print(ended or ("every layer is healthy" if report.ok else ""), soft_wrap=True)
        units = " ".join(options.activation)
        network = describe_network({"network": plan.model.sizes, "activation": [units]})
        diagnosis(
            path,
            title=f"{options.data}: {network}, {options.optimizer}",
            seen=jax.tree.map(lambda *epochs: np.stack(epochs), *seen),
            start=at_start,
            health=history.health,
        )
    return 1 if ended else 0


def _trained(
    options: Diagnose, plan: Plan, params: Params, watch: Any
) -> tuple[Params, History, str]:
    """The last finite parameters, the record, and how training ended if before its time."""
    try:
        params, history = fit(
            plan.model,
            plan.to_fit,
            optimizer=plan.optimizer,
            epochs=options.epochs,
            batch_size=plan.batch_size,
            key=jax.random.key(options.seed),
            params=params,
            diagnostics=True,
            on_epoch=watch,
        )
    except NonFiniteLossError as error:
        why = f"diverged in epoch {error.epoch}: the loss or a parameter is no longer finite"
        return error.params, error.history, f"{why}. Try a smaller --learning-rate"
    return params, history, ""


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


def _as_train(options: Diagnose) -> Train:
    """The same request as ``jaxbp train`` would take it."""
    shared = ("data", "target", "hidden", "activation", "head", "optimizer", "learning_rate")
    more = ("batch_size", "epochs", "l2", "seed")
    chosen: dict[str, Any] = {name: getattr(options, name) for name in (*shared, *more)}
    return Train(**chosen, schedule="constant", label_smoothing=0.0)


def _sample(batch: Batch) -> Batch:
    every = -(-len(batch.x) // _SAMPLE)
    return Batch(batch.x[::every], batch.target[::every])


def _distributions(plan: Plan, params: Params, sample: Batch) -> Distributions:
    seen: Distributions = _jitted_distributions(plan.model, params, sample)
    return seen


_jitted_distributions = jax.jit(distributions, static_argnums=0)


def _check_picture(path: Path | None) -> None:
    check_output(path)
    if path and path.suffix not in _PICTURES:
        raise OptionError(f"--output: got {path}, expected a name in {', '.join(_PICTURES)}")
    if path and not path.parent.is_dir():
        raise OptionError(f"--output: {path.parent} is no folder")


def _free(stem: str) -> Path:
    """A name that is not in use."""
    names = (Path(f"{stem}-{number}.png") for number in itertools.count(1))
    return next(name for name in names if not name.exists())
