"""Pages for a browser: one file without network or script, in both themes, and to print.

A page is made of ``Html``, and every text becomes ``Html`` in this file, by ``html.escape``: names
of files, columns and classes stay text, whatever they contain.  That is a type of its own, so mypy
finds the text that was forgotten; an engine of templates would be a dependency for one page.
"""

import io
import re
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import NewType

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from jaxbp.text import Table, is_numeric, printable

Html = NewType("Html", str)

#: Hebrew, Arabic, Syriac and their neighbours, with the blanks between their words
_LETTER = "[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]"
_FROM_RIGHT = re.compile(f"{_LETTER}+(?: +{_LETTER}+)*")

_SHORT = 16  # characters in a cell of a table that stays in one line
_FEW = 12  # classes, up to which a matrix shows its zeros
_MOST_LETTERS = 60  # of the names of few classes that stand beside each other


def page(title: str, parts: Iterable[Html]) -> str:
    """The whole page: a heading, and the parts below it."""
    template = Template((files("jaxbp.cli") / "page.html").read_text(encoding="utf-8"))
    body = "\n".join([f"<h1>{text(title)}</h1>", *parts])
    return template.substitute(title=attribute(title), body=body)


def text(words: str) -> Html:
    """A text in one line: what would break it is shown by its code, and what is written from right
    to left turns nothing but itself."""
    return Html(_FROM_RIGHT.sub(r"<bdi>\g<0></bdi>", attribute(words)))


def attribute(words: str) -> Html:
    """A text where no element may stand."""
    return Html(escape(printable(words)))


def section(title: str, *parts: Html) -> Html:
    """A heading, and what is below it."""
    return Html("\n".join([f"<section><h2>{text(title)}</h2>", *parts, "</section>"]))


def paragraph(words: str, style: str = "") -> Html:
    """A paragraph; its style is "", "faint" or "warning"."""
    return Html(f'<p class="{style}">{text(words)}</p>' if style else f"<p>{text(words)}</p>")


def code(lines: str) -> Html:
    """Lines to copy, as they are."""
    return Html(f"<pre>{escape(lines)}</pre>")


def facts(pairs: Iterable[tuple[str, str]]) -> Html:
    """Names and what they are, a line each."""
    listed = "".join(f"<dt>{text(name)}</dt><dd>{text(fact)}</dd>" for name, fact in pairs)
    return Html(f"<dl>{listed}</dl>")


def table(shown: Table, says: str, links: Sequence[str | None] | None = None) -> Html:
    """A table; columns of numbers are aligned to the right.

    shown: the table.
    says: its name for screen readers.
    links: where the first cell of each row leads, None where nowhere; none lead unless given.
    """
    numeric = [all(map(is_numeric, column)) for column in zip(*shown.rows, strict=True)]
    styles = [' class="number"' if each else "" for each in numeric or [False] * len(shown.columns)]
    head = "".join(
        f'<th scope="col"{style}>{text(title)}</th>'
        for title, style in zip(shown.columns, styles, strict=True)
    )
    rows = ""
    for row, link in zip(shown.rows, links or [None] * len(shown.rows), strict=True):
        cells: list[str] = [*map(text, row)]
        if link is not None:
            cells[0] = f'<a href="{attribute(link)}">{cells[0]}</a>'
        both = zip(row, styles, strict=True)
        short = ["" if style or len(cell) > _SHORT else ' class="short"' for cell, style in both]
        parts = zip(styles, short, cells, strict=True)
        rows += f"<tr>{''.join(f'<td{style}{one}>{cell}</td>' for style, one, cell in parts)}</tr>"
    return _wide(f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>", says)


def matrix(counts: np.ndarray, labels: Sequence[str], says: str) -> Html:
    """How many rows of each class (K, K) are taken for each, filled by their share of the class."""
    few = len(labels) <= _FEW
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    turned = sum(map(len, labels)) > _MOST_LETTERS if few else max(map(len, labels)) > 2
    style = ' class="turned"' if turned else ""
    empty = "<td>0</td>" if few else "<td></td>"
    titles = [f'title="{attribute(label)}"' for label in labels]
    head = "".join(
        f'<th scope="col" {title}><span{style}>{text(label)}</span></th>'
        for title, label in zip(titles, labels, strict=True)
    )
    rows = []
    for title, label, row, part in zip(
        titles, labels, counts.tolist(), shares.tolist(), strict=True
    ):
        cells = "".join(
            f'<td style="--share: {share:.2f}">{count}</td>' if count else empty
            for count, share in zip(row, part, strict=True)
        )
        rows.append(f'<tr><th scope="row" {title}>{text(label)}</th>{cells}</tr>')
    size = "" if few else " many"
    return _wide(
        f'<table class="matrix{size}"><thead><tr><td class="corner"></td>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>",
        says,
    )


def _wide(element: str, says: str) -> Html:
    """Let an element that may be wider than the screen scroll by itself, by the keyboard too."""
    label = f'role="region" aria-label="{attribute(says)}"'
    return Html(f'<div class="wide" tabindex="0" {label}>{element}</div>')


def picture(figure: Figure, says: str) -> Html:
    """A figure of matplotlib as SVG, in the page's colours; says is what it shows, in words.

    Its heading, which is the page's, is left out.
    """
    file = io.StringIO()
    figure.suptitle("")
    with mpl.rc_context({"svg.fonttype": "none"}):  # text as text, to search and to read aloud
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    drawing = file.getvalue()
    drawing = drawing[drawing.index("<svg") :]
    drawing = re.sub(r"<metadata>.*?</metadata>", "", drawing, flags=re.S)
    drawing = re.sub(r'<g id="[^"]*"', "<g", drawing)  # the same in every picture of a page
    drawing = drawing.replace("<svg", f'<svg role="img" aria-label="{attribute(says)}"', 1)
    return Html(f"<figure>{drawing}</figure>")
