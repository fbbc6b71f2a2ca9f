"""``jaxbp train``: check the gradient, train, and leave a report and a run folder behind."""

import errno
import json
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any, Literal

import numpy as np
from rich.console import Console
from rich.progress import Progress
from tyro.conf import arg

from jaxbp.cli.compile_time import CompileTime
from jaxbp.cli.files import (
    NETWORK,
    forget_run_before,
    make_run_folder,
    naming,
    new_folder,
    restore_run_before,
)
from jaxbp.cli.gradient_check import TRUSTED, checked_gradient
from jaxbp.cli.interrupts import Interrupts
from jaxbp.cli.options import Design, UsageError, fixed
from jaxbp.cli.plan import Plan, decide, fit_plan, initial, tell_of_columns
from jaxbp.cli.run_record import Outcome, Summary, print_run, summarised, write_run
from jaxbp.cli.score_tables import decimals
from jaxbp.diagnostics.health import sample
from jaxbp.model import Params
from jaxbp.text import plain
from jaxbp.training.checks import checked_batch
from jaxbp.training.early_stopping import EarlyStopping
from jaxbp.training.metrics import compiled_evaluation
from jaxbp.training.progress import bar_of_epochs
from jaxbp.training.records import Epoch

_LONG = {"bytes": 50e6, "parameters": 2e6}  # of a file, of a network: what takes seconds to begin
_COLUMNS = 60  # of text that the terminal needs to show the metric in a line
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


def run(options: Train, console: Console) -> int:
    """Train as the options say, report to the console and to the run folder; the exit status."""
    if options.overwrite and options.output is None:
        raise UsageError("--overwrite: name the folder of the run to replace by --output")
    new_folder("--output", options.output, overwrite=options.overwrite)
    with Interrupts(console) as interrupts:
        if os.path.isfile(options.data) and os.path.getsize(options.data) > _LONG["bytes"]:
            console.print(f"reading {options.data}", soft_wrap=True)
        plan = decide(options)
        tell_of_columns(plan, console)
        interrupts.check()
        params = initial(plan)
        if plan.parameters > _LONG["parameters"]:
            console.print(f"checking the gradient by {plan.parameters:,} parameters")
        errors = checked_gradient(plan, params, console)
        if not max(errors.values(), default=0) < TRUSTED:
            console.print("the hand-written gradient is not the gradient: nothing trained")
            return 1
        interrupts.begin()
        folder = make_run_folder(options.output, options.data)
        try:
            outcome = train(plan, params, folder, console, interrupts)
            interrupts.ignore()  # what has been trained is now to be saved
            summary = summarised(plan, errors, outcome)
            _save(folder, summary, console)
        finally:
            restore_run_before(folder)
        forget_run_before(folder)
        console.print(f"saved in {folder}", soft_wrap=True)
    return 1 if outcome.diverged else 0


def _save(folder: Path, summary: Summary, console: Console) -> None:
    """Write the run, and print it: a full disk takes the files, and not the scores."""
    try:
        write_run(folder, summary)
    except OSError:
        if (folder / NETWORK).exists():
            console.print(f"the network is saved in {folder}, and not all beside it")
        raise
    finally:
        print_run(summary, console)


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
    bar = bar_of_epochs(console)
    path = folder / "metrics.jsonl"
    unbuffered = path.open("xb", buffering=0)  # so that after an error nothing is left to write
    with naming(path), unbuffered as metrics, bar:
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
        self, plan: Plan, params: Params, bar: Progress, metrics: IO[bytes], interrupts: Interrupts
    ) -> None:
        self.bar, self.interrupts = bar, interrupts
        self.metrics: IO[bytes] | None = metrics  # None after an error: the disk is full
        self.stopping = EarlyStopping(plan.patience) if plan.patience else None
        self.metric, self.shown_metric = plan.metric, plan.shown_metric
        self.model, self.precision, self.epochs = plan.model, plan.precision, plan.options.epochs
        rows = sample(plan.parts["train"], len(plan.parts["validation"].x))
        self.rows = checked_batch(plan.model, params, rows, "batch")
        self.training_loss: list[float] = []
        self.training_metric: list[float] = []
        self.last_line = -math.inf  # seconds
        self.task = bar.add_task("", total=self.epochs, live="")
        self.latest = Epoch(0, params, math.nan, None)
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
        self._record(record)
        metric = f"{self.shown_metric} {decimals(validation.metric)}"
        live = f"loss {decimals(training.loss)}"
        if self.bar.disable or self.bar.console.width >= _COLUMNS:
            live += f", validation {metric}"
        self.bar.update(self.task, completed=epoch.number, live=live)
        self.latest = epoch
        stops = self.stopping is not None and self.stopping(epoch)
        if self.interrupts.asked:
            self.ended = f"interrupted: training ended with epoch {epoch.number}"
        elif stops:
            self.ended = (
                f"stopped early: the validation loss was best after epoch {self.kept.number} "
                f"of {epoch.number}, and those parameters are kept"
            )
        self._say(epoch.number, live)
        return bool(self.ended)

    def _record(self, record: dict[str, Any]) -> None:
        """Write a line to metrics.jsonl, as long as the disk takes it."""
        if self.metrics is None:
            return
        line, length = f"{json.dumps(plain(record))}\n".encode(), self.metrics.tell()
        try:
            if self.metrics.write(line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self.metrics.truncate(length)  # whole lines
            self.metrics = None
            reason = f"metrics.jsonl: {error.strerror}: the epochs from here on are not recorded"
            self.bar.console.print(reason, soft_wrap=True)

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
        best = self.stopping and self.stopping.best
        return best or self.latest
