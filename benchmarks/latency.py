"""How long does a user wait for a training, the first time and with something else in it?

    python -m benchmarks.latency [--output results.json] [--short | --quick]
    python -m benchmarks.latency --table results.json

Two tables.  The first has single trainings by ``jaxbp.fit`` and its peers (``benchmarks.peers``):
from the start of a process, and within one the first, the same once more, with the optimiser
written inline, with another learning rate, another seed, and the rows of another fold.  The second
has a search by ``fit_many``, beside scikit-learn's ``MLPClassifier`` on all cores.  Compilation
counts, as a user waits for it.
"""

import gc
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import optax

import jaxbp
from benchmarks import peers, protocol, training
from benchmarks.problems import name_of
from jaxbp import activations, heads
from jaxbp.same_program import KEPT

CALLS = {  # columns of the first table, and what each has that is new
    "first": "first",
    "again": "the same again",
    "inline": "optimiser inline",
    "rate": "another rate",
    "seed": "another seed",
    "fold": "fewer rows",
}


class Search(NamedTuple):
    """A row of the second table: what is searched, how each network is trained, and how many."""

    data: str  # scikit-learn's
    hidden: int
    batch_size: int
    epochs: int
    networks: int = 30
    folds: int = 5


class Plan(NamedTuple):
    """What to measure."""

    network: training.Network
    names: tuple[str, ...]  # of contenders
    processes: int  # of each contender
    searches: tuple[Search, ...]
    calls: int = 1000  # of one process, in which memory is watched


NAMES = (peers.OURS, peers.LOOP, "Flax", "Equinox", peers.EAGER, peers.SKLEARN)
SEARCHES = (
    Search("digits", hidden=64, batch_size=32, epochs=100),
    Search("iris", hidden=16, batch_size=16, epochs=200),
    Search("breast_cancer", hidden=32, batch_size=32, epochs=100),
    Search("digits", hidden=100, batch_size=200, epochs=100),
)
FULL = Plan(training.DIGITS._replace(epochs=5), NAMES, 5, SEARCHES)
SHORT = FULL._replace(processes=2, names=(peers.OURS, peers.LOOP, peers.SKLEARN), searches=())
QUICK = Plan(
    training.QUICK.networks[0],
    (peers.OURS,),
    1,
    (Search("iris", hidden=4, batch_size=64, epochs=3, networks=2, folds=2),),
    calls=4,
)


# One training


def in_a_process(name, path):
    """What one process of a contender says: the seconds of all of it, and of each call."""
    start = time.perf_counter()
    peers_alone(name, path)
    cold = time.perf_counter() - start
    return {"cold": cold, **json.loads(peers_alone(name, path, "calls"))["calls"]}


def peers_alone(*arguments):
    """Run a peer in a process of its own, with nothing compiled before -> what it prints."""
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.peers", *map(str, arguments)],
        check=True,
        cwd=Path(__file__).parents[1],
        env=os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"},
        stdout=subprocess.PIPE,
    ).stdout


def one_training(plan):
    """The seconds of every call by every contender, the median over its processes.

    The contenders take turns.  Raises AssertionError where the loss of a call is not ours.
    """
    case = training.case_of(plan.network)
    names = [name for name in peers.installed(training.device_of_pytorch()) if name in plan.names]
    samples = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "case.npz"
        peers.keep(path, case)
        for _ in range(plan.processes):
            for name in names:
                samples[name].append(in_a_process(name, path))
    ours = samples[peers.OURS][0]
    for name, found in samples.items():
        for call in CALLS:
            loss = found[0][call]["loss"]
            assert abs(loss / ours[call]["loss"] - 1) < training.TOLERANCE, (
                f"{name}, {call}: {loss}"
            )
    return {
        "network": f"{name_of(plan.network.sizes)}, batch {plan.network.batch_size}",
        "epochs": plan.network.epochs,
        "processes": plan.processes,
        "seconds": {
            name: {
                "cold": statistics.median(each["cold"] for each in found),
                **{
                    call: statistics.median(each[call]["seconds"] for each in found)
                    for call in CALLS
                },
            }
            for name, found in samples.items()
        },
    }


# Many


def folds_of(search):
    """The (x, target) to train on of every fold, with standardised columns."""
    from sklearn import datasets  # noqa: PLC0415
    from sklearn.model_selection import StratifiedKFold  # noqa: PLC0415

    x, target = getattr(datasets, f"load_{search.data}")(return_X_y=True)
    spread = x.std(axis=0)
    x = ((x - x.mean(axis=0)) / np.where(spread == 0, 1, spread)).astype(np.float32)
    folds = StratifiedKFold(search.folds, shuffle=True, random_state=0).split(x, target)
    return [(x[rows], target[rows].astype(np.int32)) for rows, _ in folds]


def by_fit_many(search, folds, seed):
    """Every fold's networks in one call -> the accuracy of each on its training data."""
    (x, target), *_ = folds
    sizes = (x.shape[1], search.hidden, int(target.max()) + 1)
    model = jaxbp.MLP(sizes, activations.relu, heads.softmax_cross_entropy)
    accuracies = []
    for number, (x, target) in enumerate(folds):
        batch = jaxbp.Batch(x, target)
        params, _ = jaxbp.fit_many(
            model,
            batch,
            keys=jax.random.split(jax.random.key(seed + number), search.networks),
            learning_rate=rates_of(search, seed),
            optimizer=lambda rate: optax.adam(rate),  # noqa: PLW0108, written inline
            epochs=search.epochs,
            batch_size=search.batch_size,
        )
        predicted = jax.vmap(lambda one, x=x: jaxbp.predict(model, one, x))(params)
        accuracies.append(np.mean(np.argmax(predicted, axis=-1) == target, axis=1))
    return np.concatenate(accuracies)


def rates_of(search, seed):
    """A learning rate for each network."""
    return np.geomspace(1e-3, 1e-2, search.networks) * (1 + 0.01 * seed)


def by_sklearn(search, folds, pool):
    """One fold's networks, side by side on the cores -> their accuracies on the training data."""
    from joblib import delayed  # noqa: PLC0415

    x, target = folds[0]
    return np.array(
        pool(
            delayed(one_of_sklearn)(search, x, target, rate, seed)
            for seed, rate in enumerate(rates_of(search, 0))
        )
    )


def one_of_sklearn(search, x, target, rate, seed):
    """Train one classifier -> its accuracy on the training data."""
    from sklearn.exceptions import ConvergenceWarning  # noqa: PLC0415
    from sklearn.neural_network import MLPClassifier  # noqa: PLC0415

    network = MLPClassifier(
        (search.hidden,),
        alpha=0.0,
        learning_rate_init=rate,
        batch_size=search.batch_size,
        max_iter=search.epochs,
        n_iter_no_change=10 * search.epochs,
        tol=0.0,
        random_state=seed,
    )
    with warnings.catch_warnings():  # that it stopped before it converged
        warnings.simplefilter("ignore", ConvergenceWarning)
        return network.fit(x, target).score(x, target)


def search_of(search):
    """A cell of the second table: seconds of a first search, of a second one, and scikit-learn's.

    scikit-learn's are of one fold, in worker processes that are there already, times the folds.
    Raises AssertionError where the networks do not learn as well.
    """
    from joblib import Parallel  # noqa: PLC0415

    folds = folds_of(search)
    seconds, accuracies = {}, {}
    for what, seed in (("first", 0), ("again", 1)):
        start = time.perf_counter()
        accuracies[what] = by_fit_many(search, folds, seed)
        seconds[what] = time.perf_counter() - start
    with Parallel(n_jobs=len(os.sched_getaffinity(0))) as pool:
        by_sklearn(search._replace(networks=2, epochs=1), folds, pool)
        start = time.perf_counter()
        accuracies["scikit-learn"] = by_sklearn(search, folds, pool)
        seconds["scikit-learn"] = search.folds * (time.perf_counter() - start)
    medians = {name: float(np.median(each)) for name, each in accuracies.items()}
    if search.epochs >= 100:
        assert max(medians.values()) - min(medians.values()) < 0.02, medians
    return {"search": search._asdict(), "rows": len(folds[0][0]), "accuracy": medians} | {
        "seconds": seconds
    }


# Again and again


def held_mib():
    """The memory that this process holds; None where /proc does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def growth(calls):
    """Train so often, all written inline with another rate at each call -> MiB held, now and then.

    Before it is looked at, there have been as many calls as programs are kept.
    """
    rng = np.random.default_rng(0)
    x, target = rng.normal(size=(64, 8)).astype(np.float32), rng.integers(3, size=64)

    def train(number):
        def activation(a):
            h = np.float32(1.5) * jax.numpy.tanh(a)
            return h, np.float32(1.5) * (1 - (h / np.float32(1.5)) ** 2)

        jaxbp.fit(
            jaxbp.MLP((8, 16, 3), activation, heads.softmax_cross_entropy),
            jaxbp.Batch(x, target),
            optimizer=optax.adam(1e-3 * (1 + number)),
            epochs=1,
            batch_size=16,
            key=jax.random.key(number),
        )

    for number in range(2 * KEPT):
        train(number)
    held = [held_mib()]
    for _ in range(4):
        for number in range(calls // 4):
            train(number)
        gc.collect()
        held.append(held_mib())
    return {"calls": calls, "mib": held}


# Reading the result


def shown(seconds):
    """Seconds as a person reads them."""
    return f"{seconds * 1e3:.0f} ms" if seconds < 0.2 else f"{seconds:.1f} s"


def table_of_one(cell):
    """The first table."""
    rows = [
        protocol.line(
            f"`{name}`" if name == peers.OURS else name,
            *(shown(found[each]) for each in ("cold", *CALLS)),
        )
        for name, found in cell["seconds"].items()
    ]
    text = ONE.format(
        network=cell["network"],
        epochs=cell["epochs"],
        processes=cell["processes"],
        versions="{versions}",
    )
    return protocol.table(["", "cold", *CALLS.values()], rows, text)


def row_of_many(cell):
    """A line of the second table."""
    search, seconds = cell["search"], cell["seconds"]
    ratios = [
        training.rounded(seconds["scikit-learn"] / seconds[call]) for call in ("first", "again")
    ]
    return protocol.line(
        "{data}, hidden {hidden}, batch {batch_size}, epochs {epochs}".format(**search),
        *(shown(seconds[name]) for name in ("first", "again", "scikit-learn")),
        *ratios,
    )


MANY_COLUMNS = (
    "data, network",
    "`fit_many`, first",
    "another search",
    "scikit-learn",
    "times faster, first",
    "another",
)
ONE = """\
{network}, {epochs} epochs (64 inputs are scikit-learn's digits), from NumPy arrays to NumPy
weights: medians of {processes} processes each, the contenders in turn. Cold is from the start of a
process to its end, imports included. The others are calls in a process that has imported the
library: the first; the same function again; all written once more, with the optimiser inline as in
the README; that with half of the learning rate; the same function with another seed; and four
fifths of the rows. JAX, Flax and Equinox compile a step for each optimiser, as their documentation
has it; no compilation cache is on. The losses of all are found to agree. With {versions}."""
MANY = """\
30 networks of 30 learning rates by Adam, on each of 5 folds: in one call of `fit_many` a fold, all
compilation included (two, as folds differ by a row), then with other rates and seeds; and
scikit-learn's `MLPClassifier`, the same networks on all cores by joblib, with its processes started
before (one fold measured, times 5). Their accuracies are found to agree."""


GROWTH = """\
A process that calls `fit` {calls} times, with an activation and an optimiser written inline and
another rate at each call, holds {held} MiB: before, and after every quarter of them."""


def markdown(result):
    """Both tables, each with its text."""
    versions = ", ".join(f"{name} {version}" for name, version in result["others"].items())
    tables = [table_of_one(cell).replace("{versions}", versions) for cell in result["one"]]
    if result["many"]:
        tables.append(protocol.table(MANY_COLUMNS, map(row_of_many, result["many"]), MANY))
    if result["growth"] and result["growth"]["mib"][0]:
        held = ", ".join(f"{each:.0f}" for each in result["growth"]["mib"])
        tables.append(GROWTH.format(calls=result["growth"]["calls"], held=held).replace("\n", " "))
    return "\n\n".join(tables)


def measure(run):
    """Every call of every contender, then the searches."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as for benchmarks.training
    plan = protocol.extent(run, FULL, SHORT, QUICK)
    result = {"others": protocol.versions(*training.OTHERS), "one": [], "many": [], "growth": None}
    for cell in run.cells([plan], one_training, lambda _: "single trainings"):
        result["one"].append(cell)
        run.keep(result)
    protocol.show(markdown(result))
    searches = plan.searches if importlib.util.find_spec("sklearn") else ()
    protocol.show(protocol.heading(*MANY_COLUMNS))
    for cell in run.cells(searches, search_of, lambda search: f"search on {search.data}"):
        result["many"].append(cell)
        print(row_of_many(cell), flush=True)
        run.keep(result)
    for found in run.cells([plan.calls], growth, lambda _: "memory over many calls"):
        result["growth"] = found
        print(f"\n{found}", flush=True)
    return result


if __name__ == "__main__":
    protocol.command(__doc__, measure, markdown)
