"""``jaxbp train``: check the gradient, train, and leave a report and a run folder behind."""

import math
import os
import time
from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import IO, Annotated, Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console
from tyro.conf import arg

from jaxbp.cli.compile_time import CompileTime
from jaxbp.cli.distributed import check_same_run, together
from jaxbp.cli.files import (
    BEFORE,
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
from jaxbp.cli.interrupts import NOTHING_MORE, Interrupts
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
from jaxbp.cli.watch import Watch
from jaxbp.model import Params
from jaxbp.parallel import is_first, largest
from jaxbp.training.checkpoints import alone_in
from jaxbp.training.progress import bar_of_epochs
from jaxbp.training.records import Epoch
from jaxbp.training.saved import Saved

_LONG = {"bytes": 50e6, "parameters": 2e6}  # of a file, of a network: what takes seconds to begin


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
    before, options = _checked(options, mesh)
    told = nullcontext() if before is None else telling(console)
    with Interrupts(console) as interrupts, told:
        size = os.path.getsize(options.data) if os.path.isfile(options.data) else 0
        if size > _LONG["bytes"] or os.path.isdir(options.data):
            console.print(f"reading {options.data}", soft_wrap=True)
        plan = decide(options, mesh)
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


def _checked(options: Train, mesh: Mesh | None) -> tuple[Path | None, Train]:
    """The folder of the run that is to go on, if there is one, and the options to go on with.

    options: as they came.
    mesh: of the devices that train together; one device unless given.

    Raises UsageError for what cannot be carried out, before any work.
    """
    before = options.resume
    if before is not None and options.overwrite:
        raise UsageError("--overwrite: got it beside --resume, which goes on with what is there")
    if before is not None:
        options = going_on(before, options)
    elif options.overwrite and options.output is None:
        raise UsageError("--overwrite: name the folder of the run to replace by --output")
    elif is_first(mesh):
        new_folder("--output", options.output, overwrite=options.overwrite)
    if options.checkpoint_every != "minute" and options.checkpoint_every < 1:
        raise UsageError(f"--checkpoint-every: got {options.checkpoint_every}, expected at least 1")
    options = with_stream(options)
    streams = bool(largest(np.int32(options.stream), mesh))  # where one machine has to, all do
    return before, replace(options, stream=streams)


def _is_complete(folder: Path, plan: Plan, saved: Saved | None, console: Console) -> bool:
    """Whether a run has its results and nothing to go on to; if so, say why."""
    why = "" if saved is None or not (folder / REPORT).exists() else end_of(plan, saved)
    if why:
        console.print(f"{folder} is complete: {why}", soft_wrap=True)
    return bool(why)


def _save(folder: Path, summary: Summary, interrupts: Interrupts, console: Console) -> None:
    """Write the run, and print it: a full disk takes the files, and not the scores.

    Ctrl-C leaves out what can be made of the last checkpoint again: all but the network.  A network
    that no epoch has trained replaces none.
    """
    if not summary.outcome.kept_epoch and (folder / f"{NETWORK}{BEFORE}").exists():
        print_run(summary, console)
        console.print(f"{folder} keeps the run that was there", soft_wrap=True)
        return
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
        watch = Watch(plan, params, bar, file, interrupts, mesh)
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
        before=watch.before,
        ended=ended,
        status=1 if trained.diverged is not None else watch.status,
        full_disk=failed,
    )


def _fitted(
    plan: Plan, params: Params, folder: Path | None, watch: Watch, saved: Saved | None
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
