"""Memory: whether arrays fit into the device's, said in one line before any work."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from math import prod
from pathlib import Path
from typing import Any

import jax
from jax.typing import DTypeLike

from jaxbp.model import MLP
from jaxbp.trees import shaped


@contextmanager
def memory_shortage_named(
    params: Any, state: Any = (), kept: Any = (), *, networks: int = 1, copies: int = 2
) -> Iterator[None]:
    """Raise MemoryError, in one line, where the device's memory does not suffice for the block.

    params: arrays or shapes of the parameters.
    state: of the optimiser, likewise; none unless given.
    kept: what is kept of the rows for the backward pass, at a time when there need be one copy of
        the parameters alone; nothing unless given.
    networks: of how many there are params and state at once; 1 unless given.
    copies: of the parameters; 2 unless given, as an epoch that diverges falls back to what it
        started from.

    It is the least that is needed, so that nothing is refused that would run.
    """
    weights, beside, rows = networks * _bytes(params), networks * _bytes(state), _bytes(kept)
    limit = _memory()
    named = f"out of memory: the weights alone need {_text(weights)}"
    for needed, more in [
        (weights, ""),
        (copies * weights + beside, ", with their copy and the optimiser's"),
        (weights + beside + rows, ", with what is kept of the rows for the backward pass"),
    ]:
        if needed > limit:
            named += f"{more} {_text(needed)}" if more else ""
            raise MemoryError(f"{named}, and there are {_text(limit)}")
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise MemoryError(f"{named}, and the whole did not fit") from error


def outputs_kept(model: MLP, rows: int, dtype: DTypeLike) -> Any:
    """The shape of all outputs of hidden layers, which a step of the backward pass has at once."""
    return shaped((rows, sum(model.sizes[1:-1])), dtype)


def _bytes(tree: Any) -> int:
    leaves = [leaf for leaf in jax.tree.leaves(tree) if hasattr(leaf, "shape")]
    return sum(prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


def _memory() -> float:
    """The bytes of the default device, infinite where nothing says how many they are."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return float(stats["bytes_limit"])
    return host_memory()


def host_memory() -> float:
    """The bytes that this process may have, swapped ones too; infinite where nothing says."""
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on this system
        return float("inf")
    return float(min(memory, *limits_of_groups()) + _swap())


def limits_of_groups(root: str | Path = "/") -> Iterator[float]:
    """The limits of all groups that this process is in (cgroups of Linux, version 1 or 2)."""
    yield float("inf")
    with suppress(OSError, ValueError):
        for line in Path(root, "proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers not in {"", "memory"}:
                continue
            top = Path(root, "sys/fs/cgroup", controllers)
            name = "memory.limit_in_bytes" if controllers else "memory.max"
            within = top / group.lstrip("/")
            for folder in (within, *within.parents):
                with suppress(OSError, ValueError):  # no such file, or "max"
                    yield float((folder / name).read_text(encoding="utf-8"))


def _swap() -> float:
    """The bytes that may be swapped to disk."""
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        return 1024 * float(next(line for line in lines if line.startswith("SwapTotal")).split()[1])
    return 0.0


def _text(size: float) -> str:
    return f"{size / 1e9:.3g} GB"
