"""Facts: what is told of a table's columns, of those trained on and of new rows, in lines."""

import warnings
from collections import Counter
from collections.abc import Iterable

import numpy as np

from jaxbp.data.cells import day, quoted
from jaxbp.data.columns import Column, Values
from jaxbp.data.errors import DataWarning
from jaxbp.text import significant

_NO_TRAINING_ROW = "that no training row has"  # in words, of what new rows have


def facts_of(columns: Iterable[Column], values: Iterable[Values]) -> tuple[str, ...]:
    """A line for each column that is more than numbers: its kind, and what became of its gaps."""
    facts = []
    for column, each in zip(columns, values, strict=True):
        missing = int(each.missing.sum())
        parts = []
        if column.kind == "category":
            known = {name for name in column.categories if name}
            parts.append(f"{len(known)} categories" if len(known) != 1 else "1 category")
            present = each.numbers[~each.missing].astype(int)
            unknown = sum(each.names[code] not in known for code in present.tolist())
            if unknown:
                parts.append(f"{unknown} of a category {_NO_TRAINING_ROW}: 0 in all of them")
            if missing:
                own = "a category of their own" if "" in column.categories else "0 in all of them"
                parts.append(f"{missing} missing: {own}")
        else:
            if column.kind == "date":
                parts.append(f"date, in days since {day(column.origin)}")
            if column.decimal == ",":
                parts.append("numbers with a decimal comma")
            if column.constant:
                only = _in_words(column, column.fill)
                parts.append(f"{only} in every training row, so that it tells nothing")
            if missing:
                further = ", and an input that tells" if column.indicator else ""
                parts.append(f"{missing} missing: {fill_of(column)}{further}")
        if parts:
            facts.append(f"{quoted(column.name)}: {'; '.join(parts)}")
    return tuple(facts)


def not_trained(
    labels: tuple[str, ...], classes: np.ndarray, weight: np.ndarray | None
) -> tuple[str, ...]:
    """A note of the classes that have no training row of any weight, where there are such."""
    sums = np.bincount(classes, weight, minlength=len(labels))
    lacking = [quoted(label) for label, each in zip(labels, sums, strict=True) if not each]
    if not lacking:
        return ()
    more = f" and {len(lacking) - 5} more" if len(lacking) > 5 else ""
    of_weight = "" if weight is None else " of a weight above 0"
    return (f"no training row{of_weight} is of class {', '.join(lacking[:5])}{more}",)


def told_of(column: Column, values: Values) -> list[str]:
    """The lines to tell of new rows: missing cells that were filled, unknown categories."""
    missing, name = int(values.missing.sum()), quoted(column.name)
    if column.kind != "category":
        told = [f"column {name}: {missing} missing, taken for {fill_of(column)}"] if missing else []
        if column.kind == "boolean" or column.constant:
            present = values.numbers[~values.missing]
            usual = [column.fill] if column.constant else [0.0, 1.0]
            others = present[~np.isin(present, usual)]
            if len(others):
                shown = ", ".join(_in_words(column, each) for each in np.unique(others)[:5])
                told.append(f"column {name}: {len(others)} of a value {_NO_TRAINING_ROW} ({shown})")
        return told
    known = {*column.categories}
    names = Counter(values.names[int(code)] for code in values.numbers[~values.missing])
    if missing:
        names[""] = missing
    unknown = {each: count for each, count in names.items() if each not in known}
    if not unknown:
        return []
    shown = ", ".join(quoted(each) if each else "missing" for each in list(unknown)[:5])
    more = ", ..." if len(unknown) > 5 else ""
    rows = sum(unknown.values())
    return [f"column {name}: {rows} of a category {_NO_TRAINING_ROW} ({shown}{more})"]


def warn_of_unknown(source: object, told: Iterable[str]) -> None:
    """Warn of what no training row has, among the lines of ``told_of``, on behalf of the caller's
    caller."""
    for each in told:
        if _NO_TRAINING_ROW in each:
            warnings.warn(f"{source}: {each}", DataWarning, stacklevel=3)


def _in_words(column: Column, number: float) -> str:
    """A number of a column as its cells are written: a date, or in six digits."""
    return day(float(number)) if column.kind == "date" else significant(number, 6)


def fill_of(column: Column) -> str:
    """The value that stands for a missing cell, in words."""
    return f"the median {_in_words(column, column.fill)}"
