"""Networks dealt to devices, or to the cores of a CPU that is one, which train side by side."""

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jaxbp.gradient import Batch
from jaxbp.parallel import rows_of_all, spans_processes
from jaxbp.same_program import compiled_ahead
from jaxbp.training.device import epochs_at_once, wait_for
from jaxbp.training.epoch import Program, shuffled_rows
from jaxbp.training.networks import (
    Networks,
    block_of_epochs,
    epochs_of_each,
    own_weights,
    weighted,
)
from jaxbp.training.pieces import looked_up


class Group(NamedTuple):
    """The work of one device, or one core."""

    networks: Networks
    numbers: Any  # of the optimiser, which all networks share
    batch: Batch
    validation: Batch | None


class Dealt(NamedTuple):
    """N networks dealt to groups of one size, one group a device.

    Groups that would be smaller are filled up with the first networks once more, which cost no time
    beside their neighbours.  Each process has the groups of its own devices.
    """

    total: int  # N
    devices: list[jax.Device]
    mesh: Mesh | None = None  # of these devices, where some are those of other processes

    @property
    def own_devices(self) -> list[jax.Device]:
        """Those of this process."""
        return [each for each in self.devices if each.process_index == jax.process_index()]

    def deal(self, networks: Any) -> list[Any]:
        """A tree of all N networks as one tree a group of this process."""
        groups = len(self.devices)
        members = np.resize(np.arange(self.total), (groups, -(-self.total // groups)))
        return [
            jax.tree.map(itemgetter(each), networks)
            for each, device in zip(members, self.devices, strict=True)
            if device.process_index == jax.process_index()
        ]

    def deal_batch(self, batch: Batch | None) -> list[Any]:
        """The batch for each group, with the weights of its networks where each has its own."""
        return [weighted(batch, weight) for weight in self.deal(own_weights(batch))]

    def gather(self, groups: list[Any]) -> Any:
        """One tree a group as a tree of all N networks, on the host where there are several.

        Where there are several processes, each waits for the others.
        """
        if len(self.devices) == 1:
            return groups[0]
        return jax.tree.map(lambda *leaves: self._all(leaves)[: self.total], *groups)

    def gather_here(self, groups: list[Any]) -> Any:
        """``gather`` without waiting: NaN, or 0, for the networks of other processes."""
        if self.mesh is None:
            return self.gather(groups)

        def placed(*leaves: Any) -> np.ndarray:
            size, dtype = len(leaves[0]), leaves[0].dtype
            unknown = np.nan if dtype.kind == "f" else 0
            found = np.full((len(self.devices) * size, *leaves[0].shape[1:]), unknown, dtype)
            own = iter(leaves)
            for place, device in enumerate(self.devices):
                if device.process_index == jax.process_index():
                    found[place * size : (place + 1) * size] = next(own)
            return found[: self.total]

        return jax.tree.map(placed, *groups)

    def _all(self, leaves: tuple[Any, ...]) -> np.ndarray:
        """The leaves of all groups, those of other processes too, one after another."""
        if self.mesh is None:
            return np.concatenate(leaves)
        return rows_of_all([np.asarray(leaf) for leaf in leaves], self.mesh)


def dealt_to(mesh: Mesh | None, count: int) -> Dealt:
    """So many networks dealt to the devices of a mesh, or to those of ``workers``."""
    if mesh is None:
        return Dealt(count, workers()[:count])
    devices = list(mesh.devices.flat)
    if spans_processes(mesh):  # each of which takes part
        return Dealt(count, devices, mesh)
    return Dealt(count, devices[:count])


def workers() -> list[jax.Device]:
    """The devices, or a CPU that is only one, once for each core."""
    devices: list[jax.Device] = jax.local_devices()
    if len(devices) > 1 or devices[0].platform != "cpu":
        return devices
    if hasattr(os, "sched_getaffinity"):
        return devices * len(os.sched_getaffinity(0))
    return devices * (os.cpu_count() or 1)


def orders_by_group(
    dealt: Dealt,
    seeds: list[list[int]],
    rows: int | np.ndarray,
    block: int,
    first: int,
    count: int,
) -> list[np.ndarray]:
    """The orders of some epochs, at most a block, of each network (block, n, R), by group.

    dealt: how the networks are dealt.
    seeds: the data of their keys.
    rows: how many there are, or the numbers (N, R) of those that each network trains on.
    block: epochs at most.
    first: number of the first epoch.
    count: of epochs.
    """
    size = rows if isinstance(rows, int) else rows.shape[1]
    orders = np.zeros((len(seeds), block, size), np.int32)
    drawn: dict[tuple[int, ...], np.ndarray] = {}  # networks with one key have one order
    for n, seed in enumerate(seeds):
        if tuple(seed) not in drawn:
            for place in range(count):
                orders[n, place] = shuffled_rows(seed, first + place, size)
            drawn[tuple(seed)] = orders[n].copy()
        order = drawn[tuple(seed)]
        orders[n] = order if isinstance(rows, int) else rows[n][order]
    return [np.swapaxes(each, 0, 1) for each in dealt.deal(orders)]


def epochs_on_host(
    program: Program,
    groups: list[Group],
    orders_of: Callable[[int, int], Sequence[np.ndarray]] | None,
    done: int,
    epochs: int,
    block: int,
) -> Iterator[tuple[list[Group], list[Any]]]:
    """Train the groups side by side on the cores -> after each epoch, the groups and their records.

    It is compiled here and called in threads: a thread would compile without the caller's
    ``jax.enable_x64`` and its like, which hold for one thread.  With blocks of more than one epoch,
    the groups are those after the block.

    program: with its kernel, if it has one.
    groups: one a core.
    orders_of: gives the orders from an epoch on, of so many, by group; None for full batches.
    done: epochs before the first.
    epochs: in all.
    block: epochs that one call takes at most.
    """

    def orders_from(first: int, count: int) -> Sequence[np.ndarray | None]:
        if orders_of is None or not count:
            return [None] * len(groups)
        return orders_of(first, count)

    first, count = done + 1, 1
    orders = orders_from(first, count)
    numbers = np.int32(first), np.int32(count)
    given = *groups[0], orders[0], *numbers
    jitted = block_of_epochs(looked_up(program, partial(epochs_of_each, block=block), *given))
    compiled = [
        compiled_ahead(jitted, *group, order, *numbers, block=block)
        for group, order in zip(groups, orders, strict=True)
    ]

    def run(each: Any, group: Group, order: Any, *numbers: Any) -> tuple[Group, Any]:
        networks, record = each(*group, order, *numbers)
        return group._replace(networks=networks), jax.device_get(record)  # waits

    pool, seconds = ThreadPoolExecutor(len(groups)), float("inf")
    try:
        while count:
            started = time.perf_counter()
            numbers = np.int32(first), np.int32(count)
            running = [
                pool.submit(run, each, group, order, *numbers)
                for each, group, order in zip(compiled, groups, orders, strict=True)
            ]
            upcoming = epochs_at_once(block, epochs + 1 - first - count, seconds)
            orders = orders_from(first + count, upcoming)  # while the cores are at work
            results = [future.result() for future in running]
            seconds = (time.perf_counter() - started) / count
            groups = [group for group, _ in results]
            for place in range(count):
                yield groups, [jax.tree.map(itemgetter(place), record) for _, record in results]
            first, count = first + count, upcoming
    finally:
        pool.shutdown(wait=False)  # after Ctrl-C the cores may be busy for long


def epochs_on_accelerator(
    program: Program, groups: list[Group], done: int, epochs: int, block: int
) -> Iterator[tuple[list[Group], list[Any]]]:
    """Train the groups on a device each -> after each epoch, the groups and their records.

    Epochs are so short that a device would wait for the host after each: a block of them is one
    program, and the next block is started before the records of the last are read.  With blocks of
    more than one, the groups are those after the block.

    The arguments are those of ``epochs_on_host``.
    """
    started: deque[tuple[list[Group], list[Any], int]] = deque()
    given = *groups[0], None, np.int32(1), np.int32(1)
    run = block_of_epochs(looked_up(program, partial(epochs_of_each, block=block), *given))

    def finished() -> Iterator[tuple[list[Group], list[Any]]]:
        groups, records, count = started.popleft()
        wait_for(records)
        on_host = jax.device_get(records)
        for place in range(count):
            yield groups, jax.tree.map(itemgetter(place), on_host)

    for first in range(done + 1, epochs + 1, block):
        count = min(block, epochs + 1 - first)
        results = [
            run(*group, None, np.int32(first), np.int32(count), block=block) for group in groups
        ]
        groups = [
            group._replace(networks=networks)
            for group, (networks, _) in zip(groups, results, strict=True)
        ]
        started.append((groups, [record for _, record in results], count))
        if len(started) > 1:
            yield from finished()
    yield from finished()
