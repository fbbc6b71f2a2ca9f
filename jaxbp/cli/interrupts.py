"""Interrupts: Ctrl-C, SIGTERM and SIGHUP as requests that a run heeds where nothing is lost.

Python calls a signal's handler between two steps of its main thread, and so not while XLA compiles
there, which may take minutes.  A thread of its own hears of the signal at once.
"""

import os
import signal
import socket
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from rich.console import Console

INTERRUPTED = 130  # the exit status that shells give an end by Ctrl-C; SIGTERM's is 143
CLOSED_PIPE = 141  # and a program that writes to a closed pipe
NOTHING_SAVED = "interrupted; nothing was saved"
NOTHING_MORE = "interrupted; nothing was saved after the last checkpoint"

#: what ends a run: Ctrl-C; ``kill``, Slurm, Docker and Kubernetes; a terminal that is closed
SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]
_GRACE = 1.0  # seconds that the main thread has to end by itself


@contextmanager
def ending_in_time(console: Console) -> Iterator[None]:
    """End the process after Ctrl-C where the block does not end, as while XLA compiles.

    A KeyboardInterrupt in a callback of the garbage collector, as JAX has one, would be lost, with
    a traceback: it is raised again.
    """
    over, usual = threading.Event(), sys.unraisablehook

    def hear(number: int) -> None:
        if number == signal.SIGINT and not over.wait(_GRACE):
            _end_now(console, number)

    def again(lost: Any) -> None:
        if lost.exc_type is KeyboardInterrupt and not over.is_set():
            threading.Timer(0.01, signal.raise_signal, [signal.SIGINT]).start()
        else:
            usual(lost)

    with _heard_at_once(hear):
        sys.unraisablehook = again
        try:
            yield
        finally:
            over.set()
            if sys.unraisablehook is again:  # else another one has it below, and hands on to it
                sys.unraisablehook = usual


class Interrupts:
    """Ctrl-C as a request: the first ends the run after the epoch, a second one at once.

    Before training ``begins`` there is nothing to lose, and the first ends the run as soon as the
    main thread comes to a ``check``, or a second later.  When it is over, the results are written
    (``write``), and the first ends the run when the one that matters most is.  SIGTERM and SIGHUP
    are requests too, however often they come.  An exception in the midst of a compilation could
    bring down the interpreter, or be lost.  A signal that is ignored from the start, as SIGHUP is
    under nohup and SIGINT in the background of a script, stays ignored: whoever started the command
    there did not want it to be reached.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self.asked = 0  # the exit status of what asked last for an end; 0: nothing has
        self.heard = False
        self.answer = ""  # to the first request; empty where there is nothing to lose
        self.lost = NOTHING_SAVED  # by the second
        self.over = threading.Event()
        self.usual: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interrupts":
        self.hearing = _heard_at_once(self._hear)
        self.hearing.__enter__()
        if _is_main_thread():
            for each in SIGNALS:
                if signal.getsignal(each) is not signal.SIG_IGN:
                    self.usual[each] = signal.signal(each, self._ask)
        return self

    def __exit__(self, *error: Any) -> None:
        self.over.set()
        for each, usual in self.usual.items():
            signal.signal(each, usual)
        self.hearing.__exit__(*error)

    def _ask(self, number: int, _: object) -> None:
        """Ask the main thread to end, between two of its steps."""
        if number == getattr(signal, "SIGHUP", None):
            _leave_the_terminal()
        self.asked = 128 + number

    def _hear(self, number: int) -> None:
        """Tell what becomes of a signal, or end the process, while the main thread may compile."""
        first, self.heard = not self.heard, True
        if not first:
            if number == signal.SIGINT:
                _end_now(self.console, number, self.lost)
            return
        if not self.answer and self.over.wait(_GRACE):
            return
        if not self.answer:
            _end_now(self.console, number)
        with suppress(OSError):  # of a terminal that is gone
            self.console.print(self.answer)

    def check(self) -> None:
        """End the command here if that was asked for."""
        if self.asked:
            raise KeyboardInterrupt(self.asked)

    def begin(self, lost: str = NOTHING_SAVED) -> None:
        """Say that training begins: from now on there is something to save.

        lost: what is said where a second Ctrl-C ends it at once.
        """
        self.check()
        self.answer = "ending after this epoch (Ctrl-C again: at once, without saving)"
        self.lost = lost

    def write(self, first: str) -> None:
        """Say that training is over, and that what is asked from now on waits for the first of the
        results: "the network is saved"."""
        self.heard = False
        self.answer = f"ending as soon as {first} (Ctrl-C again: at once)"


@contextmanager
def _heard_at_once(hear: Callable[[int], None]) -> Iterator[None]:
    """Call a function with the number of each signal, in a thread, before the signal's handler.

    It is for the main thread alone; the block of another hears nothing.
    """
    if not _is_main_thread():
        yield
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)

    def listen() -> None:
        while number := reader.recv(1):
            hear(number[0])

    thread = threading.Thread(target=listen, daemon=True)
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        writer.close()
        thread.join()
        reader.close()


def _end_now(console: Console, number: int, said: str = NOTHING_SAVED) -> None:
    """End the process, whatever its main thread does."""
    with suppress(OSError):
        console.show_cursor()  # which a progress bar hides
        sys.stdout.flush()
        print(f"jaxbp: {said}", file=sys.stderr, flush=True)
    os._exit(128 + number)


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _leave_the_terminal() -> None:
    """Print nowhere from now on, where it was to a terminal: one that is gone raises an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        if stat.S_ISCHR(os.fstat(stream).st_mode):
            os.dup2(nowhere, stream)
    os.close(nowhere)
