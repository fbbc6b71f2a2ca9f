"""The documentation's site: nothing public, no page and no formula of the lectures is forgotten.

That it builds, every notebook executed, is ``.ci/run``'s.
"""

import ast
import pkgutil
import re
import types
from pathlib import Path

import pytest

import jaxbp

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
FACES = [
    "jaxbp",
    "jaxbp.activations",
    "jaxbp.batch_methods",
    "jaxbp.checking",
    "jaxbp.curvature",
    "jaxbp.data",
    "jaxbp.diagnostics",
    "jaxbp.estimators",
    "jaxbp.graph",
    "jaxbp.heads",
    "jaxbp.interop",
    "jaxbp.per_example",
    "jaxbp.training",
]
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.md"))


def text_of(folder):
    return "\n".join(page.read_text(encoding="utf-8") for page in sorted(folder.glob("*.md")))


def placed():
    """What the reference has, by its full name."""
    module = ""
    directive = r"^\.\. (currentmodule|autofunction|autoclass|py:data):: (.*)|^ {13}(\w+)$"
    for kind, named, further in re.findall(directive, text_of(DOCS / "reference"), re.MULTILINE):
        if kind == "currentmodule":
            module = named
        else:
            name = named or further
            yield name if name.startswith("jaxbp.") else f"{module}.{name}"


def names_of(module):
    """Its ``__all__``, or else the functions that are its own."""
    return getattr(module, "__all__", None) or [
        name
        for name, thing in vars(module).items()
        if callable(thing) and thing.__module__ == module.__name__
        if not isinstance(thing, type) and not name.startswith("_")
    ]


def public():
    """What a user may take from a face, but modules."""
    for face in FACES:
        module = pkgutil.resolve_name(face)
        for name in names_of(module):
            if not isinstance(getattr(module, name), types.ModuleType):
                yield f"{face}.{name}", getattr(module, name)
    yield from ((f"jaxbp.heads.{name}", head) for name, head in jaxbp.heads.BY_NAME.items())


def test_every_public_name_has_one_place_in_the_reference():
    pytest.importorskip("sklearn")
    places = list(placed())
    things = [id(pkgutil.resolve_name(name)) for name in places]
    assert len(set(things)) == len(things), "two places"
    there = {id(pkgutil.resolve_name(name)) for name in places}
    assert not [name for name, thing in public() if id(thing) not in there]


def test_every_formula_of_the_lectures_is_derived_beside_its_tests():
    tests = ast.parse((ROOT / "tests" / "test_lectures.py").read_text(encoding="utf-8")).body
    names = [node.name for node in tests if getattr(node, "name", "").startswith("test_")]
    named = re.findall(r"^test_\w+$", text_of(DOCS / "derivations"), re.MULTILINE)
    assert sorted(named) == sorted(names)


def test_every_page_is_in_the_index():
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    entries = re.findall(r"```{toctree}\n(.*?)```", index, re.DOTALL)
    listed = re.findall(r"^(?:.*<)?([\w/]+)>?$", "\n".join(entries), re.MULTILINE)
    pages = {str(page.relative_to(DOCS).with_suffix("")) for page in DOCS.rglob("*.md")}
    assert sorted(listed) == sorted(pages - {"index"})


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_ends_in_something_to_try(notebook):
    header, text = notebook.read_text(encoding="utf-8").split("---\n")[1:]
    assert "format_name: myst" in header
    assert "name: python3" in header
    last = text.rpartition("\n## ")[2]
    assert re.fullmatch(r"Try\n\n(- .+\n){2,}", last), "a list of things to try"
    for cell in re.findall(r"```{code-cell} ipython3\n(?::tags:.*\n)?(.*?)```", text, re.DOTALL):
        ast.parse(cell)


def test_ci_builds_the_site_by_contributings_own_command():
    contributing = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert len(re.findall(r"^python -m sphinx -W ", contributing, re.MULTILINE)) == 1
    assert "'^python -m sphinx ' CONTRIBUTING.md" in (ROOT / ".ci" / "run").read_text()
