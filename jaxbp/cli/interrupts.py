"""Interrupts: Ctrl-C, SIGTERM and SIGHUP as requests that a run heeds where nothing is lost."""

import os
import signal
import stat
import sys
import threading
from contextlib import suppress
from typing import Any

from rich.console import Console

INTERRUPTED = 130  # the exit status that shells give an end by Ctrl-C


#: what ends a run: Ctrl-C; ``kill``, Slurm, Docker and Kubernetes; a terminal that is closed
SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


class Interrupts:
    """Ctrl-C as a request: the first ends the run after the epoch, a second one at once.

    SIGTERM and SIGHUP are requests too, however often they come.  An exception in the midst of a
    compilation could bring down the interpreter, or be lost.  A signal that is ignored from the
    start, as SIGHUP is under nohup and SIGINT in the background of a script, stays ignored: whoever
    started the command there did not want it to be reached.
    """

    def __init__(self, console: Console) -> None:
        self.console, self.asked = console, False
        self.usual: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            for each in SIGNALS:
                if signal.getsignal(each) is not signal.SIG_IGN:
                    self.usual[each] = signal.signal(each, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for each, usual in self.usual.items():
            signal.signal(each, usual)

    def _ask(self, number: int, _: object) -> None:
        if self.asked and number == signal.SIGINT:
            with suppress(OSError):
                sys.stdout.flush()
            os._exit(INTERRUPTED)
        if number == getattr(signal, "SIGHUP", None):
            _leave_the_terminal()
        if not self.asked:
            self.asked = True
            self.console.print("ending after this epoch (Ctrl-C again: at once, without saving)")

    def check(self) -> None:
        """End the command here if that was asked for."""
        if self.asked:
            raise KeyboardInterrupt

    def ignore(self) -> None:
        """Let nothing come between the results and the disk."""
        for each in self.usual:
            signal.signal(each, signal.SIG_IGN)


def _leave_the_terminal() -> None:
    """Print nowhere from now on, where it was to a terminal: one that is gone raises an error."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        if stat.S_ISCHR(os.fstat(stream).st_mode):
            os.dup2(nowhere, stream)
    os.close(nowhere)
