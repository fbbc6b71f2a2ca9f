"""Shards: a table in files that are read a block at a time: .npy, .npz and .parquet.

A source is such a file, or a folder of files of one kind, whose rows follow one another in the
order of the files' names.  Only headers are read before the rows are asked for.
"""

import math
import zipfile
from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxbp.data.arrays import CHANGED, changed_by_float64, npz_arrays
from jaxbp.data.cells import quoted
from jaxbp.data.columns import LARGEST_FLOAT32
from jaxbp.data.errors import DataError, readable, reader
from jaxbp.data.raw import Target
from jaxbp.data.sources import target_positions
from jaxbp.data.tables import IndexOfPandas, Table, index_of_pandas
from jaxbp.text import counted

KINDS = (".npy", ".npz", ".parquet")


class Block(NamedTuple):
    """Rows that are read at once."""

    file: Path
    start: int  # in the file
    size: int
    first: int  # the number of its first row in the whole source

    @property
    def rows(self) -> np.ndarray:
        """Their numbers in the file."""
        return np.arange(self.start, self.start + self.size)

    @property
    def numbers(self) -> np.ndarray:
        """Their numbers in the whole source."""
        return np.arange(self.first, self.first + self.size)


class Shards(NamedTuple):
    """The files of a source, and which of their columns are what."""

    name: str  # as the user gave it
    kind: str  # a suffix
    files: tuple[tuple[Path, int], ...]  # each with its rows
    features: tuple[str, ...]  # names of the D input columns
    outputs: tuple[str, ...]  # names of the K columns of the target, or of the target's array
    inputs: tuple[int, ...]  # positions of the D columns; none of .npz
    targets: tuple[int, ...]  # positions of the K columns; none of .npz
    dropped: tuple[str, ...]  # names of the columns that are left out
    image_shape: tuple[int, ...] | None = None  # of an image that a row was; None: rows were rows
    of_pandas: IndexOfPandas = IndexOfPandas()

    @property
    def rows(self) -> int:
        """How many there are."""
        return sum(rows for _, rows in self.files)

    def blocks(self, most: int) -> list[Block]:
        """All rows, in blocks of at most so many; those of .npz are as large as their files."""
        blocks, first = [], 0
        for file, rows in self.files:
            size = rows if self.kind == ".npz" else most
            for start in range(0, rows, size):
                blocks.append(Block(file, start, min(size, rows - start), first + start))
            first += rows
        return blocks

    def read(
        self, blocks: Sequence[Block], chosen: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The inputs (N, D) and the target (N,) or (N, K) of some blocks, as they are.

        blocks: one after the other.
        chosen: which of their rows, by increasing positions; all unless given.  Of .npy nothing
            else is read.

        Raises DataError for a number that float32 cannot hold, naming its row.
        """
        parts, before = [], 0  # rows of the blocks of other files
        for file, those in groupby(blocks, key=attrgetter("file")):
            of_file = list(those)
            rows = np.concatenate([block.rows for block in of_file])
            count, own = len(rows), np.arange(len(rows))
            if chosen is not None:
                first, last = np.searchsorted(chosen, (before, before + count))
                own = chosen[first:last] - before
            rows, before = rows[own], before + count
            if self.kind == ".npy":  # all blocks of a file at once
                table = np.load(file, mmap_mode="r")[rows]
                x, target = table[:, self.inputs], table[:, self.targets]
            elif self.kind == ".npz":  # a block is the file
                arrays = npz_arrays(file)
                x, target = arrays["x"].reshape(count, -1)[own], arrays[self.outputs[0]][own]
            else:
                both = zip(*map(self._read_parquet, of_file), strict=True)
                x, target = (np.concatenate(each)[own] for each in both)
            if target.ndim > 1 and target.shape[1] == 1:
                target = target[:, 0]
            _check(file, rows, x, self.features)
            if target.dtype.kind == "f":
                _check(file, rows, target.reshape(len(target), len(self.outputs)), self.outputs)
            parts.append((x, target))
        if len(parts) == 1:
            return parts[0]
        x, target = map(np.concatenate, zip(*parts, strict=True))
        return x, target

    def _read_parquet(self, block: Block) -> tuple[np.ndarray, np.ndarray]:
        polars = reader("polars", "a .parquet", "polars")
        names = [*self.features, *self.outputs]
        with readable(polars, block.file, ".parquet"):
            lazy = polars.scan_parquet(block.file).select(names)
            frame = lazy.slice(block.start, block.size).collect()
        for series in frame:
            if series.null_count():
                row = block.start + int(series.is_null().arg_max())
                raise DataError(
                    f"{block.file}, row {row}, column {quoted(series.name)}: missing; a stream "
                    "takes tables without gaps"
                )
        inputs = frame.select(self.features)
        for series in inputs:
            if series.dtype in {polars.Int64, polars.UInt64}:
                _check(block.file, block.rows, series.to_numpy()[:, None], (series.name,))
        x = inputs.cast(polars.Float64).to_numpy()
        columns = [frame[name].to_numpy() for name in self.outputs]
        columns = [each.astype(str) if each.dtype.kind == "O" else each for each in columns]
        return x, np.column_stack(columns) if len(columns) > 1 else columns[0]


def _check(file: Path, rows: np.ndarray, values: np.ndarray, names: tuple[str, ...]) -> None:
    """Raise DataError for a number that float32 cannot hold, in some rows of a file, and for an
    integer that float64 cannot."""
    said = "not finite in float32"
    if values.dtype.kind in "iu":
        beyond, said = changed_by_float64(values), CHANGED
    elif values.dtype.itemsize > 4:
        beyond = ~(np.abs(values) <= LARGEST_FLOAT32)
    else:
        beyond = ~np.isfinite(values)
    if beyond.any():
        row, column = np.argwhere(beyond)[0]
        raise DataError(
            f"{file}, row {rows[row]}, column {quoted(names[column])}: {values[row, column]} is "
            f"{said}"
        )


def shards_of(source: Any, target: Target, drop: tuple[str | int, ...]) -> Shards:
    """Find the files of a source, and tell its columns apart by their headers.

    source: the path of a file or of a folder of them.
    target: the columns to learn, as for ``load``; of .npz the name of an array.
    drop: columns to leave out.

    Raises DataError for what is no such source, and for files that do not belong together.
    """
    path = Path(source)
    files = [path]
    if not path.exists():
        raise DataError(f"{source}: no such file or folder, of which a stream reads the rows")
    if path.is_dir():
        files = sorted(each for each in path.iterdir() if each.suffix.lower() in KINDS)
    kinds = {each.suffix.lower() for each in files}
    if len(kinds) != 1 or not kinds <= {*KINDS} or not files[0].is_file():
        got = ", ".join(sorted(kinds)) or "none of them"
        raise DataError(
            f"{source}: got {got}, expected a file, or a folder of files, of one of the kinds "
            f"{', '.join(KINDS)}: these are read as a stream"
        )
    (kind,) = kinds
    if kind == ".npz":
        return _of_npz(str(source), files, target, drop)
    headers = [(_npy_header if kind == ".npy" else _parquet_header)(file) for file in files]
    names = headers[0][0]
    for file, (others, _) in zip(files, headers, strict=True):
        if others != names:
            differing = sorted({*names} ^ {*others}) or ["their order"]
            raise DataError(
                f"{file}: {counted(len(others), 'column')} unlike the {len(names)} of {files[0]} "
                f"({', '.join(differing[:5])})"
            )
    index = index_of_pandas(files[0], names)
    names = tuple(index.arranged(names))
    table = Table(str(source), names, ())
    targets = target_positions(table, target)
    dropped = [table.position(name) for name in drop]
    inputs = [each for each in range(len(names)) if each not in {*targets, *dropped}]
    if {*targets} & {*dropped}:
        raise DataError("drop: one of the columns is the target")
    if not inputs:
        raise DataError(f"{source}: every column is a target, expected an input at least")
    if kind == ".parquet":
        _check_types(files[0], [names[each] for each in inputs])
    return Shards(
        str(source),
        kind,
        tuple(zip(files, (rows for _, rows in headers), strict=True)),
        tuple(names[each] for each in inputs),
        tuple(names[each] for each in targets),
        tuple(inputs),
        tuple(targets),
        (*(names[each] for each in dropped), *index.unnamed),
        of_pandas=index,
    )


def _npy_header(file: Path) -> tuple[tuple[str, ...], int]:
    """The names of the columns, which are their positions, and the rows."""
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError):
        raise DataError(f"{file}: not a complete .npy of plain numbers") from None
    if array.dtype.kind not in "biuf" or array.ndim != 2 or not array.size:
        raise DataError(f"{file}: {array.dtype} of shape {array.shape}, expected rows of numbers")
    return tuple(f"column {place}" for place in range(array.shape[1])), len(array)


def _parquet_header(file: Path) -> tuple[tuple[str, ...], int]:
    polars = reader("polars", "a .parquet", "polars")
    with readable(polars, file, ".parquet"):
        lazy = polars.scan_parquet(file)
        names = tuple(lazy.collect_schema().names())
        return names, lazy.select(polars.len()).collect().item()


def _check_types(file: Path, names: list[str]) -> None:
    """Raise DataError for the first input column that does not hold numbers."""
    schema = reader("polars", "a .parquet", "polars").read_parquet_schema(file)
    for name in names:
        if not schema[name].is_numeric():
            raise DataError(
                f"{file}: column {quoted(name)} is {schema[name]}, and a stream takes numbers "
                "alone; drop (--drop) leaves it out"
            )


def _of_npz(name: str, files: list[Path], target: Target, drop: tuple[str | int, ...]) -> Shards:
    if drop:
        raise DataError(f"drop: got {drop[0]!r}, and the arrays of an .npz have no columns to drop")
    output = "y" if target is None else str(target)
    sized, shapes = [], []
    for file in files:
        try:
            (rows, *shape), (others, *of_target) = (
                _npz_header(file, each) for each in ("x", output)
            )
        except (KeyError, ValueError, OSError, zipfile.BadZipFile) as error:
            raise DataError(
                f"{file}: expected arrays x (N, ...) and {output} (N,) ({error})"
            ) from None
        if rows != others or not shape:
            raise DataError(f"{file}: x has {rows} rows, and {output} {others}")
        if of_target not in ([], [1]):
            raise DataError(
                f"{file}: {output} has rows of shape {tuple(of_target)}, expected a number or a "
                "class in each, as a stream takes"
            )
        sized.append((file, rows))
        shapes.append(tuple(shape))
        if shapes[-1] != shapes[0]:
            raise DataError(
                f"{file}: x has rows of shape {shapes[-1]}, unlike the {shapes[0]} of {files[0]}"
            )
    image_shape = shapes[0] if len(shapes[0]) > 1 else None
    features = tuple(f"x{place}" for place in range(math.prod(shapes[0])))
    with zipfile.ZipFile(files[0]) as archive:
        arrays = [each.removesuffix(".npy") for each in archive.namelist()]
    left = tuple(each for each in arrays if each not in {"x", output})
    return Shards(name, ".npz", tuple(sized), features, (output,), (), (), left, image_shape)


def _npz_header(file: Path, name: str) -> tuple[int, ...]:
    """The shape of an array, by its header."""
    with zipfile.ZipFile(file) as archive, archive.open(f"{name}.npy") as array:
        old = np.lib.format.read_magic(array) == (1, 0)
        read = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
        shape: tuple[int, ...] = read(array)[0]
        return shape
