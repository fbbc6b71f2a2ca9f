"""A training step against its floor: the matrix products alone, at the same shapes.

    python -m benchmarks.limit [--output results.json] [--short | --quick]
    python -m benchmarks.limit --table results.json

A step of ``fit`` (gather, forward, backward, update, in one compiled epoch) and the 3L - 1 products
of a network of L layers and nothing else, both in a compiled loop; and for the smallest networks
where the rest of a step goes.  Float32; on an accelerator also TF32 and mixed precision.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxbp
from benchmarks.per_example import CLASSES, problem
from benchmarks.protocol import (
    Contender,
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
from jaxbp.model import Layer
from jaxbp.training.epoch import Program, one_epoch

TARGET, FROM_WIDTH = 0.85, 512  # of the floor, at this width and above
WIDTHS = (16, 32, 64, 128, 256, 512, 1024, 2048)
SIZES = [((width,) * 3 + (CLASSES,), 512) for width in WIDTHS]
NAMED = [((64, 128, 10), 32), ((784, 128, 10), 128), ((784, 512, 512, 10), 128)]
GRID, SHORT, QUICK = SIZES + NAMED, SIZES[2:7:2] + NAMED[:1], [((16, 16, 16, CLASSES), 32)]
SMALL = [((16, 16, 16, CLASSES), 32), ((64, 128, CLASSES), 32)]  # where parts can be told apart
SECONDS = 4.0  # of the rounds of a cell
LOOP_FLOPS = 4e9  # of a compiled loop: enough steps that starting it is nothing
PEAK = (1024, 2048, 4096, 8192)  # sizes of the square product that the peak is read off

STEP, PRODUCTS = "step", "products"
PARTS = {  # of a small step, each with all before it
    "products": "the 3L - 1 matrix products",
    "backprop": "+ activations, loss, sums over the batch",
    "update": "+ gradient descent",
    "step": "+ minibatches gathered: the compiled epoch",
    "fit": "+ shuffling, starting an epoch, waiting for its loss: fit",
}


class Mode(NamedTuple):
    """How products are computed."""

    name: str
    precision: str | None  # JAX's default_matmul_precision
    compute_dtype: str | None = None


def modes():
    """float32; on an accelerator also what is faster there."""
    if jax.default_backend() == "cpu":
        return [Mode("float32", None)]
    return [
        Mode("float32", "highest"),
        Mode("TF32", "tensorfloat32"),
        Mode("bfloat16", None, "bfloat16"),
    ]


def flops(sizes, rows):
    """Of a step's products: forward and W̄ in every layer, Wᵀδ in all but the first."""
    pairs = list(zip(sizes[1:], sizes, strict=False))
    return sum(2 * rows * o * i * (3 if layer else 2) for layer, (o, i) in enumerate(pairs))


def products(params, x):
    """All products of a step, each depending on the one before; -> x, changed by next to nothing,
    so that no compiler can leave one out or take it out of the loop."""
    zs = [x]
    for weight, _ in params:
        zs.append(zs[-1] @ weight.T)
    delta, results = zs[-1], []
    for layer in range(len(params) - 1, -1, -1):
        results.append(jnp.einsum("no,ni->oi", delta, zs[layer]))
        if layer:
            delta = delta @ params[layer].weight
    held = jax.lax.optimization_barrier(results)
    return x.at[0, 0].add(1e-30 * sum(each[0, 0].astype(x.dtype) for each in held))


def looped(body, steps):
    """A compiled loop of so many steps of a function of the carry."""
    return lambda carry, *fixed: jax.lax.fori_loop(0, steps, lambda _, c: body(c, *fixed), carry)


def contenders(sizes, rows, mode, steps):
    """The compiled epoch of ``fit`` and the products, as many steps each."""
    model, params, batch = problem(sizes, rows)
    data = jax.tree.map(lambda leaf: jnp.tile(leaf, (4,) + (1,) * (leaf.ndim - 1)), batch)
    order = np.random.default_rng(0).integers(4 * rows, size=steps * rows).astype(np.int32)
    optimizer, gradient = optax.sgd(1e-6), jaxbp.backprop
    if mode.compute_dtype:
        gradient = jaxbp.mixed_precision(gradient, mode.compute_dtype)
    epoch = partial(one_epoch, Program(model, optimizer, gradient, rows))
    dtype = mode.compute_dtype or "float32"
    operands = [Layer(weight.astype(dtype), bias) for weight, bias in params]
    return {
        STEP: compiled(epoch, params, optimizer.init(params), data, order, None),
        PRODUCTS: compiled(
            looped(lambda x, params: products(params, x), steps), batch.x.astype(dtype), operands
        ),
    }


def compare(sizes, rows, mode, seconds):
    """One row of the table: seconds are of a single step."""
    steps = int(np.clip(LOOP_FLOPS / flops(sizes, rows), 4, 1024))
    with jax.default_matmul_precision(mode.precision):
        candidates = contenders(sizes, rows, mode, steps)
    timings = interleaved(candidates, at_most_seconds=seconds)
    return {
        "network": "-".join(map(str, sizes)),
        "width": max(sizes[1:]),
        "batch": rows,
        "mode": mode.name,
        "flops": flops(sizes, rows),
        "steps": steps,
        **{name: entry(candidates[name], timings[name]) for name in candidates},
    }


def peak(mode, seconds):
    """The most FLOPs a second of a square product, of the sizes that take no longer than a second:
    -> size, FLOPs a second."""
    dtype = mode.compute_dtype or "float32"
    best = (0, 0.0)
    for size in PEAK:
        square = jnp.ones((size, size), dtype)
        with jax.default_matmul_precision(mode.precision):
            product = compiled(jnp.matmul, square, square)
        took = interleaved({"product": product}, at_most_seconds=seconds)["product"].median
        best = max(best, (size, 2 * size**3 / took), key=lambda pair: pair[1])
        if took > 0.25:
            break
    return {"size": best[0], "flops_per_second": best[1]}


# Where a small step goes


def anatomy(sizes, rows, seconds):
    """Seconds of a step made of more and more of its parts, on digits-sized data."""
    model, params, _ = problem(sizes, rows)
    steps = 56
    _, _, batch = problem(sizes, steps * rows)
    one = jax.tree.map(lambda leaf: leaf[:rows], batch)
    optimizer, epochs = optax.sgd(1e-6), 20
    order = np.random.default_rng(0).permutation(steps * rows).astype(np.int32)
    host = jax.tree.map(np.asarray, batch)

    def backprop(x, params, batch):
        loss, grads = jaxbp.backprop(model, params, batch._replace(x=x))
        held = jax.lax.optimization_barrier((loss, grads))
        return x.at[0, 0].add(1e-30 * sum(jnp.ravel(leaf)[0] for leaf in jax.tree.leaves(held)))

    def update(params, batch):
        _, grads = jaxbp.backprop(model, params, batch)
        return jax.tree.map(lambda leaf, grad: leaf - 1e-6 * grad, params, grads)

    def fit():
        return jaxbp.fit(
            model,
            host,
            optimizer=optimizer,
            epochs=epochs,
            batch_size=rows,
            key=jax.random.key(0),
            params=params,
        )[0]

    epoch = partial(one_epoch, Program(model, optimizer, jaxbp.backprop, rows))
    candidates = {
        "products": compiled(
            looped(lambda x, params: products(params, x), steps), one.x, list(params)
        ),
        "backprop": compiled(looped(backprop, steps), one.x, params, one),
        "update": compiled(looped(update, steps), params, one),
        "step": compiled(epoch, params, optimizer.init(params), batch, order, None),
        "fit": Contender(fit),
    }
    timings = interleaved(candidates, at_most_seconds=seconds)
    per = {name: steps * (epochs if name == "fit" else 1) for name in candidates}
    return {
        "network": "-".join(map(str, sizes)),
        "batch": rows,
        "flops": flops(sizes, rows),
        "microseconds": {name: timings[name].median / per[name] * 1e6 for name in candidates},
    }


# Reading the result


def efficiency(cell):
    """The floor over the step."""
    return 1 / ratio(cell[PRODUCTS])


def note(cell):
    if cell["width"] < FROM_WIDTH or efficiency(cell) >= TARGET:
        return ""
    return f"target {TARGET}"


COLUMNS = (
    "network, batch",
    "products",
    "floor over step",
    "a step",
    "GFLOP/s of the step",
    "of the peak",
    "note",
)
EXPLANATION = f"""\
The floor is the time of the same matrix products alone, in a compiled loop at the same shapes; the
step is one of `fit`'s, in its compiled epoch. Target: at least {TARGET} of the floor from width
{FROM_WIDTH} on. The median, over the rounds, of the ratio of two runs of one round. The peak is the
fastest square product of the same run; the floor lies below it as narrow products do."""
ANATOMY = """\
Where a small step goes: microseconds of a step made of more and more of its parts, medians of
interleaved runs, and what each part adds. The products are XLA's, one kernel each."""


def row(cell, peaks):
    rate = cell["flops"] * cell["steps"] / median(cell[STEP])
    return line(
        f"{cell['network']}, {cell['batch']}",
        cell["mode"],
        f"{efficiency(cell):.2f}",
        f"{median(cell[STEP]) / cell['steps'] * 1e6:.4g} µs",
        f"{rate / 1e9:.3g}",
        f"{rate / peaks[cell['mode']]['flops_per_second']:.0%}",
        note(cell),
    )


def markdown(result):
    """The table, the peak, and where a small step goes."""
    peaks = result["peaks"]
    rows = [row(cell, peaks) for cell in result["cells"]]
    measured = ", ".join(
        f"{name} {each['flops_per_second'] / 1e9:.4g} GFLOP/s at {each['size']}"
        for name, each in peaks.items()
    )
    table = [heading(*COLUMNS), *rows, "", f"{EXPLANATION} Peak: {measured}.".replace("\n", " ")]
    return "\n".join([*table, "", *parts(result["anatomy"]), "", ANATOMY.replace("\n", " ")])


def parts(anatomies):
    """The table of where a small step goes."""
    lines = [heading("part", *(f"{each['network']}, batch {each['batch']}" for each in anatomies))]
    for name, before in zip(PARTS, [None, *PARTS], strict=False):
        cells = []
        for each in anatomies:
            microseconds = each["microseconds"]
            added = f" ({microseconds[name] - microseconds[before]:+.1f})" if before else ""
            cells.append(f"{microseconds[name]:.1f} µs{added}")
        lines.append(line(PARTS[name], *cells))
    return lines


def measure(options):
    """The peak, every cell, and the parts of small steps."""
    seconds = 0.0 if options.quick else 2.0 if options.short else SECONDS
    peaks = {mode.name: peak(mode, seconds / 4) for mode in modes()}
    print(heading(*COLUMNS))
    cells = []
    for sizes, rows in extent(options, GRID, SHORT, QUICK):
        for mode in modes():
            cells.append(compare(sizes, rows, mode, seconds))
            print(row(cells[-1], peaks), flush=True)
    anatomies = [anatomy(*each, seconds) for each in extent(options, SMALL, SMALL[-1:], QUICK)]
    print("", *parts(anatomies), sep="\n")
    return {"peaks": peaks, "cells": cells, "anatomy": anatomies}


if __name__ == "__main__":
    command(__doc__, measure, markdown)
