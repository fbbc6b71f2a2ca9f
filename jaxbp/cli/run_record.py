"""The record of a run: what it came to, measured, printed, and as JSON takes it."""

import platform
import re
import shlex
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import jaxlib
import numpy as np
import optax
import rich.table
from rich.console import Console

import jaxbp
from jaxbp.checkpoint import Checkpoint
from jaxbp.cli.options import Design
from jaxbp.cli.plan import Plan, health_after
from jaxbp.cli.score_tables import further_tables, scores_table
from jaxbp.cli.scores import Score, baselines, score
from jaxbp.model import Params
from jaxbp.text import align, counted, plain, significant
from jaxbp.training.records import History


@dataclass(frozen=True)
class Outcome:
    """The result of training."""

    params: Params
    history: History
    training_metric: np.ndarray  # (epochs,) accuracy or R², as history's loss is on training rows
    kept_epoch: int  # the one params are from
    compile_seconds: float
    seconds: float  # of training without compiling; evaluation after each epoch included
    trained: int  # epochs in these seconds
    before: float  # seconds of a run's sessions before this one, compiling included
    ended: str  # why before its time; empty if not
    status: int  # the exit status: of a run that diverged 1, and of one that a signal ended its own
    full_disk: OSError | None = None  # what ended it, if checkpoints could not be written

    def samples_per_second(self, rows: int) -> float:
        """All rows of the epochs over the seconds of training."""
        return rows * self.trained / self.seconds


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
                "rows": plan.rows,
                "streamed": None
                if plan.stream is None
                else {"epoch_rows": plan.epoch_rows, "train_scored_on": len(plan.to_fit.x)},
                "task": decisions.task,
                "why": decisions.reason or None,
                "target": decisions.target or None,
                "features": preparation.features,
                "header": decisions.header,
                "dropped": decisions.dropped,
                "stratify": plan.stratified,
                "notes": decisions.notes,
                "columns": decisions.columns,
                "inputs": preparation.columns and preparation.inputs,
                "weights": decisions.weights or None,
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
                "label_smoothing": options.label_smoothing,
                "class_weight": options.class_weight,
                "dropout": options.dropout,
                "seed": options.seed,
                "patience": plan.patience,
                "gradient": options.gradient,
                "compute_dtype": options.compute_dtype,
                "precision": options.precision,
                "gradient_check": self.gradient_check,
                "epochs": len(outcome.history.training_loss),
                "kept_epoch": outcome.kept_epoch,
                "ended": outcome.ended or None,
                "finished": datetime.now(UTC).isoformat(timespec="seconds"),
                "seconds": round(outcome.before + outcome.compile_seconds + outcome.seconds, 4),
                "seconds_before": round(outcome.before, 4),
                "compile_seconds": round(outcome.compile_seconds, 4),
                "training_seconds": round(outcome.seconds, 4),
                "samples_per_second": round(outcome.samples_per_second(plan.epoch_rows), 1),
                **scores,
                "baselines": {each.name: dict(each.metrics) for each in self.baselines},
                "device": jax.devices()[0].device_kind,
                "versions": versions(),
            }
        )
        return record


def versions() -> dict[str, str]:
    """The versions of what a run's numbers depend on."""
    libraries = {m.__name__: m.__version__ for m in (jaxbp, jax, jaxlib, optax, np)}
    return {"python": platform.python_version(), **libraries}


def command_line(options: Design) -> str:
    """The command that asks for these options, without those that are the defaults."""
    words = ["jaxbp", type(options).__name__.lower(), options.data]
    for each in fields(options):
        value = getattr(options, each.name)
        if not each.init or each.name == "data" or value == each.default:
            continue
        option = each.name.replace("_", "-")
        if each.name in {"drop", "categorical"}:  # whose options are repeated
            words += [word for one in value for word in (f"--{option}", one)]
        elif isinstance(value, bool):
            words.append(f"--{option}" if value else f"--no-{option}")
        else:
            words += [f"--{option}", *map(str, value if isinstance(value, tuple) else [value])]
    return shlex.join(words)


def summarised(plan: Plan, gradient_check: dict[str, float], outcome: Outcome) -> Summary:
    """Score the three parts, and on test the predictions without a network."""
    data, precision = plan.dataset, plan.precision
    trained = Checkpoint(plan.model, outcome.params, data.preparation)
    scores = {
        part: score(part, trained, getattr(data, part), precision=precision) for part in plan.parts
    }
    others = baselines(data.preparation, data.train, "test", data.test)
    return Summary(plan, gradient_check, outcome, scores, others)


def print_run(summary: Summary, console: Console) -> None:
    """Print facts, scores, how training ended and, if asked for, the health of every layer."""
    plan, outcome, data = summary.plan, summary.outcome, summary.plan.dataset
    scores = list(summary.scores.values())
    table = scores_table(scores, summary.baselines, data.preparation, data.train)
    grid = rich.table.Table.grid(padding=(0, 2))
    for fact in facts_of(summary):
        grid.add_row(*fact)
    with console.capture() as facts:
        console.print(grid)
    console.print(re.sub(r" +$", "", facts.get(), flags=re.M), end="", soft_wrap=True)
    test = summary.scores["test"]._replace(confusion=None)  # which summary.json has
    for each in (table, *further_tables(test, data.preparation)):
        console.print(f"\n{align(each, console.width)}", soft_wrap=True)
    console.print()
    if outcome.ended:
        console.print(outcome.ended, style="yellow")
    if plan.options.diagnostics and outcome.kept_epoch:
        report = health_after(plan, outcome.params, outcome.history, outcome.kept_epoch)
        console.print(report.text(console.width), soft_wrap=True)


def facts_of(summary: Summary) -> list[tuple[str, str]]:
    """Data, network, epochs and time: what each line is about, and the fact."""
    plan, options, outcome = summary.plan, summary.plan.options, summary.outcome
    rows = plan.rows
    preparation, decisions = plan.dataset.preparation, plan.decisions
    labels = preparation.labels
    several, stratified = preparation.several_labels, plan.stratified
    task = f"{len(labels)} {'labels' if several else 'classes'}" if labels else "regression"
    header = {None: "", True: " below a header", False: " without a header"}[decisions.header]
    split = "" if labels is None or stratified else ", not stratified"
    amount = options.label_smoothing
    how = f", labels smoothed by {amount:g}" if amount else ""
    how += ", classes balanced" if options.class_weight == "balanced" else ""
    how += f", dropout {options.dropout:g}" if options.dropout else ""
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
    before = f", after {significant(outcome.before, 3)} s before" if outcome.before else ""
    samples = outcome.samples_per_second(plan.epoch_rows)
    rate = f": {samples:,.0f} samples/s" if outcome.trained else ""
    return [
        (
            "data",
            f"{options.data}, {counted(sum(rows.values()), 'row')}{header} ({rows['train']} train, "
            f"{rows['validation']} validation, {rows['test']} test{split}), {task}",
        ),
        *([("target", ", ".join(target))] if target else []),
        *(("note", note) for note in decisions.notes),
        *([("weights", f"of the rows, {decisions.weights!r}")] if decisions.weights else []),
        *loss,
        ("network", f"{plan.network}, {plan.head}{how}"),
        ("parameters", f"{plan.parameters:,}"),
        ("epochs", f"{epochs} by {options.optimizer} and {options.gradient}{mixed}"),
        (
            "time",
            f"{significant(outcome.compile_seconds, 3)} s compiling, "
            f"{significant(outcome.seconds, 3)} s training{rate}{before}",
        ),
    ]
