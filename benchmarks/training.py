"""How fast is training by ``jaxbp.fit`` beside its peers, warm and from the first import?

    python -m benchmarks.training [--output results.json] [--short | --quick]
    python -m benchmarks.training --table results.json

Two tables of ``jaxbp.fit``, JAX with optax, Flax, Equinox, PyTorch and scikit-learn, as far as they
are installed; ``benchmarks.peers`` trains by each, PyTorch on a GPU where JAX is, also by CUDA
graphs, and scikit-learn on the host.  All train one relu network from one set of initial weights,
on one data set, in minibatches that are shuffled anew every epoch, by plain SGD of one learning
rate, in float32.  The first table has samples a second, once the final losses are found to be
equal; the second the time and peak memory of each alone, in a process of its own.
"""

import importlib.util
import json
import math
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
    alone: int  # number of networks, the first ones, for which contenders also run alone
    compiled: int = 3  # number of networks, the first ones, that torch.compile trains
    names_alone: tuple[str, ...] = tuple(peers.PEERS)  # of the contenders that run alone


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
    rounds=5,
    seconds=6.0,
    alone=1,
    compiled=0,  # that takes a minute on a CPU
)
FULL_GPU = FULL._replace(
    rounds=7,
    seconds=8.0,
    pause_seconds=0.05,
    sample_seconds=0.2,
    alone=1,
    names_alone=(peers.OURS, peers.LOOP, peers.EAGER, peers.GRAPH),
)
SHORT_GPU = FULL_GPU._replace(
    networks=SHORT.networks[::2],
    seconds=4.0,
    sample_seconds=0.1,
    compiled=1,
    names_alone=(peers.OURS, peers.EAGER),
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
EXPECTED_ALONE, EXPECTED_COMPILED = 10.0, 30.0  # seconds that it takes at least
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
        device_of_pytorch(),
    )


# Comparing


def device_of_pytorch():
    """The device that is JAX's too: a GPU, or else the CPU."""
    return peers.CUDA if jax.default_backend() == "gpu" else peers.CPU


def names_of(plan):
    """The plan's contenders that can run here, PyTorch on JAX's device."""
    return [name for name in peers.installed(device_of_pytorch()) if name in plan.names]


def trained(name, case, ours):
    """A contender's compiled run, and its final loss, found to agree with ours up to the shuffles.

    name: the contender's.
    case: what to train.
    ours: the final loss of ``jaxbp.fit``; None for that one itself.

    Raises AssertionError for a loss that is not much below the initial one, or not ours.
    """
    run = peers.PEERS[name].build(case)
    loss, initial = (peers.mean_loss(each, case.x, case.target) for each in (run(), case.weights))
    assert loss < LEARNED * initial, f"{name}: loss {loss}, initially {initial}"
    assert ours is None or abs(loss / ours - 1) < TOLERANCE, f"{name}: loss {loss}, not {ours}"
    return run, loss


def compare(network, names, plan, run):
    """One row of the table: samples a second of all contenders that train to the same loss.

    network: what to train, and how.
    names: of the contenders, ours first.
    plan: how long to measure.
    run: of the benchmark; it keeps who failed, or had no time left to compile.

    Raises what ours raises, as there is nothing to compare then.
    """
    case = case_of(network)
    ours, loss = trained(peers.OURS, case, None)
    runs, losses = {peers.OURS: ours}, {peers.OURS: loss}
    for name, (other, found) in run.cells(
        [name for name in names if name != peers.OURS],
        lambda name: (name, trained(name, case, loss)),
        lambda name: f"{name} at {name_of(network.sizes)}",
    ):
        runs[name], losses[name] = other, found
    timed = protocol.timed(
        {name: protocol.Contender(each) for name, each in runs.items()},
        rounds=plan.rounds,
        at_most_seconds=plan.seconds,
        pause_seconds=plan.pause_seconds,
        sample_seconds=plan.sample_seconds,
    )
    for name, measured in timed.items():
        samples = network.rows * network.epochs
        measured["samples_per_second"] = samples / protocol.median(measured)
        measured["final_loss"] = losses[name]
        measured.update(cold_start_seconds=None, peak_mib=None)
    return {
        "network": f"{name_of(network.sizes)}, batch {network.batch_size}",
        "rows": network.rows,
        "batch_size": network.batch_size,
        "epochs": network.epochs,
        "learning_rate": network.learning_rate,
        "initial_loss": peers.mean_loss(case.weights, case.x, case.target),
        "contenders": timed,
    }


def alone(name, case, seconds):
    """Train in a process of its own with nothing compiled before -> its seconds and peak memory.

    name: the contender's.
    case: what to train.
    seconds: how long it may take; TimeoutExpired is raised after them.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "case.npz"
        peers.keep(path, case)
        no_caches = {
            "JAX_ENABLE_COMPILATION_CACHE": "false",
            "TORCHINDUCTOR_CACHE_DIR": folder,
        }
        peers.release_memory()
        start = time.perf_counter()
        process = subprocess.run(
            [sys.executable, "-m", "benchmarks.peers", name, path],
            check=True,
            cwd=Path(__file__).parents[1],
            env=os.environ | no_caches,
            stdout=subprocess.PIPE,
            timeout=None if seconds == math.inf else seconds,
        )
        took = time.perf_counter() - start
    return {"cold_start_seconds": took, **json.loads(process.stdout)}


# Reading the result


def steps(cell):
    """The number of steps of a training; the last one of an epoch takes the rows that are left."""
    return cell["epochs"] * -(-cell["rows"] // cell["batch_size"])


def rounded(times):
    digits = 0 if times >= 9.95 else 1 if times >= 1.995 else 2
    return f"{times:,.{digits}f}×"


def times_faster(cell, name):
    """How many times faster ours is than another."""
    if name not in cell["contenders"]:
        return "–"
    return rounded(1 / protocol.ratio(cell["contenders"][name]))


def columns(names, on_cpu):
    """The table's; where PyTorch and we are not on a CPU, scikit-learn is all the same."""
    device = {} if on_cpu else {peers.SKLEARN: ", on the host"}
    faster = [f"over {name}{device.get(name, '')}" for name in names if name != peers.OURS]
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
compiled. With {versions}."""
CPU = """\
Waiting threads of OpenMP sleep (OMP_WAIT_POLICY={policy}): by default
they spin, which on two cores makes PyTorch up to a fifth faster while both are free, and ten times
slower and more while one is not. Those of OpenBLAS, which scikit-learn uses, cannot be made to
sleep: its times need both cores free. Where products are most of a step, as at 784-512-512-10, all
are bound by the same arithmetic, and little can be gained over anyone. At 64-128-10 about half of a
step are products too, which at that size run far below the machine's peak (see Limit); this bounds
what can be gained there."""
GPU = """\
Products of float32 are TF32 for all: that is JAX's default on this device, and PyTorch is set to it
by `torch.set_float32_matmul_precision("high")`. The CUDA graph is of a whole step, its rows
gathered inside it, captured once and replayed, as PyTorch's documentation has it; a smaller last
minibatch has one of its own. `torch.compile` is for each size of a minibatch by itself, with
`mode="reduce-overhead"`, which makes CUDA graphs of the loss and its gradient. scikit-learn trains
on the host's CPU."""

ALONE = """\
From the start of a process to its end, imports and compilation included and with no compilation
cache, and its peak memory, the data and the weights included; each in a process that imports its
own libraries alone. scikit-learn has no compiler to import and nothing to compile; beside JAX +
optax, `jaxbp.fit` has the package to import, 0.1 s or so, and an epoch to compile, not a step."""


def markdown(result):
    """Both tables, each with its text."""
    cells = result["cells"]
    names = named(cells)
    on_cpu = protocol.on_cpu(result)
    explanation = f"{EXPLANATION} {CPU if on_cpu else GPU}".format(
        tolerance=f"{TOLERANCE:.0%}",
        versions=", ".join(f"{name} {version}" for name, version in result["others"].items()),
        policy=result["omp_wait_policy"],
    )
    rows = [row(cell, names) for cell in cells]
    tables = [
        protocol.table(columns(names, on_cpu), rows, explanation),
        table_of_those_alone(cells),
    ]
    return "\n\n".join(table for table in tables if table is not None)


def measure(run):
    """Every network, printed as it is measured; then torch.compile, and those that run alone."""
    # read when the first library with OpenMP in it is imported
    policy = os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    plan = protocol.extent(run, FULL, SHORT, QUICK, accelerator=(FULL_GPU, SHORT_GPU))
    names = names_of(plan)
    quickly = [name for name in names if name != peers.COMPILED]
    result = {"others": protocol.versions(*OTHERS), "omp_wait_policy": policy, "cells": []}
    print(protocol.heading(*columns(quickly, protocol.on_cpu())))
    measured = []
    for network, cell in run.cells(
        plan.networks,
        lambda network: (network, compare(network, quickly, plan, run)),
        lambda network: f"training of {name_of(network.sizes)}",
    ):
        measured.append((network, cell))
        result["cells"].append(cell)
        print(row(cell, quickly), flush=True)
        run.keep(result)

    def with_torch_compile(item):
        network, cell = item
        both = compare(network, [peers.OURS, peers.COMPILED], plan, run)
        return cell, both["contenders"].get(peers.COMPILED)

    for cell, found in run.cells(
        measured[: plan.compiled] if peers.COMPILED in names else [],
        with_torch_compile,
        lambda item: f"{peers.COMPILED} at {name_of(item[0].sizes)}",
        expected=EXPECTED_COMPILED,
    ):
        if found is not None:
            cell["contenders"][peers.COMPILED] = found
            print(row(cell, [peers.OURS, peers.COMPILED]), flush=True)
            run.keep(result)

    def in_a_process(item):
        network, cell, name = item
        return cell["contenders"][name], alone(name, case_of(network), run.seconds_left())

    for contender, cold in run.cells(
        [
            (network, cell, name)
            for network, cell in measured[: plan.alone]
            for name in cell["contenders"]
            # torch.compile takes a minute to compile: once is enough
            if name in plan.names_alone and (name != peers.COMPILED or network is plan.networks[0])
        ],
        in_a_process,
        lambda item: f"{item[2]} alone at {name_of(item[0].sizes)}",
        expected=EXPECTED_ALONE,
    ):
        contender.update(cold)
        run.keep(result)

    protocol.show(table_of_those_alone(result["cells"]))
    return result


if __name__ == "__main__":
    protocol.command(__doc__, measure, markdown)
