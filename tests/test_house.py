"""The house rules: imports run one way, the core stays short, the README is true."""

import ast
import importlib
import json
import re
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import jaxbp

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "jaxbp"
CORE = ("activations", "heads", "mlp", "gradient")

#: by floor, what may stand there and which libraries it may use; imports run down only
FLOORS = [
    ({*CORE, "model"}, {"jax"}),
    ({"trees", "text"}, {"jax", "numpy"}),
    ({"initialisation", "per_example", "curvature", "precision"}, {"jax", "numpy"}),
    ({"checking", "graph", "data", "diagnostics"}, {"jax", "numpy"}),
    ({"training"}, {"jax", "numpy", "optax"}),
    ({"checkpoint"}, {"jax", "numpy"}),
    ({"cli"}, {"jax", "jaxlib", "numpy", "optax", "matplotlib", "platformdirs", "rich", "tyro"}),
    ({"__main__"}, set()),
]
#: what a caller of ``import jaxbp`` must not have to install
EXTRAS = {"sklearn", "safetensors", "matplotlib", "rich", "tyro", "platformdirs", "filelock"}


#: every module of the package, and the file it is written in
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}


def imports(path):
    """What a file imports anywhere in it, by dotted names."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else node.module for name in names)


def test_imports_run_one_way():
    floor_of = {name: number for number, (names, _) in enumerate(FLOORS) for name in names}
    graph = {module: set(imports(path)) for module, path in MODULES.items()}
    graph = {module: {name for name in names if name != module} for module, names in graph.items()}
    for module in MODULES.keys() - {"jaxbp"}:
        place = module.split(".")[1]
        for name in graph[module]:
            package, *inside = name.split(".")
            if not inside or package != "jaxbp":
                allowed = FLOORS[floor_of[place]][1] | sys.stdlib_module_names | {"jaxbp"}
                assert package in allowed, (module, name)
            elif inside[0] != place:
                beside = (PACKAGE / f"{place}.py").exists()  # files of a floor may, folders not
                assert floor_of[inside[0]] < floor_of[place] + beside, (module, name)
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_importing_jaxbp_needs_jax_and_optax_alone(python):
    code = f"import sys; sys.modules |= dict.fromkeys({EXTRAS}); import jaxbp; jaxbp.data.load"
    python("-c", code).ended()


def test_no_module_bears_the_name_of_a_function_beside_it():
    for package in {path.parent for path in MODULES.values()}:
        face = importlib.import_module(".".join(package.relative_to(ROOT).parts))
        exported = {name for name in getattr(face, "__all__", ()) if callable(getattr(face, name))}
        assert not exported & {path.stem for path in package.iterdir()}, package
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

    from jaxbp.cli import explain

    monkeypatch.setenv("COLUMNS", "100")
    command = re.search(r'`jaxbp explain "(.*?)" x=2 z=3`', README)
    console = Console(width=100)
    with console.capture() as printed:
        explain.run(explain.Explain(command[1], ("x=2", "z=3")), console)
    assert f"```text\n{printed.get()}```" in README


def test_readme_figures_are_the_committed_ones():
    from benchmarks import training

    result = json.loads((ROOT / "benchmarks" / "results" / "training-cpu.json").read_text())
    table, _, _ = training.markdown(result).partition("\n\n")
    assert f"\n\n{table}\n\n" in README


def test_readme_table_of_checkers_is_the_committed_one():
    from benchmarks import checkers

    result = json.loads((ROOT / "benchmarks" / "results" / "checkers-cpu.json").read_text())
    table, _, _ = checkers.markdown(result).partition("\n\n")
    assert f"\n\n{table}\n\n" in README
