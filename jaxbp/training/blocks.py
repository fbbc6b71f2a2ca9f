"""Blocks: epochs, several in one call of a program where nobody asks after each."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import jax
import numpy as np
import optax
from jax import Array

from jaxbp.diagnostics.health import Health
from jaxbp.gradient import Batch
from jaxbp.model import Params
from jaxbp.parallel import everywhere, largest
from jaxbp.training.constants import Constants
from jaxbp.training.device import PATIENCE, epochs_at_once, wait_for
from jaxbp.training.epoch import Program, epochs_of, orders_of, run_epochs
from jaxbp.training.kernel_choice import with_kernel
from jaxbp.training.pieces import looked_up


class Ended(NamedTuple):
    """Some epochs that have ended, up to the first whose loss is not finite."""

    params: Params  # after the last of them
    before: Params  # what that one started from
    state: optax.OptState  # after it, of the optimiser
    losses: np.ndarray  # (epochs,) finite
    healths: Health | None  # each field (epochs or more, L)
    broke: bool  # whether the next one did


@dataclass(frozen=True)
class Blocks:
    """The epochs of a training, by calls.

    So a small network need not wait for the host after every epoch.  A call takes no longer than
    Ctrl-C may go unheard, by the time that the last one took.

    batch: all rows, on the device.
    key: of the training.
    random: whether the gradient is given a key.
    constants: the numbers of model and optimiser.
    done: epochs of the run that is resumed.
    epochs: in all.
    at_most: in one call.
    kernel: as for ``fit``.
    optimizer: optax's.
    every: epochs from one checkpoint to the next, which end a call; None where there are none.
    """

    batch: Batch
    key: Array
    random: bool
    constants: Constants
    done: int
    epochs: int
    at_most: int
    kernel: str
    optimizer: optax.GradientTransformation
    every: int | None

    def run(self, program: Program, params: Params, state: optax.OptState) -> Iterator[Ended]:
        """Train -> after each call what has ended; none follows one that broke."""
        first, before, block = self.done + 1, params, self.at_most
        seconds = _guess(program, len(self.batch.x))
        count = epochs_at_once(block, self._left(first), seconds)
        orders = self._orders(program, first, count)
        while count:
            numbers = everywhere((np.int32(first), np.int32(count)), program.mesh)
            key = self.key if self.random else None
            given = (params, state, before, self.batch, orders, *numbers, key, self.constants)
            is_first = first == self.done + 1
            if is_first:
                choice = self.kernel, program, self.optimizer, run_epochs, given
                program = with_kernel(*choice, block=block)
                run = run_epochs(looked_up(program, partial(epochs_of, block=block), *given))
            started = time.perf_counter()
            params, state, before, *records = run(*given, block=block)
            upcoming = epochs_at_once(block, self._left(first + count), seconds)
            orders = self._orders(program, first + count, upcoming)  # while the device is at work
            if is_first or seconds * count > PATIENCE:
                wait_for(records[0])
            losses, healths = jax.tree.map(np.asarray, records)
            seconds = (time.perf_counter() - started) / count
            if block > 1:  # else it decides nothing
                seconds = float(largest(seconds, program.mesh))
            finite = np.isfinite(losses[:count])
            good = count if finite.all() else int(finite.argmin())
            yield Ended(params, before, state, losses[:good], healths, good < count)
            first, count = first + count, upcoming

    def _left(self, first: int) -> int:
        """How many epochs, from the first on, are left before the end or the next checkpoint."""
        to_checkpoint = self.epochs if self.every is None else self.every - (first - 1) % self.every
        return min(self.epochs + 1 - first, to_checkpoint)

    def _orders(self, program: Program, first: int, count: int) -> Array | None:
        if program.batch_size is None or not count:
            return None
        orders = orders_of(self.key, len(self.batch.x), first, count, self.at_most)
        on_all: Array = everywhere(orders, program.mesh)
        return on_all


def most_epochs(rows: int, params: Params) -> int:
    """How many epochs one call may take: their orders take up to 16 MiB; and one of a network that
    is so large that a call's further copies of its parameters would matter."""
    small = sum(leaf.size for leaf in jax.tree.leaves(params)) <= 2**22
    return max(1, min(32, 2**22 // rows)) if small else 1


def _guess(program: Program, rows: int) -> float:
    """Seconds of an epoch, before one was measured: its products, as a slow core makes them."""
    weights = sum(i * o for i, o in pairwise(program.model.sizes))
    return 6 * rows * weights / 1e10
