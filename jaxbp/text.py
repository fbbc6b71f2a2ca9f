"""Tables of text: what reports are printed with, in a terminal of any width and in a notebook."""

import math
import shutil
from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np

_RIGHT = frozenset("0123456789.+-±e∞ naif%")  # a column of nothing but these is one of numbers


class Table(NamedTuple):
    """A header and rows of as many cells."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def align(table: Table, width: int | None = None) -> str:
    """The table in columns or, where that is wider than the terminal, row by row, a line a cell.

    >>> print(align(Table(("leaf", "error"), [("bias", "0.5"), ("weight", "12.25")])))
    leaf    error
    bias      0.5
    weight  12.25
    """
    width = width or shutil.get_terminal_size().columns
    lines = [table.columns, *table.rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    fitting = [gap for gap in ("  ", " ") if len(gap) * (len(widths) - 1) + sum(widths) <= width]
    if not fitting:
        return "\n\n".join(_listed(table.columns, row) for row in table.rows)
    right = [
        all(set(cell) <= _RIGHT for cell in column) for column in zip(*table.rows, strict=True)
    ]
    return "\n".join(
        fitting[0]
        .join(
            cell.rjust(size) if is_number else cell.ljust(size)
            for cell, size, is_number in zip(line, widths, right or widths, strict=True)
        )
        .rstrip()
        for line in lines
    )


def _listed(columns: Sequence[str], row: Sequence[str]) -> str:
    name, *cells = row
    size = max(map(len, columns[1:]))
    pairs = zip(columns[1:], cells, strict=True)
    return "\n".join([name, *(f"  {title:<{size}}  {cell}" for title, cell in pairs if cell)])


def html(table: Table) -> str:
    """The table for a notebook."""
    header = "".join(f"<th>{escape(title)}</th>" for title in table.columns)
    rows = (
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows
    )
    return f"<table><thead><tr>{header}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def number(value: float, digits: int = 2) -> str:
    """A number as short as it can be told: "0", "0.25", "9.2e-02"."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if digits > 2:
        return f"{value:.{digits}g}"
    return f"{value:.{digits - 1}e}"


def plain(value: Any) -> Any:
    """A value as JSON takes it: lists, and null for what JSON has no number for."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
