"""The page of all committed results, benchmarks/README.md.

python -m benchmarks.report
"""

import importlib
import json
from pathlib import Path

HERE = Path(__file__).parent
MODULES = (
    "manual_vs_auto",
    "training",
    "limit",
    "scaling",
    "checkers",
    "per_example",
    "curvature",
)
INTRODUCTION = """\
# Benchmarks

`python -m pip install -e '.[benchmark]' && python -m benchmarks` runs all of them, shortened, in
under ten minutes on two cores; PyTorch is measured too where it is installed. Each file is also a
command of its own, named beside its table, that measures in full (`--short` for less), prints and,
with `--output`, keeps a result; the committed ones are in [results](results).
`python -m benchmarks.accelerator` runs the benchmarks that depend on the device, on the device that
JAX finds, and names their results after it.

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
    parts = [f"## {title}", first_line, *(measured(module, path) for path in results)]
    return "\n\n".join(parts) + "\n"


def measured(module, path):
    """The command and machine of a result, then its tables."""
    result = json.loads(path.read_text())
    where = result["conditions"]
    command, machine = f"`{where['command']}`", f"{where['processor']}, {where['device']}"
    versions = f"jax {where['jax']}, Python {where['python']}"
    kept = f"[{path.name}](results/{path.name})"
    return f"{command}: {machine}, {versions}; {kept}.\n\n{module.markdown(result)}"


def main():
    (HERE / "README.md").write_text(text())


if __name__ == "__main__":
    main()
