"""``jaxbp train``: check the gradient, train, and leave a report and a run folder behind."""

import errno
import json
import math
import os
import time
from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import IO, Annotated, Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console
from rich.progress import Progress
from tyro.conf import arg

from jaxbp.cli.compile_time import CompileTime
from jaxbp.cli.distributed import check_same_run, together
from jaxbp.cli.files import (
    CHECKPOINTS,
    METRICS,
    NETWORK,
    REPORT,
    RESULTS,
    RUN,
    check_can_write,
    make_run_folder,
    naming,
    new_folder,
    set_aside,
    settle_run_before,
)
from jaxbp.cli.gradient_check import TRUSTED, checked_gradient
from jaxbp.cli.interrupts import CLOSED_PIPE, NOTHING_MORE, Interrupts
from jaxbp.cli.options import Design, UsageError, fixed, with_stream
from jaxbp.cli.plan import (
    Plan,
    Trained,
    decide,
    fit_plan,
    initial,
    tell_of_columns,
    tell_of_stream,
)
from jaxbp.cli.resume import (
    end_of,
    going_on,
    lines_until,
    remember,
    saved_in,
    tell_where,
    telling,
)
from jaxbp.cli.run_folder import write_run
from jaxbp.cli.run_record import Outcome, Summary, print_run, summarised
from jaxbp.cli.score_tables import decimals
from jaxbp.diagnostics.health import sample
from jaxbp.model import Params
from jaxbp.parallel import everywhere, is_first, largest
from jaxbp.text import plain
from jaxbp.training.checkpoints import alone_in
from jaxbp.training.checks import checked_batch
from jaxbp.training.early_stopping import EarlyStopping
from jaxbp.training.metrics import compiled_evaluation
from jaxbp.training.progress import bar_of_epochs
from jaxbp.training.records import Epoch
from jaxbp.training.saved import Saved

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
    resume: Annotated[
        Path | None,
        arg(
            metavar="RUN",
            help="the run folder to go on with, as it was begun; --epochs may be raised",
            help_behavior_hint="(default: a new run)",
        ),
    ] = None
    checkpoint_every: Annotated[
        int | Literal["minute"],
        arg(
            metavar="EPOCHS",
            help="epochs from one checkpoint to the next, which --resume goes on from",
            help_behavior_hint="(default: minute, one a minute; and one at the end)",
        ),
    ] = "minute"
    distributed: Annotated[
        bool,
        arg(help="train with the other processes of this job on Slurm, Kubernetes or Open MPI"),
    ] = False
    coordinator: Annotated[
        str | None,
        arg(
            metavar="HOST:PORT",
            help="train with other processes, which meet where process 0 listens",
            help_behavior_hint="(default: one process)",
        ),
    ] = None
    process: Annotated[
        int | None,
        arg(metavar="I", help="the number of this process, from 0", help_behavior_hint=""),
    ] = None
    processes: Annotated[
        int | None, arg(metavar="N", help="how many there are", help_behavior_hint="")
    ] = None
    listen: Annotated[
        str | None,
        arg(
            metavar="ADDRESS",
            help="that process 0 listens on, such as 0.0.0.0 for all it has",
            help_behavior_hint="(default: HOST alone)",
        ),
    ] = None


def run(options: Train, console: Console) -> int:
    """Train as the options say, report to the console and to the run folder; the exit status.

    Of several processes the first does that, and the others train with it in silence.
    """
    with together(options) as mesh:
        return _run(options, console if is_first(mesh) else Console(quiet=True), mesh)


def _run(options: Train, console: Console, mesh: Mesh | None) -> int:
    before, options = _checked(options, writes=is_first(mesh))
    told = nullcontext() if before is None else telling(console)
    with Interrupts(console) as interrupts, told:
        size = os.path.getsize(options.data) if os.path.isfile(options.data) else 0
        if size > _LONG["bytes"] or os.path.isdir(options.data):
            console.print(f"reading {options.data}", soft_wrap=True)
        plan = decide(options)
        tell_of_stream(plan, console)
        tell_of_columns(plan, console)
        interrupts.check()
        saved = None if before is None else saved_in(before, plan)
        check_same_run(plan, saved, mesh)
        if before is not None and _is_complete(before, plan, saved, console):
            return 0
        if before is not None:
            check_can_write("--resume", before / f"{METRICS}.new")
        params = initial(plan)
        if plan.parameters > _LONG["parameters"]:
            console.print(f"checking the gradient by {plan.parameters:,} parameters")
        errors = checked_gradient(plan, params, console)
        if not max(errors.values(), default=0) < TRUSTED:
            console.print("the hand-written gradient is not the gradient: nothing trained")
            return 1
        interrupts.begin(NOTHING_MORE)
        if not is_first(mesh):
            return train(plan, params, None, console, interrupts, saved, mesh).status
        replaced: Collection[str] = RUN if before is None else RESULTS
        if before is None:
            folder = make_run_folder(options.output, options.data)
        else:
            tell_where(before, plan, saved, console)
            folder = before
        with alone_in(folder):
            try:
                outcome = train(plan, params, folder, console, interrupts, saved, mesh)
                interrupts.write("the network is saved")
                summary = summarised(plan, errors, outcome)
                if before is not None:
                    set_aside(folder, replaced)
                _save(folder, summary, interrupts, console)
            finally:
                settle_run_before(folder, replaced)
    if outcome.full_disk is not None:
        raise outcome.full_disk
    return outcome.status or interrupts.asked


def _checked(options: Train, *, writes: bool) -> tuple[Path | None, Train]:
    """The folder of the run that is to go on, if there is one, and the options to go on with.

    options: as they came.
    writes: whether this process writes the run folder.

    Raises UsageError for what cannot be carried out, before any work.
    """
    before = options.resume
    if before is not None and options.overwrite:
        raise UsageError("--overwrite: got it beside --resume, which goes on with what is there")
    if before is not None:
        options = going_on(before, options)
    elif options.overwrite and options.output is None:
        raise UsageError("--overwrite: name the folder of the run to replace by --output")
    elif writes:
        new_folder("--output", options.output, overwrite=options.overwrite)
    if options.checkpoint_every != "minute" and options.checkpoint_every < 1:
        raise UsageError(f"--checkpoint-every: got {options.checkpoint_every}, expected at least 1")
    return before, with_stream(options)


def _is_complete(folder: Path, plan: Plan, saved: Saved | None, console: Console) -> bool:
    """Whether a run has its results and nothing to go on to; if so, say why."""
    why = "" if saved is None or not (folder / REPORT).exists() else end_of(plan, saved)
    if why:
        console.print(f"{folder} is complete: {why}", soft_wrap=True)
    return bool(why)


def _save(folder: Path, summary: Summary, interrupts: Interrupts, console: Console) -> None:
    """Write the run, and print it: a full disk takes the files, and not the scores.

    Ctrl-C leaves out what can be made of the last checkpoint again: all but the network.
    """
    try:
        for _ in write_run(folder, summary):
            if interrupts.asked:
                break
    finally:
        print_run(summary, console)
        if (folder / REPORT).exists():
            console.print(f"saved in {folder}", soft_wrap=True)
        elif (folder / NETWORK).exists():
            console.print(
                f"the network is saved in {folder}, and not all beside it: "
                f"jaxbp train --resume {folder} writes the rest",
                soft_wrap=True,
            )


def train(
    plan: Plan,
    params: Params,
    folder: Path | None,
    console: Console,
    interrupts: Interrupts,
    saved: Saved | None = None,
    mesh: Mesh | None = None,
) -> Outcome:
    """Fit with a progress bar, a line an epoch in metrics.jsonl, early stopping, and Ctrl-C.

    plan: all that was decided.
    params: to start from.
    folder: of the run; None where another process writes it.
    console: that shows the bar.
    interrupts: whether Ctrl-C was pressed.
    saved: what to go on with; None unless given, and the folder then has no metrics.jsonl.
    mesh: of the devices that train together; one device unless given.
    """
    bar = bar_of_epochs(console)
    lines: list[dict[str, Any]] = []
    path: Path = Path(os.devnull)
    metrics: AbstractContextManager[IO[bytes] | None] = nullcontext()
    if folder is not None:
        lines = lines_until(folder, 0 if saved is None else saved.run.epochs)
        remember(folder, plan.options)
        path = folder / METRICS
        metrics = path.open("ab", buffering=0)  # so that after an error nothing is left to write
    with naming(path), metrics as file, bar:
        watch = _Watch(plan, params, bar, file, interrupts, mesh)
        watch.go_on(lines, saved)
        with CompileTime(watch.show_compiling) as compiling:
            trained = _fitted(plan, params, folder, watch, saved)
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
    failed, ended = trained.full_disk, watch.ended
    if failed is not None:
        ended = f"ended after epoch {recorded}: {failed.filename}: {failed.strerror}"
    return Outcome(
        params=kept.params if mesh is None else jax.device_get(kept.params),
        history=trained.history._replace(training_loss=np.array(watch.training_loss[:recorded])),
        training_metric=np.array(watch.training_metric[:recorded]),
        kept_epoch=kept.number,
        compile_seconds=compiling.seconds,
        seconds=seconds - compiling.seconds,
        trained=len(watch.seconds),
        ended=ended,
        status=1 if trained.diverged is not None else watch.status,
        full_disk=failed,
    )


def _fitted(
    plan: Plan, params: Params, folder: Path | None, watch: "_Watch", saved: Saved | None
) -> Trained:
    """The training, of a run that goes on or from the start.

    plan: all that was decided.
    params: to start from.
    folder: of the run, or None.
    watch: of its epochs.
    saved: what to go on with, or None.
    """
    every = plan.options.checkpoint_every  # type: ignore[attr-defined]
    every = timedelta(minutes=1) if every == "minute" else every
    return fit_plan(
        plan,
        params,
        [watch] if watch.stopping is None else [watch.stopping, watch],
        plan.parts["validation"],
        checkpoints=None if folder is None else (folder / CHECKPOINTS, every),
        saved=saved,
        mesh=watch.mesh,
    )


class _Watch:
    """``on_epoch``: shows and records each epoch, and decides whether it was the last.

    The training loss is measured as the validation loss is: after the epoch, without smoothing, and
    on as many rows.
    """

    def __init__(
        self,
        plan: Plan,
        params: Params,
        bar: Progress,
        metrics: IO[bytes] | None,
        interrupts: Interrupts,
        mesh: Mesh | None,
    ) -> None:
        self.bar, self.interrupts, self.mesh = bar, interrupts, mesh
        self.metrics = metrics  # None where another process writes; and after an error: a full disk
        self.stopping = EarlyStopping(plan.patience) if plan.patience else None
        self.metric, self.shown_metric = plan.metric, plan.shown_metric
        self.model, self.precision, self.epochs = plan.model, plan.precision, plan.options.epochs
        rows = sample(plan.parts["train"], len(plan.parts["validation"].x))
        self.rows = everywhere(checked_batch(plan.model, params, rows, "batch"), mesh)
        self.training_loss: list[float] = []
        self.training_metric: list[float] = []
        self.last_line = -math.inf  # seconds
        self.task = bar.add_task("", total=self.epochs, live="")
        self.latest = Epoch(0, params, math.nan, None)
        self.ended = ""
        self.started = time.perf_counter()
        self.seconds: list[float] = []  # when each epoch of this session ended
        self.before = 0.0  # seconds of the sessions before
        self.status = 0

    def go_on(self, lines: list[dict[str, Any]], saved: Saved | None) -> None:
        """Take up the lines of the epochs that are done, and what is saved of them."""
        if saved is None:
            return
        self.training_loss = [line["training_loss"] for line in lines]
        self.training_metric = [line[f"training_{self.metric}"] for line in lines]
        self.latest = Epoch(saved.run.epochs, saved.run.params, math.nan, None)
        if self.stopping is not None:
            self.stopping.go_on(saved.best, saved.run.epochs)
        self.before = lines[-1]["seconds"] if lines else 0.0
        self.bar.update(self.task, completed=saved.run.epochs)

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
            "seconds": round(self.before + self.seconds[-1], 6),
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
        stops = self.stopping is not None and self.stopping.stopped
        if asked := int(largest(np.int32(self.interrupts.asked), self.mesh)):  # of all processes
            self.ended = f"interrupted: training ended with epoch {epoch.number}"
            self.status = asked
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
            self._print(reason)

    def _say(self, number: int, live: str) -> None:
        """Where no bar is shown, print a line: of the first epoch, the last, and every 5 s."""
        now, last = self.seconds[-1], bool(self.ended) or number == self.epochs
        if not self.bar.disable or not (last or now - self.last_line >= _BETWEEN_LINES):
            return
        self.last_line = now
        others = len(self.seconds) - 1  # epochs of this session after the first, which compiles
        pace = (now - self.seconds[0]) / others if others else 0.0  # seconds an epoch
        left = f", about {(self.epochs - number) * pace:.0f} s left" if pace and not last else ""
        self._print(f"epoch {number}/{self.epochs}: {live}, after {now:.1f} s{left}")

    def _print(self, line: str) -> None:
        """Print a line; where nobody reads it any more, ask to end, so that the epoch is saved."""
        try:
            self.bar.console.print(line, soft_wrap=True)
        except BrokenPipeError:
            self.interrupts.asked = CLOSED_PIPE

    @property
    def kept(self) -> Epoch:
        """The latest epoch, or the best if patience asked for it."""
        best = self.stopping and self.stopping.best
        return best or self.latest
