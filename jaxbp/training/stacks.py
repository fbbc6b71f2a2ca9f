"""Stacks: batches of a stream on the device, several of one shape in one array.

Batches of one shape that come one after the other are stacked, so that a call of a program can take
several steps.  On a mesh the rows of each batch are split over its axis "data"; of several
processes each has a part of every batch, and they agree on what the next stack is.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, NamedTuple
from zlib import crc32

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import Mesh

from jaxbp.gradient import Batch
from jaxbp.parallel import of_each_process, rows_over

_MOST_BYTES, _MOST_STEPS = 2**22, 64  # of a stack; a core's cache still holds what it has copied
_KINDS = 2  # of batches whose memory is used again: the full ones, and the last of an epoch
_ALIGNED = 64  # bytes: arrays that begin at a multiple of it need no copy on a CPU


class Stack(NamedTuple):
    """Batches of one shape, on the device or, split by rows, on all of a mesh."""

    batches: Batch  # (steps, B, ...)
    filled: int  # of the steps that are batches, from the first; what follows is anything
    rows: int  # B


class Stacker:
    """Stacks of batches, of few different lengths, as a program is compiled for each.

    The memory of a stack of NumPy's arrays is that of the last but one of its kind, as to get it
    anew from the system takes longer than to copy into it.  On a CPU the device reads just there:
    so who asks for a stack must be done with all before the last.
    """

    def __init__(self, mesh: Mesh | None, name: str) -> None:
        """Begin without any memory, for the devices of a mesh, or for one; name is the stream's."""
        self._mesh, self._name = mesh, name
        self._several: set[Any] = set()  # the forms of batches that came one after the other
        self._rooms: dict[Any, deque[list[Any]]] = {}  # two in turn, by the kind; the latest last

    def stacks(self, batches: Iterable[Batch]) -> Iterator[Stack]:
        """All batches in their order; each is copied when it comes, and may change after that.

        Raises ValueError, in all processes of the mesh, where their batches do not go together.
        """
        waiting: deque[Batch] = deque()  # for the next stack
        rest = iter(batches)
        while True:
            filling = self._filled(waiting, rest)
            told = None if filling is None else (filling.count, filling.most, filling.first)
            agreed = _agreed(told, self._mesh, self._name)
            if filling is None or agreed is None:
                return
            form = agreed.rows, agreed.form
            if agreed.steps > 1:
                self._several.add(form)
            length = agreed.most if form in self._several else 1
            yield Stack(
                filling.on_devices(length, self._mesh, agreed.rows),
                filled=agreed.steps,
                rows=sum(agreed.rows),
            )
            waiting.extendleft(reversed(filling.from_step(agreed.steps)))

    def _filled(self, waiting: deque[Batch], rest: Iterator[Batch]) -> "_Filling | None":
        """The next batches of one kind, as many as a stack holds; None where there are no more."""
        filling = None
        while batch := waiting.popleft() if waiting else next(rest, None):
            if filling is None:
                filling = _Filling(batch, self._room(batch))
            elif filling.kind != _kind(batch):
                waiting.appendleft(batch)
                break
            filling.add(batch)
            if filling.count == filling.most:
                break
        return filling

    def _room(self, batch: Batch) -> list[Any]:
        """Memory for a stack of batches like this one: what its turn is."""
        kind = _kind(batch)
        turns = self._rooms.pop(kind, None) or deque([_room_for(batch), _room_for(batch)])
        turns.rotate()
        self._rooms[kind] = turns
        if len(self._rooms) > _KINDS:
            del self._rooms[next(iter(self._rooms))]
        return turns[0]


def laid_out(batches: Iterable[Batch], mesh: Mesh | None, name: str) -> Iterator[Batch]:
    """The batches of a stream one by one, on the device or, split by rows, on all of a mesh.

    Raises ValueError as ``Stacker.stacks`` does.
    """
    for batch in chain(batches, (None,)):
        agreed = _agreed(None if batch is None else (1, 1, batch), mesh, name)
        if batch is None or agreed is None:
            return
        yield _put(batch, mesh, agreed.rows, 0)


def _put(batch: Any, mesh: Mesh | None, rows: tuple[int, ...], axis: int) -> Batch:
    """The fields of a batch, or of several, on the devices, by the rows that each process has."""
    if mesh is None:
        on_device: Batch = jax.device_put(batch)
        return on_device
    over: list[Any] = [
        None if each is None else rows_over(mesh, each, rows, axis) for each in batch
    ]
    return Batch(*over)


class _Agreed(NamedTuple):
    """The next stack, as all processes of a mesh have batches for it."""

    steps: int  # that all have
    most: int  # that it may have
    rows: tuple[int, ...]  # of each process, in each of its batches
    form: int  # a digest of what these have in common besides


def _agreed(told: tuple[int, int, Batch] | None, mesh: Mesh | None, name: str) -> _Agreed | None:
    """The next stack of all processes of a mesh; None where none has got a batch left.

    told: how many this one has, how many it takes at most, and the first of them; None: no more.
    name: of the stream.

    Raises ValueError where some have none left, and where they differ in more than their rows.
    """
    own = [0, 0, 0, 0]
    if told is not None:
        count, most, first = told
        form = [None if each is None else (each.shape[1:], str(each.dtype)) for each in first]
        own = [count, most, len(first.x), crc32(repr(form).encode()) >> 1]
    steps, most_of_each, rows, forms = of_each_process(np.array(own, np.int32), mesh).T
    if not steps.any():
        return None
    if not steps.all():
        raise ValueError(
            f"{name}: process {steps.argmin()} has no step left in this epoch, and process "
            f"{steps.argmax()} has; expected as many steps in every process"
        )
    if (forms != forms[0]).any():
        raise ValueError(
            f"{name}: the processes of the mesh have batches of different widths, dtypes or "
            "fields; expected in each its own rows of one batch"
        )
    return _Agreed(int(steps.min()), int(most_of_each.min()), tuple(rows.tolist()), int(forms[0]))


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
        self.first, self.kind, self.count, self.most = first, _kind(first), 0, _most(first)
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

    def on_devices(self, length: int, mesh: Mesh | None, rows: tuple[int, ...]) -> Batch:
        """The first batches (length, B, ...), of which each process of a mesh has some rows."""
        parts: list[Any] = [
            _stacked(*(part + part[-1:] * length)[:length])
            if isinstance(part, list)
            else part
            if part is None
            else part[:length]
            for part in self._parts
        ]
        return _put(Batch(*parts), mesh, rows, 1)

    def from_step(self, step: int) -> list[Batch]:
        """The batches from a step on, as arrays of their own."""
        return [
            Batch(
                *(
                    np.array(part[place]) if isinstance(part, np.ndarray) else part and part[place]
                    for part in self._parts
                )
            )
            for place in range(step, self.count)
        ]


@jax.jit
def _stacked(*arrays: Array) -> Array:
    return jnp.stack(arrays)
