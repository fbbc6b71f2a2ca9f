"""Raw data: the contents of a source as they were read, and how a table is to be read."""

from typing import Literal, NamedTuple

import numpy as np

from jaxbp.data.cells import Decimal
from jaxbp.data.columns import Examined, Missing
from jaxbp.data.tables import Table

Task = Literal["classification", "regression"]

Target = str | int | tuple[str | int, ...] | None  # a column by name or position, or several


class Reading(NamedTuple):
    """How a table is to be read, where it is told and not found."""

    header: bool | None = None  # whether a CSV's first row names the columns
    drop: tuple[str | int, ...] = ()  # columns that are no inputs
    categorical: tuple[str | int, ...] = ()  # columns that are categories, whatever their cells are
    missing: Missing = "impute"  # what becomes of missing cells
    weights: str | int | None = None  # the column of example weights
    encoding: str | None = None  # of a CSV
    decimal: Decimal | None = None  # before a number's fraction
    image_shape: tuple[int, ...] | None = None  # of the images that an array may hold


AS_FOUND = Reading()


class RawData(NamedTuple):
    """The contents of a source, before they are split and scaled."""

    name: str  # as the user gave it
    features: tuple[str, ...]  # names of the D columns
    x: np.ndarray | None  # (N, D), or None where there is a table
    target: np.ndarray  # (N,) text or numbers, or (N, K) numbers
    outputs: tuple[str, ...] = ()  # names of the K columns of a target (N, K)
    labels: tuple[str, ...] | None = None  # of classes 0, 1, ... where the source names them
    cells: tuple[str, ...] | None = None  # (N,) the target's text where it was read as decimals
    target_name: str = ""  # of the column or array; a bundled set has one without a name
    header: bool | None = None  # whether a CSV's first row names its columns
    dropped: tuple[str, ...] = ()  # names of the columns that are neither input nor target
    table: Table | None = None  # whose columns the inputs are
    inputs: tuple[Examined, ...] = ()  # its D columns that are inputs
    weight: np.ndarray | None = None  # (N,) of the examples
    weight_name: str = ""  # of its column
    notes: tuple[str, ...] = ()  # what may have been read otherwise than it is meant
    hint: str = ""  # what may be the cause of an error
    image_shape: tuple[int, ...] | None = None  # of an image that a row was; None: rows were rows

    def place(self, row: int) -> str:
        """Name a row as its file counts: a CSV's by its line, the header's being 1 as a rule."""
        return f"{self.name}, row {row if self.table is None else self.table.line(row)}"
