"""The device: whether training fits into its memory, and a wait for it that Ctrl-C can end."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

PATIENCE = 0.2  # seconds that Ctrl-C may go unheard


@contextmanager
def memory_shortage_named(params: Any, state: Any = ()) -> Iterator[None]:
    """Raise MemoryError, in one line, where the device's memory does not suffice for the block.

    params, state: arrays or shapes; of the parameters an epoch has two copies at least, as one
    that diverges falls back to what it started from.
    """
    weights, limit = _bytes(params), _memory()
    needed = weights if weights > limit else 2 * weights + _bytes(state)
    named = f"out of memory: the weights alone need {_text(weights)}"
    if needed > limit:
        more = "" if needed == weights else f", with their copy and the optimiser's {_text(needed)}"
        raise MemoryError(f"{named}{more}, and there are {_text(limit)}")
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise MemoryError(f"{named}, and the whole did not fit") from error


def wait_for(tree: Any) -> None:
    """Wait in naps until the device has computed all arrays of a tree.

    Ctrl-C is heard between two naps, as it is not by a conversion to NumPy.
    """
    start = time.perf_counter()
    for array in jax.tree.leaves(tree):
        if not hasattr(array, "is_ready"):  # a key, or an array of NumPy
            continue
        while not array.is_ready():
            time.sleep(min(PATIENCE, (time.perf_counter() - start) / 50))
        array.block_until_ready()  # raises what went wrong


def _bytes(tree: Any) -> int:
    leaves = [leaf for leaf in jax.tree.leaves(tree) if hasattr(leaf, "shape")]
    return sum(int(np.prod(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def _memory() -> float:
    """The bytes of the default device, infinite where nothing says how many they are."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return float(stats["bytes_limit"])
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):  # not on this system
        return float("inf")


def _text(size: float) -> str:
    return f"{size / 1e9:.3g} GB"
