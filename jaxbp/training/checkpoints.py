"""Checkpoints: a run on disk, written by Orbax while training goes on; ``saved`` reads them.

Orbax writes a checkpoint under another name and renames it when it is whole; so whoever kills the
process leaves those that there were.
"""

import errno
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from importlib.util import find_spec
from numbers import Integral
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxbp.parallel import is_first
from jaxbp.training.inputs import Inputs
from jaxbp.training.records import Epoch, NonFiniteLossError, history_of
from jaxbp.training.run import Run, epochs_done
from jaxbp.training.saved import FORMAT, Folder, Saved, digest_of, is_key, opened, steps_in
from jaxbp.trees import named_leaves

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_UNFINISHED = ".orbax-checkpoint-tmp"  # in the name of one that is not whole yet
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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

    def __init__(
        self,
        folder: Folder,
        every: int | timedelta,
        keep: int,
        resume: Any,
        mesh: Mesh | None = None,
    ) -> None:
        """Check all that can be checked before any device work.

        folder: new, empty, or of the run that goes on.
        every: epochs, or time, from one checkpoint to the next.
        keep: how many of the newest stay.
        resume: what the run goes on with, maybe this folder.
        mesh: of the devices that train; of several processes the first alone writes.  None unless
            given.
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
        self._is_idle = not is_first(mesh)  # whether another process writes
        self._inputs: Inputs = {}
        self._ended: tuple[Run, list[Epoch], int, Epoch | None] | None = None
        self._stack = ExitStack()  # what is to be undone at the end
        self._orbax, self._manager = None, None  # imported and made for the first checkpoint
        self._written, self._at = 0, 0.0  # the last one's epoch, and when it was
        self._pending = self._failed = False

    @classmethod
    def of(
        cls,
        folder: Folder | None,
        every: int | timedelta,
        keep: int,
        resume: Any,
        mesh: Mesh | None = None,
    ) -> "Checkpoints | None":
        """The checkpoints in a folder; None where none is given."""
        return None if folder is None else cls(folder, every, keep, resume, mesh)

    @property
    def epochs(self) -> int | None:
        """Epochs from one checkpoint to the next; None where time decides."""
        return int(self.every) if isinstance(self.every, Integral) else None

    def begin(self, inputs: Inputs, done: int) -> None:
        """Make the folder, for a run of these inputs that has done some epochs; OSError where it
        cannot be written."""
        self._inputs, self._written = inputs, done
        if self._is_idle:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        probe = self.folder / f".{os.getpid()}"
        probe.touch()
        probe.unlink()

    def __enter__(self) -> "Checkpoints":
        if not self._is_idle:
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
        if self._is_idle:
            return
        epochs = epochs_done(run)
        self._ended = run, record, len(record), best
        if self._pending and not self._manager.is_saving_in_progress():  # type: ignore[attr-defined]
            self._wait()
        if isinstance(self.every, timedelta):
            is_time = time.monotonic() - self._at >= self.every.total_seconds()
            due = is_time and not self._pending
        else:
            due = epochs % self.every == 0
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
        if self._ended is None or epochs_done(self._ended[0]) <= self._written:
            return
        run, record, count, best = self._ended
        epochs = epochs_done(run)
        with self._failing():
            if self._manager is None:
                context = opened(self.folder, self.keep, self._written)
                self._orbax, self._manager = self._stack.enter_context(context)
            described, arrays = _described(run, record[:count], best, self._inputs)
            args: Any = self._orbax.args  # type: ignore[attr-defined]
            items = {"arrays": args.PyTreeSave(arrays), "record": args.JsonSave(described)}
            self._pending = True
            self._manager.save(epochs, args=args.Composite(**items))  # type: ignore[attr-defined]
        self._written, self._at = epochs, time.monotonic()

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


def no_checkpoints_in(folder: Path) -> list[str]:
    """The names of what else a folder holds than checkpoints."""
    names = sorted(path.name for path in folder.iterdir())
    return [name for name in names if not (name.isdecimal() or _UNFINISHED in name)]


def _check_folder(folder: Path, *, goes_on: bool) -> None:
    """Raise OSError for a folder that holds anything else, or another run."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise NotADirectoryError(f"checkpoint: {folder} is not a folder")
    if others := no_checkpoints_in(folder):
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
    networks = () if run.diverged is None else run.diverged.shape
    history = history_of(record, networks=networks, validated=is_validated, layers=layers)
    if best is not None and best.number not in {epoch.number for epoch in record}:
        best = None  # of a run before this one, whose record is not known
    named = {
        **named_leaves(run.params, "params"),
        **named_leaves(run.state, "state"),
        **named_leaves(history, "history"),
        **named_leaves(() if best is None else best.params, "best"),
        "key": run.key,
    }
    if run.diverged is not None:
        named["diverged"] = run.diverged
    arrays = {
        name: np.asarray(jax.random.key_data(leaf) if is_key(leaf) else leaf)
        for name, leaf in named.items()
        if leaf.size  # Orbax takes none without numbers
    }
    described = {
        "format": FORMAT,
        "epochs": epochs_done(run),
        "best": None if best is None else int(best.number),
        "inputs": inputs,
    }
    return described | {"digest": digest_of(described, arrays)}, arrays
