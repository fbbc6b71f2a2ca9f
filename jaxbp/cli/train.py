"""``jaxbp train``: check the gradient, train, and leave a report and a run folder behind."""

import json
import math
import os
import platform
import shlex
import time
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import IO, Annotated, Any, Literal

import jax
import jaxlib
import numpy as np
import optax
import rich.table
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from tyro.conf import arg

import jaxbp
from jaxbp.checking import central_difference, compare
from jaxbp.checkpoint import Checkpoint, save
from jaxbp.cli.compile_time import CompileTime
from jaxbp.cli.files import make_run_folder, new_folder, written
from jaxbp.cli.interrupts import Interrupts
from jaxbp.cli.options import Design, UsageError, fixed
from jaxbp.cli.pictures import learning_curve
from jaxbp.cli.plan import Plan, decide, fit_plan, health_after, initial
from jaxbp.cli.score_tables import SHOWN, decimals, further_tables, scores_table
from jaxbp.cli.scores import Score, baselines, score
from jaxbp.diagnostics.health import sample
from jaxbp.gradient import Batch, autodiff, backprop, objective
from jaxbp.model import MLP, Params
from jaxbp.text import align, plain, significant
from jaxbp.training.checks import checked_batch
from jaxbp.training.device import memory_shortage_named
from jaxbp.training.fitting import Epoch, History
from jaxbp.training.metrics import compiled_evaluation

_TRUSTED = 1e-3  # float32 rounding stays far below, a wrong formula far above
_COPIES = 9  # of the parameters in float64: what checking a large network's gradient takes
_LONG = {"bytes": 50e6, "parameters": 2e6}  # of a file, of a network: what takes seconds to begin
_COLUMNS = {"bar": 80, "metric": 60}  # of text that the terminal needs to show them in a line
_BETWEEN_LINES = 5.0  # seconds, where no bar can be shown


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
    overwrite: Annotated[bool, arg(help="replace the run that the folder of --output holds")] = (
        False
    )


@dataclass(frozen=True)
class Outcome:
    """The result of training."""

    params: Params
    history: History
    training_metric: np.ndarray  # (epochs,) accuracy or R², as history's loss is on training rows
    kept_epoch: int  # the one params are from
    compile_seconds: float
    seconds: float  # of training without compiling; evaluation after each epoch included
    ended: str  # why before its time; empty if not
    diverged: bool

    def samples_per_second(self, rows: int) -> float:
        """All rows of all epochs over the seconds of training."""
        return rows * len(self.history.training_loss) / self.seconds


@dataclass(frozen=True)
class Summary:
    """A finished run: planned, checked, trained and measured."""

    plan: Plan
    gradient_check: dict[str, float]  # relative errors
    outcome: Outcome
    scores: dict[str, Score]  # of train, validation and test
    baselines: list[Score]  # on test, without a network

    def to_dict(self) -> dict[str, Any]:
        """All of the run that is worth knowing later, as JSON takes it."""
        plan, options, outcome = self.plan, self.plan.options, self.outcome
        preparation, decisions = plan.dataset.preparation, plan.decisions
        scores = {
            f"{part}_{metric}": value
            for part, score in self.scores.items()
            for metric, value in score.to_dict().items()
        }
        record: dict[str, Any] = plain(
            {
                "command": command_line(options),
                "options": {
                    name: str(value) if isinstance(value, Path) else value
                    for name, value in asdict(options).items()
                },
                "data": options.data,
                "rows": {part: len(batch.x) for part, batch in plan.parts.items()},
                "task": decisions.task,
                "why": decisions.reason or None,
                "target": decisions.target or None,
                "features": preparation.features,
                "header": decisions.header,
                "dropped": decisions.dropped,
                "stratify": plan.stratified,
                "notes": decisions.notes,
                "classes": preparation.labels,
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
                "compile_seconds": round(outcome.compile_seconds, 4),
                "training_seconds": round(outcome.seconds, 4),
                "samples_per_second": round(outcome.samples_per_second(len(plan.to_fit.x)), 1),
                **scores,
                "baselines": {each.name: dict(each.metrics) for each in self.baselines},
                "device": jax.devices()[0].device_kind,
                "versions": {
                    "python": platform.python_version(),
                    **{m.__name__: m.__version__ for m in (jaxbp, jax, jaxlib, optax, np)},
                },
            }
        )
        return record


def command_line(options: Design) -> str:
    """The command that asks for these options, without those that are the defaults."""
    words = ["jaxbp", type(options).__name__.lower(), options.data]
    for each in fields(options):
        value = getattr(options, each.name)
        if not each.init or each.name == "data" or value == each.default:
            continue
        option = each.name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            words += [f"--{option}", *map(str, value if isinstance(value, tuple) else [value])]
    return shlex.join(words)


def run(options: Train, console: Console) -> int:
    """Train as the options say, report to the console and to the run folder; the exit status."""
    if options.overwrite and options.output is None:
        raise UsageError("--overwrite: name the folder of the run to replace by --output")
    new_folder("--output", options.output, overwrite=options.overwrite)
    with Interrupts(console) as interrupts:
        if os.path.isfile(options.data) and os.path.getsize(options.data) > _LONG["bytes"]:
            console.print(f"reading {options.data}", soft_wrap=True)
        plan = decide(options)
        interrupts.check()
        if plan.parameters > _LONG["parameters"]:
            console.print(f"checking the gradient by {plan.parameters:,} parameters")
        params = initial(plan)
        errors = checked_gradient(plan, params, console)
        if not max(errors.values(), default=0) < _TRUSTED:
            console.print("the hand-written gradient is not the gradient: nothing trained")
            return 1
        interrupts.begin()
        folder = make_run_folder(options.output, options.data)
        outcome = train(plan, params, folder, console, interrupts)
        interrupts.ignore()  # what has been trained is now to be saved
        summary = Summary(plan, errors, outcome, *_scores(plan, outcome.params))
        write_run(folder, summary)
        print_run(summary, console)
        console.print(f"saved in {folder}", soft_wrap=True)
    return 1 if outcome.diverged else 0


def _scores(plan: Plan, params: Params) -> tuple[dict[str, Score], list[Score]]:
    """Score the three parts, and on test the predictions without a network."""
    data, precision = plan.dataset, plan.precision
    trained = Checkpoint(plan.model, params, data.preparation)
    scores = {
        part: score(part, trained, getattr(data, part), precision=precision) for part in plan.parts
    }
    return scores, baselines(data.preparation, data.train, "test", data.test)


# Checking the gradient


def checked_gradient(plan: Plan, params: Params, console: Console) -> dict[str, float]:
    """Check the gradient and print its relative errors; none where memory has no room for that."""
    copies = [np.broadcast_to(0.0, (_COPIES, *leaf.shape)) for leaf in jax.tree.leaves(params)]
    try:
        with memory_shortage_named(copies):
            errors = cross_check(plan.model, params, plan.to_fit)
    except MemoryError:
        console.print("gradient check: left out, as its copies in float64 do not fit into memory")
        return {}
    console.print(
        f"gradient check: relative error {errors['jax_grad']:.0e} against jax.grad, "
        f"{errors['finite_differences']:.0e} against finite differences",
        soft_wrap=True,
    )
    return errors


def cross_check(model: MLP, params: Params, batch: Batch) -> dict[str, float]:
    """Measure the relative error of backprop on the first rows, in two ways.

    "jax_grad" is the error against jax.grad in the parameters' own dtype, "finite_differences" that
    against central differences in float64.  These are measured with biases off 0: where all ReLUs
    of a layer are dead, those of the next would stand on their kink, where a difference is none.
    """
    first = jax.tree.map(lambda array: np.asarray(array[:32]), batch)
    with jax.default_matmul_precision("highest"):
        by_autodiff = compare(*_both_gradients(model, params, first))
    draw = np.random.default_rng(0).normal  # on the host: cheaper than to compile a generator
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    count = 8 if size <= _LONG["parameters"] else 1  # each is as large as the parameters
    with jax.enable_x64(True):
        params = tuple(
            each._replace(bias=each.bias + draw(0, 0.01, each.bias.shape)) for each in params
        )
        exact = jax.tree.map(_in_float64, (params, first))
        along = jax.tree.map(lambda leaf: draw(size=(count, *leaf.shape)), params)
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
    epoch = TextColumn("epoch {task.completed}/{task.total}", markup=False)
    live = TextColumn("{task.fields[live]}", markup=False)
    times = TimeElapsedColumn(), TimeRemainingColumn(compact=True)
    narrow = console.width < _COLUMNS["bar"]
    bar = Progress(
        *((epoch, live) if narrow else (epoch, BarColumn(bar_width=10), live, *times)),
        console=console,
        disable=not console.is_terminal,
    )
    with (folder / "metrics.jsonl").open("x") as metrics, bar:
        watch = _Watch(plan, params, bar, metrics, interrupts)
        with CompileTime(watch.show_compiling) as compiling:
            trained = fit_plan(plan, params, watch, plan.parts["validation"])
        seconds = time.perf_counter() - watch.started
    kept = watch.kept
    if trained.diverged is not None:
        if kept.number >= trained.diverged:  # its last steps broke it, as the next epoch told
            kept = Epoch(trained.diverged - 1, trained.params, math.nan, None)
        watch.ended = (
            f"diverged in epoch {trained.diverged}: the loss is no longer finite; kept the "
            f"parameters after epoch {kept.number}. Try a smaller --learning-rate"
        )
    recorded = len(trained.history.training_loss)
    return Outcome(
        params=kept.params,
        history=trained.history._replace(training_loss=np.array(watch.training_loss[:recorded])),
        training_metric=np.array(watch.training_metric[:recorded]),
        kept_epoch=kept.number,
        compile_seconds=compiling.seconds,
        seconds=seconds - compiling.seconds,
        ended=watch.ended,
        diverged=trained.diverged is not None,
    )


class _Watch:
    """``on_epoch``: shows and records each epoch, and decides whether it was the last.

    The training loss is measured as the validation loss is: after the epoch, without smoothing, and
    on as many rows.
    """

    def __init__(
        self, plan: Plan, params: Params, bar: Progress, metrics: IO[str], interrupts: Interrupts
    ) -> None:
        self.bar, self.metrics, self.interrupts = bar, metrics, interrupts
        self.patience, self.metric = plan.patience, plan.metric
        self.model, self.precision, self.epochs = plan.model, plan.precision, plan.options.epochs
        rows = sample(plan.parts["train"], len(plan.parts["validation"].x))
        self.rows = checked_batch(plan.model, params, rows, "batch")
        self.training_loss: list[float] = []
        self.training_metric: list[float] = []
        self.last_line = -math.inf  # seconds
        self.task = bar.add_task("", total=self.epochs, live="")
        self.latest = self.best = Epoch(0, params, math.nan, None)
        self.best_loss = math.inf
        self.ended = ""
        self.started = time.perf_counter()
        self.seconds: list[float] = []  # when each epoch ended

    def show_compiling(self, goes_on: bool) -> None:
        """Say what is done where there is no loss to show yet: compiling, or the first epoch."""
        if not self.seconds:
            self.bar.update(self.task, live="compiling" if goes_on else "first epoch")

    def __call__(self, epoch: Epoch) -> bool:
        validation = epoch.validation
        assert validation is not None
        training = compiled_evaluation(self.model, epoch.params, self.rows, self.precision)
        self.training_loss.append(training.loss)
        self.training_metric.append(training.metric)
        self.seconds.append(time.perf_counter() - self.started)
        record: dict[str, Any] = {
            "epoch": epoch.number,
            "training_loss": training.loss,
            f"training_{self.metric}": training.metric,
            "running_loss": epoch.training_loss,  # of the steps, each before its update
            "validation_loss": validation.loss,
            f"validation_{self.metric}": validation.metric,
            "seconds": round(self.seconds[-1], 6),
        }
        if epoch.health is not None:
            record["layers"] = epoch.health._asdict()
        self.metrics.write(json.dumps(plain(record)) + "\n")
        self.metrics.flush()
        metric = f"{SHOWN[self.metric]} {decimals(validation.metric)}"
        live = f"loss {decimals(training.loss)}"
        if self.bar.disable or self.bar.console.width >= _COLUMNS["metric"]:
            live += f", validation {metric}"
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
        self._say(epoch.number, live)
        return bool(self.ended)

    def _say(self, number: int, live: str) -> None:
        """Where no bar is shown, print a line: of the first epoch, the last, and every 5 s."""
        now, last = self.seconds[-1], bool(self.ended) or number == self.epochs
        if not self.bar.disable or not (last or now - self.last_line >= _BETWEEN_LINES):
            return
        self.last_line = now
        pace = (now - self.seconds[0]) / (number - 1) if number > 1 else 0.0  # seconds an epoch
        left = f", about {(self.epochs - number) * pace:.0f} s left" if pace and not last else ""
        self.bar.console.print(
            f"epoch {number}/{self.epochs}: {live}, after {now:.1f} s{left}", soft_wrap=True
        )

    @property
    def kept(self) -> Epoch:
        """The latest epoch, or the best if patience asked for it."""
        return self.best if self.patience else self.latest


# Reporting


def write_run(folder: Path, summary: Summary) -> None:
    """Write model.safetensors, summary.json and learning_curve.png beside metrics.jsonl."""
    plan, outcome = summary.plan, summary.outcome
    save(folder / "model.safetensors", plan.model, outcome.params, plan.dataset.preparation)
    with written(folder / "summary.json") as file:
        file.write(json.dumps(summary.to_dict(), indent=2, ensure_ascii=False) + "\n")
    if len(outcome.history.training_loss):
        learning_curve(
            folder / "learning_curve.png",
            outcome.history,
            metric=SHOWN[plan.metric],
            title=plan.title,
            training_metric=outcome.training_metric,
        )


def print_run(summary: Summary, console: Console) -> None:
    """Print facts, scores, how training ended and, if asked for, the health of every layer."""
    plan, outcome, data = summary.plan, summary.outcome, summary.plan.dataset
    scores = list(summary.scores.values())
    table = scores_table(scores, summary.baselines, data.preparation, data.train)
    console.print(facts_table(summary))
    test = summary.scores["test"]._replace(confusion=None)  # which summary.json has
    for each in (table, *further_tables(test, data.preparation)):
        console.print(f"\n{align(each, console.width)}", soft_wrap=True)
    console.print()
    if outcome.ended:
        console.print(outcome.ended, style="yellow")
    if plan.options.diagnostics and outcome.kept_epoch:
        report = health_after(plan, outcome.params, outcome.history, outcome.kept_epoch)
        console.print(report.text(console.width), soft_wrap=True)


def facts_table(summary: Summary) -> rich.table.Table:
    """Tabulate data, network, epochs and time, a line each."""
    plan, options, outcome = summary.plan, summary.plan.options, summary.outcome
    rows = {part: len(batch.x) for part, batch in plan.parts.items()}
    preparation, decisions = plan.dataset.preparation, plan.decisions
    labels = preparation.labels
    several, stratified = preparation.several_labels, plan.stratified
    task = f"{len(labels)} {'labels' if several else 'classes'}" if labels else "regression"
    header = {None: "", True: " below a header", False: " without a header"}[decisions.header]
    split = "" if labels is None or stratified else ", not stratified"
    smoothed = f", labels smoothed by {plan.label_smoothing:g}" if plan.label_smoothing else ""
    mixed = "" if options.compute_dtype == "float32" else f", in {options.compute_dtype}"
    epochs = len(outcome.history.training_loss)
    target = [
        fact for fact in (decisions.target and repr(decisions.target), decisions.reason) if fact
    ]
    loss = []
    if labels is None and len(preparation.target_mean) == 1 and preparation.target_scale[0] != 1:
        mean, deviation = preparation.target_mean[0], preparation.target_scale[0]
        unit = (
            f"of the target in standard deviations, {deviation:.5g} each, from its mean {mean:.5g}"
        )
        loss.append(("loss", unit))
    facts = [
        (
            "data",
            f"{options.data}, {sum(rows.values())} rows{header} ({rows['train']} train, "
            f"{rows['validation']} validation, {rows['test']} test{split}), {task}",
        ),
        *([("target", ", ".join(target))] if target else []),
        *(("note", note) for note in decisions.notes),
        *loss,
        ("network", f"{plan.network}, {plan.head}{smoothed}"),
        ("parameters", f"{plan.parameters:,}"),
        ("epochs", f"{epochs} by {options.optimizer} and {options.gradient}{mixed}"),
        (
            "time",
            f"{significant(outcome.compile_seconds, 3)} s compiling, "
            f"{significant(outcome.seconds, 3)} s training: "
            f"{outcome.samples_per_second(rows['train']):,.0f} samples/s",
        ),
    ]
    table = rich.table.Table.grid(padding=(0, 2))
    for fact in facts:
        table.add_row(*fact)
    return table
