"""A progress bar for a training, by rich: in a terminal and in a notebook, and nowhere else."""

import importlib
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

_BETWEEN_DRAWINGS = 0.1  # seconds, in a notebook
_WIDE = 80  # columns of text that a line with the bar needs


def bar_of_epochs(console: Any) -> Any:
    """rich's ``Progress`` with columns for epochs, which draws itself where the console is a
    terminal.

    A task's field ``live`` is the text beside the bar.
    """
    progress = importlib.import_module("rich.progress")
    epoch = progress.TextColumn("epoch {task.completed:g}/{task.total}", markup=False)
    live = progress.TextColumn("{task.fields[live]}", markup=False)
    times = progress.TimeElapsedColumn(), progress.TimeRemainingColumn(compact=True)
    wide = epoch, progress.BarColumn(bar_width=10), live, *times
    return progress.Progress(
        *(wide if console.width >= _WIDE else (epoch, live)),
        console=console,
        disable=not console.is_terminal,
    )


@contextmanager
def shown(progress: bool, done: int, epochs: int) -> Iterator[Callable[[float, Any, Any], None]]:
    """Show a bar, if there is to be one -> a function of an epoch's number, its mean training loss
    and its ``Evaluation``, or None; of many networks the medians are shown.  The number of an epoch
    that goes on is a fraction.

    progress: whether to show a bar, which needs rich; without rich a UserWarning says so.
    done: epochs before the first.
    epochs: in all.
    """
    bar = _bar() if progress else None
    if bar is None:
        yield lambda number, loss, validation: None
        return
    task = bar.add_task("", total=epochs, completed=done, live="compiling")
    with _drawn(bar) as draw:

        def show(number: float, loss: Any, validation: Any) -> None:
            bar.update(task, completed=round(number, 2), live=_live(loss, validation))
            draw()

        yield show


@contextmanager
def _drawn(bar: Any) -> Iterator[Callable[[], None]]:
    """Draw a bar until the end -> what is to be called when it has moved.

    In a notebook rich draws by ipywidgets alone, and without them nothing; IPython's display, which
    is always there, needs no more than to be told.
    """
    if not bar.console.is_jupyter:
        with bar:
            yield lambda: None
        return
    handle = importlib.import_module("IPython.display").display(bar, display_id=True)
    last = time.monotonic()

    def draw() -> None:
        nonlocal last
        if time.monotonic() - last >= _BETWEEN_DRAWINGS:
            handle.update(bar)
            last = time.monotonic()

    try:
        yield draw
    finally:
        handle.update(bar)


def _bar() -> Any:
    try:
        console = importlib.import_module("rich.console").Console(stderr=True)
    except ModuleNotFoundError:
        warnings.warn("progress: a bar needs rich: pip install rich", stacklevel=7)
        return None
    return bar_of_epochs(console)


def _live(loss: Any, validation: Any) -> str:
    """The text beside the bar."""
    text = f"loss {_median(loss)}"
    if validation is not None:
        text += f", validation {_median(validation.loss)}, metric {_median(validation.metric)}"
    return text


def _median(values: Any) -> str:
    finite = np.asarray(values)[np.isfinite(values)]
    return f"{np.median(finite):.4g}" if finite.size else "nan"
