"""Checkpoints: a run on disk, written by Orbax while training goes on, and read again.

    FOLDER/N/arrays   parameters, optimiser's state, key, history, and the best epoch's parameters
    FOLDER/N/record   JSON: the inputs of the run, and a digest of all this (SHA-256)

Orbax writes a checkpoint, here of N epochs, under another name and renames it when it is whole; so
whoever kills the process leaves those that there were.  It does not notice a number that has been
changed in a file, and the digest does.  Nothing is pickled.
"""

import errno
import importlib
import json
import logging
import os
import re
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from functools import cache
from hashlib import sha256
from importlib.util import find_spec
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxbp.diagnostics.health import Health
from jaxbp.model import Layer, Params
from jaxbp.reprs import short
from jaxbp.training.inputs import Inputs
from jaxbp.training.metrics import Evaluation
from jaxbp.training.records import Epoch, NonFiniteLossError, history_of
from jaxbp.training.run import Run
from jaxbp.trees import named_leaves

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

Folder = str | os.PathLike[str]

_FORMAT = "jaxbp run 1"
_UNFINISHED = ".orbax-checkpoint-tmp"  # in the name of one that is not whole yet
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Saved(NamedTuple):
    """The contents of a checkpoint."""

    folder: Path
    run: Run
    record: tuple[Epoch, ...]  # the epochs done, without their parameters
    best: Epoch | None  # by validation, with its parameters
    inputs: Inputs


def load_run(folder: Folder, optimizer: optax.GradientTransformation) -> Run:
    """The run of the newest whole checkpoint in a folder, to go on with in another way.

    ``fit(..., resume=folder)`` refuses other data, another learning rate or schedule;
    ``fit(..., resume=load_run(folder, optimizer))`` takes them, and its history begins there.
    The optimiser needs a state like the run's.  Raises FileNotFoundError where the folder holds no
    checkpoint, and ValueError where none is whole, or the state does not fit.
    """
    return newest(folder, optimizer).run


def resumed(
    resume: Any, checkpoints: "Checkpoints | None", optimizer: optax.GradientTransformation
) -> tuple[Saved | None, Any]:
    """Read the newest checkpoint -> (its contents, the run to go on with); None for what is not.

    resume: as for ``fit``.
    checkpoints: to be written.
    optimizer: of the run.
    """
    if isinstance(resume, str | os.PathLike):
        if checkpoints is not None and checkpoints.begins:
            return None, None
        resume = newest(resume, optimizer)
    return (resume, resume.run) if isinstance(resume, Saved) else (None, resume)


def newest(folder: Folder, optimizer: optax.GradientTransformation) -> Saved:
    """Read the newest checkpoint that is whole; a UserWarning tells of each that is not."""
    place = Path(folder)
    if not (steps := steps_in(place)):
        raise FileNotFoundError(f"resume: {place} holds no checkpoint")
    with _opened(place) as (orbax, manager):
        for step in reversed(steps):
            try:
                record, arrays = _read(orbax, manager, step)
            except _DamagedError as damage:
                told = f"resume: {place / str(step)} is damaged, and passed over: {damage}"
                warnings.warn(told, stacklevel=3)
            else:
                return _saved(place, record, arrays, optimizer)
    raise ValueError(f"resume: {place} holds no checkpoint that is whole")


def steps_in(folder: Path) -> list[int]:
    """The numbers of epochs that a folder has checkpoints of, from the first."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isdecimal())


class _DamagedError(Exception):
    """A checkpoint cannot be read, or is not as it was written."""


def _read(orbax: Any, manager: Any, step: int) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The record and the arrays of a checkpoint."""

    def restored(name: str, item: Any) -> Any:
        return manager.restore(step, args=orbax.args.Composite(**{name: item}))[name]

    try:
        record = restored("record", orbax.args.JsonRestore())
        arrays = restored("arrays", orbax.args.PyTreeRestore())
        digest = record.pop("digest")
        is_whole = digest == _digest(record, arrays)
    except MemoryError:
        raise
    except Exception as error:  # of JSON, TensorStore or Orbax
        raise _DamagedError(str(error).partition("\n")[0][:100]) from None
    if not is_whole:
        raise _DamagedError("it has been changed since it was written")
    return record, arrays


def _digest(record: dict[str, Any], arrays: dict[str, np.ndarray]) -> str:
    digest = sha256(json.dumps(record, sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _saved(
    place: Path,
    record: dict[str, Any],
    arrays: dict[str, np.ndarray],
    optimizer: optax.GradientTransformation,
) -> Saved:
    """The contents of a whole checkpoint.  Raises ValueError where they do not fit."""
    if record["format"] != _FORMAT:
        raise ValueError(f"resume: {place} holds {record['format']!r}, expected {_FORMAT!r}")
    wide = [name for name, each in arrays.items() if jnp.asarray(each).dtype != each.dtype]
    if wide := [name for name in wide if not name.startswith("history")]:
        raise ValueError(
            f"resume: {place} holds {wide[0]} in {arrays[wide[0]].dtype}, and jax_enable_x64 is off"
        )
    params = _layers("params", arrays)
    template = jax.eval_shape(optimizer.init, params)
    expected = named_leaves(template, "state")
    got = {name: each for name, each in arrays.items() if name.startswith("state")}
    if {name: _kind(leaf) for name, leaf in expected.items() if leaf.size} != {
        name: _kind(each) for name, each in got.items()
    }:
        raise ValueError(
            f"resume: the checkpoint in {place} is of another run: its optimizer had the state "
            f"{record['inputs']['optimizer']}, and this one has {short(template)}"
        )
    leaves = [_leaf(like, got.get(name)) for name, like in expected.items()]
    state = jax.tree.unflatten(jax.tree.structure(template), leaves)
    epochs = _epochs(record["epochs"], arrays)
    best = None
    if record["best"] is not None:
        (best,) = (epoch for epoch in epochs if epoch.number == record["best"])
        best = best._replace(params=_layers("best", arrays))
    run = Run(params, state, record["epochs"], arrays["key"])
    return Saved(place, run, epochs, best, record["inputs"])


def _layers(root: str, arrays: dict[str, np.ndarray]) -> Params:
    count = sum(name.startswith(f"{root}[") for name in arrays) // len(Layer._fields)
    return tuple(
        Layer(*(jnp.asarray(arrays[f"{root}[{layer}].{field}"]) for field in Layer._fields))
        for layer in range(count)
    )


def _kind(leaf: Any) -> Any:
    """Shape and dtype of a leaf as it is written: a key is, by its numbers."""
    leaf = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
    return leaf.shape, leaf.dtype


def _is_key(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def _leaf(like: Any, array: np.ndarray | None) -> Any:
    if array is None:  # one without any numbers, which is not written
        return jnp.zeros(like.shape, like.dtype)
    if _is_key(like):
        impl = jax.random.key_impl(jnp.zeros((), like.dtype))
        return jax.random.wrap_key_data(jnp.asarray(array), impl=impl)
    return jnp.asarray(array)


def _epochs(done: int, arrays: dict[str, np.ndarray]) -> tuple[Epoch, ...]:
    """The record of the last epochs done, from the arrays of its history."""
    history = {
        name.removeprefix("history."): each
        for name, each in arrays.items()
        if name.startswith("history.")
    }
    losses, count = history["training_loss"], len(history["training_loss"])
    validated = "validation_loss" in history
    fields = [history.get(f"health.{field}") for field in Health._fields]
    return tuple(
        Epoch(
            number=done - count + place + 1,
            params=(),
            training_loss=float(losses[place]),
            validation=Evaluation(
                float(history["validation_loss"][place]), float(history["metric"][place])
            )
            if validated
            else None,
            health=None if fields[0] is None else Health(*(each[place] for each in fields)),  # type: ignore[index]
        )
        for place in range(count)
    )


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Let no other process write a run to a folder; BlockingIOError where one is at it.

    The lock goes with the process.  Where the system has none of this kind, there is none.
    """
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise BlockingIOError(error.errno, "in use by another process", str(folder)) from None
    except OSError:  # as of some file systems on a network
        pass
    try:
        yield
    finally:
        os.close(handle)


class Checkpoints:
    """The checkpoints that a training writes to a folder: a context of the training.

    It is left after the last epoch, or by Ctrl-C, SIGTERM or an exception, when the last epoch that
    ended is on the disk; where training diverged, those that there were are left as they are.
    """

    def __init__(self, folder: Folder, every: int | timedelta, keep: int, resume: Any) -> None:
        """Check all that can be checked before any device work.

        folder: new, empty, or of the run that goes on.
        every: epochs, or time, from one checkpoint to the next.
        keep: how many of the newest stay.
        resume: what the run goes on with, maybe this folder.
        """
        self.folder, self.every, self.keep = Path(folder), every, keep
        _check_numbers(every, keep)
        if find_spec("orbax") is None or find_spec("orbax.checkpoint") is None:
            raise ImportError("checkpoint needs orbax-checkpoint: pip install 'jaxbp[checkpoint]'")
        resumed = resume.folder if isinstance(resume, Saved) else resume
        is_folder = isinstance(resumed, str | os.PathLike)
        goes_on = is_folder and Path(resumed).resolve() == self.folder.resolve()
        _check_folder(self.folder, goes_on=goes_on)
        self.begins = goes_on and not steps_in(self.folder)
        self._inputs: Inputs = {}
        self._ended: tuple[Run, list[Epoch], int, Epoch | None] | None = None
        self._stack = ExitStack()  # what is to be undone at the end
        self._orbax, self._manager = None, None  # imported and made for the first checkpoint
        self._written, self._at = 0, 0.0  # the last one's epoch, and when it was
        self._pending = self._failed = False

    @classmethod
    def of(
        cls, folder: Folder | None, every: int | timedelta, keep: int, resume: Any
    ) -> "Checkpoints | None":
        """The checkpoints in a folder; None where none is given."""
        return None if folder is None else cls(folder, every, keep, resume)

    @property
    def epochs(self) -> int | None:
        """Epochs from one checkpoint to the next; None where time decides."""
        return int(self.every) if isinstance(self.every, Integral) else None

    def begin(self, inputs: Inputs, done: int) -> "Checkpoints":
        """Make the folder, for a run of these inputs that has done some epochs; OSError otherwise.

        Checkpoints there of more epochs than it has done are damaged, and are removed.
        """
        self._inputs, self._written = inputs, done
        self.folder.mkdir(parents=True, exist_ok=True)
        probe = self.folder / f".{os.getpid()}"
        probe.touch()
        probe.unlink()
        return self

    def __enter__(self) -> "Checkpoints":
        self._stack.enter_context(alone_in(self.folder))
        self._at = time.monotonic()
        in_main_thread = threading.current_thread() is threading.main_thread()
        if in_main_thread and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            self._stack.callback(signal.signal, signal.SIGTERM, signal.SIG_DFL)
            signal.signal(signal.SIGTERM, _end)
        return self

    def after(self, run: Run, record: list[Epoch], best: Epoch | None) -> None:
        """Note that an epoch has ended, and begin to write a checkpoint if it is time.

        run: after the epoch; nothing may change its arrays.
        record: of the epochs; more may be appended.
        best: the best of them by validation, with its parameters.

        Raises OSError where an earlier checkpoint could not be written.
        """
        self._ended = run, record, len(record), best
        if self._pending and not self._manager.is_saving_in_progress():  # type: ignore[attr-defined]
            self._wait()
        if isinstance(self.every, timedelta):
            is_time = time.monotonic() - self._at >= self.every.total_seconds()
            due = is_time and not self._pending
        else:
            due = run.epochs % self.every == 0
        if due:
            self._write()

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            with self._stack:
                if not (self._failed or isinstance(error, NonFiniteLossError)):
                    self._write()
                if self._pending:
                    self._wait()
        except OSError as failure:
            if error is None:
                raise
            error.add_note(f"Its last epochs are not on the disk: {failure}")

    def _write(self) -> None:
        """Begin to write a checkpoint of the last epoch that ended, if there is none yet."""
        if self._ended is None or self._ended[0].epochs <= self._written:
            return
        run, record, count, best = self._ended
        with self._failing():
            if self._manager is None:
                opened = _opened(self.folder, self.keep, self._written)
                self._orbax, self._manager = self._stack.enter_context(opened)
            described, arrays = _described(run, record[:count], best, self._inputs)
            args: Any = self._orbax.args  # type: ignore[attr-defined]
            items = {"arrays": args.PyTreeSave(arrays), "record": args.JsonSave(described)}
            self._pending = True
            self._manager.save(run.epochs, args=args.Composite(**items))  # type: ignore[attr-defined]
        self._written, self._at = run.epochs, time.monotonic()

    def _wait(self) -> None:
        with self._failing():
            self._pending = False
            self._manager.wait_until_finished()  # type: ignore[attr-defined]

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """An error of Orbax or TensorStore as an OSError that names the folder."""
        try:
            yield
        except Exception as error:
            self._failed = True
            if isinstance(error, OSError) and error.filename:
                raise
            told = [number for number in _FULL if os.strerror(number) in str(error)]
            if isinstance(error, OSError) and error.errno is not None:
                told = [error.errno]
            number = (*told, errno.EIO)[0]
            raise OSError(number, os.strerror(number), str(self.folder)) from error


def _end(number: int, _: object) -> None:
    """SIGTERM ends the training as an exception does, with the exit status of shells."""
    raise SystemExit(128 + number)


def _check_numbers(every: Any, keep: Any) -> None:
    """Raise ValueError for what is no interval, or no number of checkpoints."""
    if isinstance(every, timedelta):
        right = every > timedelta(0)
    else:
        right = isinstance(every, Integral) and not isinstance(every, bool) and int(every) >= 1
    if not right:
        raise ValueError(
            f"checkpoint_every: got {every!r}, expected a positive number of epochs, or a "
            "datetime.timedelta"
        )
    if not isinstance(keep, Integral) or isinstance(keep, bool) or int(keep) < 1:
        raise ValueError(f"checkpoint_keep: got {keep!r}, expected at least 1")


def _check_folder(folder: Path, *, goes_on: bool) -> None:
    """Raise OSError for a folder that holds anything else, or another run."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise NotADirectoryError(f"checkpoint: {folder} is not a folder")
    others = [
        path.name
        for path in sorted(folder.iterdir())
        if not (path.name.isdecimal() or _UNFINISHED in path.name)
    ]
    if others:
        raise FileExistsError(f"checkpoint: {folder} holds {others[0]}, which is no checkpoint")
    if not goes_on and (steps := steps_in(folder)):
        raise FileExistsError(
            f"checkpoint: {folder} holds a run of {steps[-1]} epochs, and nothing is overwritten; "
            f"resume={str(folder)!r} goes on with it"
        )


def _described(
    run: Run, record: list[Epoch], best: Epoch | None, inputs: Inputs
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A checkpoint's record and its arrays, on the host."""
    is_validated = record[-1].validation is not None
    layers = None if record[-1].health is None else len(run.params)
    history = history_of(record, validated=is_validated, layers=layers)
    if best is not None and best.number not in {epoch.number for epoch in record}:
        best = None  # of a run before this one, whose record is not known
    named = {
        **named_leaves(run.params, "params"),
        **named_leaves(run.state, "state"),
        **named_leaves(history, "history"),
        **named_leaves(() if best is None else best.params, "best"),
        "key": run.key,
    }
    arrays = {
        name: np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
        for name, leaf in named.items()
        if leaf.size  # Orbax takes none without numbers
    }
    described = {
        "format": _FORMAT,
        "epochs": run.epochs,
        "best": None if best is None else int(best.number),
        "inputs": inputs,
    }
    return described | {"digest": _digest(described, arrays)}, arrays


@contextmanager
def _opened(folder: Path, keep: int | None = None, done: int = 0) -> Iterator[tuple[Any, Any]]:
    """Orbax, and its manager of the checkpoints in a folder.

    keep: how many stay, where it is to write; what is left of one that was not finished, and those
        of more than the epochs that are done, which are damaged, are then removed.

    Orbax logs what it raises too, at length and for each of its threads: that is left out.
    """
    orbax = importlib.import_module("orbax.checkpoint")
    log = logging.getLogger("absl")
    log.addFilter(_is_of_others)
    _leave_out_what_comes_late()
    try:
        options = orbax.CheckpointManagerOptions(
            preservation_policy=keep and orbax.checkpoint_managers.LatestN(int(keep)),
            create=False,
            cleanup_tmp_directories=keep is not None,
            lightweight_initialize=True,
            save_root_metadata=False,
        )
        manager = orbax.CheckpointManager(folder.absolute(), options=options)
        if keep:
            for step in steps_in(folder):
                if step > done:
                    manager.delete(step)
        try:
            yield orbax, manager
        finally:
            manager.close()
    finally:
        log.removeFilter(_is_of_others)


def _is_of_others(record: logging.LogRecord) -> bool:
    """Whether a line for the log is not Orbax's."""
    return not re.search(r"[\\/]orbax[\\/]", record.pathname)


@cache
def _leave_out_what_comes_late() -> None:
    """After an error in one array TensorStore tells Python of the others, some time later, where
    nobody waits for them any more: in an event loop that Orbax has closed."""
    usual = sys.unraisablehook

    def tell(report: Any) -> None:
        if str(report.exc_value) != "Event loop is closed" or report.object is not None:
            usual(report)

    sys.unraisablehook = tell
