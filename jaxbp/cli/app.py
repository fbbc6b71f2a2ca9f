"""The command ``jaxbp``: its table of commands, and how it ends when something is wrong."""

import errno
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import jax
import tyro
from rich.console import Console
from rich.text import Text

import jaxbp
from jaxbp import processes
from jaxbp.checkpoint import CheckpointError
from jaxbp.cli import (
    check,
    describe,
    diagnose,
    evaluate,
    explain,
    export,
    predict,
    resume,
    runs,
    train,
)
from jaxbp.cli.check import Check
from jaxbp.cli.compilation_cache import LIMIT, cache_folder, keep_compiled_programs
from jaxbp.cli.describe import Describe
from jaxbp.cli.diagnose import Diagnose
from jaxbp.cli.encodings import IN_ASCII
from jaxbp.cli.evaluate import Evaluate
from jaxbp.cli.explain import Explain
from jaxbp.cli.export import Export, Import
from jaxbp.cli.interrupts import CLOSED_PIPE, INTERRUPTED, NOTHING_SAVED, ending_in_time
from jaxbp.cli.options import UsageError
from jaxbp.cli.predict import Predict
from jaxbp.cli.runs import Runs
from jaxbp.cli.train import Train
from jaxbp.data.errors import DataError
from jaxbp.data.sources import BUNDLED
from jaxbp.text import printable

#: the commands: their options, whose class has the command's name, and what carries them out
COMMANDS: dict[type, Callable[..., int]] = {
    Train: train.run,
    Describe: describe.run,
    Predict: predict.run,
    Evaluate: evaluate.run,
    Runs: runs.run,
    Check: check.run,
    Diagnose: diagnose.run,
    Explain: explain.run,
    Export: export.run_export,
    Import: export.run_import,
}
_REQUEST_ERRORS = (UsageError, DataError, CheckpointError, processes.JoinError, OSError)
_RUN_ERRORS = (MemoryError, processes.ProcessLostError, jax.errors.JaxRuntimeError)
_LAYOUT = "\n\t"  # in texts of several lines, such as a traceback
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line, that of the process unless arguments are given; the exit status.

    It is 0, 1 for a run that failed, 2 for a wrong request, 128 and the signal's number for an
    interrupted run (130 for Ctrl-C, 143 for SIGTERM), or 141 if standard output is closed.
    """
    os.environ.setdefault("POLARS_IGNORE_TIMEZONE_PARSE_ERROR", "1")  # it panics at +05:30
    status = _status(arguments)
    processes.leave(status)  # of several, this one may have failed the others
    return status


def _status(arguments: Sequence[str] | None) -> int:
    """Run a command line; the exit status, that of a broken standard output included."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # it was closed when the process began
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
    try:
        try:
            return _main(arguments)
        finally:
            sys.stdout.flush()  # now: an error of it could not be caught when Python ends
    except OSError as error:  # of standard output: _main catches the others
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # whoever read it has seen enough
            return CLOSED_PIPE
        print(f"jaxbp: standard output: {error.strerror}", file=sys.stderr)
        return 2


class _Console(Console):
    """A console that escapes what moves the cursor or colours text, as a user's names may do, and
    leaves it to ``main`` what becomes of a closed pipe: rich ends with 1."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text, but=_LAYOUT), **options)

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def _main(arguments: Sequence[str] | None) -> int:
    """Run a command line; the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["explain"]:
        arguments = explain.shielded(arguments)
    if arguments == ["--version"]:
        print(f"jaxbp {jaxbp.__version__}, jax {jax.__version__}")
        return 0
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors=IN_ASCII)
    command = _parsed(arguments)
    # whose standard output is data, and nothing else
    data_alone = isinstance(command, Predict) or getattr(command, "json", False)
    if data_alone and hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8")  # whatever the terminal's
    keep_compiled_programs()
    console = _Console(stderr=data_alone, markup=False, emoji=False, highlight=False)
    try:
        with ending_in_time(console):
            return COMMANDS[type(command)](command, console)
    except BrokenPipeError:
        raise
    except (*_REQUEST_ERRORS, *_RUN_ERRORS, KeyboardInterrupt) as error:
        status, message = _explain(error)
        if isinstance(command, Check):  # whose status 1 says that a gradient is wrong
            status = max(status, 2)
        print(f"jaxbp: {printable(message, but=_LAYOUT)}", file=sys.stderr)
        return status


def _parsed(arguments: list[str]) -> Any:
    """The command's options.  It ends with SystemExit for --help, and where they make no sense."""
    if not {"-h", "--help"} & {*arguments}:
        return _parse(arguments)
    help_ = io.TextIOWrapper(io.BytesIO(), sys.stdout.encoding, IN_ASCII)
    help_.isatty = sys.stdout.isatty  # type: ignore[method-assign]
    try:
        with redirect_stdout(help_):
            return _parse(arguments)
    finally:  # tyro folds the options, but neither the usage nor the description
        help_.seek(0)
        _Console().print(Text.from_ansi(help_.read().rstrip()))


def _parse(arguments: list[str]) -> Any:
    """``_parsed``, whose help may have lines wider than the terminal."""
    commands: dict[str, Callable[..., Any]] = {
        options.__name__.lower(): options for options in COMMANDS
    }
    name = arguments[0] if arguments else ""
    config = (tyro.conf.OmitArgPrefixes,)
    if name in commands:  # by itself, so that a mistake is answered with its own help
        own: dict[str, Any] = {"prog": f"jaxbp {name}", "args": arguments[1:], "config": config}
        recorded = resume.recorded_by(arguments, Train) if name == "train" else None
        if recorded is not None:  # what the command line leaves out is as it was
            own["default"] = recorded
        try:
            return tyro.cli(commands[name], **own)
        except SystemExit as end:
            if end.code == 2:
                for hint in _hints(name, arguments[1:]):
                    print(f"jaxbp: {hint}", file=sys.stderr)
            raise
    if name and not name.startswith("-"):
        near = get_close_matches(name, commands, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        print(
            f"jaxbp: {name}: no such command{hint} (there are {', '.join(commands)})",
            file=sys.stderr,
        )
        raise SystemExit(2)
    return tyro.extras.subcommand_cli_from_dict(
        commands, prog="jaxbp", description=_description(), args=arguments, config=config
    )


_FIRST = {
    "train": "DATA",
    "describe": "DATA",
    "diagnose": "DATA",
    "predict": "RUN and DATA",
    "evaluate": "RUN and DATA",
    "runs": "FOLDER",
    "export": "RUN",
    "import": "FILE",
}


def _hints(name: str, arguments: list[str]) -> list[str]:
    """Guess in a sentence each why a command's parser refuses its arguments."""
    hints = []
    words = [word for word in arguments if not re.match(r"-|[\d.,]+(e\d+)?$", word)]
    options_first = bool(arguments) and arguments[0].startswith("-")
    if name in _FIRST and options_first and any(map(_is_a_place, words)):
        first = " ".join(word for word in words if _is_a_place(word))
        verb = "come" if " and " in _FIRST[name] else "comes"
        hints.append(f"{_FIRST[name]} {verb} first, before the options: jaxbp {name} {first} ...")
    if any(re.fullmatch(r"\d+(,\d+)+|\d+\.\d*|\d+e\d+", word) for word in arguments):
        hints.append(
            "numbers of rows, epochs and units are whole, as in 1000; several have blanks "
            "between them, as in --hidden 64 32"
        )
    return hints


def _is_a_place(word: str) -> bool:
    """Whether a word is data, or a file or folder that is there."""
    return word in BUNDLED or word.endswith((".csv", ".npz")) or Path(word).exists()


def _description() -> str:
    """The command in a sentence, and the folder that it keeps in the user's cache."""
    purpose = "Backpropagation for multilayer perceptrons, by hand, in JAX."
    folder = cache_folder()
    if folder is None:
        return purpose
    return (
        f"{purpose}\n\n"
        f"Compiled programs, at most {LIMIT // 2**20} MB, are kept in {folder}\n\n"
        "JAX_COMPILATION_CACHE_DIR moves them, JAX_ENABLE_COMPILATION_CACHE=0 keeps none."
    )


def _explain(error: BaseException) -> tuple[int, str]:
    """The exit status and the one line of an error that is not a bug."""
    if isinstance(error, KeyboardInterrupt):
        return (error.args or (INTERRUPTED,))[0], NOTHING_SAVED
    if isinstance(error, processes.ProcessLostError):
        return 1, str(error)
    if isinstance(error, MemoryError) and str(error).startswith("out of memory"):
        return 1, str(error)
    if isinstance(error, _RUN_ERRORS):
        reason = (str(error) or type(error).__name__).splitlines()[0]
        return 1, f"out of memory, or a device error ({reason})"
    if isinstance(error, OSError) and error.strerror:
        status = 1 if error.errno in _DISK_ERRORS else 2
        return status, f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return 2, str(error)
