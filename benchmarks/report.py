"""Every benchmark's committed results, as benchmarks/README.md.

python -m benchmarks.report
"""

import importlib
import json
from pathlib import Path

HERE = Path(__file__).parent
MODULES = ("first_look", "checkers", "per_example", "curvature")
INTRODUCTION = """\
# Benchmarks

Each file is a command that measures, prints and, with `--output`, keeps a result; the committed
ones are in [results](results). Contenders are timed in one process, in turn, warmed up, with
compilation apart ([protocol.py](protocol.py)), and their answers are compared before. Machines are
noisy: the figures to quote are ratios of medians of the same run.

`python -m benchmarks.report` writes this page from those files.
"""


def text():
    """The whole page."""
    return "\n".join([INTRODUCTION, *(section(name) for name in MODULES)])


def section(name):
    """What a benchmark measures, then its results one by one, each with where it was measured."""
    module = importlib.import_module(f"benchmarks.{name}")
    first_line = module.__doc__.splitlines()[0].replace("``", "`")
    title = name.replace("_", " ").capitalize()
    results = sorted((HERE / "results").glob(f"{name}-*.json"))
    parts = [f"## {title}", first_line, *(measured(module, path) for path in results)]
    return "\n\n".join(parts) + "\n"


def measured(module, path):
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
