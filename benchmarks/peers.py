"""The peers: how each library trains one network, by plain SGD on minibatches.

    python -m benchmarks.peers NAME CASE [calls]

trains the case of a file by one peer, alone, and prints its peak memory as JSON; with "calls" it
trains once and again, and the seconds of each are printed as well.  ``benchmarks.training`` and
``benchmarks.latency`` compare them.  Each is written as its own documentation has it and, where
that offers a choice, the fastest way.  A library is imported where it is first used, so that a
process holds no other in its memory.
"""
# ruff: noqa: PLC0415

import importlib
import importlib.util
import json
import os
import shutil
import sys
import sysconfig
import time
import warnings
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

CPU, CUDA = "cpu", "cuda"  # devices, as PyTorch names them


class Case(NamedTuple):
    """Data, initial weights, and how to train; the loss is softmax cross-entropy."""

    x: np.ndarray  # (N, D) float32
    target: np.ndarray  # (N,) int32, classes
    weights: list[tuple[np.ndarray, np.ndarray]]  # (O, I) and (O,) of every layer, to start from
    batch_size: int
    epochs: int
    learning_rate: float
    device: str = CPU  # PyTorch's; JAX has one of its own

    @property
    def sizes(self):
        """(D, hidden..., classes)."""
        return (self.x.shape[1], *(len(bias) for _, bias in self.weights))


def minibatches(case, seed):
    """Every epoch's rows in a fresh order; the last minibatch holds those that are left."""
    rng = np.random.default_rng(seed)
    for _ in range(case.epochs):
        order = rng.permutation(len(case.x)).astype(np.int32)
        for start in range(0, len(order), case.batch_size):
            yield order[start : start + case.batch_size]


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


# Each by_... returns run(seed), which trains from the initial weights, shuffling by the seed, and
# returns the final weights: as NumPy arrays, so training has finished.  Work that a program does
# once for a network's shape stands outside of run.


def by_jaxbp(case):
    """``jaxbp.fit``."""
    import jax
    import optax

    import jaxbp
    from jaxbp import activations, heads

    model = jaxbp.MLP(case.sizes, activations.relu, heads.softmax_cross_entropy)
    optimizer = optax.sgd(case.learning_rate)

    def run(seed=0):
        params, _ = jaxbp.fit(
            model,
            jaxbp.Batch(case.x, case.target),
            optimizer=optimizer,
            epochs=case.epochs,
            batch_size=case.batch_size,
            key=jax.random.key(seed),
            params=tuple(jaxbp.Layer(*layer) for layer in case.weights),
        )
        return [(np.asarray(layer.weight), np.asarray(layer.bias)) for layer in params]

    return run


def by_jax(case):
    """A compiled step of ``jax.value_and_grad`` and optax, called for every minibatch."""
    import jax
    import jax.numpy as jnp
    import optax

    optimizer = optax.sgd(case.learning_rate)

    def loss(params, x, target):
        *hidden, output = params
        for layer in hidden:
            x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
        logits = x @ output["kernel"] + output["bias"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, target).mean()

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, x, target, rows):
        value, grads = jax.value_and_grad(loss)(params, x[rows], target[rows])
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, value

    def run(seed=0):
        x, target = jnp.asarray(case.x), jnp.asarray(case.target)
        params = [
            {"kernel": jnp.asarray(weight.T), "bias": jnp.asarray(bias)}
            for weight, bias in case.weights
        ]
        state = optimizer.init(params)
        for rows in minibatches(case, seed):
            params, state, _ = step(params, state, x, target, rows)
        return [(np.asarray(layer["kernel"]).T, np.asarray(layer["bias"])) for layer in params]

    return run


def by_flax(case):
    """Flax NNX, by ``nnx.jit_partial``, which goes through the objects once.

    ``nnx.jit`` does so at every call, which takes longer than a small step (see its guide to
    performance).
    """
    import jax.numpy as jnp
    import optax
    from flax import nnx

    class Network(nnx.Module):
        def __init__(self, sizes, rngs):
            self.layers = nnx.List([nnx.Linear(i, o, rngs=rngs) for i, o in pairwise(sizes)])

        def __call__(self, x):
            *hidden, output = self.layers
            for layer in hidden:
                x = nnx.relu(layer(x))
            return output(x)

    def loss(network, x, target):
        return optax.softmax_cross_entropy_with_integer_labels(network(x), target).mean()

    def train_step(network, optimizer, x, target, rows):
        value, grads = nnx.value_and_grad(loss)(network, x[rows], target[rows])
        optimizer.update(network, grads)
        return value

    network = Network(case.sizes, nnx.Rngs(0))
    optimizer = nnx.Optimizer(network, optax.sgd(case.learning_rate), wrt=nnx.Param)
    step = nnx.jit_partial(train_step, network, optimizer, graph=False)

    def run(seed=0):
        x, target = jnp.asarray(case.x), jnp.asarray(case.target)
        for layer, (weight, bias) in zip(network.layers, case.weights, strict=True):
            layer.kernel[...], layer.bias[...] = jnp.asarray(weight.T), jnp.asarray(bias)
        for rows in minibatches(case, seed):
            step(x, target, rows)
        return [
            (np.asarray(layer.kernel[...]).T, np.asarray(layer.bias[...]))
            for layer in network.layers
        ]

    return run


def by_equinox(case):
    """``eqx.filter_jit`` of a step of ``eqx.filter_value_and_grad`` and optax."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    import optax

    class Network(eqx.Module):
        layers: list

        def __call__(self, x):
            *hidden, output = self.layers
            for layer in hidden:
                x = jax.nn.relu(layer(x))
            return output(x)

    def loss(network, x, target):
        logits = jax.vmap(network)(x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, target).mean()

    optimizer = optax.sgd(case.learning_rate)

    @eqx.filter_jit
    def step(network, state, x, target, rows):
        value, grads = eqx.filter_value_and_grad(loss)(network, x[rows], target[rows])
        updates, state = optimizer.update(grads, state, eqx.filter(network, eqx.is_array))
        return eqx.apply_updates(network, updates), state, value

    key = jax.random.key(0)  # for weights that every run replaces
    untrained = Network([eqx.nn.Linear(i, o, key=key) for i, o in pairwise(case.sizes)])

    def arrays(network):
        return [array for layer in network.layers for array in (layer.weight, layer.bias)]

    def run(seed=0):
        x, target = jnp.asarray(case.x), jnp.asarray(case.target)
        initial = [jnp.asarray(array) for layer in case.weights for array in layer]
        network = eqx.tree_at(arrays, untrained, initial)
        state = optimizer.init(eqx.filter(network, eqx.is_array))
        for rows in minibatches(case, seed):
            network, state, _ = step(network, state, x, target, rows)
        return [(np.asarray(layer.weight), np.asarray(layer.bias)) for layer in network.layers]

    return run


def by_pytorch(case, *, way=None):
    """PyTorch on the case's device: eager, ``COMPILED`` or ``GRAPH``; on a CPU with its default
    number of threads.

    Rows are put in order once an epoch, and minibatches are views.  A DataLoader would take many
    times longer than a small step.  On a GPU float32 products are TF32, as JAX's are there by
    default, and compiling is for the least work on the host (``mode="reduce-overhead"``), each size
    of a minibatch by itself.
    """
    import torch

    on_gpu = case.device != CPU
    if on_gpu:
        torch.set_float32_matmul_precision("high")
    layers = []
    for weight, _ in case.weights:
        layers += [torch.nn.Linear(*weight.shape[::-1]), torch.nn.ReLU()]
    network = torch.nn.Sequential(*layers[:-1]).to(case.device)
    optimizer = torch.optim.SGD(network.parameters(), lr=case.learning_rate)

    def loss(x, target):
        return torch.nn.functional.cross_entropy(network(x), target)

    if way == COMPILED:
        loss = (
            torch.compile(loss, mode="reduce-overhead", dynamic=False)
            if on_gpu
            else torch.compile(loss)
        )

    def step(x, target):
        optimizer.zero_grad(set_to_none=True)
        loss(x, target).backward()
        optimizer.step()

    def initialise():
        arrays = [array for layer in case.weights for array in layer]
        with torch.no_grad():
            for parameter, array in zip(network.parameters(), arrays, strict=True):
                parameter.copy_(torch.from_numpy(array))

    def epoch(x, target, order):
        parts = (data[order].split(case.batch_size) for data in (x, target))
        for batch in zip(*parts, strict=True):
            step(*batch)

    if way == GRAPH:
        epoch = epoch_of_graphs(case, step)

    def run(seed=0):
        initialise()
        x = torch.from_numpy(case.x).to(case.device)
        target = torch.from_numpy(case.target).long().to(case.device)
        generator = torch.Generator().manual_seed(seed)
        for _ in range(case.epochs):
            order = torch.randperm(len(x), generator=generator)
            epoch(x, target, order.to(case.device))
        arrays = [parameter.detach().cpu().numpy().copy() for parameter in network.parameters()]
        return list(zip(arrays[::2], arrays[1::2], strict=True))

    return run


def epoch_of_graphs(case, step):
    """An epoch of PyTorch whose whole step, the gathering of its rows included, is a CUDA graph.

    As the documentation of ``torch.cuda.graph`` has it: a step is run three times on a stream of
    its own, then captured as it reads and writes memory of fixed places, and replayed after its row
    numbers are copied there.  A graph has fixed shapes too, so a smaller last minibatch has one of
    its own.  On a CPU there are no graphs, and the step itself is called in a graph's place.
    """
    import torch

    x = torch.from_numpy(case.x).to(case.device)
    target = torch.from_numpy(case.target).long().to(case.device)
    sizes = {min(case.batch_size, len(x)), len(x) % case.batch_size} - {0}
    places = {size: torch.zeros(size, dtype=torch.long, device=case.device) for size in sizes}

    def on_rows(rows):
        step(x[rows], target[rows])

    def captured(rows):
        if case.device == CPU:
            return lambda: on_rows(rows)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                on_rows(rows)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # JAX's threads are in this process as well: what they allocate must not end the capture
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            on_rows(rows)
        return graph.replay

    replays = {size: captured(rows) for size, rows in places.items()}

    def epoch(given_x, given_target, order):
        x.copy_(given_x)
        target.copy_(given_target)
        for rows in order.split(case.batch_size):
            places[len(rows)].copy_(rows)
            replays[len(rows)]()

    return epoch


def by_sklearn(case):
    """``MLPClassifier.fit``, warm-started at the initial weights; it stops only after its epochs.

    An epoch on one row of every class makes the attributes that a warm start needs.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    network = MLPClassifier(
        hidden_layer_sizes=case.sizes[1:-1],
        activation="relu",
        solver="sgd",
        alpha=0.0,
        learning_rate="constant",
        learning_rate_init=case.learning_rate,
        momentum=0.0,
        nesterovs_momentum=False,
        max_iter=1,
        n_iter_no_change=10 * case.epochs,
        tol=0.0,
        warm_start=True,
    )

    def fit(rows, **settings):
        network.set_params(**settings)
        with warnings.catch_warnings():  # that it stopped before it converged
            warnings.simplefilter("ignore", ConvergenceWarning)
            network.fit(case.x[rows], case.target[rows])

    _, one_of_each = np.unique(case.target, return_index=True)
    fit(one_of_each, batch_size=1)

    def run(seed=0):
        network.coefs_ = [np.array(weight.T, order="C") for weight, _ in case.weights]
        network.intercepts_ = [bias.copy() for _, bias in case.weights]
        fit(slice(None), batch_size=case.batch_size, max_iter=case.epochs, random_state=seed)
        return [
            (weight.T, bias)
            for weight, bias in zip(network.coefs_, network.intercepts_, strict=True)
        ]

    return run


def can_compile(device):
    """Whether torch.compile finds what it needs: on a CPU a C++ compiler and Python's headers, on a
    GPU PyTorch's own support, a C compiler and the headers, for Triton."""
    if device != CPU and not has_cuda(device):
        return False
    compiler = os.environ.get("CXX", "g++") if device == CPU else os.environ.get("CC", "gcc")
    header = Path(sysconfig.get_path("include")) / "Python.h"
    return shutil.which(compiler) is not None and header.exists()


def has_cuda(device):
    """Whether the device is a GPU, and PyTorch was built for it."""
    if device == CPU:
        return False
    import torch

    return torch.cuda.is_available()


class Peer(NamedTuple):
    """A contender, and its requirements."""

    build: Callable[[Case], Callable[..., Any]]
    module: str  # that must be installed
    available: Callable[[str], bool] = lambda device: True


OURS, LOOP, EAGER, SKLEARN = "jaxbp.fit", "JAX + optax", "PyTorch", "scikit-learn"
GRAPH, COMPILED = "PyTorch CUDA graph", "torch.compile"
PEERS = {
    OURS: Peer(by_jaxbp, "jaxbp"),
    LOOP: Peer(by_jax, "optax"),
    "Flax": Peer(by_flax, "flax"),
    "Equinox": Peer(by_equinox, "equinox"),
    EAGER: Peer(by_pytorch, "torch", lambda device: device == CPU or has_cuda(device)),
    GRAPH: Peer(partial(by_pytorch, way=GRAPH), "torch", has_cuda),
    COMPILED: Peer(partial(by_pytorch, way=COMPILED), "torch", can_compile),
    SKLEARN: Peer(by_sklearn, "sklearn"),
}


def installed(device=CPU):
    """The names of the peers that can run here, PyTorch on a device of that name."""
    return [
        name
        for name, peer in PEERS.items()
        if importlib.util.find_spec(peer.module) is not None and peer.available(device)
    ]


def release_memory():
    """Give back the GPU memory that PyTorch, where it is imported, holds for later."""
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


# Alone


def keep(path, case):
    """Write a case to a file."""
    arrays = {
        f"{kind}{number}": array
        for number, layer in enumerate(case.weights)
        for kind, array in zip(("weight", "bias"), layer, strict=True)
    }
    how = {
        name: getattr(case, name) for name in ("batch_size", "epochs", "learning_rate", "device")
    }
    np.savez(path, x=case.x, target=case.target, **arrays, **how)


def kept(path):
    """The case of such a file."""
    with np.load(path) as file:
        arrays = dict(file)
    layers = sum(name.startswith("weight") for name in arrays)
    return Case(
        arrays["x"],
        arrays["target"],
        [(arrays[f"weight{number}"], arrays[f"bias{number}"]) for number in range(layers)],
        int(arrays["batch_size"]),
        int(arrays["epochs"]),
        float(arrays["learning_rate"]),
        str(arrays["device"]),
    )


def peak_mib():
    """This process's peak memory.

    On Linux ru_maxrss starts from the peak of the parent process, which has imported every library;
    VmHWM is that of this program alone.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = status.read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 2**10
    import resource  # missing on Windows

    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def calls_of(name, case):
    """Train again and again, as users do -> by what is new, the seconds that it took, and the loss.

    The first one comes after the import of the library, and the others differ from it in one thing
    each.  For all but "again" and "seed" everything is written anew, the optimiser included.
    """
    found = {}

    def train(what, case, run=None, *seed):
        start = time.perf_counter()
        weights = (run or peer.build(case))(*seed)
        seconds = time.perf_counter() - start
        found[what] = {"seconds": seconds, "loss": mean_loss(weights, case.x, case.target)}

    peer, rows = PEERS[name], len(case.x) * 4 // 5
    importlib.import_module(peer.module)
    train("first", case)
    train("inline", case)
    run = peer.build(case)
    run()
    train("again", case, run)
    train("seed", case, run, 1)
    train("rate", case._replace(learning_rate=0.5 * case.learning_rate))
    train("fold", case._replace(x=case.x[:rows], target=case.target[:rows]))
    return found


def main():
    name, path, *calls = sys.argv[1:]
    case = kept(path)
    found = calls_of(name, case) if calls else PEERS[name].build(case)()
    print(json.dumps({"peak_mib": peak_mib(), "calls": found if calls else None}))


if __name__ == "__main__":
    main()
