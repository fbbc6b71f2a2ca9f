"""How fast is training over a stream, beside the same rows in memory, and is memory bounded?

    python -m benchmarks.streams [--output results.json] [--short | --quick]
    python -m benchmarks.streams --table results.json

Two tables.  Streams: samples a second of ``jaxbp.fit`` over a list of batches, over rows that NumPy
shuffles anew in each epoch and, where PyTorch is installed, over its ``DataLoader``, beside ``fit``
over the same rows in memory.  Memory: ``jaxbp train`` over a folder of shards with more rows than a
limit of the process's memory holds (RLIMIT_DATA); the files are links to one, so that the disk need
not hold them all.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import optax

import jaxbp
from benchmarks import peers, protocol
from benchmarks.problems import name_of
from benchmarks.training import DEEP, DIGITS, MNIST, TOLERANCE, Network, case_of
from jaxbp import activations, heads

MEMORY, LIST, SHUFFLED, LOADER = "memory", "list", "shuffled by NumPy", "PyTorch DataLoader"
NETWORKS = [DIGITS, MNIST, DEEP]
QUICK_NETWORKS = [Network((8, 16, 3), 64, 16, epochs=1, learning_rate=0.02)]
COLUMNS = 784


class Folder(NamedTuple):
    """The shape of a folder of shards, and the memory to stream it in."""

    files: int
    rows: int  # of a file
    columns: int
    limit: int  # bytes of the process's data

    @property
    def size(self):
        """Bytes of all files."""
        return 4 * self.files * self.rows * (self.columns + 1)


FOLDERS = [Folder(64, 100_000, COLUMNS, 2 * 10**9)]
SHORT_FOLDERS = [Folder(8, 100_000, COLUMNS, 2 * 10**9)]
QUICK_FOLDERS = [Folder(4, 2_000, 20, 2 * 10**9)]


# Streams


class Shuffled:
    """Minibatches of arrays, in another order in each epoch."""

    def __init__(self, x, target, size):
        self.x, self.target, self.size = x, target, size

    def set_epoch(self, number):
        """Draw the order of an epoch."""
        self.order = np.random.default_rng(number).permutation(len(self.x))

    def __iter__(self):
        for start in range(0, len(self.x), self.size):
            rows = self.order[start : start + self.size]
            yield self.x[rows], self.target[rows]


def loader(x, target, size):
    """PyTorch's, by its defaults but for the order and the size of a batch."""
    import torch  # noqa: PLC0415

    data = torch.utils.data.TensorDataset(torch.from_numpy(x), torch.from_numpy(target))
    return torch.utils.data.DataLoader(data, batch_size=size, shuffle=True)


def sources(case):
    """What ``fit`` is given, by name: the data, and the size of a batch where they have none."""
    size, rows = case.batch_size, range(0, len(case.x), case.batch_size)
    parts = [(case.x[start : start + size], case.target[start : start + size]) for start in rows]
    found = {
        MEMORY: (jax.device_put(jaxbp.Batch(case.x, case.target)), {"batch_size": size}),
        LIST: (parts, {}),
        SHUFFLED: (Shuffled(case.x, case.target, size), {}),
    }
    if importlib.util.find_spec("torch"):
        found[LOADER] = loader(case.x, case.target, size), {}
    return found


def compare(network, seconds):
    """One row of the first table; the losses agree up to the order of rows."""
    case = case_of(network)
    model = jaxbp.MLP(network.sizes, activations.relu, heads.softmax_cross_entropy)
    optimizer = optax.sgd(network.learning_rate)
    start = tuple(jaxbp.Layer(*layer) for layer in case.weights)

    def train(data, size):
        params, _ = jaxbp.fit(
            model,
            data,
            optimizer=optimizer,
            epochs=network.epochs,
            key=jax.random.key(0),
            params=start,
            **size,
        )
        return jax.tree.map(np.asarray, params)

    runs = {name: partial(train, *given) for name, given in sources(case).items()}
    losses = {name: peers.mean_loss(run(), case.x, case.target) for name, run in runs.items()}
    for name, loss in losses.items():
        assert name == LIST or abs(loss / losses[MEMORY] - 1) < TOLERANCE, losses
    timed = protocol.timed(
        {name: protocol.Contender(run) for name, run in runs.items()},
        rounds=9,
        at_most_seconds=seconds,
    )
    for measured in timed.values():
        measured["samples_per_second"] = network.rows * network.epochs / protocol.median(measured)
    return {
        "network": f"{name_of(network.sizes)}, batch {network.batch_size}",
        "contenders": timed,
    }


# Memory


def streamed(folder):
    """Write a folder, and stream it in a process of its own that is limited -> what that took."""
    with tempfile.TemporaryDirectory() as place:
        shards = Path(place) / "shards"
        shards.mkdir()
        rng = np.random.default_rng(0)
        x = rng.normal(3, 2, (folder.rows, folder.columns)).astype(np.float32)
        target = (x[:, 0] + x[:, 1] > 6).astype(np.float32)
        np.save(shards / "00000.npy", np.column_stack([x, target]))
        del x
        for number in range(1, folder.files):
            os.link(shards / "00000.npy", shards / f"{number:05}.npy")
        start = time.perf_counter()
        process = subprocess.run(
            [sys.executable, "-c", CHILD, str(folder.limit), str(shards), f"{place}/run"],
            check=True,
            cwd=Path(__file__).parents[1],
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            text=True,
        )
        took = time.perf_counter() - start
        record = json.loads((Path(place) / "run" / "summary.json").read_text())
    return {
        "files": folder.files,
        "columns": folder.columns,
        "rows": sum(record["rows"].values()),
        "bytes": folder.size,
        "limit": folder.limit,
        "anonymous": json.loads(process.stdout.splitlines()[-1]),
        "seconds": took,
        "training_rows_per_second": record["samples_per_second"],
        "accuracy": record["test_accuracy"],
    }


CHILD = """
import re, resource, sys, threading, time
limit, shards, run = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_DATA, (int(limit), int(limit)))
most = 0
def watch():
    global most
    while True:
        found = re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())
        most = max(most, 1024 * int(found[1]))
        time.sleep(0.05)
threading.Thread(target=watch, daemon=True).start()
from jaxbp import cli
options = ["--epochs", "2", "--hidden", "128", "--batch-size", "128", "--output", run]
assert cli.main(["train", shards, *options]) == 0
print(most)
"""


# Reading the result


def markdown(result):
    """Both tables, each with its text."""
    return "\n\n".join([streams(result["streams"]), memory(result["memory"])])


def streams(cells):
    """The first table."""
    names = [name for name in (LIST, SHUFFLED, LOADER) if name in cells[0]["contenders"]]
    return protocol.table(
        ["network, batch", "in memory, samples a second", *(f"{name}, of it" for name in names)],
        [of_streams(cell, names) for cell in cells],
        STREAMS,
    )


def of_streams(cell, names):
    contenders = cell["contenders"]
    shares = [f"{protocol.ratio(contenders[name]):.2f}" for name in names]
    return protocol.line(
        cell["network"], f"{contenders[MEMORY]['samples_per_second']:,.0f}", *shares
    )


def memory(cells):
    """The second table."""
    return protocol.table(
        ["files", "rows", "size", "limit", "anonymous memory, at most", "all", "training"],
        [of_memory(cell) for cell in cells],
        BOUNDED,
    )


def of_memory(cell):
    return protocol.line(
        f"{cell['files']} × {cell['columns'] + 1} columns",
        f"{cell['rows']:,}",
        *(f"{cell[each] / 1e9:.2f} GB" for each in ("bytes", "limit", "anonymous")),
        f"{cell['seconds']:.0f} s",
        f"{cell['training_rows_per_second']:,.0f} rows a second",
    )


STREAMS = """\
Samples a second of `jaxbp.fit` by plain SGD, and what a stream reaches of those in memory: a list
of NumPy's batches, batches that NumPy takes out of arrays in a new order in each epoch, and
PyTorch's `DataLoader` of tensors, without further processes, which takes row by row. Medians over
rounds, in which all run in turn, everything compiled before; the final losses agree but for that of
the list, whose order never changes."""
BOUNDED = """\
`jaxbp train FOLDER --epochs 2 --hidden 128 --batch-size 128`, from the start of the process to its
end: a pass over all rows for their statistics, and two epochs of 1,048,576 rows or all. The limit
is of the process's own data (RLIMIT_DATA), which the pages of mapped files are not; the files are
links to one."""


def measure(run):
    """Both tables, printed as they are measured."""
    result = {"streams": [], "memory": []}
    seconds = protocol.extent(run, 60.0, 10.0, 0.0)
    for cell in run.cells(
        protocol.extent(run, NETWORKS, NETWORKS, QUICK_NETWORKS),
        lambda network: compare(network, seconds),
        lambda network: f"streams at {name_of(network.sizes)}",
    ):
        result["streams"].append(cell)
        run.keep(result)
    protocol.show(streams(result["streams"]))
    for cell in run.cells(
        protocol.extent(run, FOLDERS, SHORT_FOLDERS, QUICK_FOLDERS),
        streamed,
        lambda folder: f"memory at {folder.size / 1e9:.1f} GB",
    ):
        result["memory"].append(cell)
        run.keep(result)
    protocol.show(memory(result["memory"]))
    return result


if __name__ == "__main__":
    protocol.command(__doc__, measure, markdown)
