"""Interrupts: Ctrl-C as a request that a run heeds where nothing can be lost."""

import os
import signal
import sys
import threading
from typing import Any

from rich.console import Console

INTERRUPTED = 130  # the exit status that shells give an end by Ctrl-C


class Interrupts:
    """Ctrl-C as a request: the first ends the run after the epoch, a second one at once.

    An exception in the midst of a compilation could bring down the interpreter, or be lost.  Where
    SIGINT is ignored from the start, as under nohup or in the background of a script, it stays so:
    whoever started the command there did not want the terminal's Ctrl-C to reach it.
    """

    def __init__(self, console: Console) -> None:
        self.console, self.asked = console, False
        self.usual: Any = None

    def __enter__(self) -> "Interrupts":
        in_main = threading.current_thread() is threading.main_thread()
        if in_main and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            self.usual = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        if self.usual is not None:
            signal.signal(signal.SIGINT, self.usual)

    def _ask(self, *_: object) -> None:
        if self.asked:
            sys.stdout.flush()
            os._exit(INTERRUPTED)
        self.asked = True
        self.console.print("ending after this epoch (Ctrl-C again: at once, without saving)")

    def check(self) -> None:
        """End the command here if that was asked for."""
        if self.asked:
            raise KeyboardInterrupt

    def ignore(self) -> None:
        """Let nothing come between the results and the disk."""
        if self.usual is not None:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
