"""Data: a table or images from a file, as standardised batches to train, validate and test on.

Read ``loading`` first: its ``load`` is the whole way, and calls the others in this order:
``sources`` reads a file, by the ``layout`` that is guessed where it is not told and by what its
``cells`` are; ``split`` deals out its rows, ``preparation`` encodes and scales them.  ``weights``
gives every class the same part of the objective, however many rows it has.
"""

from jaxbp.data.loading import Dataset, Decisions, load, load_for
from jaxbp.data.preparation import Preparation, transform
from jaxbp.data.sources import BUNDLED, DataError, DataWarning, Task, read_features
from jaxbp.data.weights import class_weights

__all__ = [
    "BUNDLED",
    "DataError",
    "DataWarning",
    "Dataset",
    "Decisions",
    "Preparation",
    "Task",
    "class_weights",
    "load",
    "load_for",
    "read_features",
    "transform",
]
