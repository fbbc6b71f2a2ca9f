"""How does cost grow: with the network, against finite differences, and with many networks?

    python -m benchmarks.scaling [--output results.json] [--short | --quick]
    python -m benchmarks.scaling --table results.json

Three tables.  Growth: the exponent of ``backprop``'s time in batch, width and depth.  Differences:
numerical differentiation's O(W²) beside backpropagation's O(W), W the number of weights, as the
lectures claim it.  Networks: how many small networks a second are trained by ``fit`` in a loop,
``fit_many``, ``jax.vmap`` and ``jax.lax.map``, on one device and over several; on an accelerator
also how many are by nothing but the compiled epochs.
"""

import json
import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, PartitionSpec

import jaxbp
from benchmarks import protocol
from benchmarks.problems import CLASSES, name_of, problem
from jaxbp import activations
from jaxbp.checking import central_difference
from jaxbp.training.epoch import (
    Program,
    drawn_rows,
    draws_on_device,
    one_epoch,
    shuffled_rows,
)

ROOT = Path(__file__).parent.parent
BASE = {"batch": 256, "width": 256, "depth": 4}
AXES = {
    "batch": (32, 64, 128, 256, 512, 1024, 2048, 4096),
    "width": (32, 64, 128, 256, 512, 1024, 2048),
    "depth": (1, 2, 4, 8, 16, 32),
}
SHORT_AXES = {axis: values[1:-1:2] for axis, values in AXES.items()}
QUICK_AXES = {"width": (16, 32)}
AXES_GPU = {
    "batch": (512, 2048, 8192),
    "width": (512, 1024, 2048, 4096),
    "depth": (4, 8, 16),
}
SHORT_AXES_GPU = {"width": AXES_GPU["width"]}
WIDTHS, SHORT_WIDTHS, QUICK_WIDTHS = (8, 16, 32, 64, 96, 192, 384, 768), (16, 32, 64, 256), (2, 4)
WIDTHS_GPU, SHORT_WIDTHS_GPU = (16, 32, 64, 256, 1024), (16, 64)
WIDEST = 96  # width up to which networks are differentiated numerically, which takes seconds
EXAMPLES = 128


class Many(NamedTuple):
    """Networks to train, all of the same sizes on the same rows."""

    sizes: tuple[int, ...]
    batch_size: int
    rows: int
    count: int  # of networks
    epochs: int


MANY = [
    Many((8, 16, 3), 16, 512, 64, 20),
    Many((64, 128, 10), 32, 1797, 16, 10),
    Many((784, 128, 10), 128, 2560, 8, 4),
    Many((784, 512, 512, 10), 128, 2560, 4, 3),
]
SHORT_MANY, QUICK_MANY = MANY[1:2], [Many((4, 8, 3), 16, 64, 3, 2)]
MANY_GPU = [MANY[1]._replace(count=count) for count in (16, 132, 1024, 1, 4096)]
SHORT_MANY_GPU = MANY_GPU[:3]
ROUNDED = 0.02  # relative error of parameters after hundreds of steps of rounded products, at most
LOOPED = 16  # networks up to which they are trained in a loop, one after the other
LOOP, FIT_MANY, MAP, VMAP, SHARDED = "fit in a loop", "fit_many", "lax.map", "vmap", "shard_map"
EPOCHS = "vmapped epochs alone"
SECONDS = 4.0  # for the rounds of contenders that are timed together


# Growth: by batch, width and depth


def along(axis, values, seconds):
    """Seconds of a gradient at each value of one axis, the other two at their base."""
    candidates = {}
    for value in values:
        at = BASE | {axis: value}
        sizes = (at["width"],) * (at["depth"] + 1) + (CLASSES,)
        case = problem(sizes, at["batch"])
        gradient = partial(jaxbp.backprop, case.model)
        candidates[str(value)] = protocol.compiled(gradient, case.params, case.batch)
    timed = protocol.timed(candidates, at_most_seconds=seconds)
    return {"values": values, "cells": list(timed.values())}


def exponent(sizes, seconds):
    """The exponent p of seconds ∝ sizesᵖ, fitted to the larger half of the sizes.

    There the time to start a call no longer counts.  NaN for fewer than two sizes.
    """
    if len(sizes) < 2:
        return math.nan
    half = min(len(sizes) // 2, len(sizes) - 2)
    slope, _ = np.polyfit(np.log(sizes[half:]), np.log(seconds[half:]), 1)
    return float(slope)


# Differences: against numerical differentiation


def numerically(model, params, batch):
    """Every entry of the gradient by a central difference: 2W forward passes of O(W) each."""
    flat, unravel = ravel_pytree(params)

    def f(flat):
        return jaxbp.objective(model, unravel(flat), batch)

    def slope(entry):
        direction = jnp.arange(flat.size) == entry
        return central_difference(f, flat, direction.astype(flat.dtype), step=1e-2)

    return unravel(jax.lax.map(slope, jnp.arange(flat.size)))


def against_differences(width, seconds):
    """Backpropagation and, up to some width, finite differences; both gradients agree.

    Both are of float32 products: a difference of losses would not survive TF32's rounding.
    """
    case = problem((width,) * 3 + (CLASSES,), EXAMPLES, activations.tanh)
    given = case.params, case.batch

    def gradient(params, batch):
        return jaxbp.backprop(case.model, params, batch)[1]

    def build():
        both = {"backprop": protocol.compiled(gradient, *given)}
        if width <= WIDEST:
            both["differences"] = protocol.compiled(partial(numerically, case.model), *given)
        return both

    with jax.default_matmul_precision("highest"):
        candidates = protocol.agreeing(build, tolerance=1e-2)
    weights = sum(leaf.size for leaf in jax.tree.leaves(case.params))
    return {"weights": weights} | protocol.timed(candidates, at_most_seconds=seconds)


# Networks: many at once


def ways(many):
    """The ways to train many networks, by name: functions that return all parameters, stacked."""
    case = problem(many.sizes, many.rows)
    model, batch = case.model, case.batch
    host = jax.tree.map(np.asarray, batch)
    keys = jax.random.split(jax.random.key(0), many.count)
    rates = np.geomspace(1e-3, 1e-2, many.count).astype(np.float32)
    optimizers = [optax.sgd(rate) for rate in rates]
    settings = {"epochs": many.epochs, "batch_size": many.batch_size}
    start = jax.vmap(lambda key: jaxbp.init(key, model))(keys)
    seeds = np.asarray(jax.random.key_data(keys)).tolist()

    def loop():
        trained = [
            jaxbp.fit(model, host, key=key, optimizer=optimizer, **settings)[0]
            for key, optimizer in zip(keys, optimizers, strict=True)
        ]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trained)

    def fit_many():
        return jaxbp.fit_many(model, host, keys=keys, learning_rate=rates, **settings)[0]

    def epoch(params, rate, order):
        optimizer = optax.sgd(rate)
        state = optimizer.init(params)
        program = Program(model, optimizer, jaxbp.backprop, many.batch_size)
        return one_epoch(program, params, state, batch, order, None)[0]

    def mapped(*each):
        return jax.lax.map(lambda one: epoch(*one), each)

    def orders_of(number):
        if draws_on_device():
            return jax.vmap(lambda key: drawn_rows(key, number, many.rows))(keys)
        return np.stack([shuffled_rows(seed, number, many.rows) for seed in seeds])

    def by(program, orders_of=orders_of):
        """Train by a program for one epoch of all networks."""
        program = jax.jit(program)

        def train():
            params = start
            for number in range(1, many.epochs + 1):
                params = program(params, rates, orders_of(number))
            return params

        return train

    if not protocol.on_cpu():
        resident = {n: jnp.asarray(orders_of(n)) for n in range(1, many.epochs + 1)}
        found = {LOOP: loop} if many.count <= LOOPED else {}
        return found | {FIT_MANY: fit_many, EPOCHS: by(jax.vmap(epoch), resident.get)}
    found = {LOOP: loop, FIT_MANY: fit_many, MAP: by(mapped), VMAP: by(jax.vmap(epoch))}
    devices = len(jax.devices())
    if devices > 1 and many.count % devices == 0:
        mesh = jax.make_mesh((devices,), ("networks",), axis_types=(AxisType.Auto,))
        spread = PartitionSpec("networks")
        found[SHARDED] = by(
            jax.shard_map(mapped, mesh=mesh, in_specs=spread, out_specs=spread, check_vma=False)
        )
    return found


def many_networks(many, seconds):
    """Networks a second on the devices of this process, by each way; all ways agree."""
    contenders = {name: protocol.Contender(way) for name, way in ways(many).items()}
    trained = [each.run() for each in contenders.values()]
    for params in trained[1:]:
        tolerance = 1e-3 if protocol.on_cpu() else ROUNDED
        comparison = jaxbp.compare(*(ravel_pytree(each)[0] for each in (params, trained[0])))
        assert comparison.relative_error < tolerance, comparison
    timings = protocol.interleaved(contenders, at_most_seconds=seconds)
    return many._asdict() | {
        "devices": len(jax.devices()),
        "ways": {
            name: {"seconds": timing._asdict(), "networks_per_second": many.count / timing.median}
            for name, timing in timings.items()
        },
    }


def on_devices(many, devices, seconds):
    """Networks a second, by each way, in a process that sees this number of CPU devices."""
    code = (
        f"import jax, json; jax.config.update('jax_num_cpu_devices', {devices}); "
        "from benchmarks.scaling import Many, many_networks; "
        f"print(json.dumps(many_networks({many!r}, {seconds})))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return json.loads(run.stdout.splitlines()[-1])


def trained(many, seconds):
    """Networks a second on this device; on a CPU both on one and on as many devices as cores."""
    if not protocol.on_cpu() or many in QUICK_MANY:
        return [many_networks(many, seconds)]
    return [on_devices(many, devices, seconds) for devices in sorted({1, os.cpu_count() or 1})]


# Reading the result


GROWTH = """\
The exponent p of time ∝ sizeᵖ, through the larger half of the sizes: of `backprop` by batch, width
and depth, about a base of batch 256, width 256 and depth 4."""
DIFFERENCES = """\
A gradient of W weights by central differences, 2W forward passes of O(W), and by `backprop`, whose
cost is that of two or three: both compiled, batch 128, answers compared before. Exponents, through
the larger half: {differences:.2f} and {backprop:.2f}, below the 2 and 1 of counted operations, as
larger products run nearer to the machine's peak."""
NETWORKS = """\
Networks trained a second, shuffling and everything else included, and how many times that is what
`fit` in a loop trains on the same devices."""
NETWORKS_GPU = """\
The vmapped epochs alone are those that XLA compiles of all networks at once, with the shuffled rows
of every epoch on the device before the clock starts; `fit_many` may take one kernel instead. All
networks come out equal, up to the rounding of their products."""
NETWORKS_CPU = """\
`lax.map` and `vmap` are compiled epochs of all networks on one device, `shard_map` spreads the
former over the devices; of these three only the epochs are timed, of the first two everything.
`fit_many` takes tiny networks together, larger ones one after another, in as many threads as there
are devices or cores. Steps of small networks leave most of a machine idle; those of 784-512-512-10
do not, so on two cores training them side by side gains nothing. All networks come out equal."""


def growth(result):
    """The table of exponents; None where nothing was measured."""
    rows = []
    for axis, part in result["growth"].items():
        seconds = [protocol.median(cell) for cell in part["cells"]]
        values = ", ".join(
            f"{value}: {took * 1e3:.3g}"
            for value, took in zip(part["values"], seconds, strict=True)
        )
        rows.append(protocol.line(axis, f"{exponent(part['values'], seconds):.2f}", values))
    return protocol.table(("axis", "exponent", "ms by size"), rows, GROWTH) if rows else None


def differences(result):
    """The table beside numerical differentiation; None where nothing was measured."""
    rows = []
    for cell in result["differences"]:
        ours, ratio, theirs = protocol.median(cell["backprop"]), "–", "–"
        if "differences" in cell:
            numerical = protocol.median(cell["differences"])
            ratio, theirs = f"{numerical / ours:,.0f}×", f"{numerical * 1e3:.3g} ms"
        rows.append(protocol.line(f"{cell['weights']:,}", ratio, f"{ours * 1e3:.3g} ms", theirs))
    columns = ("weights", "differences over backprop", "backprop", "differences")
    fitted = {name: exponent(*of_weights(result, name)) for name in ("differences", "backprop")}
    return protocol.table(columns, rows, DIFFERENCES.format(**fitted)) if rows else None


def of_weights(result, name):
    """Numbers of weights and the seconds of a gradient, for the networks where it was taken."""
    cells = [cell for cell in result["differences"] if name in cell]
    return [cell["weights"] for cell in cells], [protocol.median(cell[name]) for cell in cells]


def networks(result):
    """The table of many networks; None where none were trained."""
    cells = result["networks"]
    if not cells:
        return None
    names = [
        name
        for name in (LOOP, FIT_MANY, MAP, VMAP, SHARDED, EPOCHS)
        if any(name in cell["ways"] for cell in cells)
    ]
    over = [f"{FIT_MANY} over {EPOCHS}"] if EPOCHS in names else []
    if over:  # one network at several counts, measured in another order
        cells = sorted(cells, key=lambda cell: cell["count"])
    rows = []
    for cell in cells:
        rates = {name: way["networks_per_second"] for name, way in cell["ways"].items()}
        what = f"{cell['count']} of {name_of(cell['sizes'])}, batch {cell['batch_size']}"
        share = [f"{rates[FIT_MANY] / rates[EPOCHS]:.2f}"] if over else []
        told = [networks_a_second(rates, name) for name in names]
        rows.append(protocol.line(what, str(cell["devices"]), *told, *share))
    text = f"{NETWORKS} {NETWORKS_GPU if over else NETWORKS_CPU}"
    return protocol.table(("networks", "devices", *names, *over), rows, text)


def networks_a_second(rates, name):
    """A way's rate and, where there is a loop, how many times the loop's that is."""
    if name not in rates:
        return "–"
    times = f" ({rates[name] / rates[LOOP]:.2f}×)" if LOOP in rates else ""
    return f"{rates[name]:.3g}{times}"


def markdown(result):
    """The three tables, each with its text."""
    return "\n\n".join(filter(None, [growth(result), differences(result), networks(result)]))


def measure(run):
    """All three tables, each printed when it is measured; many networks first."""
    seconds = protocol.extent(run, SECONDS, 2.0, 0.0, accelerator=(2.0, 1.0))
    result = {"growth": {}, "differences": [], "networks": []}
    for cells in run.cells(
        protocol.extent(run, MANY, SHORT_MANY, QUICK_MANY, accelerator=(MANY_GPU, SHORT_MANY_GPU)),
        lambda many: trained(many, 2 * seconds),
        lambda many: f"{many.count} of {name_of(many.sizes)}",
    ):
        result["networks"] += cells
        run.keep(result)
    protocol.show(networks(result))
    axes = protocol.extent(
        run, AXES, SHORT_AXES, QUICK_AXES, accelerator=(AXES_GPU, SHORT_AXES_GPU)
    )
    for axis, part in run.cells(
        axes, lambda axis: (axis, along(axis, axes[axis], 2 * seconds)), "growth by {}".format
    ):
        result["growth"][axis] = part
        run.keep(result)
    protocol.show(growth(result))
    for cell in run.cells(
        protocol.extent(
            run,
            WIDTHS,
            SHORT_WIDTHS,
            QUICK_WIDTHS,
            accelerator=(WIDTHS_GPU, SHORT_WIDTHS_GPU),
        ),
        lambda width: against_differences(width, seconds),
        "differences at width {}".format,
    ):
        result["differences"].append(cell)
        run.keep(result)
    protocol.show(differences(result))
    return result


if __name__ == "__main__":
    protocol.command(__doc__, measure, markdown)
