"""Cells of a CSV: which text is a number, which stands for a missing value, and a quote of one."""

import re

INTEGER = re.compile(r"-?\d{1,19}")  # in 64 bits, but for the largest
MISSING = {"", "na", "n/a", "nan", "null", "none", "?"}  # in lower case


def is_number(cell: str) -> bool:
    """Whether a cell is a number: as Python reads it, but without underscores."""
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell


def quoted(value: object) -> str:
    """Quote a name or a cell for a message, cut to 40 characters of one line."""
    text = str(value)
    return repr(text if len(text) <= 40 else f"{text[:37]}...")
