"""The house rules: imports run one way, the core stays short, README and docs are true."""

import ast
import importlib
import importlib.util
import json
import math
import pkgutil
import re
import runpy
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
    ({*CORE, "model", "targets", "products", "pickling", "reprs"}, {"jax"}),
    ({"trees", "text", "memory", "liveness", "processes"}, {"jax", "numpy"}),
    (
        {"initialisation", "per_example", "curvature", "parallel", "precision", "same_program"},
        {"jax", "numpy"},
    ),
    ({"checking", "graph", "data", "diagnostics"}, {"jax", "numpy"}),
    ({"training"}, {"jax", "numpy", "optax"}),
    ({"checkpoint"}, {"jax", "numpy"}),
    ({"estimators"}, {"jax", "numpy", "optax", "scipy", "sklearn"}),
    ({"interop"}, {"jax", "numpy"}),
    ({"cli"}, {"jax", "jaxlib", "numpy", "optax", "matplotlib", "platformdirs", "rich", "tyro"}),
    ({"__main__"}, {"jaxbp_command"}),
]
#: what a caller of ``import jaxbp`` must not have to install
EXTRAS = {"sklearn", "safetensors", "matplotlib", "rich", "tyro", "platformdirs", "filelock"}
EXTRAS |= {"polars", "narwhals", "zstandard", "python_calamine"}
EXTRAS |= {"orbax", "grain"}


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
                assert package in allowed or name == "numpy.typing", (module, name)
            elif inside[0] != place:
                beside = (PACKAGE / f"{place}.py").exists()  # files of a floor may, folders not
                assert floor_of[inside[0]] < floor_of[place] + beside, (module, name)
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_importing_jaxbp_needs_jax_and_optax_alone(python):
    code = f"import sys; sys.modules |= dict.fromkeys({EXTRAS}); import jaxbp; jaxbp.data.load"
    python("-c", code).ended()


def test_every_subject_can_be_imported_by_its_name():
    for name in (
        "batch_methods",
        "checking",
        "curvature",
        "data",
        "diagnostics",
        "graph",
        "interop",
    ):
        module = importlib.import_module(f"jaxbp.{name}")
        assert module is getattr(jaxbp, name)


def test_no_module_bears_the_name_of_a_function_beside_it():
    for package in {path.parent for path in MODULES.values()}:
        face = importlib.import_module(".".join(package.relative_to(ROOT).parts))
        exported = {name for name in getattr(face, "__all__", ()) if callable(getattr(face, name))}
        assert not exported & {path.stem for path in package.iterdir()}, package
    assert all(hasattr(jaxbp, name) for name in jaxbp.__all__)


def test_the_core_four_stay_under_500_lines():
    lines = {name: len((PACKAGE / f"{name}.py").read_text().splitlines()) for name in CORE}
    assert sum(lines.values()) < 500, lines


# README and docs: what they show is run, and what they name exists

#: the text of every page, by its path
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "benchmarks/README.md"]
}
README, HOMEWORK = PAGES["README.md"], "docs/homework.md"


def blocks(language, text):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def examples():
    """Every block of Python, with the block of text right below it: README's by default."""
    for page, text in PAGES.items():
        if page == HOMEWORK:  # its blocks are files: see below
            continue
        pairs = re.findall(r"```python\n(.*?)```(?:\n+```text\n(.*?)```)?", text, re.DOTALL)
        runs = [pair for pair in pairs if not pair[0].startswith("# jaxbp/")]
        marks = () if page == "README.md" else pytest.mark.slow
        for number, pair in enumerate(runs, 1):
            yield pytest.param(*pair, marks=marks, id=f"{page}-{number}")


@pytest.mark.parametrize(("code", "below"), list(examples()))
def test_examples_run_and_print_what_they_say(code, below, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pytest.importorskip("sklearn")
    pytest.importorskip("safetensors")
    for name in ("dp_accounting", "torch", "flax", "equinox", "onnxruntime", "grain"):
        if name in code:
            pytest.importorskip(name)
    exec(compile(code, "a page", "exec"), {"__name__": "page"})
    printed = capsys.readouterr().out.splitlines()
    promised = re.findall(r"^(?:print.*  )?# (.*)$", code, re.MULTILINE)
    assert printed[: len(promised)] == promised
    assert_alike("\n".join(printed[len(promised) :]), below)


def assert_alike(printed, promised):
    """The same words, and the same numbers but for their last digits and rounding errors.

    A row that passes shows the direction of its largest rounding error, which is another elsewhere.
    """
    number = r"-?\d+\.?\d*(?:e[-+]\d+)?"
    for text, other in zip(printed.splitlines(), promised.splitlines(), strict=True):
        assert re.sub(number, "#", text).split() == re.sub(number, "#", other).split()
        if text.endswith("  pass"):
            continue
        for a, b in zip(re.findall(number, text), re.findall(number, other), strict=True):
            assert math.isclose(float(a), float(b), rel_tol=0.02, abs_tol=1e-9), (text, other)


def test_quoted_lines_stand_in_their_files():
    (quotes,) = [block for block in blocks("python", README) if block.startswith("# jaxbp/")]
    quoted = re.findall(r"^# (jaxbp/[\w/]+\.py), (\w+).*\n((?:    .*\n)+)", quotes, re.MULTILINE)
    assert sum(lines.count("\n") + 1 for _, _, lines in quoted) == quotes.count("\n")
    for path, function, lines in quoted:
        module = ast.parse(source := (ROOT / path).read_text(encoding="utf-8"))
        (found,) = [each for each in module.body if getattr(each, "name", "") == function]
        assert lines in ast.get_source_segment(source, found) + "\n", (path, function)


def test_pages_name_only_what_exists():
    for page in PAGES.keys() - {"CHANGELOG.md"}:  # which names what has gone, too
        for name in re.findall(r"`(jaxbp\.[\w.]+)", PAGES[page]):
            pkgutil.resolve_name(name)
    for page, text in PAGES.items():
        for link in re.findall(r"\]\((?!https?:)([^)]*)\)", text):
            file, _, heading = link.partition("#")
            there = (ROOT / page).parent / file if file else ROOT / page
            assert there.exists(), (page, link)
            titles = (
                re.findall(r"^#+ (.*)$", there.read_text(encoding="utf-8"), re.M) if heading else ()
            )
            assert not heading or heading in [title.lower().replace(" ", "-") for title in titles]


def test_readme_fits_on_a_few_screens_and_links_every_page():
    assert len(README.splitlines()) <= 150
    for page in (ROOT / "docs").glob("*.md"):
        assert f"](docs/{page.name})" in README


def test_every_activation_and_head_is_named():
    for name in [*jaxbp.activations.BY_NAME, *jaxbp.heads.BY_NAME]:
        assert f"`{name}`" in PAGES["docs/reading.md"], name


def test_the_version_is_the_same_everywhere():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.*)$", citation, re.M)[1] == jaxbp.__version__
    newest = re.search(
        r"^## ([\d.]+)(?: \((unreleased|\d{4}-\d\d-\d\d)\))$", PAGES["CHANGELOG.md"], re.M
    )
    assert newest[1] == jaxbp.__version__


def test_contributing_shows_the_tree():
    tree = blocks("text", PAGES["CONTRIBUTING.md"])[0]
    shown = {name.strip("/") for name in re.findall(r"^  ([\w.]+/?)", tree, re.MULTILINE)}
    there = {path.name for path in PACKAGE.iterdir()} - {"__pycache__", "py.typed"}
    assert shown == there


def test_every_picture_is_shown():
    shown = {
        Path(link).name for text in PAGES.values() for link in re.findall(r"!\[.*\]\((.*)\)", text)
    }
    assert shown == {path.name for path in (ROOT / "docs").glob("*.png")}


def test_ci_runs_the_readmes_own_test_command():
    ci = (ROOT / ".ci" / "run").read_text()
    assert "README.md" in ci
    lines = [line for block in blocks("sh", README) for line in block.splitlines()]
    (command,) = [line for line in lines if "pytest" in line]
    assert command.startswith("python -m pip install ")  # as .ci/run looks for it


@pytest.mark.parametrize("page", ["README.md", "docs/graphs.md"])
def test_the_page_of_a_graph_is_what_explain_prints(page, monkeypatch):
    pytest.importorskip("tyro")
    from rich.console import Console

    from jaxbp.cli import explain

    monkeypatch.setenv("COLUMNS", "100")
    command = re.search(r'`jaxbp explain "(.*?)" x=2 z=3`', PAGES[page])
    console = Console(width=100)
    with console.capture() as printed:
        explain.run(explain.Explain(command[1], ("x=2", "z=3")), console)
    assert f"```text\n{printed.get()}```" in PAGES[page]


def test_the_page_of_homework_is_what_check_prints(capsys, tmp_path, monkeypatch):
    pytest.importorskip("tyro")
    from jaxbp import cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "homework", raising=False)
    page = PAGES[HOMEWORK]
    homework, both, in_a_test, in_torch = blocks("python", page)
    failed, mended, passed = blocks("text", page)
    (mistake,) = re.findall(r"    delta1 = .*\n", homework)
    file = tmp_path / "homework.py"
    for code, printed, status in [
        (homework, failed, 1),
        (homework.replace(mistake, mended), passed, 0),
    ]:
        file.write_text(code)
        command = re.search(r"`jaxbp (check homework.py:loss)`", page)[1]
        assert cli.main(command.split()) == status
        assert_alike(capsys.readouterr().out, printed)
    file.write_text(f"{code}\n\n{both}")
    command = re.search(r"`jaxbp (check homework.py:loss_and_grad .*?)`", page)[1]
    assert cli.main(command.split()) == 0
    del sys.modules["homework"]
    tests = {}
    exec(in_a_test, tests)
    for rows in (1, 5):
        tests["test_loss_grad"](rows)
    if importlib.util.find_spec("torch"):
        exec(in_torch, tests)
        tests["test_cube"]()


@pytest.mark.slow
def test_the_typed_script_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(ROOT / "tests" / "typed_script.py"))


@pytest.mark.slow
def test_the_table_of_layers_is_what_diagnose_prints(python, tmp_path):
    pytest.importorskip("tyro")
    page = PAGES["docs/diagnostics.md"]
    command = re.search(r"`jaxbp (diagnose .*?)`", page)[1].split()
    printed, _ = python("-m", "jaxbp", *command, "--output", tmp_path / "layers.png").ended()
    after = printed[printed.index("after 10 epochs") : printed.index("\n\ndrawn in")]
    assert_alike(after, blocks("text", page)[0])


def test_figures_of_training_are_the_committed_ones():
    from benchmarks import training

    result = json.loads((ROOT / "benchmarks" / "results" / "training-cpu.json").read_text())
    table, _, _ = training.markdown(result).partition("\n\n")
    assert f"\n\n{table}\n\n" in PAGES["docs/measurements.md"]
    shown = rows_of(re.search(r"^\| network, batch .*\n(\|.*\n)+", README, re.MULTILINE)[0])
    committed = rows_of(table)
    columns = [committed[0].index(heading) for heading in shown[0]]
    assert shown == [[row[column] for column in columns] for row in committed]


def rows_of(table):
    """The cells of a table in Markdown, without its rule."""
    heading, _, *rows = table.splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in (heading, *rows)]


def test_the_table_of_checkers_is_the_committed_one():
    from benchmarks import checkers

    result = json.loads((ROOT / "benchmarks" / "results" / "checkers-cpu.json").read_text())
    assert f"\n\n{checkers.summary(result)}\n\n" in PAGES["docs/proving.md"]


def test_tables_say_what_is():
    for page, text in PAGES.items():
        assert "(target" not in text, page
