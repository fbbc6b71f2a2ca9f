"""The device: a wait for it that Ctrl-C can end, and how much to start at once."""

import time
from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

PATIENCE = 0.2  # seconds that Ctrl-C may go unheard


_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def without_a_mesh(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """The function as it is where no mesh is set: a program for the devices of the mesh that the
    caller has set takes no arrays that are on one device."""

    @wraps(function)
    def alone(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        if jax.sharding.get_abstract_mesh().empty:
            return function(*args, **kwargs)
        with jax.set_mesh(jax.sharding.Mesh(np.empty((), object), ())):
            return function(*args, **kwargs)

    return alone


def epochs_at_once(at_most: int, left: int, seconds: float) -> int:
    """How many epochs to start in one call, if one takes so many seconds: no longer than Ctrl-C may
    go unheard."""
    return max(0, min(at_most, left, 1 + int(PATIENCE / seconds)))


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


@jax.jit
def copied(tree: Any) -> Any:
    """A copy of a tree's arrays, in one program."""
    return jax.tree.map(jnp.copy, tree)
