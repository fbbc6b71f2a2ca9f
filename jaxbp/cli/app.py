"""The command ``jaxbp``: its table of commands, and how it ends when something is wrong."""

import os
import sys
from collections.abc import Callable, Sequence

import jax
import tyro
from rich.console import Console

import jaxbp
from jaxbp.checkpoint import CheckpointError
from jaxbp.cli import check, diagnose, explain, predict, train
from jaxbp.cli.check import Check
from jaxbp.cli.compilation_cache import LIMIT, cache_folder, keep_compiled_programs
from jaxbp.cli.diagnose import Diagnose
from jaxbp.cli.explain import Explain
from jaxbp.cli.interrupts import INTERRUPTED
from jaxbp.cli.options import UsageError
from jaxbp.cli.predict import Predict
from jaxbp.cli.train import Train
from jaxbp.data.sources import DataError

#: the commands: their options, whose class has the command's name, and what carries them out
COMMANDS: dict[type, Callable[..., int]] = {
    Train: train.run,
    Predict: predict.run,
    Check: check.run,
    Diagnose: diagnose.run,
    Explain: explain.run,
}
_REQUEST_ERRORS = (UsageError, DataError, CheckpointError, OSError)
_RUN_ERRORS = (MemoryError, jax.errors.JaxRuntimeError)
CLOSED_PIPE = 141  # the exit status that shells give a program that writes to a closed pipe


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line, that of the process unless arguments are given; the exit status.

    It is 0, 1 for a run that failed, 2 for a wrong request, 130 for an interrupted run, or 141 if
    standard output is closed.
    """
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
    """A console that leaves it to ``main`` what becomes of a closed pipe: rich ends with 1."""

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
    command = tyro.extras.subcommand_cli_from_dict(
        {options.__name__.lower(): options for options in COMMANDS},
        prog="jaxbp",
        description=_description(),
        args=arguments,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # R² where the terminal has no ²
    keep_compiled_programs()
    # whose standard output is data, and nothing else
    data_alone = isinstance(command, Predict) or getattr(command, "json", False)
    console = _Console(stderr=data_alone, markup=False, emoji=False, highlight=False)
    try:
        return COMMANDS[type(command)](command, console)
    except BrokenPipeError:
        raise
    except (*_REQUEST_ERRORS, *_RUN_ERRORS, KeyboardInterrupt) as error:
        status, message = _explain(error)
        print(f"jaxbp: {message}", file=sys.stderr)
        return status


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
        return INTERRUPTED, "interrupted; nothing was saved"
    if isinstance(error, MemoryError) and str(error).startswith("out of memory"):
        return 1, str(error)
    if isinstance(error, _RUN_ERRORS):
        reason = (str(error) or type(error).__name__).splitlines()[0]
        return 1, f"out of memory, or a device error ({reason})"
    if isinstance(error, OSError) and error.strerror:
        return 2, f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return 2, str(error)
