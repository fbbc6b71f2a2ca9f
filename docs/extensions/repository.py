"""Links to what lies elsewhere in the repository, as a forge has them, and to the reference.

A page of Markdown that lies elsewhere is one of the site too; a file of the package has its page of
code; any other file can be downloaded.  Code that names what the reference has leads there.
"""

import posixpath
import re
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util.osutil import relative_uri

ROOT = Path(__file__).parents[2]

#: pages elsewhere, and where they are on the site
ELSEWHERE = {
    "benchmarks/README.md": "docs/reference/benchmarks.md",
    "CHANGELOG.md": "docs/reference/changelog.md",
    "CONTRIBUTING.md": "docs/reference/contributing.md",
    "README.md": "docs/reference/readme.md",
    "tests/bite.md": "docs/reference/bite.md",
}

#: where a docstring's ``fit`` is ``jaxbp.fit``; that of an estimator is its own
DOCSTRINGS = {
    f"reference/{door}"
    for door in ("algorithm", "contractions", "checking", "graph", "training", "data")
} | {"reference/diagnostics", "reference/interop"}


def _read(app: Sphinx, docname: str, source: list[str]) -> None:
    """A page as the site has it: the text of one elsewhere, and links to such pages."""
    page = written = f"docs/{docname}.md"
    for path, place in ELSEWHERE.items():
        if place == page:
            written = path
            title, text = source[0].splitlines()[0], (ROOT / path).read_text(encoding="utf-8")
            source[0] = text if text.startswith("# ") else f"{title}\n\n{text}"
            app.env.note_dependency(str(ROOT / path), docname=docname)
    source[0] = re.sub(
        r"(!?)\[([^][]*)\]\(([^()#\s]+)(#[^()\s]*)?\)",
        partial(_link, posixpath.dirname(written), posixpath.dirname(page)),
        source[0],
    )


def _link(written_in: str, shown_in: str, link: re.Match[str]) -> str:
    """A link that is written in one folder, and shown on a page of another."""
    picture, text, target, anchor = link.groups("")
    path = posixpath.normpath(posixpath.join(written_in, target))
    if "://" in target or target.startswith("mailto:"):
        return link[0]
    if (ROOT / path).is_dir():
        return text
    return f"{picture}[{text}]({posixpath.relpath(ELSEWHERE.get(path, path), shown_in)}{anchor})"


def _to_code(app: Sphinx, tree: nodes.document, docname: str) -> None:
    """Links to files of the package, as those to their pages of code."""
    pages = getattr(app.env, "_viewcode_modules", {})
    for link in list(tree.findall(addnodes.download_reference)):
        folder = posixpath.join("docs", posixpath.dirname(docname))
        path = PurePosixPath(posixpath.normpath(posixpath.join(folder, link["reftarget"])))
        module = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
        if path.suffix == ".py" and pages.get(module):
            at = app.builder.get_target_uri(docname)
            code = app.builder.get_target_uri("_modules/" + module.replace(".", "/"))
            uri = relative_uri(at, code)
            link.replace_self(nodes.reference("", "", *link.children, internal=True, refuri=uri))


def _to_reference(app: Sphinx, tree: nodes.document, docname: str) -> None:
    """Code such as ``jaxbp.fit(...)``, and ``fit`` in a docstring, as a link to the reference."""
    objects = app.env.get_domain("py").objects
    for code in list(tree.findall(nodes.literal)):
        name = code.astext().partition("(")[0]
        if docname in DOCSTRINGS and f"jaxbp.{name}" in objects:
            name = f"jaxbp.{name}"
        if name not in objects or isinstance(code.parent, nodes.reference | nodes.title):
            continue
        at, there = map(app.builder.get_target_uri, (docname, objects[name].docname))
        uri = f"{relative_uri(at, there)}#{objects[name].node_id}"
        code.replace_self(nodes.reference("", "", code.deepcopy(), internal=True, refuri=uri))


def setup(app: Sphinx) -> dict[str, Any]:
    """Have links lead to pages."""
    app.connect("source-read", _read)
    app.connect("doctree-resolved", _to_code)
    app.connect("doctree-resolved", _to_reference)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
