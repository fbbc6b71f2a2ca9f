"""``jaxbp train``: check the gradient, train, and leave a report and a run folder behind."""

import json
import math
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Annotated, Any, Literal

import jax
import jaxlib
import numpy as np
import optax
import rich.table
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from tyro.conf import arg

import jaxbp
from jaxbp.checking import central_difference, compare
from jaxbp.checkpoint import save
from jaxbp.cli.files import make_run_folder, new_folder
from jaxbp.cli.interrupts import Interrupts
from jaxbp.cli.options import Design, fixed
from jaxbp.cli.pictures import learning_curve
from jaxbp.cli.plan import Plan, decide, fit_plan, health_after, initial
from jaxbp.gradient import Batch, autodiff, backprop, objective
from jaxbp.model import MLP, Params
from jaxbp.text import plain
from jaxbp.training.fitting import Epoch, History
from jaxbp.training.metrics import Evaluation, evaluate

_TRUSTED = 1e-3  # float32 rounding stays far below, a wrong formula far above
_METRICS = {"accuracy": "accuracy", "r2": "R²"}  # how they are shown


@dataclass(frozen=True)
class Train(Design):
    """Train a multilayer perceptron by backpropagation, and keep it in a run folder.

    DATA comes first: jaxbp train wine --hidden 32 16 --epochs 100
    """

    scheme: Literal["auto"] = fixed("auto")
    bias: float = fixed(0.0)
    output: Annotated[
        Path | None,
        arg(
            metavar="FOLDER",
            help="the run folder, new or empty",
            help_behavior_hint="(default: the next free runs/DATA-NUMBER)",
        ),
    ] = None


@dataclass(frozen=True)
class Outcome:
    """The result of training."""

    params: Params
    history: History
    kept_epoch: int  # the one params are from
    seconds: float  # of training, compilation included
    samples_per_second: float  # after the first epoch, which compiles; validation included
    ended: str  # why before its time; empty if not
    diverged: bool


@dataclass(frozen=True)
class Summary:
    """A finished run: planned, checked, trained and measured."""

    plan: Plan
    gradient_check: dict[str, float]  # relative errors
    outcome: Outcome
    scores: dict[str, Evaluation]  # of train, validation and test

    def to_dict(self) -> dict[str, Any]:
        """All of the run that is worth knowing later, as JSON takes it."""
        plan, options, outcome = self.plan, self.plan.options, self.outcome
        scores: dict[str, float] = {}
        for part, evaluation in self.scores.items():
            scores[f"{part}_loss"] = evaluation.loss
            scores[f"{part}_{plan.metric}"] = evaluation.metric
        record: dict[str, Any] = plain(
            {
                "data": options.data,
                "rows": {part: len(batch.x) for part, batch in plan.parts.items()},
                "classes": plan.dataset.preparation.labels,
                "network": plan.model.sizes,
                "activation": options.activation,
                "head": plan.head,
                "parameters": plan.parameters,
                "optimizer": options.optimizer,
                "learning_rate": plan.learning_rate,
                "schedule": options.schedule,
                "batch_size": plan.batch_size,
                "l2": options.l2,
                "label_smoothing": plan.label_smoothing,
                "seed": options.seed,
                "patience": plan.patience,
                "gradient": options.gradient,
                "compute_dtype": options.compute_dtype,
                "precision": options.precision,
                "gradient_check": self.gradient_check,
                "epochs": len(outcome.history.training_loss),
                "kept_epoch": outcome.kept_epoch,
                "ended": outcome.ended or None,
                "seconds": round(outcome.seconds, 4),
                "samples_per_second": round(outcome.samples_per_second, 1),
                **scores,
                "device": jax.devices()[0].device_kind,
                "versions": {m.__name__: m.__version__ for m in (jaxbp, jax, jaxlib, optax, np)},
            }
        )
        return record


def run(options: Train, console: Console) -> int:
    """Train as the options say, report to the console and to the run folder; the exit status."""
    new_folder("--output", options.output)
    with Interrupts(console) as interrupts:
        plan = decide(options)
        interrupts.check()
        params = initial(plan)
        errors = cross_check(plan.model, params, plan.to_fit)
        console.print(
            f"gradient check: relative error {errors['jax_grad']:.0e} against jax.grad, "
            f"{errors['finite_differences']:.0e} against finite differences",
            soft_wrap=True,
        )
        if not max(errors.values()) < _TRUSTED:
            console.print("the hand-written gradient is not the gradient: nothing trained")
            return 1
        interrupts.check()
        folder = make_run_folder(options.output, options.data)
        outcome = train(plan, params, folder, console, interrupts)
        interrupts.ignore()  # what has been trained is now to be saved
        scores = {
            part: evaluate(plan.model, outcome.params, batch, precision=plan.precision)
            for part, batch in plan.parts.items()
        }
        summary = Summary(plan, errors, outcome, scores)
        write_run(folder, summary)
    console.print(facts_table(summary), scores_table(summary), sep="\n")
    if outcome.ended:
        console.print(outcome.ended, style="yellow")
    if options.diagnostics and outcome.kept_epoch:
        report = health_after(plan, outcome.params, outcome.history, outcome.kept_epoch)
        console.print(report.text(console.width), soft_wrap=True)
    console.print(f"saved in {folder}", soft_wrap=True)
    return 1 if outcome.diverged else 0


# Checking the gradient


def cross_check(model: MLP, params: Params, batch: Batch) -> dict[str, float]:
    """Measure the relative error of backprop on the first rows, in two ways.

    "jax_grad" is the error against jax.grad in the parameters' own dtype, "finite_differences" that
    against central differences in float64.
    """
    first = jax.tree.map(lambda array: np.asarray(array[:32]), batch)
    with jax.default_matmul_precision("highest"):
        by_autodiff = compare(*_both_gradients(model, params, first))
    directions = np.random.default_rng(0)  # drawn on the host: cheaper than to compile a generator
    with jax.enable_x64(True):
        exact = jax.tree.map(_in_float64, (params, first))
        along = jax.tree.map(lambda leaf: directions.normal(size=(8, *leaf.shape)), params)
        by_differences = compare(*_both_slopes(model, *exact, along))
    return {
        "jax_grad": by_autodiff.relative_error,
        "finite_differences": by_differences.relative_error,
    }


@partial(jax.jit, static_argnums=0)
def _both_gradients(model: MLP, params: Params, batch: Batch) -> tuple[Params, Params]:
    """The gradient by hand, and by jax.grad."""
    return backprop(model, params, batch)[1], autodiff(model, params, batch)[1]


@partial(jax.jit, static_argnums=0)
def _both_slopes(
    model: MLP, params: Params, batch: Batch, directions: Params
) -> tuple[jax.Array, jax.Array]:
    """The slope ⟨∇E, d⟩ along several directions d, by hand, and by differences."""
    _, grads = backprop(model, params, batch)

    def both(direction: Params) -> tuple[jax.Array, jax.Array]:
        unit = optax.tree.scale(1 / optax.tree.norm(direction), direction)
        measured = central_difference(lambda p: objective(model, p, batch), params, unit, 1e-5)
        return optax.tree.vdot(grads, unit), measured

    return jax.vmap(both)(directions)


def _in_float64(array: Any) -> np.ndarray:
    values: np.ndarray = np.asarray(array)
    return np.asarray(values, np.float64 if values.dtype.kind == "f" else None)


# Training


def train(
    plan: Plan, params: Params, folder: Path, console: Console, interrupts: Interrupts
) -> Outcome:
    """Fit with a progress bar, a line an epoch in metrics.jsonl, early stopping, and Ctrl-C.

    plan: all that was decided.
    params: to start from.
    folder: of the run; it has no metrics.jsonl yet.
    console: that shows the bar.
    interrupts: whether Ctrl-C was pressed.
    """
    bar = Progress(
        TextColumn("epoch {task.completed}/{task.total}", markup=False),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[live]}", markup=False),
        console=console,
    )
    with (folder / "metrics.jsonl").open("x") as metrics, bar:
        watch = _Watch(plan, params, bar, metrics, interrupts)
        trained = fit_plan(plan, params, watch, plan.parts["validation"])
    kept = watch.kept
    if trained.diverged is not None:
        if kept.number >= trained.diverged:  # its last steps broke it, as the next epoch told
            kept = Epoch(trained.diverged - 1, trained.params, math.nan, None)
        watch.ended = (
            f"diverged in epoch {trained.diverged}: the loss is no longer finite; kept the "
            f"parameters after epoch {kept.number}. Try a smaller --learning-rate"
        )
    timed = watch.seconds if len(watch.seconds) > 1 else [0.0, *watch.seconds]
    epochs, span = len(timed) - 1, timed[-1] - timed[0]
    return Outcome(
        params=kept.params,
        history=trained.history,
        kept_epoch=kept.number,
        seconds=time.perf_counter() - watch.started,
        samples_per_second=epochs * len(plan.to_fit.x) / span if epochs else 0.0,
        ended=watch.ended,
        diverged=trained.diverged is not None,
    )


class _Watch:
    """``on_epoch``: shows and records each epoch, and decides whether it was the last."""

    def __init__(
        self, plan: Plan, params: Params, bar: Progress, metrics: IO[str], interrupts: Interrupts
    ) -> None:
        self.bar, self.metrics, self.interrupts = bar, metrics, interrupts
        self.patience, self.metric = plan.patience, plan.metric
        self.task = bar.add_task("", total=plan.options.epochs, live="compiling")
        self.latest = self.best = Epoch(0, params, math.nan, None)
        self.best_loss = math.inf
        self.ended = ""
        self.started = time.perf_counter()
        self.seconds: list[float] = []  # when each epoch ended

    def __call__(self, epoch: Epoch) -> bool:
        validation = epoch.validation
        assert validation is not None
        self.seconds.append(time.perf_counter() - self.started)
        record: dict[str, Any] = {
            "epoch": epoch.number,
            "training_loss": epoch.training_loss,
            "validation_loss": validation.loss,
            f"validation_{self.metric}": validation.metric,
            "seconds": round(self.seconds[-1], 6),
        }
        if epoch.health is not None:
            record["layers"] = epoch.health._asdict()
        self.metrics.write(json.dumps(plain(record)) + "\n")
        self.metrics.flush()
        metric = f"{_METRICS[self.metric]} {validation.metric:.4f}"
        live = f"loss {epoch.training_loss:.4f}, validation {metric}"
        self.bar.update(self.task, completed=epoch.number, live=live)
        self.latest = epoch
        if validation.loss < self.best_loss:
            self.best, self.best_loss = epoch, validation.loss
        if self.interrupts.asked:
            self.ended = f"interrupted: training ended with epoch {epoch.number}"
        elif 0 < self.patience <= epoch.number - self.best.number:
            self.ended = (
                f"stopped early: the validation loss was best after epoch {self.best.number} "
                f"of {epoch.number}, and those parameters are kept"
            )
        return bool(self.ended)

    @property
    def kept(self) -> Epoch:
        """The latest epoch, or the best if patience asked for it."""
        return self.best if self.patience else self.latest


# Reporting


def write_run(folder: Path, summary: Summary) -> None:
    """Write model.safetensors, summary.json and learning_curve.png beside metrics.jsonl."""
    plan, outcome = summary.plan, summary.outcome
    save(folder / "model.safetensors", plan.model, outcome.params, plan.dataset.preparation)
    (folder / "summary.json").write_text(json.dumps(summary.to_dict(), indent=2) + "\n")
    if len(outcome.history.training_loss):
        learning_curve(
            folder / "learning_curve.png",
            outcome.history,
            metric=_METRICS[plan.metric],
            title=plan.title,
            training="training, smoothed labels" if plan.label_smoothing else "training",
        )


def facts_table(summary: Summary) -> rich.table.Table:
    """Tabulate data, network, epochs and time, a line each."""
    plan, options, outcome = summary.plan, summary.plan.options, summary.outcome
    rows = {part: len(batch.x) for part, batch in plan.parts.items()}
    labels = plan.dataset.preparation.labels
    task = "regression" if labels is None else f"{len(labels)} classes"
    mixed = "" if options.compute_dtype == "float32" else f", in {options.compute_dtype}"
    epochs = len(outcome.history.training_loss)
    table = rich.table.Table.grid(padding=(0, 2))
    for name, fact in {
        "data": f"{options.data}, {sum(rows.values())} rows "
        f"({rows['train']} train, {rows['validation']} validation, {rows['test']} test), {task}",
        "network": f"{plan.network}, {plan.head}",
        "parameters": f"{plan.parameters:,}",
        "epochs": f"{epochs} by {options.optimizer} and {options.gradient}{mixed}",
        "time": f"{outcome.seconds:.2f} s, {outcome.samples_per_second:,.0f} samples/s",
    }.items():
        table.add_row(name, fact)
    return table


def scores_table(summary: Summary) -> rich.table.Table:
    """Tabulate loss and accuracy or R² of the three parts."""
    table = rich.table.Table("", "loss", _METRICS[summary.plan.metric], box=box.SIMPLE_HEAD)
    for part, score in summary.scores.items():
        loss = f"{score.loss:.4f}" if abs(score.loss) < 1e4 else f"{score.loss:.3e}"
        table.add_row(part, loss, f"{score.metric:.4f}")
    return table
