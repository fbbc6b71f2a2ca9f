"""How do steps a second grow with devices and processes, and where does it stop paying?

    python -m benchmarks.scale [--output results.json] [--short | --quick]
    python -m benchmarks.scale --table results.json

``fit(mesh=)`` over the axis "data", by devices of one process and by processes of one device each.
Strong: the rows of a step are split; weak: each device has as many rows as one had.  The sum of the
gradients is timed by itself, too, as are that of one number (the latency) and that of 16 MB (the
bandwidth).  From these and the step of one device a model on paper says how it goes on:

    seconds of a step = compute / d + latency + 2 (d - 1) / d · bytes / bandwidth     (strong)
    seconds of a step = compute     + latency + 2 (d - 1) / d · bytes / bandwidth     (weak)

after Thakur et al. (2005), section 4, for a ring of d devices that sums bytes of gradients once a
step.  On a CPU devices and processes share the cores: then it is the overhead that is measured.
"""

import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import PartitionSpec

import jaxbp
from benchmarks import protocol
from benchmarks.problems import name_of, problem
from jaxbp.processes import joined

STEPS = 16  # of an epoch
EPOCHS = 8  # of which the first is left out
SUMS = 16  # of each size, in one program
LARGE = 2**22  # numbers of 4 bytes


class Cell(NamedTuple):
    """What is measured at once."""

    how: str  # "devices" of one process, or "processes" of one device each
    count: int
    sizes: tuple[int, ...]
    rows: int  # of a step, by one device; and by all of them where they are split


class Link(NamedTuple):
    """What connects devices: an assumption, by the numbers of its maker."""

    name: str
    devices: int
    bandwidth: float  # bytes a second of one device
    latency: float  # seconds of a small sum


NETWORKS = (((64, 128, 10), 32), ((784, 128, 10), 128), ((784, 512, 512, 10), 128))
LINKS = (
    Link("8 GPUs, NVLink 4: 450 GB/s, 20 µs", 8, 450e9, 20e-6),
    Link("64 hosts of 1 GPU, 400 Gbit/s: 50 GB/s, 60 µs", 64, 50e9, 60e-6),
    Link("64 hosts, 25 Gbit/s: 3 GB/s, 200 µs", 64, 3e9, 200e-6),
)


def worker(given: str) -> None:
    """One process of a cell: prints its figures as JSON."""
    sizes, rows, processes, number, port = json.loads(given)
    with ExitStack() as stack:
        if processes > 1:
            stack.enter_context(joined(f"127.0.0.1:{port}", number, processes))
        mesh = jax.make_mesh(
            (jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,)
        )
        _, params, _ = problem(tuple(sizes), 1)
        numbers = sum(leaf.size for leaf in jax.tree.leaves(params))
        found = {
            "strong": step_seconds(tuple(sizes), rows, mesh),
            "weak": step_seconds(tuple(sizes), rows * mesh.size, mesh),
            "sum": sum_seconds(numbers, mesh),
            "latency": sum_seconds(1, mesh),
            "large": sum_seconds(LARGE, mesh),
            "bytes": 4 * numbers,
        }
    print(json.dumps(found))


def step_seconds(sizes: tuple[int, ...], rows: int, mesh: jax.sharding.Mesh) -> float:
    """The median of epochs, by step."""
    model, params, batch = problem(sizes, rows * STEPS)
    ends: list[float] = []
    jaxbp.fit(
        model,
        jax.tree.map(np.asarray, batch),
        optimizer=optax.sgd(0.01),
        epochs=EPOCHS,
        batch_size=rows,
        params=params,
        key=jax.random.key(0),
        mesh=mesh,
        on_epoch=lambda _: ends.append(time.perf_counter()),
    )
    return statistics.median(np.diff(ends).tolist()) / STEPS


def sum_seconds(numbers: int, mesh: jax.sharding.Mesh) -> float:
    """Seconds of an all-reduce of so many float32 numbers, one after another."""

    @jax.jit
    @partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=PartitionSpec(),
        out_specs=PartitionSpec(),
        check_vma=False,
    )
    def sums(array: jax.Array) -> jax.Array:
        def step(_: Any, array: jax.Array) -> jax.Array:
            return jax.lax.psum(array, "data") / mesh.size

        return jax.lax.fori_loop(0, SUMS, step, array)

    sharding = jax.sharding.NamedSharding(mesh, PartitionSpec())
    ones = np.ones(numbers, np.float32)
    array = jax.make_array_from_callback(ones.shape, sharding, ones.__getitem__)
    array = jax.block_until_ready(sums(array))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        array = jax.block_until_ready(sums(array))
        times.append(time.perf_counter() - start)
    return statistics.median(times) / SUMS


def measured(cell: Cell) -> dict[str, Any]:
    """The figures of a cell, by processes of its own."""
    by_devices = cell.how == "devices"
    processes = 1 if by_devices else cell.count
    environment = dict(os.environ)
    if protocol.on_cpu():
        fake = f"--xla_force_host_platform_device_count={cell.count if by_devices else 1}"
        environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} {fake}".strip()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import sys; from benchmarks import scale; scale.worker(sys.argv[1])",
                json.dumps((cell.sizes, cell.rows, processes, number, port)),
            ],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for number in range(processes)
    ]
    printed = [process.communicate()[0] for process in started]
    assert not any(process.returncode for process in started), cell
    return cell._asdict() | json.loads(printed[0].splitlines()[-1])


def sized(cell: Mapping[str, Any]) -> float:
    """Bytes a second of a large sum, by the ring's formula; without end for one device."""
    count, seconds = cell["count"], cell["large"] - cell["latency"]
    return 2 * (count - 1) / count * 4 * LARGE / max(seconds, 1e-12) if count > 1 else np.inf


def on_paper(compute: float, size: int, link: Link) -> tuple[float, float, float]:
    """Speed-up by splitting a step's rows, efficiency with as many rows a device as one had, and
    how many times as many rows a device needs for half of the devices to count (weak).

    compute: seconds of a step of one device.
    size: bytes of the gradient.
    link: between the devices.
    """
    count = link.devices
    talk = link.latency + 2 * (count - 1) / count * size / link.bandwidth
    return compute / (compute / count + talk), compute / (compute + talk), talk / compute


def committed_steps() -> dict[tuple[str, int], dict[str, float]]:
    """Seconds of a step of ``fit`` on each accelerator that there is a result of: by network and
    rows, and by device."""
    found: dict[tuple[str, int], dict[str, float]] = {}
    for path in sorted((Path(__file__).parent / "results").glob("training-*.json")):
        result = json.loads(path.read_text())
        device = result["conditions"]["device"]
        for cell in result["cells"] if device != "cpu" else ():
            network, rows = cell["network"].split(",")[0], cell["batch_size"]
            pace = cell["contenders"]["jaxbp.fit"]["samples_per_second"]
            found.setdefault((network, rows), {})[device] = rows / pace
    return found


COLUMNS = ("network, rows", "by", "steps/s", "strong", "weak", "sum", "share", "latency", "GB/s")
EXPLANATION = """\
Steps a second of `fit` on a mesh of so many devices with the rows split (strong); strong and weak:
seconds of a step of one device over those of a step here, times the devices where each has as many
rows as one had; sum: that of the gradients over the devices, by itself; share: of the strong step
that it takes; latency: the sum of one number; GB/s: of 16 MB, by the ring's formula. Devices and
processes of a CPU share its cores: what shows there is the overhead, and what one device leaves
idle."""
PAPER = (
    "network, rows",
    "step of one",
    "link (its maker's numbers)",
    "strong",
    "weak",
    "pays from",
)
OF_PAPER = """\
On paper: the step that one device was measured to take, here or in the results of training, and
the links as they are described.
Strong: how many times faster than one device; weak: the share of all devices' work that is not
waiting; pays from: how many times the rows of a step each device needs so that it computes as long
as it waits."""


def markdown(result: Mapping[str, Any]) -> str:
    """What was measured, and what follows on paper."""
    cells = result["cells"]
    alone = {tuple(cell["sizes"]): cell for cell in cells if cell["count"] == 1}
    lines, paper, committed = [], [], committed_steps()
    for cell in cells:
        one = alone[tuple(cell["sizes"])]
        network = f"{name_of(cell['sizes'])}, {cell['rows']}"
        several = cell["count"] > 1
        lines.append(
            protocol.line(
                network,
                f"{cell['count']} {cell['how']}" if several else "1 device",
                f"{1 / cell['strong']:,.0f}",
                f"{one['strong'] / cell['strong']:.2f}×",
                f"{cell['count'] * one['weak'] / cell['weak']:.2f}×",
                f"{1e6 * cell['sum']:,.0f} µs" if several else "",
                f"{min(1.0, cell['sum'] / cell['strong']):.0%}" if several else "",
                f"{1e6 * cell['latency']:,.0f} µs" if several else "",
                f"{sized(cell) / 1e9:.2f}" if several else "",
            )
        )
        if several:
            continue
        key = name_of(cell["sizes"]), cell["rows"]
        steps = {"here": cell["strong"]} | committed.get(key, {})
        for (device, seconds), link in itertools.product(steps.items(), LINKS):
            strong, weak, rows = on_paper(seconds, cell["bytes"], link)
            step = f"{1e6 * seconds:,.0f} µs, {device}"
            figures = f"{strong:.1f}×", f"{weak:.0%}", f"{rows:.2g}×"
            paper.append(protocol.line(network, step, link.name, *figures))
    tables = (
        protocol.table(COLUMNS, lines, EXPLANATION),
        protocol.table(PAPER, paper, OF_PAPER),
    )
    return "\n\n".join(tables)


def measure(run: protocol.Run) -> dict[str, Any]:
    """Measure, and print the tables."""
    if run.quick:
        wanted = [Cell("devices", count, (8, 16, 3), 8) for count in (1, 2)]
    else:
        networks = NETWORKS[1:2] if run.short else NETWORKS
        most = 4 if protocol.on_cpu() else jax.device_count()
        counts = [2**power for power in range(most.bit_length())]
        ways = [("devices", count) for count in counts]
        if protocol.on_cpu():  # a GPU belongs to one process
            ways += [("processes", count) for count in counts[1:]]
        wanted = [Cell(*way, *network) for network in networks for way in ways]
    told = run.cells(wanted, measured)
    result = {"cells": run.kept(told, lambda cell: print(json.dumps(cell), flush=True))}
    protocol.show(markdown(result))
    return result


if __name__ == "__main__":
    protocol.command(__doc__, measure, markdown)
