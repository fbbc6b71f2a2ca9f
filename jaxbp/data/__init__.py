"""Data: a table or images from a file, as standardised batches to train, validate and test on.

Read ``loading`` first: its ``load`` is the whole way, and calls the others in this order:
``sources`` reads what there is, by ``tables``, ``arrays`` or, as text, ``delimited``, whose
``layout`` is guessed where it is not told; ``columns`` tells by the ``cells`` of what kind each is,
and ``facts`` says it in words; ``split`` deals out the rows, ``preparation`` encodes and scales
them.  ``weights`` gives every class the same part of the objective, however many rows it has.
``streaming`` leaves on the disk what memory does not hold, in ``shards``, of which ``first_pass``
knows the statistics.
"""

from jaxbp.data.columns import Column
from jaxbp.data.errors import DataError, DataWarning
from jaxbp.data.loading import Dataset, Decisions, load, load_for, load_rows
from jaxbp.data.preparation import Preparation, in_units, transform
from jaxbp.data.sources import BUNDLED, Task, read_features
from jaxbp.data.weights import class_weights

__all__ = [
    "BUNDLED",
    "Column",
    "DataError",
    "DataWarning",
    "Dataset",
    "Decisions",
    "Preparation",
    "Task",
    "class_weights",
    "in_units",
    "load",
    "load_for",
    "load_rows",
    "read_features",
    "transform",
]
