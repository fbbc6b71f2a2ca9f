"""The command ``jaxbp`` from its first moment: Ctrl-C may meet the import of the package itself."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager


def main() -> int:
    """Run the command line, or say how to install what it needs; the exit status."""
    try:
        with _ending_at_once():
            from jaxbp import cli  # noqa: PLC0415 (to import JAX takes a second)
    except ModuleNotFoundError as error:
        print(f"jaxbp: the command needs {error.name}: pip install 'jaxbp[cli]'", file=sys.stderr)
        return 2
    try:
        return cli.main()
    except KeyboardInterrupt:  # before the command began, which says this itself
        return _interrupted()


@contextmanager
def _ending_at_once() -> Iterator[None]:
    """End the process at Ctrl-C: an exception may be lost in an extension written in C."""
    usual = signal.getsignal(signal.SIGINT)
    heeded = usual is signal.default_int_handler
    if not heeded or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, lambda *_: os._exit(_interrupted()))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)


def _interrupted() -> int:
    print("jaxbp: interrupted; nothing was saved", file=sys.stderr, flush=True)
    return 130  # as shells have it


if __name__ == "__main__":
    sys.exit(main())
