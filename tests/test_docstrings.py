"""The public functions: what their docstrings say, and what every one of them refuses."""

import ast
import inspect
import re
import types
from pathlib import Path

import pytest

import jaxbp

PACKAGE = Path(jaxbp.__file__).parent
FACES = [
    jaxbp,
    jaxbp.activations,
    jaxbp.batch_methods,
    jaxbp.checking,
    jaxbp.curvature,
    jaxbp.data,
    jaxbp.diagnostics,
    jaxbp.graph,
    jaxbp.heads,
    jaxbp.interop,
    jaxbp.per_example,
    jaxbp.training,
]


OTHERS = ("jaxbp.checking", "jaxbp.graph")  # which do not ask yet


def exported():
    """Every function that a user may call, by its name."""
    for face in FACES:
        for name in getattr(face, "__all__", dir(face)):
            function = getattr(face, name)
            if isinstance(function, types.FunctionType) and not name.startswith("_"):
                yield f"{function.__module__}.{function.__qualname__}", function


@pytest.mark.parametrize(("name", "function"), dict(exported()).items())
def test_more_than_four_parameters_are_listed(name, function):
    parameters = [each for each in inspect.signature(function).parameters if each != "_"]
    if len(parameters) > 4:
        lists = re.findall(r"^ *((?:\w+, )*\w+): ", function.__doc__, re.MULTILINE)
        listed = {each for names in lists for each in names.split(", ")}
        assert set(parameters) <= listed, (name, set(parameters) - listed)


def test_a_truth_value_is_true_or_false():
    """Any text would be true, "no" as well."""
    for name, function in exported():
        parameters = inspect.signature(function).parameters.values()
        needed = {each.name: None for each in parameters if each.default is each.empty}
        for each in parameters:
            if each.annotation in (bool, bool | None) and not name.startswith(OTHERS):
                with pytest.raises(TypeError, match=f"^{each.name}: got 'no', expected True or F"):
                    function(**needed | {each.name: "no"})


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.stem)
def test_a_docstring_can_be_read_alone(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            text = ast.get_docstring(node) or "-"
            assert not re.match(r"(The same|Of|What)\b", text), (path, getattr(node, "name", ""))
