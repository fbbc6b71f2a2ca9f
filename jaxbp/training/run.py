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
    """All that the epochs to come depend on, besides the arguments of ``fit``, or of ``fit_many``:
    then N is in front of every shape."""

    params: Params
    state: optax.OptState  # of the optimiser
    epochs: int  # done; (N,) of fit_many, all equal
    key: np.ndarray  # the data of fit's key, which orders and random gradients are a function of
    diverged: np.ndarray | None = None  # (N,) of fit_many: those networks are trained no further

    def __repr__(self) -> str:
        return f"Run(params={short(self.params)}, epochs={self.epochs})"


def run_of(
    params: Params,
    state: optax.OptState,
    epochs: int,
    key: Array,
    diverged: np.ndarray | None = None,
) -> Run:
    """Make the run that goes on after so many epochs; it holds the arrays as they are.

    params, state: after the last of these epochs.
    epochs: done.
    key: of ``fit``, or those of ``fit_many``.
    diverged: (N,) of ``fit_many``; None unless given.
    """
    done: Any = epochs if diverged is None else np.full(len(diverged), epochs)
    return Run(params, state, done, np.asarray(jax.random.key_data(key)), diverged)


def epochs_done(run: Run) -> int:
    """How many epochs a run has done, of one network or of many."""
    return int(np.max(run.epochs))


def check_resumed(
    run: Any, params: Params | None, epochs: int, *, may_be_complete: bool = False
) -> None:
    """Raise TypeError or ValueError for what is no run, or has nothing to go on to.

    run: to go on with.
    params: beside it, of which there may be none.
    epochs: of the run, in all.
    may_be_complete: whether they may have been done; False unless given.
    """
    if not isinstance(run, Run):
        raise TypeError(
            f"resume: got {short(run)}, expected a jaxbp.Run, such as history.run, or a folder of "
            "checkpoints"
        )
    if params is not None:
        raise ValueError("params: got params beside resume, expected one of them: a run has params")
    done = epochs_done(run)
    if isinstance(epochs, int) and epochs < done + (not may_be_complete):
        raise ValueError(
            f"epochs: got {epochs}, and the run is complete: it has done {done}; a larger number, "
            "of all its epochs, goes on"
        )


def key_of(run: Run, key: Array | None, name: str = "key") -> Array:
    """The run's key, or keys.  Raises ValueError, with the name of the argument, where another one
    is given, or none can be made."""
    if key is None:
        if run.key.shape[-1:] != (2,):
            raise ValueError(f"{name}: got none, expected the run's, which is no threefry key")
        return jax.random.wrap_key_data(jnp.asarray(run.key), impl="threefry2x32")
    if not np.array_equal(jax.random.key_data(key), run.key):
        raise ValueError(
            f"{name}: got another one than the run's, by which its epochs are ordered; leave it out"
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


def check_like(run: Run, params: Params, state: optax.OptState) -> None:
    """Raise ValueError where params or the optimiser's state would be others: trees of shapes."""
    if jax.tree.map(_typed, run.params) != jax.tree.map(_typed, params):
        raise ValueError(
            f"resume: the run has the params {short(run.params)}, and this training {short(params)}"
        )
    check_state(run, state)
