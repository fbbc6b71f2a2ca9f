"""Training from the first import to the last epoch: ``jaxbp.fit`` beside its peers.

    python -m benchmarks.training [--output results.json] [--short | --quick]
    python -m benchmarks.training --table results.json

The same relu network from the same initial weights, on the same data, in minibatches of the same
size, shuffled anew every epoch, by plain SGD of the same learning rate, in float32: samples a
second of ``jaxbp.fit``, of JAX with optax, Flax, Equinox, PyTorch and scikit-learn, as far as they
are installed (``benchmarks.peers`` is how each does it), once their losses are found to be the
same; and of each alone, in a process of its own, time from its start to its end and peak memory.
"""

import importlib.metadata
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from benchmarks.peers import COMPILED, EAGER, LOOP, OURS, PEERS, SKLEARN, Case, installed, keep
from benchmarks.protocol import (
    Contender,
    command,
    entry,
    extent,
    heading,
    interleaved,
    line,
    ratio,
)


class Network(NamedTuple):
    """A row of the table."""

    sizes: tuple[int, ...]
    rows: int
    batch_size: int
    epochs: int
    learning_rate: float


class Plan(NamedTuple):
    """What is measured, and how often."""

    networks: list[Network]
    names: list[str]  # of the contenders, where they are installed
    rounds: int
    seconds: float  # of the rounds of a network, pauses apart
    pause_seconds: float
    sample_seconds: float  # so long that waking from a pause is nothing beside it
    alone: int  # of so many networks, the first ones, every contender is also run alone


DIGITS, MNIST, DEEP = (64, 128, 10), (784, 128, 10), (784, 512, 512, 10)
DIGITS_ROWS, MNIST_ROWS = 1797, 6400
QUICKLY = [name for name in PEERS if name != COMPILED]  # which takes a minute to compile
FULL = Plan(
    [
        Network(DIGITS, DIGITS_ROWS, 32, epochs=30, learning_rate=0.01),
        Network(MNIST, MNIST_ROWS, 128, epochs=3, learning_rate=0.02),
        Network(DEEP, MNIST_ROWS, 128, epochs=2, learning_rate=0.02),
    ],
    list(PEERS),
    rounds=9,
    seconds=60.0,
    pause_seconds=0.3,
    sample_seconds=0.4,
    alone=3,
)
SHORT = Plan(
    [
        Network(DIGITS, DIGITS_ROWS, 32, epochs=5, learning_rate=0.01),
        Network(MNIST, MNIST_ROWS, 128, epochs=1, learning_rate=0.02),
        Network(DEEP, MNIST_ROWS, 128, epochs=1, learning_rate=0.02),
    ],
    QUICKLY,
    rounds=5,
    seconds=6.0,
    pause_seconds=0.3,
    sample_seconds=0.4,
    alone=1,
)
QUICK = Plan(
    [Network((8, 16, 3), 64, 16, epochs=1, learning_rate=0.02)],
    [OURS, LOOP, SKLEARN],
    rounds=3,
    seconds=0.0,
    pause_seconds=0.0,
    sample_seconds=0.0,
    alone=0,
)

# Over twelve keys of fit the losses above scatter by a standard deviation of 0.3 % at most and lie
# within 1 %; half of the learning rate changes them by 9 % or more, twice of it by 15 % or more.
TOLERANCE = 0.02
LEARNED = 0.9  # of the initial loss: what is left of it is less

# At least so many times faster, on two cores.
TARGETS = {
    "64-128-10, batch 32": {LOOP: 1.0, EAGER: 8.0, SKLEARN: 15.0},
    "784-128-10, batch 128": {LOOP: 1.0},
    "784-512-512-10, batch 128": {LOOP: 1.0, EAGER: 2.5, SKLEARN: 3.0},
}
OTHERS = ("optax", "flax", "equinox", "torch", "scikit-learn")


# The case


def synthetic(rng, network):
    """A prototype of every class, some 2.8 long, in noise of length 1 in every direction: classes
    that can be told apart, and not at once."""
    target = rng.integers(network.sizes[-1], size=network.rows)
    inputs = network.sizes[0]
    prototypes = rng.normal(scale=2.8 / np.sqrt(inputs), size=(network.sizes[-1], inputs))
    return prototypes[target] + rng.normal(size=(network.rows, inputs)), target


def digits():
    """All of scikit-learn's digits, in [0, 1]."""
    from sklearn.datasets import load_digits  # noqa: PLC0415

    x, target = load_digits(return_X_y=True)
    return x / 16, target


def case_of(network):
    """Data, and weights of size √(2/I)."""
    rng = np.random.default_rng(0)
    real = network.sizes == DIGITS and importlib.util.find_spec("sklearn") is not None
    x, target = digits() if real else synthetic(rng, network)
    weights = [
        (rng.normal(scale=np.sqrt(2 / i), size=(o, i)).astype(np.float32), np.zeros(o, np.float32))
        for i, o in pairwise(network.sizes)
    ]
    return Case(
        x.astype(np.float32),
        target.astype(np.int32),
        weights,
        network.batch_size,
        network.epochs,
        network.learning_rate,
    )


def mean_loss(weights, x, target):
    """Cross-entropy over all rows, in float64, by NumPy alone: no contender's own."""
    *hidden, output = [(weight.astype(float), bias.astype(float)) for weight, bias in weights]
    z = x.astype(float)
    for weight, bias in hidden:
        z = np.maximum(z @ weight.T + bias, 0)
    logits = z @ output[0].T + output[1]
    logits -= logits.max(axis=1, keepdims=True)
    of_target = logits[np.arange(len(target)), target]
    return float(np.mean(np.log(np.exp(logits).sum(axis=1)) - of_target))


# Comparing


def names_of(plan):
    """Those of the plan that are installed; on an accelerator, those that make use of it."""
    on_host = {EAGER, COMPILED, SKLEARN} if jax.default_backend() != "cpu" else set()
    return [name for name in installed() if name in plan.names and name not in on_host]


def learning_alike(case, runs):
    """Every contender's loss after training, once they are found to be ours, up to the shuffles."""
    initial = mean_loss(case.weights, case.x, case.target)
    losses = {name: mean_loss(run(), case.x, case.target) for name, run in runs.items()}
    for name, loss in losses.items():
        assert loss < LEARNED * initial, f"{name}: loss {loss}, initially {initial}"
        assert abs(loss / losses[OURS] - 1) < TOLERANCE, f"{name}: loss {loss}, not {losses[OURS]}"
    return initial, losses


def alone(name, case):
    """Seconds from the start of a process to its end, with nothing compiled before, and its peak
    memory."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "case.npz"
        keep(path, case)
        no_caches = {
            "JAX_ENABLE_COMPILATION_CACHE": "false",
            "TORCHINDUCTOR_CACHE_DIR": folder,
        }
        start = time.perf_counter()
        process = subprocess.run(
            [sys.executable, "-m", "benchmarks.peers", name, path],
            check=True,
            cwd=Path(__file__).parents[1],
            env=os.environ | no_caches,
            stdout=subprocess.PIPE,
        )
        seconds = time.perf_counter() - start
    return {"cold_start_seconds": seconds, **json.loads(process.stdout)}


def alone_if(asked, name, case):
    nothing = {"cold_start_seconds": None, "peak_mib": None}
    return alone(name, case) if asked else nothing


def compare(network, plan, number):
    """One row of the table."""
    case, names = case_of(network), names_of(plan)
    runs = {name: PEERS[name].build(case) for name in names}
    initial, losses = learning_alike(case, runs)
    contenders = {name: Contender(run) for name, run in runs.items()}
    timings = interleaved(
        contenders,
        rounds=plan.rounds,
        at_most_seconds=plan.seconds,
        pause_seconds=plan.pause_seconds,
        sample_seconds=plan.sample_seconds,
    )
    return {
        "network": f"{'-'.join(map(str, network.sizes))}, batch {network.batch_size}",
        "rows": network.rows,
        "epochs": network.epochs,
        "learning_rate": network.learning_rate,
        "initial_loss": initial,
        "contenders": {
            name: {
                **entry(contenders[name], timings[name]),
                "samples_per_second": network.rows * network.epochs / timings[name].median,
                "final_loss": losses[name],
                # compiling for torch takes a minute: once will do
                **alone_if(number < (1 if name == COMPILED else plan.alone), name, case),
            }
            for name in names
        },
    }


def versions():
    """Of the peers that are installed."""
    found = {}
    for name in OTHERS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


# Reading the result


def rounded(times):
    digits = 0 if times >= 9.95 else 1 if times >= 1.995 else 2
    return f"{times:,.{digits}f}×"


def times_faster(cell, name):
    """How many times faster ours is, and where that is not what was aimed at, what was."""
    if name not in cell["contenders"]:
        return "–"
    times = 1 / ratio(cell["contenders"][name])
    target = TARGETS.get(cell["network"], {}).get(name, 0.0)
    return rounded(times) + (f" (target {target:g}×)" if times < target else "")


def columns(names):
    faster = [f"over {name}" for name in names if name != OURS]
    return ("network, batch", f"`{OURS}`, samples a second", *faster)


def row(cell, names):
    """What ours does, then ratios."""
    ours = cell["contenders"][OURS]["samples_per_second"]
    ratios = [times_faster(cell, name) for name in names if name != OURS]
    return line(cell["network"], f"{ours:,.0f}", *ratios)


def named(cells):
    """The contenders of any of these cells, in order."""
    return [name for name in PEERS if any(name in cell["contenders"] for cell in cells)]


def seconds_and_memory(contender):
    if contender is None or contender["cold_start_seconds"] is None:
        return "–"
    return f"{contender['cold_start_seconds']:.1f} s, {contender['peak_mib']:.0f} MiB"


def table_of_those_alone(cells):
    """Cold start and peak memory, where they were measured."""
    cells = [cell for cell in cells if cell["contenders"][OURS]["cold_start_seconds"] is not None]
    names = named(cells)
    rows = [
        line(
            f"{cell['network']}, epochs {cell['epochs']}",
            *(seconds_and_memory(cell["contenders"].get(name)) for name in names),
        )
        for cell in cells
    ]
    table = ["", heading("alone, cold", *names), *rows, "", ALONE.replace("\n", " ")]
    return table if cells else []


EXPLANATION = """\
How many times faster `jaxbp.fit` is than each, at the same training: relu and softmax
cross-entropy, plain SGD in float32 from the same initial weights, rows shuffled anew every epoch,
the last minibatch of an epoch as small as it is. A run is the whole of it, from NumPy arrays to
NumPy weights, everything compiled before; medians over rounds, in which all run in turn, with a
pause before each. Before, every one's loss over all rows, by NumPy in float64, is found to be
within {tolerance} of ours. 64 inputs are scikit-learn's digits, 784 are synthetic. JAX + optax is
a jitted step of `jax.value_and_grad`, Flax `nnx.jit_partial` of one, Equinox `eqx.filter_jit` of
one, all gathering their rows inside it; PyTorch is eager, with rows put in order once an epoch and
no DataLoader, on its default threads; `torch.compile` is that with the loss compiled. With
{versions}. Waiting threads of OpenMP sleep (OMP_WAIT_POLICY={policy}): by default they spin, which
on two cores makes PyTorch up to a fifth faster while both are free, and ten times slower and more
while one is not. Those of OpenBLAS, which is scikit-learn's, cannot be told to: its times want
both free.
Where products are most of a step, as at 784-512-512-10, all are bound by the same arithmetic, and
there the targets are missed; at 64-128-10 two thirds of a step are products too, which at that size
run far below the machine's peak (see Limit)."""

ALONE = """\
From the start of a process to its end, imports and compilation included and with no compilation
cache, and its peak memory, of which the data and weights are everyone's; each in a process that
imports what it needs."""


def markdown(result):
    """Both tables, and what they say."""
    cells = result["cells"]
    names = named(cells)
    found = ", ".join(f"{name} {version}" for name, version in result["others"].items())
    explanation = EXPLANATION.replace("\n", " ").format(
        tolerance=f"{TOLERANCE:.0%}", versions=found, policy=result["omp_wait_policy"]
    )
    rows = [row(cell, names) for cell in cells]
    table = [heading(*columns(names)), *rows, "", explanation]
    return "\n".join([*table, *table_of_those_alone(cells)])


def measure(options):
    """Every network, printed as it is measured; then those that ran alone."""
    # read when the first library with OpenMP in it is imported
    policy = os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    plan = extent(options, FULL, SHORT, QUICK)
    names = names_of(plan)
    print(heading(*columns(names)))
    cells = []
    for number, network in enumerate(plan.networks):
        cells.append(compare(network, plan, number))
        print(row(cells[-1], names), flush=True)
    for text in table_of_those_alone(cells):
        print(text)
    return {"others": versions(), "omp_wait_policy": policy, "cells": cells}


if __name__ == "__main__":
    command(__doc__, measure, markdown)
