"""A run: what a training can go on from, to the last bit."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxbp.model import Params
from jaxbp.reprs import short


class Run(NamedTuple):
    """All that the epochs to come depend on, besides the arguments of ``fit``."""

    params: Params
    state: optax.OptState  # of the optimiser
    epochs: int  # done
    key: np.ndarray  # the data of fit's key, which orders and random gradients are a function of

    def __repr__(self) -> str:
        return f"Run(params={short(self.params)}, epochs={self.epochs})"


def run_of(params: Params, state: optax.OptState, epochs: int, key: Array) -> Run:
    """Make the run that goes on after so many epochs; it holds the arrays as they are."""
    return Run(params, state, epochs, np.asarray(jax.random.key_data(key)))


def check_resumed(run: Any, params: Params | None, epochs: int) -> None:
    """Raise TypeError or ValueError for what is no run, or has nothing to go on to."""
    if not isinstance(run, Run):
        raise TypeError(
            f"resume: got {short(run)}, expected a jaxbp.Run, such as history.run, or a folder of "
            "checkpoints"
        )
    if params is not None:
        raise ValueError("params: got params beside resume, expected one of them: a run has params")
    if not isinstance(epochs, bool) and isinstance(epochs, int) and epochs <= run.epochs:
        raise ValueError(
            f"epochs: got {epochs}, and the run is complete: it has done {run.epochs}; a larger "
            "number, of all its epochs, goes on"
        )


def key_of(run: Run, key: Array | None) -> Array:
    """The run's key.  Raises ValueError where another one is given, or none can be made."""
    if key is None:
        if run.key.shape != (2,):
            raise ValueError("key: got none, expected the run's, which is no threefry key")
        return jax.random.wrap_key_data(jnp.asarray(run.key), impl="threefry2x32")
    if not np.array_equal(jax.random.key_data(key), run.key):
        raise ValueError(
            "key: got another one than the run's, by which its epochs are ordered; leave it out"
        )
    return key


def _typed(leaf: Any) -> tuple[Any, ...]:
    return (*leaf.shape, leaf.dtype)


def check_state(run: Run, expected: optax.OptState) -> None:
    """Raise ValueError where the optimiser's state would be another one: a tree of shapes."""
    if jax.tree.map(_typed, run.state) != jax.tree.map(_typed, expected):
        raise ValueError(
            f"resume: the run's optimizer had the state {short(run.state)}, and this one has "
            f"{short(expected)}"
        )
