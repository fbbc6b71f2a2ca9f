"""Epochs over a stream: several steps in one call, while the host makes the next ones ready.

Batches of one shape that come one after the other are stacked, and a call takes the steps of a
stack: by one program for each shape, and another for a batch that comes alone, as the smaller last
one of an epoch does.  While the device is at work, the next stack is read, checked and put there.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxbp.gradient import Batch
from jaxbp.model import Params
from jaxbp.training.blocks import Ended
from jaxbp.training.constants import Constants
from jaxbp.training.device import copied, wait_for
from jaxbp.training.epoch import Carry, Program, epoch_key, repeated, taken
from jaxbp.training.pieces import looked_up
from jaxbp.training.same_program import compiled_for_each
from jaxbp.training.streams import Batches

_MOST_BYTES, _MOST_STEPS = 2**22, 64  # of a stack; a core's cache still holds what it has copied
_KINDS = 2  # of batches whose memory is used again: the full ones, and the last of an epoch
_ALIGNED = 64  # bytes: arrays that begin at a multiple of it need no copy on a CPU


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
        stacker, steps = Stacker(), None
        for number in range(self.done + 1, self.epochs + 1):
            key = epoch_key(self.key, number) if self.random else None
            before, losses = params, _Losses()
            params, state = copied((params, state))  # as each call overwrites them
            for stack in stacker.stacks(self.batches.epoch(number, program.model, before)):
                place = np.int32(losses.steps), np.int32(stack.filled)
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


class Stack(NamedTuple):
    """Batches of one shape, on the device."""

    batches: Batch  # (steps, B, ...)
    filled: int  # of the steps that are batches, from the first; what follows is anything
    rows: int  # B


class Stacker:
    """Stacks of batches, of few different lengths, as a program is compiled for each.

    The memory of a stack of NumPy's arrays is that of the last but one of its kind, as to get it
    anew from the system takes longer than to copy into it.  On a CPU the device reads just there:
    so who asks for a stack must be done with all before the last.
    """

    def __init__(self) -> None:
        self._several: set[Any] = set()  # the kinds of batches that came one after the other
        self._rooms: dict[Any, deque[list[Any]]] = {}  # two in turn, by the kind; the latest last

    def stacks(self, batches: Iterable[Batch]) -> Iterator[Stack]:
        """All batches in their order; each is copied when it comes, and may change after that."""
        filling: _Filling | None = None
        for batch in batches:
            if filling is not None and filling.kind != _kind(batch):
                yield self._stack(filling)
                filling = None
            filling = filling or _Filling(batch, self._room(batch))
            filling.add(batch)
            if filling.count == filling.most:
                yield self._stack(filling)
                filling = None
        if filling is not None:
            yield self._stack(filling)

    def _room(self, batch: Batch) -> list[Any]:
        """Memory for a stack of batches like this one: what its turn is."""
        kind = _kind(batch)
        turns = self._rooms.pop(kind, None) or deque([_room_for(batch), _room_for(batch)])
        turns.rotate()
        self._rooms[kind] = turns
        if len(self._rooms) > _KINDS:
            del self._rooms[next(iter(self._rooms))]
        return turns[0]

    def _stack(self, filling: "_Filling") -> Stack:
        if filling.count > 1:
            self._several.add(filling.kind)
        length = filling.most if filling.kind in self._several else 1
        return filling.on_device(length)


def _kind(batch: Batch) -> Any:
    """Shapes, dtypes and devices, which batches that are stacked have in common."""
    leaves, tree = jax.tree.flatten(batch)
    return tree, *((leaf.shape, leaf.dtype, isinstance(leaf, jax.Array)) for leaf in leaves)


def _most(batch: Batch) -> int:
    """How many batches like this one a stack holds."""
    size: int = sum(leaf.nbytes for leaf in jax.tree.leaves(batch))
    return max(1, min(_MOST_STEPS, _MOST_BYTES // size))


def _room_for(batch: Batch) -> list[Any]:
    """An array (most, B, ...) of anything for each field that NumPy holds; else None."""
    rooms: list[Any] = []
    for field in batch:
        if field is None or isinstance(field, jax.Array):
            rooms.append(None)
            continue
        size = _most(batch) * field.nbytes
        room = np.empty(size + _ALIGNED, np.uint8)
        start = -room.ctypes.data % _ALIGNED
        own = room[start : start + size].view(field.dtype)
        rooms.append(own.reshape(-1, *field.shape))
    return rooms


class _Filling:
    """A stack that is being filled: on the host or, of arrays of JAX's, by what it is made of."""

    def __init__(self, first: Batch, room: list[Any]) -> None:
        self.kind, self.rows, self.count = _kind(first), len(first.x), 0
        self.most = _most(first)
        self._parts: list[Any] = [
            [] if isinstance(field, jax.Array) else own
            for field, own in zip(first, room, strict=True)
        ]

    def add(self, batch: Batch) -> None:
        """Add a batch of the same kind."""
        for part, field in zip(self._parts, batch, strict=True):
            if isinstance(part, list):
                part.append(field)
            elif part is not None:
                part[self.count] = field
        self.count += 1

    def on_device(self, length: int) -> Stack:
        """The stack, of a length that is 1 or most."""
        parts: list[Any] = [
            _stacked(*part, *part[-1:] * (length - self.count))
            if isinstance(part, list)
            else part
            if part is None
            else jax.device_put(part[:length])
            for part in self._parts
        ]
        return Stack(Batch(*parts), self.count, self.rows)


@jax.jit
def _stacked(*arrays: Array) -> Array:
    return jnp.stack(arrays)


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
