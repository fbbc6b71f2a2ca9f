"""Arrays: scikit-learn's bundled sets, an ``.npz`` and an ``.npy``, read as they are."""

import zipfile
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

import numpy as np

from jaxbp.data.cells import quoted
from jaxbp.data.columns import LARGEST_FLOAT32
from jaxbp.data.delimited import DELIMITED, check_is_file
from jaxbp.data.errors import DataError, scikit_learn
from jaxbp.data.raw import RawData
from jaxbp.data.tables import EXCEL, FRAMES, Table
from jaxbp.text import counted

BUNDLED = ("digits", "breast_cancer", "wine", "iris", "diabetes")  # real sets of scikit-learn


def read_bundled(name: str) -> RawData:
    """Read one of scikit-learn's sets.  Raises DataError for another name."""
    if name not in BUNDLED:
        near = get_close_matches(name, BUNDLED, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        what = "no kind of file that is read" if Path(name).exists() else f"no such data{hint}"
        what = (
            "a folder, of which jaxbp train alone reads all files" if Path(name).is_dir() else what
        )
        kinds = ", ".join(sorted(DELIMITED | FRAMES | EXCEL | {".npz", ".npy"}))
        raise DataError(f"{name}: {what} (there are {', '.join(BUNDLED)}, and files in {kinds})")
    bunch = getattr(scikit_learn("datasets"), f"load_{name}")()
    features = tuple(map(str, bunch.feature_names))
    labels = None if name == "diabetes" else tuple(map(str, bunch.target_names))
    return RawData(name, features, bunch.data, bunch.target, labels=labels)


# Arrays


def read_npz(source: str | Path, target: str) -> RawData:
    """Read the array x, and the target's; a note names the others.  Raises DataError."""
    arrays = npz_arrays(source)
    x, image_shape = npz_features(source, arrays)
    y = _npz_array(source, arrays, target)
    if y.ndim not in {1, 2} or len(y) != len(x) or not y.size or y.dtype.kind not in "biufU":
        raise DataError(
            f"{source}: {target} is {y.dtype} of shape {y.shape}, expected text or numbers for "
            f"each of x's {len(x)} rows"
        )
    if y.dtype.kind == "f":
        _check_finite(source, target, y)
    if y.shape[1:] == (1,):
        y = y[:, 0]
    features = tuple(f"x{i}" for i in range(x.shape[1]))
    outputs = tuple(map(str, range(y.shape[1]))) if y.ndim > 1 else ()
    others = tuple(name for name in arrays if name not in {"x", target})
    return RawData(
        str(source),
        features,
        x,
        y,
        outputs,
        target_name=target,
        image_shape=image_shape,
        dropped=others,
        notes=note_of_others(target, others),
    )


def note_of_others(target: str, others: tuple[str, ...]) -> tuple[str, ...]:
    """A note of the arrays of an .npz that are not read, if there are any."""
    shown = ", ".join(map(quoted, others[:5])) + (", ..." if len(others) > 5 else "")
    return (f"of its arrays, 'x' and {quoted(target)} are read, and not {shown}",) if others else ()


def npz_arrays(source: str | Path) -> dict[str, np.ndarray]:
    """Load all plain arrays of a file; nothing pickled is ever read."""
    check_is_file(source)
    if not zipfile.is_zipfile(source):
        raise DataError(f"{source}: not a complete .npz")
    try:
        with Path(source).open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except Exception as error:  # a damaged archive raises any of numpy's and zlib's exceptions
        pickled = "pickle" in str(error)
        reason = "it holds pickled objects, which are never read" if pickled else error
        raise DataError(f"{source}: not an .npz of plain arrays ({reason})") from None
    return {name: array for name, array in arrays.items() if isinstance(array, np.ndarray)}


def _npz_array(source: str | Path, arrays: dict[str, np.ndarray], name: str) -> np.ndarray:
    if name not in arrays:
        raise DataError(f"{source}: no array {name!r}; it holds {', '.join(arrays) or 'nothing'}")
    return arrays[name]


def npz_features(
    source: str | Path, arrays: dict[str, np.ndarray]
) -> tuple[np.ndarray, tuple[int, ...] | None]:
    """Take the array x as numbers (N, D), each image as one row; the shape of an image, if any."""
    x = _npz_array(source, arrays, "x")
    if x.dtype.kind not in "biuf" or x.ndim < 2 or not x.size:
        raise DataError(f"{source}: x is {x.dtype} of shape {x.shape}, expected rows of numbers")
    x_rows = x.reshape(len(x), -1)
    rows = x_rows.astype(np.float64)
    _check_finite(source, "x", rows)
    if x.dtype.kind in "iu" and (changed := changed_by_float64(x_rows)).any():
        row, column = np.argwhere(changed)[0]
        raise DataError(
            f"{source}: x, row {row}, column {column}: {x_rows[row, column]} is {CHANGED}"
        )
    return rows, x.shape[1:] if x.ndim > 2 else None


CHANGED = "an integer beyond 2⁵³ that float64 does not hold"


def changed_by_float64(integers: np.ndarray) -> np.ndarray:
    """Which integers are others in float64, as some beyond 2⁵³ are."""
    if integers.dtype.itemsize < 8:
        return np.zeros(integers.shape, bool)
    with np.errstate(invalid="ignore"):
        changed: np.ndarray = integers.astype(np.float64).astype(integers.dtype) != integers
    return changed


def _check_finite(source: str | Path, name: str, array: np.ndarray) -> None:
    beyond = np.argwhere(~(np.abs(array) <= LARGEST_FLOAT32))
    if len(beyond):
        first = tuple(beyond[0])
        column = f", column {first[1]}" if array.ndim > 1 else ""
        raise DataError(
            f"{source}: {name}, row {first[0]}{column}: {array[first]:g} is not finite in float32"
        )


def read_npy(source: str | Path, image_shape: tuple[int, ...] | None = None) -> Table:
    """Read an array (N, D) of numbers as a table whose columns are called by their positions.

    Images are rows where they have the shape that is given.  Raises DataError.
    """
    check_is_file(source)
    try:
        array = np.load(source, allow_pickle=False)
    except (ValueError, EOFError):
        raise DataError(
            f"{source}: not a complete .npy, or one of pickled objects, which are never read"
        ) from None
    if array.ndim > 2 and array.shape[1:] == image_shape:
        array = array.reshape(len(array), -1)
    if array.dtype.kind not in "biuf" or array.ndim != 2 or not array.size:
        images = "" if image_shape is None else f", or images of shape {image_shape}"
        raise DataError(
            f"{source}: {array.dtype} of shape {array.shape}, expected rows (N, D) of numbers"
            f"{images}"
        )
    if array.dtype.kind == "b":
        array = array.astype(np.uint8)
    names = tuple(f"column {i}" for i in range(array.shape[1]))
    return Table(str(source), names, list(array.T), has_header=False)


def check_image(
    source: str | Path, image_shape: tuple[int, ...] | None, expected: tuple[int, ...] | None
) -> None:
    """Raise DataError for images of another shape than those that a network was trained on.

    None is that of rows, which suit every network of their width.
    """
    if None not in {image_shape, expected} and image_shape != expected:
        raise DataError(
            f"{source}: images of shape {image_shape}, expected {expected}, as those the network "
            "was trained on"
        )


def check_width(source: str | Path, width: int, features: Sequence[str]) -> None:
    """Raise DataError for another number of columns than there are features."""
    if width != len(features):
        raise DataError(
            f"{source}: {counted(width, 'column')}, expected the {len(features)} the network was "
            "trained on, without the target "
            f"({', '.join(features[:5])}{', ...' if len(features) > 5 else ''})"
        )
