"""How long does a large table take from its CSV to a trained network, and how much memory?

    python -m benchmarks.tables [--rows N ...] [--output results.json] [--short | --quick]
    python -m benchmarks.tables --table results.json
    python -m benchmarks.tables NAME FILE

A CSV of 100 columns and a target: 90 of numbers, a tenth of the cells of ten of them missing, and
ten of text.  ``jaxbp`` reads it by ``jaxbp.data.load`` and trains by ``jaxbp.fit``; scikit-learn
does the same by pandas, ``ColumnTransformer`` and ``MLPClassifier``, of one network, optimiser,
batch size and number of epochs.  Each runs alone, in a process of its own; the last form is that
process, and prints what it measured as JSON.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars

from benchmarks import protocol

ROWS = (1_000_000, 100_000)
NUMBERS, TEXTS, GAPS = 90, 10, 10  # columns: of numbers, of text, and of the numbers with gaps
HIDDEN, BATCH_SIZE, EPOCHS, RATE = 64, 256, 2, 1e-3
TOLERANCE = 0.02  # between the accuracies, which random orders of the rows move
_AT_ONCE = 50_000  # rows that are drawn and written


def write_table(path: Path, rows: int) -> None:
    """Write the CSV: the class depends on numbers and texts."""
    rng = np.random.default_rng(0)
    words = np.array(["north", "east", "south", "west", "centre"])
    slopes = rng.normal(size=NUMBERS)
    with path.open("wb") as file:
        for start in range(0, rows, _AT_ONCE):
            count = min(_AT_ONCE, rows - start)
            numbers = rng.normal(size=(count, NUMBERS))
            texts = rng.integers(0, len(words), (count, TEXTS))
            score = numbers @ slopes / 5 + (texts == 0).sum(1) - 2 + rng.normal(size=count)
            numbers[:, :GAPS][rng.random((count, GAPS)) < 0.1] = np.nan
            columns = {f"n{i}": column for i, column in enumerate(numbers.T)}
            columns |= {f"t{i}": words[column] for i, column in enumerate(texts.T)}
            columns["class"] = np.where(score > 0, "yes", "no")
            frame = polars.DataFrame(columns).fill_nan(None)
            frame.write_csv(file, include_header=not start, float_precision=6)


# What is measured: each yields the names of its stages as they end, and at last the accuracy


def by_jaxbp(path: str) -> Iterator[str | float]:
    """``jaxbp.data.load`` and ``jaxbp.fit``."""
    import jax  # noqa: PLC0415
    import optax  # noqa: PLC0415

    import jaxbp  # noqa: PLC0415
    from jaxbp import activations, heads  # noqa: PLC0415

    data = jaxbp.data.load(path, validation=1e-3)
    yield "read and prepare"
    sizes = (data.train.x.shape[1], HIDDEN, 2)
    model = jaxbp.MLP(sizes, activations.relu, heads.softmax_cross_entropy)
    params, _ = jaxbp.fit(
        model,
        data.train,
        optimizer=optax.adam(RATE),
        epochs=EPOCHS,
        batch_size=BATCH_SIZE,
        key=jax.random.key(0),
    )
    yield "train"
    yield jaxbp.evaluate(model, params, data.test).metric


def by_scikit_learn(path: str) -> Iterator[str | float]:
    """pandas, ``ColumnTransformer`` and ``MLPClassifier``."""
    import pandas  # noqa: PLC0415
    from sklearn.compose import ColumnTransformer, make_column_selector  # noqa: PLC0415
    from sklearn.impute import SimpleImputer  # noqa: PLC0415
    from sklearn.model_selection import train_test_split  # noqa: PLC0415
    from sklearn.neural_network import MLPClassifier  # noqa: PLC0415
    from sklearn.pipeline import make_pipeline  # noqa: PLC0415
    from sklearn.preprocessing import OneHotEncoder, StandardScaler  # noqa: PLC0415

    frame = pandas.read_csv(path)
    target = frame.pop("class")
    train, test, train_class, test_class = train_test_split(
        frame, target, test_size=0.2, stratify=target, random_state=0
    )
    del frame
    prepared = ColumnTransformer(
        [
            (
                "numbers",
                make_pipeline(
                    SimpleImputer(strategy="median", add_indicator=True), StandardScaler()
                ),
                make_column_selector(dtype_include="number"),
            ),
            (
                "text",
                OneHotEncoder(sparse_output=False, handle_unknown="ignore"),
                make_column_selector(dtype_exclude="number"),
            ),
        ]
    )
    x = prepared.fit_transform(train).astype(np.float32)
    del train
    yield "read and prepare"
    network = MLPClassifier(
        (HIDDEN,), alpha=0, batch_size=BATCH_SIZE, learning_rate_init=RATE, max_iter=EPOCHS
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that so few epochs do not converge
        network.fit(x, train_class)
    yield "train"
    yield float(network.score(prepared.transform(test).astype(np.float32), test_class))


WAYS = {"jaxbp": by_jaxbp, "scikit-learn": by_scikit_learn}


def alone(name: str, path: str) -> dict[str, Any]:
    """Run one way -> the seconds of its stages, imports in the first, and its peak memory."""
    seconds, accuracy, start = {}, float("nan"), time.perf_counter()
    for stage in WAYS[name](path):
        if isinstance(stage, str):
            seconds[stage] = time.perf_counter() - start
            start = time.perf_counter()
        else:
            accuracy = stage
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "accuracy": accuracy, "peak_mib": peak}


def measured(rows: int) -> dict[str, Any]:
    """Every way with a table of so many rows, once their accuracies are found to be equal."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "table.csv")
        write_table(path, rows)
        cell: dict[str, Any] = {"rows": rows, "mib": path.stat().st_size / 2**20, "ways": {}}
        for name in WAYS:
            process = subprocess.run(
                [sys.executable, "-m", "benchmarks.tables", name, path],
                check=True,
                cwd=Path(__file__).parents[1],
                stdout=subprocess.PIPE,
            )
            cell["ways"][name] = json.loads(process.stdout)
    accuracies = [each["accuracy"] for each in cell["ways"].values()]
    noise = max(TOLERANCE, 3 / rows**0.5)  # of few test rows
    assert max(accuracies) - min(accuracies) <= noise, accuracies
    return cell


COLUMNS = ("rows", "CSV", "", "read and prepare", "train", "peak memory", "accuracy")
EXPLANATION = f"""\
Seconds in a process of its own, imports and compilation included. {NUMBERS} columns of numbers,
{GAPS} of them with gaps, and {TEXTS} of text; {HIDDEN} hidden units, {EPOCHS} epochs of Adam by
minibatches of {BATCH_SIZE}. The accuracy is that on a fifth of the rows."""


def markdown(result: Mapping[str, Any]) -> str:
    """A line for each table and way."""
    lines = []
    for cell in result["cells"]:
        for name, way in cell["ways"].items():
            texts = [f"{seconds:.1f} s" for seconds in way["seconds"].values()]
            texts += [f"{way['peak_mib'] / 1024:.1f} GiB", f"{way['accuracy']:.3f}"]
            size = f"{cell['mib']:,.0f} MiB"
            lines.append(protocol.line(f"{cell['rows']:,}", size, name, *texts))
    return protocol.table(COLUMNS, lines, EXPLANATION)


def measure(run: protocol.Run) -> dict[str, Any]:
    """Measure every table, and print the results."""
    rows = getattr(run.options, "rows", None) or protocol.extent(run, ROWS, ROWS[1:], (2_000,))
    result = {"cells": run.kept(run.cells(rows, measured))}
    protocol.show(markdown(result))
    return result


def _add_rows(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rows", type=int, nargs="+", help="of the tables to measure")


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] in WAYS:
        print(json.dumps(alone(*sys.argv[1:])))
    else:
        protocol.command(__doc__, measure, markdown, _add_rows)
