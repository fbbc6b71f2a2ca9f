"""``jaxbp train``: cross-check the gradient, train, and leave a report and a run folder behind."""

import json
import math
import os
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import IO, Any, NamedTuple

import jax
import jaxlib
import numpy as np
import optax
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

import jaxbp
from jaxbp.checking import central_difference, compare
from jaxbp.checkpoint import save
from jaxbp.cli.options import GRADIENTS, Plan, Train, make_folder, make_plan, restless
from jaxbp.cli.pictures import learning_curve
from jaxbp.diagnostics.report import judge, unfelt_errors
from jaxbp.gradient import Batch, autodiff, backprop, objective
from jaxbp.model import MLP, Params
from jaxbp.text import plain
from jaxbp.training.epoch import jitted_init
from jaxbp.training.fitting import Epoch, History, NonFiniteLossError, fit
from jaxbp.training.metrics import evaluate, metric_name

INTERRUPTED = 130  # the exit status that shells give an end by Ctrl-C
_TRUSTED = 1e-3  # float32 rounding stays far below, a wrong formula far above
_SHOWN = {"accuracy": "accuracy", "r2": "R²"}


class Outcome(NamedTuple):
    """What training came to."""

    params: Params
    history: History
    kept_epoch: int  # the one params are from
    seconds: float  # of training, compilation included
    samples_per_second: float  # after the first epoch, which compiles; validation included
    ended: str  # why before its time; empty if not
    diverged: bool = False


def run(options: Train, console: Console) -> int:
    """Train as told and report to the console and to the run folder; the exit status."""
    with Interrupts(console) as interrupts:
        plan = make_plan(options)
        interrupts.check()
        params = jitted_init(jax.random.key(options.seed), plan.model)
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
        folder = make_folder(options)
        outcome = train(options, plan, params, folder, console, interrupts)
        interrupts.ignore()  # what has been trained is now to be saved
        summary = summarize(options, plan, outcome, errors)
        write_run(folder, plan, outcome, summary)
    console.print(facts_table(summary), scores_table(summary), sep="\n")
    if outcome.ended:
        console.print(outcome.ended, style="yellow")
    if outcome.history.health and outcome.kept_epoch:
        kept = outcome.kept_epoch - 1
        health = jax.tree.map(lambda values: values[kept], outcome.history.health)
        sample = jax.tree.map(lambda array: array[:512], plan.to_fit)
        unfelt = unfelt_errors(plan.model, outcome.params, sample)
        report = judge(plan.model, health, unfelt=unfelt, restless=restless(options))
        console.print(report.text(console.width), soft_wrap=True)
    console.print(f"saved in {folder}", soft_wrap=True)
    return 1 if outcome.diverged else 0


class Interrupts:
    """Ctrl-C as a request: the first ends the run after the epoch, a second one at once.

    An exception in the midst of a compilation could bring down the interpreter, or be lost.  Where
    SIGINT is ignored from the start, as under nohup or in the background of a script, it stays so:
    whoever started the command there did not want the terminal's Ctrl-C to reach it.
    """

    def __init__(self, console: Console) -> None:
        self.console, self.asked = console, False
        self.usual: Any = None

    def __enter__(self) -> "Interrupts":
        in_main = threading.current_thread() is threading.main_thread()
        if in_main and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            self.usual = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        if self.usual is not None:
            signal.signal(signal.SIGINT, self.usual)

    def _ask(self, *_: object) -> None:
        if self.asked:
            sys.stdout.flush()
            os._exit(INTERRUPTED)
        self.asked = True
        self.console.print("ending after this epoch (Ctrl-C again: at once, without saving)")

    def check(self) -> None:
        """End the command here if that was asked for."""
        if self.asked:
            raise KeyboardInterrupt

    def ignore(self) -> None:
        """Let nothing come between the results and the disk."""
        if self.usual is not None:
            signal.signal(signal.SIGINT, signal.SIG_IGN)


def cross_check(model: MLP, params: Params, batch: Batch) -> dict[str, float]:
    """Relative errors of backprop on the first rows: against jax.grad in the parameters' own dtype,
    and against central differences in float64."""
    first = jax.tree.map(lambda array: np.asarray(array[:32]), batch)
    with jax.default_matmul_precision("highest"):
        by_autodiff = compare(*_both_gradients(model, params, first))
    directions = np.random.default_rng(0)  # drawn on the host: cheaper than to compile a generator
    with jax.enable_x64(True):
        exact = jax.tree.map(_to_float64, (params, first))
        along = jax.tree.map(lambda leaf: directions.normal(size=(8, *leaf.shape)), params)
        by_differences = compare(*_both_slopes(model, *exact, along))
    return {
        "jax_grad": by_autodiff.relative_error,
        "finite_differences": by_differences.relative_error,
    }


@partial(jax.jit, static_argnums=0)
def _both_gradients(model: MLP, params: Params, batch: Batch) -> tuple[Params, Params]:
    """By hand, and by jax.grad."""
    return backprop(model, params, batch)[1], autodiff(model, params, batch)[1]


@partial(jax.jit, static_argnums=0)
def _both_slopes(
    model: MLP, params: Params, batch: Batch, directions: Params
) -> tuple[jax.Array, jax.Array]:
    """⟨∇E, d⟩ along several directions d: by hand, and by differences."""
    _, grads = backprop(model, params, batch)

    def slopes(direction: Params) -> tuple[jax.Array, jax.Array]:
        unit = optax.tree.scale(1 / optax.tree.norm(direction), direction)
        measured = central_difference(lambda p: objective(model, p, batch), params, unit, 1e-5)
        return optax.tree.vdot(grads, unit), measured

    return jax.vmap(slopes)(directions)


def _to_float64(array: Any) -> np.ndarray:
    values: np.ndarray = np.asarray(array)
    return np.asarray(values, np.float64 if values.dtype.kind == "f" else None)


def train(
    options: Train,
    plan: Plan,
    params: Params,
    folder: Path,
    console: Console,
    interrupts: Interrupts,
) -> Outcome:
    """Fit with a progress bar, a line an epoch in metrics.jsonl, early stopping, and Ctrl-C."""
    bar = Progress(
        TextColumn("epoch {task.completed}/{task.total}", markup=False),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[live]}", markup=False),
        console=console,
    )
    with (folder / "metrics.jsonl").open("x") as metrics, bar:
        watch = _Watch(options, plan, params, bar, metrics, interrupts)
        try:
            _, history = fit(
                plan.model,
                plan.to_fit,
                optimizer=plan.optimizer,
                epochs=options.epochs,
                batch_size=plan.batch_size,
                key=jax.random.key(options.seed),
                params=params,
                validation=plan.parts["validation"],
                gradient=GRADIENTS[options.gradient],
                compute_dtype=None if options.compute_dtype == "float32" else options.compute_dtype,
                diagnostics=options.diagnostics,
                on_epoch=watch,
            )
        except NonFiniteLossError as error:
            watch.ended = (
                f"diverged in epoch {error.epoch}: the loss is no longer finite; kept the "
                f"parameters after epoch {watch.kept.number}. Try a smaller --learning-rate"
            )
            return watch.outcome(error.history, diverged=True)
    return watch.outcome(history)


class _Watch:
    """``on_epoch``: shows and records each epoch, and decides whether it was the last."""

    def __init__(
        self,
        options: Train,
        plan: Plan,
        params: Params,
        bar: Progress,
        metrics: IO[str],
        interrupts: Interrupts,
    ) -> None:
        self.bar, self.metrics, self.interrupts = bar, metrics, interrupts
        self.patience = plan.patience
        self.metric = metric_name(plan.model.head)
        self.rows = len(plan.parts["train"].x)
        self.task = bar.add_task("", total=options.epochs, live="compiling")
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
        if epoch.health:
            record["layers"] = epoch.health._asdict()
        self.metrics.write(json.dumps(plain(record)) + "\n")
        self.metrics.flush()
        metric = _SHOWN[self.metric]
        live = f"loss {epoch.training_loss:.4f}, validation {metric} {validation.metric:.4f}"
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

    def outcome(self, history: History, *, diverged: bool = False) -> Outcome:
        """What training came to."""
        timed = self.seconds if len(self.seconds) > 1 else [0.0, *self.seconds]
        epochs, span = len(timed) - 1, timed[-1] - timed[0]
        return Outcome(
            params=self.kept.params,
            history=history,
            kept_epoch=self.kept.number,
            seconds=time.perf_counter() - self.started,
            samples_per_second=epochs * self.rows / span if epochs else 0.0,
            ended=self.ended,
            diverged=diverged,
        )


# Reporting


def summarize(
    options: Train, plan: Plan, outcome: Outcome, errors: dict[str, float]
) -> dict[str, Any]:
    """All of the run that is worth knowing later, as JSON takes it."""
    dataset, model = plan.dataset, plan.model
    labels = dataset.preparation.labels
    scores: dict[str, float] = {}
    for part, batch in plan.parts.items():
        evaluation = evaluate(model, outcome.params, batch)
        scores[f"{part}_loss"] = evaluation.loss
        scores[f"{part}_{metric_name(model.head)}"] = evaluation.metric
    return {
        "data": options.data,
        "rows": {part: len(batch.x) for part, batch in plan.parts.items()},
        "classes": None if labels is None else list(labels),
        "network": list(model.sizes),
        "activation": list(options.activation),
        "head": plan.head,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(outcome.params)),
        "optimizer": options.optimizer,
        "learning_rate": plan.learning_rate,
        "schedule": options.schedule,
        "batch_size": plan.batch_size,
        "l2": options.l2,
        "label_smoothing": options.label_smoothing if labels else 0.0,
        "seed": options.seed,
        "patience": plan.patience,
        "gradient": options.gradient,
        "compute_dtype": options.compute_dtype,
        "gradient_check": errors,
        "epochs": len(outcome.history.training_loss),
        "kept_epoch": outcome.kept_epoch,
        "ended": outcome.ended or None,
        "seconds": round(outcome.seconds, 4),
        "samples_per_second": round(outcome.samples_per_second, 1),
        **scores,
        "device": jax.devices()[0].device_kind,
        "versions": {m.__name__: m.__version__ for m in (jaxbp, jax, jaxlib, optax, np)},
    }


def facts_table(summary: dict[str, Any]) -> Table:
    """What was trained on what, and how long it took."""
    rows, classes = summary["rows"], summary["classes"]
    what = f"{len(classes)} classes" if classes else "regression"
    mixed = "" if summary["compute_dtype"] == "float32" else f", in {summary['compute_dtype']}"
    table = Table.grid(padding=(0, 2))
    for name, fact in {
        "data": f"{summary['data']}, {sum(rows.values())} rows "
        f"({rows['train']} train, {rows['validation']} validation, {rows['test']} test), {what}",
        "network": f"{describe_network(summary)}, {summary['head']}",
        "parameters": f"{summary['parameters']:,}",
        "epochs": f"{summary['epochs']} by {summary['optimizer']} and {summary['gradient']}{mixed}",
        "time": f"{summary['seconds']:.2f} s, {summary['samples_per_second']:,.0f} samples/s",
    }.items():
        table.add_row(name, fact)
    return table


def scores_table(summary: dict[str, Any]) -> Table:
    """Loss and accuracy or R² of the three parts."""
    metric = "accuracy" if summary["classes"] else "r2"
    table = Table("", "loss", _SHOWN[metric], box=box.SIMPLE_HEAD)
    for part in summary["rows"]:
        loss, score = summary[f"{part}_loss"], summary[f"{part}_{metric}"]
        table.add_row(part, f"{loss:.4f}" if abs(loss) < 1e4 else f"{loss:.3e}", f"{score:.4f}")
    return table


def describe_network(summary: dict[str, Any]) -> str:
    """Sizes and activations, as in "64-128-10 relu"."""
    units = summary["activation"] if len(summary["network"]) > 2 else ["linear"]
    return f"{'-'.join(map(str, summary['network']))} {' '.join(units)}"


def write_run(folder: Path, plan: Plan, outcome: Outcome, summary: dict[str, Any]) -> None:
    """model.safetensors, summary.json and learning_curve.png, beside metrics.jsonl."""
    save(folder / "model.safetensors", plan.model, outcome.params, plan.dataset.preparation)
    (folder / "summary.json").write_text(json.dumps(plain(summary), indent=2) + "\n")
    if summary["epochs"]:
        title = f"{summary['data']}: {describe_network(summary)}, {summary['optimizer']}"
        learning_curve(
            folder / "learning_curve.png",
            outcome.history,
            metric=_SHOWN["accuracy" if summary["classes"] else "r2"],
            title=title,
            training="training, smoothed labels" if summary["label_smoothing"] else "training",
        )
