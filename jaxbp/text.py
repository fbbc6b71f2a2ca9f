"""Text: the tables and numbers that reports print, in a terminal, a log or a notebook, and JSON."""

import math
import re
from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

import numpy as np

from jaxbp.reprs import part

_NUMBER = re.compile(r"[-+]?(\d+(\.\d*)?(e[-+]?\d+)?|inf|nan)%?")


class Table(NamedTuple):
    """A header, and rows with one cell for each of its columns."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


def align(table: Table, width: int = 100) -> str:
    """The table in columns or, where it is wider than that, row by row with a line for each cell.

    Columns whose cells are all numbers, such as "0.5", "-2e-03", "4 ± 1e-09", "12%" or none at all,
    are aligned to the right, the others to the left.

    >>> print(align(Table(("leaf", "error"), [("bias", "0.5"), ("weight", "12.25")])))
    leaf    error
    bias      0.5
    weight  12.25
    """
    lines = [[printable(cell) for cell in line] for line in (table.columns, *table.rows)]
    table = Table(lines[0], lines[1:])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    fitting = [gap for gap in ("  ", " ") if len(gap) * (len(widths) - 1) + sum(widths) <= width]
    if not fitting:
        return "\n\n".join(_listed(table.columns, row) for row in table.rows)
    numeric = [all(is_numeric(row[index]) for row in table.rows) for index in range(len(widths))]
    return "\n".join(
        fitting[0]
        .join(
            cell.rjust(size) if is_number else cell.ljust(size)
            for cell, size, is_number in zip(line, widths, numeric, strict=True)
        )
        .rstrip()
        for line in lines
    )


def printable(text: str, but: str = "") -> str:
    """A text in one line: what would break it, or move the cursor, is escaped, but for some."""
    return "".join(
        letter
        if letter.isprintable() or letter in but
        else letter.encode("unicode_escape").decode()
        for letter in text
    )


def is_numeric(cell: str) -> bool:
    """Whether a cell is a number, several that are told as one, or empty."""
    return not cell or all(_NUMBER.fullmatch(part.strip()) for part in cell.split("±"))


def _listed(columns: Sequence[str], row: Sequence[str]) -> str:
    name, *cells = row
    name = f"{columns[0]} {name}" if name.isdecimal() else name  # a number alone says nothing
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


def fields(record: Any) -> Table:
    """A named tuple's fields, a row each, in short."""
    return Table(("", ""), [(name, part(value)) for name, value in record._asdict().items()])


def number(value: float) -> str:
    """A number by its order of magnitude, with two digits: "0", "2.5e-01", "9.2e-02", "nan"."""
    return f"{value:g}" if value == 0 or not math.isfinite(value) else f"{value:.1e}"


def significant(value: float, digits: int) -> str:
    """A number in its shortest form, with that many significant digits at most: "0.25", "1e+20"."""
    return f"{value:.{digits}g}"


def plain(value: Any) -> Any:
    """A value as JSON takes it: lists for arrays, and null where JSON has no such number."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def cut(text: str, length: int) -> str:
    """A text of at most that many characters; one that was longer ends in dots."""
    return text if len(text) <= length else f"{text[: length - 3]}..."


def counted(count: int, noun: str) -> str:
    """A number of things: 1 row, 2 rows."""
    return f"{count} {noun}{'s' if count != 1 else ''}"


def one_line(error: BaseException) -> str:
    """An exception as the last line of its traceback has it, without any further lines."""
    first, *_ = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
