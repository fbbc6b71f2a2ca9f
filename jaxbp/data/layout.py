"""Layout: the delimiter of a CSV and whether its first row is a header, guessed where not told."""

import csv
import operator
import re
from collections import Counter
from collections.abc import Sequence
from itertools import islice, pairwise
from typing import IO

from jaxbp.data.cells import INTEGER, MISSING, is_number, quoted

_NO_HEADER = re.compile(r"column \d+")  # names of columns in a file without a header
READ_AS_DATA = "row 1 was read as data; header=True (--header yes) if it names the columns"
LOOKED_AT = 1000  # rows, to guess the delimiter and the header by


def guess_delimiter(file: IO[str]) -> tuple[str, int]:
    """Guess the delimiter: the one that cuts the most rows into equally many cells, at least two.

    The second result is how many cells, 0 where nothing cuts the rows.  The file is looked at from
    where it stands, and stands there afterwards.  (``csv.Sniffer`` also guesses how cells are
    quoted, and takes letters for delimiters.)
    """
    start = file.tell()

    def agreement(delimiter: str) -> tuple[int, int]:
        """The rows that agree, and the number of their cells."""
        file.seek(start)
        try:
            rows = list(
                islice(
                    csv.reader(file, delimiter=delimiter, skipinitialspace=True),
                    LOOKED_AT,
                )
            )
        except csv.Error:
            return 0, 0
        widths = Counter(len(row) for row in rows if len(row) > 1)
        return max(((count, width) for width, count in widths.items()), default=(0, 0))

    best = max("\t;,", key=agreement)  # of equals the first: a comma may be a decimal one
    width = agreement(best)[1]
    file.seek(start)
    return best, width


def guess_header(
    first: Sequence[str], below: Sequence[Sequence[str]], expected: Sequence[str]
) -> tuple[bool, str]:
    """Guess whether the first row names the columns; and say so in a sentence if it is in doubt.

    It does if it holds all expected names, and does not if these are those of columns without
    names.  It does if it holds no number at all, unless all of its cells occur again in their
    columns, as in a table of text alone.  Else it is compared with the rows below: names are text
    above numbers, integers above decimals, or integers that count up like pandas' (0, 1, 2, ...),
    and neither they nor any text beside them occur again in their column.
    """
    numbers = [cell for cell in first if is_number(cell)]
    as_expected = len(expected) > 0 and set(expected) <= set(first)
    if as_expected or (len(expected) > 0 and all(map(_NO_HEADER.fullmatch, expected))):
        return as_expected, ""
    columns = list(zip(first, zip(*below, strict=True), strict=False))
    if not numbers:
        all_recur = bool(below) and all(cell in column for cell, column in columns)
        return (False, READ_AS_DATA) if all_recur else (True, "")
    named = any(
        not is_number(cell)
        and cell.lower() not in MISSING
        and all(is_number(other) or other.lower() in MISSING for other in column)
        for cell, column in columns
    )
    like_data = any(
        cell in column if not is_number(cell) else not INTEGER.fullmatch(cell)
        for cell, column in columns
    )
    yes = (
        f"row 1 ({', '.join(map(quoted, first[:4]))}{', ...' if len(first) > 4 else ''}) was read "
        "as the names of the columns; header=False (--header no) if it is data"
    )
    if named:
        return (False, READ_AS_DATA) if like_data else (True, yes)
    above_classes = any(  # text that occurs once, above text that does again and again
        not is_number(cell)
        and cell.lower() not in MISSING
        and cell not in column
        and 2 * len(set(column)) <= len(column)
        for cell, column in columns
    )
    values = [float(cell) for cell in numbers]
    counting = len(values) > 1 and all(b - a == 1 for a, b in pairwise(values))
    doubt = READ_AS_DATA if below and not expected and (above_classes or counting) else ""
    if like_data or expected or not below or len(set(numbers)) < len(numbers):
        return False, doubt
    above = [(int(cell), column) for cell, column in columns if is_number(cell)]
    other_kind = [
        not any(map(is_number, column)) or 2 * sum(map(_has_fraction, column)) > len(column)
        for _, column in above
    ]
    far_off = [_is_far_off(value, column) for value, column in above]
    recur = [str(value) in column for value, column in above]
    unlike = any(other_kind) and not any(recur) and all(map(operator.or_, other_kind, far_off))
    like_pandas = len(above) > 2 and above[0][0] == 0 and not all(recur)
    if unlike or (counting and (any(other_kind) or above_classes or like_pandas)):
        return True, yes
    return False, READ_AS_DATA if all(far_off) else doubt


def _has_fraction(cell: str) -> bool:
    return is_number(cell) and not INTEGER.fullmatch(cell)


def _is_far_off(value: int, column: Sequence[str]) -> bool:
    """Whether a value is further from a column's numbers than they are from each other."""
    numbers = [float(cell) for cell in column if is_number(cell)]
    if not numbers:
        return True
    low, high = min(numbers), max(numbers)
    return max(low - value, value - high) > max(high - low, 1)


def counts_rows(cells: Sequence[str]) -> bool:
    """Whether a column counts its rows, from 0 or from 1."""
    return any(
        all(cell == str(number) for number, cell in enumerate(cells, start)) for start in (0, 1)
    )
