"""The watch of a training: a line of each epoch for the eye and in ``metrics.jsonl``, and its end.

Training ends early where the validation loss no longer falls, if patience is asked for, and where a
signal or a closed pipe asks for it.
"""

import errno
import json
import math
import os
import time
from typing import IO, Any

import numpy as np
from jax.sharding import Mesh
from rich.progress import Progress

from jaxbp.cli.interrupts import CLOSED_PIPE, Interrupts
from jaxbp.cli.plan import Plan
from jaxbp.cli.score_tables import decimals
from jaxbp.diagnostics.health import sample
from jaxbp.model import Params
from jaxbp.parallel import everywhere, largest
from jaxbp.text import plain
from jaxbp.training.checks import checked_batch
from jaxbp.training.early_stopping import EarlyStopping
from jaxbp.training.metrics import compiled_evaluation
from jaxbp.training.records import Epoch
from jaxbp.training.saved import Saved

_COLUMNS = 60  # of text that the terminal needs to show the metric in a line
_BETWEEN_LINES = 5.0  # seconds, where no bar can be shown


class Watch:
    """``on_epoch``: shows and records each epoch, and decides whether it was the last.

    The training loss is measured as the validation loss is: after the epoch, without smoothing, and
    on about as many rows.
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
        self.unread = 0  # the exit status of an end by a closed pipe, once there is one
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
        self.ended = self._stopped_early()
        self.before = lines[-1]["seconds"] if lines else 0.0
        self.bar.update(self.task, completed=saved.run.epochs)

    def show_compiling(self, goes_on: bool) -> None:
        """Say what is done where there is no loss to show yet: compiling, or the first epoch."""
        if not self.seconds:
            self.bar.update(self.task, live="compiling" if goes_on else "first epoch")

    def __call__(self, epoch: Epoch) -> bool:
        """Whether training ends with this epoch."""
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
        self.ended = self._stopped_early()
        asked = self.interrupts.asked or self.unread
        if asked := int(largest(np.int32(asked), self.mesh)):  # of all processes
            self.ended = f"interrupted: training ended with epoch {epoch.number}"
            self.status, self.interrupts.asked = asked, 0  # which is met
        self._say(epoch.number, live)
        return bool(self.ended)

    def _stopped_early(self) -> str:
        """Say that the latest epoch was the last for lack of patience; empty where it was not."""
        if self.stopping is None or not self.stopping.stopped:
            return ""
        return (
            f"stopped early: the validation loss was best after epoch {self.kept.number} "
            f"of {self.latest.number}, and those parameters are kept"
        )

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
        """Print a line.  Where nobody reads it any more, training ends with the next epoch, and all
        is saved."""
        try:
            self.bar.console.print(line, soft_wrap=True)
        except BrokenPipeError:
            self.unread = CLOSED_PIPE

    @property
    def kept(self) -> Epoch:
        """The latest epoch, or the best if patience asked for it."""
        best = self.stopping and self.stopping.best
        return best or self.latest
