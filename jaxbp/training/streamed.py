"""Epochs over a stream: several steps in one call, while the host makes the next ones ready.

A call takes the steps of a stack of batches: by one program for each shape, and another for a batch
that comes alone, as the smaller last one of an epoch does.  While the device is at work, the next
stack is read, checked and put there.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxbp.gradient import Batch
from jaxbp.model import Params
from jaxbp.parallel import everywhere
from jaxbp.same_program import compiled_for_each
from jaxbp.training.blocks import Ended
from jaxbp.training.constants import Constants
from jaxbp.training.device import copied, wait_for
from jaxbp.training.epoch import Carry, Program, epoch_key, repeated, taken
from jaxbp.training.pieces import looked_up
from jaxbp.training.stacks import Stack, Stacker
from jaxbp.training.streams import Batches


@dataclass(frozen=True)
class Streamed:
    """The epochs of a training over a stream, as ``Blocks`` has them over rows in memory.

    batches: of the stream.
    key: of the training.
    random: whether the gradient is given a key.
    constants: the numbers of model and optimiser.
    done: epochs of the run that is resumed.
    epochs: in all.
    show: shows how far an epoch is, by its number with a fraction, its loss so far and None.
    """

    batches: Batches
    key: Array
    random: bool
    constants: Constants
    done: int
    epochs: int
    show: Callable[[float, Any, Any], None]

    def run(self, program: Program, params: Params, state: optax.OptState) -> Iterator[Ended]:
        """Train -> after each epoch what has ended; none follows one that broke."""
        stacker, steps = Stacker(program.mesh, "batch"), None
        for number in range(self.done + 1, self.epochs + 1):
            key = epoch_key(self.key, number) if self.random else None
            before, losses = params, _Losses()
            params, state = copied((params, state))  # as each call overwrites them
            for stack in stacker.stacks(self.batches.epoch(number, program.model, before)):
                place = everywhere((np.int32(losses.steps), np.int32(stack.filled)), program.mesh)
                given = (params, state, stack.batches, *place, key, self.constants)
                if steps is None:
                    steps = run_steps(looked_up(program, steps_of, *given))
                params, state, each = steps(*given)
                losses.add(each, stack)  # waits for the call before: see Stacker
                if losses.broke:
                    break
                self.show(number - 1 + self.batches.share(losses.steps), losses.so_far, None)
            mean = losses.mean
            ended = np.array([mean] if np.isfinite(mean) else [])
            yield Ended(params, before, state, ended, None, not ended.size)
            if not ended.size:
                return


def steps_of(
    program: Program,
    params: Params,
    state: optax.OptState,
    batches: Batch,
    first: Array,
    count: Array,
    key: Array | None,
    constants: Constants,
) -> tuple[Params, optax.OptState, Array]:
    """Take the steps of a stack -> (params, state, loss of each step before its update).

    program: without its constants.
    params, state: what the first step starts from.
    batches: (steps, B, ...), on the device.
    first: number of the first step in its epoch, from 0.
    count: how many are steps; what the stack holds after them is not looked at.
    key: of the epoch, for a random gradient; else None.
    constants: of the program.

    The losses are NaN where a parameter is no longer finite.
    """
    given, most = program.given(constants), len(batches.x)

    def step(place: Array | int, carry: Carry) -> tuple[Carry, Array]:
        examples = jax.tree.map(lambda array: array[place], batches)
        return taken(given, carry, examples, first + place, key)

    carry = params, state
    if most == 1:
        carry, loss = step(0, carry)
        losses = loss[None]
    else:
        empty = jnp.zeros(most, params[0].weight.dtype)
        carry, losses = repeated(step, carry, empty, count)
    finite = jnp.array([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(carry[0])])
    return *carry, jnp.where(jnp.all(finite), losses, jnp.nan)


run_steps = compiled_for_each(steps_of, donate_argnums=(0, 1))


class _Losses:
    """The losses of an epoch's steps, read one call late, so that the device does not wait."""

    def __init__(self) -> None:
        self.steps = 0  # that were begun
        self._rows, self._total = 0, 0.0  # of those that are read
        self._running: list[tuple[Array, Stack]] = []

    def add(self, losses: Array, stack: Stack) -> None:
        """Note the losses of a call that was begun, and wait for the call before it."""
        self._running.append((losses, stack))
        self.steps += stack.filled
        if len(self._running) > 1:
            self._read()

    def _read(self) -> None:
        losses, stack = self._running.pop(0)
        wait_for(losses)
        self._total += stack.rows * float(np.sum(np.asarray(losses)[: stack.filled], dtype=float))
        self._rows += stack.rows * stack.filled

    @property
    def broke(self) -> bool:
        """Whether a loss that has been read is not finite."""
        return not np.isfinite(self._total)

    @property
    def so_far(self) -> float:
        """The mean over the rows whose losses have been read; NaN before."""
        return self._total / self._rows if self._rows else np.nan

    @property
    def mean(self) -> float:
        """The mean over all rows."""
        while self._running:
            self._read()
        return self.so_far
