"""Is ``backprop`` cheaper than ``jax.value_and_grad`` of the same forward, and of ``jax.nn``?

    python -m benchmarks.manual_vs_auto [--output results.json] [--short | --quick]
    python -m benchmarks.manual_vs_auto --table results.json

One loss and gradient of a network with softmax cross-entropy: time, temporary memory, compiled
FLOPs and bytes, compile time, and the cost of a gradient in forward passes; by activation, width,
depth, batch and dtype.  In bfloat16 ``backprop`` and ``autodiff`` run in mixed precision, and the
``jax.nn`` network has its weights and inputs cast, as one does.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

import jaxbp
from benchmarks import protocol
from benchmarks.problems import CLASSES, problem
from jaxbp import activations

IDIOMATIC: dict[str, Callable[[jax.Array], jax.Array]] = {
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "relu": jax.nn.relu,
    "leaky_relu": jax.nn.leaky_relu,
    "elu": jax.nn.elu,
    "softplus": jax.nn.softplus,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "silu": jax.nn.silu,
}
#: activations whose slope JAX does not take from the output, though it is a function of it
ONE_ARRAY = ("relu", "leaky_relu", "elu", "softplus")
NOISE = 1.02  # ratio of two times up to which they count as equal
KEPT = 32  # MiB of freed memory that glibc's malloc keeps for the next call


class Cell(NamedTuple):
    """A row of the table: hidden layers of one width, depth of them."""

    activation: str = "relu"
    width: int = 256
    depth: int = 4
    batch: int = 512
    dtype: str = "float32"


WIDE = [Cell(name, 256, 8, 2048) for name in IDIOMATIC]
WIDTHS, DEPTHS, BATCHES = (64, 128, 512, 1024, 2048), (1, 2, 8, 16), (32, 128, 2048, 4096)
AXES = [
    cell
    for name in ("relu", "tanh")
    for cell in (
        Cell(name),
        *(Cell(name, width=width) for width in WIDTHS),
        *(Cell(name, depth=depth) for depth in DEPTHS),
        *(Cell(name, batch=batch) for batch in BATCHES),
    )
]
CORNERS = [
    Cell(width=width, depth=depth, batch=batch)
    for width, depth, batch in ((64, 1, 32), (64, 16, 32), (64, 16, 4096), (2048, 1, 32))
]
HALF = [Cell(dtype="bfloat16", **size) for size in ({}, {"width": 1024}, {"batch": 2048})]
GRID = [*WIDE, *AXES, *CORNERS, *HALF]
SHORT = [*WIDE, Cell(), Cell("tanh"), CORNERS[0], HALF[0]]
QUICK = [Cell("relu", 16, 2, 32), Cell("tanh", 16, 2, 32, "bfloat16")]

# On a GPU most cells would say the same.
SHORT_GPU = [WIDE[list(IDIOMATIC).index(name)] for name in ("relu", "elu", "gelu")]
SHORT_GPU += [Cell(), CORNERS[0], HALF[1]]
FULL_GPU = [*dict.fromkeys(SHORT_GPU + WIDE), Cell("tanh"), *CORNERS[1:], *HALF[:1], *HALF[2:]]
SECONDS = 5.0  # for the rounds of a row

OURS, SAME, NN, FORWARD = "backprop", "autodiff", "jax.nn", "forward"


def idiomatic(activation, dtype, params, batch):
    """The network as one writes it without this package: jax.nn, log_softmax, value_and_grad."""

    def loss(params):
        *hidden, output = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
        z = batch.x.astype(dtype)
        for layer in hidden:
            z = activation(z @ layer.weight.T + layer.bias)
        logits = z @ output.weight.T + output.bias
        log_prediction = jax.nn.log_softmax(logits.astype(jnp.float32))
        return -jnp.mean(jnp.take_along_axis(log_prediction, batch.target[:, None], axis=1))

    return jax.value_and_grad(loss)(params)


def contenders(cell):
    """Ours, autodiff of the same forward, autodiff of jax.nn, and the forward pass alone."""
    sizes = (cell.width,) * (cell.depth + 1) + (CLASSES,)
    case = problem(sizes, cell.batch, getattr(activations, cell.activation))
    given = case.params, case.batch
    ours, same = jaxbp.backprop, jaxbp.autodiff
    if cell.dtype != "float32":
        ours, same = (jaxbp.mixed_precision(each, cell.dtype) for each in (ours, same))
    network = partial(idiomatic, IDIOMATIC[cell.activation], cell.dtype)
    return {
        OURS: protocol.compiled(partial(ours, case.model), *given),
        SAME: protocol.compiled(partial(same, case.model), *given),
        NN: protocol.compiled(network, *given),
        FORWARD: protocol.compiled(partial(jaxbp.objective, case.model), *given),
    }


def compare(cell, built, seconds):
    """One row of the table; the gradients are checked to agree before anything is timed."""
    agreeing = protocol.agreeing(
        lambda: built,
        unlike=(FORWARD,),
        tolerance=1e-4 if cell.dtype == "float32" else 0.1,
    )
    return cell._asdict() | protocol.timed(agreeing, at_most_seconds=seconds)


# Reading the result


def over(cell, other, quantity):
    """Ours over another's, of a quantity that the compiler knows; 1 where neither has any."""
    ours, theirs = cell[OURS][quantity], cell[other][quantity]
    return 1.0 if theirs in (None, 0) else ours / theirs


def note(cell, on_cpu=True):
    """The reasons why ours takes longer than another, or on a CPU less memory but as much time."""
    notes = [
        f"slower than {each}: {reason(cell, each, on_cpu)}"
        for each in (SAME, NN)
        if slower(cell, each)
    ]
    wide = on_cpu and cell["batch"] >= 4 * cell["width"] and cell["dtype"] == "float32"
    theirs = cell[NN]["temporary_mib"]
    if wide and cell["activation"] in ONE_ARRAY and theirs < KEPT:
        notes.append(f"jax.nn's {theirs:.0f} MiB are kept between calls: no page faults to save")
    return "; ".join(notes)


def slower(cell, other):
    """Whether ours takes longer than another."""
    return protocol.ratio(cell[other]) > NOISE


def reason(cell, other, on_cpu):
    """The reason why ours took longer than another, as far as the compiled programs tell."""
    if any(over(cell, other, each) > NOISE for each in ("flops", "bytes_accessed")):
        return "more FLOPs or bytes"
    if cell["dtype"] != "float32" and other == SAME and on_cpu:
        return "δ is rounded to bfloat16, which is emulated here"
    spread = cell[other]["seconds"]
    quartiles = (spread["upper"] - spread["lower"]) / spread["median"]
    return f"no more FLOPs and bytes, its quartiles are {quartiles:.0%} apart"


COLUMNS = (
    "activation",
    "width × depth, batch",
    "time: over autodiff",
    "over jax.nn",
    "memory: over autodiff",
    "over jax.nn",
    "FLOPs, bytes: over autodiff",
    "over jax.nn",
    "compile: over autodiff",
    "over jax.nn",
    "in forward passes",
    "a gradient",
    "note",
)
EXPLANATION = f"""\
`backprop` over `jax.value_and_grad` of the very same forward (`autodiff`) and of an idiomatic
`jax.nn` network: below 1 ours takes less. Time is the median, over the rounds, of the ratio of two
calls of one round; memory is the compiled program's temporary memory; FLOPs and bytes are XLA's
count in the compiled program. A gradient in forward passes is its time over that of the loss alone.
Where ours takes longer by more than {NOISE - 1:.0%}, the note says why, as far as the compiled
programs tell."""
CPU = f"""\
JAX does not take the slope of {", ".join(ONE_ARRAY)} from the output: it keeps two
arrays a layer for the backward pass, three for elu, where ours keeps one. With one array besides,
relu with L hidden layers takes (L + 1) / (2L + 1) of the memory where batches are at least twice as
large as the width, 0.67 with one layer and 0.52 with 16. What less memory saves in time is page
faults: above {KEPT} MiB the temporary memory is taken from the system anew at every call (11,000
faults in one of jax.nn's calls at 256 × 8, 2048, and 400 in one of ours); below, both keep it, and
time is even. softplus saves less time, because both compute its exponentials and logarithms. JAX
takes the slopes of tanh and sigmoid from their output too, and there neither is ahead."""
GPU = """\
Gradients are compared at the device's default precision. What is computed entry by entry XLA's
compiler for GPUs fuses anew into each kernel that reads it, whoever wrote it, so neither keeps
arrays for it."""


def row(cell, on_cpu=True):
    """Ratios first, then the time of our gradient."""

    def counted(other):
        return ", ".join(f"{over(cell, other, each):.2f}" for each in ("flops", "bytes_accessed"))

    return protocol.line(
        cell["activation"] + ("" if cell["dtype"] == "float32" else f", {cell['dtype']}"),
        f"{cell['width']} × {cell['depth']}, {cell['batch']}",
        f"{protocol.ratio(cell[SAME]):.2f}",
        f"{protocol.ratio(cell[NN]):.2f}",
        f"{over(cell, SAME, 'temporary_mib'):.2f}",
        f"{over(cell, NN, 'temporary_mib'):.2f}",
        counted(SAME),
        counted(NN),
        f"{over(cell, SAME, 'compile_seconds'):.2f}",
        f"{over(cell, NN, 'compile_seconds'):.2f}",
        f"{protocol.ratio(cell[FORWARD]):.2f}",
        f"{protocol.median(cell[OURS]) * 1e3:.3g} ms",
        note(cell, on_cpu),
    )


def markdown(result):
    """The table and its text."""
    on_cpu = protocol.on_cpu(result)
    rows = [row(cell, on_cpu) for cell in result["cells"]]
    return protocol.table(COLUMNS, rows, f"{EXPLANATION} {CPU if on_cpu else GPU}")


def measure(run):
    """Every cell, printed as it is measured."""
    print(protocol.heading(*COLUMNS))
    seconds = protocol.extent(run, SECONDS, 1.5, 0.0, accelerator=(1.5, 1.5))
    cells = run.cells(
        protocol.extent(run, GRID, SHORT, QUICK, accelerator=(FULL_GPU, SHORT_GPU)),
        lambda cell, built: compare(cell, built, seconds),
        "{0.activation} {0.width} × {0.depth}, {0.batch}, {0.dtype}".format,
        build=contenders,
    )
    return {"cells": run.kept(cells, lambda cell: print(row(cell, protocol.on_cpu()), flush=True))}


if __name__ == "__main__":
    protocol.command(__doc__, measure, markdown)
