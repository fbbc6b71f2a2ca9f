"""Plain docstrings as reST: paragraphs, lists of parameters, equations, tables and examples.

The docstrings of this package are written to be read as they are.  What they hold is told by its
form: lines of ``name: text`` are parameters, an indented block is an equation or a table, ``>>>``
is an example, and the rest is text, whose signs mean nothing but themselves.
"""

import ast
import inspect
import re
import textwrap
from typing import Any

from jax.typing import ArrayLike, DTypeLike
from sphinx.application import Sphinx
from sphinx.util.typing import stringify_annotation

from jaxbp.activations import Activation
from jaxbp.gradient import Gradient

#: types that have a name in the code, as autodoc writes them out
_ALIASES = {
    stringify_annotation(alias, "smart"): name
    for name, alias in {
        "Activation": Activation,
        "ArrayLike": ArrayLike,
        "DTypeLike": DTypeLike,
        "Gradient": Gradient,
    }.items()
}
_ITEM = re.compile(r"^((?:\w+, )*\w+): ")
_CODE = re.compile(r"(``.+?``)", re.DOTALL)
_EMPHASIS = re.compile(r"(?<![\w*])\*(\w[^*]*\w)\*(?![\w*])")


def as_rest(docstring: str) -> str:
    """A docstring as reST."""
    sentence, *blocks = re.split(r"\n\s*\n", docstring.strip("\n"))
    return "\n\n".join([_text(sentence), *map(_block, blocks)]) + "\n"


def _block(block: str) -> str:
    if block.lstrip().startswith(">>>"):
        return textwrap.dedent(block)
    if block.startswith("    "):
        return _as_it_is(block)
    if all(_ITEM.match(line) or line.startswith("    ") for line in block.splitlines()):
        return "\n".join(map(_item, re.split(r"\n(?! )", block)))
    if re.search(r"\S {3,}\S", block):
        return _as_it_is(block)
    if "\n    " in block and not re.match(r"- |\d\. ", block):
        text, indent, equation = block.partition("\n    ")
        return f"{_text(text)}\n\n{_as_it_is(indent + equation)}"
    return _text(block)


def _as_it_is(block: str, language: str = "text") -> str:
    code = textwrap.indent(textwrap.dedent(block.strip("\n")), "    ")
    return f".. code-block:: {language}\n\n{code}\n"


def _item(item: str) -> str:
    names, _, text = re.sub(r"\s*\n\s+", " ", item).partition(": ")
    return f"- **{_escaped(names)}**: {_text(text)}"


def _text(text: str) -> str:
    """Text whose signs stand for themselves, but for code and emphasis."""
    parts = _CODE.split(text)
    return "".join(part if part.startswith("``") else _escaped(part) for part in parts)


def _escaped(text: str) -> str:
    pieces = _EMPHASIS.split(text)
    plain = [re.sub(r"([\\*|`]|_(?!\w))", r"\\\1", piece) for piece in pieces]
    return "".join(f"*{piece}*" if at % 2 else piece for at, piece in enumerate(plain))


def _is_record(thing: Any) -> bool:
    return inspect.isclass(thing) and (
        hasattr(thing, "_fields") or hasattr(thing, "__dataclass_fields__")
    )


def fields_of(record: type) -> str:
    """The fields of a record as its source has them, types and comments included."""
    lines = textwrap.dedent(inspect.getsource(record)).splitlines()
    (node,) = ast.parse("\n".join(lines)).body
    assert isinstance(node, ast.ClassDef)
    fields = [each for each in node.body if isinstance(each, ast.AnnAssign)]
    if not fields:
        return ""
    last = max(each.end_lineno for each in fields)
    while last < len(lines) and lines[last].strip().startswith("#"):  # a comment that goes on
        last += 1
    first = min(each.lineno for each in fields) - 1
    return textwrap.dedent("\n".join(lines[first:last]))


def _docstring(
    app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]
) -> None:
    text = as_rest("\n".join(lines))
    if _is_record(thing) and (fields := fields_of(thing)):
        text += "\n" + _as_it_is(fields, "python")
    lines[:] = text.splitlines()


def _signature(
    app: Sphinx, what: str, name: str, thing: Any, options: Any, arguments: str, returned: str
) -> tuple[str, str]:
    """The types by the names that they have in the code."""
    for written, alias in _ALIASES.items():
        arguments, returned = (
            text and text.replace(written, alias) for text in (arguments, returned)
        )
    return arguments, returned


def setup(app: Sphinx) -> dict[str, Any]:
    """Have Sphinx read plain docstrings."""
    app.connect("autodoc-process-docstring", _docstring)
    app.connect("autodoc-process-signature", _signature)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
