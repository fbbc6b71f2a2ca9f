"""``jaxbp describe``: what ``jaxbp train`` would make of a table, column by column."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import tyro
from rich.console import Console
from tyro.conf import arg

from jaxbp.cli.options import (
    Categorical,
    DecimalSign,
    Drop,
    Encoding,
    Header,
    MissingCells,
    Target,
    TaskChoice,
    Weights,
)
from jaxbp.cli.plan import DECIMAL, HEADER
from jaxbp.data.cells import day
from jaxbp.data.columns import Column, Examined, Values, fitted
from jaxbp.data.errors import DataError
from jaxbp.data.facts import fill_of
from jaxbp.data.loading import checked_reading, dealt
from jaxbp.data.preparation import alike, guess_task
from jaxbp.data.sources import RawData, read_source
from jaxbp.text import Table, align, counted, cut, significant

_EXAMPLES = 3


@dataclass(frozen=True)
class Describe:
    """Describe a table: the kind of each column, and what training would make of it.

    Inputs and medians are those of the training rows, as jaxbp train deals them by default.

    DATA comes first: jaxbp describe titanic.csv --target survived
    """

    data: Annotated[
        tyro.conf.Positional[str],
        arg(metavar="DATA", help="the path of a table, or the name of a bundled set"),
    ]
    target: Target = None
    task: TaskChoice = "auto"
    header: Header = "auto"
    drop: Drop = ()
    categorical: Categorical = ()
    missing: MissingCells = "impute"
    weights: Weights = None
    encoding: Encoding = None
    decimal: DecimalSign = "auto"


def run(options: Describe, console: Console) -> int:
    """Carry out the command; the exit status."""
    reading = checked_reading(
        HEADER[options.header],
        options.drop,
        options.categorical,
        options.missing,
        options.weights,
        options.encoding,
        DECIMAL[options.decimal],
    )
    asked = None if options.task == "auto" else options.task
    raw = read_source(options.data, options.target, asked, reading)
    task, reason = (asked, "") if asked is not None else guess_task(raw)
    inputs = raw.inputs or tuple(_of_array(raw))
    training, labels, not_dealt = np.arange(len(raw.target)), None, ""
    try:
        labels, _, (training, _, _) = dealt(raw, task)  # as training does unless told otherwise
    except DataError as error:
        not_dealt = f"jaxbp train will refuse it: {error}"
    lines, count = [], 0
    for each in inputs:
        column = fitted(each, training, options.missing)
        count += 0 if each.refused else len(column.inputs)
        lines.append(_line(column, each))
    lines += [(cut(name, 24), "", "", "", "0", "left out") for name in raw.dropped]
    if options.weights is not None:
        lines.append((cut(options.weights, 24), "", "", "", "0", "weights of the rows"))
    columns = ("column", "kind", "missing", "values", "inputs", "how")
    console.print(f"{options.data}: {counted(len(raw.target), 'row')}, {counted(count, 'input')}")
    console.print(_target(raw, task, reason), soft_wrap=True)
    for note in (*raw.notes, *alike(labels or ())):
        console.print(f"note: {note}", soft_wrap=True)
    console.print(f"\n{align(Table(columns, lines), console.width)}", soft_wrap=True)
    refused = [each.refused for each in inputs if each.refused]
    refused += [not_dealt] if not_dealt else []
    if refused:
        console.print()
    for why in refused:
        console.print(why, soft_wrap=True)
    return 0


def _target(raw: RawData, task: str, reason: str) -> str:
    """The target and the task in a sentence, and why."""
    name = f" {raw.target_name!r}" if raw.target_name else ""
    if task == "classification":
        values = raw.target if raw.cells is None else np.array(raw.cells)
        found = len(np.unique(values)) if values.ndim == 1 else values.shape[1]
        what = f"{found} {'classes' if values.ndim == 1 else 'columns'}"
        what = "1 class" if found == 1 else what
    else:
        low, high = (significant(float(each), 6) for each in (raw.target.min(), raw.target.max()))
        what = f"{low} to {high}"
    return f"target{name}: {task}, {what}{f' ({reason})' if reason else ''}"


def _of_array(raw: RawData) -> Iterator[Examined]:
    """The columns of a source that is one array of numbers."""
    assert raw.x is not None
    for name, numbers in zip(raw.features, raw.x.T, strict=True):
        yield Examined(Column(name), Values(numbers))


def _line(column: Column, examined: Examined) -> tuple[str, ...]:
    """A column's name, kind, missing cells, values, and how it becomes how many inputs."""
    values, name = examined.values, cut(column.name, 24)
    missing = int(values.missing.sum())
    gaps = str(missing) if missing else ""
    present = values.numbers[~values.missing]
    if examined.refused and not len(present):  # its cells could not be read
        return name, "", "", "", "0", "refused"
    found, counts = np.unique(present, return_counts=True)
    if column.kind == "category":
        common = [values.names[int(found[each])] for each in np.argsort(-counts, kind="stable")]
        more = ", ..." if len(common) > _EXAMPLES else ""
        what = f"{len(common)}: {', '.join(common[:_EXAMPLES])}{more}"
    else:
        what = f"{len(found)}: {_shown(column, found[0])} to {_shown(column, found[-1])}"
    what = cut(what, 28)
    if examined.refused:
        return name, column.kind, gaps, what, "0", "refused"
    how = _how(column, missing) if missing or len(found) > 1 else "constant"
    if column.kind == "category" and (rare := {*values.names} - {*column.categories}):
        how += f", {len(rare)} in no training row"
    return name, column.kind, gaps, what, str(len(column.inputs)), how


def _shown(column: Column, value: float) -> str:
    return day(value) if column.kind == "date" else significant(value, 4)


def _how(column: Column, missing: int) -> str:
    if column.kind == "category":
        return "one-hot, missing too" if "" in column.categories else "one-hot"
    how = {"number": "", "boolean": "0 or 1", "date": "days since the first"}[column.kind]
    parts = [how, "decimal comma" if column.decimal == "," else ""]
    parts += [fill_of(column).removeprefix("the ") if missing else ""]
    parts += ["missing or not" if column.indicator else ""]
    return ", ".join(filter(None, parts))
