"""Norms, clipping and moments of single examples' gradients against vmap of jax.grad.

    python -m benchmarks.per_example [--output results.json] [--short | --quick]
    python -m benchmarks.per_example --table results.json

Time and temporary memory of one call, in float32, of relu networks with softmax cross-entropy: the
functions of ``jaxbp.per_example`` beside what one writes with ``jax.vmap``, ``jax.grad`` and optax
and, at the headline shapes and where they are installed, beside Opacus and BackPACK.
"""

import importlib.metadata
import os
import time
import warnings
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxbp
from benchmarks.protocol import (
    Contender,
    agreeing,
    command,
    compiled,
    compiled_in_turn,
    entry,
    extent,
    heading,
    interleaved,
    line,
    median,
)
from jaxbp import MLP, Batch, Layer, activations, heads, per_example

CLASSES = 10
WIDTHS, ROWS = (64, 256, 512, 1024, 2048), (32, 128, 512, 1024, 4096)
HEADLINES = [((784, 512, 512, CLASSES), rows) for rows in (128, 1024)]
GRID = HEADLINES + [((width,) * 3 + (CLASSES,), rows) for width in WIDTHS for rows in ROWS]
SHORT = [((784, 512, 512, CLASSES), 128), ((256, 256, 256, CLASSES), 1024)]
QUICK = [((16, 16, 16, CLASSES), 32)]

MEMORY_LIMIT = 4 * 2**30  # bytes that a contender may take
FUSED_LIMIT = 2**30  # entries of all examples' gradients: a call takes seconds
REDUCED_LIMIT = 2**27  # of which XLA takes the variance over the leading axis in about as long
SECONDS = 0.5  # of the rounds of contenders that are interleaved

OURS = "jaxbp"
SEPARATE, FUSED = "vmap(grad), then norms", "vmap(norm of grad)"
CLIPPED = "vmap(grad), optax's clip"
REDUCED, CONTRACTED = "vmap(grad), mean and var", "vmap(grad), contracted"
FORMING = {SEPARATE, CLIPPED, REDUCED, CONTRACTED, "Opacus"}  # every example's gradient, in memory
OTHERS = ("torch", "opacus", "backpack-for-pytorch")


class Problem(NamedTuple):
    """A network, and a batch for it."""

    model: MLP
    params: tuple[Layer, ...]
    batch: Batch


def problem(sizes, rows, activation=activations.relu):
    """Weights of size √(2/I), normal inputs and random classes."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    params = tuple(
        Layer(jnp.asarray(normal(o, i) * np.float32((2 / i) ** 0.5)), jnp.zeros(o, jnp.float32))
        for i, o in pairwise(sizes)
    )
    target = jnp.asarray(rng.integers(sizes[-1], size=rows), jnp.int32)
    model = MLP(sizes, activation, heads.softmax_cross_entropy)
    return Problem(model, params, Batch(jnp.asarray(normal(rows, sizes[0])), target))


# By autodiff: what one writes without this package


def loss_of_one(params, x, label):
    """The loss of a single example."""
    *hidden, output = params
    for layer in hidden:
        x = jax.nn.relu(layer.weight @ x + layer.bias)
    logits = output.weight @ x + output.bias
    return optax.softmax_cross_entropy_with_integer_labels(logits, label)


def each(function, params, batch):
    """A function of (params, x, label) of every example."""
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
    """The same by products with a vector of 1/B, of which XLA makes much faster code on a CPU."""
    gradients = gradients_of_each(params, batch)
    share = jnp.full(batch.target.size, 1 / batch.target.size)

    def mean_of(leaf):
        return jnp.tensordot(share, leaf, axes=1)

    mean = jax.tree.map(mean_of, gradients)
    return mean, jax.tree.map(lambda leaf, m: mean_of((leaf - m) ** 2), gradients, mean)


# By other packages


class Torch(NamedTuple):
    """The problem as torch has it."""

    network: Any  # a fresh torch.nn.Sequential
    x: Any
    target: Any


def in_torch(case):
    import torch  # noqa: PLC0415

    torch.set_num_threads(os.cpu_count() or 1)
    layers = []
    for layer in case.params:
        linear = torch.nn.Linear(*layer.weight.shape[::-1])
        with torch.no_grad():
            linear.weight.copy_(torch.from_numpy(np.array(layer.weight)))
            linear.bias.copy_(torch.from_numpy(np.array(layer.bias)))
        layers += [linear, torch.nn.ReLU()]
    x, target = (torch.from_numpy(np.array(part)) for part in case.batch[:2])
    return Torch(torch.nn.Sequential(*layers[:-1]), x, target.long())


def as_params(tensors):
    """Arrays of torch.nn.Sequential.parameters(), weight, bias, weight, ..., as params."""
    arrays = [tensor.detach().numpy() for tensor in tensors]
    return tuple(Layer(*pair) for pair in zip(arrays[::2], arrays[1::2], strict=True))


def root_of_sum(squares):
    import torch  # noqa: PLC0415

    return torch.stack(squares).sum(dim=0).sqrt().numpy()


def norms_by_opacus(case):
    """Every gradient by GradSampleModule, and then their norms."""
    import torch  # noqa: PLC0415
    from opacus.grad_sample import GradSampleModule  # noqa: PLC0415

    network, x, target = in_torch(case)
    module, criterion = GradSampleModule(network), torch.nn.CrossEntropyLoss()

    def run():
        module.zero_grad()
        criterion(module(x), target).backward()
        return root_of_sum([p.grad_sample.flatten(1).norm(dim=1) ** 2 for p in module.parameters()])

    return run


def norms_by_opacus_ghost(case):
    """Norms alone, by GradSampleModuleFastGradientClipping."""
    import torch  # noqa: PLC0415
    from opacus.grad_sample import GradSampleModuleFastGradientClipping  # noqa: PLC0415

    network, x, target = in_torch(case)
    module = GradSampleModuleFastGradientClipping(network)
    criterion = torch.nn.CrossEntropyLoss()

    def run():
        module.zero_grad()
        criterion(module(x), target).backward()
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
    import torch  # noqa: PLC0415
    from backpack import backpack, extend  # noqa: PLC0415

    network, x, target = in_torch(case)
    network = extend(network)
    criterion = extend(torch.nn.CrossEntropyLoss(reduction="sum"))

    def run():
        network.zero_grad()
        with backpack(extension()):
            criterion(network(x), target).backward()
        return answer(network)

    return run


def clipped_by_opacus(max_norm, case):
    """Every gradient by GradSampleModule, clipped and added up by DPOptimizer."""
    import torch  # noqa: PLC0415
    from opacus.grad_sample import GradSampleModule  # noqa: PLC0415
    from opacus.optimizers import DPOptimizer  # noqa: PLC0415

    network, x, target = in_torch(case)
    module, criterion = GradSampleModule(network), torch.nn.CrossEntropyLoss()
    optimizer = noiseless(DPOptimizer, module, max_norm, len(x))

    def run():
        optimizer.zero_grad()
        loss = criterion(module(x), target)
        loss.backward()
        optimizer.clip_and_accumulate()
        return loss.detach().numpy(), as_params(p.summed_grad / len(x) for p in optimizer.params)

    return run


def clipped_by_opacus_ghost(max_norm, case):
    """Norms by a first backward pass, the clipped sum by a second."""
    import torch  # noqa: PLC0415
    from opacus.grad_sample import GradSampleModuleFastGradientClipping  # noqa: PLC0415
    from opacus.optimizers import DPOptimizerFastGradientClipping  # noqa: PLC0415
    from opacus.utils.fast_gradient_clipping_utils import (  # noqa: PLC0415
        DPLossFastGradientClipping,
    )

    network, x, target = in_torch(case)
    module = GradSampleModuleFastGradientClipping(network, max_grad_norm=max_norm)
    optimizer = noiseless(DPOptimizerFastGradientClipping, module, max_norm, len(x))
    criterion = DPLossFastGradientClipping(module, optimizer, torch.nn.CrossEntropyLoss())

    def run():
        optimizer.zero_grad()
        loss = criterion(module(x), target)
        loss.backward()
        return loss.detach().numpy(), as_params(p.grad / len(x) for p in optimizer.params)

    return run


def noiseless(optimizer, module, max_norm, rows):
    """One of Opacus' optimizers, of which only the clipping is asked."""
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
    """Those that are installed; torch runs as it does for everyone, uncompiled, on every core.

    But its waiting threads sleep: by default they spin, which costs whoever runs next, and torch
    itself a factor of ten where a core is not free.
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
        contenders[name] = Contender(run, compile_seconds=seconds, temporary_bytes=None)
    return contenders


def installed():
    """The versions of the other packages, None for one that is absent."""
    versions = {}
    for name in OTHERS:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


# Comparing


def fitting(contenders, left_out):
    """The contenders that are to be run; of those that do not fit, left_out is told why."""
    for name, contender in contenders.items():
        size = contender.temporary_bytes or 0
        if size > MEMORY_LIMIT and name != OURS:
            left_out[name] = {"not_run": f"{rounded(size / 2**30)} GiB"}
    return {name: contenders[name] for name in contenders if name not in left_out}


def comparison(build, seconds, *, unlike=(), skipped=()):
    """Time the contenders that fit, ours first; of the others say why they were not run.

    Those that form every example's gradient are timed apart from those that do not: giving back so
    much memory slows down whoever comes next.  Ours is timed with both.
    """
    left_out = {name: {"not_run": "too slow"} for name in skipped}
    contenders = agreeing(lambda: fitting(build(), left_out), unlike=unlike)
    everyone = contenders.keys() | left_out.keys()
    groups = {"without": everyone - FORMING - {OURS}, "forming": everyone & FORMING}
    result, ours_timed = {}, False
    for kind, names in groups.items():
        present = [name for name in contenders if name in names]
        group = {}
        if present or (names and not ours_timed):
            group, ours_timed = {name: contenders[name] for name in (OURS, *present)}, True
        timings = interleaved(group, at_most_seconds=seconds)
        result[kind] = {name: entry(group[name], timings[name]) for name in group}
        result[kind] |= {name: left_out[name] for name in left_out if name in names}
    return result


def norms(case, seconds, entries, others):
    def build():
        return {
            OURS: compiled(partial(per_example.per_example_norms, case.model), *case[1:]),
            SEPARATE: compiled_in_turn(gradients_of_each, norms_of_each, *case[1:]),
            FUSED: compiled(fused_norms, *case[1:]),
            **of_others(NORMS_BY_OTHERS if others else {}, case),
        }

    return comparison(build, seconds, skipped=[FUSED] if entries > FUSED_LIMIT else [])


def clipped(case, seconds, others):
    """Clipped at the median norm, so that half of the examples are."""
    lengths = jax.jit(partial(per_example.per_example_norms, case.model))(*case[1:])
    max_norm = float(jnp.median(lengths))

    def by_hand(params, batch):
        return per_example.clipped_gradient(case.model, params, batch, max_norm)

    def build():
        functions = {
            name: partial(function, max_norm) for name, function in CLIPPED_BY_OTHERS.items()
        }
        return {
            OURS: compiled(by_hand, *case[1:]),
            CLIPPED: compiled(partial(clipped_by_optax, max_norm), *case[1:]),
            "backprop": compiled(partial(jaxbp.backprop, case.model), *case[1:]),
            **of_others(functions if others else {}, case),
        }

    return comparison(build, seconds, unlike=("backprop",))


def moments(case, seconds, entries, others):
    def by_hand(params, batch):
        moments = per_example.gradient_moments(case.model, params, batch)
        return moments.mean, moments.variance

    def build():
        return {
            OURS: compiled(by_hand, *case[1:]),
            REDUCED: compiled(reduced_moments, *case[1:]),
            CONTRACTED: compiled(contracted_moments, *case[1:]),
            **of_others(MOMENTS_BY_OTHERS if others else {}, case),
        }

    return comparison(build, seconds, skipped=[REDUCED] if entries > REDUCED_LIMIT else [])


def compare(sizes, rows, seconds):
    """One row of the table."""
    case = problem(sizes, rows)
    entries = rows * sum(leaf.size for leaf in jax.tree.leaves(case.params))
    others = (sizes, rows) in HEADLINES and jax.default_backend() == "cpu"
    return {
        "network": f"{'-'.join(map(str, sizes))}, batch {rows}",
        "entries": entries,
        "norms": norms(case, seconds, entries, others),
        "clipped": clipped(case, seconds, others),
        "moments": moments(case, seconds, entries, others),
    }


# Reading the result


def rounded(ratio):
    return f"{ratio:,.0f}" if ratio >= 9.95 else f"{ratio:.1f}"


def times_better(part, *names):
    """How many times faster, and with how many times less memory, ours is than the faster one of
    these contenders; or why none of them was run."""
    group = group_of(part, names[-1])
    run = [name for name in names if "seconds" in group[name]]
    if not run:
        return f"– ({group[names[-1]]['not_run']})"
    ours, theirs = group[OURS], min((group[name] for name in run), key=median)
    faster = f"{rounded(median(theirs) / median(ours))}×"
    if not theirs["temporary_mib"] or not ours["temporary_mib"]:
        return faster
    return f"{faster}, {rounded(theirs['temporary_mib'] / ours['temporary_mib'])}×"


def group_of(part, name):
    """The contenders that were interleaved with this one."""
    return next(group for group in part.values() if name in group)


def row(cell):
    """Ratios first, then what they are ratios of."""
    clipping = group_of(cell["clipped"], "backprop")
    return line(
        cell["network"],
        times_better(cell["norms"], SEPARATE),
        times_better(cell["norms"], FUSED),
        times_better(cell["clipped"], CLIPPED),
        f"{median(clipping[OURS]) / median(clipping['backprop']):.2f}",
        times_better(cell["moments"], REDUCED, CONTRACTED),
        f"{median(group_of(cell['norms'], OURS)[OURS]) * 1e3:.3g} ms",
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
What keeps every example's gradient is timed apart from what does not, and `jaxbp` with both.
Medians of interleaved calls, compilation apart; answers compared before."""


def table_of_others(result):
    """Beside Opacus and BackPACK, where they were installed."""
    asked = {"norms": NORMS_BY_OTHERS, "clipped": CLIPPED_BY_OTHERS, "moments": MOMENTS_BY_OTHERS}
    pairs = [(part, name) for part, names in asked.items() for name in names]
    rows = [
        [times_better(cell[part], name) for part, name in pairs if was_asked(cell[part], name)]
        for cell in result["cells"]
    ]
    first = result["cells"][0]
    pairs = [(part, name) for part, name in pairs if was_asked(first[part], name)]
    if not pairs:
        return []
    versions = ", ".join(f"{name} {version}" for name, version in result["others"].items())
    return [
        "",
        heading("network, batch", *(f"{part}: {name}" for part, name in pairs)),
        *(
            line(cell["network"], *ratios)
            for cell, ratios in zip(result["cells"], rows, strict=True)
            if ratios
        ),
        "",
        "How many times faster than packages for PyTorch, uncompiled, on the same cores and in the "
        f"same process ({versions}; OMP_WAIT_POLICY=passive, so that waiting threads sleep).",
    ]


def was_asked(part, name):
    return any(name in group for group in part.values())


def markdown(result):
    """Both tables, and what they say."""
    rows = [row(cell) for cell in result["cells"]]
    explanation = EXPLANATION.replace("\n", " ")
    return "\n".join([heading(*COLUMNS), *rows, "", explanation, *table_of_others(result)])


def measure(options):
    """Every cell, printed as it is measured."""
    print(heading(*COLUMNS))
    seconds = 0.0 if options.quick else SECONDS
    cells = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Full backward hook")  # torch's, of a given input
        for sizes, rows in extent(options, GRID, SHORT, QUICK):
            cells.append(compare(sizes, rows, seconds))
            print(row(cells[-1]), flush=True)
    return {"others": installed(), "cells": cells}


if __name__ == "__main__":
    command(__doc__, measure, markdown)
