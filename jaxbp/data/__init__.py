"""Data: real tables and images as batches, split and standardised, and the errors they deserve.

Read ``loading``, whose ``load`` is the whole way from a file to three batches; then its steps in
order: ``sources`` reads, ``split`` deals the rows out, ``preparation`` scales them.
"""

from jaxbp.data.loading import Dataset, load
from jaxbp.data.preparation import Preparation, transform
from jaxbp.data.sources import BUNDLED, DataError, Task, read_features

__all__ = [
    "BUNDLED",
    "DataError",
    "Dataset",
    "Preparation",
    "Task",
    "load",
    "read_features",
    "transform",
]
