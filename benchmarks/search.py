"""How long does a search over a grid take, beside ``GridSearchCV`` of scikit-learn's network?

    python -m benchmarks.search [--output results.json] [--short | --quick]
    python -m benchmarks.search --table results.json

30 combinations of learning rate, alpha and seed by 5 folds, 150 networks and the best once more:
``jaxbp.estimators.MLPClassifierCV``, all compilation included, and ``GridSearchCV`` of
``sklearn.neural_network.MLPClassifier`` on all cores, with the same grid, folds and epochs.
"""

import os
import statistics
import time
import warnings
from typing import Any, NamedTuple

import numpy as np

from benchmarks import protocol
from benchmarks.training import rounded

TOLERANCE = 0.02  # of the scores' median and of the best: the orders of the rows differ


class Search(NamedTuple):
    """What is searched, and how each network is trained."""

    data: str  # scikit-learn's
    hidden: int
    batch_size: int
    epochs: int
    rates: int = 5  # by 3 alphas and 2 seeds
    folds: int = 5


FULL = (
    Search("digits", hidden=64, batch_size=32, epochs=100),
    Search("digits", hidden=100, batch_size=200, epochs=100),
    Search("iris", hidden=16, batch_size=16, epochs=200),
    Search("breast_cancer", hidden=32, batch_size=32, epochs=100),
)
SHORT = FULL[2:3]
QUICK = (Search("iris", hidden=4, batch_size=32, epochs=3, rates=1, folds=2),)


def grid_of(search: Search, seed: int) -> dict[str, list[float]]:
    """Rates, alphas and seeds."""
    rates = np.geomspace(1e-3, 1e-2, search.rates) * (1 + 0.01 * seed)
    return {
        "learning_rate_init": rates.tolist(),
        "alpha": [1e-4, 1e-3, 1e-2],
        "random_state": [2 * seed, 2 * seed + 1],
    }


def searched(search: Search) -> dict[str, Any]:
    """Seconds of our first search, of scikit-learn's, and of ours with other rates and seeds.

    Raises AssertionError where the networks do not score as well.
    """
    from sklearn import datasets  # noqa: PLC0415
    from sklearn.model_selection import GridSearchCV, StratifiedKFold  # noqa: PLC0415
    from sklearn.neural_network import MLPClassifier  # noqa: PLC0415

    from jaxbp.estimators import MLPClassifierCV  # noqa: PLC0415

    x, target = getattr(datasets, f"load_{search.data}")(return_X_y=True)
    spread = x.std(axis=0)
    x = (x - x.mean(axis=0)) / np.where(spread == 0, 1, spread)
    cores = len(os.sched_getaffinity(0))
    settings = {
        "hidden_layer_sizes": (search.hidden,),
        "batch_size": search.batch_size,
        "max_iter": search.epochs,
    }
    folds = StratifiedKFold(search.folds, shuffle=True, random_state=0)

    def ours(seed):
        return MLPClassifierCV(**settings, **grid_of(search, seed), cv=folds)

    network = MLPClassifier(**settings, tol=0.0, n_iter_no_change=10 * search.epochs)
    theirs = GridSearchCV(network, grid_of(search, 0), cv=folds, n_jobs=cores)
    trivial = GridSearchCV(network.set_params(max_iter=1), {"alpha": [0, 1]}, n_jobs=cores)
    with warnings.catch_warnings():  # that all epochs were taken, as they are to be
        warnings.simplefilter("ignore")
        trivial.fit(x[::10], target[::10])  # starts the worker processes
        network.set_params(max_iter=search.epochs)
        seconds, found = {}, {}
        for name, contender in (("first", ours(0)), ("sklearn", theirs), ("again", ours(1))):
            start = time.perf_counter()
            contender.fit(x, target)
            seconds[name] = time.perf_counter() - start
            scores = contender.cv_results_["mean_test_score"]
            found[name] = {"median": statistics.median(scores), "best": max(scores)}
    if search.epochs >= 100:
        for which in ("median", "best"):
            values = [each[which] for each in found.values()]
            assert max(values) - min(values) < TOLERANCE, found
    return {
        "search": search._asdict(),
        "networks": len(theirs.cv_results_["params"]) * search.folds,
        "cores": cores,
        "seconds": seconds,
        "scores": found,
    }


COLUMNS = (
    "data, network",
    "`MLPClassifierCV`",
    "another search",
    "`GridSearchCV`",
    "times faster",
    "another",
    "best score, `jaxbp`",
    "scikit-learn",
)
EXPLANATION = """\
Seconds of a search of {networks} networks, and of the training of the best on all rows, on {cores}
cores: by `jaxbp.estimators.MLPClassifierCV`, the first one of a process, with all compilation; by
the same with other rates and seeds; and by scikit-learn's `GridSearchCV` of its `MLPClassifier`
with `n_jobs={cores}`, its processes started before. Rows are standardised, in float64;
`MLPClassifierCV` trains its search in float32. Median and best of the mean scores of the folds are
found to agree within {tolerance}."""


def row(cell: dict[str, Any]) -> str:
    """A line of the table."""
    seconds, scores = cell["seconds"], cell["scores"]
    return protocol.line(
        "{data}, hidden {hidden}, batch {batch_size}, epochs {epochs}".format(**cell["search"]),
        *(f"{seconds[name]:.1f} s" for name in ("first", "again", "sklearn")),
        *(rounded(seconds["sklearn"] / seconds[name]) for name in ("first", "again")),
        *(f"{scores[name]['best']:.3f}" for name in ("first", "sklearn")),
    )


def markdown(result: dict[str, Any]) -> str:
    """A line a search."""
    cells = result["cells"]
    known = cells[0] if cells else {"networks": 150, "cores": 2}
    text = EXPLANATION.format(networks=known["networks"], cores=known["cores"], tolerance=TOLERANCE)
    return protocol.table(COLUMNS, map(row, cells), text)


def measure(run: protocol.Run) -> dict[str, Any]:
    """Search by both, one data set after another."""
    os.environ["PYTHONWARNINGS"] = "ignore"  # of the worker processes: see searched
    result: dict[str, Any] = {"cells": []}
    protocol.show(protocol.heading(*COLUMNS))
    searches = protocol.extent(run, FULL, SHORT, QUICK)
    for cell in run.cells(searches, searched, lambda search: f"search on {search.data}"):
        result["cells"].append(cell)
        print(row(cell), flush=True)
        run.keep(result)
    return result


if __name__ == "__main__":
    protocol.command(__doc__, measure, markdown)
