"""How much of a training step is matrix products, which no implementation can save?

    python -m benchmarks.limit [--output results.json] [--short | --quick]
    python -m benchmarks.limit --table results.json

A step of ``fit`` (gather, forward, backward, update, in one compiled epoch) against its floor: the
3L - 1 products of a network with L layers and nothing else, at the same shapes, in a compiled loop.
Beside it the number of kernels that a step is compiled to, by kind, and for the smallest networks
the time of each part of a step.  In float32; on an accelerator also in TF32 and in mixed precision.
"""

from functools import partial
from itertools import pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxbp
from benchmarks import kernels, protocol
from benchmarks.problems import CLASSES, name_of, problem
from jaxbp.training.epoch import Program, one_epoch


def stacked(widths):
    """Networks of three layers of one width, at batch 512."""
    return [((width,) * 3 + (CLASSES,), 512) for width in widths]


class Plan(NamedTuple):
    """The cells to measure, and for how long."""

    networks: list  # of (sizes, batch)
    small: list  # whose steps are taken apart
    peaks: tuple[int, ...]  # sizes of the square products that give the peak
    seconds: float  # for the rounds of a row
    loop_flops: float  # of a compiled loop: so many that the time to start it does not count


NAMED = [((64, 128, 10), 32), ((784, 128, 10), 128), ((784, 512, 512, 10), 128)]
TINY = ((16, 16, 16, CLASSES), 32)
FULL = Plan(
    stacked((16, 32, 64, 128, 256, 512, 1024, 2048)) + NAMED,
    small=[TINY, NAMED[0]],
    peaks=(1024, 2048, 4096, 8192),
    seconds=4.0,
    loop_flops=4e9,
)
SHORT = FULL._replace(networks=stacked((64, 256, 1024)) + NAMED[:1], small=NAMED[:1], seconds=2.0)
QUICK = Plan([TINY], small=[TINY], peaks=(256,), seconds=0.0, loop_flops=4e6)

FULL_GPU = FULL._replace(
    networks=NAMED + stacked((1024, 64, 4096, 256, 512, 8192, 128, 2048)),
    small=NAMED[:1],
    peaks=(8192,),
    seconds=1.0,
    loop_flops=4e12,
)
SHORT_GPU = FULL_GPU._replace(networks=NAMED + stacked((1024, 64, 4096, 256)), small=[])

NARROW = 512  # width up to which the kernels besides the products take much of a step

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
    """float32; on an accelerator the faster ones before it."""
    if protocol.on_cpu():
        return [Mode("float32", None)]
    return [
        Mode("TF32", "tensorfloat32"),
        Mode("bfloat16", None, "bfloat16"),
        Mode("float32", "highest"),
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


def steps_of(sizes, rows, plan):
    """The number of steps of a compiled loop."""
    return int(np.clip(plan.loop_flops / flops(sizes, rows), 4, 1024))


def contenders(sizes, rows, mode, plan):
    """The compiled epoch of ``fit`` and the products alone, as many steps each."""
    steps, case = steps_of(sizes, rows, plan), problem(sizes, rows)
    data = jax.tree.map(lambda leaf: jnp.tile(leaf, (4,) + (1,) * (leaf.ndim - 1)), case.batch)
    order = np.random.default_rng(0).integers(4 * rows, size=steps * rows).astype(np.int32)
    order = jnp.asarray(order)  # on the device: the step is measured, not the way to it
    optimizer, gradient = optax.sgd(1e-6), jaxbp.backprop
    if mode.compute_dtype is not None:
        gradient = jaxbp.mixed_precision(gradient, mode.compute_dtype)
    epoch = partial(one_epoch, Program(case.model, optimizer, gradient, rows))
    dtype = mode.compute_dtype or "float32"
    operands = [layer._replace(weight=layer.weight.astype(dtype)) for layer in case.params]
    x = case.batch.x.astype(dtype)
    state = optimizer.init(case.params)
    with jax.default_matmul_precision(mode.precision):
        return {
            STEP: protocol.compiled(epoch, case.params, state, data, order, None),
            PRODUCTS: protocol.compiled(looped(products, steps), x, operands),
        }


def compare(sizes, rows, mode, plan, candidates):
    """One row of the table; its seconds are those of all steps."""
    return {
        "network": name_of(sizes),
        "width": max(sizes[1:]),
        "batch": rows,
        "mode": mode.name,
        "flops": flops(sizes, rows),
        "steps": steps_of(sizes, rows, plan),
        "kernels": kernels.of_a_step(candidates[STEP].text()),
        **protocol.timed(candidates, at_most_seconds=plan.seconds),
    }


def peak(mode, plan):
    """The most FLOPs a second of a square product, and its size; larger ones are tried until a
    product takes a quarter of a second."""
    dtype = mode.compute_dtype or "float32"
    best = (0, 0.0)
    for size in plan.peaks:
        square = jnp.ones((size, size), dtype)
        with jax.default_matmul_precision(mode.precision):
            product = protocol.compiled(jnp.matmul, square, square)
        timing = protocol.interleaved({"product": product}, at_most_seconds=plan.seconds / 4)
        took = timing["product"].median
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
    order = jnp.asarray(np.random.default_rng(0).permutation(steps * rows).astype(np.int32))
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
            kernel="xla",
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
step is one of the epoch that XLA compiles for `fit`. The median, over the rounds, of the ratio of
two runs of one round. The smaller the network, the less of a step is products: below is what else
is in it.
The peak is the fastest square product of the same run; the floor lies below it as
narrow products do, and a product of another shape, or in a faster spell of the machine, can exceed
it. Peak: {peaks}."""
KERNELS = """\
What a step of the compiled epoch is compiled to, counted in XLA's text of its loop: a fusion is one
kernel, on a CPU one call. Results for the next step are the updated parameters, the loss that is
kept and the step's number; sums and maxima are those over the batch and within the loss."""
ANATOMY = """\
Where a small step goes: microseconds of a step made of more and more of its parts, medians of
interleaved runs, and in brackets what each part adds. The products are XLA's, one kernel each."""


def in_order(cells):
    """The networks of one width, then the others, by size; they are measured in another order, that
    which says most first."""
    return sorted(cells, key=lambda cell: (cell["batch"] != 512, cell["flops"]))


def microseconds(cell):
    """The time of a step."""
    return protocol.median(cell[STEP]) / cell["steps"] * 1e6


def row(cell, peaks):
    rate = cell["flops"] * cell["steps"] / protocol.median(cell[STEP])
    peak = peaks.get(cell["mode"])
    return protocol.line(
        f"{cell['network']}, {cell['batch']}",
        cell["mode"],
        f"{efficiency(cell):.2f}",
        f"{microseconds(cell):.4g} µs",
        f"{rate / 1e9:.3g}",
        "–" if peak is None else f"{rate / peak['flops_per_second']:.0%}",
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
    """The table of a small step's parts; None where none was taken apart."""
    if not anatomies:
        return None
    columns = ["part", *(f"{each['network']}, batch {each['batch']}" for each in anatomies)]
    rows = [row_of_part(*pair, anatomies) for pair in zip(PARTS, [None, *PARTS], strict=False)]
    return protocol.table(columns, rows, ANATOMY)


def kernel_counts(cells):
    """The table of a step's kernels; None for a result without, as older ones are."""
    counted = [cell for cell in cells if "kernels" in cell and cell["width"] <= NARROW]
    if not counted:
        return None
    rows = [
        protocol.line(
            f"{cell['network']}, {cell['batch']}",
            cell["mode"],
            f"{sum(cell['kernels'].values())}",
            *(f"{cell['kernels'].get(kind, 0)}" for kind in kernels.KINDS),
        )
        for cell in counted
    ]
    columns = ("network, batch", "products", "kernels of a step", *kernels.KINDS)
    return protocol.table(columns, rows, KERNELS)


def markdown(result):
    """The table with the peak, that of a step's kernels, and that of a small step's parts."""
    peaks = ", ".join(
        f"{name} {each['flops_per_second'] / 1e9:.4g} GFLOP/s at {each['size']}"
        for name, each in result["peaks"].items()
    )
    cells = in_order(result["cells"])
    rows = [row(cell, result["peaks"]) for cell in cells]
    tables = [
        protocol.table(COLUMNS, rows, EXPLANATION.format(peaks=peaks)),
        kernel_counts(cells),
        parts(result["anatomy"]),
    ]
    return "\n\n".join(filter(None, tables))


def measure(run):
    """The peak, the parts of small steps, and every cell."""
    plan = protocol.extent(run, FULL, SHORT, QUICK, accelerator=(FULL_GPU, SHORT_GPU))
    result = {"peaks": {}, "cells": [], "anatomy": []}
    peaks = run.cells(
        modes(), lambda mode: (mode.name, peak(mode, plan)), "peak of {0.name}".format
    )
    for name, found in peaks:
        result["peaks"][name] = found
        run.keep(result)
    for found in run.cells(
        plan.small,
        lambda case: anatomy(*case, plan.seconds),
        lambda case: f"parts of {name_of(case[0])}",
    ):
        result["anatomy"].append(found)
        run.keep(result)
    print(protocol.heading(*COLUMNS))
    for cell in run.cells(
        [(*network, mode) for mode in modes() for network in plan.networks],
        lambda case, built: compare(*case, plan, built),
        lambda case: f"{name_of(case[0])} in {case[2].name}",
        build=lambda case: contenders(*case, plan),
    ):
        result["cells"].append(cell)
        print(row(cell, result["peaks"]), flush=True)
        run.keep(result)
    protocol.show(kernel_counts(result["cells"]))
    protocol.show(parts(result["anatomy"]))
    return result


if __name__ == "__main__":
    protocol.command(__doc__, measure, markdown)
