"""How fast is training by ``jaxbp.fit`` beside its peers, warm and from the first import?

    python -m benchmarks.training [--output results.json] [--short | --quick]
    python -m benchmarks.training --table results.json

Two tables of ``jaxbp.fit``, JAX with optax, Flax, Equinox, PyTorch and scikit-learn, as far as they
are installed; ``benchmarks.peers`` trains by each.  All train one relu network from one set of
initial weights, on one data set, in minibatches that are shuffled anew every epoch, by plain SGD of
one learning rate, in float32.  The first table has samples a second, once the final losses are
found to be equal; the second the time and peak memory of each alone, in a process of its own.
"""

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

from benchmarks import peers, protocol
from benchmarks.problems import name_of


class Network(NamedTuple):
    """A row of the table: a network and how it is trained."""

    sizes: tuple[int, ...]
    rows: int
    batch_size: int
    epochs: int
    learning_rate: float


class Plan(NamedTuple):
    """The networks and contenders to measure, and how often."""

    networks: list[Network]
    names: list[str]  # of the contenders
    rounds: int
    seconds: float  # for the rounds of a network, pauses apart
    pause_seconds: float
    sample_seconds: float  # long enough that waking up from a pause does not count
    alone: int  # number of networks, the first ones, for which every contender also runs alone


DIGITS = Network((64, 128, 10), 1797, 32, epochs=30, learning_rate=0.01)
MNIST = Network((784, 128, 10), 6400, 128, epochs=3, learning_rate=0.02)
DEEP = Network((784, 512, 512, 10), 6400, 128, epochs=2, learning_rate=0.02)
FULL = Plan(
    [DIGITS, MNIST, DEEP],
    list(peers.PEERS),
    rounds=9,
    seconds=60.0,
    pause_seconds=0.3,
    sample_seconds=0.4,
    alone=3,
)
SHORT = FULL._replace(
    networks=[DIGITS._replace(epochs=5), MNIST._replace(epochs=1), DEEP._replace(epochs=1)],
    names=[name for name in peers.PEERS if name != peers.COMPILED],  # it compiles for a minute
    rounds=5,
    seconds=6.0,
    alone=1,
)
QUICK = Plan(
    [Network((8, 16, 3), 64, 16, epochs=1, learning_rate=0.02)],
    [peers.OURS, peers.LOOP, peers.SKLEARN],
    rounds=3,
    seconds=0.0,
    pause_seconds=0.0,
    sample_seconds=0.0,
    alone=0,
)

# Over twelve keys of fit the losses above scatter by a standard deviation of 0.3 % at most and lie
# within 1 %; half of the learning rate changes them by 9 % or more, twice of it by 15 % or more.
TOLERANCE = 0.02
LEARNED = 0.9  # share of the initial loss that the final loss must be below
OTHERS = ("optax", "flax", "equinox", "torch", "scikit-learn")


# The case


def synthetic(rng, network):
    """Classes that can be told apart, though not at once: prototypes of length 2.8 or so, and
    normal noise of deviation 1 in every direction."""
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
    """A network's data, and initial weights of size √(2/I)."""
    rng = np.random.default_rng(0)
    real = network.sizes == DIGITS.sizes and importlib.util.find_spec("sklearn") is not None
    x, target = digits() if real else synthetic(rng, network)
    weights = [
        (rng.normal(scale=np.sqrt(2 / i), size=(o, i)).astype(np.float32), np.zeros(o, np.float32))
        for i, o in pairwise(network.sizes)
    ]
    return peers.Case(
        x.astype(np.float32),
        target.astype(np.int32),
        weights,
        network.batch_size,
        network.epochs,
        network.learning_rate,
    )


def mean_loss(weights, x, target):
    """Cross-entropy over all rows in float64, by NumPy alone and by no contender."""
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
    """The plan's contenders that are installed; on an accelerator, those that make use of it."""
    names = [name for name in peers.installed() if name in plan.names]
    if jax.default_backend() == "cpu":
        return names
    return [name for name in names if name not in (peers.EAGER, peers.COMPILED, peers.SKLEARN)]


def learning_alike(case, runs):
    """The initial loss and every contender's final one, found to agree up to the shuffles."""
    initial = mean_loss(case.weights, case.x, case.target)
    losses = {name: mean_loss(run(), case.x, case.target) for name, run in runs.items()}
    ours = losses[peers.OURS]
    for name, loss in losses.items():
        assert loss < LEARNED * initial, f"{name}: loss {loss}, initially {initial}"
        assert abs(loss / ours - 1) < TOLERANCE, f"{name}: loss {loss}, not {ours}"
    return initial, losses


def alone(name, case):
    """Train in a process of its own with nothing compiled before -> its seconds and peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "case.npz"
        peers.keep(path, case)
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


def compare(network, plan, number):
    """One row of the table, for the network of this number in the plan."""
    case, names = case_of(network), names_of(plan)
    runs = {name: peers.PEERS[name].build(case) for name in names}
    initial, losses = learning_alike(case, runs)
    timed = protocol.timed(
        {name: protocol.Contender(run) for name, run in runs.items()},
        rounds=plan.rounds,
        at_most_seconds=plan.seconds,
        pause_seconds=plan.pause_seconds,
        sample_seconds=plan.sample_seconds,
    )
    for name, measured in timed.items():
        samples = network.rows * network.epochs
        measured["samples_per_second"] = samples / protocol.median(measured)
        measured["final_loss"] = losses[name]
        # torch.compile takes a minute to compile: once is enough
        if number < (1 if name == peers.COMPILED else plan.alone):
            measured.update(alone(name, case))
        else:
            measured.update(cold_start_seconds=None, peak_mib=None)
    return {
        "network": f"{name_of(network.sizes)}, batch {network.batch_size}",
        "rows": network.rows,
        "epochs": network.epochs,
        "learning_rate": network.learning_rate,
        "initial_loss": initial,
        "contenders": timed,
    }


# Reading the result


def rounded(times):
    digits = 0 if times >= 9.95 else 1 if times >= 1.995 else 2
    return f"{times:,.{digits}f}×"


def times_faster(cell, name):
    """How many times faster ours is than another."""
    if name not in cell["contenders"]:
        return "–"
    return rounded(1 / protocol.ratio(cell["contenders"][name]))


def columns(names):
    faster = [f"over {name}" for name in names if name != peers.OURS]
    return ("network, batch", f"`{peers.OURS}`, samples a second", *faster)


def row(cell, names):
    """Our samples a second, then ratios."""
    ours = cell["contenders"][peers.OURS]["samples_per_second"]
    ratios = [times_faster(cell, name) for name in names if name != peers.OURS]
    return protocol.line(cell["network"], f"{ours:,.0f}", *ratios)


def named(cells):
    """The contenders of any of these cells, in order."""
    return [name for name in peers.PEERS if any(name in cell["contenders"] for cell in cells)]


def seconds_and_memory(contender):
    if contender is None or contender["cold_start_seconds"] is None:
        return "–"
    return f"{contender['cold_start_seconds']:.1f} s, {contender['peak_mib']:.0f} MiB"


def table_of_those_alone(cells):
    """The table of cold start and peak memory, of the cells that have them; None without."""
    cells = [c for c in cells if c["contenders"][peers.OURS]["cold_start_seconds"] is not None]
    if not cells:
        return None
    names = named(cells)
    rows = [
        protocol.line(
            f"{cell['network']}, epochs {cell['epochs']}",
            *(seconds_and_memory(cell["contenders"].get(name)) for name in names),
        )
        for cell in cells
    ]
    return protocol.table(["alone, cold", *names], rows, ALONE)


EXPLANATION = """\
How many times faster `jaxbp.fit` is than each, at the same training: relu and softmax
cross-entropy, plain SGD in float32 from the same initial weights, rows shuffled anew every epoch,
the last minibatch of an epoch as small as it is. A run is all of training, from NumPy arrays to
NumPy weights, everything compiled before; medians over rounds, in which all run in turn, with a
pause before each. Before that, each one's final loss over all rows, by NumPy in float64, is found
to be within {tolerance} of ours. 64 inputs are scikit-learn's digits, 784 are synthetic. JAX +
optax is a jitted step of `jax.value_and_grad`, Flax `nnx.jit_partial` of one, Equinox
`eqx.filter_jit` of one, all gathering their rows inside it; PyTorch is eager, with rows put in
order once an epoch and no DataLoader, on its default threads; `torch.compile` is that with the loss
compiled. With {versions}. Waiting threads of OpenMP sleep (OMP_WAIT_POLICY={policy}): by default
they spin, which on two cores makes PyTorch up to a fifth faster while both are free, and ten times
slower and more while one is not. Those of OpenBLAS, which scikit-learn uses, cannot be made to
sleep: its times need both cores free. Where products are most of a step, as at 784-512-512-10, all
are bound by the same arithmetic, and little can be gained over anyone. At 64-128-10 two thirds of a
step are products too, which at that size run far below the machine's peak (see Limit); this bounds
what can be gained there."""

ALONE = """\
From the start of a process to its end, imports and compilation included and with no compilation
cache, and its peak memory, the data and the weights included; each in a process that imports its
own libraries alone. scikit-learn has no compiler to import and nothing to compile; beside JAX +
optax, `jaxbp.fit` has the package to import, 0.1 s or so, and an epoch to compile, not a step."""


def markdown(result):
    """Both tables, each with its text."""
    cells = result["cells"]
    names = named(cells)
    explanation = EXPLANATION.format(
        tolerance=f"{TOLERANCE:.0%}",
        versions=", ".join(f"{name} {version}" for name, version in result["others"].items()),
        policy=result["omp_wait_policy"],
    )
    rows = [row(cell, names) for cell in cells]
    tables = [protocol.table(columns(names), rows, explanation), table_of_those_alone(cells)]
    return "\n\n".join(table for table in tables if table is not None)


def measure(options):
    """Every network, printed as it is measured; then those that ran alone."""
    # read when the first library with OpenMP in it is imported
    policy = os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    plan = protocol.extent(options, FULL, SHORT, QUICK)
    names = names_of(plan)
    print(protocol.heading(*columns(names)))
    cells = []
    for number, network in enumerate(plan.networks):
        cells.append(compare(network, plan, number))
        print(row(cells[-1], names), flush=True)
    table = table_of_those_alone(cells)
    if table is not None:
        print(f"\n{table}")
    return {"others": protocol.versions(*OTHERS), "omp_wait_policy": policy, "cells": cells}


if __name__ == "__main__":
    protocol.command(__doc__, measure, markdown)
