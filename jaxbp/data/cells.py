"""Cells of a table as text: which is a number, a truth value or a date, and which is missing."""

import math
import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Literal

INTEGER = re.compile(r"-?\d{1,19}")  # in 64 bits, but for the largest
CODE = re.compile(r"[-+]?0\d+")  # an integer with leading zeros

#: what stands for a missing value, in lower case
MISSING = {"", "na", "n/a", "#n/a", "<na>", "nan", "nat", "null", "none", "?", "-", "--", "."}

#: the words for false and true, in lower case
BOOLEANS = (("false", "true"), ("no", "yes"), ("f", "t"), ("n", "y"))

Decimal = Literal[".", ","]  # what stands before a number's fraction; the other groups thousands

_GROUPED = (
    r"[1-9]\d{0,2}(?:[ \u00a0\u202f'’]\d{3})+|\d+|[1-9]\d{0,2}(?:%s\d{3})+"  # thousands apart
)
_WRITTEN = {
    point: re.compile(
        rf"[-+]?(?:(?:{_GROUPED % re.escape(group)})(?:{re.escape(point)}\d*)?"
        rf"|{re.escape(point)}\d+)(?:[eE][-+]?\d+)?"
    )
    for point, group in ((".", ","), (",", "."))
}


def is_number(cell: str) -> bool:
    """Whether a cell is a number: as Python reads it, but without underscores."""
    try:
        float(cell)
    except ValueError:
        return False
    return "_" not in cell


def decimals_of(cells: Iterable[str]) -> list[Decimal]:
    """How the numbers of a column may be written: with a decimal point, a comma, either or neither.

    The other sign, a blank or an apostrophe may stand between groups of three digits.

    >>> decimals_of(["1.234,5", "7"]), decimals_of(["1,234.5"]), decimals_of(["0,25"])
    ([','], ['.'], [','])
    >>> decimals_of(["1,234"]), decimals_of(["one"])
    (['.', ','], [])
    """
    cells = list(cells)
    points: tuple[Decimal, Decimal] = (".", ",")
    return [point for point in points if all(map(_WRITTEN[point].fullmatch, cells))]


def number(cell: str, decimal: Decimal | None) -> float | None:
    """Read a number that is written with this decimal sign, and perhaps with groups of thousands.

    By None it is written as in Python.  The result is None where the cell is no such number.
    """
    if decimal != "," and is_number(cell):
        return float(cell)
    if decimal is None or not _WRITTEN[decimal].fullmatch(cell):
        return None
    group = "," if decimal == "." else "."
    digits = re.sub(r"[ \u00a0\u202f'’]", "", cell.replace(group, ""))
    return float(digits.replace(",", "."))


def truth(cell: str) -> float | None:
    """Read a truth value, 0 or 1, by its word or as a number; None where the cell is none."""
    for words in BOOLEANS:
        if cell.lower() in words:
            return float(words.index(cell.lower()))
    return number(cell, None)


#: a date, year first, and perhaps a time
DATE = re.compile(r"(\d{4})([-/.])(\d{1,2})\2(\d{1,2})(?:[T ]+(.*))?")
DAY_OR_MONTH_FIRST = re.compile(r"\d{1,2}([-/.])\d{1,2}\1(\d{4}|\d{2})(\s.*)?")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def days(cell: str) -> float | None:
    """Read a date, year first, perhaps with a time -> days since 1970; None for anything else.

    A time without its zone is taken for UTC.

    >>> days("1970-01-02"), days("1970/1/1 12:00"), days("1970-01-01T12:00:00Z"), days("2.1.1970")
    (1.0, 0.5, 0.5, None)
    """
    found = DATE.fullmatch(cell)
    if not found:
        return None
    year, _, month, day, time = found.groups()
    try:
        moment = datetime.fromisoformat(
            f"{year}-{month:>02}-{day:>02}T{(time or '00:00').replace(' ', '')}"
        )
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (moment - _EPOCH).total_seconds() / 86400


def is_date(cell: str) -> bool:
    """Whether a cell is a date, whichever of year, month and day comes first."""
    return days(cell) is not None or DAY_OR_MONTH_FIRST.fullmatch(cell) is not None


def day(count: float) -> str:
    """The date that a number of days since 1970 falls on.

    >>> day(-0.1), day(0.9)
    ('1969-12-31', '1970-01-01')
    """
    return (_EPOCH + timedelta(math.floor(count))).date().isoformat()


def quoted(value: object) -> str:
    """Quote a name or a cell for a message, cut to 40 characters of one line."""
    text = str(value)
    return repr(text if len(text) <= 40 else f"{text[:37]}...")
