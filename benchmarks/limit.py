"""How much of a training step is matrix products, which no implementation can save?

    python -m benchmarks.limit [--output results.json] [--short | --quick]
    python -m benchmarks.limit --table results.json

A step of ``fit`` (gather, forward, backward, update, in one compiled epoch) against its floor: the
3L - 1 products of a network with L layers and nothing else, at the same shapes, in a compiled loop.
For the smallest networks also the time of each part of a step.  In float32; on an accelerator also
in TF32 and in mixed precision.
"""

from functools import partial
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxbp
from benchmarks import protocol
from benchmarks.problems import CLASSES, name_of, problem
from jaxbp.training.epoch import Program, one_epoch

WIDTHS = (16, 32, 64, 128, 256, 512, 1024, 2048)
SIZES = [((width,) * 3 + (CLASSES,), 512) for width in WIDTHS]
NAMED = [((64, 128, 10), 32), ((784, 128, 10), 128), ((784, 512, 512, 10), 128)]
GRID, SHORT, QUICK = SIZES + NAMED, SIZES[2:7:2] + NAMED[:1], [((16, 16, 16, CLASSES), 32)]
SMALL = [((16, 16, 16, CLASSES), 32), ((64, 128, CLASSES), 32)]  # where parts can be told apart
SECONDS = 4.0  # for the rounds of a row
LOOP_FLOPS = 4e9  # of a compiled loop: enough steps that the time to start it does not count
PEAK = (1024, 2048, 4096, 8192)  # sizes of the square products that give the peak

STEP, PRODUCTS = "step", "products"
PARTS = {  # of a small step, each together with all before it
    "products": "the 3L - 1 matrix products",
    "backprop": "+ activations, loss, sums over the batch",
    "update": "+ gradient descent",
    "step": "+ minibatches gathered: the compiled epoch",
    "fit": "+ shuffling, starting an epoch, waiting for its loss: fit",
}


class Mode(NamedTuple):
    """The arithmetic of matrix products."""

    name: str
    precision: str | None  # JAX's default_matmul_precision
    compute_dtype: str | None = None


def modes():
    """float32; on an accelerator also the faster ones."""
    if jax.default_backend() == "cpu":
        return [Mode("float32", None)]
    return [
        Mode("float32", "highest"),
        Mode("TF32", "tensorfloat32"),
        Mode("bfloat16", None, "bfloat16"),
    ]


def flops(sizes, rows):
    """FLOPs of a step's products: forward and W̄ in every layer, Wᵀδ in all but the first."""
    pairs = enumerate(pairwise(sizes))
    return sum(2 * rows * i * o * (2 if layer == 0 else 3) for layer, (i, o) in pairs)


def products(x, params):
    """All products of a step, each depending on the one before, for a compiled loop.

    Returns x, changed by next to nothing: so no compiler can leave a product out, or move it out of
    the loop.
    """
    zs = [x]
    for layer in params:
        zs.append(zs[-1] @ layer.weight.T)
    delta, results = zs.pop(), []
    for layer, z in zip(reversed(params), reversed(zs), strict=True):
        results.append(jnp.einsum("no,ni->oi", delta, z))
        if layer is not params[0]:
            delta = delta @ layer.weight
    held = jax.lax.optimization_barrier(results)
    return x.at[0, 0].add(1e-30 * sum(each[0, 0].astype(x.dtype) for each in held))


def looped(body, steps):
    """A loop of steps: body(carry, *fixed), the carry handed on from step to step."""
    return lambda carry, *fixed: jax.lax.fori_loop(0, steps, lambda _, c: body(c, *fixed), carry)


def contenders(sizes, rows, mode, steps):
    """The compiled epoch of ``fit`` and the products alone, as many steps each."""
    case = problem(sizes, rows)
    data = jax.tree.map(lambda leaf: jnp.tile(leaf, (4,) + (1,) * (leaf.ndim - 1)), case.batch)
    order = np.random.default_rng(0).integers(4 * rows, size=steps * rows).astype(np.int32)
    optimizer, gradient = optax.sgd(1e-6), jaxbp.backprop
    if mode.compute_dtype is not None:
        gradient = jaxbp.mixed_precision(gradient, mode.compute_dtype)
    epoch = partial(one_epoch, Program(case.model, optimizer, gradient, rows))
    dtype = mode.compute_dtype or "float32"
    operands = [layer._replace(weight=layer.weight.astype(dtype)) for layer in case.params]
    x = case.batch.x.astype(dtype)
    state = optimizer.init(case.params)
    return {
        STEP: protocol.compiled(epoch, case.params, state, data, order, None),
        PRODUCTS: protocol.compiled(looped(products, steps), x, operands),
    }


def compare(sizes, rows, mode, seconds):
    """One row of the table; its seconds are those of all steps."""
    steps = int(np.clip(LOOP_FLOPS / flops(sizes, rows), 4, 1024))
    with jax.default_matmul_precision(mode.precision):
        candidates = contenders(sizes, rows, mode, steps)
    return {
        "network": name_of(sizes),
        "width": max(sizes[1:]),
        "batch": rows,
        "mode": mode.name,
        "flops": flops(sizes, rows),
        "steps": steps,
        **protocol.timed(candidates, at_most_seconds=seconds),
    }


def peak(mode, seconds):
    """The most FLOPs a second of a square product, and its size; larger ones are tried until a
    product takes a quarter of a second."""
    dtype = mode.compute_dtype or "float32"
    best = (0, 0.0)
    for size in PEAK:
        square = jnp.ones((size, size), dtype)
        with jax.default_matmul_precision(mode.precision):
            product = protocol.compiled(jnp.matmul, square, square)
        took = protocol.interleaved({"product": product}, at_most_seconds=seconds)["product"].median
        best = max(best, (size, 2 * size**3 / took), key=lambda pair: pair[1])
        if took > 0.25:
            break
    return {"size": best[0], "flops_per_second": best[1]}


# The parts of a small step


def anatomy(sizes, rows, seconds):
    """Microseconds of a step made of more and more of its parts, on as many rows as the digits."""
    steps, epochs = 56, 20
    case = problem(sizes, steps * rows)
    model, params, batch = case.model, case.params, case.batch
    one = jax.tree.map(lambda leaf: leaf[:rows], batch)
    optimizer = optax.sgd(1e-6)
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
        "products": protocol.compiled(looped(products, steps), one.x, list(params)),
        "backprop": protocol.compiled(looped(backprop, steps), one.x, params, one),
        "update": protocol.compiled(looped(update, steps), params, one),
        "step": protocol.compiled(epoch, params, optimizer.init(params), batch, order, None),
        "fit": protocol.Contender(fit),
    }
    timings = protocol.interleaved(candidates, at_most_seconds=seconds)
    per = {name: steps * (epochs if name == "fit" else 1) for name in candidates}
    return {
        "network": name_of(sizes),
        "batch": rows,
        "flops": flops(sizes, rows),
        "microseconds": {name: timings[name].median / per[name] * 1e6 for name in candidates},
    }


# Reading the result


def efficiency(cell):
    """The floor over the step."""
    return 1 / protocol.ratio(cell[PRODUCTS])


COLUMNS = (
    "network, batch",
    "products",
    "floor over step",
    "a step",
    "GFLOP/s of the step",
    "of the peak",
)
EXPLANATION = """\
The floor is the time of the same matrix products alone, in a compiled loop at the same shapes; the
step is one of `fit`'s, in its compiled epoch. The median, over the rounds, of the ratio of two runs
of one round. The smaller the network, the less of a step is products: the next table shows what
else is in it. The peak is the fastest square product of the same run; the floor lies below it as
narrow products do, and a product of another shape, or in a faster spell of the machine, can exceed
it. Peak: {peaks}."""
ANATOMY = """\
Where a small step goes: microseconds of a step made of more and more of its parts, medians of
interleaved runs, and in brackets what each part adds. The products are XLA's, one kernel each."""


def row(cell, peaks):
    rate = cell["flops"] * cell["steps"] / protocol.median(cell[STEP])
    return protocol.line(
        f"{cell['network']}, {cell['batch']}",
        cell["mode"],
        f"{efficiency(cell):.2f}",
        f"{protocol.median(cell[STEP]) / cell['steps'] * 1e6:.4g} µs",
        f"{rate / 1e9:.3g}",
        f"{rate / peaks[cell['mode']]['flops_per_second']:.0%}",
    )


def row_of_part(part, before, anatomies):
    """A part's time in each network, and what it adds to the part before, where there is one."""
    cells = []
    for each in anatomies:
        took = each["microseconds"]
        added = "" if before is None else f" ({took[part] - took[before]:+.1f})"
        cells.append(f"{took[part]:.1f} µs{added}")
    return protocol.line(PARTS[part], *cells)


def parts(anatomies):
    """The table of a small step's parts."""
    columns = ["part", *(f"{each['network']}, batch {each['batch']}" for each in anatomies)]
    rows = [row_of_part(*pair, anatomies) for pair in zip(PARTS, [None, *PARTS], strict=False)]
    return protocol.table(columns, rows, ANATOMY)


def markdown(result):
    """The table with the peak, and the table of a small step's parts."""
    peaks = ", ".join(
        f"{name} {each['flops_per_second'] / 1e9:.4g} GFLOP/s at {each['size']}"
        for name, each in result["peaks"].items()
    )
    rows = [row(cell, result["peaks"]) for cell in result["cells"]]
    table = protocol.table(COLUMNS, rows, EXPLANATION.format(peaks=peaks))
    return f"{table}\n\n{parts(result['anatomy'])}"


def measure(options):
    """The peak, every cell, and the parts of small steps."""
    seconds = 0.0 if options.quick else 2.0 if options.short else SECONDS
    peaks = {mode.name: peak(mode, seconds / 4) for mode in modes()}
    print(protocol.heading(*COLUMNS))
    cells = []
    for sizes, rows in protocol.extent(options, GRID, SHORT, QUICK):
        for mode in modes():
            cells.append(compare(sizes, rows, mode, seconds))
            print(row(cells[-1], peaks), flush=True)
    anatomies = [
        anatomy(*each, seconds) for each in protocol.extent(options, SMALL, SMALL[-1:], QUICK)
    ]
    print(f"\n{parts(anatomies)}")
    return {"peaks": peaks, "cells": cells, "anatomy": anatomies}


if __name__ == "__main__":
    protocol.command(__doc__, measure, markdown)
