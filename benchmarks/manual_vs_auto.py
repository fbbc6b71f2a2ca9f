"""``backprop`` against ``jax.value_and_grad``: of the same forward, and of a ``jax.nn`` network.

    python -m benchmarks.manual_vs_auto [--output results.json] [--short | --quick]
    python -m benchmarks.manual_vs_auto --table results.json

One loss and gradient of a network with softmax cross-entropy: time, temporary memory, compiled
FLOPs and bytes, compile time, and what a gradient costs in forward passes; by activation, width,
depth, batch and dtype.  In bfloat16 the package's two run in mixed precision, and the idiomatic
network has its weights and inputs cast, as one does.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

import jaxbp
from benchmarks.per_example import CLASSES, problem
from benchmarks.protocol import (
    agreeing,
    command,
    compiled,
    entry,
    extent,
    heading,
    interleaved,
    line,
    median,
    ratio,
)
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
ONE_ARRAY = ("relu", "leaky_relu", "elu", "softplus")  # whose slope is had from the output alone
TIME, MEMORY, NOISE = 0.75, 0.55, 1.02  # the targets: theirs on wide batches, and everywhere

KEPT = 32  # MiB, up to which glibc's malloc keeps freed memory for the next call


class Cell(NamedTuple):
    """depth hidden layers of one width."""

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
SECONDS = 5.0  # of the rounds of contenders that are interleaved

OURS, SAME, NN, FORWARD = "backprop", "autodiff", "jax.nn", "forward"


def idiomatic(activation, dtype, params, batch):
    """What one writes without this package: jax.nn, log_softmax, value_and_grad."""

    def loss(params):
        *hidden, output = [(w.astype(dtype), b.astype(dtype)) for w, b in params]
        z = batch.x.astype(dtype)
        for weight, bias in hidden:
            z = activation(z @ weight.T + bias)
        weight, bias = output
        log_prediction = jax.nn.log_softmax((z @ weight.T + bias).astype(jnp.float32))
        return -jnp.mean(jnp.take_along_axis(log_prediction, batch.target[:, None], axis=1))

    return jax.value_and_grad(loss)(params)


def contenders(cell, model, params, batch):
    """Ours, autodiff of the same forward, autodiff of jax.nn, and the forward pass alone."""
    ours, same = jaxbp.backprop, jaxbp.autodiff
    if cell.dtype != "float32":
        ours, same = (jaxbp.mixed_precision(each, cell.dtype) for each in (ours, same))
    network = partial(idiomatic, IDIOMATIC[cell.activation], cell.dtype)
    return {
        OURS: compiled(partial(ours, model), params, batch),
        SAME: compiled(partial(same, model), params, batch),
        NN: compiled(network, params, batch),
        FORWARD: compiled(partial(jaxbp.objective, model), params, batch),
    }


def compare(cell, seconds):
    """One row of the table; the gradients are checked to agree before anything is timed."""
    sizes = (cell.width,) * (cell.depth + 1) + (CLASSES,)
    given = problem(sizes, cell.batch, getattr(activations, cell.activation))
    candidates = agreeing(
        partial(contenders, cell, *given),
        unlike=(FORWARD,),
        tolerance=1e-4 if cell.dtype == "float32" else 0.1,
    )
    timings = interleaved(candidates, at_most_seconds=seconds)
    return cell._asdict() | {name: entry(candidates[name], timings[name]) for name in candidates}


# Reading the result


def over(cell, other, quantity):
    """Ours over another's, of a quantity the compiler knows; 1 where neither has any."""
    ours, theirs = cell[OURS][quantity], cell[other][quantity]
    return ours / theirs if theirs else 1.0


def note(cell):
    """What a miss comes from, as far as the compiled programs tell."""
    notes = []
    if ratio(cell[SAME]) > NOISE:
        notes.append(reason(cell))
    wide = cell["batch"] >= 4 * cell["width"] and cell["dtype"] == "float32"
    if wide and cell["activation"] in ONE_ARRAY:
        time, memory = ratio(cell[NN]), over(cell, NN, "temporary_mib")
        if time > TIME:
            theirs = cell[NN]["temporary_mib"]
            kept = f" (jax.nn's {theirs:.0f} MiB are kept between calls)" if theirs < KEPT else ""
            notes.append(f"time {time:.2f}, target {TIME}{kept}")
        if memory > MEMORY:
            notes.append(f"memory {memory:.2f}, target {MEMORY}")
    return "; ".join(notes)


def reason(cell):
    """Why a gradient took longer than autodiff's of the same forward."""
    if any(over(cell, SAME, each) > NOISE for each in ("flops", "bytes_accessed")):
        return "more FLOPs or bytes than autodiff"
    if cell["dtype"] != "float32":
        return "rounding: δ is kept in bfloat16, which is emulated here"
    spread = cell[SAME]["seconds"]
    quartiles = (spread["upper"] - spread["lower"]) / spread["median"]
    return f"no more FLOPs and bytes than autodiff; its quartiles are {quartiles:.0%} apart"


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
Targets: never over {NOISE} of autodiff's time; on wide batches (of at least four times the width)
at most {TIME} of the jax.nn network's time and {MEMORY} of its memory for those activations whose
slope JAX does not take from the output ({", ".join(ONE_ARRAY)}); the note says where one is missed.
What less memory saves in time here is page
faults: above {KEPT} MiB the temporary memory is taken from the system anew at every call (11,000
faults in one of jax.nn's calls at 256 × 8, 2048, and 400 in one of ours); below, both keep it, and
time is even. softplus computes its exponentials and logarithms either way. tanh and sigmoid JAX
differentiates by their output too, and nobody wins."""


def row(cell):
    """Ratios first, then what they are ratios of."""

    def counted(other):
        return ", ".join(f"{over(cell, other, each):.2f}" for each in ("flops", "bytes_accessed"))

    return line(
        cell["activation"] + ("" if cell["dtype"] == "float32" else f", {cell['dtype']}"),
        f"{cell['width']} × {cell['depth']}, {cell['batch']}",
        f"{ratio(cell[SAME]):.2f}",
        f"{ratio(cell[NN]):.2f}",
        f"{over(cell, SAME, 'temporary_mib'):.2f}",
        f"{over(cell, NN, 'temporary_mib'):.2f}",
        counted(SAME),
        counted(NN),
        f"{over(cell, SAME, 'compile_seconds'):.2f}",
        f"{over(cell, NN, 'compile_seconds'):.2f}",
        f"{ratio(cell[FORWARD]):.2f}",
        f"{median(cell[OURS]) * 1e3:.3g} ms",
        note(cell),
    )


def markdown(result):
    """The table, and what it says."""
    rows = [row(cell) for cell in result["cells"]]
    return "\n".join([heading(*COLUMNS), *rows, "", EXPLANATION.replace("\n", " ")])


def measure(options):
    """Every cell, printed as it is measured."""
    print(heading(*COLUMNS))
    seconds = 0.0 if options.quick else 1.5 if options.short else SECONDS
    cells = []
    for cell in extent(options, GRID, SHORT, QUICK):
        cells.append(compare(cell, seconds))
        print(row(cells[-1]), flush=True)
    return {"cells": cells}


if __name__ == "__main__":
    command(__doc__, measure, markdown)
