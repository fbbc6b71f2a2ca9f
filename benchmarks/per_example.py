"""How fast are norms, clipping and moments of per-example gradients, against vmap of jax.grad?

    python -m benchmarks.per_example [--output results.json] [--short | --quick]
    python -m benchmarks.per_example --table results.json

Time and temporary memory of one call, in float32, of relu networks with softmax cross-entropy: the
functions of ``jaxbp.per_example`` beside what one writes with ``jax.vmap``, ``jax.grad`` and optax.
At the headline shapes Opacus and BackPACK are measured too, where they are installed.
"""

import os
import time
import warnings
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxbp
from benchmarks import protocol
from benchmarks.problems import CLASSES, name_of, problem
from jaxbp import Layer, per_example

WIDTHS, ROWS = (64, 256, 512, 1024, 2048), (32, 128, 512, 1024, 4096)
HEADLINES = [((784, 512, 512, CLASSES), rows) for rows in (128, 1024)]
GRID = HEADLINES + [((width,) * 3 + (CLASSES,), rows) for width in WIDTHS for rows in ROWS]
SHORT = [((784, 512, 512, CLASSES), 128), ((256, 256, 256, CLASSES), 1024)]
QUICK = [((16, 16, 16, CLASSES), 32)]

MEMORY_LIMIT = 4 * 2**30  # bytes of temporary memory that a contender may take
# entries of all examples' gradients together, above which a call takes seconds
FUSED_LIMIT, REDUCED_LIMIT = 2**30, 2**27
SECONDS = 0.5  # for the rounds of contenders that are interleaved

OURS = "jaxbp"
SEPARATE, FUSED = "vmap(grad), then norms", "vmap(norm of grad)"
CLIPPED = "vmap(grad), optax's clip"
REDUCED, CONTRACTED = "vmap(grad), mean and var", "vmap(grad), contracted"
#: contenders that keep every example's gradient in memory
FORMING = {SEPARATE, CLIPPED, REDUCED, CONTRACTED, "Opacus"}
OTHERS = ("torch", "opacus", "backpack-for-pytorch")


# By autodiff: what one writes without this package


def loss_of_one(params, x, label):
    """The loss of a single example."""
    *hidden, output = params
    for layer in hidden:
        x = jax.nn.relu(layer.weight @ x + layer.bias)
    logits = output.weight @ x + output.bias
    return optax.softmax_cross_entropy_with_integer_labels(logits, label)


def each(function, params, batch):
    """function(params, x, label) of every example."""
    return jax.vmap(function, in_axes=(None, 0, 0))(params, batch.x, batch.target)


def gradients_of_each(params, batch):
    return each(jax.grad(loss_of_one), params, batch)


def norms_of_each(gradients):
    return jax.vmap(optax.tree.norm)(gradients)


def fused_norms(params, batch):
    return each(lambda *example: optax.tree.norm(jax.grad(loss_of_one)(*example)), params, batch)


def clipped_by_optax(max_norm, params, batch):
    losses, gradients = each(jax.value_and_grad(loss_of_one), params, batch)
    total, _ = optax.per_example_global_norm_clip(gradients, max_norm)
    return losses.mean(), jax.tree.map(lambda leaf: leaf / losses.size, total)


def reduced_moments(params, batch):
    gradients = gradients_of_each(params, batch)
    mean = jax.tree.map(partial(jnp.mean, axis=0), gradients)
    return mean, jax.tree.map(partial(jnp.var, axis=0), gradients)


def contracted_moments(params, batch):
    """Mean and variance by products with a vector of 1/B: much faster code by XLA on a CPU."""
    gradients = gradients_of_each(params, batch)
    share = jnp.full(batch.target.size, 1 / batch.target.size)

    def mean_of(leaf):
        return jnp.tensordot(share, leaf, axes=1)

    mean = jax.tree.map(mean_of, gradients)
    return mean, jax.tree.map(lambda leaf, m: mean_of((leaf - m) ** 2), gradients, mean)


# By other packages


class Torch(NamedTuple):
    """A problem as tensors."""

    network: Any  # a fresh torch.nn.Sequential
    criterion: Any  # the mean loss
    x: Any
    target: Any


def in_torch(case):
    """The problem in torch, on every core."""
    import torch  # noqa: PLC0415

    torch.set_num_threads(os.cpu_count() or 1)
    layers = []
    for layer in case.params:
        linear = torch.nn.Linear(*layer.weight.shape[::-1])
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(np.array(layer.weight)))
            linear.bias.copy_(torch.from_numpy(np.array(layer.bias)))
        layers += [linear, torch.nn.ReLU()]
    return Torch(
        torch.nn.Sequential(*layers[:-1]),
        torch.nn.CrossEntropyLoss(),
        torch.from_numpy(np.array(case.batch.x)),
        torch.from_numpy(np.array(case.batch.target)).long(),
    )


def as_params(tensors):
    """Tensors in the order of a network's parameters, weight, bias, weight, ..., as params."""
    arrays = [tensor.detach().numpy() for tensor in tensors]
    return tuple(Layer(*pair) for pair in zip(arrays[::2], arrays[1::2], strict=True))


def root_of_sum(squares):
    """The norm of each example's gradient, from squared norms of its leaves."""
    import torch  # noqa: PLC0415

    return torch.stack(squares).sum(dim=0).sqrt().numpy()


def norms_by_opacus(case):
    """Every gradient by GradSampleModule, and then their norms."""
    from opacus.grad_sample import GradSampleModule  # noqa: PLC0415

    given = in_torch(case)
    module = GradSampleModule(given.network)

    def run():
        module.zero_grad()
        given.criterion(module(given.x), given.target).backward()
        return root_of_sum([p.grad_sample.flatten(1).norm(dim=1) ** 2 for p in module.parameters()])

    return run


def norms_by_opacus_ghost(case):
    """Norms alone, by GradSampleModuleFastGradientClipping."""
    from opacus.grad_sample import GradSampleModuleFastGradientClipping  # noqa: PLC0415

    given = in_torch(case)
    module = GradSampleModuleFastGradientClipping(given.network)

    def run():
        module.zero_grad()
        given.criterion(module(given.x), given.target).backward()
        return module.get_norm_sample().numpy()

    return run


def norms_by_backpack(case):
    """The extension BatchL2Grad."""
    from backpack.extensions import BatchL2Grad  # noqa: PLC0415

    return by_backpack(
        case, BatchL2Grad, lambda network: root_of_sum([p.batch_l2 for p in network.parameters()])
    )


def moments_by_backpack(case):
    """The extension Variance, and the gradient that comes with it."""
    from backpack.extensions import Variance  # noqa: PLC0415

    rows = case.batch.target.size

    def moments(network):
        mean = as_params(p.grad / rows for p in network.parameters())
        return mean, as_params(p.variance for p in network.parameters())

    return by_backpack(case, Variance, moments)


def by_backpack(case, extension, answer):
    """The answer that an extension of BackPACK leaves at the network's parameters."""
    import torch  # noqa: PLC0415
    from backpack import backpack, extend  # noqa: PLC0415

    given = in_torch(case)
    network = extend(given.network)
    criterion = extend(torch.nn.CrossEntropyLoss(reduction="sum"))

    def run():
        network.zero_grad()
        with backpack(extension()):
            criterion(network(given.x), given.target).backward()
        return answer(network)

    return run


def clipped_by_opacus(max_norm, case):
    """Every gradient by GradSampleModule, clipped and added up by DPOptimizer."""
    from opacus.grad_sample import GradSampleModule  # noqa: PLC0415
    from opacus.optimizers import DPOptimizer  # noqa: PLC0415

    given = in_torch(case)
    rows, module = len(given.x), GradSampleModule(given.network)
    optimizer = noiseless(DPOptimizer, module, max_norm, rows)

    def run():
        optimizer.zero_grad()
        loss = given.criterion(module(given.x), given.target)
        loss.backward()
        optimizer.clip_and_accumulate()
        return loss.detach().numpy(), as_params(p.summed_grad / rows for p in optimizer.params)

    return run


def clipped_by_opacus_ghost(max_norm, case):
    """Norms by a first backward pass, the clipped sum by a second."""
    from opacus.grad_sample import GradSampleModuleFastGradientClipping  # noqa: PLC0415
    from opacus.optimizers import DPOptimizerFastGradientClipping  # noqa: PLC0415
    from opacus.utils.fast_gradient_clipping_utils import (  # noqa: PLC0415
        DPLossFastGradientClipping,
    )

    given = in_torch(case)
    rows = len(given.x)
    module = GradSampleModuleFastGradientClipping(given.network, max_grad_norm=max_norm)
    optimizer = noiseless(DPOptimizerFastGradientClipping, module, max_norm, rows)
    criterion = DPLossFastGradientClipping(module, optimizer, given.criterion)

    def run():
        optimizer.zero_grad()
        loss = criterion(module(given.x), given.target)
        loss.backward()
        return loss.detach().numpy(), as_params(p.grad / rows for p in optimizer.params)

    return run


def noiseless(optimizer, module, max_norm, rows):
    """One of Opacus' optimizers, without noise: it clips and sums."""
    import torch  # noqa: PLC0415

    return optimizer(
        torch.optim.SGD(module.parameters(), lr=1.0),
        noise_multiplier=0.0,
        max_grad_norm=max_norm,
        expected_batch_size=rows,
    )


NORMS_BY_OTHERS = {
    "Opacus": norms_by_opacus,
    "Opacus, ghost": norms_by_opacus_ghost,
    "BackPACK BatchL2Grad": norms_by_backpack,
}
CLIPPED_BY_OTHERS = {"Opacus": clipped_by_opacus, "Opacus, ghost": clipped_by_opacus_ghost}
MOMENTS_BY_OTHERS = {"BackPACK Variance": moments_by_backpack}


def of_others(functions, case):
    """The contenders whose package is installed, uncompiled.

    torch's waiting threads sleep: by default they spin, which slows down the next contender, and
    torch itself by a factor of ten where a core is not free.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is first imported
    contenders = {}
    for name, function in functions.items():
        start = time.perf_counter()
        try:
            run = function(case)
        except ImportError:
            continue
        seconds = time.perf_counter() - start
        contenders[name] = protocol.Contender(run, compile_seconds=seconds)
    return contenders


# Comparing


def fitting(contenders, left_out):
    """The contenders to run; those that need too much memory join left_out, with the reason."""
    for name, contender in contenders.items():
        size = contender.temporary_bytes
        if size is not None and size > MEMORY_LIMIT and name != OURS:
            left_out[name] = {"not_run": f"{rounded(size / 2**30)} GiB"}
    return {name: contenders[name] for name in contenders if name not in left_out}


def comparison(build, seconds, *, unlike=(), skipped=()):
    """Time the contenders that fit, ours first; the others come with the reason they did not run.

    Those that form every example's gradient are timed apart from those that do not: giving back so
    much memory slows down the next contender.  Ours is timed with both.

    build: makes the contenders, by name.
    seconds: how long the rounds of each group may take.
    unlike: names of those that answer another question.
    skipped: names of those that would take seconds a call.
    """
    left_out = {name: {"not_run": "too slow"} for name in skipped}
    contenders = protocol.agreeing(lambda: fitting(build(), left_out), unlike=unlike)
    everyone = contenders.keys() | left_out.keys()
    groups = {"without": everyone - FORMING - {OURS}, "forming": everyone & FORMING}
    result, ours_timed = {}, False
    for kind, names in groups.items():
        present = [name for name in contenders if name in names]
        group = {}
        if present or (names and not ours_timed):
            group, ours_timed = {name: contenders[name] for name in (OURS, *present)}, True
        result[kind] = protocol.timed(group, at_most_seconds=seconds)
        result[kind] |= {name: left_out[name] for name in left_out if name in names}
    return result


def norms(case, seconds, entries, others):
    """Norms of all examples' gradients."""
    given = case.params, case.batch

    def build():
        return {
            OURS: protocol.compiled(partial(per_example.per_example_norms, case.model), *given),
            SEPARATE: protocol.compiled_in_turn(gradients_of_each, norms_of_each, *given),
            FUSED: protocol.compiled(fused_norms, *given),
            **of_others(NORMS_BY_OTHERS if others else {}, case),
        }

    return comparison(build, seconds, skipped=[FUSED] if entries > FUSED_LIMIT else [])


def clipped(case, seconds, others):
    """The mean of clipped gradients, clipped at the median norm: half of the examples are."""
    given = case.params, case.batch
    lengths = jax.jit(partial(per_example.per_example_norms, case.model))(*given)
    max_norm = float(jnp.median(lengths))

    def by_hand(params, batch):
        return per_example.clipped_gradient(case.model, params, batch, max_norm)

    def build():
        functions = {
            name: partial(function, max_norm) for name, function in CLIPPED_BY_OTHERS.items()
        }
        return {
            OURS: protocol.compiled(by_hand, *given),
            CLIPPED: protocol.compiled(partial(clipped_by_optax, max_norm), *given),
            "backprop": protocol.compiled(partial(jaxbp.backprop, case.model), *given),
            **of_others(functions if others else {}, case),
        }

    return comparison(build, seconds, unlike=("backprop",))


def moments(case, seconds, entries, others):
    """Mean and variance of the gradient over examples."""
    given = case.params, case.batch

    def by_hand(params, batch):
        moments = per_example.gradient_moments(case.model, params, batch)
        return moments.mean, moments.variance

    def build():
        return {
            OURS: protocol.compiled(by_hand, *given),
            REDUCED: protocol.compiled(reduced_moments, *given),
            CONTRACTED: protocol.compiled(contracted_moments, *given),
            **of_others(MOMENTS_BY_OTHERS if others else {}, case),
        }

    return comparison(build, seconds, skipped=[REDUCED] if entries > REDUCED_LIMIT else [])


def compare(sizes, rows, seconds):
    """One row of the table."""
    case = problem(sizes, rows)
    entries = rows * sum(leaf.size for leaf in jax.tree.leaves(case.params))
    others = (sizes, rows) in HEADLINES and jax.default_backend() == "cpu"
    return {
        "network": f"{name_of(sizes)}, batch {rows}",
        "entries": entries,
        "norms": norms(case, seconds, entries, others),
        "clipped": clipped(case, seconds, others),
        "moments": moments(case, seconds, entries, others),
    }


# Reading the result


def rounded(ratio):
    return f"{ratio:,.0f}" if ratio >= 9.95 else f"{ratio:.1f}"


def times_better(part, *names):
    """How many times faster ours is than the fastest of these, and with how many times less memory;
    or the reason why none of them was run."""
    group = group_of(part, names[-1])
    run = [name for name in names if "seconds" in group[name]]
    if not run:
        return f"– ({group[names[-1]]['not_run']})"
    ours, theirs = group[OURS], min((group[name] for name in run), key=protocol.median)
    faster = f"{rounded(protocol.median(theirs) / protocol.median(ours))}×"
    memory = ours["temporary_mib"], theirs["temporary_mib"]
    if any(size in (None, 0) for size in memory):
        return faster
    return f"{faster}, {rounded(memory[1] / memory[0])}×"


def group_of(part, name):
    """The contenders that were timed together with this one."""
    return next(group for group in part.values() if name in group)


def was_asked(part, name):
    """Whether a contender is in a part of the result, run or not."""
    return any(name in group for group in part.values())


def row(cell):
    """Ratios first, then the time of our norms."""
    clipping = group_of(cell["clipped"], "backprop")
    return protocol.line(
        cell["network"],
        times_better(cell["norms"], SEPARATE),
        times_better(cell["norms"], FUSED),
        times_better(cell["clipped"], CLIPPED),
        f"{protocol.median(clipping[OURS]) / protocol.median(clipping['backprop']):.2f}",
        times_better(cell["moments"], REDUCED, CONTRACTED),
        f"{protocol.median(group_of(cell['norms'], OURS)[OURS]) * 1e3:.3g} ms",
    )


COLUMNS = (
    "network, batch",
    f"norms: {SEPARATE}",
    f"norms: {FUSED}",
    f"clipped: {CLIPPED}",
    "clipped over backprop, time",
    "moments: vmap(grad), mean and variance",
    "norms, a call",
)
EXPLANATION = """\
How many times faster, and with how many times less temporary memory, `jaxbp` is than each; a dash
where the other was not run, because it needs that much memory (the limit is 4 GiB) or takes
seconds a call. "Clipped over backprop" is what clipping costs: the time of `clipped_gradient`, at
the median norm, over that of `backprop`, the gradient without it. "vmap(grad), then norms" is two
programs, the first returning every example's gradient; all else is one program each. Mean and
variance by autodiff are the faster of `jnp.mean` with `jnp.var` and of contractions with a vector.
Contenders that keep every example's gradient are timed apart from those that do not, and `jaxbp`
with both. Medians of interleaved calls, compilation apart; answers compared before."""
OTHERS_EXPLANATION = """\
How many times faster than packages for PyTorch, uncompiled, on the same cores and in the same
process ({versions}; OMP_WAIT_POLICY=passive, so that waiting threads sleep)."""


def table_of_others(result):
    """The table beside Opacus and BackPACK, of the cells in which they were run; empty without."""
    asked = {"norms": NORMS_BY_OTHERS, "clipped": CLIPPED_BY_OTHERS, "moments": MOMENTS_BY_OTHERS}
    first = result["cells"][0]
    pairs = [
        (part, name)
        for part, names in asked.items()
        for name in names
        if was_asked(first[part], name)
    ]
    rows = []
    for cell in result["cells"]:
        ratios = [
            times_better(cell[part], name) for part, name in pairs if was_asked(cell[part], name)
        ]
        if ratios:
            rows.append(protocol.line(cell["network"], *ratios))
    if not rows:
        return []
    columns = ["network, batch", *(f"{part}: {name}" for part, name in pairs)]
    versions = ", ".join(f"{name} {version}" for name, version in result["others"].items())
    return [protocol.table(columns, rows, OTHERS_EXPLANATION.format(versions=versions))]


def markdown(result):
    """Both tables, each with its text."""
    table = protocol.table(COLUMNS, map(row, result["cells"]), EXPLANATION)
    return "\n\n".join([table, *table_of_others(result)])


def measure(run):
    """Every cell, printed as it is measured."""
    print(protocol.heading(*COLUMNS))
    seconds = 0.0 if run.quick else SECONDS
    result = {"others": protocol.versions(*OTHERS), "cells": []}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Full backward hook")  # torch's, of a given input
        for cell in run.cells(
            protocol.extent(run, GRID, SHORT, QUICK), lambda case: compare(*case, seconds)
        ):
            result["cells"].append(cell)
            print(row(cell), flush=True)
            run.keep(result)
    return result


if __name__ == "__main__":
    protocol.command(__doc__, measure, markdown)
