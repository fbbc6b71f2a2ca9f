"""Going on with a run of ``jaxbp train``: what its folder remembers, from its first moment on.

``options.json`` has the options that it was started with, ``checkpoints`` what its epochs came to,
and ``metrics.jsonl`` a line for each.
"""

import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from jaxbp.cli.distributed import PROCESSES
from jaxbp.cli.files import CHECKPOINTS, METRICS, OPTIONS, naming
from jaxbp.cli.options import SCHEDULES, Design, UsageError
from jaxbp.cli.plan import Plan
from jaxbp.text import counted, significant
from jaxbp.training.checks import checked_data
from jaxbp.training.early_stopping import EarlyStopping
from jaxbp.training.inputs import AnotherRunError, check_inputs, data_of
from jaxbp.training.saved import Saved, newest, steps_in

_Options = TypeVar("_Options", bound=Design)

#: options that are of a session, not of the run
_ITS_OWN = {"epochs", "resume", "overwrite", "checkpoint_every", *PROCESSES}


def remember(folder: Path, options: Design) -> None:
    """Write the options of a run to its folder: all at once, as the process may be killed."""
    named = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in asdict(options).items()
    }
    path = folder / OPTIONS
    partly = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with naming(path):
            partly.write_text(json.dumps(named, indent=2) + "\n", encoding="utf-8")
            partly.replace(path)
    finally:
        partly.unlink(missing_ok=True)


def recorded(folder: Path, kind: type[_Options]) -> _Options:
    """The options that a run was started with.  Raises UsageError where there are none."""
    path = folder / OPTIONS
    known = {each.name: each for each in fields(kind)}
    try:
        named = json.loads(path.read_text(encoding="utf-8"))
        given = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in named.items()
            if known[name].init and name not in PROCESSES
        }
        made: Any = kind
        options: _Options = made(**given | {"output": folder, "overwrite": False})
        return options
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = error.strerror if isinstance(error, OSError) else repr(error)
        raise UsageError(
            f"--resume: {folder} holds no run to go on with ({OPTIONS}: {reason})"
        ) from None


def recorded_by(arguments: list[str], kind: type[_Options]) -> _Options | None:
    """The options of the run that --resume names in a command line; None where it names none."""
    for place, word in enumerate(arguments):
        option, _, value = word.partition("=")
        if option == "--resume":
            folder = value or next(iter(arguments[place + 1 :]), "")
            try:
                return recorded(Path(folder), kind)
            except UsageError:  # which is told when the options are there
                return None
    return None


def going_on(folder: Path, options: _Options) -> _Options:
    """The options to go on with.  Raises UsageError for one that the run began without."""
    before = recorded(folder, type(options))
    for name in (each.name for each in fields(options) if each.name not in _ITS_OWN):
        given, had = getattr(options, name), getattr(before, name)
        if given != had:
            option = "DATA" if name == "data" else f"--{name.replace('_', '-')}"
            raise UsageError(
                f"{option}: got {_shown(given)}, and the run in {folder} has {_shown(had)}; a run "
                "goes on as it was begun"
            )
    if options.epochs < before.epochs:
        raise UsageError(
            f"--epochs: got {options.epochs}, and the run in {folder} has {before.epochs}; they "
            "can only be raised"
        )
    session: Any = {"resume": None}
    return replace(options, **session)


def _shown(value: Any) -> str:
    return " ".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)


def saved_in(folder: Path, plan: Plan) -> Saved | None:
    """The newest whole checkpoint of a run; None where it has none yet.

    Raises UsageError where it is of other data.  The optimiser's numbers and program are not
    compared: they are made of the run's own options, and where epochs are raised a schedule has
    others.
    """
    checkpoints = folder / CHECKPOINTS
    if not steps_in(checkpoints):
        return None
    try:
        saved = newest(checkpoints, plan.optimizer)
        _check_sizes(folder, plan, saved)
        own = plan.to_fit, plan.parts["validation"]
        batch, validation = checked_data(plan.model, saved.run.params, *own)
        data = data_of(batch if plan.stream is None else plan.stream, validation)
        check_inputs(folder, saved.inputs, data)
    except AnotherRunError as error:
        raise UsageError(f"--resume: {folder} is of other data: {error.differs}") from None
    except ValueError as error:
        raise UsageError(f"--{error}") from None
    made = {"optimizer's numbers": None, "optimizer's program": None}
    return saved._replace(inputs=saved.inputs | made)


def _check_sizes(folder: Path, plan: Plan, saved: Saved) -> None:
    """Raise UsageError where the data have become those of another network."""
    params, sizes = saved.run.params, plan.model.sizes
    had, now = (
        f"{counted(inputs, 'input')} and {counted(outputs, 'output')}"
        for inputs, outputs in (
            (params[0].weight.shape[1], params[-1].weight.shape[0]),
            (sizes[0], sizes[-1]),
        )
    )
    if had != now:
        raise UsageError(f"--resume: {folder} is of other data: they had {had}, and now {now}")


def end_of(plan: Plan, saved: Saved) -> str:
    """Why a run has nothing to go on to; empty where it has."""
    done = saved.run.epochs
    if plan.patience:
        stopping = EarlyStopping(plan.patience)
        stopping.go_on(saved.best, done)
        if stopping.stopped:
            best = stopping.best.number
            return f"it stopped early after epoch {done}, and epoch {best} was the best"
    if done >= plan.options.epochs:
        return f"it has trained {done} epochs, and a larger --epochs goes on"
    return ""


def tell_where(folder: Path, plan: Plan, saved: Saved | None, console: Console) -> None:
    """Say after which epoch a run goes on, and what becomes of its learning rate."""
    if saved is None:
        console.print(f"{folder} has no checkpoint yet: it begins anew", soft_wrap=True)
        return
    done, options = saved.run.epochs, plan.options
    console.print(f"going on after epoch {done} of {options.epochs}", soft_wrap=True)
    if plan.stream is not None:
        console.print(
            "the training rows on the disk are to be those it began with: they are not compared",
            soft_wrap=True,
        )
    raised = recorded(folder, type(options)).epochs != options.epochs
    if raised and options.schedule != "constant" and plan.learning_rate is not None:
        schedule = SCHEDULES[options.schedule](plan.learning_rate, plan.steps * options.epochs)
        rate = significant(float(schedule(plan.steps * done)), 3)
        console.print(
            f"the {options.schedule} schedule is now that of {options.epochs} epochs: the learning "
            f"rate goes on at {rate}",
            soft_wrap=True,
        )


def lines_until(folder: Path, epoch: int) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl up to an epoch; what follows them is cut off.

    Raises UsageError where one of them is missing.
    """
    path = folder / METRICS
    if not epoch and not path.exists():
        return []
    content = path.read_bytes() if path.exists() else b""
    lines = content.splitlines(keepends=True)[:epoch]
    try:
        records: list[dict[str, Any]] = [json.loads(line) for line in lines]
        numbers = [record["epoch"] for record in records]
    except (ValueError, KeyError, TypeError):
        numbers = []
    if numbers != list(range(1, epoch + 1)):
        raise UsageError(
            f"--resume: {path} has not the lines of the {epoch} epochs that are done; without them "
            "the run cannot be recorded as one"
        )
    with naming(path):
        os.truncate(path, sum(map(len, lines)))
    return records


@contextmanager
def telling(console: Console) -> Iterator[None]:
    """Print a warning, such as that of a damaged checkpoint, as a line."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = lambda message, *_, **__: console.print(str(message), soft_wrap=True)
        yield
