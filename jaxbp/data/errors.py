"""Errors: what is wrong with data, in one line that says where."""

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


class DataError(ValueError):
    """Something is wrong with the data; the message says where."""


class DataWarning(UserWarning):
    """The data may have been read otherwise than they are meant; the message says how."""


@contextmanager
def noting(notes: Sequence[str]) -> Iterator[None]:
    """Add to a DataError what may be its cause."""
    try:
        yield
    except DataError as error:
        said = [note for note in dict.fromkeys(notes) if note and note not in str(error)]
        if not said:
            raise
        raise DataError("; ".join([str(error), *said])) from None


@contextmanager
def readable(polars: Any, file: object, kind: str) -> Iterator[None]:
    """Raise DataError for what polars raises, of many kinds; a panic of Rust is no Exception."""
    try:
        yield
    except (Exception, polars.exceptions.PanicException) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{file}: not a readable {kind} ({reason})") from None


def scikit_learn(module: str) -> Any:
    """Import a module of scikit-learn, which only an extra installs."""
    try:
        return importlib.import_module(f"sklearn.{module}")
    except ImportError as error:
        raise ImportError("jaxbp.data needs scikit-learn: pip install 'jaxbp[cli]'") from error


def reader(module: str, what: str, install: str) -> Any:
    """Import the module that reads a kind of file.

    module: its name.
    what: what it reads, as a message begins.
    install: what pip installs it by.

    Raises DataError that says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise DataError(f"{what} needs {module}: pip install {install}") from None
