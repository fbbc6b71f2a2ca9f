"""The house rules: imports run one way, the core stays short, the README is true."""

import ast
import json
import re
import sys
from pathlib import Path

import pytest

import jaxbp

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "jaxbp"
CORE = ("activations", "heads", "mlp", "gradient")

#: a module may import those of the lines above its own, and outside libraries as said
LEVELS = [
    ({"activations", "heads"}, {"jax"}),
    ({"mlp"}, {"jax"}),
    ({"gradient"}, {"jax"}),
    ({"curvature", "precision"}, {"jax"}),
    ({"per_example"}, {"jax", "numpy"}),
    ({"tables", "arguments"}, {"jax", "numpy"}),
    ({"checking.comparing", "checking.measuring", "checking.tracing"}, {"jax", "numpy"}),
    ({"checking.problem"}, {"jax", "numpy"}),
    ({"checking.verdicts", "checking.survey"}, {"jax", "numpy"}),
    ({"checking.report", "checking.symptoms", "checking.taylor"}, {"jax", "numpy"}),
    ({"checking.findings"}, {"jax", "numpy"}),
    ({"checking.checker"}, {"jax", "numpy"}),
    ({"checking", "data", "diagnostics"}, {"jax", "numpy"}),
    ({"graph.symbols"}, {"numpy"}),
    ({"graph.rules"}, {"jax", "numpy"}),
    ({"graph.recording"}, {"jax", "numpy"}),
    ({"graph.reverse", "graph.expressions"}, {"jax", "numpy"}),
    ({"graph.nodes", "graph.cost", "graph.layout"}, {"jax", "numpy"}),
    ({"graph.explaining", "graph.page", "graph.drawing"}, {"jax", "numpy"}),
    ({"graph.html"}, {"numpy"}),
    ({"graph.computation"}, {"jax", "numpy"}),
    ({"graph"}, set()),
    ({"inputs"}, {"jax", "numpy", "optax"}),
    ({"training", "checkpoint", "batch_methods"}, {"jax", "numpy", "optax"}),
    ({"sweeps"}, {"jax", "numpy", "optax"}),
    ({"plotting"}, {"numpy", "matplotlib"}),
    ({"compilation_cache"}, {"jax", "platformdirs"}),
    (
        {"train_options", "predict_command", "check_command"},
        {"jax", "numpy", "optax", "tyro", "rich"},
    ),
    ({"train_command"}, {"jax", "jaxlib", "numpy", "optax", "rich"}),
    ({"diagnose_command", "explain_command"}, {"jax", "numpy", "rich", "tyro"}),
    ({"cli"}, {"jax", "tyro", "rich"}),
    ({"__main__"}, set()),
]
MODULES = [module for level, _ in LEVELS for module in sorted(level)]
#: what a caller of ``import jaxbp`` must not have to install
EXTRAS = {"sklearn", "safetensors", "matplotlib", "rich", "tyro", "platformdirs", "filelock"}


def imports(path):
    """The modules a file imports anywhere in it, as (package, submodule or None)."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split(".")[0], None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package, _, module = node.module.partition(".")
            names = [".".join(filter(None, (module, alias.name))) for alias in node.names]
            if package == "jaxbp" and set(names) & set(MODULES):
                yield from (("jaxbp", name) for name in names)
            else:
                yield package, module or None


def file_of(module):
    """Where a module of the package is written."""
    path = PACKAGE / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def test_every_module_has_its_level():
    written = {path.relative_to(PACKAGE).with_suffix("") for path in PACKAGE.rglob("*.py")}
    modules = {".".join(path.parts).removesuffix(".__init__") for path in written}
    assert modules - {"__init__"} == set(MODULES)


@pytest.mark.parametrize("number", range(len(LEVELS)))
def test_imports_run_one_way(number):
    modules, libraries = LEVELS[number]
    below = set().union(*(level for level, _ in LEVELS[:number]))
    for module in modules:
        for package, submodule in imports(file_of(module)):
            if package == "jaxbp":
                assert submodule is None or submodule in below, (module, submodule)
            elif package not in sys.stdlib_module_names:
                assert package in libraries, (module, package)


def test_importing_jaxbp_needs_jax_and_optax_alone(python):
    code = f"import sys; sys.modules |= dict.fromkeys({EXTRAS}); import jaxbp; jaxbp.data.load"
    python("-c", code).ended()


def test_no_module_bears_the_name_of_an_exported_function():
    functions = {name for name in jaxbp.__all__ if not isinstance(getattr(jaxbp, name), type(ast))}
    assert not functions & {path.stem for path in PACKAGE.rglob("*.py")}
    assert all(hasattr(jaxbp, name) for name in jaxbp.__all__)


def test_the_core_four_stay_under_500_lines():
    lines = {name: len((PACKAGE / f"{name}.py").read_text().splitlines()) for name in CORE}
    assert sum(lines.values()) < 500, lines


README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


#: in the blocks that train for seconds; the others show training as well
LONG = ("dp_accounting", "fit_many", "epochs=30")


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(block, marks=pytest.mark.slow if any(map(block.count, LONG)) else ())
        for block in blocks("python")
    ],
)
def test_readme_blocks_run_and_print_what_they_say(block, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pytest.importorskip("sklearn")
    pytest.importorskip("safetensors")
    if "dp_accounting" in block:
        pytest.importorskip("dp_accounting")
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
    printed = capsys.readouterr().out.splitlines()
    promised = re.findall(r"^(?:print.*  )?# (.*)$", block, re.MULTILINE)
    assert printed == promised


def test_readme_counts_the_lines_of_what_it_tells_to_read():
    for name, count in re.findall(r"`jaxbp/(\w+)\.py`\D*?(\d+) lines", README):
        assert len((PACKAGE / f"{name}.py").read_text().splitlines()) == int(count), name
    assert set(CORE) <= {
        name for name, _ in re.findall(r"`jaxbp/(\w+)\.py`\D*?(\d+) lines", README)
    }


def test_readme_names_only_what_exists():
    for name in re.findall(r"`jaxbp\.([\w.]+)", README):
        target = jaxbp
        for part in name.split("."):
            target = getattr(target, part)
    for path in re.findall(r"\]\((?!http)([\w./]+)\)", README):
        assert (ROOT / path).exists(), path


def test_ci_runs_the_readmes_own_test_command():
    ci = (ROOT / ".ci" / "run").read_text()
    assert "README.md" in ci
    commands = [line for block in blocks("sh") for line in block.splitlines() if "pytest" in line]
    assert len(commands) == 1


def test_readme_page_is_what_explain_prints(monkeypatch):
    pytest.importorskip("tyro")
    from rich.console import Console

    from jaxbp import explain_command

    monkeypatch.setenv("COLUMNS", "100")
    command = re.search(r'`jaxbp explain "(.*?)" x=2 z=3`', README)
    console = Console(width=100)
    with console.capture() as printed:
        explain_command.run(explain_command.Explain(command[1], ("x=2", "z=3")), console)
    assert f"```text\n{printed.get()}```" in README


def test_readme_figures_are_the_committed_ones():
    from benchmarks import training

    result = json.loads((ROOT / "benchmarks" / "results" / "training-cpu.json").read_text())
    table, _, _ = training.markdown(result).partition("\n\n")
    assert f"\n\n{table}\n\n" in README


def test_readme_table_of_checkers_is_the_committed_one():
    from benchmarks import checkers

    result = json.loads((ROOT / "benchmarks" / "results" / "checkers-cpu.json").read_text())
    assert checkers.markdown(result) in README
