"""The command ``jaxbp``: its subcommands, and how it ends when something is wrong."""

import sys
from collections.abc import Sequence
from typing import Annotated

import tyro
from rich.console import Console

from jaxbp import predict_command, train_command
from jaxbp.checkpoint import CheckpointError
from jaxbp.data import DataError
from jaxbp.predict_command import Predict
from jaxbp.train_options import OptionError, Train

Command = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Predict, tyro.conf.subcommand("predict")]
)

INTERRUPTED = 130  # as shells count an end by Ctrl-C


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; the exit status: 0, or 1 for a run that failed, 2 for a wrong request."""
    command = tyro.cli(
        Command,
        prog="jaxbp",
        description="Backpropagation for multilayer perceptrons, by hand, in JAX.",
        args=arguments,
        config=(tyro.conf.OmitArgPrefixes,),
    )
    try:
        if isinstance(command, Train):
            return train_command.run(command, Console())
        return predict_command.run(command, Console(stderr=True))
    except (OptionError, DataError, CheckpointError, OSError) as error:
        print(f"jaxbp: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("jaxbp: interrupted", file=sys.stderr)
        return INTERRUPTED
