"""The page of all committed results, benchmarks/README.md.

    python -m benchmarks.report [--readme DEVICE]

writes the page, or prints the README's table of a device, as it is called in the results' names.
"""

import argparse
import importlib
import json
from pathlib import Path

from benchmarks import limit, peers, protocol, training

HERE = Path(__file__).parent
MODULES = (
    "manual_vs_auto",
    "training",
    "latency",
    "search",
    "one_kernel",
    "limit",
    "scaling",
    "checkers",
    "error_bars",
    "functions",
    "graph_functions",
    "graph_page",
    "per_example",
    "curvature",
    "kills",
    "lost_processes",
    "scale",
    "streams",
    "tables",
)
INTRODUCTION = """\
# Benchmarks

`python -m pip install -e '.[benchmark]' && python -m benchmarks` runs all of them, shortened, in
under ten minutes on two cores; PyTorch is measured too where it is installed. Each file is also a
command of its own, named beside its table, that measures in full (`--short` for less), prints and,
with `--output`, keeps a result; the committed ones are in [results](results).
`python -m benchmarks.accelerator` runs the benchmarks that depend on the device, on the device that
JAX finds, and names their results after it: in under eight minutes, with `--short` in under four.
What it has no time for it leaves out, and says so.

Contenders are timed in one process, in turn, warmed up, with compilation apart
([protocol.py](protocol.py)), and their answers are compared first. Machines are noisy: the figures
to quote are ratios of the same run. `python -m benchmarks.report` writes this page from the
results, `python -m benchmarks.pictures` draws the pictures of docs/.
"""


def text():
    """The whole page."""
    return "\n".join([INTRODUCTION, *(section(name) for name in MODULES)])


def section(name):
    """A benchmark's question, then its results, each with the machine it was measured on."""
    module = importlib.import_module(f"benchmarks.{name}")
    first_line = module.__doc__.splitlines()[0].replace("``", "`")
    title = name.replace("_", " ").capitalize()
    results = sorted((HERE / "results").glob(f"{name}-*.json"))
    parts = [f"## {title}", first_line]
    for path in results:
        if len(results) > 1:
            parts.append(f"### {json.loads(path.read_text())['conditions']['device']}")
        parts.append(measured(module, path))
    return "\n\n".join(parts) + "\n"


def measured(module, path):
    """The command and machine of a result, what is missing from it, then its tables."""
    result = json.loads(path.read_text())
    where = result["conditions"]
    command, machine = f"`{where['command']}`", f"{where['processor']}, {where['device']}"
    versions = f"jax {where['jax']}, Python {where['python']}"
    kept = f"[{path.name}](results/{path.name})"
    where = f"{command}: {machine}, {versions}; {kept}. {protocol.missing(result)}".strip()
    return f"{where}\n\n{module.markdown(result)}"


READMES = """\
Training on one {device}, TF32 products for all, with {versions}: a step of `jaxbp.fit`, all of
training divided by the number of its steps, and how many times faster it is than each. A compiled
step is one of the epoch that XLA compiles, alone on the device.\
"""


def readme_table(device, results=HERE / "results"):
    """The README's table of a GPU, from the results that bear its name.

    device: as the results' names have it, such as "nvidia-h100-80gb-hbm3".
    results: the folder; that of the committed ones unless given.
    """
    result = json.loads((results / f"training-{device}.json").read_text())
    ours = [cell["contenders"][peers.OURS] for cell in result["cells"]]
    others = [name for name in training.named(result["cells"]) if name != peers.OURS]
    compiled = compiled_steps(results / f"limit-{device}.json")
    rows = [
        protocol.line(
            cell["network"],
            f"{mine['samples_per_second']:,.0f}",
            f"{protocol.median(mine) / training.steps(cell) * 1e6:.1f} µs",
            compiled.get(cell["network"], "–"),
            *(training.times_faster(cell, name) for name in others),
        )
        for cell, mine in zip(result["cells"], ours, strict=True)
    ]
    columns = (
        "network, batch",
        "samples a second",
        "a step",
        "a compiled step",
        *(f"over {name}" for name in others),
    )
    versions = ", ".join(
        f"{name} {version}"
        for name, version in ({"jax": result["conditions"]["jax"]} | result["others"]).items()
    )
    explanation = READMES.format(device=result["conditions"]["device"], versions=versions)
    return protocol.table(columns, rows, explanation)


def compiled_steps(path):
    """Microseconds of a compiled step in TF32, in words, by network and batch; none without a
    result."""
    cells = json.loads(path.read_text())["cells"] if path.exists() else []
    return {
        f"{cell['network']}, batch {cell['batch']}": f"{limit.microseconds(cell):.1f} µs"
        for cell in cells
        if cell["mode"] == "TF32"
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--readme", metavar="DEVICE", help="print the README's table of a device")
    device = parser.parse_args().readme
    if device is None:
        (HERE / "README.md").write_text(text())
    else:
        print(readme_table(device))


if __name__ == "__main__":
    main()
