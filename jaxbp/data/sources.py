"""Sources: a table, an ``.npz`` or one of scikit-learn's bundled sets, read as it is.

Anything wrong with a file is a ``DataError`` of one line that names the file, the row and the
column.  Rows of a CSV are its line numbers, as an editor shows them; rows of an array count from 0.
"""

import operator
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from jaxbp.data.arrays import (
    BUNDLED,
    check_image,
    check_width,
    npz_arrays,
    npz_features,
    read_bundled,
    read_npy,
    read_npz,
)
from jaxbp.data.cells import CODE, INTEGER, Decimal, is_number, quoted
from jaxbp.data.columns import (
    Column,
    Examined,
    Values,
    check_complete,
    examine,
    note_of_codes,
    read,
    shown_decimals,
)
from jaxbp.data.delimited import DELIMITED, check_is_file, is_tabular, read_delimited, suffix_of
from jaxbp.data.errors import DataError, DataWarning, noting
from jaxbp.data.layout import counts_rows
from jaxbp.data.raw import AS_FOUND, RawData, Reading, Target, Task
from jaxbp.data.tables import (
    FRAMES,
    Table,
    distinct,
    frame_table,
    is_frame,
    is_text,
    read_frame,
    texts,
)
from jaxbp.reprs import short
from jaxbp.text import counted

__all__ = ["BUNDLED", "DataError", "DataWarning", "RawData", "Reading", "Target", "Task"]


def read_table(source: Any, reading: Reading, expected: Sequence[str] = ()) -> Table | None:
    """Read a file of columns, a DataFrame or a dict of arrays; None where a source is none of them.

    expected holds names that the columns may have.  Raises DataError.
    """
    if is_frame(source):
        table = frame_table(source)
    elif is_tabular(source):
        table = read_delimited(
            source, header=reading.header, expected=expected, encoding=reading.encoding
        )
    elif suffix_of(source) in FRAMES:
        check_is_file(source)
        table = read_frame(source)
    else:
        is_npy = suffix_of(source) == ".npy"
        return read_npy(source, reading.image_shape) if is_npy else None
    return table._replace(decimals=shown_decimals(table))


def read_source(source: Any, target: Target, task: Task | None, reading: Reading) -> RawData:
    """Read a table, an ``.npz`` or a bundled set, unscaled.  Raises DataError."""
    table = read_table(source, reading)
    if table is not None:
        return _read_columns(table, target, task, reading)
    for name in ("drop", "categorical", "weights"):
        if getattr(reading, name) not in {None, ()}:
            raise DataError(f"{name}: {source} is no table, whose columns have names")
    if suffix_of(source) == ".npz":
        return read_npz(source, "y" if target is None else str(target))
    bundled = read_bundled(str(source))
    if target is not None:
        raise DataError(f"target: got {target!r}, but {source} has its own target")
    return bundled


def read_features(source: Any, features: Sequence[str]) -> np.ndarray:
    """Read the named columns of a source as raw rows (N, D), to predict from; no target needed.

    A table with names is read by them.  A CSV without a header, and an ``.npz``, must hold exactly
    these columns in this order.  The rows are numbers where all cells are, else text, which
    ``transform`` reads.  Raises DataError.
    """
    table = read_inputs(source, features)
    if isinstance(table, np.ndarray):
        return table
    read_columns = [examine(table, position) for position in range(len(features))]
    if all(
        each.column.kind in {"number", "boolean"}
        and not (each.refused or each.values.missing.any())
        for each in read_columns
    ):
        return np.stack([each.values.numbers for each in read_columns], axis=1)
    return np.array([texts(column) for column in table.columns], object).T


def read_inputs(
    source: Any, features: Sequence[str], reading: Reading = AS_FOUND
) -> Table | np.ndarray:
    """Read the named columns of a source: a table of them in order, or an array (N, D)."""
    table = read_table(source, reading, expected=features)
    if table is not None:
        positions = _inputs_of(table, features, ())
        return table._replace(
            names=tuple(features), columns=[table.columns[each] for each in positions]
        )
    if suffix_of(source) == ".npz":
        x, image_shape = npz_features(source, npz_arrays(source))
        check_image(source, image_shape, reading.image_shape)
    else:
        bundled = read_bundled(str(source)).x
        assert bundled is not None
        x = bundled
    check_width(source, x.shape[1], features)
    return x


def read_labelled(
    source: Any,
    features: Sequence[str],
    target: Target,
    is_text: bool,
    reading: Reading = AS_FOUND,
    known: tuple[str, ...] | None = None,
) -> RawData:
    """Read the named columns of a source and its target, to evaluate a network on.

    source: as ``load`` takes it.
    features: names of the columns, found as by ``read_features``; a CSV without a header holds
        these in order, and the target.
    target: as ``load`` takes it.
    is_text: whether a table's target is the names of classes, and not quantities.
    reading: how; as it is found unless given.
    known: names of the target's columns, which it has in a table with names unless target says
        otherwise; None where they are not known.

    Raises DataError.
    """
    table = read_table(source, reading, expected=features)
    if table is None:
        raw = read_source(source, target, None, reading)
        assert raw.x is not None
        check_image(source, raw.image_shape, reading.image_shape)
        check_width(source, raw.x.shape[1], features)
        return raw
    if target is None and known is not None and table.has_header is not False:
        target = known if len(known) > 1 else known[0]
    chosen = target_positions(table, target)
    others = _inputs_of(table, features, chosen)
    for position in chosen:
        if position in others:
            name = quoted(table.names[position])
            raise DataError(f"{table.source}: column {name} is one of the inputs; name the target")
    for position in chosen:
        _check_target(table, position)
    weights = [] if reading.weights is None else [table.position(reading.weights)]
    if is_text and len(chosen) == 1:
        values = np.array(texts(table.columns[chosen[0]]))
    else:
        values = _numeric_columns(table, chosen, _examined(table, chosen, reading.decimal))
        values = values if len(chosen) > 1 else values[:, 0]
    names = tuple(table.names[position] for position in chosen)
    others_too = target is None and len(table.names) > len({*others, *chosen, *weights})
    return RawData(
        table.source,
        tuple(features),
        None,
        values,
        names if len(chosen) > 1 else (),
        target_name=",".join(names),
        weight=_weights(table, weights, _examined(table, weights, reading.decimal)),
        notes=(f"the target is column {quoted(names[0])}, the last one",) if others_too else (),
        table=table._replace(
            names=tuple(features), columns=[table.columns[each] for each in others]
        ),
    )


def _inputs_of(table: Table, features: Sequence[str], chosen: Sequence[int]) -> list[int]:
    """Where the inputs are: by name or, in a table without names, all but the target in order.

    Where it has further columns, those of another one without names are found by their positions.
    """
    others = [position for position in range(len(table.names)) if position not in chosen]
    more_columns = len(others) > len(features) and {*features} <= {*table.names}
    if table.has_header is not False or more_columns:
        return table.positions(features)
    check_width(table.source, len(others), features)
    return others


# Tables


_NO_NAME = re.compile(r"(Unnamed: \d+(\.\d+)*)?")  # pandas' names for columns without one


def _read_columns(table: Table, target: Target, task: Task | None, reading: Reading) -> RawData:
    """Tell target, weights and inputs of a table apart, and read them."""
    if len(table.names) < 2:
        is_text = suffix_of(table.source) in DELIMITED
        between = " with a comma, semicolon or tab between" if is_text else ""
        with noting([table.note]):
            raise DataError(f"{table.source}: one column, expected features and a target{between}")
    chosen = target_positions(table, target)
    dropped, categorical = (
        [table.position(name) for name in getattr(reading, option)]
        for option in ("drop", "categorical")
    )
    weights = [] if reading.weights is None else [table.position(reading.weights)]
    for option, positions in (
        ("drop", dropped),
        ("categorical", categorical),
        ("weights", weights),
    ):
        if {*positions} & {*chosen}:
            name = quoted(table.names[next(each for each in positions if each in chosen)])
            raise DataError(f"{option}: column {name} is the target")
    out = {*chosen, *dropped, *weights}
    others = [position for position in range(len(table.names)) if position not in out]
    if not others:
        left = "is a target, dropped or the weights" if dropped or weights else "is a target"
        raise DataError(f"{table.source}: every column {left}, expected an input at least")
    notes = [table.note] if table.note else []
    while table.has_header is not False and _NO_NAME.fullmatch(table.names[others[0]]):
        column = others[0]
        first = "the first column" if column == 0 else f"column {quoted(table.names[column])}"
        if not counts_rows(texts(table.columns[column])) or len(others) == 1:
            notes.append(f"{first} has no name, and is an input like the others")
            break
        others.remove(column)
        dropped.append(column)
        notes.append(f"{first} has no name and counts the rows: it is left out")
    with noting([*notes, table.hint]):
        missing = np.any([_target_missing(table, position) for position in chosen], axis=0)
        if missing.any():
            if reading.missing == "error" or missing.all():
                _check_target(table, next(p for p in chosen if _target_missing(table, p).any()))
            count = counted(int(missing.sum()), "row")
            notes.append(f"{count} without a target left out; missing='error' refuses such a table")
            table = table.take(np.flatnonzero(~missing))
        own = _examined(table, chosen + weights, reading.decimal)
        values, cells = _target_values(table, chosen, task, reading.decimal, own)
        weight = _weights(table, weights, own)
        examined = {
            position: examine(
                table,
                position,
                categorical=position in categorical or table.names[position] in table.categorical,
                decimal=reading.decimal,
            )
            for position in others
        }
        if reading.missing == "error":
            for position, each in examined.items():
                if not each.refused:
                    check_complete(table, position, each.values)
        notes += [each.note for each in (*own.values(), *examined.values()) if each.note]
        readable = [p for p, each in examined.items() if not each.refused]
        numbers = [p for p in readable if examined[p].column.kind == "number"]
        notes += filter(None, (note_of_codes(table, position) for position in numbers))
    for position in [p for p, each in examined.items() if each.column.kind == "empty"]:
        notes.append(f"column {quoted(table.names[position])} is empty: it is left out")
        others.remove(position)
        dropped.append(position)
    names = tuple(table.names[position] for position in chosen)
    return RawData(
        name=table.source,
        features=tuple(table.names[position] for position in others),
        x=None,
        target=values,
        outputs=names if len(chosen) > 1 else (),
        cells=cells,
        target_name=",".join(names),
        header=table.has_header,
        dropped=tuple(table.names[position] for position in dropped),
        table=table._replace(columns=()),  # whose cells have been read
        inputs=tuple(examined[position] for position in others),
        weight=weight,
        weight_name=table.names[weights[0]] if weights else "",
        notes=tuple(notes),
        hint=table.hint,
    )


def check_inputs(raw: RawData) -> None:
    """Raise DataError for the first column that can be no input, with the names of the others."""
    refused = [each for each in raw.inputs if each.refused]
    if refused:
        others = ", ".join(quoted(each.column.name) for each in refused[1:6])
        more = f" (nor can {others}{', ...' if len(refused) > 6 else ''})" if others else ""
        with noting([*raw.notes, raw.hint]):
            raise DataError(refused[0].refused + more)
    if not raw.inputs and raw.table is not None:
        raise DataError(f"{raw.name}: every column is empty or the target")


def target_positions(table: Table, target: Target) -> list[int]:
    """Find the target's column, the last one unless given, or several with commas between."""
    if target is None:
        return [len(table.names) - 1]
    names: str | int | tuple[str | int, ...] = target
    if isinstance(target, str) and target not in table.names and "," in target:
        names = tuple(name.strip() for name in target.split(","))
    if not isinstance(names, tuple):
        return [table.position(names)]
    found = [table.position(each) for each in names]
    if len(set(found)) < len(found):
        raise DataError(f"target: got {target!r}, expected each column once")
    return found


def check_target(target: Any) -> None:
    """Raise DataError unless a target is None, a name, a whole number, or several of them."""
    if target is None or isinstance(target, str):
        return
    if isinstance(target, tuple) and target:
        for each in target:
            check_target(False if each is None or isinstance(each, tuple) else each)
        return
    try:
        operator.index(target)
    except TypeError:
        pass
    else:
        if not isinstance(target, bool | np.bool_):
            return
    raise DataError(
        f"target: got {short(target)}, expected one name or position of a column, or a tuple of "
        "several"
    )


_MISSING_TARGET = {"", "na", "n/a", "nan", "?"}  # "none" can be the name of a class


def _target_missing(table: Table, position: int) -> np.ndarray:
    """Which cells of a target's column are missing, (N,)."""
    column = table.columns[position]
    if not is_text(column):
        missing: np.ndarray = np.isnan(column)
        return missing
    cells, codes = distinct(column)
    absent = np.array([cell.lower() in _MISSING_TARGET for cell in cells])
    return np.take(absent, codes)


def _check_target(table: Table, position: int) -> None:
    """Raise DataError for the first cell of a target's column that is missing."""
    missing = _target_missing(table, position)
    if missing.any():
        raise DataError(f"{table.place(int(missing.argmax()), position)}: missing value")


def _examined(
    table: Table, positions: Sequence[int], decimal: Decimal | None
) -> dict[int, Examined]:
    """The columns of target and weights, by their positions."""
    return {position: examine(table, position, decimal=decimal) for position in positions}


def _numeric_columns(
    table: Table, positions: Sequence[int], examined: dict[int, Examined]
) -> np.ndarray:
    """Columns as float64 (N, K).  Raises DataError for the first cell that is no number."""
    found = []
    for position in positions:
        each = examined[position]
        column = Column(table.names[position], decimal=each.column.decimal)
        values: Values = each.values
        if each.refused or each.column.kind not in {"number", "boolean"}:
            values = read(table, position, column)
        check_complete(table, position, values)
        found.append(values.numbers)
    return np.stack(found, axis=1)


def _target_values(
    table: Table,
    chosen: Sequence[int],
    task: Task | None,
    decimal: Decimal | None,
    examined: dict[int, Examined],
) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """The target's values, (N,) or (N, K), and its text where it was read as decimals.

    table: that has it.
    chosen: its positions.
    task: if it is told.
    decimal: as in ``Reading``.
    examined: its columns.
    """
    if len(chosen) > 1:
        return _numeric_columns(table, chosen, examined), None
    if task == "regression":
        return _numeric_columns(table, chosen, examined)[:, 0], None
    column = table.columns[chosen[0]]
    if not is_text(column):
        return column, None
    values = _target_column(table, chosen[0], decimal, examined)
    return values, tuple(texts(column)) if values.dtype.kind == "f" else None


def _target_column(
    table: Table, position: int, decimal: Decimal | None, examined: dict[int, Examined]
) -> np.ndarray:
    """Read a column of text as integers or decimals if its cells are, else as text.

    Integers are written as Python writes them: 007 is a name that differs from 7.
    """
    cells = texts(table.columns[position])
    different = {*cells}
    if all(INTEGER.fullmatch(cell) and str(int(cell)) == cell for cell in different):
        with suppress(OverflowError):
            return np.array(list(map(int, cells)), np.int64)
    if any(CODE.fullmatch(cell) for cell in different):
        return np.array(cells)
    if all(map(is_number, different)):
        return _numeric_columns(table, [position], examined)[:, 0]
    own = examined[position]
    if own.column.kind == "number" and not own.refused and decimal != ".":
        return own.values.numbers  # with a decimal comma
    return np.array(cells)


def _weights(
    table: Table, positions: Sequence[int], examined: dict[int, Examined]
) -> np.ndarray | None:
    """The example weights (N,) in a column, if there is one.  Raises DataError for the first that
    can be none."""
    if not positions:
        return None
    (position,) = positions
    weights = _numeric_columns(table, positions, examined)[:, 0]
    if (weights < 0).any():
        row = int((weights < 0).argmax())
        place = table.place(row, position)
        raise DataError(f"{place}: the weight {weights[row]:g}, expected a number of at least 0")
    if not weights.any():
        raise DataError(f"weights: column {quoted(table.names[position])} is 0 in every row")
    return weights
