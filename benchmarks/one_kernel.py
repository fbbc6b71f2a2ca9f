"""How fast is an epoch in one kernel, beside XLA's compiled scan and PyTorch's CUDA graph?

    python -m benchmarks.one_kernel [--output results.json] [--short | --quick] [--warps]
    python -m benchmarks.one_kernel --table results.json
    python -m benchmarks.one_kernel --lower

Microseconds a step of minibatch SGD, by width, depth, batch, number of networks and precision;
parameters after an epoch are compared first.  ``--warps`` measures every cell with 1 to 16 warps,
which is where ``warps_for`` is from.  ``--lower`` prints which activations, heads and optimisers
can be lowered for an NVIDIA GPU by the installed jax, on any machine.  On a CPU nothing is timed:
Pallas's interpreter runs the smallest cell and the parameters are compared.
"""

import warnings
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AbstractDevice, AbstractMesh, AxisType, use_abstract_mesh

import jaxbp
from benchmarks import peers, protocol
from benchmarks.problems import name_of, problem, random_batch, random_params
from jaxbp import activations, heads
from jaxbp.training.epoch import Program, one_epoch
from jaxbp.training.one_kernel import OneKernel, is_faster, obstacle, warps_for
from jaxbp.training.padding import ignores_padding

ROWS, STEPS = 1797, 280
SGD, ADAM = optax.sgd(0.01), optax.adam(0.001)


class Cell(NamedTuple):
    """A row of the table."""

    sizes: tuple[int, ...]
    batch: int = 32
    networks: int = 1
    precision: str = "default"
    optimizer: str = "sgd"


DIGITS = (64, 128, 10)
SHORT = [
    Cell(DIGITS),
    Cell(DIGITS, networks=132),
    Cell(DIGITS, networks=1056),
    Cell((13, 32, 3), networks=4096),
    Cell(DIGITS, precision="highest"),
    Cell((13, 32, 3), optimizer="adam"),
    Cell(DIGITS, optimizer="adam"),
    Cell((64, 128, 128, 10)),
    Cell((64, 64, 64, 64, 10)),
    Cell(DIGITS, batch=128),
]
GRID = [
    *SHORT,
    *(Cell((64, width, 10), batch) for width in (16, 32, 64) for batch in (16, 32, 64, 256)),
    *(Cell(DIGITS, batch) for batch in (16, 64, 256)),
    *(Cell((64, *(64,) * depth, 10), networks=1056) for depth in (2, 3, 4)),
    *(Cell((64, *(128,) * depth, 10), networks=132) for depth in (2, 3, 4)),
    *(Cell((64, width, 10), networks=count) for width in (16, 64) for count in (132, 1056, 4096)),
    *(Cell(DIGITS, networks=count, precision="highest") for count in (16, 132, 1056)),
    *(Cell((13, 32, 3), networks=count, precision="highest") for count in (1, 132, 1056)),
    *(Cell(DIGITS, networks=count, optimizer="adam") for count in (132, 1056)),
]
QUICK = [Cell((5, 7, 3), batch=8, networks=2)]
XLA, KERNEL = "XLA", "one kernel"
COSINE = {"default": 0.9, "highest": 0.99}  # of what STEPS steps changed, least of all arrays


# Measuring


def program_of(cell):
    model = jaxbp.MLP(cell.sizes, activations.relu, heads.softmax_cross_entropy)
    optimizer = {"sgd": SGD, "adam": ADAM}[cell.optimizer]
    return Program(model, optimizer, jaxbp.backprop, cell.batch, precision=cell.precision)


def contender(cell, kernel, steps):
    """The epoch of all networks at once, compiled; the error as a text where that fails."""
    case, program = problem(cell.sizes, ROWS), program_of(cell)._replace(kernel=kernel)
    order = np.random.default_rng(0).integers(ROWS, size=(cell.networks, steps * cell.batch))
    params = jax.tree.map(lambda leaf: jnp.stack([leaf] * cell.networks), case.params)
    state = jax.vmap(program.optimizer.init)(params)

    def epochs(params, state, batch, order):
        def epoch(params, state, order):
            return one_epoch(program, params, state, batch, order, None)[::2]

        return jax.vmap(epoch)(params, state, order)

    given = jax.device_put((params, state, case.batch, order.astype(np.int32)))
    try:
        return protocol.compiled(epochs, *given)
    except Exception as error:
        return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"[:200]


def build(cell, *, warps, steps):
    """XLA's contender and the kernel's, by number of warps."""
    interpret = protocol.on_cpu()
    kernels = {
        KERNEL: OneKernel(warps_for(program_of(cell), cell.networks, jax.devices()[0]), interpret)
    }
    if warps:
        kernels = {f"{count} warps": OneKernel(count, interpret) for count in (1, 2, 4, 8, 16)}
    return {name: contender(cell, each, steps) for name, each in ({XLA: None} | kernels).items()}


def compare(cell, built, seconds, steps):
    """One row of the table: parameters are compared, then the programs are timed."""
    failed = {name: each for name, each in built.items() if isinstance(each, str)}
    working = {name: each for name, each in built.items() if name not in failed}
    expected, _ = working[XLA].run()
    start = problem(cell.sizes, ROWS).params
    for name, each in working.items():
        params, _ = each.run()
        updates = (jax.tree.map(jnp.subtract, each, start) for each in (params, expected))
        found = jaxbp.compare(*updates)
        cosine = min(leaf.cosine for leaf in found.leaves)
        assert cosine > COSINE[cell.precision], f"{name}: {found}"
    entry = cell._asdict() | {"steps": steps, "failed": failed, "chosen": is_chosen(cell)}
    if protocol.on_cpu():
        return entry | dict.fromkeys(working)
    return entry | protocol.timed(working, at_most_seconds=seconds, rounds=9)


def name_of_cell(cell):
    arithmetic = f"{cell.precision}, {cell.optimizer}"
    return f"{cell.networks} of {name_of(cell.sizes)}, {cell.batch}, {arithmetic}"


def is_chosen(cell):
    """Whether ``fit`` would take one kernel by itself."""
    program = program_of(cell)
    return obstacle(program, jnp.float32) is None and is_faster(program, cell.precision)


def measure(run):
    """Every cell, and PyTorch's CUDA graph of one; on a CPU the smallest, untimed."""
    cells = QUICK if protocol.on_cpu() else protocol.extent(run, GRID, SHORT, QUICK)
    steps = 3 if protocol.on_cpu() else STEPS
    print(protocol.heading(*COLUMNS))
    measured = []
    for entry in run.cells(
        cells,
        lambda cell, built: compare(cell, built, 0.5, steps),
        name_of_cell,
        build=lambda cell: build(cell, warps=run.options.warps, steps=steps),
    ):
        measured.append(entry)
        print(row(entry), flush=True)
        run.keep({"cells": measured})
    graphs = [] if protocol.on_cpu() else [Cell(DIGITS)]
    graph = list(run.cells(graphs, cuda_graph, "PyTorch's CUDA graph of {0.sizes}".format))
    return {"cells": measured, "cuda_graph": graph}


def cuda_graph(cell):
    """Microseconds a step of training by PyTorch's CUDA graph."""
    if peers.GRAPH not in peers.installed(peers.CUDA):
        raise RuntimeError("PyTorch is not installed, or sees no GPU")
    case = problem(cell.sizes, STEPS * cell.batch)
    weights = [(np.asarray(layer.weight), np.asarray(layer.bias)) for layer in case.params]
    given = (np.asarray(case.batch.x), np.asarray(case.batch.target), weights)
    run = peers.PEERS[peers.GRAPH].build(peers.Case(*given, cell.batch, 4, 0.01, peers.CUDA))
    timing = protocol.interleaved({peers.GRAPH: protocol.Contender(run)}, rounds=5)
    return cell._asdict() | {"microseconds": timing[peers.GRAPH].median / (4 * STEPS) * 1e6}


# Lowering, on any machine


def lowered(model, optimizer):
    """The text of an epoch in one kernel, lowered for an NVIDIA GPU.

    Raises what Pallas raises where a part of the step has no lowering.
    """
    device = AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="cuda")
    mesh = AbstractMesh((1,), ("x",), axis_types=(AxisType.Auto,), abstract_device=device)
    params = random_params(model, 0, np.float32)
    integer = model.head.target == "classes"
    batch = random_batch(model, 10, 0, integer=integer, dtype=np.float32)
    program = Program(model, optimizer, jaxbp.backprop, 4, kernel=OneKernel(warps=4))
    given = params, jax.jit(optimizer.init)(params), batch, np.arange(10, dtype=np.int32)
    epoch = jax.jit(lambda *given: one_epoch(program, *given, None))
    with warnings.catch_warnings(), use_abstract_mesh(mesh):
        warnings.filterwarnings("ignore", "The Pallas Triton backend")
        return epoch.trace(*given).lower(lowering_platforms=("cuda",)).as_text()


def outcome(model, optimizer):
    try:
        lowered(model, optimizer)
    except Exception as error:
        return f"no: {str(error).partition(chr(10))[0][:100]}"
    return "yes"


def lowering_table():
    """What lowers, and which optimisers leave padding alone, so that ``fit`` may choose it."""
    base = jaxbp.MLP((5, 9, 3), activations.relu, heads.softmax_cross_entropy)
    rows = [
        protocol.line("activation", name, outcome(base._replace(activation=each), SGD), "")
        for name, each in activations.BY_NAME.items()
    ]
    rows += [
        protocol.line("head", name, outcome(base._replace(head=each), SGD), "")
        for name, each in heads.BY_NAME.items()
    ]
    for name, make in OPTIMIZERS.items():
        optimizer = make(0.1)
        stays = ignores_padding(Program(base, optimizer, jaxbp.backprop, 4))
        rows.append(
            protocol.line("optimiser", name, outcome(base, optimizer), "yes" if stays else "no")
        )
    return "\n".join(
        [
            f"jax {jax.__version__}",
            protocol.heading("part", "name", "lowers", "leaves padding alone"),
            *rows,
        ]
    )


def chained(*transformations):
    return lambda rate: optax.chain(*transformations, optax.adam(rate))


OPTIMIZERS = {
    **{name: getattr(optax, name) for name in ("sgd", "adam", "adamw", "adagrad", "adadelta")},
    **{name: getattr(optax, name) for name in ("adamax", "adabelief", "amsgrad", "lion", "nadam")},
    **{name: getattr(optax, name) for name in ("radam", "rmsprop", "rprop", "sign_sgd", "yogi")},
    **{name: getattr(optax, name) for name in ("lamb", "lars", "novograd", "sm3", "adafactor")},
    "sgd with momentum": partial(optax.sgd, momentum=0.9, nesterov=True),
    "clip, adam": chained(optax.clip(1.0)),
    "clip_by_global_norm, adam": chained(optax.clip_by_global_norm(1.0)),
    "cosine decay": lambda rate: optax.sgd(optax.warmup_cosine_decay_schedule(0, rate, 5, 50)),
}


# Reading the result


COLUMNS = ("network, batch", "networks", "products, optimiser", KERNEL, "XLA", "ratio", "chosen")
EXPLANATION = """\
Microseconds a step of the compiled epoch, of all networks together, in brackets for each of them;
a ratio above 1 is one kernel's. Medians, all programs compiled before and their parameters
compared. `chosen`: whether `fit` takes one kernel there by itself."""


def microseconds(entry, name):
    return protocol.median(entry[name]) / entry["steps"] * 1e6


def fastest(entry):
    """The kernel's contender that was the fastest, where several numbers of warps were tried."""
    names = [name for name in entry if name == KERNEL or name.endswith(" warps")]
    names = [name for name in names if entry[name] is not None]
    return min(names, key=lambda name: microseconds(entry, name), default=None)


def row(entry):
    def told(name):
        took = microseconds(entry, name)
        each = f" ({took / entry['networks']:.3f})" if entry["networks"] > 1 else ""
        warps = "" if name in {XLA, KERNEL} else f", {name}"
        return f"{took:.2f} µs{each}{warps}"

    best = fastest(entry)
    timed = entry.get(XLA) is not None
    untimed = "does not compile" if entry["failed"] else "equal"
    return protocol.line(
        f"{name_of(entry['sizes'])}, {entry['batch']}",
        f"{entry['networks']}",
        f"{entry['precision']}, {entry['optimizer']}",
        untimed if best is None else told(best),
        told(XLA) if timed else "–",
        f"{microseconds(entry, XLA) / microseconds(entry, best):.2f}" if best and timed else "–",
        "yes" if entry["chosen"] else "no",
    )


def markdown(result):
    """The table, a note on how it was measured, and PyTorch's CUDA graph where that was."""
    explanation = f"{EXPLANATION} {result.get('note', '')}".strip()
    table = protocol.table(COLUMNS, map(row, result["cells"]), explanation)
    graphs = [cell["microseconds"] for cell in result.get("cuda_graph", ())]
    if not graphs:
        return table
    sentence = (
        f"All of training by PyTorch's CUDA graph in TF32, of {name_of(DIGITS)} at batch 32, takes "
        f"{graphs[0]:.1f} µs a step, its data and weights copied to the GPU and back."
    )
    return f"{table}\n\n{sentence}"


def main():
    def add_arguments(parser):
        parser.add_argument("--warps", action="store_true", help="each cell with 1 to 16 warps")
        parser.add_argument("--lower", action="store_true", help="print what lowers, and end")

    def measure_or_lower(run):
        if run.options.lower:
            print(lowering_table())
            raise SystemExit
        return measure(run)

    protocol.command(__doc__, measure_or_lower, markdown, add_arguments)


if __name__ == "__main__":
    main()
