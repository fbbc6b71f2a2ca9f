"""``jaxbp train`` by several processes: they meet, and compare what they are to train."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import jax
from jax.sharding import AxisType, Mesh

from jaxbp import processes
from jaxbp.cli.options import Design, UsageError
from jaxbp.cli.plan import Plan
from jaxbp.parallel import differing
from jaxbp.training.saved import Saved

#: the options of one of several processes
PROCESSES = {"distributed", "coordinator", "process", "processes", "listen"}
#: what the processes need not have in common: their own, what only the first does, and the path
_OWN = {*PROCESSES, "output", "overwrite", "resume", "checkpoint_every", "data"}


@contextmanager
def together(options: Any) -> Iterator[Mesh | None]:
    """Join the processes that the options name -> the mesh of all their devices; None for one.

    Raises UsageError for options that do not fit, and JoinError where the processes do not meet.
    """
    given = options.coordinator, options.process, options.processes
    if options.distributed and options.coordinator is not None:
        raise UsageError(
            "--distributed: got it beside --coordinator; it is for what a cluster tells by itself"
        )
    try:
        processes.check(*given, options.listen)
    except ValueError as error:
        raise UsageError(f"--{error}") from None
    if not options.distributed and options.coordinator is None:
        yield None
        return
    with processes.joined(*given, listen=options.listen):
        yield jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def check_same_run(plan: Plan, saved: Saved | None, mesh: Mesh | None) -> None:
    """Raise UsageError, in all processes, where they are about to train different things."""
    options: Design = plan.options
    given: dict[str, Any] = {
        f"--{name.replace('_', '-')}": repr(value)
        for name, value in asdict(options).items()
        if name not in _OWN
    }
    shards = None if plan.stream is None else plan.stream.source.shards
    sizes = None if shards is None else [rows for _, rows in shards.files]
    given["DATA"] = plan.to_fit, plan.parts["validation"], sizes
    given["--resume"] = 0 if saved is None else saved.run.epochs
    if names := differing(mesh, given):
        raise UsageError(f"{names[0]}: not the same in all processes")
